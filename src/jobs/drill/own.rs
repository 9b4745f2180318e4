//! Level 5: the operator's own checks.

use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use super::super::Session;
use super::told;
use crate::drill::{Check, Level};
use crate::error::{Context as _, Error, Kind, Result};
use crate::policy::{UserCheck, UserCheckKind};
use crate::source::Context;
use crate::source::scratch::ScratchTarget;

/// A query or a request that takes longer has no answer.
const ANSWER: Duration = Duration::from_secs(300);
/// What is told of what a program said.
const SAID_CHARS: usize = 500;

/// Carries a check out. Only an interrupt is an error.
pub async fn carry_out(
    session: &Session,
    scratch: &mut dyn ScratchTarget,
    context: &Context,
    check: &UserCheck,
) -> Result<Check> {
    let done = match &check.what {
        UserCheckKind::Sql {
            database,
            query,
            expected,
        } => sql(scratch, check, database.as_deref(), query, expected.as_deref()).await,
        UserCheckKind::Command(words) => command(session, scratch, context, check, words).await,
        UserCheckKind::Http(path) => http(scratch, check, path).await,
    };
    match done {
        Ok(done) => Ok(done),
        Err(e) if e.kind() == Kind::Interrupted => Err(e),
        Err(e) => Ok(Check::failed(
            &check.name,
            Level::Own,
            wanted(&check.what),
            told(&e),
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
    let answer = tokio::time::timeout(ANSWER, scratch.query(database, query))
        .await
        .map_err(|_| Error::failed("the query has no answer after 5 minutes"))??;
    let wanted = expected.unwrap_or("true");
    Ok(match (answer, expected) {
        // A check that says nothing proves nothing.
        (None, _) => Check::failed(&check.name, Level::Own, wanted, "no value"),
        // As Postgres and SQLite write it.
        (Some(is), None) if ["t", "true", "1"].contains(&is.as_str()) => {
            Check::passed(&check.name, Level::Own, "true")
        }
        (Some(is), _) => Check::compared(&check.name, Level::Own, wanted, is),
    })
}

async fn command(
    session: &Session,
    scratch: &dyn ScratchTarget,
    context: &Context,
    check: &UserCheck,
    words: &[String],
) -> Result<Check> {
    let (program, arguments) = words
        .split_first()
        .ok_or_else(|| Error::usage("the command names no program"))?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .env("LC_ALL", "C")
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .envs(scratch.environment())
        .current_dir(&context.scratch)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let ended = tokio::select! {
        biased;
        () = session.cancel.cancelled() => return Err(Error::new(Kind::Interrupted, "interrupted")),
        ended = command.output() => ended.doing(|| format!("{program} can not be started"))?,
    };
    if ended.status.success() {
        return Ok(Check::passed(&check.name, Level::Own, "it ends with 0"));
    }
    let said = String::from_utf8_lossy(&[ended.stderr, ended.stdout].concat())
        .trim()
        .to_owned();
    let said: String = said.chars().take(SAID_CHARS).collect();
    let actual = format!("{}: {said}", ended.status);
    Ok(Check::failed(&check.name, Level::Own, "it ends with 0", actual))
}

async fn http(scratch: &dyn ScratchTarget, check: &UserCheck, path: &str) -> Result<Check> {
    let Some(base) = scratch.url() else {
        return Ok(Check::could_not_run(
            &check.name,
            Some(Level::Own),
            "no application answers requests here",
        ));
    };
    let failed = |e: reqwest::Error| Error::failed("it does not answer").because(e.without_url());
    let client = reqwest::Client::builder()
        .timeout(ANSWER)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .map_err(failed)?;
    let answer = client.get(format!("{base}{path}")).send().await.map_err(failed)?;
    let status = answer.status().as_u16().to_string();
    Ok(Check::compared(&check.name, Level::Own, "200", status))
}
