//! Listing: current objects or first versions, in byte order of the key whatever the server's own order.
//!
//! S3 lists keys in byte order. Servers that keep keys as a directory tree list `a/b` before `a-b`, and a page
//! that starts after a key then silently lacks keys (SeaweedFS 4 does, its list of versions even without being
//! asked to start anywhere). There the tree is walked one directory at a time, and put in order here.

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::Ordering;

use aws_sdk_s3::primitives::DateTime as SdkTime;
use aws_sdk_s3::types::EncodingType;
use chrono::{DateTime, Utc};

use super::{S3Store, our_time};
use crate::store::{Fault, ObjectInfo, Page, StoreError, StoreResult, View};
use crate::types::Key;

/// An object in a list, under its whole key.
#[derive(Clone, Debug)]
struct Listed {
    key: String,
    size: u64,
    modified: DateTime<Utc>,
    version: String,
}

/// What the server gave to one request.
#[derive(Debug, Default)]
struct Batch {
    objects: Vec<Listed>,
    /// Common prefixes: directories, with their slash.
    directories: Vec<String>,
}

/// Where a list goes on.
#[derive(Clone, Debug)]
enum Cursor {
    /// From the beginning, or after a key.
    Start(Option<String>),
    /// After the page before.
    Token(String),
    /// After a version.
    Marker(String, Option<String>),
    End,
}

/// Text of a list, which is URL-encoded where the answer says so.
fn decode(text: &str, encoding: Option<&EncodingType>) -> Option<String> {
    if encoding != Some(&EncodingType::Url) {
        return Some(text.to_owned());
    }
    let mut bytes = text.bytes();
    let mut raw = Vec::with_capacity(text.len());
    while let Some(b) = bytes.next() {
        raw.push(match b {
            b'+' => b' ',
            b'%' => {
                let pair = [bytes.next()?, bytes.next()?];
                u8::from_str_radix(std::str::from_utf8(&pair).ok()?, 16).ok()?
            }
            other => other,
        });
    }
    String::from_utf8(raw).ok()
}

fn listed(
    key: Option<&str>,
    size: Option<i64>,
    modified: Option<&SdkTime>,
    version: Option<&str>,
    encoding: Option<&EncodingType>,
) -> Option<Listed> {
    Some(Listed {
        key: decode(key?, encoding)?,
        size: u64::try_from(size?).ok()?,
        modified: our_time(modified?)?,
        version: version.unwrap_or("null").to_owned(),
    })
}

fn unreadable(what: &str) -> StoreError {
    StoreError::new(
        Fault::Damaged,
        what,
        "the list has an entry without key, size or time",
    )
}

/// Of two versions of one key, the older; where times are equal the one that is listed later, since newer ones come first.
fn older(known: Listed, next: Listed) -> Listed {
    if next.modified <= known.modified {
        next
    } else {
        known
    }
}

impl S3Store {
    /// One request for current objects.
    async fn current_batch(
        &self,
        prefix: &str,
        delimiter: Option<&str>,
        cursor: &mut Cursor,
    ) -> StoreResult<Batch> {
        let what = format!("list {prefix}");
        let mut call = self
            .client
            .list_objects_v2()
            .bucket(&self.bucket)
            .prefix(prefix)
            .set_delimiter(delimiter.map(ToOwned::to_owned))
            .encoding_type(EncodingType::Url)
            .max_keys(self.page);
        call = match std::mem::replace(cursor, Cursor::End) {
            Cursor::Start(after) => call.set_start_after(after),
            Cursor::Token(token) => call.continuation_token(token),
            Cursor::Marker(..) | Cursor::End => return Ok(Batch::default()),
        };
        let output = call
            .send()
            .await
            .map_err(|e| self.scrub.failed(what.as_str(), &e))?;
        let encoding = output.encoding_type();
        let mut batch = Batch::default();
        for o in output.contents() {
            let object = listed(o.key(), o.size(), o.last_modified(), None, encoding);
            batch.objects.push(object.ok_or_else(|| unreadable(&what))?);
        }
        for p in output.common_prefixes() {
            let directory = p.prefix().and_then(|p| decode(p, encoding));
            batch
                .directories
                .push(directory.ok_or_else(|| unreadable(&what))?);
        }
        if output.is_truncated() == Some(true) {
            let token = output.next_continuation_token().ok_or_else(|| {
                StoreError::new(Fault::Damaged, what, "the list goes on but does not say where")
            })?;
            *cursor = Cursor::Token(token.to_owned());
        }
        Ok(batch)
    }

