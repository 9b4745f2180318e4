//! From the records of an index to the lines of a manifest.

use super::{BlockPlace, FramePlace, Record, Records, UnitRecord};
use crate::error::{Error, Result};
use crate::repository::manifest::{Extent, Line, STRETCH};
use crate::types::RunId;

/// Turns records into manifest lines. `run_of` numbers → runs.
pub struct Lines<'a> {
    records: Records,
    frames: &'a [FramePlace],
    run_of: &'a dyn Fn(u32) -> Option<RunId>,
    unit: Option<UnitRecord>,
    extents: Vec<Extent>,
    /// Content in `extents`.
    filled: u64,
    /// What of the last block belongs to the next stretch: chunks do not end where stretches do.
    carried: Option<Extent>,
}

impl<'a> Lines<'a> {
    /// The lines of these records.
    pub fn new(records: Records, frames: &'a [FramePlace], run_of: &'a dyn Fn(u32) -> Option<RunId>) -> Self {
        Self {
            records,
            frames,
            run_of,
            unit: None,
            extents: Vec::new(),
            filled: 0,
            carried: None,
        }
    }
    /// Where the current line ends: at its stretch, or at the end of a small unit.
    fn limit(&self) -> u64 {
        self.unit
            .as_ref()
            .map_or(STRETCH, |u| if u.size > STRETCH { STRETCH } else { u.size })
    }
    /// Hands out the extents so far and begins anew with what was carried over.
    fn take_extents(&mut self) -> Vec<Extent> {
        let done = std::mem::take(&mut self.extents);
        self.filled = 0;
        if let Some(carried) = self.carried.take() {
            self.filled = u64::from(carried.length);
            self.extents.push(carried);
        }
        done
    }
    fn extend(&mut self, place: BlockPlace) -> Result<()> {
        // So that no sum below goes over: no frame holds as much.
        if place.offset.checked_add(place.length).is_none() {
            return Err(Error::failed("the block index is damaged"));
        }
        let room = self.limit().saturating_sub(self.filled);
        let now = u32::try_from(room).unwrap_or(u32::MAX).min(place.length);
        if now < place.length {
            let rest = BlockPlace {
                offset: place.offset + now,
                length: place.length - now,
                ..place
            };
            self.carried = Some(self.extent(rest)?);
        }
        if now > 0 {
            self.filled += u64::from(now);
            self.append(BlockPlace { length: now, ..place })?;
        }
        Ok(())
    }
    fn extent(&self, place: BlockPlace) -> Result<Extent> {
        let bad = || Error::failed("the block index is damaged");
        let frame = self.frames.get(place.frame as usize).ok_or_else(bad)?;
        Ok(Extent {
            run: (self.run_of)(frame.run).ok_or_else(bad)?,
            pack: frame.pack,
            frame_at: frame.at,
            frame_length: frame.length,
            offset: place.offset,
            length: place.length,
        })
    }
    fn append(&mut self, place: BlockPlace) -> Result<()> {
        let extent = self.extent(place)?;
        if let Some(last) = self.extents.last_mut()
            && (last.run, last.pack, last.frame_at) == (extent.run, extent.pack, extent.frame_at)
            && last.offset.checked_add(last.length) == Some(extent.offset)
        {
            last.length += extent.length;
            return Ok(());
        }
        self.extents.push(extent);
        Ok(())
    }
    fn step(&mut self) -> Result<Option<Line>> {
        while let Some(record) = self.records.next() {
            match record? {
                Record::Unit(unit) => {
                    self.carried = None;
                    self.take_extents();
                    let large = unit.size > STRETCH;
                    self.unit = Some(unit.clone());
                    if large {
                        return Ok(Some(unit_line(unit, Vec::new())));
                    }
                }
                Record::Block(_, place) => self.extend(place)?,
                Record::Stretch { at, length, digest } => {
                    let name = self
                        .unit
                        .as_ref()
                        .filter(|u| u.size > STRETCH)
                        .map(|u| u.name.clone());
                    if let Some(name) = name {
                        let extents = self.take_extents();
                        return Ok(Some(Line::Stretch {
                            name,
                            at,
                            length,
                            digest,
                            extents,
                        }));
                    }
                }
                Record::End => {
                    if let Some(unit) = self.unit.take().filter(|u| u.size <= STRETCH) {
                        self.carried = None;
                        let extents = self.take_extents();
                        return Ok(Some(unit_line(unit, extents)));
                    }
                }
            }
        }
        Ok(None)
    }
}

fn unit_line(unit: UnitRecord, extents: Vec<Extent>) -> Line {
    Line::Unit {
        name: unit.name,
        size: unit.size,
        cut: unit.cut,
        attributes: unit.attributes,
        digest: unit.digest,
        extents,
    }
}

impl Iterator for Lines<'_> {
    type Item = Result<Line>;
    fn next(&mut self) -> Option<Self::Item> {
        self.step().transpose()
    }
}
