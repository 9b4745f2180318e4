//! Every task with what is known of it: what the daemon decides with, and what it shows.

mod memory;
mod told;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, DurationRound as _, TimeDelta, Utc};
use ulid::Ulid;

use super::entry::{Entry, Phase, decide, known};
use super::points::{Points, Wanted};
use super::proofs::{Found, Proofs};
use super::shown::Shown;
use super::task::{BACKOFF, Ended, Resolved, Task};
use super::tell;
use crate::error::Result;
use crate::policy::Policy;
use crate::schedule::due::{self, Waiting};
use crate::state::ledger::notices::Owed;
use crate::state::ledger::points::Looked;
use crate::state::ledger::{Ledger, Outcome, SlotRecord};
use crate::types::{SourceName, quoted};

/// When something that failed and is none of a run's business is tried again: the ledger, the repository at the start.
pub(super) const TRY_AGAIN: TimeDelta = TimeDelta::seconds(60);
/// When a ledger that could not be written is tried again.
const LOCKED_AGAIN: Duration = Duration::from_secs(1);
/// How often objectives, notices and the state directory are looked at.
const LOOK_AROUND: TimeDelta = TimeDelta::seconds(15);
/// Tasks for which the repository is asked at once.
const ASKED_AT_ONCE: usize = 8;

/// What is to be done now.
pub enum Step {
    /// Find out what is settled; with what the ledger knows, and what was under way.
    Resolve(Task, Option<DateTime<Utc>>, Vec<SlotRecord>),
    /// Carry out a try of a slot; an earlier one began at that time.
    Start(Task, DateTime<Utc>, Option<DateTime<Utc>>),
    /// Deliver a notice.
    Deliver(Owed),
    /// Ask the repository for a source's points.
    Look(SourceName, Wanted),
    /// Read what drills proved, where there is other evidence than this.
    Prove(Option<BTreeSet<Ulid>>),
}

/// Every task with what is known of it.
pub struct Board {
    ledger: Ledger,
    entries: BTreeMap<Task, Entry>,
    points: Points,
    proofs: Proofs,
    /// The clock at the last turn: a step back makes everything be looked at.
    last: Option<DateTime<Utc>>,
    policy: Arc<Policy>,
    /// Notices that are being delivered, by their number: one after the other to each place, in the order of what happened.
    delivering: BTreeMap<i64, Owed>,
    /// When objectives and notices are looked at again.
    look_around: DateTime<Utc>,
    /// When what others did in the state directory is looked for again: not as often as work of the daemon's own ends.
    watch: DateTime<Utc>,
    shown: Shown,
    changed: bool,
    /// What ended and could not be written down yet.
    unwritten: Vec<(Task, DateTime<Utc>, Ended)>,
    /// What ended, was written down, and could not be told of yet.
    untold: Vec<(Task, DateTime<Utc>, Ended)>,
    /// The ledger can not be written, and nothing is begun: when that was told last, which is done once in a while.
    locked: Option<DateTime<Utc>>,
    /// The daemon was told to stop.
    pub stopping: bool,
}

impl Board {
    /// Of a policy.
    ///
    /// # Errors
    /// A schedule that can not be read.
    pub fn new(ledger: Ledger, policy: &Arc<Policy>, writer: String, now: DateTime<Utc>) -> Result<Self> {
        let mut board = Self {
            ledger,
            entries: BTreeMap::new(),
            points: Points::new(writer),
            proofs: Proofs::default(),
            last: None,
            policy: policy.clone(),
            delivering: BTreeMap::new(),
            look_around: DateTime::UNIX_EPOCH,
            watch: DateTime::UNIX_EPOCH,
            shown: Shown::default(),
            changed: true,
            unwritten: Vec::new(),
            untold: Vec::new(),
            locked: None,
            stopping: false,
        };
        board.take(policy, now)?;
        Ok(board)
    }

