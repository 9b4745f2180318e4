//! Rebuilds a lost block index from the newest point, where an identity is at hand: the point is read back once, cut the
//! same way with the key that its manifest keeps, and every block's place is taken from the manifest's extents. Whatever
//! does not come out exactly ends the attempt; the run then uploads in full. Never guessed.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::chunker::Chunker;
use super::engine::Engine;
use crate::error::{Error, Kind, Result};
use crate::repository::documents::Commit;
use crate::repository::generation::KeyRing;
use crate::repository::index::{
    BlockHash, BlockPlace, ChainEntry, FramePlace, IndexHead, IndexWriter, PackEntry, RunEntry,
};
use crate::repository::layout;
use crate::repository::manifest::{Extent, Line, STRETCH};
use crate::repository::reader::OpenPoint;
use crate::source::{Attributes, Cut};
use crate::types::{RunId, UnitName, unhex};

/// An index being rebuilt.
struct Rebuild {
    index: IndexWriter,
    key: [u8; 32],
    block_size: usize,
    chunker: Chunker,
    numbers: BTreeMap<RunId, u32>,
    frames: BTreeMap<(u32, u32, u32), u32>,
    live: BTreeMap<(u32, u32), u64>,
    unit: Option<Open>,
}

/// The unit whose lines are going through.
struct Open {
    size: u64,
    cut: Cut,
    digest: [u8; 32],
    /// Content not yet cut.
    buffer: Vec<u8>,
    /// Places of what is in the buffer, in order.
    places: Vec<Extent>,
    cut_to: u64,
    stretches: Vec<(u64, u32, [u8; 32])>,
}

