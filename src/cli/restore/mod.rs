//! `backup restore SOURCE|--all --at WHEN --to TARGET`: says what the operator gets before a byte is written.

mod all;
mod show;

use super::args::RestoreArgs;
use super::ask;
use super::{Extra, Surroundings, load, target};
use crate::error::{Error, Kind, Result};
use crate::jobs;
use crate::jobs::Session;
use crate::jobs::report::{Failure, RestoreReport};
use crate::jobs::restore::{Aim, Request};
use crate::policy::{Policy, SourceKind};
use crate::source::RestoreOptions;
use crate::types::SourceName;
use crate::when::When;

/// Restores one source, or all of them.
pub async fn restore(surroundings: &Surroundings, args: &RestoreArgs) -> Result<u8> {
    refuse_missing_target(args)?;
    let session = session(surroundings, args)?;
    if let Some(source) = &args.source {
        refuse_unsuitable(args, source, &session.policy)?;
        refuse_unknown(surroundings, &session, source).await?;
        one(surroundings, &session, args, source).await
    } else {
        all::all(surroundings, &session, args).await
    }
}

fn session(surroundings: &Surroundings, args: &RestoreArgs) -> Result<Session> {
    let policy = match &args.repository {
        Some(url) => load::without_policy(url, &surroundings.lookup)?,
        None => surroundings.policy()?,
    };
    let extra = Extra {
        identity_file: args.identity.clone(),
        any_environment: args.repository.is_some(),
        versions: args.versions,
    };
    Ok(surroundings.session_with(policy, extra))
}

fn refuse_missing_target(args: &RestoreArgs) -> Result<()> {
    if args.to.is_empty() && !args.dry_run {
        return Err(Error::usage("--to is missing").hint(
            "Say where to restore to: a new directory or a postgres:// URL; only --dry-run goes without.",
        ));
    }
    if args.source.is_some() && args.to.len() > 1 {
        return Err(Error::usage("--to is given more than once").hint("Only --all takes several."));
    }
    Ok(())
}

/// What only a source with a log, or only Postgres, can do.
fn refuse_unsuitable(args: &RestoreArgs, source: &SourceName, policy: &Policy) -> Result<()> {
    let kind = policy.sources.get(source).map(|s| &s.kind);
    let asked = [
        ("--at-lsn", args.at_lsn.is_some()),
        ("--at-xid", args.at_xid.is_some()),
        ("--at-name", args.at_name.is_some()),
        ("--timeline", args.timeline.is_some()),
        ("--no-recover", args.no_recover),
    ];
    if let Some((option, _)) = asked.into_iter().find(|(_, given)| *given) {
        let keeps = match kind {
            Some(SourceKind::Bucket { .. }) => "object versions",
            Some(SourceKind::PocketBase(_)) => "snapshots",
            _ => "dumps",
        };
        return Err(
            Error::usage(format!(
                "{option} is for physical sources, which are not built yet: {source} keeps {keeps}, not a log"
            ))
            .hint(
                "Use --at WHEN for the newest point at or before an instant, or --at-point RUN for one of `backup list`.",
            ),
        );
    }
    let of_databases = args.only_database.is_some() || args.only_table.is_some();
    if of_databases && matches!(kind, Some(SourceKind::PocketBase(_) | SourceKind::Bucket { .. })) {
        return Err(Error::usage(format!(
            "--only-database and --only-table are for Postgres sources, and {source} is none"
        )));
    }
    Ok(())
}

/// What `--at` or `--at-point` ask for; an instant is echoed before anything else is done.
fn aim(surroundings: &Surroundings, session: &Session, args: &RestoreArgs) -> Result<Aim> {
    if let Some(run) = args.at_point {
        return Ok(Aim::Point(run));
    }
    let text = args
        .at
        .as_deref()
        .ok_or_else(|| Error::usage("--at is missing"))?;
    let zone = session.policy.timezone;
    let when = load::when(text, zone, session.world.clock.now())?;
    match when {
        When::Latest => surroundings.printer.tell("at: latest"),
        When::At(instant) => surroundings
            .printer
            .tell(&format!("at: {}", load::echo(instant, zone))),
    }
    Ok(Aim::When(when))
}