    /// How many tasks there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Takes a policy: tasks that it has not go when they have ended, others keep what is known of them.
    ///
    /// # Errors
    /// A schedule that can not be read; nothing is changed then.
    pub fn take(&mut self, policy: &Arc<Policy>, now: DateTime<Utc>) -> Result<()> {
        let tasks = Task::of_policy(policy)?;
        self.policy = policy.clone();
        self.points.take(policy, &self.ledger, now);
        self.proofs.take(policy, &self.ledger, now);
        (self.shown.environment, self.shown.zone) = (policy.environment.to_string(), policy.timezone);
        let path = std::path::absolute(&policy.path).unwrap_or_else(|_| policy.path.clone());
        self.shown.policy = quoted(&path.display().to_string());
        for entry in self.entries.values_mut() {
            entry.gone = true;
        }
        for (task, timetable) in tasks {
            let source = match &task {
                Task::Run(name) => policy.sources.get(name),
                _ => None,
            };
            let (priority, rpo) = source.map_or((0, None), |s| (s.priority, s.objective.rpo));
            let interval = source.and_then(|s| crate::jobs::status::interval(s, now));
            let entry = self.entries.entry(task).or_insert_with(|| Entry {
                timetable: timetable.clone(),
                phase: Phase::Unknown(DateTime::UNIX_EPOCH),
                settled: DateTime::UNIX_EPOCH,
                look: None,
                priority,
                rpo,
                interval,
                gone: false,
                tries: 0,
                began: None,
                error: None,
                shown: None,
            });
            (entry.timetable, entry.priority, entry.rpo, entry.gone) = (timetable, priority, rpo, false);
            (entry.interval, entry.shown) = (interval, None);
            entry.look = Some(DateTime::UNIX_EPOCH);
        }
        self.drop_gone();
        self.changed = true;
        self.forget();
        Ok(())
    }

    /// How a reload went.
    pub fn reloaded(&mut self, now: DateTime<Utc>, taken: bool) {
        self.shown.reload = Some((now, taken));
        self.changed = true;
    }

    /// Looks at everything whose time has come; gives what is to be done.
    pub fn turn(&mut self, now: DateTime<Utc>, concurrency: u32) -> Vec<Step> {
        let stepped_back = self.last.is_some_and(|last| now < last - TimeDelta::seconds(2));
        // A turn that does nothing has not seen the step either.
        if !self.writable(now) {
            return Vec::new();
        }
        if let Some(last) = self.last.filter(|_| stepped_back) {
            tracing::warn!(by_seconds = (last - now).num_seconds(), "the clock was set back");
        }
        self.last = Some(now);
        for (task, slot, ended) in std::mem::take(&mut self.unwritten) {
            self.ended(&task, slot, ended, now);
        }
        for (task, slot, ended) in std::mem::take(&mut self.untold) {
            self.tell_ended(&task, slot, ended, now);
        }
        let mut steps = Vec::new();
        let mut asking = self.asking();
        let mut unwritable = None;
        for (task, entry) in &mut self.entries {
            match entry.phase {
                Phase::Unknown(at) if (at <= now || stepped_back) && asking < ASKED_AT_ONCE => {
                    match known(&self.ledger, task) {
                        Ok((Some(settled), left)) if left.is_empty() => {
                            (entry.settled, entry.phase, entry.look) = (settled, Phase::Idle, Some(now));
                        }
                        Ok((settled, left)) => {
                            entry.phase = Phase::Resolving;
                            asking += 1;
                            steps.push(Step::Resolve(task.clone(), settled, left));
                        }
                        Err(e) => {
                            tracing::error!(task = task.key(), error = %e.chain(), "the daemon's memory can not be read");
                            entry.phase = Phase::Unknown(now + TRY_AGAIN);
                        }
                    }
                    (self.changed, entry.shown) = (true, None);
                }
                _ => {}
            }
            if let Phase::Resting(slot, until) = entry.phase
                && (until <= now || stepped_back)
            {
                (entry.phase, entry.shown) = (Phase::Waiting(slot), None);
                self.changed = true;
            }
            let look = entry.phase == Phase::Idle && !entry.gone;
            if look && (stepped_back || entry.look.is_some_and(|at| at <= now)) {
                (self.changed, entry.shown) = (true, None);
                if let Err(e) = decide(&mut self.ledger, task, entry, now) {
                    unwritable = Some(e);
                    break;
                }
            }
        }
        if let Some(e) = unwritable {
            self.cannot_write(now, &e);
        }
        steps.extend(self.start(now, concurrency));
        // What is settled is asked for first.
        let free = ASKED_AT_ONCE.saturating_sub(asking + self.points.looking());
        steps.extend(self.points.steps(&self.ledger, now, free));
        steps.extend(self.proofs.step(now));
        if stepped_back || self.watch <= now {
            self.watch = now + LOOK_AROUND;
            if self.points.watch(&self.policy) {
                self.proofs.changed();
            }
        }
        if stepped_back || self.look_around <= now {
            self.look_around = now + LOOK_AROUND;
            self.clock_set_back(now);
            self.objectives(now);
            // When the next slot is, a clock that was set back tells anew.
            self.changed |= stepped_back;
            let owed = self.ledger.owed_count().unwrap_or_default();
            self.changed |= owed != self.shown.owed;
            steps.extend(self.notices(now));
        }
        steps
    }

