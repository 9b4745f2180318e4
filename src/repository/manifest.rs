//! Manifests: what a run contains. Sorted NDJSON in zstd frames; a whole one, then differences, merged in one pass.
//!
//! ```text
//! {"format":1,…,"runs":[[0,"01J…","01J…"]],…}                                   head: the run table numbers the runs
//! {"unit":"data.db","size":33554432,"cut":"pages","attributes":{},"blake3":"…"}   a large unit
//! {"unit":"data.db","at":0,"length":16777216,"blake3":"…","extents":[[0,0,107,81234,0,4194304],…]}
//! {"unit":"globals.sql","size":812,"cut":"whole","attributes":{},"blake3":"…","extents":[[0,2,107,300,0,812]]}
//! {"unit":"storage/x","gone":true}                                               in differences only
//! ```
//!
//! An extent is `[run number, pack, position of the frame in the pack's plaintext, its length, offset in the frame's
//! content, length]`. A unit of at most 16 MiB is one line; a larger one is a line without extents and a line for
//! each 16 MiB stretch, and its `blake3` is the BLAKE3 of its stretches' digests laid end to end. In a merge the
//! newest line of each `(unit, at)` counts, and stretches at or beyond the unit's size are dropped: a stretch that
//! comes into being or changes is always written anew, so an older one is right if nothing newer stands.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::iter::Peekable;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::frame::FrameEncoder;
use crate::error::{Error, Result};
use crate::source::{Attributes, Cut};
use crate::types::{Digest, GenerationId, RepositoryId, RunId, SourceName, UnitName, hex, unhex};

/// The length of a stretch.
pub const STRETCH: u64 = 16 << 20;
/// The most differences after a whole manifest, so that a reader merges nine.
pub const DIFFERENCES_MAX: u32 = 8;
/// The content at which a frame of lines is closed.
const LINES_FRAME: usize = 1 << 20;
/// The longest line: a stretch of 4 KiB extents.
const LINE_MAX: usize = 4 << 20;

/// A BLAKE3 of content.
pub type ContentDigest = [u8; 32];

/// A byte range of a frame's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Run that wrote the pack.
    pub run: RunId,
    /// Pack number.
    pub pack: u32,
    /// Position of the frame in the pack's plaintext.
    pub frame_at: u32,
    /// Length of the frame.
    pub frame_length: u32,
    /// Offset in the frame's content.
    pub offset: u32,
    /// Length.
    pub length: u32,
}

/// A line, with runs by id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// A unit; with extents when it is at most a stretch long.
    Unit {
        /// Name.
        name: UnitName,
        /// Bytes.
        size: u64,
        /// How it was cut.
        cut: Cut,
        /// Attributes.
        attributes: Attributes,
        /// Digest, see the module.
        digest: ContentDigest,
        /// Where the content is.
        extents: Vec<Extent>,
    },
    /// A stretch of a large unit.
    Stretch {
        /// Name of the unit.
        name: UnitName,
        /// Offset in the unit, a multiple of [`STRETCH`].
        at: u64,
        /// Length, at most [`STRETCH`].
        length: u32,
        /// BLAKE3 of its content.
        digest: ContentDigest,
        /// Where the content is.
        extents: Vec<Extent>,
    },
    /// A unit that the parent had.
    Gone {
        /// Name.
        name: UnitName,
    },
}

impl Line {
    /// The unit's name.
    pub fn name(&self) -> &UnitName {
        match self {
            Self::Unit { name, .. } | Self::Stretch { name, .. } | Self::Gone { name } => name,
        }
    }
    /// The order of lines: by unit, the unit's own line first.
    pub fn order(&self) -> (&UnitName, Option<u64>) {
        match self {
            Self::Stretch { name, at, .. } => (name, Some(*at)),
            other => (other.name(), None),
        }
    }
    /// Its extents.
    pub fn extents(&self) -> &[Extent] {
        match self {
            Self::Unit { extents, .. } | Self::Stretch { extents, .. } => extents,
            Self::Gone { .. } => &[],
        }
    }
}

