//! The ledger under the board: held by another process, or found to be damaged while it is used.

use chrono::{DateTime, Utc};

use super::{Board, TRY_AGAIN};
use crate::daemon::entry::Phase;
use crate::daemon::tell;
use crate::error::{Error, Result};

impl Board {
    /// Whether the ledger can be written now. What another process holds is waited for once a turn, and not once for each
    /// task: the loop feeds the watchdog. One that is damaged is put aside, and rebuilt from the repository.
    pub(super) fn writable(&mut self, now: DateTime<Utc>) -> bool {
        let truly = self.locked.is_some();
        let mut ready = self.ledger.ready(truly);
        if self.ledger.is_damaged() {
            ready = self.rebuild(now).and_then(|()| self.ledger.ready(true));
        }
        match ready {
            Ok(()) => {
                if self.locked.take().is_some() {
                    tracing::info!("the daemon's memory can be written again");
                    (self.shown.memory, self.changed) = (None, true);
                }
                true
            }
            Err(e) => {
                self.cannot_write(now, &e);
                false
            }
        }
    }

    /// Something could not be written down: nothing is begun until it can.
    pub(super) fn cannot_write(&mut self, now: DateTime<Utc>, e: &Error) {
        let told = self
            .locked
            .is_some_and(|told| (told..told + TRY_AGAIN).contains(&now));
        if !told {
            tracing::error!(error = %e.chain(), hint = e.hint_text(), "the daemon's memory can not be written; nothing is begun until it can");
            self.locked = Some(now);
        }
        self.changed |= self.shown.memory.is_none();
        self.shown.memory = Some(e.chain());
    }

    /// Puts the ledger aside and begins a new one. What is settled is asked of the repository, and what is under way is
    /// written down again.
    fn rebuild(&mut self, now: DateTime<Utc>) -> Result<()> {
        if !self.ledger.rebuild()? {
            return Ok(());
        }
        tracing::error!(
            "the daemon's memory was damaged while it was used; it is rebuilt from the repository"
        );
        let lost = "the daemon's memory was damaged or removed, and is rebuilt from the repository; what was to be told then is lost";
        if let Err(e) = tell::memory_lost(&mut self.ledger, &self.policy, lost, now) {
            tracing::error!(error = %e.chain(), "a notice could not be written down");
        }
        self.points.forgotten();
        self.proofs.forgotten();
        self.delivering.clear();
        self.changed = true;
        let mut written = Ok(());
        for (task, entry) in &mut self.entries {
            entry.shown = None;
            match entry.phase {
                Phase::Waiting(slot) | Phase::Running(slot) | Phase::Resting(slot, _) => {
                    let again = self
                        .ledger
                        .settle(&task.key(), entry.settled, &[], Some(slot), now);
                    written = written.and(again);
                }
                Phase::Idle | Phase::Unknown(_) => entry.phase = Phase::Unknown(now),
                // Its answer comes.
                Phase::Resolving => {}
            }
        }
        written
    }
}
