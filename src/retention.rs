//! Which points are kept, and why. Pure: points, rules, zone and now in; a decision with reasons for each point out.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use chrono::{DateTime, Datelike as _, TimeDelta, Timelike as _, Utc};
use chrono_tz::Tz;

use crate::types::RunId;

/// A commit whose recorded finish is more than this off its store time is not trusted to take another's place.
const TRUSTED_OFFSET: TimeDelta = TimeDelta::hours(1);
/// A partial commit that nothing full descends from goes after this.
const PARTIAL_MAX_AGE: TimeDelta = TimeDelta::days(7);
/// So many of the newest full points are never expired.
const NEWEST: usize = 2;

/// `[retention.NAME]`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RetentionRules {
    /// Every point of this span is kept.
    pub window: Option<Duration>,
    /// So many hours with a point keep their newest.
    pub hourly: u32,
    /// Days.
    pub daily: u32,
    /// ISO weeks.
    pub weekly: u32,
    /// Months.
    pub monthly: u32,
    /// Years.
    pub yearly: u32,
}

/// What retention needs to know of a point.
#[derive(Clone, Debug)]
pub struct Point {
    /// The run.
    pub run: RunId,
    /// The instant it restores to.
    pub at: DateTime<Utc>,
    /// Recorded finish (host clock).
    pub finished: DateTime<Utc>,
    /// Store time of the commit.
    pub store_modified: DateTime<Utc>,
    /// A cut of a long run.
    pub partial: bool,
    /// The run it builds on.
    pub parent: Option<RunId>,
    /// Held.
    pub held: bool,
    /// Proven by a drill.
    pub proven: bool,
    /// Buried already.
    pub tombstoned: bool,
    /// Recorded as damaged.
    pub damaged: bool,
}

/// What becomes of a point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The run.
    pub run: RunId,
    /// Why it is kept; empty: it expires.
    pub keep: Vec<String>,
}

impl Decision {
    /// Whether it is kept.
    pub fn kept(&self) -> bool {
        !self.keep.is_empty()
    }
    /// Why.
    pub fn reasons(&self) -> Vec<String> {
        self.keep.clone()
    }
}

/// Decides over all points; the answer is in the order of the points.
///
/// Each rule is applied to several sets of points, the more doubtful ones added one after another, and a point that is
/// chosen in any of them is kept. So a doubtful point is kept or expired by its own recorded time, but takes no other
/// point's place: whatever a rule chooses without it stays chosen. Doubtful, in rising order, are a finish that is more
/// than 1 h off the store's time (where all are so, as in a copied repository, recorded time decides by itself), and a
/// time in the future. In the same way a point that lies under a tombstone or is recorded as damaged, and so can not be
/// offered, takes no place of one that can. Expired points are chosen in none of the sets, so removing them changes no other decision.
pub fn plan(points: &[Point], rules: Option<&RetentionRules>, zone: Tz, now: DateTime<Utc>) -> Vec<Decision> {
    let mut reasons: BTreeMap<RunId, Vec<String>> = BTreeMap::new();
    let mut add = |run: RunId, reason: String| {
        let list = reasons.entry(run).or_default();
        if !list.contains(&reason) {
            list.push(reason);
        }
    };
    let mut full: Vec<&Point> = points.iter().filter(|p| !p.partial).collect();
    full.sort_by_key(|p| std::cmp::Reverse((p.at, p.run)));
    let sets = nested(&full, now);
    for point in &full {
        if point.held {
            add(point.run, "hold".to_owned());
        }
        if rules.is_none() {
            add(point.run, "no retention: everything is kept".to_owned());
        }
    }
    for set in &sets {
        for newest in set.iter().take(NEWEST) {
            add(newest.run, format!("newest {NEWEST}"));
        }
    }
    for set in &sets {
        if let Some(proven) = set.iter().find(|p| p.proven) {
            add(proven.run, "newest proven".to_owned());
        }
    }
    if let Some(rules) = rules {
        if let Some(window) = rules.window {
            // A window beyond all calendars keeps everything.
            let span = TimeDelta::from_std(window).unwrap_or(TimeDelta::MAX);
            for point in full.iter().filter(|p| now - p.at <= span) {
                add(
                    point.run,
                    format!("window {}", humantime::format_duration(window)),
                );
            }
        }
        for (count, name, bucket) in calendar(rules) {
            for set in &sets {
                for (run, label) in places(set, count, |p| bucket(p.at.with_timezone(&zone))) {
                    add(run, format!("{name} {label}"));
                }
            }
        }
    }
    keep_partials(points, now, &mut add);
    points
        .iter()
        .map(|p| Decision {
            run: p.run,
            keep: reasons.get(&p.run).cloned().unwrap_or_default(),
        })
        .collect()
}

