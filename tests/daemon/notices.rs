//! Notices: one when a trouble begins, one a day while it lasts, one when it ends; kept until somebody takes them.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};

use aws_lc_rs::hmac;
use chrono::TimeDelta;
use lifeboat::daemon::Shown;
use serde_json::Value;

use crate::harness::write_file;
use crate::world::{Port, at};

/// Path, signature and body.
type Taken = (String, Option<String>, String);

/// A place that takes notices, or not.
struct Place {
    address: String,
    /// What it answers; 0: it hangs up.
    status: Arc<AtomicU16>,
    taken: Arc<Mutex<Vec<Taken>>>,
}

impl Place {
    fn new() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let place = Self {
            address: format!("http://{}", listener.local_addr().unwrap()),
            status: Arc::new(AtomicU16::new(200)),
            taken: Arc::default(),
        };
        let (status, taken) = (place.status.clone(), place.taken.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let (mut first, mut line, mut length, mut signature) =
                    (String::new(), String::new(), 0, None);
                // Somebody who is killed says nothing more.
                if reader.read_line(&mut first).unwrap_or(0) == 0 {
                    continue;
                }
                while reader.read_line(&mut line).unwrap_or(0) > 2 {
                    if let Some((name, value)) = line.trim().split_once(": ") {
                        match name.to_ascii_lowercase().as_str() {
                            "content-length" => length = value.parse().unwrap(),
                            "x-lifeboat-signature" => signature = Some(value.to_owned()),
                            _ => {}
                        }
                    }
                    line.clear();
                }
                let mut body = vec![0; length];
                if reader.read_exact(&mut body).is_err() {
                    continue;
                }
                let code = status.load(Ordering::SeqCst);
                if code == 200 {
                    let path = first.split(' ').nth(1).unwrap().to_owned();
                    let body = String::from_utf8(body).unwrap();
                    taken.lock().unwrap().push((path, signature, body));
                }
                if code > 0 {
                    // A place that hangs up early is its own business.
                    let _ = write!(
                        stream,
                        "HTTP/1.1 {code} X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                    );
                }
            }
        });
        place
    }
    fn taken(&self) -> Vec<Taken> {
        self.taken.lock().unwrap().clone()
    }
    fn events(&self) -> Vec<String> {
        let of = |body: &str| {
            serde_json::from_str::<Value>(body).unwrap()["event"]
                .as_str()
                .unwrap()
                .to_owned()
        };
        self.taken().iter().map(|(_, _, body)| of(body)).collect()
    }
}

/// A policy that tells a place.
fn tell(port: &Port, keys: &str) {
    let policy = std::fs::read_to_string(port.site.path("policy.toml")).unwrap();
    write_file(
        port.site.dir.path(),
        "policy.toml",
        format!("{policy}\n[notify.ops]\n{keys}\n"),
    );
}

fn secret(port: &Port, name: &str, text: &str) -> String {
    let path = write_file(port.site.dir.path(), name, text);
    format!("{{ file = \"{}\" }}", path.display())
}

fn all_told(shown: &Shown) -> bool {
    shown.owed == 0
        && shown
            .tasks
            .iter()
            .all(|t| t.known && t.running.is_none() && t.waiting.is_none())
}

