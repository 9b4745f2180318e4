//! Where objects rest: one narrow trait, two real stores, and wrappers over the same trait for everything that
//! cuts across (retry, throttle, observe; faults in tests).
//!
//! # The contract
//! - **An object is whole or absent.** A `put` that fails may have stored the object or not, never a part of it.
//! - **`put` never replaces.** A key is written once. Where the store can tell (a directory always, S3 by
//!   `If-None-Match` where probed), a second put is [`Fault::Exists`]; the retry wrapper then reads the object
//!   back, and equal bytes are success, since a lost reply is the usual reason. Stores that can not tell
//!   overwrite; keys hold a ULID, so that only a retry writes a key twice, with the same bytes.
//! - **A short read is an error**, never a short buffer. A range past the end is [`Fault::Damaged`].
//! - **`list`** gives keys in byte order, each once, all those with the prefix that are greater than `after`,
//!   in pages. Lists may lag and hide objects; nobody takes a list's word for absence (see `repository::sweep`).
//! - **`delete`** of an absent key succeeds. It is a plain delete: with versioning on, the bytes stay as a version.
//! - Retries happen in [`retry::Retry`] only, so nothing is retried at two layers.

pub mod conformance;
pub mod directory;
mod logged;
pub mod memory;
mod open;
mod probe;
pub mod retry;
pub mod s3;
pub mod wrappers;

use std::fmt;
use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};

use crate::error::{Error, Kind};
use crate::types::{Digest, Key};

pub use open::open;

/// A store that several tasks share.
pub type SharedStore = Arc<dyn Store>;

/// Which version of a key a read wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum View {
    /// What the key names now.
    #[default]
    Current,
    /// The first version ever written, whatever was laid over it (`--versions`).
    First,
}

/// What a put asks for besides the bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PutOptions {
    /// SHA-256 of the body, already known by the caller; a store that can, lets the server check it.
    pub digest: Option<Digest>,
    /// Object Lock of the new version.
    pub lock: Option<Lock>,
    /// Since boot: after this the put is not tried again, since what it rests on would have to be checked anew.
    pub not_after: Option<Duration>,
}

/// An Object Lock retention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lock {
    /// How strict.
    pub mode: LockMode,
    /// Until when the version can not be removed.
    pub until: DateTime<Utc>,
}

/// The two modes of S3 Object Lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LockMode {
    /// A special permission may shorten it.
    Governance,
    /// Nobody may shorten it.
    Compliance,
}

/// What a list or a head tells of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Its key.
    pub key: Key,
    /// Bytes.
    pub size: u64,
    /// Store time at which it was written. Serves ages and grace, never the choice of a point.
    pub modified: DateTime<Utc>,
    /// Its lock, told by `head` only, where the store has locks and the credential may read them.
    pub lock: Option<Lock>,
}

/// A page of a list.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// In byte order of the key.
    pub objects: Vec<ObjectInfo>,
    /// Pass as `after` for the next page; `None` at the end.
    pub next: Option<String>,
}

/// What a store can do, found by trying (`init` and `check` show it).
#[derive(Clone, Debug, PartialEq, Eq, Default, serde::Serialize)]
pub struct Abilities {
    /// A second put of one key is refused.
    pub refuses_overwrite: bool,
    /// A put with a wrong SHA-256 is refused.
    pub checks_digest: bool,
    /// A put is in the very next list.
    pub lists_at_once: bool,
    /// Ranged reads give the range.
    pub reads_ranges: bool,
    /// Versions are kept.
    pub keeps_versions: bool,
    /// Object Lock is on.
    pub locks: bool,
    /// This credential can delete.
    pub deletes: bool,
    /// Store clock minus host clock, milliseconds.
    pub clock_offset_ms: i64,
}

/// Where objects rest. See the module for the contract.
#[async_trait]
pub trait Store: Send + Sync + Debug {
    /// The URL for messages, without a secret.
    fn location(&self) -> String;
    /// Writes a new object.
    ///
    /// # Errors
    /// [`Fault::Exists`] when the key is there already and the store can tell.
    async fn put(&self, key: &Key, body: Bytes, options: PutOptions) -> StoreResult<()>;
    /// Reads an object, or a range of it.
    ///
    /// # Errors
    /// [`Fault::NotFound`] when it is proven absent.
    async fn get(&self, key: &Key, range: Option<Range<u64>>, view: View) -> StoreResult<Bytes>;
    /// Size, time and lock of an object; `None` when it is proven absent.
    ///
    /// # Errors
    /// When it can not be told.
    async fn head(&self, key: &Key, view: View) -> StoreResult<Option<ObjectInfo>>;
    /// A page of the keys with this text prefix (not only whole parts) that are greater than `after`.
    ///
    /// # Errors
    /// When it can not be told.
    async fn list(&self, prefix: &str, after: Option<&str>, view: View) -> StoreResult<Page>;
    /// Removes an object (the current version: see the contract).
    ///
    /// # Errors
    /// [`Fault::Locked`] is a state, not a defect.
    async fn delete(&self, key: &Key) -> StoreResult<()>;
    /// The store's clock: the Date header, or the mtime of a file just written.
    ///
    /// # Errors
    /// When the store does not answer.
    async fn now(&self) -> StoreResult<DateTime<Utc>>;
    /// Lengthens the lock of an object's first version.
    ///
    /// # Errors
    /// [`Fault::Unsupported`] without Object Lock, [`Fault::Denied`] without the right.
    async fn extend_lock(&self, key: &Key, lock: Lock) -> StoreResult<()>;
    /// Finds out what the store can do by trying, with small objects under `probe_prefix` (a key prefix that ends
    /// in a fresh ULID and `/`), removed afterwards where that is allowed. `host_now` is the host's clock, for the skew.
    ///
    /// # Errors
    /// When even a plain put and get do not work.
    async fn probe(&self, probe_prefix: &str, host_now: DateTime<Utc>) -> StoreResult<Abilities>;
}

