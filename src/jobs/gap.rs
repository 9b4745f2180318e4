//! How far before the instant asked for a recovery point may be.

use std::time::Duration;

use chrono::TimeDelta;

use super::Session;
use super::restore::{Aim, Request};
use crate::error::{Error, Kind, Result};
use crate::recovery::Plan;
use crate::schedule::Schedule;
use crate::types::{SourceName, rfc3339};

/// Refuses a gap that is over the limit and that nobody accepted.
///
/// # Errors
/// [`Kind::Unreachable`]: names the nearest instant, and how to accept it.
pub(super) fn check_gap(session: &Session, request: &Request, plan: &Plan) -> Result<()> {
    if request.gap_accepted || plan.gap <= TimeDelta::zero() {
        return Ok(());
    }
    let Some(limit) = request.max_gap.or_else(|| usual_gap(session, &request.source)) else {
        return Ok(());
    };
    let limit = TimeDelta::from_std(limit).unwrap_or(TimeDelta::MAX);
    if plan.gap <= limit {
        return Ok(());
    }
    let rule = match (request.max_gap, session.policy.sources.get(&request.source)) {
        (Some(_), _) => "that --max-gap allows",
        (None, Some(source)) if source.objective.rpo.is_some() => "of the source's objective (rpo)",
        _ => "of twice its schedule's interval",
    };
    Err(Error::new(
        Kind::Unreachable,
        format!(
            "the nearest recovery point of {} is {} before the instant asked for, more than the {} {rule}",
            request.source,
            in_words(plan.gap),
            in_words(limit)
        ),
    )
    .hint(format!(
        "The nearest that can be restored is {} (point {}): accept the gap with --max-gap {} or --yes{}.",
        rfc3339(plan.at),
        plan.run,
        roomy(plan.gap),
        match request.aim {
            Aim::StoreInstant(_) => String::new(),
            _ => format!(", or ask for this very point with --at-point {}", plan.run),
        }
    )))
}

/// A gap for `--max-gap` that still allows a relative instant when the command is given some minutes later.
fn roomy(gap: TimeDelta) -> String {
    let seconds = gap.num_seconds().unsigned_abs();
    let wanted = seconds + (seconds / 10).max(600);
    let step = match wanted {
        0..3600 => 300,
        3600..86_400 => 3600,
        _ => 86_400,
    };
    let rounded = Duration::from_secs(wanted.div_ceil(step) * step);
    humantime::format_duration(rounded).to_string().replace(' ', "")
}

/// Says that nothing was there to hold the gap against.
pub(super) fn without_limit(session: &Session, request: &Request, plan: &Plan) -> Option<String> {
    let asked = request.max_gap.is_some() || request.gap_accepted || plan.gap <= TimeDelta::zero();
    (!asked && usual_gap(session, &request.source).is_none()).then(|| {
        format!(
            "no objective (rpo) is set and no schedule: any gap is accepted, here {}",
            in_words(plan.gap)
        )
    })
}

/// `objective.rpo`, else twice the schedule's interval; none without either.
fn usual_gap(session: &Session, source: &SourceName) -> Option<Duration> {
    let policy = session.policy.sources.get(source)?;
    policy.objective.rpo.or_else(|| {
        let schedule = Schedule::parse(policy.schedule.as_deref()?, policy.timezone).ok()?;
        schedule.usual_interval(session.world.clock.now()).map(|d| d * 2)
    })
}

fn in_words(gap: TimeDelta) -> String {
    let seconds = gap.num_seconds().unsigned_abs();
    humantime::format_duration(Duration::from_secs(seconds)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_that_is_hinted_still_serves_minutes_later() {
        for seconds in [0, 1, 59, 600, 2999, 3600, 7000, 86_399, 90_000, 10_000_000] {
            let hinted = humantime::parse_duration(&roomy(TimeDelta::seconds(seconds))).unwrap();
            assert!(
                hinted.as_secs() >= seconds.unsigned_abs() + 600,
                "{seconds}: {hinted:?}"
            );
        }
        assert_eq!(roomy(TimeDelta::seconds(12)), "15m");
        assert_eq!(roomy(TimeDelta::hours(5)), "6h");
        assert_eq!(roomy(TimeDelta::days(3)), "4days");
    }
}
