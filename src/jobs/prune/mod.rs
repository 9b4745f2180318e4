//! Retention: plan (pure, `retention`), expire (tombstones), sweep (deletes). A tombstone hides a point and starts the
//! clock; it is no order: sweep acts only when this policy, computed anew, expires the point too.

mod sweep;

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, TimeDelta, Utc};
use chrono_tz::Tz;

use super::Session;
use super::evidence::Proven;
use super::report::{Expired, Kept, PruneReport, Undone};
use super::session::Role;
use crate::error::{Error, Kind, Result};
use crate::policy::SourcePolicy;
use crate::repository::catalog::Catalog;
use crate::repository::documents::{self, Tombstone};
use crate::repository::{Repository, layout};
use crate::retention::{self, Decision};
use crate::store::Fault;
use crate::types::{Key, RunId, SourceName};

/// Sweep waits this much longer than the grace, undo is refused this much earlier, so that they never meet.
const MARGIN: TimeDelta = TimeDelta::hours(1);

/// Plans; carries out unless `dry_run`.
///
/// # Errors
/// The repository; what a source's sweep aborts on is told as a warning and stops that source only.
pub async fn prune(session: &Session, dry_run: bool) -> Result<PruneReport> {
    session.interruptible(prune_all(session, dry_run)).await
}

async fn prune_all(session: &Session, dry_run: bool) -> Result<PruneReport> {
    let role = if session.policy.prune.is_some() {
        Role::Pruner
    } else {
        Role::Writer
    };
    if role == Role::Writer && !dry_run {
        session.store(Role::Pruner).await?;
    }
    let repository = session.open_for_changing(role).await?;
    let mut report = PruneReport {
        dry_run,
        ..PruneReport::default()
    };
    // Evidence that can not be read, or that is missing: nothing is expired.
    let (proven, warnings) = super::evidence::settled(session, &repository).await?;
    report.warnings.extend(warnings);
    let mut failed = Vec::new();
    for source in repository.sources().await? {
        let Some(policy) = session.policy.sources.get(&source) else {
            report.warnings.push(format!(
                "{source} is not in the policy: nothing of it is expired or swept"
            ));
            continue;
        };
        if let Err(e) = prune_source(session, &repository, &source, policy, &proven, &mut report).await {
            if e.kind() == Kind::Interrupted {
                return Err(e);
            }
            report.warnings.push(format!("{source}: {}", e.chain()));
            failed.push(source);
        }
    }
    if !dry_run && failed.is_empty() {
        sweep::probes(session, &repository, &mut report).await?;
    }
    if failed.is_empty() {
        return Ok(report);
    }
    Err(Error::failed(format!("nothing was removed for {}: {}", names(&failed), report.warnings.join("; ")))
        .hint("A list that lacks what is there, or damage, makes sweep stop: run `backup verify`, then prune again."))
}

fn names(sources: &[SourceName]) -> String {
    sources
        .iter()
        .map(SourceName::as_str)
        .collect::<Vec<_>>()
        .join(", ")
}

async fn prune_source(
    session: &Session,
    repository: &Repository,
    source: &SourceName,
    policy: &SourcePolicy,
    proven: &Proven,
    report: &mut PruneReport,
) -> Result<()> {
    let catalog = repository.catalog(source).await?;
    let now = repository.store().now().await?;
    let broken = repository.broken(source, &catalog).await?;
    let proven = proven.points(source, &catalog);
    let decisions = decide(&catalog, &broken, &proven, policy, session.policy.timezone, now)?;
    let grace = grace(session);
    let (mut expire, mut kept_again) = (Vec::new(), Vec::new());
    for decision in &decisions {
        let Some(point) = catalog.points.get(&decision.run) else {
            continue;
        };
        if decision.kept() {
            if point.tombstoned.is_none() {
                report.keep.push(Kept {
                    source: source.clone(),
                    run: decision.run,
                    at: point.commit.at,
                    reasons: decision.reasons(),
                });
            } else {
                kept_again.push(decision.run);
            }
            continue;
        }
        expire.push(decision.run);
        report.expire.push(Expired {
            source: source.clone(),
            run: decision.run,
            at: point.commit.at,
            undo_until: point.tombstoned.unwrap_or(now) + grace - MARGIN,
            tombstoned: point.tombstoned.is_some(),
        });
    }
    report.warnings.extend(kept_again_warning(source, &kept_again));
    for run in expire.iter().filter(|r| !catalog.tombstones.contains_key(r)) {
        if !report.dry_run {
            entomb(session, repository, source, *run, "retention").await?;
        }
    }
    let expired: BTreeSet<RunId> = expire.into_iter().collect();
    if !report.dry_run {
        extend_locks(session, repository, source, &catalog, &expired, report).await?;
    }
    sweep::sweep(session, repository, source, &expired, now, report).await
}

/// Points that had expired and that retention, widened since, keeps: all of them in one line.
fn kept_again_warning(source: &SourceName, runs: &[RunId]) -> Option<String> {
    /// Named; the others `backup list` shows.
    const NAMED: usize = 3;
    let first = runs.first()?;
    let mut named: Vec<String> = runs.iter().take(NAMED).map(ToString::to_string).collect();
    if runs.len() > NAMED {
        named.push("…".to_owned());
    }
    let (points, they) = match runs.len() {
        1 => ("1 recovery point".to_owned(), "it is"),
        n => (format!("{n} recovery points"), "they are"),
    };
    Some(format!(
        "{source}: {points} had expired, and the policy keeps {} now ({}): {they} not swept, and each is shown again after `backup prune --undo RUN`, as with {first}",
        if runs.len() == 1 { "it" } else { "them" },
        named.join(", "),
    ))
}

