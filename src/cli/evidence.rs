//! `backup evidence list|show|report|verify|accept`

use std::path::{Path, PathBuf};

use super::Surroundings;
use super::args::EvidenceAction;
use super::drill::level;
use super::text::{clean, count, table, utc};
use crate::error::{Context as _, Kind, Result};
use crate::jobs;
use crate::jobs::evidence::{Acceptance, Month};
use crate::jobs::report::{AcceptReport, EvidenceList, EvidenceReport, ListedEvidence, MonthReport};
use crate::repository::evidence::{Loss, Predicate, PublicKey, Statement};

/// Lists, shows, or verifies (exit 21 when something is wrong with the chain).
pub async fn evidence(surroundings: &Surroundings, action: EvidenceAction) -> Result<u8> {
    match action {
        EvidenceAction::List => {
            let session = surroundings.session()?;
            let listed = surroundings.reading(jobs::evidence::list(&session)).await?;
            warn(surroundings, listed.problems.iter().chain(&listed.warnings));
            surroundings.printer.result(&listed, || lines(&listed))?;
            Ok(0)
        }
        EvidenceAction::Show { id } => {
            let session = surroundings.session()?;
            let found = surroundings.reading(jobs::evidence::show(&session, id)).await?;
            surroundings
                .printer
                .result(&found.statement, || shown(&found.statement))?;
            Ok(0)
        }
        EvidenceAction::Report { month } => {
            let session = surroundings.session()?;
            let month = match month {
                Some(text) => Month::parse(&text)?,
                None => Month::of(session.world.clock.now()),
            };
            let report = surroundings
                .reading(jobs::evidence::month(&session, month))
                .await?;
            warn(surroundings, &report.warnings);
            surroundings.printer.result(&report, || of_month(&report))?;
            Ok(0)
        }
        EvidenceAction::Accept { ids, reason, dry_run } => {
            let session = surroundings.session()?;
            let asked = Acceptance {
                ids: &ids,
                reason: reason.as_deref(),
                by: &super::hold::who(&surroundings.lookup),
                dry_run,
            };
            let report = jobs::evidence::accept(&session, asked).await?;
            if !dry_run {
                surroundings.touch(&session);
            }
            warn(surroundings, report.problems.iter().chain(&report.warnings));
            surroundings.printer.result(&report, || accepted(&report))?;
            Ok(0)
        }
        EvidenceAction::Verify { key, newest, files } => {
            verify(surroundings, key.as_deref(), newest, &files).await
        }
    }
}

/// A line for each.
fn lines(listed: &EvidenceList) -> String {
    let rows = listed.evidence.iter().map(|e| {
        [
            e.id.clone(),
            e.number.to_string(),
            e.at.map_or_else(|| "-".to_owned(), utc),
            or_none(&e.drill),
            e.result.clone(),
            e.level.map_or_else(|| "-".to_owned(), |l| l.to_string()),
            e.sources.join(", "),
            if e.signed { "yes" } else { "NO" }.to_owned(),
            notes(e),
        ]
    });
    table(
        [
            "id", ">number", "at (UTC)", "drill", "result", ">level", "sources", "signed", "",
        ],
        rows,
    )
}

async fn verify(
    surroundings: &Surroundings,
    key: Option<&Path>,
    newest: Option<ulid::Ulid>,
    files: &[PathBuf],
) -> Result<u8> {
    let key = match key {
        Some(path) => {
            let text = std::fs::read_to_string(path).doing(|| format!("can not read {}", path.display()))?;
            Some(PublicKey::parse(&text)?)
        }
        None => None,
    };
    let report = if files.is_empty() {
        let session = surroundings.session()?;
        surroundings
            .reading(jobs::evidence::verify(&session, key.as_ref(), newest))
            .await?
    } else {
        jobs::evidence::verify_files(files, key.as_ref(), newest)?
    };
    warn(surroundings, &report.warnings);
    surroundings.printer.result(&report, || verified(&report))?;
    Ok(if report.ok { 0 } else { Kind::Damaged.exit_code() })
}

