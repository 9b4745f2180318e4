//! The local state: nothing in it is needed to restore. Lost or damaged, it costs a full upload and nothing else.
//!
//! ```text
//! <state>/writer                                     the id of this state directory
//! <state>/<repository>/generation.json               what packs are encrypted to; no secret
//! <state>/<repository>/wraps.json                    whom this host wrapped which generation to
//! <state>/<repository>/<source>/lock                 held while the source is being run
//! <state>/<repository>/<source>/<run>.index          block indexes
//! <state>/runs/<place>/<source>/                     how the last run ended, see [`last`]
//! <state>/scratch/<run>/                             spool files of a run
//! <state>/daemon.address                             where the daemon listens
//! <state>/daemon.db                                  slots and runs of the daemon, see [`ledger`]
//! <state>/daemon.lock                                held by the daemon
//! <state>/drills/                                    places of drills, see [`drills`]
//! <state>/evidence.json                              the newest evidence that this host knows, see [`evidence`]
//! <state>/evidence/                                  evidence that waits for a repository that can be written
//! <state>/touched                                    its time tells the daemon to look for points anew
//! ```

pub mod drills;
pub mod evidence;
pub mod last;
pub mod ledger;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::clock::World;
use crate::error::{Context as _, Error, Kind, Result};
use crate::types::{RepositoryId, RunId, SourceName};

/// The state directory.
#[derive(Clone, Debug)]
pub struct StateDir {
    root: PathBuf,
}

/// Held while something may be done by one only; given back when dropped.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// A directory that is removed when dropped, and by the next run when its owner was killed: the lock tells.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    _lock: File,
}

/// The file of [`touch`].
const TOUCHED: &str = "touched";

/// Says that somebody changed which points there are, or what is known of them: a daemon that uses this state directory
/// looks anew.
///
/// # Errors
/// It can not be written.
pub fn touch(state: &Path) -> Result<()> {
    if !ledger::Ledger::is_there(state) {
        return Ok(());
    }
    write_atomically(&state.join(TOUCHED), b"")
}

/// When [`touch`] was called last.
pub fn touched(state: &Path) -> Option<chrono::DateTime<chrono::Utc>> {
    modified(&state.join(TOUCHED))
}

/// When a file was written, if it is there.
fn modified(path: &Path) -> Option<chrono::DateTime<chrono::Utc>> {
    fs::metadata(path)
        .and_then(|m| m.modified())
        .ok()
        .map(chrono::DateTime::from)
}

/// The file of [`StateDir::listens`].
const ADDRESS: &str = "daemon.address";

/// Where the daemon of a state directory listens, or did.
pub fn daemon_address(state: &Path) -> Option<std::net::SocketAddr> {
    read_text(&state.join(ADDRESS)).ok()?.trim().parse().ok()
}

