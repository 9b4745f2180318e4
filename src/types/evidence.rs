//! How evidence of drills names other evidence.

use serde::{Deserialize, Serialize};
use ulid::Ulid;

/// Names evidence by what can not be changed without its being told.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct EvidenceRef {
    /// Its id.
    pub id: Ulid,
    /// Its place in the chain.
    pub number: u64,
    /// SHA-256 of its envelope, in hex.
    pub sha256: String,
}
