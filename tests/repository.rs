//! The repository format and the jobs over it, with a source that is a map and a store in memory.

#![allow(clippy::unwrap_used)]

#[path = "repository/damage.rs"]
mod damage;
#[path = "repository/faults.rs"]
mod faults;
#[path = "repository/fuzz_corpora.rs"]
mod fuzz_corpora;
#[path = "repository/golden.rs"]
mod golden;
#[path = "harness/golden.rs"]
mod kept;
#[path = "repository/keys.rs"]
mod keys;
#[path = "repository/retention.rs"]
mod retention;
#[path = "repository/rules.rs"]
mod rules;
#[path = "repository/simulation/mod.rs"]
mod simulation;
#[path = "repository/without_us.rs"]
mod without_us;
#[path = "repository/world.rs"]
mod world;

use std::sync::Arc;

use chrono::TimeDelta;
use lifeboat::error::Kind;
use lifeboat::repository::layout;
use lifeboat::source::Cut;
use lifeboat::store::memory::MemoryStore;
use lifeboat::store::{SharedStore, Store, View};
use lifeboat::types::Key;

use world::{Fixture, MapSource, noise, text};

async fn in_memory(seed: u64) -> (Fixture, MemoryStore) {
    let mut kept = None;
    let fixture = Fixture::new(seed, |world| {
        let store = MemoryStore::new(world);
        kept = Some(store.clone());
        Arc::new(store) as SharedStore
    })
    .await;
    (fixture, kept.unwrap())
}

/// A repository in a directory.
async fn in_directory(seed: u64) -> (Fixture, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let fixture = without_us::fixture(seed, directory.path()).await;
    (fixture, directory)
}

