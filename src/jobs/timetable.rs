//! The timetable of a source, as its policy has it.

use crate::error::Result;
use crate::policy::{CatchUp, SourcePolicy};
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
