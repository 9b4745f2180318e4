//! What the daemon does on a schedule, and how one slot of it is carried out.

use chrono::{DateTime, TimeDelta, Utc};
use tracing::Instrument as _;

use crate::drill;
use crate::error::{Error, Kind, Result};
use crate::jobs::report::{DrillReport, RunResult, VerifyReport};
use crate::jobs::session::Role;
use crate::jobs::{self, Session};
use crate::policy::Policy;
use crate::repository::layout;
use crate::schedule::due::Timetable;
use crate::state::ledger::{Outcome, SlotRecord};
use crate::types::{RunId, SourceName, rfc3339};

/// Waits between the tries of one slot; after the last the slot has failed.
pub const BACKOFF: [TimeDelta; 2] = [TimeDelta::seconds(30), TimeDelta::seconds(120)];
/// How far a run's id may lie before the time that its beginning was written down with.
const CLOCKS_APART: TimeDelta = TimeDelta::hours(1);

/// Something on a schedule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Task {
    /// A recovery point of a source.
    Run(SourceName),
    /// Retention.
    Prune,
    /// Verification.
    Verify,
    /// A drill of the policy.
    Drill(String),
}

impl Task {
    /// Its key in the ledger; stable.
    pub fn key(&self) -> String {
        match self {
            Self::Run(source) => format!("run {source}"),
            Self::Prune => "prune".to_owned(),
            Self::Verify => "verify".to_owned(),
            Self::Drill(name) => format!("{}{name}", jobs::timetable::DRILL),
        }
    }

    /// Everything in a policy that has a schedule.
    ///
    /// # Errors
    /// A schedule that can not be read; the policy was validated, so there is none.
    pub fn of_policy(policy: &Policy) -> Result<Vec<(Self, Timetable)>> {
        let mut tasks = Vec::new();
        for (name, source) in &policy.sources {
            if let Some(timetable) = jobs::timetable::of_source(name, source)? {
                tasks.push((Self::Run(name.clone()), timetable));
            }
        }
        for (name, timetable) in jobs::timetable::of_tasks(policy) {
            let task = match name.strip_prefix(jobs::timetable::DRILL) {
                Some(drill) => Self::Drill(drill.to_owned()),
                None if name == "prune" => Self::Prune,
                None => Self::Verify,
            };
            tasks.push((task, timetable));
        }
        Ok(tasks)
    }
}

/// How a slot ended.
#[derive(Clone, Debug)]
pub struct Ended {
    /// How.
    pub outcome: Outcome,
    /// Its point.
    pub run: Option<RunId>,
    /// Why it was not done.
    pub error: Option<String>,
    /// Another try may do it.
    pub again: bool,
    /// Somebody runs this source by hand: it is waited for, and no try has failed.
    pub busy: bool,
    /// In which of several ways it is not well; empty, where there is one only.
    pub what: &'static str,
}

impl Ended {
    fn new(outcome: Outcome, run: Option<RunId>, error: Option<String>) -> Self {
        Self {
            outcome,
            run,
            error,
            again: false,
            busy: false,
            what: "",
        }
    }
    /// It failed.
    pub fn failed(error: impl Into<String>) -> Self {
        Self::new(Outcome::Failed, None, Some(error.into()))
    }
    fn interrupted(error: Option<String>) -> Self {
        Self::new(Outcome::Interrupted, None, error)
    }
    fn of(e: &Error) -> Self {
        match e.kind() {
            Kind::Interrupted => Self::interrupted(Some(e.chain())),
            _ => Self::failed(e.chain()),
        }
    }
    fn done(run: Option<RunId>) -> Self {
        Self::new(Outcome::Done, run, None)
    }
}

/// Carries out one try of a slot. What is logged of it says of which task and slot it is.
pub async fn carry_out(
    session: &Session,
    task: &Task,
    slot: DateTime<Utc>,
    since: Option<DateTime<Utc>>,
) -> Ended {
    // On the heap: the state of a whole run is large.
    let work = Box::pin(one(session, task, slot, since));
    match task {
        // A run has a span of its own.
        Task::Run(_) => work.await,
        other => {
            work.instrument(tracing::error_span!(
                "slot",
                task = other.key(),
                slot = rfc3339(slot)
            ))
            .await
        }
    }
}