    /// Tasks for which the repository is being asked.
    fn asking(&self) -> usize {
        let asking = self.entries.values().filter(|e| e.phase == Phase::Resolving);
        asking.count()
    }

    /// Those whose turn it is, among those that wait.
    fn start(&mut self, now: DateTime<Utc>, concurrency: u32) -> Vec<Step> {
        let running = self
            .entries
            .values()
            .filter(|e| matches!(e.phase, Phase::Running(_)))
            .count();
        let mut free = (concurrency.max(1) as usize).saturating_sub(running);
        if free == 0 {
            return Vec::new();
        }
        let mut waiting = Vec::new();
        for (task, entry) in &self.entries {
            if let Phase::Waiting(slot) = entry.phase {
                let done = self.ledger.totals(&task.key()).ok().and_then(|t| t.last_done);
                waiting.push(Waiting {
                    name: task.key(),
                    priority: entry.priority,
                    age: done.map(|at| (now - at).to_std().unwrap_or_default()),
                    rpo: entry.rpo,
                    slot,
                });
            }
        }
        due::order(&mut waiting);
        let mut steps = Vec::new();
        for next in waiting {
            let found = self.entries.iter_mut().find(|(task, _)| task.key() == next.name);
            if free > 0
                && let Some((task, entry)) = found
            {
                (entry.phase, entry.shown) = (Phase::Running(next.slot), None);
                self.look_around = now;
                let since = entry.began.filter(|_| entry.tries > 0);
                if since.is_none() {
                    entry.began = Some(now);
                    if let Err(e) = tell::began(&mut self.ledger, &self.policy, task, next.slot, now) {
                        tracing::error!(task = task.key(), error = %e.chain(), "a ping could not be written down");
                    }
                }
                steps.push(Step::Start(task.clone(), next.slot, since));
                free -= 1;
                self.changed = true;
            }
        }
        steps
    }

    /// What is settled is known, or is to be asked for again.
    pub fn resolved(&mut self, task: &Task, resolved: Result<Resolved>, now: DateTime<Utc>) {
        self.changed = true;
        let Some(entry) = self.entries.get_mut(task) else {
            return;
        };
        entry.shown = None;
        let written = resolved.and_then(|resolved| {
            let key = task.key();
            self.ledger.settle(&key, resolved.settled, &[], None, now)?;
            let mut asked = None;
            for (slot, ended) in resolved.ended {
                if ended.outcome == Outcome::Interrupted && entry.timetable.was_asked_for(slot, now) {
                    asked = asked.max(Some(slot));
                }
                tracing::warn!(task = key, slot = %slot, outcome = ended.outcome.name(), "a slot was cut off");
                self.ledger
                    .end(&key, slot, ended.outcome, ended.run, ended.error.as_deref(), now)?;
            }
            // No schedule names a slot that somebody asked for: it is run again unless a later one makes it good.
            if let Some(slot) = asked.filter(|slot| entry.timetable.decide(*slot, now).due.is_none()) {
                self.ledger.settle(&key, slot, &[], Some(slot), now)?;
                return Ok((slot, Phase::Waiting(slot)));
            }
            Ok((resolved.settled, Phase::Idle))
        });
        let failed = match written {
            Ok((settled, phase)) => {
                (entry.settled, entry.phase, entry.look) = (settled, phase, Some(now));
                None
            }
            Err(e) => {
                tracing::error!(task = task.key(), error = %e.chain(), "what is settled is not known yet; it is asked for again");
                entry.phase = Phase::Unknown(now + TRY_AGAIN);
                Some(e.chain())
            }
        };
        self.look_around = now;
        if let Err(e) = tell::looked_up(&mut self.ledger, &self.policy, task, failed, now) {
            tracing::error!(task = task.key(), error = %e.chain(), "a notice could not be written down");
        }
        self.drop_gone();
    }

