//! `backup check`

use super::Surroundings;
use super::args::CheckArgs;
use super::init::abilities;
use super::load;
use super::text::{clean, table};
use crate::error::Result;
use crate::jobs;
use crate::jobs::report::CheckReport;
use crate::source::{Finding, Level};
use chrono::{DateTime, Utc};
use chrono_tz::Tz;

/// Tries everything; exit 1 when a run would fail, 2 when policy or secrets are the cause.
pub async fn check(surroundings: &Surroundings, args: &CheckArgs) -> Result<u8> {
    let session = surroundings.session()?;
    let report = surroundings
        .reading(jobs::check::check(&session, args.notify))
        .await?;
    let zone = session.policy.timezone;
    let directory = session.policy.repository.is_directory();
    surroundings
        .printer
        .result(&report, || text(&report, zone, directory))?;
    Ok(report.exit_code)
}

fn text(report: &CheckReport, zone: Tz, directory: bool) -> String {
    let mut out = findings(&report.findings);
    if let Some(found) = &report.abilities {
        out += &format!("\n{}", abilities(found, directory));
    }
    for source in &report.sources {
        out += &format!("\nsource {} ({})\n", source.source, clean(&source.kind));
        out += &findings(&source.findings);
        if source.next_runs.is_empty() {
            out += "  no next run: by hand only\n";
        }
        out += &next_runs(&source.next_runs, zone);
    }
    for task in &report.tasks {
        out += &format!("\n{}\n", task.task);
        out += &next_runs(&task.next_runs, zone);
    }
    let all = || {
        report
            .findings
            .iter()
            .chain(report.sources.iter().flat_map(|s| &s.findings))
    };
    let count = |level| all().filter(|f| f.level == level).count();
    out += &format!(
        "\n{}: {} checked, {} to know, {} wrong\n",
        if report.ok { "ready" } else { "NOT READY" },
        all().count(),
        count(Level::Warning),
        count(Level::Error)
    );
    out
}

fn next_runs(next: &[DateTime<Utc>], zone: Tz) -> String {
    let mut out = String::new();
    for (n, at) in next.iter().enumerate() {
        let head = if n == 0 { "next runs" } else { "         " };
        out += &format!("  {head}  {}\n", load::echo(*at, zone));
    }
    out
}

fn findings(findings: &[Finding]) -> String {
    if findings.is_empty() {
        return String::new();
    }
    let mut rows = Vec::new();
    for finding in findings {
        let level = match finding.level {
            Level::Ok => "ok",
            Level::Warning => "warning",
            Level::Error => "ERROR",
        };
        rows.push([level.to_owned(), finding.name.clone(), finding.text.clone()]);
        if let Some(hint) = &finding.hint {
            rows.push([String::new(), String::new(), hint.clone()]);
        }
    }
    table(["", "", ""], rows).trim_start_matches('\n').to_owned()
}
