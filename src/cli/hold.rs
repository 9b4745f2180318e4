//! `backup hold add|remove|list`

use super::Surroundings;
use super::args::HoldAction;
use super::text::{table, utc};
use crate::error::{Error, Result};
use crate::jobs;
use crate::jobs::report::HoldReport;
use crate::jobs::session::Lookup;

/// Adds, ends or shows holds.
pub async fn hold(surroundings: &Surroundings, action: HoldAction) -> Result<u8> {
    let session = surroundings.session()?;
    let changes = !matches!(action, HoldAction::List { .. });
    let report = match action {
        HoldAction::Add { run, why } => {
            if why.trim().is_empty() {
                return Err(
                    Error::usage("--why is empty").hint("Say who will need it: the hold outlives memory.")
                );
            }
            let who = who(&surroundings.lookup);
            session
                .interruptible(jobs::hold::add(&session, run, &who, why.trim()))
                .await?
        }
        HoldAction::Remove { run } => session.interruptible(jobs::hold::remove(&session, run)).await?,
        HoldAction::List { run: None } => surroundings.reading(jobs::hold::list(&session)).await?,
        HoldAction::List { run: Some(run) } => {
            surroundings.reading(jobs::hold::of_point(&session, run)).await?
        }
    };
    if changes {
        surroundings.touch(&session);
    }
    surroundings.printer.result(&report, || match report.removed {
        Some(run) => format!("{run} is held no more; the rest:\n{}", text(&report)),
        None => text(&report),
    })?;
    Ok(0)
}

/// Who is at the keyboard: the person behind `sudo`, and the host.
pub fn who(lookup: &Lookup) -> String {
    let user = ["SUDO_USER", "USER", "LOGNAME"]
        .into_iter()
        .find_map(|name| lookup(name).filter(|user| !user.is_empty()))
        .unwrap_or_else(|| format!("uid {}", rustix::process::getuid().as_raw()));
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname")
        .ok()
        .or_else(|| lookup("HOSTNAME"))
        .map(|host| host.trim().to_owned())
        .filter(|host| !host.is_empty());
    match host {
        Some(host) => format!("{user}@{host}"),
        None => user,
    }
}

fn text(report: &HoldReport) -> String {
    if report.holds.is_empty() {
        return "no holds\n".to_owned();
    }
    table(
        ["source", "run", "since (UTC)", "who", "why"],
        report.holds.iter().map(|held| {
            [
                held.source.to_string(),
                held.run.to_string(),
                utc(held.at),
                held.who.clone(),
                held.why.clone(),
            ]
        }),
    )
}
