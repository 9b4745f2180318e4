//! Retries, in this one place: a bounded number of attempts with exponential backoff and full jitter.

use std::ops::Range;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};

use super::{Abilities, Fault, Lock, ObjectInfo, Page, PutOptions, Store, StoreError, StoreResult, View};
use crate::clock::World;
use crate::types::Key;

/// How often and how patiently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Attempts in all, the first one too.
    pub attempts: u32,
    /// Attempts in all where what came back was damaged: the wire may be at fault, more often the object is.
    pub attempts_damaged: u32,
    /// The wait before the second attempt is a random part of this; it doubles with each attempt.
    pub base: Duration,
    /// The longest wait.
    pub cap: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts: 6,
            attempts_damaged: 3,
            base: Duration::from_millis(500),
            cap: Duration::from_secs(20),
        }
    }
}

/// Tries transient faults again.
#[derive(Debug)]
pub struct Retry<S> {
    inner: S,
    world: World,
    policy: RetryPolicy,
}

impl<S: Store> Retry<S> {
    /// Six attempts over about a quarter of a minute.
    pub fn new(inner: S, world: &World) -> Self {
        Self::with_policy(inner, world, RetryPolicy::default())
    }
    /// With another patience.
    pub fn with_policy(inner: S, world: &World, policy: RetryPolicy) -> Self {
        Self {
            inner,
            world: world.clone(),
            policy,
        }
    }

    /// Waits before the next attempt, or gives the error back when there is none.
    async fn pause(&self, attempt: u32, error: StoreError) -> StoreResult<()> {
        let attempts = if error.fault == Fault::Damaged {
            self.policy.attempts_damaged
        } else {
            self.policy.attempts
        };
        if !error.fault.is_transient() || attempt >= attempts {
            return Err(error);
        }
        let factor = 1u32.checked_shl(attempt.saturating_sub(1)).unwrap_or(u32::MAX);
        let longest = self.policy.base.saturating_mul(factor).min(self.policy.cap);
        let wait = longest.mul_f64(self.fraction());
        tracing::debug!(
            what = %error.what, fault = ?error.fault, attempt,
            wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
            "store call failed, trying again"
        );
        self.world.clock.sleep(wait).await;
        Ok(())
    }

    /// Evenly from 0 to 1; 1 when there is no randomness, which waits longest.
    fn fraction(&self) -> f64 {
        let mut bytes = [0u8; 4];
        match self.world.random.fill(&mut bytes) {
            Ok(()) => f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX),
            Err(_) => 1.0,
        }
    }

    /// The key is there: by an earlier attempt whose reply was lost, or by somebody else?
    async fn settle(&self, key: &Key, body: &Bytes, exists: StoreError) -> StoreResult<()> {
        match self.get(key, None, View::Current).await {
            Ok(stored) if stored == *body => Ok(()),
            Ok(_) => Err(StoreError::new(
                Fault::Exists,
                exists.what,
                "the key is there already, with other bytes",
            )),
            Err(e) => Err(StoreError::new(
                Fault::Exists,
                exists.what,
                format!(
                    "the key is there already, and can not be read back to compare: {}",
                    e.cause
                ),
            )),
        }
    }
}

/// Makes a call until it succeeds or [`Retry::pause`] gives up. A macro, since a closure's future can not be told to be
/// `Send`.
macro_rules! again {
    ($retry:expr, $call:expr) => {{
        let mut attempt = 1;
        loop {
            match $call.await {
                Ok(value) => return Ok(value),
                Err(error) => $retry.pause(attempt, error).await?,
            }
            attempt += 1;
        }
    }};
}

#[async_trait]
impl<S: Store> Store for Retry<S> {
    fn location(&self) -> String {
        self.inner.location()
    }

    async fn put(&self, key: &Key, body: Bytes, options: PutOptions) -> StoreResult<()> {
        let mut attempt = 1;
        loop {
            match self.inner.put(key, body.clone(), options).await {
                Ok(()) => return Ok(()),
                Err(error) if error.fault == Fault::Exists => return self.settle(key, &body, error).await,
                Err(error) => self.pause(attempt, error).await?,
            }
            attempt += 1;
        }
    }

    async fn get(&self, key: &Key, range: Option<Range<u64>>, view: View) -> StoreResult<Bytes> {
        again!(self, self.inner.get(key, range.clone(), view))
    }
    async fn head(&self, key: &Key, view: View) -> StoreResult<Option<ObjectInfo>> {
        again!(self, self.inner.head(key, view))
    }
    async fn list(&self, prefix: &str, after: Option<&str>, view: View) -> StoreResult<Page> {
        again!(self, self.inner.list(prefix, after, view))
    }
    async fn delete(&self, key: &Key) -> StoreResult<()> {
        again!(self, self.inner.delete(key))
    }
    async fn now(&self) -> StoreResult<DateTime<Utc>> {
        again!(self, self.inner.now())
    }
    async fn extend_lock(&self, key: &Key, lock: Lock) -> StoreResult<()> {
        again!(self, self.inner.extend_lock(key, lock))
    }

    async fn probe(&self, probe_prefix: &str, host_now: DateTime<Utc>) -> StoreResult<Abilities> {
        let started = self.world.clock.since_boot();
        let mut attempt = 1;
        loop {
            // Each attempt under its own prefix: it must not meet the objects of the one before.
            let prefix = if attempt == 1 {
                probe_prefix.to_owned()
            } else {
                format!("{probe_prefix}{attempt}/")
            };
            let waited = self.world.clock.since_boot().saturating_sub(started);
            let waited = chrono::Duration::from_std(waited).unwrap_or_default();
            match self.inner.probe(&prefix, host_now + waited).await {
                Ok(found) => return Ok(found),
                Err(error) => self.pause(attempt, error).await?,
            }
            attempt += 1;
        }
    }
}