async fn one(session: &Session, task: &Task, slot: DateTime<Utc>, since: Option<DateTime<Utc>>) -> Ended {
    match task {
        Task::Run(source) => run_slot(session, source, slot, since).await,
        Task::Prune => match jobs::prune::prune(session, false).await {
            Ok(report) => {
                for warning in &report.warnings {
                    tracing::warn!("{warning}");
                }
                tracing::info!(
                    expired = report.expire.len(),
                    swept = report.sweep.len(),
                    "pruned"
                );
                Ended::done(None)
            }
            Err(e) => Ended::of(&e),
        },
        Task::Verify => {
            let sample = session.policy.verify.sample_percent;
            match jobs::verify::verify(session, None, sample, false).await {
                Ok(report) if report.damaged.is_empty() && report.missing.is_empty() => {
                    tracing::info!(objects = report.objects, bytes = report.bytes, "verified");
                    Ended::done(None)
                }
                Ok(report) => Ended::failed(not_sound(&report)),
                Err(e) => Ended::of(&e),
            }
        }
        Task::Drill(name) => match drilled(session, name).await {
            Ok((report, kept)) => {
                for warning in report
                    .warnings
                    .iter()
                    .chain(report.sources.iter().flat_map(|s| &s.warnings))
                {
                    tracing::warn!("{warning}");
                }
                let evidence = report.evidence.as_deref();
                tracing::info!(
                    result = report.result.name(),
                    level = report.level,
                    evidence,
                    "drilled"
                );
                match (report.result, kept) {
                    (_, Err(e)) if !report.interrupted => {
                        let found = format!("the drill {}", report.result.words());
                        let found = [found, not_proven(&report)].join("; ");
                        Ended::failed(format!("{}; {}", e.chain(), found.trim_end_matches("; ")))
                    }
                    (drill::Outcome::Failed, _) => Ended::failed(not_proven(&report)),
                    _ if report.interrupted => Ended::interrupted(Some(not_proven(&report))),
                    (drill::Outcome::Passed, _) => Ended::done(None),
                    (how, _) => Ended {
                        what: how.name(),
                        ..Ended::failed(not_proven(&report))
                    },
                }
            }
            Err(e) => Ended::of(&e),
        },
    }
}

/// Carries a drill of the policy out, and keeps its evidence: what became of that is beside the report.
async fn drilled(session: &Session, name: &str) -> Result<(DrillReport, Result<()>)> {
    let policy = session
        .policy
        .drills
        .get(name)
        .ok_or_else(|| Error::usage(format!("the policy has no drill {name}")))?;
    // Before anything is restored: a drill that nobody could sign is none.
    let keeper = jobs::evidence::Keeper::new(session)?;
    let mut report = jobs::drill::drill(session, name, policy).await?;
    let kept = keeper.keep(session, &mut report).await;
    if let Err(e) = &kept {
        tracing::error!(error = %e.chain(), "the evidence of a drill is lost");
    }
    Ok((report, kept))
}

/// What a drill found, in a sentence: for each source that is not well the first check that says so.
fn not_proven(report: &DrillReport) -> String {
    let mut told = Vec::new();
    for source in &report.sources {
        let Some(check) = source.checks.iter().find(|c| c.result == source.result) else {
            continue;
        };
        if source.result == drill::Outcome::Passed {
            continue;
        }
        let how = source.result.words();
        told.push(format!(
            "{} {how}: {}: {} (should be: {})",
            source.source, check.name, check.actual, check.expected
        ));
    }
    told.join("; ")
}

/// What a verification found, in a sentence.
fn not_sound(report: &VerifyReport) -> String {
    /// As many are named.
    const NAMED: usize = 3;
    let all: Vec<&str> = report
        .damaged
        .iter()
        .chain(&report.missing)
        .map(|p| p.key.as_str())
        .collect();
    let more = match all.len() {
        0..=NAMED => "",
        _ => " … `backup verify` names them all",
    };
    format!(
        "{} objects are damaged and {} missing: {}{more}",
        report.damaged.len(),
        report.missing.len(),
        all[..all.len().min(NAMED)].join(", "),
    )
}

