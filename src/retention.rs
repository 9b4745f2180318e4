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
pub fn plan(points: &[Point], rules: Option<&RetentionRules>, zone: Tz, now: DateTime<Utc>) -> Vec<Decision> {
    let mut reasons: BTreeMap<RunId, Vec<String>> = points.iter().map(|p| (p.run, Vec::new())).collect();
    let mut add = |run: RunId, reason: String| {
        if let Some(list) = reasons.get_mut(&run) {
            list.push(reason);
        }
    };
    let mut full: Vec<&Point> = points.iter().filter(|p| !p.partial).collect();
    full.sort_by_key(|p| std::cmp::Reverse((p.at, p.run)));
    // Where no point can be trusted, as in a copied repository, recorded time decides.
    let trusts_any = full.iter().any(|p| is_trusted(p, now));
    let trusted = |p: &Point| !trusts_any || is_trusted(p, now);
    for point in &full {
        if point.held {
            add(point.run, "hold".to_owned());
        }
        if rules.is_none() {
            add(point.run, "no retention: everything is kept".to_owned());
        }
    }
    // A point that is not trusted may stand beside the newest, but takes nobody's place.
    for newest in places(&full, NEWEST, &trusted, |_| None) {
        add(newest.0, format!("newest {NEWEST}"));
    }
    if let Some(proven) = full.iter().find(|p| p.proven) {
        add(proven.run, "newest proven".to_owned());
    }
    if let Some(rules) = rules {
        if let Some(window) = rules.window.and_then(|w| TimeDelta::from_std(w).ok()) {
            for point in full.iter().filter(|p| now - p.at <= window) {
                add(
                    point.run,
                    format!(
                        "window {}",
                        humantime::format_duration(rules.window.unwrap_or_default())
                    ),
                );
            }
        }
        for (count, name, bucket) in calendar(rules) {
            for (run, label) in places(&full, count as usize, &trusted, |p| {
                Some(bucket(p.at.with_timezone(&zone)))
            }) {
                add(run, format!("{name} {label}"));
            }
        }
    }
    keep_partials(points, now, &mut add);
    points
        .iter()
        .map(|p| Decision {
            run: p.run,
            keep: reasons.remove(&p.run).unwrap_or_default(),
        })
        .collect()
}

fn is_trusted(point: &Point, now: DateTime<Utc>) -> bool {
    (point.finished - point.store_modified).abs() <= TRUSTED_OFFSET && point.at <= now + TRUSTED_OFFSET
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

/// The newest point of each of the newest `count` buckets that trusted points fill (without buckets: the newest `count`
/// points). A point that is not trusted is kept beside a trusted one of its bucket, within the same span.
fn places<F>(
    newest_first: &[&Point],
    count: usize,
    trusted: &impl Fn(&Point) -> bool,
    bucket: F,
) -> Vec<(RunId, String)>
where
    F: Fn(&Point) -> Option<String>,
{
    let mut kept = Vec::new();
    for wanted in [true, false] {
        let mut seen = BTreeSet::new();
        for point in newest_first.iter().filter(|p| trusted(p) == wanted) {
            let label = bucket(point);
            let key = label.clone().unwrap_or_else(|| point.run.to_string());
            if seen.contains(&key) {
                continue;
            }
            if seen.len() == count {
                break;
            }
            seen.insert(key);
            kept.push((point.run, label.unwrap_or_default()));
        }
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
