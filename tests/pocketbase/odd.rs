//! Apps that are not as they should be: files elsewhere, a log that was removed, an empty database.

use rusqlite::Connection;
use serde_json::json;

use crate::harness::pocketbase::PocketBase;
use crate::point::{local, take};

#[tokio::test(flavor = "multi_thread")]
async fn files_that_are_kept_in_a_bucket_are_told_to_be_left_out() {
    let mut app = PocketBase::start().await;
    let data = app.data_directory().to_owned();
    app.stop();
    let taken = take(&local(&data)).await.unwrap();
    assert!(taken.warnings.is_empty(), "{:?}", taken.warnings);
    // As PocketBase writes its settings: a BLOB.
    let connection = Connection::open(data.join("data.db")).unwrap();
    let kind: String = connection
        .query_row(
            "SELECT typeof(value) FROM _params WHERE id = 'settings'",
            [],
            |r| r.get(0),
        )
        .unwrap();
    assert_eq!(kind, "blob");
    connection
        .execute(
            "UPDATE _params SET value = CAST(json_set(CAST(value AS TEXT), '$.s3.enabled', json('true')) AS BLOB) WHERE id = 'settings'",
            [],
        )
        .unwrap();
    drop(connection);
    let taken = take(&local(&data)).await.unwrap();
    let warnings = taken.warnings;
    assert!(
        warnings.iter().any(|w| w.contains("in an S3 bucket")),
        "{warnings:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_whose_log_was_removed_under_it_is_no_point() {
    let app = PocketBase::start().await;
    app.create_collection("notes").await;
    app.create_record("notes", &json!({"title": "before", "n": 1}))
        .await;
    for suffix in ["-wal", "-shm"] {
        std::fs::remove_file(app.data_directory().join(format!("data.db{suffix}"))).unwrap();
    }
    app.create_record("notes", &json!({"title": "after", "n": 2}))
        .await;
    let error = take(&local(app.data_directory())).await.unwrap_err();
    assert!(error.chain().contains("was removed"), "{}", error.chain());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_empty_or_leads_nowhere_is_no_point() {
    let mut app = PocketBase::start().await;
    let data = app.data_directory().to_owned();
    app.stop();
    let auxiliary = data.join("auxiliary.db");
    for suffix in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(data.join(format!("auxiliary.db{suffix}")));
    }
    std::os::unix::fs::symlink("/nowhere/auxiliary.db", &auxiliary).unwrap();
    let error = take(&local(&data)).await.unwrap_err();
    assert!(error.chain().contains("auxiliary.db"), "{}", error.chain());
    std::fs::remove_file(&auxiliary).unwrap();
    take(&local(&data)).await.unwrap();
    for suffix in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(data.join(format!("data.db{suffix}")));
    }
    std::fs::write(data.join("data.db"), b"").unwrap();
    let error = take(&local(&data)).await.unwrap_err();
    assert!(
        error.chain().contains("there is no table in it"),
        "{}",
        error.chain()
    );
}
