//! Object Lock: what is still drawn on is locked anew before its lock ends. Lengthening needs no bypass.

use chrono::Duration;

use super::Repository;
use crate::clock::World;
use crate::error::Result;
use crate::store::{Fault, Lock};
use crate::types::Key;

impl Repository {
    /// Lengthens the locks of objects that have less than half of their time left, or none. Answers how many could not
    /// be: a credential without the right is a state, told and not an error.
    ///
    /// # Errors
    /// The store can not tell.
    pub async fn extend_locks(&self, world: &World, keys: impl IntoIterator<Item = Key>) -> Result<u64> {
        let Some(lock) = self.object_lock() else {
            return Ok(0);
        };
        let now = world.clock.now();
        let days = Duration::days(i64::from(lock.days));
        let mut refused = 0;
        for key in keys {
            let Some(info) = self.store().head(&key, self.view()).await? else {
                continue;
            };
            if info.lock.is_some_and(|l| l.until >= now + days / 2) {
                continue;
            }
            let longer = Lock {
                mode: lock.mode,
                until: now + days,
            };
            if let Err(e) = self.store().extend_lock(&key, longer).await {
                if matches!(e.fault, Fault::Throttled | Fault::Unavailable) {
                    return Err(e.into());
                }
                tracing::warn!(key = %key, error = %e, "an Object Lock was not extended");
                refused += 1;
            }
        }
        Ok(refused)
    }
}
