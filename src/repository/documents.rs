//! The plain documents of a repository: what is in each, how it is written, and what a reader compares.
//!
//! Every plain object names repository, source and run; a reader compares them with the key it asked for, so an
//! object copied to another place is told from the right one without any identity.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use chrono::{DateTime, TimeDelta, Utc};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};
use crate::types::{Digest, Environment, GenerationId, Key, RepositoryId, RunId, SourceName};

/// The repository format that this build writes.
pub const FORMAT: u32 = 1;
/// The largest commit, bytes of its first line (DESIGN, section 5).
pub const COMMIT_MAX_BYTES: usize = 4096;
/// The most packs that references name: 64 TiB of full ones. Who may write `refs` can claim any interval, and those who
/// verify and prune go through its numbers one by one.
pub const REFERENCED_PACKS_MAX: u64 = 1 << 22;

/// `lifeboat.json`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepositoryDocument {
    /// Repository format.
    pub format: u32,
    /// Its id.
    pub repository: RepositoryId,
    /// The environment whose policies may use it.
    pub environment: Environment,
    /// When `init` made it (host clock).
    pub created: DateTime<Utc>,
    /// The least format a reader must know.
    pub least_reader: u32,
    /// Features that whoever writes or sweeps must know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub must_understand: Vec<String>,
}

impl RepositoryDocument {
    /// Two lines: JSON, then the SHA-256 of the first.
    ///
    /// # Errors
    /// None that can happen.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        Ok(with_digest(to_json(self)?))
    }
    /// Reads it; `key` and `location` are for messages. A newer format is read when it wants no newer reader: see
    /// [`Self::writable`].
    ///
    /// # Errors
    /// Damaged, or of a format that this build can not read ([`Kind::Newer`]).
    pub fn parse(bytes: &[u8], key: &Key, location: &str) -> Result<Self> {
        let bad = |e: &dyn std::fmt::Display| Error::damaged(format!("{key} at {location} is damaged: {e}"));
        // A newer format may look otherwise: what it wants of a reader comes first.
        let line = bytes.split(|b| *b == b'\n').next().unwrap_or_default();
        let head: Reading = serde_json::from_slice(line).map_err(|e| bad(&e))?;
        let least = head.least_reader.unwrap_or(head.format);
        if least > FORMAT || head.format < FORMAT {
            return Err(Error::new(
                Kind::Newer,
                format!(
                    "the repository at {location} is of format {} and wants a reader of format {least}, which this build \
                     does not know",
                    head.format
                ),
            )
            .hint("Use a newer Lifeboat; nothing was changed."));
        }
        let line = without_digest(bytes).map_err(|e| bad(&e))?;
        serde_json::from_slice(line).map_err(|e| bad(&e))
    }

    /// Whether this build may write to the repository, and sweep it: it must know its format and every feature.
    ///
    /// # Errors
    /// [`Kind::Newer`]: reading is all it may do.
    pub fn writable(&self, location: &str) -> Result<()> {
        if self.format == FORMAT && self.must_understand.is_empty() {
            return Ok(());
        }
        Err(Error::new(
            Kind::Newer,
            format!(
                "the repository at {location} is of format {}{}, which this build can read and must not change",
                self.format,
                features(&self.must_understand)
            ),
        )
        .hint("Use a newer Lifeboat to write to it or to prune it; list, verify and restore work. Nothing was changed."))
    }
}

/// What `lifeboat.json` of any format says to readers.
#[derive(Deserialize)]
struct Reading {
    format: u32,
    least_reader: Option<u32>,
}

/// Three clocks read together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clocks {
    /// The source's own.
    pub source: DateTime<Utc>,
    /// This host's.
    pub host: DateTime<Utc>,
    /// The store's.
    pub store: DateTime<Utc>,
    /// How far the three readings may be apart, milliseconds.
    pub spread_ms: u64,
}

/// Clocks that are further apart than this are not a little off: one was wrong.
const WRONG_MS: i64 = 60_000;

impl Clocks {
    /// Source clock minus store clock, milliseconds.
    pub fn source_minus_store_ms(&self) -> i64 {
        (self.source - self.store).num_milliseconds()
    }
}

impl Commit {
    /// When the point was taken: its own time, or, where the source's clock was wrong then, what the store's clock said.
    pub fn taken(&self) -> DateTime<Utc> {
        let offset = self.clocks.source_minus_store_ms();
        let spread = i64::try_from(self.clocks.spread_ms).unwrap_or(i64::MAX);
        if offset.saturating_abs() > WRONG_MS.saturating_add(spread) {
            let right = self.at.checked_sub_signed(TimeDelta::milliseconds(offset));
            right.unwrap_or(self.at)
        } else {
            self.at
        }
    }
}

