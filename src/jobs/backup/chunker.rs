//! Where content is cut: aligned for page files, by content for streams, in pieces for whole objects.

use crate::source::Cut;

/// Content-defined chunks: least, mean, most (DESIGN, section 5).
const CHUNK: (usize, usize, usize) = (64 << 10, 256 << 10, 1 << 20);
/// The piece in which whole objects are compared.
const WHOLE_PIECE: usize = 4 << 20;
/// Finds the cut points of streams.
pub struct Chunker {
    masks: (u64, u64),
    gear: std::borrow::Cow<'static, [u64]>,
    gear_shifted: std::borrow::Cow<'static, [u64]>,
}

impl Chunker {
    /// The cut points depend on a secret, so that the sizes of chunks tell nothing of known files.
    pub fn new(key: &[u8; 32]) -> Self {
        let digest = blake3::keyed_hash(key, b"lifeboat chunker seed");
        let seed = u64::from_le_bytes(digest.as_bytes()[..8].try_into().unwrap_or([1; 8])) | 1;
        let (gear, gear_shifted) = fastcdc::v2020::get_gear_with_seed(seed);
        let masks = fastcdc::v2020::select_masks(CHUNK.1, fastcdc::v2020::Normalization::Level1);
        Self {
            masks,
            gear,
            gear_shifted,
        }
    }
    /// The length of the next block, if it is certain.
    pub fn next(&self, cut: Cut, block_size: usize, rest: &[u8], at_end: bool) -> Option<usize> {
        let fixed = |size: usize| {
            if rest.len() >= size {
                Some(size)
            } else {
                (at_end && !rest.is_empty()).then_some(rest.len())
            }
        };
        match cut {
            Cut::Pages => fixed(block_size),
            Cut::Whole => fixed(WHOLE_PIECE),
            Cut::Stream if rest.len() >= CHUNK.2 || at_end && !rest.is_empty() => Some(self.cut(rest)),
            Cut::Stream => None,
        }
    }
    fn cut(&self, bytes: &[u8]) -> usize {
        let (short, long) = self.masks;
        fastcdc::v2020::cut_gear(
            bytes,
            CHUNK.0,
            CHUNK.1,
            CHUNK.2,
            short,
            long,
            short << 1,
            long << 1,
            &self.gear,
            &self.gear_shifted,
        )
        .1
    }
}
