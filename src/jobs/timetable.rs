//! The timetable of a source, as its policy has it.

use std::time::Duration;

use crate::error::Result;
use crate::policy::{CatchUp, Policy, SourcePolicy};
use crate::schedule::Schedule;
use crate::schedule::due::{Blackout, Rules, Timetable};
use crate::types::SourceName;

/// Of a source; none: it has no schedule.
///
/// # Errors
/// Not a schedule.
pub fn of_source(name: &SourceName, policy: &SourcePolicy) -> Result<Option<Timetable>> {
    let Some(text) = &policy.schedule else {
        return Ok(None);
    };
    let rules = Rules {
        jitter: policy.jitter,
        catch_up: policy.catch_up == CatchUp::Once,
        max_age: policy.max_age,
        blackout: policy
            .blackout
            .iter()
            .filter_map(|text| Blackout::parse(text))
            .collect(),
    };
    let schedule = Schedule::parse(text, policy.timezone)?;
    Ok(Some(Timetable::new(name.as_str(), schedule, rules)))
}

/// The timetables of `prune` and `verify`, by their name; those without a schedule have none, and a policy that was read has
/// none that could not be.
pub fn of_tasks(policy: &Policy) -> Vec<(&'static str, Timetable)> {
    let prune = policy.prune.as_ref().and_then(|p| p.schedule.as_ref());
    let named = [("prune", prune), ("verify", policy.verify.schedule.as_ref())];
    let timetable = |(name, text): (&'static str, Option<&String>)| {
        let rules = Rules {
            jitter: Duration::ZERO,
            catch_up: true,
            max_age: Duration::from_secs(24 * 3600),
            blackout: Vec::new(),
        };
        let schedule = Schedule::parse(text?, policy.timezone).ok()?;
        Some((name, Timetable::new(name, schedule, rules)))
    };
    named.into_iter().filter_map(timetable).collect()
}
