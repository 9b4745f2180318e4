//! PocketBase, the real one: snapshots while it is written, stopped, killed, and by its backup API; restored and served.
#![allow(clippy::unwrap_used)]

mod harness;
#[path = "pocketbase/odd.rs"]
mod odd;
#[path = "pocketbase/point.rs"]
mod point;

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use harness::pocketbase::{PocketBase, SUPERUSER};
use lifeboat::source::Source as _;
use lifeboat::source::stamps::Stamps;
use lifeboat::types::UnitName;
use point::{context, local, remote, restore, take};
use rusqlite::Connection;
use serde_json::json;
use tokio::io::AsyncReadExt as _;

/// Files of a directory with their sizes left out: what is there by name.
fn names(directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut left = vec![directory.to_owned()];
    while let Some(next) = left.pop() {
        for entry in std::fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                left.push(path);
            } else {
                found.push(path.strip_prefix(directory).unwrap().display().to_string());
            }
        }
    }
    found.sort();
    found
}

fn sound(data: &Path) {
    let connection = Connection::open(data.join("data.db")).unwrap();
    let verdict: String = connection
        .query_row("PRAGMA integrity_check", [], |r| r.get(0))
        .unwrap();
    assert_eq!(verdict, "ok");
    let broken: i64 = connection
        .query_row("SELECT count(*) FROM pragma_foreign_key_check", [], |r| r.get(0))
        .unwrap();
    assert_eq!(broken, 0);
}

