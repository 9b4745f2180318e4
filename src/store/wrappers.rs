//! What cuts across stores: a limit on the rate, counters, and faults for tests and the simulation. Each is a
//! [`Store`] over a [`Store`].

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};

use super::{
    Abilities, Fault, Lock, ObjectInfo, Page, PutOptions, SharedStore, Store, StoreError, StoreResult, View,
};
use crate::clock::{Clock, World};
use crate::types::Key;

/// What a call does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// [`Store::put`]
    Put,
    /// [`Store::get`]
    Get,
    /// [`Store::head`]
    Head,
    /// [`Store::list`]
    List,
    /// [`Store::delete`]
    Delete,
    /// [`Store::now`]
    Now,
    /// [`Store::extend_lock`]
    ExtendLock,
    /// [`Store::probe`]
    Probe,
}

impl Operation {
    /// All of them, in the order of their counters.
    pub const ALL: [Self; 8] = [
        Self::Put,
        Self::Get,
        Self::Head,
        Self::List,
        Self::Delete,
        Self::Now,
        Self::ExtendLock,
        Self::Probe,
    ];

    /// The name in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Get => "get",
            Self::Head => "head",
            Self::List => "list",
            Self::Delete => "delete",
            Self::Now => "now",
            Self::ExtendLock => "extend_lock",
            Self::Probe => "probe",
        }
    }
}

/// Holds the bytes per second of puts and gets under a limit (`max_rate`).
///
/// A call first waits until the bytes before it are paid for. A put pays for its own bytes when it starts, a get
/// when its size is known; so the limit holds over any stretch longer than the objects in flight.
#[derive(Debug)]
pub struct Throttle<S> {
    inner: S,
    clock: Arc<dyn Clock>,
    bytes_per_second: u64,
    /// When, since boot, all bytes so far are paid for.
    paid_at: Mutex<Duration>,
}

impl<S: Store> Throttle<S> {
    /// Limits a store; a limit of 0 counts as 1 byte per second.
    pub fn new(inner: S, world: &World, bytes_per_second: u64) -> Self {
        Self {
            inner,
            clock: Arc::clone(&world.clock),
            bytes_per_second: bytes_per_second.max(1),
            paid_at: Mutex::new(Duration::ZERO),
        }
    }

    /// Adds bytes to the account and gives how long the bytes before them have still to be waited for.
    fn pay(&self, bytes: u64) -> Duration {
        let now = self.clock.since_boot();
        let mut paid_at = self.paid_at.lock().unwrap_or_else(PoisonError::into_inner);
        let start = (*paid_at).max(now);
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_second);
        let cost = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        *paid_at = start.saturating_add(cost);
        start.saturating_sub(now)
    }

    async fn wait_for(&self, bytes: u64) {
        let wait = self.pay(bytes);
        if !wait.is_zero() {
            self.clock.sleep(wait).await;
        }
    }
}

#[async_trait]
impl<S: Store> Store for Throttle<S> {
    fn location(&self) -> String {
        self.inner.location()
    }
    async fn put(&self, key: &Key, body: Bytes, options: PutOptions) -> StoreResult<()> {
        self.wait_for(body.len() as u64).await;
        self.inner.put(key, body, options).await
    }
    async fn get(&self, key: &Key, range: Option<Range<u64>>, view: View) -> StoreResult<Bytes> {
        let known = range.as_ref().map(|r| r.end.saturating_sub(r.start));
        self.wait_for(known.unwrap_or(0)).await;
        let body = self.inner.get(key, range, view).await?;
        if known.is_none() {
            self.pay(body.len() as u64);
        }
        Ok(body)
    }
    async fn head(&self, key: &Key, view: View) -> StoreResult<Option<ObjectInfo>> {
        self.inner.head(key, view).await
    }
    async fn list(&self, prefix: &str, after: Option<&str>, view: View) -> StoreResult<Page> {
        self.inner.list(prefix, after, view).await
    }
    async fn delete(&self, key: &Key) -> StoreResult<()> {
        self.inner.delete(key).await
    }
    async fn now(&self) -> StoreResult<DateTime<Utc>> {
        self.inner.now().await
    }
    async fn extend_lock(&self, key: &Key, lock: Lock) -> StoreResult<()> {
        self.inner.extend_lock(key, lock).await
    }
    async fn probe(&self, probe_prefix: &str, host_now: DateTime<Utc>) -> StoreResult<Abilities> {
        self.inner.probe(probe_prefix, host_now).await
    }
}

/// The counters of one operation.
#[derive(Debug, Default)]
struct Counter {
    calls: AtomicU64,
    failures: AtomicU64,
    bytes: AtomicU64,
}

/// What one operation has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Calls, failed ones too.
    pub calls: u64,
    /// Calls that failed.
    pub failures: u64,
    /// Bytes sent by puts that succeeded, or received by gets.
    pub bytes: u64,
}

/// A handle on the counters of an [`Observe`]; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Counters(Arc<[Counter; 8]>);

