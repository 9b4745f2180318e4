//! Cuts content into blocks, tells new ones from known ones, fills frames with the new ones, and writes the block
//! index as it goes.

use std::collections::{BTreeSet, HashMap};

use super::chunker::Chunker;
use crate::error::{Error, Result};
use crate::repository::frame::FRAME_CONTENT_MAX;
use crate::repository::index::{
    BlockHash, BlockPlace, FramePlace, Index, IndexWriter, Record, Records, UnitRecord,
};
use crate::repository::manifest::STRETCH;
use crate::repository::packer::{Packed, Packer};
use crate::source::stamps::Stamps;
use crate::source::{Cut, UnitHead};
use crate::types::UnitName;

/// The most index records of a unit that is taken over unread.
const RECORDS_MAX: usize = 1 << 20;

/// A pack as the old index numbers it: run number and pack number.
pub type PackName = (u32, u32);

/// What the last run left: its index, and the packs that may not be drawn on.
pub struct Old {
    /// The index.
    pub index: Index,
    /// Packs whose blocks count as changed: damaged, missing, or less than 40 % used.
    pub distrusted: BTreeSet<PackName>,
}

impl Old {
    /// Units with a stamp that are taken over unread when their stamp is the same.
    ///
    /// # Errors
    /// The state directory.
    pub fn stamps(&self) -> Result<Stamps> {
        let mut records = self.index.records()?;
        Stamps::collect(std::iter::from_fn(move || {
            let (mut unit, mut trusted) = (None::<UnitRecord>, true);
            loop {
                match records.next()? {
                    Ok(Record::Unit(next)) => (unit, trusted) = (Some(next), true),
                    Ok(Record::Block(_, place)) => trusted &= self.trusts(place),
                    Ok(Record::Stretch { .. }) => {}
                    Ok(Record::End) => {
                        if let Some(UnitRecord {
                            name,
                            stamp: Some(stamp),
                            ..
                        }) = unit.take()
                            && trusted
                        {
                            return Some(Ok((name, stamp)));
                        }
                    }
                    Err(e) => return Some(Err(e)),
                }
            }
        }))
    }
    fn trusts(&self, place: BlockPlace) -> bool {
        self.index
            .frames
            .get(place.frame as usize)
            .is_some_and(|f| !self.distrusted.contains(&(f.run, f.pack)))
    }
}

#[derive(Clone, Copy)]
enum Known {
    Old(BlockPlace),
    New(BlockPlace),
}

/// Counts of a run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Size of the content.
    pub content: u64,
    /// Bytes read from the source.
    pub read: u64,
    /// Of the content, already in the store.
    pub reused: u64,
}

/// The unit that is being cut.
struct Unit {
    cut: Cut,
    buffer: Vec<u8>,
    /// Start of what is not yet cut in the buffer.
    start: usize,
    size: u64,
    /// Bytes given to blocks so far.
    cut_to: u64,
    stretch_at: u64,
    stretch: blake3::Hasher,
    stretch_length: u64,
    /// Stretches hashed and not yet recorded: their last block is not cut yet.
    pending: Vec<(u64, u32, [u8; 32])>,
    digests: blake3::Hasher,
    only: Option<[u8; 32]>,
    stretches: u64,
}

/// Cuts the content of one run.
pub struct Cutter {
    key: [u8; 32],
    block_size: usize,
    chunker: Chunker,
    old: Option<Old>,
    old_records: Option<std::iter::Peekable<Records>>,
    in_old_unit: bool,
    chunks: HashMap<BlockHash, Known>,
    /// Old frame number → number in the new index.
    moved: HashMap<u32, u32>,
    /// The new index.
    pub index: IndexWriter,
    frame: Vec<u8>,
    frame_number: Option<u32>,
    /// Numbers in the new index of the frames given to the packer, in order.
    pushed: Vec<u32>,
    /// Content used, by frame number in the new index.
    pub live: Vec<u64>,
    last_name: Option<UnitName>,
    unit: Option<Unit>,
    /// Counts so far.
    pub counts: Counts,
}

impl Cutter {
    /// Begins.
    ///
    /// # Errors
    /// The state directory.
    pub fn new(key: [u8; 32], block_size: u32, old: Option<Old>, index: IndexWriter) -> Result<Self> {
        let mut chunks = HashMap::new();
        let mut old_records = None;
        if let Some(old) = &old {
            for (hash, place) in old.index.stream_blocks()? {
                if old.trusts(place) {
                    chunks.insert(hash, Known::Old(place));
                }
            }
            old_records = Some(old.index.records()?.peekable());
        }
        Ok(Self {
            chunker: Chunker::new(&key),
            key,
            block_size: block_size as usize,
            old,
            old_records,
            in_old_unit: false,
            chunks,
            moved: HashMap::new(),
            index,
            frame: Vec::new(),
            frame_number: None,
            pushed: Vec::new(),
            live: Vec::new(),
            last_name: None,
            unit: None,
            counts: Counts::default(),
        })
    }

