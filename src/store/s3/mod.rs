//! A store in an S3 bucket: AWS itself, or a server that speaks its protocol. Only this module names the AWS SDK.
//!
//! Every put is one request with its SHA-256, from memory, never multipart, and with `If-None-Match: *` while the
//! store takes it. The SDK retries nothing: [`super::retry::Retry`] does.

mod connect;
mod errors;
mod list;

use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_s3::Client;
use aws_sdk_s3::operation::put_object::builders::PutObjectFluentBuilder;
use aws_sdk_s3::primitives::{ByteStream, DateTime as SdkTime};
use aws_sdk_s3::types::{
    ChecksumAlgorithm, ObjectLockEnabled, ObjectLockMode, ObjectLockRetention, ObjectLockRetentionMode,
};
use base64::Engine as _;
use bytes::{Bytes, BytesMut};
use chrono::{DateTime, Utc};

use super::{
    Abilities, Fault, Lock, LockMode, ObjectInfo, Page, PutOptions, Store, StoreError, StoreResult, View,
    probe,
};
use crate::types::{Digest, Key};

use connect::{Answer, Seen};
pub use connect::{S3Config, S3Timeouts};
use errors::{Scrub, Told};

/// Bodies larger than this are hashed off the runtime's threads.
const HASH_ASIDE: usize = 1 << 20;
/// Room made before a body arrives; one that is larger grows it.
const BODY_ROOM: u64 = 32 << 20;

/// Objects in a bucket, under a prefix.
#[derive(Clone)]
pub struct S3Store {
    client: Client,
    bucket: String,
    /// Empty, or with a slash at its end.
    prefix: String,
    location: String,
    whole_call: Duration,
    page: i32,
    scrub: Scrub,
    /// What the answers told of the server.
    seen: Arc<Seen>,
    /// The server does not know `If-None-Match` on a put.
    unconditional: Arc<AtomicBool>,
}

impl fmt::Debug for S3Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Store")
            .field("location", &self.location)
            .finish_non_exhaustive()
    }
}

/// The version that a read means.
enum Wanted {
    Current,
    Version(String),
}

impl Wanted {
    fn id(self) -> Option<String> {
        match self {
            Self::Current => None,
            Self::Version(id) => Some(id),
        }
    }
}

fn sdk_time(time: DateTime<Utc>) -> SdkTime {
    SdkTime::from_secs_and_nanos(time.timestamp(), time.timestamp_subsec_nanos())
}

fn our_time(time: &SdkTime) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp(time.secs(), time.subsec_nanos())
}

fn our_lock(mode: Option<&str>, until: Option<&SdkTime>) -> Option<Lock> {
    let mode = match mode {
        Some("GOVERNANCE") => LockMode::Governance,
        Some("COMPLIANCE") => LockMode::Compliance,
        _ => return None,
    };
    Some(Lock {
        mode,
        until: our_time(until?)?,
    })
}

async fn digest_of(body: &Bytes) -> StoreResult<Digest> {
    if body.len() < HASH_ASIDE {
        return Ok(Digest::of(body));
    }
    let body = body.clone();
    tokio::task::spawn_blocking(move || Digest::of(&body))
        .await
        .map_err(|e| StoreError::new(Fault::Unavailable, "take the SHA-256 of a body", e))
}

impl S3Store {
    fn full(&self, key: &Key) -> String {
        format!("{}{key}", self.prefix)
    }

    /// Holds a whole call, its body too, to the time it may take.
    async fn within<T>(&self, what: &str, call: impl Future<Output = StoreResult<T>>) -> StoreResult<T> {
        match tokio::time::timeout(self.whole_call, call).await {
            Ok(result) => result,
            Err(_) => Err(StoreError::new(
                Fault::Unavailable,
                what,
                format!("no whole answer within {} s", self.whole_call.as_secs()),
            )),
        }
    }

    fn put_call(
        &self,
        key: &Key,
        body: Bytes,
        digest: &Digest,
        lock: Option<Lock>,
    ) -> PutObjectFluentBuilder {
        let size = i64::try_from(body.len()).ok();
        let call = self
            .client
            .put_object()
            .bucket(&self.bucket)
            .key(self.full(key))
            .content_type("application/octet-stream")
            .set_content_length(size)
            .checksum_algorithm(ChecksumAlgorithm::Sha256)
            .checksum_sha256(base64::engine::general_purpose::STANDARD.encode(digest.as_bytes()))
            .body(ByteStream::from(body));
        let Some(lock) = lock else { return call };
        let mode = match lock.mode {
            LockMode::Governance => ObjectLockMode::Governance,
            LockMode::Compliance => ObjectLockMode::Compliance,
        };
        call.object_lock_mode(mode)
            .object_lock_retain_until_date(sdk_time(lock.until))
    }

