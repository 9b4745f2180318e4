//! Cron text and a zone in, slots out. Pure.
//!
//! Five fields as Vixie's cron has them, or `@hourly` and friends. Day of month and day of week are alternatives, unless
//! one of the two begins with `*`; then both must match. When clocks go forward, what falls into the gap comes once, at
//! the first instant after it; when they go back, a slot of the repeated hour comes once, in the first of the two. Patterns
//! of every hour go by elapsed time instead: they come in both repeated hours, and nothing is made up for a skipped one.
//! What is due, and what was missed, comes with the daemon.

pub mod due;
mod fields;

use std::time::Duration;

use chrono::{DateTime, Days, LocalResult, NaiveDateTime, TimeZone as _, Timelike as _, Utc};
use chrono_tz::{GapInfo, Tz};
use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};

use crate::error::{Error, Result};
use fields::Fields;

/// The rarest pattern that comes at all (29 February on some days of the week) comes within this.
const RAREST_DAYS: u64 = 41 * 366;
/// Days looked at to find the usual interval.
const LOOKED_AT_DAYS: u64 = 400;
/// Slots of the wall clock that may lie in one repeated hour, or share one instant after a gap: a day's minutes are more
/// than any change of clocks had.
const FOLDED_MAX: usize = 2 * 1440;

/// A schedule.
#[derive(Clone, Debug)]
pub struct Schedule {
    cron: Cron,
    fields: Fields,
    zone: Tz,
}

impl Schedule {
    /// Parses a schedule in a zone.
    ///
    /// # Errors
    /// Not a schedule, or one that never comes.
    pub fn parse(text: &str, zone: Tz) -> Result<Self> {
        let bad = |why: String| {
            Error::usage(format!("{text:?} is not a schedule: {why}"))
                .hint("Use five fields (minute hour day month weekday), such as \"0 2 * * *\", or @hourly, @daily, @weekly, @monthly, @yearly.")
        };
        let fields = Fields::parse(text).map_err(bad)?;
        // The engine is given numbers only: its own names, nicknames and extensions are another dialect.
        let cron = CronParser::builder()
            .seconds(Seconds::Disallowed)
            .year(Year::Disallowed)
            .dom_and_dow(fields.both_days())
            .build()
            .parse(&fields.to_string())
            .map_err(|e| bad(e.to_string()))?;
        Ok(Self { cron, fields, zone })
    }

    /// The first slot after an instant.
    pub fn next(&self, after: DateTime<Utc>) -> Option<DateTime<Utc>> {
        // Slots are whole minutes, so what is after the second is after the instant.
        let after = after.with_nanosecond(0)?;
        if self.fields.every_hour() {
            let local = after.with_timezone(&self.zone);
            let next = self
                .cron
                .find_next_occurrence(&local, false)
                .ok()?
                .with_timezone(&Utc);
            return (next > after).then_some(next);
        }
        // The wall clock as if it never changed; then each of its times as the instant that shows it. Both go forward
        // together, so the first one that lies after is the next.
        let mut wall = after.with_timezone(&self.zone).naive_local().and_utc();
        for _ in 0..FOLDED_MAX {
            wall = self.cron.find_next_occurrence(&wall, false).ok()?;
            let instant = self.instant(wall.naive_utc())?;
            if instant > after {
                return Some(instant);
            }
        }
        None
    }

    /// The instant of a local time: the first of two, or the first after the gap.
    fn instant(&self, local: NaiveDateTime) -> Option<DateTime<Utc>> {
        match self.zone.from_local_datetime(&local) {
            LocalResult::Single(instant) | LocalResult::Ambiguous(instant, _) => {
                Some(instant.with_timezone(&Utc))
            }
            LocalResult::None => Some(GapInfo::new(&local, &self.zone)?.end?.with_timezone(&Utc)),
        }
    }

    /// The next slots after an instant.
    pub fn next_slots(&self, after: DateTime<Utc>, count: usize) -> Vec<DateTime<Utc>> {
        std::iter::successors(self.next(after), |slot| self.next(*slot))
            .take(count)
            .collect()
    }

    /// The largest distance between neighbouring slots on the wall clock, over the year after an instant (for rarer
    /// schedules: between the next two): what a schedule leaves between two points when nothing goes wrong.
    pub fn usual_interval(&self, now: DateTime<Utc>) -> Option<Duration> {
        let times = self.fields.minutes_of_day();
        let (first, last) = (u64::from(*times.first()?), u64::from(*times.last()?));
        let mut largest = times
            .windows(2)
            .map(|pair| u64::from(pair[1] - pair[0]))
            .max()
            .unwrap_or(0);
        let today = now.with_timezone(&self.zone).date_naive();
        let mut before = None;
        let mut found = false;
        for day in 0..=RAREST_DAYS {
            if found && day > LOOKED_AT_DAYS {
                break;
            }
            if !self.fields.has_day(today.checked_add_days(Days::new(day))?) {
                continue;
            }
            if let Some(before) = before {
                largest = largest.max((day - before) * 1440 + first - last);
                found = true;
            }
            before = Some(day);
        }
        found.then(|| Duration::from_secs(largest * 60))
    }
}

#[cfg(test)]
mod tests;
