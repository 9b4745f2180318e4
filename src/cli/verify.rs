//! `backup verify [SOURCE] [--sample N%] [--content]`

use super::Surroundings;
use super::args::VerifyArgs;
use super::text::{count, size, table};
use crate::error::{Kind, Result};
use crate::jobs;
use crate::jobs::report::{Problem, VerifyReport};

/// Compares; exit 21 when something is damaged or missing, 1 when something is of a newer format.
pub async fn verify(surroundings: &Surroundings, args: VerifyArgs) -> Result<u8> {
    let session = surroundings.session_with_identity(args.repository.as_deref(), args.identity)?;
    // By hand everything is verified unless told otherwise; the policy's sample is for the schedule.
    let sample = args.sample;
    let report = surroundings
        .reading(jobs::verify::verify(
            &session,
            args.source.as_ref(),
            sample,
            args.content,
        ))
        .await?;
    surroundings.printer.bars().finish();
    surroundings.touch(&session);
    surroundings
        .printer
        .result(&report, || text(&report, sample, args.content))?;
    let kind = match (
        report.damaged.is_empty() && report.missing.is_empty(),
        report.unknown.is_empty(),
    ) {
        (false, _) => Kind::Damaged,
        (true, false) => Kind::Newer,
        (true, true) => return Ok(0),
    };
    Ok(kind.exit_code())
}

fn text(report: &VerifyReport, sample: Option<u8>, content: bool) -> String {
    let how = if content {
        "read, decrypted and decoded"
    } else {
        "read"
    };
    let part = match sample {
        Some(percent) if percent < 100 => format!(" (a sample of {percent} %)"),
        _ => String::new(),
    };
    let mut out = format!(
        "{} of {} {how}{part}\n",
        count(report.objects, "object"),
        size(report.bytes)
    );
    let problems = |what: &str, list: &[Problem]| {
        if list.is_empty() {
            return String::new();
        }
        let rows = list.iter().map(|p| [p.key.clone(), p.problem.clone()]);
        format!("\n{what}\n{}", table(["object", "problem"], rows))
    };
    out += &problems("DAMAGED", &report.damaged);
    out += &problems("MISSING", &report.missing);
    out += &problems("NOT KNOWN TO THIS VERSION", &report.unknown);
    if report.damaged.is_empty() && report.missing.is_empty() {
        out += "nothing is damaged, nothing is missing\n";
    }
    out
}
