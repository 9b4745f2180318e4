//! The fuzz targets without a fuzzer: every wrapper over every input that is kept, its own and those of all others. And how
//! the seeds are made.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use lifeboat::fuzzing::TARGETS;
use lifeboat::repository::generation::{KeyRing, parse_identities};
use lifeboat::repository::reader::OpenPoint;
use lifeboat::repository::{Repository, Settings, frame, layout, pack};
use lifeboat::secret::SecretText;
use lifeboat::source::Cut;
use lifeboat::store::SharedStore;
use lifeboat::store::directory::DirectoryStore;
use lifeboat::types::{RunId, SourceName};

use crate::kept;
use crate::world::{MapSource, noise, text};

fn project(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// The inputs kept for a target: seeds, the minimised corpus, and what once broke it.
fn inputs(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for kind in ["corpus-seeds", "corpora", "regressions"] {
        let directory = project("fuzz").join(kind).join(target);
        let Ok(entries) = std::fs::read_dir(&directory) else {
            continue;
        };
        for entry in entries {
            let path = entry.unwrap().path();
            found.push((path.clone(), std::fs::read(path).unwrap()));
        }
    }
    found
}

#[test]
fn every_kept_input_is_taken_by_every_target() {
    let all: Vec<(PathBuf, Vec<u8>)> = TARGETS.iter().flat_map(|(name, _)| inputs(name)).collect();
    for (name, _) in TARGETS {
        assert!(
            all.iter()
                .any(|(path, _)| path.to_string_lossy().contains(&format!("/{name}/"))),
            "{name}"
        );
    }
    let mut broken = Vec::new();
    for (name, wrapper) in TARGETS {
        for (path, data) in &all {
            if std::panic::catch_unwind(|| wrapper(data)).is_err() {
                broken.push(format!("{name} breaks on {}", path.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// A target of fuzz/ for each wrapper, and the other way round.
#[test]
fn targets_and_wrappers_are_the_same() {
    let wrappers: BTreeSet<String> = TARGETS.iter().map(|(name, _)| format!("{name}.rs")).collect();
    let targets: BTreeSet<String> = std::fs::read_dir(project("fuzz/fuzz_targets"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(wrappers, targets);
    let manifest = std::fs::read_to_string(project("fuzz/Cargo.toml")).unwrap();
    for (name, _) in TARGETS {
        assert!(
            manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")),
            "{name}"
        );
    }
}

struct Seeds {
    /// Larger ones are left out: they make a fuzzer slow.
    most: usize,
    made: usize,
}

impl Seeds {
    fn add(&mut self, target: &str, data: &[u8]) {
        if data.len() > self.most {
            return;
        }
        let directory = project("fuzz/corpus-seeds").join(target);
        std::fs::create_dir_all(&directory).unwrap();
        let name = &blake3::hash(data).to_hex()[..16];
        std::fs::write(directory.join(name), data).unwrap();
        self.made += 1;
    }
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn first_line(bytes: &[u8]) -> &[u8] {
    bytes.split(|b| *b == b'\n').next().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "writes fuzz/corpus-seeds; run it when a wrapper takes another kind of input"]
async fn make_the_fuzz_seeds() {
    let mut seeds = Seeds {
        most: 12_000,
        made: 0,
    };
    for golden in kept::all() {
        plain_objects(&mut seeds, &golden.repository());
        sealed_objects(&mut seeds, &golden).await;
    }
    texts(&mut seeds);
    log_of_sqlite(&mut seeds);
    block_index(&mut seeds).await;
    assert!(seeds.made > 100, "{} seeds", seeds.made);
}

fn plain_objects(seeds: &mut Seeds, repository: &Path) {
    for path in files(repository) {
        let key = path
            .strip_prefix(repository)
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned();
        let bytes = std::fs::read(&path).unwrap();
        match path.file_name().unwrap().to_str().unwrap() {
            "refs" => seeds.add("refs", &bytes),
            "SHA256SUMS" => seeds.add("sums", &bytes[first_line(&bytes).len() + 1..]),
            "lifeboat.json" => seeds.add("documents", first_line(&bytes)),
            _ if key.contains("/points/") => seeds.add("commit", first_line(&bytes)),
            name if name.ends_with(".json") => seeds.add("documents", &bytes),
            _ if key.starts_with("keys/") => seeds.add("pack", &bytes),
            _ => continue,
        }
        if !key.contains("/app/runs/") {
            seeds.add("keys", key.as_bytes());
        }
    }
}

/// Manifests, frames and facts, decrypted.
async fn sealed_objects(seeds: &mut Seeds, golden: &kept::Golden) {
    let store = std::sync::Arc::new(DirectoryStore::open(golden.repository())) as SharedStore;
    let repository = Repository::open(store, Settings::default(), None).await.unwrap();
    let identity = SecretText::new(std::fs::read_to_string(golden.path.join("identity")).unwrap());
    let mut keys = KeyRing::new(parse_identities(&identity, "the identity").unwrap());
    let mut chains: std::collections::BTreeMap<String, Vec<Vec<u8>>> = Default::default();
    for point in &golden.expected.points {
        let source: SourceName = point.source.parse().unwrap();
        let run: RunId = point.run.parse().unwrap();
        let generation = point.generation.parse().unwrap();
        let identity = keys.open(&repository, generation, None).await.unwrap();
        for name in [layout::MANIFEST, "0.age"] {
            let key = layout::run_object(&source, run, name);
            let Some(sealed) = repository.read(&key).await.unwrap() else {
                continue;
            };
            let Ok(plain) = pack::decrypt(&sealed, &[&identity], name) else {
                continue;
            };
            seeds.add("pack", &plain);
            for one in frame::frames(&plain).map(Result::unwrap) {
                seeds.add("frames", one);
                if name == layout::MANIFEST
                    && let Ok(content) = frame::decode(one)
                    && content.starts_with(b"{\"format\"")
                {
                    seeds.add("manifest", one);
                    chains.entry(point.source.clone()).or_default().push(content);
                }
            }
        }
        let commit = repository.commit(&source, run).await.unwrap().unwrap();
        let open = OpenPoint::open(&repository, &source, &commit, &mut keys)
            .await
            .unwrap();
        for line in open.lines().unwrap() {
            let line = line.unwrap();
            if !point.damaged && line.name().as_str().ends_with(".json") {
                seeds.add("facts", &open.fetch(&line).await.unwrap());
            }
        }
    }
    for chain in chains.values() {
        for length in 1..=3 {
            seeds.add("manifest", &chain[..length.min(chain.len())].join(&0));
        }
    }
    // A large unit, one that is gone, and one that shrank.
    let head = String::from_utf8(chains["orders"][0].clone()).unwrap();
    let head = head.lines().next().unwrap().to_owned();
    let digest = "0".repeat(64);
    let large = format!(
        "{head}\n{{\"unit\":\"a\",\"size\":3,\"cut\":\"whole\",\"attributes\":{{\"mode\":384}},\"blake3\":\"{digest}\",\"extents\":[[0,0,107,9,0,3]]}}\n\
         {{\"unit\":\"b\",\"size\":16777219,\"cut\":\"pages\",\"attributes\":{{}},\"blake3\":\"{digest}\"}}\n\
         {{\"unit\":\"b\",\"at\":0,\"length\":16777216,\"blake3\":\"{digest}\",\"extents\":[[0,1,2,3,4,16777216]]}}\n\
         {{\"unit\":\"b\",\"at\":16777216,\"length\":3,\"blake3\":\"{digest}\",\"extents\":[[0,1,2,3,4,3]]}}\n"
    );
    let small = format!(
        "{head}\n{{\"unit\":\"a\",\"gone\":true}}\n\
         {{\"unit\":\"b\",\"size\":0,\"cut\":\"stream\",\"attributes\":{{}},\"blake3\":\"{digest}\",\"extents\":[]}}\n"
    );
    seeds.add("manifest", large.as_bytes());
    seeds.add("manifest", format!("{large}\0{small}").as_bytes());
}

fn texts(seeds: &mut Seeds) {
    for directory in ["policies", "tests/policy"] {
        for path in files(&project(directory)) {
            if path.extension().is_some_and(|e| e == "toml") {
                seeds.add("policy", &std::fs::read(path).unwrap());
            }
        }
    }
    let times = [
        "latest",
        "2026-11-21T14:03:00+01:00",
        "2026-03-29 02:30",
        "2026-10-25 02:30:15",
        "2 hours ago",
        "yesterday 14:00",
        "90 min ago",
        "last monday 9:00",
        "today 00:00",
        "3 weeks ago",
        "2026-10-25 02:30+01:00",
        "1 month ago",
    ];
    let schedules = [
        "0 2 * * *",
        "*/15 * * * *",
        "@hourly",
        "@monthly",
        "30 2 * 3,10 0",
        "0 0 29 2 *",
        "0 0 31 * 1-5",
        "5-59/7 1,2 * jan-mar mon",
        "59 23 */2 * 7",
    ];
    for (n, text) in (0u8..).zip(times) {
        seeds.add("when", &[&[n, n * 19], text.as_bytes()].concat());
    }
    for (n, text) in (0u8..).zip(schedules) {
        seeds.add("cron", &[&[n, n * 23], text.as_bytes()].concat());
    }
    for name in [
        "a/b",
        "ö%2F",
        "..",
        "storage/x/y.txt",
        "a//b",
        "\u{85}",
        "databases/shop.dump",
    ] {
        seeds.add("keys", name.as_bytes());
    }
}

fn log_of_sqlite(seeds: &mut Seeds) {
    let directory = tempfile::tempdir().unwrap();
    for page in [512, 1024, 4096] {
        let path = directory.path().join(format!("{page}.db"));
        let writer = rusqlite::Connection::open(&path).unwrap();
        let sql = format!(
            "PRAGMA page_size = {page}; PRAGMA journal_mode = WAL; CREATE TABLE t (x); INSERT INTO t VALUES (1)"
        );
        writer.execute_batch(&sql).unwrap();
        let index = std::fs::read(directory.path().join(format!("{page}.db-shm"))).unwrap();
        let log = std::fs::read(directory.path().join(format!("{page}.db-wal"))).unwrap();
        seeds.add("wal", &[&index[..40], &log[..]].concat());
        seeds.add("wal", &[&index[..96], &log[..]].concat());
    }
}

async fn block_index(seeds: &mut Seeds) {
    let (fixture, _) = crate::in_memory(7).await;
    let mut source = MapSource::default()
        .with("a", Cut::Whole, b"small".to_vec())
        .with("pages", Cut::Pages, noise(5 * 8192 + 7, 1))
        .with("stream", Cut::Stream, text(17 << 20, 2));
    source.units.get_mut("a").unwrap().stamp = Some("s".into());
    fixture.run(&source).await.unwrap();
    source.set("pages", Cut::Pages, noise(9 * 8192, 3));
    fixture.run(&source).await.unwrap();
    for path in files(fixture.state_dir()) {
        if path.extension().is_some_and(|e| e == "index") {
            let bytes = std::fs::read(path).unwrap();
            seeds.add("index", &bytes[..bytes.len() - 32]);
        }
    }
}