/// The numbers of the notes in a restored database.
fn numbers(data: &Path) -> Vec<i64> {
    let connection = Connection::open(data.join("data.db")).unwrap();
    let mut statement = connection
        .prepare("SELECT CAST(n AS INTEGER) FROM notes ORDER BY 1")
        .unwrap();
    let rows = statement.query_map([], |r| r.get(0)).unwrap();
    rows.map(Result::unwrap).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_of_a_busy_app_is_one_point_and_is_served_again() {
    let app = Arc::new(PocketBase::start().await);
    app.create_collection("notes").await;
    let kept = app
        .create_record_with_file("notes", "kept", 0, "a.txt", b"kept bytes")
        .await;
    let before = names(app.data_directory());
    let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let writer = {
        let (app, stop, acknowledged) = (app.clone(), stop.clone(), acknowledged.clone());
        tokio::spawn(async move {
            let mut n = 1;
            while !stop.load(Ordering::SeqCst) {
                if n % 5 == 0 {
                    // Files come and go while they are listed.
                    let record = app
                        .create_record_with_file("notes", "file", n, "f.bin", &[n as u8; 3000])
                        .await;
                    if n % 10 == 0 {
                        app.delete_record("notes", record["id"].as_str().unwrap()).await;
                        app.create_record("notes", &json!({"title": "again", "n": n}))
                            .await;
                    }
                } else {
                    app.create_record("notes", &json!({"title": "x", "n": n})).await;
                }
                acknowledged.store(n as u64, Ordering::SeqCst);
                n += 1;
            }
        })
    };
    let target = harness::temp_dir();
    for round in 0..5 {
        let known = acknowledged.load(Ordering::SeqCst) as i64;
        let taken = take(&local(app.data_directory())).await.unwrap();
        let to = target.path().join(format!("pb{round}"));
        restore(taken, &to).await;
        sound(&to);
        let numbers = numbers(&to);
        let highest = *numbers.last().unwrap();
        assert!(
            highest >= known,
            "{known} was acknowledged, the snapshot ends at {highest}"
        );
        // One commit may be a delete without its second record yet; all others are there.
        let absent = (0..=highest)
            .filter(|n| numbers.binary_search(n).is_err())
            .count();
        assert!(absent <= 1, "{absent} of {highest} are missing");
    }
    stop.store(true, Ordering::SeqCst);
    writer.await.unwrap();
    let ours: Vec<_> = names(app.data_directory())
        .into_iter()
        .filter(|n| !before.contains(n) && !n.starts_with("storage/"))
        .collect();
    assert!(ours.is_empty(), "left in pb_data: {ours:?}");
    let served = PocketBase::start_on(&target.path().join("pb4"), app.password()).await;
    let records = served.records("notes").await;
    let first = records.iter().find(|r| r["id"] == kept["id"]).unwrap();
    assert_eq!(served.file(first).await, b"kept bytes");
    for record in records
        .iter()
        .filter(|r| r["doc"].as_str().is_some_and(|d| !d.is_empty()))
    {
        assert!(!served.file(record).await.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_and_a_killed_app_are_snapshot_without_a_trace() {
    let mut app = PocketBase::start().await;
    app.create_collection("notes").await;
    for n in 0..50 {
        app.create_record("notes", &json!({"title": "x", "n": n})).await;
    }
    let data = app.data_directory().to_owned();
    app.kill();
    assert!(
        data.join("data.db-wal").exists(),
        "a killed PocketBase leaves its log"
    );
    let target = harness::temp_dir();
    let before = names(&data);
    let log = std::fs::read(data.join("data.db-wal")).unwrap();
    restore(take(&local(&data)).await.unwrap(), &target.path().join("killed")).await;
    assert_eq!(
        numbers(&target.path().join("killed")),
        (0..50).collect::<Vec<_>>()
    );
    assert_eq!(names(&data), before);
    assert_eq!(
        std::fs::read(data.join("data.db-wal")).unwrap(),
        log,
        "the log was not touched"
    );

    app.start_again().await;
    app.create_record("notes", &json!({"title": "x", "n": 50})).await;
    app.stop();
    assert!(
        !data.join("data.db-shm").exists(),
        "a stopped PocketBase leaves no log"
    );
    let before = names(&data);
    restore(take(&local(&data)).await.unwrap(), &target.path().join("stopped")).await;
    assert_eq!(
        numbers(&target.path().join("stopped")),
        (0..51).collect::<Vec<_>>()
    );
    assert_eq!(names(&data), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_behind_a_link_is_copied_with_its_log() {
    let (directory, elsewhere, target) = (harness::temp_dir(), harness::temp_dir(), harness::temp_dir());
    let file = elsewhere.path().join("x.db");
    std::os::unix::fs::symlink(&file, directory.path().join("data.db")).unwrap();
    let writer = Connection::open(&file).unwrap();
    writer
        .execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE t (i); PRAGMA wal_checkpoint(TRUNCATE)")
        .unwrap();
    writer
        .execute_batch("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 100) INSERT INTO t SELECT i FROM n")
        .unwrap();
    let count = |to: &Path| -> i64 {
        let copy = Connection::open(to.join("data.db")).unwrap();
        copy.query_row("SELECT count(*) FROM t", [], |r| r.get(0))
            .unwrap()
    };
    let to = target.path().join("live");
    restore(take(&local(directory.path())).await.unwrap(), &to).await;
    assert_eq!(count(&to), 100);
    assert_eq!(
        names(directory.path()),
        ["data.db"],
        "nothing of ours is left there"
    );
    writer.execute_batch("PRAGMA journal_mode = DELETE").unwrap();
    // In rollback mode the file may hold half a transaction: it is refused, whoever has it open.
    writer
        .execute_batch("PRAGMA cache_size = 5; BEGIN; UPDATE t SET i = -1")
        .unwrap();
    for open in [true, false] {
        let error = take(&local(directory.path())).await.map(|_| ()).unwrap_err();
        assert!(
            error.chain().contains("rollback mode"),
            "open: {open}: {}",
            error.chain()
        );
        if open {
            writer.execute_batch("ROLLBACK").unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_any_name_are_kept_and_only_what_is_being_written_is_not() {
    let app = PocketBase::start().await;
    app.create_collection("notes").await;
    for (n, name) in ["report.tmp", "a.12ab.tmp", "x.TMP"].iter().enumerate() {
        app.create_record_with_file("notes", "x", n as i64, name, name.as_bytes())
            .await;
    }
    let record = app.data_directory().join("storage");
    let folder = std::fs::read_dir(record).unwrap().next().unwrap().unwrap().path();
    std::fs::create_dir(folder.join("new")).unwrap();
    std::fs::write(folder.join("new/y_1234567890.txt.18ae5c.tmp"), b"half").unwrap();
    let taken = take(&local(app.data_directory())).await.unwrap();
    let kept: Vec<&str> = taken.units.iter().map(|(u, _)| u.name.as_str()).collect();
    assert!(!kept.iter().any(|n| n.contains("18ae5c")), "{kept:?}");
    let target = harness::temp_dir();
    let to = target.path().join("pb");
    restore(taken, &to).await;
    let served = PocketBase::start_on(&to, app.password()).await;
    let records = served.records("notes").await;
    assert_eq!(records.len(), 3);
    for record in records {
        let name = ["report.tmp", "a.12ab.tmp", "x.TMP"][record["n"].as_u64().unwrap() as usize];
        assert_eq!(served.file(&record).await, name.as_bytes());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_the_last_run_knows_is_left_alone_and_a_new_one_outlives_its_deletion() {
    let app = PocketBase::start().await;
    app.create_collection("notes").await;
    for name in ["old.txt", "new.txt"] {
        app.create_record_with_file("notes", "x", 1, name, name.as_bytes())
            .await;
    }
    let storage = app.data_directory().join("storage");
    let changed = || -> Vec<(i64, i64)> {
        let files = names(&storage);
        let of = |name: &String| std::fs::metadata(storage.join(name)).unwrap();
        files
            .iter()
            .map(|n| (of(n).ctime(), of(n).ctime_nsec()))
            .collect()
    };
    let source = local(app.data_directory());
    let stamps_of = async |known: Stamps, delete: &str| {
        let scratch = harness::temp_dir();
        let mut context = context(scratch.path());
        context.known = known;
        let mut capture = source.capture(context).await.unwrap();
        if let Some(gone) = names(&storage)
            .iter()
            .find(|n| !delete.is_empty() && n.contains(delete))
        {
            std::fs::remove_file(storage.join(gone)).unwrap();
        }
        let (mut stamps, mut read) = (Vec::new(), Vec::new());
        while let Some(head) = capture.next().await.unwrap() {
            if !delete.is_empty() && head.name.as_str().contains(delete) {
                capture
                    .open()
                    .await
                    .unwrap()
                    .read_to_end(&mut read)
                    .await
                    .unwrap();
                capture.close().await.unwrap();
            }
            stamps.extend(head.stamp.map(|stamp| (head.name, stamp)));
        }
        capture.cleanup().await;
        (stamps, read)
    };
    let known = |stamps: &[(UnitName, String)]| {
        Stamps::collect(stamps.iter().cloned().map(Ok::<_, std::convert::Infallible>)).unwrap()
    };
    let (first, _) = stamps_of(Stamps::default(), "").await;
    let before = changed();
    let (second, _) = stamps_of(known(&first), "").await;
    assert_eq!(first, second);
    assert_eq!(before, changed(), "a file was linked, which changes its ctime");
    let old: Vec<_> = first
        .into_iter()
        .filter(|(n, _)| n.as_str().contains("old"))
        .collect();
    let (_, read) = stamps_of(known(&old), "new_").await;
    assert!(
        read.starts_with(b"new.txt"),
        "deleted after the snapshot, and read all the same"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_names_a_missing_file_fails_the_run_and_names_it() {
    let app = PocketBase::start().await;
    app.create_collection("notes").await;
    app.create_record_with_file("notes", "x", 1, "gone.txt", b"bytes")
        .await;
    let storage = app.data_directory().join("storage");
    let file = names(&storage)
        .into_iter()
        .find(|n| n.contains("gone") && !n.ends_with(".attrs"))
        .unwrap();
    std::fs::remove_file(storage.join(&file)).unwrap();
    let error = take(&local(app.data_directory())).await.map(|_| ()).unwrap_err();
    assert!(error.message().contains(&file), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_remote_app_is_snapshot_by_its_api_and_its_copy_is_removed() {
    let app = PocketBase::start().await;
    app.create_collection("notes").await;
    let big: Vec<u8> = (0..4_900_000u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    app.create_record_with_file("notes", "big", 1, "big.bin", &big)
        .await;
    app.create_record_with_file("notes", "small", 2, "small.txt", b"small")
        .await;
    app.create_backup("mine.zip").await;
    // The point is not of an earlier instant than what it holds, wherever in a second of the server it falls.
    let mut before = lifeboat::clock::World::system().clock.now();
    let mut taken = take(&remote(app.url(), SUPERUSER, app.password())).await.unwrap();
    for _ in 0..3 {
        assert!(
            taken.at >= before,
            "{} holds what was there at {before}",
            taken.at
        );
        assert!(taken.at <= lifeboat::clock::World::system().clock.now() + chrono::TimeDelta::seconds(1));
        before = lifeboat::clock::World::system().clock.now();
        taken = take(&remote(app.url(), SUPERUSER, app.password())).await.unwrap();
    }
    assert_eq!(app.backups().await, ["mine.zip"], "ours is removed, others stay");
    let facts: serde_json::Value = serde_json::from_slice(taken.unit("facts.json").unwrap()).unwrap();
    assert_eq!(facts["databases"]["data.db"]["rows"]["notes"], 2);
    let target = harness::temp_dir();
    let to = target.path().join("pb");
    restore(taken, &to).await;
    sound(&to);
    let served = PocketBase::start_on(&to, app.password()).await;
    for record in served.records("notes").await {
        let wanted: &[u8] = if record["title"] == "big" { &big } else { b"small" };
        assert!(served.file(&record).await == wanted);
    }
    let error = take(&remote(app.url(), SUPERUSER, "sentinel-wrong"))
        .await
        .map(|_| ())
        .unwrap_err();
    assert!(error.hint_text().unwrap().contains("superuser"));
    assert!(!format!("{error:?}").contains("sentinel-wrong"));
    let error = take(&remote("http://127.0.0.1:1", SUPERUSER, "x"))
        .await
        .map(|_| ())
        .unwrap_err();
    assert!(error.message().contains("does not answer"));
}

/// Latencies of writes one after another for a while, in milliseconds, sorted.
async fn latencies(app: &PocketBase, within: Duration) -> Vec<f64> {
    let begun = Instant::now();
    let mut all = Vec::new();
    while begun.elapsed() < within {
        let one = Instant::now();
        app.create_record("notes", &json!({"title": "x", "n": all.len()}))
            .await;
        all.push(one.elapsed().as_secs_f64() * 1000.0);
    }
    all.sort_by(f64::total_cmp);
    all
}

fn high(sorted: &[f64]) -> f64 {
    sorted[((sorted.len() as f64 * 0.999) as usize).min(sorted.len() - 1)]
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_do_not_wait_for_a_snapshot() {
    let app = Arc::new(PocketBase::start().await);
    app.create_collection("notes").await;
    // Enough pages that a copy takes a while.
    let filler = "f".repeat(4500);
    for n in 0..400 {
        app.create_record("notes", &json!({"title": filler, "n": n}))
            .await;
    }
    let measure = |snapshots: bool| {
        let app = app.clone();
        async move {
            let stop = Arc::new(AtomicBool::new(false));
            let others = {
                let (app, stop) = (app.clone(), stop.clone());
                tokio::spawn(async move {
                    let mut taken = 0;
                    while snapshots && !stop.load(Ordering::SeqCst) {
                        take(&local(app.data_directory())).await.unwrap();
                        taken += 1;
                    }
                    taken
                })
            };
            // PocketBase's own backup, with its checkpoints, in the middle.
            let backup = {
                let app = app.clone();
                tokio::spawn(async move {
                    app.create_backup(if snapshots { "b1.zip" } else { "b0.zip" })
                        .await
                })
            };
            let sorted = latencies(&app, Duration::from_secs(4)).await;
            backup.await.unwrap();
            stop.store(true, Ordering::SeqCst);
            (high(&sorted), others.await.unwrap())
        }
    };
    let (control, _) = measure(false).await;
    let (with, taken) = measure(true).await;
    assert!(taken > 0);
    assert!(
        with - control <= 200.0,
        "p99.9 of a write is {with:.0} ms with snapshots, {control:.0} ms without"
    );
}

/// A writer that does everything that makes a copy go wrong, and keeps an invariant: the numbers are 1 to the count. Its
/// database is large enough to be copied in many chunks.
fn torture(path: &Path, page_size: u32, stop: &AtomicBool, ready: &AtomicBool) {
    let connection = Connection::open(path).unwrap();
    connection.busy_timeout(Duration::from_secs(10)).unwrap();
    connection
        .execute_batch(&format!(
            "PRAGMA page_size = {page_size}; PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF;
             CREATE TABLE notes (n INTEGER PRIMARY KEY, pad BLOB); CREATE TABLE count (c INTEGER); INSERT INTO count VALUES (0);
             CREATE TABLE ballast (x BLOB);
             WITH RECURSIVE r(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM r WHERE i < 12) INSERT INTO ballast SELECT randomblob(1048576) FROM r;"
        ))
        .unwrap();
    let other = Connection::open(path).unwrap();
    other.busy_timeout(Duration::from_secs(10)).unwrap();
    let mut n = 0i64;
    let mut round = 0u32;
    while !stop.load(Ordering::SeqCst) {
        round += 1;
        connection.execute_batch("BEGIN IMMEDIATE").unwrap();
        let many = if round.is_multiple_of(7) { 200 } else { 3 };
        for i in 1..=many {
            connection
                .execute(
                    "INSERT INTO notes VALUES (?1, randomblob(?2))",
                    (n + i, 300 + (i * 37) % 4000),
                )
                .unwrap();
        }
        connection.execute("UPDATE count SET c = ?1", [n + many]).unwrap();
        if round.is_multiple_of(5) {
            connection.execute_batch("ROLLBACK").unwrap();
        } else {
            connection.execute_batch("COMMIT").unwrap();
            n += many;
        }
        if round.is_multiple_of(11) {
            let mode = ["PASSIVE", "RESTART", "TRUNCATE"][(round / 11 % 3) as usize];
            other
                .query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |_| Ok(()))
                .unwrap();
        }
        if round.is_multiple_of(97) {
            connection
                .execute("DELETE FROM notes WHERE n > ?1", [n / 2])
                .unwrap();
            connection.execute("UPDATE count SET c = ?1", [n / 2]).unwrap();
            // Between the two commits the invariant does not hold; the reader allows for it.
            n /= 2;
            connection.execute_batch("VACUUM").unwrap();
        }
        ready.store(round > 20, Ordering::SeqCst);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_is_a_committed_state_whatever_the_writer_does() {
    for page_size in [512, 4096, 65536] {
        let directory = harness::temp_dir();
        let path = directory.path().join("data.db");
        let (stop, ready) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let writer = {
            let (path, stop, ready) = (path.clone(), stop.clone(), ready.clone());
            std::thread::spawn(move || torture(&path, page_size, &stop, &ready))
        };
        assert!(
            harness::poll(Duration::from_secs(30), || ready
                .load(Ordering::SeqCst)
                .then_some(()))
            .is_some()
        );
        let target = harness::temp_dir();
        for round in 0..12 {
            let taken = take(&local(directory.path())).await.unwrap();
            let to = target.path().join(round.to_string());
            restore(taken, &to).await;
            sound(&to);
            let copy = Connection::open(to.join("data.db")).unwrap();
            let (rows, highest, counted): (i64, i64, i64) = copy
                .query_row("SELECT (SELECT count(*) FROM notes), (SELECT coalesce(max(n), 0) FROM notes), (SELECT c FROM count)", [], |r| {
                    Ok((r.get(0)?, r.get(1)?, r.get(2)?))
                })
                .unwrap();
            assert_eq!(rows, highest, "page size {page_size}: rows are lost");
            assert!(
                counted == rows || counted / 2 <= rows,
                "page size {page_size}: {counted} counted, {rows} there"
            );
        }
        stop.store(true, Ordering::SeqCst);
        writer.join().unwrap();
    }
}
