//! Prune, undo and holds over a repository in memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use chrono::TimeDelta;
use lifeboat::clock::CrashPoints;
use lifeboat::error::Kind;
use lifeboat::jobs::report::PruneReport;
use lifeboat::jobs::{hold, prune};
use lifeboat::policy::RetentionRules;
use lifeboat::repository::documents::{Place, Tombstone};
use lifeboat::repository::layout;
use lifeboat::source::Cut;
use lifeboat::store::memory::MemoryStore;
use lifeboat::store::{SharedStore, Store, View};
use lifeboat::types::{Key, RunId};

use crate::world::{Fixture, MapSource, noise};

async fn in_memory(seed: u64) -> (Fixture, MemoryStore) {
    let mut kept = None;
    let mut fixture = Fixture::new(seed, |world| {
        let store = MemoryStore::new(world);
        kept = Some(store.clone());
        Arc::new(store) as SharedStore
    })
    .await;
    // Nothing is kept but the newest two.
    fixture.set_retention(RetentionRules {
        daily: 1,
        ..RetentionRules::default()
    });
    (fixture, kept.unwrap())
}

/// Points a day apart, each changing one block of a file, so that newer ones draw on older packs.
async fn points(fixture: &Fixture, count: usize) -> Vec<(RunId, MapSource)> {
    let mut content = noise(2 << 20, 1);
    let mut points = Vec::new();
    for n in 0..count {
        content[n * 8192] ^= 0xFF;
        let source = MapSource::default().with("data.db", Cut::Pages, content.clone());
        points.push((fixture.run(&source).await.unwrap().commit.run, source));
        fixture.clock.advance(TimeDelta::days(1));
    }
    points
}

fn runs(report: &PruneReport) -> (Vec<RunId>, Vec<RunId>, Vec<RunId>) {
    (
        report.keep.iter().map(|k| k.run).collect(),
        report.expire.iter().map(|e| e.run).collect(),
        report.sweep.iter().map(|s| s.run).collect(),
    )
}