async fn hours(port: &mut Port, count: u32) {
    for _ in 0..count {
        port.advance(TimeDelta::hours(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trouble_is_told_when_it_begins_once_a_day_and_when_it_ends() {
    let mut port = Port::new(221, "0 * * * *", "");
    let (webhook, slack, ping) = (Place::new(), Place::new(), Place::new());
    let keys = [
        format!(
            "webhook = {}",
            secret(&port, "webhook", &format!("{}/sesame", webhook.address))
        ),
        format!("secret = {}", secret(&port, "signing", "a key of ours")),
        format!("slack = {}", secret(&port, "slack", &slack.address)),
        format!(
            "ping = {}",
            secret(&port, "ping", &format!("{}/beat", ping.address))
        ),
    ];
    tell(&port, &keys.join("\n"));
    port.start();
    port.rest().await;
    hours(&mut port, 2).await;
    assert!(webhook.taken().is_empty(), "what is well is not told");
    let (here, away) = (port.site.path("repository"), port.site.path("away"));
    std::fs::rename(&here, &away).unwrap();
    hours(&mut port, 24).await;
    port.until(all_told).await;
    assert_eq!(webhook.events(), ["failure"], "once, not every hour");
    hours(&mut port, 2).await;
    port.until(all_told).await;
    assert_eq!(webhook.events(), ["failure", "failure"], "and once a day");
    std::fs::rename(&away, &here).unwrap();
    hours(&mut port, 3).await;
    port.until(all_told).await;
    assert_eq!(webhook.events(), ["failure", "failure", "recovery"]);
    port.stop().await;
    let taken = webhook.taken();
    for (path, signature, body) in &taken {
        assert_eq!(path, "/sesame");
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"a key of ours");
        let tag: String = hmac::sign(&key, body.as_bytes())
            .as_ref()
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        assert_eq!(signature.as_deref(), Some(format!("sha256={tag}").as_str()));
    }
    let first: Value = serde_json::from_str(&taken[0].2).unwrap();
    assert_eq!(
        (&first["task"], &first["slot"]),
        (&"run app".into(), &"2026-11-26T03:00:00Z".into())
    );
    assert!(first["error"].as_str().unwrap().contains("no such directory"));
    let last: Value = serde_json::from_str(&taken[2].2).unwrap();
    assert_eq!((&last["failures"], &last["since"]), (&26.into(), &first["at"]));
    assert!(slack.taken()[0].2.contains("run app failed"));
    let beats: Vec<String> = ping.taken().into_iter().map(|(path, _, _)| path).collect();
    assert_eq!(beats, ["/beat/fail", "/beat/fail", "/beat"]);
    // The URL may be the secret: it is in the policy's file of it and nowhere else.
    for name in ["daemon.db", "daemon.db-wal"] {
        let bytes = std::fs::read(port.site.path(&format!("state/{name}"))).unwrap_or_default();
        assert!(!bytes.windows(6).any(|w| w == b"sesame"), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_notice_is_kept_until_it_is_taken_also_over_a_crash() {
    let mut port = Port::new(222, "0 * * * *", "");
    let place = Place::new();
    tell(
        &port,
        &format!(
            "webhook = {}\non = [\"failure\"]",
            secret(&port, "webhook", &place.address)
        ),
    );
    std::fs::rename(port.site.path("repository"), port.site.path("away")).unwrap();
    port.start();
    port.until(|shown| !shown.tasks.is_empty()).await;
    std::fs::rename(port.site.path("away"), port.site.path("repository")).unwrap();
    port.clock.advance(TimeDelta::minutes(2));
    port.rest_in_time().await;
    std::fs::rename(port.site.path("repository"), port.site.path("away")).unwrap();
    for (status, hour) in [(500, 1), (0, 2), (302, 3)] {
        place.status.store(status, Ordering::SeqCst);
        port.advance(TimeDelta::hours(1)).await;
        port.until(|shown| shown.owed == 1).await;
        assert!(place.taken().is_empty(), "{status} at {hour}");
        port.kill().await;
        port.start();
        port.rest_in_time().await;
    }
    place.status.store(200, Ordering::SeqCst);
    port.advance(TimeDelta::hours(2)).await;
    port.until(all_told).await;
    assert_eq!(place.events(), ["failure"], "once");
    let told: Value = serde_json::from_str(&place.taken()[0].2).unwrap();
    assert_eq!(
        told["slot"], "2026-11-26T01:00:00Z",
        "the first one, when it happened"
    );
    // What is not asked for is not told.
    std::fs::rename(port.site.path("away"), port.site.path("repository")).unwrap();
    port.advance(TimeDelta::hours(1)).await;
    port.until(all_told).await;
    assert_eq!(place.events(), ["failure"]);
    port.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missed_objective_is_told_once_and_when_it_is_met_again() {
    // A point a day, and an objective of two hours: missed from two hours behind each on.
    let mut port = Port::new(223, "0 3 * * *", "objective = { rpo = \"2h\" }");
    let place = Place::new();
    tell(
        &port,
        &format!(
            "webhook = {}\non = [\"objective\", \"recovery\"]",
            secret(&port, "webhook", &place.address)
        ),
    );
    port.start();
    port.rest().await;
    hours(&mut port, 4).await;
    assert_eq!(port.slots(), [at("2026-11-26T03:00:00Z")]);
    assert!(place.taken().is_empty());
    hours(&mut port, 6).await;
    port.until(all_told).await;
    assert_eq!(place.events(), ["objective"]);
    hours(&mut port, 17).await;
    port.until(all_told).await;
    assert_eq!(place.events(), ["objective", "recovery"]);
    port.stop().await;
}
