//! Points and a target in, a restore plan or a refusal out. Pure.
//!
//! (Points only, so far: with a log, a plan is a point and a stretch of log.)

use chrono::{DateTime, TimeDelta, Utc};

use crate::types::RunId;

/// A point that may be chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The run.
    pub run: RunId,
    /// The instant it restores to, on the source's clock.
    pub at: DateTime<Utc>,
    /// When it was taken, on a clock that is right: which one is the latest.
    pub taken: DateTime<Utc>,
    /// Why it can not be restored, if that is known.
    pub damaged: Option<String>,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// The newest point.
    Latest,
    /// The newest point at or before an instant.
    At(DateTime<Utc>),
    /// This point.
    Point(RunId),
}

/// A plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The point.
    pub run: RunId,
    /// Its instant.
    pub at: DateTime<Utc>,
    /// How much later the instant asked for is.
    pub gap: TimeDelta,
    /// Nearer points that are damaged, newest first, with the reason.
    pub passed_over: Vec<(RunId, String)>,
}

/// Why there is no plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// There is no point at all.
    NoPoints,
    /// The instant lies in the future.
    Future,
    /// The instant is before the first point that can be restored; that one.
    BeforeFirst(Candidate),
    /// No such point.
    UnknownPoint,
    /// The point, or every point in question, is damaged: the reason, and the nearest that is not.
    Damaged(String, Option<Candidate>),
}

/// Chooses a point.
///
/// # Errors
/// A refusal, which names the nearest instant that can be restored.
pub fn plan(candidates: &[Candidate], goal: Goal, now: DateTime<Utc>) -> Result<Plan, Refusal> {
    if candidates.is_empty() {
        return Err(Refusal::NoPoints);
    }
    let mut newest_first: Vec<&Candidate> = candidates.iter().collect();
    // A clock that was ahead makes no point the latest.
    newest_first.sort_by_key(|c| {
        let when = if goal == Goal::Latest { c.taken } else { c.at };
        std::cmp::Reverse((when, c.run))
    });
    let limit = match goal {
        Goal::Latest => DateTime::<Utc>::MAX_UTC,
        Goal::At(instant) if instant > now => return Err(Refusal::Future),
        Goal::At(instant) => instant,
        Goal::Point(run) => return plan_point(&newest_first, run),
    };
    let mut passed_over = Vec::new();
    for candidate in newest_first.iter().filter(|c| c.at <= limit) {
        match &candidate.damaged {
            Some(reason) => passed_over.push((candidate.run, reason.clone())),
            None => {
                let gap = if goal == Goal::Latest {
                    TimeDelta::zero()
                } else {
                    limit - candidate.at
                };
                return Ok(Plan {
                    run: candidate.run,
                    at: candidate.at,
                    gap,
                    passed_over,
                });
            }
        }
    }
    let first_intact = newest_first.iter().rev().find(|c| c.damaged.is_none());
    match (passed_over.into_iter().next(), first_intact) {
        (Some((_, reason)), nearest) => Err(Refusal::Damaged(reason, nearest.map(|c| (*c).clone()))),
        (None, Some(first)) => Err(Refusal::BeforeFirst((*first).clone())),
        (None, None) => Err(Refusal::Damaged("every recovery point is damaged".into(), None)),
    }
}

fn plan_point(newest_first: &[&Candidate], run: RunId) -> Result<Plan, Refusal> {
    let point = newest_first
        .iter()
        .find(|c| c.run == run)
        .ok_or(Refusal::UnknownPoint)?;
    match &point.damaged {
        None => Ok(Plan {
            run,
            at: point.at,
            gap: TimeDelta::zero(),
            passed_over: Vec::new(),
        }),
        Some(reason) => {
            let nearest = newest_first
                .iter()
                .filter(|c| c.damaged.is_none())
                .min_by_key(|c| (c.at - point.at).abs())
                .map(|c| (*c).clone());
            Err(Refusal::Damaged(reason.clone(), nearest))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn candidate(n: u64, at: i64, damaged: bool) -> Candidate {
        Candidate {
            run: RunId::new(ulid::Ulid::from_parts(n, 0)),
            at: DateTime::from_timestamp(at, 0).unwrap(),
            taken: DateTime::from_timestamp(at, 0).unwrap(),
            damaged: damaged.then(|| "pack gone".to_owned()),
        }
    }
    fn instant(at: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(at, 0).unwrap()
    }

    #[test]
    fn takes_the_newest_at_or_before() {
        let points = [
            candidate(1, 10, false),
            candidate(2, 20, false),
            candidate(3, 30, false),
        ];
        let plan_at = |t| plan(&points, Goal::At(instant(t)), instant(100)).unwrap();
        assert_eq!(plan_at(20).run, points[1].run);
        assert_eq!(plan_at(29).run, points[1].run);
        assert_eq!(plan_at(29).gap, TimeDelta::seconds(9));
        assert_eq!(
            plan(&points, Goal::At(instant(9)), instant(100)),
            Err(Refusal::BeforeFirst(points[0].clone()))
        );
        assert_eq!(
            plan(&points, Goal::At(instant(101)), instant(100)),
            Err(Refusal::Future)
        );
        assert_eq!(plan(&[], Goal::Latest, instant(100)), Err(Refusal::NoPoints));
    }

    #[test]
    fn a_point_of_a_clock_that_was_ahead_is_not_the_latest() {
        let mut ahead = candidate(1, 5000, false);
        ahead.taken = instant(10);
        let points = [ahead, candidate(2, 20, false), candidate(3, 30, false)];
        let latest = plan(&points, Goal::Latest, instant(100)).unwrap();
        assert_eq!(latest.run, points[2].run);
        let later = plan(&points, Goal::At(instant(6000)), instant(6000)).unwrap();
        assert_eq!(later.run, points[0].run, "by its own time it is found");
    }

    #[test]
    fn a_damaged_point_is_never_chosen_and_is_told() {
        let points = [candidate(1, 10, false), candidate(2, 20, true)];
        let plan_20 = plan(&points, Goal::Latest, instant(100)).unwrap();
        assert_eq!(plan_20.run, points[0].run);
        assert_eq!(plan_20.passed_over.len(), 1);
        assert!(matches!(
            plan(&points, Goal::Point(points[1].run), instant(100)),
            Err(Refusal::Damaged(_, Some(_)))
        ));
    }

    proptest! {
        #[test]
        fn a_plan_is_at_or_before_and_nothing_intact_lies_between(
            points in proptest::collection::vec((0i64..50, any::<bool>()), 0..12), t in 0i64..60,
        ) {
            let candidates: Vec<_> =
                points.iter().enumerate().map(|(i, (at, bad))| candidate(i as u64, *at, *bad)).collect();
            let intact_before = candidates.iter().filter(|c| c.damaged.is_none() && c.at <= instant(t)).map(|c| c.at).max();
            match plan(&candidates, Goal::At(instant(t)), instant(100)) {
                Ok(plan) => prop_assert_eq!(Some(plan.at), intact_before),
                Err(_) => prop_assert_eq!(None, intact_before),
            }
        }
    }
}
