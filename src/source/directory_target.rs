//! Writing a point's units as files into a new or empty directory.
//!
//! While it is incomplete a marker file stands in the directory and names the restore; the same restore may go on
//! over it, any other is refused. The marker goes last, after everything is on disk.
//!
//! Names come from the repository, so every step below the target is taken from an open directory, one part at a
//! time, without following symbolic links: nothing planted in the target leads a write out of it.

mod early_sync;

use std::ffi::{OsStr, OsString};
use std::fs::{DirBuilder, File};
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use chrono::{DateTime, Utc};
use rustix::fs::{AtFlags, Mode, OFlags, Timespec, Timestamps};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use self::early_sync::EarlySync;
use crate::error::{Context as _, Error, Result};
use crate::source::room::Room;
use crate::source::{Context, PointContent, RestoredUnit};
use crate::types::{RunId, SourceName};

/// The file that stands in a directory while a restore into it is incomplete.
pub(crate) const MARKER: &str = ".lifeboat-restore-incomplete";
const MARKER_NEW: &str = ".lifeboat-restore-incomplete.new";
/// Longer than any marker of ours.
const MARKER_LIMIT_BYTES: u64 = 4096;
/// Files of at least this size are synced one by one, so that an error names the file; the many small ones are
/// synced together by [`DirectoryTarget::finish`], before the marker goes.
const SYNC_ALONE_BYTES: u64 = 1 << 20;
/// So little is written without leaving the runtime's thread.
const WRITTEN_AT_ONCE_BYTES: u64 = 64 << 10;
/// How many things in the way are named.
const NAMED_IN_THE_WAY: usize = 5;

/// Which restore a marker belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RestoreMarker {
    /// The restored source.
    pub(crate) source: SourceName,
    /// The restored point.
    pub(crate) run: RunId,
    /// When the restore was first started, on the host's clock.
    pub(crate) started: DateTime<Utc>,
}

/// A directory being restored into.
#[derive(Debug)]
pub(crate) struct DirectoryTarget {
    path: PathBuf,
    /// The directory, held open and locked.
    root: File,
    context: Context,
    /// The directory of the last unit: units come in order, so it is mostly that of the next too.
    parent: Option<(PathBuf, OwnedFd)>,
}

impl DirectoryTarget {
    /// Refuses a target that is no directory or not empty, without writing anything. A directory with the marker of
    /// this same restore is fine, and so is one that does not exist.
    ///
    /// # Errors
    /// A refusal ([`crate::error::Kind::Usage`]) that names what is in the way.
    pub(crate) fn examine(context: &Context, path: &Path) -> Result<()> {
        examine(context, path).map(|_| ())
    }

