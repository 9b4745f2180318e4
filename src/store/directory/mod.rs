//! A store in a directory of this host (or mounted on it): an object is a file.
//!
//! A put writes a staging file, syncs it, hard-links it under its name (which never replaces), and syncs every
//! directory on the way that this process has not synced yet. So an object is whole or absent through any crash.
//! Below the root no symbolic link is followed, neither in names nor in directories.

mod list;
mod sys;

use std::collections::HashSet;
use std::fs::File;
use std::io::Write as _;
use std::ops::Range;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use rustix::fs::FileType;
use rustix::io::Errno;

use super::{
    Abilities, Fault, Lock, ObjectInfo, Page, PutOptions, Store, StoreError, StoreResult, View, probe,
};
use crate::error::{Context as _, Error, Kind, Result};
use crate::types::{Digest, Key};

/// Where files are written before they get their name. The space keeps it apart from every plain key.
const STAGING: &str = ".lifeboat staging";
/// Staging files older than this were left by a crash.
const STALE_AFTER: chrono::Duration = chrono::Duration::hours(24);
/// How often a put begins anew when a sweep removes its directory under it.
const MAKE_ATTEMPTS: u32 = 16;
/// How many directories are remembered as synced.
const SYNCED_LIMIT: usize = 4096;

/// Objects as files below a root directory.
#[derive(Debug, Clone)]
pub struct DirectoryStore(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    /// Numbers the staging files of this process.
    counter: AtomicU64,
    /// Whether stale staging files have been looked for.
    tidied: AtomicBool,
    /// Directories whose entry in their parent is known to be on disk, by path and inode.
    synced: Mutex<HashSet<(String, u64)>>,
}

impl DirectoryStore {
    /// The store below a directory. Nothing is read yet: that it is missing ([`Fault::NoBucket`]) is told by the first call.
    pub fn open(root: PathBuf) -> Self {
        Self(Arc::new(Inner {
            root,
            counter: AtomicU64::new(0),
            tidied: AtomicBool::new(false),
            synced: Mutex::default(),
        }))
    }

    /// Makes the directory (mode 0700, with missing parents) where it is missing, and opens it: for `init`.
    ///
    /// # Errors
    /// It can not be made, or something that is not a directory is in the way.
    pub fn create(root: PathBuf) -> Result<Self> {
        use std::os::unix::fs::DirBuilderExt as _;
        let missing: Vec<PathBuf> = (root.ancestors())
            .take_while(|p| !p.as_os_str().is_empty() && !p.exists())
            .map(PathBuf::from)
            .collect();
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&root)
            .doing(|| format!("can not make the directory {}", root.display()))?;
        for made in &missing {
            let parent = made.parent().filter(|p| !p.as_os_str().is_empty());
            let parent = parent.unwrap_or_else(|| std::path::Path::new("."));
            File::open(parent)
                .and_then(|dir| dir.sync_all())
                .doing(|| format!("can not sync the directory {}", parent.display()))?;
        }
        if !root.is_dir() {
            return Err(Error::new(
                Kind::Failed,
                format!("{} is not a directory", root.display()),
            ));
        }
        Ok(Self::open(root))
    }

    /// The error with the directory that it is about: keys alone do not tell which disk is full.
    fn located(&self, mut error: StoreError) -> StoreError {
        let root = self.0.root.display().to_string();
        if !error.what.contains(&root) {
            error.what = format!("{} in {root}", error.what);
        }
        error
    }

    /// Runs a blocking call off the runtime's threads.
    async fn blocking<T: Send + 'static>(
        &self,
        what: String,
        call: impl FnOnce(&Inner) -> StoreResult<T> + Send + 'static,
    ) -> StoreResult<T> {
        let (inner, span) = (Arc::clone(&self.0), tracing::Span::current());
        match tokio::task::spawn_blocking(move || span.in_scope(|| call(&inner))).await {
            Ok(result) => result.map_err(|e| self.located(e)),
            Err(e) => Err(StoreError::new(Fault::Unavailable, what, e)),
        }
    }
}

/// What the system said, with the call that it said it about.
fn failed(what: impl Into<String>, error: impl Into<std::io::Error>) -> StoreError {
    let error = error.into();
    StoreError::new(sys::fault_of(&error), what, error)
}