    /// A slot's run ended.
    pub fn ended(&mut self, task: &Task, slot: DateTime<Utc>, ended: Ended, now: DateTime<Utc>) {
        self.changed = true;
        if ended.busy
            && let Some(entry) = self.entries.get_mut(task).filter(|e| !e.gone)
        {
            (entry.phase, entry.shown) = (Phase::Resting(slot, now + BACKOFF[0]), None);
            return;
        }
        if ended.again
            && let Some(entry) = self
                .entries
                .get_mut(task)
                .filter(|e| !e.gone && e.tries < BACKOFF.len())
        {
            entry.phase = Phase::Resting(slot, now + BACKOFF[entry.tries]);
            entry.tries += 1;
            let error = ended.error.as_deref().unwrap_or_default();
            if let Err(e) = self.ledger.failed_try(&task.key(), slot, error) {
                tracing::warn!(task = task.key(), slot = %slot, error = %e.chain(), "why a try failed could not be written down");
            }
            (entry.error, entry.shown) = (ended.error, None);
            return;
        }
        if self.stopping && ended.outcome == Outcome::Interrupted {
            // It stays under way in the ledger, and the next start looks it up: its commit may have been put before the
            // signal was heard.
            return;
        }
        if let Err(e) = self.ledger.end(
            &task.key(),
            slot,
            ended.outcome,
            ended.run,
            ended.error.as_deref(),
            now,
        ) {
            // Kept, and tried again; after a crash the next start asks the repository.
            tracing::error!(task = task.key(), slot = %slot, error = %e.chain(), "how a slot ended could not be written down yet");
            self.unwritten.push((task.clone(), slot, ended));
            self.cannot_write(now, &e);
            return;
        }
        let run = ended.run;
        if ended.outcome == Outcome::Interrupted
            && let Some(entry) = self.entries.get_mut(task)
        {
            entry.settled = entry.settled.min(slot - TimeDelta::milliseconds(1));
        }
        self.tell_ended(task, slot, ended, now);
        if let Some(entry) = self.entries.get_mut(task) {
            (entry.phase, entry.look, entry.shown) = (Phase::Idle, Some(now), None);
            (entry.tries, entry.began, entry.error) = (0, None, None);
        }
        match task {
            Task::Run(source) => self.points.ended(&self.policy, source, run),
            Task::Prune | Task::Verify => self.points.changed(),
            Task::Drill(_) => self.proofs.changed(),
        }
        self.drop_gone();
    }

    /// Writes down what is to be told of a slot that ended; what can not be is kept.
    fn tell_ended(&mut self, task: &Task, slot: DateTime<Utc>, ended: Ended, now: DateTime<Utc>) {
        self.look_around = now;
        if let Err(e) = tell::ended(&mut self.ledger, &self.policy, task, slot, &ended, now) {
            tracing::error!(task = task.key(), slot = %slot, error = %e.chain(), "a notice could not be written down yet");
            self.untold.push((task.clone(), slot, ended));
            self.cannot_write(now, &e);
        }
    }

    /// What a look into the repository found.
    pub fn looked(&mut self, source: &SourceName, found: Result<Looked>, now: DateTime<Utc>) {
        (self.changed, self.look_around) = (true, now);
        self.points.looked(&mut self.ledger, source, found, now);
    }

    /// What a look at the evidence found.
    pub fn proved(&mut self, found: Result<Option<Found>>, now: DateTime<Utc>) {
        self.changed = true;
        self.proofs.looked(&mut self.ledger, found, now);
    }

