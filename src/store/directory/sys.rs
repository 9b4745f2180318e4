//! The system calls of the directory store, each relative to an open directory and following no link.

use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use chrono::{DateTime, Utc};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::Fault;
use crate::store::ObjectInfo;
use crate::types::Key;

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// The root, which the operator names and which may be a link.
pub(super) fn open_root(path: &Path) -> Result<OwnedFd, Errno> {
    rustix::fs::open(path, DIRECTORY, Mode::empty())
}

pub(super) fn open_directory(at: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(at, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())
}

pub(super) fn open_file(at: BorrowedFd<'_>, name: &str) -> Result<File, Errno> {
    // NONBLOCK: a named pipe in the way must not hang the open.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    rustix::fs::openat(at, name, flags, Mode::empty()).map(File::from)
}

/// A new file, readable by its owner only.
pub(super) fn create_file(at: BorrowedFd<'_>, name: &str) -> Result<File, Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(at, name, flags, Mode::RUSR | Mode::WUSR).map(File::from)
}

pub(super) fn make_directory(at: BorrowedFd<'_>, name: &str) -> Result<(), Errno> {
    rustix::fs::mkdirat(at, name, Mode::RWXU)
}

pub(super) fn link(from: BorrowedFd<'_>, old: &str, to: BorrowedFd<'_>, new: &str) -> Result<(), Errno> {
    rustix::fs::linkat(from, old, to, new, AtFlags::empty())
}

pub(super) fn remove_file(at: BorrowedFd<'_>, name: &str) -> Result<(), Errno> {
    rustix::fs::unlinkat(at, name, AtFlags::empty())
}

pub(super) fn remove_directory(at: BorrowedFd<'_>, name: &str) -> Result<(), Errno> {
    rustix::fs::unlinkat(at, name, AtFlags::REMOVEDIR)
}

pub(super) fn sync(at: BorrowedFd<'_>) -> Result<(), Errno> {
    rustix::fs::fsync(at)
}

pub(super) fn inode(at: BorrowedFd<'_>) -> Result<u64, Errno> {
    rustix::fs::fstat(at).map(|stat| stat.st_ino)
}

pub(super) fn stat(at: BorrowedFd<'_>, name: &str) -> Result<Stat, Errno> {
    rustix::fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW)
}

pub(super) fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

pub(super) fn is_link(at: BorrowedFd<'_>, name: &str) -> bool {
    stat(at, name).is_ok_and(|s| kind(&s) == FileType::Symlink)
}

pub(super) fn modified(stat: &Stat) -> Option<DateTime<Utc>> {
    let nanos = u32::try_from(stat.st_mtime_nsec).unwrap_or(0);
    DateTime::from_timestamp(stat.st_mtime, nanos)
}

pub(super) fn info(key: Key, stat: &Stat) -> ObjectInfo {
    ObjectInfo {
        key,
        size: u64::try_from(stat.st_size).unwrap_or(0),
        modified: modified(stat).unwrap_or_default(),
        lock: None,
    }
}

/// Calls `each` with the name and kind of every entry whose name is UTF-8; others are none of ours.
pub(super) fn each_entry(at: BorrowedFd<'_>, mut each: impl FnMut(&str, FileType)) -> Result<(), Errno> {
    for entry in Dir::read_from(at)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().to_str() else {
            continue;
        };
        if name == "." || name == ".." {
            continue;
        }
        let mut file_type = entry.file_type();
        if file_type == FileType::Unknown {
            // Some file systems do not tell the kind with the name.
            file_type = match stat(at, name) {
                Ok(stat) => kind(&stat),
                Err(Errno::NOENT) => continue,
                Err(e) => return Err(e),
            };
        }
        each(name, file_type);
    }
    Ok(())
}

/// What the caller can do about an error of the system.
pub(super) fn fault_of(error: &io::Error) -> Fault {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NOSPC | Errno::DQUOT) => Fault::Full,
        Some(Errno::ACCESS | Errno::PERM | Errno::ROFS) => Fault::Denied,
        Some(
            Errno::IO
            | Errno::STALE
            | Errno::TIMEDOUT
            | Errno::INTR
            | Errno::AGAIN
            | Errno::MFILE
            | Errno::NFILE
            | Errno::NOMEM
            | Errno::NOTCONN
            | Errno::HOSTDOWN
            | Errno::HOSTUNREACH,
        ) => Fault::Unavailable,
        _ => Fault::Refused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_has_its_fault() {
        for (error, fault) in [
            (Errno::NOSPC, Fault::Full),
            (Errno::DQUOT, Fault::Full),
            (Errno::ACCESS, Fault::Denied),
            (Errno::ROFS, Fault::Denied),
            (Errno::IO, Fault::Unavailable),
            (Errno::STALE, Fault::Unavailable),
            (Errno::NAMETOOLONG, Fault::Refused),
            (Errno::XDEV, Fault::Refused),
        ] {
            assert_eq!(fault_of(&error.into()), fault, "{error}");
        }
    }
}
