//! One task on the board: what it waits for, and what its timetable says of it.

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::shown::ShownTask;
use super::task::Task;
use crate::error::Result;
use crate::schedule::due::Timetable;
use crate::state::ledger::{Ledger, SlotRecord};

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Phase {
    /// What is settled is not known yet, and is asked for at this time.
    Unknown(DateTime<Utc>),
    Resolving,
    Idle,
    /// Its slot waits for its turn.
    Waiting(DateTime<Utc>),
    Running(DateTime<Utc>),
    /// A try of it failed; the next one is at this time. It keeps no place meanwhile.
    Resting(DateTime<Utc>, DateTime<Utc>),
}

pub(super) struct Entry {
    pub(super) timetable: Timetable,
    pub(super) phase: Phase,
    pub(super) settled: DateTime<Utc>,
    /// When to look again.
    pub(super) look: Option<DateTime<Utc>>,
    pub(super) priority: i32,
    pub(super) rpo: Option<Duration>,
    /// The usual time between its slots.
    pub(super) interval: Option<Duration>,
    /// No longer in the policy; goes when its run has ended.
    pub(super) gone: bool,
    /// Tries of the slot that failed, when the first began, and why the last failed.
    pub(super) tries: usize,
    pub(super) began: Option<DateTime<Utc>>,
    pub(super) error: Option<String>,
    /// As it is shown; none: something of it has changed.
    pub(super) shown: Option<ShownTask>,
}

impl Entry {
    /// Up to where its slots are settled is known.
    pub(super) fn is_known(&self) -> bool {
        !matches!(self.phase, Phase::Unknown(_) | Phase::Resolving)
    }

    pub(super) fn show(&self, task: &Task, ledger: &Ledger, now: DateTime<Utc>) -> ShownTask {
        let key = task.key();
        ShownTask {
            next: match self.phase {
                // Its next try.
                Phase::Resting(_, until) => Some(until),
                _ => self.timetable.next_start(self.settled, now),
            },
            running: match self.phase {
                Phase::Running(slot) => Some(slot),
                _ => None,
            },
            waiting: match self.phase {
                Phase::Waiting(slot) | Phase::Resting(slot, _) => Some(slot),
                _ => None,
            },
            failed: match (&self.phase, &self.error) {
                (Phase::Resting(_, until), Some(error)) => Some((self.tries, error.clone(), *until)),
                _ => None,
            },
            known: self.is_known(),
            rpo: self.rpo,
            totals: ledger.totals(&key).unwrap_or_default(),
            trouble: ledger.trouble(&key).ok().flatten().map(|t| t.since),
            key,
        }
    }
}

/// What the ledger knows of a task: up to where it is settled, and what was under way.
pub(super) fn known(ledger: &Ledger, task: &Task) -> Result<(Option<DateTime<Utc>>, Vec<SlotRecord>)> {
    let key = task.key();
    let left = ledger.under_way_of(&key)?;
    Ok((ledger.settled(&key)?, left))
}

/// Asks the timetable, and writes down what it says before anything is done about it.
///
/// # Errors
/// It can not be written down; nothing has changed then.
pub(super) fn decide(ledger: &mut Ledger, task: &Task, entry: &mut Entry, now: DateTime<Utc>) -> Result<()> {
    let key = task.key();
    let decision = entry.timetable.decide(entry.settled, now);
    if decision.stepped_back {
        tracing::warn!(task = key, settled = %entry.settled, "the clock was set back; slots are taken from now on");
    }
    for passed in &decision.passed {
        tracing::warn!(task = key, first = %passed.first, last = %passed.last, count = passed.count, why = passed.why.text(), "slots without a run");
    }
    if decision.settled != entry.settled {
        ledger.settle(&key, decision.settled, &decision.passed, decision.due, now)?;
        entry.settled = decision.settled;
    }
    match decision.due {
        Some(slot) => (entry.phase, entry.look) = (Phase::Waiting(slot), None),
        None => entry.look = decision.next,
    }
    Ok(())
}
