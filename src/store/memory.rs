//! A store in memory: unit tests and the simulation. It keeps versions, delete markers and locks as S3 does, and
//! takes its time from the injected clock.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};

use super::{
    Abilities, Fault, Lock, LockMode, ObjectInfo, Page, PutOptions, Store, StoreError, StoreResult, View,
    probe,
};
use crate::clock::{Clock, World};
use crate::types::{Digest, Key};

/// What a [`MemoryStore`] can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryOptions {
    /// A second put of one key is [`Fault::Exists`]; otherwise it replaces, or lays a version over the first.
    pub refuses_overwrite: bool,
    /// Versions are kept, and a delete lays a marker over them.
    pub keeps_versions: bool,
    /// Object Lock is on; asks for versions.
    pub locks: bool,
    /// Objects in a page of a list.
    pub page: usize,
}

impl Default for MemoryOptions {
    fn default() -> Self {
        Self {
            refuses_overwrite: true,
            keeps_versions: false,
            locks: false,
            page: 1000,
        }
    }
}

/// A version of a key; without a body it is a delete marker.
#[derive(Clone, Debug)]
struct Version {
    body: Option<Bytes>,
    modified: DateTime<Utc>,
    lock: Option<Lock>,
}

/// Objects in memory. Clones share them.
#[derive(Clone, Debug)]
pub struct MemoryStore {
    clock: Arc<dyn Clock>,
    options: MemoryOptions,
    /// Oldest version first.
    objects: Arc<Mutex<BTreeMap<String, Vec<Version>>>>,
}

impl MemoryStore {
    /// An empty store as plain as a directory.
    pub fn new(world: &World) -> Self {
        Self::with_options(world, MemoryOptions::default())
    }
    /// An empty store with these abilities.
    pub fn with_options(world: &World, options: MemoryOptions) -> Self {
        Self {
            clock: Arc::clone(&world.clock),
            options,
            objects: Arc::default(),
        }
    }
    /// An empty store like a bucket with versions and Object Lock.
    pub fn versioned(world: &World) -> Self {
        let options = MemoryOptions {
            keeps_versions: true,
            locks: true,
            ..MemoryOptions::default()
        };
        Self::with_options(world, options)
    }
    /// Every key that has a current version, for assertions.
    pub fn keys(&self) -> Vec<Key> {
        let objects = self.objects();
        let current = objects
            .iter()
            .filter(|(_, versions)| seen(versions, View::Current).is_some());
        current.map(|(key, _)| Key::from_text(key.clone())).collect()
    }
    /// Does what an attacker or a fault of the store does: puts other bytes under a key, as a version over the
    /// others where versions are kept, in their place otherwise.
    pub fn tamper(&self, key: &Key, body: Bytes) {
        let modified = self.clock.now();
        let mut objects = self.objects();
        let versions = objects.entry(key.as_str().to_owned()).or_default();
        if !self.options.keeps_versions {
            versions.clear();
        }
        versions.push(Version {
            body: Some(body),
            modified,
            lock: None,
        });
    }
    /// Loses a key with all its versions, locked or not.
    pub fn lose(&self, key: &Key) {
        self.objects().remove(key.as_str());
    }

    fn objects(&self) -> MutexGuard<'_, BTreeMap<String, Vec<Version>>> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The version that a view sees: never a delete marker.
fn seen(versions: &[Version], view: View) -> Option<&Version> {
    match view {
        View::Current => versions.last().filter(|v| v.body.is_some()),
        View::First => versions.iter().find(|v| v.body.is_some()),
    }
}

fn info(key: &str, version: &Version, lock: bool) -> ObjectInfo {
    ObjectInfo {
        key: Key::from_text(key),
        size: version.body.as_ref().map_or(0, |b| b.len() as u64),
        modified: version.modified,
        lock: version.lock.filter(|_| lock),
    }
}

#[async_trait]
impl Store for MemoryStore {
    fn location(&self) -> String {
        "memory:".to_owned()
    }

