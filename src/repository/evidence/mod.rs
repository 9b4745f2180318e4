//! What drills proved: in-toto statements in DSSE envelopes, signed with Ed25519, each naming all those before it that no other
//! one names, by their digests. So nobody who lacks the key can change, add or take away one in the middle without its being
//! told; that the newest ones are withheld, whoever knows of one of them can tell.
//!
//! (DSSE: secure-systems-lab/dsse, "protocol.md", version 1. The statement: in-toto attestation, "Statement", version 1.)

mod chain;
mod key;

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use ulid::Ulid;

use super::{Repository, layout};
use crate::clock::World;
use crate::error::{Error, Result};
use crate::types::{Digest, EvidenceRef, Key, RepositoryId};

pub use chain::{Aside, Chain, Hole, Loss};
pub use key::{PublicKey, SigningKey, generate_key};

/// The type of what an envelope holds.
const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";
const STATEMENT: &str = "https://in-toto.io/Statement/v1";
/// The type of what a statement says.
const PREDICATE: &str = "urn:lifeboat:drill:1";
/// The version of what a statement says.
const FORMAT: u32 = 1;
/// The largest number that every reader of JSON keeps exactly.
const NUMBER_MAX: u64 = 1 << 53;
/// The largest evidence that is read.
pub const EVIDENCE_MAX_BYTES: u64 = 16 << 20;

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
    /// Its id: that of the object that holds it.
    pub id: Ulid,
    /// One more than the largest of those before it. It, and no clock, tells what is later.
    pub number: u64,
    /// All evidence that was known when it was made and that no other one names. Two of two drills at once are so joined by
    /// the next one.
    pub previous: Vec<EvidenceRef>,
    /// Which repository it is about; none: the drill never reached it.
    pub repository: Option<RepositoryId>,
    /// Those before it that can not be put back, as they were named: that they are missing, or are others now, is accepted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lost: Vec<EvidenceRef>,
    /// Why that is accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The report of the drill; of who accepts a loss: when, who, and of which environment.
    pub report: Value,
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
        sig: key.sign(&encoded(PAYLOAD_TYPE, &payload)),
    };
    let envelope = Envelope {
        signatures: key.iter().map(|key| sign(key)).collect(),
        payload: STANDARD.encode(&payload),
        payload_type: PAYLOAD_TYPE.to_owned(),
    };
    serde_json::to_vec(&envelope).map(Bytes::from).map_err(failed)
}

/// A statement over a report, behind what is known of evidence.
///
/// # Errors
/// There is no number left, which takes a chain that somebody made up.
pub fn statement(
    id: Ulid,
    previous: Vec<EvidenceRef>,
    repository: Option<RepositoryId>,
    subject: Vec<Subject>,
    report: Value,
) -> Result<Statement> {
    let number =
        next_number(&previous).ok_or_else(|| Error::failed("the evidence has numbers as large as can be"))?;
    Ok(Statement {
        kind: STATEMENT.to_owned(),
        subject,
        predicate_type: PREDICATE.to_owned(),
        predicate: Predicate {
            format: FORMAT,
            id,
            number,
            previous,
            repository,
            lost: Vec::new(),
            reason: None,
            report,
        },
    })
}

/// A statement that accepts losses.
///
/// # Errors
/// As [`statement`].
pub fn acceptance(
    id: Ulid,
    previous: Vec<EvidenceRef>,
    repository: Option<RepositoryId>,
    lost: Vec<EvidenceRef>,
    reason: &str,
    report: Value,
) -> Result<Statement> {
    let mut statement = statement(id, previous, repository, Vec::new(), report)?;
    statement.predicate.lost = lost;
    statement.predicate.reason = Some(reason.to_owned());
    Ok(statement)
}

fn next_number(previous: &[EvidenceRef]) -> Option<u64> {
    let largest = previous.iter().map(|p| p.number).max().unwrap_or(0);
    largest.checked_add(1).filter(|n| *n <= NUMBER_MAX)
}

/// Evidence that was read.
#[derive(Clone, Debug)]
pub struct Evidence {
    /// SHA-256 of its envelope, in hex.
    pub sha256: String,
    /// What it says.
    pub statement: Statement,
    /// Its signatures.
    pub signatures: Vec<Signature>,
    payload: Vec<u8>,
}