impl Engine {
    /// Rebuilds the index of the newest full point. `None`: there is none, or it can not be done.
    ///
    /// # Errors
    /// The store, or the state directory.
    pub(super) async fn rebuild(&self, keys: &mut KeyRing) -> Result<Option<RunId>> {
        if keys.is_empty() {
            return Ok(None);
        }
        let catalog = self.repository.catalog(&self.source).await?;
        let broken = self.repository.broken(&self.source, &catalog).await?;
        let newest = catalog.points.values().rev().find(|p| {
            !p.commit.partial
                && p.tombstoned.is_none()
                && p.commit.kind == self.kind
                && !broken.contains(&p.commit.run)
        });
        let Some(point) = newest else { return Ok(None) };
        let path = self.directory.join(format!("{}.index", point.commit.run));
        match self.rebuild_from(&point.commit, keys, path.clone()).await {
            Ok(()) => Ok(Some(point.commit.run)),
            Err(e)
                if matches!(
                    e.kind(),
                    Kind::Damaged | Kind::NoIdentity | Kind::Failed | Kind::Newer
                ) =>
            {
                tracing::warn!(source = %self.source, error = %e.chain(), "the block index can not be rebuilt; the run uploads in full");
                if let Err(e) = std::fs::remove_file(&path)
                    && e.kind() != std::io::ErrorKind::NotFound
                {
                    return Err(Error::failed(format!("can not remove {}", path.display())).because(e));
                }
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }

    async fn rebuild_from(&self, commit: &Commit, keys: &mut KeyRing, path: PathBuf) -> Result<()> {
        let open = OpenPoint::open(&self.repository, &self.source, commit, keys).await?;
        let refs = self
            .repository
            .refs(&self.source, commit.run, commit.refs)
            .await?;
        let mut runs = BTreeMap::new();
        for (number, reference) in (0..).zip(refs.0.values()) {
            runs.insert(
                number,
                RunEntry {
                    run: reference.run,
                    generation: reference.generation,
                    sums: reference.sums,
                },
            );
        }
        let own = runs.len() as u32;
        runs.insert(
            own,
            RunEntry {
                run: commit.run,
                generation: commit.generation.id,
                sums: commit.sums,
            },
        );
        let key: [u8; 32] = unhex(&open.head.index_key)
            .and_then(|k| k.try_into().ok())
            .ok_or_else(|| Error::damaged("the manifest keeps no key of block hashes"))?;
        let head = IndexHead {
            repository: self.repository.id(),
            source: self.source.clone(),
            run: commit.run,
            key: open.head.index_key.clone(),
            block_size: open.head.block_size,
        };
        let mut rebuild = Rebuild {
            index: IndexWriter::create(&path, head)?,
            chunker: Chunker::new(&key),
            key,
            block_size: open.head.block_size as usize,
            numbers: runs.iter().map(|(n, r)| (r.run, *n)).collect(),
            frames: BTreeMap::new(),
            live: BTreeMap::new(),
            unit: None,
        };
        for line in open.lines()? {
            if self.cancel.is_cancelled() {
                return Err(super::interrupted());
            }
            let line = line?;
            let content = open.fetch(&line).await?;
            rebuild.line(line, &content)?;
        }
        rebuild.end_unit()?;
        let Rebuild { index, live, .. } = rebuild;
        let mut packs = Vec::new();
        let mut sizes = BTreeMap::new();
        for ((run, pack), live) in live {
            let Some(id) = runs.get(&run).map(|r| r.run) else {
                continue;
            };
            if let std::collections::btree_map::Entry::Vacant(vacant) = sizes.entry(id) {
                vacant.insert(self.sizes_of(id).await?);
            }
            let size = sizes
                .get(&id)
                .and_then(|s| s.get(&layout::pack_name(pack)))
                .copied()
                .unwrap_or(0);
            let content = open.pack_content(id, pack).await?;
            packs.push((run, pack, PackEntry { size, content, live }));
        }
        let chain = open
            .chain()
            .into_iter()
            .map(|(run, manifest)| ChainEntry { run, manifest })
            .collect();
        index.finish_records()?.seal(runs, packs, chain)
    }
}

impl Rebuild {
    fn line(&mut self, line: Line, content: &[u8]) -> Result<()> {
        match line {
            Line::Unit {
                name,
                size,
                cut,
                attributes,
                digest,
                extents,
            } => {
                self.end_unit()?;
                self.begin(&name, size, cut, &attributes, digest)?;
                if size <= STRETCH && size > 0 {
                    self.content(content, extents, Some((0, size as u32, digest)))?;
                }
            }
            Line::Stretch {
                at,
                length,
                digest,
                extents,
                ..
            } => {
                self.content(content, extents, Some((at, length, digest)))?;
            }
            Line::Gone { .. } => {}
        }
        Ok(())
    }

    fn begin(
        &mut self,
        name: &UnitName,
        size: u64,
        cut: Cut,
        attributes: &Attributes,
        digest: [u8; 32],
    ) -> Result<()> {
        self.index.begin_unit(name, cut, attributes, None)?;
        self.unit = Some(Open {
            size,
            cut,
            digest,
            buffer: Vec::new(),
            places: Vec::new(),
            cut_to: 0,
            stretches: Vec::new(),
        });
        Ok(())
    }

    fn content(
        &mut self,
        bytes: &[u8],
        extents: Vec<Extent>,
        stretch: Option<(u64, u32, [u8; 32])>,
    ) -> Result<()> {
        let Some(mut unit) = self.unit.take() else {
            return Err(Error::damaged("a stretch without its unit"));
        };
        unit.buffer.extend_from_slice(bytes);
        unit.places.extend(extents);
        unit.stretches.extend(stretch);
        let at_end = unit.cut_to + unit.buffer.len() as u64 == unit.size;
        let mut start = 0;
        while let Some(length) = self
            .chunker
            .next(unit.cut, self.block_size, &unit.buffer[start..], at_end)
        {
            let block = &unit.buffer[start..start + length];
            let mut hash: BlockHash = [0; 16];
            hash.copy_from_slice(&blake3::keyed_hash(&self.key, block).as_bytes()[..16]);
            let place = take_place(&mut unit.places, length as u32)?;
            let place = self.place(place)?;
            self.index.block(&hash, place)?;
            start += length;
            unit.cut_to += length as u64;
            while let Some((at, length, digest)) = unit.stretches.first().copied() {
                if unit.cut_to < at + u64::from(length) {
                    break;
                }
                unit.stretches.remove(0);
                self.index.end_stretch(at, length, &digest)?;
            }
        }
        unit.buffer.drain(..start);
        self.unit = Some(unit);
        Ok(())
    }

    fn place(&mut self, extent: Extent) -> Result<BlockPlace> {
        let run = *self
            .numbers
            .get(&extent.run)
            .ok_or_else(|| Error::damaged("a manifest names a run that refs do not"))?;
        let frame = match self.frames.get(&(run, extent.pack, extent.frame_at)) {
            Some(frame) => *frame,
            None => {
                let frame = self.index.new_frame();
                let place = FramePlace {
                    run,
                    pack: extent.pack,
                    at: extent.frame_at,
                    length: extent.frame_length,
                };
                self.index.place_frame(frame, place);
                self.frames.insert((run, extent.pack, extent.frame_at), frame);
                frame
            }
        };
        *self.live.entry((run, extent.pack)).or_insert(0) += u64::from(extent.length);
        Ok(BlockPlace {
            frame,
            offset: extent.offset,
            length: extent.length,
        })
    }

    fn end_unit(&mut self) -> Result<()> {
        let Some(unit) = self.unit.take() else {
            return Ok(());
        };
        if !unit.buffer.is_empty()
            || !unit.places.is_empty()
            || !unit.stretches.is_empty()
            || unit.cut_to != unit.size
        {
            return Err(Error::failed("the point does not cut the way its manifest says"));
        }
        self.index.end_unit(unit.size, &unit.digest)
    }
}

/// Takes so many bytes from the front of the extents; they must lie side by side in one frame.
fn take_place(places: &mut Vec<Extent>, length: u32) -> Result<Extent> {
    let off = || Error::failed("the point does not cut the way its manifest says");
    let mut taken: Option<Extent> = None;
    let mut missing = length;
    while missing > 0 {
        let first = places.first_mut().ok_or_else(off)?;
        let part = first.length.min(missing);
        match &mut taken {
            None => {
                taken = Some(Extent {
                    length: part,
                    ..*first
                })
            }
            Some(t) => {
                let beside = (t.run, t.pack, t.frame_at, t.offset + t.length)
                    == (first.run, first.pack, first.frame_at, first.offset);
                if !beside {
                    return Err(off());
                }
                t.length += part;
            }
        }
        first.offset += part;
        first.length -= part;
        missing -= part;
        if first.length == 0 {
            places.remove(0);
        }
    }
    taken.ok_or_else(off)
}
