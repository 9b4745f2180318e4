//! Restores: choose the point (pure), say what the operator gets and the gap, then write.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use super::Session;
use super::evidence;
use super::gap::{check_gap, without_limit};
use super::outline::outline;
use super::report::RestoreReport;
use super::session::Role;
use crate::error::{Error, Kind, Result};
use crate::policy::{PocketBasePlace, SourceKind, StoreUrl};
use crate::recovery::{self, Candidate, Goal, Refusal};
use crate::repository::Repository;
use crate::repository::catalog::{Catalog, Point};
use crate::repository::documents::Commit;
use crate::repository::reader::OpenPoint;
use crate::source::pocketbase::PocketBaseRestorer;
use crate::source::postgres::LogicalRestorer;
use crate::source::{Context, RestoreOptions, Restorer, Target};
use crate::state::{Scratch, StateDir};
use crate::types::{RunId, SourceName, rfc3339};
use crate::when::When;

/// What is to be restored.
#[derive(Clone, Debug)]
pub enum Aim {
    /// `--at`
    When(When),
    /// `--all --at`: an instant of the store's clock, converted by the offset recorded nearest to it.
    StoreInstant(DateTime<Utc>),
    /// `--at-point RUN`
    Point(RunId),
}

/// A restore of one source.
#[derive(Clone, Debug)]
pub struct Request {
    /// The source.
    pub source: SourceName,
    /// The recovery target.
    pub aim: Aim,
    /// `None` only for a plan.
    pub target: Option<Target>,
    /// What the restore may do.
    pub options: RestoreOptions,
    /// `--max-gap`.
    pub max_gap: Option<Duration>,
    /// `--yes`, or a terminal said yes to the gap.
    pub gap_accepted: bool,
}

/// Clock offsets more uncertain than this are told.
const UNCERTAIN_TOLD_MS: u64 = 1_000;
/// Clock offsets more uncertain than this are refused without `--yes`.
const UNCERTAIN_REFUSED_MS: u64 = 5_000;

struct Planned {
    repository: Repository,
    commit: Commit,
    report: RestoreReport,
}

/// A point that was opened, and what its target was found to be fit for.
struct Ready {
    point: OpenPoint,
    restorer: Box<dyn Restorer>,
    context: Context,
    /// Removed when dropped.
    _scratch: Scratch,
}

/// Plans a restore: nothing is written. A gap over the limit is [`Kind::Unreachable`] unless accepted.
///
/// # Errors
/// No point, a damaged one, a gap over the limit; each names the nearest instant that can be restored.
pub async fn plan(session: &Session, request: &Request) -> Result<RestoreReport> {
    let mut planned = planned(session, request).await?;
    if session.key_ring()?.is_empty() {
        planned.report.warnings.push(
            "there is no identity at hand: the restore itself needs encryption.identity or --identity FILE, and what is in the point was not looked at"
                .to_owned(),
        );
        if let Some(target) = &request.target {
            let (context, _scratch) = context(session, &request.source, planned.commit.run)?;
            restorer(session, &request.source, &planned.commit.kind)?
                .examine(&context, target, &request.options)
                .await?;
        }
    } else {
        ready(session, request, &mut planned).await?;
    }
    Ok(planned.report)
}

/// Plans again and carries out.
///
/// # Errors
/// As [`plan`]; damaged or missing objects; the target.
pub async fn restore(session: &Session, request: &Request) -> Result<RestoreReport> {
    let begun = session.world.clock.since_boot();
    let target = request
        .target
        .as_ref()
        .ok_or_else(|| Error::usage("--to is missing"))?;
    require_identity(session)?;
    let mut planned = planned(session, request).await?;
    let Ready {
        point,
        restorer,
        context,
        _scratch,
    } = ready(session, request, &mut planned).await?;
    let mut report = planned.report;
    session
        .progress
        .phase(&format!("restoring {}", request.source), Some(report.bytes));
    let mut content = point.content()?;
    let restored = tokio::select! {
        biased;
        () = session.cancel.cancelled() => Err(Error::new(Kind::Interrupted, "interrupted")
            .hint(format!(
                "What was written is marked as incomplete: the same restore, with --at-point {}, starts it over.",
                planned.commit.run
            ))),
        restored = restorer.restore(&context, &mut content, target, &request.options) => restored,
    }?;
    report.bytes = restored.bytes;
    report.differences = restored.differences;
    for warning in restored.warnings {
        if !report.warnings.contains(&warning) {
            report.warnings.push(warning);
        }
    }
    report.next_steps = restored.next_steps;
    report.seconds = session
        .world
        .clock
        .since_boot()
        .saturating_sub(begun)
        .as_secs_f64();
    report.dry_run = false;
    Ok(report)
}

