//! A daemon in this process, on a clock of the test's.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use lifeboat::clock::{Clock, CrashPoints, NoCrash, SystemRandom, World};
use lifeboat::daemon::{self, Asked, Given, Shown};
use lifeboat::error::Result;
use lifeboat::jobs::Session;
use lifeboat::jobs::session::Lookup;
use lifeboat::state::StateDir;
use lifeboat::state::ledger::Ledger;
use lifeboat::types::RunId;
use serde_json::Value;
use tokio::runtime::Runtime;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::clock::Hands;
use crate::harness::write_file;
use crate::site::Site;

pub struct Port {
    pub site: Site,
    pub clock: Arc<Hands>,
    pub crash: Arc<dyn CrashPoints>,
    running: Option<Running>,
}

struct Running {
    /// Its own, so that a kill leaves nothing of it behind.
    runtime: Runtime,
    work: JoinHandle<Result<()>>,
    cancel: CancellationToken,
    reload: Arc<Notify>,
    wake: Arc<Notify>,
    ask: mpsc::Sender<Asked>,
    /// What is shown, and how often it was told.
    shown: watch::Receiver<(u64, Shown)>,
}

pub fn at(text: &str) -> DateTime<Utc> {
    text.parse().unwrap()
}

/// A session of a site's policy, on a clock.
pub fn session(site: &Site, clock: Arc<dyn Clock>) -> Session {
    let lookup: Lookup = Arc::new(|_| None);
    let policy = lifeboat::policy::load(&site.path("policy.toml"), &*lookup).unwrap();
    Session::new(
        World {
            clock,
            random: Arc::new(SystemRandom),
            crash: Arc::new(NoCrash),
        },
        policy,
        lookup,
    )
}

/// Everything was looked at, and nothing is under way.
pub fn rests(shown: &Shown) -> bool {
    let rests = |t: &daemon::ShownTask| t.known && t.running.is_none() && t.waiting.is_none();
    // A repository that is away is asked again later.
    let asked = |s: &daemon::points::ShownSource| !s.looking;
    shown.tasks.iter().all(rests) && shown.sources.iter().all(asked)
}

/// Ends a runtime: tasks where they wait, system calls when they return.
async fn end(runtime: Runtime) {
    tokio::task::spawn_blocking(move || runtime.shutdown_timeout(Duration::from_secs(60)))
        .await
        .unwrap();
}

