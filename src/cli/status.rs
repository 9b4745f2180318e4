//! `backup status`

use serde::Serialize;

use super::Surroundings;
use super::args::StatusArgs;
use super::text::{clean, point_or, span, table, utc};
use crate::daemon::http;
use crate::error::{Kind, Result};
use crate::jobs;
use crate::jobs::report::StatusReport;

#[derive(Serialize)]
struct Alive {
    alive: bool,
    said: String,
}

/// One sentence, then a line per source; exit 1 when an objective is missed or it can not know.
pub async fn status(surroundings: &Surroundings, args: &StatusArgs) -> Result<u8> {
    let session = surroundings.session()?;
    if args.alive {
        let said = http::ask_alive(session.policy.http.listen).await?;
        let alive = Alive { alive: true, said };
        surroundings
            .printer
            .result(&alive, || format!("{}\n", clean(&alive.said)))?;
        return Ok(0);
    }
    let report = surroundings.reading(jobs::status::status(&session)).await?;
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
                s.last_drill
                    .as_ref()
                    .map_or_else(|| "never".to_owned(), |d| utc(d.at)),
                s.problems.join("; "),
            ]
        }),
    );
    out
}
