//! What drills answer, and what is told of their evidence.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::Failure;
use crate::drill::{Check, Outcome};
use crate::repository::evidence::{Aside, Loss, Statement};
use crate::types::{Digest, EvidenceRef, RunId, SourceName};

/// `drill`
#[derive(Clone, Debug, Serialize)]
pub struct DrillReport {
    /// `[drill.NAME]`
    pub drill: String,
    /// Of which environment.
    pub environment: String,
    /// The version of Lifeboat.
    pub version: String,
    /// The worst of its sources.
    pub result: Outcome,
    /// The lowest that a source reached; none: one reached none.
    pub level: Option<u8>,
    /// When it began.
    pub at: DateTime<Utc>,
    /// Wall time.
    pub seconds: f64,
    /// Its sources.
    pub sources: Vec<SourceDrill>,
    /// Somebody stopped it; what it found until then is here.
    pub interrupted: bool,
    /// The key of its evidence; where the repository could not be written, the file that holds it.
    pub evidence: Option<String>,
    /// Why its evidence could be kept nowhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<Failure>,
    /// What the operator should know.
    pub warnings: Vec<String>,
}

impl DrillReport {
    /// Without what servers and programs said, which may hold rows of users' data: for what is kept.
    #[must_use]
    pub fn without_details(&self) -> Self {
        let mut report = self.clone();
        for source in &mut report.sources {
            for check in &mut source.checks {
                check.detail = None;
            }
        }
        report
    }
}

/// A source's part in a drill.
#[derive(Clone, Debug, Serialize)]
pub struct SourceDrill {
    /// The source.
    pub source: SourceName,
    /// How it ended.
    pub result: Outcome,
    /// The highest level that was reached, 0–6.
    pub level: Option<u8>,
    /// The repository's id.
    pub repository: Option<String>,
    /// The point that was restored.
    pub run: Option<RunId>,
    /// Digest of its commit, which is the subject of the evidence.
    #[serde(skip)]
    pub commit: Option<Digest>,
    /// Why that one.
    pub reason: String,
    /// The instant that the point restores to.
    pub restored_to: Option<DateTime<Utc>>,
    /// How long the restore took, its comparison with the facts included.
    pub rto_seconds: Option<f64>,
    /// From the beginning of the drill to the end of level 4, seconds: digests, target, restore and comparison.
    pub level_4_seconds: Option<f64>,
    /// `objective.rto`
    pub rto_objective_seconds: Option<f64>,
    /// The age of the newest point.
    pub rpo_seconds: Option<f64>,
    /// `max_age`, or `objective.rpo`.
    pub rpo_objective_seconds: Option<f64>,
    /// What was restored into.
    pub target: String,
    /// Recipients of the identities that were at hand.
    pub identity: Vec<String>,
    /// Bytes restored.
    pub bytes: u64,
    /// Each check, with what should be and what is.
    pub checks: Vec<Check>,
    /// Levels of which nothing was looked at.
    pub not_tested: Vec<String>,
    /// What became of the target.
    pub cleanup: String,
    /// What the operator should know.
    pub warnings: Vec<String>,
    /// Wall time of all of it.
    pub seconds: f64,
    /// When it began, since boot.
    #[serde(skip)]
    pub begun: Duration,
}

impl SourceDrill {
    /// Of nothing yet.
    pub fn new(source: SourceName) -> Self {
        Self {
            source,
            result: Outcome::CouldNotRun,
            level: None,
            repository: None,
            run: None,
            commit: None,
            reason: String::new(),
            restored_to: None,
            rto_seconds: None,
            level_4_seconds: None,
            rto_objective_seconds: None,
            rpo_seconds: None,
            rpo_objective_seconds: None,
            target: String::new(),
            identity: Vec::new(),
            bytes: 0,
            checks: Vec::new(),
            not_tested: Vec::new(),
            cleanup: "nothing was made".to_owned(),
            warnings: Vec::new(),
            seconds: 0.0,
            begun: Duration::ZERO,
        }
    }
}

