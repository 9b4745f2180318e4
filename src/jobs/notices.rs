//! Notices and pings to the places of a policy: with the secrets that they need.

use chrono::{DateTime, Utc};

use super::Session;
use crate::error::{Error, Result};
use crate::notify::ping::{Beat, Ping};
use crate::notify::{self, Notice, mail};
use crate::policy::{Event, NotifyPolicy, PlaceKind, Policy};
use crate::source::Finding;

/// What is told.
#[derive(Clone, Debug)]
pub enum Told {
    /// An event.
    Notice(Notice),
    /// A slot's beginning or end.
    Ping(Ping),
}

/// Tells a place; done when it says so.
///
/// # Errors
/// It was not taken; a missing secret.
pub async fn tell(session: &Session, to: &NotifyPolicy, kind: PlaceKind, told: &Told) -> Result<()> {
    let url = to
        .places
        .get(&kind)
        .ok_or_else(|| Error::usage(format!("the policy has no {} there", kind.name())))?;
    let url = session.secret(url)?;
    let ca_file = to.ca_file.as_deref();
    match told {
        Told::Ping(ping) => notify::deliver_ping(kind, &url, ping, ca_file).await,
        Told::Notice(notice) if kind == PlaceKind::Email => {
            let (to, from) = to
                .email
                .as_ref()
                .ok_or_else(|| Error::usage("the policy has no address there"))?;
            mail::send(&url, to, from.as_ref().unwrap_or(to), notice, ca_file).await
        }
        Told::Notice(notice) => {
            let secret = match &to.secret {
                Some(secret) if kind == PlaceKind::Webhook => Some(session.secret(secret)?),
                _ => None,
            };
            notify::deliver(kind, &url, secret.as_ref(), notice, ca_file).await
        }
    }
}

/// A notice that says no more yet than what it is about.
pub fn about(policy: &Policy, task: &str, event: Event, now: DateTime<Utc>) -> Notice {
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
        recovered: None,
        test: false,
    }
}

/// Places whose URLs can not be used, which no test has to be sent for.
pub fn unusable(session: &Session) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (name, to) in &session.policy.notify {
        for (kind, url) in &to.places {
            // One that is missing is told with the other secrets.
            let usable = session
                .secret(url)
                .map_or(Ok(()), |url| notify::check(*kind, &url));
            if let Err(e) = usable {
                findings.push(Finding::error(
                    &format!("notify.{name}.{}", kind.name()),
                    e.chain(),
                    e.hint_text().unwrap_or("See the message.").to_owned(),
                ));
            }
        }
    }
    findings
}

/// Sends a test to every place of the policy that is not [`unusable`] and whose secrets are there; a finding for each.
pub async fn try_all(session: &Session) -> Vec<Finding> {
    let now = session.world.clock.now();
    let mut findings = Vec::new();
    for (name, to) in &session.policy.notify {
        for (kind, url) in &to.places {
            // Those are told without a test.
            let usable = session.secret(url).and_then(|url| notify::check(*kind, &url));
            if usable.is_err() {
                continue;
            }
            let told = if kind.is_ping() {
                Told::Ping(Ping {
                    beat: Beat::Test,
                    task: "check".to_owned(),
                    slot: now,
                    text: "a test: nothing has happened".to_owned(),
                })
            } else {
                Told::Notice(Notice {
                    test: true,
                    ..about(&session.policy, "check", Event::Recovery, now)
                })
            };
            let what = format!("notify.{name}.{}", kind.name());
            findings.push(match tell(session, to, *kind, &told).await {
                Ok(()) => Finding::ok(&what, "took a test"),
                Err(e) => Finding::error(
                    &what,
                    e.chain(),
                    e.hint_text()
                        .unwrap_or("Is the URL the one that the place gives, and can this host reach it?")
                        .to_owned(),
                ),
            });
        }
    }
    findings
}
