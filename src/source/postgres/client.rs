//! The client programs (`pg_dump`, `pg_dumpall`, `pg_restore`): finding the right ones, and running them.
//!
//! A dump wants a client that is not older than its server; of those found the oldest such is taken, the same major
//! before all. Looked for are: the policy's `client_dir` and nothing else when it is set; otherwise
//! `$LIFEBOAT_PG_BIN`, `$PATH`, and where distributions keep each major.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::connect::{Address, interrupted};
use crate::error::{Context as _, Error, Result};

/// Names a directory with client programs, for restores without a policy.
pub(crate) const CLIENT_DIR_VARIABLE: &str = "LIFEBOAT_PG_BIN";
/// pg_read_all_data does not reach large objects: each has an owner and privileges of its own.
pub(crate) const LARGE_OBJECT_HINT: &str = "Let a superuser run `ALTER ROLE name SET lo_compat_privileges = on` for the role of the backup, or GRANT SELECT ON LARGE OBJECT for each; or use the owner of the large objects, a member of it, or a superuser.";
const PROGRAMS: [&str; 3] = ["pg_dump", "pg_dumpall", "pg_restore"];
/// `--version` answers at once or not at all.
const VERSION_LIMIT: Duration = Duration::from_secs(20);
/// How much of a child's stderr is kept: the first and the last of it.
const STDERR_KEPT_BYTES: usize = 16 << 10;
/// What a pipe from a child holds: as much as a system allows everybody.
const PIPE_BYTES: usize = 1 << 20;

/// A directory with the client programs of one version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Clients {
    /// Major version.
    pub(crate) major: u32,
    /// The version as the program tells it.
    pub(crate) version: String,
    directory: PathBuf,
}

impl Clients {
    /// The path of a program.
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
    /// Where they are.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }
}

/// All client programs of this host, oldest first. `client_dir` is the policy's.
///
/// # Errors
/// `client_dir` is set and holds none.
pub(crate) async fn find(client_dir: Option<&Path>) -> Result<Vec<Clients>> {
    if let Some(directory) = client_dir {
        return match probe(directory).await {
            Some(clients) => Ok(vec![clients]),
            None => Err(Error::usage(format!(
                "{} holds no Postgres client programs",
                directory.display()
            ))
            .hint("Set client_dir to the directory with pg_dump, pg_dumpall and pg_restore.")),
        };
    }
    let mut found: Vec<Clients> = Vec::new();
    for directory in candidates() {
        if let Some(clients) = probe(&directory).await
            && !found.iter().any(|f| f.version == clients.version)
        {
            found.push(clients);
        }
    }
    found.sort_by_key(|c| c.major);
    Ok(found)
}

/// The clients that dump a server of this major.
///
/// # Errors
/// None is new enough: names the package.
pub(crate) fn for_dump(found: &[Clients], server_major: u32) -> Result<&Clients> {
    found
        .iter()
        .find(|c| c.major >= server_major)
        .ok_or_else(|| too_old(found, server_major, "dump"))
}

/// The clients that restore a dump of `dump_major`'s `pg_dump` into a server of `server_major`. From 17 on `pg_restore`
/// sets a parameter that servers before 17 do not know, and stops there.
///
/// # Errors
/// None fits.
pub(crate) fn for_restore(found: &[Clients], dump_major: u32, server_major: u32) -> Result<&Clients> {
    let fits = |c: &&Clients| c.major >= dump_major && (server_major >= 17 || c.major < 17);
    found
        .iter()
        .find(|c| fits(c) && c.major >= server_major)
        .or_else(|| found.iter().rev().find(fits))
        .ok_or_else(|| {
            if dump_major >= 17 && server_major < 17 {
                Error::usage(format!(
                    "a dump made by pg_dump {dump_major} can not be restored into a server of version {server_major}"
                ))
                .hint("Restore into a server of version 17 or newer.")
            } else {
                too_old(found, dump_major.max(server_major), "restore")
            }
        })
}