impl Evidence {
    /// Reads an envelope. Nothing is said of its signatures, nor of the name under which it was found.
    ///
    /// # Errors
    /// It is no evidence: a few words that follow "it".
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() as u64 > EVIDENCE_MAX_BYTES {
            return Err("is too large to be read".to_owned());
        }
        let envelope: Envelope = serde_json::from_slice(bytes).map_err(|e| format!("is no envelope: {e}"))?;
        if envelope.payload_type != PAYLOAD_TYPE {
            return Err("holds something else than a statement".to_owned());
        }
        let payload = STANDARD
            .decode(&envelope.payload)
            .map_err(|e| format!("is no base64: {e}"))?;
        let statement: Statement =
            serde_json::from_slice(&payload).map_err(|e| format!("holds no statement: {e}"))?;
        if statement.kind != STATEMENT || statement.predicate_type != PREDICATE {
            return Err("is a statement of another kind".to_owned());
        }
        let predicate = &statement.predicate;
        if predicate.format != FORMAT {
            return Err(format!(
                "is of format {}, which this build does not know",
                predicate.format
            ));
        }
        if next_number(&predicate.previous) != Some(predicate.number) {
            return Err(format!("can not have the number {}", predicate.number));
        }
        let ids: BTreeSet<Ulid> = predicate.previous.iter().map(|p| p.id).collect();
        if ids.len() != predicate.previous.len() || ids.contains(&predicate.id) {
            return Err("names itself, or another one twice".to_owned());
        }
        let reason = predicate.reason.as_deref();
        if reason.is_none_or(|reason| reason.trim().is_empty()) != predicate.lost.is_empty() {
            return Err("accepts a loss without a reason, or has a reason for none".to_owned());
        }
        let lost: BTreeSet<&EvidenceRef> = predicate.lost.iter().collect();
        if lost.len() != predicate.lost.len() || lost.iter().any(|lost| lost.number >= predicate.number) {
            return Err("accepts a loss twice, or of something later".to_owned());
        }
        Ok(Self {
            sha256: Digest::of(bytes).to_string(),
            statement,
            signatures: envelope.signatures,
            payload,
        })
    }

    /// Reads what stands under a name, and takes it only where it is of that name and, with a key, signed by it.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn accept(name: Ulid, bytes: &[u8], key: Option<&PublicKey>) -> Result<Self, String> {
        let evidence = Self::parse(bytes)?;
        if evidence.id() != name {
            return Err(format!("is {}, under another name", evidence.id()));
        }
        match key {
            Some(_) if evidence.signatures.is_empty() => Err("is not signed".to_owned()),
            Some(key) if !evidence.is_signed_by(key) => {
                Err("is not signed by this key, or was changed".to_owned())
            }
            _ => Ok(evidence),
        }
    }

    /// Its id, as it is signed.
    pub fn id(&self) -> Ulid {
        self.statement.predicate.id
    }
    /// Its place in the chain, as it is signed.
    pub fn number(&self) -> u64 {
        self.statement.predicate.number
    }
    /// The report of the drill.
    pub fn report(&self) -> &Value {
        &self.statement.predicate.report
    }
    /// How others name it.
    pub fn reference(&self) -> EvidenceRef {
        EvidenceRef {
            id: self.id(),
            number: self.number(),
            sha256: self.sha256.clone(),
        }
    }
    /// The digest of a commit that it is about.
    pub fn subject(&self, commit: &Key) -> Option<&str> {
        let subjects = &self.statement.subject;
        let subject = subjects.iter().find(|s| s.name == commit.as_str())?;
        subject.digest.get("sha256").map(String::as_str)
    }
    /// Whether a key has signed it.
    pub fn is_signed_by(&self, key: &PublicKey) -> bool {
        let over = encoded(PAYLOAD_TYPE, &self.payload);
        let id = key.id();
        let mut own = self.signatures.iter().filter(|s| s.keyid == id);
        own.any(|signature| key.checks(&over, &signature.sig))
    }
}

/// What is below `evidence/`: what has the name of evidence, with its size, and what has not.
#[derive(Debug, Default)]
pub struct Listed {
    /// By id.
    pub named: BTreeMap<Ulid, u64>,
    /// Other keys.
    pub others: Vec<Key>,
}

impl Repository {
    /// Lists what is below `evidence/`.
    ///
    /// # Errors
    /// The store.
    pub async fn list_evidence(&self) -> Result<Listed> {
        let mut listed = Listed::default();
        for object in self.list(&layout::evidence_prefix()).await? {
            match layout::evidence_id(&object.key) {
                Some(id) => drop(listed.named.insert(id, object.size)),
                None => listed.others.push(object.key),
            }
        }
        Ok(listed)
    }

    /// The size of what has the name of evidence, asked by its key; none: it is not there.
    ///
    /// # Errors
    /// The store.
    pub async fn evidence_size(&self, id: Ulid) -> Result<Option<u64>> {
        let found = self.store().head(&layout::evidence(id), self.view()).await?;
        Ok(found.map(|info| info.size))
    }

    /// Reads what has the name of evidence; none: it is not there.
    ///
    /// # Errors
    /// The store.
    pub async fn read_evidence(&self, id: Ulid) -> Result<Option<Bytes>> {
        self.read(&layout::evidence(id)).await
    }

    /// Puts evidence. What is there under its name is never replaced.
    ///
    /// # Errors
    /// The store; other bytes under its name ([`crate::error::Kind::Damaged`]).
    pub async fn put_evidence(&self, world: &World, id: Ulid, envelope: Bytes) -> Result<Key> {
        let key = layout::evidence(id);
        // Where stores replace, a put alone would do so.
        match self.read(&key).await? {
            Some(there) if there == envelope => {}
            Some(_) => return Err(Error::damaged(format!("{key} is there already with other bytes"))),
            None => self.put(world, &key, envelope).await?,
        }
        Ok(key)
    }
}

/// A subject of a statement: a commit by its key and digest.
pub fn subject(key: &Key, commit: Digest) -> Subject {
    Subject {
        name: key.to_string(),
        digest: BTreeMap::from([("sha256".to_owned(), commit.to_string())]),
    }
}
