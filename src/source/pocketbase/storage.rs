//! The files under storage/: listed, and hard-linked out of pb_data where the file systems allow, so that a file deleted
//! after the snapshot can still be read; those that the last run knows will not be read, and are not linked. PocketBase writes a file before the commit that names it and deletes it after
//! the commit that forgets it, and never changes one in place.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use tokio_util::sync::CancellationToken;

use crate::error::{Context as _, Error, Kind, Result};
use crate::source::stamps::Stamps;
use crate::state::make_dir;
use crate::types::UnitName;

/// How deep directories may be nested: PocketBase makes four levels.
const DEPTH_MAX: usize = 32;

/// A file.
#[derive(Clone, Debug)]
pub struct StoredFile {
    /// Where it can be read.
    pub path: PathBuf,
    /// Bytes when it was listed.
    pub size: u64,
    /// Modification time, Unix milliseconds.
    pub modified_ms: i64,
    /// Permission bits.
    pub mode: u32,
    /// Tells an unchanged file. No ctime in it: a link changes that.
    pub stamp: String,
}

/// The files found so far, by unit name.
#[derive(Debug, Default)]
pub struct Storage {
    /// The files.
    pub files: BTreeMap<UnitName, StoredFile>,
    /// What was left out, for the operator.
    pub warnings: Vec<String>,
    known: Stamps,
    linked: u64,
    cannot_link: bool,
}

impl Storage {
    /// Nothing listed yet.
    pub fn new(known: Stamps) -> Self {
        Self {
            known,
            ..Self::default()
        }
    }

    /// Lists what is there now; files known already stay as they are.
    ///
    /// # Errors
    /// A directory can not be read; the run was interrupted.
    pub fn list(&mut self, cancel: &CancellationToken, storage: &Path, stage: &Path) -> Result<()> {
        let there = storage.try_exists();
        if !there.doing(|| format!("{} can not be read", storage.display()))? {
            return Ok(());
        }
        make_dir(stage)?;
        self.walk(cancel, storage, b"storage", stage, 0)
    }

    fn walk(
        &mut self,
        cancel: &CancellationToken,
        directory: &Path,
        name: &[u8],
        stage: &Path,
        depth: usize,
    ) -> Result<()> {
        if cancel.is_cancelled() {
            return Err(Error::new(Kind::Interrupted, "interrupted"));
        }
        if depth > DEPTH_MAX {
            return Err(Error::failed(format!(
                "{} is nested too deeply",
                directory.display()
            )));
        }
        let entries = match fs::read_dir(directory) {
            Ok(entries) => entries,
            // Gone since its parent was read: a record was deleted.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && depth > 0 => return Ok(()),
            Err(e) => {
                return Err(Error::failed(format!("{} can not be read", directory.display())).because(e));
            }
        };
        for entry in entries {
            let entry = entry.doing(|| format!("{} can not be read", directory.display()))?;
            let mut full = name.to_vec();
            full.push(b'/');
            full.extend_from_slice(entry.file_name().as_bytes());
            let path = entry.path();
            let metadata = match fs::symlink_metadata(&path) {
                Ok(metadata) => metadata,
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                Err(e) => return Err(Error::failed(format!("{} can not be read", path.display())).because(e)),
            };
            if metadata.is_dir() {
                self.walk(cancel, &path, &full, stage, depth + 1)?;
            } else if !metadata.is_file() {
                self.warn(format!(
                    "{} is neither a file nor a directory, and is left out",
                    path.display()
                ));
            } else {
                self.add(UnitName::from_bytes(&full)?, path, &metadata, stage)?;
            }
        }
        Ok(())
    }

    /// Leaves out what PocketBase was writing just then: what has such a name, and no row names it.
    pub fn drop_temporary(&mut self, named: &BTreeSet<UnitName>) {
        self.files
            .retain(|name, _| !looks_temporary(name.as_str()) || named.contains(name));
    }

    pub fn warn(&mut self, text: String) {
        if self.warnings.len() < 20 && !self.warnings.contains(&text) {
            self.warnings.push(text);
        }
    }

    fn add(&mut self, name: UnitName, path: PathBuf, metadata: &fs::Metadata, stage: &Path) -> Result<()> {
        if self.files.contains_key(&name) {
            return Ok(());
        }
        let stamp = format!(
            "{}-{}.{:09}-{}",
            metadata.len(),
            metadata.mtime(),
            metadata.mtime_nsec(),
            metadata.ino()
        );
        let mut readable = path.clone();
        if !self.cannot_link && !self.known.has(&name, &stamp) {
            let link = stage.join(self.linked.to_string());
            match fs::hard_link(&path, &link) {
                Ok(()) => {
                    self.linked += 1;
                    readable = link;
                }
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
                // Another file system, or one without links: files are read where they are.
                Err(_) => self.cannot_link = true,
            }
        }
        self.files.insert(
            name,
            StoredFile {
                path: readable,
                size: metadata.len(),
                modified_ms: metadata.mtime() * 1000 + metadata.mtime_nsec() / 1_000_000,
                mode: metadata.mode() & 0o7777,
                stamp,
            },
        );
        Ok(())
    }
}

/// What PocketBase writes before it gives a file its name: `<name>.<hex>.tmp`.
fn looks_temporary(name: &str) -> bool {
    let digits = name.strip_suffix(".tmp").and_then(|rest| rest.rsplit_once('.'));
    digits.is_some_and(|(_, d)| !d.is_empty() && d.bytes().all(|b| b.is_ascii_hexdigit()))
}
