//! Notices: what operators are told, in the shape that each place takes. Keeping them until they are delivered is the ledger's
//! and the daemon's work.

pub mod mail;
pub mod ping;

use std::path::Path;
use std::time::Duration;

use aws_lc_rs::hmac;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use self::ping::Ping;
use crate::error::{Error, Result};
use crate::policy::{Event, PlaceKind};
use crate::secret::SecretText;
use crate::types::hex;

/// A place that does not answer for so long has not taken the notice.
const PATIENCE: Duration = Duration::from_secs(10);
/// The header of the signature: `sha256=` and HMAC-SHA256 of the body, in hex.
pub const SIGNATURE: &str = "X-Lifeboat-Signature";

/// What somebody is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    /// Version of the document.
    pub format: u32,
    /// What happened.
    pub event: Event,
    /// Of which environment.
    pub environment: String,
    /// What it happened to: `run NAME`, `prune`, `verify`.
    pub task: String,
    /// When.
    pub at: DateTime<Utc>,
    /// The slot, if it is about one.
    pub slot: Option<DateTime<Utc>>,
    /// How many slots in a row were not done.
    pub failures: u32,
    /// Since when it is not well.
    pub since: Option<DateTime<Utc>>,
    /// The cause, in a sentence.
    pub error: Option<String>,
    /// A recovery: from what.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovered: Option<Event>,
    /// Nothing has happened: somebody tries whether notices come through.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub test: bool,
}

impl Notice {
    /// One line for people.
    pub fn subject(&self) -> String {
        if self.test {
            return format!("Lifeboat ({}): a test, nothing has happened", self.environment);
        }
        let what = match self.event {
            Event::Failure | Event::Drill if self.failures > 1 => {
                format!("failed {} times in a row", self.failures)
            }
            Event::Failure | Event::Drill => "failed".to_owned(),
            Event::Recovery => match self.recovered {
                Some(Event::Objective) => "meets its recovery point objective again",
                Some(Event::Quiet) => "is heard of again",
                Some(Event::Drill) => "passes again",
                _ => "is well again",
            }
            .to_owned(),
            Event::Objective => "misses its recovery point objective".to_owned(),
            Event::Quiet => "is quiet".to_owned(),
        };
        format!("Lifeboat ({}): {} {what}", self.environment, self.task)
    }
    /// The whole for people.
    pub fn text(&self) -> String {
        let mut text = self.subject();
        let stamp = |at: DateTime<Utc>| at.format("%Y-%m-%d %H:%M:%SZ").to_string();
        if let Some(slot) = self.slot {
            text += &format!("\nslot: {}", stamp(slot));
        }
        if let Some(since) = self.since {
            text += &format!("\nsince: {}", stamp(since));
        }
        if let Some(error) = &self.error {
            text += &format!("\ncause: {error}");
        }
        text
    }
}

/// The body that a place takes, and its type.
///
/// # Errors
/// None in practice.
pub fn body(kind: PlaceKind, notice: &Notice) -> Result<(&'static str, String)> {
    const JSON: &str = "application/json";
    let written = |value: &Value| {
        serde_json::to_string(value).map_err(|e| Error::failed("a notice can not be written").because(e))
    };
    Ok(match kind {
        PlaceKind::Webhook => {
            let value = serde_json::to_value(notice)
                .map_err(|e| Error::failed("a notice can not be written").because(e))?;
            (JSON, written(&value)?)
        }
        PlaceKind::Slack => (JSON, written(&json!({"text": notice.text()}))?),
        // Names of sources must not call anybody.
        PlaceKind::Discord => (
            JSON,
            written(&json!({"content": notice.text(), "allowed_mentions": {"parse": []}}))?,
        ),
        PlaceKind::Teams => {
            let card = json!({
                "type": "AdaptiveCard", "version": "1.4",
                "body": [{"type": "TextBlock", "wrap": true, "text": notice.text()}],
            });
            let attachment =
                json!({"contentType": "application/vnd.microsoft.card.adaptive", "content": card});
            (
                JSON,
                written(&json!({"type": "message", "attachments": [attachment]}))?,
            )
        }
        PlaceKind::Ntfy | PlaceKind::Ping | PlaceKind::Push | PlaceKind::Email => {
            ("text/plain; charset=utf-8", notice.text())
        }
    })
}

/// Delivers a notice; done when the place says so.
///
/// # Errors
/// It can not be reached, hangs, or does not take it. The message has no URL: it may be the secret.
pub async fn deliver(
    kind: PlaceKind,
    url: &SecretText,
    secret: Option<&SecretText>,
    notice: &Notice,
    ca_file: Option<&Path>,
) -> Result<()> {
    check(kind, url)?;
    let (content_type, body) = body(kind, notice)?;
    let mut request = client(kind, ca_file)?
        .post(url.expose().trim())
        .header("Content-Type", content_type);
    if let Some(secret) = secret {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret.expose().as_bytes());
        let tag = hmac::sign(&key, body.as_bytes());
        request = request.header(SIGNATURE, format!("sha256={}", hex(tag.as_ref())));
    }
    if kind == PlaceKind::Ntfy {
        request = request.header("Title", notice.subject());
    }
    taken(kind, request.body(body)).await
}