    /// Makes the directory (0700, missing parents too) if it is not there, and puts the marker into it.
    ///
    /// # Errors
    /// As [`DirectoryTarget::examine`]; or it can not be made, written or locked.
    pub(crate) fn open(context: &Context, path: &Path) -> Result<Self> {
        let resumes = examine(context, path)?;
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|e| refused(format!("the directory {} can not be made", path.display()), e))?;
        let root = File::open(path)
            .map_err(|e| refused(format!("the directory {} can not be opened", path.display()), e))?;
        root.try_lock().map_err(|e| {
            Error::failed(format!("another restore is writing to {}", path.display()))
                .hint("Wait for it, or choose another target.")
                .because(e)
        })?;
        let target = Self {
            path: path.to_path_buf(),
            root,
            context: context.clone(),
            parent: None,
        };
        if !resumes {
            target.write_marker()?;
        }
        Ok(target)
    }

    /// Writes the current unit of `content` to the file of its name, with its mode (0600 without one) and time.
    /// A file left by an interrupted restore is replaced. Gives the bytes written.
    ///
    /// # Errors
    /// It can not be written, the content is not as long as recorded, or the restore was cancelled.
    pub(crate) async fn write_unit(
        &mut self,
        unit: &RestoredUnit,
        content: &mut dyn PointContent,
    ) -> Result<u64> {
        let relative = unit.name.to_path();
        let shown = self.path.join(&relative);
        let out = Arc::new(self.create(&relative)?);
        let mut early = EarlySync::new(out.clone());
        let mut room = Room::new(out.clone(), unit.size);
        let unwritten = |e| refused(format!("{} can not be written", shown.display()), e);
        let unsynced = |e| refused(format!("{} can not be synced", shown.display()), e);
        let cancel = self.context.cancel.clone();
        let mut written = 0u64;
        loop {
            let bytes = tokio::select! {
                biased;
                () = cancel.cancelled() => return Err(interrupted()),
                bytes = content.read() => bytes?,
            };
            let Some(bytes) = bytes else { break };
            let length = bytes.len() as u64;
            room.beyond(written + length).await.map_err(unwritten)?;
            let to = out.clone();
            let write = move || (&*to).write_all(&bytes);
            let result = if length <= WRITTEN_AT_ONCE_BYTES {
                write()
            } else {
                off_the_runtime(write).await
            };
            result.map_err(unwritten)?;
            written += length;
            early.wrote(length).await.map_err(unsynced)?;
            self.context.progress.advance(length);
        }
        room.finish().await.map_err(unwritten)?;
        early.finish().await.map_err(unsynced)?;
        if written != unit.size {
            return Err(Error::damaged(format!(
                "{} has {written} bytes, recorded are {}",
                unit.name, unit.size
            )));
        }
        let mode = Mode::from_raw_mode(unit.attributes.mode.unwrap_or(0o600) & 0o777);
        rustix::fs::fchmod(&*out, mode)
            .doing(|| format!("the mode of {} can not be set", shown.display()))?;
        if let Some(ms) = unit.attributes.modified_ms {
            set_modified(&out, ms).doing(|| format!("the time of {} can not be set", shown.display()))?;
        }
        if written >= SYNC_ALONE_BYTES {
            let to = out.clone();
            off_the_runtime(move || to.sync_all()).await.map_err(unsynced)?;
        }
        Ok(written)
    }

    /// Brings everything to disk, then removes the marker: the restore is complete.
    ///
    /// # Errors
    /// It can not be brought to disk; the marker stays.
    pub(crate) async fn finish(mut self) -> Result<()> {
        self.parent = None;
        let path = self.path.clone();
        let work = move || -> std::io::Result<()> {
            // One call for all files and directories; since Linux 5.8 it tells of write errors.
            rustix::fs::syncfs(&self.root)?;
            rustix::fs::unlinkat(&self.root, MARKER, AtFlags::empty())?;
            self.root.sync_all()
        };
        off_the_runtime(work)
            .await
            .map_err(|e| refused(format!("{} can not be synced", path.display()), e))
    }

    fn write_marker(&self) -> Result<()> {
        let marker = RestoreMarker {
            source: self.context.source.clone(),
            run: self.context.run,
            started: self.context.world.clock.now(),
        };
        let doing = || {
            format!(
                "the marker {} can not be written",
                self.path.join(MARKER).display()
            )
        };
        let text = serde_json::to_vec(&marker).doing(doing)?;
        let work = || -> std::io::Result<()> {
            unlink_if_there(&self.root, OsStr::new(MARKER_NEW))?;
            let mut file = File::from(create_new(&self.root, OsStr::new(MARKER_NEW))?);
            file.write_all(&text)?;
            file.sync_all()?;
            rustix::fs::renameat(&self.root, MARKER_NEW, &self.root, MARKER)?;
            self.root.sync_all()
        };
        work().map_err(|e| refused(doing(), e))
    }

    /// Creates the file of a relative name anew, with its directories (0700).
    fn create(&mut self, relative: &Path) -> Result<File> {
        let shown = self.path.join(relative);
        let parts = plain_parts(relative)
            .ok_or_else(|| Error::damaged(format!("{:?} is not a name inside the target", relative)))?;
        let Some((name, directories)) = parts.split_last() else {
            return Err(Error::damaged("a unit has an empty name"));
        };
        if directories.is_empty() && (name == MARKER || name == MARKER_NEW) {
            return Err(Error::damaged(format!("the point has a unit named {MARKER}")));
        }
        let parent_path: PathBuf = directories.iter().collect();
        if self.parent.as_ref().is_none_or(|(path, _)| *path != parent_path) {
            self.parent = None;
            let fd = self
                .descend(directories)
                .map_err(|e| refused(format!("the directory of {} can not be made", shown.display()), e))?;
            self.parent = Some((parent_path, fd));
        }
        let Some((_, parent)) = &self.parent else {
            return Err(Error::failed("the directory of a unit is gone"));
        };
        let work = || -> std::io::Result<File> {
            unlink_if_there(parent, name)?;
            Ok(File::from(create_new(parent, name)?))
        };
        work().map_err(|e| refused(format!("{} can not be created", shown.display()), e))
    }

    fn descend(&self, directories: &[OsString]) -> std::io::Result<OwnedFd> {
        let mut at: OwnedFd = self.root.try_clone()?.into();
        for part in directories {
            match rustix::fs::mkdirat(&at, part, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(e) => return Err(e.into()),
            }
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            at = rustix::fs::openat(&at, part, flags, Mode::empty())?;
        }
        Ok(at)
    }
}

