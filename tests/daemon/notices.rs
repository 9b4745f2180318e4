//! Notices: one when a trouble begins, one a day while it lasts, one when it ends; kept until somebody takes them.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};

use aws_lc_rs::hmac;
use chrono::{DurationRound as _, TimeDelta};
use lifeboat::clock::{Clock as _, SystemClock};
use lifeboat::daemon::Shown;
use serde_json::Value;

use crate::clock::Hands;
use crate::harness::pocketbase::PocketBase;
use crate::harness::write_file;
use crate::world::{Port, at, rests};

/// Path, signature and body.
pub type Taken = (String, Option<String>, String);

/// A place that takes notices, or not.
pub struct Place {
    pub address: String,
    /// What it answers; 0: it hangs up.
    pub status: Arc<AtomicU16>,
    taken: Arc<Mutex<Vec<Taken>>>,
}

impl Place {
    /// The webhook of a policy that tells nothing else.
    pub fn webhook(port: &Port) -> Self {
        let place = Self::new();
        let url = secret(port, "webhook", &place.address);
        tell(port, &format!("webhook = {url}"));
        place
    }

    pub fn new() -> Self {
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
    pub fn taken(&self) -> Vec<Taken> {
        self.taken.lock().unwrap().clone()
    }
    pub fn events(&self) -> Vec<String> {
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
pub fn tell(port: &Port, keys: &str) {
    let policy = std::fs::read_to_string(port.site.path("policy.toml")).unwrap();
    write_file(
        port.site.dir.path(),
        "policy.toml",
        format!("{policy}\n[notify.ops]\n{keys}\n"),
    );
}

pub fn secret(port: &Port, name: &str, text: &str) -> String {
    let path = write_file(port.site.dir.path(), name, text);
    format!("{{ file = \"{}\" }}", path.display())
}

pub fn all_told(shown: &Shown) -> bool {
    shown.owed == 0 && rests(shown)
}

pub async fn hours(port: &mut Port, count: u32) {
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
    let last = ping.taken().pop().unwrap();
    assert!(last.0.starts_with("/beat?rid="), "{last:?}");
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
    port.told_in_time().await;
    // That a first look came too early may have been told.
    let before = place.taken().len();
    std::fs::rename(port.site.path("repository"), port.site.path("away")).unwrap();
    for (status, hour) in [(500, 1), (0, 2), (302, 3)] {
        place.status.store(status, Ordering::SeqCst);
        port.advance(TimeDelta::hours(1)).await;
        port.until(|shown| shown.owed == 1).await;
        assert_eq!(place.taken().len(), before, "{status} at {hour}");
        port.kill().await;
        port.start();
        port.rest_in_time().await;
    }
    place.status.store(200, Ordering::SeqCst);
    port.advance(TimeDelta::hours(2)).await;
    port.told_in_time().await;
    assert_eq!(place.events()[before..], ["failure"], "once");
    let told: Value = serde_json::from_str(&place.taken()[before].2).unwrap();
    assert_eq!(
        told["slot"], "2026-11-26T01:00:00Z",
        "the first one, when it happened"
    );
    // What is not asked for is not told.
    std::fs::rename(port.site.path("away"), port.site.path("repository")).unwrap();
    port.advance(TimeDelta::hours(1)).await;
    port.told_in_time().await;
    assert_eq!(place.events()[before..], ["failure"]);
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
    port.until(all_told).await;
    // Nor is there a point in the first hours.
    assert_eq!(place.events(), ["objective", "recovery"]);
    let first = &place.taken()[0].2;
    assert!(first.contains("there is no recovery point"), "{first}");
    hours(&mut port, 6).await;
    port.until(all_told).await;
    assert_eq!(place.events(), ["objective", "recovery", "objective"]);
    hours(&mut port, 17).await;
    port.until(all_told).await;
    assert_eq!(place.events(), ["objective", "recovery", "objective", "recovery"]);
    port.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_says_nothing_is_told() {
    // Slots come every ten minutes, and none may be run for most of the day.
    let mut port = Port::new(
        225,
        "*/10 * * * *",
        "catch_up = \"skip\"\nblackout = [\"02:00-20:00\"]",
    );
    let place = Place::new();
    let webhook = secret(&port, "webhook", &place.address);
    tell(
        &port,
        &format!("webhook = {webhook}\non = [\"quiet\", \"recovery\"]"),
    );
    port.start();
    port.rest().await;
    hours(&mut port, 2).await;
    port.until(all_told).await;
    assert!(place.taken().is_empty());
    hours(&mut port, 5).await;
    port.until(all_told).await;
    assert_eq!(place.events(), ["quiet"]);
    let told: Value = serde_json::from_str(&place.taken()[0].2).unwrap();
    assert!(
        told["error"].as_str().unwrap().contains("well or badly"),
        "{told}"
    );
    hours(&mut port, 14).await;
    port.until(all_told).await;
    assert_eq!(place.events(), ["quiet", "recovery"]);
    port.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_is_down_for_a_night_is_told_once_and_runs_again_in_the_morning() {
    const NIGHT: u32 = 8;
    let mut port = Port::new(226, "0 * * * *", "");
    let place = Place::new();
    let webhook = secret(&port, "webhook", &place.address);
    tell(
        &port,
        &format!("webhook = {webhook}\non = [\"failure\", \"recovery\"]"),
    );
    port.start();
    port.rest().await;
    hours(&mut port, 1).await;
    let before = port.slots().len();
    let (data, away) = (port.site.source().join("data.db"), port.site.path("away.db"));
    std::fs::rename(&data, &away).unwrap();
    for _ in 0..NIGHT {
        port.clock.advance(TimeDelta::minutes(50));
        // Each slot is tried three times, with waits between the tries.
        while tokio::time::timeout(std::time::Duration::from_millis(200), port.rest())
            .await
            .is_err()
        {
            port.clock.advance(TimeDelta::seconds(31));
        }
        port.clock.advance(TimeDelta::minutes(10));
        while tokio::time::timeout(std::time::Duration::from_millis(200), port.rest())
            .await
            .is_err()
        {
            port.clock.advance(TimeDelta::seconds(31));
        }
    }
    port.until(all_told).await;
    assert_eq!(place.events(), ["failure"], "once in a night");
    let shown = port.rest().await;
    let failed = shown.tasks[0].totals.failed;
    assert!((NIGHT - 1..=NIGHT + 1).contains(&failed), "{failed}");
    assert_eq!(port.slots().len(), before);
    std::fs::rename(&away, &data).unwrap();
    hours(&mut port, 1).await;
    port.until(all_told).await;
    assert_eq!(place.events(), ["failure", "recovery"]);
    assert_eq!(port.slots().len(), before + 1);
    port.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_can_not_look_up_what_was_done_is_told() {
    let mut port = Port::new(230, "0 * * * *", "");
    let place = Place::webhook(&port);
    std::fs::rename(port.site.path("repository"), port.site.path("away")).unwrap();
    port.start();
    port.until(|_| !place.taken().is_empty()).await;
    let told = &place.taken()[0].2;
    assert!(
        told.contains("can not be looked up") && told.contains("run app"),
        "{told}"
    );
    std::fs::rename(port.site.path("away"), port.site.path("repository")).unwrap();
    port.clock.advance(TimeDelta::minutes(2));
    port.rest_in_time().await;
    port.until(all_told).await;
    assert_eq!(place.events(), ["failure", "recovery"]);
    // What the policy has no more is not minded any more.
    let policy = std::fs::read_to_string(port.site.path("policy.toml")).unwrap();
    write_file(
        port.site.dir.path(),
        "policy.toml",
        policy.replace("schedule =", "objective = { rpo = \"1m\" }\nschedule ="),
    );
    port.ask_to_reload();
    port.until(|shown| shown.reload.is_some_and(|(_, taken)| taken))
        .await;
    port.advance(TimeDelta::minutes(5)).await;
    port.clock.advance(TimeDelta::minutes(2));
    port.until(|_| place.taken().len() == 3).await;
    write_file(port.site.dir.path(), "policy.toml", &policy);
    let seen = port.until(|_| true).await.reload;
    port.ask_to_reload();
    port.until(|shown| shown.reload != seen).await;
    port.stop().await;
    assert!(port.ledger().troubles().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drill_that_is_not_well_is_told_as_one_and_is_evidence() {
    lifeboat::sandbox::keepers_are(env!("CARGO_BIN_EXE_backup").into());
    let mut port = Port::new(226, "0 4 * * *", "");
    let place = Place::new();
    tell(
        &port,
        &format!(
            "webhook = {}\non = [\"drill\"]",
            secret(&port, "webhook", &place.address)
        ),
    );
    let policy = std::fs::read_to_string(port.site.path("policy.toml")).unwrap();
    let drill = "\n[drill.weekly]\nsources = [\"app\"]\nschedule = \"30 * * * *\"\nbinaries = \"/nowhere\"\n";
    write_file(port.site.dir.path(), "policy.toml", policy + drill);
    port.site.json(&["run"]);
    port.start();
    port.rest().await;
    hours(&mut port, 2).await;
    port.until(all_told).await;
    port.stop().await;
    // Once, though two were not well; no program here boots it, and the levels below are proven all the same.
    assert_eq!(place.events(), ["drill"]);
    let told = &place.taken()[0].2;
    assert!(
        told.contains("\"task\":\"drill weekly\"") && told.contains("the program pocketbase is not here"),
        "{told}"
    );
    let evidence = port.site.json(&["evidence", "list"]);
    let evidence = evidence["evidence"].as_array().unwrap().clone();
    assert_eq!(evidence.len(), 2, "{evidence:?}");
    assert!(
        evidence
            .iter()
            .all(|e| e["result"] == "could_not_run" && e["level"] == 4),
        "{evidence:?}"
    );
    let status = crate::harness::run(&mut port.site.backup(&["status"]));
    assert_eq!(status.code, 1, "{status}");
    assert!(status.stdout.contains("its last drill (weekly, "), "{status}");
    let entries = std::fs::read_dir(port.site.path("state/drills")).unwrap().count();
    assert_eq!(entries, 0, "nothing is left");
}

/// An hour, and what comes of it: a server that starts is looked at again and again, on the same clock.
async fn hour(port: &mut Port) {
    port.clock.advance(TimeDelta::hours(1));
    let look = std::time::Duration::from_millis(100);
    while tokio::time::timeout(look, port.rest()).await.is_err() {
        port.clock.advance(TimeDelta::milliseconds(200));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drill_that_failed_or_could_not_run_and_the_first_pass_after_are_told_each() {
    lifeboat::sandbox::keepers_are(env!("CARGO_BIN_EXE_backup").into());
    let app = PocketBase::start().await;
    app.create_collection("notes").await;
    let mut port = Port::new(231, "0 4 1 1 *", "");
    // PocketBase goes by the real clock, and by it a token of an earlier day is no more.
    let now = SystemClock.now().duration_trunc(TimeDelta::hours(1)).unwrap();
    port.clock = Arc::new(Hands::new(now + TimeDelta::hours(1)));
    let place = Place::webhook(&port);
    let policy = std::fs::read_to_string(port.site.path("policy.toml")).unwrap();
    let (made, real) = (port.site.source(), app.data_directory());
    let policy = policy.replace(made.to_str().unwrap(), real.to_str().unwrap());
    // What is there in every policy of it, and what makes it fail, or not run.
    let binaries = crate::harness::project().join(".services/bin");
    let drill = |binaries: &str, sql: &str| {
        let checks = format!("[{{ source = \"app\", name = \"it is so\", sql = \"{sql}\" }}]");
        format!(
            "{policy}\n[drill.weekly]\nsources = [\"app\"]\nschedule = \"30 * * * *\"\nkeep_failed = \"0s\"\n\
             binaries = \"{binaries}\"\nchecks = {checks}\n"
        )
    };
    let (here, nowhere) = (binaries.to_str().unwrap(), "/nowhere");
    write_file(port.site.dir.path(), "policy.toml", drill(here, "select 1"));
    port.site.json(&["run"]);
    port.start();
    port.rest().await;
    hour(&mut port).await;
    port.until(all_told).await;
    assert!(
        place.taken().is_empty(),
        "a pass after nothing is not told: {:?}",
        place.taken()
    );
    let mut seen = port.until(|_| true).await.reload;
    let mut told = Vec::new();
    for (binaries, sql) in [
        (nowhere, "select 1"),
        (nowhere, "select 1"),
        (here, "select 0"),
        (here, "select 0"),
        (nowhere, "select 1"),
        (here, "select 1"),
        (here, "select 1"),
    ] {
        write_file(port.site.dir.path(), "policy.toml", drill(binaries, sql));
        port.ask_to_reload();
        seen = port.until(|shown| shown.reload != seen).await.reload;
        assert!(seen.is_some_and(|(_, taken)| taken));
        let before = place.taken().len();
        hour(&mut port).await;
        port.until(all_told).await;
        let bodies: Vec<Value> = place.taken()[before..]
            .iter()
            .map(|(_, _, body)| serde_json::from_str(body).unwrap())
            .collect();
        told.push(bodies);
    }
    port.stop().await;
    let said: Vec<String> = told
        .iter()
        .map(|bodies| match bodies.as_slice() {
            [] => String::new(),
            [one] => {
                assert_eq!(one["task"], "drill weekly");
                let error = one["error"].as_str().unwrap_or_default();
                let error = error.split(": ").take(2).collect::<Vec<_>>().join(": ");
                format!("{} {error}", one["event"].as_str().unwrap())
            }
            more => panic!("{more:?}"),
        })
        .collect();
    assert_eq!(
        said,
        [
            "drill app could not run: PocketBase boots",
            "",
            "drill app failed: it is so",
            "",
            "drill app could not run: PocketBase boots",
            "recovery ",
            "",
        ]
    );
    let last = &told[5][0];
    assert_eq!(
        (&last["recovered"], &last["failures"]),
        (&"drill".into(), &5.into()),
        "{last}"
    );
}
