//! What drills measured: how long restores took, and how long one of so many bytes will take. Pure.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;

/// So many of the newest drills are looked at: what was measured years ago says little of today's host.
const NEWEST: usize = 5;

/// A restore that a drill timed.
#[derive(Clone, Debug, PartialEq)]
pub struct Timed {
    /// `[drill.NAME]`
    pub drill: String,
    /// What was restored, bytes.
    pub bytes: u64,
    /// How long it took, its comparison with the facts included.
    pub seconds: f64,
}

impl Timed {
    /// What a report says of a source; none: nothing of it was restored, or so little that it tells no rate.
    pub fn read(report: &Value, of_source: &Value) -> Option<Self> {
        let timed = Self {
            drill: report["drill"].as_str()?.to_owned(),
            bytes: of_source["bytes"].as_u64()?,
            seconds: of_source["rto_seconds"].as_f64()?,
        };
        (timed.bytes > 0 && timed.seconds > 0.0 && timed.seconds.is_finite()).then_some(timed)
    }

    fn seconds_for(&self, bytes: u64) -> f64 {
        self.seconds * (bytes as f64 / self.bytes as f64)
    }
}

/// How long a restore will take, and which drill says so.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Prediction {
    /// How long.
    #[serde(skip)]
    pub seconds: f64,
    /// `[drill.NAME]`
    pub drill: String,
    /// When it began.
    pub at: DateTime<Utc>,
}

/// How long a restore of so many bytes takes at the rates that drills measured: the middle one of the newest, and the slower
/// one where there are two in the middle, so that neither a slow day nor a fast one decides alone.
pub fn predict<'a>(
    drills: impl IntoIterator<Item = (DateTime<Utc>, &'a Timed)>,
    bytes: u64,
) -> Option<Prediction> {
    let mut drills: Vec<_> = drills.into_iter().collect();
    drills.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
    drills.truncate(NEWEST);
    drills.sort_by(|(_, a), (_, b)| b.seconds_for(bytes).total_cmp(&a.seconds_for(bytes)));
    let (at, timed) = *drills.get(drills.len().saturating_sub(1) / 2)?;
    Some(Prediction {
        seconds: timed.seconds_for(bytes),
        drill: timed.drill.clone(),
        at,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn at(day: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(day * 86_400, 0).unwrap()
    }

    fn timed(bytes: u64, seconds: f64) -> Timed {
        Timed {
            drill: "weekly".to_owned(),
            bytes,
            seconds,
        }
    }

    fn told(drills: &[(i64, Timed)], bytes: u64) -> Option<(f64, DateTime<Utc>)> {
        predict(drills.iter().map(|(day, timed)| (at(*day), timed)), bytes).map(|p| (p.seconds, p.at))
    }

    #[test]
    fn the_middle_rate_of_the_newest_drills_decides() {
        assert_eq!(told(&[], 100), None);
        // Twice the bytes take twice the time; nothing takes none.
        let one = [(1, timed(100, 10.0))];
        assert_eq!(told(&one, 200), Some((20.0, at(1))));
        assert_eq!(told(&one, 0), Some((0.0, at(1))));
        // Of two the slower, of three the middle one, whatever was restored.
        let mut drills = vec![(1, timed(100, 10.0)), (2, timed(1000, 50.0))];
        assert_eq!(told(&drills, 100), Some((10.0, at(1))));
        drills.push((3, timed(100, 700.0)));
        assert_eq!(told(&drills, 100), Some((10.0, at(1))));
        // What is older than the newest five says nothing, in whatever order they are.
        let mut drills: Vec<_> = (1..=20).map(|day| (day, timed(100, 500.0))).collect();
        drills.extend((21..=25).map(|day| (day, timed(100, day as f64))));
        drills.reverse();
        assert_eq!(told(&drills, 100), Some((23.0, at(23))));
    }

    #[test]
    fn only_a_restore_that_tells_a_rate_is_read() {
        let report = json!({"drill": "weekly"});
        let read = |of_source: Value| Timed::read(&report, &of_source);
        assert_eq!(
            read(json!({"bytes": 100, "rto_seconds": 2.5})),
            Some(timed(100, 2.5))
        );
        for no in [
            json!({}),
            json!({"bytes": 100, "rto_seconds": null}),
            json!({"bytes": 0, "rto_seconds": 1.0}),
            json!({"bytes": 100, "rto_seconds": 0.0}),
            json!({"bytes": -5, "rto_seconds": 1.0}),
            json!({"bytes": 100, "rto_seconds": -1.0}),
        ] {
            assert_eq!(read(no.clone()), None, "{no}");
        }
        assert_eq!(
            Timed::read(&json!({}), &json!({"bytes": 1, "rto_seconds": 1.0})),
            None
        );
    }

    proptest! {
        #[test]
        fn a_prediction_lies_between_the_rates_and_grows_with_the_bytes(
            drills in prop::collection::vec((0i64..1000, 1u64..1 << 50, 0.001f64..1e7), 1..9),
            bytes in 0u64..1 << 50,
        ) {
            let drills: Vec<_> = drills.into_iter().map(|(d, b, s)| (d, timed(b, s))).collect();
            let (seconds, _) = told(&drills, bytes).unwrap();
            let each: Vec<f64> = drills.iter().map(|(_, t)| t.seconds_for(bytes)).collect();
            let least = each.iter().copied().fold(f64::MAX, f64::min);
            let most = each.iter().copied().fold(0.0, f64::max);
            prop_assert!(least <= seconds && seconds <= most);
            prop_assert!(told(&drills, bytes * 2).unwrap().0 >= seconds);
        }
    }
}
