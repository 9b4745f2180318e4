//! Who is told of what: failures, recoveries, missed objectives. Grouped: a trouble is told when it begins, once a day while it
//! lasts, and when it ends.

use chrono::{DateTime, TimeDelta, Utc};

use super::task::{Ended, Task};
use crate::error::{Error, Result};
use crate::notify::Notice;
use crate::notify::ping::{Beat, Ping};
use crate::policy::{Event, PlaceKind, Policy};
use crate::state::ledger::notices::{Owed, Trouble};
use crate::state::ledger::{Ledger, Outcome};

use crate::jobs::Session;
use crate::jobs::notices::{self, Told, about};

/// The most pings that are kept for a switch that does not hear.
const PINGS_MOST: u32 = 200;
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
        ..about(policy, &key, event_of(task), now)
    };
    note_of(ledger, policy, (&key, how.what), &turn, notice, now)?;
    // One switch stands for everything: what is well does not hide what is not.
    // Its own objective is judged when the new point was looked up.
    let own = [format!("objective {key}"), format!("quiet {key}")];
    let amiss = ledger.troubles()?.into_iter().find(|name| !own.contains(name));
    let (beat, text) = match (&turn, amiss) {
        (Turn::Gone, None) => (Beat::Success, format!("{key} is done")),
        (Turn::Gone, Some(name)) => (Beat::Fail, format!("{key} is done, but not well: {name}")),
        (Turn::There, _) => (
            Beat::Fail,
            format!(
                "{key} failed: {}",
                how.error.as_deref().unwrap_or("no cause is known")
            ),
        ),
    };
    ping(ledger, policy, &key, slot, (beat, text), now)
}

/// What a task that is not well is told as.
fn event_of(task: &Task) -> Event {
    match task {
        Task::Drill(_) => Event::Drill,
        _ => Event::Failure,
    }
}

/// A slot begins: switches are told.
///
/// # Errors
/// The ledger.
pub fn began(
    ledger: &mut Ledger,
    policy: &Policy,
    task: &Task,
    slot: DateTime<Utc>,
    now: DateTime<Utc>,
) -> Result<()> {
    let key = task.key();
    let text = format!("{key} begins");
    ping(ledger, policy, &key, slot, (Beat::Start, text), now)
}

/// The names of what may be not well with a task.
pub fn names(task: &Task, objective: bool, quiet: bool) -> Vec<String> {
    let key = task.key();
    let mut names = vec![key.clone(), format!("lookup {key}")];
    names.extend(objective.then(|| format!("objective {key}")));
    names.extend(quiet.then(|| format!("quiet {key}")));
    names
}

/// Whether what is settled of a task could be looked up in the repository, without which none of its slots is run.
///
/// # Errors
/// The ledger.
pub fn looked_up(
    ledger: &mut Ledger,
    policy: &Policy,
    task: &Task,
    failed: Option<String>,
    now: DateTime<Utc>,
) -> Result<()> {
    let key = task.key();
    let turn = if failed.is_some() { Turn::There } else { Turn::Gone };
    let notice = Notice {
        error: failed.map(|e| format!("it waits, since what was done before can not be looked up: {e}")),
        ..about(policy, &key, Event::Failure, now)
    };
    note(ledger, policy, &format!("lookup {key}"), &turn, notice, now)
}

/// The trouble of a clock that was set back.
pub const CLOCK: &str = "clock";
/// The task of a notice that the daemon's memory was lost.
const MEMORY: &str = "memory";

/// Whether nothing starts until an instant, since the clock was set back: slots up to there were run already.
///
/// # Errors
/// The ledger.
pub fn clock(
    ledger: &mut Ledger,
    policy: &Policy,
    until: Option<DateTime<Utc>>,
    now: DateTime<Utc>,
) -> Result<()> {
    let turn = if until.is_some() { Turn::There } else { Turn::Gone };
    let error = until.map(|until| {
        format!(
            "it was set back by {} min: what was run already is not run again, so nothing starts before {}",
            (until - now).num_minutes(),
            until.format("%Y-%m-%d %H:%M:%SZ")
        )
    });
    let notice = Notice {
        error,
        ..about(policy, CLOCK, Event::Failure, now)
    };
    note(ledger, policy, CLOCK, &turn, notice, now)
}

/// What the daemon remembered was lost.
///
/// # Errors
/// The ledger.
pub fn memory_lost(ledger: &mut Ledger, policy: &Policy, error: &str, now: DateTime<Utc>) -> Result<()> {
    let notice = Notice {
        error: Some(error.to_owned()),
        ..about(policy, MEMORY, Event::Failure, now)
    };
    note(ledger, policy, MEMORY, &Turn::There, notice, now)?;
    // It is over as soon as it is told.
    ledger.forget_trouble(MEMORY)
}

