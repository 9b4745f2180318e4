//! Level 4 of a pb_data, beyond its digests: what SQLite says of the databases, and whether the files are there that rows name.

use std::path::Path;

use rusqlite::config::DbConfig;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags};
use tokio_util::sync::CancellationToken;

use super::quiet::tame;
use crate::drill::{Check, Level};
use crate::error::{Context as _, Error, Result};
use crate::source::pocketbase::facts;
use crate::source::scratch::not_one;
use crate::types::some_of;

/// Problems of one kind that are named.
pub(super) const NAMED: usize = 20;

/// Checks of the databases themselves, and of the files that rows name.
pub(super) fn of_data(
    data: &Path,
    without_storage: bool,
    cancel: &CancellationToken,
) -> Result<(Vec<Check>, Vec<String>)> {
    let mut checks = Vec::new();
    for name in ["data.db", "auxiliary.db"] {
        let path = data.join(name);
        if !path
            .try_exists()
            .doing(|| format!("{} can not be read", path.display()))?
        {
            continue;
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let failed = |e: rusqlite::Error| Error::failed(format!("{name} can not be read")).because(e);
        let mut connection = Connection::open_with_flags(&path, flags).map_err(failed)?;
        tame(&mut connection, cancel).map_err(failed)?;
        let problems = |pragma: &str| -> Result<Vec<String>> {
            let mut statement = connection.prepare(pragma).map_err(failed)?;
            let columns = statement.column_count();
            let rows = statement.query_map([], |row| {
                let cells = (0..columns).map(|i| row.get_ref(i).map(shown));
                Ok(cells.collect::<rusqlite::Result<Vec<_>>>()?.join(" "))
            });
            let rows = rows.map_err(failed)?.take(NAMED + 1);
            // A page that can not be read ends it, and is a problem like the others.
            Ok(rows.map(|row| row.unwrap_or_else(|e| e.to_string())).collect())
        };
        let integrity = problems("PRAGMA integrity_check")?.join("; ");
        checks.push(Check::compared(
            format!("integrity of {name}"),
            Level::Facts,
            "ok",
            integrity,
        ));
        let foreign = problems("PRAGMA foreign_key_check")?;
        checks.push(Check::compared(
            format!("foreign keys of {name}"),
            Level::Facts,
            "none is broken",
            if foreign.is_empty() {
                "none is broken".to_owned()
            } else {
                foreign.join("; ")
            },
        ));
    }
    let unlooked = files(data, without_storage, &mut checks)?;
    Ok((checks, unlooked))
}

/// Whether the files are there that rows name; gives what of them is not looked at.
fn files(data: &Path, without_storage: bool, checks: &mut Vec<Check>) -> Result<Vec<String>> {
    let mut unlooked = Vec::new();
    let (files, elsewhere) = facts::files(&data.join("data.db"))?;
    if elsewhere && !files.is_empty() {
        unlooked.push(format!(
            "{} files that rows name: they are in a bucket, and in no point",
            files.len()
        ));
    } else if without_storage && !files.is_empty() {
        unlooked.push(format!(
            "{} files that rows name: the policy leaves storage out",
            files.len()
        ));
    } else if !elsewhere && !without_storage {
        let mut missing = Vec::new();
        for file in &files {
            let path = data.join("storage").join(file);
            if !path
                .try_exists()
                .doing(|| format!("{} can not be read", path.display()))?
            {
                missing.push(file.clone());
            }
        }
        let expected = format!("{} files that rows name", files.len());
        checks.push(if missing.is_empty() {
            Check::passed("files that rows name", Level::Facts, expected)
        } else {
            // Their names are of the users who uploaded them.
            Check::failed(
                "files that rows name",
                Level::Facts,
                expected,
                format!("{} are missing", missing.len()),
            )
            .with_detail(some_of(&missing, NAMED, "; "))
        });
    }
    Ok(unlooked)
}

fn shown(value: ValueRef<'_>) -> String {
    match value {
        ValueRef::Null => "NULL".to_owned(),
        ValueRef::Integer(n) => n.to_string(),
        ValueRef::Real(n) => n.to_string(),
        ValueRef::Text(text) | ValueRef::Blob(text) => String::from_utf8_lossy(text).into_owned(),
    }
}

/// The one value of a query, as text. Nothing is changed.
pub(super) fn ask(path: &Path, query: &str, cancel: &CancellationToken) -> Result<Option<String>> {
    let failed = |e: rusqlite::Error| Error::failed("the query can not be carried out").because(e);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags).map_err(failed)?;
    tame(&mut connection, cancel).map_err(failed)?;
    // The operator's own query may ask a view.
    connection
        .set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_VIEW, true)
        .map_err(failed)?;
    connection
        .pragma_update(None, "query_only", true)
        .map_err(failed)?;
    let mut statement = connection.prepare(query).map_err(failed)?;
    if statement.column_count() != 1 {
        return Err(not_one(&format!("{} columns", statement.column_count())));
    }
    let mut rows = statement.query([]).map_err(failed)?;
    let value = match rows.next().map_err(failed)? {
        None => return Ok(None),
        Some(row) => match row.get_ref(0).map_err(failed)? {
            ValueRef::Null => None,
            value => Some(shown(value)),
        },
    };
    match rows.next().map_err(failed)? {
        None => Ok(value),
        Some(_) => Err(not_one("several rows")),
    }
}
