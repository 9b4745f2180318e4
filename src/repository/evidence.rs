//! What drills proved: in-toto statements in DSSE envelopes, signed with Ed25519, each naming the one before by its digest. So
//! nobody who lacks the key can change, add or take away one in the middle without its being told; the newest ones can be
//! withheld, which the next drill makes visible.
//!
//! (DSSE: secure-systems-lab/dsse, "protocol.md", version 1. The statement: in-toto attestation, "Statement", version 1.)

use std::collections::{BTreeMap, BTreeSet};

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use ulid::Ulid;

use super::{Repository, layout};
use crate::clock::World;
use crate::error::{Error, Result};
use crate::secret::SecretText;
use crate::types::{Digest, Key, hex};

/// The type of what an envelope holds.
const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";
const STATEMENT: &str = "https://in-toto.io/Statement/v1";
/// The type of what a statement says.
const PREDICATE: &str = "urn:lifeboat:drill:1";
/// A key of X.509's SubjectPublicKeyInfo for Ed25519 (RFC 8410, section 4), before its 32 bytes.
const SPKI: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];
/// The largest evidence that is read.
const EVIDENCE_MAX_BYTES: usize = 16 << 20;

/// A DSSE envelope.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Envelope {
    /// The statement, in base64.
    pub payload: String,
    /// Its type.
    #[serde(rename = "payloadType")]
    pub payload_type: String,
    /// Over type and statement; none, where the policy had no key.
    pub signatures: Vec<Signature>,
}

/// A signature of an envelope.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Signature {
    /// Which key: SHA-256 of its SubjectPublicKeyInfo, in hex.
    pub keyid: String,
    /// In base64.
    pub sig: String,
}

/// What is signed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Statement {
    /// The type of the statement.
    #[serde(rename = "_type")]
    pub kind: String,
    /// What it is about: the commits of the points.
    pub subject: Vec<Subject>,
    /// The type of the predicate.
    #[serde(rename = "predicateType")]
    pub predicate_type: String,
    /// What is said.
    pub predicate: Predicate,
}

/// A point that was drilled.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Subject {
    /// The key of its commit.
    pub name: String,
    /// By algorithm.
    pub digest: BTreeMap<String, String>,
}

/// What a drill proved.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Predicate {
    /// Version of this document.
    pub format: u32,
    /// The evidence before it; none: it is the first.
    pub previous: Option<Previous>,
    /// The report of the drill.
    pub report: Value,
}

/// The evidence before another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Previous {
    /// Its id.
    pub id: Ulid,
    /// SHA-256 of its envelope, in hex.
    pub sha256: String,
}

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

    /// Its name in envelopes.
    pub fn id(&self) -> String {
        Digest::of(&self.der()).to_string()
    }
}

/// What a signature is over: DSSE's pre-authentication encoding.
fn encoded(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let head = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len());
    [head.as_bytes(), payload].concat()
}

/// Seals a statement; without a key it is signed by nobody.
///
/// # Errors
/// None in practice.
pub fn seal(statement: &Statement, key: Option<&SigningKey>) -> Result<Bytes> {
    let failed = |e: serde_json::Error| Error::failed("evidence can not be written").because(e);
    let payload = serde_json::to_vec(statement).map_err(failed)?;
    let sign = |key: &SigningKey| Signature {
        keyid: key.public().id(),
        sig: STANDARD.encode(key.0.sign(&encoded(PAYLOAD_TYPE, &payload)).as_ref()),
    };
    let envelope = Envelope {
        signatures: key.iter().map(|key| sign(key)).collect(),
        payload: STANDARD.encode(&payload),
        payload_type: PAYLOAD_TYPE.to_owned(),
    };
    serde_json::to_vec(&envelope).map(Bytes::from).map_err(failed)
}

/// A statement over a report.
pub fn statement(subject: Vec<Subject>, previous: Option<Previous>, report: Value) -> Statement {
    Statement {
        kind: STATEMENT.to_owned(),
        subject,
        predicate_type: PREDICATE.to_owned(),
        predicate: Predicate {
            format: 1,
            previous,
            report,
        },
    }
}

