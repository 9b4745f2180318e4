//! Reads a point back: manifests merged, packs fetched in parallel and compared with `SHA256SUMS`, frames decoded,
//! every stretch compared with its BLAKE3 before a byte of it is handed out.
//!
//! Stretches are read ahead by tasks of their own, so that a target that is slow to write keeps nobody waiting.

mod kept;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::OnceCell;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument as _;

use self::kept::{Buffers, Cache};
use super::documents::{Commit, Refs, Sums};
use super::generation::KeyRing;
use super::manifest::{ContentDigest, Extent, Line, ManifestHead, ManifestReader, Merge, STRETCH};
use super::packer::object_head;
use super::{Repository, frame, layout, pack};
use crate::error::{Error, Kind, Result};
use crate::source::{PointContent, RestoredUnit};
use crate::types::{Digest, RunId, SourceName, UnitName};

/// Decrypted packs kept at once; each is about 16 MiB.
const PACKS_KEPT: usize = 3;
/// Decoded frames kept at once, of which only a part was asked for; each is at most 4 MiB.
const FRAMES_KEPT: usize = 4;
/// Content read ahead, bytes: three stretches.
const AHEAD_BYTES: u64 = 3 * STRETCH;
/// Content behind that, of which the next pack is fetched already, bytes.
const SCOUTED_BYTES: u64 = 4 * STRETCH;
/// Lines read ahead, however small.
const AHEAD_LINES: usize = 64;

/// A point, opened: its manifests read, its keys at hand.
pub struct OpenPoint {
    inner: Arc<Inner>,
    /// Plaintexts of its manifests, whole one first.
    manifests: Vec<(Bytes, RunId, Digest)>,
    /// The head of its newest manifest.
    pub head: ManifestHead,
}

struct Inner {
    repository: Repository,
    source: SourceName,
    identities: BTreeMap<RunId, age::x25519::Identity>,
    sums: BTreeMap<RunId, Sums>,
    packs: Cache<(RunId, u32), OnceCell<Bytes>>,
    frames: Cache<(RunId, u32, u32), Mutex<Option<Bytes>>>,
    buffers: Buffers,
}

impl OpenPoint {
    /// Opens a point: references, digests, keys, manifests.
    ///
    /// # Errors
    /// Damaged or missing objects, or no identity.
    pub async fn open(
        repository: &Repository,
        source: &SourceName,
        commit: &Commit,
        keys: &mut KeyRing,
    ) -> Result<Self> {
        let run = commit.run;
        let refs = repository.refs(source, run, commit.refs).await?;
        let mut sums = BTreeMap::from([(run, repository.sums(source, run, commit.sums).await?)]);
        for reference in refs.0.values() {
            sums.insert(
                reference.run,
                repository.sums(source, reference.run, reference.sums).await?,
            );
        }
        compare_digests(&sums[&run], commit)?;
        use base64::Engine as _;
        let wrap = base64::engine::general_purpose::STANDARD
            .decode(&commit.generation.wrap)
            .ok();
        let mut identities = BTreeMap::new();
        identities.insert(
            run,
            keys.open(repository, commit.generation.id, wrap.as_deref())
                .await?,
        );
        for reference in refs.0.values() {
            identities.insert(
                reference.run,
                keys.open(repository, reference.generation, None).await?,
            );
        }
        let inner = Inner {
            repository: repository.clone(),
            source: source.clone(),
            identities,
            sums,
            packs: Cache::new(PACKS_KEPT),
            frames: Cache::new(FRAMES_KEPT),
            buffers: Buffers::default(),
        };
        let (manifests, head) = inner.manifests(commit, &refs).await?;
        Ok(Self {
            inner: Arc::new(inner),
            manifests,
            head,
        })
    }

