//! What the daemon remembers of the last days, added up for the status page.

use chrono::{DateTime, TimeDelta, Utc};
use rusqlite::params;

use super::{Ledger, SlotRecord};
use crate::error::Result;

/// Slots are added up by quarters of an hour: every time zone's days begin with one.
const QUARTER_MS: i64 = 15 * 60_000;

/// How the slots of a quarter of an hour ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quarter {
    /// Its beginning.
    pub start: DateTime<Utc>,
    /// Done.
    pub done: u32,
    /// Of those, begun late or not at the first time.
    pub late: u32,
    /// Failed, or cut off and not begun again.
    pub failed: u32,
}

/// Slots that no run answered for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PassedSpan {
    /// The first.
    pub first: DateTime<Utc>,
    /// The last.
    pub last: DateTime<Utc>,
    /// How many.
    pub count: u32,
    /// Why, in words.
    pub why: String,
}

impl Ledger {
    /// Slots from an instant on by quarters of an hour, oldest first. Late: begun more than `late` after the slot, or not
    /// done at the first time.
    ///
    /// # Errors
    /// The database.
    pub fn quarters(&self, job: &str, from: DateTime<Utc>, late: TimeDelta) -> Result<Vec<Quarter>> {
        let sql = "SELECT slot / ?3 AS quarter, count(*) FILTER (WHERE outcome = 'done'),
                count(*) FILTER (WHERE outcome = 'done' AND (tries > 1 OR began - slot > ?4)),
                count(*) FILTER (WHERE outcome IN ('failed', 'interrupted'))
            FROM slot WHERE job = ?1 AND slot >= ?2 GROUP BY quarter ORDER BY quarter";
        let values = params![job, from.timestamp_millis(), QUARTER_MS, late.num_milliseconds()];
        let read = || {
            let mut statement = self.db.prepare_cached(sql)?;
            let rows = statement.query_map(values, |r| {
                let quarter: i64 = r.get(0)?;
                Ok(Quarter {
                    start: DateTime::from_timestamp_millis(quarter * QUARTER_MS).unwrap_or_default(),
                    done: r.get(1)?,
                    late: r.get(2)?,
                    failed: r.get(3)?,
                })
            })?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        };
        read().map_err(|e| self.failed(e))
    }

    /// Slots that no run answered for, from an instant on.
    ///
    /// # Errors
    /// The database.
    pub fn passed(&self, job: &str, from: DateTime<Utc>) -> Result<Vec<PassedSpan>> {
        let sql = "SELECT first, last, count, why FROM passed WHERE job = ?1 AND last >= ?2 ORDER BY first";
        let read = || {
            let mut statement = self.db.prepare_cached(sql)?;
            let rows = statement.query_map(params![job, from.timestamp_millis()], |r| {
                let instant = |ms: i64| DateTime::from_timestamp_millis(ms).unwrap_or_default();
                Ok(PassedSpan {
                    first: instant(r.get(0)?),
                    last: instant(r.get(1)?),
                    count: r.get(2)?,
                    why: r.get(3)?,
                })
            })?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        };
        read().map_err(|e| self.failed(e))
    }

    /// The newest slots of a job, newest first.
    ///
    /// # Errors
    /// The database.
    pub fn newest_slots(&self, job: &str, most: u32) -> Result<Vec<SlotRecord>> {
        self.records(
            "SELECT * FROM slot WHERE job = ?1 ORDER BY slot DESC LIMIT ?2",
            params![job, most],
        )
    }

    /// One slot of a job.
    ///
    /// # Errors
    /// The database.
    pub fn slot(&self, job: &str, slot: DateTime<Utc>) -> Result<Option<SlotRecord>> {
        let found = self.records(
            "SELECT * FROM slot WHERE job = ?1 AND slot = ?2",
            params![job, slot.timestamp_millis()],
        )?;
        Ok(found.into_iter().next())
    }
}