/// Evidence that was read.
#[derive(Clone, Debug)]
pub struct Evidence {
    /// Its id.
    pub id: Ulid,
    /// SHA-256 of its envelope, in hex.
    pub sha256: String,
    /// What it says.
    pub statement: Statement,
    /// Its signatures.
    pub signatures: Vec<Signature>,
    payload: Vec<u8>,
}

impl Evidence {
    /// Reads an envelope. Nothing is said of its signatures.
    ///
    /// # Errors
    /// It is no evidence.
    pub fn parse(id: Ulid, bytes: &[u8]) -> Result<Self> {
        let bad = |what: &str| Error::damaged(format!("evidence {id} {what}"));
        if bytes.len() > EVIDENCE_MAX_BYTES {
            return Err(bad("is too large"));
        }
        let envelope: Envelope =
            serde_json::from_slice(bytes).map_err(|e| bad("is no envelope").because(e))?;
        if envelope.payload_type != PAYLOAD_TYPE {
            return Err(bad("holds something else"));
        }
        let payload = STANDARD
            .decode(&envelope.payload)
            .map_err(|_| bad("is no base64"))?;
        let statement: Statement =
            serde_json::from_slice(&payload).map_err(|e| bad("holds no statement").because(e))?;
        if statement.kind != STATEMENT || statement.predicate_type != PREDICATE {
            return Err(bad("is a statement of another kind"));
        }
        Ok(Self {
            id,
            sha256: Digest::of(bytes).to_string(),
            statement,
            signatures: envelope.signatures,
            payload,
        })
    }

    /// Whether a key has signed it.
    pub fn is_signed_by(&self, key: &PublicKey) -> bool {
        let over = encoded(PAYLOAD_TYPE, &self.payload);
        let checks = UnparsedPublicKey::new(&ED25519, &key.0);
        self.signatures.iter().any(|signature| {
            signature.keyid == key.id()
                && STANDARD
                    .decode(&signature.sig)
                    .is_ok_and(|sig| checks.verify(&over, &sig).is_ok())
        })
    }
}

/// What is wrong with a chain, a sentence each; in the order of the evidence.
pub fn judge(chain: &[Evidence], key: Option<&PublicKey>) -> Vec<String> {
    let mut problems = Vec::new();
    let by_id: BTreeMap<Ulid, &Evidence> = chain.iter().map(|e| (e.id, e)).collect();
    let mut followed = BTreeSet::new();
    for (place, evidence) in chain.iter().enumerate() {
        let id = evidence.id;
        match key {
            Some(_) if evidence.signatures.is_empty() => problems.push(format!("{id} is not signed")),
            Some(key) if !evidence.is_signed_by(key) => {
                problems.push(format!("{id} is not signed by this key, or was changed"));
            }
            _ => {}
        }
        match &evidence.statement.predicate.previous {
            None if place > 0 => problems.push(format!("{id} says that it is the first, and is not")),
            None => {}
            Some(previous) => {
                match by_id.get(&previous.id) {
                    None => problems.push(format!("{id} follows {}, which is missing", previous.id)),
                    Some(before) if before.sha256 != previous.sha256 => {
                        problems.push(format!("{id} follows {}, which was changed since", previous.id));
                    }
                    Some(_) => {}
                }
                if !followed.insert(previous.id) {
                    problems.push(format!("{id} follows {}, as another one does", previous.id));
                }
            }
        }
    }
    problems
}

impl Repository {
    /// The ids of all evidence, oldest first.
    ///
    /// # Errors
    /// The store.
    pub async fn evidence_ids(&self) -> Result<BTreeSet<Ulid>> {
        let objects = self.list(&layout::evidence_prefix()).await?;
        Ok(objects
            .iter()
            .filter_map(|o| layout::evidence_id(&o.key))
            .collect())
    }

