//! restore.py beside our own reader: every point of a chain, every kind of unit, equal byte for byte; and what it says
//! when objects are damaged.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

use lifeboat::source::Cut;
use lifeboat::store::SharedStore;
use lifeboat::store::directory::DirectoryStore;
use lifeboat::types::{RunId, UnitName};

use crate::world::{Fixture, MapSource, noise, text};
use crate::{in_directory, pages};

fn script(repository: &Path, arguments: &[&str]) -> Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/restore.py");
    Command::new("python3")
        .arg(script)
        .arg(repository)
        .args(arguments)
        .output()
        .unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

/// Restores a point by the script, and gives what it wrote by unit name.
fn by_script(fixture: &Fixture, repository: &Path, run: RunId, to: &Path) -> BTreeMap<String, Vec<u8>> {
    let identity = fixture.identity();
    let output = script(
        repository,
        &[
            "restore",
            "app",
            "--run",
            &run.to_string(),
            "--identity",
            identity.to_str().unwrap(),
            "--to",
            to.to_str().unwrap(),
        ],
    );
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let mut found = BTreeMap::new();
    let mut left = vec![to.to_owned()];
    while let Some(directory) = left.pop() {
        for entry in std::fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                left.push(path);
            } else {
                use std::os::unix::ffi::OsStrExt as _;
                let name =
                    UnitName::from_bytes(path.strip_prefix(to).unwrap().as_os_str().as_bytes()).unwrap();
                found.insert(name.to_string(), std::fs::read(&path).unwrap());
            }
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn restore_py_gives_the_same_bytes_for_every_point_of_a_chain() {
    let (fixture, directory) = in_directory(40).await;
    let repository = directory.path().to_owned();
    let mut source = MapSource::default()
        .with("empty", Cut::Whole, Vec::new())
        .with("dir/pages", Cut::Pages, noise((33 << 20) + 100, 1))
        .with("dir/stream", Cut::Stream, text(37 << 20, 2))
        .with("dir/one stretch", Cut::Pages, noise(16 << 20, 3))
        .with("ö%2F\n\"'; rm -rf $HOME `x`", Cut::Whole, text(4000, 4))
        .with("going", Cut::Stream, text(20 << 20, 5));
    let mut points = vec![(fixture.run(&source).await.unwrap().commit.run, source.clone())];
    source.units.remove("going");
    source.set(
        "dir/pages",
        Cut::Pages,
        pages(
            source.units["dir/pages"].content[..32 << 20].to_vec(),
            &[1, 2000, 4000],
            9,
        ),
    );
    points.push((fixture.run(&source).await.unwrap().commit.run, source.clone()));
    source.set("dir/pages", Cut::Pages, noise(9 << 20, 1));
    let mut stream = source.units["dir/stream"].content.clone();
    stream.splice(100..100, text(5000, 8));
    source.set("dir/stream", Cut::Stream, stream);
    points.push((fixture.run(&source).await.unwrap().commit.run, source.clone()));
    let target = tempfile::tempdir().unwrap();
    for (n, (run, source)) in points.iter().enumerate() {
        let theirs = by_script(&fixture, &repository, *run, &target.path().join(n.to_string()));
        let ours = fixture.content(*run).await.unwrap();
        assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>());
        assert!(ours == theirs, "point {n} differs");
        let raw =
            |name: &String| String::from_utf8(UnitName::try_from(name.clone()).unwrap().to_bytes()).unwrap();
        assert!(
            ours.iter()
                .all(|(name, bytes)| source.units[&raw(name)].content == *bytes)
        );
    }
    assert_eq!(code(&script(&repository, &["verify"])), 0);
    let list = String::from_utf8(script(&repository, &["list"]).stdout).unwrap();
    assert!(
        points.iter().all(|(run, _)| list.contains(&run.to_string())),
        "{list}"
    );
    // The newest point is what --at latest takes.
    let needs = String::from_utf8(script(&repository, &["needs", "app", "--at", "latest"]).stdout).unwrap();
    assert!(needs.contains(&format!("points/{}.json", points[2].0)));
    assert!(needs.lines().all(|key| repository.join(key).is_file()), "{needs}");
}

#[tokio::test(flavor = "multi_thread")]
async fn restore_py_tells_damage_a_wrong_key_and_a_wrong_time() {
    let (fixture, directory) = in_directory(41).await;
    let repository = directory.path().to_owned();
    let source = MapSource::default().with("data", Cut::Pages, text(3 << 20, 1));
    let run = fixture.run(&source).await.unwrap().commit.run.to_string();
    let target = tempfile::tempdir().unwrap();
    let to = |n: &str| target.path().join(n).display().to_string();
    let identity = fixture.identity().display().to_string();
    let restore = |n: &str, at: &str, identity: &str| {
        code(&script(
            &repository,
            &[
                "restore",
                "app",
                "--at",
                at,
                "--identity",
                identity,
                "--to",
                &to(n),
            ],
        ))
    };
    assert_eq!(restore("early", "2001-01-01T00:00:00Z", &identity), 20);
    let wrong = target.path().join("wrong");
    lifeboat::jobs::keys::generate(&fixture.session.world, &wrong).unwrap();
    assert_eq!(restore("key", "latest", wrong.to_str().unwrap()), 12);
    assert_eq!(code(&script(target.path(), &["list"])), 10);
    assert_eq!(code(&script(&repository, &["list", "nothere"])), 2);
    assert_eq!(restore("good", "latest", &identity), 0);
    assert_eq!(
        restore("good", "latest", &identity),
        2,
        "a target with something in it"
    );
    let prefix = repository.join("sources/app/runs").join(&run);
    let commit = repository.join("sources/app/points").join(format!("{run}.json"));
    for file in ["0.age", "manifest.age", "refs", "SHA256SUMS"]
        .map(|n| prefix.join(n))
        .into_iter()
        .chain([commit.clone()])
    {
        let good = std::fs::read(&file).unwrap();
        let mut flipped = good.clone();
        let middle = flipped.len() / 2;
        flipped[middle] ^= 1;
        for (n, bad) in [flipped, good[..good.len() - 1].to_vec(), Vec::new()]
            .into_iter()
            .enumerate()
        {
            std::fs::write(&file, bad).unwrap();
            let name = format!("{}{n}", file.file_name().unwrap().to_str().unwrap());
            let ended = restore(&name, "latest", &identity);
            // A point whose commit is unreadable is no point: then there is none at that time.
            assert_eq!(ended, if file == commit { 20 } else { 21 }, "{name}");
            assert_eq!(code(&script(&repository, &["verify"])), 21, "{name}");
            let partial = target.path().join(&name);
            let whole =
                partial.join("data").exists() && !partial.join(".lifeboat-restore-incomplete").exists();
            assert!(!whole, "{name}: something half-written looks done");
        }
        std::fs::write(&file, good).unwrap();
    }
    assert_eq!(restore("again", "latest", &identity), 0);
}

/// A repository in a directory.
pub async fn fixture(seed: u64, path: &Path) -> Fixture {
    Fixture::new(seed, |_| {
        Arc::new(DirectoryStore::create(path.to_owned()).unwrap()) as SharedStore
    })
    .await
}