    /// The lines of the point, merged.
    ///
    /// # Errors
    /// A damaged manifest.
    pub fn lines(&self) -> Result<Merge<ManifestReader>> {
        let readers = self
            .manifests
            .iter()
            .map(|(plaintext, run, _)| {
                ManifestReader::new(plaintext.clone(), &format!("{run}/{}", layout::MANIFEST))
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Merge::new(readers))
    }

    /// Its chain of manifests with their digests, whole one first.
    pub fn chain(&self) -> Vec<(RunId, Digest)> {
        self.manifests
            .iter()
            .map(|(_, run, digest)| (*run, *digest))
            .collect()
    }
    /// How much content a pack holds.
    ///
    /// # Errors
    /// Damaged or missing.
    pub async fn pack_content(&self, run: RunId, number: u32) -> Result<u64> {
        let plaintext = self.inner.pack(run, number).await?;
        frame::content_length(&plaintext)
    }
    /// The content of one line, compared with its digest.
    ///
    /// # Errors
    /// Damaged or missing objects.
    pub async fn fetch(&self, line: &Line) -> Result<Bytes> {
        self.inner.fetch(line).await
    }

    /// The content, to be read in order.
    ///
    /// # Errors
    /// A damaged manifest.
    pub fn content(&self) -> Result<PointReader> {
        Ok(PointReader {
            inner: self.inner.clone(),
            lines: self.lines()?,
            scouted: VecDeque::new(),
            scouted_bytes: 0,
            fetching: None,
            ahead: VecDeque::new(),
            ahead_bytes: 0,
            waiting: None,
            unit: None,
        })
    }
}

/// The commit and `SHA256SUMS` must tell the same digests.
fn compare_digests(sums: &Sums, commit: &Commit) -> Result<()> {
    for (name, digest) in [(layout::MANIFEST, commit.manifest), (layout::REFS, commit.refs)] {
        if sums.0.get(name) != Some(&digest) {
            return Err(Error::damaged(format!(
                "the commit and SHA256SUMS of run {} disagree about {name}",
                commit.run
            )));
        }
    }
    Ok(())
}

impl Inner {
    async fn manifests(
        &self,
        commit: &Commit,
        refs: &Refs,
    ) -> Result<(Vec<(Bytes, RunId, Digest)>, ManifestHead)> {
        let mut newest_first = Vec::new();
        let mut newest_head: Option<ManifestHead> = None;
        let mut next = Some((commit.run, commit.manifest));
        while let Some((run, digest)) = next {
            if newest_first.len() as u32 >= commit.manifest_depth {
                return Err(Error::damaged(format!(
                    "the chain of manifests of run {} is longer than its commit says",
                    commit.run
                )));
            }
            if run != commit.run && !refs.0.get(&run).is_some_and(|r| r.manifest) {
                return Err(Error::damaged(format!(
                    "the manifest of run {run} is not among the references of {}",
                    commit.run
                )));
            }
            let (plaintext, head) = self.manifest(run, digest).await?;
            let parent = match (head.parent, head.parent_manifest) {
                (Some(parent), Some(digest)) => Some((parent, digest)),
                (None, None) => None,
                _ => {
                    return Err(Error::damaged(format!(
                        "the head of the manifest of run {run} is damaged"
                    )));
                }
            };
            newest_first.push((plaintext, run, digest));
            newest_head.get_or_insert(head);
            next = parent;
        }
        let head = newest_head.ok_or_else(|| Error::damaged("a point has no manifest"))?;
        let agrees = (head.at, head.partial, &head.kind, &head.facts)
            == (commit.at, commit.partial, &commit.kind, &commit.facts);
        if !agrees || newest_first.len() as u32 != commit.manifest_depth {
            return Err(Error::damaged(format!(
                "the commit and the manifest of run {} disagree",
                commit.run
            ))
            .hint("One of them was replaced; choose another point."));
        }
        newest_first.reverse();
        Ok((newest_first, head))
    }

    async fn manifest(&self, run: RunId, digest: crate::types::Digest) -> Result<(Bytes, ManifestHead)> {
        let key = layout::run_object(&self.source, run, layout::MANIFEST);
        let sealed = self.repository.read_checked(&key, digest).await?;
        let plaintext: Bytes = self.decrypt(run, layout::MANIFEST, sealed).await?;
        let head = ManifestReader::new(plaintext.clone(), key.as_str())?.head;
        if (head.repository, &head.source, head.run) != (self.repository.id(), &self.source, run) {
            return Err(Error::damaged(format!("{key} belongs elsewhere")));
        }
        Ok((plaintext, head))
    }

    async fn decrypt(&self, run: RunId, object: &str, sealed: Bytes) -> Result<Bytes> {
        let identity = self
            .identities
            .get(&run)
            .cloned()
            .ok_or_else(|| Error::damaged(format!("run {run} is not among the references")))?;
        let head = object_head(&self.repository, &self.source, run, object);
        blocking(move || pack::open_owned(sealed.into(), &identity, &head).map(Bytes::from)).await
    }

    async fn pack(&self, run: RunId, number: u32) -> Result<Bytes> {
        let cell = self.packs.cell((run, number));
        cell.get_or_try_init(|| async {
            let name = layout::pack_name(number);
            let digest = self
                .sums
                .get(&run)
                .and_then(|sums| sums.0.get(&name))
                .ok_or_else(|| {
                    Error::damaged(format!("pack {name} of run {run} is not in its SHA256SUMS"))
                })?;
            let key = layout::pack(&self.source, run, number);
            let sealed = self.repository.read_present(&key).await?;
            match self.decrypt(run, &name, sealed).await {
                Ok(plaintext) => Ok(plaintext),
                // The cipher proves every byte and the content has a digest of its own; the object's tells why.
                Err(e) => {
                    self.repository.read_checked(&key, *digest).await?;
                    Err(e)
                }
            }
        })
        .await
        .cloned()
    }

