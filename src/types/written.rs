//! How values are written wherever they are shown, logged or copied.

use bytesize::ByteSize;
use chrono::{DateTime, SecondsFormat, Utc};

/// An instant as RFC 3339 in UTC, to its last digit: what `--at` takes back.
pub fn rfc3339(instant: DateTime<Utc>) -> String {
    instant.to_rfc3339_opts(SecondsFormat::AutoSi, true)
}

/// A size in IEC units.
pub fn size(bytes: u64) -> String {
    ByteSize(bytes).display().iec().to_string()
}
