//! Frames: one zstd frame holds up to 4 MiB of content, alone readable, with its size and checksum on.
//!
//! Every frame is decoded again and compared before it is used (encoders have had bugs). Content that will not
//! shrink is laid into raw blocks by hand: RFC 8878, section 3.1.1, at no cost of CPU but the checksum.

use std::cell::RefCell;
use std::hash::Hasher as _;

use twox_hash::XxHash64;
use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe::CParameter;

use crate::error::{Error, Result};

/// The most content of one frame.
pub const FRAME_CONTENT_MAX: usize = 4 << 20;
/// The compression levels: zstd's own default, and a faster one that is as good for much of what databases hold.
const LEVELS: [i32; 2] = [3, 2];
/// Both levels are tried on one of so many large frames, and where the content changes its kind.
const TRIAL_EVERY: u32 = 24;
/// What is smaller is always compressed at the first level.
const LARGE: usize = 1 << 20;
/// The magic number of the skippable frame that heads a pack (RFC 8878, section 3.1.2).
pub const HEAD_MAGIC: u32 = 0x184D_2A50;
/// The magic number of the skippable frame that pads a pack.
pub const PADDING_MAGIC: u32 = 0x184D_2A51;

/// Compresses frames, and proves each by decoding it.
pub struct FrameEncoder {
    /// By level.
    compressors: [Compressor<'static>; 2],
    decompressor: Decompressor<'static>,
    decoded: Vec<u8>,
    /// Number of the level that large frames take.
    level: usize,
    /// Large frames until both levels are tried again.
    until_trial: u32,
    /// Of a thousand bytes of content so many stayed at the last trial.
    stayed: usize,
}

impl FrameEncoder {
    /// A new one; it keeps its working memory.
    ///
    /// # Errors
    /// No memory.
    pub fn new() -> Result<Self> {
        Ok(Self {
            compressors: [compressor(LEVELS[0])?, compressor(LEVELS[1])?],
            decompressor: Decompressor::new().map_err(no_memory)?,
            decoded: Vec::new(),
            level: 0,
            until_trial: 0,
            stayed: 0,
        })
    }

    /// The frame of a content of at most [`FRAME_CONTENT_MAX`] bytes.
    ///
    /// # Errors
    /// The encoder failed, or what it wrote does not decode to the content.
    pub fn encode(&mut self, content: &[u8]) -> Result<Vec<u8>> {
        let mut frame = Vec::new();
        self.encode_to(content, &mut frame)?;
        Ok(frame)
    }

    /// [`Self::encode`] into a buffer, in place of what is in it.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn encode_to(&mut self, content: &[u8], frame: &mut Vec<u8>) -> Result<()> {
        if content.len() > FRAME_CONTENT_MAX {
            return Err(Error::failed("a frame was given more content than it may hold"));
        }
        let shrank = !self.will_not_shrink(content, frame)? && {
            self.compress(content, frame)?;
            frame.len() < content.len()
        };
        if !shrank {
            raw_frame(content, frame);
        }
        self.decoded.clear();
        self.decoded.reserve(content.len());
        self.decompressor
            .decompress_to_buffer(frame, &mut self.decoded)
            .map_err(|e| {
                Error::failed("a frame just compressed does not decode; nothing was committed").because(e)
            })?;
        if self.decoded != content {
            return Err(Error::failed(
                "a frame just compressed decodes to other bytes; nothing was committed",
            )
            .hint("Check this machine's memory; then run again."));
        }
        Ok(())
    }

    fn at_level(&mut self, level: usize, content: &[u8], packed: &mut Vec<u8>) -> Result<()> {
        packed.clear();
        packed.reserve(zstd::zstd_safe::compress_bound(content.len()));
        self.compressors[level]
            .compress_to_buffer(content, packed)
            .map_err(|e| Error::failed("zstd failed to compress").because(e))?;
        Ok(())
    }