fn warn<'a>(surroundings: &Surroundings, all: impl IntoIterator<Item = &'a String>) {
    for warning in all {
        surroundings.printer.warning(warning);
    }
}

fn or_none(text: &str) -> String {
    if text.is_empty() { "-" } else { text }.to_owned()
}

/// What is special about it.
fn notes(e: &ListedEvidence) -> String {
    let mut notes = Vec::new();
    if !e.lost.is_empty() {
        notes.push(format!("lost: {}", e.lost.join(", ")));
    }
    if e.here {
        notes.push("on this host only".to_owned());
    }
    notes.join("; ")
}

/// What was accepted, or would be.
fn accepted(report: &AcceptReport) -> String {
    let Some(place) = &report.evidence else {
        let shown = shown(&report.statement);
        return format!("a plan only: nothing was written; the id is another one then\n\n{shown}");
    };
    let lost = report.lost.iter();
    let mut out: String = lost
        .map(|lost| format!("{} (number {}) is accepted as lost\n", lost.id, lost.number))
        .collect();
    out += &format!("evidence: {}\n", clean(place));
    out
}

/// A statement for people, in Markdown.
fn shown(statement: &Statement) -> String {
    let Predicate {
        id,
        number,
        lost,
        reason,
        report,
        ..
    } = &statement.predicate;
    if lost.is_empty() {
        return markdown(&id.to_string(), report);
    }
    let text = |value: &serde_json::Value| value.as_str().map_or_else(|| "-".to_owned(), cell);
    let mut out = format!(
        "# Loss of evidence, accepted\n\nEvidence {id} (number {number}), environment {}, Lifeboat {}, of {}, by {}.\n\n",
        text(&report["environment"]),
        text(&report["version"]),
        text(&report["at"]),
        text(&report["by"]),
    );
    out += &format!("Reason: {}\n\n", cell(reason.as_deref().unwrap_or("-")));
    out += "| lost evidence | number | SHA-256 |\n|---|---|---|\n";
    for lost in lost {
        out += &format!("| {} | {} | {} |\n", lost.id, lost.number, cell(&lost.sha256));
    }
    out + "\nWhat it proved of recovery points is not known any more.\n"
}

/// A month for people, in Markdown.
fn of_month(report: &MonthReport) -> String {
    let whole = whole(&report.lost);
    let chain = match (report.problems.as_slice(), report.signatures_checked) {
        ([], true) => format!("{whole}, every one signed by the policy's key"),
        ([], false) => format!("{whole}; no key is at hand to compare signatures with"),
        (some, _) => some.join("; "),
    };
    let mut out = format!(
        "# Drills of {}, environment {}\n\nEvidence: {}.\n\n",
        report.month,
        report.environment,
        cell(&chain)
    );
    for loss in &report.lost {
        out += &format!("- {}\n", cell(&loss.to_string()));
    }
    if !report.lost.is_empty() {
        out.push('\n');
    }
    out += "| source | passed | failed | could not run | slowest restore | objective | passed last (UTC) | points | of them proven | |\n";
    out += "|---|---|---|---|---|---|---|---|---|---|\n";
    let seconds = |of: Option<f64>| of.map_or_else(|| "-".to_owned(), super::text::span);
    for source in &report.sources {
        let note = match (source.in_no_drill, source.last_passed) {
            (true, _) => "in no drill",
            (false, None) => "never proven",
            _ => "",
        };
        out += &format!(
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {note} |\n",
            cell(&source.source),
            source.passed,
            source.failed,
            source.could_not_run,
            seconds(source.rto_seconds),
            seconds(source.rto_objective_seconds),
            source.last_passed.map_or_else(|| "-".to_owned(), utc),
            source.points,
            source.points_proven,
        );
    }
    out += "\n| evidence | begun (UTC) | drill | result | level | sources |\n|---|---|---|---|---|---|\n";
    for drill in &report.drills {
        out += &format!(
            "| {} | {} | {} | {} | {} | {} |\n",
            drill.id,
            drill.at.map_or_else(|| "-".to_owned(), utc),
            cell(&drill.drill),
            cell(&drill.result),
            drill.level.map_or_else(|| "-".to_owned(), |l| l.to_string()),
            cell(&drill.sources.join(", ")),
        );
    }
    out
}