impl Counters {
    /// The counters of an operation.
    pub fn of(&self, operation: Operation) -> Count {
        let counter = self.counter(operation);
        Count {
            calls: counter.calls.load(Ordering::Relaxed),
            failures: counter.failures.load(Ordering::Relaxed),
            bytes: counter.bytes.load(Ordering::Relaxed),
        }
    }

    fn counter(&self, operation: Operation) -> &Counter {
        &self.0[operation as usize]
    }

    fn note<T>(
        &self,
        operation: Operation,
        result: StoreResult<T>,
        bytes: impl Fn(&T) -> u64,
    ) -> StoreResult<T> {
        let counter = self.counter(operation);
        counter.calls.fetch_add(1, Ordering::Relaxed);
        match &result {
            Ok(value) => counter.bytes.fetch_add(bytes(value), Ordering::Relaxed),
            Err(_) => counter.failures.fetch_add(1, Ordering::Relaxed),
        };
        result
    }
}

/// Counts calls, failures and bytes. Under [`super::retry::Retry`] it counts every attempt, above it every call.
#[derive(Debug)]
pub struct Observe<S> {
    inner: S,
    counters: Counters,
}

impl<S: Store> Observe<S> {
    /// Counts the calls of a store.
    pub fn new(inner: S) -> Self {
        Self {
            inner,
            counters: Counters::default(),
        }
    }
    /// The counters.
    pub fn counters(&self) -> Counters {
        self.counters.clone()
    }
}

#[async_trait]
impl<S: Store> Store for Observe<S> {
    fn location(&self) -> String {
        self.inner.location()
    }
    async fn put(&self, key: &Key, body: Bytes, options: PutOptions) -> StoreResult<()> {
        let size = body.len() as u64;
        let result = self.inner.put(key, body, options).await;
        self.counters.note(Operation::Put, result, |()| size)
    }
    async fn get(&self, key: &Key, range: Option<Range<u64>>, view: View) -> StoreResult<Bytes> {
        let result = self.inner.get(key, range, view).await;
        self.counters.note(Operation::Get, result, |b| b.len() as u64)
    }
    async fn head(&self, key: &Key, view: View) -> StoreResult<Option<ObjectInfo>> {
        let result = self.inner.head(key, view).await;
        self.counters.note(Operation::Head, result, |_| 0)
    }
    async fn list(&self, prefix: &str, after: Option<&str>, view: View) -> StoreResult<Page> {
        let result = self.inner.list(prefix, after, view).await;
        self.counters.note(Operation::List, result, |_| 0)
    }
    async fn delete(&self, key: &Key) -> StoreResult<()> {
        let result = self.inner.delete(key).await;
        self.counters.note(Operation::Delete, result, |()| 0)
    }
    async fn now(&self) -> StoreResult<DateTime<Utc>> {
        let result = self.inner.now().await;
        self.counters.note(Operation::Now, result, |_| 0)
    }
    async fn extend_lock(&self, key: &Key, lock: Lock) -> StoreResult<()> {
        let result = self.inner.extend_lock(key, lock).await;
        self.counters.note(Operation::ExtendLock, result, |()| 0)
    }
    async fn probe(&self, probe_prefix: &str, host_now: DateTime<Utc>) -> StoreResult<Abilities> {
        let result = self.inner.probe(probe_prefix, host_now).await;
        self.counters.note(Operation::Probe, result, |_| 0)
    }
}

/// A fault that a test injects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Injected {
    /// The call fails and nothing is done.
    Before(Fault),
    /// The call is done, its reply is lost.
    After(Fault),
    /// The process dies before the call is done: this and every later call fails.
    CrashBefore,
    /// The process dies after the call is done.
    CrashAfter,
    /// One bit of the body is flipped: what a put stores, what a get returns. Counts from the start, modulo the length.
    FlipBit(u64),
    /// A list leaves out the keys that begin with this text.
    Hide(String),
}

/// Decides what happens to a call: its number (from 0), what it does, and its key (of a list or probe: its prefix;
/// of `now`: the empty key).
pub type Plan = dyn Fn(u64, Operation, &Key) -> Option<Injected> + Send + Sync;

/// Injects faults by a plan. For tests and the simulation.
#[derive(Clone)]
pub struct Faulty {
    inner: SharedStore,
    plan: Arc<Plan>,
    calls: Arc<AtomicU64>,
    crashed: Arc<AtomicBool>,
}

impl fmt::Debug for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faulty")
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}