/// How far the recorded time of a point is to be doubted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Doubt {
    None,
    OffStoreTime,
    Future,
}

fn doubt(point: &Point, now: DateTime<Utc>) -> Doubt {
    if point.at.max(point.finished) > now + TRUSTED_OFFSET {
        Doubt::Future
    } else if (point.finished - point.store_modified).abs() > TRUSTED_OFFSET {
        Doubt::OffStoreTime
    } else {
        Doubt::None
    }
}

/// The sets that each rule is applied to, the points in the order given, without repetition.
fn nested<'a>(newest_first: &[&'a Point], now: DateTime<Utc>) -> Vec<Vec<&'a Point>> {
    let mut sets: Vec<Vec<&Point>> = Vec::new();
    for (damaged_too, buried_too) in [(false, false), (false, true), (true, false), (true, true)] {
        for most in [Doubt::None, Doubt::OffStoreTime, Doubt::Future] {
            let set: Vec<&Point> = newest_first
                .iter()
                .filter(|p| {
                    (buried_too || !p.tombstoned) && (damaged_too || !p.damaged) && doubt(p, now) <= most
                })
                .copied()
                .collect();
            let same = |other: &Vec<&Point>| {
                other.len() == set.len() && other.iter().zip(&set).all(|(a, b)| a.run == b.run)
            };
            if !sets.iter().any(same) {
                sets.push(set);
            }
        }
    }
    sets
}

type Bucket = fn(DateTime<Tz>) -> String;

