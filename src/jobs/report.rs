//! What the jobs answer: documents with stable names (DESIGN, section 7). Times are RFC 3339 UTC, sizes bytes.

mod drills;

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::drill::Outcome;
use crate::drill::measured::{Prediction, Timed};
use crate::error::Error;
use crate::source::{Finding, Part};
use crate::state::last::LastRun;
use crate::store::Abilities;
use crate::types::{Environment, GenerationId, RepositoryId, RunId, SourceName};

pub use drills::{
    AcceptReport, Coverage, DrillReport, EvidenceList, EvidenceReport, ListedEvidence, MonthReport,
    SourceDrill,
};

/// A failure inside a document.
#[derive(Clone, Debug, Serialize)]
pub struct Failure {
    /// Stable name, as [`crate::error::Kind::code`].
    pub code: &'static str,
    /// What happened, with causes.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
}

impl From<&Error> for Failure {
    fn from(e: &Error) -> Self {
        Self {
            code: e.kind().code(),
            message: e.chain(),
            hint: e.hint_text().map(str::to_owned),
        }
    }
}

/// `init`
#[derive(Clone, Debug, Serialize)]
pub struct InitReport {
    /// Id of the repository.
    pub repository: RepositoryId,
    /// Where.
    pub location: String,
    /// Whose.
    pub environment: Environment,
    /// What the store can do.
    pub abilities: Abilities,
    /// What the operator should know (one recipient only …).
    pub warnings: Vec<String>,
}

/// `check`
#[derive(Clone, Debug, Serialize)]
pub struct CheckReport {
    /// No finding is an error.
    pub ok: bool,
    /// Policy, secrets, repository, store.
    pub findings: Vec<Finding>,
    /// What the store can do, if it could be reached.
    pub abilities: Option<Abilities>,
    /// The sources.
    pub sources: Vec<CheckedSource>,
    /// What else has a schedule.
    pub tasks: Vec<CheckedTask>,
    /// Process exit code.
    #[serde(skip)]
    pub exit_code: u8,
}

/// `prune` or `verify` in `check`.
#[derive(Clone, Debug, Serialize)]
pub struct CheckedTask {
    /// Which.
    pub task: String,
    /// The next five slots.
    pub next_runs: Vec<DateTime<Utc>>,
}

