//! A seeded simulation of the store and of everybody who uses it: two writers of one source, two pruners with different
//! policies, an operator, a restorer, and a thief with the writer's credentials. Their processes meet only in the
//! store, each call of which waits for the driver: it chooses who goes on, what fails, how late a reply is, who dies or
//! sleeps for days. After every step the model looks whether a promise was broken. A seed replays a failure:
//!
//! ```text
//! LIFEBOAT_SEED=4711 cargo nextest run a_seed_replays --run-ignored all --no-capture
//! ```

mod actors;
mod model;
mod sea;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use lifeboat::policy::{ObjectLock, RetentionRules};
use lifeboat::repository::{Repository, Settings, layout};
use lifeboat::store::memory::{MemoryOptions, MemoryStore};
use lifeboat::store::wrappers::Operation;
use lifeboat::store::{
    Abilities, Fault, Lock, LockMode, ObjectInfo, Page, PutOptions, SharedStore, Store, StoreResult, View,
    list_all,
};
use lifeboat::types::{Digest, Key, RunId};
use tokio::task::JoinHandle;

use self::actors::{Done, Host, Op};
use self::model::Model;
use self::sea::{Actor, Sea, SkewedClock, Time, Verdict};
use crate::world::MapSource;

const WRITERS: [Actor; 2] = [0, 1];
const PRUNERS: [Actor; 2] = [2, 3];
const OPERATOR: Actor = 4;
const RESTORER: Actor = 5;

/// SplitMix64.
pub struct Rng(u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }
    fn chance(&mut self, per_mille: u64) -> bool {
        self.below(1000) < per_mille
    }
}

/// What kind of world a seed makes.
#[derive(Debug)]
struct Weather {
    /// Faults in a thousand calls.
    faults: u64,
    crashes: u64,
    lists: u64,
    suspends: bool,
    skews: bool,
    rollbacks: bool,
    thief: bool,
    one_writer: bool,
    options: MemoryOptions,
}

impl Weather {
    fn calm(&self) -> Self {
        Self {
            faults: 0,
            crashes: 0,
            lists: 0,
            suspends: false,
            skews: false,
            rollbacks: false,
            ..*self
        }
    }
    fn of(rng: &mut Rng) -> Self {
        let thief = rng.chance(200);
        let mode = if thief { 2 } else { rng.below(3) };
        Self {
            faults: [0, 5, 20, 60][rng.below(4) as usize],
            crashes: [0, 5, 15][rng.below(3) as usize],
            lists: [0, 10, 60][rng.below(3) as usize],
            suspends: rng.chance(500),
            skews: rng.chance(400),
            rollbacks: rng.chance(300),
            thief,
            one_writer: rng.chance(400),
            options: MemoryOptions {
                refuses_overwrite: mode == 0,
                keeps_versions: mode == 2,
                locks: mode == 2,
                page: [1000, 7][rng.below(2) as usize],
            },
        }
    }
}

/// What a seed did.
#[derive(Debug, Default)]
pub struct Tally {
    steps: u64,
    points: u64,
    deleted: u64,
    broken: u64,
    runs: u64,
    faults: u64,
    crashes: u64,
    restores: u64,
}

struct Voyage {
    seed: u64,
    rng: Rng,
    weather: Weather,
    sea: Arc<Sea>,
    hosts: BTreeMap<Actor, Host>,
    running: BTreeMap<Actor, JoinHandle<Done>>,
    suspended: BTreeMap<Actor, DateTime<Utc>>,
    source: MapSource,
    identity: String,
    directory: tempfile::TempDir,
    calm: bool,
    tally: Tally,
    log: Vec<String>,
    /// Changed since the last point of the only writer; `None` after anything that may cost more.
    changed: Option<u64>,
}