impl Faulty {
    /// Puts a plan before a store. Clones share the count of calls and the crash.
    pub fn new(
        inner: SharedStore,
        plan: impl Fn(u64, Operation, &Key) -> Option<Injected> + Send + Sync + 'static,
    ) -> Self {
        Self {
            inner,
            plan: Arc::new(plan),
            calls: Arc::default(),
            crashed: Arc::default(),
        }
    }
    /// How many calls there were.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::SeqCst)
    }
    /// Whether the injected crash has happened.
    pub fn crashed(&self) -> bool {
        self.crashed.load(Ordering::SeqCst)
    }

    /// What is to happen to the next call; an error when it is not to be done at all.
    fn next(&self, operation: Operation, key: &Key) -> StoreResult<Option<Injected>> {
        if self.crashed() {
            return Err(Self::crash_error(operation, key));
        }
        let number = self.calls.fetch_add(1, Ordering::SeqCst);
        match (self.plan)(number, operation, key) {
            Some(Injected::Before(fault)) => Err(Self::error(fault, operation, key)),
            Some(Injected::CrashBefore) => {
                self.crashed.store(true, Ordering::SeqCst);
                Err(Self::crash_error(operation, key))
            }
            other => Ok(other),
        }
    }

    /// What becomes of the result of a call that was done.
    fn finish<T>(
        &self,
        injected: Option<&Injected>,
        operation: Operation,
        key: &Key,
        result: StoreResult<T>,
    ) -> StoreResult<T> {
        match injected {
            Some(Injected::After(fault)) => Err(Self::error(*fault, operation, key)),
            Some(Injected::CrashAfter) => {
                self.crashed.store(true, Ordering::SeqCst);
                Err(Self::crash_error(operation, key))
            }
            _ => result,
        }
    }

    fn error(fault: Fault, operation: Operation, key: &Key) -> StoreError {
        StoreError::new(fault, format!("{} {key}", operation.name()), "injected fault")
    }

    /// Not transient: a dead process does not retry.
    fn crash_error(operation: Operation, key: &Key) -> StoreError {
        StoreError::new(
            Fault::Refused,
            format!("{} {key}", operation.name()),
            "injected crash",
        )
    }
}

fn flip(body: &Bytes, bit: u64) -> Bytes {
    let mut bytes = body.to_vec();
    let bits = (bytes.len() as u64).saturating_mul(8);
    if bits > 0 {
        let bit = bit % bits;
        if let Some(byte) = usize::try_from(bit / 8).ok().and_then(|i| bytes.get_mut(i)) {
            *byte ^= 1 << (bit % 8);
        }
    }
    Bytes::from(bytes)
}

#[async_trait]
impl Store for Faulty {
    fn location(&self) -> String {
        self.inner.location()
    }
    async fn put(&self, key: &Key, body: Bytes, mut options: PutOptions) -> StoreResult<()> {
        let injected = self.next(Operation::Put, key)?;
        let body = match injected {
            Some(Injected::FlipBit(bit)) => {
                // Damage that nobody noticed: the digest would have told it.
                options.digest = None;
                flip(&body, bit)
            }
            _ => body,
        };
        let result = self.inner.put(key, body, options).await;
        self.finish(injected.as_ref(), Operation::Put, key, result)
    }
    async fn get(&self, key: &Key, range: Option<Range<u64>>, view: View) -> StoreResult<Bytes> {
        let injected = self.next(Operation::Get, key)?;
        let mut result = self.inner.get(key, range, view).await;
        if let (Some(Injected::FlipBit(bit)), Ok(body)) = (&injected, &mut result) {
            *body = flip(body, *bit);
        }
        self.finish(injected.as_ref(), Operation::Get, key, result)
    }
    async fn head(&self, key: &Key, view: View) -> StoreResult<Option<ObjectInfo>> {
        let injected = self.next(Operation::Head, key)?;
        let result = self.inner.head(key, view).await;
        self.finish(injected.as_ref(), Operation::Head, key, result)
    }
    async fn list(&self, prefix: &str, after: Option<&str>, view: View) -> StoreResult<Page> {
        let key = Key::from_text(prefix);
        let injected = self.next(Operation::List, &key)?;
        let mut result = self.inner.list(prefix, after, view).await;
        if let (Some(Injected::Hide(hidden)), Ok(page)) = (&injected, &mut result) {
            page.objects
                .retain(|o| !o.key.as_str().starts_with(hidden.as_str()));
        }
        self.finish(injected.as_ref(), Operation::List, &key, result)
    }
    async fn delete(&self, key: &Key) -> StoreResult<()> {
        let injected = self.next(Operation::Delete, key)?;
        let result = self.inner.delete(key).await;
        self.finish(injected.as_ref(), Operation::Delete, key, result)
    }
    async fn now(&self) -> StoreResult<DateTime<Utc>> {
        let key = Key::from_text("");
        let injected = self.next(Operation::Now, &key)?;
        let result = self.inner.now().await;
        self.finish(injected.as_ref(), Operation::Now, &key, result)
    }
    async fn extend_lock(&self, key: &Key, lock: Lock) -> StoreResult<()> {
        let injected = self.next(Operation::ExtendLock, key)?;
        let result = self.inner.extend_lock(key, lock).await;
        self.finish(injected.as_ref(), Operation::ExtendLock, key, result)
    }
    async fn probe(&self, probe_prefix: &str, host_now: DateTime<Utc>) -> StoreResult<Abilities> {
        let key = Key::from_text(probe_prefix);
        let injected = self.next(Operation::Probe, &key)?;
        let result = self.inner.probe(probe_prefix, host_now).await;
        self.finish(injected.as_ref(), Operation::Probe, &key, result)
    }
}
