//! What happens next: who begins, whose call goes on, what fails, what time does.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use chrono::TimeDelta;
use lifeboat::repository::{Repository, Settings, layout};
use lifeboat::store::wrappers::Operation;
use lifeboat::store::{Fault, Store, View};
use lifeboat::types::Key;

use super::actors::{self, Op};
use super::sea::{Actor, Verdict};
use super::voyage::Voyage;
use super::{OPERATOR, PRUNERS, RESTORER, WRITERS};

impl Voyage {
    /// Somebody who is idle begins something.
    pub async fn begin_something(&mut self) {
        let source = actors::source_name();
        let points = layout::points_prefix(&source);
        match self.rng.below(10) {
            0..=4 => {
                let second = !self.weather.one_writer && self.rng.chance(300);
                let writer = WRITERS[usize::from(second)];
                if !self.running.contains_key(&writer) {
                    let cut = self.rng.chance(150);
                    if cut {
                        self.changed = None;
                    }
                    self.start(writer, Op::Run { cut });
                }
            }
            5 | 6 => {
                let pruner = PRUNERS[self.rng.below(2) as usize];
                if !self.running.contains_key(&pruner) {
                    self.start(pruner, Op::Prune);
                }
            }
            7 if !self.running.contains_key(&OPERATOR) => {
                let tombstones = self.names(&layout::tombstones_prefix(&source)).await;
                if let Some(run) = self.pick(&tombstones) {
                    self.start(OPERATOR, Op::Undo(run));
                }
            }
            8 if !self.running.contains_key(&OPERATOR) => {
                let holds = self.names(&layout::holds_prefix(&source)).await;
                let commits = self.names(&points).await;
                let op = match (self.pick(&holds), self.pick(&commits)) {
                    (Some(run), _) if self.rng.chance(500) => Some(Op::Unhold(run)),
                    (_, Some(run)) => Some(Op::Hold(run)),
                    _ => None,
                };
                if let Some(op) = op {
                    self.start(OPERATOR, op);
                }
            }
            9 if !self.running.contains_key(&RESTORER) => {
                let commits = self.names(&points).await;
                if let Some(run) = self.pick(&commits) {
                    self.start(RESTORER, Op::Restore(run));
                }
            }
            _ => {}
        }
    }

    pub async fn pass_time(&mut self, by: TimeDelta) {
        if by > TimeDelta::minutes(9) {
            // No request is under way for longer than that.
            self.sea.deliver(true).await;
        }
        self.sea.time.advance(by);
        self.sea.deliver(false).await;
    }

    pub fn verdict(&mut self, operation: Operation, key: &Key) -> Verdict {
        if self.calm {
            return Verdict::Do;
        }
        if self.rng.chance(self.weather.crashes) {
            return Verdict::Die;
        }
        if operation == Operation::List && self.rng.chance(self.weather.lists) {
            return match self.rng.below(2) {
                0 => Verdict::Partial(self.rng.next()),
                _ => Verdict::Lagging(TimeDelta::minutes(1 + self.rng.below(30) as i64)),
            };
        }
        if !self.rng.chance(self.weather.faults) {
            return Verdict::Do;
        }
        self.tally.faults += 1;
        let late = TimeDelta::seconds(1 + self.rng.below(540) as i64);
        let commit = key.as_str().contains("/points/");
        match (operation, self.rng.below(6)) {
            (Operation::Put | Operation::Delete, 0) => Verdict::Late(late),
            (Operation::Put | Operation::Delete, 1) => Verdict::Twice(late),
            (Operation::Put, 2) if !commit => Verdict::Before(Fault::Full),
            (Operation::Get, 2 | 3) => Verdict::Flip(self.rng.next()),
            (_, 2 | 3) => Verdict::After(Fault::Unavailable),
            (_, 4) => Verdict::Before(Fault::Throttled),
            _ => Verdict::Before(Fault::Unavailable),
        }
    }

