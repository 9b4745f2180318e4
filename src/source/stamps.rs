//! What the last run knows already: so that a source spares itself the trouble with what will not be read.

use std::collections::HashSet;
use std::sync::Arc;

use crate::types::UnitName;

/// Remembered at most: 64 MiB. Of more units the rest is treated as new, which costs time only.
const REMEMBERED_MAX: usize = 1 << 21;

/// Names with the stamps that the last run recorded, as hashes. A hint: whether a unit is read is decided by names and
/// stamps themselves.
#[derive(Clone, Debug, Default)]
pub struct Stamps(Arc<HashSet<u64>>);

impl Stamps {
    /// Of these names and stamps.
    ///
    /// # Errors
    /// The first of the iterator.
    pub fn collect<E>(known: impl Iterator<Item = Result<(UnitName, String), E>>) -> Result<Self, E> {
        let mut hashes = HashSet::new();
        for known in known.take(REMEMBERED_MAX) {
            let (name, stamp) = known?;
            hashes.insert(hash(&name, &stamp));
        }
        Ok(Self(Arc::new(hashes)))
    }
    /// Whether the last run recorded this stamp for this name.
    pub fn has(&self, name: &UnitName, stamp: &str) -> bool {
        self.0.contains(&hash(name, stamp))
    }
}

fn hash(name: &UnitName, stamp: &str) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(name.as_str().len() as u64).to_le_bytes());
    hasher.update(name.as_str().as_bytes());
    hasher.update(stamp.as_bytes());
    let mut half = [0; 8];
    half.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    u64::from_le_bytes(half)
}
