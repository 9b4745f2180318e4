//! Troubles, and the notices that are owed of them: kept until they are delivered, over restarts.

use chrono::{DateTime, TimeDelta, Utc};
use rusqlite::{OptionalExtension as _, params};

use super::Ledger;
use crate::error::Result;

/// Waits between the tries of a notice: doubled each time, up to an hour.
const FIRST_WAIT: TimeDelta = TimeDelta::seconds(30);
const LONGEST_WAIT: TimeDelta = TimeDelta::hours(1);
/// One that was refused so often (not: could not be delivered) holds up those behind it no more.
const REFUSED_MOST: u32 = 5;
/// A notice that nobody took for so long is given up, which is told.
const GIVEN_UP: TimeDelta = TimeDelta::days(7);

/// Something that is not well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// Since when.
    pub since: DateTime<Utc>,
    /// When it was told last.
    pub told: DateTime<Utc>,
    /// How often in a row.
    pub failures: u32,
    /// What of it was told last; empty, where there is one thing only.
    pub what: String,
}

/// A notice that is owed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owed {
    /// Its number.
    pub id: i64,
    /// `[notify.NAME]`
    pub to: String,
    /// Its key there: `webhook`, `slack` …
    pub place: String,
    /// The notice, as JSON.
    pub body: String,
    /// How often it was tried.
    pub tries: u32,
    /// When it was written down.
    pub created: DateTime<Utc>,
}

impl Ledger {
    /// What is not well under a name.
    ///
    /// # Errors
    /// The database.
    pub fn trouble(&self, name: &str) -> Result<Option<Trouble>> {
        let sql = "SELECT since, told, failures, what FROM trouble WHERE name = ?1";
        let instant = |ms: i64| DateTime::from_timestamp_millis(ms).unwrap_or_default();
        let read = self.db.query_row(sql, [name], |r| {
            Ok(Trouble {
                since: instant(r.get(0)?),
                told: instant(r.get(1)?),
                failures: r.get(2)?,
                what: r.get(3)?,
            })
        });
        read.optional().map_err(|e| self.failed(e))
    }

    /// Writes down what is not well, or that it is well again, with the notices that are owed of it: all or nothing.
    ///
    /// # Errors
    /// The database; nothing is changed then.
    pub fn note(
        &mut self,
        name: &str,
        trouble: Option<&Trouble>,
        notices: &[(String, String, String)],
        now: DateTime<Utc>,
    ) -> Result<()> {
        let here = self.place.clone();
        let failed = |e| here.cannot(e);
        let change = self.db.transaction().map_err(failed)?;
        let written = match trouble {
            Some(t) => change.execute(
                "INSERT OR REPLACE INTO trouble VALUES (?1, ?2, ?3, ?4, ?5)",
                params![
                    name,
                    t.since.timestamp_millis(),
                    t.told.timestamp_millis(),
                    t.failures,
                    t.what
                ],
            ),
            None => change.execute("DELETE FROM trouble WHERE name = ?1", [name]),
        };
        written.map_err(failed)?;
        for (to, place, body) in notices {
            change
                .execute(
                    "INSERT INTO notice (told, place, body, created, next) VALUES (?1, ?2, ?3, ?4, ?4)",
                    params![to, place, body, now.timestamp_millis()],
                )
                .map_err(failed)?;
        }
        change.commit().map_err(failed)
    }

    /// What is not well, by name.
    ///
    /// # Errors
    /// The database.
    pub fn troubles(&self) -> Result<Vec<String>> {
        let read = || {
            let mut statement = self.db.prepare_cached("SELECT name FROM trouble ORDER BY name")?;
            let rows = statement.query_map([], |r| r.get(0))?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        };
        read().map_err(|e| self.failed(e))
    }

