//! Restores: choose the point (pure), say what the operator gets and the gap, then write.

use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use super::Session;
use super::report::RestoreReport;
use super::session::Role;
use crate::error::{Error, Kind, Result};
use crate::policy::{PocketBasePlace, SourceKind, StoreUrl};
use crate::recovery::{self, Candidate, Goal, Plan, Refusal};
use crate::repository::Repository;
use crate::repository::catalog::{Catalog, Point};
use crate::repository::documents::Commit;
use crate::repository::reader::OpenPoint;
use crate::schedule::Schedule;
use crate::source::pocketbase::PocketBaseRestorer;
use crate::source::postgres::LogicalRestorer;
use crate::source::{Context, RestoreOptions, Restorer, Target};
use crate::state::{Scratch, StateDir};
use crate::types::{RunId, SourceName};
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

/// Plans a restore: nothing is written. A gap over the limit is [`Kind::Unreachable`] unless accepted.
///
/// # Errors
/// No point, a damaged one, a gap over the limit; each names the nearest instant that can be restored.
pub async fn plan(session: &Session, request: &Request) -> Result<RestoreReport> {
    let mut planned = planned(session, request).await?;
    let mut keys = session.key_ring()?;
    if keys.is_empty() {
        planned.report.warnings.push(
            "there is no identity at hand: the restore itself needs encryption.identity or --identity FILE"
                .to_owned(),
        );
    } else {
        use base64::Engine as _;
        let generation = &planned.commit.generation;
        let wrap = base64::engine::general_purpose::STANDARD
            .decode(&generation.wrap)
            .ok();
        keys.open(&planned.repository, generation.id, wrap.as_deref())
            .await?;
    }
    if let Some(target) = &request.target {
        let (context, _scratch) = context(session, &request.source, planned.commit.run)?;
        restorer(session, &request.source, &planned.commit.kind)?
            .examine(&context, target, &request.options)
            .await?;
    }
    Ok(planned.report)
}

/// Plans again and carries out.
///
/// # Errors
/// As [`plan`]; damaged or missing objects; the target.
pub async fn restore(session: &Session, request: &Request) -> Result<RestoreReport> {
    let begun = session.world.clock.since_boot();
    let Planned {
        repository,
        commit,
        mut report,
    } = planned(session, request).await?;
    let target = request
        .target
        .as_ref()
        .ok_or_else(|| Error::usage("--to is missing"))?;
    let restorer = restorer(session, &request.source, &commit.kind)?;
    let (context, scratch) = context(session, &request.source, commit.run)?;
    let mut keys = session.key_ring()?;
    if keys.is_empty() {
        return Err(
            Error::new(Kind::NoIdentity, "there is no identity to read the backups with")
                .hint("Set encryption.identity in the policy, or give --identity FILE."),
        );
    }
    restorer.examine(&context, target, &request.options).await?;
    session.progress.phase(
        &format!("restoring {}", request.source),
        Some(commit.bytes.content),
    );
    let point = OpenPoint::open(&repository, &request.source, &commit, &mut keys).await?;
    let mut content = point.content()?;
    let restored = tokio::select! {
        biased;
        () = session.cancel.cancelled() => Err(Error::new(Kind::Interrupted, "interrupted")
            .hint("The target is marked as incomplete; the same command resumes it.")),
        restored = restorer.restore(&context, &mut content, target, &request.options) => restored,
    }?;
    drop(scratch);
    report.bytes = restored.bytes;
    report.differences = restored.differences;
    report.warnings.extend(restored.warnings);
    report.seconds = session
        .world
        .clock
        .since_boot()
        .saturating_sub(begun)
        .as_secs_f64();
    report.dry_run = false;
    Ok(report)
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

fn context(session: &Session, source: &SourceName, run: RunId) -> Result<(Context, Option<Scratch>)> {
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
    };
    Ok((context, Some(scratch)))
}

