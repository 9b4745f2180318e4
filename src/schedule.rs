//! Cron text and a zone in, slots out. Pure.
//!
//! Five fields with Vixie's rule for days (day of month OR day of week when both are set), or `@hourly` and friends.
//! When clocks go forward a slot in the gap falls on the first instant after it; when they go back a slot in the repeated
//! hour happens once, patterns of every hour in both. What is due, and what was missed, comes with the daemon.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use chrono_tz::Tz;
use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};

use crate::error::{Error, Result};

/// Slots looked at to find the usual interval: enough for a year of daily ones.
const LOOKED_AT: usize = 400;

/// A schedule.
#[derive(Clone, Debug)]
pub struct Schedule {
    cron: Cron,
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
        let text = text.trim();
        if !text.starts_with('@') && text.split_whitespace().count() != 5 {
            return Err(bad(format!("it has {} fields", text.split_whitespace().count())));
        }
        let parser = CronParser::builder()
            .seconds(Seconds::Disallowed)
            .year(Year::Disallowed)
            .build();
        let cron = parser.parse(text).map_err(|e| bad(e.to_string()))?;
        let schedule = Self { cron, zone };
        // Any pattern that comes at all comes within a leap cycle from any instant.
        if schedule
            .next(DateTime::from_timestamp(1_767_225_600, 0).unwrap_or_default())
            .is_none()
        {
            return Err(bad("it never comes".to_owned()));
        }
        Ok(schedule)
    }

    /// The first slot after an instant.
    pub fn next(&self, after: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let local = after.with_timezone(&self.zone);
        let next = self
            .cron
            .find_next_occurrence(&local, false)
            .ok()?
            .with_timezone(&Utc);
        (next > after).then_some(next)
    }

    /// The next slots after an instant.
    pub fn next_slots(&self, after: DateTime<Utc>, count: usize) -> Vec<DateTime<Utc>> {
        std::iter::successors(self.next(after), |slot| self.next(*slot))
            .take(count)
            .collect()
    }

    /// The largest distance between neighbouring slots of the year after an instant (of the next 400 slots at most):
    /// what a schedule leaves between two points when nothing goes wrong.
    pub fn usual_interval(&self, now: DateTime<Utc>) -> Option<Duration> {
        let end = now + TimeDelta::days(366);
        let slots = self.next_slots(now, LOOKED_AT);
        let within: Vec<_> = slots
            .iter()
            .enumerate()
            .filter(|(i, s)| *i < 2 || **s <= end)
            .map(|(_, s)| s)
            .collect();
        within
            .windows(2)
            .filter_map(|w| (*w[1] - *w[0]).to_std().ok())
            .max()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn slots(text: &str, zone: Tz, from: &str, count: usize) -> Vec<String> {
        let from: DateTime<Utc> = from.parse().unwrap();
        let schedule = Schedule::parse(text, zone).unwrap();
        schedule
            .next_slots(from, count)
            .iter()
            .map(|s| s.with_timezone(&zone).to_rfc3339())
            .collect()
    }

    #[test]
    fn days_of_month_and_week_are_alternatives() {
        // The 13th or a Friday.
        assert_eq!(
            slots("0 0 13 * 5", Tz::UTC, "2026-11-09T00:00:00Z", 3),
            [
                "2026-11-13T00:00:00+00:00",
                "2026-11-20T00:00:00+00:00",
                "2026-11-27T00:00:00+00:00"
            ]
        );
        assert_eq!(
            slots("0 0 13 * 1", Tz::UTC, "2026-11-10T00:00:00Z", 2),
            ["2026-11-13T00:00:00+00:00", "2026-11-16T00:00:00+00:00"]
        );
    }

    #[test]
    fn a_slot_in_the_gap_comes_once_after_it_and_one_in_the_overlap_once() {
        let berlin = Tz::Europe__Berlin;
        assert_eq!(
            slots("30 2 * * *", berlin, "2027-03-27T12:00:00Z", 2),
            ["2027-03-28T03:00:00+02:00", "2027-03-29T02:30:00+02:00"]
        );
        assert_eq!(
            slots("30 2 * * *", berlin, "2026-10-24T12:00:00Z", 2),
            ["2026-10-25T02:30:00+02:00", "2026-10-26T02:30:00+01:00"]
        );
        let london = Tz::Europe__London;
        assert_eq!(
            slots("0 0 * * *", london, "2027-03-27T12:00:00Z", 2),
            ["2027-03-28T00:00:00+00:00", "2027-03-29T00:00:00+01:00"]
        );
        assert_eq!(slots("0 * * * *", berlin, "2026-10-24T23:30:00Z", 3).len(), 3);
    }

    #[test]
    fn what_is_no_schedule_is_refused() {
        for bad in [
            "",
            "* * * *",
            "* * * * * *",
            "61 * * * *",
            "0 0 31 2 *",
            "@often",
            "a b c d e",
        ] {
            assert!(Schedule::parse(bad, Tz::UTC).is_err(), "{bad:?}");
        }
        for good in [
            "@hourly",
            "@daily",
            "@weekly",
            "@monthly",
            "@yearly",
            "*/15 * * * *",
            "0 5 * * 0",
            "0 0 29 2 *",
            "0 2 * * MON-FRI",
        ] {
            assert!(Schedule::parse(good, Tz::UTC).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn the_usual_interval_is_the_largest_of_a_year() {
        let now: DateTime<Utc> = "2026-11-24T00:00:00Z".parse().unwrap();
        let interval = |text| {
            Schedule::parse(text, Tz::UTC)
                .unwrap()
                .usual_interval(now)
                .unwrap()
                .as_secs()
        };
        assert_eq!(interval("@hourly"), 3600);
        assert_eq!(interval("0 2 * * *"), 86_400);
        assert_eq!(interval("0 2 * * MON-FRI"), 3 * 86_400);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn slots_only_go_forward(minute in 0u8..60, hour in 0u8..24, start in 1_700_000_000i64..1_900_000_000) {
            for zone in [Tz::UTC, Tz::Europe__Berlin, Tz::America__New_York, Tz::Australia__Lord_Howe, Tz::Africa__Casablanca] {
                let schedule = Schedule::parse(&format!("{minute} {hour} * * *"), zone).unwrap();
                let from = DateTime::from_timestamp(start, 0).unwrap();
                let slots = schedule.next_slots(from, 10);
                prop_assert_eq!(slots.len(), 10);
                for pair in slots.windows(2) {
                    let apart = pair[1] - pair[0];
                    prop_assert!(apart >= TimeDelta::hours(22) && apart <= TimeDelta::hours(26), "{} {}", zone, apart);
                }
            }
        }
    }
}
