//! Evidence: kept by drills, listed, shown, and verified: also offline, with nothing but files and a public key.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use bytes::Bytes;
use chrono::{DateTime, Datelike as _, Utc};
use futures::{StreamExt as _, TryStreamExt as _};
use ulid::Ulid;

use super::Session;
use super::report::{Coverage, DrillReport, Drilled, EvidenceReport, ListedEvidence, MonthReport};
use super::session::Role;
use crate::drill::measured::Timed;
use crate::drill::{Outcome, RECOVERY_KEY};
use crate::error::{Context as _, Error, Kind, Result};
use crate::repository::evidence::{self, Evidence, Previous, PublicKey, SigningKey};
use crate::repository::{Repository, layout};
use crate::state::{self, StateDir};
use crate::types::{RunId, SourceName};

/// Evidence read at once.
const READS_AT_ONCE: usize = 16;

/// Makes a signing key: the private half goes to a new file (0600), the public one is given, in PEM.
///
/// # Errors
/// The file is there, or can not be written.
pub fn generate_signing_key(file: &Path) -> Result<String> {
    let (secret, public) = evidence::generate_key()?;
    super::keys::write_new(file, secret.expose())?;
    Ok(public)
}

/// The policy's signing key.
///
/// # Errors
/// It is missing or unreadable.
fn signing_key(session: &Session) -> Result<Option<SigningKey>> {
    match &session.policy.evidence_key {
        Some(reference) => SigningKey::parse(&session.secret(reference)?).map(Some),
        None => Ok(None),
    }
}

/// Keeps what a drill found: in the repository, or, where its credentials may not write, in the state directory.
///
/// # Errors
/// Neither can be written; the signing key.
pub async fn keep(session: &Session, report: &mut DrillReport) -> Result<()> {
    let key = signing_key(session)?;
    if key.is_none() {
        report.warnings.push(
            "the evidence is signed by nobody: make a key with `backup key signing FILE`, and set evidence.key".to_owned(),
        );
    }
    let repository = session.open(Role::Writer).await;
    let mut subject = Vec::new();
    let mut previous = None;
    if let Ok(repository) = &repository {
        for drilled in &report.sources {
            if let Some(run) = drilled.run {
                let commit = layout::commit(&drilled.source, run);
                let bytes = repository.read(&commit).await?;
                subject.extend(bytes.map(|bytes| evidence::subject(&commit, &bytes)));
            }
        }
        if let Some(newest) = repository.evidence_ids().await?.pop_last() {
            let bytes = repository.read_present(&layout::evidence(newest)).await?;
            previous = Some(Previous {
                id: newest,
                sha256: crate::types::Digest::of(&bytes).to_string(),
            });
        }
    }
    let id = session.world.ulid()?;
    let said = serde_json::to_value(&*report).doing(|| "the report can not be written")?;
    let sealed = evidence::seal(&evidence::statement(subject, previous, said), key.as_ref())?;
    let kept = match &repository {
        Ok(repository) => repository.put_evidence(&session.world, id, sealed.clone()).await,
        Err(e) => Err(Error::failed(e.chain())),
    };
    match kept {
        Ok(key) => report.evidence = Some(key.to_string()),
        Err(e) => {
            let path = here(session, id, &sealed)?;
            report.warnings.push(format!(
                "the evidence is not in the repository ({}); it is at {path}",
                e.chain()
            ));
            report.evidence = Some(path);
        }
    }
    Ok(())
}

/// Keeps evidence in the state directory.
fn here(session: &Session, id: Ulid, sealed: &Bytes) -> Result<String> {
    let directory = StateDir::open(&session.policy.state_dir)?.path().join("evidence");
    state::make_dir(&directory)?;
    let path = directory.join(format!("{id}.json"));
    state::write_atomically(&path, sealed)?;
    Ok(path.display().to_string())
}

/// All evidence of a repository, oldest first.
///
/// # Errors
/// The store; one that is no evidence.
pub async fn all(repository: &Repository) -> Result<Vec<Evidence>> {
    let ids = repository.evidence_ids().await?;
    let mut all: Vec<Evidence> = futures::stream::iter(ids)
        .map(|id| async move { repository.evidence(id).await.map(|(evidence, _)| evidence) })
        .buffer_unordered(READS_AT_ONCE)
        .try_collect()
        .await?;
    all.sort_by_key(|e| e.id);
    Ok(all)
}

/// What evidence says, in a line.
fn listed(evidence: &Evidence) -> ListedEvidence {
    let report = &evidence.statement.predicate.report;
    let text = |key: &str| report[key].as_str().unwrap_or_default().to_owned();
    let sources = report["sources"].as_array().into_iter().flatten();
    ListedEvidence {
        id: evidence.id.to_string(),
        at: report["at"].as_str().and_then(|at| at.parse().ok()),
        drill: text("drill"),
        result: text("result"),
        level: report["level"].as_u64(),
        sources: sources
            .filter_map(|s| s["source"].as_str().map(str::to_owned))
            .collect(),
        signed: !evidence.signatures.is_empty(),
    }
}