/// The head of a manifest. Facts that decide a restore stand here too and must agree with the commit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ManifestHead {
    /// Repository format.
    pub format: u32,
    /// The repository.
    pub repository: RepositoryId,
    /// The source.
    pub source: SourceName,
    /// Kind of source.
    pub kind: String,
    /// The run.
    pub run: RunId,
    /// The instant it restores to.
    pub at: DateTime<Utc>,
    /// A cut of a long run.
    pub partial: bool,
    /// The run whose manifest this one is the difference from; none: it is whole.
    pub parent: Option<RunId>,
    /// Digest of that manifest's object.
    pub parent_manifest: Option<Digest>,
    /// How many manifests a reader merges.
    pub depth: u32,
    /// The run table: number, run, generation.
    pub runs: Vec<(u32, RunId, GenerationId)>,
    /// Keyed BLAKE3 key and block size of this run's block index, from which an index can be rebuilt.
    pub index_key: String,
    /// Block size of page files, bytes.
    pub block_size: u32,
    /// Engine facts, as in the commit.
    pub facts: serde_json::Value,
}

/// How a line is spelled.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Spelled {
    unit: UnitName,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    at: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    length: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cut: Option<Cut>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    attributes: Option<Attributes>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    blake3: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    extents: Option<Vec<[u32; 6]>>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    gone: bool,
}

/// Numbers of runs, both ways.
#[derive(Clone, Debug, Default)]
pub struct RunTable {
    by_number: BTreeMap<u32, (RunId, GenerationId)>,
    by_run: BTreeMap<RunId, u32>,
}

impl RunTable {
    /// From the head's table.
    pub fn new(runs: &[(u32, RunId, GenerationId)]) -> Self {
        Self {
            by_number: runs.iter().map(|(n, r, g)| (*n, (*r, *g))).collect(),
            by_run: runs.iter().map(|(n, r, _)| (*r, *n)).collect(),
        }
    }
    /// The runs and their generations.
    pub fn runs(&self) -> impl Iterator<Item = (RunId, GenerationId)> + '_ {
        self.by_number.values().copied()
    }
}

fn spell(line: &Line, table: &RunTable) -> Result<Spelled> {
    let spell_extents = |extents: &[Extent]| -> Result<Vec<[u32; 6]>> {
        extents
            .iter()
            .map(|e| {
                let run = table.by_run.get(&e.run).ok_or_else(|| {
                    Error::failed(format!("run {} is missing in the manifest's table", e.run))
                })?;
                Ok([*run, e.pack, e.frame_at, e.frame_length, e.offset, e.length])
            })
            .collect()
    };
    let mut spelled = Spelled {
        unit: line.name().clone(),
        at: None,
        length: None,
        size: None,
        cut: None,
        attributes: None,
        blake3: None,
        extents: None,
        gone: false,
    };
    match line {
        Line::Unit {
            size,
            cut,
            attributes,
            digest,
            extents,
            ..
        } => {
            spelled.size = Some(*size);
            spelled.cut = Some(*cut);
            spelled.attributes = Some(attributes.clone());
            spelled.blake3 = Some(hex(digest));
            spelled.extents = if *size <= STRETCH {
                Some(spell_extents(extents)?)
            } else {
                None
            };
        }
        Line::Stretch {
            at,
            length,
            digest,
            extents,
            ..
        } => {
            spelled.at = Some(*at);
            spelled.length = Some(*length);
            spelled.blake3 = Some(hex(digest));
            spelled.extents = Some(spell_extents(extents)?);
        }
        Line::Gone { .. } => spelled.gone = true,
    }
    Ok(spelled)
}