    /// Reads evidence.
    ///
    /// # Errors
    /// The store; it is gone, or no evidence.
    pub async fn evidence(&self, id: Ulid) -> Result<(Evidence, Bytes)> {
        let bytes = self.read_present(&layout::evidence(id)).await?;
        Ok((Evidence::parse(id, &bytes)?, bytes))
    }

    /// Puts evidence.
    ///
    /// # Errors
    /// The store.
    pub async fn put_evidence(&self, world: &World, id: Ulid, envelope: Bytes) -> Result<Key> {
        let key = layout::evidence(id);
        self.put(world, &key, envelope).await?;
        Ok(key)
    }
}

/// A subject of a statement: a commit by its key and digest.
pub fn subject(key: &Key, commit: &[u8]) -> Subject {
    Subject {
        name: key.to_string(),
        digest: BTreeMap::from([("sha256".to_owned(), hex(Digest::of(commit).as_bytes()))]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u64) -> Ulid {
        Ulid::from_parts(n, 0)
    }

    /// A chain of so many, sealed with a key.
    fn chain(key: Option<&SigningKey>, count: u64) -> Vec<Evidence> {
        let mut chain: Vec<Evidence> = Vec::new();
        for n in 1..=count {
            let previous = chain.last().map(|e| Previous {
                id: e.id,
                sha256: e.sha256.clone(),
            });
            let sealed = seal(&statement(Vec::new(), previous, Value::from(n)), key).unwrap();
            chain.push(Evidence::parse(id(n), &sealed).unwrap());
        }
        chain
    }

    #[test]
    fn a_key_is_read_back_and_signs_what_its_public_half_checks() {
        let (secret, public) = generate_key().unwrap();
        let key = SigningKey::parse(&secret).unwrap();
        let public = PublicKey::parse(&public).unwrap();
        assert_eq!(key.public(), public);
        let other = SigningKey::parse(&generate_key().unwrap().0).unwrap();
        let evidence = &chain(Some(&key), 1)[0];
        assert!(evidence.is_signed_by(&public) && !evidence.is_signed_by(&other.public()));
        assert!(PublicKey::parse(secret.expose()).is_err());
        assert!(SigningKey::parse(&SecretText::new("nothing".to_owned())).is_err());
    }

    #[test]
    fn a_change_in_the_middle_is_told_whatever_it_is() {
        let key = SigningKey::parse(&generate_key().unwrap().0).unwrap();
        let public = key.public();
        let whole = chain(Some(&key), 4);
        assert_eq!(judge(&whole, Some(&public)), [""; 0]);
        // Taken away.
        let mut gone = whole.clone();
        gone.remove(1);
        assert!(judge(&gone, Some(&public))[0].contains("which is missing"));
        // Made anew by somebody without the key, and by nobody at all.
        let stranger = SigningKey::parse(&generate_key().unwrap().0).unwrap();
        for forger in [Some(&stranger), None] {
            let mut forged = whole.clone();
            let statement = statement(
                Vec::new(),
                forged[1].statement.predicate.previous.clone(),
                Value::from("all passed"),
            );
            forged[1] = Evidence::parse(id(2), &seal(&statement, forger).unwrap()).unwrap();
            let told = judge(&forged, Some(&public)).join("\n");
            assert!(
                told.contains("not signed") && told.contains("was changed since"),
                "{told}"
            );
            // Without a key the chain alone tells.
            assert!(judge(&forged, None).join("\n").contains("was changed since"));
        }
        // A byte of the payload.
        let mut changed = whole.clone();
        changed[3].payload[30] ^= 1;
        assert!(judge(&changed, Some(&public))[0].contains("was changed"));
        // The first one taken away: the second says what it followed.
        assert!(judge(&whole[1..], Some(&public))[0].contains("which is missing"));
        // One put beside another.
        let mut beside = whole.clone();
        let again = statement(
            Vec::new(),
            whole[3].statement.predicate.previous.clone(),
            Value::from("again"),
        );
        beside.push(Evidence::parse(id(5), &seal(&again, Some(&key)).unwrap()).unwrap());
        assert!(judge(&beside, Some(&public))[0].contains("as another one does"));
    }
}
