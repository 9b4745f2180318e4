//! A world of the test's own: a clock that is set, randomness that is seeded, a source that is a map.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Utc};
use lifeboat::clock::{Clock, NoCrash, Random, World};
use lifeboat::error::Result;
use lifeboat::jobs::backup::{Engine, Taken};
use lifeboat::jobs::{Session, backup};
use lifeboat::policy::{
    CatchUp, EncryptionPolicy, Objective, PocketBasePlace, PocketBasePolicy, Policy, PrunePolicy,
    RepositoryPolicy, RetentionRules, SourceKind, SourcePolicy, StoreUrl, VerifyPolicy,
};
use lifeboat::repository::generation::{KeyRing, parse_identities};
use lifeboat::repository::reader::OpenPoint;
use lifeboat::repository::{Repository, Settings};
use lifeboat::secret::SecretText;
use lifeboat::source::{
    Attributes, Capture, Captured, Context, Cut, Finding, PointContent, Source, UnitHead,
};
use lifeboat::store::SharedStore;
use lifeboat::types::{RunId, SourceName, UnitName};
use tokio::io::AsyncRead;

/// A clock that stands until it is moved.
#[derive(Debug)]
pub struct TestClock(Mutex<DateTime<Utc>>, AtomicU64);

impl TestClock {
    pub fn at(start: DateTime<Utc>) -> Self {
        Self(Mutex::new(start), AtomicU64::new(0))
    }
    pub fn advance(&self, by: TimeDelta) {
        *self.0.lock().unwrap() += by;
        self.1.fetch_add(
            u64::try_from(by.num_milliseconds()).unwrap_or(0),
            Ordering::SeqCst,
        );
    }
}

#[async_trait]
impl Clock for TestClock {
    fn now(&self) -> DateTime<Utc> {
        // Every look is a millisecond later, so that ids sort by the order of their making.
        let mut now = self.0.lock().unwrap();
        *now += TimeDelta::milliseconds(1);
        *now
    }
    fn since_boot(&self) -> Duration {
        Duration::from_millis(self.1.load(Ordering::SeqCst))
    }
    async fn sleep(&self, duration: Duration) {
        if duration < Duration::from_secs(3600) {
            self.advance(TimeDelta::from_std(duration).unwrap());
        } else {
            // Timeouts of a day: nothing in a test takes that long.
            std::future::pending::<()>().await;
        }
    }
}

/// A stream of bytes from a seed.
#[derive(Debug)]
pub struct Seeded(Mutex<blake3::OutputReader>);

impl Seeded {
    pub fn new(seed: u64) -> Self {
        Self(Mutex::new(
            blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof(),
        ))
    }
}

impl Random for Seeded {
    fn fill(&self, buffer: &mut [u8]) -> Result<()> {
        self.0.lock().unwrap().fill(buffer);
        Ok(())
    }
}

pub fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new()
        .update(&seed.to_le_bytes())
        .finalize_xof()
        .fill(&mut bytes);
    bytes
}

/// Text that compresses about threefold.
pub fn text(length: usize, seed: u64) -> Vec<u8> {
    noise(length / 2 + 1, seed)
        .iter()
        .flat_map(|b| [b'a' + (b & 15), b' '])
        .take(length)
        .collect()
}

/// What a unit is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    pub cut: Cut,
    pub content: Vec<u8>,
    pub stamp: Option<String>,
}

/// A source that is a map.
#[derive(Clone, Debug, Default)]
pub struct MapSource {
    pub units: BTreeMap<String, Made>,
    pub at: Option<DateTime<Utc>>,
    /// Names whose content was read.
    pub read: Arc<Mutex<Vec<String>>>,
    /// Fails when this unit is read to its end.
    pub fail_at: Option<String>,
    /// The clock goes on by so much before each unit.
    pub slow: Option<(Arc<TestClock>, TimeDelta)>,
    /// The clock goes on by so much at each read.
    pub slow_read: Option<(Arc<TestClock>, TimeDelta)>,
}

struct Slow {
    content: std::io::Cursor<Vec<u8>>,
    clock: Arc<TestClock>,
    by: TimeDelta,
}

