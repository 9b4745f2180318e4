//! Values with a meaning: ids, names, digests, sizes. A wrong mix does not compile.

mod evidence;
mod finding;
mod ids;
mod key;
mod unit_name;
mod written;

pub use evidence::EvidenceRef;
pub use finding::{Finding, Level};
pub use ids::{Digest, Environment, GenerationId, RepositoryId, RunId, SourceName, hex, unhex};
pub use key::Key;
pub use unit_name::UnitName;
pub use written::{about, quoted, rfc3339, size, some_of};
