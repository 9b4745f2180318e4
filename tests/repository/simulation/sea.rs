//! The store of the simulation: every call of every actor waits here until the driver lets it go on, with or without a
//! fault. What the calls do to the objects is watched by the model.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use lifeboat::clock::Clock;
use lifeboat::store::memory::MemoryStore;
use lifeboat::store::wrappers::Operation;
use lifeboat::store::{
    Abilities, Fault, Lock, ObjectInfo, Page, PutOptions, Store, StoreError, StoreResult, View,
};
use lifeboat::types::Key;
use tokio::sync::{Notify, oneshot};

use super::model::Model;

pub type Actor = usize;

/// True time, that of the store.
#[derive(Debug)]
pub struct Time {
    ms: AtomicI64,
    boot_ms: AtomicU64,
}

impl Time {
    pub fn new(start: DateTime<Utc>) -> Arc<Self> {
        Arc::new(Self {
            ms: AtomicI64::new(start.timestamp_millis()),
            boot_ms: AtomicU64::new(0),
        })
    }
    pub fn advance(&self, by: TimeDelta) {
        let ms = by.num_milliseconds().max(0);
        self.ms.fetch_add(ms, Ordering::SeqCst);
        self.boot_ms.fetch_add(ms.unsigned_abs(), Ordering::SeqCst);
    }
    pub fn now(&self) -> DateTime<Utc> {
        // Every look is a millisecond later, so that ids sort by the order of their making.
        self.advance(TimeDelta::milliseconds(1));
        DateTime::from_timestamp_millis(self.ms.load(Ordering::SeqCst)).unwrap()
    }
}

/// The clock of one host: off by a skew that may jump.
#[derive(Debug)]
pub struct SkewedClock {
    pub time: Arc<Time>,
    pub skew_ms: AtomicI64,
}

#[async_trait]
impl Clock for SkewedClock {
    fn now(&self) -> DateTime<Utc> {
        self.time.now() + TimeDelta::milliseconds(self.skew_ms.load(Ordering::SeqCst))
    }
    fn since_boot(&self) -> Duration {
        Duration::from_millis(self.time.boot_ms.load(Ordering::SeqCst))
    }
    async fn sleep(&self, duration: Duration) {
        if duration < Duration::from_secs(3600) {
            self.time.advance(TimeDelta::from_std(duration).unwrap());
            tokio::task::yield_now().await;
        } else {
            // Timeouts of a run: not what this looks at.
            std::future::pending::<()>().await;
        }
    }
}

/// What becomes of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Do,
    /// Fails, nothing done.
    Before(Fault),
    /// Done, its reply lost.
    After(Fault),
    /// Its reply lost, and done only so much later.
    Late(TimeDelta),
    /// Done, and done again so much later.
    Twice(TimeDelta),
    /// One bit of the answer is flipped.
    Flip(u64),
    /// A list that lacks every object whose key's hash, with this salt, is below 1 in 16.
    Partial(u64),
    /// A list that does not show the last minutes.
    Lagging(TimeDelta),
    /// Done, and the process dies before it hears of it.
    Die,
}

/// A call that waits.
pub struct Parked {
    pub actor: Actor,
    pub operation: Operation,
    pub key: Key,
    answer: oneshot::Sender<Verdict>,
}

/// A call whose doing was put off.
#[derive(Clone)]
pub struct Delayed {
    pub due: DateTime<Utc>,
    actor: Actor,
    key: Key,
    /// `None`: a delete.
    body: Option<(Bytes, PutOptions)>,
}

pub struct State {
    pub parked: Vec<Parked>,
    pub delayed: Vec<Delayed>,
    pub died: BTreeSet<Actor>,
    pub epochs: BTreeMap<Actor, u64>,
    pub model: Model,
}

/// The store and everything around it.
pub struct Sea {
    pub time: Arc<Time>,
    pub memory: MemoryStore,
    pub changed: Notify,
    state: Mutex<State>,
}

impl fmt::Debug for Sea {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sea")
    }
}