    /// Nobody minds any more: what was not well is not in the policy.
    ///
    /// # Errors
    /// The database.
    pub fn forget_trouble(&self, name: &str) -> Result<()> {
        self.db
            .execute("DELETE FROM trouble WHERE name = ?1", [name])
            .map(drop)
            .map_err(|e| self.failed(e))
    }

    /// Writes down what a place is owed. At most `most` of them are kept: the oldest go.
    ///
    /// # Errors
    /// The database; nothing is changed then.
    pub fn owe(&mut self, to: &str, place: &str, body: &str, most: u32, now: DateTime<Utc>) -> Result<()> {
        let here = self.place.clone();
        let failed = |e| here.cannot(e);
        let change = self.db.transaction().map_err(failed)?;
        let now = now.timestamp_millis();
        change
            .execute(
                "INSERT INTO notice (told, place, body, created, next) VALUES (?1, ?2, ?3, ?4, ?4)",
                params![to, place, body, now],
            )
            .and_then(|_| {
                change.execute(
                    "DELETE FROM notice WHERE told = ?1 AND place = ?2 AND id NOT IN
                         (SELECT id FROM notice WHERE told = ?1 AND place = ?2 ORDER BY id DESC LIMIT ?3)",
                    params![to, place, most],
                )
            })
            .map_err(failed)?;
        change.commit().map_err(failed)
    }

    /// The notices whose time has come: the oldest of each place, so that they arrive in the order of what happened. One that
    /// its place refuses again and again holds up no other any more.
    ///
    /// # Errors
    /// The database.
    pub fn owed(&self, now: DateTime<Utc>) -> Result<Vec<Owed>> {
        // What waits for longer than anything does was written down before the clock was set back.
        let sql = "SELECT id, told, place, body, tries, created FROM notice WHERE id IN
                (SELECT min(id) FROM notice WHERE refused < ?2 OR next <= ?1 GROUP BY told, place)
            AND (next <= ?1 OR next > ?3) ORDER BY next, id";
        let longest = (now + LONGEST_WAIT * 2).timestamp_millis();
        let read = || {
            let mut statement = self.db.prepare(sql)?;
            let values = params![now.timestamp_millis(), REFUSED_MOST, longest];
            let rows = statement.query_map(values, |r| {
                Ok(Owed {
                    id: r.get(0)?,
                    to: r.get(1)?,
                    place: r.get(2)?,
                    body: r.get(3)?,
                    tries: r.get(4)?,
                    created: DateTime::from_timestamp_millis(r.get(5)?).unwrap_or_default(),
                })
            })?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        };
        read().map_err(|e| self.failed(e))
    }

    /// How many notices are owed.
    ///
    /// # Errors
    /// The database.
    pub fn owed_count(&self) -> Result<u32> {
        let sql = "SELECT count(*) FROM notice";
        self.db
            .query_row(sql, [], |r| r.get(0))
            .map_err(|e| self.failed(e))
    }

    /// A notice was taken, or is owed to nobody any more.
    ///
    /// # Errors
    /// The database.
    pub fn paid(&self, id: i64) -> Result<()> {
        let sql = "DELETE FROM notice WHERE id = ?1";
        self.db.execute(sql, [id]).map(drop).map_err(|e| self.failed(e))
    }

    /// A notice was not taken: it is tried again later. `false`: it is given up.
    ///
    /// # Errors
    /// The database.
    pub fn not_taken(&self, owed: &Owed, refused: bool, now: DateTime<Utc>) -> Result<bool> {
        if now - owed.created > GIVEN_UP {
            self.paid(owed.id)?;
            return Ok(false);
        }
        let wait = (FIRST_WAIT * 2i32.pow(owed.tries.min(10))).min(LONGEST_WAIT);
        let sql = "UPDATE notice SET tries = tries + 1, refused = refused + ?3, next = ?2 WHERE id = ?1";
        self.db
            .execute(sql, params![owed.id, (now + wait).timestamp_millis(), refused])
            .map_err(|e| self.failed(e))?;
        Ok(true)
    }
}
