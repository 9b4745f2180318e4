//! Every task with what is known of it: what the daemon decides with, and what it shows.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use super::task::{Ended, Resolved, Task};
use super::tell;
use crate::error::Result;
use crate::policy::Policy;
use crate::schedule::due::{self, Timetable, Waiting};
use crate::state::ledger::notices::Owed;
use crate::state::ledger::{Ledger, Outcome, SlotRecord, Totals};

/// When something that failed and is none of a run's business is tried again: the ledger, the repository at the start.
const TRY_AGAIN: TimeDelta = TimeDelta::seconds(60);
/// How often objectives and notices are looked at.
const LOOK_AROUND: TimeDelta = TimeDelta::seconds(15);
/// Tasks for which the repository is asked at once.
const ASKED_AT_ONCE: usize = 8;
/// Notices that are delivered at once.
const DELIVERED_AT_ONCE: u32 = 4;

/// What is to be done now.
pub enum Step {
    /// Find out what is settled; with what the ledger knows, and what was under way.
    Resolve(Task, Option<DateTime<Utc>>, Vec<SlotRecord>),
    /// Carry out a slot.
    Start(Task, DateTime<Utc>),
    /// Deliver a notice.
    Deliver(Owed),
}

#[derive(Clone, Debug, PartialEq)]
enum Phase {
    /// What is settled is not known yet, and is asked for at this time.
    Unknown(DateTime<Utc>),
    Resolving,
    Idle,
    /// Its slot waits for its turn.
    Waiting(DateTime<Utc>),
    Running(DateTime<Utc>),
}

struct Entry {
    timetable: Timetable,
    phase: Phase,
    settled: DateTime<Utc>,
    /// When to look again.
    look: Option<DateTime<Utc>>,
    priority: i32,
    rpo: Option<Duration>,
    /// No longer in the policy; goes when its run has ended.
    gone: bool,
}

impl Entry {
    /// Up to where its slots are settled is known.
    fn is_known(&self) -> bool {
        !matches!(self.phase, Phase::Unknown(_) | Phase::Resolving)
    }
}

/// A task as it is shown.
#[derive(Clone, Debug, PartialEq)]
pub struct ShownTask {
    /// Its key.
    pub key: String,
    /// When it starts next.
    pub next: Option<DateTime<Utc>>,
    /// The slot that it answers for just now.
    pub running: Option<DateTime<Utc>>,
    /// The slot that waits for its turn.
    pub waiting: Option<DateTime<Utc>>,
    /// What is settled is known.
    pub known: bool,
    /// Its objective.
    pub rpo: Option<Duration>,
    /// Counts over all restarts.
    pub totals: Totals,
    /// Since when its slots are not done.
    pub trouble: Option<DateTime<Utc>>,
}

/// What the daemon shows of itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Shown {
    /// Its tasks, by key.
    pub tasks: Vec<ShownTask>,
    /// How the last reload went, and when.
    pub reload: Option<(DateTime<Utc>, bool)>,
    /// Notices that nobody took yet.
    pub owed: u32,
    /// When the loop turned last, since boot.
    pub turned: Option<Duration>,
    /// It was told to stop.
    pub stopping: bool,
}

impl Shown {
    /// One sentence.
    pub fn sentence(&self) -> String {
        if self.stopping {
            return "Stopping.".to_owned();
        }
        let running: Vec<&str> = self
            .tasks
            .iter()
            .filter(|t| t.running.is_some())
            .map(|t| t.key.as_str())
            .collect();
        let next = self
            .tasks
            .iter()
            .filter_map(|t| Some((t.next?, t.key.as_str())))
            .min();
        let unknown = self.tasks.iter().filter(|t| !t.known).count();
        let mut parts = vec![match self.tasks.len() {
            1 => "1 task".to_owned(),
            n => format!("{n} tasks"),
        }];
        if unknown > 0 {
            parts.push(format!("{unknown} waiting for the repository"));
        }
        if !running.is_empty() {
            parts.push(format!("under way: {}", running.join(", ")));
        }
        if let Some((at, key)) = next {
            parts.push(format!("next: {key} at {}", at.format("%Y-%m-%d %H:%M:%SZ")));
        }
        if self.reload.is_some_and(|(_, taken)| !taken) {
            parts.push("the policy on disk is bad, an older one is in use".to_owned());
        }
        parts.join("; ")
    }
}

/// Every task with what is known of it.
pub struct Board {
    ledger: Ledger,
    entries: BTreeMap<Task, Entry>,
    /// The clock at the last turn: a step back makes everything be looked at.
    last: Option<DateTime<Utc>>,
    policy: Arc<Policy>,
    /// Notices that are being delivered.
    delivering: BTreeSet<i64>,
    /// When objectives and notices are looked at again.
    look_around: DateTime<Utc>,
    shown: Shown,
    changed: bool,
    /// The daemon was told to stop.
    pub stopping: bool,
}