    /// One request for versions, without delete markers.
    async fn version_batch(
        &self,
        prefix: &str,
        delimiter: Option<&str>,
        cursor: &mut Cursor,
    ) -> StoreResult<Batch> {
        let what = format!("list the versions of {prefix}");
        let (marker, version) = match std::mem::replace(cursor, Cursor::End) {
            Cursor::Start(after) => (after, None),
            Cursor::Marker(key, version) => (Some(key), version),
            Cursor::Token(_) | Cursor::End => return Ok(Batch::default()),
        };
        let before = (marker.clone(), version.clone());
        let call = self
            .client
            .list_object_versions()
            .bucket(&self.bucket)
            .prefix(prefix)
            .set_delimiter(delimiter.map(ToOwned::to_owned))
            .encoding_type(EncodingType::Url)
            .max_keys(self.page)
            .set_key_marker(marker)
            .set_version_id_marker(version);
        let output = call
            .send()
            .await
            .map_err(|e| self.scrub.failed(what.as_str(), &e))?;
        let encoding = output.encoding_type();
        let mut batch = Batch::default();
        for v in output.versions() {
            let object = listed(v.key(), v.size(), v.last_modified(), v.version_id(), encoding);
            batch.objects.push(object.ok_or_else(|| unreadable(&what))?);
        }
        for p in output.common_prefixes() {
            let directory = p.prefix().and_then(|p| decode(p, encoding));
            batch
                .directories
                .push(directory.ok_or_else(|| unreadable(&what))?);
        }
        if output.is_truncated() == Some(true) {
            let key = output.next_key_marker().and_then(|m| decode(m, encoding));
            let version = output.next_version_id_marker().map(ToOwned::to_owned);
            match key {
                Some(key) if (Some(&key), &version) != (before.0.as_ref(), &before.1) => {
                    *cursor = Cursor::Marker(key, version);
                }
                _ => {
                    return Err(StoreError::new(
                        Fault::Damaged,
                        what,
                        "the list goes on but does not say where",
                    ));
                }
            }
        }
        Ok(batch)
    }

    async fn batch(
        &self,
        prefix: &str,
        delimiter: Option<&str>,
        cursor: &mut Cursor,
        view: View,
    ) -> StoreResult<Batch> {
        match view {
            View::Current => self.current_batch(prefix, delimiter, cursor).await,
            View::First => self.version_batch(prefix, delimiter, cursor).await,
        }
    }

    /// The id of the first version of a whole key that is not a delete marker.
    pub(super) async fn first_version(&self, full: &str) -> StoreResult<Option<String>> {
        let mut cursor = Cursor::Start(None);
        let mut first: Option<Listed> = None;
        // The key itself sorts before all that it is a prefix of; a tree puts what is below it elsewhere.
        while !matches!(cursor, Cursor::End) {
            let batch = self.version_batch(full, Some("/"), &mut cursor).await?;
            let mut passed = false;
            for object in batch.objects {
                if object.key == full {
                    first = Some(match first {
                        Some(known) => older(known, object),
                        None => object,
                    });
                } else {
                    passed |= object.key.as_str() > full;
                }
            }
            if passed {
                break;
            }
        }
        Ok(first.map(|first| first.version))
    }

    fn info(&self, object: Listed) -> Option<ObjectInfo> {
        let key = object.key.strip_prefix(self.prefix.as_str())?;
        Some(ObjectInfo {
            key: Key::from_text(key),
            size: object.size,
            modified: object.modified,
            lock: None,
        })
    }

    pub(super) async fn list_once(&self, prefix: &str, after: Option<&str>, view: View) -> StoreResult<Page> {
        let prefix = format!("{}{prefix}", self.prefix);
        let after = after.map(|after| format!("{}{after}", self.prefix));
        if !self.seen.tree_order.load(Ordering::Relaxed)
            && let Some(page) = self.list_flat(&prefix, after.as_deref(), view).await?
        {
            return Ok(page);
        }
        self.list_tree(&prefix, after.as_deref(), view).await
    }

