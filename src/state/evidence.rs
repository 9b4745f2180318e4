//! What this host knows of evidence, and evidence that could not be put into its repository.
//!
//! ```text
//! <state>/evidence.json         of each repository: the newest evidence that this host saw or made
//! <state>/evidence/<id>.json    evidence that waits for a repository that can be written; removed when it is there
//! ```

use std::fs::{self, OpenOptions};
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use ulid::Ulid;

use super::{failed, make_dir, open_lock, open_regular, read_text, write_atomically, write_json};
use crate::error::{Context as _, Error, Result};
use crate::types::{EvidenceRef, RepositoryId};

/// Version of the file.
const FORMAT: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
struct Memory {
    format: u32,
    /// The one that was asked last comes last.
    repositories: Vec<Entry>,
}

/// What is known of one repository.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    /// None: it was never reached.
    repository: Option<RepositoryId>,
    /// Where it is.
    place: String,
    tips: Vec<EvidenceRef>,
}

/// Of one repository: by its id where that is known, else by where it is.
#[derive(Clone, Debug)]
pub struct EvidenceState {
    root: PathBuf,
    place: String,
    repository: Option<RepositoryId>,
}

/// Evidence that waits here.
#[derive(Debug)]
pub struct Waiting {
    /// The id in its name.
    pub id: Ulid,
    /// Where it is.
    pub path: PathBuf,
    /// What it holds; or why that can not be told.
    pub bytes: std::result::Result<Bytes, String>,
}

impl EvidenceState {
    /// Below a state directory.
    pub fn new(root: &Path, place: String, repository: Option<RepositoryId>) -> Self {
        Self {
            root: root.to_owned(),
            place,
            repository,
        }
    }

    fn file(&self) -> PathBuf {
        self.root.join("evidence.json")
    }

    fn path(&self, id: Ulid) -> PathBuf {
        self.root.join("evidence").join(format!("{id}.json"))
    }

    fn memory(&self) -> Result<Memory> {
        let path = self.file();
        let text = match read_text(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(e) => return Err(failed(format!("can not read {}", path.display()), e)),
        };
        if text.is_empty() {
            return Ok(Memory {
                format: FORMAT,
                repositories: Vec::new(),
            });
        }
        let memory: Memory = serde_json::from_str(&text).map_err(|e| {
            Error::damaged(format!("{} is damaged", path.display()))
                .hint("Move it away: what this host knew of evidence is lost then, and begun anew.")
                .because(e)
        })?;
        if memory.format != FORMAT {
            return Err(Error::damaged(format!("{} is of another format", path.display())));
        }
        Ok(memory)
    }

    fn is_ours(&self, entry: &Entry) -> bool {
        match (self.repository, entry.repository) {
            (Some(own), Some(other)) => own == other,
            _ => self.place == entry.place,
        }
    }

    /// The repository that was last found where this one is.
    ///
    /// # Errors
    /// The file can not be read, or is damaged.
    pub fn repository(&self) -> Result<Option<RepositoryId>> {
        let memory = self.memory()?;
        let here = memory.repositories.iter().rev().find(|e| self.is_ours(e));
        Ok(self.repository.or(here.and_then(|e| e.repository)))
    }

    /// The newest evidence that this host knows of: what no other names.
    ///
    /// # Errors
    /// As [`Self::repository`].
    pub fn remembered(&self) -> Result<Vec<EvidenceRef>> {
        let memory = self.memory()?;
        let known = memory.repositories.iter().rev().find(|e| self.is_ours(e));
        Ok(known.map(|e| e.tips.clone()).unwrap_or_default())
    }

    /// Keeps what is the newest now; it is given what was known.
    ///
    /// # Errors
    /// The file can not be read or written.
    pub fn remember(&self, now: impl FnOnce(&[EvidenceRef]) -> Vec<EvidenceRef>) -> Result<()> {
        let lock = self.root.join("evidence.lock");
        let held = open_lock(&lock)?;
        self.give(&lock)?;
        held.lock().doing(|| format!("can not lock {}", lock.display()))?;
        let mut memory = self.memory()?;
        let place = memory.repositories.iter().rposition(|e| self.is_ours(e));
        let known = place.map(|n| memory.repositories[n].clone()).unwrap_or_default();
        let entry = Entry {
            repository: self.repository.or(known.repository),
            place: self.place.clone(),
            tips: now(&known.tips),
        };
        if entry == known && place == memory.repositories.len().checked_sub(1) {
            return Ok(());
        }
        if let Some(place) = place {
            memory.repositories.remove(place);
        }
        memory.repositories.push(entry);
        write_json(&self.file(), &memory)?;
        self.give(&self.file())
    }

    /// Keeps evidence until it is in the repository.
    ///
    /// # Errors
    /// It can not be written.
    pub fn keep(&self, id: Ulid, envelope: &[u8]) -> Result<PathBuf> {
        let path = self.path(id);
        let directory = self.root.join("evidence");
        make_dir(&directory)?;
        self.give(&directory)?;
        write_atomically(&path, envelope)?;
        self.give(&path)?;
        Ok(path)
    }