fn too_old(found: &[Clients], major: u32, what: &str) -> Error {
    let have = match found.last() {
        Some(newest) => format!(
            "the newest here is {} in {}",
            newest.version,
            newest.directory.display()
        ),
        None => "there are none here".into(),
    };
    Error::failed(format!(
        "no Postgres client programs can {what} version {major}: {have}"
    ))
    .hint(format!(
        "Install postgresql-client-{major} (Debian, Ubuntu) or postgresql{major} (RPM), or set the source's client_dir (without a policy: ${CLIENT_DIR_VARIABLE})."
    ))
}

pub(crate) fn candidates() -> Vec<PathBuf> {
    let mut list: Vec<PathBuf> = Vec::new();
    list.extend(std::env::var_os(CLIENT_DIR_VARIABLE).map(PathBuf::from));
    if let Some(path) = std::env::var_os("PATH") {
        list.extend(std::env::split_paths(&path));
    }
    let homes = [
        ("/usr/lib/postgresql", "", "bin"),
        ("/usr", "pgsql-", "bin"),
        ("/usr/libexec", "postgresql", ""),
        ("/opt/homebrew/opt", "postgresql@", "bin"),
        ("/usr/local/opt", "postgresql@", "bin"),
        ("/Library/PostgreSQL", "", "bin"),
    ];
    for (parent, prefix, below) in homes {
        let Ok(entries) = std::fs::read_dir(parent) else {
            continue;
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let version = name
                .to_str()
                .and_then(|n| n.strip_prefix(prefix))
                .unwrap_or_default();
            if version.starts_with(|c: char| c.is_ascii_digit()) {
                list.push(entry.path().join(below));
            }
        }
    }
    list.push("/usr/local/pgsql/bin".into());
    let mut seen = BTreeSet::new();
    list.retain(|p| p.is_absolute() && seen.insert(p.canonicalize().unwrap_or_else(|_| p.clone())));
    list
}

/// The clients in a directory, if all three are there and answer. A `pg_dump` that is a link to a wrapper (Debian's
/// pg_wrapper chooses a version by itself) is passed over: the real ones are found where they are.
async fn probe(directory: &Path) -> Option<Clients> {
    for name in PROGRAMS {
        let real = directory.join(name).canonicalize().ok()?;
        if real.file_name().is_some_and(|f| f == "pg_wrapper") {
            return None;
        }
    }
    let (major, version) = version_of(&directory.join("pg_dump")).await?;
    Some(Clients {
        major,
        version,
        directory: directory.to_path_buf(),
    })
}

/// The version that a program says it is of; none: it does not say so, or not at once.
pub(crate) async fn version_of(program: &Path) -> Option<(u32, String)> {
    let mut command = Command::new(program);
    command
        .arg("--version")
        .env_clear()
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = tokio::time::timeout(VERSION_LIMIT, command.output())
        .await
        .ok()?
        .ok()?;
    if !output.status.success() {
        return None;
    }
    parse_version(&String::from_utf8_lossy(&output.stdout))
}

/// `pg_dump (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)` gives 15 and `15.14`.
fn parse_version(line: &str) -> Option<(u32, String)> {
    let version = line.split(") ").nth(1)?.split_whitespace().next()?;
    let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
    Some((digits.parse().ok()?, version.to_owned()))
}

/// A running client program. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Running {
    name: &'static str,
    task: JoinHandle<Result<Ended>>,
}

#[derive(Debug)]
struct Ended {
    status: ExitStatus,
    stderr: Stderr,
}

/// What a program wants of its streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pipe {
    /// We read its stdout.
    Out,
    /// We write its stdin.
    In,
}

