//! The keys that sign evidence and check it: Ed25519, in PEM.

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::error::{Error, Result};
use crate::secret::SecretText;
use crate::types::Digest;

/// A key of X.509's SubjectPublicKeyInfo for Ed25519 (RFC 8410, section 4), before its 32 bytes.
const SPKI: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];

/// A key that signs evidence.
pub struct SigningKey(Ed25519KeyPair);

/// A key that checks evidence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey([u8; 32]);

/// PKCS #8 in PEM (RFC 7468, section 10), and the public key in PEM (section 13).
///
/// # Errors
/// No randomness.
pub fn generate_key() -> Result<(SecretText, String)> {
    let failed = |_| Error::failed("a signing key can not be made");
    let document = Ed25519KeyPair::generate_pkcs8(&aws_lc_rs::rand::SystemRandom::new()).map_err(failed)?;
    let text = SecretText::new(pem("PRIVATE KEY", document.as_ref()));
    let key = SigningKey::parse(&text)?;
    Ok((text, key.public().pem()))
}

fn pem(label: &str, der: &[u8]) -> String {
    let encoded = STANDARD.encode(der);
    let mut out = format!("-----BEGIN {label}-----\n");
    for line in encoded.as_bytes().chunks(64) {
        out += &String::from_utf8_lossy(line);
        out.push('\n');
    }
    out + &format!("-----END {label}-----\n")
}

fn from_pem(label: &str, text: &str) -> Option<Vec<u8>> {
    let (_, rest) = text.split_once(&format!("-----BEGIN {label}-----"))?;
    let (body, _) = rest.split_once(&format!("-----END {label}-----"))?;
    STANDARD.decode(body.split_whitespace().collect::<String>()).ok()
}

impl SigningKey {
    /// Reads one.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(text: &SecretText) -> Result<Self> {
        let bad = || {
            Error::usage("the signing key can not be read")
                .hint("It is an Ed25519 key in PEM, as `backup key signing FILE` makes one.")
        };
        let der = from_pem("PRIVATE KEY", text.expose()).ok_or_else(bad)?;
        Ed25519KeyPair::from_pkcs8(&der).map(Self).map_err(|_| bad())
    }

    /// Signs, in base64.
    pub(super) fn sign(&self, bytes: &[u8]) -> String {
        STANDARD.encode(self.0.sign(bytes).as_ref())
    }

    /// What checks its signatures.
    pub fn public(&self) -> PublicKey {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(self.0.public_key().as_ref());
        PublicKey(bytes)
    }
}

impl PublicKey {
    /// Reads one in PEM.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(text: &str) -> Result<Self> {
        let bad = || {
            Error::usage("the public key can not be read")
                .hint("It is an Ed25519 key in PEM, as `backup key signing FILE` prints one.")
        };
        let der = from_pem("PUBLIC KEY", text).ok_or_else(bad)?;
        let bytes = der.strip_prefix(&SPKI[..]).ok_or_else(bad)?;
        Ok(Self(bytes.try_into().map_err(|_| bad())?))
    }

    fn der(&self) -> Vec<u8> {
        [&SPKI[..], &self.0[..]].concat()
    }

    /// In PEM.
    pub fn pem(&self) -> String {
        pem("PUBLIC KEY", &self.der())
    }

    /// Whether it has made a signature (in base64) of these bytes.
    pub(super) fn checks(&self, bytes: &[u8], signature: &str) -> bool {
        let key = UnparsedPublicKey::new(&ED25519, &self.0);
        STANDARD
            .decode(signature)
            .is_ok_and(|signature| key.verify(bytes, &signature).is_ok())
    }

    /// Its name in envelopes.
    pub fn id(&self) -> String {
        Digest::of(&self.der()).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_back_and_signs_what_its_public_half_checks() {
        let (secret, public) = generate_key().unwrap();
        let key = SigningKey::parse(&secret).unwrap();
        let public = PublicKey::parse(&public).unwrap();
        assert_eq!(key.public(), public);
        let signature = key.sign(b"a statement");
        assert!(public.checks(b"a statement", &signature) && !public.checks(b"another one", &signature));
        let other = SigningKey::parse(&generate_key().unwrap().0).unwrap();
        assert!(!other.public().checks(b"a statement", &signature));
        assert!(PublicKey::parse(secret.expose()).is_err());
        assert!(SigningKey::parse(&SecretText::new("nothing".to_owned())).is_err());
    }
}