    /// It is in the repository.
    ///
    /// # Errors
    /// It can not be removed.
    pub fn forget(&self, id: Ulid) -> Result<()> {
        let path = self.path(id);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(failed(format!("can not remove {}", path.display()), e))
            }
            _ => Ok(()),
        }
    }

    /// What waits here, of whatever repository, up to a size. Files of other names are none of it.
    ///
    /// # Errors
    /// The directory can not be read.
    pub fn waiting(&self, most: u64) -> Result<Vec<Waiting>> {
        let directory = self.root.join("evidence");
        let doing = || format!("can not read {}", directory.display());
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(failed(doing(), e)),
        };
        let mut found = Vec::new();
        for entry in entries {
            let path = entry.map_err(|e| failed(doing(), e))?.path();
            let Some(id) = evidence_name(&path) else { continue };
            let bytes = match read_bounded(&path, most) {
                // It went into the repository meanwhile.
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                Err(e) => Err(format!("can not be read: {e}")),
                Ok(None) => Err("is too large to be read".to_owned()),
                Ok(Some(bytes)) => Ok(bytes),
            };
            found.push(Waiting { id, path, bytes });
        }
        found.sort_by_key(|w| w.id);
        Ok(found)
    }

    /// Whoever owns the state directory has to read what root writes into it.
    fn give(&self, path: &Path) -> Result<()> {
        let owner = fs::metadata(&self.root).doing(|| format!("can not read {}", self.root.display()))?;
        if !rustix::process::geteuid().is_root() || owner.uid() == 0 {
            return Ok(());
        }
        chown(path, Some(owner.uid()), Some(owner.gid()))
            .map_err(|e| failed(format!("can not give {} to its owner", path.display()), e))
    }
}

/// The id that the name of a file says, if it is the name of evidence.
pub fn evidence_name(path: &Path) -> Option<Ulid> {
    let name = path.file_name()?.to_str()?;
    let id: Ulid = name.strip_suffix(".json")?.parse().ok()?;
    (name == format!("{id}.json")).then_some(id)
}

/// Reads a regular file; none: it is larger than that.
///
/// # Errors
/// It can not be read, or is no regular file: that is never opened.
pub fn read_bounded(path: &Path, most: u64) -> std::io::Result<Option<Bytes>> {
    let file = open_regular(OpenOptions::new().read(true), path)?;
    if file.metadata()?.len() > most {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    // Bounded by what is read, too: a file may grow.
    file.take(most + 1).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= most).then(|| bytes.into()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn tip(n: u64) -> EvidenceRef {
        EvidenceRef {
            id: Ulid::from_parts(n, 0),
            number: n,
            sha256: n.to_string(),
        }
    }

    fn repository(n: u64) -> RepositoryId {
        RepositoryId::new(Ulid::from_parts(n, 1))
    }

    #[test]
    fn each_repository_has_its_own_memory_also_while_it_is_away() {
        let root = tempfile::tempdir().unwrap();
        let of = |place: &str, id| EvidenceState::new(root.path(), place.to_owned(), id);
        let (one, other) = (of("a", Some(repository(1))), of("a", Some(repository(2))));
        assert!(one.remembered().unwrap().is_empty());
        one.remember(|known| [known, &[tip(1)]].concat()).unwrap();
        one.remember(|known| [known, &[tip(2)]].concat()).unwrap();
        assert_eq!(one.remembered().unwrap(), [tip(1), tip(2)]);
        assert_eq!(
            of("elsewhere", Some(repository(1))).remembered().unwrap().len(),
            2,
            "it was moved"
        );
        assert!(
            other.remembered().unwrap().is_empty(),
            "another one at the same place"
        );
        let away = of("a", None);
        assert_eq!(
            (away.repository().unwrap(), away.remembered().unwrap().len()),
            (Some(repository(1)), 2)
        );
        away.remember(|_| vec![tip(3)]).unwrap();
        assert_eq!(one.remembered().unwrap(), [tip(3)]);
        // One that was never reached is found again when it is.
        of("b", None).remember(|_| vec![tip(9)]).unwrap();
        assert_eq!(of("b", Some(repository(3))).remembered().unwrap(), [tip(9)]);
        let mode = fs::metadata(root.path().join("evidence.json"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        fs::write(root.path().join("evidence.json"), b"{").unwrap();
        assert!(one.remembered().unwrap_err().message().contains("is damaged"));
    }

    #[test]
    fn what_waits_is_found_and_goes_when_it_is_told_to() {
        let root = tempfile::tempdir().unwrap();
        let state = EvidenceState::new(root.path(), "a".to_owned(), None);
        assert!(state.waiting(100).unwrap().is_empty());
        let id = Ulid::from_parts(5, 5);
        let path = state.keep(id, b"sealed").unwrap();
        fs::write(path.with_file_name("readme.txt"), b"?").unwrap();
        let lower = Ulid::from_parts(1 << 44, u128::MAX >> 60)
            .to_string()
            .to_lowercase();
        fs::write(path.with_file_name(format!("{lower}.json")), b"?").unwrap();
        let waiting = state.waiting(100).unwrap();
        assert_eq!(
            (waiting.len(), waiting[0].id, waiting[0].bytes.clone()),
            (1, id, Ok(Bytes::from_static(b"sealed")))
        );
        assert!(state.waiting(5).unwrap()[0].bytes.is_err(), "too large");
        state.forget(id).unwrap();
        state.forget(id).unwrap();
        assert!(state.waiting(100).unwrap().is_empty());
    }
}
