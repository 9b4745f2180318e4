//! Progress: the library tells, the command line shows. The library never prints.

use std::fmt::Debug;

/// Told what is going on.
pub trait Progress: Send + Sync + Debug {
    /// A phase begins ("dumping orders", "uploading"); total bytes if known.
    fn phase(&self, name: &str, total_bytes: Option<u64>);
    /// So many more bytes of the phase are done.
    fn advance(&self, bytes: u64);
}

/// Tells nobody.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn phase(&self, _name: &str, _total_bytes: Option<u64>) {}
    fn advance(&self, _bytes: u64) {}
}
