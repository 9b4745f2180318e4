//! The golden repositories: every point gives the bytes that its maker saw, by the library and by restore.py, and this
//! build goes on from them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::SystemTime;

use chrono::{DateTime, TimeDelta, Utc};
use lifeboat::clock::{NoCrash, World};
use lifeboat::error::{Kind, Result};
use lifeboat::jobs::backup::{Engine, Taken};
use lifeboat::jobs::{Session, prune, verify};
use lifeboat::policy::RetentionRules;
use lifeboat::repository::generation::{KeyRing, parse_identities};
use lifeboat::repository::reader::OpenPoint;
use lifeboat::repository::{Repository, Settings};
use lifeboat::secret::SecretText;
use lifeboat::source::{Cut, PointContent as _};
use lifeboat::store::SharedStore;
use lifeboat::store::directory::DirectoryStore;
use lifeboat::types::{RunId, SourceName};

use crate::kept::{self, Copied, Golden, Point};
use crate::world::{MapSource, Seeded, TestClock, policy};

/// A copy and a session of this build on it.
struct Place {
    golden: Golden,
    copied: Copied,
    session: Session,
    directory: tempfile::TempDir,
}

fn places() -> Vec<Place> {
    kept::all().into_iter().map(Place::new).collect()
}

fn recipient(key: &Path) -> String {
    let text = std::fs::read_to_string(key).unwrap();
    let line = text.lines().find_map(|l| l.strip_prefix("# public key: "));
    line.unwrap().to_owned()
}

impl Place {
    fn new(golden: Golden) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let copied = golden.copy(&directory.path().join("copy"));
        // A day after the last point, whatever the clock of this machine says.
        let last = golden.expected.points.iter().map(|p| &p.at).max().unwrap();
        let last: DateTime<Utc> = last.parse().unwrap();
        let world = World {
            clock: Arc::new(TestClock::at(last + TimeDelta::days(1))),
            random: Arc::new(Seeded::new(7)),
            crash: Arc::new(NoCrash),
        };
        let app: SourceName = "app".parse().unwrap();
        let mut policy = policy(directory.path(), &app, recipient(&copied.identity()));
        policy
            .encryption
            .recipients
            .push(recipient(&copied.second_identity()));
        policy.environment = golden.expected.environment.parse().unwrap();
        for name in ["orders", "shop"] {
            let source = policy.sources[&app].clone();
            policy.sources.insert(name.parse().unwrap(), source);
        }
        let session = Session {
            identity_file: Some(copied.identity()),
            store: Some(Arc::new(DirectoryStore::open(copied.repository())) as SharedStore),
            ..Session::new(world, policy, Arc::new(|_| None))
        };
        Self {
            golden,
            copied,
            session,
            directory,
        }
    }

    /// Everything in a point, as this build reads it.
    async fn content(
        &self,
        source: &str,
        run: &str,
        identity: &Path,
    ) -> Result<BTreeMap<String, (Cut, Vec<u8>)>> {
        let store = self.session.store.clone().unwrap();
        let repository = Repository::open(store, Settings::default(), None).await?;
        let source: SourceName = source.parse()?;
        let commit = repository.commit(&source, run.parse()?).await?.unwrap();
        let text = SecretText::new(std::fs::read_to_string(identity).unwrap());
        let mut keys = KeyRing::new(parse_identities(&text, "the identity")?);
        let open = OpenPoint::open(&repository, &source, &commit, &mut keys).await?;
        let mut content = open.content()?;
        let mut units = BTreeMap::new();
        while let Some(unit) = content.next().await? {
            let mut bytes = Vec::new();
            while let Some(part) = content.read().await? {
                bytes.extend_from_slice(&part);
            }
            let name = unit.name.to_string();
            let cut = if name.ends_with(".db") {
                Cut::Pages
            } else {
                Cut::Whole
            };
            units.insert(name, (cut, bytes));
        }
        Ok(units)
    }

    async fn assert_point(&self, point: &Point, identity: &Path) {
        let content = self.content(&point.source, &point.run, identity).await.unwrap();
        let mut files: Vec<(String, Vec<u8>)> = content.into_iter().map(|(n, (_, b))| (n, b)).collect();
        // A restore of a PocketBase compares with its facts and does not write them.
        if point.kind == "pocketbase" {
            let before = files.len();
            files.retain(|(name, _)| name != "facts.json");
            assert!(
                point.partial || files.len() + 1 == before,
                "{} has no facts",
                point.run
            );
        }
        assert_eq!(
            kept::digests(&files),
            point.files,
            "{} {}",
            point.source,
            point.run
        );
    }

    /// The script of today, and the one that was put into the repository.
    fn scripts(&self) -> [PathBuf; 2] {
        let today = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/restore.py");
        [today, self.copied.repository().join("restore.py")]
    }

    fn script(&self, script: &Path, arguments: &[&str]) -> (i32, String) {
        let output = Command::new("python3")
            .arg(script)
            .arg(self.copied.repository())
            .args(arguments)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code().unwrap(), said)
    }

    async fn run(&self, source: &str, units: &MapSource) -> Taken {
        let repository = self.session.open_for_writing().await.unwrap();
        let name: SourceName = source.parse().unwrap();
        let policy = &self.session.policy.sources[&name];
        let engine = Engine::new(&self.session, repository, &name, policy, None).unwrap();
        engine.take_point(units).await.unwrap()
    }

    fn set_retention(&mut self, rules: RetentionRules) {
        let policy = Arc::make_mut(&mut self.session.policy);
        for source in policy.sources.values_mut() {
            source.retention = Some(("few".into(), rules));
        }
    }

    /// Makes every object ten days older.
    fn age(&self) {
        let then = SystemTime::from(World::system().clock.now() - TimeDelta::days(10));
        let mut left = vec![self.copied.repository()];
        while let Some(directory) = left.pop() {
            for entry in std::fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    left.push(path);
                } else {
                    let file = std::fs::File::options().write(true).open(&path).unwrap();
                    file.set_modified(then).unwrap();
                }
            }
        }
    }
}

