//! What `--at` asks for. Pure: text, zone and now in, an instant out, or why not.
//!
//! Absolute times have one strict spelling. Words ("2 hours ago", "yesterday 14:00") are few: lengths of time are read by
//! `interim`, days and times of day here, because a wrong instant is worse than a refusal. Whatever is of the wall clock
//! is resolved in the zone last, so a repeated or skipped local time is always refused, however it was said.

use chrono::{
    DateTime, Datelike as _, Days, FixedOffset, LocalResult, Months, NaiveDate, NaiveDateTime, NaiveTime,
    TimeDelta, TimeZone as _, Timelike as _, Utc, Weekday,
};
use chrono_tz::{GapInfo, Tz};
use interim::Interval;

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
    if text.eq_ignore_ascii_case("latest") {
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

fn unclear(text: &str) -> Error {
    Error::usage(format!("{text:?} is not an instant")).hint(EXAMPLES)
}

fn instant(text: &str, zone: Tz, now: DateTime<Utc>) -> Result<DateTime<Utc>> {
    let written = text.get(..10).and_then(|day| Some((date(day)?, text.get(10..)?)));
    match written {
        Some((_, "")) => Err(Error::usage(format!("{text:?} is a day, not an instant"))
            .hint(format!("Add the time: \"{text} 14:03\"."))),
        Some((day, rest)) => absolute(text, day, rest, zone),
        None => words(text, zone, now),
    }
}

/// `YYYY-MM-DD`, just so: the library would take "26-11-21" for the year 26.
fn date(text: &str) -> Option<NaiveDate> {
    let shape = text.bytes().enumerate().all(|(i, b)| match i {
        4 | 7 => b == b'-',
        _ => b.is_ascii_digit(),
    });
    let number = |range| text.get(range).and_then(|part: &str| part.parse::<u32>().ok());
    if !shape || text.len() != 10 {
        return None;
    }
    NaiveDate::from_ymd_opt(i32::try_from(number(0..4)?).ok()?, number(5..7)?, number(8..10)?)
}

/// What follows the day: `[T ]HH:MM[:SS[.fraction]]` and, if it is not a local time, `Z` or an offset.
fn absolute(text: &str, day: NaiveDate, rest: &str, zone: Tz) -> Result<DateTime<Utc>> {
    let (Some('T' | 't' | ' '), Some(rest)) = (rest.chars().next(), rest.get(1..)) else {
        return Err(unclear(text));
    };
    let rest = rest.trim_start();
    let end = rest
        .find(|c: char| !c.is_ascii_digit() && c != ':' && c != '.')
        .unwrap_or(rest.len());
    let (clock, offset) = rest.split_at(end);
    let (time, leap) = time_of_day(clock).ok_or_else(|| unclear(text))?;
    let local = day.and_time(time);
    let instant = match offset.trim_start() {
        "" => resolve(local, zone)?,
        offset => {
            let offset = offset_seconds(offset)
                .and_then(FixedOffset::east_opt)
                .ok_or_else(|| unclear(text))?;
            let instant = offset.from_local_datetime(&local).single();
            instant.ok_or_else(|| unclear(text))?.with_timezone(&Utc)
        }
    };
    if !leap {
        return Ok(instant);
    }
    // A leap second is the last of a day in UTC; Unix time, and so every clock here, has it as the next second.
    match (instant.hour(), instant.minute()) {
        (23, 59) => Ok(instant + TimeDelta::seconds(1)),
        _ => Err(Error::usage(format!("{text:?} has no 60th second")).hint(EXAMPLES)),
    }
}

/// `HH:MM[:SS[.fraction]]`, and whether it is a leap second (given as the second before it).
fn time_of_day(text: &str) -> Option<(NaiveTime, bool)> {
    let (clock, fraction) = match text.split_once('.') {
        Some((clock, fraction)) => (clock, Some(fraction)),
        None => (text, None),
    };
    let digits = |part: &str, most: usize| {
        let plain = (1..=most).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_digit());
        plain.then(|| part.parse::<u32>().ok()).flatten()
    };
    let parts = clock
        .split(':')
        .map(|part| if part.len() == 2 { digits(part, 2) } else { None })
        .collect::<Option<Vec<_>>>()?;
    let (hour, minute, second) = match (parts.as_slice(), fraction) {
        ([hour, minute], None) => (*hour, *minute, 0),
        ([hour, minute, second], _) => (*hour, *minute, *second),
        _ => return None,
    };
    let nanoseconds = match fraction {
        Some(fraction) => digits(&format!("{fraction:0<9}"), 9).filter(|_| !fraction.is_empty())?,
        None => 0,
    };
    let leap = second == 60;
    let time = NaiveTime::from_hms_nano_opt(hour, minute, if leap { 59 } else { second }, nanoseconds)?;
    Some((time, leap))
}

