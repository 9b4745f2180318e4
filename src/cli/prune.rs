//! `backup prune [--dry-run] [--undo RUN]`

use super::Surroundings;
use super::args::PruneArgs;
use super::text::{count, point, size, table, utc};
use crate::error::Result;
use crate::jobs;
use crate::jobs::report::{PruneReport, Undone};

/// Expires and sweeps, plans only, or undoes.
pub async fn prune(surroundings: &Surroundings, args: &PruneArgs) -> Result<u8> {
    let session = surroundings.session()?;
    if let Some(run) = args.undo {
        let back = jobs::prune::undo(&session, run).await?;
        surroundings.touch(&session);
        surroundings.printer.result(&back, || undone(&back))?;
        return Ok(0);
    }
    let report = jobs::prune::prune(&session, args.dry_run).await?;
    surroundings.printer.bars().finish();
    if !args.dry_run {
        surroundings.touch(&session);
    }
    for warning in &report.warnings {
        surroundings.printer.warning(warning);
    }
    surroundings.printer.result(&report, || text(&report))?;
    Ok(0)
}

fn undone(back: &Undone) -> String {
    format!(
        "{} of {} (at {}) is back\nThe next prune expires it again unless it is held: backup hold add {} --why \"...\"\n",
        back.run,
        back.source,
        point(back.at),
        back.run
    )
}

fn text(report: &PruneReport) -> String {
    let mut out = String::new();
    if report.dry_run {
        out += "a plan only: nothing was changed\n\n";
    }
    out += &format!("{} kept\n", count(report.keep.len() as u64, "recovery point"));
    if !report.keep.is_empty() {
        out += &table(
            ["source", "run", "at (UTC)", "why"],
            report.keep.iter().map(|k| {
                [
                    k.source.to_string(),
                    k.run.to_string(),
                    point(k.at),
                    k.reasons.join(", "),
                ]
            }),
        );
    }
    let tense = |plan: &'static str, done: &'static str| if report.dry_run { plan } else { done };
    let waiting = report.expire.iter().filter(|e| e.tombstoned).count() as u64;
    out += &format!(
        "\n{} {}",
        count(report.expire.len() as u64 - waiting, "recovery point"),
        tense("would be expired", "expired")
    );
    if waiting > 0 {
        out += &format!(", {waiting} before that and waiting to be removed");
    }
    out.push('\n');
    if !report.expire.is_empty() {
        out += &table(
            ["source", "run", "at (UTC)", "undo until (UTC)", ""],
            report.expire.iter().map(|e| {
                let waits = if e.tombstoned { "waits already" } else { "" };
                [
                    e.source.to_string(),
                    e.run.to_string(),
                    point(e.at),
                    utc(e.undo_until),
                    waits.to_owned(),
                ]
            }),
        );
    }
    out += &format!(
        "\n{} {}\n",
        count(report.sweep.len() as u64, "run"),
        tense("would be removed", "removed")
    );
    if !report.sweep.is_empty() {
        out += &table(
            ["source", "run", "why", ">objects", ">bytes"],
            report.sweep.iter().map(|s| {
                [
                    s.source.to_string(),
                    s.run.to_string(),
                    s.why.to_owned(),
                    s.objects.to_string(),
                    size(s.bytes),
                ]
            }),
        );
    }
    out
}
