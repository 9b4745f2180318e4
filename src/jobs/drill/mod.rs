//! Drills: a point is chosen (pure, `drill`), restored into a target of the drill's own, and judged; the target is removed
//! whatever happens.

mod own;
mod place;
mod target;
mod users;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use super::Session;
use super::evidence;
use super::prune;
use super::report::{DrillReport, SourceDrill};
use super::session::Role;
use super::verify::verify_point;
use crate::drill::{self, Candidate, Check, Level, Outcome, Select};
use crate::error::{Error, Result};
use crate::policy::DrillPolicy;
use crate::repository::Repository;
use crate::repository::catalog::{Catalog, Point};
use crate::state::{StateDir, drills};
use crate::types::{RunId, SourceName, some_of};

/// Warnings, and what was not looked at: as many at most.
const TEXTS_MOST: usize = 100;
/// Objects that are named in a check.
const NAMED: usize = 5;
/// How far ahead `before-expiry` looks without a window.
const SOON: Duration = Duration::from_secs(7 * 24 * 3600);

/// Removes the targets that are kept, without waiting for their time. Gives their directories.
///
/// # Errors
/// The state directory can not be used.
pub fn clean(session: &Session) -> Result<Vec<PathBuf>> {
    let state = StateDir::open(&session.policy.state_dir)?;
    let swept = drills::sweep(&state, DateTime::<Utc>::MAX_UTC)?;
    Ok([swept.killed, swept.expired].concat())
}

/// The drills of the policy that are asked for: one, or all.
///
/// # Errors
/// There is no such drill.
pub fn asked<'a>(session: &'a Session, name: Option<&str>) -> Result<Vec<(&'a str, &'a DrillPolicy)>> {
    let all = &session.policy.drills;
    match name {
        Some(name) => match all.get_key_value(name) {
            Some((name, policy)) => Ok(vec![(name, policy)]),
            None => {
                let names: Vec<&str> = all.keys().map(String::as_str).collect();
                let hint = match names.as_slice() {
                    [] => "The policy has no [drill.NAME].".to_owned(),
                    names => format!("The policy has: {}.", names.join(", ")),
                };
                Err(Error::usage(format!("there is no drill {name}")).hint(hint))
            }
        },
        None if all.is_empty() => Err(Error::usage("the policy has no drill")
            .hint("Add [drill.NAME] with sources = [\"...\"]; policies/example.toml shows its keys.")),
        None => Ok(all.iter().map(|(name, policy)| (name.as_str(), policy)).collect()),
    }
}

/// Carries a drill out. What it finds is in the report; also that it could not run, or was interrupted.
///
/// # Errors
/// The state directory can not be used.
pub async fn drill(session: &Session, name: &str, policy: &DrillPolicy) -> Result<DrillReport> {
    let state = StateDir::open(&session.policy.state_dir)?;
    let mut warnings = Vec::new();
    for left in drills::sweep(&state, session.world.clock.now())?.killed {
        warnings.push(format!(
            "an earlier drill was killed; what it left in {} is removed",
            left.display()
        ));
    }
    let started = session.world.clock.now();
    let begun = session.world.clock.since_boot();
    let mut sources = Vec::new();
    for source in &policy.sources {
        sources.push(of_source(session, &state, policy, source).await);
    }
    Ok(DrillReport {
        drill: name.to_owned(),
        environment: session.policy.environment.to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        result: drill::worst(sources.iter().map(|s| s.result)),
        level: sources.iter().map(|s| s.level).min().flatten(),
        at: started,
        seconds: (session.world.clock.since_boot() - begun).as_secs_f64(),
        sources,
        interrupted: session.cancel.is_cancelled(),
        evidence: None,
        error: None,
        warnings,
    })
}

/// A source's drill, from nothing to judged.
async fn of_source(
    session: &Session,
    state: &StateDir,
    policy: &DrillPolicy,
    source: &SourceName,
) -> SourceDrill {
    let mut report = SourceDrill::new(source.clone());
    report.begun = session.world.clock.since_boot();
    let done = if session.cancel.is_cancelled() {
        Ok(())
    } else {
        work(session, state, policy, source, &mut report).await
    };
    if session.cancel.is_cancelled() {
        // Whatever went wrong after a signal is the signal's doing; what was found before it stands.
        let why = "somebody stopped the drill";
        own::add_unmade(policy, &mut report, why);
        report.checks.push(Check::could_not_run("interrupted", None, why));
    } else if let Err(e) = done {
        let (result, expected) = (Outcome::CouldNotRun, "it can be looked at");
        report
            .checks
            .push(Check::of_error("the drill", None, result, expected, &e));
    }
    let checks = std::mem::take(&mut report.checks);
    report.checks = checks.into_iter().map(Check::clipped).collect();
    for texts in [&mut report.warnings, &mut report.not_tested] {
        texts.truncate(TEXTS_MOST);
        *texts = std::mem::take(texts).into_iter().map(drill::clip).collect();
    }
    // As they are read: from the lowest level, and what belongs to none after them.
    report.checks.sort_by_key(|c| c.level.unwrap_or(u8::MAX));
    report.level = drill::reached(&report.checks).map(Level::number);
    report.result = drill::outcome(&report.checks);
    report.seconds = (session.world.clock.since_boot() - report.begun).as_secs_f64();
    let unlooked = std::mem::take(&mut report.not_tested);
    report.not_tested = not_tested(&report.checks);
    report.not_tested.extend(unlooked);
    report
}

