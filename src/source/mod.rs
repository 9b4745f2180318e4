//! What is protected. A source knows how to give a snapshot, how to put it back, and how to compare the result with
//! the facts recorded at the time. Everything else knows no source by name.

pub(crate) mod directory_target;
pub mod pocketbase;
pub mod postgres;
mod room;
pub mod scratch;
pub mod stamps;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncRead;
use tokio_util::sync::CancellationToken;

pub use crate::types::{Finding, Level};

use crate::clock::World;
use crate::error::Result;
use crate::progress::Progress;
use crate::secret::SecretText;
use crate::types::{RunId, SourceName, UnitName};

/// How a unit's content is cut into blocks that are compared with the last run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cut {
    /// Aligned blocks: page files (Postgres relations, SQLite).
    Pages,
    /// Content-defined chunks: dumps.
    Stream,
    /// As one: files that are never changed in place.
    Whole,
}

/// The attributes of a unit, as far as its source has them.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Attributes {
    /// Unix permission bits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<u32>,
    /// Modification time, Unix milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub modified_ms: Option<i64>,
}

/// One thing in a snapshot: a file or a dump.
#[derive(Clone, Debug)]
pub struct UnitHead {
    /// Its name. A capture gives units in strictly ascending order of [`UnitName`].
    pub name: UnitName,
    /// How to cut it.
    pub cut: Cut,
    /// Its attributes.
    pub attributes: Attributes,
    /// Bytes, if known before reading; for progress and for the block size. Never trusted.
    pub size_hint: Option<u64>,
    /// If the last run recorded an equal, non-empty stamp for this name, the content is the same and is not read. Only
    /// for units that are never changed in place (for a file: size, mtime, ctime, inode).
    pub stamp: Option<String>,
}

/// What a capture gives when all of it has been read and everything went well.
#[derive(Clone, Debug)]
pub struct Captured {
    /// The instant the snapshot restores to, on the source's own clock.
    pub at: DateTime<Utc>,
    /// The source's clock, read together with `host_clock`.
    pub source_clock: DateTime<Utc>,
    /// The host's clock, read together with `source_clock`.
    pub host_clock: DateTime<Utc>,
    /// How far off the pair may be (round trip), milliseconds.
    pub clock_spread_ms: u64,
    /// Facts for the commit: versions, ids, LSN. At most 1 KiB as JSON; the full facts are a unit (`facts.json`).
    pub facts: serde_json::Value,
    /// Things the operator should know that did not make the run fail (a role without its password …).
    pub warnings: Vec<String>,
}

/// A snapshot being read.
#[async_trait]
pub trait Capture: Send {
    /// The next unit, in strictly ascending order of name; `None` after the last.
    ///
    /// # Errors
    /// The run fails; nothing is committed.
    async fn next(&mut self) -> Result<Option<UnitHead>>;
    /// Opens the content of the unit that [`Capture::next`] gave last. Not called when its stamp is known.
    ///
    /// # Errors
    /// The run fails; nothing is committed.
    async fn open(&mut self) -> Result<Box<dyn AsyncRead + Send + Unpin>>;
    /// Called when the content given by [`Capture::open`] was read to its end: whether it really was all (a child's
    /// exit status and stderr decide, not its EOF).
    ///
    /// # Errors
    /// The content is not whole: the run fails.
    async fn close(&mut self) -> Result<()>;
    /// Called after the last unit, before the commit: final checks, facts, instant.
    ///
    /// # Errors
    /// The snapshot is not consistent: the run fails.
    async fn finish(&mut self) -> Result<Captured>;
    /// Called always, last: removes spool files and remote copies, ends sessions. After an error or an interrupt too.
    async fn cleanup(&mut self);
}

/// What a capture or a restore is given.
#[derive(Clone, Debug)]
pub struct Context {
    /// Time, randomness, crash points.
    pub world: World,
    /// The source's name.
    pub source: SourceName,
    /// The run (of a restore: the restored point).
    pub run: RunId,
    /// A private directory (0700) of this run for spool files; the caller removes it afterwards.
    pub scratch: PathBuf,
    /// Ends the work early.
    pub cancel: CancellationToken,
    /// Where progress goes.
    pub progress: Arc<dyn Progress>,
    /// What the last run knows already (of a capture).
    pub known: stamps::Stamps,
}

/// The content of a recovery point, read back in order.
#[async_trait]
pub trait PointContent: Send {
    /// The next unit in the order of names, with its true size; skips what was left unread of the one before.
    ///
    /// # Errors
    /// Damaged or missing objects.
    async fn next(&mut self) -> Result<Option<RestoredUnit>>;
    /// The next bytes of the current unit, already compared with their digest; `None` at its end.
    ///
    /// # Errors
    /// Damaged or missing objects.
    async fn read(&mut self) -> Result<Option<Bytes>>;
}

/// A unit as a recovery point has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestoredUnit {
    /// Its name.
    pub name: UnitName,
    /// Bytes.
    pub size: u64,
    /// Its attributes.
    pub attributes: Attributes,
}

/// Where a restore goes.
#[derive(Clone, Debug)]
pub enum Target {
    /// A new or empty directory.
    Directory(PathBuf),
    /// A `postgres://` URL: a database, or a server for several databases.
    Postgres(SecretText),
    /// An `s3://` URL (buckets).
    Bucket(String),
}

/// What a restore may do.
#[derive(Clone, Debug, Default)]
pub struct RestoreOptions {
    /// Only this database.
    pub only_database: Option<String>,
    /// Only this table.
    pub only_table: Option<String>,
    /// Reuse what is in the target: for physical restores, which are not built yet.
    pub reuse: bool,
    /// The server was made for this restore: that it gets every role is not told.
    pub new_server: bool,
}