    async fn put(&self, key: &Key, body: Bytes, options: PutOptions) -> StoreResult<()> {
        let what = || format!("put {key}");
        if options.digest.is_some_and(|digest| digest != Digest::of(&body)) {
            return Err(StoreError::new(
                Fault::Damaged,
                what(),
                "the body has another SHA-256",
            ));
        }
        if options.lock.is_some() && !self.options.locks {
            return Err(StoreError::new(Fault::Unsupported, what(), "no object lock"));
        }
        let modified = self.clock.now();
        let mut objects = self.objects();
        let versions = objects.entry(key.as_str().to_owned()).or_default();
        if self.options.refuses_overwrite && seen(versions, View::Current).is_some() {
            return Err(StoreError::new(Fault::Exists, what(), "the key is there already"));
        }
        if !self.options.keeps_versions {
            versions.clear();
        }
        versions.push(Version {
            body: Some(body),
            modified,
            lock: options.lock,
        });
        Ok(())
    }

    async fn get(&self, key: &Key, range: Option<Range<u64>>, view: View) -> StoreResult<Bytes> {
        let what = || format!("get {key}");
        let objects = self.objects();
        let version = objects.get(key.as_str()).and_then(|v| seen(v, view));
        let Some(body) = version.and_then(|v| v.body.clone()) else {
            return Err(StoreError::new(Fault::NotFound, what(), "no such key"));
        };
        let Some(range) = range else { return Ok(body) };
        super::check_range(&range, what)?;
        match (usize::try_from(range.start), usize::try_from(range.end)) {
            (Ok(start), Ok(end)) if end <= body.len() => Ok(body.slice(start..end)),
            _ => Err(super::past_the_end(what(), &range, body.len() as u64)),
        }
    }

    async fn head(&self, key: &Key, view: View) -> StoreResult<Option<ObjectInfo>> {
        let objects = self.objects();
        let version = objects.get(key.as_str()).and_then(|v| seen(v, view));
        Ok(version.map(|v| info(key.as_str(), v, true)))
    }

    async fn list(&self, prefix: &str, after: Option<&str>, view: View) -> StoreResult<Page> {
        let objects = self.objects();
        let mut page = Page::default();
        let start = after.map_or(prefix, |after| after.max(prefix));
        for (key, versions) in objects.range(start.to_owned()..) {
            if !key.starts_with(prefix) {
                break;
            }
            if after.is_some_and(|after| key.as_str() <= after) {
                continue;
            }
            let Some(version) = seen(versions, view) else {
                continue;
            };
            if page.objects.len() == self.options.page {
                page.next = page.objects.last().map(|o| o.key.as_str().to_owned());
                break;
            }
            page.objects.push(info(key, version, false));
        }
        Ok(page)
    }

    async fn delete(&self, key: &Key) -> StoreResult<()> {
        let modified = self.clock.now();
        let mut objects = self.objects();
        if !self.options.keeps_versions {
            objects.remove(key.as_str());
        } else if let Some(versions) = objects.get_mut(key.as_str()) {
            versions.push(Version {
                body: None,
                modified,
                lock: None,
            });
        }
        Ok(())
    }

    async fn now(&self) -> StoreResult<DateTime<Utc>> {
        Ok(self.clock.now())
    }

    async fn extend_lock(&self, key: &Key, lock: Lock) -> StoreResult<()> {
        let what = || format!("lengthen the lock of {key}");
        if !self.options.locks {
            return Err(StoreError::new(Fault::Unsupported, what(), "no object lock"));
        }
        let now = self.clock.now();
        let mut objects = self.objects();
        let versions = objects.get_mut(key.as_str());
        let first = versions.and_then(|v| v.iter_mut().find(|v| v.body.is_some()));
        let Some(first) = first else {
            return Err(StoreError::new(Fault::NotFound, what(), "no such key"));
        };
        // As a real store: a lock that still holds is never shortened nor made weaker.
        first.lock = Some(match first.lock.filter(|held| held.until > now) {
            None => lock,
            Some(held) => Lock {
                mode: if held.mode == LockMode::Compliance {
                    held.mode
                } else {
                    lock.mode
                },
                until: held.until.max(lock.until),
            },
        });
        Ok(())
    }

    async fn probe(&self, probe_prefix: &str, host_now: DateTime<Utc>) -> StoreResult<Abilities> {
        probe::try_out(self, probe_prefix, host_now, async |_, found| {
            found.keeps_versions = self.options.keeps_versions;
            found.locks = self.options.locks;
            Ok(())
        })
        .await
    }
}