/// `Z`, `+HH:MM`, `+HHMM` or `+HH` (as Postgres shows it), in seconds east.
fn offset_seconds(text: &str) -> Option<i32> {
    if text.eq_ignore_ascii_case("z") {
        return Some(0);
    }
    let (sign, digits) = match text.split_at_checked(1)? {
        ("+", rest) => (1, rest),
        ("-", rest) => (-1, rest),
        _ => return None,
    };
    let (hours, minutes) = match digits.len() {
        2 => (digits, "00"),
        4 => digits.split_at_checked(2)?,
        5 => digits.split_once(':')?,
        _ => return None,
    };
    let two = |part: &str| {
        let plain = part.len() == 2 && part.bytes().all(|b| b.is_ascii_digit());
        plain.then(|| part.parse::<i32>().ok()).flatten()
    };
    let (hours, minutes) = (two(hours)?, two(minutes).filter(|m| *m < 60)?);
    Some(sign * (hours * 3600 + minutes * 60))
}

/// `now`, `2 hours ago`, `3 days ago [14:00]`, `yesterday 14:00`, `today 9am`, `[last] monday 14:00`.
fn words(text: &str, zone: Tz, now: DateTime<Utc>) -> Result<DateTime<Utc>> {
    let unclear = || unclear(text);
    let lower = text.to_lowercase();
    let words: Vec<&str> = lower.split_whitespace().collect();
    let (day, time) = split_time(&words).ok_or_else(unclear)?;
    let local_now = now.with_timezone(&zone).naive_local();
    let on = |date: Option<NaiveDate>| match (date, time) {
        (Some(date), Some(time)) => resolve(date.and_time(time), zone),
        (None, _) => Err(unclear()),
        (_, None) => Err(Error::usage(format!("{text:?} is a day, not an instant"))
            .hint(format!("Add the time: \"{lower} 14:03\"."))),
    };
    match day {
        ["now"] if time.is_none() => Ok(now),
        ["today"] => on(Some(local_now.date())),
        ["yesterday"] => on(local_now.date().checked_sub_days(Days::new(1))),
        [.., "ago"] => ago(day, time, zone, now).ok_or_else(unclear)?,
        ["last", name] => on(weekday(name).and_then(|day| last(day, local_now.date(), false))),
        [name] => {
            let today_too = time.is_some_and(|time| time <= local_now.time());
            on(weekday(name).and_then(|day| last(day, local_now.date(), today_too)))
        }
        _ => Err(unclear()),
    }
}

/// A length of time back. Seconds to hours have elapsed; days to years are counted on the calendar and keep the time of day.
fn ago(
    words: &[&str],
    time: Option<NaiveTime>,
    zone: Tz,
    now: DateTime<Utc>,
) -> Option<Result<DateTime<Utc>>> {
    const UNITS: [&str; 23] = [
        "s", "sec", "secs", "second", "seconds", "m", "min", "mins", "minute", "minutes", "h", "hour",
        "hours", "d", "day", "days", "w", "week", "weeks", "month", "months", "year", "years",
    ];
    let (_, length) = words.split_last()?;
    let length = length.concat();
    let unit = length.trim_start_matches(|c: char| c.is_ascii_digit());
    // The lenient parser takes the beginning of a word for the word, and long numbers for two.
    if !UNITS.contains(&unit) || !(1..=4).contains(&(length.len() - unit.len())) {
        return None;
    }
    let local = now.with_timezone(&zone).naive_local();
    // A year before 1 can not be written down again.
    let on = |date: NaiveDate| {
        (date.year() > 0).then(|| resolve(date.and_time(time.unwrap_or(local.time())), zone))
    };
    match interim::parse_duration(&format!("{length} ago")).ok()? {
        Interval::Seconds(seconds) if time.is_none() => {
            Some(Ok(now.checked_add_signed(TimeDelta::seconds(seconds.into()))?))
        }
        Interval::Seconds(_) => None,
        Interval::Days(days) => on(local
            .date()
            .checked_sub_days(Days::new(days.unsigned_abs().into()))?),
        Interval::Months(months) => on(local
            .date()
            .checked_sub_months(Months::new(months.unsigned_abs()))?),
    }
}

