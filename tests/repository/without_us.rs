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

/// A command of the page, as an operator copies it: from its beginning to the end of its code.
fn command(beginning: &str, replace: &[(&str, &str)]) -> String {
    let page = include_str!("../../scripts/RESTORE.md");
    let start = page
        .find(&format!("`{beginning}"))
        .unwrap_or_else(|| panic!("no {beginning}"))
        + 1;
    let length = page[start..].find('`').unwrap();
    let text = page[start..start + length].to_owned();
    replace
        .iter()
        .fold(text, |text, (from, to)| text.replace(from, to))
}

fn shell(directory: &Path, command: &str) -> String {
    let output = Command::new("bash")
        .args(["-o", "pipefail", "-c", command])
        .current_dir(directory)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{command}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_of_restore_md_do_what_the_page_says() {
    let (mut fixture, directory) = in_directory(42).await;
    let repository = directory.path();
    let source = MapSource::default().with("data", Cut::Pages, text(70_000, 1));
    let commit = fixture.run(&source).await.unwrap().commit;
    // A wrap for somebody else too, which comes first: one of them opens with our identity.
    fixture.session.identity_file = Some(fixture.identity());
    let stranger = fixture.state_dir().parent().unwrap().join("stranger");
    let theirs = lifeboat::jobs::keys::generate(&fixture.session.world, &stranger).unwrap();
    Arc::make_mut(&mut fixture.session.policy).encryption.recipients = vec![theirs];
    lifeboat::jobs::keys::rewrap(&fixture.session).await.unwrap();
    let wraps = repository.join("keys").join(commit.generation.id.to_string());
    let wraps_of = || std::fs::read_dir(&wraps).unwrap().map(|e| e.unwrap().path());
    let newest = wraps_of().max().unwrap();
    std::fs::rename(newest, wraps.join("00000000000000000000000000.age")).unwrap();
    assert_eq!(wraps_of().count(), 2);
    std::fs::copy(fixture.identity(), repository.join("recovery.key")).unwrap();

    let run = commit.run.to_string();
    let point = format!("sources/app/points/{run}.json");
    let generation = commit.generation.id.to_string();
    let names = [
        ("FILE", point.as_str()),
        ("GENERATION", &generation),
        ("SOURCE", "app"),
        ("RUN", &run),
    ];
    let digest = shell(repository, &command("head -n 1 FILE", &names));
    let written = shell(repository, &command("tail -n 1 FILE", &names));
    assert_eq!(digest.split(' ').next().unwrap(), written.trim());
    shell(
        &repository.join("sources/app/runs").join(&run),
        &command("sha256sum -c", &[]),
    );
    shell(repository, &command("for wrap in", &names));
    let manifest = shell(
        repository,
        &command(
            "age -d -i generation.key sources/SOURCE/runs/RUN/manifest",
            &names,
        ),
    );
    let line = manifest
        .lines()
        .find(|l| l.contains("\"unit\":\"data\""))
        .unwrap();
    let line: serde_json::Value = serde_json::from_str(line).unwrap();
    let pack = command("age -d -i generation.key sources/SOURCE/runs/RUN/0", &names);
    shell(repository, &pack);
    let mut content = String::new();
    for extent in line["extents"].as_array().unwrap() {
        let number = |n: usize| extent[n].to_string();
        assert_eq!(number(1), "0", "the first pack");
        let (position, length, offset, in_frame) = (number(2), number(3), number(4), number(5));
        let of_extent = [
            ("LENGTH_IN_FRAME", in_frame.as_str()),
            ("POSITION", &position),
            ("LENGTH", &length),
            ("OFFSET", &offset),
        ];
        content += &shell(repository, &command("tail -c +$((POSITION", &of_extent));
    }
    assert!(content.as_bytes() == source.units["data"].content);
}

#[tokio::test(flavor = "multi_thread")]
async fn restore_py_answers_every_bad_argument_with_a_message() {
    let (fixture, directory) = in_directory(43).await;
    let source = MapSource::default().with("data", Cut::Pages, text(9_000, 1));
    let run = fixture.run(&source).await.unwrap().commit.run.to_string();
    let target = tempfile::tempdir().unwrap();
    let to = target.path().join("out").display().to_string();
    let identity = fixture.identity().display().to_string();
    let file = target.path().join("file");
    std::fs::write(&file, "x").unwrap();
    let file = file.display().to_string();
    let below_a_file = format!("{file}/out");
    let at = |at| vec!["restore", "app", "--at", at, "--identity", &identity, "--to", &to];
    let bad = [
        (at("nonsense"), 2),
        (at(""), 2),
        (at("2026-11-21"), 2),
        (at("2026-11-21T14:03:00"), 2),
        (at("2026-02-30T14:03:00Z"), 2),
        (at("2026-11-21T14:03:00+99:00"), 2),
        (at("0001-01-01T00:00:00+23:59"), 20),
        (vec!["restore", "app", "--identity", &identity, "--to", &to], 2),
        (
            vec![
                "restore",
                "app",
                "--at",
                "latest",
                "--run",
                &run,
                "--identity",
                &identity,
                "--to",
                &to,
            ],
            2,
        ),
        (
            vec![
                "restore",
                "app",
                "--run",
                "01ARZ3NDEKTSV4RRFFQ69G5FAV",
                "--identity",
                &identity,
                "--to",
                &to,
            ],
            2,
        ),
        (
            vec![
                "restore",
                "none",
                "--at",
                "latest",
                "--identity",
                &identity,
                "--to",
                &to,
            ],
            2,
        ),
        (
            vec![
                "restore",
                "app",
                "--at",
                "latest",
                "--identity",
                "/nonexistent",
                "--to",
                &to,
            ],
            2,
        ),
        (
            vec!["restore", "app", "--at", "latest", "--identity", "/", "--to", &to],
            2,
        ),
        (
            vec![
                "restore",
                "app",
                "--at",
                "latest",
                "--identity",
                &file,
                "--to",
                &to,
            ],
            12,
        ),
        (
            vec![
                "restore",
                "app",
                "--at",
                "latest",
                "--identity",
                &identity,
                "--to",
                &file,
            ],
            2,
        ),
        (
            vec![
                "restore",
                "app",
                "--at",
                "latest",
                "--identity",
                &identity,
                "--to",
                &below_a_file,
            ],
            1,
        ),
        (vec!["needs", "app"], 2),
        (vec!["nothing"], 2),
    ];
    for (arguments, wanted) in &bad {
        let output = script(directory.path(), arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(code(&output), *wanted, "{arguments:?}: {said}");
        assert!(
            said.contains("restore.py") && !said.contains("Traceback"),
            "{arguments:?}: {said}"
        );
    }
    assert_eq!(
        code(&script(Path::new(&file), &["list"])),
        10,
        "a file is no repository"
    );
    let help = String::from_utf8(script(directory.path(), &["restore", "--help"]).stdout).unwrap();
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(help.contains("latest, or RFC 3339 with a zone"), "{help}");
    for good in [
        "latest",
        "2126-11-21T14:03:00Z",
        "2126-11-21t14:03:00.123456789+01:00",
    ] {
        let output = script(directory.path(), &["needs", "app", "--at", good]);
        assert_eq!(
            code(&output),
            0,
            "{good}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

/// A repository in a directory.
pub async fn fixture(seed: u64, path: &Path) -> Fixture {
    Fixture::new(seed, |_| {
        Arc::new(DirectoryStore::create(path.to_owned()).unwrap()) as SharedStore
    })
    .await
}