/// The result of a store call.
pub type StoreResult<T> = Result<T, StoreError>;

/// Why a store call failed, by what the caller can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Proven absent.
    NotFound,
    /// The key is there already.
    Exists,
    /// The credential is wrong or may not.
    Denied,
    /// The version is locked.
    Locked,
    /// Slow down (429, 503): worth a retry after a wait.
    Throttled,
    /// Not reachable, timed out, cut, 5xx: worth a retry; a put may have been stored.
    Unavailable,
    /// No space left, or over a quota.
    Full,
    /// The store can not do this.
    Unsupported,
    /// What came back is not what was asked for (short, wrong digest).
    Damaged,
    /// The bucket or directory itself is not there.
    NoBucket,
    /// Anything else; a retry will not help.
    Refused,
}

impl Fault {
    /// Whether the same call may succeed later.
    pub const fn is_transient(self) -> bool {
        matches!(self, Self::Throttled | Self::Unavailable | Self::Damaged)
    }
}

/// A failed store call.
#[derive(Debug)]
pub struct StoreError {
    /// What the caller can do.
    pub fault: Fault,
    /// What was tried on which key.
    pub what: String,
    /// The cause in the store's words, without a secret.
    pub cause: String,
}

impl StoreError {
    /// A failed call.
    pub fn new(fault: Fault, what: impl Into<String>, cause: impl fmt::Display) -> Self {
        Self {
            fault,
            what: what.into(),
            cause: cause.to_string(),
        }
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.cause)
    }
}

impl std::error::Error for StoreError {}

impl From<StoreError> for Error {
    fn from(e: StoreError) -> Self {
        let (kind, hint) = match e.fault {
            Fault::NotFound => (
                Kind::Damaged,
                "The object is missing; `backup verify` tells how far the damage goes.",
            ),
            Fault::Damaged => (Kind::Damaged, "`backup verify` tells how far the damage goes."),
            Fault::Denied => (
                Kind::Failed,
                "Check the credentials (of a directory: owner, mode and mount) and what they may do; `backup check` tries each right.",
            ),
            Fault::Locked => (
                Kind::Failed,
                "The object is locked; it can go when its lock ends.",
            ),
            Fault::Throttled | Fault::Unavailable => (
                Kind::Failed,
                "The store did not answer in time or asked to slow down; try again later.",
            ),
            Fault::Full => (Kind::Failed, "The store is full; make room, nothing was lost."),
            Fault::NoBucket => (
                Kind::NoRepository,
                "Create the bucket or the directory first, or correct the repository's URL.",
            ),
            Fault::Exists | Fault::Unsupported | Fault::Refused => {
                (Kind::Failed, "`backup check` shows what this store can do.")
            }
        };
        Error::new(kind, e.what).hint(hint).because(e.cause)
    }
}

/// All objects with a prefix. For prefixes whose number of objects is bounded by packs or points, not by content.
///
/// # Errors
/// Those of [`Store::list`].
pub async fn list_all(store: &dyn Store, prefix: &str, view: View) -> StoreResult<Vec<ObjectInfo>> {
    let mut objects = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let page = store.list(prefix, after.as_deref(), view).await?;
        objects.extend(page.objects);
        match page.next {
            Some(next) if Some(&next) != after.as_ref() => after = Some(next),
            _ => return Ok(objects),
        }
    }
}

/// Refuses a range that ends before it starts.
fn check_range(range: &Range<u64>, what: impl FnOnce() -> String) -> StoreResult<()> {
    if range.start <= range.end {
        return Ok(());
    }
    Err(StoreError::new(
        Fault::Refused,
        what(),
        format!("the range {}..{} ends before it starts", range.start, range.end),
    ))
}

/// The answer to a range that is not wholly in the object.
fn past_the_end(what: String, range: &Range<u64>, size: u64) -> StoreError {
    StoreError::new(
        Fault::Damaged,
        what,
        format!(
            "the range {}..{} goes past the end at {size}",
            range.start, range.end
        ),
    )
}

#[async_trait]
impl<T: Store + ?Sized> Store for Arc<T> {
    fn location(&self) -> String {
        (**self).location()
    }
    async fn put(&self, key: &Key, body: Bytes, options: PutOptions) -> StoreResult<()> {
        (**self).put(key, body, options).await
    }
    async fn get(&self, key: &Key, range: Option<Range<u64>>, view: View) -> StoreResult<Bytes> {
        (**self).get(key, range, view).await
    }
    async fn head(&self, key: &Key, view: View) -> StoreResult<Option<ObjectInfo>> {
        (**self).head(key, view).await
    }
    async fn list(&self, prefix: &str, after: Option<&str>, view: View) -> StoreResult<Page> {
        (**self).list(prefix, after, view).await
    }
    async fn delete(&self, key: &Key) -> StoreResult<()> {
        (**self).delete(key).await
    }
    async fn now(&self) -> StoreResult<DateTime<Utc>> {
        (**self).now().await
    }
    async fn extend_lock(&self, key: &Key, lock: Lock) -> StoreResult<()> {
        (**self).extend_lock(key, lock).await
    }
    async fn probe(&self, probe_prefix: &str, host_now: DateTime<Utc>) -> StoreResult<Abilities> {
        (**self).probe(probe_prefix, host_now).await
    }
}
