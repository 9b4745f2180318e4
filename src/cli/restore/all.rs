//! `--all`: every source to one instant of the store's clock.

use std::path::Path;

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::show;
use crate::cli::args::RestoreArgs;
use crate::cli::run::combined;
use crate::cli::target::{AllTargets, parse_all};
use crate::cli::{Surroundings, ask};
use crate::error::{Context as _, Error, Kind, Result};
use crate::jobs;
use crate::jobs::Session;
use crate::jobs::report::{Failure, RestoreReport};
use crate::jobs::restore::{Aim, Request};
use crate::source::Target;
use crate::types::{RunId, SourceName};
use crate::when::When;

/// The document of `--all`.
#[derive(Serialize)]
struct AllReport {
    requested: DateTime<Utc>,
    sources: Vec<Part>,
}

/// A source in it.
#[derive(Serialize)]
#[serde(untagged)]
enum Part {
    /// Planned, and carried out unless it was a dry run; its `error` says how far it came.
    Planned(Box<RestoreReport>),
    /// There is no plan.
    Refused(Box<Refused>),
}

/// A source without a plan: every field of one that has a plan, empty.
#[derive(Serialize)]
struct Refused {
    source: SourceName,
    requested: Option<DateTime<Utc>>,
    restored_to: Option<DateTime<Utc>>,
    gap_seconds: Option<f64>,
    age_seconds: Option<f64>,
    precision: Option<&'static str>,
    run: Option<RunId>,
    log_from: Option<String>,
    log_to: Option<String>,
    bytes: Option<u64>,
    seconds: Option<f64>,
    target: Option<String>,
    dry_run: bool,
    databases: Vec<()>,
    differences: Vec<()>,
    warnings: Vec<()>,
    next_steps: Vec<()>,
    drilled: Option<()>,
    error: Failure,
}

impl Refused {
    fn new(request: Request, requested: DateTime<Utc>, dry_run: bool, error: Failure) -> Self {
        Self {
            source: request.source,
            requested: Some(requested),
            restored_to: None,
            gap_seconds: None,
            age_seconds: None,
            precision: None,
            run: None,
            log_from: None,
            log_to: None,
            bytes: None,
            seconds: None,
            target: request.target.as_ref().map(jobs::restore::describe_target),
            dry_run,
            databases: Vec::new(),
            differences: Vec::new(),
            warnings: Vec::new(),
            next_steps: Vec::new(),
            drilled: None,
            error,
        }
    }
}

/// Plans every source before anything is written, then restores one after the other.
pub async fn all(surroundings: &Surroundings, session: &Session, args: &RestoreArgs) -> Result<u8> {
    if args.no_recover {
        return Err(Error::usage(
            "--no-recover is for one physical source, which is not built yet, and not for --all",
        ));
    }
    let sources = sources(surroundings, session).await?;
    let targets = parse_all(&args.to, &sources, &surroundings.lookup)?;
    if let AllTargets::Below(root) = &targets {
        refuse_strangers(root, &sources)?;
    }
    if !args.dry_run {
        jobs::restore::require_identity(session)?;
    }
    let (aim, instant) = match super::aim(surroundings, session, args)? {
        Aim::When(When::At(instant)) => (Aim::StoreInstant(instant), instant),
        // The newest of each, however old: there is nothing nearer.
        latest => (latest, session.world.clock.now()),
    };
    let requests = requests(args, &sources, &targets, &aim);
    let planned = plan_each(surroundings, session, requests).await?;
    let mut parts = Vec::new();
    let mut codes = Vec::new();
    for (request, plan) in planned {
        let (part, code) = match plan {
            Err(e) => {
                let refused = Refused::new(request, instant, args.dry_run, Failure::from(&e));
                (Part::Refused(Box::new(refused)), e.kind().exit_code())
            }
            Ok(plan) if args.dry_run => (Part::Planned(Box::new(plan)), 0),
            Ok(plan) => carry_out(session, request, plan).await,
        };
        surroundings.printer.bars().finish();
        tell(surroundings, &part);
        parts.push(part);
        codes.push(code);
    }
    let report = AllReport {
        requested: instant,
        sources: parts,
    };
    surroundings.printer.result(&report, || text(&report))?;
    if codes.contains(&Kind::Interrupted.exit_code()) {
        return Ok(Kind::Interrupted.exit_code());
    }
    let done = codes.iter().filter(|code| **code == 0).count();
    Ok(combined(
        done,
        codes.len(),
        codes.iter().copied().filter(|code| *code != 0),
    ))
}

/// The policy's sources; without a policy, those of the repository.
async fn sources(surroundings: &Surroundings, session: &Session) -> Result<Vec<SourceName>> {
    if !session.any_environment {
        let sources: Vec<SourceName> = session.policy.sources.keys().cloned().collect();
        if sources.is_empty() {
            return Err(Error::usage("the policy has no source"));
        }
        return Ok(sources);
    }
    let list = surroundings.reading(jobs::list::list(session, None)).await?;
    let sources: Vec<SourceName> = list.sources.into_iter().map(|s| s.source).collect();
    if sources.is_empty() {
        return Err(Error::new(Kind::Unreachable, "the repository has no source"));
    }
    Ok(sources)
}

/// The directory is new or empty, or holds what an interrupted `--all` left.
fn refuse_strangers(root: &Path, sources: &[SourceName]) -> Result<()> {
    let what = || format!("can not read {}", root.display());
    let entries = match std::fs::read_dir(root) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries.doing(what)?,
    };
    for entry in entries {
        let name = entry.doing(what)?.file_name();
        if !sources.iter().any(|source| name == source.as_str()) {
            return Err(Error::usage(format!(
                "{} is not empty: {:?} is in the way",
                root.display(),
                name.to_string_lossy()
            ))
            .hint("Restore to a new directory."));
        }
    }
    Ok(())
}

