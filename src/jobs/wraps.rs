//! What this host knows of who can open which generation. The wraps themselves do not tell: an age file names nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use crate::error::Result;
use crate::state::{self, StateDir};
use crate::types::{GenerationId, RepositoryId};

/// Recipients that each generation was wrapped to by this host. Lost state costs a run in full, or a few wraps.
#[derive(Debug)]
pub struct Wraps {
    path: PathBuf,
    known: BTreeMap<GenerationId, BTreeSet<String>>,
}

impl Wraps {
    /// Reads what is known. Whoever records holds the lock on the generation.
    ///
    /// # Errors
    /// The state directory.
    pub fn read(state: &StateDir, repository: RepositoryId) -> Result<Self> {
        let path = state.generation_file(repository)?.with_file_name("wraps.json");
        let known = state::read_json(&path)?.unwrap_or_default();
        Ok(Self { path, known })
    }

    /// Remembers that a generation was wrapped to these too.
    ///
    /// # Errors
    /// The state directory.
    pub fn record(&mut self, generation: GenerationId, recipients: &[String]) -> Result<()> {
        let known = self.known.entry(generation).or_default();
        let before = known.len();
        known.extend(recipients.iter().cloned());
        if known.len() > before {
            state::write_json(&self.path, &self.known)?;
        }
        Ok(())
    }

    /// Whether each of these can open the generation, as far as is known.
    pub fn cover(&self, generation: GenerationId, recipients: &[String]) -> bool {
        let known = self.known.get(&generation);
        recipients.iter().all(|r| known.is_some_and(|k| k.contains(r)))
    }
}
