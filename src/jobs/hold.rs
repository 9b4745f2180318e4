//! Holds: a point is kept whatever retention says.

use super::Session;
use super::report::{Held, HoldReport};
use super::session::Role;
use crate::error::{Error, Result};
use crate::repository::documents::{self, Hold};
use crate::repository::{Repository, layout};
use crate::types::RunId;

/// Keeps a point whatever retention says.
///
/// # Errors
/// No such point, one that is held already, or one that expired (its tombstone must be undone first).
pub async fn add(session: &Session, run: RunId, who: &str, why: &str) -> Result<HoldReport> {
    let repository = session.open_for_changing(Role::Writer).await?;
    let source = session.source_of_run(&repository, run).await?;
    if repository.tombstone(&source, run).await?.is_some() {
        return Err(Error::usage(format!("{run} has expired and waits to be swept"))
            .hint(format!("Bring it back first: backup prune --undo {run}")));
    }
    if let Some(hold) = repository.hold(&source, run).await? {
        return Err(Error::usage(format!(
            "{run} is held already, by {} since {}",
            hold.who, hold.at
        ))
        .hint(format!("`backup hold remove {run}` ends that hold.")));
    }
    let hold = Hold {
        place: repository.place(&source, run),
        at: session.world.clock.now(),
        who: who.to_owned(),
        why: why.to_owned(),
    };
    let key = layout::hold(&source, run);
    repository
        .put(&session.world, &key, documents::to_json(&hold)?.into())
        .await?;
    // Prune reads holds again before it deletes a commit; if it was faster, the hold came too late.
    if repository.commit(&source, run).await?.is_none() {
        return Err(Error::failed(format!("{run} was swept while it was being held")));
    }
    all(&repository).await
}

/// Ends a hold (prune credentials).
///
/// # Errors
/// Not held, or the credentials may not delete.
pub async fn remove(session: &Session, run: RunId) -> Result<HoldReport> {
    let role = if session.policy.prune.is_some() {
        Role::Pruner
    } else {
        Role::Writer
    };
    let repository = session.open_for_changing(role).await?;
    let source = session.source_of_run(&repository, run).await?;
    let key = layout::hold(&source, run);
    if repository.read(&key).await?.is_none() {
        return Err(Error::usage(format!("{run} is not held")).hint("`backup hold list` shows the holds."));
    }
    repository.store().delete(&key).await?;
    if repository.read(&key).await?.is_some() {
        return Err(
            Error::failed(format!("the hold of {run} is still there after it was deleted"))
                .hint("The store keeps versions and shows the first one: end the hold without --versions."),
        );
    }
    let mut report = all(&repository).await?;
    report.removed = Some(run);
    Ok(report)
}

/// All holds.
///
/// # Errors
/// The repository; a damaged hold.
pub async fn list(session: &Session) -> Result<HoldReport> {
    all(&session.open(Role::Writer).await?).await
}

/// The hold of one point, if it is held.
///
/// # Errors
/// No such point; the repository; a damaged hold.
pub async fn of_point(session: &Session, run: RunId) -> Result<HoldReport> {
    let repository = session.open(Role::Writer).await?;
    let mut report = all(&repository).await?;
    report.holds.retain(|held| held.run == run);
    if report.holds.is_empty() {
        session.source_of_run(&repository, run).await?;
    }
    Ok(report)
}

async fn all(repository: &Repository) -> Result<HoldReport> {
    let mut holds = Vec::new();
    for source in repository.sources().await? {
        for run in repository
            .runs_below(&layout::holds_prefix(&source))
            .await?
            .into_keys()
        {
            if let Some(hold) = repository.hold(&source, run).await? {
                holds.push(Held {
                    source: source.clone(),
                    run,
                    at: hold.at,
                    who: hold.who,
                    why: hold.why,
                });
            }
        }
    }
    Ok(HoldReport { holds, removed: None })
}
