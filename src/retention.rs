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
/// time in the future. In the same way a point that lies under a tombstone, and so can not be offered, takes no place
/// of one that can. Expired points are chosen in none of the sets, so removing them changes no other decision.
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
    for buried_too in [false, true] {
        for most in [Doubt::None, Doubt::OffStoreTime, Doubt::Future] {
            let set: Vec<&Point> = newest_first
                .iter()
                .filter(|p| (buried_too || !p.tombstoned) && doubt(p, now) <= most)
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
mod tests;
