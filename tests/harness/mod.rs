//! What the integration tests share: the real servers, the real binary, and directories that go away.
//!
//! Each test binary says `mod harness;` and uses a part of it. A part that is missing fails the test with the
//! command that installs it; nothing is skipped.
#![allow(dead_code, clippy::unwrap_used, clippy::print_stderr)]

pub mod browser;
pub mod golden;
pub mod guard;
pub mod pocketbase;
pub mod postgres;
pub mod processes;
pub mod seaweedfs;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

pub use tempfile::TempDir;

/// What to do when a part is missing.
pub const INSTALL: &str = "run scripts/services install";

/// The project's directory.
pub fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A program that `scripts/services` installs: `.services/bin`, then `PATH`.
///
/// # Panics
/// It is in neither; the message is the command that installs it.
pub fn binary(name: &str) -> PathBuf {
    let installed = project().join(".services/bin").join(name);
    if installed.is_file() {
        return installed;
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
        .unwrap_or_else(|| panic!("{name} is missing: {INSTALL}"))
}

/// A directory that is removed when dropped.
pub fn temp_dir() -> TempDir {
    tempfile::Builder::new()
        .prefix("lifeboat-test-")
        .tempdir()
        .expect("no temporary directory")
}

/// Writes a file below a directory, with the directories that lead to it, and gives its path.
pub fn write_file(dir: &Path, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
    let path = dir.join(name);
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).expect("no directory for a test's file");
    }
    std::fs::write(&path, content).expect("a test's file can not be written");
    path
}

/// Every file below a directory, by its path inside, with its bytes, sorted: to compare two trees byte for byte.
pub fn tree(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    let mut left = vec![dir.to_path_buf()];
    while let Some(next) = left.pop() {
        for entry in std::fs::read_dir(&next).unwrap_or_else(|e| panic!("{}: {e}", next.display())) {
            let path = entry.expect("a directory can not be read").path();
            let kind = std::fs::symlink_metadata(&path)
                .expect("a file went away")
                .file_type();
            if kind.is_dir() {
                left.push(path);
                continue;
            }
            let name = path.strip_prefix(dir).expect("a file below its directory");
            let bytes = if kind.is_symlink() {
                std::fs::read_link(&path)
                    .expect("a link")
                    .into_os_string()
                    .into_encoded_bytes()
            } else {
                std::fs::read(&path).expect("a file can not be read")
            };
            found.push((name.to_string_lossy().into_owned(), bytes));
        }
    }
    found.sort();
    found
}

/// Random bytes as hexadecimal text: passwords of servers that live for one test.
pub fn random_hex(bytes: usize) -> String {
    let mut buffer = vec![0u8; bytes];
    getrandom::fill(&mut buffer).expect("the operating system gives no random bytes");
    buffer.iter().map(|b| format!("{b:02x}")).collect()
}

/// A TCP port of 127.0.0.1 that was free a moment ago.
pub fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("no free port");
    listener.local_addr().expect("a port").port()
}

/// Asks again and again until there is an answer or the time is over.
pub fn poll<T>(within: Duration, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + within;
    loop {
        if let Some(answer) = ask() {
            return Some(answer);
        }
        if Instant::now() >= deadline {
            return None;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The real binary, with nothing of this process's environment but what it needs to run programs.
pub fn lifeboat() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_backup"));
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", "/nonexistent")
        .env("TZ", "UTC")
        .env("LC_ALL", "C.UTF-8");
    if let Some(dir) = std::env::var_os("TMPDIR") {
        command.env("TMPDIR", dir);
    }
    command
}

/// What a program that ended said.
#[derive(Debug)]
pub struct Said {
    /// The exit code; a signal is 128 and its number, as shells tell it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Said {
    /// Standard output as one JSON document.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("not one JSON document: {e}\n{self}"))
    }
}

impl std::fmt::Display for Said {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "exit code {}\n--- stdout\n{}\n--- stderr\n{}",
            self.code, self.stdout, self.stderr
        )
    }
}

/// Runs a program to its end.
pub fn run(command: &mut Command) -> Said {
    use std::os::unix::process::ExitStatusExt as _;
    let output = command
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap_or_else(|e| panic!("{} can not be run: {e}", command.get_program().to_string_lossy()));
    Said {
        code: output
            .status
            .code()
            .unwrap_or_else(|| 128 + output.status.signal().unwrap_or(0)),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Runs a program that has to end with an exit code.
///
/// # Panics
/// It ends with another; the message shows what it said.
#[track_caller]
pub fn run_code(command: &mut Command, code: i32) -> Said {
    let said = run(command);
    assert_eq!(said.code, code, "{}: {said}", shown(command));
    said
}

/// Runs a program that has to succeed.
///
/// # Panics
/// It fails; the message shows what it said.
#[track_caller]
pub fn run_ok(command: &mut Command) -> Said {
    run_code(command, 0)
}

/// The command line as a reader would type it (no environment: it holds secrets).
fn shown(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(OsStr::to_string_lossy)
        .collect::<Vec<_>>()
        .join(" ")
}
