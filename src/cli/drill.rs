//! `backup drill [NAME]`

use chrono_tz::Tz;

use super::Surroundings;
use super::args::DrillArgs;
use super::load;
use super::text::{clean, count, span, table};
use crate::drill::{Level, Outcome, RECOVERY_KEY};
use crate::error::{Kind, Result};
use crate::jobs;
use crate::jobs::Session;
use crate::jobs::evidence::Keeper;
use crate::jobs::report::{DrillReport, Failure, SourceDrill};

/// Carries drills out; exit 22 when one failed, 23 when one could not run, 1 when its evidence could be kept nowhere.
pub async fn drill(surroundings: &Surroundings, args: &DrillArgs) -> Result<u8> {
    let session = surroundings.session_with_identity(None, args.identity.clone())?;
    if args.clean {
        return clean_up(surroundings, &session);
    }
    let zone = session.policy.timezone;
    let asked = match args.name.as_deref() {
        Some(RECOVERY_KEY) => vec![(RECOVERY_KEY, None)],
        name => {
            let asked = jobs::drill::asked(&session, name)?.into_iter();
            asked.map(|(name, policy)| (name, Some(policy))).collect()
        }
    };
    // Before anything is restored: a drill that nobody could sign is none.
    let keeper = Keeper::new(&session)?;
    let mut reports = Vec::new();
    let mut code = None;
    for (name, policy) in asked {
        let drilled = match policy {
            Some(policy) => jobs::drill::drill(&session, name, policy).await,
            None => jobs::recovery_key::drill(&session).await,
        };
        let mut report = match drilled {
            Ok(report) => report,
            Err(e) if reports.is_empty() => return Err(e),
            // Those before it are shown all the same.
            Err(e) => {
                surroundings
                    .printer
                    .tell(&format!("error: drill {name}: {}", e.chain()));
                code = Some(e.kind().exit_code());
                break;
            }
        };
        if let Err(e) = keeper.keep(&session, &mut report).await {
            report.error = Some(Failure::from(&e));
            code = Some(Kind::Failed.exit_code());
        }
        surroundings.touch(&session);
        let interrupted = report.interrupted;
        reports.push(report);
        if interrupted {
            code = Some(Kind::Interrupted.exit_code());
            break;
        }
    }
    let result = show(surroundings, &reports, zone)?;
    Ok(code.unwrap_or(match result {
        Outcome::Passed => 0,
        Outcome::Failed => Kind::DrillFailed.exit_code(),
        Outcome::CouldNotRun => Kind::DrillCouldNotRun.exit_code(),
    }))
}

/// Removes the targets that are kept.
fn clean_up(surroundings: &Surroundings, session: &Session) -> Result<u8> {
    let removed = jobs::drill::clean(session)?;
    let document = serde_json::json!({"removed": removed});
    surroundings.printer.result(&document, || {
        let lines = removed.iter().map(|path| format!("removed {}\n", path.display()));
        let told: String = lines.collect();
        if told.is_empty() {
            "nothing is kept\n".to_owned()
        } else {
            told
        }
    })?;
    Ok(0)
}

/// Shows reports, and gives the worst of them.
fn show(surroundings: &Surroundings, reports: &[DrillReport], zone: Tz) -> Result<Outcome> {
    surroundings.printer.bars().finish();
    for report in reports {
        for warning in report
            .warnings
            .iter()
            .chain(report.sources.iter().flat_map(|s| &s.warnings))
        {
            surroundings.printer.warning(warning);
        }
        if let Some(failure) = &report.error {
            let drill = format!("drill {}", report.drill);
            surroundings.printer.failure(&drill, failure);
        }
    }
    let result = crate::drill::worst(reports.iter().map(|r| r.result));
    match reports {
        [one] => surroundings.printer.result(one, || text(one, zone))?,
        all => {
            let document = serde_json::json!({"drills": all, "result": result});
            let told = || all.iter().map(|r| text(r, zone)).collect::<Vec<_>>().join("\n");
            surroundings.printer.result(&document, told)?;
        }
    }
    Ok(result)
}

/// A level in words, for people: never "verified" alone.
pub fn level(level: Option<u8>) -> String {
    let known = level.and_then(|n| Level::ALL.into_iter().find(|l| l.number() == n));
    known.map_or_else(
        || "no level".to_owned(),
        |l| format!("level {} ({})", l.number(), l.text()),
    )
}

/// In words that are seen from afar where it is not well.
pub fn said(outcome: Outcome) -> String {
    match outcome {
        Outcome::Passed => outcome.words().to_owned(),
        _ => outcome.words().to_uppercase(),
    }
}

fn word(outcome: Outcome) -> String {
    match outcome {
        Outcome::Passed => "ok".to_owned(),
        _ => said(outcome),
    }
}

/// A drill for people.
pub fn text(report: &DrillReport, zone: Tz) -> String {
    let mut out = String::new();
    for source in &report.sources {
        out += &of_source(&report.drill, source, zone);
    }
    if let Some(evidence) = &report.evidence {
        out += &format!("evidence: {}\n", clean(evidence));
    }
    out
}

fn of_source(drill: &str, source: &SourceDrill, zone: Tz) -> String {
    let how = said(source.result);
    let reached = if drill == RECOVERY_KEY {
        let all = source.checks.iter().filter(|c| c.name.starts_with("generation "));
        let opens = all.clone().filter(|c| c.result == Outcome::Passed).count();
        format!("it opens {opens} of {}", count(all.count() as u64, "generation"))
    } else {
        level(source.level)
    };
    let mut out = format!("drill {drill}: {} {how}, {reached}\n", source.source);
    if let (Some(run), Some(at)) = (source.run, source.restored_to) {
        out += &format!("  point {run} of {}: {}\n", load::echo(at, zone), source.reason);
    }
    if let Some(seconds) = source.rto_seconds {
        out += &format!("  restored in {}\n", span(seconds));
    }
    if !source.target.is_empty() {
        out += &format!("  into {}\n", clean(&source.target));
    }
    let rows = source.checks.iter().map(|check| {
        let level = check.level.map_or_else(|| "-".to_owned(), |n| n.to_string());
        let is = if check.result == Outcome::Passed {
            check.actual.clone()
        } else {
            format!("{} (should be: {})", check.actual, check.expected)
        };
        [level, word(check.result), check.name.clone(), is]
    });
    out += &table(["level", "", "check", "is"], rows);
    for check in &source.checks {
        if let Some(detail) = &check.detail {
            let lines = clean(detail).replace('\n', "\n    ");
            out += &format!("  {}, in full:\n    {lines}\n", clean(&check.name));
        }
    }
    for left in &source.not_tested {
        out += &format!("  not looked at: {left}\n");
    }
    out += &format!("  target: {}\n", clean(&source.cleanup));
    out
}
