//! `backup run [SOURCE...]`

use serde::Serialize;

use super::Surroundings;
use super::args::RunArgs;
use super::target::unknown_source;
use super::text::{point_or, size, span, table};
use crate::error::{Error, Kind, Result};
use crate::jobs;
use crate::jobs::report::{Failure, RunReport, RunResult};
use crate::policy::Policy;
use crate::types::SourceName;

#[derive(Serialize)]
struct Runs {
    runs: Vec<RunReport>,
    /// The first failure, when nothing was done: where scripts look for one.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Failure>,
}

/// Takes recovery points.
pub async fn run(surroundings: &Surroundings, args: &RunArgs) -> Result<u8> {
    let session = surroundings.session()?;
    let sources = chosen(&session.policy, &args.sources)?;
    let runs = jobs::backup::run(&session, &sources).await;
    let none_done = runs.iter().all(|r| r.result != RunResult::Done);
    let report = Runs {
        error: runs.iter().filter(|_| none_done).find_map(|r| r.error.clone()),
        runs,
    };
    surroundings.printer.bars().finish();
    for run in &report.runs {
        for warning in &run.warnings {
            surroundings
                .printer
                .warning(&format!("{}: {warning}", run.source));
        }
        if let Some(failure) = &run.error {
            surroundings.printer.failure(run.source.as_str(), failure);
        }
    }
    surroundings.printer.result(&report, || text(&report.runs))?;
    Ok(exit_code(&report.runs))
}

/// The sources that are named, each once; without a name all of the policy.
fn chosen(policy: &Policy, names: &[String]) -> Result<Vec<SourceName>> {
    if policy.sources.is_empty() {
        return Err(Error::usage("the policy has no source").hint("Add a [source.NAME] to it."));
    }
    if names.is_empty() {
        return Ok(policy.sources.keys().cloned().collect());
    }
    let mut chosen: Vec<SourceName> = Vec::new();
    for name in names {
        let Some(source) = policy.sources.keys().find(|s| s.as_str() == name) else {
            return Err(unknown_source(name, policy.sources.keys()));
        };
        if !chosen.contains(source) {
            chosen.push(source.clone());
        }
    }
    Ok(chosen)
}

/// 0 all done · 3 some · 1, or what they have in common, none · 130 interrupted.
fn exit_code(runs: &[RunReport]) -> u8 {
    if runs.iter().any(|r| r.result == RunResult::Interrupted) {
        return Kind::Interrupted.exit_code();
    }
    let done = runs.iter().filter(|r| r.result == RunResult::Done).count();
    combined(
        done,
        runs.len(),
        runs.iter()
            .filter(|r| r.result != RunResult::Done)
            .map(|r| r.exit_code),
    )
}

/// The exit code of several sources.
pub fn combined(done: usize, all: usize, mut codes: impl Iterator<Item = u8>) -> u8 {
    if all > 0 && done == all {
        return 0;
    }
    if done > 0 {
        return Kind::Partial.exit_code();
    }
    let first = codes.next().unwrap_or_else(|| Kind::Failed.exit_code());
    // No run that did not end well is told as success.
    if first != 0 && codes.all(|code| code == first) {
        first
    } else {
        Kind::Failed.exit_code()
    }
}

fn text(runs: &[RunReport]) -> String {
    table(
        [
            "source", "result", "run", "at (UTC)", ">read", ">stored", ">reused", ">time",
        ],
        runs.iter().map(|run| {
            let result = match run.result {
                RunResult::Done => "done",
                RunResult::Failed => "FAILED",
                RunResult::Skipped => "skipped",
                RunResult::Interrupted => "interrupted",
            };
            [
                run.source.to_string(),
                result.to_owned(),
                run.run.map_or_else(|| "-".to_owned(), |r| r.to_string()),
                point_or(run.at, "-"),
                size(run.bytes_read),
                size(run.bytes_stored),
                size(run.bytes_reused),
                span(run.seconds),
            ]
        }),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_of_several_sources() {
        let of = |done, all, codes: &[u8]| combined(done, all, codes.iter().copied());
        assert_eq!(of(2, 2, &[]), 0);
        assert_eq!(of(1, 2, &[11]), 3);
        assert_eq!(of(0, 1, &[11]), 11);
        assert_eq!(of(0, 2, &[10, 10]), 10);
        assert_eq!(of(0, 2, &[10, 1]), 1);
        assert_eq!(of(0, 1, &[0]), 1);
        assert_eq!(of(0, 0, &[]), 1);
    }
}