/// Opens the point with every key that it takes, and looks at the target with what the point holds in mind. Nothing is
/// written.
async fn ready(session: &Session, request: &Request, planned: &mut Planned) -> Result<Ready> {
    let Planned {
        repository,
        commit,
        report,
    } = planned;
    let restorer = restorer(session, &request.source, &commit.kind)?;
    let (context, scratch) = context(session, &request.source, commit.run)?;
    // What needs no reading of the point is told first.
    if let Some(target) = &request.target {
        restorer.examine(&context, target, &request.options).await?;
    }
    let mut keys = session.key_ring()?;
    let point = OpenPoint::open(repository, &request.source, commit, &mut keys).await?;
    let outline = outline(&point, &*restorer).await?;
    report.databases = restorer.parts(&outline, &request.options)?;
    if !report.databases.is_empty() {
        report.bytes = report.databases.iter().map(|d| d.bytes).sum();
    }
    if let Some(target) = &request.target {
        let told = restorer
            .examine_for(&context, &outline, target, &request.options)
            .await?;
        report.warnings.extend(told);
    }
    Ok(Ready {
        point,
        restorer,
        context,
        _scratch: scratch,
    })
}

/// Refuses a restore that nothing could be read for.
///
/// # Errors
/// There is no identity at hand.
pub fn require_identity(session: &Session) -> Result<()> {
    if session.key_ring()?.is_empty() {
        return Err(
            Error::new(Kind::NoIdentity, "there is no identity to read the backups with")
                .hint("Set encryption.identity in the policy, or give --identity FILE."),
        );
    }
    Ok(())
}

/// How a kind is put back.
///
/// # Errors
/// A kind that this build does not know.
pub fn restorer(session: &Session, source: &SourceName, kind: &str) -> Result<Box<dyn Restorer>> {
    // A policy may say where the client programs are; without one they are looked for.
    let clients = session.policy.sources.get(source).and_then(|s| match &s.kind {
        SourceKind::Postgres(postgres) => postgres.client_dir.clone(),
        _ => None,
    });
    match kind {
        "postgres-logical" => Ok(Box::new(LogicalRestorer::new().with_client_dir(clients))),
        "pocketbase" => Ok(Box::new(PocketBaseRestorer)),
        other => Err(
            Error::failed(format!("this build can not restore a source of kind {other}"))
                .hint("Use a newer Lifeboat, or restore.py in the repository."),
        ),
    }
}

fn context(session: &Session, source: &SourceName, run: RunId) -> Result<(Context, Scratch)> {
    // A rescue host has no state directory, and a host in trouble may have one that is full or read-only: neither is in
    // the way of a restore, the system's temporary directory serves.
    let id = RunId::new(session.world.ulid()?);
    let scratch = StateDir::open(&session.policy.state_dir)
        .and_then(|state| state.scratch(id))
        .or_else(|_| Scratch::temporary(id))?;
    let context = Context {
        world: session.world.clone(),
        source: source.clone(),
        run,
        scratch: scratch.path().to_owned(),
        cancel: session.cancel.clone(),
        progress: session.progress.clone(),
        known: crate::source::stamps::Stamps::default(),
    };
    Ok((context, scratch))
}