impl Voyage {
    async fn begin(seed: u64) -> Self {
        let mut rng = Rng(seed);
        let weather = Weather::of(&mut rng);
        let time = Time::new(DateTime::from_timestamp(1_790_000_000, 0).unwrap());
        let clock = Arc::new(SkewedClock {
            time: time.clone(),
            skew_ms: 0.into(),
        });
        let world = lifeboat::clock::World {
            clock,
            random: Arc::new(crate::world::Seeded::new(seed)),
            crash: Arc::new(lifeboat::clock::NoCrash),
        };
        let memory = MemoryStore::with_options(&world, weather.options);
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("identity");
        let recipient = lifeboat::jobs::keys::generate(&world, &file).unwrap();
        let identity = std::fs::read_to_string(file).unwrap();
        let mut model = Model::default();
        let day = Duration::from_secs(86_400);
        let rules = [
            RetentionRules {
                window: Some(day),
                daily: 3,
                ..RetentionRules::default()
            },
            RetentionRules {
                hourly: 5,
                weekly: 2,
                ..RetentionRules::default()
            },
        ];
        model.windows.insert(PRUNERS[0], TimeDelta::days(1));
        let sea = Sea::new(time, memory, model);
        let mut hosts = BTreeMap::new();
        for actor in 0..=RESTORER {
            let rules = rules[usize::from(actor == PRUNERS[1])];
            let versions = weather.thief && actor == RESTORER;
            let mut host = Host::new(
                &sea,
                actor,
                directory.path(),
                &recipient,
                Some(rules),
                seed,
                versions,
            );
            if weather.options.locks {
                host.policy.repository.object_lock = Some(ObjectLock {
                    mode: LockMode::Governance,
                    days: 37,
                });
            }
            hosts.insert(actor, host);
        }
        let settings = Settings::default();
        let environment = "development".parse().unwrap();
        Repository::init(Arc::new(sea.memory.clone()), &environment, settings, &world)
            .await
            .unwrap();
        Self {
            seed,
            rng,
            weather,
            sea,
            hosts,
            running: BTreeMap::new(),
            suspended: BTreeMap::new(),
            source: MapSource::default(),
            identity,
            directory,
            calm: false,
            tally: Tally::default(),
            log: Vec::new(),
            changed: None,
        }
    }

    fn note(&mut self, text: String) {
        if self.log.len() > 400 {
            self.log.drain(..200);
        }
        self.log
            .push(format!("{} {text}", self.sea.time.now().format("%m-%d %H:%M:%S")));
    }

    /// Fails the test with everything needed to see why.
    fn judge(&mut self) {
        let violations = std::mem::take(&mut self.sea.state().model.violations);
        assert!(
            violations.is_empty(),
            "seed {}: {violations:#?}\n{:#?}\n{}",
            self.seed,
            self.weather,
            self.log.join("\n")
        );
    }

    /// Waits until every process waits for the store, or has ended.
    async fn settle(&mut self) {
        for _ in 0..8 {
            tokio::task::yield_now().await;
        }
        loop {
            let died: Vec<Actor> = self.sea.state().died.iter().copied().collect();
            for actor in died {
                self.kill(actor).await;
            }
            let ended: Vec<Actor> = self
                .running
                .iter()
                .filter(|(_, h)| h.is_finished())
                .map(|(a, _)| *a)
                .collect();
            for actor in ended {
                let done = self.running.remove(&actor).unwrap().await.unwrap();
                self.ended(actor, done).await;
            }
            let busy = {
                let state = self.sea.state();
                self.running
                    .keys()
                    .any(|actor| !state.parked.iter().any(|p| p.actor == *actor))
            };
            if !busy {
                return;
            }
            // Ends are told by nobody: look again after a moment, or at the next call.
            let _ = tokio::time::timeout(Duration::from_micros(200), self.sea.changed.notified()).await;
        }
    }