    async fn put_once(&self, key: &Key, body: Bytes, options: PutOptions) -> StoreResult<()> {
        let what = format!("put {key}");
        let digest = match options.digest {
            Some(digest) => digest,
            None => digest_of(&body).await?,
        };
        if !self.unconditional.load(Ordering::Relaxed) {
            let call = self.put_call(key, body.clone(), &digest, options.lock);
            match call.if_none_match("*").send().await {
                Ok(_) => return Ok(()),
                Err(e) if !does_not_know_condition(&Told::from(&e)) => {
                    return Err(self.scrub.failed(what, &e));
                }
                Err(_) => {}
            }
        }
        let plain = self.put_call(key, body, &digest, options.lock).send().await;
        plain.map_err(|e| self.scrub.failed(what, &e))?;
        // Without the header it works: it was the header.
        self.unconditional.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// The version a view means; `None` when there is none.
    async fn wanted(&self, key: &Key, view: View) -> StoreResult<Option<Wanted>> {
        match view {
            View::Current => Ok(Some(Wanted::Current)),
            View::First => {
                let first = self.first_version(&self.full(key)).await?;
                Ok(first.map(Wanted::Version))
            }
        }
    }

    async fn get_once(&self, key: &Key, range: Option<Range<u64>>, view: View) -> StoreResult<Bytes> {
        let what = format!("get {key}");
        let absent = || StoreError::new(Fault::NotFound, what.as_str(), "no such key");
        if let Some(range) = &range {
            super::check_range(range, || what.clone())?;
            if range.is_empty() {
                // HTTP has no empty range.
                let info = self.head_once(key, view).await?.ok_or_else(absent)?;
                return if range.end <= info.size {
                    Ok(Bytes::new())
                } else {
                    Err(super::past_the_end(what, range, info.size))
                };
            }
        }
        let version = self.wanted(key, view).await?.ok_or_else(absent)?.id();
        let header = range.as_ref().map(|r| format!("bytes={}-{}", r.start, r.end - 1));
        let output = self
            .client
            .get_object()
            .bucket(&self.bucket)
            .key(self.full(key))
            .set_range(header)
            .set_version_id(version)
            .send()
            .await
            .map_err(|e| self.scrub.failed(what.as_str(), &e))?;
        let told = output
            .content_length
            .and_then(|length| u64::try_from(length).ok());
        let expected = range.as_ref().map(|r| r.end - r.start);
        if let (Some(expected), Some(told)) = (expected, told)
            && told != expected
        {
            // Told before the body is read: it may be of any size.
            return Err(StoreError::new(
                Fault::Damaged,
                what,
                format!("{told} bytes came for a range of {expected}"),
            ));
        }
        self.read_body(what, output.body, expected.or(told)).await
    }

    async fn read_body(
        &self,
        what: String,
        mut body: ByteStream,
        expected: Option<u64>,
    ) -> StoreResult<Bytes> {
        let room = expected.unwrap_or(0).min(BODY_ROOM);
        let mut bytes = BytesMut::with_capacity(usize::try_from(room).unwrap_or(0));
        while let Some(part) = body.next().await {
            let part = part.map_err(|e| self.scrub.cut(what.as_str(), &e))?;
            bytes.extend_from_slice(&part);
            if expected.is_some_and(|expected| bytes.len() as u64 > expected) {
                break;
            }
        }
        match expected {
            Some(expected) if expected != bytes.len() as u64 => Err(StoreError::new(
                Fault::Damaged,
                what,
                format!("{} bytes came, {expected} were due", bytes.len()),
            )),
            _ => Ok(bytes.freeze()),
        }
    }

    async fn head_once(&self, key: &Key, view: View) -> StoreResult<Option<ObjectInfo>> {
        let what = format!("look at {key}");
        let Some(wanted) = self.wanted(key, view).await? else {
            return Ok(None);
        };
        let call = self
            .client
            .head_object()
            .bucket(&self.bucket)
            .key(self.full(key))
            .set_version_id(wanted.id());
        let output = match call.send().await {
            Ok(output) => output,
            Err(e) if Told::from(&e).status == Some(404) => {
                // A HEAD has no body that would tell a missing key from a missing bucket.
                self.bucket_is_there(&what).await?;
                return Ok(None);
            }
            Err(e) => return Err(self.scrub.failed(what, &e)),
        };
        let size = output
            .content_length
            .and_then(|length| u64::try_from(length).ok());
        let modified = output.last_modified.as_ref().and_then(our_time);
        let (Some(size), Some(modified)) = (size, modified) else {
            return Err(StoreError::new(
                Fault::Damaged,
                what,
                "the answer tells no size or no time",
            ));
        };
        // The server leaves these out for a credential that may not read them.
        let mode = output.object_lock_mode.as_ref().map(ObjectLockMode::as_str);
        Ok(Some(ObjectInfo {
            key: key.clone(),
            size,
            modified,
            lock: our_lock(mode, output.object_lock_retain_until_date.as_ref()),
        }))
    }

    /// Fails when the bucket is proven absent, or when nothing can be told. One that may not be looked at is there.
    async fn bucket_is_there(&self, what: &str) -> StoreResult<()> {
        match self.client.head_bucket().bucket(&self.bucket).send().await {
            Ok(_) => Ok(()),
            Err(e) => match Told::from(&e).status {
                Some(404) => Err(StoreError::new(
                    Fault::NoBucket,
                    what,
                    format!("there is no bucket {:?}", self.bucket),
                )),
                Some(403) => Ok(()),
                _ => Err(self.scrub.failed(what, &e)),
            },
        }
    }

    async fn extend_lock_once(&self, key: &Key, lock: Lock) -> StoreResult<()> {
        let what = format!("lengthen the lock of {key}");
        let first = self.first_version(&self.full(key)).await?;
        let Some(version) = first else {
            return Err(StoreError::new(Fault::NotFound, what, "no such key"));
        };
        let held = self
            .client
            .get_object_retention()
            .bucket(&self.bucket)
            .key(self.full(key))
            .version_id(&version)
            .send()
            .await;
        // A credential that may not read the lock may still lengthen it: the server itself refuses to shorten.
        let held = held.ok().and_then(|output| output.retention).and_then(|r| {
            our_lock(
                r.mode.as_ref().map(ObjectLockRetentionMode::as_str),
                r.retain_until_date.as_ref(),
            )
        });
        let strict = held.is_some_and(|held| held.mode == LockMode::Compliance);
        if held.is_some_and(|held| held.until >= lock.until && (strict || held.mode == lock.mode)) {
            return Ok(());
        }
        let mode = match lock.mode {
            LockMode::Governance if !strict => ObjectLockRetentionMode::Governance,
            _ => ObjectLockRetentionMode::Compliance,
        };
        let until = held.map_or(lock.until, |held| held.until.max(lock.until));
        let retention = ObjectLockRetention::builder()
            .mode(mode)
            .retain_until_date(sdk_time(until))
            .build();
        let call = self.client.put_object_retention();
        call.bucket(&self.bucket)
            .key(self.full(key))
            .version_id(version)
            .retention(retention)
            .send()
            .await
            .map(|_| ())
            .map_err(|e| self.scrub.failed(what, &e))
    }

    /// Looks at the bucket's configuration, and at what a put left where that may not be read.
    async fn inspect(&self, first: &Key, found: &mut Abilities) -> StoreResult<()> {
        // A version kept under a real id is the proof; "null" is what buckets without versions answer.
        found.keeps_versions = match self.first_version(&self.full(first)).await {
            Ok(version) => version.is_some_and(|id| id != "null"),
            Err(e) if e.fault == Fault::Unavailable => return Err(e),
            Err(_) => false,
        };
        let call = self.client.get_object_lock_configuration();
        found.locks = match call.bucket(&self.bucket).send().await {
            Ok(output) => output
                .object_lock_configuration
                .and_then(|c| c.object_lock_enabled)
                .is_some_and(|enabled| enabled == ObjectLockEnabled::Enabled),
            Err(e) => {
                let error = self.scrub.failed("read the object lock configuration", &e);
                match error.fault {
                    Fault::Unavailable | Fault::Throttled => return Err(error),
                    Fault::Denied => self.try_lock(first).await?,
                    _ => false,
                }
            }
        };
        Ok(())
    }

    /// Whether a lock of a minute sticks, for a credential that may not read the configuration.
    async fn try_lock(&self, first: &Key) -> StoreResult<bool> {
        let key = Key::from_text(format!("{first}-locked"));
        let until = self.now().await? + chrono::Duration::seconds(60);
        let lock = Lock {
            mode: LockMode::Governance,
            until,
        };
        let options = PutOptions {
            digest: None,
            lock: Some(lock),
            ..PutOptions::default()
        };
        let body = Bytes::from_static(b"lifeboat probe: lock");
        let sticks = match self.put_once(&key, body, options).await {
            Ok(()) => true,
            Err(e) if e.fault == Fault::Unavailable => return Err(e),
            Err(_) => false,
        };
        if sticks && let Err(error) = self.delete(&key).await {
            tracing::debug!(%error, "an object of the probe stays");
        }
        Ok(sticks)
    }
}

/// Whether the answer to a put with `If-None-Match` may mean that the header is not known.
fn does_not_know_condition(told: &Told) -> bool {
    match told.status {
        Some(501) => true,
        Some(400) => matches!(
            told.code.as_str(),
            "" | "NotImplemented" | "InvalidArgument" | "InvalidRequest" | "BadRequest" | "UnsupportedHeader"
        ),
        _ => false,
    }
}

#[async_trait]
impl Store for S3Store {
    fn location(&self) -> String {
        self.location.clone()
    }

