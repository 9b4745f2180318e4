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
            Ok(_) => Err(other_bytes(exists.what)),
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

fn other_bytes(what: String) -> StoreError {
    StoreError::new(Fault::Exists, what, "the key is there already, with other bytes")
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
                Err(error) => {
                    self.pause(attempt, error).await?;
                    // What has an end may be a commit that is stored, and only its reply was lost: sent again after it
                    // had expired and was swept, it would come back. So it is looked for first.
                    if options.not_after.is_some() {
                        match self.get(key, None, View::Current).await {
                            Ok(stored) if stored == body => return Ok(()),
                            Ok(_) => return Err(other_bytes(format!("put {key}"))),
                            Err(e) if e.fault == Fault::NotFound => {}
                            Err(e) => return Err(e),
                        }
                    }
                    if options
                        .not_after
                        .is_some_and(|end| self.world.clock.since_boot() > end)
                    {
                        return Err(StoreError::new(
                            Fault::Unavailable,
                            format!("put {key}"),
                            "the checks before it have become too old to try again",
                        ));
                    }
                }
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::clock::{Clock, SystemClock};
    use crate::store::memory::MemoryStore;
    use crate::store::wrappers::{Counters, Faulty, Injected, Observe, Operation, Throttle};

    /// A clock that is only moved by sleeping.
    #[derive(Debug, Default)]
    struct StillClock(AtomicU64);

    #[async_trait]
    impl Clock for StillClock {
        fn now(&self) -> DateTime<Utc> {
            DateTime::UNIX_EPOCH + self.since_boot()
        }
        fn since_boot(&self) -> Duration {
            Duration::from_nanos(self.0.load(Ordering::SeqCst))
        }
        async fn sleep(&self, duration: Duration) {
            let nanos = u64::try_from(duration.as_nanos()).unwrap();
            self.0.fetch_add(nanos, Ordering::SeqCst);
        }
    }

    fn still() -> World {
        World {
            clock: Arc::new(StillClock::default()),
            ..World::system()
        }
    }

    type Stack = Retry<Observe<Faulty>>;

    fn stack(
        world: &World,
        plan: impl Fn(u64, Operation, &Key) -> Option<Injected> + Send + Sync + 'static,
    ) -> (Stack, Counters, MemoryStore) {
        let memory = MemoryStore::new(world);
        let faulty = Observe::new(Faulty::new(Arc::new(memory.clone()), plan));
        let counters = faulty.counters();
        (Retry::new(faulty, world), counters, memory)
    }

    fn key() -> Key {
        Key::from_text("k")
    }

    async fn put(store: &dyn Store, body: &'static [u8]) -> StoreResult<()> {
        store
            .put(&key(), Bytes::from_static(body), PutOptions::default())
            .await
    }

    #[tokio::test]
    async fn a_transient_fault_is_tried_six_times_and_no_more() {
        for fault in [Fault::Throttled, Fault::Unavailable] {
            let world = still();
            let (store, counters, _) = stack(&world, move |_, _, _| Some(Injected::Before(fault)));
            let error = put(&store, b"x").await.unwrap_err();
            assert_eq!(error.fault, fault);
            assert_eq!(counters.of(Operation::Put).calls, 6);
            // 0.5 + 1 + 2 + 4 + 8 seconds at most, and not nothing.
            let waited = world.clock.since_boot();
            assert!(
                waited > Duration::ZERO && waited <= Duration::from_millis(15_500),
                "{waited:?}"
            );
        }
    }

    #[tokio::test]
    async fn a_lasting_fault_is_told_at_once() {
        for fault in [
            Fault::NotFound,
            Fault::Denied,
            Fault::Locked,
            Fault::Full,
            Fault::Unsupported,
            Fault::NoBucket,
            Fault::Refused,
        ] {
            let world = still();
            let (store, counters, _) = stack(&world, move |_, _, _| Some(Injected::Before(fault)));
            let error = store.get(&key(), None, View::Current).await.unwrap_err();
            assert_eq!(error.fault, fault);
            assert_eq!(counters.of(Operation::Get).calls, 1);
            assert_eq!(world.clock.since_boot(), Duration::ZERO);
        }
    }

    #[tokio::test]
    async fn a_lost_reply_is_settled_by_reading_back() {
        let world = still();
        let (store, counters, memory) = stack(&world, |n, _, _| {
            (n == 0).then_some(Injected::After(Fault::Unavailable))
        });
        put(&store, b"body").await.unwrap();
        assert_eq!(counters.of(Operation::Put).calls, 2);
        assert_eq!(memory.get(&key(), None, View::Current).await.unwrap(), "body");
        // Somebody else's bytes are never taken for ours.
        assert_eq!(put(&store, b"other").await.unwrap_err().fault, Fault::Exists);
        put(&store, b"body").await.unwrap();
    }

    #[tokio::test]
    async fn what_has_an_end_is_looked_for_before_it_is_sent_again() {
        let world = still();
        let (store, counters, memory) = stack(&world, |n, _, _| match n {
            0 => Some(Injected::After(Fault::Unavailable)),
            _ => None,
        });
        let options = PutOptions {
            not_after: Some(Duration::from_secs(600)),
            ..PutOptions::default()
        };
        let body = Bytes::from_static(b"body");
        store.put(&key(), body.clone(), options).await.unwrap();
        assert_eq!(counters.of(Operation::Put).calls, 1);
        assert_eq!(memory.get(&key(), None, View::Current).await.unwrap(), "body");
        // One that is not there is sent again, and nobody else's bytes are taken for it.
        let (store, counters, memory) = stack(&world, |n, _, _| {
            (n == 0).then_some(Injected::Before(Fault::Unavailable))
        });
        store.put(&key(), body.clone(), options).await.unwrap();
        assert_eq!(counters.of(Operation::Put).calls, 2);
        assert_eq!(memory.get(&key(), None, View::Current).await.unwrap(), "body");
        let (store, _, memory) = stack(&world, |n, _, _| {
            (n == 0).then_some(Injected::Before(Fault::Unavailable))
        });
        put(&memory, b"other").await.unwrap();
        let error = store.put(&key(), body, options).await.unwrap_err();
        assert_eq!(error.fault, Fault::Exists);
        assert_eq!(memory.get(&key(), None, View::Current).await.unwrap(), "other");
    }

    #[tokio::test]
    async fn a_key_that_can_not_be_read_back_is_not_ours() {
        let world = still();
        let (store, _, memory) = stack(&world, |_, operation, _| {
            (operation == Operation::Get).then_some(Injected::Before(Fault::Denied))
        });
        put(&memory, b"body").await.unwrap();
        let error = put(&store, b"body").await.unwrap_err();
        assert_eq!(error.fault, Fault::Exists);
        assert!(error.cause.contains("read back"), "{error}");
    }

    #[tokio::test]
    async fn a_crash_is_final() {
        let world = still();
        let memory = MemoryStore::new(&world);
        let plan = |n, _, _: &Key| (n == 1).then_some(Injected::CrashAfter);
        let faulty = Faulty::new(Arc::new(memory.clone()), plan);
        let store = Retry::new(faulty.clone(), &world);
        store.now().await.unwrap();
        assert_eq!(put(&store, b"x").await.unwrap_err().fault, Fault::Refused);
        assert!(faulty.crashed());
        assert!(store.head(&key(), View::Current).await.is_err());
        assert_eq!(memory.keys(), [key()]);
        assert_eq!(faulty.calls(), 2);
    }

    #[tokio::test]
    async fn damage_and_hiding_are_injected() {
        let world = still();
        let memory = Arc::new(MemoryStore::new(&world));
        put(&memory, b"body").await.unwrap();
        let flip = Faulty::new(memory.clone(), |_, _, _| Some(Injected::FlipBit(8)));
        assert_eq!(flip.get(&key(), None, View::Current).await.unwrap(), "bndy");
        let hide = Faulty::new(memory, |_, _, _| Some(Injected::Hide("k".to_owned())));
        assert!(
            hide.list("", None, View::Current)
                .await
                .unwrap()
                .objects
                .is_empty()
        );
    }

    #[tokio::test]
    async fn the_rate_is_held() {
        let world = still();
        let memory = MemoryStore::new(&world);
        let store = Throttle::new(memory, &world, 1000);
        for n in 0..10 {
            let key = Key::from_text(format!("{n}"));
            let body = Bytes::from(vec![0u8; 500]);
            store.put(&key, body, PutOptions::default()).await.unwrap();
        }
        // 5000 bytes, of which the last 500 are still to be paid for by who comes next.
        assert_eq!(world.clock.since_boot(), Duration::from_millis(4500));
        store
            .get(&Key::from_text("1"), None, View::Current)
            .await
            .unwrap();
        store
            .get(&Key::from_text("1"), Some(0..100), View::Current)
            .await
            .unwrap();
        assert_eq!(world.clock.since_boot(), Duration::from_millis(5500));
        // Time that passes by itself pays too.
        world.clock.sleep(Duration::from_secs(60)).await;
        store
            .get(&Key::from_text("1"), None, View::Current)
            .await
            .unwrap();
        assert_eq!(world.clock.since_boot(), Duration::from_millis(65_500));
    }

    #[tokio::test]
    async fn a_probe_that_failed_half_way_begins_elsewhere() {
        let world = World {
            clock: Arc::new(SystemClock),
            ..still()
        };
        let (store, counters, _) = stack(&world, |n, _, _| {
            (n == 0).then_some(Injected::After(Fault::Unavailable))
        });
        let found = store.probe("p/", world.clock.now()).await.unwrap();
        assert!(found.refuses_overwrite);
        assert_eq!(counters.of(Operation::Probe).calls, 2);
    }
}