fn pages(mut content: Vec<u8>, changed: &[usize], seed: u64) -> Vec<u8> {
    for page in changed {
        content[page * 8192..(page + 1) * 8192].copy_from_slice(&noise(8192, seed + *page as u64));
    }
    content
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_backed_up_comes_back() {
    let (fixture, _) = in_memory(1).await;
    let source = MapSource::default()
        .with("a empty", Cut::Whole, Vec::new())
        .with("b small", Cut::Whole, b"hello".to_vec())
        .with("c pages", Cut::Pages, noise(40 << 20, 1))
        .with("d odd pages", Cut::Pages, text((17 << 20) + 77, 2))
        .with("e stream", Cut::Stream, text((70 << 20) + 5, 3))
        .with("f one stretch", Cut::Stream, noise(16 << 20, 4))
        .with("g/äö%\n", Cut::Whole, noise(5 << 20, 5));
    let taken = fixture.run(&source).await.unwrap();
    let repository = fixture.repository().await;
    let commit = repository
        .commit(&fixture.source, taken.commit.run)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(commit, taken.commit);
    let content = fixture.content(taken.commit.run).await.unwrap();
    let wanted: Vec<_> = source.units.values().map(|m| m.content.clone()).collect();
    assert!(content.into_values().collect::<Vec<_>>() == wanted);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_run_stores_what_changed_and_every_point_still_restores() {
    let (fixture, _) = in_memory(2).await;
    let base = noise(64 << 20, 1);
    let mut source = MapSource::default()
        .with("data.db", Cut::Pages, base.clone())
        .with("dump", Cut::Stream, text(40 << 20, 9));
    let mut points = vec![(fixture.run(&source).await.unwrap(), source.clone())];
    for round in 1..12u64 {
        fixture.clock.advance(TimeDelta::hours(1));
        let changed: Vec<usize> = (0..20)
            .map(|i| ((i * 397 + round as usize * 1013) % 8192).min(8191))
            .collect();
        let now = pages(source.units["data.db"].content.clone(), &changed, round * 100_000);
        source.set("data.db", Cut::Pages, now);
        let mut dump = source.units["dump"].content.clone();
        dump.splice((20 << 20)..(20 << 20), text(1000, round));
        source.set("dump", Cut::Stream, dump);
        let taken = fixture.run(&source).await.unwrap();
        assert!(
            taken.bytes_stored < 4 << 20,
            "round {round} stored {} bytes for 20 pages and a thousand bytes",
            taken.bytes_stored
        );
        points.push((taken, source.clone()));
    }
    let depths: Vec<u32> = points.iter().map(|(t, _)| t.commit.manifest_depth).collect();
    assert_eq!(
        depths,
        [1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3],
        "eight differences, then a whole one"
    );
    for (taken, source) in &points {
        fixture.assert_restores(taken.commit.run, source).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn units_come_shrink_grow_and_go() {
    let (fixture, _) = in_memory(3).await;
    let sizes = [40 << 20, 3 << 20, 33 << 20, 16 << 20, (16 << 20) + 1, 0, 50 << 20];
    let mut points = Vec::new();
    for (round, size) in sizes.into_iter().enumerate() {
        let mut source = MapSource::default().with("data.db", Cut::Pages, noise(size, 7));
        if round % 2 == 0 {
            source.set("sometimes", Cut::Stream, text(20 << 20, 8));
        }
        let taken = fixture.run(&source).await.unwrap();
        points.push((taken, source));
    }
    for (taken, source) in &points {
        fixture.assert_restores(taken.commit.run, source).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_known_stamp_is_not_read_again() {
    let (fixture, _) = in_memory(4).await;
    let mut source = MapSource::default()
        .with("file", Cut::Whole, noise(9 << 20, 1))
        .with("other", Cut::Whole, noise(5, 2));
    source.units.get_mut("file").unwrap().stamp = Some("s1".into());
    source.units.get_mut("other").unwrap().stamp = Some("s1".into());
    fixture.run(&source).await.unwrap();
    source.set("other", Cut::Whole, noise(6, 3));
    source.units.get_mut("other").unwrap().stamp = Some("s2".into());
    source.read.lock().unwrap().clear();
    let taken = fixture.run(&source).await.unwrap();
    assert_eq!(*source.read.lock().unwrap(), ["other"]);
    fixture.assert_restores(taken.commit.run, &source).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_capture_that_fails_commits_nothing() {
    let (fixture, store) = in_memory(5).await;
    let mut source = MapSource::default().with("a", Cut::Stream, text(30 << 20, 1));
    source.fail_at = Some("a".into());
    let error = fixture.run(&source).await.unwrap_err();
    assert_eq!(error.message(), "the dump ended in the middle");
    assert!(!store.keys().iter().any(|k| k.as_str().contains("/points/")));
    source.fail_at = None;
    let taken = fixture.run(&source).await.unwrap();
    fixture.assert_restores(taken.commit.run, &source).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_packs_are_uploaded_again_and_told() {
    let (fixture, store) = in_memory(6).await;
    let mut source = MapSource::default().with("data.db", Cut::Pages, noise(50 << 20, 1));
    let first = fixture.run(&source).await.unwrap();
    store.lose(&layout::pack(&fixture.source, first.commit.run, 1));
    source.set(
        "data.db",
        Cut::Pages,
        pages(source.units["data.db"].content.clone(), &[3], 5),
    );
    let second = fixture.run(&source).await.unwrap();
    assert!(
        second.bytes_stored > 16 << 20,
        "the lost pack's blocks count as changed"
    );
    fixture.assert_restores(second.commit.run, &source).await;
    assert_eq!(
        fixture.content(first.commit.run).await.unwrap_err().kind(),
        Kind::Damaged
    );
    let report = lifeboat::jobs::verify::verify(&fixture.session, None, None, false)
        .await
        .unwrap();
    assert_eq!(report.missing.len(), 1);
    assert!(report.missing[0].key.ends_with("/1.age"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pack_of_which_little_is_left_is_given_up() {
    let (fixture, _) = in_memory(7).await;
    let mut source = MapSource::default().with("data.db", Cut::Pages, noise(48 << 20, 1));
    let first = fixture.run(&source).await.unwrap();
    // All but a tenth of every pack changes.
    let changed: Vec<usize> = (0..6144).filter(|p| p % 10 != 0).collect();
    source.set(
        "data.db",
        Cut::Pages,
        pages(source.units["data.db"].content.clone(), &changed, 77),
    );
    fixture.run(&source).await.unwrap();
    let third = fixture.run(&source).await.unwrap();
    let refs = fixture
        .repository()
        .await
        .refs(&fixture.source, third.commit.run, third.commit.refs)
        .await
        .unwrap();
    let old = refs
        .0
        .get(&first.commit.run)
        .map(|r| r.packs.clone())
        .unwrap_or_default();
    assert!(
        old.is_empty(),
        "the first run's packs are less than 40 % in use: {old:?}"
    );
    fixture.assert_restores(third.commit.run, &source).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_run_is_cut_and_goes_on() {
    let (mut fixture, store) = in_memory(8).await;
    let mut source = MapSource::default();
    for n in 0..6 {
        source.set(&format!("unit{n}"), Cut::Stream, text(18 << 20, n));
    }
    fixture.run(&source).await.unwrap();
    fixture.cut_after = std::time::Duration::from_secs(60);
    for n in 0..6 {
        source.set(&format!("unit{n}"), Cut::Stream, text(18 << 20, 100 + n));
    }
    source.slow = Some((fixture.clock.clone(), TimeDelta::seconds(40)));
    let taken = fixture.run(&source).await.unwrap();
    let catalog = fixture.repository().await.catalog(&fixture.source).await.unwrap();
    let partial = catalog.points.values().filter(|p| p.commit.partial).count();
    assert!(partial >= 2, "{partial} cuts");
    assert_eq!(catalog.points.values().filter(|p| !p.commit.partial).count(), 2);
    fixture.assert_restores(taken.commit.run, &source).await;
    assert_eq!(taken.commit.parent, catalog.points.keys().rev().nth(1).copied());
    // A run that dies after a cut goes on from it.
    let bytes_before: u64 = taken.bytes_stored;
    for n in 0..6 {
        source.set(&format!("unit{n}"), Cut::Stream, text(18 << 20, 200 + n));
    }
    source.fail_at = Some("unit5".into());
    fixture.run(&source).await.unwrap_err();
    source.fail_at = None;
    source.slow = None;
    let resumed = fixture.run(&source).await.unwrap();
    assert!(
        resumed.bytes_stored < bytes_before * 2 / 3,
        "{} of {bytes_before}",
        resumed.bytes_stored
    );
    fixture.assert_restores(resumed.commit.run, &source).await;
    drop(store);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_unit_is_cut_in_its_middle() {
    for cut in [Cut::Pages, Cut::Stream, Cut::Whole] {
        let (mut fixture, _) = in_memory(12).await;
        fixture.cut_after = std::time::Duration::from_secs(60);
        let mut source = MapSource::default()
            .with("big", cut, text((90 << 20) + 321, 1))
            .with("last", cut, text(99, 2));
        source.slow_read = Some((fixture.clock.clone(), TimeDelta::seconds(3)));
        let taken = fixture.run(&source).await.unwrap();
        let catalog = fixture.repository().await.catalog(&fixture.source).await.unwrap();
        let cuts = catalog.points.values().filter(|p| p.commit.partial).count();
        assert!(cuts >= 3, "{cut:?}: {cuts} cuts");
        fixture.assert_restores(taken.commit.run, &source).await;
        fixture.session.identity_file = Some(fixture.identity());
        let report = lifeboat::jobs::verify::verify(&fixture.session, None, None, true)
            .await
            .unwrap();
        assert!(
            report.damaged.is_empty() && report.missing.is_empty(),
            "{report:?}"
        );
        // Dies near the end: what was cut is not uploaded again.
        let first = taken.bytes_stored;
        source.set("big", cut, text((90 << 20) + 321, 7));
        source.fail_at = Some("big".into());
        fixture.run(&source).await.unwrap_err();
        source.fail_at = None;
        source.slow_read = None;
        let resumed = fixture.run(&source).await.unwrap();
        assert!(
            resumed.bytes_stored < first / 2,
            "{cut:?}: {} of {first}",
            resumed.bytes_stored
        );
        fixture.assert_restores(resumed.commit.run, &source).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_index_costs_bytes_and_nothing_else() {
    let (fixture, _) = in_memory(9).await;
    let source = MapSource::default().with("data.db", Cut::Pages, noise(20 << 20, 1));
    fixture.run(&source).await.unwrap();
    let directory = fixture
        .state_dir()
        .join(fixture.repository().await.id().to_string())
        .join("app");
    let index = std::fs::read_dir(&directory)
        .unwrap()
        .map(|e| e.unwrap().path())
        .find(|p| p.extension().is_some_and(|e| e == "index"))
        .unwrap();
    let whole = std::fs::read(&index).unwrap();
    for at in [0, 9, 60, whole.len() / 2, whole.len() - 40, whole.len() - 1] {
        let mut bad = whole.clone();
        bad[at] ^= 4;
        std::fs::write(&index, bad).unwrap();
        assert!(
            lifeboat::repository::index::Index::open(&index).is_err(),
            "flip at {at}"
        );
    }
    std::fs::write(&index, &whole[..whole.len() / 2]).unwrap();
    let taken = fixture.run(&source).await.unwrap();
    assert!(taken.bytes_stored > 20 << 20, "uploaded in full");
    assert_eq!(taken.commit.parent, None);
    fixture.assert_restores(taken.commit.run, &source).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_index_is_rebuilt_where_an_identity_is() {
    let (mut fixture, _) = in_memory(13).await;
    let mut source = MapSource::default()
        .with("a", Cut::Whole, noise(6 << 20, 3))
        .with("data.db", Cut::Pages, noise((20 << 20) + 4096, 1))
        .with("dump", Cut::Stream, text(50 << 20, 2))
        .with("empty", Cut::Pages, Vec::new());
    fixture.run(&source).await.unwrap();
    source.set(
        "data.db",
        Cut::Pages,
        pages(source.units["data.db"].content.clone(), &[9], 5),
    );
    fixture.run(&source).await.unwrap();
    std::fs::remove_dir_all(
        fixture
            .state_dir()
            .join(fixture.repository().await.id().to_string())
            .join("app"),
    )
    .unwrap();
    fixture.session.identity_file = Some(fixture.identity());
    source.set(
        "data.db",
        Cut::Pages,
        pages(source.units["data.db"].content.clone(), &[10], 6),
    );
    let third = fixture.run(&source).await.unwrap();
    assert!(third.bytes_stored < 1 << 20, "stored {}", third.bytes_stored);
    fixture.assert_restores(third.commit.run, &source).await;
    let fourth = fixture.run(&source).await.unwrap();
    fixture.assert_restores(fourth.commit.run, &source).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_generation_whose_wrap_is_gone_is_not_written_to() {
    let (fixture, store) = in_memory(10).await;
    let source = MapSource::default().with("data.db", Cut::Pages, noise(3 << 20, 1));
    let first = fixture.run(&source).await.unwrap();
    for key in store
        .keys()
        .into_iter()
        .filter(|k| k.as_str().starts_with("keys/"))
    {
        store.lose(&key);
    }
    let second = fixture.run(&source).await.unwrap();
    assert_ne!(first.commit.generation.id, second.commit.generation.id);
    assert_eq!(
        second.commit.parent, None,
        "nothing builds on what nobody may be able to open"
    );
    fixture.assert_restores(second.commit.run, &source).await;
    // The first point's commit carries its own wrap.
    fixture.assert_restores(first.commit.run, &source).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_object_flipped_cut_swapped_or_lost_is_told_by_verify() {
    let (fixture, store) = in_memory(11).await;
    let mut source = MapSource::default().with("data.db", Cut::Pages, text(2 << 20, 1));
    fixture.run(&source).await.unwrap();
    source.set(
        "data.db",
        Cut::Pages,
        pages(source.units["data.db"].content.clone(), &[3], 5),
    );
    fixture.run(&source).await.unwrap();
    let verify = || lifeboat::jobs::verify::verify(&fixture.session, None, None, false);
    let clean = verify().await.unwrap();
    assert!(clean.damaged.is_empty() && clean.missing.is_empty());
    let objects: Vec<Key> = store
        .keys()
        .into_iter()
        .filter(|k| k.as_str().contains("/runs/") || k.as_str().contains("/points/"))
        .collect();
    for key in &objects {
        let good = store.get(key, None, View::Current).await.unwrap();
        let mut flipped = good.to_vec();
        let middle = flipped.len() / 2;
        flipped[middle] ^= 1;
        for bad in [flipped, good[..good.len() - 1].to_vec()] {
            store.tamper(key, bad.into());
            let report = verify().await.unwrap();
            assert!(
                report.damaged.iter().any(|d| d.key == key.as_str()),
                "{key}: {report:?}"
            );
            store.tamper(key, good.clone());
            clear_damage(&store);
        }
        if key.as_str().contains("/runs/") {
            store.lose(key);
            let report = verify().await.unwrap();
            assert!(
                !report.missing.is_empty() || !report.damaged.is_empty(),
                "{key} lost"
            );
            store.tamper(key, good.clone());
            clear_damage(&store);
        }
    }
    let clean = verify().await.unwrap();
    assert!(clean.damaged.is_empty() && clean.missing.is_empty());
}

fn clear_damage(store: &MemoryStore) {
    for key in store
        .keys()
        .into_iter()
        .filter(|k| k.as_str().contains("/damaged/"))
    {
        store.lose(&key);
    }
}