/// The parts of a key: its directories and its file name.
fn parts(key: &Key) -> StoreResult<(Vec<&str>, &str)> {
    if !key.is_plain() {
        return Err(StoreError::new(
            Fault::Refused,
            format!("use {:?} as a file name", key.as_str()),
            "the key has a part that is empty, '.', '..' or not printable ASCII, or is too long",
        ));
    }
    let mut directories: Vec<&str> = key.as_str().split('/').collect();
    let name = directories.pop().unwrap_or_default();
    Ok((directories, name))
}

impl Inner {
    fn root(&self) -> StoreResult<OwnedFd> {
        sys::open_root(&self.root).map_err(|e| match e {
            Errno::NOENT | Errno::NOTDIR => StoreError::new(
                Fault::NoBucket,
                format!("open {}", self.root.display()),
                "there is no such directory",
            ),
            e => failed(format!("open {}", self.root.display()), e),
        })
    }

    /// The directory of a key; `None` where it does not exist.
    fn directory(&self, directories: &[&str], what: &str) -> StoreResult<Option<OwnedFd>> {
        let mut current = self.root()?;
        for name in directories {
            current = match sys::open_directory(current.as_fd(), name) {
                Ok(next) => next,
                Err(Errno::NOENT) => return Ok(None),
                Err(Errno::NOTDIR | Errno::LOOP) => {
                    return if sys::is_link(current.as_fd(), name) {
                        Err(StoreError::new(
                            Fault::Refused,
                            what,
                            format!("{name} is a symbolic link"),
                        ))
                    } else {
                        Ok(None)
                    };
                }
                Err(e) => return Err(failed(what, e)),
            };
        }
        Ok(Some(current))
    }

