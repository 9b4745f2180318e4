//! What the board tells people: objectives that are missed, sources that say nothing, the notices that are owed.

use std::collections::BTreeSet;

use chrono::{DateTime, TimeDelta, Utc};

use super::{Board, Step};
use crate::daemon::entry::Phase;
use crate::daemon::task::Task;
use crate::daemon::tell;
use crate::error::{Kind, Result};
use crate::state::ledger::notices::Owed;
use crate::state::ledger::points::FUTURE;

/// A source is not quiet before so long, however often it runs.
const QUIET_LEAST: TimeDelta = TimeDelta::hours(1);
/// Notices that are delivered at once.
const DELIVERED_AT_ONCE: usize = 16;

impl Board {
    /// Sources whose newest point is older than their objective, and those of which nothing is heard.
    pub(super) fn objectives(&mut self, now: DateTime<Utc>) {
        for (task, entry) in &mut self.entries {
            let Task::Run(source) = task else { continue };
            if entry.gone {
                continue;
            }
            let running = matches!(entry.phase, Phase::Running(_));
            let told = self.ledger.totals(&task.key()).and_then(|totals| {
                let points = self.points.of(source).copied().unwrap_or_default();
                // Before the repository was asked, what this daemon did is all that is known.
                let newest = points.newest;
                let (since, never) = if points.first_looked.is_some() {
                    (newest.or(points.first_looked), newest.is_none())
                } else {
                    (totals.last_done, false)
                };
                if let Some(rpo) = entry.rpo.and_then(|rpo| TimeDelta::from_std(rpo).ok()) {
                    let age = (since.map(|at| now - at), never);
                    tell::objective(&mut self.ledger, &self.policy, task, age, rpo, now)?;
                }
                // What was written down before the clock was set back says nothing of now.
                let heard = totals.last_ended.max(points.first_looked).min(Some(now));
                let patience = entry.interval.and_then(|i| TimeDelta::from_std(i * 2).ok());
                if let (Some(heard), Some(patience)) = (heard, patience) {
                    let silence = (now - heard, patience.max(QUIET_LEAST));
                    tell::quiet(&mut self.ledger, &self.policy, task, silence, running, now)?;
                }
                Ok(())
            });
            if let Err(e) = told {
                tracing::error!(task = task.key(), error = %e.chain(), "whether an objective is missed could not be written down");
            }
        }
    }

    /// Until when nothing starts, since the clock was set back and those slots were run already.
    pub(super) fn clock_set_back(&mut self, now: DateTime<Utc>) {
        let ahead = self.entries.values().filter(|e| !e.gone && e.is_known());
        // Clocks are corrected by seconds; what began is over when it is over.
        let least = match self.shown.held_until {
            Some(_) => TimeDelta::zero(),
            None => FUTURE,
        };
        let until = ahead.map(|e| e.settled).max();
        let until = until.filter(|until| *until > now + least);
        self.changed |= until != self.shown.held_until;
        self.shown.held_until = until;
        if let Err(e) = tell::clock(&mut self.ledger, &self.policy, until, now) {
            tracing::error!(error = %e.chain(), "a notice could not be written down");
        }
    }

    /// Notices whose time has come.
    pub(super) fn notices(&mut self, now: DateTime<Utc>) -> Vec<Step> {
        let owed = match self.ledger.owed(now) {
            Ok(owed) => owed,
            Err(e) => {
                tracing::error!(error = %e.chain(), "the notices that are owed can not be read");
                return Vec::new();
            }
        };
        let mut steps = Vec::new();
        for owed in owed {
            let same = |busy: &Owed| (&busy.to, &busy.place) == (&owed.to, &owed.place);
            let free = self.delivering.len() < DELIVERED_AT_ONCE;
            if free && !self.delivering.values().any(same) {
                self.delivering.insert(owed.id, owed.clone());
                steps.push(Step::Deliver(owed));
            }
        }
        steps
    }

    /// A notice was taken, is owed to nobody any more (`None`), or was not taken.
    pub fn delivered(&mut self, owed: &Owed, result: Result<Option<()>>, now: DateTime<Utc>) {
        self.changed = true;
        self.look_around = now;
        // One of a ledger that was put aside: its number is another one's now.
        if self.delivering.get(&owed.id) != Some(owed) {
            return;
        }
        self.delivering.remove(&owed.id);
        let written = match result {
            Ok(_) => self.ledger.paid(owed.id),
            Err(e) => {
                tracing::warn!(to = owed.to, place = owed.place, tries = owed.tries + 1, error = %e.chain(), "a notice was not taken");
                let refused = e.kind() == Kind::Usage;
                self.ledger.not_taken(owed, refused, now).map(|again| {
                    if !again {
                        tracing::error!(
                            to = owed.to,
                            place = owed.place,
                            "a notice is given up: nobody took it for days"
                        );
                    }
                })
            }
        };
        if let Err(e) = written {
            tracing::error!(to = owed.to, place = owed.place, error = %e.chain(), "what became of a notice could not be written down; it may come twice");
        }
    }

    /// What was not well and is not in the policy any more is minded by nobody.
    pub(super) fn forget(&self) {
        let minded: BTreeSet<String> = self
            .entries
            .iter()
            .filter(|(_, e)| !e.gone)
            .flat_map(|(task, e)| tell::names(task, e.rpo.is_some(), e.interval.is_some()))
            .chain([tell::CLOCK.to_owned()])
            .collect();
        let forgotten = self.ledger.troubles().and_then(|all| {
            let gone = |name: &&String| !minded.contains(*name);
            all.iter()
                .filter(gone)
                .try_for_each(|name| self.ledger.forget_trouble(name))
        });
        if let Err(e) = forgotten {
            tracing::error!(error = %e.chain(), "troubles of what the policy has no more could not be forgotten; the next reload does it");
        }
    }
}
