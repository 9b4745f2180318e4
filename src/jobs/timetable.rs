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

/// So long a slot of prune or verify is worth being made good, and of a drill.
const MAX_AGE: [Duration; 2] = [Duration::from_secs(24 * 3600), Duration::from_secs(7 * 24 * 3600)];

/// The timetables of `prune`, `verify` and `drill NAME`, by these names; what has no schedule has none, and a policy that was
/// read has none that could not be.
pub fn of_tasks(policy: &Policy) -> Vec<(String, Timetable)> {
    let prune = policy.prune.as_ref().and_then(|p| p.schedule.as_ref());
    let verify = policy.verify.schedule.as_ref();
    let own = [("prune".to_owned(), prune), ("verify".to_owned(), verify)].map(|(n, s)| (n, s, MAX_AGE[0]));
    let drills = policy.drills.iter();
    let drills = drills.map(|(name, drill)| (format!("{DRILL}{name}"), drill.schedule.as_ref(), MAX_AGE[1]));
    let timetable = |(name, text, max_age): (String, Option<&String>, Duration)| {
        let rules = Rules {
            jitter: Duration::ZERO,
            catch_up: true,
            max_age,
            blackout: Vec::new(),
        };
        let schedule = Schedule::parse(text?, policy.timezone).ok()?;
        let timetable = Timetable::new(&name, schedule, rules);
        Some((name, timetable))
    };
    own.into_iter().chain(drills).filter_map(timetable).collect()
}

/// What the name of a drill's task begins with.
pub const DRILL: &str = "drill ";