async fn planned(session: &Session, request: &Request) -> Result<Planned> {
    if request.options.reuse {
        return Err(Error::usage(
            "--reuse is for physical restores, which are not built yet: dumps and snapshots are restored to what is new or empty",
        )
        .hint("Leave --reuse out, and give a new or empty target."));
    }
    let repository = session.open(Role::Writer).await?;
    let source = &request.source;
    refuse_own_directories(session, request)?;
    if !session.policy.sources.contains_key(source) {
        let names = repository.sources().await?;
        if !names.contains(source) {
            let names: Vec<&str> = names.iter().map(SourceName::as_str).collect();
            return Err(Error::usage(format!("there is no source {source}"))
                .hint(format!("The repository has: {}.", names.join(", "))));
        }
    }
    let catalog = repository.catalog(source).await?;
    let now = session.world.clock.now();
    let full: Vec<&Point> = catalog
        .points
        .values()
        .filter(|p| !p.commit.partial && p.tombstoned.is_none())
        .collect();
    let mut warnings: Vec<String> = catalog
        .unreadable
        .iter()
        .map(|(run, why)| format!("the commit of {run} can not be read: {}", why.problem))
        .collect();
    let (goal, requested) = goal(request, &full, now, &mut warnings)?;
    let mut candidates: Vec<Candidate> = full
        .iter()
        .map(|p| Candidate {
            run: p.commit.run,
            at: p.commit.at,
            taken: p.commit.taken(),
            damaged: None,
        })
        .collect();
    // References are read only of points that are about to be chosen, or named as a way out.
    let mut looked_at = BTreeSet::new();
    let plan = loop {
        let decided = recovery::plan(&candidates, goal, now);
        let named = match &decided {
            Ok(plan) => Some(plan.run),
            Err(Refusal::BeforeFirst(point) | Refusal::Damaged(_, Some(point))) => Some(point.run),
            Err(_) => None,
        };
        let point = named
            .filter(|run| looked_at.insert(*run))
            .and_then(|run| catalog.points.get(&run));
        let Some(point) = point else {
            break decided.map_err(|refusal| refused(&refusal, source, &catalog, goal))?;
        };
        if let Some(reason) = damage(&repository, source, &catalog, point).await? {
            for candidate in candidates.iter_mut().filter(|c| c.run == point.commit.run) {
                candidate.damaged = Some(reason.clone());
            }
        }
    };
    for (run, reason) in &plan.passed_over {
        warnings.push(format!("point {run} is nearer and is passed over: {reason}"));
    }
    warnings.extend(nearer_expired(&catalog, goal, Some(plan.at)));
    let (commit, digest) = (
        catalog.points[&plan.run].commit.clone(),
        catalog.points[&plan.run].digest,
    );
    let age = age(&commit, now);
    let latest = goal == Goal::Latest;
    // Nothing newer can be had: there is no gap to refuse, only an age to tell.
    let (requested, gap) = if latest {
        (Some(commit.at + age), age)
    } else {
        (requested, plan.gap)
    };
    check_gap(session, request, &plan)
        .map_err(|e| with_hint(e, nearer_expired(&catalog, goal, Some(plan.at))))?;
    warnings.extend(without_limit(session, request, &plan));
    let offset = commit.clocks.source_minus_store_ms();
    if offset.abs() > 1000 {
        warnings.push(format!(
            "the source's clock was {offset} ms ahead of the store's when the point was taken"
        ));
    }
    // Neither damage of the evidence nor its absence is in the way of a restore.
    let told = evidence::told(session, &repository).await;
    warnings.extend(told.problems);
    warnings.extend(told.warnings);
    let report = RestoreReport {
        source: source.clone(),
        requested,
        restored_to: plan.at,
        gap_seconds: seconds(gap),
        age_seconds: seconds(age),
        latest,
        precision: "point",
        run: plan.run,
        log_from: None,
        log_to: None,
        bytes: commit.bytes.content,
        seconds: 0.0,
        target: request.target.as_ref().map(describe_target),
        dry_run: true,
        databases: Vec::new(),
        differences: Vec::new(),
        warnings,
        next_steps: Vec::new(),
        drilled: told.proven.point(source, plan.run, digest).cloned(),
        error: None,
    };
    Ok(Planned {
        repository,
        commit,
        report,
    })
}

