//! What the daemon remembers of what drills proved: read from the evidence now and then. Lost, it is read again.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use rusqlite::{OptionalExtension as _, params};

use super::Ledger;
use crate::error::Result;
use crate::types::SourceName;

/// What drills proved of a source.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Proof {
    /// When its newest proven point was drilled, and at which level.
    pub newest: Option<(DateTime<Utc>, u8)>,
    /// When a drill of it passed last, whichever point it took, and at which level.
    pub last: Option<(DateTime<Utc>, u8)>,
    /// How long the restore of that one took, seconds.
    pub restore_seconds: Option<f64>,
}

impl Ledger {
    /// Writes down what drills proved, by the evidence of the repository at a place: of every source, or of none.
    ///
    /// # Errors
    /// The database; nothing is changed then.
    pub fn proved(&mut self, place: &str, all: &BTreeMap<SourceName, Proof>) -> Result<()> {
        let here = self.place.clone();
        let failed = |e| here.cannot(e);
        let change = self.db.transaction().map_err(failed)?;
        let write = || -> rusqlite::Result<()> {
            change.execute("DELETE FROM proof", [])?;
            let mut insert =
                change.prepare_cached("INSERT INTO proof VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")?;
            for (source, proof) in all {
                let at = |proven: Option<(DateTime<Utc>, u8)>| proven.map(|(at, _)| at.timestamp_millis());
                let level = |proven: Option<(DateTime<Utc>, u8)>| proven.map(|(_, level)| level);
                insert.execute(params![
                    source.as_str(),
                    place,
                    at(proof.newest),
                    level(proof.newest),
                    at(proof.last),
                    level(proof.last),
                    proof.restore_seconds,
                ])?;
            }
            Ok(())
        };
        write().map_err(failed)?;
        change.commit().map_err(failed)
    }

    /// What drills proved of a source in the repository at a place; none: nobody looked.
    ///
    /// # Errors
    /// The database.
    pub fn proof(&self, source: &SourceName, place: &str) -> Result<Option<Proof>> {
        let sql = "SELECT newest, newest_level, last, last_level, seconds FROM proof WHERE source = ?1 AND place = ?2";
        let proven =
            |at: Option<i64>, level: Option<u8>| at.and_then(DateTime::from_timestamp_millis).zip(level);
        let read = self.db.query_row(sql, [source.as_str(), place], |r| {
            Ok(Proof {
                newest: proven(r.get(0)?, r.get(1)?),
                last: proven(r.get(2)?, r.get(3)?),
                restore_seconds: r.get(4)?,
            })
        });
        read.optional().map_err(|e| self.failed(e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_proved_is_kept_for_its_repository_only() {
        let state = tempfile::tempdir().unwrap();
        let (mut ledger, _) = Ledger::open(state.path()).unwrap();
        let at = |minute: i64| DateTime::from_timestamp(1_800_000_000 + minute * 60, 0).unwrap();
        let [app, orders]: [SourceName; 2] = ["app", "orders"].map(|name| name.parse().unwrap());
        let proof = Proof {
            newest: Some((at(1), 4)),
            last: Some((at(2), 6)),
            restore_seconds: Some(2.5),
        };
        assert_eq!(ledger.proof(&app, "here").unwrap(), None);
        let all = BTreeMap::from([(app.clone(), proof.clone()), (orders.clone(), Proof::default())]);
        ledger.proved("here", &all).unwrap();
        drop(ledger);
        let (mut ledger, _) = Ledger::open(state.path()).unwrap();
        assert_eq!(ledger.proof(&app, "here").unwrap(), Some(proof));
        assert_eq!(
            ledger.proof(&orders, "here").unwrap(),
            Some(Proof::default()),
            "never proven, and that is known"
        );
        assert_eq!(ledger.proof(&app, "elsewhere").unwrap(), None);
        ledger.proved("here", &BTreeMap::new()).unwrap();
        assert_eq!(ledger.proof(&app, "here").unwrap(), None);
    }
}
