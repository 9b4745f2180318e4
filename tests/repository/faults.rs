//! Lists that lag, replies that get lost, and a crash at every call of the store: whatever was shown restores, and the
//! next run goes on.

use std::sync::Arc;

use chrono::TimeDelta;
use lifeboat::jobs::prune;
use lifeboat::policy::RetentionRules;
use lifeboat::repository::layout;
use lifeboat::source::Cut;
use lifeboat::store::memory::MemoryStore;
use lifeboat::store::wrappers::{Faulty, Injected, Operation};
use lifeboat::store::{Fault, SharedStore, Store, View};
use lifeboat::types::RunId;

use crate::world::{Fixture, MapSource, noise};
use crate::{in_memory, pages};

/// Three points, of which the first expires, and a state in which its grace is over.
async fn expired(seed: u64) -> (Fixture, MemoryStore, Vec<(RunId, MapSource)>) {
    let (mut fixture, store) = in_memory(seed).await;
    fixture.set_retention(RetentionRules {
        daily: 1,
        ..RetentionRules::default()
    });
    let mut source = MapSource::default().with("data.db", Cut::Pages, noise(64 << 10, 1));
    let mut points = Vec::new();
    for n in 0..3 {
        source.set(
            "data.db",
            Cut::Pages,
            pages(source.units["data.db"].content.clone(), &[n], 7),
        );
        points.push((fixture.run(&source).await.unwrap().commit.run, source.clone()));
        fixture.clock.advance(TimeDelta::days(1));
    }
    prune::prune(&fixture.session, false).await.unwrap();
    fixture.clock.advance(TimeDelta::hours(74));
    (fixture, store, points)
}

fn hiding(fixture: &mut Fixture, store: &MemoryStore, prefix: String) {
    let plan =
        move |_, operation, _: &_| (operation == Operation::List).then(|| Injected::Hide(prefix.clone()));
    fixture.session.store = Some(Arc::new(Faulty::new(Arc::new(store.clone()), plan)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_that_the_list_hides_still_holds() {
    let (mut fixture, store, points) = expired(70).await;
    let held = lifeboat::repository::documents::Hold {
        place: fixture.repository().await.place(&fixture.source, points[0].0),
        at: chrono::DateTime::UNIX_EPOCH,
        who: "x".into(),
        why: "y".into(),
    };
    let key = layout::hold(&fixture.source, points[0].0);
    store
        .put(
            &key,
            serde_json::to_vec(&held).unwrap().into(),
            Default::default(),
        )
        .await
        .unwrap();
    let hidden = layout::holds_prefix(&fixture.source);
    hiding(&mut fixture, &store, hidden);
    let report = prune::prune(&fixture.session, false).await.unwrap();
    assert!(
        report.warnings.iter().any(|w| w.contains("held or brought back")),
        "{report:?}"
    );
    fixture.session.store = Some(Arc::new(store));
    fixture.assert_restores(points[0].0, &points[0].1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_the_list_hides_stops_the_sweep() {
    let (mut fixture, store, points) = expired(71).await;
    let before = store.keys();
    let hidden = layout::commit(&fixture.source, points[2].0).to_string();
    hiding(&mut fixture, &store, hidden);
    prune::prune(&fixture.session, false).await.unwrap_err();
    assert_eq!(store.keys(), before, "nothing is removed on a doubtful list");
    fixture.session.store = Some(Arc::new(store));
    for (run, source) in &points {
        fixture.assert_restores(*run, source).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_does_not_see_its_packs_commits_nothing() {
    let (mut fixture, store, points) = expired(72).await;
    let commits = |store: &MemoryStore| {
        store
            .keys()
            .iter()
            .filter(|k| k.as_str().contains("/points/"))
            .count()
    };
    let before = commits(&store);
    let hidden = layout::runs_prefix(&fixture.source);
    hiding(&mut fixture, &store, hidden);
    fixture.run(&points[2].1).await.unwrap_err();
    assert_eq!(commits(&store), before);
}

/// Everything that is shown restores, a run and a prune work again, and everything restores once more.
async fn converges(fixture: &mut Fixture, store: &MemoryStore, points: &[(RunId, MapSource)], after: &str) {
    fixture.session.store = Some(Arc::new(store.clone()) as SharedStore);
    for round in 0..2 {
        let catalog = fixture.repository().await.catalog(&fixture.source).await.unwrap();
        assert!(catalog.unreadable.is_empty(), "{after}");
        for point in catalog.points.values().filter(|p| !p.commit.partial) {
            let known = points.iter().find(|(run, _)| *run == point.commit.run);
            match known {
                Some((run, source)) => fixture.assert_restores(*run, source).await,
                None => drop(
                    fixture
                        .content(point.commit.run)
                        .await
                        .unwrap_or_else(|e| panic!("{after}: {e:?}")),
                ),
            }
        }
        for (run, _) in &points[1..] {
            assert!(catalog.points.contains_key(run), "{after}: {run} is gone");
        }
        if round == 0 {
            let source = &points[2].1;
            let taken = fixture
                .run(source)
                .await
                .unwrap_or_else(|e| panic!("{after}: {e:?}"));
            fixture.assert_restores(taken.commit.run, source).await;
            prune::prune(&fixture.session, false)
                .await
                .unwrap_or_else(|e| panic!("{after}: {e:?}"));
        }
    }
    let report = lifeboat::jobs::verify::verify(&fixture.session, None, None, false)
        .await
        .unwrap();
    assert!(
        report.damaged.is_empty() && report.missing.is_empty(),
        "{after}: {report:?}"
    );
}

/// Lets the n-th call of a job go wrong, for every n, until the job no longer makes that many calls.
async fn at_every_call(job: &str, fault: &Injected) {
    for n in 0..1000 {
        let (mut fixture, store, points) = expired(73).await;
        let fault = fault.clone();
        let plan = move |number, _, _: &_| (number == n).then(|| fault.clone());
        let faulty = Faulty::new(Arc::new(store.clone()), plan);
        fixture.session.store = Some(Arc::new(faulty.clone()));
        let mut source = points[2].1.clone();
        source.set(
            "data.db",
            Cut::Pages,
            pages(source.units["data.db"].content.clone(), &[5], 99),
        );
        let ended = match job {
            "run" => fixture.run(&source).await.map(|_| ()),
            _ => prune::prune(&fixture.session, false).await.map(|_| ()),
        };
        let reached = faulty.calls() > n;
        if reached && ended.is_ok() && job == "run" {
            // A fault that the run survived: its point must be whole.
            let shared: &dyn Store = &store;
            assert!(
                shared
                    .head(&layout::repository(), View::Current)
                    .await
                    .unwrap()
                    .is_some()
            );
        }
        converges(&mut fixture, &store, &points, &format!("{job}, call {n}")).await;
        if !reached {
            assert!(ended.is_ok(), "{job}: {ended:?}");
            assert!(n > 10, "{job} made only {n} calls");
            return;
        }
    }
    panic!("{job} makes more calls than this test tries");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_before_any_call_of_a_run_loses_nothing() {
    at_every_call("run", &Injected::CrashBefore).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_after_any_call_of_a_run_loses_nothing() {
    at_every_call("run", &Injected::CrashAfter).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reply_lost_at_any_call_of_a_run_loses_nothing() {
    at_every_call("run", &Injected::After(Fault::Unavailable)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_before_any_call_of_a_prune_loses_nothing() {
    at_every_call("prune", &Injected::CrashBefore).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_after_any_call_of_a_prune_loses_nothing() {
    at_every_call("prune", &Injected::CrashAfter).await;
}