    /// Somebody asks for a run now: its slot is this minute's, and waits for its turn as others do. `false`: it is under
    /// way, or not known yet.
    pub fn run_now(&mut self, source: &SourceName, now: DateTime<Utc>) -> bool {
        let task = Task::Run(source.clone());
        let Some(entry) = self.entries.get_mut(&task).filter(|e| !e.gone) else {
            return false;
        };
        if let Phase::Resting(slot, _) = entry.phase {
            // One try more, at once.
            entry.tries = entry.tries.saturating_sub(1);
            (entry.phase, entry.shown, self.changed) = (Phase::Waiting(slot), None, true);
            return true;
        }
        if entry.phase != Phase::Idle {
            return false;
        }
        // A slot that waits for its jitter or the end of a blackout is answered for; else this second is one.
        let (pending, passed) = entry.timetable.pending(entry.settled, now);
        let second = TimeDelta::seconds(1);
        let next = |at: DateTime<Utc>| at.duration_trunc(second).unwrap_or(at) + second;
        let slot = pending.unwrap_or_else(|| next(now).max(next(entry.settled)));
        let passed: Vec<_> = passed.into_iter().collect();
        if let Err(e) = self.ledger.settle(&task.key(), slot, &passed, Some(slot), now) {
            tracing::error!(task = task.key(), error = %e.chain(), "the daemon's memory can not be written; nothing is run");
            return false;
        }
        tracing::info!(task = task.key(), slot = %slot, "a run was asked for");
        (entry.settled, entry.phase, entry.look, entry.shown) = (slot, Phase::Waiting(slot), None, None);
        self.changed = true;
        true
    }

    fn drop_gone(&mut self) {
        let busy = |e: &Entry| matches!(e.phase, Phase::Running(_) | Phase::Resolving);
        self.entries.retain(|_, entry| !entry.gone || busy(entry));
    }

    /// The daemon ends: slots that were never tried are open again. Those that are under way stay so in the ledger, as do those
    /// whose tries failed, and those that somebody asked for, which no schedule names: the next start looks them up.
    pub fn cut_off(&mut self, now: DateTime<Utc>) {
        for (task, entry) in &self.entries {
            if let Phase::Waiting(slot) = entry.phase
                && entry.tries == 0
                && !entry.timetable.was_asked_for(slot, now)
            {
                let (key, ended) = (task.key(), Outcome::Interrupted);
                let why = Some("the daemon was stopped before its turn");
                if let Err(e) = self.ledger.end(&key, slot, ended, None, why, now) {
                    tracing::error!(task = key, slot = %slot, error = %e.chain(), "a slot that waited could not be given back; the next start does it");
                }
            }
        }
    }

    /// How long nothing is due.
    pub fn wait(&self, now: DateTime<Utc>) -> Duration {
        // Nothing is decided then, and what is due stays due.
        if self.locked.is_some() {
            return LOCKED_AGAIN;
        }
        // While as many ask as may, the others wait for one of them to end.
        let may_ask = self.asking() < ASKED_AT_ONCE;
        let next = self.entries.values().filter_map(|entry| match entry.phase {
            Phase::Unknown(at) => may_ask.then_some(at),
            Phase::Idle => entry.look,
            Phase::Resting(_, until) => Some(until),
            _ => None,
        });
        let may_look = self.asking() + self.points.looking() < ASKED_AT_ONCE;
        let looks = self.points.next().filter(|_| may_look);
        let next = next.chain([self.look_around, self.watch]).chain(looks);
        let next = next.chain(self.proofs.next());
        next.min()
            .map_or(Duration::MAX, |at| (at - now).to_std().unwrap_or_default())
    }

    /// What the daemon shows of itself.
    pub fn shown(&mut self, now: DateTime<Utc>, since_boot: Duration) -> &Shown {
        self.shown.turned = Some(since_boot);
        if std::mem::take(&mut self.changed) || self.shown.stopping != self.stopping {
            self.shown.stopping = self.stopping;
            let mut tasks = Vec::with_capacity(self.entries.len());
            for (task, entry) in &mut self.entries {
                if entry.shown.is_none() {
                    entry.shown = Some(entry.show(task, &self.ledger, now));
                }
                tasks.extend(entry.shown.clone());
            }
            self.shown.tasks = tasks;
            self.shown.sources = self.points.shown(&self.proofs);
            self.shown.repository = self.points.failed().cloned();
            self.shown.evidence = self.proofs.failed().cloned();
            self.shown.owed = self.ledger.owed_count().unwrap_or_default();
        }
        &self.shown
    }
}
