//! What the daemon remembers of slots and runs: SQLite in the state directory. Lost, it is rebuilt from the repository, and
//! costs nothing but a run too many.
//!
//! A slot is written down before its run begins. One that is still under way when a daemon starts was cut off by a crash:
//! whether its run was committed, only the repository knows.

pub mod days;
pub mod notices;
pub mod points;
pub mod proofs;
mod totals;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use chrono::{DateTime, Utc};
use rusqlite::{Connection, OptionalExtension as _, Row, Transaction, params};

pub use totals::{TOOK_SECONDS, Took, Totals};

use super::make_dir;
use crate::error::{Context as _, Error, Result};
use crate::schedule::due::Passed;
use crate::types::RunId;

/// The database, in the state directory.
const FILE: &str = "daemon.db";
/// How long another process that reads it may keep us waiting.
const BUSY: Duration = Duration::from_secs(2);
/// What is older is forgotten: more than the status page shows.
const KEPT_DAYS: i64 = 400;
/// Each brings the database from the version before to the next; never changed, only added to.
const MIGRATIONS: &[&str] = &["
    CREATE TABLE job (
        name TEXT PRIMARY KEY, settled INTEGER NOT NULL, done INTEGER NOT NULL DEFAULT 0, failed INTEGER NOT NULL DEFAULT 0,
        interrupted INTEGER NOT NULL DEFAULT 0, passed INTEGER NOT NULL DEFAULT 0, last_begun INTEGER, last_done INTEGER
    ) STRICT;
    CREATE TABLE slot (
        job TEXT NOT NULL, slot INTEGER NOT NULL, outcome TEXT NOT NULL, tries INTEGER NOT NULL,
        began INTEGER NOT NULL, ended INTEGER, run TEXT, error TEXT,
        PRIMARY KEY (job, slot)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX slot_by_outcome ON slot (outcome, job);
    CREATE TABLE passed (
        job TEXT NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL, count INTEGER NOT NULL,
        more INTEGER NOT NULL, why TEXT NOT NULL, noted INTEGER NOT NULL,
        PRIMARY KEY (job, first)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE trouble (
        name TEXT PRIMARY KEY, since INTEGER NOT NULL, told INTEGER NOT NULL, failures INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE notice (
        id INTEGER PRIMARY KEY, told TEXT NOT NULL, place TEXT NOT NULL, body TEXT NOT NULL,
        tries INTEGER NOT NULL DEFAULT 0, created INTEGER NOT NULL, next INTEGER NOT NULL
    ) STRICT;
", "
    CREATE TABLE point (
        source TEXT NOT NULL, run TEXT NOT NULL, at INTEGER NOT NULL, finished INTEGER NOT NULL, content INTEGER NOT NULL,
        stored INTEGER NOT NULL, writer TEXT NOT NULL, partial INTEGER NOT NULL, tombstoned INTEGER, damaged INTEGER NOT NULL,
        PRIMARY KEY (source, run)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX point_by_at ON point (source, at);
    CREATE TABLE looked (
        source TEXT PRIMARY KEY, at INTEGER NOT NULL, first INTEGER NOT NULL, place TEXT NOT NULL
    ) STRICT;
    CREATE TABLE took (
        job TEXT NOT NULL, bound INTEGER NOT NULL, count INTEGER NOT NULL, PRIMARY KEY (job, bound)
    ) STRICT, WITHOUT ROWID;
    ALTER TABLE job ADD COLUMN took_ms INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE job ADD COLUMN last_ended INTEGER;
    ALTER TABLE notice ADD COLUMN refused INTEGER NOT NULL DEFAULT 0;
    CREATE INDEX notice_by_place ON notice (told, place, id);
", "
    CREATE TABLE proof (
        source TEXT PRIMARY KEY, place TEXT NOT NULL, newest INTEGER, newest_level INTEGER, last INTEGER, last_level INTEGER,
        seconds REAL
    ) STRICT;
    ALTER TABLE trouble ADD COLUMN what TEXT NOT NULL DEFAULT '';
"];

/// Slots whose runs are under way.
const UNDER_WAY: &str = "SELECT * FROM slot WHERE outcome = 'running' ORDER BY job, slot";

/// How a slot ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Its run is under way, or was when the daemon died.
    Running,
    /// With a point.
    Done,
    /// Every try failed.
    Failed,
    /// Cut off: by a signal, or by the death of the daemon.
    Interrupted,
}

impl Outcome {
    /// Its stable name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Interrupted => "interrupted",
        }
    }
    fn parse(name: &str) -> Option<Self> {
        [Self::Running, Self::Done, Self::Failed, Self::Interrupted]
            .into_iter()
            .find(|o| o.name() == name)
    }
}

/// A slot that a run answered for, or tried to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotRecord {
    /// The job, by its key.
    pub job: String,
    /// The slot.
    pub slot: DateTime<Utc>,
    /// How it ended.
    pub outcome: Outcome,
    /// How often it was begun.
    pub tries: u32,
    /// When it was begun last.
    pub began: DateTime<Utc>,
    /// When it ended.
    pub ended: Option<DateTime<Utc>>,
    /// Its point.
    pub run: Option<RunId>,
    /// Why it failed.
    pub error: Option<String>,
}

/// The database.
#[derive(Debug)]
pub struct Ledger {
    db: Connection,
    place: Place,
    /// The file that was opened: device and number.
    file: Option<(u64, u64)>,
}

/// Which file is at a path now; none: none that can be looked at.
fn file_id(path: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata(path).ok().map(|m| (m.dev(), m.ino()))
}

/// Where it is, and whether it was found to be damaged.
#[derive(Clone, Debug)]
struct Place {
    path: PathBuf,
    damaged: Arc<AtomicBool>,
}

impl Place {
    fn of(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            damaged: Arc::default(),
        }
    }

    fn cannot(&self, e: rusqlite::Error) -> Error {
        if is_damage(&e) {
            self.damaged.store(true, Ordering::Relaxed);
        }
        cannot(&self.path, e)
    }
}

