//! The block index: a local cache that says where each block of the last run's point is. It is fenced to one commit
//! (its run), checked by digest when opened, written beside the old one and adopted when its commit is found by key.
//!
//! A file: records in the order of the manifest (unit begin, blocks, stretch ends, unit end), the frame table, a JSON
//! trailer with runs and packs, its length, and the BLAKE3 of all before. It is written and read as a stream.

mod lines;

use std::collections::{BTreeMap, HashMap};
use std::fs::{File, OpenOptions};
use std::io::{BufReader, Read, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Context as _, Error, Result};
use crate::repository::manifest::ContentDigest;
use crate::source::{Attributes, Cut};
use crate::types::{Digest, GenerationId, RepositoryId, RunId, SourceName, UnitName};

pub use lines::Lines;

const MAGIC: &[u8; 8] = b"LBINDEX1";
const TAG_UNIT: u8 = 1;
const TAG_BLOCK: u8 = 2;
const TAG_STRETCH: u8 = 3;
const TAG_END: u8 = 4;
/// Bytes kept in memory before they go to the file.
const BUFFER: usize = 1 << 20;

/// The keyed BLAKE3 of a block, cut to 128 bits.
pub type BlockHash = [u8; 16];

/// Where a frame is. `run` is a number of the index's run table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FramePlace {
    /// Number in the run table.
    pub run: u32,
    /// Pack number.
    pub pack: u32,
    /// Position in the pack's plaintext.
    pub at: u32,
    /// Length.
    pub length: u32,
}

/// A block's place: frame number in this index, offset and length in the frame's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockPlace {
    /// Number in the frame table.
    pub frame: u32,
    /// Offset in the frame's content.
    pub offset: u32,
    /// Length.
    pub length: u32,
}

/// A run that blocks are in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunEntry {
    /// The run.
    pub run: RunId,
    /// Its generation.
    pub generation: GenerationId,
    /// Digest of its `SHA256SUMS`.
    pub sums: Digest,
}

/// A pack that blocks are in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackEntry {
    /// Sealed size in the store.
    pub size: u64,
    /// Content in it.
    pub content: u64,
    /// Content of it that this point uses.
    pub live: u64,
}

/// One manifest of the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainEntry {
    /// The run that wrote it.
    pub run: RunId,
    /// Digest of the object.
    pub manifest: Digest,
}

/// What an index is about.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct IndexHead {
    /// The repository.
    pub repository: RepositoryId,
    /// The source.
    pub source: SourceName,
    /// The run it is fenced to.
    pub run: RunId,
    /// The key of block hashes, hex.
    pub key: String,
    /// Block size of page files, bytes.
    pub block_size: u32,
}

/// The trailer: everything known at the end only.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Trailer {
    /// What it is about.
    pub head: IndexHead,
    /// Runs by number.
    pub runs: BTreeMap<u32, RunEntry>,
    /// Packs: run number, pack number, entry.
    pub packs: Vec<(u32, u32, PackEntry)>,
    /// The manifests a reader merges, whole one first.
    pub chain: Vec<ChainEntry>,
    frames: u64,
    records: u64,
}

/// A record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// A unit begins.
    Unit(UnitRecord),
    /// A block of it.
    Block(BlockHash, BlockPlace),
    /// A stretch of it ends.
    Stretch {
        /// Offset in the unit.
        at: u64,
        /// Length.
        length: u32,
        /// BLAKE3 of the content.
        digest: ContentDigest,
    },
    /// It ends.
    End,
}

/// A unit in the index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitRecord {
    /// Name.
    pub name: UnitName,
    /// How it was cut.
    pub cut: Cut,
    /// Attributes.
    pub attributes: Attributes,
    /// Stamp of an unchanged file.
    pub stamp: Option<String>,
    /// Bytes.
    pub size: u64,
    /// Digest, as in the manifest.
    pub digest: ContentDigest,
}

#[derive(Serialize, Deserialize)]
struct UnitText {
    name: UnitName,
    cut: Cut,
    attributes: Attributes,
    stamp: Option<String>,
}

/// Writes an index.
pub struct IndexWriter {
    path: PathBuf,
    file: File,
    buffer: Vec<u8>,
    /// File offset of the buffer's first byte.
    base: u64,
    /// Offset of the current unit's size and digest, to be filled at its end.
    patch_at: u64,
    frames: Vec<Option<FramePlace>>,
    head: IndexHead,
}

