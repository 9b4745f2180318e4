//! Every object class: flipped, cut short, swapped, replayed, gone. A restore tells, or verify does; wrong bytes never come
//! back as good (DESIGN, section 11).

use std::collections::BTreeMap;

use bytes::Bytes;
use lifeboat::jobs::verify;
use lifeboat::source::Cut;
use lifeboat::store::memory::MemoryStore;
use lifeboat::store::{Store as _, View};
use lifeboat::types::{Key, RunId};

use crate::in_memory;
use crate::world::{Fixture, MapSource, noise, text};

/// Two points, the second drawing on the first; a whole manifest and a difference.
async fn two_points(seed: u64) -> (Fixture, MemoryStore, Vec<(RunId, MapSource)>) {
    let (fixture, store) = in_memory(seed).await;
    let mut source = MapSource::default()
        .with("data.db", Cut::Pages, noise(5 * 8192, 1))
        .with("dump", Cut::Stream, text(20_000, 2))
        .with("file", Cut::Whole, b"a file".to_vec());
    let mut points = vec![(fixture.run(&source).await.unwrap().commit.run, source.clone())];
    source.set("file", Cut::Whole, b"another".to_vec());
    points.push((fixture.run(&source).await.unwrap().commit.run, source));
    (fixture, store, points)
}

fn wanted(source: &MapSource) -> BTreeMap<String, Vec<u8>> {
    source
        .units
        .iter()
        .map(|(n, m)| (n.clone(), m.content.clone()))
        .collect()
}

/// Whether somebody is told: a restore of any point fails, or verify says so. Panics when other bytes come back.
async fn told(fixture: &Fixture, points: &[(RunId, MapSource)], what: &str) -> bool {
    let mut told = false;
    for (run, source) in points {
        match try_content(fixture, *run).await {
            Ok(content) => assert!(content == wanted(source), "{what}: wrong bytes came back as good"),
            Err(_) => told = true,
        }
    }
    told || match verify::verify(&fixture.session, None, None, false).await {
        Ok(report) => !report.damaged.is_empty() || !report.missing.is_empty(),
        Err(_) => true,
    }
}

async fn try_content(fixture: &Fixture, run: RunId) -> lifeboat::error::Result<BTreeMap<String, Vec<u8>>> {
    let store = fixture.session.store.clone().unwrap();
    let settings = lifeboat::repository::Settings::default();
    let repository = lifeboat::repository::Repository::open(store, settings, None).await?;
    if repository.commit(&fixture.source, run).await?.is_none() {
        return Err(lifeboat::error::Error::damaged("no commit"));
    }
    fixture.content(run).await
}

/// The pages for people are not what a point is read from, and a later Lifeboat writes others.
fn is_page(key: &Key) -> bool {
    matches!(key.as_str(), "RESTORE.md" | "restore.py")
}

async fn body(store: &MemoryStore, key: &Key) -> Bytes {
    store.get(key, None, View::Current).await.unwrap()
}