/// One try of a slot. `since`: an earlier one began then, and may have been committed though it was told to have failed.
async fn run_slot(
    session: &Session,
    source: &SourceName,
    slot: DateTime<Utc>,
    since: Option<DateTime<Utc>>,
) -> Ended {
    if let Some(since) = since {
        match committed(session, source, slot, since).await {
            Ok(None) => {}
            Ok(Some(run)) => return Ended::done(Some(run)),
            Err(e) => {
                tracing::warn!(error = %e.chain(), "whether the last try was committed is not known");
            }
        }
    }
    let report = jobs::backup::run_one(session, source, Some(slot)).await;
    for warning in &report.warnings {
        tracing::warn!("{warning}");
    }
    let error = report.error.as_ref().map(|e| e.message.clone());
    match report.result {
        RunResult::Done => Ended::done(report.run),
        RunResult::Interrupted => Ended::interrupted(error),
        RunResult::Failed | RunResult::Skipped => {
            // What only somebody can mend is not tried again.
            let hopeless = [Kind::Usage, Kind::NoRepository, Kind::NoIdentity].map(Kind::exit_code);
            Ended {
                again: !hopeless.contains(&report.exit_code),
                busy: report.exit_code == Kind::Busy.exit_code(),
                ..Ended::failed(error.unwrap_or_else(|| "it failed".to_owned()))
            }
        }
    }
}

/// The point that answers for a slot, among those made since an instant.
async fn committed(
    session: &Session,
    source: &SourceName,
    slot: DateTime<Utc>,
    since: DateTime<Utc>,
) -> Result<Option<RunId>> {
    let repository = session.open(Role::Writer).await?;
    let runs = repository.runs_below(&layout::points_prefix(source)).await?;
    let since = u64::try_from((since - CLOCKS_APART).timestamp_millis()).unwrap_or(0);
    for run in runs
        .into_keys()
        .rev()
        .filter(|run| run.ulid().timestamp_ms() >= since)
    {
        if let Some(commit) = repository.commit(source, run).await?
            && commit.slot == Some(slot)
            && !commit.partial
        {
            return Ok(Some(run));
        }
    }
    Ok(None)
}

/// What a start finds out of a task before its slots are looked at.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// Slots up to here are settled.
    pub settled: DateTime<Utc>,
    /// How those ended that were under way when the daemon died.
    pub ended: Vec<(DateTime<Utc>, Ended)>,
}

/// Asks the repository what the ledger does not know: how cut-off runs ended, and, where the ledger was lost, up to where
/// slots are settled.
///
/// # Errors
/// The repository; it is asked again later.
pub async fn resolve(
    session: &Session,
    task: &Task,
    settled: Option<DateTime<Utc>>,
    left: Vec<SlotRecord>,
) -> Result<Resolved> {
    let now = session.world.clock.now();
    let mut ended = Vec::new();
    let mut open_from: Option<DateTime<Utc>> = None;
    for record in left {
        let run = match task {
            Task::Run(source) => committed(session, source, record.slot, record.began).await?,
            _ => None,
        };
        if run.is_none() {
            open_from = open_from.map_or(Some(record.slot), |from| Some(from.min(record.slot)));
        }
        let how = match run {
            Some(_) => Ended::done(run),
            None => Ended::interrupted(Some(match &record.error {
                Some(error) => {
                    format!("the daemon ended before its next try; the last one failed: {error}")
                }
                None => "the daemon ended before it did".to_owned(),
            })),
        };
        ended.push((record.slot, how));
    }
    let settled = match (settled, task) {
        (Some(settled), _) => settled,
        (None, Task::Run(source)) => newest(session, source).await?.unwrap_or(now),
        (None, _) => now,
    };
    // The slot itself is open again: whether it is run or a later one makes it good, the timetable says.
    let settled = open_from.map_or(settled, |slot| settled.min(slot - TimeDelta::milliseconds(1)));
    Ok(Resolved { settled, ended })
}

/// The slot of the newest point, or when it was finished.
async fn newest(session: &Session, source: &SourceName) -> Result<Option<DateTime<Utc>>> {
    let repository = session.open(Role::Writer).await?;
    let runs = repository.runs_below(&layout::points_prefix(source)).await?;
    for run in runs.into_keys().rev() {
        match repository.commit(source, run).await {
            Ok(Some(commit)) if !commit.partial => return Ok(Some(commit.slot.unwrap_or(commit.finished))),
            Ok(_) => {}
            // What can not be read settles nothing.
            Err(e) if matches!(e.kind(), Kind::Damaged | Kind::Newer) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(None)
}