/// Object Lock: every kept point, and what it draws on, is locked anew before its lock ends.
async fn extend_locks(
    session: &Session,
    repository: &Repository,
    source: &SourceName,
    catalog: &Catalog,
    expired: &BTreeSet<RunId>,
    report: &mut PruneReport,
) -> Result<()> {
    if repository.object_lock().is_none() {
        return Ok(());
    }
    let kept: Vec<_> = catalog
        .points
        .values()
        .map(|p| &p.commit)
        .filter(|c| !expired.contains(&c.run))
        .collect();
    let mut keys: BTreeSet<Key> = BTreeSet::new();
    for (run, refs) in repository.refs_of(source, &kept).await?.0 {
        keys.insert(layout::commit(source, run));
        keys.extend(
            repository
                .list(&layout::run_prefix(source, run))
                .await?
                .into_iter()
                .map(|o| o.key),
        );
        for reference in refs.0.values() {
            keys.insert(layout::run_object(source, reference.run, layout::SUMS));
            if reference.manifest {
                keys.insert(layout::run_object(source, reference.run, layout::MANIFEST));
            }
            let packs = reference.packs.iter().flat_map(|(a, b)| *a..=*b);
            keys.extend(packs.map(|n| layout::pack(source, reference.run, n)));
        }
    }
    let refused = repository.extend_locks(&session.world, keys).await?;
    if refused > 0 {
        report.warnings.push(format!(
            "{source}: the Object Lock of {refused} objects could not be extended"
        ));
    }
    Ok(())
}

/// What the policy keeps and expires, computed from the catalog. Partial commits are decided too.
pub(super) fn decide(
    catalog: &Catalog,
    broken: &BTreeSet<RunId>,
    proven: &BTreeSet<RunId>,
    policy: &SourcePolicy,
    zone: Tz,
    now: DateTime<Utc>,
) -> Result<Vec<Decision>> {
    if !catalog.unreadable.is_empty() {
        // An unreadable commit might be one that the rules count on.
        let told: Vec<_> = catalog
            .unreadable
            .iter()
            .map(|(run, why)| format!("{run} ({})", why.problem))
            .collect();
        return Err(Error::damaged(format!(
            "commits can not be read: {}",
            told.join(", ")
        )));
    }
    let points: Vec<retention::Point> = catalog
        .points
        .values()
        .map(|p| retention::Point {
            run: p.commit.run,
            at: p.commit.at,
            finished: p.commit.finished,
            store_modified: p.modified,
            partial: p.commit.partial,
            parent: p.commit.parent,
            held: p.held,
            proven: proven.contains(&p.commit.run),
            tombstoned: p.tombstoned.is_some(),
            damaged: broken.contains(&p.commit.run),
        })
        .collect();
    let rules = policy.retention.as_ref().map(|(_, rules)| rules);
    Ok(retention::plan(&points, rules, zone, now))
}

fn grace(session: &Session) -> TimeDelta {
    TimeDelta::from_std(session.policy.repository.grace).unwrap_or(TimeDelta::hours(72))
}

async fn entomb(
    session: &Session,
    repository: &Repository,
    source: &SourceName,
    run: RunId,
    reason: &str,
) -> Result<()> {
    let tombstone = Tombstone {
        place: repository.place(source, run),
        at: session.world.clock.now(),
        reason: reason.to_owned(),
    };
    let key = layout::tombstone(source, run);
    session.world.crash.reach("before a tombstone is put")?;
    // A list may have hidden the one that is there; where stores replace, its grace would begin anew.
    if repository.store().head(&key, repository.view()).await?.is_some() {
        return Ok(());
    }
    // Two pruners may bury one point at once; either tombstone serves.
    match repository
        .store()
        .put(
            &key,
            documents::to_json(&tombstone)?.into(),
            crate::store::PutOptions::default(),
        )
        .await
    {
        Ok(()) => Ok(()),
        Err(e) if e.fault == Fault::Exists => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Removes a tombstone.
///
/// # Errors
/// None there, or too late: from an hour before the end of the grace on.
pub async fn undo(session: &Session, run: RunId) -> Result<Undone> {
    session.interruptible(take_back(session, run)).await
}

async fn take_back(session: &Session, run: RunId) -> Result<Undone> {
    let repository = session.open_for_changing(Role::Pruner).await?;
    let source = session.source_of_run(&repository, run).await?;
    let key = layout::tombstone(&source, run);
    let Some(info) = repository.store().head(&key, repository.view()).await? else {
        return Err(
            Error::usage(format!("{run} has not expired")).hint("`backup list` shows the recovery points.")
        );
    };
    let until = info.modified + grace(session) - MARGIN;
    if repository.store().now().await? >= until {
        return Err(
            Error::failed(format!("the grace of {run} ended {}", until.to_rfc3339()))
                .hint("It may be swept at any moment; restore it now with --at-point, if it is still there."),
        );
    }
    repository.store().delete(&key).await?;
    let Some(commit) = repository.commit(&source, run).await? else {
        // The tombstone tells everybody why the commit is gone: it goes back.
        entomb(session, &repository, &source, run, "swept").await?;
        return Err(Error::failed(format!(
            "{run} was swept before its tombstone was removed"
        )));
    };
    if repository.read(&key).await?.is_some() {
        return Err(Error::failed(format!(
            "the tombstone of {run} is still there after it was deleted"
        )));
    }
    Ok(Undone {
        source,
        run,
        at: commit.at,
    })
}

/// Points by run, for sweep.
type Roots<'a> = BTreeMap<RunId, &'a crate::repository::catalog::Point>;
