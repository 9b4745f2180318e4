//! What a month's drills proved.

use std::collections::BTreeSet;

use chrono::{DateTime, Datelike as _, Utc};
use futures::StreamExt as _;

use super::super::Session;
use super::super::report::{Coverage, MonthReport};
use super::super::session::Role;
use super::{Proven, known, listed, with_losses};
use crate::drill::RECOVERY_KEY;
use crate::error::{Error, Result};
use crate::repository::evidence::Evidence;
use crate::repository::{Repository, layout};
use crate::types::{Digest, RunId, SourceName};

/// Commits read at once.
const READS_AT_ONCE: usize = 16;

/// What a month's drills proved, and what was never drilled. The month is one of UTC's.
///
/// # Errors
/// The repository.
pub async fn month(session: &Session, month: Month) -> Result<MonthReport> {
    let repository = session.open(Role::Writer).await?;
    let known = known(session, &repository).await?;
    let proven = Proven::told_by(&known.chain);
    let line = |e: &Evidence| listed(e, known.here.contains_key(&e.id()));
    let all = known.chain.evidence().iter();
    let of_month: Vec<&Evidence> = all
        .filter(|e| e.statement.predicate.lost.is_empty())
        .filter(|e| line(e).at.is_some_and(|at| month.has(at)))
        .collect();
    let mut names: BTreeSet<String> = session.policy.sources.keys().map(ToString::to_string).collect();
    names.extend(of_month.iter().flat_map(|e| line(e).sources));
    let mut sources = Vec::new();
    for name in names {
        let source: Option<SourceName> = name.parse().ok();
        let policy = source
            .as_ref()
            .and_then(|source| session.policy.sources.get(source));
        let (points, points_proven) = match &source {
            Some(source) => points(&repository, source, &proven).await?,
            None => (0, 0),
        };
        let mut coverage = Coverage {
            passed: 0,
            failed: 0,
            could_not_run: 0,
            rto_seconds: None,
            rto_objective_seconds: policy.and_then(|p| p.objective.rto).map(|d| d.as_secs_f64()),
            last_passed: source.as_ref().and_then(|source| proven.last_passed(source)),
            points,
            points_proven,
            in_no_drill: !session
                .policy
                .drills
                .values()
                .any(|drill| drill.sources.iter().any(|s| s.as_str() == name)),
            source: name,
        };
        for evidence in &of_month {
            count(&mut coverage, evidence.report());
        }
        sources.push(coverage);
    }
    let lost = known.chain.losses();
    let aside = known.chain.aside().iter();
    let aside = aside.map(|a| format!("{} {}, and is put aside", a.name, a.why));
    Ok(MonthReport {
        month: month.to_string(),
        environment: session.policy.environment.to_string(),
        drills: of_month.into_iter().map(line).collect(),
        sources,
        problems: known.problems().into_iter().chain(aside).collect(),
        warnings: with_losses(&lost, known.warnings()),
        lost,
        signatures_checked: session.policy.evidence_key.is_some(),
    })
}

/// How many points a source has, and how many of these are proven as they are now.
async fn points(repository: &Repository, source: &SourceName, proven: &Proven) -> Result<(u64, u64)> {
    let runs: BTreeSet<RunId> = repository
        .runs_below(&layout::points_prefix(source))
        .await?
        .into_keys()
        .collect();
    let candidates: Vec<RunId> = proven
        .of_source(source)
        .filter(|run| runs.contains(run))
        .collect();
    let mut read = futures::stream::iter(candidates)
        .map(|run| async move { (run, repository.read(&layout::commit(source, run)).await) })
        .buffer_unordered(READS_AT_ONCE);
    let mut count = 0;
    while let Some((run, commit)) = read.next().await {
        let digest = commit?.map(|bytes| Digest::of(&bytes));
        count += u64::from(digest.is_some_and(|digest| proven.point(source, run, digest).is_some()));
    }
    Ok((runs.len() as u64, count))
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
