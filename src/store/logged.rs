//! Tells every call of a store to the log (at debug): what, which key, how many bytes, how long. Never what was sent, and no
//! credential: those are not here.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};

use super::{Abilities, Lock, ObjectInfo, Page, PutOptions, Store, StoreResult, View};
use crate::clock::{Clock, World};
use crate::types::Key;

/// A store whose calls are logged. Under [`super::retry::Retry`] it tells every attempt.
#[derive(Debug)]
pub struct Logged<S> {
    inner: S,
    clock: Arc<dyn Clock>,
}

impl<S: Store> Logged<S> {
    /// Logs the calls of a store.
    pub fn new(inner: S, world: &World) -> Self {
        Self {
            inner,
            clock: Arc::clone(&world.clock),
        }
    }
    fn tell<T>(
        &self,
        call: &'static str,
        key: &str,
        begun: Duration,
        result: &StoreResult<T>,
        bytes: impl Fn(&T) -> usize,
    ) {
        let ms = self.clock.since_boot().saturating_sub(begun).as_millis();
        match result {
            Ok(done) => tracing::debug!(call, key, bytes = bytes(done), ms, "store"),
            Err(e) => tracing::debug!(call, key, ms, error = %e, "store"),
        }
    }
}

#[async_trait]
impl<S: Store> Store for Logged<S> {
    fn location(&self) -> String {
        self.inner.location()
    }
    async fn put(&self, key: &Key, body: Bytes, options: PutOptions) -> StoreResult<()> {
        let (begun, size) = (self.clock.since_boot(), body.len());
        let result = self.inner.put(key, body, options).await;
        self.tell("put", key.as_str(), begun, &result, |()| size);
        result
    }
    async fn get(&self, key: &Key, range: Option<Range<u64>>, view: View) -> StoreResult<Bytes> {
        let begun = self.clock.since_boot();
        let result = self.inner.get(key, range, view).await;
        self.tell("get", key.as_str(), begun, &result, Bytes::len);
        result
    }
    async fn head(&self, key: &Key, view: View) -> StoreResult<Option<ObjectInfo>> {
        let begun = self.clock.since_boot();
        let result = self.inner.head(key, view).await;
        self.tell("head", key.as_str(), begun, &result, |_| 0);
        result
    }
    async fn list(&self, prefix: &str, after: Option<&str>, view: View) -> StoreResult<Page> {
        let begun = self.clock.since_boot();
        let result = self.inner.list(prefix, after, view).await;
        self.tell("list", prefix, begun, &result, |_| 0);
        result
    }
    async fn delete(&self, key: &Key) -> StoreResult<()> {
        let begun = self.clock.since_boot();
        let result = self.inner.delete(key).await;
        self.tell("delete", key.as_str(), begun, &result, |()| 0);
        result
    }
    async fn now(&self) -> StoreResult<DateTime<Utc>> {
        self.inner.now().await
    }
    async fn extend_lock(&self, key: &Key, lock: Lock) -> StoreResult<()> {
        let begun = self.clock.since_boot();
        let result = self.inner.extend_lock(key, lock).await;
        self.tell("extend_lock", key.as_str(), begun, &result, |()| 0);
        result
    }
    async fn probe(&self, probe_prefix: &str, host_now: DateTime<Utc>) -> StoreResult<Abilities> {
        self.inner.probe(probe_prefix, host_now).await
    }
}