fn files_of(directory: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    let mut left: Vec<PathBuf> = vec![directory.to_owned()];
    while let Some(next) = left.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                left.push(path);
            } else {
                let name = path.strip_prefix(directory).unwrap().to_str().unwrap().to_owned();
                found.push((name, std::fs::read(path).unwrap()));
            }
        }
    }
    found
}

/// What a fixture must hold for these tests to mean something.
#[test]
fn the_golden_repositories_hold_one_of_every_kind() {
    for golden in kept::all() {
        let points = &golden.expected.points;
        let any = |wanted: &dyn Fn(&Point) -> bool| assert!(points.iter().any(wanted), "{:?}", golden.path);
        for kind in ["postgres-logical", "pocketbase"] {
            any(&|p| p.kind == kind && p.is_offered());
            any(&|p| p.kind == kind && p.manifest_depth > 1);
        }
        for wanted in [
            |p: &Point| p.partial,
            |p: &Point| p.tombstoned,
            |p: &Point| p.held,
            |p: &Point| p.damaged,
            |p: &Point| p.manifest_depth == 9,
        ] {
            any(&wanted);
        }
        let generations: std::collections::BTreeSet<_> = points.iter().map(|p| &p.generation).collect();
        assert!(generations.len() >= 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_golden_point_restores_to_its_bytes_with_either_identity() {
    for place in places() {
        for point in &place.golden.expected.points {
            for identity in [place.copied.identity(), place.copied.second_identity()] {
                if point.damaged {
                    let read = place.content(&point.source, &point.run, &identity).await;
                    assert_eq!(read.unwrap_err().kind(), Kind::Damaged, "{}", point.run);
                } else {
                    place.assert_point(point, &identity).await;
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn restore_py_gives_every_golden_point() {
    for place in places() {
        let identity = place.copied.second_identity();
        for (n, script) in place.scripts().iter().enumerate() {
            for point in place.golden.expected.points.iter().filter(|p| !p.partial) {
                let to = place.directory.path().join(format!("{n}-{}", point.run));
                let (code, said) = place.script(
                    script,
                    &[
                        "restore",
                        &point.source,
                        "--run",
                        &point.run,
                        "--identity",
                        identity.to_str().unwrap(),
                        "--to",
                        to.to_str().unwrap(),
                    ],
                );
                assert_eq!(code, if point.damaged { 21 } else { 0 }, "{said}");
                if code == 0 {
                    assert_eq!(kept::digests(&files_of(&to)), point.files, "{}", point.run);
                }
            }
            for (source, code) in [("app", 0), ("orders", 0), ("shop", 21)] {
                assert_eq!(place.script(script, &["verify", source]).0, code, "{source}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_finds_the_recorded_damage_of_a_golden_repository_and_no_other() {
    for place in places() {
        let damaged: Vec<&Point> = place
            .golden
            .expected
            .points
            .iter()
            .filter(|p| p.damaged)
            .collect();
        let records = || {
            let files = files_of(&place.copied.repository());
            files.iter().filter(|(n, _)| n.contains("/damaged/")).count()
        };
        let before = records();
        let report = verify::verify(&place.session, None, None, true).await.unwrap();
        assert!(report.missing.is_empty(), "{report:?}");
        assert_eq!(report.damaged.len(), damaged.len(), "{report:?}");
        for (problem, point) in report.damaged.iter().zip(damaged) {
            assert!(problem.key.contains(&point.run), "{report:?}");
        }
        assert_eq!(records(), before, "nothing new is recorded");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_goes_on_from_a_golden_repository() {
    for place in places() {
        for source in ["app", "shop"] {
            let newest = place.golden.offered(source).last().unwrap();
            let content = place.content(source, &newest.run, &place.copied.identity()).await;
            let mut units = MapSource::default();
            for (name, (cut, bytes)) in content.unwrap() {
                units.set(&name, cut, bytes);
            }
            let mut data = units.units["data.db"].content.clone();
            data[8192..16384].fill(0xA5);
            units.set("data.db", Cut::Pages, data);
            let taken = place.run(source, &units).await;
            let commit = &taken.commit;
            assert_eq!(commit.parent.map(|p| p.to_string()), Some(newest.run.clone()));
            assert_eq!(commit.manifest_depth, newest.manifest_depth % 9 + 1);
            assert!(
                commit.bytes.reused >= commit.bytes.content - 16_384,
                "nothing but the page is stored: {:?}",
                commit.bytes
            );
            let run = commit.run.to_string();
            let restored = place
                .content(source, &run, &place.copied.identity())
                .await
                .unwrap();
            assert_eq!(restored.len(), units.units.len());
            for (name, (_, bytes)) in restored {
                assert!(bytes == units.units[&name].content, "{source}: {name}");
            }
        }
        for point in place.golden.expected.points.iter().filter(|p| !p.damaged) {
            place.assert_point(point, &place.copied.identity()).await;
        }
        let report = verify::verify(&place.session, None, None, true).await.unwrap();
        assert_eq!((report.damaged.len(), report.missing.len()), (1, 0), "{report:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn prune_breaks_no_kept_point_of_a_golden_repository() {
    for mut place in places() {
        place.set_retention(RetentionRules {
            daily: 1,
            ..RetentionRules::default()
        });
        let gone = |run: &str, source: &str| {
            let commit = format!("sources/{source}/points/{run}.json");
            !place.copied.repository().join(commit).exists()
        };
        let mut swept: Vec<RunId> = Vec::new();
        for _ in 0..3 {
            place.age();
            let report = prune::prune(&place.session, false).await.unwrap();
            swept.extend(report.sweep.iter().map(|s| s.run));
        }
        let points = &place.golden.expected.points;
        let was_swept = |p: &Point| swept.contains(&p.run.parse().unwrap());
        assert!(points.iter().any(|p| p.tombstoned && was_swept(p)));
        assert!(points.iter().any(|p| p.partial && was_swept(p)));
        assert!(points.iter().any(|p| p.held && !was_swept(p)));
        for source in ["app", "orders", "shop"] {
            let newest: Vec<_> = place.golden.offered(source).collect();
            assert!(newest.len() >= 2, "{source}");
            assert!(
                newest[newest.len() - 2..].iter().all(|p| !was_swept(p)),
                "{source}"
            );
        }
        for point in points {
            assert_eq!(gone(&point.run, &point.source), was_swept(point), "{}", point.run);
            if !was_swept(point) && !point.damaged {
                place.assert_point(point, &place.copied.identity()).await;
            }
        }
        let report = verify::verify(&place.session, None, None, true).await.unwrap();
        let told = |p: &lifeboat::jobs::report::Problem| {
            points
                .iter()
                .any(|point| point.damaged && p.key.contains(&point.run))
        };
        assert!(
            report.missing.is_empty() && report.damaged.iter().all(told),
            "{report:?}"
        );
    }
}
