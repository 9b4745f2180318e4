//! The part of [`Store::probe`] that is the same for every store: trying, with small objects.

use bytes::Bytes;
use chrono::{DateTime, Utc};

use super::{Abilities, Fault, PutOptions, Store, StoreResult, View};
use crate::types::{Digest, Key};

/// Tries everything that the trait can try. `keeps_versions` and `locks` are left to the store, which calls this
/// with `inspect` to look at the first object before it is deleted.
///
/// # Errors
/// When a plain put, get or list does not work, or the store stops answering half-way.
pub(super) async fn try_out<S, F>(
    store: &S,
    prefix: &str,
    host_now: DateTime<Utc>,
    inspect: F,
) -> StoreResult<Abilities>
where
    S: Store + ?Sized,
    F: AsyncFnOnce(&Key, &mut Abilities) -> StoreResult<()>,
{
    let mut found = Abilities {
        clock_offset_ms: (store.now().await? - host_now).num_milliseconds(),
        ..Abilities::default()
    };
    let first = Key::from_text(format!("{prefix}first"));
    let wrong = Key::from_text(format!("{prefix}wrong"));
    let body = Bytes::from_static(b"lifeboat probe: first");
    let other = Bytes::from_static(b"lifeboat probe: other");

    store.put(&first, body.clone(), PutOptions::default()).await?;
    found.lists_at_once = (store.list(prefix, None, View::Current).await?.objects)
        .iter()
        .any(|o| o.key == first);
    let whole = store.get(&first, None, View::Current).await?;
    if whole != body {
        return Err(damaged(&first));
    }
    found.reads_ranges = match store.get(&first, Some(9..14), View::Current).await {
        Ok(part) => part == body.slice(9..14),
        Err(e) if e.fault == Fault::Unavailable => return Err(e),
        Err(_) => false,
    };
    found.refuses_overwrite = match store.put(&first, other, PutOptions::default()).await {
        Err(e) if e.fault == Fault::Exists => store.get(&first, None, View::Current).await? == body,
        Err(e) if e.fault == Fault::Unavailable => return Err(e),
        _ => false,
    };
    let lie = PutOptions {
        digest: Some(Digest::of(b"something else")),
        lock: None,
        ..PutOptions::default()
    };
    found.checks_digest = match store.put(&wrong, body, lie).await {
        Err(e) if e.fault == Fault::Unavailable => return Err(e),
        Err(_) => store.head(&wrong, View::Current).await?.is_none(),
        Ok(()) => false,
    };
    inspect(&first, &mut found).await?;
    found.deletes = true;
    for key in [&first, &wrong] {
        found.deletes &= match store.delete(key).await {
            Ok(()) => store.head(key, View::Current).await?.is_none(),
            Err(e) if e.fault.is_transient() => return Err(e),
            Err(_) => false,
        };
    }
    Ok(found)
}

fn damaged(key: &Key) -> super::StoreError {
    super::StoreError::new(
        Fault::Damaged,
        format!("get {key}"),
        "the bytes are not those that were put",
    )
}
