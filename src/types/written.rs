//! How values are written wherever they are shown, logged or copied.

use bytesize::ByteSize;
use chrono::{DateTime, SecondsFormat, Utc};

/// An instant as RFC 3339 in UTC, to its last digit: what `--at` takes back.
pub fn rfc3339(instant: DateTime<Utc>) -> String {
    instant.to_rfc3339_opts(SecondsFormat::AutoSi, true)
}

/// A word as a shell takes it.
pub fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@%+,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// A size in IEC units.
pub fn size(bytes: u64) -> String {
    ByteSize(bytes).display().iec().to_string()
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn words_as_they_would_be_typed() {
        assert_eq!(quoted("--at"), "--at");
        assert_eq!(quoted("2 hours ago"), "'2 hours ago'");
        assert_eq!(quoted("it's"), "'it'\\''s'");
        assert_eq!(quoted(""), "''");
    }
}