async fn planned(session: &Session, request: &Request) -> Result<Planned> {
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
        .map(|(run, why)| format!("the commit of {run} can not be read: {why}"))
        .collect();
    let (goal, requested) = goal(request, &full, now, &mut warnings)?;
    let mut candidates: Vec<Candidate> = full
        .iter()
        .map(|p| Candidate {
            run: p.commit.run,
            at: p.commit.at,
            damaged: None,
        })
        .collect();
    // References are read only of points that are about to be chosen.
    let plan = loop {
        let plan = recovery::plan(&candidates, goal, now)
            .map_err(|refusal| refused(&refusal, source, &catalog, goal))?;
        let Some(point) = catalog.points.get(&plan.run) else {
            continue;
        };
        match damage(&repository, source, &catalog, point).await? {
            None => break plan,
            Some(reason) => {
                for candidate in candidates.iter_mut().filter(|c| c.run == plan.run) {
                    candidate.damaged = Some(reason.clone());
                }
            }
        }
    };
    for (run, reason) in &plan.passed_over {
        warnings.push(format!("point {run} is nearer and is passed over: {reason}"));
    }
    warnings.extend(nearer_expired(&catalog, goal, Some(plan.at)));
    check_gap(session, request, &plan)
        .map_err(|e| with_hint(e, nearer_expired(&catalog, goal, Some(plan.at))))?;
    let commit = catalog.points[&plan.run].commit.clone();
    let offset = commit.clocks.source_minus_store_ms();
    if offset.abs() > 1000 {
        warnings.push(format!(
            "the source's clock was {offset} ms ahead of the store's when the point was taken"
        ));
    }
    let report = RestoreReport {
        source: source.clone(),
        requested,
        restored_to: plan.at,
        gap_seconds: plan.gap.num_milliseconds() as f64 / 1000.0,
        precision: "point",
        run: plan.run,
        log_from: None,
        log_to: None,
        bytes: commit.bytes.content,
        seconds: 0.0,
        target: request.target.as_ref().map(describe_target),
        dry_run: true,
        differences: Vec::new(),
        warnings,
        drilled: None,
        error: None,
    };
    Ok(Planned {
        repository,
        commit,
        report,
    })
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
        stamp(point.commit.at),
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
                stamp(*first)
            ),
            None => format!("The nearest that can be restored is {}.", stamp(*first)),
        }),
        Refusal::UnknownPoint => {
            let hidden = matches!(goal, Goal::Point(run) if catalog.tombstones.contains_key(&run));
            let error = Error::new(Kind::Unreachable, format!("{source} has no such recovery point"));
            if hidden {
                error.hint(match goal {
                    Goal::Point(run) => format!(
                        "It has expired and waits for its grace: `backup prune --undo {run}` brings it back."
                    ),
                    _ => "It has expired and waits for its grace.".to_owned(),
                })
            } else {
                error.hint("`backup list` shows the recovery points.")
            }
        }
        Refusal::Damaged(reason, nearest) => {
            let error = Error::damaged(format!("the recovery point of {source} is damaged: {reason}"));
            match nearest {
                Some(point) => error.hint(format!(
                    "The nearest that is intact: --at-point {} ({}).",
                    point.run,
                    stamp(point.at)
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

/// Exactly, so that it can be given back to `--at`.
fn stamp(instant: DateTime<Utc>) -> String {
    instant.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true)
}

fn check_gap(session: &Session, request: &Request, plan: &Plan) -> Result<()> {
    if request.gap_accepted || plan.gap <= TimeDelta::zero() {
        return Ok(());
    }
    let Some(limit) = request.max_gap.or_else(|| usual_gap(session, &request.source)) else {
        return Ok(());
    };
    let limit = TimeDelta::from_std(limit).unwrap_or(TimeDelta::MAX);
    if plan.gap <= limit {
        return Ok(());
    }
    let rule = match (request.max_gap, session.policy.sources.get(&request.source)) {
        (Some(_), _) => "that --max-gap allows",
        (None, Some(source)) if source.objective.rpo.is_some() => "of the source's objective (rpo)",
        _ => "of twice its schedule's interval",
    };
    Err(Error::new(
        Kind::Unreachable,
        format!(
            "the nearest recovery point of {} is {} before the instant asked for, more than the {} {rule}",
            request.source,
            in_words(plan.gap),
            in_words(limit)
        ),
    )
    .hint(format!(
        "The nearest that can be restored is {} (point {}): accept the gap with --max-gap {} or --yes.",
        stamp(plan.at),
        plan.run,
        in_words(plan.gap + TimeDelta::seconds(1)).replace(' ', "")
    )))
}

/// `objective.rpo`, else twice the schedule's interval; none without either.
fn usual_gap(session: &Session, source: &SourceName) -> Option<Duration> {
    let policy = session.policy.sources.get(source)?;
    policy.objective.rpo.or_else(|| {
        let schedule = Schedule::parse(policy.schedule.as_deref()?, policy.timezone).ok()?;
        schedule.usual_interval(session.world.clock.now()).map(|d| d * 2)
    })
}

fn in_words(gap: TimeDelta) -> String {
    let seconds = gap.num_seconds().unsigned_abs();
    humantime::format_duration(Duration::from_secs(seconds)).to_string()
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