/// Bytes of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bytes {
    /// The size of the point's content.
    pub content: u64,
    /// Read from the source.
    pub read: u64,
    /// Written to the store, everything counted.
    pub stored: u64,
    /// Of the content, already in the store.
    pub reused: u64,
}

/// The generation that a run is encrypted to, with one wrap of its identity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitGeneration {
    /// Its id.
    pub id: GenerationId,
    /// Its recipient (`age1…`).
    pub recipient: String,
    /// A wrap of its identity: an age file, base64.
    pub wrap: String,
}

/// The commit: the object that makes a recovery point exist.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Commit {
    /// Repository format.
    pub format: u32,
    /// Features that a reader must know; unknown ones make it refuse.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub must_understand: Vec<String>,
    /// The repository.
    pub repository: RepositoryId,
    /// The source.
    pub source: SourceName,
    /// Kind of source, which chooses how to restore (`postgres-logical`, `pocketbase`).
    pub kind: String,
    /// The run, and the point's name.
    pub run: RunId,
    /// The run whose blocks it builds on.
    pub parent: Option<RunId>,
    /// The scheduled instant it answers for.
    pub slot: Option<DateTime<Utc>>,
    /// The state directory that wrote it.
    pub writer: String,
    /// A cut of a long run: a root for sweep, no point for restore.
    #[serde(default)]
    pub partial: bool,
    /// The instant it restores to, on the source's clock.
    pub at: DateTime<Utc>,
    /// When the run began (host clock).
    pub started: DateTime<Utc>,
    /// When the commit was written (host clock).
    pub finished: DateTime<Utc>,
    /// Three clocks read together.
    pub clocks: Clocks,
    /// Engine facts: versions, ids, LSN.
    pub facts: serde_json::Value,
    /// Bytes.
    pub bytes: Bytes,
    /// Digest of `manifest.age`.
    pub manifest: Digest,
    /// How many manifests a reader merges: 1 for a whole one.
    pub manifest_depth: u32,
    /// Digest of `refs`.
    pub refs: Digest,
    /// Digest of `SHA256SUMS`.
    pub sums: Digest,
    /// The key.
    pub generation: CommitGeneration,
    /// The log stream it belongs to and its position there (kept for sources with a log).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<String>,
    /// Log needed to restore it (kept for sources with a log).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<serde_json::Value>,
}

impl Commit {
    /// The object's bytes: the JSON on one line, then the SHA-256 of that line.
    ///
    /// # Errors
    /// Larger than [`COMMIT_MAX_BYTES`]: too many recipients or facts.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let line = to_json(self)?;
        if line.len() > COMMIT_MAX_BYTES {
            return Err(Error::failed(format!(
                "the commit would be {} bytes, over the limit of {COMMIT_MAX_BYTES}",
                line.len()
            ))
            .hint("Use fewer recipients; each adds about 130 bytes."));
        }
        Ok(with_digest(line))
    }
    /// Reads a commit and compares everything that can be compared without a key.
    ///
    /// # Errors
    /// Damaged, of another place, or of a format or with a feature that this build does not know.
    pub fn parse(
        bytes: &[u8],
        key: &Key,
        repository: RepositoryId,
        source: &SourceName,
        run: RunId,
    ) -> Result<Self> {
        let bad = |why: &str| Error::damaged(format!("the commit {key} is damaged: {why}"));
        let line = without_digest(bytes).map_err(bad)?;
        check_format(line, key)?;
        let commit: Self = serde_json::from_slice(line).map_err(|e| bad(&e.to_string()))?;
        compare(
            key,
            repository,
            source,
            run,
            (commit.repository, &commit.source, commit.run),
        )?;
        Ok(commit)
    }
}

/// What every plain document below a source has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Repository format.
    pub format: u32,
    /// The repository.
    pub repository: RepositoryId,
    /// The source.
    pub source: SourceName,
    /// The run.
    pub run: RunId,
}

/// `tombstones/<run>.json`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tombstone {
    /// Where it belongs.
    #[serde(flatten)]
    pub place: Place,
    /// When prune wrote it (host clock, for people; ages count by store time).
    pub at: DateTime<Utc>,
    /// Why.
    pub reason: String,
}

impl Tombstone {
    /// The reason of one that is put before the objects of a run without a commit go: its writer may only sleep.
    pub const ORPHAN: &'static str = "an orphan: it has no commit";
}