    /// A page from a server that lists in byte order; `None` when it turns out that it does not.
    async fn list_flat(&self, prefix: &str, after: Option<&str>, view: View) -> StoreResult<Option<Page>> {
        let mut cursor = Cursor::Start(after.map(ToOwned::to_owned));
        let limit = usize::try_from(self.page).unwrap_or(1);
        let mut objects: Vec<Listed> = Vec::new();
        while objects.len() <= limit && !matches!(cursor, Cursor::End) {
            for object in self.batch(prefix, None, &mut cursor, view).await?.objects {
                if after.is_some_and(|after| object.key.as_str() <= after) {
                    continue;
                }
                match objects.last() {
                    Some(last) if last.key == object.key => {
                        let known = objects.pop();
                        objects.extend(known.map(|known| older(known, object)));
                    }
                    Some(last) if last.key > object.key => {
                        tracing::debug!("the server does not list in byte order");
                        self.seen.tree_order.store(true, Ordering::Relaxed);
                    }
                    _ => objects.push(object),
                }
            }
            // The answer may just have told what the server is.
            if self.seen.tree_order.load(Ordering::Relaxed) {
                return Ok(None);
            }
            // A page may be empty where the server does not start after a key, and all was passed over.
            if view == View::Current && !objects.is_empty() {
                break;
            }
        }
        let more = !matches!(cursor, Cursor::End);
        let mut next = None;
        if view == View::First && objects.len() > limit {
            // The last key may have older versions on the next page of the server's.
            objects.truncate(limit);
            next = objects.last().map(|o| o.key.clone());
        } else if more {
            next = objects.last().map(|o| o.key.clone());
        }
        let next = next.and_then(|n| n.strip_prefix(self.prefix.as_str()).map(ToOwned::to_owned));
        Ok(Some(Page {
            objects: objects.into_iter().filter_map(|o| self.info(o)).collect(),
            next,
        }))
    }

    /// A page by walking the tree below the prefix.
    async fn list_tree(&self, prefix: &str, after: Option<&str>, view: View) -> StoreResult<Page> {
        let limit = usize::try_from(self.page).unwrap_or(1);
        let mut page = Page::default();
        let mut stack: Vec<Level> = Level::new(prefix, after).into_iter().collect();
        while let Some(level) = stack.last_mut() {
            match level.next(self, view).await? {
                None => {
                    stack.pop();
                }
                Some(Entry::Directory(directory)) => stack.extend(Level::new(&directory, after)),
                Some(Entry::Object(object)) => {
                    if after.is_some_and(|after| object.key.as_str() <= after) {
                        continue;
                    }
                    if page.objects.len() == limit {
                        page.next = page.objects.last().map(|o| o.key.as_str().to_owned());
                        return Ok(page);
                    }
                    page.objects.extend(self.info(object));
                }
            }
        }
        Ok(page)
    }
}

/// What a directory holds.
#[derive(Debug)]
enum Entry {
    Object(Listed),
    Directory(String),
}

impl Entry {
    fn text(&self) -> &str {
        match self {
            Self::Object(object) => &object.key,
            Self::Directory(directory) => directory,
        }
    }
}

/// One directory on the way of the walk, in byte order of the keys below it.
///
/// The server gives names in their own order, `a` (a directory) before `a-b`; the keys below it come after, since
/// `-` sorts before `/`. So a directory waits in `pending` until a name is met that sorts after it with its slash.
#[derive(Debug)]
struct Level {
    prefix: String,
    cursor: Cursor,
    arrived: VecDeque<Entry>,
    pending: BTreeSet<String>,
    /// The last entry given, so that none is given twice.
    given: Option<String>,
}

impl Level {
    /// The entries with a prefix that can hold keys after `after`; `None` when there can be none.
    fn new(prefix: &str, after: Option<&str>) -> Option<Self> {
        let base = prefix.rfind('/').map_or("", |slash| &prefix[..=slash]);
        let mut level = Self {
            prefix: prefix.to_owned(),
            cursor: Cursor::Start(None),
            arrived: VecDeque::new(),
            pending: BTreeSet::new(),
            given: None,
        };
        let Some(after) = after else { return Some(level) };
        let Some(rest) = after.strip_prefix(base) else {
            return (base > after).then_some(level);
        };
        let name = rest.split('/').next().unwrap_or_default();
        if name.is_empty() {
            return Some(level);
        }
        level.expect_passed(name);
        let start = format!("{base}{name}");
        // A start before the prefix says nothing, and SeaweedFS answers it with an empty list of versions.
        if start.as_str() > prefix {
            level.cursor = Cursor::Start(Some(start));
        }
        Some(level)
    }