fn unspell(text: &[u8], table: &RunTable) -> Result<Line> {
    let bad = |why: &str| Error::damaged(format!("a line of a manifest is damaged: {why}"));
    let s: Spelled = serde_json::from_slice(text).map_err(|e| bad(&e.to_string()))?;
    if s.gone {
        return Ok(Line::Gone { name: s.unit });
    }
    let digest: ContentDigest = s
        .blake3
        .as_deref()
        .and_then(unhex)
        .and_then(|v| v.try_into().ok())
        .ok_or_else(|| bad("no digest"))?;
    let extents = s
        .extents
        .unwrap_or_default()
        .into_iter()
        .map(|[run, pack, frame_at, frame_length, offset, length]| {
            let (run, _) = *table
                .by_number
                .get(&run)
                .ok_or_else(|| bad("a run that is not in the table"))?;
            Ok(Extent {
                run,
                pack,
                frame_at,
                frame_length,
                offset,
                length,
            })
        })
        .collect::<Result<Vec<_>>>()?;
    let told: u64 = extents.iter().map(|e| u64::from(e.length)).sum();
    match (s.at, s.size) {
        (Some(at), None) => {
            let length = s.length.ok_or_else(|| bad("no length"))?;
            if at % STRETCH != 0 || u64::from(length) > STRETCH || told != u64::from(length) {
                return Err(bad("its extents do not fill it"));
            }
            Ok(Line::Stretch {
                name: s.unit,
                at,
                length,
                digest,
                extents,
            })
        }
        (None, Some(size)) => {
            if told != if size <= STRETCH { size } else { 0 } {
                return Err(bad("its extents do not fill it"));
            }
            Ok(Line::Unit {
                name: s.unit,
                size,
                cut: s.cut.ok_or_else(|| bad("no cut"))?,
                attributes: s.attributes.unwrap_or_default(),
                digest,
                extents,
            })
        }
        _ => Err(bad("neither a unit nor a stretch")),
    }
}

/// Writes a manifest's plaintext (without the pack head): lines must come in order.
pub struct ManifestWriter {
    table: RunTable,
    encoder: FrameEncoder,
    frame: Vec<u8>,
    out: Vec<u8>,
}

impl ManifestWriter {
    /// Begins with the head line; `out` may already hold the pack head.
    ///
    /// # Errors
    /// None in practice.
    pub fn new(head: &ManifestHead, out: Vec<u8>) -> Result<Self> {
        let mut frame = super::documents::to_json(head)?;
        frame.push(b'\n');
        Ok(Self {
            table: RunTable::new(&head.runs),
            encoder: FrameEncoder::new()?,
            frame,
            out,
        })
    }
    /// Adds a line.
    ///
    /// # Errors
    /// The encoder, or a run that is not in the table.
    pub fn push(&mut self, line: &Line) -> Result<()> {
        self.frame
            .extend(super::documents::to_json(&spell(line, &self.table)?)?);
        self.frame.push(b'\n');
        if self.frame.len() >= LINES_FRAME {
            self.flush()
        } else {
            Ok(())
        }
    }
    fn flush(&mut self) -> Result<()> {
        for piece in self.frame.chunks(super::frame::FRAME_CONTENT_MAX) {
            let frame = self.encoder.encode(piece)?;
            self.out.extend_from_slice(&frame);
        }
        self.frame.clear();
        Ok(())
    }
    /// The plaintext.
    ///
    /// # Errors
    /// The encoder.
    pub fn finish(mut self) -> Result<Vec<u8>> {
        self.flush()?;
        Ok(self.out)
    }
}

/// The lines by which `new` differs from `old`; both in order. Equal lines are left out, missing units are gone.
pub fn difference<'a>(
    new: impl Iterator<Item = Result<Line>> + 'a,
    old: impl Iterator<Item = Result<Line>> + 'a,
) -> impl Iterator<Item = Result<Line>> + 'a {
    let (mut new, mut old) = (new.peekable(), old.peekable());
    std::iter::from_fn(move || {
        loop {
            let take_new = match (new.peek(), old.peek()) {
                (None, None) => return None,
                (Some(Err(_)), _) => return new.next(),
                (_, Some(Err(_))) => return old.next(),
                (Some(_), None) => true,
                (None, Some(_)) => false,
                (Some(Ok(n)), Some(Ok(o))) => match n.order().cmp(&o.order()) {
                    std::cmp::Ordering::Less => true,
                    std::cmp::Ordering::Greater => false,
                    std::cmp::Ordering::Equal => {
                        let same = n == o;
                        old.next();
                        if same {
                            new.next();
                            continue;
                        }
                        true
                    }
                },
            };
            if take_new {
                return new.next();
            }
            // Only in the old one: a unit is gone; a stretch beyond the new size is dropped by its unit's line.
            if let Some(Ok(Line::Unit { name, .. })) = old.next() {
                return Some(Ok(Line::Gone { name }));
            }
        }
    })
}