/// Every evidence, oldest first.
///
/// # Errors
/// The repository.
pub async fn list(session: &Session) -> Result<Vec<ListedEvidence>> {
    let repository = session.open(Role::Writer).await?;
    Ok(all(&repository).await?.iter().map(listed).collect())
}

/// One of them: the report that it holds.
///
/// # Errors
/// There is none of this id.
pub async fn show(session: &Session, id: Ulid) -> Result<Evidence> {
    let repository = session.open(Role::Writer).await?;
    if !repository.evidence_ids().await?.contains(&id) {
        return Err(Error::usage(format!("there is no evidence {id}"))
            .hint("`backup evidence list` shows what there is."));
    }
    Ok(repository.evidence(id).await?.0)
}

/// Verifies the chain of a repository.
///
/// # Errors
/// The repository can not be read. What is wrong is an answer.
pub async fn verify(session: &Session, key: Option<&PublicKey>) -> Result<EvidenceReport> {
    let repository = session.open(Role::Writer).await?;
    let mut read = BTreeMap::new();
    for id in repository.evidence_ids().await? {
        read.insert(id, repository.read_present(&layout::evidence(id)).await?.to_vec());
    }
    Ok(judge(read, key))
}

/// Verifies files, with nothing else.
///
/// # Errors
/// They can not be read.
pub fn verify_files(files: &[std::path::PathBuf], key: Option<&PublicKey>) -> Result<EvidenceReport> {
    let mut read = BTreeMap::new();
    for path in files {
        let doing = || format!("can not read {}", path.display());
        let mut paths = vec![path.clone()];
        if path.is_dir() {
            paths = std::fs::read_dir(path)
                .and_then(|entries| entries.map(|e| e.map(|e| e.path())).collect())
                .doing(doing)?;
        }
        for path in paths {
            let id = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok());
            let id = id.ok_or_else(|| {
                Error::usage(format!("{} is no evidence: its name is no id", path.display()))
                    .hint("Give evidence/<ID>.json as it is in the repository, or the directory of them.")
            })?;
            read.insert(
                id,
                std::fs::read(&path).doing(|| format!("can not read {}", path.display()))?,
            );
        }
    }
    Ok(judge(read, key))
}

fn judge(read: BTreeMap<Ulid, Vec<u8>>, key: Option<&PublicKey>) -> EvidenceReport {
    let (mut chain, mut problems) = (Vec::new(), Vec::new());
    let count = read.len();
    for (id, bytes) in read {
        match Evidence::parse(id, &bytes) {
            Ok(evidence) => chain.push(evidence),
            Err(e) => problems.push(e.chain()),
        }
    }
    problems.extend(evidence::judge(&chain, key));
    EvidenceReport {
        ok: problems.is_empty(),
        evidence: count,
        newest: chain.last().map(listed),
        signatures_checked: key.is_some(),
        problems,
    }
}

/// The points that drills proved, with when and at which level; the newest drill of each. Only what the policy's key has
/// signed counts, where it has one.
///
/// # Errors
/// The store; one that is no evidence: then nobody knows.
pub async fn proven(
    session: &Session,
    repository: &Repository,
) -> Result<BTreeMap<(SourceName, RunId), Drilled>> {
    let key = signing_key(session)?.map(|key| key.public());
    let mut proven = BTreeMap::new();
    for evidence in all(repository).await? {
        if key.as_ref().is_some_and(|key| !evidence.is_signed_by(key)) {
            continue;
        }
        let report = &evidence.statement.predicate.report;
        let at: Option<DateTime<Utc>> = report["at"].as_str().and_then(|at| at.parse().ok());
        for of_source in report["sources"].as_array().into_iter().flatten() {
            let passed = of_source["result"].as_str() == Some(Outcome::Passed.name());
            let known = (
                of_source["source"].as_str().and_then(|s| s.parse().ok()),
                of_source["run"].as_str().and_then(|r| r.parse().ok()),
                of_source["level"].as_u64().and_then(|l| u8::try_from(l).ok()),
                at,
            );
            if let (true, (Some(source), Some(run), Some(level), Some(at))) = (passed, known) {
                let timed = Timed::read(report, of_source);
                proven.insert((source, run), Drilled { at, level, timed });
            }
        }
    }
    Ok(proven)
}

/// As [`proven`], for what is shown only: where it can not be told, nothing is proven, and why is said.
pub async fn proven_or_why(
    session: &Session,
    repository: &Repository,
) -> (BTreeMap<(SourceName, RunId), Drilled>, Option<String>) {
    match proven(session, repository).await {
        Ok(proven) => (proven, None),
        Err(e) if e.kind() == Kind::Interrupted => (BTreeMap::new(), None),
        Err(e) => (
            BTreeMap::new(),
            Some(format!("what drills proved can not be told: {}", e.chain())),
        ),
    }
}

