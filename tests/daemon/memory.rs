//! What the daemon remembers, and what is done to it from outside: its file is damaged or held, its clock set back, somebody
//! else runs and prunes with its state directory.

use std::os::unix::fs::FileExt as _;

use chrono::TimeDelta;
use lifeboat::state::ledger::Outcome;

use crate::harness;
use crate::notices::{Place, all_told, hours, secret, tell};
use crate::world::{Port, at};

/// Writes over the middle of every page, in the database and in its log.
fn damage(port: &Port) {
    for (name, first, size) in [("daemon.db", 0, 4096), ("daemon.db-wal", 32 + 24, 4096 + 24)] {
        let path = port.site.path("state").join(name);
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        let length = file.metadata().unwrap().len();
        let mut at = first;
        while at + 4096 <= length {
            file.write_all_at(&[0x5A; 3800], at + 200).unwrap();
            at += size;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_memory_that_is_damaged_while_it_is_used_is_rebuilt_at_once() {
    let mut port = Port::new(261, "0 * * * *", "");
    port.start();
    port.rest().await;
    port.advance(TimeDelta::hours(1)).await;
    assert_eq!(port.slots().len(), 1);
    // Somebody else writes, so that pages are read anew.
    let other = rusqlite::Connection::open(port.site.path("state/daemon.db")).unwrap();
    other
        .execute_batch("CREATE TABLE other (x); DROP TABLE other")
        .unwrap();
    damage(&port);
    for hour in 2..6 {
        port.clock.advance(TimeDelta::hours(1));
        port.rest_in_time().await;
        assert_eq!(port.slots().len(), hour, "no slot waits for a new start");
    }
    assert!(port.site.path("state/daemon.db.damaged").exists());
    let shown = port.rest().await;
    assert_eq!(shown.sources[0].points.points, 5, "{:?}", shown.sources[0]);
    port.stop().await;
    let records = port
        .ledger()
        .since("run app", at("2026-11-26T00:00:00Z"))
        .unwrap();
    assert!(
        records.iter().filter(|r| r.outcome == Outcome::Done).count() >= 3,
        "{records:?}"
    );
    port.site.verifies("the memory was damaged");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_holds_the_memory_holds_up_no_more_than_one_look() {
    // Forty sources, each of which would wait by itself.
    let mut port = Port::new(262, "0 * * * *", "");
    let policy = std::fs::read_to_string(port.site.path("policy.toml")).unwrap();
    let (head, source) = policy.split_once("[source.app]").unwrap();
    let (source, retention) = source.split_once("[retention").unwrap();
    let sources: String = (0..40).map(|n| format!("[source.s{n}]{source}")).collect();
    let many = format!("{head}[source.app]{source}{sources}[retention{retention}");
    harness::write_file(port.site.dir.path(), "policy.toml", many);
    port.start();
    port.rest().await;
    let db = rusqlite::Connection::open(port.site.path("state/daemon.db")).unwrap();
    db.execute_batch("BEGIN IMMEDIATE").unwrap();
    port.clock.advance(TimeDelta::hours(1));
    // Some turns of the loop, within the patience of one of them that waits forty times.
    for _ in 0..5 {
        let shown = port.until(|_| true).await;
        assert!(
            shown
                .tasks
                .iter()
                .all(|t| t.running.is_none() && t.totals.done == 0)
        );
        port.clock.advance(TimeDelta::seconds(2));
    }
    db.execute_batch("ROLLBACK").unwrap();
    port.clock.advance(TimeDelta::seconds(2));
    let shown = port
        .until(|shown| shown.tasks.iter().all(|t| t.totals.done == 1))
        .await;
    assert_eq!(shown.tasks.len(), 41);
    port.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_was_set_back_a_little_is_told_and_nothing_is_run_twice() {
    let mut port = Port::new(263, "*/5 * * * *", "");
    port.start();
    port.rest().await;
    for _ in 0..12 {
        port.advance(TimeDelta::minutes(5)).await;
    }
    assert_eq!(port.slots().len(), 12);
    port.clock.set(at("2026-11-26T00:20:00Z"));
    let shown = port.rest().await;
    assert_eq!(shown.held_until, Some(at("2026-11-26T01:00:00Z")));
    assert!(
        shown
            .sentence()
            .contains("the clock was set back: nothing starts before 2026-11-26 01:00:00Z"),
        "{}",
        shown.sentence()
    );
    assert_eq!(
        shown.tasks[0].next,
        Some(at("2026-11-26T01:05:00Z")),
        "not one that was run already"
    );
    for _ in 0..7 {
        port.advance(TimeDelta::minutes(5)).await;
    }
    assert_eq!(port.slots().len(), 12, "none twice");
    port.stop().await;
    assert!(
        port.ledger().trouble("clock").unwrap().is_some(),
        "somebody is told"
    );
    port.start();
    let shown = port.rest().await;
    assert!(
        shown.held_until.is_some() || lifeboat::clock::Clock::now(&*port.clock) > at("2026-11-26T00:54:59Z")
    );
    let shown = port.advance(TimeDelta::minutes(12)).await;
    assert_eq!(shown.held_until, None);
    assert_eq!(port.slots().len(), 13);
    port.stop().await;
    assert!(port.ledger().trouble("clock").unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_was_asked_for_outlives_a_kill_and_a_stop() {
    let mut port = Port::new(264, "0 4 * * *", "");
    let mut asked = Vec::new();
    for kill in [true, false] {
        port.start();
        port.rest().await;
        let before = port.slots().len();
        port.site.change();
        assert!(port.ask_to_run().await);
        // It is written down, and has hardly begun.
        if kill {
            port.kill().await;
        } else {
            port.stop().await;
        }
        let now = port
            .ledger()
            .since("run app", at("2026-11-26T00:00:00Z"))
            .unwrap();
        asked.push(now.last().unwrap().slot);
        port.clock.advance(TimeDelta::minutes(2));
        port.start();
        port.rest_in_time().await;
        port.stop().await;
        assert_eq!(port.slots().len(), before + 1, "killed: {kill}");
    }
    assert_eq!(port.slots(), asked, "each answers for what was asked");
    let slots = port
        .ledger()
        .since("run app", at("2026-11-26T00:00:00Z"))
        .unwrap();
    assert!(slots.iter().all(|r| r.outcome == Outcome::Done), "{slots:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_asked_for_before_a_slot_of_the_schedule_is_made_good_by_that() {
    let mut port = Port::new(265, "0 4 * * *", "");
    port.start();
    port.rest().await;
    assert!(port.ask_to_run().await);
    port.kill().await;
    let committed = port.slots().len();
    port.clock.advance(TimeDelta::hours(5));
    port.start();
    port.rest_in_time().await;
    port.stop().await;
    assert_eq!(port.slots().len(), committed + 1, "one run for both");
    assert_eq!(port.slots().last(), Some(&at("2026-11-26T04:00:00Z")));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_run_expired_or_held_by_hand_is_seen_at_once() {
    let mut port = Port::new(266, "0 4 * * *", "");
    port.start();
    let shown = port.rest().await;
    assert_eq!(shown.sources[0].points.points, 0);
    let looks = |port: &mut Port| port.clock.advance(TimeDelta::seconds(16));
    for points in 1..=3 {
        port.site.change();
        port.site.json(&["run"]);
        looks(&mut port);
        port.until(|shown| shown.sources[0].points.points == points).await;
    }
    let kept = port.site.json(&["prune"])["keep"].as_array().unwrap().len() as u32;
    assert!(kept < 3);
    looks(&mut port);
    port.until(|shown| shown.sources[0].points.points == kept).await;
    port.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_set_back_while_the_memory_is_held_is_noticed_when_it_is_free() {
    let mut port = Port::new(267, "* * * * *", "");
    port.start();
    port.rest().await;
    port.advance(TimeDelta::minutes(1)).await;
    assert_eq!(port.slots().len(), 1);
    let db = rusqlite::Connection::open(port.site.path("state/daemon.db")).unwrap();
    db.execute_batch("BEGIN IMMEDIATE").unwrap();
    port.clock.set(at("2026-11-23T00:00:10Z"));
    for _ in 0..2 {
        let shown = port.until(|_| true).await;
        assert!(shown.memory.is_some(), "it is told");
    }
    db.execute_batch("ROLLBACK").unwrap();
    port.clock.advance(TimeDelta::seconds(2));
    port.rest_in_time().await;
    for minute in 1..4 {
        port.clock.advance(TimeDelta::minutes(1));
        port.rest_in_time().await;
        assert_eq!(port.slots().len(), 1 + minute, "slots go on from then");
    }
    port.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_notice_that_was_owed_before_the_clock_was_set_back_holds_up_no_other() {
    let mut port = Port::new(268, "0 * * * *", "");
    let place = Place::new();
    place.status.store(503, std::sync::atomic::Ordering::SeqCst);
    let webhook = secret(&port, "webhook", &place.address);
    tell(&port, &format!("webhook = {webhook}"));
    port.clock.set(at("2026-11-29T00:00:30Z"));
    port.start();
    port.rest().await;
    std::fs::rename(port.site.path("repository"), port.site.path("away")).unwrap();
    hours(&mut port, 1).await;
    port.until(|shown| shown.owed == 1).await;
    let db = rusqlite::Connection::open(port.site.path("state/daemon.db")).unwrap();
    let refused = || {
        let tries = "SELECT tries FROM notice";
        harness::poll(std::time::Duration::from_secs(20), || {
            let tries: i64 = db.query_row(tries, [], |r| r.get(0)).ok()?;
            (tries > 0).then_some(())
        })
    };
    assert!(tokio::task::block_in_place(refused).is_some());
    drop(db);
    // It waits for its next try, three days from now.
    port.clock.set(at("2026-11-26T00:00:30Z"));
    std::fs::rename(port.site.path("away"), port.site.path("repository")).unwrap();
    place.status.store(200, std::sync::atomic::Ordering::SeqCst);
    for _ in 0..2 {
        port.clock.advance(TimeDelta::minutes(61));
        port.rest_in_time().await;
    }
    port.told_in_time().await;
    port.stop().await;
    let events = place.events();
    assert_eq!(events.first().map(String::as_str), Some("failure"), "{events:?}");
    assert!(events.iter().any(|e| e == "recovery"), "{events:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_memory_that_is_removed_while_it_is_used_is_rebuilt_and_told() {
    let mut port = Port::new(269, "0 * * * *", "");
    let place = Place::webhook(&port);
    port.start();
    port.rest().await;
    port.advance(TimeDelta::hours(1)).await;
    for suffix in ["", "-wal", "-shm"] {
        std::fs::remove_file(port.site.path(&format!("state/daemon.db{suffix}"))).unwrap();
    }
    for hour in 2..4 {
        port.clock.advance(TimeDelta::hours(1));
        port.rest_in_time().await;
        assert_eq!(port.slots().len(), hour);
    }
    let shown = port.until(all_told).await;
    assert_eq!(shown.sources[0].points.points, 3);
    port.stop().await;
    let told = place.taken();
    assert!(
        told[0].2.contains("\"task\":\"memory\"") && told[0].2.contains("what was to be told then is lost"),
        "{told:?}"
    );
    let slots = port
        .ledger()
        .since("run app", at("2026-11-26T00:00:00Z"))
        .unwrap();
    assert!(slots.len() >= 2, "it is on disk: {slots:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_that_can_not_be_told_of_yet_is_told_later() {
    let mut port = Port::new(270, "0 * * * *", "");
    let place = Place::webhook(&port);
    port.start();
    port.rest().await;
    std::fs::rename(port.site.path("repository"), port.site.path("away")).unwrap();
    // How a slot ended can be written down, and a notice of it can not.
    let db = rusqlite::Connection::open(port.site.path("state/daemon.db")).unwrap();
    db.busy_timeout(std::time::Duration::from_secs(10)).unwrap();
    db.execute_batch("CREATE TRIGGER no BEFORE INSERT ON trouble BEGIN SELECT RAISE(ABORT, 'no'); END")
        .unwrap();
    port.clock.advance(TimeDelta::hours(1));
    let shown = port
        .until(|shown| shown.tasks[0].totals.failed == 1 && shown.memory.is_some())
        .await;
    assert_eq!(shown.owed, 0);
    db.execute_batch("DROP TRIGGER no").unwrap();
    port.clock.advance(TimeDelta::seconds(20));
    port.until(|shown| shown.memory.is_none() && all_told(shown))
        .await;
    port.stop().await;
    assert_eq!(place.events(), ["failure"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_asked_for_is_run_also_where_missed_slots_are_skipped() {
    let mut port = Port::new(274, "*/10 * * * *", "catch_up = \"skip\"");
    port.start();
    port.rest().await;
    assert!(port.ask_to_run().await);
    port.kill().await;
    let before = port.slots().len();
    // A slot of the schedule comes by meanwhile, and is skipped.
    port.clock.advance(TimeDelta::minutes(13));
    port.start();
    port.rest_in_time().await;
    port.stop().await;
    assert_eq!(port.slots().len(), 1.max(before), "{:?}", port.slots());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_by_hand_is_waited_for_and_no_try_fails() {
    let mut port = Port::new(275, "0 * * * *", "");
    port.start();
    port.rest().await;
    let document = std::fs::read_to_string(port.site.path("repository/lifeboat.json")).unwrap();
    let document: serde_json::Value = serde_json::from_str(document.lines().next().unwrap()).unwrap();
    let id = document["id"]
        .as_str()
        .or(document["repository"].as_str())
        .unwrap()
        .parse()
        .unwrap();
    let state = lifeboat::state::StateDir::open(&port.site.path("state")).unwrap();
    let by_hand = state.lock_source(id, &"app".parse().unwrap()).unwrap();
    port.clock.advance(TimeDelta::hours(1));
    for _ in 0..6 {
        port.until(|shown| shown.tasks[0].waiting.is_some() && shown.tasks[0].running.is_none())
            .await;
        port.clock.advance(TimeDelta::seconds(31));
    }
    let shown = port.until(|_| true).await;
    assert_eq!((shown.tasks[0].totals.failed, &shown.tasks[0].failed), (0, &None));
    drop(by_hand);
    port.clock.advance(TimeDelta::seconds(31));
    let shown = port.rest_in_time().await;
    assert_eq!((shown.tasks[0].totals.done, shown.tasks[0].totals.failed), (1, 0));
    assert_eq!(port.slots(), [at("2026-11-26T01:00:00Z")]);
    port.stop().await;
}

/// Holds a run between its commit and its end, until it is let go.
#[derive(Debug, Default)]
struct Holds {
    reached: std::sync::atomic::AtomicBool,
    goes: std::sync::Mutex<bool>,
    told: std::sync::Condvar,
}

impl lifeboat::clock::CrashPoints for Holds {
    fn reach(&self, name: &'static str) -> lifeboat::error::Result<()> {
        use std::sync::atomic::Ordering::SeqCst;
        if name == "after the commit was put" && !self.reached.swap(true, SeqCst) {
            let goes = self.goes.lock().unwrap();
            drop(self.told.wait_while(goes, |goes| !*goes).unwrap());
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_stopped_behind_its_commit_is_not_made_again() {
    let mut port = Port::new(279, "0 * * * *", "");
    let holds = std::sync::Arc::new(Holds::default());
    port.crash = holds.clone();
    port.start();
    port.rest().await;
    port.clock.advance(TimeDelta::hours(1));
    let reached = || {
        harness::poll(std::time::Duration::from_secs(20), || {
            holds
                .reached
                .load(std::sync::atomic::Ordering::SeqCst)
                .then_some(())
        })
    };
    assert!(tokio::task::block_in_place(reached).is_some());
    port.cancel();
    *holds.goes.lock().unwrap() = true;
    holds.told.notify_all();
    port.stop().await;
    port.start();
    port.rest_in_time().await;
    port.stop().await;
    let slot = at("2026-11-26T01:00:00Z");
    assert_eq!(port.slots(), [slot], "one commit");
    let slots = port.ledger().since("run app", slot).unwrap();
    assert_eq!((slots.len(), slots[0].outcome), (1, Outcome::Done), "{slots:?}");
}