fn seconds(span: TimeDelta) -> f64 {
    span.num_milliseconds() as f64 / 1000.0
}

/// How long ago the point's instant was, by the source's clock as it was read beside the host's; where a clock was wrong, by
/// the store's.
fn age(commit: &Commit, now: DateTime<Utc>) -> TimeDelta {
    let taken = commit.taken();
    let here = if taken == commit.at {
        now + (commit.clocks.source - commit.clocks.host)
    } else {
        now
    };
    (here - taken).max(TimeDelta::zero())
}

/// Neither the repository nor what is backed up is a place to restore to.
fn refuse_own_directories(session: &Session, request: &Request) -> Result<()> {
    let Some(Target::Directory(target)) = &request.target else {
        return Ok(());
    };
    let mut own = Vec::new();
    if let StoreUrl::Directory(path) = &session.policy.repository.url {
        own.push(("the repository", path));
    }
    for policy in session.policy.sources.values() {
        if let SourceKind::PocketBase(pocketbase) = &policy.kind
            && let PocketBasePlace::Local(path) = &pocketbase.place
        {
            own.push(("a source", path));
        }
    }
    let target = resolved(target);
    for (what, path) in own {
        let path = resolved(path);
        if target.starts_with(&path) || path.starts_with(&target) {
            return Err(Error::usage(format!(
                "{} is in the way of {what} at {}",
                target.display(),
                path.display()
            ))
            .hint("Restore into a new directory elsewhere, look at it, then move it."));
        }
    }
    Ok(())
}

/// Without links, as far as the path exists.
fn resolved(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    for existing in path.ancestors() {
        if let Ok(real) = existing.canonicalize() {
            return match path.strip_prefix(existing) {
                Ok(rest) if rest.as_os_str().is_empty() => real,
                Ok(rest) => real.join(rest),
                Err(_) => path,
            };
        }
    }
    path
}

/// A point nearer to the goal that has expired and may be brought back.
fn nearer_expired(catalog: &Catalog, goal: Goal, found: Option<DateTime<Utc>>) -> Option<String> {
    let Goal::At(instant) = goal else { return None };
    let point = catalog
        .points
        .values()
        .filter(|p| !p.commit.partial && p.tombstoned.is_some())
        .filter(|p| p.commit.at <= instant && found.is_none_or(|at| at < p.commit.at))
        .max_by_key(|p| p.commit.at)?;
    Some(format!(
        "point {} ({}) is nearer and has expired: `backup prune --undo {}` may bring it back",
        point.commit.run,
        rfc3339(point.commit.at),
        point.commit.run
    ))
}

/// The goal on the source's clock, and the instant asked for.
fn goal(
    request: &Request,
    points: &[&Point],
    now: DateTime<Utc>,
    warnings: &mut Vec<String>,
) -> Result<(Goal, Option<DateTime<Utc>>)> {
    Ok(match request.aim {
        Aim::When(When::Latest) => (Goal::Latest, None),
        Aim::When(When::At(instant)) => (Goal::At(instant), Some(instant)),
        Aim::Point(run) => (Goal::Point(run), None),
        Aim::StoreInstant(instant) => {
            let Some(nearest) = points
                .iter()
                .min_by_key(|p| (p.commit.clocks.store - instant).abs())
            else {
                return Ok((Goal::At(instant), Some(instant)));
            };
            let clocks = nearest.commit.clocks;
            let source = &request.source;
            if clocks.spread_ms > UNCERTAIN_REFUSED_MS && !request.gap_accepted {
                return Err(Error::new(
                    Kind::Unreachable,
                    format!("the clock of {source} is known to {} ms only", clocks.spread_ms),
                )
                .hint(
                    "Accept it with --yes, or restore this source alone with an instant of its own clock.",
                ));
            }
            if clocks.spread_ms > UNCERTAIN_TOLD_MS {
                warnings.push(format!(
                    "the clock of {source} is known to {} ms only",
                    clocks.spread_ms
                ));
            }
            let converted = (instant + TimeDelta::milliseconds(clocks.source_minus_store_ms())).min(now);
            (Goal::At(converted), Some(converted))
        }
    })
}

