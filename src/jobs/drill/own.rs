//! Level 5: the operator's own checks. Queries are asked before the application runs, the others after.

use std::path::PathBuf;
use std::time::Duration;

use super::super::Session;
use super::super::report::SourceDrill;
use crate::drill::{Check, Level, Outcome};
use crate::error::{Error, Kind, Result};
use crate::policy::{DrillPolicy, UserCheck, UserCheckKind};
use crate::sandbox::Program;
use crate::source::scratch::ScratchTarget;
use crate::types::SourceName;

/// What is told of what a program said.
const SAID_CHARS: usize = 500;

/// Programs of the checks of a source that are named by a path: they have to be seen where they are started.
pub fn programs(policy: &DrillPolicy, source: &SourceName) -> Vec<PathBuf> {
    let of = policy.checks.iter().filter(|c| c.source == *source);
    of.filter_map(|check| match &check.what {
        UserCheckKind::Command(words) => words.first().map(PathBuf::from),
        _ => None,
    })
    .filter(|path| path.is_absolute())
    .collect()
}

/// Whether a check is made before the application runs.
pub fn is_early(check: &UserCheck) -> bool {
    matches!(check.what, UserCheckKind::Sql { .. })
}

/// Adds the checks of a source that were not reached: no level stands on a check that was not made.
pub fn add_unmade(policy: &DrillPolicy, report: &mut SourceDrill, why: &str) {
    let level = Some(Level::Own.number());
    for check in policy.checks.iter().filter(|c| c.source == report.source) {
        let made = |c: &Check| c.level == level && c.name == check.name;
        if !report.checks.iter().any(made) {
            report
                .checks
                .push(Check::could_not_run(&check.name, Some(Level::Own), why));
        }
    }
}

/// Carries a check out. Only an interrupt is an error.
pub async fn carry_out(
    session: &Session,
    scratch: &mut dyn ScratchTarget,
    check: &UserCheck,
) -> Result<Check> {
    let done = match &check.what {
        UserCheckKind::Sql {
            database,
            query,
            expected,
        } => sql(scratch, check, database.as_deref(), query, expected.as_deref()).await,
        UserCheckKind::Command(words) => command(session, scratch, check, words).await,
        UserCheckKind::Http(path) => http(scratch, check, path).await,
    };
    match done {
        Ok(done) => Ok(done),
        Err(e) if e.kind() == Kind::Interrupted => Err(e),
        Err(e) => Ok(Check::of_error(
            &check.name,
            Some(Level::Own),
            Outcome::Failed,
            wanted(&check.what),
            &e,
        )),
    }
}

fn wanted(what: &UserCheckKind) -> String {
    match what {
        UserCheckKind::Sql { expected, .. } => expected.clone().unwrap_or_else(|| "true".to_owned()),
        UserCheckKind::Command(_) => "it ends with 0".to_owned(),
        UserCheckKind::Http(_) => "200".to_owned(),
    }
}

async fn sql(
    scratch: &mut dyn ScratchTarget,
    check: &UserCheck,
    database: Option<&str>,
    query: &str,
    expected: Option<&str>,
) -> Result<Check> {
    let answer = tokio::time::timeout(check.timeout, scratch.query(database, query))
        .await
        .map_err(|_| late(check.timeout))??;
    let wanted = expected.unwrap_or("true");
    Ok(match (answer, expected) {
        // A check that says nothing proves nothing.
        (None, _) => Check::failed(&check.name, Level::Own, wanted, "no value"),
        // As Postgres and SQLite write it.
        (Some(is), None | Some("true" | "t")) if ["t", "true", "1"].contains(&is.as_str()) => {
            Check::passed(&check.name, Level::Own, "true")
        }
        (Some(is), Some("false" | "f")) if ["f", "false"].contains(&is.as_str()) => {
            Check::passed(&check.name, Level::Own, "false")
        }
        (Some(is), _) => Check::compared(&check.name, Level::Own, wanted, is),
    })
}

fn late(limit: Duration) -> Error {
    Error::failed(format!("no answer within {}", humantime::format_duration(limit)))
        .hint("Set timeout in the check.")
}

async fn command(
    session: &Session,
    scratch: &mut dyn ScratchTarget,
    check: &UserCheck,
    words: &[String],
) -> Result<Check> {
    let (program, arguments) = words
        .split_first()
        .ok_or_else(|| Error::usage("the command names no program"))?;
    let mut environment = scratch.environment();
    environment.push(("LC_ALL".to_owned(), "C".to_owned()));
    let sandbox = scratch.sandbox();
    let order = Program {
        program: program.clone(),
        arguments: arguments.to_vec(),
        environment,
        directory: sandbox.home().display().to_string(),
        heard: true,
        memory: None,
    };
    let mut process = sandbox.start(order).await?;
    let how = tokio::select! {
        biased;
        () = session.cancel.cancelled() => return Err(Error::new(Kind::Interrupted, "interrupted")),
        how = process.ended() => how?,
        () = tokio::time::sleep(check.timeout) => {
            sandbox.signal(&process, rustix::process::Signal::KILL).await?;
            return Err(late(check.timeout));
        }
    };
    if how.success() {
        return Ok(Check::passed(&check.name, Level::Own, "it ends with 0"));
    }
    if let Some(why) = &how.not_started {
        let why = format!("{program} can not be started ({why}): it is looked for where the target is");
        return Ok(Check::could_not_run(&check.name, Some(Level::Own), why));
    }
    let said: String = how.said.chars().take(SAID_CHARS).collect();
    Ok(Check::failed(&check.name, Level::Own, "it ends with 0", how.text()).with_detail(said))
}

async fn http(scratch: &dyn ScratchTarget, check: &UserCheck, path: &str) -> Result<Check> {
    let Some((base, client)) = scratch.http()? else {
        return Ok(Check::could_not_run(
            &check.name,
            Some(Level::Own),
            "no application answers requests here",
        ));
    };
    let failed = |e: reqwest::Error| Error::failed("it does not answer").because(e.without_url());
    let request = client.get(format!("{base}{path}")).timeout(check.timeout);
    let status = request
        .send()
        .await
        .map_err(failed)?
        .status()
        .as_u16()
        .to_string();
    Ok(Check::compared(&check.name, Level::Own, "200", status))
}
