//! The payload of an age file (C2SP age v1, "Payload"): 64 KiB chunks of ChaCha20-Poly1305, the counter in the nonce, the last
//! one marked.
//!
//! The age crate writes, reads and verifies the header; its own cipher gives 0.8 GB/s a core, which would be what limits a
//! restore of data that does not shrink. So the payload is sealed and opened here, with the cipher that TLS uses.

use std::cell::RefCell;
use std::collections::HashSet;

use age::secrecy::ExposeSecret as _;
use age_core::format::{FILE_KEY_BYTES, FileKey, Stanza};
use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};
use zeroize::Zeroizing;

/// Plaintext of every chunk but the last.
const CHUNK: usize = 64 << 10;
const TAG: usize = 16;
const NONCE: usize = 16;

/// Why a file is not opened.
#[derive(Debug)]
pub enum Unopened {
    /// It is encrypted to others.
    NoMatchingKeys,
    /// It is not what was written.
    Damaged(String),
}

/// Where a file key is remembered.
type Remembered = RefCell<Option<Zeroizing<[u8; FILE_KEY_BYTES]>>>;

/// An identity or a recipient that remembers the file key that went through it.
struct Remembering<'a, T: ?Sized> {
    by: &'a T,
    key: &'a Remembered,
}

impl<T: ?Sized> Remembering<'_, T> {
    fn remember(&self, key: &FileKey) {
        *self.key.borrow_mut() = Some(Zeroizing::new(*key.expose_secret()));
    }
}

impl age::Recipient for Remembering<'_, dyn age::Recipient + '_> {
    fn wrap_file_key(&self, file_key: &FileKey) -> Result<(Vec<Stanza>, HashSet<String>), age::EncryptError> {
        self.remember(file_key);
        self.by.wrap_file_key(file_key)
    }
}

impl age::Identity for Remembering<'_, dyn age::Identity + '_> {
    fn unwrap_stanza(&self, stanza: &Stanza) -> Option<Result<FileKey, age::DecryptError>> {
        let unwrapped = self.by.unwrap_stanza(stanza);
        if let Some(Ok(key)) = &unwrapped {
            self.remember(key);
        }
        unwrapped
    }
}

/// Writes an age file to one recipient, chunk by chunk, where the plaintext is laid.
pub struct Sealer {
    key: LessSafeKey,
    file: Vec<u8>,
    /// Where the chunk begins that is not sealed yet.
    chunk: usize,
    counter: u64,
}

impl Sealer {
    /// Begins a file in an empty buffer.
    ///
    /// # Errors
    /// The crate can not write its header.
    pub fn new(recipient: &dyn age::Recipient, mut file: Vec<u8>) -> Result<Self, String> {
        let key = Remembered::default();
        let remembering = Remembering {
            by: recipient,
            key: &key,
        };
        let encryptor = age::Encryptor::with_recipients(std::iter::once(&remembering as &dyn age::Recipient))
            .map_err(|e| e.to_string())?;
        // Header and nonce. The writer is given no plaintext and is not finished: that is done here.
        drop(encryptor.wrap_output(&mut file).map_err(|e| e.to_string())?);
        let nonce = header_length(&file)
            .and_then(|header| file.get(header..))
            .filter(|nonce| nonce.len() == NONCE)
            .ok_or("its header is not as it was")?;
        let file_key = key.take().ok_or("its key is not known")?;
        Ok(Self {
            key: payload_key(&file_key[..], nonce)?,
            chunk: file.len(),
            counter: 0,
            file,
        })
    }

    /// Appends plaintext.
    ///
    /// # Errors
    /// The cipher takes no more.
    pub fn push(&mut self, mut plaintext: &[u8]) -> Result<(), String> {
        while !plaintext.is_empty() {
            // The last chunk is marked, so one that is full waits until there is more.
            if self.file.len() - self.chunk == CHUNK {
                self.seal_chunk(false)?;
            }
            let room = CHUNK - (self.file.len() - self.chunk);
            let (now, later) = plaintext.split_at(room.min(plaintext.len()));
            self.file.extend_from_slice(now);
            plaintext = later;
        }
        Ok(())
    }

    /// The file.
    ///
    /// # Errors
    /// As [`Self::push`].
    pub fn finish(mut self) -> Result<Vec<u8>, String> {
        self.seal_chunk(true)?;
        Ok(self.file)
    }