/// `holds/<run>.json`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// Where it belongs.
    #[serde(flatten)]
    pub place: Place,
    /// When (host clock).
    pub at: DateTime<Utc>,
    /// Who.
    pub who: String,
    /// Why.
    pub why: String,
}

/// `damaged/<ulid>.json`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Damage {
    /// The run whose object it is.
    #[serde(flatten)]
    pub place: Place,
    /// The object's name within the run, or `commit`.
    pub object: String,
    /// `missing` or what is wrong.
    pub problem: String,
    /// When (host clock).
    pub at: DateTime<Utc>,
}

impl Damage {
    /// The problem of an object that is not there.
    pub const MISSING: &'static str = "missing";
    /// The problem of an object with other bytes.
    pub const DIFFERS: &'static str = "its SHA-256 is not the one that was written";
    /// The problem of a commit that no later look can mend.
    pub const PARENT_SWEPT: &'static str = "its parent was swept while it was written";
    /// The problem of a commit that came while its run was being swept, which no later look can mend.
    pub const ORPHANED: &'static str = "it was taken for an orphan and swept while it was written";
    /// No problem any more: a later verify found the object as it was written. The newest record of an object counts.
    pub const MENDED: &'static str = "found as it was written";

    /// No look at the objects takes this back.
    pub fn is_lasting(&self) -> bool {
        [Self::PARENT_SWEPT, Self::ORPHANED].contains(&self.problem.as_str())
    }
}

/// One line of `refs`: a run that this one draws on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reference {
    /// The run.
    pub run: RunId,
    /// Digest of its `SHA256SUMS`.
    pub sums: Digest,
    /// The generation it is encrypted to.
    pub generation: GenerationId,
    /// First and last number of each interval of packs used.
    pub packs: Vec<(u32, u32)>,
    /// Whether its manifest is needed.
    pub manifest: bool,
}

/// `refs`: everything outside its own prefix that a run draws on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refs(pub BTreeMap<RunId, Reference>);

impl Refs {
    /// The object's bytes: a head line, then a line a run.
    ///
    /// # Errors
    /// More packs than a reader takes.
    pub fn to_bytes(&self, place: &Place) -> Result<Vec<u8>> {
        if self.packs() > REFERENCED_PACKS_MAX {
            return Err(Error::failed(format!(
                "the run would draw on more than {REFERENCED_PACKS_MAX} packs of others"
            ))
            .hint("Split the source: give each a part of the data."));
        }
        let mut bytes = to_json(place)?;
        bytes.push(b'\n');
        for reference in self.0.values() {
            bytes.extend(to_json(reference)?);
            bytes.push(b'\n');
        }
        Ok(bytes)
    }
    /// Reads them; the digest in the commit was compared before.
    ///
    /// # Errors
    /// Damaged or of another place.
    pub fn parse(bytes: &[u8], key: &Key, place: &Place) -> Result<Self> {
        let mut lines = bytes.split(|b| *b == b'\n').filter(|l| !l.is_empty());
        let bad = |e: &dyn std::fmt::Display| Error::damaged(format!("{key} is damaged: {e}"));
        let head: Place = serde_json::from_slice(lines.next().unwrap_or_default()).map_err(|e| bad(&e))?;
        compare(
            key,
            place.repository,
            &place.source,
            place.run,
            (head.repository, &head.source, head.run),
        )?;
        let mut refs = BTreeMap::new();
        for line in lines {
            let reference: Reference = serde_json::from_slice(line).map_err(|e| bad(&e))?;
            if reference.packs.iter().any(|(a, b)| a > b) {
                return Err(bad(&"an interval ends before it begins"));
            }
            refs.insert(reference.run, reference);
        }
        let refs = Self(refs);
        if refs.packs() > REFERENCED_PACKS_MAX {
            return Err(bad(&"it names more packs than there can be"));
        }
        Ok(refs)
    }
    /// How many packs they name; an interval counts whole.
    fn packs(&self) -> u64 {
        let intervals = self.0.values().flat_map(|r| &r.packs);
        intervals.map(|(a, b)| u64::from(b.saturating_sub(*a)) + 1).sum()
    }
}

/// `SHA256SUMS`: the objects of a run, as `sha256sum -c` reads it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sums(pub BTreeMap<String, Digest>);

