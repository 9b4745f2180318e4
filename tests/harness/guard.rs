//! A server process that can not outlive its test, however the test ends.
//!
//! Rust drops no statics, a killed test drops nothing, and Linux's parent-death signal follows the *thread* that
//! started a child. So a small shell stands between: it starts the server, reads a pipe that only the test
//! process holds open, and at its end stops the server and removes the data. It is in a process group of its
//! own, so that an interrupt or a runner's timeout reaches the test and not the one who cleans up.

use std::ffi::OsString;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// Starts "$@" with its output in $log, tells its number, waits for the end of the pipe, cleans up.
const SCRIPT: &str = r#"
end=$1 log=$2 remove=$3; shift 3
"$@" </dev/null >>"$log" 2>&1 &
echo $!
exec >/dev/null
while read -r word; do [ "$word" = leave ] && remove=; done
kill -"$end" $! 2>/dev/null
wait $!
[ -z "$remove" ] || rm -rf -- "$remove"
"#;

/// A running server.
pub struct Guard {
    shell: Child,
    pipe: Option<ChildStdin>,
    pid: Pid,
    log: PathBuf,
}

/// How a server is started and ended.
pub struct Start<'a> {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Added to its environment: secrets go here.
    pub environment: Vec<(&'a str, String)>,
    /// Where its output goes.
    pub log: PathBuf,
    /// The signal that ends it when the test is over.
    pub end: &'a str,
    /// Removed after the end; empty for nothing.
    pub remove: PathBuf,
}

impl Guard {
    /// Starts it. It may not be ready, or fail at once: see [`Guard::is_running`].
    pub fn start(start: Start<'_>) -> Self {
        let mut shell = Command::new("/bin/sh")
            .args(["-c", SCRIPT, "guard", start.end])
            .arg(&start.log)
            .arg(&start.remove)
            .arg(start.program)
            .args(start.arguments)
            .envs(start.environment)
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("/bin/sh can not be run");
        let mut line = String::new();
        let output = shell.stdout.take().expect("a pipe");
        BufReader::new(output)
            .read_line(&mut line)
            .expect("no word of the guard");
        let pid = line.trim().parse().ok().and_then(Pid::from_raw);
        Self {
            pipe: shell.stdin.take(),
            shell,
            pid: pid.unwrap_or_else(|| panic!("the guard names no process: {line:?}")),
            log: start.log,
        }
    }

    /// The server's process number.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Whether it lives.
    pub fn is_running(&self) -> bool {
        // A zombie that nobody has reaped is over as well.
        std::fs::read_to_string(format!("/proc/{}/stat", self.pid()))
            .is_ok_and(|stat| !stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" Z")))
    }

    /// Sends a signal, if it lives.
    pub fn signal(&self, signal: Signal) {
        if self.is_running() {
            // It may end between the look and the signal.
            let _ = kill_process(self.pid, signal);
        }
    }

    /// Waits until it is over.
    ///
    /// # Panics
    /// It still lives after the time given.
    pub fn wait_for_end(&self, within: Duration) {
        let over = super::poll(within, || (!self.is_running()).then_some(()));
        assert!(over.is_some(), "a server does not end:\n{}", self.log_tail());
    }

    /// Ends the server, if it lives, and leaves its data where it is.
    pub fn leave_data(mut self) {
        if let Some(pipe) = &mut self.pipe {
            pipe.write_all(b"leave\n").expect("the guard is gone");
        }
    }

    /// The last lines it wrote.
    pub fn log_tail(&self) -> String {
        log_tail(&self.log)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.pipe.take());
        let _ = self.shell.wait();
    }
}

/// The last lines of a log.
pub fn log_tail(log: &Path) -> String {
    let log = std::fs::read(log).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    let lines: Vec<&str> = log.lines().rev().take(30).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}
