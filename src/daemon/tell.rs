//! Who is told of what: failures, recoveries, missed objectives. Grouped: a trouble is told when it begins, once a day while it
//! lasts, and when it ends.

use chrono::{DateTime, TimeDelta, Utc};

use super::task::{Ended, Task};
use crate::error::Result;
use crate::notify::{self, Notice};
use crate::policy::{Event, PlaceKind, Policy};
use crate::state::ledger::notices::{Owed, Trouble};
use crate::state::ledger::{Ledger, Outcome};

use crate::jobs::Session;

/// What lasts is told again after this.
const REMIND: TimeDelta = TimeDelta::days(1);

/// How a trouble goes on.
enum Turn {
    /// It is (still) there.
    There,
    /// It is not, or no more.
    Gone,
}

/// A slot ended: what of it is to be told.
///
/// # Errors
/// The ledger.
pub fn ended(
    ledger: &mut Ledger,
    policy: &Policy,
    task: &Task,
    slot: DateTime<Utc>,
    how: &Ended,
    now: DateTime<Utc>,
) -> Result<()> {
    let key = task.key();
    let turn = match how.outcome {
        Outcome::Failed => Turn::There,
        Outcome::Done => Turn::Gone,
        // Somebody stopped the daemon; the slot is run when it starts again.
        Outcome::Interrupted | Outcome::Running => return Ok(()),
    };
    let notice = Notice {
        slot: Some(slot),
        error: how.error.clone(),
        ..about(policy, &key, Event::Failure, now)
    };
    note(ledger, policy, &key, &turn, notice, now)
}

/// Whether a source misses its objective now.
///
/// # Errors
/// The ledger.
pub fn objective(
    ledger: &mut Ledger,
    policy: &Policy,
    task: &Task,
    age: Option<TimeDelta>,
    rpo: TimeDelta,
    now: DateTime<Utc>,
) -> Result<()> {
    let key = task.key();
    let turn = if age.is_some_and(|age| age > rpo) {
        Turn::There
    } else {
        Turn::Gone
    };
    let error = age.map(|age| {
        let minutes = |d: TimeDelta| d.num_minutes();
        format!(
            "the last point was done {} min ago; the objective is {} min",
            minutes(age),
            minutes(rpo)
        )
    });
    let notice = Notice {
        error,
        ..about(policy, &key, Event::Objective, now)
    };
    note(ledger, policy, &format!("objective {key}"), &turn, notice, now)
}

/// A notice that says no more yet than what it is about.
fn about(policy: &Policy, task: &str, event: Event, now: DateTime<Utc>) -> Notice {
    Notice {
        format: 1,
        event,
        environment: policy.environment.to_string(),
        task: task.to_owned(),
        at: now,
        slot: None,
        failures: 0,
        since: None,
        error: None,
    }
}

fn note(
    ledger: &mut Ledger,
    policy: &Policy,
    name: &str,
    turn: &Turn,
    mut notice: Notice,
    now: DateTime<Utc>,
) -> Result<()> {
    let before = ledger.trouble(name)?;
    let (trouble, tell) = match (turn, before) {
        (Turn::Gone, None) => return Ok(()),
        (Turn::Gone, Some(before)) => {
            notice.event = Event::Recovery;
            (notice.since, notice.failures, notice.error) = (Some(before.since), before.failures, None);
            (None, true)
        }
        (Turn::There, None) => {
            let trouble = Trouble {
                since: now,
                told: now,
                failures: 1,
            };
            (Some(trouble), true)
        }
        (Turn::There, Some(before)) => {
            let tell = now - before.told >= REMIND;
            // It is looked at every few seconds, and is one and the same.
            if !tell && notice.event == Event::Objective {
                return Ok(());
            }
            let trouble = Trouble {
                since: before.since,
                told: if tell { now } else { before.told },
                failures: before.failures.saturating_add(1),
            };
            (Some(trouble), tell)
        }
    };
    if let Some(trouble) = &trouble {
        (notice.since, notice.failures) = (Some(trouble.since), trouble.failures);
    }
    let mut owed = Vec::new();
    if tell {
        let body = serde_json::to_string(&notice)
            .map_err(|e| crate::error::Error::failed("a notice can not be written").because(e))?;
        for (to, places) in &policy.notify {
            if places.on.contains(&notice.event) {
                owed.extend(
                    places
                        .places
                        .keys()
                        .map(|kind| (to.clone(), kind.name().to_owned(), body.clone())),
                );
            }
        }
    }
    ledger.note(name, trouble.as_ref(), &owed, now)
}

/// Delivers a notice. `None`: the policy has no such place any more.
///
/// # Errors
/// It was not taken; a missing secret.
pub async fn deliver(session: &Session, owed: &Owed) -> Result<Option<()>> {
    let kind = PlaceKind::ALL.into_iter().find(|kind| kind.name() == owed.place);
    let told = session.policy.notify.get(&owed.to);
    let Some((kind, told, url)) = kind.and_then(|kind| Some((kind, told?, told?.places.get(&kind)?))) else {
        return Ok(None);
    };
    let url = session.secret(url)?;
    let secret = match &told.secret {
        Some(secret) if kind == PlaceKind::Webhook => Some(session.secret(secret)?),
        _ => None,
    };
    let Ok(notice) = serde_json::from_str::<Notice>(&owed.body) else {
        return Ok(None);
    };
    notify::deliver(kind, &url, secret.as_ref(), &notice)
        .await
        .map(Some)
}
