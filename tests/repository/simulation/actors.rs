//! Who acts: each does one operation at a time, as one process with its own clock, policy and state directory.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicI64;

use lifeboat::clock::{NoCrash, World};
use lifeboat::jobs::backup::Engine;
use lifeboat::jobs::{Session, hold, prune, verify};
use lifeboat::policy::RetentionRules;
use lifeboat::repository::generation::{KeyRing, parse_identities};
use lifeboat::repository::reader::OpenPoint;
use lifeboat::repository::{Repository, Settings, layout};
use lifeboat::secret::SecretText;
use lifeboat::source::{Cut, PointContent as _};
use lifeboat::store::retry::{Retry, RetryPolicy};
use lifeboat::store::{SharedStore, Store};
use lifeboat::types::{RunId, SourceName};

use super::Rng;
use super::model::Content;
use super::sea::{Actor, Sea, SkewedClock};
use crate::world::{MapSource, Seeded, noise, policy, text};

/// What an actor is about to do.
#[derive(Clone, Debug)]
pub enum Op {
    Run { cut: bool },
    Prune,
    Verify,
    Undo(RunId),
    Hold(RunId),
    Unhold(RunId),
    Restore(RunId),
}

/// How an operation ended.
#[derive(Debug)]
pub enum Done {
    Point(RunId, u64),
    Restored(RunId, Content),
    Other,
    Failed(String),
}

/// A host with its own clock, policy and state.
pub struct Host {
    pub actor: Actor,
    pub clock: Arc<SkewedClock>,
    pub world: World,
    pub policy: lifeboat::policy::Policy,
    pub state: PathBuf,
    pub versions: bool,
}

pub fn source_name() -> SourceName {
    "app".parse().unwrap()
}

impl Host {
    pub fn new(
        sea: &Sea,
        actor: Actor,
        directory: &Path,
        recipient: &str,
        rules: Option<RetentionRules>,
        seed: u64,
        versions: bool,
    ) -> Self {
        let clock = Arc::new(SkewedClock {
            time: sea.time.clone(),
            skew_ms: AtomicI64::new(0),
        });
        let world = World {
            clock: clock.clone(),
            random: Arc::new(Seeded::new(seed ^ (actor as u64) << 32)),
            crash: Arc::new(NoCrash),
        };
        let mut policy = policy(directory, &source_name(), recipient.to_owned());
        policy.state_dir = directory.join(format!("state-{actor}"));
        policy.sources.get_mut(&source_name()).unwrap().retention = rules.map(|r| ("r".to_owned(), r));
        Self {
            actor,
            clock,
            world,
            state: policy.state_dir.clone(),
            policy,
            versions,
        }
    }

    fn session(&self, store: impl Store + 'static) -> Session {
        let policy = RetryPolicy {
            attempts: 3,
            ..RetryPolicy::default()
        };
        let store = Retry::with_policy(store, &self.world, policy);
        Session {
            versions: self.versions,
            store: Some(Arc::new(store)),
            ..Session::new(self.world.clone(), self.policy.clone(), Arc::new(|_| None))
        }
    }

    /// Does it, as a future that may be dropped at any call of the store.
    pub fn act(
        &self,
        sea: &Arc<Sea>,
        op: Op,
        source: MapSource,
        identity: String,
    ) -> impl Future<Output = Done> + Send + 'static {
        let session = self.session(sea.process(self.actor));
        async move {
            let result = match op {
                Op::Run { cut } => run(&session, &source, cut).await,
                Op::Prune => prune::prune(&session, false).await.map(|_| Done::Other),
                Op::Verify => verify::verify(&session, None, None, false)
                    .await
                    .map(|_| Done::Other),
                Op::Undo(run) => prune::undo(&session, run).await.map(|_| Done::Other),
                Op::Hold(run) => hold::add(&session, run, "operator", "simulated")
                    .await
                    .map(|_| Done::Other),
                Op::Unhold(run) => hold::remove(&session, run).await.map(|_| Done::Other),
                Op::Restore(run) => {
                    let store = session.store.clone().unwrap();
                    content(store, run, &identity, session.versions)
                        .await
                        .map(|c| Done::Restored(run, c))
                }
            };
            result.unwrap_or_else(|e| Done::Failed(e.chain()))
        }
    }
}