impl Board {
    /// Of a policy.
    ///
    /// # Errors
    /// A schedule that can not be read.
    pub fn new(ledger: Ledger, policy: &Arc<Policy>) -> Result<Self> {
        let mut board = Self {
            ledger,
            entries: BTreeMap::new(),
            last: None,
            policy: policy.clone(),
            delivering: BTreeSet::new(),
            look_around: DateTime::UNIX_EPOCH,
            shown: Shown::default(),
            changed: true,
            stopping: false,
        };
        board.take(policy)?;
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
    pub fn take(&mut self, policy: &Arc<Policy>) -> Result<()> {
        let tasks = Task::of_policy(policy)?;
        self.policy = policy.clone();
        for entry in self.entries.values_mut() {
            entry.gone = true;
        }
        for (task, timetable) in tasks {
            let source = match &task {
                Task::Run(name) => policy.sources.get(name),
                _ => None,
            };
            let (priority, rpo) = source.map_or((0, None), |s| (s.priority, s.objective.rpo));
            let entry = self.entries.entry(task).or_insert_with(|| Entry {
                timetable: timetable.clone(),
                phase: Phase::Unknown(DateTime::UNIX_EPOCH),
                settled: DateTime::UNIX_EPOCH,
                look: None,
                priority,
                rpo,
                gone: false,
            });
            (entry.timetable, entry.priority, entry.rpo, entry.gone) = (timetable, priority, rpo, false);
            entry.look = Some(DateTime::UNIX_EPOCH);
        }
        self.drop_gone();
        self.changed = true;
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
        self.last = Some(now);
        let mut steps = Vec::new();
        let mut asking = self.asking();
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
                    self.changed = true;
                }
                _ => {}
            }
            let look = entry.phase == Phase::Idle && !entry.gone;
            if look && (stepped_back || entry.look.is_some_and(|at| at <= now)) {
                self.changed = true;
                decide(&mut self.ledger, task, entry, now);
            }
        }
        steps.extend(self.start(now, concurrency));
        if stepped_back || self.look_around <= now {
            self.look_around = now + LOOK_AROUND;
            self.objectives(now);
            self.changed = true;
            steps.extend(self.notices(now));
        }
        steps
    }

    /// Sources whose last point is older than their objective.
    fn objectives(&mut self, now: DateTime<Utc>) {
        for (task, entry) in &self.entries {
            let Some(rpo) = entry
                .rpo
                .and_then(|rpo| TimeDelta::from_std(rpo).ok())
                .filter(|_| entry.is_known())
            else {
                continue;
            };
            let told = self.ledger.totals(&task.key()).and_then(|totals| {
                let age = totals.last_done.map(|at| now - at);
                tell::objective(&mut self.ledger, &self.policy, task, age, rpo, now)
            });
            if let Err(e) = told {
                tracing::error!(task = task.key(), error = %e.chain(), "whether an objective is missed could not be written down");
            }
        }
    }

    /// Notices whose time has come.
    fn notices(&mut self, now: DateTime<Utc>) -> Vec<Step> {
        let owed = match self.ledger.owed(now, DELIVERED_AT_ONCE) {
            Ok(owed) => owed,
            Err(e) => {
                tracing::error!(error = %e.chain(), "the notices that are owed can not be read");
                return Vec::new();
            }
        };
        let new: Vec<Owed> = owed
            .into_iter()
            .filter(|o| self.delivering.insert(o.id))
            .collect();
        new.into_iter().map(Step::Deliver).collect()
    }

    /// A notice was taken, is owed to nobody any more (`None`), or was not taken.
    pub fn delivered(&mut self, owed: &Owed, result: Result<Option<()>>, now: DateTime<Utc>) {
        self.changed = true;
        self.delivering.remove(&owed.id);
        self.look_around = now;
        let written = match result {
            Ok(_) => self.ledger.paid(owed.id),
            Err(e) => {
                tracing::warn!(to = owed.to, place = owed.place, tries = owed.tries + 1, error = %e.chain(), "a notice was not taken");
                self.ledger.not_taken(owed, now).map(|again| {
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
                entry.phase = Phase::Running(next.slot);
                steps.push(Step::Start(task.clone(), next.slot));
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
        let written = resolved.and_then(|resolved| {
            let key = task.key();
            self.ledger.settle(&key, resolved.settled, &[], None, now)?;
            for (slot, ended) in resolved.ended {
                tracing::warn!(task = key, slot = %slot, outcome = ended.outcome.name(), "a slot was cut off when the daemon ended");
                self.ledger
                    .end(&key, slot, ended.outcome, ended.run, ended.error.as_deref(), now)?;
            }
            Ok(resolved.settled)
        });
        match written {
            Ok(settled) => {
                (entry.settled, entry.phase, entry.look) = (settled, Phase::Idle, Some(now));
            }
            Err(e) => {
                tracing::error!(task = task.key(), error = %e.chain(), "what is settled is not known yet; it is asked for again");
                entry.phase = Phase::Unknown(now + TRY_AGAIN);
            }
        }
        self.drop_gone();
    }

    /// A slot's run ended.
    pub fn ended(&mut self, task: &Task, slot: DateTime<Utc>, ended: Ended, now: DateTime<Utc>) {
        self.changed = true;
        if let Err(e) = self.ledger.end(
            &task.key(),
            slot,
            ended.outcome,
            ended.run,
            ended.error.as_deref(),
            now,
        ) {
            // It stays under way in the ledger: the next start asks the repository.
            tracing::error!(task = task.key(), slot = %slot, error = %e.chain(), "how a slot ended could not be written down");
        }
        if let Err(e) = tell::ended(&mut self.ledger, &self.policy, task, slot, &ended, now) {
            tracing::error!(task = task.key(), slot = %slot, error = %e.chain(), "a notice could not be written down");
        }
        self.look_around = now;
        if ended.outcome == Outcome::Interrupted
            && let Err(e) = self.ledger.reopen(&task.key(), slot - TimeDelta::milliseconds(1))
        {
            tracing::error!(task = task.key(), slot = %slot, error = %e.chain(), "a slot that was cut off could not be given back");
        }
        if let Some(entry) = self.entries.get_mut(task) {
            (entry.phase, entry.look) = (Phase::Idle, Some(now));
        }
        self.drop_gone();
    }

    fn drop_gone(&mut self) {
        let busy = |e: &Entry| matches!(e.phase, Phase::Running(_) | Phase::Resolving);
        self.entries.retain(|_, entry| !entry.gone || busy(entry));
    }

    /// The daemon ends: slots that only waited are open again. Those that are still under way stay so in the ledger.
    pub fn cut_off(&mut self, now: DateTime<Utc>) {
        for (task, entry) in &self.entries {
            if let Phase::Waiting(slot) = entry.phase {
                let key = task.key();
                let done = self
                    .ledger
                    .end(
                        &key,
                        slot,
                        Outcome::Interrupted,
                        None,
                        Some("the daemon stopped before its turn"),
                        now,
                    )
                    .and_then(|()| self.ledger.reopen(&key, slot - TimeDelta::milliseconds(1)));
                if let Err(e) = done {
                    tracing::error!(task = key, slot = %slot, error = %e.chain(), "a slot that waited could not be given back; the next start does it");
                }
            }
        }
    }

    /// How long nothing is due.
    pub fn wait(&self, now: DateTime<Utc>) -> Duration {
        // While as many ask as may, the others wait for one of them to end.
        let may_ask = self.asking() < ASKED_AT_ONCE;
        let next = self.entries.values().filter_map(|entry| match entry.phase {
            Phase::Unknown(at) => may_ask.then_some(at),
            Phase::Idle => entry.look,
            _ => None,
        });
        let next = next.chain([self.look_around]);
        next.min()
            .map_or(Duration::MAX, |at| (at - now).to_std().unwrap_or_default())
    }

    /// What the daemon shows of itself.
    pub fn shown(&mut self, now: DateTime<Utc>, since_boot: Duration) -> &Shown {
        self.shown.turned = Some(since_boot);
        if std::mem::take(&mut self.changed) || self.shown.stopping != self.stopping {
            self.shown.stopping = self.stopping;
            self.shown.tasks = self
                .entries
                .iter()
                .map(|(task, entry)| ShownTask {
                    key: task.key(),
                    next: entry.timetable.next_starts(now, 1).first().copied(),
                    running: match entry.phase {
                        Phase::Running(slot) => Some(slot),
                        _ => None,
                    },
                    waiting: match entry.phase {
                        Phase::Waiting(slot) => Some(slot),
                        _ => None,
                    },
                    known: entry.is_known(),
                    rpo: entry.rpo,
                    totals: self.ledger.totals(&task.key()).unwrap_or_default(),
                    trouble: self.ledger.trouble(&task.key()).ok().flatten().map(|t| t.since),
                })
                .collect();
            self.shown.owed = self.ledger.owed_count().unwrap_or_default();
        }
        &self.shown
    }
}

/// What the ledger knows of a task: up to where it is settled, and what was under way.
fn known(ledger: &Ledger, task: &Task) -> Result<(Option<DateTime<Utc>>, Vec<SlotRecord>)> {
    let key = task.key();
    let left = ledger.under_way_of(&key)?;
    Ok((ledger.settled(&key)?, left))
}

/// Asks the timetable, and writes down what it says before anything is done about it.
fn decide(ledger: &mut Ledger, task: &Task, entry: &mut Entry, now: DateTime<Utc>) {
    let key = task.key();
    let decision = entry.timetable.decide(entry.settled, now);
    if decision.stepped_back {
        tracing::warn!(task = key, settled = %entry.settled, "the clock was set back; slots are taken from now on");
    }
    for passed in &decision.passed {
        tracing::warn!(task = key, first = %passed.first, last = %passed.last, count = passed.count, why = passed.why.text(), "slots without a run");
    }
    if decision.settled != entry.settled {
        let written = ledger.settle(&key, decision.settled, &decision.passed, decision.due, now);
        if let Err(e) = written {
            tracing::error!(task = key, error = %e.chain(), hint = e.hint_text(), "the daemon's memory can not be written; slots wait");
            entry.look = Some(now + TRY_AGAIN);
            return;
        }
        entry.settled = decision.settled;
    }
    match decision.due {
        Some(slot) => (entry.phase, entry.look) = (Phase::Waiting(slot), None),
        None => entry.look = decision.next,
    }
}
