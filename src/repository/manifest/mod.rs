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

mod merge;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::repository::frame::FrameEncoder;
use crate::source::{Attributes, Cut};
use crate::types::{Digest, GenerationId, RepositoryId, RunId, SourceName, UnitName, hex, unhex};

pub use merge::{Merge, difference};

/// The length of a stretch.
pub const STRETCH: u64 = 16 << 20;
/// The most differences after a whole manifest, so that a reader merges nine.
pub const DIFFERENCES_MAX: u32 = 8;
/// The content at which a frame of lines is closed.
const LINES_FRAME: usize = 1 << 20;
/// The longest line: a stretch of 4 KiB extents.
const LINE_MAX: usize = 4 << 20;

/// The largest window of a frame that is decoded, as a power of two. A reader decodes nine manifests at once, and frames
/// of ours hold 4 MiB; by itself zstd grants 128 MiB to any frame that claims it.
const WINDOW_LOG_MAX: u32 = 23;

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
        let mut frame = crate::repository::documents::to_json(head)?;
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
            .extend(crate::repository::documents::to_json(&spell(line, &self.table)?)?);
        self.frame.push(b'\n');
        if self.frame.len() >= LINES_FRAME {
            self.flush()
        } else {
            Ok(())
        }
    }
    fn flush(&mut self) -> Result<()> {
        for piece in self.frame.chunks(crate::repository::frame::FRAME_CONTENT_MAX) {
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
        let mut decoder =
            zstd::Decoder::new(std::io::Cursor::new(plaintext)).map_err(|e| bad(e.to_string()))?;
        decoder
            .window_log_max(WINDOW_LOG_MAX)
            .map_err(|e| bad(e.to_string()))?;
        let mut lines = BufReader::new(decoder);
        let first = next_line(&mut lines)?.ok_or_else(|| bad("it is empty".into()))?;
        crate::repository::documents::check_format(&first, &name)?;
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