async fn exists(fixture: &Fixture, run: RunId) -> bool {
    fixture
        .repository()
        .await
        .commit(&fixture.source, run)
        .await
        .unwrap()
        .is_some()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_prints_the_plan_that_is_carried_out() {
    let (fixture, store) = in_memory(1).await;
    let points = points(&fixture, 5).await;
    let before = store.keys();
    let planned = prune::prune(&fixture.session, true).await.unwrap();
    assert_eq!(store.keys(), before, "a dry run writes nothing");
    let done = prune::prune(&fixture.session, false).await.unwrap();
    assert_eq!(runs(&planned), runs(&done));
    let (keep, expire, sweep) = runs(&done);
    assert_eq!(keep, [points[3].0, points[4].0]);
    assert_eq!(expire, [points[0].0, points[1].0, points[2].0]);
    assert!(sweep.is_empty(), "nothing is swept before its grace ends");
    assert!(done.keep.iter().all(|k| !k.reasons.is_empty()));
    for (run, source) in &points {
        fixture.assert_restores(*run, source).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sweep_waits_for_the_grace_and_leaves_what_others_draw_on() {
    let (fixture, store) = in_memory(2).await;
    let points = points(&fixture, 5).await;
    prune::prune(&fixture.session, false).await.unwrap();
    fixture.clock.advance(TimeDelta::hours(72));
    prune::prune(&fixture.session, false).await.unwrap();
    assert!(exists(&fixture, points[0].0).await, "grace + 1 h is not over");
    fixture.clock.advance(TimeDelta::hours(2));
    let planned = prune::prune(&fixture.session, true).await.unwrap();
    let done = prune::prune(&fixture.session, false).await.unwrap();
    assert_eq!(runs(&planned).2, runs(&done).2);
    for (run, _) in &points[..3] {
        assert!(!exists(&fixture, *run).await);
    }
    // The kept points draw on the first run's pack: it stays, with its digests and its tombstone.
    let first = layout::run_prefix(&fixture.source, points[0].0);
    let left: Vec<_> = store
        .keys()
        .into_iter()
        .filter(|k| k.as_str().starts_with(&first))
        .collect();
    assert!(left.contains(&layout::pack(&fixture.source, points[0].0, 0)));
    assert!(left.contains(&layout::run_object(&fixture.source, points[0].0, layout::SUMS)));
    assert!(
        store
            .keys()
            .contains(&layout::tombstone(&fixture.source, points[0].0))
    );
    for (run, source) in &points[3..] {
        fixture.assert_restores(*run, source).await;
    }
    // And a further run on top of it all still works, and verifies.
    let taken = fixture.run(&points[4].1).await.unwrap();
    fixture.assert_restores(taken.commit.run, &points[4].1).await;
    let report = lifeboat::jobs::verify::verify(&fixture.session, None, None, false)
        .await
        .unwrap();
    assert!(
        report.damaged.is_empty() && report.missing.is_empty(),
        "{report:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_of_a_run_that_nobody_draws_on_goes() {
    let (fixture, store) = in_memory(3).await;
    let mut points = Vec::new();
    for n in 0..4 {
        // Nothing is shared: every run is all new.
        let source = MapSource::default().with("data.db", Cut::Pages, noise(1 << 20, 100 + n));
        points.push((fixture.run(&source).await.unwrap().commit.run, source));
        fixture.clock.advance(TimeDelta::days(1));
    }
    prune::prune(&fixture.session, false).await.unwrap();
    fixture.clock.advance(TimeDelta::hours(74));
    prune::prune(&fixture.session, false).await.unwrap();
    for (run, source) in &points[2..] {
        fixture.assert_restores(*run, source).await;
    }
    // Manifests may chain; packs of the gone runs are gone.
    for (run, _) in &points[..2] {
        assert!(!exists(&fixture, *run).await);
        assert!(!store.keys().contains(&layout::pack(&fixture.source, *run, 0)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn undo_brings_a_point_back_until_its_grace_is_nearly_over() {
    let (fixture, _) = in_memory(4).await;
    let points = points(&fixture, 4).await;
    prune::prune(&fixture.session, false).await.unwrap();
    let undone = prune::undo(&fixture.session, points[0].0).await.unwrap();
    assert_eq!(undone.run, points[0].0);
    fixture.assert_restores(points[0].0, &points[0].1).await;
    fixture
        .clock
        .advance(TimeDelta::hours(71) + TimeDelta::minutes(30));
    let error = prune::undo(&fixture.session, points[1].0).await.unwrap_err();
    assert!(error.message().contains("grace"), "{error:?}");
    let error = prune::undo(&fixture.session, points[3].0).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Usage);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_point_stays_whatever_retention_says() {
    let (fixture, _) = in_memory(5).await;
    let points = points(&fixture, 4).await;
    hold::add(&fixture.session, points[0].0, "auditor", "case 17")
        .await
        .unwrap();
    for _ in 0..3 {
        prune::prune(&fixture.session, false).await.unwrap();
        fixture.clock.advance(TimeDelta::hours(80));
    }
    fixture.assert_restores(points[0].0, &points[0].1).await;
    assert!(!exists(&fixture, points[1].0).await);
    let holds = hold::list(&fixture.session).await.unwrap().holds;
    assert_eq!((holds.len(), holds[0].why.as_str()), (1, "case 17"));
    assert_eq!(
        hold::add(&fixture.session, points[0].0, "x", "y")
            .await
            .unwrap_err()
            .kind(),
        Kind::Usage
    );
    hold::remove(&fixture.session, points[0].0).await.unwrap();
    for _ in 0..2 {
        prune::prune(&fixture.session, false).await.unwrap();
        fixture.clock.advance(TimeDelta::hours(80));
    }
    assert!(!exists(&fixture, points[0].0).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_over_a_tombstone_stops_the_sweep() {
    let (fixture, store) = in_memory(6).await;
    let points = points(&fixture, 4).await;
    prune::prune(&fixture.session, false).await.unwrap();
    // Laid by another host while this one sweeps: put directly.
    let place = fixture.repository().await.place(&fixture.source, points[0].0);
    let held = lifeboat::repository::documents::Hold {
        place,
        at: chrono::DateTime::UNIX_EPOCH,
        who: "x".into(),
        why: "y".into(),
    };
    let bytes = serde_json::to_vec(&held).unwrap();
    store
        .put(
            &layout::hold(&fixture.source, points[0].0),
            bytes.into(),
            Default::default(),
        )
        .await
        .unwrap();
    fixture.clock.advance(TimeDelta::hours(74));
    prune::prune(&fixture.session, false).await.unwrap();
    fixture.assert_restores(points[0].0, &points[0].1).await;
    assert!(!exists(&fixture, points[1].0).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_keeps_a_buried_point_does_not_sweep_it() {
    let (mut fixture, _) = in_memory(7).await;
    let points = points(&fixture, 4).await;
    prune::prune(&fixture.session, false).await.unwrap();
    fixture.clock.advance(TimeDelta::hours(74));
    fixture.set_retention(RetentionRules {
        daily: 30,
        ..RetentionRules::default()
    });
    let report = prune::prune(&fixture.session, false).await.unwrap();
    assert!(report.sweep.is_empty());
    assert!(!report.warnings.is_empty());
    for (run, source) in &points {
        fixture.assert_restores(*run, source).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forged_tombstone_and_a_copied_commit_do_no_harm() {
    let (fixture, store) = in_memory(8).await;
    let points = points(&fixture, 4).await;
    // A tombstone of another run, copied over the newest point's key.
    prune::prune(&fixture.session, false).await.unwrap();
    let other = store
        .get(
            &layout::tombstone(&fixture.source, points[0].0),
            None,
            View::Current,
        )
        .await
        .unwrap();
    store
        .put(
            &layout::tombstone(&fixture.source, points[3].0),
            other,
            Default::default(),
        )
        .await
        .unwrap();
    fixture.clock.advance(TimeDelta::hours(74));
    let _ = prune::prune(&fixture.session, false).await;
    fixture.assert_restores(points[3].0, &points[3].1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn orphans_go_after_a_week_and_no_earlier() {
    let (fixture, store) = in_memory(9).await;
    let points = points(&fixture, 2).await;
    let orphan = RunId::new(fixture.session.world.ulid().unwrap());
    let pack = layout::pack(&fixture.source, orphan, 0);
    store
        .put(&pack, vec![1; 1000].into(), Default::default())
        .await
        .unwrap();
    let orphans = |store: &MemoryStore| {
        let known = [points[0].0, points[1].0].map(|r| r.to_string());
        let runs = store.keys().into_iter().filter(|k| k.as_str().contains("/runs/"));
        runs.filter(|k| !known.iter().any(|r| k.as_str().contains(r)))
            .count()
    };
    assert!(orphans(&store) > 0);
    fixture.clock.advance(TimeDelta::days(6));
    prune::prune(&fixture.session, false).await.unwrap();
    assert!(orphans(&store) > 0);
    fixture.clock.advance(TimeDelta::days(2));
    let report = prune::prune(&fixture.session, false).await.unwrap();
    assert_eq!(orphans(&store), 0);
    assert!(report.sweep.iter().any(|s| s.why == "orphan"));
}

#[tokio::test(flavor = "multi_thread")]
async fn sweep_stops_when_a_referenced_run_is_unknown() {
    let (fixture, store) = in_memory(10).await;
    let points = points(&fixture, 5).await;
    prune::prune(&fixture.session, false).await.unwrap();
    fixture.clock.advance(TimeDelta::hours(74));
    // Somebody removed a commit by hand, without a tombstone.
    store.lose(&layout::commit(&fixture.source, points[0].0));
    store.lose(&layout::tombstone(&fixture.source, points[0].0));
    let before = store.keys();
    let error = prune::prune(&fixture.session, false).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Failed);
    let after = store.keys();
    assert!(before.iter().all(|key| after.contains(key)), "nothing is removed");
    // It is buried now, and the next one goes on; what others draw on stays.
    prune::prune(&fixture.session, false).await.unwrap();
    assert!(store.keys().len() < after.len());
    for (run, source) in &points[3..] {
        fixture.assert_restores(*run, source).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_retention_everything_is_kept() {
    let (mut fixture, _) = in_memory(11).await;
    let policy = Arc::make_mut(&mut fixture.session.policy);
    policy.sources.get_mut(&fixture.source).unwrap().retention = None;
    let points = points(&fixture, 4).await;
    let report = prune::prune(&fixture.session, false).await.unwrap();
    assert_eq!(report.keep.len(), points.len());
    assert!(report.expire.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_drawn_on_stays_locked_and_a_locked_object_is_no_error() {
    let mut kept = None;
    let mut fixture = Fixture::new(12, |world| {
        let store = MemoryStore::versioned(world);
        kept = Some(store.clone());
        Arc::new(store) as SharedStore
    })
    .await;
    let store = kept.unwrap();
    let policy = Arc::make_mut(&mut fixture.session.policy);
    policy.repository.object_lock = Some(lifeboat::policy::ObjectLock {
        mode: lifeboat::store::LockMode::Governance,
        days: 10,
    });
    fixture.set_retention(RetentionRules {
        daily: 1,
        ..RetentionRules::default()
    });
    let points = points(&fixture, 8).await;
    let until = async |key| {
        store
            .head(&key, View::First)
            .await
            .unwrap()
            .unwrap()
            .lock
            .unwrap()
            .until
    };
    let now = fixture.session.world.clock.now();
    let half = now + TimeDelta::days(4);
    // The first run's pack is drawn on by every point: each run that finds it half through locks it anew.
    let pack = layout::pack(&fixture.source, points[0].0, 0);
    assert!(
        until(pack.clone()).await >= half,
        "a run extends what it draws on"
    );
    assert!(until(layout::commit(&fixture.source, points[7].0)).await >= half);
    fixture.clock.advance(TimeDelta::days(6));
    prune::prune(&fixture.session, false).await.unwrap();
    let now = fixture.session.world.clock.now();
    for key in [
        pack,
        layout::commit(&fixture.source, points[7].0),
        layout::commit(&fixture.source, points[6].0),
    ] {
        assert!(
            until(key.clone()).await >= now + TimeDelta::days(5),
            "prune extends {key}"
        );
    }
    // Expired points go when their grace is over; their versions stay until the locks end.
    fixture.clock.advance(TimeDelta::hours(74));
    prune::prune(&fixture.session, false).await.unwrap();
    assert!(!exists(&fixture, points[0].0).await);
    fixture.assert_restores(points[7].0, &points[7].1).await;
}

/// Puts an object the first time that a moment is reached, as somebody does who slept before he put it.
#[derive(Debug)]
struct Late {
    store: MemoryStore,
    at: &'static str,
    object: (Key, bytes::Bytes),
    reached: AtomicUsize,
}

impl CrashPoints for Late {
    fn reach(&self, name: &'static str) -> lifeboat::error::Result<()> {
        if name == self.at && self.reached.fetch_add(1, Ordering::SeqCst) == 0 {
            self.store.tamper(&self.object.0, self.object.1.clone());
        }
        Ok(())
    }
}

/// An orphan of nine days, and what its commit would have been.
async fn orphan(seed: u64) -> (Fixture, MemoryStore, RunId, (Key, bytes::Bytes)) {
    let (fixture, store) = in_memory(seed).await;
    points(&fixture, 2).await;
    let source = MapSource::default().with("data.db", Cut::Pages, noise(2 << 20, 99));
    let orphan = fixture.run(&source).await.unwrap().commit.run;
    let commit = layout::commit(&fixture.source, orphan);
    let bytes = store.get(&commit, None, View::Current).await.unwrap();
    store.lose(&commit);
    fixture.clock.advance(TimeDelta::days(9));
    (fixture, store, orphan, (commit, bytes))
}

fn objects(fixture: &Fixture, store: &MemoryStore, run: RunId) -> usize {
    let prefix = layout::run_prefix(&fixture.source, run);
    let keys = store.keys();
    keys.iter().filter(|k| k.as_str().starts_with(&prefix)).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_orphan_whose_commit_comes_before_it_is_touched_stays_whole() {
    let (mut fixture, store, run, object) = orphan(68).await;
    let before = objects(&fixture, &store, run);
    fixture.session.world.crash = Arc::new(Late {
        store: store.clone(),
        at: "before a tombstone is put",
        object,
        reached: AtomicUsize::new(0),
    });
    drop(prune::prune(&fixture.session, false).await);
    assert_eq!(objects(&fixture, &store, run), before);
    let tombstone = layout::tombstone(&fixture.source, run);
    assert!(!store.keys().contains(&tombstone), "it is not buried either");
}

/// A pruner that slept says that it sweeps the run after its commit was put, and before the writer looks once more.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_taken_for_an_orphan_while_it_is_committed_fails_and_says_so() {
    for (at, fails) in [
        ("after the commit was put", true),
        ("before the manifest is put", false),
    ] {
        let (fixture, _) = in_memory(69).await;
        let before = points(&fixture, 2).await;
        let source = MapSource::default().with("data.db", Cut::Pages, noise(2 << 20, 99));
        // The same run again, in a world of the same seed, has the same name.
        let told = fixture.run(&source).await.unwrap().commit;
        let (mut again, store_again) = in_memory(69).await;
        assert_eq!(before[1].0, points(&again, 2).await[1].0);
        let place = Place {
            format: told.format,
            repository: told.repository,
            source: told.source.clone(),
            run: told.run,
        };
        let tombstone = Tombstone {
            place,
            at: told.at,
            reason: Tombstone::ORPHAN.to_owned(),
        };
        again.session.world.crash = Arc::new(Late {
            store: store_again.clone(),
            at,
            object: (
                layout::tombstone(&told.source, told.run),
                serde_json::to_vec(&tombstone).unwrap().into(),
            ),
            reached: AtomicUsize::new(0),
        });
        let outcome = again.run(&source).await;
        let repository = again.repository().await;
        let catalog = repository.catalog(&again.source).await.unwrap();
        if fails {
            let error = outcome.unwrap_err();
            assert!(
                error.chain().contains("removed while it was written"),
                "{error:?}"
            );
            let damage = &catalog.damage[&(told.run, "commit".to_owned())];
            assert!(damage.is_lasting(), "{damage:?}");
        } else {
            // Noticed before the commit: the run is taken again under another name.
            let run = outcome.unwrap().commit.run;
            assert_ne!(run, told.run);
            assert!(catalog.points.contains_key(&run) && !catalog.points.contains_key(&told.run));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_orphan_whose_commit_comes_while_it_is_swept_is_left() {
    let (mut fixture, store, run, object) = orphan(67).await;
    let before = objects(&fixture, &store, run);
    assert!(before >= 4, "{before}");
    fixture.session.world.crash = Arc::new(Late {
        store: store.clone(),
        at: "before an object is deleted",
        object,
        reached: AtomicUsize::new(0),
    });
    // The one that was on its way when the commit came goes; the writer finds that when it looks after its commit.
    drop(prune::prune(&fixture.session, false).await);
    assert_eq!(objects(&fixture, &store, run), before - 1);
}