    fn seal_chunk(&mut self, last: bool) -> Result<(), String> {
        let nonce = nonce_of(self.counter, last);
        let tag = self
            .key
            .seal_in_place_separate_tag(nonce, Aad::empty(), &mut self.file[self.chunk..])
            .map_err(|_| format!("chunk {} is too long", self.counter))?;
        self.file.extend_from_slice(tag.as_ref());
        self.chunk = self.file.len();
        self.counter += 1;
        Ok(())
    }
}

/// The plaintext of an age file, laid where it was: buffers of a pack's size are not made in vain.
///
/// # Errors
/// None of the identities opens it, or it is not whole.
pub fn open(mut sealed: Vec<u8>, identities: &[&dyn age::Identity]) -> Result<Vec<u8>, Unopened> {
    let damaged = |e: String| Unopened::Damaged(e);
    let decryptor = age::Decryptor::new_buffered(&sealed[..]).map_err(|e| damaged(e.to_string()))?;
    let key = Remembered::default();
    let remembering: Vec<_> = identities
        .iter()
        .map(|identity| Remembering {
            by: *identity,
            key: &key,
        })
        .collect();
    // Verifies the header's MAC with the same file key, and reads the nonce.
    let opened = decryptor.decrypt(remembering.iter().map(|i| i as &dyn age::Identity));
    match opened {
        Ok(_) => {}
        Err(age::DecryptError::NoMatchingKeys) => return Err(Unopened::NoMatchingKeys),
        Err(e) => return Err(damaged(e.to_string())),
    }
    let short = || damaged("it ends in its header".into());
    let key = key.take().ok_or_else(short)?;
    let header = header_length(&sealed).ok_or_else(short)?;
    let chunks = header + NONCE;
    let nonce = sealed.get(header..chunks).ok_or_else(short)?;
    let key = payload_key(&key[..], nonce).map_err(damaged)?;
    open_chunks(&key, &mut sealed, chunks).map_err(damaged)?;
    Ok(sealed)
}

/// Where the header ends: behind the line of its MAC, the first that begins with `---`. Stanzas begin with `->`, and their
/// bodies are base64, which has no hyphen.
fn header_length(sealed: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        let line = sealed.get(at..)?;
        let length = line.iter().position(|b| *b == b'\n')? + 1;
        at += length;
        if line.starts_with(b"---") {
            return Some(at);
        }
    }
}

fn payload_key(file_key: &[u8], nonce: &[u8]) -> Result<LessSafeKey, String> {
    let failed = |_| "its key can not be derived".to_owned();
    let pseudorandom = Salt::new(HKDF_SHA256, nonce).extract(file_key);
    let material = pseudorandom
        .expand(&[b"payload"], &CHACHA20_POLY1305)
        .map_err(failed)?;
    Ok(LessSafeKey::new(UnboundKey::from(material)))
}

/// Opens the chunks from a place on, and moves their plaintext to the front.
fn open_chunks(key: &LessSafeKey, file: &mut Vec<u8>, from: usize) -> Result<(), String> {
    let (mut read, mut written, mut counter) = (from, 0, 0u64);
    loop {
        let length = (file.len() - read).min(CHUNK + TAG);
        let last = read + length == file.len();
        // Only a file without content has an empty chunk.
        if length < TAG || (length == TAG && counter > 0) {
            return Err("it is cut short".into());
        }
        let opened = key
            .open_in_place(
                nonce_of(counter, last),
                Aad::empty(),
                &mut file[read..read + length],
            )
            .map_err(|_| format!("chunk {counter} is not what was written"))?
            .len();
        file.copy_within(read..read + opened, written);
        written += opened;
        if last {
            file.truncate(written);
            return Ok(());
        }
        read += length;
        counter += 1;
    }
}

