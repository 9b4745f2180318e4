//! One sentence for the whole, a line per source, worst first.

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::Session;
use super::evidence::{self, LastDrill, Proven};
use super::last;
use super::report::{SourceStatus, StatusReport};
use super::session::Role;
use super::timetable;
use crate::drill::Outcome as DrillOutcome;
use crate::drill::measured::{Prediction, predict};
use crate::error::Result;
use crate::policy::SourcePolicy;
use crate::repository::Repository;
use crate::repository::catalog::Catalog;
use crate::schedule::Schedule;
use crate::state::ledger::points::FUTURE;
use crate::state::ledger::{Ledger, Outcome};
use crate::types::{SourceName, about};

/// One sentence, then a line per source.
///
/// # Errors
/// The repository can not be read: then nobody can know.
pub async fn status(session: &Session) -> Result<StatusReport> {
    let repository = session.open(Role::Writer).await?;
    let now = session.world.clock.now();
    let told = evidence::told(session, &repository).await;
    let mut sources = Vec::new();
    for (name, policy) in &session.policy.sources {
        sources.push(source_status(session, &repository, name, policy, &told.proven, now).await?);
    }
    let worst = |s: &SourceStatus| {
        (
            s.problems.is_empty(),
            -(s.rpo_seconds.unwrap_or(f64::MAX).min(1e15) as i64),
        )
    };
    sources.sort_by_key(worst);
    let mut problems = tasks(session, &told.proven);
    problems.extend(told.problems.into_iter().map(|why| format!("But {why}")));
    let also = match problems.as_slice() {
        [] => String::new(),
        some => format!(" {}.", some.join(". ")),
    };
    let bad = sources.iter().filter(|s| !s.problems.is_empty()).count();
    let loss = sources
        .iter()
        .filter_map(|s| Some((s.rpo_seconds?, &s.source)))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(seconds, source)| format!(" Worst possible loss now: {} ({source}).", words(seconds)))
        .unwrap_or_default();
    let blind = sources
        .iter()
        .filter(|s| s.rpo_objective_seconds.is_none())
        .count();
    let all = match sources.len() {
        1 => "The source has".to_owned(),
        n => format!("All {n} sources have"),
    };
    let sentence = match (sources.len(), bad) {
        (0, _) => "The policy has no sources.".to_owned(),
        (_, 0) if blind > 0 => format!(
            "{all} a recovery point; {blind} without an objective or schedule, so nothing tells when it is too old.{loss}"
        ),
        (_, 0) => format!("{all} a recovery point within the objective.{loss}"),
        (1, _) => format!("The source needs attention.{loss}"),
        (n, bad) => format!("{bad} of {n} sources need attention.{loss}"),
    };
    Ok(StatusReport {
        ok: bad == 0 && problems.is_empty(),
        sentence: sentence + &also,
        sources,
        problems,
        warnings: told.warnings,
    })
}

/// What prune and verify failed of, as the daemon of this state directory has seen it last.
fn tasks(session: &Session, proven: &Proven) -> Vec<String> {
    let state = &session.policy.state_dir;
    if !Ledger::is_there(state) {
        return Vec::new();
    }
    let failed = |name: &str| -> Result<Option<String>> {
        let newest = Ledger::read_only(state)?.newest_slots(name, 1)?;
        // Of a drill the evidence tells, also that it was made again by hand; the daemon only that there is none.
        let drilled = name
            .strip_prefix(timetable::DRILL)
            .and_then(|drill| proven.last_of(drill));
        let failed = newest
            .first()
            .filter(|slot| slot.outcome == Outcome::Failed && drilled.is_none_or(|at| at < slot.slot));
        Ok(failed.map(|slot| {
            let at = slot.slot.format("%Y-%m-%d %H:%M:%SZ");
            let error = slot.error.as_deref().unwrap_or("no cause is known");
            format!("The last {name} ({at}) failed: {error}")
        }))
    };
    let scheduled = timetable::of_tasks(&session.policy).into_iter();
    scheduled
        .filter_map(|(name, _)| {
            failed(&name)
                .unwrap_or_else(|e| Some(format!("How the last {name} ended is unknown: {}", e.chain())))
        })
        .collect()
}