impl Sea {
    pub fn new(time: Arc<Time>, memory: MemoryStore, model: Model) -> Arc<Self> {
        Arc::new(Self {
            time,
            memory,
            changed: Notify::new(),
            state: Mutex::new(State {
                parked: Vec::new(),
                delayed: Vec::new(),
                died: BTreeSet::new(),
                epochs: BTreeMap::new(),
                model,
            }),
        })
    }
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
    /// The store as one process sees it. Calls of the actor's process before this one are never answered.
    pub fn process(self: &Arc<Self>, actor: Actor) -> Process {
        let mut state = self.state();
        let epoch = state.epochs.entry(actor).or_default();
        *epoch += 1;
        Process {
            sea: self.clone(),
            actor,
            epoch: *epoch,
        }
    }
    /// Forgets the calls of a process that is dead.
    pub fn bury(&self, actor: Actor) {
        let mut state = self.state();
        *state.epochs.entry(actor).or_default() += 1;
        state.parked.retain(|p| p.actor != actor);
        state.died.remove(&actor);
    }
    /// Lets a call go on.
    pub fn release(&self, at: usize, verdict: Verdict) {
        let parked = self.state().parked.remove(at);
        // A process that died meanwhile hears nothing.
        let _ = parked.answer.send(verdict);
    }
    /// Does what was put off until now.
    pub async fn deliver(&self, all: bool) {
        let now = self.time.now();
        let due = {
            let mut state = self.state();
            let (due, rest) = std::mem::take(&mut state.delayed)
                .into_iter()
                .partition::<Vec<_>, _>(|d| all || d.due <= now);
            state.delayed = rest;
            due
        };
        for delayed in due {
            let (actor, key) = (delayed.actor, delayed.key);
            // A late duplicate may be refused by the store; its sender is long gone.
            let _ = match delayed.body {
                Some((body, options)) => self.put(actor, &key, body, options).await,
                None => self.delete(actor, &key).await,
            };
        }
    }

    async fn put(&self, actor: Actor, key: &Key, body: Bytes, options: PutOptions) -> StoreResult<()> {
        let result = self.memory.put(key, body.clone(), options).await;
        if result.is_ok() {
            let now = self.time.now();
            self.state().model.was_put(actor, key, &body, now);
        }
        result
    }
    async fn delete(&self, actor: Actor, key: &Key) -> StoreResult<()> {
        let now = self.time.now();
        let before = super::model::Before::look(&self.memory, key).await;
        let result = self.memory.delete(key).await;
        if result.is_ok() {
            self.state().model.was_deleted(actor, key, &before, now);
        }
        result
    }
}

/// One process's way to the store.
#[derive(Debug)]
pub struct Process {
    sea: Arc<Sea>,
    actor: Actor,
    epoch: u64,
}

impl Process {
    async fn gate(&self, operation: Operation, key: &Key) -> Verdict {
        match self.park(operation, key) {
            Some(verdict) => match verdict.await {
                Ok(verdict) => verdict,
                Err(_) => std::future::pending().await,
            },
            None => std::future::pending().await,
        }
    }

    /// `None`: the process is dead already.
    fn park(&self, operation: Operation, key: &Key) -> Option<oneshot::Receiver<Verdict>> {
        let (answer, verdict) = oneshot::channel();
        let mut state = self.sea.state();
        if state.epochs.get(&self.actor) != Some(&self.epoch) {
            return None;
        }
        state.parked.push(Parked {
            actor: self.actor,
            operation,
            key: key.clone(),
            answer,
        });
        self.sea.changed.notify_one();
        Some(verdict)
    }

    async fn finish<T>(&self, verdict: &Verdict, what: &str, result: StoreResult<T>) -> StoreResult<T> {
        match verdict {
            Verdict::After(fault) => Err(injected(*fault, what)),
            Verdict::Die => {
                self.sea.state().died.insert(self.actor);
                self.sea.changed.notify_one();
                std::future::pending().await
            }
            _ => result,
        }
    }

    fn delay(&self, by: TimeDelta, key: &Key, body: Option<(Bytes, PutOptions)>) {
        let due = self.sea.time.now() + by;
        self.sea.state().delayed.push(Delayed {
            due,
            actor: self.actor,
            key: key.clone(),
            body,
        });
    }
}

fn injected(fault: Fault, what: &str) -> StoreError {
    StoreError::new(fault, what, "injected fault")
}