async fn off_the_runtime<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> std::io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|e| Err(std::io::Error::other(e)))
}

/// What the system refused in the target, with what to do about it.
fn refused(what: String, error: std::io::Error) -> Error {
    use std::io::ErrorKind::{PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    let hint = match error.kind() {
        StorageFull | QuotaExceeded => "Make room there: the same command goes on with the restore.",
        PermissionDenied | ReadOnlyFilesystem => "Give a directory that this user may write.",
        _ => "The target is incomplete; once it can be written the same command goes on with the restore.",
    };
    Error::failed(what).hint(hint).because(error)
}

/// The error of a cancelled restore.
fn interrupted() -> Error {
    Error::new(crate::error::Kind::Interrupted, "the restore was interrupted")
        .hint("What was written is marked as incomplete: the same command starts it over.")
}

/// Whether an interrupted run of this same restore may go on in the directory.
fn examine(context: &Context, path: &Path) -> Result<bool> {
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(e) => {
            return Err(
                Error::usage(format!("{} can not be restored into", path.display()))
                    .hint("Give a new or empty directory.")
                    .because(e),
            );
        }
    };
    let mut found: Vec<OsString> = Vec::new();
    let mut marked = false;
    for entry in entries {
        let name = entry
            .doing(|| format!("{} can not be listed", path.display()))?
            .file_name();
        marked |= name == MARKER;
        // The half-written marker of a restore that had written nothing else yet is not in the way.
        if name != MARKER_NEW && found.len() <= NAMED_IN_THE_WAY {
            found.push(name);
        }
        if marked && found.len() > NAMED_IN_THE_WAY {
            break;
        }
    }
    if marked {
        return check_marker(context, path).map(|()| true);
    }
    if found.is_empty() {
        return Ok(false);
    }
    found.sort();
    let more = found.len() > NAMED_IN_THE_WAY;
    let mut names: Vec<String> = found
        .iter()
        .take(NAMED_IN_THE_WAY)
        .map(|n| format!("{:?}", String::from_utf8_lossy(n.as_bytes())))
        .collect();
    if more {
        names.push("more".into());
    }
    Err(Error::usage(format!(
        "{} is not empty: it holds {}",
        path.display(),
        names.join(", ")
    ))
    .hint("Give a new or empty directory."))
}

fn check_marker(context: &Context, path: &Path) -> Result<()> {
    let shown = path.join(MARKER);
    let read = || -> std::io::Result<Vec<u8>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::open(&shown, flags, Mode::empty())?);
        let mut text = Vec::new();
        file.take(MARKER_LIMIT_BYTES).read_to_end(&mut text)?;
        Ok(text)
    };
    let hint = "Remove the directory, or give another one.";
    let text = read().doing(|| format!("the marker {} can not be read", shown.display()))?;
    let marker: RestoreMarker = serde_json::from_slice(&text).map_err(|e| {
        Error::usage(format!("{} is not a marker of a restore", shown.display()))
            .hint(hint)
            .because(e)
    })?;
    if marker.source == context.source && marker.run == context.run {
        return Ok(());
    }
    Err(Error::usage(format!(
        "{} holds an incomplete restore of another point: {} of source {}, started {}",
        path.display(),
        marker.run,
        marker.source,
        marker.started.format("%Y-%m-%dT%H:%M:%SZ")
    ))
    .hint(format!(
        "Start that one over with `backup restore {} --at-point {}` and the same --to; or remove the directory, or give another one.",
        marker.source, marker.run
    )))
}

/// The parts of a relative path of plain names only.
fn plain_parts(path: &Path) -> Option<Vec<OsString>> {
    path.components()
        .map(|c| match c {
            Component::Normal(part) => Some(part.to_os_string()),
            _ => None,
        })
        .collect()
}

fn create_new(directory: impl rustix::fd::AsFd, name: &OsStr) -> std::io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(
        directory,
        name,
        flags,
        Mode::RUSR | Mode::WUSR,
    )?)
}

fn unlink_if_there(directory: impl rustix::fd::AsFd, name: &OsStr) -> std::io::Result<()> {
    match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

fn set_modified(file: &File, ms: i64) -> std::io::Result<()> {
    let time = Timespec {
        tv_sec: ms.div_euclid(1000),
        tv_nsec: ms.rem_euclid(1000) * 1_000_000,
    };
    rustix::fs::futimens(
        file,
        &Timestamps {
            last_access: time,
            last_modification: time,
        },
    )?;
    Ok(())
}

#[cfg(test)]
mod tests;