/// `evidence list`
#[derive(Clone, Debug, Serialize)]
pub struct EvidenceList {
    /// In the order of the chain.
    pub evidence: Vec<ListedEvidence>,
    /// What is among it and is no evidence.
    pub put_aside: Vec<Aside>,
    /// What is missing or was changed, a sentence each.
    pub problems: Vec<String>,
    /// What was accepted as lost.
    pub lost: Vec<Loss>,
    /// What the operator should know.
    pub warnings: Vec<String>,
}

/// A line of `evidence list`.
#[derive(Clone, Debug, Serialize)]
pub struct ListedEvidence {
    /// Its id.
    pub id: String,
    /// Its place in the chain.
    pub number: u64,
    /// When the drill began.
    pub at: Option<DateTime<Utc>>,
    /// `[drill.NAME]`; empty: it is of no drill.
    pub drill: String,
    /// `passed`, `failed`, `could_not_run`; `accepted`: it accepts losses.
    pub result: String,
    /// The level that was reached.
    pub level: Option<u64>,
    /// Its sources.
    pub sources: Vec<String>,
    /// Ids of what it accepts as lost.
    pub lost: Vec<String>,
    /// It has a signature; whose, `evidence verify` tells.
    pub signed: bool,
    /// It is not in the repository yet, but in the state directory of this host.
    pub here: bool,
}

/// `evidence accept`
#[derive(Clone, Debug, Serialize)]
pub struct AcceptReport {
    /// Nothing was written.
    pub dry_run: bool,
    /// The id of the evidence that accepts the losses.
    pub id: String,
    /// Its place in the chain.
    pub number: u64,
    /// Its key; where the repository could not be written, the file that holds it; none: it was not written.
    pub evidence: Option<String>,
    /// What is accepted as lost.
    pub lost: Vec<EvidenceRef>,
    /// Why.
    pub reason: String,
    /// It is signed.
    pub signed: bool,
    /// All that it says.
    pub statement: Statement,
    /// What is wrong with the chain all the same, a sentence each.
    pub problems: Vec<String>,
    /// What the operator should know.
    pub warnings: Vec<String>,
}

/// `evidence verify`
#[derive(Clone, Debug, Serialize)]
pub struct EvidenceReport {
    /// Nothing is wrong.
    pub ok: bool,
    /// How many were looked at.
    pub evidence: usize,
    /// The newest.
    pub newest: Option<ListedEvidence>,
    /// A public key was given.
    pub signatures_checked: bool,
    /// What is wrong, a sentence each.
    pub problems: Vec<String>,
    /// What was accepted as lost.
    pub lost: Vec<Loss>,
    /// What is no evidence, and why.
    pub put_aside: Vec<Aside>,
    /// How much of that has not even the name of evidence.
    pub passed_over: usize,
    /// What the operator should know.
    pub warnings: Vec<String>,
}

/// `evidence report`: what a month's drills proved, and of what nothing is proven.
#[derive(Clone, Debug, Serialize)]
pub struct MonthReport {
    /// `2026-11`, in UTC.
    pub month: String,
    /// Of which environment.
    pub environment: String,
    /// The drills of the month, oldest first.
    pub drills: Vec<ListedEvidence>,
    /// Every source of the policy and of the evidence, by name.
    pub sources: Vec<Coverage>,
    /// What is wrong with the chain of all evidence, a sentence each.
    pub problems: Vec<String>,
    /// What was accepted as lost, in whatever month.
    pub lost: Vec<Loss>,
    /// What the operator should know.
    pub warnings: Vec<String>,
    /// The policy's key was compared with the signatures.
    pub signatures_checked: bool,
}

/// What is proven of a source.
#[derive(Clone, Debug, Serialize)]
pub struct Coverage {
    /// The source.
    pub source: String,
    /// Drills of it in the month, by how they ended.
    pub passed: u32,
    /// See above.
    pub failed: u32,
    /// See above.
    pub could_not_run: u32,
    /// The slowest restore of the month, seconds.
    pub rto_seconds: Option<f64>,
    /// `objective.rto`
    pub rto_objective_seconds: Option<f64>,
    /// When a drill of it passed last, in whatever month.
    pub last_passed: Option<DateTime<Utc>>,
    /// Recovery points that are there now.
    pub points: u64,
    /// Of these: proven by a drill, in whatever month.
    pub points_proven: u64,
    /// No drill of the policy names it.
    pub in_no_drill: bool,
}
