//! What `--at` asks for. Pure: text, zone and now in, an instant out, or why not.

use chrono::{DateTime, LocalResult, NaiveDateTime, SecondsFormat, TimeZone as _, Utc};
use chrono_tz::Tz;

use crate::error::{Error, Kind, Result};

/// What `--at` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// The newest point.
    Latest,
    /// An instant.
    At(DateTime<Utc>),
}

const EXAMPLES: &str = "Write RFC 3339 (2026-11-21T14:03:00+01:00), a local time of the policy's zone (\"2026-11-21 14:03\"), \"2 hours ago\", \"yesterday 14:00\", or latest.";

/// Parses `--at`. Local times are of the zone.
///
/// # Errors
/// Nonsense, an ambiguous or nonexistent local time ([`Kind::Usage`]); the future ([`Kind::Unreachable`]).
pub fn parse(text: &str, zone: Tz, now: DateTime<Utc>) -> Result<When> {
    let text = text.trim();
    if text == "latest" {
        return Ok(When::Latest);
    }
    let instant = instant(text, zone, now)?;
    if instant > now {
        return Err(Error::new(
            Kind::Unreachable,
            format!("{} lies in the future", echo(instant, zone)),
        )
        .hint("Use --at latest for the newest point."));
    }
    Ok(When::At(instant))
}

fn instant(text: &str, zone: Tz, now: DateTime<Utc>) -> Result<DateTime<Utc>> {
    if let Ok(instant) = DateTime::parse_from_rfc3339(text) {
        return Ok(instant.with_timezone(&Utc));
    }
    for format in [
        "%Y-%m-%d %H:%M:%S%.f",
        "%Y-%m-%d %H:%M",
        "%Y-%m-%dT%H:%M:%S%.f",
        "%Y-%m-%dT%H:%M",
    ] {
        if let Ok(local) = NaiveDateTime::parse_from_str(text, format) {
            return resolve(local, zone);
        }
    }
    if chrono::NaiveDate::parse_from_str(text, "%Y-%m-%d").is_ok() {
        return Err(Error::usage(format!("{text:?} is a day, not an instant"))
            .hint(format!("Add the time: \"{text} 14:03\".")));
    }
    let unclear = || Error::usage(format!("{text:?} is not an instant")).hint(EXAMPLES);
    // Only what begins like a relative time goes to the lenient parser: it would take a bare number for an hour.
    // It also takes the beginning of a word for the word, so words are held to a list.
    let words: Vec<String> = text.split_whitespace().map(str::to_lowercase).collect();
    if !words.iter().all(|w| is_known(w)) || !words.iter().any(|w| w.bytes().any(|b| b.is_ascii_alphabetic()))
    {
        return Err(unclear());
    }
    let local_now = now.with_timezone(&zone);
    let parsed = interim::parse_date_string(text, local_now, interim::Dialect::Us).map_err(|_| unclear())?;
    // The lenient parser may take a side in a repeated hour; an elapsed time ("2 hours ago") never is ambiguous.
    if text.ends_with("ago") {
        return Ok(parsed.with_timezone(&Utc));
    }
    resolve(parsed.naive_local(), zone)
}

fn is_known(word: &str) -> bool {
    const WORDS: [&str; 21] = [
        "ago",
        "yesterday",
        "today",
        "last",
        "am",
        "pm",
        "monday",
        "tuesday",
        "wednesday",
        "thursday",
        "friday",
        "saturday",
        "sunday",
        "mon",
        "tue",
        "wed",
        "thu",
        "fri",
        "sat",
        "sun",
        "now",
    ];
    const UNITS: [&str; 18] = [
        "s", "sec", "secs", "second", "seconds", "m", "min", "mins", "minute", "minutes", "h", "hour",
        "hours", "d", "day", "days", "week", "weeks",
    ];
    let rest = word.trim_start_matches(|c: char| c.is_ascii_digit());
    let number = rest.len() < word.len();
    let time = number && word.bytes().all(|b| b.is_ascii_digit() || b == b':');
    time || WORDS.contains(&word) || UNITS.contains(&rest) || number && ["am", "pm"].contains(&rest)
}

fn resolve(local: NaiveDateTime, zone: Tz) -> Result<DateTime<Utc>> {
    match zone.from_local_datetime(&local) {
        LocalResult::Single(instant) => Ok(instant.with_timezone(&Utc)),
        LocalResult::Ambiguous(a, b) => Err(Error::usage(format!(
            "{local} happened twice in {zone}: the clocks went back"
        ))
        .hint(format!("Say which: {} or {}.", a.to_rfc3339(), b.to_rfc3339()))),
        LocalResult::None => Err(Error::usage(format!(
            "{local} never happened in {zone}: the clocks went forward over it"
        ))
        .hint("Choose an instant before or after, or write it in UTC with a Z at its end.")),
    }
}

/// An instant for people: UTC, and the zone.
pub fn echo(instant: DateTime<Utc>, zone: Tz) -> String {
    let local = instant.with_timezone(&zone);
    format!(
        "{} ({}, {zone})",
        instant.to_rfc3339_opts(SecondsFormat::AutoSi, true),
        local.format("%Y-%m-%d %H:%M:%S%.f %Z")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(text: &str) -> Result<When> {
        parse(text, Tz::Europe__Berlin, "2026-11-24T12:00:00Z".parse().unwrap())
    }
    fn is(text: &str, wanted: &str) {
        assert_eq!(at(text).unwrap(), When::At(wanted.parse().unwrap()), "{text}");
    }

    #[test]
    fn instants_are_read_in_the_zone() {
        is("2026-11-21T14:03:00Z", "2026-11-21T14:03:00Z");
        is("2026-11-21T14:03:00.25+01:00", "2026-11-21T13:03:00.25Z");
        is("2026-11-21 14:03", "2026-11-21T13:03:00Z");
        is("2026-07-21 14:03:09", "2026-07-21T12:03:09Z");
        is("2 hours ago", "2026-11-24T10:00:00Z");
        is("yesterday 14:00", "2026-11-23T13:00:00Z");
        assert_eq!(at("latest").unwrap(), When::Latest);
    }

    #[test]
    fn doubtful_instants_are_refused() {
        let error = at("2026-10-25 02:30").unwrap_err();
        assert!(
            error.hint_text().unwrap().contains("2026-10-25T02:30:00+02:00"),
            "{error:?}"
        );
        assert!(
            at("2026-03-29 02:30")
                .unwrap_err()
                .message()
                .contains("never happened")
        );
        assert_eq!(at("2026-11-24T12:00:01Z").unwrap_err().kind(), Kind::Unreachable);
        for nonsense in [
            "",
            "soon",
            "12",
            "2026-11-21",
            "2026-13-01 00:00",
            "2026-11-21 25:00",
            "ago",
            "-1",
        ] {
            let error = at(nonsense).unwrap_err();
            assert_eq!(error.kind(), Kind::Usage, "{nonsense}");
            assert!(error.hint_text().is_some());
        }
    }

    proptest! {
        #[test]
        fn what_is_echoed_is_read_back(ms in 0i64..1_795_000_000_000) {
            let instant = DateTime::from_timestamp_millis(ms).unwrap();
            for zone in [Tz::UTC, Tz::Europe__Berlin, Tz::America__New_York] {
                let text = echo(instant, zone);
                let first = text.split(' ').next().unwrap();
                prop_assert_eq!(parse(first, zone, "2026-11-24T12:00:00Z".parse().unwrap()).unwrap(), When::At(instant));
            }
        }

        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,40}") {
            let _ = at(&text);
        }
    }
}