/// A source in `check`.
#[derive(Clone, Debug, Serialize)]
pub struct CheckedSource {
    /// Name.
    pub source: SourceName,
    /// Kind.
    pub kind: String,
    /// Findings.
    pub findings: Vec<Finding>,
    /// The next five slots.
    pub next_runs: Vec<DateTime<Utc>>,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RunResult {
    /// A recovery point exists.
    Done,
    /// None.
    Failed,
    /// Not tried.
    Skipped,
    /// Stopped by a signal.
    Interrupted,
}

/// One run in `run`.
#[derive(Clone, Debug, Serialize)]
pub struct RunReport {
    /// The source.
    pub source: SourceName,
    /// The run; none if it did not begin.
    pub run: Option<RunId>,
    /// How it ended.
    pub result: RunResult,
    /// The slot it answers for.
    pub slot: Option<DateTime<Utc>>,
    /// The instant the point restores to.
    pub at: Option<DateTime<Utc>>,
    /// Why not.
    pub error: Option<Failure>,
    /// What the operator should know.
    pub warnings: Vec<String>,
    /// Bytes read from the source.
    pub bytes_read: u64,
    /// Bytes written to the store.
    pub bytes_stored: u64,
    /// Bytes of content that the store had already.
    pub bytes_reused: u64,
    /// How long.
    pub seconds: f64,
    /// Process exit code if this were the only run.
    #[serde(skip)]
    pub exit_code: u8,
}

/// `list` (all sources, or one)
#[derive(Clone, Debug, Serialize)]
pub struct ListReport {
    /// The sources.
    pub sources: Vec<ListedSource>,
    /// What the operator should know of what drills proved.
    pub warnings: Vec<String>,
}

/// A source in `list`.
#[derive(Clone, Debug, Serialize)]
pub struct ListedSource {
    /// Name.
    pub source: SourceName,
    /// Kind, of the newest point.
    pub kind: Option<String>,
    /// Points, oldest first. Partial ones are not points.
    pub points: Vec<ListedPoint>,
    /// Spans that can be restored.
    pub windows: Vec<Window>,
    /// Commits that can not be read.
    pub unreadable: Vec<UnreadablePoint>,
}

/// A commit that can not be read.
#[derive(Clone, Debug, Serialize)]
pub struct UnreadablePoint {
    /// Its run.
    pub run: RunId,
    /// Why.
    pub problem: String,
    /// It is not damaged, only written by a newer Lifeboat.
    pub newer_format: bool,
}

/// A point in `list`.
#[derive(Clone, Debug, Serialize)]
pub struct ListedPoint {
    /// The run.
    pub run: RunId,
    /// The instant it restores to.
    pub at: DateTime<Utc>,
    /// When the run began.
    pub started: DateTime<Utc>,
    /// When it was committed.
    pub finished: DateTime<Utc>,
    /// Size of the content.
    pub bytes_content: u64,
    /// Bytes read from the source.
    pub bytes_read: u64,
    /// Bytes written to the store.
    pub bytes_stored: u64,
    /// The run it builds on.
    pub parent: Option<RunId>,
    /// Proof by a drill.
    pub drilled: Option<Drilled>,
    /// Held.
    pub held: bool,
    /// Expired and waiting for its grace: since when (store time).
    pub tombstoned: Option<DateTime<Utc>>,
    /// Why it can not be restored, as far as is known.
    pub damaged: Option<String>,
}

/// Proof by a drill.
#[derive(Clone, Debug, Serialize)]
pub struct Drilled {
    /// When.
    pub at: DateTime<Utc>,
    /// Level, 0–6.
    pub level: u8,
    /// How long its restore took.
    #[serde(skip)]
    pub timed: Option<Timed>,
}

/// A span of instants.
#[derive(Clone, Debug, Serialize)]
pub struct Window {
    /// From.
    pub from: DateTime<Utc>,
    /// To.
    pub to: DateTime<Utc>,
    /// `continuous` or `points`.
    pub kind: &'static str,
}

/// `list RUN`
#[derive(Clone, Debug, Serialize)]
pub struct PointReport {
    /// The point.
    #[serde(flatten)]
    pub point: ListedPoint,
    /// The source.
    pub source: SourceName,
    /// Kind.
    pub kind: String,
    /// Facts in the commit.
    pub facts: serde_json::Value,
    /// The databases in it, with the instant of each one's snapshot; none: no identity at hand opens the point.
    pub databases: Option<Vec<Part>>,
    /// The generation it is encrypted to.
    pub generation: GenerationId,
    /// Source clock minus store clock, milliseconds.
    pub clock_offset_ms: i64,
    /// The slot.
    pub slot: Option<DateTime<Utc>>,
    /// The runs it draws on, and how many packs of each.
    pub refs: Vec<ListedReference>,
    /// Objects of this run.
    pub objects: Vec<ListedObject>,
}

/// A run that a point draws on.
#[derive(Clone, Debug, Serialize)]
pub struct ListedReference {
    /// The run.
    pub run: RunId,
    /// Packs used.
    pub packs: u64,
}

/// An object of a run.
#[derive(Clone, Debug, Serialize)]
pub struct ListedObject {
    /// Key.
    pub key: String,
    /// Bytes.
    pub bytes: u64,
    /// Object Lock until, where locks are on.
    pub locked_until: Option<DateTime<Utc>>,
}

/// `restore` of one source
#[derive(Clone, Debug, Serialize)]
pub struct RestoreReport {
    /// The source.
    pub source: SourceName,
    /// The requested instant, on the source's clock: for `latest` the moment it was asked; none for `--at-point`.
    pub requested: Option<DateTime<Utc>>,
    /// The instant that the result is of.
    pub restored_to: DateTime<Utc>,
    /// How much later the requested instant is.
    pub gap_seconds: f64,
    /// How long ago the instant of the result was.
    pub age_seconds: f64,
    /// `latest` was asked for.
    #[serde(skip)]
    pub latest: bool,
    /// `transaction`, `version` or `point`.
    pub precision: &'static str,
    /// The point.
    pub run: RunId,
    /// Log used.
    pub log_from: Option<String>,
    /// Log used.
    pub log_to: Option<String>,
    /// Bytes restored (`--dry-run`: to be restored).
    pub bytes: u64,
    /// How long.
    pub seconds: f64,
    /// Where; none with `--dry-run` without `--to`. Never with a password.
    pub target: Option<String>,
    /// Nothing was written.
    pub dry_run: bool,
    /// The databases that are restored, where the point has databases and an identity opens it.
    pub databases: Vec<Part>,
    /// Differences between recorded facts and the result: any makes the restore fail.
    pub differences: Vec<String>,
    /// What the operator should know (damaged points passed over, clocks …).
    pub warnings: Vec<String>,
    /// What is left to do with the result: commands.
    pub next_steps: Vec<String>,
    /// Whether a drill has proven the point.
    pub drilled: Option<Drilled>,
    /// Set when this source of `--all` failed.
    pub error: Option<Failure>,
}

/// `verify`
#[derive(Clone, Debug, Default, Serialize)]
pub struct VerifyReport {
    /// Objects read.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Damaged ones.
    pub damaged: Vec<Problem>,
    /// Missing ones, by key.
    pub missing: Vec<Problem>,
    /// Commits of a newer format: nothing can be said of them, and of what they alone draw on.
    pub unknown: Vec<Problem>,
}

/// An object that is not as it was written.
#[derive(Clone, Debug, Serialize)]
pub struct Problem {
    /// Key.
    pub key: String,
    /// What is wrong.
    pub problem: String,
}

/// `prune`
#[derive(Clone, Debug, Default, Serialize)]
pub struct PruneReport {
    /// Kept points.
    pub keep: Vec<Kept>,
    /// Points that get (or got) a tombstone now.
    pub expire: Vec<Expired>,
    /// Points and orphans whose objects go (or went) now.
    pub sweep: Vec<Swept>,
    /// What the operator should know (a locked object, an abort …).
    pub warnings: Vec<String>,
    /// Only planned.
    pub dry_run: bool,
}

/// A kept point.
#[derive(Clone, Debug, Serialize)]
pub struct Kept {
    /// The source.
    pub source: SourceName,
    /// The point.
    pub run: RunId,
    /// The instant it restores to.
    pub at: DateTime<Utc>,
    /// Why.
    pub reasons: Vec<String>,
}

/// An expired point.
#[derive(Clone, Debug, Serialize)]
pub struct Expired {
    /// The source.
    pub source: SourceName,
    /// The point.
    pub run: RunId,
    /// The instant it restores to.
    pub at: DateTime<Utc>,
    /// Until when `prune --undo RUN` brings it back.
    pub undo_until: DateTime<Utc>,
    /// Whether the tombstone was there already.
    pub tombstoned: bool,
}

/// Something swept.
#[derive(Clone, Debug, Serialize)]
pub struct Swept {
    /// The source.
    pub source: SourceName,
    /// The run.
    pub run: RunId,
    /// `expired`, `orphan` or `remains`.
    pub why: &'static str,
    /// Objects removed.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// `prune --undo`
#[derive(Clone, Debug, Serialize)]
pub struct Undone {
    /// The source.
    pub source: SourceName,
    /// The run that is back.
    pub run: RunId,
    /// Its instant.
    pub at: DateTime<Utc>,
}

/// `hold`
#[derive(Clone, Debug, Serialize)]
pub struct HoldReport {
    /// The holds.
    pub holds: Vec<Held>,
    /// The run that is held no more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub removed: Option<RunId>,
}

/// A hold.
#[derive(Clone, Debug, Serialize)]
pub struct Held {
    /// The source.
    pub source: SourceName,
    /// The point.
    pub run: RunId,
    /// When.
    pub at: DateTime<Utc>,
    /// Who.
    pub who: String,
    /// Why.
    pub why: String,
}

/// `status`
#[derive(Clone, Debug, Serialize)]
pub struct StatusReport {
    /// Every objective is met and nothing is unknown.
    pub ok: bool,
    /// One sentence for the whole.
    pub sentence: String,
    /// The sources, worst first.
    pub sources: Vec<SourceStatus>,
    /// What the daemon's own tasks (`prune`, `verify`) failed of, and why it can not be told what drills proved, a sentence each.
    pub problems: Vec<String>,
    /// What the operator should know, and what misses no objective.
    pub warnings: Vec<String>,
}

/// A source in `status`.
#[derive(Clone, Debug, Serialize)]
pub struct SourceStatus {
    /// The source.
    pub source: SourceName,
    /// The newest point's instant.
    pub newest_at: Option<DateTime<Utc>>,
    /// Age of that: the loss if the source died now.
    pub rpo_seconds: Option<f64>,
    /// The objective: `objective.rpo`, else twice the schedule's interval.
    pub rpo_objective_seconds: Option<f64>,
    /// The last run of this state directory that ended, or was killed.
    pub last_run: Option<LastRun>,
    /// The last drill that proved a point of it.
    pub last_drill: Option<Drilled>,
    /// How the last drill of it ended, whatever it found.
    pub last_drill_result: Option<Outcome>,
    /// When that began.
    pub last_drill_at: Option<DateTime<Utc>>,
    /// How long a restore of the newest point takes, at the rates that drills measured; none: nothing was measured.
    pub predicted_restore_seconds: Option<f64>,
    /// The drill that says so.
    pub predicted_by: Option<Prediction>,
    /// `objective.rto`
    pub rto_objective_seconds: Option<f64>,
    /// What is wrong, a sentence each.
    pub problems: Vec<String>,
}

/// `key list`, `rotate`, `rewrap`
#[derive(Clone, Debug, Serialize)]
pub struct KeyReport {
    /// The repository's generations, oldest first.
    pub generations: Vec<ListedGeneration>,
    /// What was done.
    pub done: Vec<String>,
    /// What the operator should know.
    pub warnings: Vec<String>,
}

/// A generation.
#[derive(Clone, Debug, Serialize)]
pub struct ListedGeneration {
    /// Its id.
    pub generation: GenerationId,
    /// How many wraps it has.
    pub wraps: u64,
    /// Whether the identity at hand opens it; none: unknown, there is no identity at hand.
    pub opens: Option<bool>,
    /// Whether this host encrypts to it now.
    pub current: bool,
}