    /// Begins a unit. `true`: the stamp is known, everything of it was taken over, and its content is not to be read.
    ///
    /// # Errors
    /// The state directory; a unit out of order.
    pub fn begin(&mut self, head: &UnitHead) -> Result<bool> {
        if self.last_name.as_ref().is_some_and(|last| *last >= head.name) {
            return Err(Error::failed(format!(
                "the source gave {} out of order",
                head.name
            )));
        }
        self.last_name = Some(head.name.clone());
        let known = self.find_old(&head.name)?;
        if let Some(known) = &known
            && head
                .stamp
                .as_deref()
                .is_some_and(|s| !s.is_empty() && known.stamp.as_deref() == Some(s))
            && self.take_over(head, known)?
        {
            return Ok(true);
        }
        // Positions are compared for page files and whole objects that were cut the same way.
        if known.as_ref().is_some_and(|k| k.cut != head.cut) {
            self.in_old_unit = false;
        }
        self.index
            .begin_unit(&head.name, head.cut, &head.attributes, head.stamp.as_deref())?;
        self.unit = Some(Unit {
            cut: head.cut,
            buffer: Vec::new(),
            start: 0,
            size: 0,
            cut_to: 0,
            stretch_at: 0,
            stretch: blake3::Hasher::new(),
            stretch_length: 0,
            pending: Vec::new(),
            digests: blake3::Hasher::new(),
            only: None,
            stretches: 0,
        });
        Ok(false)
    }

    /// Moves the old records to a unit of this name, if there is one.
    fn find_old(&mut self, name: &UnitName) -> Result<Option<UnitRecord>> {
        self.in_old_unit = false;
        let Some(records) = &mut self.old_records else {
            return Ok(None);
        };
        loop {
            let passed = match records.peek() {
                None => return Ok(None),
                Some(Ok(Record::Unit(unit))) if unit.name > *name => return Ok(None),
                Some(_) => records.next(),
            };
            match passed {
                Some(Ok(Record::Unit(unit))) if unit.name == *name => {
                    self.in_old_unit = true;
                    return Ok(Some(unit));
                }
                Some(Err(e)) => return Err(e),
                _ => {}
            }
        }
    }

    /// The next block of the old unit, by position.
    fn next_old_block(&mut self) -> Result<Option<(BlockHash, BlockPlace)>> {
        let Some(records) = self.old_records.as_mut().filter(|_| self.in_old_unit) else {
            return Ok(None);
        };
        loop {
            match records.next().transpose()? {
                Some(Record::Block(hash, place)) => return Ok(Some((hash, place))),
                Some(Record::Stretch { .. }) => {}
                Some(Record::Unit(_) | Record::End) | None => {
                    self.in_old_unit = false;
                    return Ok(None);
                }
            }
        }
    }

    /// Takes a whole unit over unread, unless one of its packs is distrusted.
    fn take_over(&mut self, head: &UnitHead, known: &UnitRecord) -> Result<bool> {
        let mut taken = Vec::new();
        if let Some(records) = self.old_records.as_mut() {
            for record in records.by_ref() {
                match record? {
                    Record::End | Record::Unit(_) => break,
                    record => taken.push(record),
                }
                if taken.len() > RECORDS_MAX {
                    return Err(Error::failed(format!(
                        "{} has too many blocks for a unit with a stamp",
                        head.name
                    )));
                }
            }
        }
        self.in_old_unit = false;
        let trusted = self.old.as_ref().is_some_and(|old| {
            taken
                .iter()
                .all(|r| !matches!(r, Record::Block(_, place) if !old.trusts(*place)))
        });
        if !trusted {
            return Ok(false);
        }
        self.index
            .begin_unit(&head.name, known.cut, &head.attributes, head.stamp.as_deref())?;
        for record in taken {
            match record {
                Record::Block(hash, place) => {
                    let place = self.adopt(place)?;
                    self.index.block(&hash, place)?;
                }
                Record::Stretch { at, length, digest } => self.index.end_stretch(at, length, &digest)?,
                Record::Unit(_) | Record::End => {}
            }
        }
        self.index.end_unit(known.size, &known.digest)?;
        self.counts.content += known.size;
        self.counts.reused += known.size;
        Ok(true)
    }