fn requests(args: &RestoreArgs, sources: &[SourceName], targets: &AllTargets, aim: &Aim) -> Vec<Request> {
    sources
        .iter()
        .map(|source| Request {
            source: source.clone(),
            aim: aim.clone(),
            target: match targets {
                AllTargets::None => None,
                AllTargets::Below(root) => Some(Target::Directory(root.join(source.as_str()))),
                AllTargets::Each(map) => map.get(source).cloned(),
            },
            options: super::options(args),
            max_gap: args.max_gap,
            gap_accepted: args.yes,
        })
        .collect()
}

type Planned = Vec<(Request, Result<RestoreReport>)>;

/// Plans and shows every source. What may be accepted (a gap, an uncertain clock) and is not ends the whole before a
/// byte is written; a source that can not be restored at all does not hold back the others.
async fn plan_each(
    surroundings: &Surroundings,
    session: &Session,
    requests: Vec<Request>,
) -> Result<Planned> {
    let mut planned = Vec::new();
    let mut refused: Vec<Error> = Vec::new();
    for mut request in requests {
        let plan = match surroundings.reading(jobs::restore::plan(session, &request)).await {
            Err(e) if e.kind() == Kind::Interrupted => return Err(e),
            Err(e) if e.kind() == Kind::Unreachable && !request.gap_accepted => {
                request.gap_accepted = true;
                match surroundings.reading(jobs::restore::plan(session, &request)).await {
                    Err(interrupted) if interrupted.kind() == Kind::Interrupted => return Err(interrupted),
                    Err(_) => Err(e),
                    Ok(plan) => {
                        show::plan(surroundings, session, &plan);
                        if !surroundings.printer.can_ask() || !asked(surroundings, &e).await? {
                            refused.push(e);
                        }
                        planned.push((request, Ok(plan)));
                        continue;
                    }
                }
            }
            planned => planned,
        };
        if let Ok(plan) = &plan {
            show::plan(surroundings, session, plan);
        }
        planned.push((request, plan));
    }
    match all_refused(refused) {
        Some(e) => Err(e),
        None => Ok(planned),
    }
}

/// What nobody accepted, told once.
fn all_refused(refused: Vec<Error>) -> Option<Error> {
    if refused.len() < 2 {
        return refused
            .into_iter()
            .next()
            .map(|e| e.while_doing("nothing was restored"));
    }
    let messages: Vec<&str> = refused.iter().map(Error::message).collect();
    let hints: Vec<&str> = refused.iter().filter_map(Error::hint_text).collect();
    let error = Error::new(
        Kind::Unreachable,
        format!("nothing was restored: {}", messages.join("; ")),
    );
    Some(error.hint(format!(
        "{} Or accept all of it with --yes, or take the newest of each with --at latest.",
        hints.join(" ")
    )))
}

async fn asked(surroundings: &Surroundings, error: &Error) -> Result<bool> {
    ask::yes(
        surroundings,
        &format!("{}. Restore it nevertheless?", error.message()),
    )
    .await
}

async fn carry_out(session: &Session, request: Request, plan: RestoreReport) -> (Part, u8) {
    if session.cancel.is_cancelled() {
        let error = Error::new(Kind::Interrupted, "interrupted before it began");
        return failed(plan, &error);
    }
    match super::carry_out(session, request, plan.clone()).await {
        Ok(report) => {
            let code = if report.error.is_none() {
                0
            } else {
                Kind::Failed.exit_code()
            };
            (Part::Planned(Box::new(report)), code)
        }
        Err(e) => failed(
            plan,
            &crate::cli::errors::of_interrupt(session.cancel.is_cancelled(), e),
        ),
    }
}

fn failed(mut plan: RestoreReport, error: &Error) -> (Part, u8) {
    plan.dry_run = false;
    plan.bytes = 0;
    plan.error = Some(Failure::from(error));
    (Part::Planned(Box::new(plan)), error.kind().exit_code())
}

fn tell(surroundings: &Surroundings, part: &Part) {
    match part {
        Part::Planned(report) if report.dry_run => {}
        Part::Planned(report) => show::warnings(surroundings, report, &[]),
        Part::Refused(r) => surroundings.printer.failure(r.source.as_str(), &r.error),
    }
}

fn text(report: &AllReport) -> String {
    report
        .sources
        .iter()
        .map(|part| match part {
            Part::Planned(report) => show::result(report),
            Part::Refused(r) => format!("{} can NOT be restored\n", r.source),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_accepted_is_told_once() {
        let gap = |source: &str| {
            Error::new(Kind::Unreachable, format!("{source} is far")).hint(format!("Accept {source}."))
        };
        assert!(all_refused(Vec::new()).is_none());
        let one = all_refused(vec![gap("app")]).unwrap();
        assert_eq!(one.message(), "nothing was restored: app is far");
        assert_eq!(one.hint_text(), Some("Accept app."));
        let two = all_refused(vec![gap("app"), gap("orders")]).unwrap();
        assert_eq!(two.message(), "nothing was restored: app is far; orders is far");
        assert_eq!(two.kind(), Kind::Unreachable);
        let hint = two.hint_text().unwrap();
        assert!(
            hint.contains("app") && hint.contains("orders") && hint.contains("--yes"),
            "{hint}"
        );
    }
}