    async fn put(&self, key: &Key, body: Bytes, options: PutOptions) -> StoreResult<()> {
        self.within(&format!("put {key}"), self.put_once(key, body, options))
            .await
    }

    async fn get(&self, key: &Key, range: Option<Range<u64>>, view: View) -> StoreResult<Bytes> {
        self.within(&format!("get {key}"), self.get_once(key, range, view))
            .await
    }

    async fn head(&self, key: &Key, view: View) -> StoreResult<Option<ObjectInfo>> {
        self.within(&format!("look at {key}"), self.head_once(key, view))
            .await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, view: View) -> StoreResult<Page> {
        self.within(&format!("list {prefix}"), self.list_once(prefix, after, view))
            .await
    }

    async fn delete(&self, key: &Key) -> StoreResult<()> {
        let what = format!("delete {key}");
        let call = self
            .client
            .delete_object()
            .bucket(&self.bucket)
            .key(self.full(key));
        let result = self.within(&what, async {
            call.send()
                .await
                .map_err(|e| self.scrub.failed(what.as_str(), &e))
        });
        match result.await {
            Ok(_) => Ok(()),
            Err(e) if e.fault == Fault::NotFound => Ok(()),
            Err(e) => Err(e),
        }
    }

    async fn now(&self) -> StoreResult<DateTime<Utc>> {
        let what = format!("ask the time of {}", self.location);
        let answer = Answer::default();
        let call = self.client.head_bucket().bucket(&self.bucket).customize();
        let result = self
            .within(&what, async { Ok(call.interceptor(answer.clone()).send().await) })
            .await?;
        match (answer.date(), result) {
            // Whatever else is said, a server that answers tells its time; 5xx may come from something before it.
            (Some(date), Ok(_)) => Ok(date),
            (date, Err(e)) => match (date, Told::from(&e).status) {
                (_, Some(404)) => Err(StoreError::new(
                    Fault::NoBucket,
                    what,
                    format!("there is no bucket {:?}", self.bucket),
                )),
                (Some(date), Some(300..=499)) => Ok(date),
                _ => Err(self.scrub.failed(what, &e)),
            },
            (None, Ok(_)) => Err(StoreError::new(
                Fault::Unsupported,
                what,
                "the answer has no Date header",
            )),
        }
    }

    async fn extend_lock(&self, key: &Key, lock: Lock) -> StoreResult<()> {
        self.within(
            &format!("lengthen the lock of {key}"),
            self.extend_lock_once(key, lock),
        )
        .await
    }

    async fn probe(&self, probe_prefix: &str, host_now: DateTime<Utc>) -> StoreResult<Abilities> {
        probe::try_out(self, probe_prefix, host_now, async |first, found| {
            self.inspect(first, found).await
        })
        .await
    }
}