    /// A call goes on; `false` when there is none that may.
    pub fn release_one(&mut self) -> bool {
        let now = self.sea.time.now();
        self.suspended.retain(|_, until| *until > now);
        let waiting: Vec<(usize, Actor, Operation, Key)> = {
            let state = self.sea.state();
            let parked = state.parked.iter().enumerate();
            parked
                .filter(|(_, p)| !self.suspended.contains_key(&p.actor))
                .map(|(n, p)| (n, p.actor, p.operation, p.key.clone()))
                .collect()
        };
        let Some((at, actor, operation, key)) = self.pick(&waiting) else {
            return false;
        };
        let commits = operation == Operation::Put && key.as_str().contains("/points/");
        let unlucky = if commits { 150 } else { 2 };
        if self.weather.suspends && !self.calm && self.rng.chance(unlucky) {
            let until = now + TimeDelta::hours(1 + self.rng.below(220) as i64);
            self.note(format!("{actor} sleeps until {until} before {operation:?} {key}"));
            self.suspended.insert(actor, until);
            let mut state = self.sea.state();
            state.model.slept.insert(key);
            state.model.sleepers.insert(actor);
            drop(state);
            return true;
        }
        let verdict = self.verdict(operation, &key);
        if verdict != Verdict::Do {
            self.note(format!("{actor} {operation:?} {key}: {verdict:?}"));
            self.changed = None;
        }
        self.sea.release(at, verdict);
        true
    }

    /// The thief has the writer's credentials: it can put, not delete.
    pub async fn steal(&mut self) {
        let keys = self.sea.memory.keys();
        let Some(key) = self.pick(&keys) else { return };
        let garbage = match self.rng.below(3) {
            0 => Bytes::new(),
            1 => Bytes::from(crate::world::noise(300, self.rng.next())),
            _ => {
                // Another object's bytes.
                let other = self.pick(&keys).unwrap();
                self.sea.memory.get(&other, None, View::First).await.unwrap()
            }
        };
        if self.rng.chance(300) {
            let source = actors::source_name();
            let commits = self.names(&layout::points_prefix(&source)).await;
            if let Some(run) = self.pick(&commits) {
                let repository = self.repository(false).await;
                let place = repository.place(&source, run);
                let forged = lifeboat::repository::documents::Tombstone {
                    place,
                    at: self.sea.time.now() - TimeDelta::days(30),
                    reason: "forged".into(),
                };
                self.note(format!("the thief buries {run}"));
                let key = layout::tombstone(&source, run);
                let now = self.sea.time.now();
                self.sea.state().model.buried(&key, now);
                self.sea
                    .memory
                    .tamper(&key, serde_json::to_vec(&forged).unwrap().into());
            }
            return;
        }
        self.note(format!("the thief writes over {key}"));
        self.sea.memory.tamper(&key, garbage);
    }

    pub async fn repository(&self, versions: bool) -> Repository {
        let settings = Settings {
            versions: versions || self.weather.thief,
            ..Settings::default()
        };
        Repository::open(Arc::new(self.sea.memory.clone()), settings, None)
            .await
            .unwrap()
    }

    pub async fn step(&mut self) {
        self.tally.steps += 1;
        match self.rng.below(1000) {
            0..60 => self.begin_something().await,
            60..64 => {
                let by = TimeDelta::minutes(30 + self.rng.below(3000) as i64);
                self.pass_time(by).await;
            }
            64..66 if self.weather.skews => {
                let actor = self.rng.below(6) as Actor;
                // Never near the hour from which on a clock is doubted.
                let minutes = (self.rng.below(11) as i64 - 5) * 71;
                let skew = if self.rng.chance(300) {
                    minutes * 20
                } else {
                    minutes
                };
                self.note(format!("the clock of {actor} is off by {skew} min"));
                let clock = &self.hosts[&actor].clock;
                clock.skew_ms.store(skew * 60_000, Ordering::SeqCst);
                self.changed = None;
            }
            66..70 if self.weather.rollbacks => self.roll_back(),
            70..74 if self.weather.thief => self.steal().await,
            _ => {
                if !self.release_one() {
                    let by = TimeDelta::minutes(5 + self.rng.below(90) as i64);
                    self.pass_time(by).await;
                    self.begin_something().await;
                }
            }
        }
        self.sea.deliver(false).await;
        self.settle().await;
        self.learn().await;
        self.judge();
    }

    /// The host of a writer is taken back to an old snapshot, or one is made.
    pub fn roll_back(&mut self) {
        let writer = WRITERS[self.rng.below(2) as usize];
        if self.running.contains_key(&writer) {
            return;
        }
        let state = self.hosts[&writer].state.clone();
        let snapshot = self.directory.path().join(format!("snapshot-{writer}"));
        if snapshot.exists() && self.rng.chance(400) {
            self.note(format!("{writer} is rolled back"));
            actors::copy_directory(&snapshot, &state);
            self.changed = None;
        } else {
            actors::copy_directory(&state, &snapshot);
        }
    }
}