    /// The directory of a key, made where it is missing; every new entry is on disk when this returns. `None` when
    /// a directory vanished on the way.
    fn make_directory(
        &self,
        root: &OwnedFd,
        directories: &[&str],
        what: &str,
    ) -> StoreResult<Option<OwnedFd>> {
        let mut current = root.try_clone().map_err(|e| failed(what, e))?;
        let mut path = String::new();
        for name in directories {
            path.push('/');
            path.push_str(name);
            match sys::make_directory(current.as_fd(), name) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(Errno::NOENT) => return Ok(None),
                Err(e) => return Err(failed(what, e)),
            }
            let next = match sys::open_directory(current.as_fd(), name) {
                Ok(next) => next,
                Err(Errno::NOENT) => return Ok(None),
                Err(e) => return Err(failed(what, e)),
            };
            // One that is there already may have been made by a process that has not come to its sync yet.
            let inode = sys::inode(next.as_fd()).map_err(|e| failed(what, e))?;
            if !self.synced().contains(&(path.clone(), inode)) {
                sys::sync(current.as_fd()).map_err(|e| failed(what, e))?;
                let mut synced = self.synced();
                if synced.len() >= SYNCED_LIMIT {
                    synced.clear();
                }
                synced.insert((path.clone(), inode));
            }
            current = next;
        }
        Ok(Some(current))
    }

    fn synced(&self) -> std::sync::MutexGuard<'_, HashSet<(String, u64)>> {
        self.synced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new file in the staging directory, with the directory and its name.
    fn stage(&self, root: &OwnedFd, what: &str) -> StoreResult<(OwnedFd, String, File)> {
        match sys::make_directory(root.as_fd(), STAGING) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(failed(what, e)),
        }
        let staging = sys::open_directory(root.as_fd(), STAGING).map_err(|e| failed(what, e))?;
        // Two containers can have one process id: a name that is taken is simply passed over.
        for _ in 0..10_000 {
            let number = self.counter.fetch_add(1, Ordering::Relaxed);
            let name = format!("{}-{number}", std::process::id());
            match sys::create_file(staging.as_fd(), &name) {
                Ok(file) => return Ok((staging, name, file)),
                Err(Errno::EXIST) => {}
                Err(e) => return Err(failed(what, e)),
            }
        }
        Err(StoreError::new(
            Fault::Refused,
            what,
            "the staging directory is full of old files",
        ))
    }

    /// Removes what crashed puts left in the staging directory, once per process.
    fn tidy(&self, staging: &OwnedFd, now: DateTime<Utc>) {
        if self.tidied.swap(true, Ordering::Relaxed) {
            return;
        }
        let result = sys::each_entry(staging.as_fd(), |name, kind| {
            let old = sys::stat(staging.as_fd(), name)
                .is_ok_and(|s| sys::modified(&s).is_some_and(|m| now - m > STALE_AFTER));
            if old && kind != FileType::Directory {
                // Another process may have been quicker, which is as good.
                match sys::remove_file(staging.as_fd(), name) {
                    Ok(()) => tracing::info!(name, "removed a staging file that a crash left"),
                    Err(error) => tracing::debug!(name, %error, "a stale staging file stays"),
                }
            }
        });
        if let Err(error) = result {
            tracing::debug!(%error, "the staging directory can not be read");
        }
    }

    fn put(&self, key: &Key, body: &[u8], options: PutOptions) -> StoreResult<()> {
        let what = format!("put {key}");
        let (directories, name) = parts(key)?;
        if options.lock.is_some() {
            return Err(StoreError::new(
                Fault::Unsupported,
                what,
                "a directory has no object lock",
            ));
        }
        if options.digest.is_some_and(|digest| digest != Digest::of(body)) {
            return Err(StoreError::new(
                Fault::Damaged,
                what,
                "the body has another SHA-256",
            ));
        }
        let root = self.root()?;
        let (staging, staged, mut file) = self.stage(&root, &what)?;
        let result = (|| {
            file.write_all(body)
                .and_then(|()| file.sync_all())
                .map_err(|e| failed(what.as_str(), e))?;
            self.publish(&root, &staging, &staged, &directories, name, &what)
        })();
        let now = file.metadata().and_then(|m| m.modified()).map(DateTime::from);
        let removed = sys::remove_file(staging.as_fd(), &staged);
        if let Ok(now) = now {
            self.tidy(&staging, now);
        }
        result?;
        // The object has its name; a staging file that stays costs nothing and is tidied later.
        if let Err(error) = removed {
            tracing::warn!(%error, "a staging file could not be removed");
        }
        Ok(())
    }

    /// Gives a synced staging file its name, and makes that last.
    fn publish(
        &self,
        root: &OwnedFd,
        staging: &OwnedFd,
        staged: &str,
        directories: &[&str],
        name: &str,
        what: &str,
    ) -> StoreResult<()> {
        for _ in 0..MAKE_ATTEMPTS {
            let Some(directory) = self.make_directory(root, directories, what)? else {
                continue;
            };
            match sys::link(staging.as_fd(), staged, directory.as_fd(), name) {
                Ok(()) => return sys::sync(directory.as_fd()).map_err(|e| failed(what, e)),
                Err(Errno::EXIST) => {
                    // Its writer may have died before its sync: what is told to be there must stay there.
                    sys::sync(directory.as_fd()).map_err(|e| failed(what, e))?;
                    return Err(StoreError::new(Fault::Exists, what, "the file is there already"));
                }
                Err(Errno::NOENT) => {}
                Err(e) => return Err(failed(what, e)),
            }
        }
        Err(StoreError::new(
            Fault::Unavailable,
            what,
            "the directory is removed again and again",
        ))
    }

    fn get(&self, key: &Key, range: Option<Range<u64>>) -> StoreResult<Bytes> {
        let what = format!("get {key}");
        let absent = || StoreError::new(Fault::NotFound, what.as_str(), "there is no such file");
        let (directories, name) = parts(key)?;
        let directory = self.directory(&directories, &what)?.ok_or_else(absent)?;
        let file = match sys::open_file(directory.as_fd(), name) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Err(absent()),
            Err(Errno::LOOP) => return Err(StoreError::new(Fault::Refused, what, "it is a symbolic link")),
            Err(e) => return Err(failed(what, e)),
        };
        let metadata = file.metadata().map_err(|e| failed(what.as_str(), e))?;
        if metadata.is_dir() {
            return Err(absent());
        }
        if !metadata.is_file() {
            return Err(StoreError::new(Fault::Refused, what, "it is no regular file"));
        }
        let size = metadata.len();
        let range = range.unwrap_or(0..size);
        super::check_range(&range, || what.clone())?;
        if range.end > size {
            return Err(super::past_the_end(what, &range, size));
        }
        let mut buffer = Vec::new();
        let room = usize::try_from(range.end - range.start)
            .ok()
            .filter(|length| buffer.try_reserve_exact(*length).is_ok());
        let Some(length) = room else {
            return Err(StoreError::new(
                Fault::Refused,
                what,
                format!("{size} bytes do not fit in memory"),
            ));
        };
        buffer.resize(length, 0);
        match file.read_exact_at(&mut buffer, range.start) {
            Ok(()) => Ok(Bytes::from(buffer)),
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => Err(StoreError::new(
                Fault::Damaged,
                what,
                "the file became shorter while it was read",
            )),
            Err(e) => Err(failed(what, e)),
        }
    }

    fn head(&self, key: &Key) -> StoreResult<Option<ObjectInfo>> {
        let what = format!("look at {key}");
        let (directories, name) = parts(key)?;
        let Some(directory) = self.directory(&directories, &what)? else {
            return Ok(None);
        };
        match sys::stat(directory.as_fd(), name) {
            Ok(stat) => match sys::kind(&stat) {
                FileType::RegularFile => Ok(Some(sys::info(key.clone(), &stat))),
                FileType::Directory => Ok(None),
                _ => Err(StoreError::new(Fault::Refused, what, "it is no regular file")),
            },
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(failed(what, e)),
        }
    }

    fn delete(&self, key: &Key) -> StoreResult<()> {
        let what = format!("delete {key}");
        let (directories, name) = parts(key)?;
        let Some(directory) = self.directory(&directories, &what)? else {
            return Ok(());
        };
        match sys::stat(directory.as_fd(), name).map(|stat| sys::kind(&stat)) {
            Err(Errno::NOENT) | Ok(FileType::Directory) => return Ok(()),
            Err(e) => return Err(failed(what, e)),
            Ok(_) => {}
        }
        match sys::remove_file(directory.as_fd(), name) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(e) => return Err(failed(what, e)),
        }
        sys::sync(directory.as_fd()).map_err(|e| failed(what.as_str(), e))?;
        drop(directory);
        // Empty directories are nothing; they go where they can, and a put beside us makes its own again.
        for depth in (1..=directories.len()).rev() {
            let (parents, name) = (&directories[..depth - 1], directories[depth - 1]);
            let Some(parent) = self.directory(parents, &what)? else {
                break;
            };
            if let Err(error) = sys::remove_directory(parent.as_fd(), name) {
                tracing::trace!(%error, name, "a directory stays");
                break;
            }
        }
        Ok(())
    }

    fn now(&self) -> StoreResult<DateTime<Utc>> {
        let what = format!("write a file to read the clock of {}", self.root.display());
        let root = self.root()?;
        let (staging, name, mut file) = self.stage(&root, &what)?;
        let modified = file
            .write_all(b"now")
            .and_then(|()| file.metadata())
            .and_then(|m| m.modified())
            .map_err(|e| failed(what.as_str(), e));
        sys::remove_file(staging.as_fd(), &name).map_err(|e| failed(what, e))?;
        modified.map(DateTime::from)
    }
}

