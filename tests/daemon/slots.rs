//! Slots over simulated time.

use std::collections::BTreeSet;

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use lifeboat::state::ledger::{Outcome, SlotRecord};

use crate::harness;
use crate::site::Seeded;
use crate::world::{Port, at};

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_is_run_at_its_time_and_recorded_in_the_commit() {
    let mut port = Port::new(201, "0 * * * *", "");
    port.start();
    let shown = port.rest().await;
    assert_eq!(shown.tasks[0].next, Some(at("2026-11-26T01:00:00Z")));
    assert!(port.commits().is_empty(), "nothing before its time");
    port.advance(TimeDelta::minutes(59)).await;
    assert!(port.commits().is_empty());
    let shown = port.advance(TimeDelta::minutes(1)).await;
    assert_eq!(port.slots(), [at("2026-11-26T01:00:00Z")]);
    assert_eq!((shown.tasks[0].totals.done, shown.tasks[0].totals.failed), (1, 0));
    assert!(
        shown.sentence().contains("next: run app at 2026-11-26 02:00:00Z"),
        "{}",
        shown.sentence()
    );
    port.stop().await;
}

/// Every slot up to an instant (the first, and their distance) has a point of its own or a later one that makes it good, none
/// has two, and the ledger says what the repository says. How many have their own.
#[track_caller]
pub fn each_is_answered_once(
    slots: &[DateTime<Utc>],
    records: &[SlotRecord],
    (first, every): (DateTime<Utc>, TimeDelta),
    until: DateTime<Utc>,
) -> u32 {
    let distinct: BTreeSet<_> = slots.iter().collect();
    assert_eq!(distinct.len(), slots.len(), "a slot has two points: {slots:?}");
    for record in records {
        assert!(
            matches!(record.outcome, Outcome::Done | Outcome::Interrupted),
            "{record:?}"
        );
        assert_eq!(
            record.outcome == Outcome::Done,
            slots.contains(&record.slot),
            "ledger and repository disagree about {record:?}"
        );
    }
    let newest = *slots.iter().max().unwrap();
    let (mut slot, mut with_points) = (first, 0);
    while slot <= until {
        let own = slots.contains(&slot);
        with_points += u32::from(own);
        assert!(own || newest > slot, "nothing answers for {slot}");
        slot += every;
    }
    with_points
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_at_any_moment_loses_no_slot_and_answers_for_none_twice() {
    let mut port = Port::new(202, "0 */2 * * *", "max_age = \"30d\"");
    let mut random = Seeded::new(7);
    let begin = at("2026-11-26T00:00:30Z");
    let mut kills = 0;
    port.start();
    while lifeboat::clock::Clock::now(&*port.clock) < begin + TimeDelta::days(7) {
        port.clock
            .advance(TimeDelta::minutes(37 + random.below(60) as i64));
        if random.below(3) > 0 {
            // Wherever it is then: a run takes some milliseconds.
            let moment = std::time::Duration::from_micros(random.below(30_000));
            tokio::time::sleep(moment).await;
            port.kill().await;
            kills += 1;
            port.start();
        } else {
            port.rest_in_time().await;
        }
    }
    port.rest_in_time().await;
    port.clock.advance(TimeDelta::minutes(5));
    port.rest_in_time().await;
    port.stop().await;
    assert!(kills >= 80, "{kills} kills");
    let ledger = port.ledger();
    assert!(ledger.under_way().unwrap().is_empty());
    let records = ledger.since("run app", begin).unwrap();
    let every = (at("2026-11-26T02:00:00Z"), TimeDelta::hours(2));
    let with_points = each_is_answered_once(&port.slots(), &records, every, begin + TimeDelta::days(7));
    assert!(with_points > 30, "{with_points} slots have a point of their own");
    // What is shown restores.
    let known: Vec<String> = port.site.points();
    assert!(known.len() > 30, "{}", known.len());
    port.site.verifies("a week of crashes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_or_damaged_memory_costs_nothing() {
    let mut port = Port::new(203, "0 * * * *", "");
    port.start();
    port.rest().await;
    for _ in 0..3 {
        port.advance(TimeDelta::hours(1)).await;
    }
    port.stop().await;
    assert_eq!(port.slots().len(), 3);
    for damaged in [false, true] {
        for suffix in ["", "-wal", "-shm"] {
            let path = port.site.path(&format!("state/daemon.db{suffix}"));
            if suffix.is_empty() && damaged {
                std::fs::write(
                    &path,
                    b"no database, and longer than a header of one: ".repeat(90),
                )
                .unwrap();
            } else if path.exists() {
                std::fs::remove_file(&path).unwrap();
            }
        }
        port.start();
        port.rest().await;
        port.stop().await;
        assert_eq!(port.slots().len(), 3, "what the repository has is not run again");
    }
    // Lost, and away for a while: what was missed since the newest point is made good once.
    std::fs::remove_file(port.site.path("state/daemon.db")).unwrap();
    port.clock.advance(TimeDelta::hours(5));
    port.start();
    port.rest().await;
    port.stop().await;
    assert_eq!(port.slots().len(), 4);
    assert_eq!(port.slots().last(), Some(&at("2026-11-26T08:00:00Z")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_that_is_away_fails_slots_and_the_next_one_is_done() {
    let mut port = Port::new(204, "0 * * * *", "");
    port.start();
    port.rest().await;
    port.advance(TimeDelta::hours(1)).await;
    let (here, away) = (port.site.path("repository"), port.site.path("away"));
    std::fs::rename(&here, &away).unwrap();
    let mut failed = 0;
    for _ in 0..24 {
        let shown = port.advance(TimeDelta::hours(1)).await;
        failed = shown.tasks[0].totals.failed;
    }
    assert_eq!(failed, 24, "each is told");
    std::fs::rename(&away, &here).unwrap();
    let shown = port.advance(TimeDelta::hours(1)).await;
    assert_eq!(shown.tasks[0].totals.done, 2);
    port.stop().await;
    let records = port
        .ledger()
        .since("run app", at("2026-11-26T00:00:00Z"))
        .unwrap();
    let told = records.iter().filter(|r| r.outcome == Outcome::Failed);
    assert!(
        told.clone()
            .all(|r| r.error.as_ref().unwrap().contains("no such directory")),
        "{records:?}"
    );
    assert_eq!(told.count(), 24);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_without_the_repository_waits_for_it_where_it_must_ask() {
    let mut port = Port::new(205, "0 * * * *", "");
    let (here, away) = (port.site.path("repository"), port.site.path("away"));
    std::fs::rename(&here, &away).unwrap();
    port.start();
    // No memory and no repository: whether slots were answered for is not known.
    port.until(|shown| !shown.tasks.is_empty() && shown.sentence().contains("waiting for the repository"))
        .await;
    std::fs::rename(&away, &here).unwrap();
    port.clock.advance(TimeDelta::minutes(2));
    port.rest_in_time().await;
    port.advance(TimeDelta::hours(1)).await;
    assert_eq!(port.slots(), [at("2026-11-26T01:00:00Z")]);
    port.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_jumps_neither_repeats_a_slot_nor_stops_the_daemon() {
    let mut port = Port::new(206, "0 * * * *", "");
    port.start();
    port.rest().await;
    port.advance(TimeDelta::hours(2)).await;
    assert_eq!(port.slots(), [at("2026-11-26T02:00:00Z")]);
    // Half an hour back: 02:00 comes again and is not run again.
    port.clock.set(at("2026-11-26T01:45:00Z"));
    port.rest().await;
    port.advance(TimeDelta::minutes(30)).await;
    assert_eq!(port.slots().len(), 1);
    // A year ahead by mistake, and back.
    port.clock.set(at("2027-11-26T10:30:00Z"));
    port.rest().await;
    port.clock.set(at("2026-11-26T03:30:00Z"));
    port.rest().await;
    port.advance(TimeDelta::hours(1)).await;
    assert!(
        port.slots().contains(&at("2026-11-26T04:00:00Z")),
        "{:?}",
        port.slots()
    );
    port.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_policy_is_not_taken_and_a_good_one_is() {
    let mut port = Port::new(207, "0 * * * *", "");
    port.start();
    port.rest().await;
    let good = std::fs::read_to_string(port.site.path("policy.toml")).unwrap();
    harness::write_file(
        port.site.dir.path(),
        "policy.toml",
        good.replace("0 * * * *", "nonsense"),
    );
    port.ask_to_reload();
    let shown = port
        .until(|shown| shown.reload.is_some_and(|(_, taken)| !taken))
        .await;
    assert!(
        shown.sentence().contains("the policy on disk is not taken"),
        "{}",
        shown.sentence()
    );
    port.advance(TimeDelta::hours(1)).await;
    assert_eq!(port.slots().len(), 1, "the old one goes on");
    port.schedule("*/10 * * * *", "");
    port.ask_to_reload();
    let shown = port
        .until(|shown| shown.reload.is_some_and(|(_, taken)| taken))
        .await;
    assert!(!shown.sentence().contains("bad"));
    port.advance(TimeDelta::minutes(10)).await;
    assert_eq!(port.slots().len(), 2);
    port.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_hangs_ends_by_its_timeout_and_touches_no_other() {
    let mut port = Port::new(208, "0 * * * *", "");
    // Somebody who listens and never answers.
    let silent = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let secret = |name: &str| {
        let path = harness::write_file(port.site.dir.path(), name, "x@example.net");
        format!("{{ file = \"{}\" }}", path.display())
    };
    let stuck = format!(
        "\n[source.stuck]\nkind = \"pocketbase\"\nurl = \"http://{}\"\nsuperuser = {{ identity = {}, password = {} }}\n\
         schedule = \"0 * * * *\"\ntimeout = \"40m\"\n",
        silent.local_addr().unwrap(),
        secret("identity"),
        secret("password"),
    );
    let policy = std::fs::read_to_string(port.site.path("policy.toml")).unwrap();
    harness::write_file(port.site.dir.path(), "policy.toml", policy + &stuck);
    let of = |shown: &lifeboat::daemon::Shown, key: &str| {
        shown.tasks.iter().find(|t| t.key == key).unwrap().clone()
    };
    port.start();
    port.rest().await;
    port.clock.advance(TimeDelta::hours(1));
    let first = |shown: &lifeboat::daemon::Shown| of(shown, "run app").totals.done == 1;
    let shown = port.until(first).await;
    assert!(of(&shown, "run stuck").running.is_some());
    // Its first try ends by its timeout; the next one goes on into the next hour.
    port.clock.advance(TimeDelta::minutes(41));
    port.until(|_| true).await;
    port.clock.advance(TimeDelta::minutes(19));
    let shown = port.until(|shown| of(shown, "run app").totals.done == 2).await;
    let stuck = of(&shown, "run stuck");
    assert!(stuck.running.or(stuck.waiting).is_some());
    let failed = |shown: &lifeboat::daemon::Shown| {
        of(shown, "run stuck").totals.failed == 1 && of(shown, "run app").running.is_none()
    };
    let shown = loop {
        // Three tries, with waits between them: time goes by until the last has ended.
        match tokio::time::timeout(std::time::Duration::from_millis(300), port.until(failed)).await {
            Ok(shown) => break shown,
            Err(_) => port.clock.advance(TimeDelta::minutes(41)),
        }
    };
    assert!(of(&shown, "run app").totals.done >= 3);
    port.stop().await;
    let records = port
        .ledger()
        .since("run stuck", at("2026-11-26T00:00:00Z"))
        .unwrap();
    let told = records.iter().find(|r| r.outcome == Outcome::Failed).unwrap();
    assert!(
        told.error.as_ref().unwrap().contains("timeout of 40m"),
        "{told:?}"
    );
    drop(silent);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_sources_of_one_second_are_all_done_a_few_at_a_time() {
    const MANY: usize = 60;
    let mut port = Port::new(209, "0 * * * *", "");
    let mut policy = std::fs::read_to_string(port.site.path("policy.toml")).unwrap();
    for n in 0..MANY {
        policy += &format!(
            "\n[source.s{n:03}]\nkind = \"pocketbase\"\npath = \"{}\"\nschedule = \"0 * * * *\"\nstorage = false\npriority = {}\n",
            port.site.source().display(),
            i32::from(n == 47),
        );
    }
    harness::write_file(
        port.site.dir.path(),
        "policy.toml",
        format!("concurrency = 3\n{policy}"),
    );
    port.start();
    port.rest().await;
    port.clock.advance(TimeDelta::hours(1));
    let most = std::sync::atomic::AtomicUsize::new(0);
    let preferred_waits = std::sync::atomic::AtomicBool::new(false);
    port.until(|shown| {
        let running = shown.tasks.iter().filter(|t| t.running.is_some()).count();
        most.fetch_max(running, std::sync::atomic::Ordering::SeqCst);
        let preferred = shown.tasks.iter().find(|t| t.key == "run s047").unwrap();
        if running > 0 && preferred.waiting.is_some() {
            preferred_waits.store(true, std::sync::atomic::Ordering::SeqCst);
        }
        shown.tasks.iter().all(|t| t.totals.done == 1)
    })
    .await;
    assert!((2..=3).contains(&most.into_inner()), "three at once, and no more");
    assert!(!preferred_waits.into_inner(), "what has priority goes first");
    port.stop().await;
}

/// Panics once, at a moment of a run.
#[derive(Debug, Default)]
struct Panic(std::sync::atomic::AtomicBool);

impl lifeboat::clock::CrashPoints for Panic {
    fn reach(&self, name: &'static str) -> lifeboat::error::Result<()> {
        let last = name == "before the commit is put";
        assert!(
            !last || self.0.swap(true, std::sync::atomic::Ordering::SeqCst),
            "a panic of the test's"
        );
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_ends_one_run_and_touches_no_other() {
    let mut port = Port::new(210, "0 * * * *", "");
    let policy = std::fs::read_to_string(port.site.path("policy.toml")).unwrap();
    let other = format!(
        "\n[source.other]\nkind = \"pocketbase\"\npath = \"{}\"\nschedule = \"0 * * * *\"\nstorage = false\n",
        port.site.source().display()
    );
    harness::write_file(port.site.dir.path(), "policy.toml", policy + &other);
    port.crash = Arc::new(Panic::default());
    port.start();
    port.rest().await;
    let counts = |shown: &lifeboat::daemon::Shown| -> Vec<(u32, u32)> {
        shown
            .tasks
            .iter()
            .map(|t| (t.totals.done, t.totals.failed))
            .collect()
    };
    let shown = port.advance(TimeDelta::hours(1)).await;
    let mut after = counts(&shown);
    after.sort_unstable();
    assert_eq!(after, [(0, 1), (1, 0)], "one of the two");
    let shown = port.advance(TimeDelta::hours(1)).await;
    let mut after = counts(&shown);
    after.sort_unstable();
    assert_eq!(after, [(1, 1), (2, 0)], "and both go on");
    port.stop().await;
    let ledger = port.ledger();
    let from = at("2026-11-26T00:00:00Z");
    let failed = ["run app", "run other"]
        .into_iter()
        .flat_map(|key| ledger.since(key, from).unwrap())
        .find(|r| r.outcome == Outcome::Failed)
        .unwrap();
    assert!(failed.error.unwrap().contains("unexpectedly"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_between_its_tries_keeps_no_place_and_says_what_is_wrong() {
    let mut port = Port::new(250, "0 * * * *", "");
    let broken = format!(
        "\n[source.broken]\nkind = \"pocketbase\"\npath = \"{}\"\nschedule = \"0 * * * *\"\nstorage = false\npriority = 9\n",
        port.site.source().display()
    );
    let policy = std::fs::read_to_string(port.site.path("policy.toml")).unwrap();
    harness::write_file(
        port.site.dir.path(),
        "policy.toml",
        format!("concurrency = 1\n{policy}{broken}").replace(
            "[source.broken]\nkind = \"pocketbase\"\npath = \"",
            "[source.broken]\nkind = \"pocketbase\"\npath = \"/nowhere",
        ),
    );
    port.start();
    port.rest().await;
    port.clock.advance(TimeDelta::hours(1));
    let of = |shown: &lifeboat::daemon::Shown, key: &str| {
        shown.tasks.iter().find(|t| t.key == key).unwrap().clone()
    };
    // It goes first, fails, and waits for its next try; the other one runs meanwhile.
    let shown = port.until(|shown| of(shown, "run app").totals.done == 1).await;
    let waits = of(&shown, "run broken");
    if waits.totals.failed == 0 {
        let (tries, error, until) = waits.failed.clone().unwrap_or_else(|| panic!("{waits:?}"));
        assert_eq!(waits.next, Some(until), "the next is the next try");
        assert!(tries >= 1 && !error.is_empty(), "{waits:?}");
    }
    let failed = |shown: &lifeboat::daemon::Shown| of(shown, "run broken").totals.failed == 1;
    while tokio::time::timeout(std::time::Duration::from_millis(300), port.until(failed))
        .await
        .is_err()
    {
        port.clock.advance(TimeDelta::seconds(31));
    }
    port.stop().await;
}

/// Locks the daemon's memory when a run is about to be committed, until it is told to let go.
#[derive(Debug)]
struct Locks {
    path: std::path::PathBuf,
    held: std::sync::Mutex<Option<rusqlite::Connection>>,
    once: std::sync::atomic::AtomicBool,
}

impl lifeboat::clock::CrashPoints for Locks {
    fn reach(&self, name: &'static str) -> lifeboat::error::Result<()> {
        if name == "after the commit was put" && !self.once.swap(true, std::sync::atomic::Ordering::SeqCst) {
            let db = rusqlite::Connection::open(&self.path).unwrap();
            db.busy_timeout(std::time::Duration::from_secs(10)).unwrap();
            db.execute_batch("BEGIN IMMEDIATE").unwrap();
            *self.held.lock().unwrap() = Some(db);
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_that_can_not_be_written_down_is_written_down_later() {
    let mut port = Port::new(252, "0 * * * *", "");
    let locks = Arc::new(Locks {
        path: port.site.path("state/daemon.db"),
        held: std::sync::Mutex::default(),
        once: std::sync::atomic::AtomicBool::default(),
    });
    port.crash = locks.clone();
    port.start();
    port.rest().await;
    port.clock.advance(TimeDelta::hours(1));
    let held = || {
        harness::poll(std::time::Duration::from_secs(20), || {
            locks.held.lock().unwrap().is_some().then_some(())
        })
    };
    assert!(tokio::task::block_in_place(held).is_some());
    // The run ends, and nobody can write that down: the loop goes on all the same.
    for _ in 0..3 {
        let shown = port.until(|_| true).await;
        assert_eq!(shown.tasks[0].totals.done, 0);
    }
    drop(locks.held.lock().unwrap().take());
    port.clock.advance(TimeDelta::seconds(10));
    port.until(|shown| shown.tasks[0].totals.done == 1 && shown.tasks[0].running.is_none())
        .await;
    port.advance(TimeDelta::hours(1)).await;
    assert_eq!(port.slots().len(), 2);
    port.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_repository_has_points_of_its_own() {
    let mut port = Port::new(253, "0 * * * *", "");
    port.start();
    port.rest().await;
    let shown = port.advance(TimeDelta::hours(1)).await;
    assert_eq!(shown.sources[0].points.points, 1);
    let policy = std::fs::read_to_string(port.site.path("policy.toml")).unwrap();
    let other = policy.replace("/repository\"", "/second\"");
    assert_ne!(policy, other);
    harness::write_file(port.site.dir.path(), "policy.toml", &other);
    port.site.json(&["init"]);
    port.ask_to_reload();
    port.until(|shown| shown.reload.is_some_and(|(_, taken)| taken))
        .await;
    let shown = port.rest().await;
    let points = shown.sources[0].points;
    assert_eq!((points.points, points.newest), (0, None));
    assert!(points.looked.is_some(), "it was asked");
    port.stop().await;
}
