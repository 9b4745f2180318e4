use std::path::Path;

use rusqlite::Connection;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::data::of_data;
use super::quiet::{neutralise, quiet};
use crate::clock::World;
use crate::drill::Outcome;
use crate::error::Kind;

fn data(directory: &Path) -> Connection {
    let connection = Connection::open(directory.join("data.db")).unwrap();
    connection
        .execute_batch(
            "CREATE TABLE notes (id TEXT PRIMARY KEY, doc TEXT, of TEXT REFERENCES notes (id));
             CREATE TABLE _collections (id TEXT, name TEXT, fields TEXT, type TEXT);
             INSERT INTO _collections VALUES ('c1', 'notes', '[{\"type\":\"file\",\"name\":\"doc\"}]', 'base');
             INSERT INTO notes VALUES ('r1', 'a.txt', NULL)",
        )
        .unwrap();
    for n in 0..200 {
        let filler = "x".repeat(900);
        connection
            .execute(
                "INSERT INTO notes VALUES (?1, '', NULL)",
                [format!("{n}{filler}")],
            )
            .unwrap();
    }
    std::fs::create_dir_all(directory.join("storage/c1/r1")).unwrap();
    std::fs::write(directory.join("storage/c1/r1/a.txt"), b"x").unwrap();
    connection
}

fn failed(directory: &Path) -> Vec<(String, String)> {
    let checks = of_data(directory, false, &CancellationToken::new()).unwrap().0;
    assert!(
        checks.len() >= 3 && checks.iter().all(|c| c.level == Some(4)),
        "{checks:?}"
    );
    let failed = checks.into_iter().filter(|c| c.result != Outcome::Passed);
    failed
        .map(|c| (c.name, format!("{} {}", c.actual, c.detail.unwrap_or_default())))
        .collect()
}

#[test]
fn a_missing_file_a_broken_page_and_a_row_without_its_parent_are_caught() {
    let directory = tempfile::tempdir().unwrap();
    let connection = data(directory.path());
    assert_eq!(failed(directory.path()), []);
    std::fs::remove_file(directory.path().join("storage/c1/r1/a.txt")).unwrap();
    let told = failed(directory.path());
    assert!(
        told.len() == 1 && told[0].1.contains("1 are missing c1/r1/a.txt"),
        "{told:?}"
    );
    std::fs::write(directory.path().join("storage/c1/r1/a.txt"), b"x").unwrap();
    connection
        .execute_batch("PRAGMA foreign_keys = 0; INSERT INTO notes VALUES ('r2', '', 'nobody')")
        .unwrap();
    let told = failed(directory.path());
    assert!(
        told.len() == 1 && told[0].0 == "foreign keys of data.db" && told[0].1.contains("notes"),
        "{told:?}"
    );
    connection
        .execute_batch("DELETE FROM notes WHERE id = 'r2'")
        .unwrap();
    drop(connection);
    let path = directory.path().join("data.db");
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2 / 4096 * 4096;
    bytes[middle..middle + 100].fill(0x5A);
    std::fs::write(&path, bytes).unwrap();
    let told = failed(directory.path());
    assert!(
        told.iter().any(|(name, _)| name == "integrity of data.db"),
        "{told:?}"
    );
}

#[test]
fn settings_that_nobody_here_can_read_are_not_booted() {
    let directory = tempfile::tempdir().unwrap();
    let connection = data(directory.path());
    connection
        .execute_batch(
            "CREATE TABLE _params (id TEXT, value BLOB);
             INSERT INTO _params VALUES ('settings', CAST('\"encrypted\"' AS BLOB))",
        )
        .unwrap();
    let world = World::system();
    let error = neutralise(
        &directory.path().join("data.db"),
        None,
        &CancellationToken::new(),
        &world,
    )
    .err()
    .unwrap();
    assert_eq!(error.kind(), Kind::DrillCouldNotRun, "{error:?}");
    // And nothing that could be read is left as it was.
    let loud = json!({"smtp": {"enabled": true, "host": "mail.example.net"}, "s3": {"enabled": true}, "backups": {"cron": "* * * * *", "s3": {"enabled": true}}, "meta": {"appName": "Shop"}});
    let quiet = quiet(loud);
    assert_eq!(
        (&quiet["s3"]["enabled"], &quiet["backups"]["s3"]["enabled"]),
        (&json!(false), &json!(false))
    );
    assert_eq!(
        (&quiet["backups"]["cron"], &quiet["smtp"]["host"]),
        (&json!(""), &json!("127.0.0.1"))
    );
    assert_eq!(quiet["meta"]["appName"], "Shop");
}
