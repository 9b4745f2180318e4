//! What the daemon remembers, and what is done to it from outside: its file is damaged or held, its clock set back, somebody
//! else runs and prunes with its state directory.

use std::os::unix::fs::FileExt as _;

use chrono::TimeDelta;
use lifeboat::state::ledger::Outcome;

use crate::harness;
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