fn hidden(key: &Key, salt: u64) -> bool {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&salt.to_le_bytes());
    hasher.update(key.as_str().as_bytes());
    hasher.finalize().as_bytes()[0] < 16
}

#[async_trait]
impl Store for Process {
    fn location(&self) -> String {
        "sea:".to_owned()
    }
    async fn put(&self, key: &Key, body: Bytes, options: PutOptions) -> StoreResult<()> {
        self.sea.state().model.is_sent(self.actor, key);
        let verdict = self.gate(Operation::Put, key).await;
        match &verdict {
            Verdict::Before(fault) => return Err(injected(*fault, "put")),
            Verdict::Late(by) => {
                self.delay(*by, key, Some((body, options)));
                return Err(injected(Fault::Unavailable, "put"));
            }
            Verdict::Twice(by) => self.delay(*by, key, Some((body.clone(), options))),
            _ => {}
        }
        let result = self.sea.put(self.actor, key, body, options).await;
        self.finish(&verdict, "put", result).await
    }
    async fn get(&self, key: &Key, range: Option<Range<u64>>, view: View) -> StoreResult<Bytes> {
        let verdict = self.gate(Operation::Get, key).await;
        if let Verdict::Before(fault) = verdict {
            return Err(injected(fault, "get"));
        }
        let mut result = self.sea.memory.get(key, range, view).await;
        if let (Verdict::Flip(bit), Ok(body)) = (&verdict, &mut result)
            && !body.is_empty()
        {
            let mut bytes = body.to_vec();
            let at = (*bit as usize / 8) % bytes.len();
            bytes[at] ^= 1 << (bit % 8);
            *body = bytes.into();
        }
        self.finish(&verdict, "get", result).await
    }
    async fn head(&self, key: &Key, view: View) -> StoreResult<Option<ObjectInfo>> {
        let verdict = self.gate(Operation::Head, key).await;
        if let Verdict::Before(fault) = verdict {
            return Err(injected(fault, "head"));
        }
        let result = self.sea.memory.head(key, view).await;
        self.finish(&verdict, "head", result).await
    }
    async fn list(&self, prefix: &str, after: Option<&str>, view: View) -> StoreResult<Page> {
        let verdict = self.gate(Operation::List, &Key::from_text(prefix)).await;
        if let Verdict::Before(fault) = verdict {
            return Err(injected(fault, "list"));
        }
        let mut result = self.sea.memory.list(prefix, after, view).await;
        if let Ok(page) = &mut result {
            match &verdict {
                Verdict::Partial(salt) => page.objects.retain(|o| !hidden(&o.key, *salt)),
                Verdict::Lagging(by) => {
                    let shown = self.sea.time.now() - *by;
                    page.objects.retain(|o| o.modified < shown);
                }
                _ => {}
            }
        }
        self.finish(&verdict, "list", result).await
    }
    async fn delete(&self, key: &Key) -> StoreResult<()> {
        let verdict = self.gate(Operation::Delete, key).await;
        match &verdict {
            Verdict::Before(fault) => return Err(injected(*fault, "delete")),
            Verdict::Late(by) => {
                self.delay(*by, key, None);
                return Err(injected(Fault::Unavailable, "delete"));
            }
            Verdict::Twice(by) => self.delay(*by, key, None),
            _ => {}
        }
        let result = self.sea.delete(self.actor, key).await;
        self.finish(&verdict, "delete", result).await
    }
    async fn now(&self) -> StoreResult<DateTime<Utc>> {
        let verdict = self.gate(Operation::Now, &Key::from_text("")).await;
        if let Verdict::Before(fault) = verdict {
            return Err(injected(fault, "now"));
        }
        let result = self.sea.memory.now().await;
        self.finish(&verdict, "now", result).await
    }
    async fn extend_lock(&self, key: &Key, lock: Lock) -> StoreResult<()> {
        let verdict = self.gate(Operation::ExtendLock, key).await;
        if let Verdict::Before(fault) = verdict {
            return Err(injected(fault, "lock"));
        }
        let result = self.sea.memory.extend_lock(key, lock).await;
        self.finish(&verdict, "lock", result).await
    }
    async fn probe(&self, probe_prefix: &str, host_now: DateTime<Utc>) -> StoreResult<Abilities> {
        self.sea.memory.probe(probe_prefix, host_now).await
    }
}