fn calendar(rules: &RetentionRules) -> [(u32, &'static str, Bucket); 5] {
    [
        // The offset tells the two hours of one name apart when clocks go back.
        (rules.hourly, "hourly", |t| {
            format!("{} {:02}h{}", t.date_naive(), t.hour(), t.format("%z"))
        }),
        (rules.daily, "daily", |t| t.date_naive().to_string()),
        (rules.weekly, "weekly", |t| {
            format!("{}-W{:02}", t.iso_week().year(), t.iso_week().week())
        }),
        (rules.monthly, "monthly", |t| {
            format!("{}-{:02}", t.year(), t.month())
        }),
        (rules.yearly, "yearly", |t| t.year().to_string()),
    ]
}

/// The newest point of each of the newest `count` buckets that have a point.
fn places(newest_first: &[&Point], count: u32, bucket: impl Fn(&Point) -> String) -> Vec<(RunId, String)> {
    let mut kept = Vec::new();
    let mut seen = BTreeSet::new();
    for point in newest_first {
        let label = bucket(point);
        if seen.contains(&label) {
            continue;
        }
        if seen.len() >= count as usize {
            break;
        }
        seen.insert(label.clone());
        kept.push((point.run, label));
    }
    kept
}

/// Partial commits go when a full one descends from them, or after a week.
fn keep_partials(points: &[Point], now: DateTime<Utc>, add: &mut impl FnMut(RunId, String)) {
    let parents: BTreeMap<RunId, Option<RunId>> = points.iter().map(|p| (p.run, p.parent)).collect();
    let mut superseded = BTreeSet::new();
    for point in points.iter().filter(|p| !p.partial) {
        let mut ancestor = point.parent;
        while let Some(run) = ancestor {
            if !superseded.insert(run) {
                break;
            }
            ancestor = parents.get(&run).copied().flatten();
        }
    }
    for point in points.iter().filter(|p| p.partial) {
        if point.held {
            add(point.run, "hold".to_owned());
        }
        if !superseded.contains(&point.run) && now - point.store_modified <= PARTIAL_MAX_AGE {
            add(point.run, "a cut that the next run may go on from".to_owned());
        }
    }
}

#[cfg(test)]
mod rules_tests;
#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn point(n: u64, at: &str) -> Point {
        let at: DateTime<Utc> = at.parse().unwrap();
        Point {
            run: RunId::new(ulid::Ulid::from_parts(n, 0)),
            at,
            finished: at,
            store_modified: at,
            partial: false,
            parent: None,
            held: false,
            proven: false,
            tombstoned: false,
            damaged: false,
        }
    }

    fn kept(points: &[Point], rules: RetentionRules, zone: Tz, now: &str) -> Vec<String> {
        let decisions = plan(points, Some(&rules), zone, now.parse().unwrap());
        let at = |run| points.iter().find(|p| p.run == run).unwrap().at.to_rfc3339();
        decisions
            .iter()
            .filter(|d| d.kept())
            .map(|d| format!("{} {}", at(d.run), d.keep.join(", ")))
            .collect()
    }

    fn every(hours: i64, count: i64, from: &str) -> Vec<Point> {
        let from: DateTime<Utc> = from.parse().unwrap();
        (0..count)
            .map(|n| point(n as u64, &(from + TimeDelta::hours(hours * n)).to_rfc3339()))
            .collect()
    }

    #[test]
    fn days_are_those_of_the_zone() {
        // 23:30 UTC is the next day in Berlin.
        let points = [
            point(1, "2026-11-20T22:30:00Z"),
            point(2, "2026-11-20T23:30:00Z"),
            point(3, "2026-11-21T10:00:00Z"),
            point(4, "2026-11-21T11:00:00Z"),
        ];
        let rules = RetentionRules {
            daily: 2,
            ..RetentionRules::default()
        };
        assert_eq!(
            kept(&points, rules, Tz::Europe__Berlin, "2026-11-21T12:00:00Z"),
            [
                "2026-11-20T22:30:00+00:00 daily 2026-11-20",
                "2026-11-21T10:00:00+00:00 newest 2",
                "2026-11-21T11:00:00+00:00 newest 2, daily 2026-11-21"
            ]
        );
        assert_eq!(
            kept(&points, rules, Tz::UTC, "2026-11-21T12:00:00Z"),
            [
                "2026-11-20T23:30:00+00:00 daily 2026-11-20",
                "2026-11-21T10:00:00+00:00 newest 2",
                "2026-11-21T11:00:00+00:00 newest 2, daily 2026-11-21"
            ]
        );
    }

    #[test]
    fn weeks_are_iso_weeks_and_the_repeated_hour_is_two_hours() {
        // 2027-01-01 is a Friday: it belongs to week 53 of 2026.
        let points = every(24, 12, "2026-12-25T10:00:00Z");
        let rules = RetentionRules {
            weekly: 3,
            yearly: 2,
            ..RetentionRules::default()
        };
        let list = kept(&points, rules, Tz::UTC, "2027-01-06T00:00:00Z").join("\n");
        for wanted in [
            "2026-12-27T10:00:00+00:00 weekly 2026-W52",
            "2026-12-31T10:00:00+00:00 yearly 2026",
            "2027-01-03T10:00:00+00:00 weekly 2026-W53",
            "weekly 2027-W01, yearly 2027",
        ] {
            assert!(list.contains(wanted), "{wanted}\n{list}");
        }
        let night = [
            point(1, "2026-10-25T00:10:00Z"),
            point(2, "2026-10-25T00:50:00Z"),
            point(3, "2026-10-25T01:10:00Z"),
            point(4, "2026-10-25T01:50:00Z"),
        ];
        let rules = RetentionRules {
            hourly: 2,
            ..RetentionRules::default()
        };
        let list = kept(&night, rules, Tz::Europe__Berlin, "2026-10-25T02:00:00Z").join("\n");
        assert!(
            list.contains("hourly 2026-10-25 02h+0200") && list.contains("hourly 2026-10-25 02h+0100"),
            "{list}"
        );
    }

    #[test]
    fn the_window_keeps_every_point_and_reasons_add_up() {
        let points = every(1, 72, "2026-11-20T00:00:00Z");
        let rules = RetentionRules {
            window: Some(Duration::from_secs(86_400)),
            daily: 3,
            ..RetentionRules::default()
        };
        let list = kept(&points, rules, Tz::UTC, "2026-11-22T23:30:00Z");
        assert_eq!(list.len(), 24 + 2, "a day, and the newest of the two days before");
        assert!(
            list.last()
                .unwrap()
                .ends_with("newest 2, window 1day, daily 2026-11-22"),
            "{list:?}"
        );
    }

    #[test]
    fn partial_commits_go_when_superseded_or_old() {
        let now = "2026-11-20T00:00:00Z";
        let mut points = vec![
            point(1, "2026-11-19T00:00:00Z"),
            point(2, "2026-11-19T01:00:00Z"),
            point(3, "2026-11-19T02:00:00Z"),
            point(4, "2026-11-01T00:00:00Z"),
        ];
        for n in [0, 1, 3] {
            points[n].partial = true;
        }
        points[2].parent = Some(points[1].run);
        points[1].parent = None;
        let decisions = plan(&points, None, Tz::UTC, now.parse().unwrap());
        let kept: Vec<bool> = decisions.iter().map(Decision::kept).collect();
        assert_eq!(kept, [true, false, true, false]);
    }

    fn some_points() -> impl Strategy<Value = Vec<Point>> {
        proptest::collection::vec((0i64..20_000, any::<bool>(), 0u8..10), 0..60).prop_map(|all| {
            let mut points: Vec<Point> = Vec::new();
            for (n, (minutes, held, luck)) in all.into_iter().enumerate() {
                let at = DateTime::from_timestamp(1_790_000_000 + minutes * 600, 0).unwrap();
                let mut p = point(n as u64, &at.to_rfc3339());
                p.held = held && luck == 0;
                p.proven = luck == 1;
                points.push(p);
            }
            points
        })
    }

    fn some_rules() -> impl Strategy<Value = RetentionRules> {
        (
            0u32..4,
            0u32..5,
            0u32..4,
            0u32..4,
            0u32..3,
            proptest::option::of(0u64..10),
        )
            .prop_map(|(h, d, w, m, y, days)| RetentionRules {
                window: days.map(|n| Duration::from_secs(n * 86_400)),
                hourly: h,
                daily: d,
                weekly: w,
                monthly: m,
                yearly: y,
            })
    }

    fn kept_runs(points: &[Point], rules: &RetentionRules) -> BTreeSet<RunId> {
        let now = DateTime::from_timestamp(1_802_100_000, 0).unwrap();
        plan(points, Some(rules), Tz::Europe__Berlin, now)
            .into_iter()
            .filter(Decision::kept)
            .map(|d| d.run)
            .collect()
    }

    proptest! {
        #[test]
        fn two_are_always_left_and_held_and_proven_ones_stay(points in some_points(), rules in some_rules()) {
            let kept = kept_runs(&points, &rules);
            prop_assert!(kept.len() >= points.len().min(2));
            let newest = points.iter().max_by_key(|p| (p.at, p.run));
            prop_assert!(newest.is_none_or(|p| kept.contains(&p.run)));
            prop_assert!(points.iter().filter(|p| p.held).all(|p| kept.contains(&p.run)));
            let proven = points.iter().filter(|p| p.proven).max_by_key(|p| (p.at, p.run));
            prop_assert!(proven.is_none_or(|p| kept.contains(&p.run)));
        }

        #[test]
        fn expiring_twice_expires_nothing_more(points in some_points(), rules in some_rules()) {
            let first = kept_runs(&points, &rules);
            let left: Vec<Point> = points.iter().filter(|p| first.contains(&p.run)).cloned().collect();
            prop_assert_eq!(kept_runs(&left, &rules), first);
        }

        #[test]
        fn the_order_of_the_points_does_not_matter(points in some_points(), rules in some_rules()) {
            let mut reversed = points.clone();
            reversed.reverse();
            prop_assert_eq!(kept_runs(&points, &rules), kept_runs(&reversed, &rules));
        }

        #[test]
        fn forged_points_push_nobody_out(
            points in some_points(), rules in some_rules(),
            forged in proptest::collection::vec((0i64..40_000, 7_200i64..1_000_000), 1..20),
        ) {
            let before = kept_runs(&points, &rules);
            let mut with = points.clone();
            for (n, (minutes, off)) in forged.into_iter().enumerate() {
                let at = DateTime::from_timestamp(1_790_000_000 + minutes * 600, 0).unwrap();
                let mut p = point(1000 + n as u64, &at.to_rfc3339());
                // The store says when it was really written.
                p.store_modified = at - TimeDelta::seconds(off);
                with.push(p);
            }
            let after = kept_runs(&with, &rules);
            if !points.is_empty() {
                prop_assert!(before.is_subset(&after), "{:?}", before.difference(&after));
            }
        }
    }
}