/// Forgets the records of damage that a verify made, so that each case stands by itself.
async fn forget(store: &MemoryStore) {
    for key in store.keys() {
        if key.as_str().contains("/damaged/") {
            store.lose(&key);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_byte_flipped_is_told() {
    let (fixture, store, points) = two_points(90).await;
    for key in store.keys().into_iter().filter(|k| !is_page(k)) {
        let good = body(&store, &key).await;
        // All of small objects; of packs the header of age, the ends, and a byte of each kibibyte.
        let places: Vec<usize> = (0..good.len())
            .filter(|at| good.len() <= 4096 || *at < 400 || good.len() - at < 64 || at % 1024 == 7)
            .collect();
        for at in places {
            let mut bad = good.to_vec();
            bad[at] ^= 1 << (at % 8);
            store.tamper(&key, bad.into());
            let what = format!("{key}, byte {at} of {}", good.len());
            assert!(told(&fixture, &points, &what).await, "{what}: nobody is told");
            forget(&store).await;
        }
        store.tamper(&key, good);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cut_short_grown_or_gone_is_told() {
    let (fixture, store, points) = two_points(91).await;
    for key in store.keys().into_iter().filter(|k| !is_page(k)) {
        let good = body(&store, &key).await;
        let lengths = [0, 1, good.len() / 2, good.len() - 1];
        for length in lengths {
            store.tamper(&key, good.slice(..length));
            let what = format!("{key}, cut to {length} of {}", good.len());
            assert!(told(&fixture, &points, &what).await, "{what}: nobody is told");
            forget(&store).await;
        }
        store.tamper(&key, [&good[..], b"\n"].concat().into());
        let what = format!("{key}, one byte longer");
        assert!(told(&fixture, &points, &what).await, "{what}: nobody is told");
        forget(&store).await;
        store.lose(&key);
        // A list without a commit is a list without a point: what is gone with its commit is not known to have been.
        if !key.as_str().contains("/points/") {
            assert!(
                told(&fixture, &points, &format!("{key}, gone")).await,
                "{key}, gone: nobody is told"
            );
        }
        forget(&store).await;
        store.tamper(&key, good);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn swapped_and_replayed_objects_are_told() {
    let (fixture, store, points) = two_points(92).await;
    let keys: Vec<Key> = store.keys().into_iter().filter(|k| !is_page(k)).collect();
    for key in &keys {
        let good = body(&store, key).await;
        for other in keys.iter().filter(|o| *o != key) {
            let bytes = body(&store, other).await;
            // Any wrap that opens serves: a second copy of one is no damage.
            if bytes == good {
                continue;
            }
            store.tamper(key, bytes);
            let what = format!("{other} in the place of {key}");
            assert!(told(&fixture, &points, &what).await, "{what}: nobody is told");
            forget(&store).await;
        }
        store.tamper(key, good);
    }
}

/// Objects of another repository with the same names.
#[tokio::test(flavor = "multi_thread")]
async fn objects_of_another_repository_are_told() {
    let (fixture, store, points) = two_points(93).await;
    let (_, foreign, _) = two_points(94).await;
    let keys = store.keys();
    let class = |key: &Key| {
        let name = key.as_str().rsplit('/').next().unwrap_or_default().to_owned();
        let folder = key.as_str().split('/').nth(2).unwrap_or_default().to_owned();
        (
            folder,
            if name.ends_with(".json") {
                "json".into()
            } else {
                name
            },
        )
    };
    for key in keys
        .iter()
        .filter(|k| !is_page(k) && k.as_str() != "lifeboat.json")
    {
        let good = body(&store, key).await;
        for other in foreign.keys().iter().filter(|o| class(o) == class(key)) {
            store.tamper(key, body(&foreign, other).await);
            let what = format!("a foreign {other} in the place of {key}");
            assert!(told(&fixture, &points, &what).await, "{what}: nobody is told");
            forget(&store).await;
        }
        store.tamper(key, good);
    }
}

/// The catalog's word on a point, as `list` shows it.
async fn shown(fixture: &Fixture, run: RunId) -> Option<String> {
    let report = lifeboat::jobs::list::list(&fixture.session, None).await.unwrap();
    let mut points = report.sources.into_iter().flat_map(|s| s.points);
    points.find(|p| p.run == run).unwrap().damaged
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_later_verify_finds_whole_is_damaged_no_more() {
    let (fixture, store, points) = two_points(95).await;
    for name in ["0.age", "manifest.age", "refs", "SHA256SUMS"] {
        let key = lifeboat::repository::layout::run_object(&fixture.source, points[0].0, name);
        let good = body(&store, &key).await;
        for bad in [None, Some(good.slice(1..))] {
            match bad {
                Some(bad) => store.tamper(&key, bad),
                None => store.lose(&key),
            }
            // The clock of another host may stand an hour back: the later look counts all the same.
            verify::verify(&fixture.session, None, None, false).await.unwrap();
            assert!(shown(&fixture, points[0].0).await.is_some(), "{name}");
            store.tamper(&key, good.clone());
            fixture.clock.advance(chrono::TimeDelta::hours(-1));
            let report = verify::verify(&fixture.session, None, None, false).await.unwrap();
            assert!(
                report.damaged.is_empty() && report.missing.is_empty(),
                "{name}: {report:?}"
            );
            for (run, _) in &points {
                assert_eq!(shown(&fixture, *run).await, None, "{name}");
            }
            let records = store
                .keys()
                .iter()
                .filter(|k| k.as_str().contains("/damaged/"))
                .count();
            verify::verify(&fixture.session, None, None, false).await.unwrap();
            let now = store
                .keys()
                .iter()
                .filter(|k| k.as_str().contains("/damaged/"))
                .count();
            assert_eq!(records, now, "nothing is told twice");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_names_no_damaged_point_as_the_way_out() {
    use lifeboat::jobs::restore::{Aim, Request, plan};
    let (fixture, store, mut points) = two_points(96).await;
    let key = lifeboat::repository::layout::run_object(&fixture.source, points[0].0, "0.age");
    let request = |run| Request {
        source: fixture.source.clone(),
        aim: Aim::Point(run),
        target: None,
        options: Default::default(),
        max_gap: None,
        gap_accepted: true,
    };
    // Both points draw on this pack.
    let good = body(&store, &key).await;
    store.tamper(&key, good.slice(1..));
    verify::verify(&fixture.session, None, None, false).await.unwrap();
    let error = plan(&fixture.session, &request(points[0].0)).await.unwrap_err();
    assert_eq!(error.kind(), lifeboat::error::Kind::Damaged);
    assert!(
        error.hint_text().unwrap().contains("No recovery point"),
        "{error:?}"
    );
    let whole = fixture.run(&points[1].1).await.unwrap().commit.run;
    points.push((whole, points[1].1.clone()));
    let error = plan(&fixture.session, &request(points[0].0)).await.unwrap_err();
    assert!(
        error
            .hint_text()
            .unwrap()
            .contains(&format!("--at-point {whole}")),
        "{error:?}"
    );
    fixture.assert_restores(whole, &points[2].1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pack_that_was_made_good_again_damages_no_later_point() {
    for sample in [None, Some(1)] {
        let (mut fixture, store, points) = two_points(97).await;
        fixture.session.identity_file = Some(fixture.identity());
        let key = lifeboat::repository::layout::run_object(&fixture.source, points[0].0, "0.age");
        store.tamper(&key, body(&store, &key).await.slice(1..));
        verify::verify(&fixture.session, None, None, false).await.unwrap();
        // Its manifest is the difference from those of the points that can not be restored any more.
        let whole = fixture.run(&points[1].1).await.unwrap().commit;
        assert_eq!(whole.manifest_depth, 3);
        let report = verify::verify(&fixture.session, None, sample, true)
            .await
            .unwrap();
        let told: Vec<&str> = report.damaged.iter().map(|p| p.key.as_str()).collect();
        assert_eq!(told, [key.as_str()], "{report:?}");
        assert!(shown(&fixture, points[1].0).await.is_some());
        assert_eq!(shown(&fixture, whole.run).await, None);
    }
}