async fn source_status(
    session: &Session,
    repository: &Repository,
    name: &SourceName,
    policy: &SourcePolicy,
    proven: &Proven,
    now: DateTime<Utc>,
) -> Result<SourceStatus> {
    let catalog = repository.catalog(name).await?;
    let mut problems = Vec::new();
    problems.extend(proven.last_drill(name).and_then(drill_not_well));
    let (newest, newest_finished) = points(repository, name, &catalog, now, &mut problems).await;
    let last_run = match last::last(session, name) {
        Ok(last) => last,
        Err(e) => {
            problems.push(format!("how the last run ended is unknown: {}", e.chain()));
            None
        }
    };
    problems.extend(
        last_run
            .as_ref()
            .and_then(|last| last::problem(last, newest_finished)),
    );
    if repository.object_lock().is_some() {
        problems.extend(unlocked(repository, name, &catalog).await?);
    }
    let (newest, bytes) = newest.unzip();
    let timed = proven
        .of(name)
        .filter_map(|(_, d)| Some((d.at, d.timed.as_ref()?)));
    let predicted = bytes.and_then(|bytes| predict(timed, bytes));
    let rto = policy.objective.rto.map(|d| d.as_secs_f64());
    problems.extend(predicted.as_ref().zip(rto).and_then(too_slow));
    let objective = objective(policy, now);
    let age = newest.map(|at| ((now - at).num_milliseconds() as f64 / 1000.0).max(0.0));
    match (age, objective) {
        (None, _) => problems.push("there is no recovery point".to_owned()),
        (Some(age), Some(objective)) if age > objective.as_secs_f64() => problems.push(format!(
            "the newest recovery point is {} old, the objective is {}",
            words(age),
            words(objective.as_secs_f64())
        )),
        _ => {}
    }
    Ok(SourceStatus {
        source: name.clone(),
        newest_at: newest,
        rpo_seconds: age,
        rpo_objective_seconds: objective.map(|d| d.as_secs_f64()),
        last_run,
        last_drill: proven.last(name, &catalog).cloned(),
        last_drill_result: proven.last_drill(name).map(|last| last.result),
        last_drill_at: proven.last_drill(name).map(|last| last.at),
        predicted_restore_seconds: predicted.as_ref().map(|p| p.seconds),
        predicted_by: predicted,
        rto_objective_seconds: rto,
        problems,
    })
}

/// A last drill that did not pass.
fn drill_not_well(last: &LastDrill) -> Option<String> {
    let why = last.why.as_ref().map(|why| format!(": {why}"));
    (last.result != DrillOutcome::Passed).then(|| {
        format!(
            "its last drill ({}, {}) {}{}",
            last.drill,
            last.at.format("%Y-%m-%d %H:%M:%SZ"),
            last.result.words(),
            why.unwrap_or_default()
        )
    })
}

/// The newest sound point of a catalog with its bytes, and when the newest was finished; what is amiss is added.
async fn points(
    repository: &Repository,
    name: &SourceName,
    catalog: &Catalog,
    now: DateTime<Utc>,
    problems: &mut Vec<String>,
) -> (Option<(DateTime<Utc>, u64)>, Option<DateTime<Utc>>) {
    for (run, why) in &catalog.unreadable {
        problems.push(if why.newer {
            format!("the commit of {run} is of a newer format")
        } else {
            format!("the commit of {run} can not be read")
        });
    }
    let (mut newest, mut newest_finished) = (None, None);
    let mut damaged_points = Vec::new();
    let mut ahead = 0;
    for point in catalog
        .points
        .values()
        .filter(|p| !p.commit.partial && p.tombstoned.is_none())
    {
        let damaged = if catalog.damage.is_empty() {
            false
        } else {
            match repository.refs(name, point.commit.run, point.commit.refs).await {
                Ok(refs) => catalog.damage_of(point, &refs).is_some(),
                Err(_) => true,
            }
        };
        if damaged {
            damaged_points.push(point.commit.run);
        } else {
            newest = newest.max(Some((point.commit.taken(), point.commit.bytes.content)));
            ahead += usize::from(point.commit.at > now + FUTURE);
            newest_finished = newest_finished.max(Some(point.commit.finished));
        }
    }
    if ahead > 0 {
        problems.push(format!(
            "the time of {ahead} of its recovery points lies in the future: a clock was wrong when they were taken"
        ));
    }
    // Points come oldest first.
    match damaged_points.as_slice() {
        [] => {}
        [one] => problems.push(format!("recovery point {one} is damaged")),
        [.., last] => problems.push(format!(
            "{} recovery points are damaged, the newest of them {last}: `backup list {name}` shows them",
            damaged_points.len()
        )),
    }
    (newest, newest_finished)
}

/// A restore that would take longer than its objective.
fn too_slow((predicted, rto): (&Prediction, f64)) -> Option<String> {
    (predicted.seconds > rto).then(|| {
        format!(
            "a restore takes about {}, as measured by the drill of {}; the objective is {}",
            about(predicted.seconds),
            predicted.at.format("%Y-%m-%d %H:%M:%SZ"),
            words(rto)
        )
    })
}

/// Points with an object whose Object Lock has ended.
async fn unlocked(
    repository: &Repository,
    source: &SourceName,
    catalog: &crate::repository::catalog::Catalog,
) -> Result<Vec<String>> {
    let Some((run, _)) = catalog.points.iter().next_back() else {
        return Ok(Vec::new());
    };
    let key = crate::repository::layout::commit(source, *run);
    let info = repository.store().head(&key, repository.view()).await?;
    Ok(match info.and_then(|i| i.lock) {
        Some(_) => Vec::new(),
        None => vec![format!(
            "the commit of {run} is not locked, and object_lock is set"
        )],
    })
}

/// How old a source's newest point may be: its objective, else twice the interval of its schedule.
pub fn objective(policy: &SourcePolicy, now: DateTime<Utc>) -> Option<Duration> {
    policy
        .objective
        .rpo
        .or_else(|| interval(policy, now).map(|d| d * 2))
}

/// The usual time between two slots of a source.
pub fn interval(policy: &SourcePolicy, now: DateTime<Utc>) -> Option<Duration> {
    Schedule::parse(policy.schedule.as_deref()?, policy.timezone)
        .ok()?
        .usual_interval(now)
}

fn words(seconds: f64) -> String {
    humantime::format_duration(Duration::from_secs(seconds as u64)).to_string()
}
