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

/// The first of several, and how many there are beside.
pub fn some_of(all: &[String], most: usize, between: &str) -> String {
    let mut named = all[..all.len().min(most)].join(between);
    if all.len() > most {
        named += &format!("{between}and {} more", all.len() - most);
    }
    named
}

/// A size in IEC units.
pub fn size(bytes: u64) -> String {
    ByteSize(bytes).display().iec().to_string()
}

/// A span that is an estimate, in one unit.
pub fn about(seconds: f64) -> String {
    let (of, unit) = match seconds {
        s if s < 1.0 => return "less than 1 s".to_owned(),
        s if s < 59.5 => (s, "s"),
        s if s < 90.0 * 60.0 => (s / 60.0, "min"),
        s if s < 48.0 * 3600.0 => (s / 3600.0, "h"),
        s => (s / 86_400.0, "days"),
    };
    // Of few hours and days the half counts.
    let half = (of * 2.0).round() / 2.0;
    if seconds >= 5400.0 && of < 10.0 && half.fract() > 0.0 {
        format!("{half:.1} {unit}")
    } else {
        format!("{:.0} {unit}", of.round())
    }
}

#[cfg(test)]
mod tests {
    use super::{about, quoted, some_of};

    #[test]
    fn of_many_the_first_are_named_and_the_others_counted() {
        let all = ["a", "b", "c"].map(str::to_owned);
        assert_eq!(some_of(&all, 3, "; "), "a; b; c");
        assert_eq!(some_of(&all, 1, ", "), "a, and 2 more");
        assert_eq!(some_of(&[], 3, "; "), "");
    }

    #[test]
    fn an_estimate_has_one_unit() {
        for (seconds, text) in [
            (0.4, "less than 1 s"),
            (1.4, "1 s"),
            (59.6, "1 min"),
            (243.0, "4 min"),
            (5399.0, "90 min"),
            (5400.0, "1.5 h"),
            (7200.0, "2 h"),
            (90_000.0, "25 h"),
            (2.6 * 86_400.0, "2.5 days"),
            (40.0 * 86_400.0, "40 days"),
        ] {
            assert_eq!(about(seconds), text);
        }
    }

    #[test]
    fn words_as_they_would_be_typed() {
        assert_eq!(quoted("--at"), "--at");
        assert_eq!(quoted("2 hours ago"), "'2 hours ago'");
        assert_eq!(quoted("it's"), "'it'\\''s'");
        assert_eq!(quoted(""), "''");
    }
}
