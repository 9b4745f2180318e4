//! How the last run of a source ended: kept by runs, told by `status`.

use chrono::{DateTime, Utc};

use super::Session;
use super::report::RunReport;
use crate::error::{Kind, Result};
use crate::policy::Policy;
use crate::state::last::{Ending, LastRun, Runs, UnderWay};
use crate::types::SourceName;

/// The runs of a source, by the repository's URL: it is known also when the repository can not be reached.
pub fn runs(policy: &Policy, source: &SourceName) -> Runs {
    let digest = blake3::hash(policy.repository.place().as_bytes()).to_hex();
    Runs::new(&policy.state_dir, &digest[..16], source)
}

/// A run begins; none: it can not be kept, and the report says so, or another one goes on.
pub(super) fn begin(session: &Session, source: &SourceName, warnings: &mut Vec<String>) -> Option<UnderWay> {
    match runs(&session.policy, source).begin(session.world.clock.now()) {
        Ok(run) => run,
        Err(e) => {
            warnings.push(not_kept(&e.chain()));
            None
        }
    }
}

/// A run has ended.
pub(super) fn end(session: &Session, run: Option<UnderWay>, report: &mut RunReport) {
    use super::report::RunResult;
    let Some(under_way) = run else { return };
    let error = report.error.as_ref().map(|e| e.message.clone());
    let now = session.world.clock.now();
    let kept = match report.result {
        _ if report.exit_code == Kind::Busy.exit_code() => under_way.forget(),
        RunResult::Skipped => under_way.forget(),
        RunResult::Done => under_way.end(now, Ending::Done, report.run, None),
        RunResult::Failed => under_way.end(now, Ending::Failed, None, error),
        RunResult::Interrupted => under_way.end(now, Ending::Interrupted, None, error),
    };
    if let Err(e) = kept {
        report.warnings.push(not_kept(&e.chain()));
    }
}

fn not_kept(why: &str) -> String {
    format!("how this run ended is not kept for `backup status`: {why}")
}

/// The last run of a source.
///
/// # Errors
/// The state directory can not be read.
pub(super) fn last(session: &Session, source: &SourceName) -> Result<Option<LastRun>> {
    runs(&session.policy, source).last()
}

/// What is wrong with the last run, in a sentence; a point that was finished later makes good for it.
pub(super) fn problem(last: &LastRun, newest_finished: Option<DateTime<Utc>>) -> Option<String> {
    let at = last.ended.unwrap_or(last.began);
    if newest_finished.is_some_and(|finished| finished > at) {
        return None;
    }
    let how = match last.result {
        Ending::Done => return None,
        Ending::Failed => "failed",
        Ending::Interrupted => "was interrupted",
    };
    let which = match last.failures {
        0 | 1 => format!("the newest run {how}"),
        n => format!("none of the last {n} runs was done; the newest one {how}"),
    };
    let when = at.format("%Y-%m-%d %H:%M:%SZ");
    Some(match &last.error {
        Some(error) => format!("{which} ({when}): {error}"),
        None => format!("{which} ({when})"),
    })
}