/// The time of day at the end of some words (`14:00`, `9am`, `9:30 pm`), and the words before it.
fn split_time<'a, 'w>(words: &'w [&'a str]) -> Option<(&'w [&'a str], Option<NaiveTime>)> {
    let (end, before) = words.split_last()?;
    let half_of_day = |text: &str| text.ends_with("am") || text.ends_with("pm");
    let (clock, day) = match before.split_last() {
        Some((number, day)) if *end == "am" || *end == "pm" => (format!("{number}{end}"), day),
        _ if end.starts_with(|c: char| c.is_ascii_digit()) && (end.contains(':') || half_of_day(end)) => {
            ((*end).to_owned(), before)
        }
        _ => return Some((words, None)),
    };
    let time = match clock.strip_suffix("am").or_else(|| clock.strip_suffix("pm")) {
        None => time_of_day(&padded(&clock)).filter(|(_, leap)| !leap)?.0,
        Some(number) => {
            let number = if number.contains(':') {
                number.to_owned()
            } else {
                format!("{number}:00")
            };
            let (time, _) = time_of_day(&padded(&number)).filter(|(_, leap)| !leap)?;
            let hour = time.hour();
            if !(1..=12).contains(&hour) {
                return None;
            }
            // 12am is midnight, 12pm is noon.
            time.with_hour(hour % 12 + if clock.ends_with("pm") { 12 } else { 0 })?
        }
    };
    let day = day.strip_suffix(&["at"]).unwrap_or(day);
    (!day.is_empty()).then_some((day, Some(time)))
}

/// `9:30` as `09:30`.
fn padded(clock: &str) -> String {
    if clock.find(':') == Some(1) {
        format!("0{clock}")
    } else {
        clock.to_owned()
    }
}

fn weekday(name: &str) -> Option<Weekday> {
    name.bytes()
        .all(|b| b.is_ascii_lowercase())
        .then(|| name.parse().ok())
        .flatten()
}

/// The last such day before a day (or that day itself): the future can not be restored, so it is never meant.
fn last(day: Weekday, today: NaiveDate, today_too: bool) -> Option<NaiveDate> {
    let back = (7 + today.weekday().num_days_from_monday() - day.num_days_from_monday()) % 7;
    today.checked_sub_days(Days::new(if back == 0 && !today_too { 7 } else { back.into() }))
}

fn resolve(local: NaiveDateTime, zone: Tz) -> Result<DateTime<Utc>> {
    match zone.from_local_datetime(&local) {
        LocalResult::Single(instant) => Ok(instant.with_timezone(&Utc)),
        LocalResult::Ambiguous(a, b) => Err(Error::usage(format!(
            "{local} happened twice in {zone}: the clocks went back"
        ))
        .hint(format!("Say which: {} or {}.", a.to_rfc3339(), b.to_rfc3339()))),
        LocalResult::None => Err(skipped(local, zone)),
    }
}

fn skipped(local: NaiveDateTime, zone: Tz) -> Error {
    let gap = GapInfo::new(&local, &zone).and_then(|gap| Some((gap.begin?.0, gap.end?)));
    let what = format!("{local} never happened in {zone}");
    match gap {
        Some((from, to)) => Error::usage(format!(
            "{what}: the clocks went forward from {from} to {}",
            to.naive_local()
        ))
        .hint(format!("The first instant after the gap is {}.", to.to_rfc3339())),
        None => Error::usage(what).hint("Write the instant in UTC, with a Z at its end."),
    }
}

/// An instant for people: UTC, and the zone.
pub fn echo(instant: DateTime<Utc>, zone: Tz) -> String {
    let local = instant.with_timezone(&zone);
    format!(
        "{} ({}, {zone})",
        crate::types::rfc3339(instant),
        local.format("%Y-%m-%d %H:%M:%S%.f %Z")
    )
}

#[cfg(test)]
mod tests;