    /// Compresses at the level that suits the content: the faster one where its result is within a hundredth of the
    /// other's.
    fn compress(&mut self, content: &[u8], packed: &mut Vec<u8>) -> Result<()> {
        if content.len() < LARGE {
            return self.at_level(0, content, packed);
        }
        let stayed = |packed: &[u8]| packed.len() * 1000 / content.len();
        if self.until_trial > 0 {
            self.until_trial -= 1;
            self.at_level(self.level, content, packed)?;
            if stayed(packed).abs_diff(self.stayed) > self.stayed / 8 {
                self.until_trial = 0;
            }
            return Ok(());
        }
        // Not kept: a buffer more for each thread would be too much.
        let mut slow = Vec::new();
        self.at_level(0, content, &mut slow)?;
        self.at_level(1, content, packed)?;
        self.level = usize::from(packed.len() <= slow.len() + slow.len() / 100);
        self.until_trial = TRIAL_EVERY - 1;
        if self.level == 0 {
            std::mem::swap(packed, &mut slow);
        }
        self.stayed = stayed(packed);
        Ok(())
    }

    /// Tries three small samples, into a buffer; only if none shrinks, all is taken as incompressible.
    fn will_not_shrink(&mut self, content: &[u8], packed: &mut Vec<u8>) -> Result<bool> {
        const SAMPLE: usize = 16 << 10;
        if content.len() < 8 * SAMPLE {
            return Ok(false);
        }
        for at in [0, content.len() / 2, content.len() - SAMPLE] {
            self.at_level(1, &content[at..at + SAMPLE], packed)?;
            if packed.len() < SAMPLE - SAMPLE / 50 {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

fn no_memory(e: std::io::Error) -> Error {
    Error::failed("zstd can not be set up").because(e)
}

fn compressor(level: i32) -> Result<Compressor<'static>> {
    let mut compressor = Compressor::new(level).map_err(no_memory)?;
    for flag in [CParameter::ChecksumFlag(true), CParameter::ContentSizeFlag(true)] {
        compressor.set_parameter(flag).map_err(no_memory)?;
    }
    Ok(compressor)
}

/// A zstd frame of raw blocks, in place of what is in the buffer.
fn raw_frame(content: &[u8], frame: &mut Vec<u8>) {
    const BLOCK_MAX: usize = 128 << 10;
    frame.clear();
    frame.reserve(content.len() + content.len() / BLOCK_MAX * 3 + 32);
    frame.extend_from_slice(&0xFD2F_B528u32.to_le_bytes());
    // Descriptor: 8-byte content size (3 << 6), checksum (1 << 2), and a window instead of a single segment, so
    // that a decoder's window stays small whatever the content.
    frame.push(0b1100_0100);
    // Window descriptor: exponent 7, mantissa 0: 2^(10 + 7) = 128 KiB, the size of a block.
    frame.push(7 << 3);
    frame.extend_from_slice(&(content.len() as u64).to_le_bytes());
    let mut blocks = content.chunks(BLOCK_MAX).peekable();
    if blocks.peek().is_none() {
        frame.extend_from_slice(&[1, 0, 0]);
    }
    while let Some(block) = blocks.next() {
        let last = u32::from(blocks.peek().is_none());
        let header = (block.len() as u32) << 3 | last;
        frame.extend_from_slice(&header.to_le_bytes()[..3]);
        frame.extend_from_slice(block);
    }
    let mut hasher = XxHash64::with_seed(0);
    hasher.write(content);
    frame.extend_from_slice(&hasher.finish().to_le_bytes()[..4]);
}

/// How much content a frame says it holds, at most [`FRAME_CONTENT_MAX`].
///
/// # Errors
/// It does not say, or says more.
pub fn content_size(frame: &[u8]) -> Result<u64> {
    let size = zstd::zstd_safe::get_frame_content_size(frame)
        .ok()
        .flatten()
        .ok_or_else(|| bad("its content size is not told"))?;
    if size > FRAME_CONTENT_MAX as u64 {
        return Err(bad(&format!("it claims {size} bytes of content")));
    }
    Ok(size)
}

/// Decodes one frame whose content is at most [`FRAME_CONTENT_MAX`] bytes.
///
/// # Errors
/// It is damaged, or larger than that.
pub fn decode(frame: &[u8]) -> Result<Vec<u8>> {
    let mut content = vec![0; content_size(frame)? as usize];
    decode_to(frame, &mut content)?;
    Ok(content)
}

/// Decodes one frame to where its content goes, which is just as long.
///
/// # Errors
/// It is damaged, or its content has another length.
pub fn decode_to(frame: &[u8], content: &mut [u8]) -> Result<()> {
    thread_local! {
        static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
    }
    let length = DECOMPRESSOR.with_borrow_mut(|kept| {
        let decompressor = match kept {
            Some(decompressor) => decompressor,
            empty => empty.insert(Decompressor::new().map_err(no_memory)?),
        };
        decompressor
            .decompress_to_buffer(frame, content)
            .map_err(|e| bad(&e.to_string()))
    })?;
    if length != content.len() {
        return Err(bad(&format!(
            "{length} bytes of content instead of {}",
            content.len()
        )));
    }
    Ok(())
}

fn bad(why: &str) -> Error {
    Error::damaged(format!("a frame is damaged: {why}"))
}

/// The frames of a plaintext, in order.
pub fn frames(plaintext: &[u8]) -> impl Iterator<Item = Result<&[u8]>> {
    let mut rest = plaintext;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let first = zstd::zstd_safe::find_frame_compressed_size(rest)
            .ok()
            .and_then(|length| rest.split_at_checked(length.max(1)));
        let Some((frame, behind)) = first else {
            rest = &[];
            return Some(Err(Error::damaged("a pack is no run of frames")));
        };
        rest = behind;
        Some(Ok(frame))
    })
}

/// Whether a frame is one that decoders pass over, of any magic number (RFC 8878, section 3.1.2).
pub fn is_skippable(frame: &[u8]) -> bool {
    frame
        .get(..4)
        .is_some_and(|m| m[0] & 0xF0 == 0x50 && m[1..] == [0x2A, 0x4D, 0x18])
}

/// The content of all frames of a plaintext, bytes.
///
/// # Errors
/// It is no run of frames.
pub fn content_length(plaintext: &[u8]) -> Result<u64> {
    let mut total = 0;
    for frame in frames(plaintext) {
        let frame = frame?;
        if !is_skippable(frame) {
            // Any frame may claim any size; one that no frame of ours has is refused before sizes are added up.
            total += content_size(frame)?;
        }
    }
    Ok(total)
}

/// A skippable frame.
pub fn skippable(magic: u32, content: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(content.len() + 8);
    frame.extend_from_slice(&magic.to_le_bytes());
    frame.extend_from_slice(&(content.len() as u32).to_le_bytes());
    frame.extend_from_slice(content);
    frame
}

/// The content of the skippable frame that bytes begin with.
pub fn skippable_at_start(bytes: &[u8], magic: u32) -> Option<&[u8]> {
    let (head, rest) = bytes.split_at_checked(8)?;
    if head[..4] != magic.to_le_bytes() {
        return None;
    }
    let length = u32::from_le_bytes(head[4..].try_into().ok()?) as usize;
    rest.get(..length)
}

/// The size that Padmé (PURBs, Nikitin et al. 2019, section 4) pads a length to: at most 12 % more, less for long ones,
/// so that a size tells only its magnitude.
pub fn padme(length: u64) -> u64 {
    if length < 2 {
        return length;
    }
    let exponent = length.ilog2();
    let digits = exponent.checked_ilog2().map_or(1, |d| d + 1);
    let mask = (1u64 << exponent.saturating_sub(digits)) - 1;
    (length + mask) & !mask
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn raw(content: &[u8]) -> Vec<u8> {
        let mut frame = b"what was there before".to_vec();
        raw_frame(content, &mut frame);
        frame
    }

    fn noise(length: usize, seed: u64) -> Vec<u8> {
        let mut reader = blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof();
        let mut bytes = vec![0; length];
        reader.fill(&mut bytes);
        bytes
    }

    #[test]
    fn raw_frames_are_zstd_frames() {
        for length in [0, 1, 127, 128 << 10, (128 << 10) + 1, FRAME_CONTENT_MAX] {
            let content = noise(length, 7);
            let frame = raw(&content);
            assert_eq!(zstd::decode_all(&frame[..]).unwrap(), content);
            assert_eq!(decode(&frame).unwrap(), content);
            let mut damaged = frame.clone();
            let middle = damaged.len() - 5;
            damaged[middle] ^= 1;
            assert!(decode(&damaged).is_err());
        }
    }

    #[test]
    fn incompressible_content_costs_next_to_nothing() {
        let content = noise(FRAME_CONTENT_MAX, 1);
        let frame = FrameEncoder::new().unwrap().encode(&content).unwrap();
        assert!(frame.len() <= content.len() + 3 * 32 + 32);
    }

    /// Rows as of a dump: numbers, words of a short list, and hexadecimal noise.
    fn rows(noise_length: usize, words: usize) -> Vec<u8> {
        let seeds = noise(1 << 20, 9);
        let mut content = Vec::new();
        for (n, seed) in seeds.chunks_exact(16).enumerate() {
            for letter in &seed[..words] {
                let letters = 3 + usize::from(*letter) % 5;
                content
                    .extend((0..letters).map(|l| b'a' + ((usize::from(letter / 4) * 31 + l * 7) % 26) as u8));
                content.push(b' ');
            }
            content.extend(format!("{n}\t{}\n", &crate::types::hex(&seed[..noise_length])).bytes());
        }
        content.truncate(FRAME_CONTENT_MAX);
        content
    }

    #[test]
    fn the_faster_level_is_taken_where_it_is_as_good_and_nowhere_else() {
        let mut encoder = FrameEncoder::new().unwrap();
        // As content changes its kind, the level follows within a frame.
        for (content, level) in [(rows(16, 1), 1), (text_of_this_project(), 0), (rows(16, 1), 1)] {
            assert!(content.len() >= LARGE, "{}", content.len());
            let slow = zstd::bulk::compress(&content, LEVELS[0]).unwrap().len();
            for turn in 0..TRIAL_EVERY + 2 {
                let frame = encoder.encode(&content).unwrap();
                assert_eq!(decode(&frame).unwrap(), content);
                if turn > 0 {
                    assert_eq!(encoder.level, level);
                    assert!(frame.len() <= slow + slow / 90, "{} and not {slow}", frame.len());
                }
            }
        }
    }

    /// Source files: text in which long matches lie far apart.
    fn text_of_this_project() -> Vec<u8> {
        let mut left = vec![std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
        let mut files = Vec::new();
        while let Some(directory) = left.pop() {
            for entry in std::fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    left.push(path)
                } else {
                    files.push(path)
                }
            }
        }
        files.sort();
        let mut text: Vec<u8> = files.iter().flat_map(|f| std::fs::read(f).unwrap()).collect();
        text.truncate(FRAME_CONTENT_MAX);
        text
    }

    #[test]
    fn a_frame_that_claims_too_much_is_refused() {
        let mut frame = raw(b"x");
        frame[6..14].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(decode(&frame).is_err());
        // Two such claims do not fit into a sum (and the highest number of all means that it is not told).
        frame[6..14].copy_from_slice(&(u64::MAX - 15).to_le_bytes());
        assert!(content_length(&frame.repeat(2)).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn frames_come_back(seed: u64, length in 0usize..300_000, repeat in 1usize..5) {
            let content = noise(length / repeat, seed).repeat(repeat);
            let frame = FrameEncoder::new().unwrap().encode(&content).unwrap();
            prop_assert_eq!(decode(&frame).unwrap(), content);
        }

        #[test]
        fn padme_never_shrinks_and_adds_at_most_an_eighth(length in 0u64..1 << 40) {
            let padded = padme(length);
            prop_assert!(padded >= length);
            prop_assert!(padded - length <= length / 8 + 1);
        }
    }
}
