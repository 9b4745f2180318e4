use chrono::TimeDelta;

use super::*;
use crate::schedule::due::Why;

fn at(minute: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000 + minute * 60, 0).unwrap()
}

#[test]
fn a_slot_is_there_before_its_run_and_after_a_restart() {
    let state = tempfile::tempdir().unwrap();
    let (mut ledger, rebuilt) = Ledger::open(state.path()).unwrap();
    assert!(!rebuilt);
    assert_eq!(ledger.settled("run app").unwrap(), None);
    let passed = Passed {
        first: at(0),
        last: at(3),
        count: 4,
        more: false,
        why: Why::MadeGood,
    };
    ledger
        .settle("run app", at(4), &[passed], Some(at(4)), at(5))
        .unwrap();
    drop(ledger);
    let (mut ledger, _) = Ledger::open(state.path()).unwrap();
    assert_eq!(ledger.settled("run app").unwrap(), Some(at(4)));
    assert_eq!(
        ledger.passed_since("run app", at(0)).unwrap(),
        [(Why::MadeGood.text().to_owned(), 4)]
    );
    let left = ledger.under_way().unwrap();
    assert_eq!(
        (left.len(), left[0].slot, left[0].outcome),
        (1, at(4), Outcome::Running)
    );
    // Begun again, it is the same slot.
    ledger.settle("run app", at(4), &[], Some(at(4)), at(6)).unwrap();
    ledger
        .end("run app", at(4), Outcome::Failed, None, Some("no room"), at(7))
        .unwrap();
    assert!(ledger.under_way().unwrap().is_empty());
    let all = ledger.since("run app", at(0)).unwrap();
    let totals = ledger.totals("run app").unwrap();
    assert_eq!((totals.passed, totals.failed, totals.done), (4, 1, 0));
    assert_eq!((totals.last_begun, totals.last_done), (Some(at(6)), None));
    assert_eq!(
        (all.len(), all[0].tries, all[0].error.as_deref()),
        (1, 2, Some("no room"))
    );
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(state.path().join(FILE)).unwrap().permissions(),
    );
    assert_eq!(mode & 0o777, 0o600);
    // A year and more later nothing of it is left.
    ledger
        .settle(
            "run app",
            at(9),
            &[],
            None,
            at(9) + TimeDelta::days(KEPT_DAYS + 1),
        )
        .unwrap();
    assert!(ledger.since("run app", at(0)).unwrap().is_empty());
}

#[test]
fn one_that_is_damaged_behind_its_head_is_put_aside_too() {
    let state = tempfile::tempdir().unwrap();
    let path = state.path().join(FILE);
    let (mut ledger, _) = Ledger::open(state.path()).unwrap();
    for minute in 0..300 {
        ledger
            .settle("run app", at(minute), &[], Some(at(minute)), at(minute))
            .unwrap();
    }
    drop(ledger);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[3 * 4096..4 * 4096].fill(0x5A);
    std::fs::write(&path, bytes).unwrap();
    let (ledger, rebuilt) = Ledger::open(state.path()).unwrap();
    assert!(rebuilt && ledger.settled("run app").unwrap().is_none());
}

#[test]
fn a_damaged_one_is_put_aside_and_a_newer_one_left_alone() {
    let state = tempfile::tempdir().unwrap();
    let path = state.path().join(FILE);
    std::fs::write(&path, [7u8; 5000]).unwrap();
    let (ledger, rebuilt) = Ledger::open(state.path()).unwrap();
    assert!(rebuilt);
    assert!(state.path().join("daemon.db.damaged").exists());
    ledger.db.pragma_update(None, "user_version", 99).unwrap();
    drop(ledger);
    let error = Ledger::open(state.path()).unwrap_err();
    assert!(error.message().contains("newer"), "{error:?}");
    assert_eq!(
        Connection::open(&path)
            .unwrap()
            .query_row("PRAGMA user_version", [], |r| r.get::<_, i64>(0))
            .unwrap(),
        99
    );
}

#[test]
fn a_slot_that_was_cut_off_is_open_again_with_its_end() {
    let state = tempfile::tempdir().unwrap();
    let (mut ledger, _) = Ledger::open(state.path()).unwrap();
    ledger.settle("run app", at(1), &[], Some(at(1)), at(1)).unwrap();
    ledger
        .end("run app", at(1), Outcome::Interrupted, None, None, at(2))
        .unwrap();
    assert!(ledger.settled("run app").unwrap().unwrap() < at(1));
    ledger.settle("run app", at(1), &[], Some(at(1)), at(3)).unwrap();
    ledger
        .end("run app", at(1), Outcome::Failed, None, None, at(4))
        .unwrap();
    assert_eq!(ledger.settled("run app").unwrap(), Some(at(1)));
}

#[test]
fn one_with_a_row_that_nobody_could_have_written_is_put_aside_too() {
    let state = tempfile::tempdir().unwrap();
    let (mut ledger, _) = Ledger::open(state.path()).unwrap();
    ledger.settle("run app", at(1), &[], Some(at(1)), at(1)).unwrap();
    ledger
        .db
        .execute("UPDATE slot SET run = 'no run at all'", [])
        .unwrap();
    assert!(ledger.under_way().is_err() && ledger.is_damaged());
    assert!(ledger.rebuild().unwrap(), "it is another one");
    assert!(!ledger.is_damaged() && ledger.under_way().unwrap().is_empty());
}
