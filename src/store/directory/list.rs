//! Listing a directory tree in byte order of the full key, a page at a time, in memory bounded by the page.

use std::collections::BTreeSet;
use std::os::fd::{AsFd as _, OwnedFd};

use rustix::fs::FileType;
use rustix::io::Errno;

use super::{Inner, failed, sys};
use crate::store::{Page, StoreResult};
use crate::types::Key;

/// Objects in a page.
const PAGE: usize = 1000;

/// What is asked for.
struct Wanted<'a> {
    prefix: &'a str,
    after: Option<&'a str>,
}

impl Wanted<'_> {
    fn file(&self, key: &str) -> bool {
        key.starts_with(self.prefix) && self.after.is_none_or(|after| key > after)
    }
    /// Whether a wanted key can be below a directory, given with its slash.
    fn below(&self, directory: &str) -> bool {
        (directory.starts_with(self.prefix) || self.prefix.starts_with(directory))
            && self
                .after
                .is_none_or(|after| directory > after || after.starts_with(directory))
    }
}

impl Inner {
    pub(super) fn list(&self, prefix: &str, after: Option<&str>) -> StoreResult<Page> {
        let what = format!("list {prefix}");
        let wanted = Wanted { prefix, after };
        let base = prefix.rfind('/').map_or("", |slash| &prefix[..=slash]);
        let parts: Vec<&str> = base.split_terminator('/').collect();
        let plain = base.is_empty() || Key::from_text(base.trim_end_matches('/')).is_plain();
        if !plain || base.contains("//") {
            // No key can be below such a directory. The root must be there all the same.
            return self.root().map(|_| Page::default());
        }
        let mut page = Page::default();
        if let Some(directory) = self.directory(&parts, &what)? {
            // One more than a page tells whether there is a next one.
            walk(&directory, base, &wanted, PAGE + 1, &mut page, &what)?;
        }
        if page.objects.len() > PAGE {
            page.objects.truncate(PAGE);
            page.next = page.objects.last().map(|o| o.key.as_str().to_owned());
        }
        Ok(page)
    }
}

/// Adds the wanted keys below a directory until the page holds `limit`.
///
/// With a slash after the name of each directory, the order of the entries is the order of the keys below them.
fn walk(
    directory: &OwnedFd,
    base: &str,
    wanted: &Wanted<'_>,
    limit: usize,
    page: &mut Page,
    what: &str,
) -> StoreResult<()> {
    let mut done: Option<String> = None;
    loop {
        let room = limit - page.objects.len();
        let batch = smallest(directory, base, wanted, done.as_deref(), room).map_err(|e| failed(what, e))?;
        let last = batch.len() < room;
        for entry in &batch {
            if let Some(name) = entry.strip_suffix('/') {
                match sys::open_directory(directory.as_fd(), name) {
                    Ok(below) => walk(&below, &format!("{base}{entry}"), wanted, limit, page, what)?,
                    // Removed, or replaced by something else, since its name was read.
                    Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                    Err(e) => return Err(failed(what, e)),
                }
            } else {
                match sys::stat(directory.as_fd(), entry) {
                    Ok(stat) if sys::kind(&stat) == FileType::RegularFile => {
                        let key = Key::from_text(format!("{base}{entry}"));
                        page.objects.push(sys::info(key, &stat));
                    }
                    Ok(_) | Err(Errno::NOENT) => {}
                    Err(e) => return Err(failed(what, e)),
                }
            }
            if page.objects.len() >= limit {
                return Ok(());
            }
        }
        match batch.into_iter().next_back() {
            Some(entry) if !last => done = Some(entry),
            _ => return Ok(()),
        }
    }
}

/// The first `room` wanted entries of a directory after `done`; directories end in a slash.
fn smallest(
    directory: &OwnedFd,
    base: &str,
    wanted: &Wanted<'_>,
    done: Option<&str>,
    room: usize,
) -> Result<BTreeSet<String>, Errno> {
    let mut entries = BTreeSet::new();
    let mut key = String::new();
    sys::each_entry(directory.as_fd(), |name, kind| {
        key.clear();
        key.push_str(base);
        key.push_str(name);
        // Whatever has no plain name is none of ours: the staging directory first of all.
        if key.len() > 1024 || !name.bytes().all(|b| b.is_ascii_graphic()) {
            return;
        }
        let is_wanted = match kind {
            FileType::Directory => {
                key.push('/');
                wanted.below(&key)
            }
            FileType::RegularFile => wanted.file(&key),
            _ => false,
        };
        let entry = &key[base.len()..];
        if !is_wanted || done.is_some_and(|done| entry <= done) {
            return;
        }
        if entries.len() >= room {
            if entries
                .last()
                .is_some_and(|largest: &String| entry >= largest.as_str())
            {
                return;
            }
            entries.pop_last();
        }
        entries.insert(entry.to_owned());
    })?;
    Ok(entries)
}