impl StateDir {
    /// Opens it, making it (0700) if need be.
    ///
    /// # Errors
    /// It can not be written.
    pub fn open(root: &Path) -> Result<Self> {
        make_dir(root).map_err(|e| match e.hint_text() {
            Some(_) => e,
            None => e.hint(
                "Set state.dir in the policy or LIFEBOAT_STATE to a directory that this user may write.",
            ),
        })?;
        Ok(Self {
            root: root.to_owned(),
        })
    }
    /// Its path.
    pub fn path(&self) -> &Path {
        &self.root
    }
    /// The id of this state directory, made at first use: commits carry it, so a second writer is noticed.
    ///
    /// # Errors
    /// It can not be read or written.
    pub fn writer(&self, world: &World) -> Result<String> {
        let path = self.root.join("writer");
        match read_text(&path) {
            Ok(text) if !text.trim().is_empty() => Ok(text.trim().to_owned()),
            _ => {
                let id = world.ulid()?.to_string();
                write_atomically(&path, id.as_bytes())?;
                Ok(id)
            }
        }
    }
    /// Writes down where the daemon of this state directory listens.
    ///
    /// # Errors
    /// It can not be written.
    pub fn listens(&self, address: std::net::SocketAddr) -> Result<()> {
        write_atomically(&self.root.join(ADDRESS), address.to_string().as_bytes())
    }
    /// The directory of a source's state.
    ///
    /// # Errors
    /// It can not be made.
    pub fn source(&self, repository: RepositoryId, source: &SourceName) -> Result<PathBuf> {
        let path = self.root.join(repository.to_string()).join(source.as_str());
        make_dir(&path)?;
        Ok(path)
    }
    /// The file that keeps the generation.
    ///
    /// # Errors
    /// Its directory can not be made.
    pub fn generation_file(&self, repository: RepositoryId) -> Result<PathBuf> {
        let path = self.root.join(repository.to_string());
        make_dir(&path)?;
        Ok(path.join("generation.json"))
    }
    /// Locks a source for a run.
    ///
    /// # Errors
    /// [`Kind::Busy`] when another process of this state directory runs it.
    pub fn lock_source(&self, repository: RepositoryId, source: &SourceName) -> Result<Lock> {
        let path = self.source(repository, source)?.join("lock");
        let file = open_lock(&path)?;
        match file.try_lock() {
            Ok(()) => Ok(Lock { _file: file }),
            Err(fs::TryLockError::WouldBlock) => Err(Error::new(
                Kind::Busy,
                format!("source {source} is being run already"),
            )
            .hint("Wait for that run; `backup status` shows it when it is done.")),
            Err(fs::TryLockError::Error(e)) => Err(failed(format!("can not lock {}", path.display()), e)),
        }
    }
    /// Locks the state directory for a daemon.
    ///
    /// # Errors
    /// [`Kind::Busy`] when another one has it.
    pub fn lock_daemon(&self) -> Result<Lock> {
        let path = self.root.join("daemon.lock");
        let file = open_lock(&path)?;
        match file.try_lock() {
            Ok(()) => Ok(Lock { _file: file }),
            Err(fs::TryLockError::WouldBlock) => Err(Error::new(
                Kind::Busy,
                format!("another daemon uses the state directory {}", self.root.display()),
            )
            .hint("One daemon is enough; for another policy set state.dir to a directory of its own.")),
            Err(fs::TryLockError::Error(e)) => Err(failed(format!("can not lock {}", path.display()), e)),
        }
    }
    /// Waits for the lock on the generation of a repository. Blocking.
    ///
    /// # Errors
    /// The file can not be made.
    pub fn lock_generation(&self, repository: RepositoryId) -> Result<Lock> {
        let path = self.generation_file(repository)?.with_extension("lock");
        let file = open_lock(&path)?;
        file.lock()
            .map_err(|e| failed(format!("can not lock {}", path.display()), e))?;
        Ok(Lock { _file: file })
    }
    /// A private directory for a run's spool files.
    ///
    /// # Errors
    /// It can not be made.
    pub fn scratch(&self, run: RunId) -> Result<Scratch> {
        let all = self.root.join("scratch");
        make_dir(&all)?;
        remove_abandoned(&all);
        let path = all.join(run.to_string());
        let doing = || format!("can not use the directory {}", path.display());
        // Somebody who cleans up may take it between the making and the lock: then once more.
        for _ in 0..5 {
            make_dir(&path)?;
            let lock = File::open(&path).map_err(|e| failed(doing(), e))?;
            if lock.try_lock().is_ok() && path.exists() {
                return Ok(Scratch { path, _lock: lock });
            }
        }
        Err(Error::failed(doing()))
    }
}

/// Removes the scratch directories of processes that were killed.
fn remove_abandoned(all: &Path) {
    let Ok(entries) = fs::read_dir(all) else { return };
    for path in entries.flatten().map(|e| e.path()) {
        if !path.is_dir() {
            continue;
        }
        let Ok(directory) = File::open(&path) else {
            continue;
        };
        if directory.try_lock().is_ok()
            && let Err(e) = fs::remove_dir_all(&path)
        {
            tracing::warn!(path = %path.display(), error = %e, "an abandoned scratch directory was not removed");
        }
    }
}

/// What the system refused in the state directory, with what to do about it.
fn failed(what: String, error: std::io::Error) -> Error {
    use std::io::ErrorKind::{
        InvalidInput, PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull,
    };
    let told = Error::failed(what);
    match error.kind() {
        StorageFull | QuotaExceeded => told.hint("Make room there, then run again; nothing was lost."),
        PermissionDenied | ReadOnlyFilesystem => told
            .hint("Set state.dir in the policy or LIFEBOAT_STATE to a directory that this user may write."),
        InvalidInput => told.hint("Something else is in its place: move that away."),
        _ => told,
    }
    .because(error)
}

/// Opens a regular file; anything else is refused, and nothing is waited for: to open a pipe waits for its other end.
///
/// # Errors
/// As the options have it; it is no regular file.
pub fn open_regular(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    let other = || io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file");
    // Looked at before it is opened: to open a pipe or a device is to act on it.
    if fs::metadata(path).is_ok_and(|m| !m.is_file()) {
        return Err(other());
    }
    let nonblocking = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or_default();
    let file = options.custom_flags(nonblocking).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(other()),
    }
}

fn read_text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    open_regular(OpenOptions::new().read(true), path)?.read_to_string(&mut text)?;
    Ok(text)
}