impl IndexWriter {
    /// Begins a file, 0600, replacing a leftover of the same name.
    ///
    /// # Errors
    /// The state directory.
    pub fn create(path: &Path, head: IndexHead) -> Result<Self> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(path)
            .doing(|| format!("can not write {}", path.display()))?;
        file.write_all(MAGIC)
            .doing(|| format!("can not write {}", path.display()))?;
        Ok(Self {
            path: path.to_owned(),
            file,
            buffer: Vec::with_capacity(BUFFER + 4096),
            base: MAGIC.len() as u64,
            patch_at: 0,
            frames: Vec::new(),
            head,
        })
    }
    /// A number for a frame whose place is told later by [`Self::place_frame`].
    pub fn new_frame(&mut self) -> u32 {
        self.frames.push(None);
        (self.frames.len() - 1) as u32
    }
    /// Tells where a frame is.
    pub fn place_frame(&mut self, number: u32, place: FramePlace) {
        if let Some(slot) = self.frames.get_mut(number as usize) {
            *slot = Some(place);
        }
    }
    /// Begins a unit.
    ///
    /// # Errors
    /// The state directory.
    pub fn begin_unit(
        &mut self,
        name: &UnitName,
        cut: Cut,
        attributes: &Attributes,
        stamp: Option<&str>,
    ) -> Result<()> {
        let text = crate::repository::documents::to_json(&UnitText {
            name: name.clone(),
            cut,
            attributes: attributes.clone(),
            stamp: stamp.map(str::to_owned),
        })?;
        self.buffer.push(TAG_UNIT);
        self.buffer.extend_from_slice(&(text.len() as u32).to_le_bytes());
        self.buffer.extend_from_slice(&text);
        self.patch_at = self.base + self.buffer.len() as u64;
        self.buffer.extend_from_slice(&[0; 40]);
        self.spill()
    }
    /// Adds a block.
    ///
    /// # Errors
    /// The state directory.
    pub fn block(&mut self, hash: &BlockHash, place: BlockPlace) -> Result<()> {
        self.buffer.push(TAG_BLOCK);
        self.buffer.extend_from_slice(hash);
        for n in [place.frame, place.offset, place.length] {
            self.buffer.extend_from_slice(&n.to_le_bytes());
        }
        self.spill()
    }
    /// Ends a stretch.
    ///
    /// # Errors
    /// The state directory.
    pub fn end_stretch(&mut self, at: u64, length: u32, digest: &ContentDigest) -> Result<()> {
        self.buffer.push(TAG_STRETCH);
        self.buffer.extend_from_slice(&at.to_le_bytes());
        self.buffer.extend_from_slice(&length.to_le_bytes());
        self.buffer.extend_from_slice(digest);
        self.spill()
    }
    /// Ends a unit.
    ///
    /// # Errors
    /// The state directory.
    pub fn end_unit(&mut self, size: u64, digest: &ContentDigest) -> Result<()> {
        let mut patch = [0; 40];
        patch[..8].copy_from_slice(&size.to_le_bytes());
        patch[8..].copy_from_slice(digest);
        if self.patch_at >= self.base {
            let at = (self.patch_at - self.base) as usize;
            self.buffer[at..at + 40].copy_from_slice(&patch);
        } else {
            self.file
                .write_all_at(&patch, self.patch_at)
                .doing(|| format!("can not write {}", self.path.display()))?;
        }
        self.buffer.push(TAG_END);
        self.spill()
    }
    fn spill(&mut self) -> Result<()> {
        if self.buffer.len() < BUFFER {
            Ok(())
        } else {
            self.flush()
        }
    }
    fn flush(&mut self) -> Result<()> {
        // A patch field must lie wholly in the file or wholly in the buffer: everything goes out at once.
        self.file
            .write_all_at(&self.buffer, self.base)
            .doing(|| format!("can not write {}", self.path.display()))?;
        self.base += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
    /// A copy of the index so far, to be ended on its own: the index of a cut.
    ///
    /// # Errors
    /// The state directory.
    pub fn fork(&mut self, path: &Path, head: IndexHead) -> Result<Self> {
        self.flush()?;
        std::fs::copy(&self.path, path).doing(|| format!("can not write {}", path.display()))?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .doing(|| format!("can not write {}", path.display()))?;
        file.set_len(self.base)
            .doing(|| format!("can not write {}", path.display()))?;
        Ok(Self {
            path: path.to_owned(),
            file,
            buffer: Vec::new(),
            base: self.base,
            patch_at: self.patch_at,
            frames: self.frames.clone(),
            head,
        })
    }
    /// Changes what the index is about: after a cut the next run goes on with it.
    pub fn set_run(&mut self, run: RunId) {
        self.head.run = run;
    }
    /// What the index is about.
    pub fn head(&self) -> &IndexHead {
        &self.head
    }
    /// Ends the records. The index can be read for its manifest now, and sealed afterwards.
    ///
    /// # Errors
    /// The state directory; a frame whose place was never told.
    pub fn finish_records(mut self) -> Result<UnsealedIndex> {
        self.flush()?;
        let frames = self
            .frames
            .iter()
            .map(|f| f.ok_or_else(|| Error::failed("a frame was never written to a pack")))
            .collect::<Result<Vec<_>>>()?;
        Ok(UnsealedIndex {
            path: self.path,
            file: self.file,
            records: self.base,
            frames,
            head: self.head,
        })
    }
}