    /// A known block's place in the new index.
    fn adopt(&mut self, place: BlockPlace) -> Result<BlockPlace> {
        let old = self
            .old
            .as_ref()
            .ok_or_else(|| Error::failed("there is no old index"))?;
        let frame = match self.moved.get(&place.frame) {
            Some(frame) => *frame,
            None => {
                let where_it_is = old
                    .index
                    .frames
                    .get(place.frame as usize)
                    .copied()
                    .ok_or_else(|| Error::failed("the block index is damaged"))?;
                let frame = self.index.new_frame();
                self.index.place_frame(frame, where_it_is);
                self.moved.insert(place.frame, frame);
                frame
            }
        };
        self.use_frame(frame, place.length);
        Ok(BlockPlace { frame, ..place })
    }

    fn use_frame(&mut self, frame: u32, length: u32) {
        if self.live.len() <= frame as usize {
            self.live.resize(frame as usize + 1, 0);
        }
        self.live[frame as usize] += u64::from(length);
    }

    /// Takes the next bytes of the unit.
    ///
    /// # Errors
    /// The state directory, or the packer.
    pub async fn push(&mut self, bytes: &[u8], packer: &mut Packer) -> Result<()> {
        let Some(mut unit) = self.unit.take() else {
            return Err(Error::failed("content without a unit"));
        };
        unit.take(bytes);
        self.counts.read += bytes.len() as u64;
        while let Some(length) =
            self.chunker
                .next(unit.cut, self.block_size, &unit.buffer[unit.start..], false)
        {
            self.block(&mut unit, length, packer).await?;
        }
        unit.compact();
        self.unit = Some(unit);
        Ok(())
    }

    async fn block(&mut self, unit: &mut Unit, length: usize, packer: &mut Packer) -> Result<()> {
        let bytes = &unit.buffer[unit.start..unit.start + length];
        let mut hash: BlockHash = [0; 16];
        hash.copy_from_slice(&blake3::keyed_hash(&self.key, bytes).as_bytes()[..16]);
        let known = match unit.cut {
            Cut::Stream => self.chunks.get(&hash).copied(),
            Cut::Pages | Cut::Whole => self
                .next_old_block()?
                .filter(|(h, _)| *h == hash)
                .map(|(_, p)| Known::Old(p)),
        };
        let place = match known {
            Some(Known::New(place)) if place.length as usize == length => {
                self.use_frame(place.frame, place.length);
                self.counts.reused += length as u64;
                place
            }
            Some(Known::Old(place))
                if place.length as usize == length && self.old.as_ref().is_some_and(|o| o.trusts(place)) =>
            {
                self.counts.reused += length as u64;
                self.adopt(place)?
            }
            _ => {
                let place = self.new_block(bytes, packer).await?;
                if unit.cut == Cut::Stream {
                    self.chunks.insert(hash, Known::New(place));
                }
                place
            }
        };
        self.index.block(&hash, place)?;
        unit.start += length;
        unit.cut_to += length as u64;
        self.record_stretches(unit)
    }

    /// Records the stretches whose last block is cut.
    fn record_stretches(&mut self, unit: &mut Unit) -> Result<()> {
        while let Some((at, stretch, digest)) = unit.pending.first().copied() {
            if unit.cut_to < at + u64::from(stretch) {
                break;
            }
            unit.pending.remove(0);
            self.index.end_stretch(at, stretch, &digest)?;
        }
        Ok(())
    }

    async fn new_block(&mut self, bytes: &[u8], packer: &mut Packer) -> Result<BlockPlace> {
        if self.frame.len() + bytes.len() > FRAME_CONTENT_MAX {
            self.flush_frame(packer).await?;
        }
        let frame = match self.frame_number {
            Some(frame) => frame,
            None => {
                self.frame = packer.buffer();
                let frame = self.index.new_frame();
                self.frame_number = Some(frame);
                frame
            }
        };
        let place = BlockPlace {
            frame,
            offset: self.frame.len() as u32,
            length: bytes.len() as u32,
        };
        self.frame.extend_from_slice(bytes);
        self.use_frame(frame, place.length);
        Ok(place)
    }

    async fn flush_frame(&mut self, packer: &mut Packer) -> Result<()> {
        if let Some(number) = self.frame_number.take() {
            self.pushed.push(number);
            packer.push(std::mem::take(&mut self.frame)).await?;
        }
        Ok(())
    }

    /// Ends the unit.
    ///
    /// # Errors
    /// The state directory, or the packer.
    pub async fn end(&mut self, packer: &mut Packer) -> Result<()> {
        let Some(mut unit) = self.unit.take() else {
            return Err(Error::failed("the end of no unit"));
        };
        unit.end_stretch();
        while let Some(length) =
            self.chunker
                .next(unit.cut, self.block_size, &unit.buffer[unit.start..], true)
        {
            self.block(&mut unit, length, packer).await?;
        }
        self.record_stretches(&mut unit)?;
        let digest = match unit.only {
            Some(digest) if unit.stretches == 1 => digest,
            _ if unit.size == 0 => *blake3::hash(b"").as_bytes(),
            _ => *unit.digests.finalize().as_bytes(),
        };
        self.index.end_unit(unit.size, &digest)?;
        self.counts.content += unit.size;
        Ok(())
    }