fn open_lock(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600);
    open_regular(&mut options, path).map_err(|e| failed(format!("can not open {}", path.display()), e))
}

impl Scratch {
    /// A private directory below the system's temporary one, made by us alone: for who has no state directory.
    ///
    /// # Errors
    /// It can not be made.
    pub fn temporary(run: RunId) -> Result<Self> {
        let path = std::env::temp_dir().join(format!("lifeboat-{run}"));
        let doing = |e| failed(format!("can not make the directory {}", path.display()), e);
        // One that is there already is not ours, whatever its name.
        fs::DirBuilder::new().mode(0o700).create(&path).map_err(doing)?;
        let lock = File::open(&path).map_err(doing)?;
        Ok(Self { path, _lock: lock })
    }
    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(e) = fs::remove_dir_all(&self.path) {
            tracing::warn!(path = %self.path.display(), error = %e, "a scratch directory was not removed");
        }
    }
}

/// Makes a directory and its parents, 0700.
///
/// # Errors
/// It can not be made.
pub fn make_dir(path: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|e| failed(format!("can not make the directory {}", path.display()), e))
}

/// Writes a file (0600) so that it is there whole or not at all, also after a crash.
///
/// # Errors
/// It can not be written.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let doing = |e| failed(format!("can not write {}", path.display()), e);
    let temporary = path.with_extension(format!("new{}", std::process::id()));
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = open_regular(&mut options, &temporary).map_err(doing)?;
    file.write_all(bytes).map_err(doing)?;
    file.sync_all().map_err(doing)?;
    fs::rename(&temporary, path).map_err(doing)?;
    if let Some(parent) = path.parent() {
        File::open(parent).and_then(|d| d.sync_all()).map_err(doing)?;
    }
    Ok(())
}

/// Reads a JSON file; `None` when it is absent or damaged (the state is a cache).
///
/// # Errors
/// It is there and can not be read.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    match read_text(path) {
        Ok(text) => Ok(serde_json::from_str(&text).ok()),
        // Bytes that are no text are damage, as text that is no JSON is.
        Err(e) if [io::ErrorKind::NotFound, io::ErrorKind::InvalidData].contains(&e.kind()) => Ok(None),
        Err(e) => Err(failed(format!("can not read {}", path.display()), e)),
    }
}

/// Writes a JSON file atomically.
///
/// # Errors
/// It can not be written.
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let text = serde_json::to_vec(value).doing(|| format!("can not write {}", path.display()))?;
    write_atomically(path, &text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pipe(path: &Path) {
        let pipe = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, path, pipe, rustix::fs::Mode::RWXU, 0).unwrap();
    }

    #[test]
    fn a_pipe_in_place_of_a_file_is_refused_and_holds_up_nobody() {
        let root = tempfile::tempdir().unwrap();
        let state = StateDir::open(root.path()).unwrap();
        for name in ["daemon.lock", "some.json", "writer", ADDRESS, "scratch"] {
            if name == "scratch" {
                make_dir(&root.path().join(name)).unwrap();
            }
            let name = if name == "scratch" { "scratch/pipe" } else { name };
            pipe(&root.path().join(name));
        }
        let (done, waits) = std::sync::mpsc::channel();
        let looked = root.path().to_owned();
        std::thread::spawn(move || {
            let lock = state.lock_daemon().unwrap_err();
            let json = read_json::<u32>(&looked.join("some.json")).unwrap_err();
            let address = daemon_address(&looked);
            let run = RunId::new(ulid::Ulid::from_parts(1, 1));
            done.send((lock, json, address, state.scratch(run).is_ok()))
                .unwrap();
        });
        let (lock, json, address, scratch) = waits
            .recv_timeout(std::time::Duration::from_secs(20))
            .expect("it waits for the pipe");
        for e in [lock, json] {
            assert!(e.chain().contains("it is no regular file"), "{e:?}");
        }
        assert!(address.is_none() && scratch);
    }

    #[test]
    fn a_lock_and_a_file_are_what_they_were() {
        let root = tempfile::tempdir().unwrap();
        let state = StateDir::open(root.path()).unwrap();
        let held = state.lock_daemon().unwrap();
        assert_eq!(state.lock_daemon().unwrap_err().kind(), Kind::Busy);
        drop(held);
        assert!(state.lock_daemon().is_ok());
        let path = root.path().join("some.json");
        assert_eq!(read_json::<u32>(&path).unwrap(), None);
        write_json(&path, &7).unwrap();
        assert_eq!(read_json::<u32>(&path).unwrap(), Some(7));
        fs::write(&path, b"\xff").unwrap();
        assert_eq!(read_json::<u32>(&path).unwrap(), None);
    }
}