/// An index whose records are written and whose trailer is not.
pub struct UnsealedIndex {
    path: PathBuf,
    file: File,
    records: u64,
    /// The frame table.
    pub frames: Vec<FramePlace>,
    head: IndexHead,
}

impl UnsealedIndex {
    /// What it is about.
    pub fn head(&self) -> &IndexHead {
        &self.head
    }
    /// Its records.
    ///
    /// # Errors
    /// The state directory.
    pub fn records(&self) -> Result<Records> {
        Records::new(&self.path, self.records)
    }
    /// Writes the trailer and makes the file durable; it takes effect when its commit exists.
    ///
    /// # Errors
    /// The state directory.
    pub fn seal(
        mut self,
        runs: BTreeMap<u32, RunEntry>,
        packs: Vec<(u32, u32, PackEntry)>,
        chain: Vec<ChainEntry>,
    ) -> Result<()> {
        let trailer = Trailer {
            head: self.head,
            runs,
            packs,
            chain,
            frames: self.frames.len() as u64,
            records: self.records,
        };
        let mut tail = Vec::with_capacity(self.frames.len() * 16 + 4096);
        for f in &self.frames {
            for n in [f.run, f.pack, f.at, f.length] {
                tail.extend_from_slice(&n.to_le_bytes());
            }
        }
        let text = crate::repository::documents::to_json(&trailer)?;
        tail.extend_from_slice(&text);
        tail.extend_from_slice(&(text.len() as u64).to_le_bytes());
        let doing = || format!("can not write {}", self.path.display());
        self.file.write_all_at(&tail, self.records).doing(doing)?;
        let end = self.records + tail.len() as u64;
        self.file.set_len(end).doing(doing)?;
        self.file.seek(SeekFrom::Start(0)).doing(doing)?;
        let digest = hash_file(&mut self.file, end).doing(doing)?;
        self.file.write_all_at(&digest, end).doing(doing)?;
        self.file.sync_all().doing(doing)?;
        if let Some(parent) = self.path.parent() {
            File::open(parent).and_then(|d| d.sync_all()).doing(doing)?;
        }
        Ok(())
    }
}

fn hash_file(file: &mut File, length: u64) -> std::io::Result<[u8; 32]> {
    let mut hasher = blake3::Hasher::new();
    std::io::copy(
        &mut BufReader::with_capacity(BUFFER, file.take(length)),
        &mut hasher,
    )?;
    Ok(*hasher.finalize().as_bytes())
}

/// A whole index, opened and checked.
pub struct Index {
    path: PathBuf,
    /// Its trailer.
    pub trailer: Trailer,
    /// The frame table.
    pub frames: Vec<FramePlace>,
}

