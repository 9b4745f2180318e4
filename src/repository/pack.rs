//! Packs: one standard age file around a run of frames, headed by a skippable frame that names repository, source,
//! run and pack, so that `age -d pack | zstd -d` gives the content and a pack laid elsewhere is told.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::frame::{self, HEAD_MAGIC, PADDING_MAGIC};
use super::payload::{self, Sealer, Unopened};
use crate::error::{Error, Kind, Result};
use crate::types::{Digest, RepositoryId, RunId, SourceName};

/// The plaintext size at which a pack is closed.
pub const PACK_TARGET: usize = 16 << 20;
/// The largest sealed pack or manifest that is read.
pub const SEALED_MAX: u64 = 1 << 30;

/// What the head of an encrypted object says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Repository format.
    pub format: u32,
    /// The repository.
    pub repository: RepositoryId,
    /// The source.
    pub source: SourceName,
    /// The run.
    pub run: RunId,
    /// The object's name within the run: `0.age`, `manifest.age`.
    pub object: String,
}

impl Head {
    /// The skippable frame that an object begins with.
    ///
    /// # Errors
    /// None in practice.
    pub fn to_frame(&self) -> Result<Vec<u8>> {
        Ok(frame::skippable(HEAD_MAGIC, &super::documents::to_json(self)?))
    }
}

/// A sealed object, ready to be put.
#[derive(Clone, Debug)]
pub struct Sealed {
    /// The age file.
    pub bytes: Bytes,
    /// Its SHA-256.
    pub digest: Digest,
}

/// Encrypts a plaintext (head frame included) to a recipient, padded.
///
/// # Errors
/// age failed.
pub fn seal(plaintext: &[u8], recipient: &age::x25519::Recipient) -> Result<Sealed> {
    let mut sealing = Sealing::new(recipient, Vec::with_capacity(sealed_length(plaintext.len())))?;
    sealing.push(plaintext)?;
    sealing.pad()?;
    sealing.finish()
}

/// At most how long the age file of a plaintext is: 16 bytes for each chunk of 64 KiB, and the header.
pub const fn sealed_length(plaintext: usize) -> usize {
    plaintext + plaintext / 4096 + 1024
}

/// An object that is sealed while it is filled.
pub struct Sealing {
    sealer: Sealer,
    length: usize,
}

impl Sealing {
    /// An empty one, laid into an empty buffer.
    ///
    /// # Errors
    /// age failed.
    pub fn new(recipient: &age::x25519::Recipient, buffer: Vec<u8>) -> Result<Self> {
        let sealer = Sealer::new(recipient, buffer).map_err(unsealed)?;
        Ok(Self { sealer, length: 0 })
    }

    /// Bytes of plaintext in it.
    pub const fn length(&self) -> usize {
        self.length
    }

    /// Appends plaintext.
    ///
    /// # Errors
    /// The cipher failed.
    pub fn push(&mut self, plaintext: &[u8]) -> Result<()> {
        self.length += plaintext.len();
        self.sealer.push(plaintext).map_err(unsealed)
    }

    /// Pads the plaintext with a skippable frame, so that its length tells only its magnitude.
    ///
    /// # Errors
    /// As [`Self::push`].
    pub fn pad(&mut self) -> Result<()> {
        let length = self.length as u64;
        let padded = frame::padme(length + 8);
        let zeros = vec![0; (padded - length - 8) as usize];
        self.push(&frame::skippable(PADDING_MAGIC, &zeros))
    }

    /// The sealed object.
    ///
    /// # Errors
    /// As [`Self::push`].
    pub fn finish(self) -> Result<Sealed> {
        let bytes = self.sealer.finish().map_err(unsealed)?;
        let digest = Digest::of(&bytes);
        Ok(Sealed {
            bytes: bytes.into(),
            digest,
        })
    }
}

fn unsealed(why: String) -> Error {
    Error::failed(format!("a pack can not be encrypted: {why}"))
}

/// Decrypts an object and compares its head with what was asked for. The plaintext keeps its head, so that the
/// positions of extents hold.
///
/// # Errors
/// [`Kind::NoIdentity`] when the identity does not open it, [`Kind::Damaged`] otherwise.
pub fn open(sealed: &[u8], identity: &age::x25519::Identity, expected: &Head) -> Result<Vec<u8>> {
    open_owned(sealed.to_vec(), identity, expected)
}