async fn run(session: &Session, source: &MapSource, cut: bool) -> lifeboat::error::Result<Done> {
    let repository = session.open_for_writing().await?;
    let policy = &session.policy.sources[&source_name()];
    let mut engine = Engine::new(session, repository, &source_name(), policy, None)?;
    if cut {
        engine.cut_after = std::time::Duration::ZERO;
    }
    let taken = engine.take_point(source).await?;
    Ok(Done::Point(taken.commit.run, taken.bytes_stored))
}

/// Everything in a point.
pub async fn content(
    store: SharedStore,
    run: RunId,
    identity: &str,
    versions: bool,
) -> lifeboat::error::Result<Content> {
    let settings = Settings {
        versions,
        ..Settings::default()
    };
    let repository = Repository::open(store, settings, None).await?;
    let source = source_name();
    let commit = repository
        .commit(&source, run)
        .await?
        .ok_or_else(|| lifeboat::error::Error::damaged("no commit"))?;
    let mut keys = KeyRing::new(parse_identities(
        &SecretText::new(identity.to_owned()),
        "identity",
    )?);
    let open = OpenPoint::open(&repository, &source, &commit, &mut keys).await?;
    let mut content = open.content()?;
    let mut units = Content::new();
    while let Some(unit) = content.next().await? {
        let mut bytes = Vec::new();
        while let Some(part) = content.read().await? {
            bytes.extend_from_slice(&part);
        }
        units.insert(unit.name.to_string(), bytes);
    }
    Ok(units)
}

pub fn all(source: &MapSource) -> Content {
    source
        .units
        .iter()
        .map(|(n, m)| (n.clone(), m.content.clone()))
        .collect()
}

/// The application goes on: a few pages, a file more or less, a dump.
pub fn mutate(source: &mut MapSource, rng: &mut Rng) -> u64 {
    let mut changed = 0;
    if source.units.is_empty() {
        source.set("data.db", Cut::Pages, noise(16 << 13, rng.next()));
        source.set("dump", Cut::Stream, text(200_000, rng.next()));
    }
    let mut pages = source.units["data.db"].content.clone();
    for _ in 0..rng.below(4) {
        let page = rng.below(pages.len() as u64 / 8192) as usize;
        pages[page * 8192..(page + 1) * 8192].copy_from_slice(&noise(8192, rng.next()));
        changed += 8192;
    }
    match rng.below(8) {
        0 => pages.extend_from_slice(&noise(8192 * (1 + rng.below(4) as usize), rng.next())),
        1 => pages.truncate((pages.len() / 2).max(8192) / 8192 * 8192),
        _ => {}
    }
    source.set("data.db", Cut::Pages, pages);
    match rng.below(5) {
        0 => {
            let mut dump = source.units["dump"].content.clone();
            let at = rng.below(dump.len() as u64) as usize;
            dump.splice(at..at, text(3_000, rng.next()));
            changed += 300_000;
            source.set("dump", Cut::Stream, dump);
        }
        1 => {
            let name = format!("storage/{}", rng.below(6));
            let length = rng.below(30_000) as usize;
            source.set(&name, Cut::Whole, noise(length, rng.next()));
            changed += length as u64;
        }
        2 => {
            source.units.remove(&format!("storage/{}", rng.below(6)));
        }
        _ => {}
    }
    changed
}

/// The run that a commit's, hold's or tombstone's key names.
pub fn run_of(key: &lifeboat::types::Key, prefix: &str) -> Option<RunId> {
    layout::run_of_json(key, prefix)
}

/// A copy of a state directory, as a snapshot of a host holds it.
pub fn copy_directory(from: &Path, to: &Path) {
    // None there yet is a state, too.
    let _ = std::fs::remove_dir_all(to);
    if !from.exists() {
        return;
    }
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_directory(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}