async fn damage(
    repository: &Repository,
    source: &SourceName,
    catalog: &Catalog,
    point: &Point,
) -> Result<Option<String>> {
    match repository.refs(source, point.commit.run, point.commit.refs).await {
        Ok(refs) => {
            for d in catalog.damages_of(point, &refs) {
                if repository
                    .is_still_damaged(source, &point.commit, &refs, d)
                    .await?
                {
                    return Ok(Some(format!(
                        "{} of run {} is recorded as damaged: {}",
                        d.object, d.place.run, d.problem
                    )));
                }
            }
            Ok(None)
        }
        Err(e) if e.kind() == Kind::Damaged => Ok(Some(e.chain())),
        Err(e) => Err(e),
    }
}

fn refused(refusal: &Refusal, source: &SourceName, catalog: &Catalog, goal: Goal) -> Error {
    match refusal {
        Refusal::NoPoints if catalog.unreadable.values().any(|why| why.newer) => Error::new(
            Kind::Newer,
            format!("what is there of {source} is of a format that this build does not know"),
        )
        .hint("Use a newer Lifeboat to restore it."),
        Refusal::NoPoints if !catalog.unreadable.is_empty() => {
            Error::damaged(format!("no commit of {source} can be read"))
                .hint("`backup verify` tells what is damaged.")
        }
        Refusal::NoPoints => Error::new(Kind::Unreachable, format!("{source} has no recovery point"))
            .hint("`backup list` shows what there is."),
        Refusal::Future => Error::new(Kind::Unreachable, "the instant lies in the future")
            .hint("Use --at latest for the newest point."),
        Refusal::BeforeFirst(first) => Error::new(
            Kind::Unreachable,
            format!("the instant is before the first recovery point of {source}"),
        )
        .hint(match nearer_expired(catalog, goal, None) {
            Some(expired) => format!(
                "The nearest that can be restored is {}; {expired}.",
                rfc3339(first.at)
            ),
            None => format!("The nearest that can be restored is {}.", rfc3339(first.at)),
        }),
        Refusal::UnknownPoint => match goal {
            Goal::Point(run) if catalog.tombstones.contains_key(&run) => Error::new(
                Kind::Unreachable,
                format!("the recovery point {run} of {source} has expired"),
            )
            .hint(format!(
                "It waits for its grace: `backup prune --undo {run}` brings it back."
            )),
            Goal::Point(run) if catalog.unreadable.contains_key(&run) => {
                let why = &catalog.unreadable[&run];
                let kind = if why.newer { Kind::Newer } else { Kind::Damaged };
                Error::new(
                    kind,
                    format!("the commit of {run} can not be read: {}", why.problem),
                )
                .hint("`backup list` shows the recovery points that can be read.")
            }
            _ => Error::usage(format!("{source} has no such recovery point"))
                .hint("`backup list` shows the recovery points."),
        },
        Refusal::Damaged(reason, nearest) => {
            let error = Error::damaged(format!("the recovery point of {source} is damaged: {reason}"));
            match nearest {
                Some(point) => error.hint(format!(
                    "The nearest that is intact: --at-point {} ({}).",
                    point.run,
                    rfc3339(point.at)
                )),
                None => error.hint("No recovery point of this source is intact; `backup verify` tells more."),
            }
        }
    }
}

fn with_hint(error: Error, more: Option<String>) -> Error {
    match (more, error.hint_text().map(str::to_owned)) {
        (Some(more), Some(hint)) => error.hint(format!("{hint} Or: {more}.")),
        _ => error,
    }
}

/// A target for people: never with a password.
pub fn describe_target(target: &Target) -> String {
    match target {
        Target::Directory(path) => path.display().to_string(),
        Target::Bucket(url) => url.clone(),
        Target::Postgres(url) => match url::Url::parse(url.expose()) {
            Ok(mut url) => {
                // Both fail only for URLs that can not have a password.
                let _ = url.set_password(None);
                url.set_query(None);
                url.to_string()
            }
            Err(_) => "postgres".to_owned(),
        },
    }
}