    async fn kill(&mut self, actor: Actor) {
        self.sea.bury(actor);
        if let Some(handle) = self.running.remove(&actor) {
            handle.abort();
            // Aborted: it has no result.
            let _ = handle.await;
        }
        self.suspended.remove(&actor);
        self.tally.crashes += 1;
        self.changed = None;
        self.note(format!("{actor} died"));
        self.after_a_run(actor, None).await;
    }

    async fn ended(&mut self, actor: Actor, done: Done) {
        self.note(format!(
            "{actor} ended: {}",
            match &done {
                Done::Restored(run, _) => format!("restored {run}"),
                other => format!("{other:?}"),
            }
        ));
        match &done {
            Done::Point(_, stored) => {
                self.tally.runs += 1;
                if let Some(changed) = self.changed {
                    // A pack may be written again once when less than 40 % of it is in use, and objects have heads.
                    let limit = changed * 3 + 700_000;
                    if *stored > limit {
                        let text = format!("{changed} bytes changed and {stored} were stored");
                        self.sea.state().model.violations.push(text);
                    }
                }
                self.changed = Some(0);
            }
            Done::Restored(run, content) => {
                self.tally.restores += 1;
                let key = layout::commit(&actors::source_name(), *run);
                let wanted = self.sea.state().model.points[&key].content.clone();
                if wanted.is_some_and(|w| *w != *content) {
                    let text = format!("{run} was restored to other bytes");
                    self.sea.state().model.violations.push(text);
                }
            }
            Done::Failed(why) if self.calm => {
                let text = format!("{actor} failed without a fault: {why}");
                self.sea.state().model.violations.push(text);
            }
            Done::Failed(_) => self.changed = None,
            Done::Other => {}
        }
        if WRITERS.contains(&actor) {
            let point = match done {
                Done::Point(run, _) => Some(run),
                _ => None,
            };
            self.after_a_run(actor, point).await;
        }
    }

    /// A commit whose point does not restore: the run must have said so.
    async fn after_a_run(&mut self, actor: Actor, point: Option<RunId>) {
        self.learn().await;
        let broken: Vec<Key> = {
            let mut state = self.sea.state();
            if let Some(run) = point {
                let key = layout::commit(&actors::source_name(), run);
                state.model.points.get_mut(&key).unwrap().confirmed = true;
            }
            let points = state.model.points.iter();
            points
                .filter(|(_, p)| p.broken && p.writer == actor)
                .map(|(k, _)| k.clone())
                .collect()
        };
        for key in broken {
            let prefix = layout::points_prefix(&actors::source_name());
            if actors::run_of(&key, &prefix) == point {
                let text = format!("the run succeeded and {key} does not restore");
                self.sea.state().model.violations.push(text);
            }
        }
    }

    /// Restores what has just appeared, and remembers what was read for it.
    async fn learn(&mut self) {
        let new = std::mem::take(&mut self.sea.state().model.to_learn);
        for key in new {
            let run = actors::run_of(&key, &layout::points_prefix(&actors::source_name())).unwrap();
            let recording = Arc::new(Recording {
                memory: self.sea.memory.clone(),
                read: Mutex::default(),
            });
            let store: SharedStore = recording.clone();
            let found = actors::content(store, run, &self.identity, self.weather.thief).await;
            let wanted = self.sea.state().model.points[&key].content.clone();
            match found {
                Ok(found) => {
                    if wanted.is_some_and(|w| *w != found) {
                        let text = format!("{key} restores to other bytes than were backed up");
                        self.sea.state().model.violations.push(text);
                    }
                    let read = std::mem::take(&mut *recording.read.lock().unwrap());
                    let sources = layout::sources_prefix();
                    let own = read.into_iter().filter(|(k, _)| k.as_str().starts_with(&sources));
                    self.tally.points += 1;
                    self.sea.state().model.learned(&key, own.collect());
                }
                Err(e) => {
                    self.note(format!("{key} does not restore: {}", e.chain()));
                    self.tally.broken += 1;
                    let mut state = self.sea.state();
                    state.model.points.get_mut(&key).unwrap().broken = true;
                    if !state.model.slept.contains(&key) {
                        let text = format!("{key} never was complete: {}", e.chain());
                        state.model.violations.push(text);
                    }
                }
            }
        }
    }