/// [`open`] of a buffer that may be used up.
///
/// # Errors
/// As [`open`].
pub fn open_owned(sealed: Vec<u8>, identity: &age::x25519::Identity, expected: &Head) -> Result<Vec<u8>> {
    let name = format!(
        "{}/{} of source {}",
        expected.run, expected.object, expected.source
    );
    let plaintext = decrypt_owned(sealed, &[identity], &name)?;
    compare_head(&plaintext, expected)?;
    Ok(plaintext)
}

/// Compares the head of a plaintext with what was asked for.
///
/// # Errors
/// [`Kind::Damaged`]: it has none, or another one.
pub fn compare_head(plaintext: &[u8], expected: &Head) -> Result<()> {
    let name = format!(
        "{}/{} of source {}",
        expected.run, expected.object, expected.source
    );
    let head = frame::skippable_at_start(plaintext, HEAD_MAGIC)
        .ok_or_else(|| Error::damaged(format!("{name} has no head")))?;
    let head: Head = serde_json::from_slice(head)
        .map_err(|e| Error::damaged(format!("the head of {name} is damaged: {e}")))?;
    if head != *expected {
        return Err(Error::damaged(format!(
            "{name} belongs elsewhere: it says it is {}/{} of source {} in repository {}",
            head.run, head.object, head.source, head.repository
        ))
        .hint("An object was copied or swapped; `backup verify` tells how far the damage goes."));
    }
    Ok(())
}

/// Decrypts an age file with any of the identities.
///
/// # Errors
/// As [`open`].
pub fn decrypt(sealed: &[u8], identities: &[&age::x25519::Identity], name: &str) -> Result<Vec<u8>> {
    decrypt_owned(sealed.to_vec(), identities, name)
}

fn decrypt_owned(sealed: Vec<u8>, identities: &[&age::x25519::Identity], name: &str) -> Result<Vec<u8>> {
    let identities: Vec<_> = identities.iter().map(|i| *i as &dyn age::Identity).collect();
    payload::open(sealed, &identities).map_err(|e| match e {
        Unopened::NoMatchingKeys => Error::new(Kind::NoIdentity, format!("no identity opens {name}"))
            .hint("Give the right one: encryption.identity in the policy, or --identity FILE."),
        Unopened::Damaged(why) => Error::damaged(format!("{name} can not be decrypted: {why}")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::frame::FrameEncoder;

    fn head(object: &str) -> Head {
        Head {
            format: 1,
            repository: "01ARZ3NDEKTSV4RRFFQ69G5FAV".parse().unwrap(),
            source: "app".parse().unwrap(),
            run: "01ARZ3NDEKTSV4RRFFQ69G5FAW".parse().unwrap(),
            object: object.into(),
        }
    }

    fn sealed(identity: &age::x25519::Identity) -> Sealed {
        let mut plaintext = head("0.age").to_frame().unwrap();
        plaintext.extend(FrameEncoder::new().unwrap().encode(&vec![7u8; 3000]).unwrap());
        seal(&plaintext, &identity.to_public()).unwrap()
    }

    #[test]
    fn a_pack_is_plain_zstd_inside() {
        let identity = age::x25519::Identity::generate();
        let plaintext = open(&sealed(&identity).bytes, &identity, &head("0.age")).unwrap();
        assert_eq!(zstd::decode_all(&plaintext[..]).unwrap(), vec![7u8; 3000]);
    }

    #[test]
    fn a_pack_laid_elsewhere_is_told() {
        let identity = age::x25519::Identity::generate();
        let error = open(&sealed(&identity).bytes, &identity, &head("1.age")).unwrap_err();
        assert_eq!(error.kind(), Kind::Damaged);
        let other = age::x25519::Identity::generate();
        let error = open(&sealed(&identity).bytes, &other, &head("0.age")).unwrap_err();
        assert_eq!(error.kind(), Kind::NoIdentity);
    }

    #[test]
    fn every_flipped_or_missing_byte_is_told() {
        let identity = age::x25519::Identity::generate();
        let good = sealed(&identity).bytes;
        for at in 0..good.len() {
            let mut bad = good.to_vec();
            bad[at] ^= 1;
            assert!(open(&bad, &identity, &head("0.age")).is_err(), "flip at {at}");
            assert!(
                open(&good[..at], &identity, &head("0.age")).is_err(),
                "cut at {at}"
            );
        }
    }
}