/// Reads the lines of one manifest's plaintext.
pub struct ManifestReader {
    /// Its head.
    pub head: ManifestHead,
    table: RunTable,
    lines: BufReader<zstd::Decoder<'static, BufReader<std::io::Cursor<Bytes>>>>,
}

impl ManifestReader {
    /// Reads the head.
    ///
    /// # Errors
    /// Damaged, or of an unknown format.
    pub fn new(plaintext: Bytes, name: &str) -> Result<Self> {
        let bad = |why: String| Error::damaged(format!("the manifest {name} is damaged: {why}"));
        let decoder = zstd::Decoder::new(std::io::Cursor::new(plaintext)).map_err(|e| bad(e.to_string()))?;
        let mut lines = BufReader::new(decoder);
        let first = next_line(&mut lines)?.ok_or_else(|| bad("it is empty".into()))?;
        super::documents::check_format(&first, &crate::types::Key::from_text(name))?;
        let head: ManifestHead = serde_json::from_slice(&first).map_err(|e| bad(e.to_string()))?;
        let table = RunTable::new(&head.runs);
        Ok(Self { head, table, lines })
    }
}

impl Iterator for ManifestReader {
    type Item = Result<Line>;
    fn next(&mut self) -> Option<Self::Item> {
        match next_line(&mut self.lines) {
            Ok(Some(text)) => Some(unspell(&text, &self.table)),
            Ok(None) => None,
            Err(e) => Some(Err(e)),
        }
    }
}

fn next_line(reader: &mut impl BufRead) -> Result<Option<Vec<u8>>> {
    use std::io::Read as _;
    let mut line = Vec::new();
    let read = reader
        .take(LINE_MAX as u64)
        .read_until(b'\n', &mut line)
        .map_err(|e| Error::damaged("a manifest does not decode").because(e))?;
    match line.pop() {
        None if read == 0 => Ok(None),
        Some(b'\n') => Ok(Some(line)),
        _ => Err(Error::damaged(
            "a manifest ends in the middle of a line, or a line is too long",
        )),
    }
}

/// Merges a chain of manifests, oldest (the whole one) first, into the lines of the newest.
pub struct Merge<I: Iterator<Item = Result<Line>>> {
    /// Newest first.
    inputs: Vec<Peekable<I>>,
    /// The unit whose stretches are going through, and its size.
    current: Option<(UnitName, u64)>,
    previous: Option<(UnitName, Option<u64>)>,
}

impl<I: Iterator<Item = Result<Line>>> Merge<I> {
    /// From readers, oldest first.
    pub fn new(oldest_first: Vec<I>) -> Self {
        let inputs = oldest_first.into_iter().rev().map(Iterator::peekable).collect();
        Self {
            inputs,
            current: None,
            previous: None,
        }
    }

    /// Takes the newest line of the least order, and drops the older ones of that order.
    fn next_newest(&mut self) -> Option<Result<Line>> {
        let mut least: Option<(UnitName, Option<u64>)> = None;
        for input in &mut self.inputs {
            match input.peek() {
                Some(Err(_)) => return input.next(),
                Some(Ok(line)) => {
                    let (name, at) = line.order();
                    if least.as_ref().is_none_or(|(n, a)| (name, at) < (n, *a)) {
                        least = Some((name.clone(), at));
                    }
                }
                None => {}
            }
        }
        let least = least?;
        if self.previous.as_ref().is_some_and(|p| *p >= least) {
            return Some(Err(Error::damaged(format!(
                "a manifest is out of order at {}",
                least.0
            ))));
        }
        let mut newest = None;
        for input in &mut self.inputs {
            let same = matches!(input.peek(), Some(Ok(line)) if line.order() == (&least.0, least.1));
            if same {
                let line = input.next();
                newest = newest.or(line);
            }
        }
        self.previous = Some(least);
        newest
    }
}