impl AsyncRead for Slow {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
        buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        self.clock.advance(self.by);
        std::pin::Pin::new(&mut self.content).poll_read(context, buffer)
    }
}

impl MapSource {
    pub fn with(mut self, name: &str, cut: Cut, content: Vec<u8>) -> Self {
        self.set(name, cut, content);
        self
    }
    pub fn set(&mut self, name: &str, cut: Cut, content: Vec<u8>) {
        self.units.insert(
            name.to_owned(),
            Made {
                cut,
                content,
                stamp: None,
            },
        );
    }
}

struct MapCapture {
    source: MapSource,
    names: std::vec::IntoIter<String>,
    current: Option<String>,
    now: DateTime<Utc>,
}

#[async_trait]
impl Source for MapSource {
    async fn check(&self, _world: &World) -> Vec<Finding> {
        Vec::new()
    }
    async fn capture(&self, context: Context) -> Result<Box<dyn Capture>> {
        let names: Vec<String> = self.units.keys().cloned().collect();
        Ok(Box::new(MapCapture {
            source: self.clone(),
            names: names.into_iter(),
            current: None,
            now: self.at.unwrap_or_else(|| context.world.clock.now()),
        }))
    }
}

#[async_trait]
impl Capture for MapCapture {
    async fn next(&mut self) -> Result<Option<UnitHead>> {
        self.current = self.names.next();
        if let Some((clock, by)) = &self.source.slow {
            clock.advance(*by);
        }
        let Some(name) = &self.current else {
            return Ok(None);
        };
        let made = &self.source.units[name];
        Ok(Some(UnitHead {
            name: UnitName::from_bytes(name.as_bytes())?,
            cut: made.cut,
            attributes: Attributes::default(),
            size_hint: None,
            stamp: made.stamp.clone(),
        }))
    }
    async fn open(&mut self) -> Result<Box<dyn AsyncRead + Send + Unpin>> {
        let name = self.current.clone().unwrap();
        self.source.read.lock().unwrap().push(name.clone());
        let content = std::io::Cursor::new(self.source.units[&name].content.clone());
        Ok(match &self.source.slow_read {
            Some((clock, by)) => Box::new(Slow {
                content,
                clock: clock.clone(),
                by: *by,
            }),
            None => Box::new(content),
        })
    }
    async fn close(&mut self) -> Result<()> {
        if self.current.is_some() && self.current == self.source.fail_at {
            return Err(lifeboat::error::Error::failed("the dump ended in the middle"));
        }
        Ok(())
    }
    async fn finish(&mut self) -> Result<Captured> {
        Ok(Captured {
            at: self.now,
            source_clock: self.now,
            host_clock: self.now,
            clock_spread_ms: 0,
            facts: serde_json::json!({"units": self.source.units.len()}),
            warnings: Vec::new(),
        })
    }
    async fn cleanup(&mut self) {}
}

/// A repository in a store of the test's choice, and what is needed to use it.
pub struct Fixture {
    pub clock: Arc<TestClock>,
    pub session: Session,
    pub source: SourceName,
    pub cut_after: Duration,
    _directory: tempfile::TempDir,
}