/// Starts a program with nothing in its environment but the connection, `PATH` and `LC_ALL=C`.
///
/// # Errors
/// It can not be started.
pub(crate) fn start(
    clients: &Clients,
    name: &'static str,
    arguments: &[String],
    address: &Address,
    pipe: Pipe,
    cancel: &CancellationToken,
) -> Result<(Running, Option<ChildStdout>, Option<ChildStdin>)> {
    let program = clients.program(name);
    let mut command = Command::new(&program);
    command
        .args(arguments)
        .env_clear()
        .env("LC_ALL", "C")
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        // No ~/.pgpass, ~/.pg_service.conf or ~/.postgresql: the URL alone decides.
        .env("HOME", "/nonexistent")
        .envs(address.environment())
        .current_dir("/")
        .stdin(if pipe == Pipe::In {
            Stdio::piped()
        } else {
            Stdio::null()
        })
        .stdout(if pipe == Pipe::Out {
            Stdio::piped()
        } else {
            Stdio::null()
        })
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut child = command
        .spawn()
        .doing(|| format!("{} can not be started", program.display()))?;
    let stdout = child.stdout.take();
    if let Some(stdout) = &stdout {
        // Fewer changes between two processes for gigabytes. A system that allows no more serves as well.
        let _ = rustix::pipe::fcntl_setpipe_size(stdout, PIPE_BYTES);
    }
    let stdin = child.stdin.take();
    let task = tokio::spawn(wait(child, cancel.clone()));
    Ok((Running { name, task }, stdout, stdin))
}

async fn wait(mut child: Child, cancel: CancellationToken) -> Result<Ended> {
    let stderr = child.stderr.take();
    let reading = async {
        match stderr {
            Some(stream) => Stderr::read(stream).await,
            None => Stderr::default(),
        }
    };
    let ended = async {
        let (status, stderr) = tokio::join!(child.wait(), reading);
        Ok(Ended {
            status: status.doing(|| "a child's end can not be told")?,
            stderr,
        })
    };
    // A child that is left when this returns is killed by its drop.
    tokio::select! {
        biased;
        () = cancel.cancelled() => Err(interrupted()),
        ended = ended => ended,
    }
}

impl Running {
    /// Waits for its end. Exit status and stderr decide. Gives its warnings.
    ///
    /// # Errors
    /// It failed, was killed or cancelled; the message is its own.
    pub(crate) async fn finish(mut self) -> Result<Vec<String>> {
        let ended = (&mut self.task)
            .await
            .doing(|| "a child's end can not be told")??;
        let Ended { status, stderr } = ended;
        let failure = stderr
            .lines(self.name, "error: ")
            .chain(stderr.lines(self.name, "fatal: "))
            .next();
        if status.success() && failure.is_none() {
            return Ok(stderr.lines(self.name, "warning: ").take(20).collect());
        }
        let how = match std::os::unix::process::ExitStatusExt::signal(&status) {
            Some(signal) => format!("was killed by signal {signal}"),
            None => format!("failed ({status})"),
        };
        let mut error = Error::failed(format!("{} {how}", self.name));
        let told = stderr.told();
        if !told.is_empty() {
            error = error.because(told.clone());
        }
        Err(match hint(self.name, &told) {
            Some(text) => error.hint(text),
            None => error,
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // The task owns the child, which is killed when it is dropped.
        self.task.abort();
    }
}

fn hint(name: &str, told: &str) -> Option<&'static str> {
    if name == "pg_restore" && (told.contains("permission denied") || told.contains("must be ")) {
        return Some("Restore as a superuser, or as a member of the roles that own the objects.");
    }
    let table = [
        ("permission denied for large object", LARGE_OBJECT_HINT),
        (
            "server version mismatch",
            "Install the client programs of the server's version, or set client_dir.",
        ),
        (
            "permission denied",
            "Grant the role pg_read_all_data, or use a superuser; `backup check` names what can not be read.",
        ),
        // pg_dump waits for its locks under a statement timeout.
        (
            "statement timeout",
            "Another session holds a lock on a table for long; run again when it is done.",
        ),
        (
            "row-level security",
            "The role needs BYPASSRLS to dump tables with row-level security.",
        ),
        (
            "is not available",
            "Install the extension's package on the target server.",
        ),
        (
            "No space left",
            "Make room on the server's disk, then run the same command again.",
        ),
    ];
    table
        .iter()
        .find(|(part, _)| told.contains(part))
        .map(|(_, text)| *text)
}

/// The first and the last of what a child said.
#[derive(Debug, Default)]
struct Stderr {
    head: Vec<u8>,
    tail: Vec<u8>,
    left_out: bool,
}

impl Stderr {
    async fn read(mut stream: impl AsyncRead + Unpin) -> Self {
        let mut kept = Self::default();
        let mut buffer = vec![0u8; 4096];
        // A stream that can not be read any more is at its end; the exit status still decides.
        while let Ok(n @ 1..) = stream.read(&mut buffer).await {
            let room = (STDERR_KEPT_BYTES - kept.head.len()).min(n);
            kept.head.extend_from_slice(&buffer[..room]);
            kept.tail.extend_from_slice(&buffer[room..n]);
            if kept.tail.len() > STDERR_KEPT_BYTES {
                let cut = kept.tail.len() - STDERR_KEPT_BYTES;
                kept.tail.drain(..cut);
                kept.left_out = true;
            }
        }
        kept
    }