impl<I: Iterator<Item = Result<Line>>> Iterator for Merge<I> {
    type Item = Result<Line>;
    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let line = match self.next_newest()? {
                Ok(line) => line,
                Err(e) => return Some(Err(e)),
            };
            match &line {
                Line::Gone { .. } => self.current = None,
                Line::Unit { name, size, .. } => {
                    let large = *size > STRETCH;
                    self.current = large.then(|| (name.clone(), *size));
                    return Some(Ok(line));
                }
                Line::Stretch { name, at, .. } => {
                    if self
                        .current
                        .as_ref()
                        .is_some_and(|(n, size)| n == name && at < size)
                    {
                        return Some(Ok(line));
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(n: u8) -> RunId {
        RunId::new(ulid::Ulid::from_parts(1, u128::from(n)))
    }

    /// A model of a unit: its stretches, each named by a number.
    type Units = BTreeMap<u8, Vec<u8>>;

    fn lines(units: &Units) -> Vec<Result<Line>> {
        let extent = |v: u8, length: u32| Extent {
            run: run(v),
            pack: 0,
            frame_at: 0,
            frame_length: 9,
            offset: 0,
            length,
        };
        let mut lines = Vec::new();
        for (name, stretches) in units {
            let name = UnitName::from_bytes(format!("u{name}").as_bytes()).unwrap();
            let small = stretches.len() <= 1;
            let size = stretches.len() as u64 * STRETCH;
            lines.push(Ok(Line::Unit {
                name: name.clone(),
                size,
                cut: Cut::Pages,
                attributes: Attributes::default(),
                digest: *blake3::hash(stretches).as_bytes(),
                extents: if small {
                    stretches.iter().map(|v| extent(*v, STRETCH as u32)).collect()
                } else {
                    vec![]
                },
            }));
            if !small {
                for (i, v) in stretches.iter().enumerate() {
                    lines.push(Ok(Line::Stretch {
                        name: name.clone(),
                        at: i as u64 * STRETCH,
                        length: STRETCH as u32,
                        digest: [*v; 32],
                        extents: vec![extent(*v, STRETCH as u32)],
                    }));
                }
            }
        }
        lines
    }

    fn plain(lines: impl Iterator<Item = Result<Line>>) -> Vec<Line> {
        lines.map(Result::unwrap).collect()
    }

    fn head(depth: u32) -> ManifestHead {
        ManifestHead {
            format: 1,
            repository: "01ARZ3NDEKTSV4RRFFQ69G5FAV".parse().unwrap(),
            source: "app".parse().unwrap(),
            kind: "pocketbase".into(),
            run: run(1),
            at: DateTime::UNIX_EPOCH,
            partial: false,
            parent: None,
            parent_manifest: None,
            depth,
            runs: (0..=255)
                .map(|n| {
                    (
                        u32::from(n),
                        run(n),
                        "01ARZ3NDEKTSV4RRFFQ69G5FAV".parse().unwrap(),
                    )
                })
                .collect(),
            index_key: String::new(),
            block_size: 8192,
            facts: serde_json::Value::Null,
        }
    }

    proptest! {
        #[test]
        fn differences_merge_to_the_newest(
            states in proptest::collection::vec(
                proptest::collection::btree_map(0u8..6, proptest::collection::vec(any::<u8>(), 0..4), 0..5), 1..9)
        ) {
            let mut stored: Vec<Vec<u8>> = Vec::new();
            for (i, state) in states.iter().enumerate() {
                let mut writer = ManifestWriter::new(&head(i as u32 + 1), Vec::new()).unwrap();
                if i == 0 {
                    for line in lines(state) { writer.push(&line.unwrap()).unwrap(); }
                } else {
                    for line in difference(lines(state).into_iter(), lines(&states[i - 1]).into_iter()) {
                        writer.push(&line.unwrap()).unwrap();
                    }
                }
                stored.push(writer.finish().unwrap());
                let readers = stored.iter().map(|m| ManifestReader::new(Bytes::from(m.clone()), "m").unwrap()).collect();
                prop_assert_eq!(plain(Merge::new(readers)), plain(lines(state).into_iter()));
            }
        }
    }

    #[test]
    fn a_manifest_cut_short_is_told() {
        let mut writer = ManifestWriter::new(&head(1), Vec::new()).unwrap();
        for line in lines(&[(1, vec![1, 2, 3])].into()) {
            writer.push(&line.unwrap()).unwrap();
        }
        let whole = writer.finish().unwrap();
        for cut in 0..whole.len() {
            let read = ManifestReader::new(Bytes::from(whole[..cut].to_vec()), "m")
                .map(|r| r.collect::<Result<Vec<_>>>());
            assert!(!matches!(read, Ok(Ok(_))), "cut at {cut}");
        }
    }
}
