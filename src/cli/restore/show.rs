//! What a restore shows: the plan before, the result after.

use crate::cli::text::{clean, count, rfc3339, size, span};
use crate::cli::{Surroundings, load};
use crate::jobs::Session;
use crate::jobs::report::RestoreReport;
use crate::source::Part;

/// The plan, on standard error: what the operator gets, and the gap.
pub fn plan(surroundings: &Surroundings, session: &Session, plan: &RestoreReport) {
    let zone = session.policy.timezone;
    let printer = &surroundings.printer;
    let precision = match plan.precision {
        "transaction" => "to the transaction",
        "version" => "to the object version",
        _ => "the newest dump or snapshot at or before the instant",
    };
    printer.tell(&format!("{}: {} ({precision})", plan.source, plan.precision));
    printer.tell(&format!("  point  {}", plan.run));
    printer.tell(&format!("  as of  {}", load::echo(plan.restored_to, zone)));
    printer.tell(&format!(
        "  age    {}: what changed since is not in it",
        span(plan.age_seconds)
    ));
    if let Some(requested) = plan.requested.filter(|_| !plan.latest) {
        printer.tell(&format!(
            "  gap    {} before {}: what changed in between is not in it",
            span(plan.gap_seconds),
            rfc3339(requested)
        ));
    }
    printer.tell(&match &plan.drilled {
        Some(drilled) => format!(
            "  proven by the drill of {}, {}",
            rfc3339(drilled.at),
            crate::cli::drill::level(Some(drilled.level))
        ),
        None => "  proven by no drill".to_owned(),
    });
    printer.tell(&format!("  size   {}", size(plan.bytes)));
    for database in &plan.databases {
        printer.tell(&format!("  holds  {}", part(database)));
    }
    if let Some(target) = &plan.target {
        printer.tell(&format!("  to     {target}"));
    }
    for warning in &plan.warnings {
        printer.warning(&format!("{}: {warning}", plan.source));
    }
}

/// A database of a point.
pub fn part(part: &Part) -> String {
    format!(
        "database {:?}: {}, {}, {}, of {}",
        part.name,
        size(part.bytes),
        count(part.tables, "table"),
        count(part.rows, "row"),
        rfc3339(part.at)
    )
}

/// What went wrong, and what was not known when the plan was shown.
pub fn warnings(surroundings: &Surroundings, report: &RestoreReport, told: &[String]) {
    for warning in report.warnings.iter().filter(|w| !told.contains(w)) {
        surroundings
            .printer
            .warning(&format!("{}: {warning}", report.source));
    }
    if let Some(failure) = &report.error {
        surroundings.printer.failure(report.source.as_str(), failure);
    }
}

/// The result.
pub fn result(report: &RestoreReport) -> String {
    let at = rfc3339(report.restored_to);
    if report.dry_run {
        return format!(
            "{} would be restored to its state of {at} (point {}, {}); nothing was written\n",
            report.source,
            report.run,
            size(report.bytes)
        );
    }
    let target = report.target.as_deref().map(clean).unwrap_or_default();
    if !report.differences.is_empty() {
        return format!(
            "{} was NOT restored as it was recorded ({target})\n",
            report.source
        );
    }
    if report.error.is_some() {
        return format!("{} was NOT restored ({target}): see its error\n", report.source);
    }
    let mut text = format!(
        "{} is restored to its state of {at} in {target} (point {}, {}, {})\n",
        report.source,
        report.run,
        size(report.bytes),
        span(report.seconds)
    );
    for step in &report.next_steps {
        text += &format!("next: {}\n", clean(step));
    }
    text
}