    /// Lays the content of an extent into `out`, which is as long as the extent.
    fn decode_into(&self, plaintext: &Bytes, extent: &Extent, name: &UnitName, out: &mut [u8]) -> Result<()> {
        let (at, length) = (extent.frame_at as usize, extent.frame_length as usize);
        let frame = at
            .checked_add(length)
            .and_then(|end| plaintext.get(at..end))
            .ok_or_else(|| {
                Error::damaged(format!(
                    "pack {} of run {} is shorter than its manifest says",
                    extent.pack, extent.run
                ))
            })?;
        if extent.offset == 0 && frame::content_size(frame)? == out.len() as u64 {
            return frame::decode_to(frame, out);
        }
        // Others will want the rest of it.
        let cell = self.frames.cell((extent.run, extent.pack, extent.frame_at));
        let mut decoded = cell.lock().unwrap_or_else(PoisonError::into_inner);
        let decoded = match &mut *decoded {
            Some(decoded) => decoded,
            empty => empty.insert(frame::decode(frame)?.into()),
        };
        let from = extent.offset as usize;
        let part = from
            .checked_add(out.len())
            .and_then(|to| decoded.get(from..to))
            .ok_or_else(|| Error::damaged(format!("a frame of {name} is shorter than its manifest says")))?;
        out.copy_from_slice(part);
        Ok(())
    }

    /// The content of a line, compared with its digest; nothing for the line of a large unit.
    async fn fetch(self: &Arc<Self>, line: &Line) -> Result<Bytes> {
        let (name, length, digest, extents) = match line {
            Line::Unit {
                name,
                size,
                digest,
                extents,
                ..
            } if *size <= STRETCH => (name, *size, *digest, extents),
            Line::Stretch {
                name,
                length,
                digest,
                extents,
                ..
            } => (name, u64::from(*length), *digest, extents),
            _ => return Ok(Bytes::new()),
        };
        let told: u64 = extents.iter().map(|e| u64::from(e.length)).sum();
        if told != length || length > STRETCH {
            return Err(Error::damaged(format!(
                "the manifest gives {told} bytes of {name} where there are {length}"
            )));
        }
        let mut content = self.buffers.take(length as usize);
        let mut at = 0;
        for group in extents.chunk_by(|a, b| (a.run, a.pack) == (b.run, b.pack)) {
            let plaintext = self.pack(group[0].run, group[0].pack).await?;
            let (inner, name, group) = (self.clone(), name.clone(), group.to_vec());
            (content, at) = blocking(move || {
                for extent in &group {
                    let out = &mut content.0[at..at + extent.length as usize];
                    inner.decode_into(&plaintext, extent, &name, out)?;
                    at += extent.length as usize;
                }
                Ok((content, at))
            })
            .await?;
        }
        let (content, found) = blocking(move || {
            let found: ContentDigest = *blake3::hash(&content.0).as_bytes();
            Ok((content, found))
        })
        .await?;
        if found != digest {
            return Err(Error::damaged(format!(
                "the content of {name} is not what was backed up: its BLAKE3 differs"
            ))
            .hint("Choose another point; `backup verify --content` tells how far the damage goes."));
        }
        Ok(Bytes::from_owner(content))
    }
}

/// Work that keeps a core busy.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| Error::new(Kind::Failed, "a thread ended unexpectedly").because(e))?
}

/// Content that is being read, or known to be none.
type Ahead = Option<AbortOnDropHandle<Result<Bytes>>>;

/// Reads a point's content in order.
pub struct PointReader {
    inner: Arc<Inner>,
    lines: Merge<ManifestReader>,
    /// Lines for which there was no room ahead, and their content.
    scouted: VecDeque<Line>,
    scouted_bytes: u64,
    /// The pack behind those that are being read.
    fetching: Option<((RunId, u32), AbortOnDropHandle<()>)>,
    ahead: VecDeque<(Line, Ahead)>,
    ahead_bytes: u64,
    waiting: Option<(Line, Bytes)>,
    unit: Option<Reading>,
}

struct Reading {
    size: u64,
    done: u64,
    digests: blake3::Hasher,
    digest: ContentDigest,
}

#[async_trait]
impl PointContent for PointReader {
    async fn next(&mut self) -> Result<Option<RestoredUnit>> {
        while self.unit.is_some() {
            if self.read().await?.is_none() {
                self.unit = None;
            }
        }
        let Some((line, content)) = self.take().await? else {
            return Ok(None);
        };
        let Line::Unit {
            name,
            size,
            attributes,
            digest,
            ..
        } = &line
        else {
            return Err(Error::damaged(format!(
                "a manifest has a stretch of {} without its unit",
                line.name()
            )));
        };
        let unit = RestoredUnit {
            name: name.clone(),
            size: *size,
            attributes: attributes.clone(),
        };
        self.unit = Some(Reading {
            size: *size,
            done: 0,
            digests: blake3::Hasher::new(),
            digest: *digest,
        });
        if *size <= STRETCH {
            self.waiting = Some((line, content));
        }
        Ok(Some(unit))
    }