impl Ledger {
    /// Opens it. One that can not be used is put aside, and a new one begun: `true` then, for who tells of it.
    ///
    /// # Errors
    /// The state directory can not be written, or the database is of a newer Lifeboat.
    pub fn open(state: &Path) -> Result<(Self, bool)> {
        make_dir(state)?;
        let path = state.join(FILE);
        match Self::attach(&path) {
            Ok(ledger) => Ok((ledger, false)),
            Err(e) if e.is::<Newer>() => Err(Error::failed(format!(
                "{} was written by a newer Lifeboat",
                path.display()
            ))
            .hint("Use that one, or remove the file: it is rebuilt from the repository.")),
            Err(first) if is_damage(&*first) => {
                let aside = path.with_extension("db.damaged");
                for suffix in ["", "-wal", "-shm"] {
                    let from = PathBuf::from(format!("{}{suffix}", path.display()));
                    match std::fs::rename(&from, format!("{}{suffix}", aside.display())) {
                        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                            return Err(e).doing(|| format!("can not put {} aside", from.display()));
                        }
                        _ => {}
                    }
                }
                tracing::warn!(path = %path.display(), error = %first, "the daemon's memory is damaged; it is put aside and rebuilt");
                let ledger = Self::attach(&path).map_err(|e| cannot(&path, e))?;
                Ok((ledger, true))
            }
            Err(e) => Err(cannot(&path, e)),
        }
    }

    fn attach(path: &Path) -> std::result::Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        // 0600, before SQLite makes it with another mode.
        drop(super::open_lock(path)?);
        let mut db = Connection::open(path)?;
        db.busy_timeout(BUSY)?;
        db.pragma_update(None, "journal_mode", "wal")?;
        // A slot that was written down must not be forgotten by a power cut.
        db.pragma_update(None, "synchronous", "full")?;
        let version: u32 = db.query_row("PRAGMA user_version", [], |r| r.get(0))?;
        let sound: String = db.query_row("PRAGMA quick_check(1)", [], |r| r.get(0))?;
        if sound != "ok" {
            return Err(Box::new(Unsound(sound)));
        }
        if version as usize > MIGRATIONS.len() {
            return Err(Box::new(Newer));
        }
        for (sql, number) in MIGRATIONS.iter().zip(1u32..).skip(version as usize) {
            let change = db.transaction()?;
            change.execute_batch(sql)?;
            change.pragma_update(None, "user_version", number)?;
            change.commit()?;
        }
        // A row that nobody could have written: its task would wait for ever.
        records(&db, UNDER_WAY, [])?;
        Ok(Self {
            db,
            place: Place::of(path),
            file: file_id(path),
        })
    }

    /// Whether a daemon ever used this state directory.
    pub fn is_there(state: &Path) -> bool {
        state.join(FILE).exists()
    }

    /// Opens it to read, beside the daemon that writes it.
    ///
    /// # Errors
    /// It is not there, or can not be read.
    pub fn read_only(state: &Path) -> Result<Self> {
        let path = state.join(FILE);
        let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY | rusqlite::OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let db = Connection::open_with_flags(&path, flags).map_err(|e| cannot(&path, e))?;
        db.busy_timeout(BUSY).map_err(|e| cannot(&path, e))?;
        Ok(Self {
            db,
            place: Place::of(&path),
            file: file_id(&path),
        })
    }

    /// Waits for who holds it, and says whether it can be written now: who has many things to write asks once. `truly`: by
    /// writing something, which a full disk refuses.
    ///
    /// # Errors
    /// It can not: another process holds it, it is damaged, or its file is gone.
    pub fn ready(&mut self, truly: bool) -> Result<()> {
        if file_id(&self.place.path) != self.file {
            self.place.damaged.store(true, Ordering::Relaxed);
            return Err(cannot(
                &self.place.path,
                "somebody removed the file, or put another one in its place",
            ));
        }
        let change = rusqlite::TransactionBehavior::Immediate;
        let change = self.db.transaction_with_behavior(change);
        let written = change.and_then(|change| {
            if !truly {
                return change.rollback();
            }
            change.execute("UPDATE job SET settled = settled", [])?;
            change.commit()
        });
        written.map_err(|e| self.place.cannot(e))
    }

    /// SQLite found it damaged since it was opened.
    pub fn is_damaged(&self) -> bool {
        self.place.damaged.load(Ordering::Relaxed)
    }

    /// Puts one that was found damaged aside, and begins a new one: `false` when SQLite finds nothing wrong with it any more,
    /// and it is the file that was used.
    ///
    /// # Errors
    /// As [`Self::open`]; then it can not be used until this succeeds.
    pub fn rebuild(&mut self) -> Result<bool> {
        let path = self.place.path.clone();
        let state = path.parent().unwrap_or(Path::new("."));
        let same = file_id(&path) == self.file;
        // The old connection first: when it is closed it removes the log, by its name.
        self.db = Connection::open_in_memory().map_err(|e| self.place.cannot(e))?;
        let (new, rebuilt) = Self::open(state)?;
        *self = new;
        Ok(rebuilt || !same)
    }

    fn failed(&self, e: rusqlite::Error) -> Error {
        self.place.cannot(e)
    }

    /// Up to where the slots of a job are settled; none: it is not known.
    ///
    /// # Errors
    /// The database.
    pub fn settled(&self, job: &str) -> Result<Option<DateTime<Utc>>> {
        let sql = "SELECT settled FROM job WHERE name = ?1";
        let found: Option<i64> = self
            .db
            .query_row(sql, [job], |r| r.get(0))
            .optional()
            .map_err(|e| self.failed(e))?;
        Ok(found.and_then(DateTime::from_timestamp_millis))
    }

    /// Settles slots: those that are passed over, and the one that is run now, which is written down as under way.
    ///
    /// # Errors
    /// The database; nothing is changed then.
    pub fn settle(
        &mut self,
        job: &str,
        settled: DateTime<Utc>,
        passed: &[Passed],
        due: Option<DateTime<Utc>>,
        now: DateTime<Utc>,
    ) -> Result<()> {
        let place = self.place.clone();
        let change = self.db.transaction().map_err(|e| place.cannot(e))?;
        let work = |change: &Transaction<'_>| -> rusqlite::Result<()> {
            change.execute(
                "INSERT INTO job (name, settled) VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET settled = ?2",
                params![job, settled.timestamp_millis()],
            )?;
            for span in passed {
                change.execute(
                    "INSERT OR REPLACE INTO passed VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                    params![
                        job,
                        span.first.timestamp_millis(),
                        span.last.timestamp_millis(),
                        span.count,
                        span.more,
                        span.why.text(),
                        now.timestamp_millis()
                    ],
                )?;
            }
            let count: u32 = passed.iter().map(|span| span.count).sum();
            change.execute(
                "UPDATE job SET passed = passed + ?2 WHERE name = ?1",
                params![job, count],
            )?;
            if let Some(slot) = due {
                change.execute(
                    "UPDATE job SET last_begun = ?2 WHERE name = ?1",
                    params![job, now.timestamp_millis()],
                )?;
                change.execute(
                    "INSERT INTO slot VALUES (?1, ?2, 'running', 1, ?3, NULL, NULL, NULL)
                     ON CONFLICT (job, slot) DO UPDATE SET outcome = 'running', tries = tries + 1, began = ?3, ended = NULL,
                     run = NULL, error = NULL",
                    params![job, slot.timestamp_millis(), now.timestamp_millis()],
                )?;
            }
            let old = (now - chrono::TimeDelta::days(KEPT_DAYS)).timestamp_millis();
            change.execute(
                "DELETE FROM slot WHERE job = ?1 AND slot < ?2 AND outcome <> 'running'",
                params![job, old],
            )?;
            change.execute(
                "DELETE FROM passed WHERE job = ?1 AND last < ?2",
                params![job, old],
            )?;
            Ok(())
        };
        work(&change)
            .and_then(|()| change.commit())
            .map_err(|e| place.cannot(e))
    }

    /// The run of a slot ended. One that was cut off is open again, and run once more, in the same transaction.
    ///
    /// # Errors
    /// The database; nothing is changed then.
    pub fn end(
        &mut self,
        job: &str,
        slot: DateTime<Utc>,
        outcome: Outcome,
        run: Option<RunId>,
        error: Option<&str>,
        now: DateTime<Utc>,
    ) -> Result<()> {
        let place = self.place.clone();
        let change = self.db.transaction().map_err(|e| place.cannot(e))?;
        if outcome == Outcome::Done {
            totals::took(&change, job, slot, now).map_err(|e| place.cannot(e))?;
        }
        let count = match outcome {
            Outcome::Running => return Ok(()),
            Outcome::Done => "UPDATE job SET done = done + 1, last_done = ?2 WHERE name = ?1",
            Outcome::Failed => "UPDATE job SET failed = failed + 1 WHERE name = ?1 AND ?2 > 0",
            Outcome::Interrupted => "UPDATE job SET interrupted = interrupted + 1 WHERE name = ?1 AND ?2 > 0",
        };
        let sql =
            "UPDATE slot SET outcome = ?3, ended = ?4, run = ?5, error = ?6 WHERE job = ?1 AND slot = ?2";
        if outcome == Outcome::Interrupted {
            change
                .execute(
                    "UPDATE job SET settled = min(settled, ?2) WHERE name = ?1",
                    params![job, slot.timestamp_millis() - 1],
                )
                .map_err(|e| place.cannot(e))?;
        }
        let now = now.timestamp_millis();
        let run = run.map(|r| r.to_string());
        let values = params![job, slot.timestamp_millis(), outcome.name(), now, run, error];
        // What was cut off tells nothing of whether it can be done.
        let ended = match outcome {
            Outcome::Interrupted => "UPDATE job SET last_ended = last_ended WHERE name = ?1 AND ?2 > 0",
            _ => "UPDATE job SET last_ended = ?2 WHERE name = ?1",
        };
        change
            .execute(sql, values)
            .and_then(|_| change.execute(count, params![job, now]))
            .and_then(|_| change.execute(ended, params![job, now]))
            .map_err(|e| place.cannot(e))?;
        change.commit().map_err(|e| place.cannot(e))
    }

    /// A try of a slot that is under way failed: why, for who finds it under way after a crash or a stop.
    ///
    /// # Errors
    /// The database.
    pub fn failed_try(&self, job: &str, slot: DateTime<Utc>, error: &str) -> Result<()> {
        let sql = "UPDATE slot SET error = ?3 WHERE job = ?1 AND slot = ?2 AND outcome = 'running'";
        self.db
            .execute(sql, params![job, slot.timestamp_millis(), error])
            .map(drop)
            .map_err(|e| self.failed(e))
    }

    /// Slots whose runs are under way: at the start of a daemon, those that a crash cut off.
    ///
    /// # Errors
    /// The database.
    pub fn under_way(&self) -> Result<Vec<SlotRecord>> {
        self.records(UNDER_WAY, [])
    }

    /// As [`Self::under_way`], of one job.
    ///
    /// # Errors
    /// The database.
    pub fn under_way_of(&self, job: &str) -> Result<Vec<SlotRecord>> {
        self.records(
            "SELECT * FROM slot WHERE outcome = 'running' AND job = ?1 ORDER BY slot",
            [job],
        )
    }

    /// The slots of a job since an instant, oldest first.
    ///
    /// # Errors
    /// The database.
    pub fn since(&self, job: &str, from: DateTime<Utc>) -> Result<Vec<SlotRecord>> {
        self.records(
            "SELECT * FROM slot WHERE job = ?1 AND slot >= ?2 ORDER BY slot",
            params![job, from.timestamp_millis()],
        )
    }

    /// How many slots of a job were passed over since an instant, made good or not, by reason.
    ///
    /// # Errors
    /// The database.
    pub fn passed_since(&self, job: &str, from: DateTime<Utc>) -> Result<Vec<(String, u64)>> {
        let sql =
            "SELECT why, sum(count) FROM passed WHERE job = ?1 AND last >= ?2 GROUP BY why ORDER BY why";
        let read = || {
            let mut statement = self.db.prepare(sql)?;
            let rows = statement.query_map(params![job, from.timestamp_millis()], |r| {
                Ok((r.get(0)?, u64::try_from(r.get::<_, i64>(1)?).unwrap_or(0)))
            })?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        };
        read().map_err(|e| self.failed(e))
    }

    fn records(&self, sql: &str, values: impl rusqlite::Params) -> Result<Vec<SlotRecord>> {
        records(&self.db, sql, values).map_err(|e| self.failed(e))
    }
}