    /// Expects the directories that a server has passed by when it goes on after a name, but whose keys come later: `a/` when
    /// the name is `a-b`, or `a` itself. One that does not exist is found empty.
    fn expect_passed(&mut self, name: &str) {
        let base = self.prefix.rfind('/').map_or("", |slash| &self.prefix[..=slash]);
        let shorter = (1..name.len())
            .filter(|at| name.is_char_boundary(*at) && name.as_bytes()[*at] < b'/')
            .map(|at| &name[..at]);
        let directories: Vec<String> = shorter
            .chain([name])
            .map(|name| format!("{base}{name}/"))
            .filter(|directory| directory.starts_with(&self.prefix))
            .collect();
        self.pending.extend(directories);
    }

    async fn next(&mut self, store: &S3Store, view: View) -> StoreResult<Option<Entry>> {
        loop {
            // The last object waits for more: with versions, an older one may be on the next page.
            let ready = match self.arrived.front() {
                None => false,
                Some(Entry::Object(_)) => self.arrived.len() > 1 || matches!(self.cursor, Cursor::End),
                Some(Entry::Directory(_)) => true,
            };
            if !ready && !matches!(self.cursor, Cursor::End) {
                self.fetch(store, view).await?;
                continue;
            }
            let Some(entry) = self.arrived.pop_front() else {
                return Ok(self
                    .pending
                    .pop_first()
                    .and_then(|d| self.give(Entry::Directory(d))));
            };
            if self.pending.first().is_some_and(|d| d.as_str() < entry.text()) {
                let directory = self.pending.pop_first().map(Entry::Directory);
                self.arrived.push_front(entry);
                if let Some(given) = directory.and_then(|d| self.give(d)) {
                    return Ok(Some(given));
                }
                continue;
            }
            match entry {
                Entry::Directory(directory) => {
                    self.pending.insert(directory);
                }
                object => {
                    if let Some(given) = self.give(object) {
                        return Ok(Some(given));
                    }
                }
            }
        }
    }

    /// Gives an entry unless it, or one after it, was given before.
    fn give(&mut self, entry: Entry) -> Option<Entry> {
        let text = entry.text();
        if text == self.prefix && matches!(entry, Entry::Directory(_)) {
            return None;
        }
        if self.given.as_deref().is_some_and(|given| text <= given) {
            return None;
        }
        self.given = Some(text.to_owned());
        Some(entry)
    }

    async fn fetch(&mut self, store: &S3Store, view: View) -> StoreResult<()> {
        let batch = store
            .batch(&self.prefix, Some("/"), &mut self.cursor, view)
            .await?;
        if let Cursor::Marker(marker, _) = &self.cursor {
            let base = self.prefix.rfind('/').map_or(0, |slash| slash + 1);
            let name = marker.get(base..).and_then(|rest| rest.split('/').next());
            if let Some(name) = name.filter(|name| !name.is_empty()).map(ToOwned::to_owned) {
                self.expect_passed(&name);
            }
        }
        let mut entries: Vec<Entry> = Vec::with_capacity(batch.objects.len() + batch.directories.len());
        // Versions of one key are together, its last page's too.
        if let Some(Entry::Object(_)) = self.arrived.back() {
            entries.extend(self.arrived.pop_back());
        }
        for object in batch.objects {
            match entries.pop() {
                Some(Entry::Object(known)) if known.key == object.key => {
                    entries.push(Entry::Object(older(known, object)));
                }
                before => {
                    entries.extend(before);
                    entries.push(Entry::Object(object));
                }
            }
        }
        entries.extend(batch.directories.into_iter().map(Entry::Directory));
        // By name: a directory without its slash, as the server goes through them.
        entries.sort_by(|a, b| name_of(a).cmp(name_of(b)));
        self.arrived.extend(entries);
        Ok(())
    }
}

fn name_of(entry: &Entry) -> &str {
    entry.text().trim_end_matches('/')
}
