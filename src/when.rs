//! (being built)
use chrono::{DateTime, Utc};

/// What `--at` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// The newest point.
    Latest,
    /// An instant.
    At(DateTime<Utc>),
}