/// Levels of which no check was made.
fn not_tested(checks: &[Check]) -> Vec<String> {
    let looked: BTreeSet<u8> = checks.iter().filter_map(|c| c.level).collect();
    let silent = Level::ALL
        .iter()
        .filter(|level| !looked.contains(&level.number()));
    silent
        .map(|level| format!("level {}: {}", level.number(), level.text()))
        .collect()
}

async fn work(
    session: &Session,
    state: &StateDir,
    policy: &DrillPolicy,
    source: &SourceName,
    report: &mut SourceDrill,
) -> Result<()> {
    let repository = session.open(Role::Writer).await?;
    report.repository = Some(repository.id().to_string());
    let catalog = repository.catalog(source).await?;
    let now = session.world.clock.now();
    let Some(point) = choose(session, &repository, &catalog, policy, source, now, report).await? else {
        return Ok(());
    };
    let whole = digests(session, &repository, &catalog, source, point, report).await?;
    if !whole {
        return Ok(());
    }
    target::prove(session, state, policy, source, &repository, point, report).await
}

/// Judges the age of the newest point, and chooses one to restore; none: the reason is among the checks.
async fn choose<'a>(
    session: &Session,
    repository: &Repository,
    catalog: &'a Catalog,
    policy: &DrillPolicy,
    source: &SourceName,
    now: DateTime<Utc>,
    report: &mut SourceDrill,
) -> Result<Option<&'a Point>> {
    let full: Vec<&Point> = catalog
        .points
        .values()
        .filter(|p| !p.commit.partial && p.tombstoned.is_none())
        .collect();
    for (run, why) in &catalog.unreadable {
        report.checks.push(Check::failed(
            format!("the commit of {run}"),
            Level::Present,
            "it can be read",
            why.problem.clone(),
        ));
    }
    let Some(newest) = full.iter().map(|p| p.commit.at).max() else {
        report.checks.push(Check::failed(
            "there is a recovery point",
            Level::Present,
            "at least one",
            "none",
        ));
        return Ok(None);
    };
    let age = (now - newest).to_std().unwrap_or_default();
    report.rpo_seconds = Some(age.as_secs_f64());
    let own = session.policy.sources.get(source);
    let limits = [
        ("age of the newest point", policy.max_age),
        ("recovery point objective", own.and_then(|s| s.objective.rpo)),
    ];
    for (name, limit) in limits {
        report.rpo_objective_seconds = limit.map(|l| l.as_secs_f64()).or(report.rpo_objective_seconds);
        report
            .checks
            .extend(limit.map(|limit| Check::objective(name, limit, age)));
    }
    let expiring = if policy.select == Select::BeforeExpiry {
        expiring(session, repository, catalog, policy, source, now).await?
    } else {
        BTreeSet::new()
    };
    let candidates: Vec<Candidate> = full
        .iter()
        .map(|p| Candidate {
            run: p.commit.run,
            at: p.commit.at,
            expires: expiring.contains(&p.commit.run),
        })
        .collect();
    let mut bytes = [0; 8];
    session.world.random.fill(&mut bytes)?;
    let chance = u64::from_le_bytes(bytes);
    let chosen = drill::choose(&candidates, policy.select, policy.window, now, chance);
    let Some((chosen, reason)) = chosen else {
        return Ok(None);
    };
    report.run = Some(chosen.run);
    report.commit = catalog.points.get(&chosen.run).map(|point| point.digest);
    report.restored_to = Some(chosen.at);
    reason.clone_into(&mut report.reason);
    Ok(catalog.points.get(&chosen.run))
}

/// Points that retention takes within the window.
async fn expiring(
    session: &Session,
    repository: &Repository,
    catalog: &Catalog,
    policy: &DrillPolicy,
    source: &SourceName,
    now: DateTime<Utc>,
) -> Result<BTreeSet<RunId>> {
    let Some(of_source) = session.policy.sources.get(source) else {
        return Ok(BTreeSet::new());
    };
    let broken = repository.broken(source, catalog).await?;
    let ahead = TimeDelta::from_std(policy.window.unwrap_or(SOON)).unwrap_or_default();
    let proven = evidence::told(session, repository)
        .await
        .proven
        .points(source, catalog);
    let zone = session.policy.timezone;
    let decisions = prune::decide(catalog, &broken, &proven, of_source, zone, now + ahead)?;
    let goes = decisions.into_iter().filter(|d| !d.kept());
    Ok(goes.map(|d| d.run).collect())
}

/// Levels 0 and 1: whether everything is there, and has its digest.
async fn digests(
    session: &Session,
    repository: &Repository,
    catalog: &Catalog,
    source: &SourceName,
    point: &Point,
    report: &mut SourceDrill,
) -> Result<bool> {
    let found = verify_point(session, repository, source, catalog, point).await?;
    let looked = format!("{} objects", found.objects);
    let name = |problems: &[super::report::Problem]| {
        let told = problems.iter().map(|p| format!("{}: {}", p.key, p.problem));
        some_of(&told.collect::<Vec<_>>(), NAMED, "; ")
    };
    for (what, level, problems) in [
        ("objects are there", Level::Present, &found.missing),
        ("objects have their digests", Level::Digests, &found.damaged),
    ] {
        report.checks.push(if problems.is_empty() {
            Check::passed(what, level, looked.clone())
        } else {
            Check::failed(what, level, looked.clone(), name(problems))
        });
    }
    let whole = found.missing.is_empty() && found.damaged.is_empty();
    Ok(whole
        && report
            .checks
            .iter()
            .all(|c| c.level.is_none() || c.result == Outcome::Passed))
}