/// Whether a place's URL can be used at all.
///
/// # Errors
/// It can not; the message has nothing of it.
pub fn check(kind: PlaceKind, url: &SecretText) -> Result<()> {
    if kind == PlaceKind::Email {
        return mail::check(url);
    }
    let usable = url::Url::parse(url.expose().trim())
        .is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    if usable {
        return Ok(());
    }
    Err(
        Error::usage(format!("the URL of {} can not be read", kind.name()))
            .hint("It begins with https://, and is the one that the place gives."),
    )
}

/// Delivers a ping; done when the place says so, or is not told of such.
///
/// # Errors
/// As [`deliver`].
pub async fn deliver_ping(
    kind: PlaceKind,
    url: &SecretText,
    ping: &Ping,
    ca_file: Option<&Path>,
) -> Result<()> {
    check(kind, url)?;
    let Some(address) = ping.address(kind, url.expose()) else {
        return Ok(());
    };
    let request = match kind {
        PlaceKind::Push => client(kind, ca_file)?.get(address),
        _ => client(kind, ca_file)?.post(address).body(ping.text.clone()),
    };
    taken(kind, request).await
}

fn client(kind: PlaceKind, ca_file: Option<&Path>) -> Result<reqwest::Client> {
    let mut builder = reqwest::Client::builder()
        .timeout(PATIENCE)
        .redirect(reqwest::redirect::Policy::none());
    if let Some(path) = ca_file {
        let pem = trusted(path)?;
        let certificates = reqwest::Certificate::from_pem_bundle(&pem).map_err(|e| unusable(path, e))?;
        builder = builder.tls_certs_merge(certificates);
    }
    builder.build().map_err(|e| unreachable(kind, e))
}

/// The certificates of `notify.NAME.ca_file`.
fn trusted(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|e| unusable(path, e))
}

fn unusable(path: &Path, e: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::usage(format!("{} can not be used as ca_file", path.display()))
        .hint("It holds certificates in PEM.")
        .because(e)
}

fn unreachable(kind: PlaceKind, e: reqwest::Error) -> Error {
    Error::failed(format!("{} can not be reached", kind.name())).because(e.without_url())
}

async fn taken(kind: PlaceKind, request: reqwest::RequestBuilder) -> Result<()> {
    let answer = request.send().await.map_err(|e| unreachable(kind, e))?;
    if answer.status().is_success() {
        return Ok(());
    }
    let text = format!("{} answered {}", kind.name(), answer.status());
    // What it will not take by waiting (RFC 9110, section 15.5) is told apart from what it may take later.
    let later = [408, 425, 429].contains(&answer.status().as_u16());
    Err(if answer.status().is_server_error() || later {
        Error::failed(text)
    } else {
        Error::usage(text).hint("Is its URL right, and does it still take notices?")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    pub fn notice(event: Event) -> Notice {
        Notice {
            format: 1,
            event,
            environment: "production".into(),
            task: "run orders".into(),
            at: "2026-11-26T10:00:00Z".parse().unwrap(),
            slot: Some("2026-11-26T09:00:00Z".parse().unwrap()),
            failures: 3,
            since: None,
            recovered: None,
            test: false,
            error: Some("the server is \"down\" @everyone".into()),
        }
    }

    #[test]
    fn every_place_gets_its_shape() {
        let told = notice(Event::Failure);
        let parsed = |kind| serde_json::from_str::<Value>(&body(kind, &told).unwrap().1).unwrap();
        assert_eq!(parsed(PlaceKind::Webhook)["event"], "failure");
        assert_eq!(parsed(PlaceKind::Webhook)["format"], 1);
        assert_eq!(
            serde_json::from_value::<Notice>(parsed(PlaceKind::Webhook)).unwrap(),
            told
        );
        for (kind, text) in [
            (PlaceKind::Slack, parsed(PlaceKind::Slack)["text"].clone()),
            (PlaceKind::Discord, parsed(PlaceKind::Discord)["content"].clone()),
            (
                PlaceKind::Teams,
                parsed(PlaceKind::Teams)["attachments"][0]["content"]["body"][0]["text"].clone(),
            ),
        ] {
            assert_eq!(text, told.text(), "{}", kind.name());
        }
        assert_eq!(parsed(PlaceKind::Discord)["allowed_mentions"]["parse"], json!([]));
        assert!(told.text().starts_with(
            "Lifeboat (production): run orders failed 3 times in a row\nslot: 2026-11-26 09:00:00Z"
        ));
        assert_eq!(body(PlaceKind::Ntfy, &told).unwrap().1, told.text());
    }
}
