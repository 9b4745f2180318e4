//! What `check` and `status` tell of schedules and of the daemon's own tasks.

use chrono::TimeDelta;
use lifeboat::types::Level;
use serde_json::Value;

use crate::harness::{self, Said, write_file};
use crate::site::files;
use crate::world::{Port, at};

/// A policy with another text in place of one.
fn edit(port: &Port, from: &str, to: &str) {
    let policy = std::fs::read_to_string(port.site.path("policy.toml")).unwrap();
    assert!(policy.contains(from), "{policy}");
    write_file(port.site.dir.path(), "policy.toml", policy.replace(from, to));
}

fn said(port: &Port, args: &[&str]) -> Said {
    harness::run(&mut port.site.backup(args))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_scheduled_verification_finds_is_named_and_told_by_status() {
    let mut port = Port::new(271, "0 4 * * *", "");
    edit(
        &port,
        "[prune]\n",
        "[prune]\n\n[verify]\nschedule = \"30 * * * *\"\n",
    );
    port.site.json(&["run"]);
    let all = files(&port.site.path("repository/sources/app"));
    let mut packs = all
        .iter()
        .filter(|path| path.to_str().unwrap().ends_with("/0.age"));
    let pack = packs.next().unwrap_or_else(|| panic!("{all:?}")).clone();
    let mut bytes = std::fs::read(&pack).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&pack, bytes).unwrap();
    port.start();
    port.rest().await;
    assert_eq!(said(&port, &["status"]).code, 0, "nobody has looked yet");
    port.advance(TimeDelta::minutes(40)).await;
    port.stop().await;
    let slots = port.ledger().since("verify", at("2026-11-26T00:00:00Z")).unwrap();
    let error = slots.last().unwrap().error.clone().unwrap();
    let name = pack.file_name().unwrap().to_str().unwrap();
    assert!(
        error.contains("1 objects are damaged and 0 missing: sources/app/runs/") && error.contains(name),
        "{error}"
    );
    let status = said(&port, &["status"]);
    assert_eq!(status.code, 1, "{status}");
    assert!(
        status
            .stdout
            .contains("The last verify (2026-11-26 00:30:00Z) failed: 1 objects"),
        "{status}"
    );
    assert!(status.stdout.contains(name), "{status}");
    let status = said(&port, &["--json", "status"]).json();
    assert_eq!(status["problems"].as_array().unwrap().len(), 1, "{status}");
    // Not what the policy does not ask for any more.
    edit(&port, "[verify]\nschedule = \"30 * * * *\"\n", "");
    let status = said(&port, &["--json", "status"]).json();
    assert_eq!(status["problems"], Value::Array(Vec::new()), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn check_tells_slots_that_are_never_run_and_when_everything_comes_next() {
    let port = Port::new(272, "0 2 * * *", "blackout = [\"00:00-06:00\"]\nmax_age = \"1h\"");
    edit(
        &port,
        "[prune]\n",
        "[prune]\nschedule = \"0 5 * * *\"\n\n[verify]\nschedule = \"30 7 * * 0\"\n",
    );
    let finding = |port: &Port, code: i32| -> Value {
        let said = said(port, &["--json", "check"]);
        assert_eq!(said.code, code, "{said}");
        let findings = said.json()["sources"][0]["findings"].clone();
        let mut schedule = findings.as_array().unwrap().clone();
        schedule.retain(|f| f["name"] == "schedule");
        assert!(schedule.len() < 2, "{schedule:?}");
        schedule.pop().unwrap_or_default()
    };
    let never = finding(&port, 2);
    assert_eq!(never["level"], level(Level::Error), "{never}");
    assert!(
        never["text"]
            .as_str()
            .unwrap()
            .starts_with("its slots are never run"),
        "{never}"
    );
    port.schedule("0 */3 * * *", "blackout = [\"00:00-06:00\"]\nmax_age = \"4h\"");
    let some = finding(&port, 0);
    assert_eq!(some["level"], level(Level::Warning), "{some}");
    assert!(
        some["text"]
            .as_str()
            .unwrap()
            .starts_with("25 of its next 200 slots"),
        "{some}"
    );
    port.schedule("0 */3 * * *", "blackout = [\"00:00-06:00\"]\nmax_age = \"6h\"");
    assert_eq!(finding(&port, 0), Value::Null, "each is run, late");
    edit(
        &port,
        "[prune]\n",
        "[prune]\nschedule = \"0 5 * * *\"\n\n[verify]\nschedule = \"30 7 * * 0\"\n",
    );
    let told = said(&port, &["check"]);
    for (task, time) in [("prune", "05:00"), ("verify", "07:30")] {
        let (_, after) = told
            .stdout
            .split_once(&format!("\n{task}\n  next runs  "))
            .unwrap_or_else(|| panic!("{told}"));
        assert!(after.lines().take(5).all(|line| line.contains(time)), "{told}");
    }
}

fn level(level: Level) -> Value {
    serde_json::to_value(level).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn check_tells_places_whose_urls_can_not_be_used_without_sending_anything() {
    let port = Port::new(273, "0 2 * * *", "");
    let policy = std::fs::read_to_string(port.site.path("policy.toml")).unwrap();
    let places = [
        ("webhook", "not a url, with hunter2"),
        ("slack", "ftp://hunter2@example.net/x"),
        ("ping", "https://"),
        ("smtp", "https://user:hunter2@mail.example.net"),
    ];
    let mut keys = String::from("\n[notify.ops]\nemail = \"a@example.net\"\n");
    for (key, url) in places {
        let path = write_file(port.site.dir.path(), key, url);
        keys += &format!("{key} = {{ file = \"{}\" }}\n", path.display());
    }
    write_file(port.site.dir.path(), "policy.toml", policy + &keys);
    let told = said(&port, &["check"]);
    assert_eq!(told.code, 2, "{told}");
    for name in [
        "notify.ops.webhook",
        "notify.ops.slack",
        "notify.ops.ping",
        "notify.ops.email",
    ] {
        assert!(
            told.stdout
                .lines()
                .any(|l| l.contains("ERROR") && l.contains(name)),
            "{name}: {told}"
        );
    }
    assert!(!format!("{told}").contains("hunter2"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_that_a_blackout_skips_for_ever_are_told_and_have_no_next_run() {
    let mut port = Port::new(
        276,
        "0 9 * * *",
        "catch_up = \"skip\"\nblackout = [\"08:30-09:30\"]",
    );
    let told = said(&port, &["--json", "check"]);
    assert_eq!(told.code, 2, "{told}");
    let source = told.json()["sources"][0].clone();
    assert!(
        source["findings"].to_string().contains("its slots are never run"),
        "{source}"
    );
    assert_eq!(source["next_runs"], Value::Array(Vec::new()), "{source}");
    // Nor does a daemon take such a policy: at its start, or by a reload.
    assert_eq!(said(&port, &["daemon"]).code, 2);
    port.schedule("0 9 * * *", "");
    port.start();
    port.rest().await;
    port.schedule(
        "0 9 * * *",
        "jitter = \"0s\"\ncatch_up = \"skip\"\nblackout = [\"08:30-09:30\"]",
    );
    port.ask_to_reload();
    let shown = port.until(|shown| shown.reload.is_some()).await;
    assert_eq!(shown.reload.map(|(_, taken)| taken), Some(false));
    port.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schedule_that_can_not_meet_its_objective_is_told() {
    let port = Port::new(277, "0 2 * * *", "objective = { rpo = \"3m\" }");
    let told = said(&port, &["check"]);
    assert_eq!(told.code, 0, "{told}");
    let words = "its schedule leaves 1day between two points, and objective.rpo is 3m";
    assert!(told.stdout.contains(words), "{told}");
    port.schedule("0 2 * * *", "objective = { rpo = \"24h\" }");
    assert!(!said(&port, &["check"]).stdout.contains("its schedule leaves"));
}

/// A command of ours on a clock that is so far ahead.
fn ahead(port: &Port, by: &str, args: &[&str]) -> Said {
    let mut command = port.site.backup(args);
    command
        .env("LD_PRELOAD", harness::binary("libfaketime"))
        .env("NO_FAKE_STAT", "1")
        .env("FAKETIME", by);
    harness::run(&mut command)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_point_of_a_clock_that_was_ahead_is_not_the_latest_and_hides_no_silence() {
    let mut port = Port::new(278, "0 2 * * *", "objective = { rpo = \"24h\" }");
    port.site.json(&["run"]);
    assert_eq!(ahead(&port, "+30d", &["run"]).code, 0);
    port.site.change();
    let newest = port.site.json(&["run"])["runs"][0]["run"].clone();
    let to = port.site.path("restored");
    let plan = port
        .site
        .json(&["restore", "app", "--at", "latest", "--to", to.to_str().unwrap()]);
    assert_eq!(plan["run"], newest, "{plan}");
    let tree = harness::tree(&to);
    assert!(
        port.site.unlike_source(&tree).is_empty(),
        "{:?}",
        port.site.unlike_source(&tree)
    );
    let status = said(&port, &["status"]);
    assert_eq!(status.code, 1, "{status}");
    assert!(status.stdout.contains("lies in the future"), "{status}");
    // Days later, nothing has run: that is told, whatever the point of the future says.
    let status = ahead(&port, "+20d", &["status"]);
    assert_eq!(status.code, 1, "{status}");
    assert!(
        status.stdout.contains("the newest recovery point is 19days")
            || status.stdout.contains("the newest recovery point is 20days"),
        "{status}"
    );
}