/// A source may have left the policy and still be in the repository; one that is in neither is a mistake in the name.
async fn refuse_unknown(surroundings: &Surroundings, session: &Session, source: &SourceName) -> Result<()> {
    if session.policy.sources.contains_key(source) {
        return Ok(());
    }
    let listed = surroundings.reading(jobs::list::list(session, Some(source)));
    listed.await.map(drop)
}

fn options(args: &RestoreArgs) -> RestoreOptions {
    RestoreOptions {
        only_database: args.only_database.clone(),
        only_table: args.only_table.clone(),
        reuse: args.reuse,
        new_server: false,
    }
}

async fn one(
    surroundings: &Surroundings,
    session: &Session,
    args: &RestoreArgs,
    source: &SourceName,
) -> Result<u8> {
    let target = match args.to.first() {
        Some(text) => Some(target::parse_one(text, source, &surroundings.lookup)?),
        None => None,
    };
    if !args.dry_run {
        jobs::restore::require_identity(session)?;
    }
    let mut request = Request {
        source: source.clone(),
        aim: aim(surroundings, session, args)?,
        target,
        options: options(args),
        max_gap: args.max_gap,
        gap_accepted: args.yes,
    };
    let plan = match surroundings.reading(jobs::restore::plan(session, &request)).await {
        Err(e) if e.kind() == Kind::Unreachable => accept(surroundings, session, &mut request, e).await?,
        planned => planned?,
    };
    show::plan(surroundings, session, &plan);
    let told = plan.warnings.clone();
    if args.dry_run {
        surroundings.printer.result(&plan, || show::result(&plan))?;
        return Ok(0);
    }
    let report = carry_out(session, request, plan).await?;
    surroundings.printer.bars().finish();
    show::warnings(surroundings, &report, &told);
    surroundings.printer.result(&report, || show::result(&report))?;
    Ok(if report.error.is_none() {
        0
    } else {
        Kind::Failed.exit_code()
    })
}

/// Has a gap (or an uncertain clock) accepted by a terminal; the error stands where nobody can, or it is no such thing.
async fn accept(
    surroundings: &Surroundings,
    session: &Session,
    request: &mut Request,
    error: Error,
) -> Result<RestoreReport> {
    if request.gap_accepted || !surroundings.printer.can_ask() {
        return Err(error);
    }
    let accepted = Request {
        gap_accepted: true,
        ..request.clone()
    };
    // What acceptance does not help with is refused with the first reason.
    let Ok(plan) = surroundings
        .reading(jobs::restore::plan(session, &accepted))
        .await
    else {
        return Err(error);
    };
    if !ask::yes(
        surroundings,
        &format!("{}. Restore it nevertheless?", error.message()),
    )
    .await?
    {
        return Err(error);
    }
    *request = accepted;
    Ok(plan)
}

/// Restores the very point that was shown, whatever has been committed since.
async fn carry_out(session: &Session, request: Request, plan: RestoreReport) -> Result<RestoreReport> {
    let pinned = Request {
        aim: Aim::Point(plan.run),
        gap_accepted: true,
        ..request
    };
    let mut report = session
        .interruptible(jobs::restore::restore(session, &pinned))
        .await?;
    report.requested = plan.requested;
    report.gap_seconds = plan.gap_seconds;
    report.age_seconds = plan.age_seconds;
    report.latest = plan.latest;
    for warning in plan.warnings {
        if !report.warnings.contains(&warning) {
            report.warnings.push(warning);
        }
    }
    if !report.differences.is_empty() {
        let error = Error::failed(format!(
            "what was restored to is not what was recorded: {}",
            report.differences.join("; ")
        ))
        .hint("Do not use the target; `backup verify --content` tells whether the point is damaged.");
        report.error = Some(Failure::from(&error));
    }
    Ok(report)
}