    fn start(&mut self, actor: Actor, op: Op) {
        self.note(format!("{actor} begins: {op:?}"));
        if let Op::Run { .. } = op {
            let changed = actors::mutate(&mut self.source, &mut self.rng);
            self.changed = self.changed.map(|c| c + changed);
            if !self.weather.one_writer {
                self.changed = None;
            }
            let content = Arc::new(actors::all(&self.source));
            self.sea.state().model.writing.insert(actor, content);
        }
        let future = self.hosts[&actor].act(&self.sea, op, self.source.clone(), self.identity.clone());
        self.running.insert(actor, tokio::spawn(future));
    }

    async fn names(&self, prefix: &str) -> Vec<RunId> {
        let listed = list_all(&self.sea.memory, prefix, View::Current).await.unwrap();
        listed
            .iter()
            .filter_map(|o| actors::run_of(&o.key, prefix))
            .collect()
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> Option<T> {
        let at = self.rng.below(from.len() as u64) as usize;
        from.get(at).cloned()
    }

    /// Somebody who is idle begins something.
    async fn begin_something(&mut self) {
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

    async fn pass_time(&mut self, by: TimeDelta) {
        if by > TimeDelta::minutes(9) {
            // No request is under way for longer than that.
            self.sea.deliver(true).await;
        }
        self.sea.time.advance(by);
        self.sea.deliver(false).await;
    }

    fn verdict(&mut self, operation: Operation, key: &Key) -> Verdict {
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
    fn release_one(&mut self) -> bool {
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
            if commits {
                self.sea.state().model.slept.insert(key);
            }
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
    async fn steal(&mut self) {
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
                self.sea
                    .memory
                    .tamper(&key, serde_json::to_vec(&forged).unwrap().into());
            }
            return;
        }
        self.note(format!("the thief writes over {key}"));
        self.sea.memory.tamper(&key, garbage);
    }

    async fn repository(&self, versions: bool) -> Repository {
        let settings = Settings {
            versions: versions || self.weather.thief,
            ..Settings::default()
        };
        Repository::open(Arc::new(self.sea.memory.clone()), settings, None)
            .await
            .unwrap()
    }

    async fn step(&mut self) {
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
    fn roll_back(&mut self) {
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

    /// Everything that is under way ends, without another fault.
    async fn come_home(&mut self) {
        self.calm = true;
        self.suspended.clear();
        for actor in 0..=RESTORER {
            self.hosts[&actor].clock.skew_ms.store(0, Ordering::SeqCst);
        }
        // What began under faults may still fail of them.
        let calm = std::mem::take(&mut self.calm);
        self.settle().await;
        while !self.running.is_empty() {
            let waiting = self.sea.state().parked.len();
            for _ in 0..waiting {
                self.sea.release(0, Verdict::Do);
            }
            self.settle().await;
        }
        self.calm = calm;
        self.sea.deliver(true).await;
        self.learn().await;
        self.judge();
    }

    async fn do_now(&mut self, actor: Actor, op: Op) {
        self.start(actor, op);
        self.settle().await;
        while self.running.contains_key(&actor) {
            self.sea.release(0, Verdict::Do);
            self.settle().await;
        }
        self.learn().await;
        self.judge();
    }

    /// Every point that must be there is listed and restores.
    async fn look_at_everything(&mut self) {
        let repository = self.repository(false).await;
        let catalog = repository.catalog(&actors::source_name()).await.unwrap();
        let prefix = layout::points_prefix(&actors::source_name());
        let alive = self.sea.state().model.alive();
        for (key, point) in alive {
            let run = actors::run_of(&key, &prefix).unwrap();
            assert!(
                catalog.points.contains_key(&run),
                "seed {}: {run} is not listed\n{}",
                self.seed,
                self.log.join("\n")
            );
            let store: SharedStore = Arc::new(self.sea.memory.clone());
            let found = actors::content(store, run, &self.identity, self.weather.thief).await;
            let same = match &found {
                Ok(found) => point.content.as_ref().is_none_or(|c| **c == *found),
                Err(_) => false,
            };
            assert!(
                same,
                "seed {}: {run} does not restore: {:?}\n{}",
                self.seed,
                found.map(|_| "other bytes"),
                self.log.join("\n")
            );
        }
    }

    /// Nothing is left of what nobody needs.
    async fn look_for_litter(&mut self) {
        let prefix = layout::runs_prefix(&actors::source_name());
        let listed = list_all(&self.sea.memory, &prefix, View::Current).await.unwrap();
        let repository = self.repository(false).await;
        let catalog = repository.catalog(&actors::source_name()).await.unwrap();
        let commits: Vec<_> = catalog.points.values().map(|p| &p.commit).collect();
        let (refs, _) = repository
            .refs_of(&actors::source_name(), &commits)
            .await
            .unwrap();
        let state = self.sea.state();
        let runs: BTreeSet<RunId> = state
            .model
            .points
            .iter()
            .filter(|(_, p)| !p.deleted)
            .filter_map(|(k, _)| actors::run_of(k, &layout::points_prefix(&actors::source_name())))
            .collect();
        let mut needed: BTreeSet<Key> = state
            .model
            .alive()
            .into_iter()
            .flat_map(|(_, p)| p.needed.unwrap_or_default().into_keys())
            .collect();
        // A cut also keeps what the run that goes on from it may draw on.
        let cuts = refs.iter().filter(|(run, _)| catalog.points[run].commit.partial);
        for reference in cuts.flat_map(|(_, refs)| refs.0.values()) {
            let packs = reference.packs.iter().flat_map(|(a, b)| *a..=*b);
            needed.extend(packs.map(|n| layout::pack(&actors::source_name(), reference.run, n)));
        }
        for object in listed {
            let run = layout::run_and_name(&object.key, &prefix).unwrap().0;
            assert!(
                runs.contains(&run) || needed.contains(&object.key),
                "seed {}: {} is left over\n{}",
                self.seed,
                object.key,
                self.log.join("\n")
            );
        }
    }

    async fn finish(mut self) -> Tally {
        self.come_home().await;
        self.look_at_everything().await;
        if !self.weather.thief {
            if self.sea.state().model.points.values().any(|p| p.broken) {
                // What nobody has recorded yet stops prune until verify tells it.
                self.do_now(WRITERS[0], Op::Verify).await;
            }
            // A commit gone without a tombstone stops one prune, which mends that.
            self.calm = false;
            self.weather = Weather::calm(&self.weather);
            self.do_now(PRUNERS[0], Op::Prune).await;
            self.calm = true;
            for actor in [WRITERS[0], PRUNERS[0], WRITERS[1], PRUNERS[1]] {
                let op = if WRITERS.contains(&actor) {
                    Op::Run { cut: false }
                } else {
                    Op::Prune
                };
                self.do_now(actor, op).await;
                self.pass_time(TimeDelta::days(9)).await;
            }
            self.look_at_everything().await;
            for _ in 0..3 {
                for actor in PRUNERS {
                    self.do_now(actor, Op::Prune).await;
                }
                self.pass_time(TimeDelta::days(9)).await;
            }
            self.look_at_everything().await;
            if !self.sea.state().model.points.values().any(|p| p.broken) {
                self.look_for_litter().await;
            }
        }
        self.tally.deleted = self
            .sea
            .state()
            .model
            .points
            .values()
            .filter(|p| p.deleted)
            .count() as u64;
        self.tally
    }
}

/// Remembers what a restore reads.
#[derive(Debug)]
struct Recording {
    memory: MemoryStore,
    read: Mutex<BTreeMap<Key, Digest>>,
}

#[async_trait]
impl Store for Recording {
    fn location(&self) -> String {
        self.memory.location()
    }
    async fn put(&self, _: &Key, _: Bytes, _: PutOptions) -> StoreResult<()> {
        unreachable!("a restore writes nothing")
    }
    async fn get(&self, key: &Key, range: Option<Range<u64>>, view: View) -> StoreResult<Bytes> {
        let body = self.memory.get(key, range, view).await?;
        self.read.lock().unwrap().insert(key.clone(), Digest::of(&body));
        Ok(body)
    }
    async fn head(&self, key: &Key, view: View) -> StoreResult<Option<ObjectInfo>> {
        self.memory.head(key, view).await
    }
    async fn list(&self, prefix: &str, after: Option<&str>, view: View) -> StoreResult<Page> {
        self.memory.list(prefix, after, view).await
    }
    async fn delete(&self, _: &Key) -> StoreResult<()> {
        unreachable!("a restore deletes nothing")
    }
    async fn now(&self) -> StoreResult<DateTime<Utc>> {
        self.memory.now().await
    }
    async fn extend_lock(&self, _: &Key, _: Lock) -> StoreResult<()> {
        unreachable!("a restore locks nothing")
    }
    async fn probe(&self, _: &str, _: DateTime<Utc>) -> StoreResult<Abilities> {
        unreachable!("a restore probes nothing")
    }
}

fn sail(seed: u64, steps: u64) -> Tally {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut voyage = Voyage::begin(seed).await;
        for _ in 0..steps {
            voyage.step().await;
        }
        voyage.finish().await
    })
}

#[allow(clippy::print_stdout, reason = "a soak tells what it did")]
fn say(text: &str) {
    println!("{text}");
}

const STEPS: u64 = 3000;

/// Runs seeds on both cores until they are through or the time is over; says how many and what they did.
fn fleet(seeds: Range<u64>, until: Option<Instant>) {
    let next = Mutex::new(seeds);
    let sum = Mutex::new((0u64, Tally::default()));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let Some(seed) = next.lock().unwrap().next() else {
                        return;
                    };
                    if until.is_some_and(|end| Instant::now() > end) {
                        return;
                    }
                    let tally = sail(seed, STEPS);
                    let mut sum = sum.lock().unwrap();
                    sum.0 += 1;
                    let all = &mut sum.1;
                    all.steps += tally.steps;
                    all.points += tally.points;
                    all.deleted += tally.deleted;
                    all.broken += tally.broken;
                    all.runs += tally.runs;
                    all.faults += tally.faults;
                    all.crashes += tally.crashes;
                    all.restores += tally.restores;
                }
            });
        }
    });
    let (seeds, tally) = sum.into_inner().unwrap();
    say(&format!("{seeds} seeds: {tally:?}"));
    // A simulation in which nothing happens shows nothing.
    assert!(tally.points > seeds * 3 && tally.deleted > seeds / 2, "{tally:?}");
}

#[test]
fn nothing_is_lost_in_any_weather() {
    fleet(0..48, None);
}

#[test]
#[ignore = "an hour: scripts/soak"]
fn soak_nothing_is_lost_in_any_weather() {
    let number = |name: &str, default: u64| {
        std::env::var(name)
            .ok()
            .map_or(default, |text| text.parse().expect("a number"))
    };
    let first = number("LIFEBOAT_SEED", 1_000);
    let seconds = number("LIFEBOAT_SOAK_SECONDS", 3_600);
    fleet(
        first..u64::MAX,
        Some(Instant::now() + Duration::from_secs(seconds)),
    );
}

#[test]
#[ignore = "replays one seed: LIFEBOAT_SEED"]
fn a_seed_replays() {
    let seed = std::env::var("LIFEBOAT_SEED").map_or(0, |s| s.parse().expect("a number"));
    say(&format!("{:?}", sail(seed, STEPS)));
}