impl Port {
    /// With a repository, and a source with this schedule and these other keys.
    pub fn new(seed: u64, schedule: &str, more: &str) -> Self {
        let site = Site::new(seed);
        let port = Self {
            site,
            clock: Arc::new(Hands::new(at("2026-11-26T00:00:30Z"))),
            crash: Arc::new(NoCrash),
            running: None,
        };
        port.schedule(schedule, more);
        port
    }
    /// Gives the source another schedule.
    pub fn schedule(&self, schedule: &str, more: &str) {
        self.site.write_policy(&self.site.directory_policy());
        let policy = std::fs::read_to_string(self.site.path("policy.toml")).unwrap();
        let scheduled = policy.replace(
            "retention = \"short\"\n",
            &format!("retention = \"short\"\nschedule = \"{schedule}\"\n{more}\n"),
        );
        write_file(self.site.dir.path(), "policy.toml", scheduled);
    }
    fn session(&self, cancel: CancellationToken) -> Session {
        let mut session = session(&self.site, self.clock.clone());
        session.world.crash = self.crash.clone();
        Session { cancel, ..session }
    }
    pub fn start(&mut self) {
        assert!(self.running.is_none());
        let (cancel, reload, wake) = (
            CancellationToken::new(),
            Arc::new(Notify::new()),
            Arc::new(Notify::new()),
        );
        let (ask, asked) = mpsc::channel(1);
        let (tell, shown) = watch::channel((0, Shown::default()));
        let path: PathBuf = self.site.path("policy.toml");
        let given = Given {
            session: self.session(cancel.clone()),
            lock: StateDir::open(&self.site.path("state"))
                .and_then(|state| state.lock_daemon())
                .unwrap(),
            load: Arc::new(move || lifeboat::policy::load(&path, &|_: &str| None)),
            reload: reload.clone(),
            wake: wake.clone(),
            asked,
            tell: Arc::new(move |now: &Shown| {
                tell.send_modify(|(count, shown)| (*count, *shown) = (*count + 1, now.clone()))
            }),
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        self.running = Some(Running {
            work: runtime.spawn(daemon::run(given)),
            runtime,
            cancel,
            reload,
            wake,
            ask,
            shown,
        });
    }
    fn running(&mut self) -> &mut Running {
        self.running.as_mut().unwrap()
    }
    /// Wakes it, and waits until it has looked at everything and nothing is under way.
    pub async fn rest(&mut self) -> Shown {
        self.until(rests).await
    }
    /// As [`Self::rest`], while time goes by: what a kill left locked for a moment is tried again later.
    pub async fn rest_in_time(&mut self) -> Shown {
        loop {
            let rest = tokio::time::timeout(Duration::from_secs(2), self.rest());
            match rest.await {
                Ok(shown) => return shown,
                Err(_) => self.clock.advance(TimeDelta::seconds(31)),
            }
        }
    }
    /// Waits until nothing is owed, while time goes by: a delivery that was under way may fail, and is tried again later.
    pub async fn told_in_time(&mut self) -> Shown {
        loop {
            let told = self.until(|shown| shown.owed == 0 && rests(shown));
            match tokio::time::timeout(Duration::from_secs(5), told).await {
                Ok(shown) => return shown,
                Err(_) => self.clock.advance(TimeDelta::minutes(61)),
            }
        }
    }
    pub async fn until(&mut self, what: impl Fn(&Shown) -> bool) -> Shown {
        let running = self.running();
        let from = running.shown.borrow().0;
        let shown = running.shown.clone();
        let looked = async {
            // Two looks after the wake: the first may have begun before it.
            let mut looks = from;
            loop {
                running.wake.notify_one();
                let seen = running.shown.wait_for(|(count, _)| *count > looks).await;
                let (count, shown) = seen.expect("the daemon goes on").clone();
                looks = count;
                if count >= from + 2 && what(&shown) {
                    return shown;
                }
            }
        };
        let done = tokio::time::timeout(Duration::from_secs(60), looked).await;
        done.unwrap_or_else(|_| panic!("it does not come to rest: {:#?}", shown.borrow().1))
    }
    pub async fn advance(&mut self, by: TimeDelta) -> Shown {
        self.clock.advance(by);
        self.rest().await
    }
    /// Asks for a run now; whether it will be made.
    pub async fn ask_to_run(&mut self) -> bool {
        let (taken, answer) = oneshot::channel();
        let source = "app".parse().unwrap();
        self.running().ask.send(Asked { source, taken }).await.unwrap();
        answer.await.unwrap()
    }
    pub fn ask_to_reload(&mut self) {
        self.running().reload.notify_one();
    }
    /// As a kill would: nothing of it goes on.
    pub async fn kill(&mut self) {
        let running = self.running.take().unwrap();
        end(running.runtime).await;
    }
    /// The beginning of [`Self::stop`].
    pub fn cancel(&mut self) {
        self.running().cancel.cancel();
    }
    /// As SIGTERM does.
    pub async fn stop(&mut self) {
        let running = self.running.take().unwrap();
        running.cancel.cancel();
        let mut work = running.work;
        let mut patience = 0..60;
        loop {
            match tokio::time::timeout(Duration::from_secs(1), &mut work).await {
                Ok(done) => break done.unwrap().unwrap(),
                // What hangs is given some time to end.
                Err(_) => self.clock.advance(TimeDelta::seconds(7)),
            }
            assert!(patience.next().is_some(), "it does not end");
        }
        end(running.runtime).await;
    }
    /// The ledger; the daemon must not be running.
    pub fn ledger(&self) -> Ledger {
        Ledger::open(&self.site.path("state")).unwrap().0
    }
    /// The full commits of the source: run and slot.
    pub fn commits(&self) -> BTreeMap<RunId, Option<DateTime<Utc>>> {
        commits(&self.site)
    }
    pub fn slots(&self) -> Vec<DateTime<Utc>> {
        self.commits().into_values().flatten().collect()
    }
}

/// The full commits of a site's source: run and slot.
pub fn commits(site: &Site) -> BTreeMap<RunId, Option<DateTime<Utc>>> {
    let points = site.path("repository/sources/app/points");
    let mut commits = BTreeMap::new();
    for name in crate::site::entries(&points) {
        let text = std::fs::read_to_string(points.join(&name)).unwrap();
        let commit: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        if commit["partial"] != Value::Bool(true) {
            let slot = commit["slot"].as_str().map(at);
            commits.insert(name.trim_end_matches(".json").parse().unwrap(), slot);
        }
    }
    commits
}
