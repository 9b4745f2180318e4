//! `backup status`

use serde::Serialize;

use super::Surroundings;
use super::args::StatusArgs;
use super::text::{clean, point_or, span, table, utc};
use crate::daemon::http;
use crate::drill::Outcome;
use crate::error::{Kind, Result};
use crate::jobs;
use crate::jobs::report::{SourceStatus, StatusReport};
use crate::types::about;

#[derive(Serialize)]
struct Alive {
    alive: bool,
    said: String,
}

/// One sentence, then a line per source; exit 1 when an objective is missed or it can not know.
pub async fn status(surroundings: &Surroundings, args: &StatusArgs) -> Result<u8> {
    if args.alive {
        // Also of a policy that has become bad: the daemon goes on with the old one, and is alive.
        let policy = surroundings.policy();
        let state = match &policy {
            Ok(policy) => policy.state_dir.clone(),
            Err(_) => {
                let path = crate::policy::find(surroundings.global.policy.as_deref(), &*surroundings.lookup);
                crate::policy::state_dir_of(path.ok().as_deref(), &*surroundings.lookup)
            }
        };
        let address = match (crate::state::daemon_address(&state), policy) {
            (Some(address), _) => address,
            (None, policy) => policy?.http.listen,
        };
        let said = http::ask_alive(address).await?;
        let alive = Alive { alive: true, said };
        surroundings
            .printer
            .result(&alive, || format!("{}\n", clean(&alive.said)))?;
        return Ok(0);
    }
    let session = surroundings.session()?;
    let report = surroundings.reading(jobs::status::status(&session)).await?;
    for warning in &report.warnings {
        surroundings.printer.warning(warning);
    }
    surroundings.printer.result(&report, || text(&report))?;
    Ok(if report.ok { 0 } else { Kind::Failed.exit_code() })
}

fn text(report: &StatusReport) -> String {
    let mut out = format!("{}\n", clean(&report.sentence));
    if report.sources.is_empty() {
        return out;
    }
    out.push('\n');
    let or_none = |seconds: Option<f64>| seconds.map_or_else(|| "-".to_owned(), span);
    out += &table(
        [
            "source",
            "newest (UTC)",
            ">age",
            ">objective",
            "last drill (UTC)",
            "problems",
        ],
        report.sources.iter().map(|s| {
            [
                s.source.to_string(),
                point_or(s.newest_at, "none"),
                or_none(s.rpo_seconds),
                or_none(s.rpo_objective_seconds),
                match (s.last_drill_at, s.last_drill_result) {
                    (Some(at), Some(Outcome::Passed)) => utc(at),
                    (Some(at), Some(how)) => format!("{} {}", utc(at), super::drill::said(how)),
                    _ => "never".to_owned(),
                },
                s.problems.join("; "),
            ]
        }),
    );
    let predicted: Vec<String> = report.sources.iter().filter_map(predicted).collect();
    if !predicted.is_empty() {
        out += &format!("\n{}\n", predicted.join("\n"));
    }
    out
}

/// How long a restore of a source takes; none: no drill measured one.
fn predicted(source: &SourceStatus) -> Option<String> {
    let by = source.predicted_by.as_ref()?;
    let objective = source
        .rto_objective_seconds
        .map_or_else(String::new, |rto| format!("; the objective is {}", span(rto)));
    Some(format!(
        "{}: a restore takes about {}, as measured by the drill of {}{objective}",
        source.source,
        about(source.predicted_restore_seconds?),
        utc(by.at)
    ))
}