/// Eleven bytes of counter, big-endian, and one that marks the last chunk.
fn nonce_of(counter: u64, last: bool) -> Nonce {
    let mut nonce = [0; 12];
    nonce[3..11].copy_from_slice(&counter.to_be_bytes());
    nonce[11] = u8::from(last);
    Nonce::assume_unique_for_key(nonce)
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    fn sealed(content: &[u8], recipients: &[age::x25519::Recipient]) -> Vec<u8> {
        let recipients = recipients.iter().map(|r| r as &dyn age::Recipient);
        let mut bytes = Vec::new();
        let mut writer = age::Encryptor::with_recipients(recipients)
            .unwrap()
            .wrap_output(&mut bytes)
            .unwrap();
        writer.write_all(content).unwrap();
        writer.finish().unwrap();
        bytes
    }

    fn by_the_crate(sealed: &[u8], identity: &age::x25519::Identity) -> Option<Vec<u8>> {
        let decryptor = age::Decryptor::new_buffered(sealed).ok()?;
        let mut reader = decryptor
            .decrypt(std::iter::once(identity as &dyn age::Identity))
            .ok()?;
        let mut plaintext = Vec::new();
        reader.read_to_end(&mut plaintext).ok()?;
        Some(plaintext)
    }

    #[test]
    fn opens_what_the_crate_seals_whatever_its_length() {
        let identities: Vec<_> = (0..3).map(|_| age::x25519::Identity::generate()).collect();
        let recipients: Vec<_> = identities.iter().map(age::x25519::Identity::to_public).collect();
        for length in [0, 1, 15, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK + 7] {
            let content: Vec<u8> = (0..length).map(|n| (n % 251) as u8).collect();
            let sealed = sealed(&content, &recipients);
            for identity in &identities {
                assert_eq!(open(sealed.clone(), &[identity]).unwrap(), content, "{length}");
            }
            let other = age::x25519::Identity::generate();
            assert!(matches!(
                open(sealed.clone(), &[&other]),
                Err(Unopened::NoMatchingKeys)
            ));
            assert_eq!(open(sealed, &[&other, &identities[1]]).unwrap(), content);
        }
    }

    #[test]
    fn seals_what_the_crate_opens_whatever_its_length() {
        let identity = age::x25519::Identity::generate();
        for length in [0, 1, 15, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK + 7] {
            let content: Vec<u8> = (0..length).map(|n| (n % 251) as u8).collect();
            let mut files = Vec::new();
            for piece in [1 << 20, CHUNK, CHUNK - 7, 5000] {
                let mut sealer = Sealer::new(&identity.to_public(), Vec::new()).unwrap();
                content
                    .chunks(piece)
                    .for_each(|piece| sealer.push(piece).unwrap());
                let file = sealer.finish().unwrap();
                assert_eq!(by_the_crate(&file, &identity).unwrap(), content, "{length}");
                let chunks = length.div_ceil(CHUNK).max(1);
                let payload = file.len() - header_length(&file).unwrap() - NONCE;
                assert_eq!(payload, length + chunks * TAG);
                assert!(!files.contains(&file), "a key or a nonce is used twice");
                files.push(file);
            }
        }
    }

    #[test]
    fn refuses_what_the_crate_refuses() {
        let identity = age::x25519::Identity::generate();
        let content: Vec<u8> = (0..2 * CHUNK + 9).map(|n| (n % 253) as u8).collect();
        let good = sealed(&content, &[identity.to_public()]);
        let header = header_length(&good).unwrap();
        let chunk = |n: usize| {
            let from = header + NONCE + n * (CHUNK + TAG);
            from..(from + CHUNK + TAG).min(good.len())
        };
        let mut bad = Vec::new();
        // Every byte of the header, and some of each chunk; every kind of cut.
        for at in (0..header + NONCE + 2).chain([chunk(1).start, chunk(1).end - 1, good.len() - 1]) {
            let mut flipped = good.clone();
            flipped[at] ^= 1;
            bad.push(flipped);
        }
        for end in [
            0,
            header - 1,
            header,
            header + NONCE,
            header + NONCE + TAG,
            chunk(0).end,
            chunk(1).end,
            good.len() - 1,
        ] {
            bad.push(good[..end].to_vec());
        }
        // Chunks in another order, one twice, one left out, something behind, an empty last one.
        let of = |parts: &[std::ops::Range<usize>]| -> Vec<u8> {
            let mut bytes = good[..header + NONCE].to_vec();
            parts
                .iter()
                .for_each(|part| bytes.extend_from_slice(&good[part.clone()]));
            bytes
        };
        bad.push(of(&[chunk(1), chunk(0), chunk(2)]));
        bad.push(of(&[chunk(0), chunk(0), chunk(1), chunk(2)]));
        bad.push(of(&[chunk(0), chunk(2)]));
        bad.push([&good[..], b"more"].concat());
        let whole = sealed(&content[..CHUNK], &[identity.to_public()]);
        bad.push([&whole[..], &[0; TAG]].concat());
        for bad in bad {
            assert!(by_the_crate(&bad, &identity).is_none_or(|c| c == content));
            assert_eq!(
                open(bad.clone(), &[&identity]).ok(),
                by_the_crate(&bad, &identity),
                "{} bytes",
                bad.len()
            );
        }
    }
}
