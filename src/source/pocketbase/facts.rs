//! The facts of a copied PocketBase: what is compared after a restore.

use std::collections::BTreeMap;
use std::path::Path;

use rusqlite::{Connection, OptionalExtension as _};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::copy::open_copy;
use crate::error::{Context as _, Error, Result};

/// Steps of SQLite's machine after which a check hears of an interrupt: some milliseconds.
const STEPS_BETWEEN_LOOKS: i32 = 100_000;

/// `facts.json`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Version of this document.
    pub format: u32,
    /// Databases by file name.
    pub databases: BTreeMap<String, DatabaseFacts>,
    /// Files that rows refer to: `collection/record/name`.
    pub files: Vec<String>,
    /// Whether PocketBase keeps its files in an S3 bucket, which is not covered.
    pub files_elsewhere: bool,
}

/// One database.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatabaseFacts {
    /// Pages.
    pub pages: u64,
    /// Rows by table.
    pub rows: BTreeMap<String, u64>,
}

fn failed<T>(result: rusqlite::Result<T>, path: &Path) -> Result<T> {
    result.doing(|| format!("{} can not be read", path.display()))
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Checks a copy with SQLite's `quick_check`, and counts.
///
/// # Errors
/// It is no sound database; it was cancelled.
pub fn of_database(path: &Path, cancel: &CancellationToken) -> Result<DatabaseFacts> {
    let mut connection = open_copy(path)?;
    let cancel = cancel.clone();
    let stop = Some(move || cancel.is_cancelled());
    failed(connection.progress_handler(STEPS_BETWEEN_LOOKS, stop), path)?;
    let verdict: String = failed(
        connection.query_row("PRAGMA quick_check(1)", [], |r| r.get(0)),
        path,
    )?;
    if verdict != "ok" {
        return Err(
            Error::failed(format!("the copy of {} is not sound: {verdict}", path.display()))
                .hint("Check the database itself with PRAGMA integrity_check; nothing was committed."),
        );
    }
    let pages: i64 = failed(connection.query_row("PRAGMA page_count", [], |r| r.get(0)), path)?;
    let mut facts = DatabaseFacts {
        pages: u64::try_from(pages).unwrap_or(0),
        ..DatabaseFacts::default()
    };
    for table in tables(&connection, path)? {
        let count = format!("SELECT count(*) FROM {}", quoted(&table));
        let rows: i64 = failed(connection.query_row(&count, [], |r| r.get(0)), path)?;
        facts.rows.insert(table, u64::try_from(rows).unwrap_or(0));
    }
    Ok(facts)
}

fn tables(connection: &Connection, path: &Path) -> Result<Vec<String>> {
    let text = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' AND sql NOT LIKE 'CREATE VIRTUAL%' ORDER BY name";
    let mut statement = failed(connection.prepare(text), path)?;
    let names = failed(statement.query_map([], |r| r.get(0)), path)?;
    failed(names.collect(), path)
}

/// Whether a database has collections: one without them is not PocketBase's.
///
/// # Errors
/// It has nothing at all: somebody emptied it.
pub fn has_collections(path: &Path) -> Result<bool> {
    let connection = open_copy(path)?;
    let there = tables(&connection, path)?;
    if !there.is_empty() {
        return Ok(there.iter().any(|t| t == "_collections"));
    }
    Err(Error::failed("data.db is empty: there is no table in it").hint(
        "Is path the pb_data directory, and was it started once? Nothing was committed: earlier points are as they were.",
    ))
}

/// The files that rows of a copied `data.db` refer to, and whether files are kept elsewhere.
///
/// # Errors
/// It can not be read.
pub fn files(path: &Path) -> Result<(Vec<String>, bool)> {
    let connection = open_copy(path)?;
    let there = tables(&connection, path)?;
    if !there.iter().any(|t| t == "_collections") {
        return Ok((Vec::new(), false));
    }
    let mut files = Vec::new();
    let mut statement = failed(
        connection.prepare("SELECT id, name, fields, type FROM _collections"),
        path,
    )?;
    let rows = failed(
        statement.query_map([], |r| {
            Ok((
                r.get::<_, String>(0)?,
                r.get::<_, String>(1)?,
                r.get::<_, String>(2)?,
                r.get::<_, String>(3)?,
            ))
        }),
        path,
    )?;
    for row in rows {
        let (id, name, fields, kind) = failed(row, path)?;
        if kind == "view" || !there.contains(&name) {
            continue;
        }
        let fields: Vec<serde_json::Value> = serde_json::from_str(&fields).unwrap_or_default();
        for field in fields.iter().filter(|f| f["type"] == "file") {
            let Some(column) = field["name"].as_str() else {
                continue;
            };
            of_column(&connection, path, &id, &name, column, &mut files)?;
        }
    }
    let settings = if there.iter().any(|t| t == "_params") {
        failed(settings(&connection), path)?
    } else {
        None
    };
    // Encrypted ones say nothing.
    let elsewhere = settings
        .and_then(|s| serde_json::from_slice::<serde_json::Value>(&s).ok())
        .is_some_and(|s| s["s3"]["enabled"] == true);
    files.sort_unstable();
    Ok((files, elsewhere))
}

/// The settings of a PocketBase, which writes them as a BLOB.
pub(super) fn settings(connection: &Connection) -> rusqlite::Result<Option<Vec<u8>>> {
    let sql = "SELECT CAST(value AS BLOB) FROM _params WHERE id = 'settings'";
    let settings = connection.query_row(sql, [], |r| r.get(0)).optional()?;
    Ok(settings.flatten())
}

fn of_column(
    connection: &Connection,
    path: &Path,
    id: &str,
    table: &str,
    column: &str,
    files: &mut Vec<String>,
) -> Result<()> {
    let text = format!(
        "SELECT id, {0} FROM {1} WHERE {0} IS NOT NULL AND {0} NOT IN ('', '[]')",
        quoted(column),
        quoted(table)
    );
    let mut statement = failed(connection.prepare(&text), path)?;
    let rows = failed(
        statement.query_map([], |r| Ok((r.get::<_, String>(0)?, r.get::<_, String>(1)?))),
        path,
    )?;
    for row in rows {
        let (record, value) = failed(row, path)?;
        let names = if value.starts_with('[') {
            serde_json::from_str::<Vec<String>>(&value).unwrap_or_else(|_| vec![value.clone()])
        } else {
            vec![value]
        };
        files.extend(
            names
                .into_iter()
                .filter(|n| !n.is_empty())
                .map(|n| format!("{id}/{record}/{n}")),
        );
    }
    Ok(())
}