    fn text(&self) -> String {
        let gap: &[u8] = if self.left_out { b"\n...\n" } else { b"" };
        String::from_utf8_lossy(&[&self.head, gap, &self.tail].concat()).into_owned()
    }

    /// The lines of one level, without program name and level.
    fn lines(&self, name: &str, level: &str) -> impl Iterator<Item = String> {
        let start = format!("{name}: {level}");
        let found: Vec<String> = self
            .text()
            .lines()
            .filter_map(|l| l.strip_prefix(&start).map(str::to_owned))
            .collect();
        found.into_iter()
    }

    /// The first errors with what explains them; without any, the last lines. As one line.
    fn told(&self) -> String {
        const CAUSES: [&str; 10] = [
            "error:",
            "fatal:",
            "detail:",
            "hint:",
            "ERROR:",
            "FATAL:",
            "PANIC:",
            "DETAIL:",
            "HINT:",
            "Query was:",
        ];
        let text = self.text();
        let lines: Vec<&str> = text.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
        let causes: Vec<&str> = lines
            .iter()
            .filter(|l| CAUSES.iter().any(|c| l.contains(c)))
            .take(6)
            .copied()
            .collect();
        if causes.is_empty() {
            lines[lines.len().saturating_sub(6)..].join("; ")
        } else {
            causes.join("; ")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clients(majors: &[u32]) -> Vec<Clients> {
        majors
            .iter()
            .map(|major| Clients {
                major: *major,
                version: format!("{major}.1"),
                directory: format!("/pg/{major}").into(),
            })
            .collect()
    }

    #[test]
    fn reads_versions() {
        let line = "pg_dump (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)\n";
        assert_eq!(parse_version(line), Some((15, "15.14".into())));
        assert_eq!(
            parse_version("pg_dump (PostgreSQL) 19beta1"),
            Some((19, "19beta1".into()))
        );
        assert_eq!(parse_version("nonsense"), None);
    }

    #[test]
    fn the_oldest_client_that_is_not_older_than_the_server() {
        let found = clients(&[14, 15, 18]);
        let major = |server| for_dump(&found, server).map(|c| c.major).ok();
        assert_eq!(
            (major(13), major(15), major(16), major(19)),
            (Some(14), Some(15), Some(18), None)
        );
        let error = for_dump(&found, 19).unwrap_err();
        assert!(error.hint_text().unwrap().contains("postgresql-client-19"));
    }

    #[test]
    fn a_restore_fits_the_dump_and_the_server() {
        let found = clients(&[13, 15, 16, 18]);
        let major = |dump, server| for_restore(&found, dump, server).map(|c| c.major).ok();
        assert_eq!(major(15, 15), Some(15));
        assert_eq!(major(15, 18), Some(18));
        assert_eq!(major(15, 17), Some(18));
        assert_eq!(major(15, 14), Some(15));
        assert_eq!(major(18, 15), None);
        assert_eq!(major(15, 19), Some(18));
        assert_eq!(major(13, 13), Some(13));
    }

    #[tokio::test]
    async fn stderr_is_kept_from_both_ends() {
        let mut text = b"pg_dump: warning: first\n".to_vec();
        text.extend(vec![b'x'; 100_000]);
        text.extend(b"\npg_dump: error: last\n");
        let kept = Stderr::read(&text[..]).await;
        assert!(kept.head.len() + kept.tail.len() <= 2 * STDERR_KEPT_BYTES);
        assert_eq!(kept.lines("pg_dump", "error: ").next().as_deref(), Some("last"));
        assert_eq!(
            kept.lines("pg_dump", "warning: ").next().as_deref(),
            Some("first")
        );
    }
}