fn records(db: &Connection, sql: &str, values: impl rusqlite::Params) -> rusqlite::Result<Vec<SlotRecord>> {
    let mut statement = db.prepare(sql)?;
    let rows = statement.query_map(values, record)?;
    rows.collect()
}

#[derive(Debug, thiserror::Error)]
#[error("its version is newer")]
struct Newer;

#[derive(Debug, thiserror::Error)]
#[error("SQLite finds it damaged: {0}")]
struct Unsound(String);

fn cannot(path: &Path, e: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::failed(format!(
        "the daemon's memory at {} can not be used",
        path.display()
    ))
    .hint("Is there room, and may this user write there?")
    .because(e)
}

/// What a new file mends.
fn is_damage(e: &(dyn std::error::Error + Send + Sync + 'static)) -> bool {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
    if e.is::<Unsound>() {
        return true;
    }
    let error = e.downcast_ref::<rusqlite::Error>();
    // A row that nobody could have written.
    let unreadable = matches!(error, Some(rusqlite::Error::FromSqlConversionFailure(..)));
    let code = error.and_then(rusqlite::Error::sqlite_error_code);
    unreadable || code.is_some_and(|code| matches!(code, DatabaseCorrupt | NotADatabase))
}

fn record(row: &Row<'_>) -> rusqlite::Result<SlotRecord> {
    let bad = |column: usize, what: &'static str| {
        rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, what.into())
    };
    let instant =
        |column: usize, ms: i64| DateTime::from_timestamp_millis(ms).ok_or_else(|| bad(column, "no instant"));
    let outcome: String = row.get("outcome")?;
    let run: Option<String> = row.get("run")?;
    let ended: Option<i64> = row.get("ended")?;
    Ok(SlotRecord {
        job: row.get("job")?,
        slot: instant(1, row.get("slot")?)?,
        outcome: Outcome::parse(&outcome).ok_or_else(|| bad(2, "no outcome"))?,
        tries: row.get("tries")?,
        began: instant(4, row.get("began")?)?,
        ended: ended.map(|ms| instant(5, ms)).transpose()?,
        run: run.map(|r| r.parse().map_err(|_| bad(6, "no run"))).transpose()?,
        error: row.get("error")?,
    })
}

#[cfg(test)]
mod tests;