    async fn read(&mut self) -> Result<Option<Bytes>> {
        let Some(mut reading) = self.unit.take() else {
            return Ok(None);
        };
        if reading.done == reading.size {
            if reading.size > STRETCH && reading.digests.finalize().as_bytes() != &reading.digest {
                return Err(Error::damaged(
                    "the stretches of a unit are not those that were backed up",
                ));
            }
            if reading.size == 0 {
                self.waiting = None;
            }
            return Ok(None);
        }
        let short = || Error::damaged("a manifest lacks a stretch of a unit");
        let (line, content) = self.take().await?.ok_or_else(short)?;
        if let Line::Stretch { at, digest, .. } = &line {
            if *at != reading.done {
                return Err(short());
            }
            reading.digests.update(digest);
        } else if reading.size > STRETCH {
            return Err(short());
        }
        reading.done += content.len() as u64;
        if content.is_empty() || reading.done > reading.size {
            return Err(short());
        }
        self.unit = Some(reading);
        Ok(Some(content))
    }
}

impl PointReader {
    async fn take(&mut self) -> Result<Option<(Line, Bytes)>> {
        if let Some(waiting) = self.waiting.take() {
            return Ok(Some(waiting));
        }
        self.read_ahead()?;
        let Some((line, content)) = self.ahead.pop_front() else {
            return Ok(None);
        };
        self.ahead_bytes -= content_length(&line);
        let content = match content {
            Some(task) => task
                .await
                .map_err(|e| Error::failed("a thread ended unexpectedly").because(e))??,
            None => Bytes::new(),
        };
        Ok(Some((line, content)))
    }

    /// Begins reading the next lines, as many as there is room for, and one at least; then fetches the next pack.
    fn read_ahead(&mut self) -> Result<()> {
        while self.ahead.len() < AHEAD_LINES {
            if self.scouted.is_empty() && !self.scout()? {
                return Ok(());
            }
            let Some(line) = self.scouted.pop_front() else {
                return Ok(());
            };
            let length = content_length(&line);
            if !self.ahead.is_empty() && self.ahead_bytes + length > AHEAD_BYTES {
                self.scouted.push_front(line);
                return self.fetch_next_pack();
            }
            self.scouted_bytes -= length;
            self.ahead_bytes += length;
            let task = (length > 0).then(|| {
                let (inner, line) = (self.inner.clone(), line.clone());
                let fetch = async move { inner.fetch(&line).await };
                AbortOnDropHandle::new(tokio::spawn(fetch.in_current_span()))
            });
            self.ahead.push_back((line, task));
        }
        Ok(())
    }

    /// Reads one line more of the manifest; `false`: there is none.
    fn scout(&mut self) -> Result<bool> {
        let Some(line) = self.lines.next().transpose()? else {
            return Ok(false);
        };
        self.scouted_bytes += content_length(&line);
        self.scouted.push_back(line);
        Ok(true)
    }

    /// Fetches the first pack that the lines behind draw on and those ahead do not: it is there when they come to it, and
    /// nobody waits while it is decrypted by one core.
    fn fetch_next_pack(&mut self) -> Result<()> {
        let pack_of = |e: &Extent| (e.run, e.pack);
        let current: BTreeSet<_> = self
            .ahead
            .iter()
            .flat_map(|(line, _)| line.extents().iter().map(pack_of))
            .collect();
        // One more must not drive out what is being read.
        if current.len() >= PACKS_KEPT {
            return Ok(());
        }
        while self.scouted_bytes < SCOUTED_BYTES && self.scouted.len() < AHEAD_LINES && self.scout()? {}
        let next = self
            .scouted
            .iter()
            .flat_map(|line| line.extents().iter().map(pack_of))
            .find(|pack| !current.contains(pack));
        let Some((run, number)) = next else {
            return Ok(());
        };
        if self
            .fetching
            .as_ref()
            .is_none_or(|(pack, _)| *pack != (run, number))
        {
            let inner = self.inner.clone();
            let fetch = async move {
                // Whoever reads the line meets the same error, and tells it.
                drop(inner.pack(run, number).await);
            };
            let task = tokio::spawn(fetch.in_current_span());
            self.fetching = Some(((run, number), AbortOnDropHandle::new(task)));
        }
        Ok(())
    }
}

/// Bytes of content that a line stands for by itself.
fn content_length(line: &Line) -> u64 {
    match line {
        Line::Unit { size, .. } if *size <= STRETCH => *size,
        Line::Stretch { length, .. } => u64::from(*length),
        _ => 0,
    }
}
