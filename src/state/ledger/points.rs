//! What the daemon remembers of recovery points: commits are immutable, so each is read from the repository once. Lost, they
//! are read again.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, TimeDelta, Utc};
use rusqlite::{OptionalExtension as _, Row, params};

use super::Ledger;
use crate::error::Result;
use crate::types::{RunId, SourceName};

/// A recovery point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PointRecord {
    /// Its run.
    pub run: RunId,
    /// The instant that it restores, on the source's clock.
    pub at: DateTime<Utc>,
    /// When its run ended, on the host's clock.
    pub finished: DateTime<Utc>,
    /// Its size, bytes.
    pub content: u64,
    /// What it added to the repository, bytes.
    pub stored: u64,
    /// The state directory that wrote it.
    pub writer: String,
    /// A cut of a long run, which is no point.
    pub partial: bool,
    /// Since when it is on its way out.
    pub tombstoned: Option<DateTime<Utc>>,
    /// It can not be restored.
    pub damaged: bool,
}

/// What is told of a source's points.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PointsSummary {
    /// How many there are that restore.
    pub points: u32,
    /// How many are damaged.
    pub damaged: u32,
    /// How many another state directory wrote in the last days, since this one writes.
    pub foreign: u32,
    /// The oldest.
    pub oldest: Option<DateTime<Utc>>,
    /// The newest.
    pub newest: Option<DateTime<Utc>>,
    /// How many lie in the future: a clock was wrong.
    pub future: u32,
    /// The size of the newest, bytes.
    pub content: u64,
    /// What the newest added, bytes.
    pub stored: u64,
    /// When the repository was asked for all of them last.
    pub looked: Option<DateTime<Utc>>,
    /// And when for the first time.
    pub first_looked: Option<DateTime<Utc>>,
}

/// What can change of a point: since when it is on its way out, and whether it is damaged.
pub type Standing = (Option<DateTime<Utc>>, bool);

/// What a look into the repository found of a source.
#[derive(Clone, Debug, Default)]
pub struct Looked {
    /// Where that repository is.
    pub place: String,
    /// Points that were not known.
    pub new: Vec<PointRecord>,
    /// All that there are. `None`: only [`Self::new`] was looked at.
    pub all: Option<BTreeMap<RunId, Standing>>,
}

/// A point so far in the future is of a clock that was wrong.
pub const FUTURE: TimeDelta = TimeDelta::minutes(5);
/// For so long it is told that somebody else wrote a point.
const FOREIGN_SHOWN: TimeDelta = TimeDelta::days(7);

/// Points that restore, in SQL.
const GOOD: &str = "partial = 0 AND damaged = 0 AND tombstoned IS NULL";

impl Ledger {
    /// The runs whose commits are known.
    ///
    /// # Errors
    /// The database.
    pub fn known_points(&self, source: &SourceName) -> Result<BTreeSet<RunId>> {
        let read = || {
            let mut statement = self
                .db
                .prepare_cached("SELECT run FROM point WHERE source = ?1")?;
            let rows = statement.query_map([source.as_str()], run_of)?;
            rows.collect::<rusqlite::Result<BTreeSet<_>>>()
        };
        read().map_err(|e| self.failed(e))
    }

    /// Writes down what a look into the repository found.
    ///
    /// # Errors
    /// The database; nothing is changed then.
    pub fn looked(&mut self, source: &SourceName, found: &Looked, now: DateTime<Utc>) -> Result<()> {
        let here = self.place.clone();
        let failed = |e| here.cannot(e);
        let change = self.db.transaction().map_err(failed)?;
        let write = || -> rusqlite::Result<()> {
            let mut insert = change.prepare_cached(
                "INSERT OR REPLACE INTO point VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
            )?;
            for p in &found.new {
                insert.execute(params![
                    source.as_str(),
                    p.run.to_string(),
                    nanos(p.at),
                    p.finished.timestamp_millis(),
                    signed(p.content),
                    signed(p.stored),
                    p.writer,
                    p.partial,
                    p.tombstoned.map(|t| t.timestamp_millis()),
                    p.damaged,
                ])?;
            }
            let Some(all) = &found.all else { return Ok(()) };
            let mut known = change.prepare_cached("SELECT run FROM point WHERE source = ?1")?;
            let known = known
                .query_map([source.as_str()], run_of)?
                .collect::<rusqlite::Result<Vec<_>>>()?;
            let mut forget = change.prepare_cached("DELETE FROM point WHERE source = ?1 AND run = ?2")?;
            let mut update = change.prepare_cached(
                "UPDATE point SET tombstoned = ?3, damaged = ?4
                 WHERE source = ?1 AND run = ?2 AND (tombstoned IS NOT ?3 OR damaged <> ?4)",
            )?;
            for run in known {
                match all.get(&run) {
                    None => forget.execute(params![source.as_str(), run.to_string()])?,
                    Some((tombstoned, damaged)) => {
                        let tombstoned = tombstoned.map(|t| t.timestamp_millis());
                        update.execute(params![source.as_str(), run.to_string(), tombstoned, damaged])?
                    }
                };
            }
            change.execute(
                "INSERT INTO looked VALUES (?1, ?2, ?2, ?3) ON CONFLICT (source) DO UPDATE SET
                     first = CASE place WHEN ?3 THEN first ELSE ?2 END, at = ?2, place = ?3",
                params![source.as_str(), now.timestamp_millis(), found.place],
            )?;
            Ok(())
        };
        write().map_err(failed)?;
        change.commit().map_err(failed)
    }