#[async_trait]
impl Store for DirectoryStore {
    fn location(&self) -> String {
        format!("file://{}", self.0.root.display())
    }

    async fn put(&self, key: &Key, body: Bytes, options: PutOptions) -> StoreResult<()> {
        let key = key.clone();
        self.blocking(format!("put {key}"), move |s| s.put(&key, &body, options))
            .await
    }

    async fn get(&self, key: &Key, range: Option<Range<u64>>, _view: View) -> StoreResult<Bytes> {
        let key = key.clone();
        self.blocking(format!("get {key}"), move |s| s.get(&key, range))
            .await
    }

    async fn head(&self, key: &Key, _view: View) -> StoreResult<Option<ObjectInfo>> {
        let key = key.clone();
        self.blocking(format!("look at {key}"), move |s| s.head(&key))
            .await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, _view: View) -> StoreResult<Page> {
        let (prefix, after) = (prefix.to_owned(), after.map(ToOwned::to_owned));
        self.blocking(format!("list {prefix}"), move |s| {
            s.list(&prefix, after.as_deref())
        })
        .await
    }

    async fn delete(&self, key: &Key) -> StoreResult<()> {
        let key = key.clone();
        self.blocking(format!("delete {key}"), move |s| s.delete(&key))
            .await
    }

    async fn now(&self) -> StoreResult<DateTime<Utc>> {
        self.blocking("read the clock of the directory".to_owned(), Inner::now)
            .await
    }

    async fn extend_lock(&self, key: &Key, _lock: Lock) -> StoreResult<()> {
        Err(StoreError::new(
            Fault::Unsupported,
            format!("lengthen the lock of {key}"),
            "a directory has no object lock",
        ))
    }

    async fn probe(&self, probe_prefix: &str, host_now: DateTime<Utc>) -> StoreResult<Abilities> {
        probe::try_out(self, probe_prefix, host_now, async |_, _| Ok(())).await
    }
}