/// How much of a unit a restorer wants to know before it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Nothing.
    Nothing,
    /// Its size.
    Size,
    /// Its content, which is small.
    Content,
}

/// A point's units, as far as they were wanted: what can be told of it without reading all of it.
#[derive(Clone, Debug, Default)]
pub struct Outline {
    /// Bytes, by the unit's name.
    pub sizes: BTreeMap<String, u64>,
    /// Content, by the unit's name.
    pub documents: BTreeMap<String, Bytes>,
}

/// One thing in a point that can be restored alone: a database.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Part {
    /// Its name.
    pub name: String,
    /// Bytes in the point.
    pub bytes: u64,
    /// Tables in it.
    pub tables: u64,
    /// Their rows, as far as they are in the point.
    pub rows: u64,
    /// The instant of its own snapshot.
    pub at: DateTime<Utc>,
}

/// What a restore did.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Restored {
    /// Bytes written (of dumps: fed to the restoring program).
    pub bytes: u64,
    /// Differences between the facts recorded at backup time and the result, one sentence each. Empty is success.
    pub differences: Vec<String>,
    /// Things the operator should know.
    pub warnings: Vec<String>,
    /// What is left to do with the result, commands that work when pasted.
    pub next_steps: Vec<String>,
}

/// What a drill of the policy says of the target that it wants.
#[derive(Clone, Copy, Debug, Default)]
pub struct DrillNeeds<'a> {
    /// Where server programs are; otherwise they are looked for.
    pub binaries: Option<&'a Path>,
    /// A server for Postgres, in place of a cluster of the drill's own.
    pub server: Option<&'a SecretText>,
}

/// What a drill would make its target with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DrillReady {
    /// Such as `PostgreSQL 15.18`; empty where nothing is needed.
    pub text: String,
    /// Where programs of checks are looked for before the system's.
    pub path: Vec<PathBuf>,
}

/// A protected thing.
#[async_trait]
pub trait Source: Send + Sync {
    /// Tries configuration and access, as `backup check` shows them.
    async fn check(&self, world: &World) -> Vec<Finding>;
    /// Whether a drill finds on this host what a target for this source is made with.
    ///
    /// # Errors
    /// What is missing, or why it can not be told.
    async fn check_drill(&self, _needs: &DrillNeeds<'_>) -> Result<DrillReady, Finding> {
        Ok(DrillReady::default())
    }
    /// Takes a snapshot. Whatever must be of one instant is fixed when this returns or by [`Capture::finish`]. When the
    /// work is cancelled this ends soon, and nothing of it goes on in the scratch directory after it.
    ///
    /// # Errors
    /// The source can not be read; the message says what to do.
    async fn capture(&self, context: Context) -> Result<Box<dyn Capture>>;
}

/// Puts a point of one kind back. Chosen by the kind recorded in the commit, so it needs no policy.
#[async_trait]
pub trait Restorer: Send + Sync {
    /// Refuses an unsuitable target before a byte is written: not empty (naming what is in the way), wrong kind.
    /// A marker of the same interrupted restore is not in the way.
    ///
    /// # Errors
    /// A refusal ([`crate::error::Kind::Usage`]) or a target that can not be reached.
    async fn examine(&self, context: &Context, target: &Target, options: &RestoreOptions) -> Result<()>;
    /// How much of a unit is wanted in the [`Outline`] for the two below.
    fn wants(&self, _unit: &UnitName) -> Wanted {
        Wanted::Nothing
    }
    /// The parts of a point that the options choose; none where it is one thing.
    ///
    /// # Errors
    /// What the options name is not in the point ([`crate::error::Kind::Usage`]), or the outline is damaged.
    fn parts(&self, _outline: &Outline, _options: &RestoreOptions) -> Result<Vec<Part>> {
        Ok(Vec::new())
    }
    /// As [`Restorer::examine`], with what is known of the point: everything that would end the restore later, and can
    /// be told now, does. Gives what the operator should know.
    ///
    /// # Errors
    /// As [`Restorer::examine`].
    async fn examine_for(
        &self,
        _context: &Context,
        _outline: &Outline,
        _target: &Target,
        _options: &RestoreOptions,
    ) -> Result<Vec<String>> {
        Ok(Vec::new())
    }
    /// Makes a scratch target for a point that this was read of.
    ///
    /// # Errors
    /// A program or an extension is not there ([`crate::error::Kind::DrillCouldNotRun`]); it does not start.
    async fn scratch(
        &self,
        context: &Context,
        plan: scratch::ScratchPlan,
        outline: &Outline,
    ) -> Result<Box<dyn scratch::ScratchTarget>>;
    /// Writes the point to the target, and compares the facts.
    ///
    /// # Errors
    /// The first error ends it and leaves a marker that names the restore.
    async fn restore(
        &self,
        context: &Context,
        content: &mut dyn PointContent,
        target: &Target,
        options: &RestoreOptions,
    ) -> Result<Restored>;
}

/// Whether a path is inside another, both made canonical as far as they exist.
pub fn is_inside(path: &Path, directory: &Path) -> bool {
    let canonical = |p: &Path| {
        p.ancestors()
            .find_map(|a| {
                a.canonicalize()
                    .ok()
                    .map(|c| c.join(p.strip_prefix(a).unwrap_or(Path::new(""))))
            })
            .unwrap_or_else(|| p.to_path_buf())
    };
    canonical(path).starts_with(canonical(directory))
}