fn verified(report: &EvidenceReport) -> String {
    let mut out = String::new();
    for problem in &report.problems {
        out += &format!("{}\n", clean(problem));
    }
    let signatures = if report.signatures_checked {
        "signatures and chain"
    } else {
        "the chain only: without --key nobody knows who made it"
    };
    let newest = report.newest.as_ref().map_or_else(String::new, |n| {
        let at = n.at.map_or_else(|| "-".to_owned(), utc);
        format!("; the newest is {} (number {}) of {at}", n.id, n.number)
    });
    if report.passed_over > 0 {
        out += &format!(
            "{} passed over: not named as evidence is\n",
            count(report.passed_over as u64, "file")
        );
    }
    out += &format!(
        "{}: {} looked at, {signatures}{newest}\n",
        if report.ok {
            whole(&report.lost)
        } else {
            "NOT WHOLE".to_owned()
        },
        report.evidence,
    );
    out
}

fn whole(lost: &[Loss]) -> String {
    match lost.len() {
        0 => "whole".to_owned(),
        1 => "whole but for 1 accepted loss".to_owned(),
        n => format!("whole but for {n} accepted losses"),
    }
}

/// A report for people, in Markdown.
fn markdown(id: &str, report: &serde_json::Value) -> String {
    let text = |value: &serde_json::Value| match value {
        serde_json::Value::Null => "-".to_owned(),
        serde_json::Value::String(text) => cell(text),
        other => cell(&other.to_string()),
    };
    let seconds =
        |value: &serde_json::Value| value.as_f64().map_or_else(|| "-".to_owned(), super::text::span);
    let mut out = format!(
        "# Drill {}: {}\n\nEvidence {id}, environment {}, Lifeboat {}, begun {}.\n",
        text(&report["drill"]),
        text(&report["result"]),
        text(&report["environment"]),
        text(&report["version"]),
        text(&report["at"]),
    );
    for source in report["sources"].as_array().into_iter().flatten() {
        let reached = level(source["level"].as_u64().and_then(|l| u8::try_from(l).ok()));
        out += &format!(
            "\n## {}: {}, {reached}\n\n",
            text(&source["source"]),
            text(&source["result"])
        );
        for (what, is) in [
            (
                "Point",
                format!("{} ({})", text(&source["run"]), text(&source["reason"])),
            ),
            ("Restored to", text(&source["restored_to"])),
            (
                "Recovery time",
                format!(
                    "{}, objective {}",
                    seconds(&source["rto_seconds"]),
                    seconds(&source["rto_objective_seconds"])
                ),
            ),
            (
                "Age of the newest point",
                format!(
                    "{}, objective {}",
                    seconds(&source["rpo_seconds"]),
                    seconds(&source["rpo_objective_seconds"])
                ),
            ),
            ("Restored into", text(&source["target"])),
            ("Opened by", text(&source["identity"])),
            ("Target afterwards", text(&source["cleanup"])),
        ] {
            out += &format!("- {what}: {is}\n");
        }
        out += "\n| level | check | result | expected | actual |\n|---|---|---|---|---|\n";
        for check in source["checks"].as_array().into_iter().flatten() {
            out += &format!(
                "| {} | {} | {} | {} | {} |\n",
                text(&check["level"]),
                text(&check["name"]),
                text(&check["result"]),
                text(&check["expected"]),
                text(&check["actual"]),
            );
        }
        let left: Vec<String> = source["not_tested"]
            .as_array()
            .into_iter()
            .flatten()
            .map(text)
            .collect();
        if !left.is_empty() {
            out += &format!("\nNot looked at: {}.\n", left.join("; "));
        }
    }
    out
}

/// Text that breaks no table.
fn cell(text: &str) -> String {
    clean(text).replace('\n', " ").replace('|', "\\|")
}