/// What a month's drills proved, and what was never drilled. The month is one of UTC's.
///
/// # Errors
/// The repository; evidence that can not be read.
pub async fn month(session: &Session, month: Month) -> Result<MonthReport> {
    let repository = session.open(Role::Writer).await?;
    let all = all(&repository).await?;
    let key = signing_key(session)?.map(|key| key.public());
    let proven = proven(session, &repository).await?;
    let of_month: Vec<&Evidence> = all
        .iter()
        .filter(|e| listed(e).at.is_some_and(|at| month.has(at)))
        .collect();
    let mut names: BTreeSet<String> = session.policy.sources.keys().map(ToString::to_string).collect();
    names.extend(of_month.iter().flat_map(|e| listed(e).sources));
    let mut sources = Vec::new();
    for name in names {
        let source: Option<SourceName> = name.parse().ok();
        let policy = source
            .as_ref()
            .and_then(|source| session.policy.sources.get(source));
        let runs: BTreeSet<RunId> = match &source {
            Some(source) => repository
                .runs_below(&layout::points_prefix(source))
                .await?
                .into_keys()
                .collect(),
            None => BTreeSet::new(),
        };
        let own: Vec<(&RunId, &Drilled)> = proven
            .iter()
            .filter(|((of, _), _)| source.as_ref() == Some(of))
            .map(|((_, run), drilled)| (run, drilled))
            .collect();
        let mut coverage = Coverage {
            passed: 0,
            failed: 0,
            could_not_run: 0,
            rto_seconds: None,
            rto_objective_seconds: policy.and_then(|p| p.objective.rto).map(|d| d.as_secs_f64()),
            last_passed: own.iter().map(|(_, drilled)| drilled.at).max(),
            points: runs.len() as u64,
            points_proven: own.iter().filter(|(run, _)| runs.contains(run)).count() as u64,
            in_no_drill: !session
                .policy
                .drills
                .values()
                .any(|drill| drill.sources.iter().any(|s| s.as_str() == name)),
            source: name,
        };
        for evidence in &of_month {
            count(&mut coverage, &evidence.statement.predicate.report);
        }
        sources.push(coverage);
    }
    Ok(MonthReport {
        month: month.to_string(),
        environment: session.policy.environment.to_string(),
        drills: of_month.into_iter().map(listed).collect(),
        sources,
        problems: evidence::judge(&all, key.as_ref()),
        signatures_checked: key.is_some(),
    })
}

/// Counts what a report says of a source. That a key opens it is no restore.
fn count(coverage: &mut Coverage, report: &serde_json::Value) {
    if report["drill"].as_str() == Some(RECOVERY_KEY) {
        return;
    }
    for of_source in report["sources"].as_array().into_iter().flatten() {
        if of_source["source"].as_str() != Some(coverage.source.as_str()) {
            continue;
        }
        match of_source["result"].as_str() {
            Some("passed") => coverage.passed += 1,
            Some("failed") => coverage.failed += 1,
            _ => coverage.could_not_run += 1,
        }
        if let Some(took) = of_source["rto_seconds"].as_f64() {
            coverage.rto_seconds = Some(coverage.rto_seconds.map_or(took, |slowest| slowest.max(took)));
        }
    }
}

/// A month of UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Month {
    year: i32,
    month: u32,
}

impl Month {
    /// The one that an instant lies in.
    pub fn of(at: DateTime<Utc>) -> Self {
        Self {
            year: at.year(),
            month: at.month(),
        }
    }

    /// Reads `2026-11`.
    ///
    /// # Errors
    /// It is no month.
    pub fn parse(text: &str) -> Result<Self> {
        let parsed = || {
            let (year, month) = text.split_once('-')?;
            let plain = |part: &str, length| part.len() == length && part.bytes().all(|b| b.is_ascii_digit());
            let (year, month) = (plain(year, 4).then_some(year)?, plain(month, 2).then_some(month)?);
            let month: u32 = month.parse().ok()?;
            (1..=12).contains(&month).then_some(Self {
                year: year.parse().ok()?,
                month,
            })
        };
        parsed().ok_or_else(|| Error::usage(format!("{text:?} is no month")).hint("Write it as 2026-11."))
    }

    fn has(self, at: DateTime<Utc>) -> bool {
        Self::of(at) == self
    }
}

impl std::fmt::Display for Month {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:04}-{:02}", self.year, self.month)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_month_is_read_and_has_its_days() {
        let month = Month::parse("2026-11").unwrap();
        assert_eq!(month.to_string(), "2026-11");
        let has = |at: &str| month.has(at.parse().unwrap());
        assert!(has("2026-11-01T00:00:00Z") && has("2026-11-30T23:59:59Z"));
        assert!(!has("2026-10-31T23:59:59Z") && !has("2026-12-01T00:00:00Z") && !has("2025-11-05T00:00:00Z"));
        for bad in [
            "2026-13", "2026-00", "2026", "26-11", "2026-1", "november", "2026-+1",
        ] {
            assert!(Month::parse(bad).is_err(), "{bad}");
        }
    }
}