    /// What is told of a source's points in the repository at a place; `writer` is this state directory.
    ///
    /// # Errors
    /// The database.
    pub fn points_summary(
        &self,
        source: &SourceName,
        place: &str,
        writer: &str,
        now: DateTime<Utc>,
    ) -> Result<PointsSummary> {
        // One in the future is of a clock that was wrong, and says nothing of now.
        let future = nanos(now + FUTURE);
        let lately = (now - FOREIGN_SHOWN).timestamp_millis();
        // Those that others wrote before this directory began to are a host that was moved, or a state that was lost.
        let sql = format!(
            "SELECT count(*) FILTER (WHERE {GOOD}), count(*) FILTER (WHERE damaged = 1 AND tombstoned IS NULL),
                    count(*) FILTER (WHERE writer <> ?2 AND finished > ?4 AND finished >
                        (SELECT min(finished) FROM point WHERE source = ?1 AND writer = ?2)),
                    min(at) FILTER (WHERE {GOOD}), max(at) FILTER (WHERE {GOOD} AND at <= ?3),
                    count(*) FILTER (WHERE {GOOD} AND at > ?3)
             FROM point WHERE source = ?1"
        );
        let newest = format!(
            "SELECT content, stored FROM point WHERE source = ?1 AND {GOOD} ORDER BY at DESC, run DESC LIMIT 1"
        );
        let read = || {
            let mut statement = self
                .db
                .prepare_cached("SELECT at, first FROM looked WHERE source = ?1 AND place = ?2")?;
            let looked = statement.query_row([source.as_str(), place], |r| {
                Ok((instant(r.get(0)?), instant(r.get(1)?)))
            });
            // What is known of another repository says nothing of this one.
            let Some(looked) = looked.optional()? else {
                return Ok(PointsSummary::default());
            };
            let mut statement = self.db.prepare_cached(&sql)?;
            let mut summary = statement.query_row(params![source.as_str(), writer, future, lately], |r| {
                Ok(PointsSummary {
                    points: r.get(0)?,
                    damaged: r.get(1)?,
                    foreign: r.get(2)?,
                    oldest: r.get::<_, Option<i64>>(3)?.map(DateTime::from_timestamp_nanos),
                    newest: r.get::<_, Option<i64>>(4)?.map(DateTime::from_timestamp_nanos),
                    future: r.get(5)?,
                    ..PointsSummary::default()
                })
            })?;
            let mut statement = self.db.prepare_cached(&newest)?;
            let sizes = statement.query_row([source.as_str()], |r| {
                Ok((unsigned(r.get(0)?), unsigned(r.get(1)?)))
            });
            (summary.content, summary.stored) = sizes.optional()?.unwrap_or_default();
            // Neither is a look in the future one.
            (summary.looked, summary.first_looked) = (looked.0.min(Some(now)), looked.1.min(Some(now)));
            Ok(summary)
        };
        read().map_err(|e: rusqlite::Error| self.failed(e))
    }

    /// The newest points of a source, newest first, cuts left out.
    ///
    /// # Errors
    /// The database.
    pub fn points(&self, source: &SourceName, most: u32) -> Result<Vec<PointRecord>> {
        let sql = "SELECT run, at, finished, content, stored, writer, partial, tombstoned, damaged
                   FROM point WHERE source = ?1 AND partial = 0 ORDER BY at DESC, run DESC LIMIT ?2";
        let read = || {
            let mut statement = self.db.prepare_cached(sql)?;
            let rows = statement.query_map(params![source.as_str(), most], point)?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        };
        read().map_err(|e| self.failed(e))
    }
}

fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// To the last digit: `--at` with it must give just this point. From 1677 to 2262.
fn nanos(at: DateTime<Utc>) -> i64 {
    at.timestamp_nanos_opt().unwrap_or(i64::MAX)
}

fn unsigned(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}

fn instant(ms: Option<i64>) -> Option<DateTime<Utc>> {
    ms.and_then(DateTime::from_timestamp_millis)
}

fn run_of(row: &Row<'_>) -> rusqlite::Result<RunId> {
    let text: String = row.get("run")?;
    text.parse().map_err(|_| {
        rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, "no run".into())
    })
}

fn point(row: &Row<'_>) -> rusqlite::Result<PointRecord> {
    Ok(PointRecord {
        run: run_of(row)?,
        at: DateTime::from_timestamp_nanos(row.get("at")?),
        finished: instant(Some(row.get("finished")?)).unwrap_or_default(),
        content: unsigned(row.get("content")?),
        stored: unsigned(row.get("stored")?),
        writer: row.get("writer")?,
        partial: row.get("partial")?,
        tombstoned: instant(row.get("tombstoned")?),
        damaged: row.get("damaged")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(minute: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000 + minute * 60, 0).unwrap()
    }

    fn record(n: u64, writer: &str) -> PointRecord {
        let minute = i64::try_from(n).unwrap();
        PointRecord {
            run: RunId::new(ulid::Ulid::from_parts(
                1_800_000_000_000 + n * 60_000,
                u128::from(n),
            )),
            at: at(minute),
            finished: at(minute),
            content: n * 100,
            stored: n,
            writer: writer.into(),
            partial: false,
            tombstoned: None,
            damaged: false,
        }
    }

    #[test]
    fn points_are_kept_and_counted() {
        let state = tempfile::tempdir().unwrap();
        let (mut ledger, _) = Ledger::open(state.path()).unwrap();
        let app: SourceName = "app".parse().unwrap();
        assert_eq!(
            ledger.points_summary(&app, "here", "me", at(100)).unwrap(),
            PointsSummary::default()
        );
        let mut new: Vec<_> = (1..=5)
            .map(|n| record(n, if n == 2 || n == 5 { "me" } else { "other" }))
            .collect();
        new[2].partial = true;
        let all = new.iter().map(|p| (p.run, (None, false))).collect();
        let found = Looked {
            place: "here".into(),
            new: new.clone(),
            all: Some(all),
        };
        ledger.looked(&app, &found, at(9)).unwrap();
        let told = ledger.points_summary(&app, "here", "me", at(100)).unwrap();
        // The first one of the other is older than what this directory wrote; a cut counts, its writer writes.
        let wanted = PointsSummary {
            points: 4,
            damaged: 0,
            foreign: 2,
            oldest: Some(at(1)),
            newest: Some(at(5)),
            future: 0,
            content: 500,
            stored: 5,
            looked: Some(at(9)),
            first_looked: Some(at(9)),
        };
        assert_eq!(told, wanted);
        assert_eq!(ledger.known_points(&app).unwrap().len(), 5);
        // The newest is damaged, the fourth on its way out, the first gone.
        let all = [
            (new[1].run, (None, false)),
            (new[2].run, (None, false)),
            (new[3].run, (Some(at(8)), false)),
            (new[4].run, (None, true)),
        ];
        let found = Looked {
            place: "here".into(),
            new: Vec::new(),
            all: Some(all.into()),
        };
        ledger.looked(&app, &found, at(10)).unwrap();
        let told = ledger.points_summary(&app, "here", "me", at(100)).unwrap();
        assert_eq!(
            (told.points, told.damaged, told.oldest, told.newest),
            (1, 1, Some(at(2)), Some(at(2)))
        );
        let listed = ledger.points(&app, 2).unwrap();
        assert_eq!(
            listed.iter().map(|p| p.run).collect::<Vec<_>>(),
            [new[4].run, new[3].run]
        );
        assert_eq!((listed[0].damaged, listed[1].tombstoned), (true, Some(at(8))));
        assert_eq!(
            ledger.points_summary(&app, "elsewhere", "me", at(100)).unwrap(),
            PointsSummary::default()
        );
        // One point alone leaves the others as they are.
        let found = Looked {
            place: "here".into(),
            new: vec![record(7, "me")],
            all: None,
        };
        ledger.looked(&app, &found, at(11)).unwrap();
        let told = ledger.points_summary(&app, "here", "me", at(100)).unwrap();
        assert_eq!(
            (told.points, told.newest, told.looked),
            (2, Some(at(7)), Some(at(10)))
        );
    }
}