impl Sums {
    /// The object's bytes; its first line is a comment that names the place.
    pub fn to_bytes(&self, place: &Place) -> Vec<u8> {
        let mut text = sums_head(place);
        for (name, digest) in &self.0 {
            // Writing to a String can not fail.
            let _ = writeln!(text, "{digest}  {name}");
        }
        text.into_bytes()
    }
    /// Reads them; the digest in the commit or in refs was compared before.
    ///
    /// # Errors
    /// Damaged or of another place.
    pub fn parse(bytes: &[u8], key: &Key, place: &Place) -> Result<Self> {
        let bad = |why: &str| Error::damaged(format!("{key} is damaged: {why}"));
        let text = std::str::from_utf8(bytes).map_err(|_| bad("it is not text"))?;
        let rest = text
            .strip_prefix(&sums_head(place))
            .ok_or_else(|| bad("it is not of this place"))?;
        let mut sums = BTreeMap::new();
        for line in rest.lines() {
            let (digest, name) = line.split_once("  ").ok_or_else(|| bad("a line has no name"))?;
            let known = name == super::layout::MANIFEST
                || name == super::layout::REFS
                || super::layout::pack_number(name).is_some();
            if !known {
                return Err(bad("it names an object that no run has"));
            }
            sums.insert(name.to_owned(), digest.parse()?);
        }
        Ok(Self(sums))
    }
}

fn sums_head(place: &Place) -> String {
    format!(
        "# lifeboat format={} repository={} source={} run={}\n",
        place.format, place.repository, place.source, place.run
    )
}

/// One line of JSON.
///
/// # Errors
/// None for our own types.
pub fn to_json<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|e| Error::failed("a document can not be written as JSON").because(e))
}

/// A line and, as the second, its SHA-256: what decides by itself must not change by one bit unnoticed.
pub(crate) fn with_digest(mut line: Vec<u8>) -> Vec<u8> {
    let digest = Digest::of(&line);
    line.extend_from_slice(format!("\n{digest}\n").as_bytes());
    line
}

/// The line, compared with the digest on the second.
fn without_digest(bytes: &[u8]) -> std::result::Result<&[u8], &'static str> {
    let end = bytes.iter().position(|b| *b == b'\n').ok_or("no second line")?;
    let (line, rest) = (&bytes[..end], &bytes[end + 1..]);
    if rest == format!("{}\n", Digest::of(line)).as_bytes() {
        Ok(line)
    } else {
        Err("its digest is wrong")
    }
}

/// Reads a document with a [`Place`] and compares it with the key it was found under.
///
/// # Errors
/// Damaged or of another place.
pub fn parse_placed<T: DeserializeOwned>(
    bytes: &[u8],
    key: &Key,
    place_of: impl Fn(&T) -> &Place,
    place: &Place,
) -> Result<T> {
    check_format(bytes, key)?;
    let document: T =
        serde_json::from_slice(bytes).map_err(|e| Error::damaged(format!("{key} is damaged: {e}")))?;
    let found = place_of(&document);
    compare(
        key,
        place.repository,
        &place.source,
        place.run,
        (found.repository, &found.source, found.run),
    )?;
    Ok(document)
}

/// Refuses a document of a format or with a feature that this build does not know.
///
/// # Errors
/// As said; a document without a readable format is damaged.
pub fn check_format(json: &[u8], key: &dyn std::fmt::Display) -> Result<()> {
    #[derive(Deserialize)]
    struct Head {
        format: u32,
        #[serde(default)]
        must_understand: Vec<String>,
    }
    let head: Head =
        serde_json::from_slice(json).map_err(|e| Error::damaged(format!("{key} is damaged: {e}")))?;
    if head.format != FORMAT || !head.must_understand.is_empty() {
        return Err(Error::new(
            Kind::Newer,
            format!(
                "{key} is of format {}{}, which this build does not know",
                head.format,
                features(&head.must_understand)
            ),
        )
        .hint("Use a newer Lifeboat; nothing was changed."));
    }
    Ok(())
}

fn features(names: &[String]) -> String {
    if names.is_empty() {
        String::new()
    } else {
        format!(" with {}", names.join(", "))
    }
}

fn compare(
    key: &Key,
    repository: RepositoryId,
    source: &SourceName,
    run: RunId,
    found: (RepositoryId, &SourceName, RunId),
) -> Result<()> {
    if found != (repository, source, run) {
        return Err(Error::damaged(format!(
            "{key} belongs elsewhere: it names repository {}, source {}, run {}",
            found.0, found.1, found.2
        ))
        .hint("An object was copied or swapped; `backup verify` tells how far the damage goes."));
    }
    Ok(())
}