/// Writes down a ping for every switch.
fn ping(
    ledger: &mut Ledger,
    policy: &Policy,
    key: &str,
    slot: DateTime<Utc>,
    (beat, text): (Beat, String),
    now: DateTime<Utc>,
) -> Result<()> {
    for (to, places) in &policy.notify {
        for kind in places.places.keys().filter(|kind| kind.is_ping()) {
            let ping = Ping {
                beat,
                task: key.to_owned(),
                slot,
                text: text.clone(),
            };
            let body = serde_json::to_string(&ping)
                .map_err(|e| Error::failed("a ping can not be written").because(e))?;
            ledger.owe(to, kind.name(), &body, PINGS_MOST, now)?;
        }
    }
    Ok(())
}

/// Whether a source misses its objective now: the age of its newest point, or since when it is known that there is none.
///
/// # Errors
/// The ledger.
pub fn objective(
    ledger: &mut Ledger,
    policy: &Policy,
    task: &Task,
    (age, never): (Option<TimeDelta>, bool),
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
        let (age, rpo) = (age.num_minutes(), rpo.num_minutes());
        if never {
            format!("there is no recovery point, {age} min after it was looked for first; the objective is {rpo} min")
        } else {
            format!("the newest recovery point is {age} min old; the objective is {rpo} min")
        }
    });
    let notice = Notice {
        error,
        ..about(policy, &key, Event::Objective, now)
    };
    note(ledger, policy, &format!("objective {key}"), &turn, notice, now)
}

/// Whether nothing is heard of a source: for how long no run of it ended, well or badly, and how long that may be. One that
/// is under way is not quiet: its timeouts, and the objective, tell of it.
///
/// # Errors
/// The ledger.
pub fn quiet(
    ledger: &mut Ledger,
    policy: &Policy,
    task: &Task,
    (silence, patience): (TimeDelta, TimeDelta),
    running: bool,
    now: DateTime<Utc>,
) -> Result<()> {
    let key = task.key();
    let turn = if silence > patience && !running {
        Turn::There
    } else if silence > patience {
        return Ok(());
    } else {
        Turn::Gone
    };
    let error = format!(
        "no run of it has ended, well or badly, for {} min; one was to be heard of every {} min",
        silence.num_minutes(),
        patience.num_minutes()
    );
    let notice = Notice {
        error: Some(error),
        ..about(policy, &key, Event::Quiet, now)
    };
    note(ledger, policy, &format!("quiet {key}"), &turn, notice, now)
}

fn note(
    ledger: &mut Ledger,
    policy: &Policy,
    name: &str,
    turn: &Turn,
    notice: Notice,
    now: DateTime<Utc>,
) -> Result<()> {
    note_of(ledger, policy, (name, ""), turn, notice, now)
}

/// As [`note`], of a trouble that may become another one while it lasts, which is told at once.
fn note_of(
    ledger: &mut Ledger,
    policy: &Policy,
    (name, what): (&str, &str),
    turn: &Turn,
    mut notice: Notice,
    now: DateTime<Utc>,
) -> Result<()> {
    let before = ledger.trouble(name)?;
    let (trouble, tell) = match (turn, before) {
        (Turn::Gone, None) => return Ok(()),
        (Turn::Gone, Some(before)) => {
            notice.recovered = Some(notice.event);
            notice.event = Event::Recovery;
            (notice.since, notice.failures, notice.error) = (Some(before.since), before.failures, None);
            (None, true)
        }
        (Turn::There, None) => {
            let trouble = Trouble {
                since: now,
                told: now,
                failures: 1,
                what: what.to_owned(),
            };
            (Some(trouble), true)
        }
        (Turn::There, Some(before)) => {
            // In the future: it was told before the clock was set back.
            let tell = now - before.told >= REMIND || before.told > now + REMIND || before.what != what;
            // It is looked at every few seconds, and is one and the same.
            if !tell && ![Event::Failure, Event::Drill].contains(&notice.event) {
                return Ok(());
            }
            let trouble = Trouble {
                since: before.since,
                told: if tell { now } else { before.told },
                failures: before.failures.saturating_add(1),
                what: what.to_owned(),
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
            .map_err(|e| Error::failed("a notice can not be written").because(e))?;
        for (to, places) in &policy.notify {
            if places.on.contains(&notice.event) {
                let kinds = places.places.keys().filter(|kind| !kind.is_ping());
                owed.extend(kinds.map(|kind| (to.clone(), kind.name().to_owned(), body.clone())));
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
    let found = kind
        .zip(told)
        .filter(|(kind, told)| told.places.contains_key(kind));
    let Some((kind, told)) = found else {
        return Ok(None);
    };
    // What an older version owed and this one can not read is owed to nobody.
    let body = &owed.body;
    let what = if kind.is_ping() {
        serde_json::from_str(body).ok().map(Told::Ping)
    } else {
        serde_json::from_str(body).ok().map(Told::Notice)
    };
    match what {
        Some(what) => notices::tell(session, told, kind, &what).await.map(Some),
        None => Ok(None),
    }
}
