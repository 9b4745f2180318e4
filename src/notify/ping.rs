//! Pings: a switch outside that rings when nothing is heard any more. healthchecks.io's is told of a beginning, a success and a
//! failure, with an id for the run; Uptime Kuma's push is told of successes and failures.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::policy::PlaceKind;

/// What a switch is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Beat {
    /// A slot begins.
    Start,
    /// It is done, and nothing else is amiss.
    Success,
    /// It is not, or something else is amiss.
    Fail,
    /// Somebody tries whether the switch hears.
    Test,
}

/// A ping.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ping {
    /// What.
    pub beat: Beat,
    /// Of which task.
    pub task: String,
    /// The slot.
    pub slot: DateTime<Utc>,
    /// In words.
    pub text: String,
}

impl Ping {
    /// The id of the run, as healthchecks.io takes it: a UUID that is the same at the beginning and the end.
    fn id(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.task.as_bytes());
        hasher.update(b"\0");
        hasher.update(&self.slot.timestamp_millis().to_le_bytes());
        let mut bytes = [0u8; 16];
        hasher.finalize_xof().fill(&mut bytes);
        // RFC 9562, section 5.8: version 8, made by a rule of our own.
        bytes[6] = bytes[6] & 0x0f | 0x80;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        let hex = crate::types::hex(&bytes);
        format!(
            "{}-{}-{}-{}-{}",
            &hex[..8],
            &hex[8..12],
            &hex[12..16],
            &hex[16..20],
            &hex[20..]
        )
    }

    /// The URL to ask for, of that in the policy. `None`: the place is not told of this.
    pub fn address(&self, kind: PlaceKind, url: &str) -> Option<String> {
        let mut url = url::Url::parse(url.trim()).ok()?;
        if kind == PlaceKind::Push {
            let status = match self.beat {
                Beat::Start => return None,
                // It knows no beat that says nothing: a test counts as one.
                Beat::Success | Beat::Test => "up",
                Beat::Fail => "down",
            };
            // The page of Uptime Kuma gives a URL with these in it.
            let others: Vec<(String, String)> = url
                .query_pairs()
                .filter(|(k, _)| !["status", "msg", "ping"].contains(&k.as_ref()))
                .map(|(k, v)| (k.into_owned(), v.into_owned()))
                .collect();
            url.query_pairs_mut()
                .clear()
                .extend_pairs(others)
                .append_pair("status", status)
                .append_pair("msg", &self.text);
            return Some(url.into());
        }
        let end = match self.beat {
            Beat::Start => Some("start"),
            Beat::Success => None,
            Beat::Fail => Some("fail"),
            // Written down there, and nothing more.
            Beat::Test => Some("log"),
        };
        if let Some(end) = end {
            url.path_segments_mut().ok()?.pop_if_empty().push(end);
        }
        url.query_pairs_mut().append_pair("rid", &self.id());
        Some(url.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ping(beat: Beat) -> Ping {
        Ping {
            beat,
            task: "run orders".into(),
            slot: "2026-11-26T09:00:00Z".parse().unwrap(),
            text: "run orders failed & burns".into(),
        }
    }

    #[test]
    fn a_switch_is_told_of_beginning_success_and_failure_with_one_id() {
        let of = |beat| {
            let told = ping(beat)
                .address(PlaceKind::Ping, "https://hc.example.net/ping/1/\n")
                .unwrap();
            let (path, id) = told.split_once("?rid=").unwrap();
            (path.to_owned(), id.to_owned())
        };
        let (start, id) = of(Beat::Start);
        assert_eq!(start, "https://hc.example.net/ping/1/start");
        assert_eq!(
            of(Beat::Fail),
            ("https://hc.example.net/ping/1/fail".to_owned(), id.clone())
        );
        assert_eq!(
            of(Beat::Success),
            ("https://hc.example.net/ping/1/".to_owned(), id.clone())
        );
        let parts: Vec<usize> = id.split('-').map(str::len).collect();
        assert_eq!(parts, [8, 4, 4, 4, 12], "{id}");
        let other = Ping {
            task: "prune".into(),
            ..ping(Beat::Start)
        };
        assert_ne!(other.id(), id);
    }

    #[test]
    fn a_push_monitor_is_told_up_or_down() {
        let url = "https://kuma.example.net/api/push/abc?status=up&msg=OK&ping=&key=1";
        let of = |beat| ping(beat).address(PlaceKind::Push, url);
        assert_eq!(of(Beat::Start), None);
        assert_eq!(
            of(Beat::Fail).unwrap(),
            "https://kuma.example.net/api/push/abc?key=1&status=down&msg=run+orders+failed+%26+burns"
        );
        assert!(of(Beat::Success).unwrap().contains("status=up"));
    }
}