    /// Gives the last frame to the packer.
    ///
    /// # Errors
    /// The packer.
    pub async fn flush(&mut self, packer: &mut Packer) -> Result<()> {
        self.flush_frame(packer).await
    }

    /// Tells the new index where the packer put the frames.
    ///
    /// # Errors
    /// The packer lost one.
    pub fn place(&mut self, run_number: u32, packed: &Packed) -> Result<()> {
        if packed.frames.len() != self.pushed.len() {
            return Err(Error::failed("the packer lost a frame"));
        }
        for (number, placed) in self.pushed.drain(..).zip(&packed.frames) {
            let place = FramePlace {
                run: run_number,
                pack: placed.pack,
                at: placed.at,
                length: placed.length,
            };
            self.index.place_frame(number, place);
        }
        Ok(())
    }

    /// Whether the run may be cut here: between units, or in one whose finished stretches are all recorded.
    pub fn can_cut(&self) -> bool {
        self.unit.as_ref().is_none_or(|u| u.pending.is_empty())
    }

    /// Ends the unit under way in the index of a cut, after its last finished stretch. The blocks beyond stay known.
    fn end_part(&self, part: &mut IndexWriter) -> Result<()> {
        let Some(unit) = &self.unit else { return Ok(()) };
        let digest = match unit.only {
            Some(digest) if unit.stretches == 1 => digest,
            _ if unit.stretches == 0 => *blake3::hash(b"").as_bytes(),
            _ => *unit.digests.finalize().as_bytes(),
        };
        part.end_unit(unit.stretch_at, &digest)
    }

    /// Ends the index of a cut with the units of the old index that were not reached yet, so that a run after a crash
    /// knows them too.
    ///
    /// # Errors
    /// The state directory.
    pub fn append_rest(&self, part: &mut IndexWriter, live: &mut Vec<u64>) -> Result<()> {
        self.end_part(part)?;
        let Some(old) = &self.old else { return Ok(()) };
        let mut moved = self.moved.clone();
        let mut taking = None;
        for record in old.index.records()? {
            match record? {
                Record::Unit(unit) => {
                    taking = None;
                    if self.last_name.as_ref().is_none_or(|last| unit.name > *last) {
                        part.begin_unit(&unit.name, unit.cut, &unit.attributes, unit.stamp.as_deref())?;
                        taking = Some(unit);
                    }
                }
                Record::Block(hash, place) if taking.is_some() => {
                    let known = moved.get(&place.frame).copied();
                    let frame = match (known, old.index.frames.get(place.frame as usize)) {
                        (Some(frame), _) => frame,
                        (None, Some(at)) => {
                            let frame = part.new_frame();
                            part.place_frame(frame, *at);
                            moved.insert(place.frame, frame);
                            frame
                        }
                        (None, None) => return Err(Error::failed("the block index is damaged")),
                    };
                    if live.len() <= frame as usize {
                        live.resize(frame as usize + 1, 0);
                    }
                    live[frame as usize] += u64::from(place.length);
                    part.block(&hash, BlockPlace { frame, ..place })?;
                }
                Record::Stretch { at, length, digest } if taking.is_some() => {
                    part.end_stretch(at, length, &digest)?
                }
                Record::End => {
                    if let Some(unit) = taking.take() {
                        part.end_unit(unit.size, &unit.digest)?;
                    }
                }
                Record::Block(..) | Record::Stretch { .. } => {}
            }
        }
        Ok(())
    }

    /// The old side.
    pub fn old(&self) -> Option<&Old> {
        self.old.as_ref()
    }
}

impl Unit {
    fn take(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
        self.size += bytes.len() as u64;
        let mut rest = bytes;
        while !rest.is_empty() {
            let room = (STRETCH - self.stretch_length) as usize;
            let (now, later) = rest.split_at(room.min(rest.len()));
            self.stretch.update(now);
            self.stretch_length += now.len() as u64;
            if self.stretch_length == STRETCH {
                self.end_stretch();
            }
            rest = later;
        }
    }
    fn end_stretch(&mut self) {
        if self.stretch_length == 0 {
            return;
        }
        let digest = *self.stretch.finalize().as_bytes();
        self.pending
            .push((self.stretch_at, self.stretch_length as u32, digest));
        self.digests.update(&digest);
        self.only = Some(digest);
        self.stretches += 1;
        self.stretch_at += self.stretch_length;
        self.stretch_length = 0;
        self.stretch.reset();
    }
    /// Drops what was cut, seldom enough to be cheap.
    fn compact(&mut self) {
        if self.start == self.buffer.len() {
            self.buffer.clear();
            self.start = 0;
        } else if self.start > 8 << 20 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
    }
}
