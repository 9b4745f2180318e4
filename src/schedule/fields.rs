//! The five fields of a schedule, as sets of numbers.

use std::fmt;

use chrono::{Datelike as _, NaiveDate};

/// What may stand in a field.
struct Spec {
    what: &'static str,
    least: u32,
    most: u32,
    /// Names of the numbers from `least` on.
    names: &'static [&'static str],
}

const SPECS: [Spec; 5] = [
    Spec {
        what: "minute",
        least: 0,
        most: 59,
        names: &[],
    },
    Spec {
        what: "hour",
        least: 0,
        most: 23,
        names: &[],
    },
    Spec {
        what: "day",
        least: 1,
        most: 31,
        names: &[],
    },
    Spec {
        what: "month",
        least: 1,
        most: 12,
        names: &[
            "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
        ],
    },
    // Sunday is 0 and 7; the name at the end of a range (SAT-SUN) is 7.
    Spec {
        what: "weekday",
        least: 0,
        most: 7,
        names: &["sun", "mon", "tue", "wed", "thu", "fri", "sat", "sun"],
    },
];

const NICKNAMES: [(&str, &str); 7] = [
    ("@hourly", "0 * * * *"),
    ("@daily", "0 0 * * *"),
    ("@midnight", "0 0 * * *"),
    ("@weekly", "0 0 * * 0"),
    ("@monthly", "0 0 1 * *"),
    ("@yearly", "0 0 1 1 *"),
    ("@annually", "0 0 1 1 *"),
];

/// Five sets of numbers, one bit each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fields {
    sets: [u64; 5],
    both_days: bool,
}

impl Fields {
    /// Parses Vixie's syntax. The error says what is wrong.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let lower = text.trim().to_ascii_lowercase();
        let text = match NICKNAMES.iter().find(|(name, _)| *name == lower) {
            Some((_, fields)) => fields,
            None if lower.starts_with('@') => return Err(format!("{lower:?} is no nickname")),
            None => lower.as_str(),
        };
        let texts: Vec<&str> = text.split_whitespace().collect();
        if texts.len() != 5 {
            return Err(format!("it has {} fields", texts.len()));
        }
        let mut sets = [0; 5];
        for ((set, spec), text) in sets.iter_mut().zip(&SPECS).zip(&texts) {
            *set = field(text, spec)?;
        }
        // Sunday has two numbers.
        if sets[4] & (1 << 7) != 0 {
            sets[4] = sets[4] & !(1 << 7) | 1;
        }
        let both_days = texts[2].starts_with('*') || texts[4].starts_with('*');
        let fields = Self { sets, both_days };
        if fields.comes() {
            Ok(fields)
        } else {
            Err("it never comes".to_owned())
        }
    }

    /// Whether day of month and day of week must both match.
    pub(super) fn both_days(&self) -> bool {
        self.both_days
    }

    /// Whether it comes in each hour of a day.
    pub(super) fn every_hour(&self) -> bool {
        self.sets[1].count_ones() == 24
    }

    /// Whether a day has slots.
    pub(super) fn has_day(&self, day: NaiveDate) -> bool {
        let has = |field: usize, number: u32| self.sets[field] & (1 << number) != 0;
        let (of_month, of_week) = (has(2, day.day()), has(4, day.weekday().num_days_from_sunday()));
        has(3, day.month())
            && if self.both_days {
                of_month && of_week
            } else {
                of_month || of_week
            }
    }

    /// The slots of such a day, in minutes from its midnight, ascending.
    pub(super) fn minutes_of_day(&self) -> Vec<u32> {
        let minutes = numbers(self.sets[0]);
        let hours = numbers(self.sets[1]);
        hours
            .iter()
            .flat_map(|hour| minutes.iter().map(move |minute| hour * 60 + minute))
            .collect()
    }

    /// Whether some month has such a day. On each date of the calendar each day of the week comes in time.
    fn comes(&self) -> bool {
        let days = |month: u32| match month {
            2 => 29,
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        };
        let months = numbers(self.sets[3]);
        !self.both_days
            || months
                .iter()
                .any(|m| numbers(self.sets[2]).iter().any(|day| *day <= days(*m)))
    }
}

/// As a pattern of numbers only.
impl fmt::Display for Fields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, set) in self.sets.iter().enumerate() {
            let numbers: Vec<String> = numbers(*set).iter().map(ToString::to_string).collect();
            write!(f, "{}{}", if i == 0 { "" } else { " " }, numbers.join(","))?;
        }
        Ok(())
    }
}

fn numbers(set: u64) -> Vec<u32> {
    (0..64).filter(|bit| set & (1 << bit) != 0).collect()
}

/// A list of `*`, `N` or `N-M`; `*` and ranges may have a step.
fn field(text: &str, spec: &Spec) -> Result<u64, String> {
    let mut set = 0;
    for item in text.split(',') {
        let bad = |why: &str| format!("{item:?} in the field of the {} {why}", spec.what);
        let (range, step) = match item.split_once('/') {
            Some((range, step)) => (range, Some(step)),
            None => (item, None),
        };
        let step = match step {
            None => 1,
            Some(step) => plain(step)
                .filter(|s| *s > 0)
                .ok_or_else(|| bad("has no valid step"))?,
        };
        // `*` is not Sunday twice: a step over it would come out differently.
        let most = if spec.names.len() == 8 {
            spec.most - 1
        } else {
            spec.most
        };
        let (from, to) = match range.split_once('-') {
            _ if range == "*" => (Some(spec.least), Some(most)),
            Some((from, to)) => (number(from, spec, false), number(to, spec, true)),
            None if item.contains('/') => {
                return Err(bad("needs a range before its step, such as */5 or 10-59/5"));
            }
            None => (number(range, spec, false), number(range, spec, false)),
        };
        match (from, to) {
            (Some(from), Some(to)) if from <= to => {
                for number in (from..=to).step_by(step as usize) {
                    set |= 1 << number;
                }
            }
            (Some(_), Some(_)) => return Err(bad("ends before it begins")),
            _ => return Err(bad(&format!("is not of {} to {}", spec.least, spec.most))),
        }
    }
    Ok(set)
}

fn plain(text: &str) -> Option<u32> {
    let short = (1..=2).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    short.then(|| text.parse().ok()).flatten()
}

fn number(text: &str, spec: &Spec, at_end: bool) -> Option<u32> {
    let named = || {
        let mut named = spec.names.iter().enumerate().filter(|(_, name)| **name == text);
        let found = if at_end { named.next_back() } else { named.next() };
        found
            .and_then(|(i, _)| u32::try_from(i).ok())
            .map(|i| i + spec.least)
    };
    plain(text)
        .filter(|n| (spec.least..=spec.most).contains(n))
        .or_else(named)
}
