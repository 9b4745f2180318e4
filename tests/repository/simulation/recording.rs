//! A way to the store that remembers what a restore reads.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Mutex;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use lifeboat::store::memory::MemoryStore;
use lifeboat::store::{Abilities, Lock, ObjectInfo, Page, PutOptions, Store, StoreResult, View};
use lifeboat::types::{Digest, Key};

/// Remembers what a restore reads.
#[derive(Debug)]
pub struct Recording {
    pub memory: MemoryStore,
    pub read: Mutex<BTreeMap<Key, Digest>>,
}

#[async_trait]
impl Store for Recording {
    fn location(&self) -> String {
        self.memory.location()
    }
    async fn put(&self, _: &Key, _: Bytes, _: PutOptions) -> StoreResult<()> {
        unreachable!("a restore writes nothing")
    }
    async fn get(&self, key: &Key, range: Option<Range<u64>>, view: View) -> StoreResult<Bytes> {
        let body = self.memory.get(key, range, view).await?;
        self.read.lock().unwrap().insert(key.clone(), Digest::of(&body));
        Ok(body)
    }
    async fn head(&self, key: &Key, view: View) -> StoreResult<Option<ObjectInfo>> {
        self.memory.head(key, view).await
    }
    async fn list(&self, prefix: &str, after: Option<&str>, view: View) -> StoreResult<Page> {
        self.memory.list(prefix, after, view).await
    }
    async fn delete(&self, _: &Key) -> StoreResult<()> {
        unreachable!("a restore deletes nothing")
    }
    async fn now(&self) -> StoreResult<DateTime<Utc>> {
        self.memory.now().await
    }
    async fn extend_lock(&self, _: &Key, _: Lock) -> StoreResult<()> {
        unreachable!("a restore locks nothing")
    }
    async fn probe(&self, _: &str, _: DateTime<Utc>) -> StoreResult<Abilities> {
        unreachable!("a restore probes nothing")
    }
}