impl Fixture {
    /// With a store made from the world.
    pub async fn new(seed: u64, store: impl FnOnce(&World) -> SharedStore) -> Self {
        let start = DateTime::from_timestamp(1_790_000_000, 0).unwrap();
        let clock = Arc::new(TestClock::at(start));
        let random = Seeded::new(seed);
        let world = World {
            clock: clock.clone(),
            random: Arc::new(random),
            crash: Arc::new(NoCrash),
        };
        let directory = tempfile::tempdir().unwrap();
        let recipient = lifeboat::jobs::keys::generate(&world, &directory.path().join("identity")).unwrap();
        let source: SourceName = "app".parse().unwrap();
        let policy = policy(directory.path(), &source, recipient);
        let store = store(&world);
        let session = Session {
            store: Some(store),
            ..Session::new(world, policy, Arc::new(|_| None))
        };
        session.init().await.unwrap();
        Self {
            clock,
            session,
            source,
            cut_after: backup::CUT_AFTER,
            _directory: directory,
        }
    }
    pub fn set_retention(&mut self, rules: RetentionRules) {
        let policy = Arc::make_mut(&mut self.session.policy);
        policy.sources.get_mut(&self.source).unwrap().retention = Some(("r".into(), rules));
    }
    /// The identity file; the session has none unless a test gives it.
    pub fn identity(&self) -> std::path::PathBuf {
        self._directory.path().join("identity")
    }
    pub fn state_dir(&self) -> &Path {
        &self.session.policy.state_dir
    }
    pub async fn repository(&self) -> Repository {
        let store = self.session.store.clone().unwrap();
        Repository::open(store, Settings::default(), None).await.unwrap()
    }
    pub async fn place(&self, run: RunId) -> lifeboat::repository::documents::Place {
        self.repository().await.place(&self.source, run)
    }
    pub async fn run(&self, source: &MapSource) -> Result<Taken> {
        let repository = self.session.open_for_writing().await?;
        let policy = &self.session.policy.sources[&self.source];
        let mut engine = Engine::new(&self.session, repository, &self.source, policy, None)?;
        engine.cut_after = self.cut_after;
        engine.take_point(source).await
    }
    /// Everything in a point.
    pub async fn content(&self, run: RunId) -> Result<BTreeMap<String, Vec<u8>>> {
        self.content_with(run, &self.identity()).await
    }
    /// The same with another identity.
    pub async fn content_with(&self, run: RunId, identity: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
        let repository = self.repository().await;
        let commit = repository
            .commit(&self.source, run)
            .await?
            .expect("the commit is there");
        let text = std::fs::read_to_string(identity).unwrap();
        let mut keys = KeyRing::new(parse_identities(&SecretText::new(text), "identity")?);
        let open = OpenPoint::open(&repository, &self.source, &commit, &mut keys).await?;
        let mut content = open.content()?;
        let mut units = BTreeMap::new();
        while let Some(unit) = content.next().await? {
            let mut bytes = Vec::new();
            while let Some(part) = content.read().await? {
                bytes.extend_from_slice(&part);
            }
            assert_eq!(bytes.len() as u64, unit.size);
            units.insert(unit.name.to_string(), bytes);
        }
        Ok(units)
    }
    pub async fn assert_restores(&self, run: RunId, source: &MapSource) {
        let wanted: BTreeMap<String, Vec<u8>> = source
            .units
            .iter()
            .map(|(n, m)| (n.clone(), m.content.clone()))
            .collect();
        assert!(
            self.content(run).await.unwrap() == wanted,
            "point {run} restores to other bytes"
        );
    }
}

pub fn policy(directory: &Path, source: &SourceName, recipient: String) -> Policy {
    let source_policy = SourcePolicy {
        kind: SourceKind::PocketBase(PocketBasePolicy {
            place: PocketBasePlace::Local(directory.join("pb_data")),
            logs: true,
            storage: true,
            settings_key: None,
        }),
        schedule: None,
        timezone: chrono_tz::UTC,
        follow: None,
        retention: None,
        objective: Objective::default(),
        jitter: Duration::ZERO,
        catch_up: CatchUp::Once,
        max_age: Duration::from_secs(86_400),
        timeout: Duration::from_secs(86_400),
        stall_timeout: Duration::from_secs(600),
        priority: 0,
        refresh: None,
        blackout: Vec::new(),
    };
    Policy {
        path: directory.join("policy.toml"),
        environment: "development".parse().unwrap(),
        timezone: chrono_tz::UTC,
        repository: RepositoryPolicy {
            url: StoreUrl::Directory(directory.join("repository")),
            endpoint: None,
            region: None,
            path_style: None,
            ca_file: None,
            max_rate: None,
            grace: Duration::from_secs(72 * 3600),
            object_lock: None,
            versions: false,
            credentials: None,
        },
        encryption: EncryptionPolicy {
            recipients: vec![recipient],
            identity: None,
        },
        prune: Some(PrunePolicy {
            schedule: None,
            credentials: None,
            versions: false,
        }),
        sources: BTreeMap::from([(source.clone(), source_policy)]),
        drills: BTreeMap::new(),
        evidence_key: None,
        verify: VerifyPolicy::default(),
        state_dir: directory.join("state"),
        concurrency: 2,
        http: lifeboat::policy::HttpPolicy::default(),
        notify: BTreeMap::new(),
    }
}
