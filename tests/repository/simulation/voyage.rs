//! The driver: what is under way, who waits, who has ended, and what was learned of it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use lifeboat::policy::{ObjectLock, RetentionRules};
use lifeboat::repository::{Repository, Settings, layout};
use lifeboat::store::memory::MemoryStore;
use lifeboat::store::{LockMode, SharedStore, View, list_all};
use lifeboat::types::{Key, RunId};
use tokio::task::JoinHandle;

use super::actors::{self, Done, Host, Op};
use super::model::Model;
use super::recording::Recording;
use super::sea::{Actor, Sea, SkewedClock, Time};
use super::{PRUNERS, RESTORER, Rng, Tally, WRITERS, Weather};
use crate::world::MapSource;

pub struct Voyage {
    pub seed: u64,
    pub rng: Rng,
    pub weather: Weather,
    pub sea: Arc<Sea>,
    pub hosts: BTreeMap<Actor, Host>,
    pub running: BTreeMap<Actor, JoinHandle<Done>>,
    pub suspended: BTreeMap<Actor, DateTime<Utc>>,
    pub source: MapSource,
    pub identity: String,
    pub directory: tempfile::TempDir,
    pub calm: bool,
    pub tally: Tally,
    pub log: Vec<String>,
    /// Changed since the last point of the only writer; `None` after anything that may cost more.
    pub changed: Option<u64>,
}

impl Voyage {
    pub async fn begin(seed: u64) -> Self {
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

    pub fn note(&mut self, text: String) {
        if self.log.len() > 400 {
            self.log.drain(..200);
        }
        self.log
            .push(format!("{} {text}", self.sea.time.now().format("%m-%d %H:%M:%S")));
    }

    /// Fails the test with everything needed to see why.
    pub fn judge(&mut self) {
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
    pub async fn settle(&mut self) {
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

    pub async fn kill(&mut self, actor: Actor) {
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

    pub async fn ended(&mut self, actor: Actor, done: Done) {
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
    pub async fn after_a_run(&mut self, actor: Actor, point: Option<RunId>) {
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
    pub async fn learn(&mut self) {
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

    pub fn start(&mut self, actor: Actor, op: Op) {
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
        self.sea.state().model.sleepers.remove(&actor);
        self.running.insert(actor, tokio::spawn(future));
    }

    pub async fn names(&self, prefix: &str) -> Vec<RunId> {
        let listed = list_all(&self.sea.memory, prefix, View::Current).await.unwrap();
        listed
            .iter()
            .filter_map(|o| actors::run_of(&o.key, prefix))
            .collect()
    }

    pub fn pick<T: Clone>(&mut self, from: &[T]) -> Option<T> {
        let at = self.rng.below(from.len() as u64) as usize;
        from.get(at).cloned()
    }
}
