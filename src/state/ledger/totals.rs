//! What is counted of a job over all restarts: how its slots ended, and how long they took.

use chrono::{DateTime, Utc};
use rusqlite::{OptionalExtension as _, Transaction, params};

use super::Ledger;
use crate::error::Result;

/// What is counted of a job, over all restarts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Slots with a point.
    pub done: u32,
    /// Slots whose every try failed.
    pub failed: u32,
    /// Slots that were cut off.
    pub interrupted: u32,
    /// Slots that no run answered for.
    pub passed: u32,
    /// When a run began last.
    pub last_begun: Option<DateTime<Utc>>,
    /// When one was done last.
    pub last_done: Option<DateTime<Utc>>,
    /// When one ended last, well or badly.
    pub last_ended: Option<DateTime<Utc>>,
    /// How long those that were done took.
    pub took: Took,
}

/// Bounds of the histogram of durations, seconds.
pub const TOOK_SECONDS: [u32; 10] = [1, 10, 60, 300, 900, 1800, 3600, 10_800, 21_600, 86_400];

/// A histogram of durations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Took {
    /// How many took as long as each of [`TOOK_SECONDS`] or less, and longer than the bound before; the last one longer
    /// than all.
    pub counts: [u32; TOOK_SECONDS.len() + 1],
    /// All of them together.
    pub sum_ms: u64,
}

impl Ledger {
    /// What is counted of a job, over all restarts.
    ///
    /// # Errors
    /// The database.
    pub fn totals(&self, job: &str) -> Result<Totals> {
        let sql = "SELECT done, failed, interrupted, passed, last_begun, last_done, took_ms, last_ended FROM job WHERE name = ?1";
        let instant = |ms: Option<i64>| ms.and_then(DateTime::from_timestamp_millis);
        let mut statement = self.db.prepare_cached(sql).map_err(|e| self.failed(e))?;
        let found = statement.query_row([job], |r| {
            Ok(Totals {
                done: r.get(0)?,
                failed: r.get(1)?,
                interrupted: r.get(2)?,
                passed: r.get(3)?,
                last_begun: instant(r.get(4)?),
                last_done: instant(r.get(5)?),
                last_ended: instant(r.get(7)?),
                took: Took {
                    sum_ms: u64::try_from(r.get::<_, i64>(6)?).unwrap_or(0),
                    ..Took::default()
                },
            })
        });
        let mut totals = found.optional().map_err(|e| self.failed(e))?.unwrap_or_default();
        let mut count = || {
            let mut statement = self
                .db
                .prepare_cached("SELECT bound, count FROM took WHERE job = ?1")?;
            let mut rows = statement.query([job])?;
            while let Some(row) = rows.next()? {
                let (bound, count): (u32, u32) = (row.get(0)?, row.get(1)?);
                if let Some(counted) = totals.took.counts.get_mut(bound as usize) {
                    *counted = count;
                }
            }
            Ok(())
        };
        count().map_err(|e: rusqlite::Error| self.failed(e))?;
        Ok(totals)
    }
}

/// Adds how long a slot's last try took to the histogram.
pub(super) fn took(
    change: &Transaction<'_>,
    job: &str,
    slot: DateTime<Utc>,
    now: DateTime<Utc>,
) -> rusqlite::Result<()> {
    let began: Option<i64> = change
        .query_row(
            "SELECT began FROM slot WHERE job = ?1 AND slot = ?2",
            params![job, slot.timestamp_millis()],
            |r| r.get(0),
        )
        .optional()?;
    let Some(began) = began else { return Ok(()) };
    // A clock that stepped back meanwhile makes it nothing.
    let ms = (now.timestamp_millis() - began).max(0);
    let bound = TOOK_SECONDS
        .iter()
        .zip(0u32..)
        .find_map(|(bound, n)| (ms <= i64::from(*bound) * 1000).then_some(n))
        .unwrap_or(TOOK_SECONDS.len() as u32);
    change.execute(
        "INSERT INTO took VALUES (?1, ?2, 1) ON CONFLICT (job, bound) DO UPDATE SET count = count + 1",
        params![job, bound],
    )?;
    change.execute(
        "UPDATE job SET took_ms = took_ms + ?2 WHERE name = ?1",
        params![job, ms],
    )?;
    Ok(())
}