impl Index {
    /// Opens a file and checks its digest.
    ///
    /// # Errors
    /// Missing or damaged; then the run uploads in full.
    pub fn open(path: &Path) -> Result<Self> {
        let bad = || Error::failed(format!("the block index {} is damaged", path.display()));
        let mut file = File::open(path).doing(|| format!("can not read {}", path.display()))?;
        let length = file
            .metadata()
            .doing(|| format!("can not read {}", path.display()))?
            .len();
        let body = length.checked_sub(32).filter(|b| *b >= 16).ok_or_else(bad)?;
        let mut told = [0; 32];
        file.read_exact_at(&mut told, body).map_err(|_| bad())?;
        if hash_file(&mut file, body).map_err(|_| bad())? != told {
            return Err(bad());
        }
        let mut magic = [0; 8];
        file.read_exact_at(&mut magic, 0).map_err(|_| bad())?;
        let mut size = [0; 8];
        file.read_exact_at(&mut size, body - 8).map_err(|_| bad())?;
        let text_length = u64::from_le_bytes(size);
        let text_at = (body - 8)
            .checked_sub(text_length)
            .filter(|_| &magic == MAGIC)
            .ok_or_else(bad)?;
        let mut text = vec![0; text_length as usize];
        file.read_exact_at(&mut text, text_at).map_err(|_| bad())?;
        let trailer: Trailer = serde_json::from_slice(&text).map_err(|_| bad())?;
        let table = trailer.frames.checked_mul(16);
        let end = table.and_then(|length| trailer.records.checked_add(length));
        if end != Some(text_at) || trailer.records < MAGIC.len() as u64 {
            return Err(bad());
        }
        let mut table = vec![0; (trailer.frames * 16) as usize];
        file.read_exact_at(&mut table, trailer.records)
            .map_err(|_| bad())?;
        let number = |b: &[u8]| u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        let frames = table
            .chunks_exact(16)
            .map(|c| FramePlace {
                run: number(c),
                pack: number(&c[4..]),
                at: number(&c[8..]),
                length: number(&c[12..]),
            })
            .collect();
        Ok(Self {
            path: path.to_owned(),
            trailer,
            frames,
        })
    }
    /// Its records.
    ///
    /// # Errors
    /// The state directory.
    pub fn records(&self) -> Result<Records> {
        Records::new(&self.path, self.trailer.records)
    }
    /// The chunks of its stream units, by hash. Bounded by the size of the dumps: 4 million entries a TiB.
    ///
    /// # Errors
    /// The state directory.
    pub fn stream_blocks(&self) -> Result<HashMap<BlockHash, BlockPlace>> {
        let mut blocks = HashMap::new();
        let mut in_stream = false;
        for record in self.records()? {
            match record? {
                Record::Unit(unit) => in_stream = unit.cut == Cut::Stream,
                Record::Block(hash, place) if in_stream => {
                    blocks.insert(hash, place);
                }
                _ => {}
            }
        }
        Ok(blocks)
    }
}

/// Reads records as a stream.
pub struct Records {
    reader: std::io::Take<BufReader<File>>,
    path: PathBuf,
}

impl Records {
    fn new(path: &Path, end: u64) -> Result<Self> {
        let mut file = File::open(path).doing(|| format!("can not read {}", path.display()))?;
        file.seek(SeekFrom::Start(MAGIC.len() as u64))
            .doing(|| format!("can not read {}", path.display()))?;
        let reader = BufReader::with_capacity(256 << 10, file).take(end.saturating_sub(MAGIC.len() as u64));
        Ok(Self {
            reader,
            path: path.to_owned(),
        })
    }
    fn fill<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.reader
            .read_exact(&mut bytes)
            .doing(|| format!("can not read {}", self.path.display()))?;
        Ok(bytes)
    }
    fn read(&mut self) -> Result<Option<Record>> {
        if self.reader.limit() == 0 {
            return Ok(None);
        }
        let bad = || Error::failed("the block index is damaged");
        let [tag] = self.fill::<1>()?;
        Ok(Some(match tag {
            TAG_UNIT => {
                let length = u32::from_le_bytes(self.fill()?) as usize;
                if length > 1 << 16 {
                    return Err(bad());
                }
                let mut text = vec![0; length];
                self.reader
                    .read_exact(&mut text)
                    .doing(|| format!("can not read {}", self.path.display()))?;
                let text: UnitText = serde_json::from_slice(&text).map_err(|_| bad())?;
                let size = u64::from_le_bytes(self.fill()?);
                let digest = self.fill()?;
                Record::Unit(UnitRecord {
                    name: text.name,
                    cut: text.cut,
                    attributes: text.attributes,
                    stamp: text.stamp,
                    size,
                    digest,
                })
            }
            TAG_BLOCK => {
                let hash = self.fill()?;
                let frame = u32::from_le_bytes(self.fill()?);
                let offset = u32::from_le_bytes(self.fill()?);
                let length = u32::from_le_bytes(self.fill()?);
                Record::Block(
                    hash,
                    BlockPlace {
                        frame,
                        offset,
                        length,
                    },
                )
            }
            TAG_STRETCH => {
                let at = u64::from_le_bytes(self.fill()?);
                let length = u32::from_le_bytes(self.fill()?);
                Record::Stretch {
                    at,
                    length,
                    digest: self.fill()?,
                }
            }
            TAG_END => Record::End,
            _ => return Err(bad()),
        }))
    }
}

impl Iterator for Records {
    type Item = Result<Record>;
    fn next(&mut self) -> Option<Self::Item> {
        self.read().transpose()
    }
}
