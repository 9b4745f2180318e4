//! What drills leave: evidence that tells of its changes, points that retention keeps; and drills by the daemon.

use std::io::Read as _;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use crate::drills::{command, drill, edit, nothing_is_left, of, site, verify};
use crate::harness::{self, poll};

#[tokio::test(flavor = "multi_thread")]
async fn evidence_that_was_changed_or_taken_away_is_told_offline() {
    let site = site("[drill.app]\nsources = [\"app\"]\n").await;
    for _ in 0..3 {
        assert_eq!(drill(&site, "app").0, 0);
    }
    let evidence = site.path("repository/evidence");
    let directory = evidence.to_str().unwrap();
    let whole = verify(&site, &[directory]);
    assert_eq!(
        (
            whole.code,
            &whole.json()["evidence"],
            &whole.json()["signatures_checked"]
        ),
        (0, &json!(3), &json!(true)),
        "{whole}"
    );
    let mut files: Vec<PathBuf> = std::fs::read_dir(&evidence)
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    files.sort();
    let bytes = std::fs::read(&files[1]).unwrap();
    let mut envelope: Value = serde_json::from_slice(&bytes).unwrap();
    envelope["signatures"] = json!([]);
    std::fs::write(&files[1], envelope.to_string()).unwrap();
    let told = verify(&site, &[directory]);
    assert_eq!(told.code, 21, "{told}");
    let problems = told.json()["problems"].to_string();
    assert!(
        problems.contains("is not signed") && problems.contains("which was changed since"),
        "{problems}"
    );
    std::fs::remove_file(&files[1]).unwrap();
    let told = verify(&site, &[directory]);
    assert_eq!(told.code, 21);
    assert!(
        told.json()["problems"].to_string().contains("which is missing"),
        "{told}"
    );
    std::fs::write(&files[1], bytes).unwrap();
    assert_eq!(verify(&site, &[directory]).code, 0);
    // Another key has signed none of it.
    let other = harness::run_ok(site.plain().args(["key", "signing"]).arg(site.path("other.key"))).stdout;
    let other = harness::write_file(site.directory.path(), "other.pub", other);
    let said = harness::run(
        site.plain()
            .args(["evidence", "verify", "--key"])
            .arg(other)
            .arg(directory),
    );
    assert_eq!(said.code, 21, "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn retention_keeps_the_newest_point_that_was_proven() {
    let site = site("[drill.app]\nsources = [\"app\"]\n").await;
    edit(&site, |policy| {
        policy.replace("window = \"7d\"\ndaily = 7", "hourly = 1")
    });
    let (_, report) = drill(&site, "app");
    let proven = of(&report, "app")["run"].clone();
    for n in 10..14 {
        site.app
            .create_record("notes", &json!({"title": "later", "n": n}))
            .await;
        site.json(&["run", "app"]);
    }
    let pruned = site.json(&["prune"]);
    let kept = pruned["keep"].as_array().unwrap().iter();
    let kept: Vec<_> = kept
        .filter(|k| k["source"] == "app" && k["run"] == proven)
        .collect();
    assert_eq!(kept.len(), 1, "{pruned}");
    assert!(
        kept[0]["reasons"].to_string().contains("newest proven"),
        "{pruned}"
    );
    // Evidence that this host knows, and that is another now: nothing is expired.
    let evidence = std::fs::read_dir(site.path("repository/evidence"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    std::fs::write(&evidence, b"nothing").unwrap();
    site.json(&["run", "app"]);
    let said = harness::run(&mut site.backup(&["--json", "prune"]));
    assert_ne!(said.code, 0, "{said}");
    let status = harness::run(&mut site.backup(&["status"]));
    assert_eq!(status.code, 1, "{status}");
    // A restore goes on all the same.
    let plan = site.json(&["restore", "app", "--at", "latest", "--dry-run"]);
    assert!(
        plan["warnings"]
            .to_string()
            .contains("what drills proved can not be told"),
        "{plan}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_daemon_drills_on_schedule_and_says_how_it_went() {
    let site = site("[drill.often]\nsources = [\"app\"]\nschedule = \"* * * * *\"\n").await;
    let port = harness::free_port();
    edit(&site, |policy| {
        format!("{policy}\n[http]\nlisten = \"127.0.0.1:{port}\"\ntoken = {{ env = \"T_TOKEN\" }}\n")
    });
    let mut daemon = command(&site, &["daemon"]);
    daemon.env("T_TOKEN", "open sesame");
    let mut daemon = daemon.spawn().unwrap();
    let evidence = poll(Duration::from_secs(100), || {
        let mut files = std::fs::read_dir(site.path("repository/evidence")).ok()?;
        files.next()?.ok().map(|e| e.path())
    });
    let done = poll(Duration::from_secs(20), || {
        let page = answer(port, "/metrics");
        page.contains("lifeboat_runs_total{task=\"drill often\",result=\"done\"} 1")
            .then_some(())
    });
    rustix::process::kill_process(
        rustix::process::Pid::from_child(&daemon),
        rustix::process::Signal::TERM,
    )
    .unwrap();
    assert!(daemon.wait().unwrap().success());
    assert!(evidence.is_some() && done.is_some(), "no drill was made");
    let listed = site.json(&["evidence", "list"]);
    assert_eq!(
        (&listed["evidence"][0]["drill"], &listed["evidence"][0]["result"]),
        (&json!("often"), &json!("passed")),
        "{listed}"
    );
    nothing_is_left(&site);
}

/// What the daemon answers to who knows the token.
pub fn answer(port: u16, path: &str) -> String {
    use std::io::Write as _;
    let ask = || -> std::io::Result<String> {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer open sesame\r\nConnection: close\r\n\r\n"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_month_says_what_was_proven_and_what_never_was() {
    let site = site("[drill.app]\nsources = [\"app\"]\nkeep_failed = \"0s\"\nmax_age = \"9d\"\n").await;
    assert_eq!(drill(&site, "app").0, 0);
    site.json(&["run", "app"]);
    edit(&site, |policy| {
        policy.replace("max_age = \"9d\"", "binaries = \"/nowhere\"")
    });
    assert_eq!(drill(&site, "app").0, 23);
    let report = site.json(&["evidence", "report"]);
    let source = |name: &str| of(&report, name).clone();
    let app = source("app");
    assert_eq!(
        (&app["passed"], &app["failed"], &app["could_not_run"]),
        (&json!(1), &json!(0), &json!(1)),
        "{app}"
    );
    assert_eq!(
        (&app["points"], &app["points_proven"], &app["in_no_drill"]),
        (&json!(2), &json!(1), &json!(false)),
        "{app}"
    );
    assert!(app["rto_seconds"].as_f64().unwrap() > 0.0 && app["last_passed"].is_string());
    let orders = source("orders");
    assert_eq!(
        (
            &orders["points_proven"],
            &orders["in_no_drill"],
            &orders["last_passed"]
        ),
        (&json!(0), &json!(true), &Value::Null),
        "{orders}"
    );
    assert_eq!(
        (&report["problems"], &report["signatures_checked"]),
        (&json!([]), &json!(true))
    );
    let markdown = harness::run_ok(&mut site.backup(&["evidence", "report"])).stdout;
    assert!(
        markdown.contains("whole, every one signed") && markdown.contains("| in no drill |"),
        "{markdown}"
    );
    let before = site.json(&["evidence", "report", "--month", "2024-02"]);
    assert_eq!(
        (&before["drills"], &of(&before, "app")["passed"]),
        (&json!([]), &json!(0)),
        "{before}"
    );
    assert_eq!(of(&before, "app")["points_proven"], json!(1));
    site.refused(&["evidence", "report", "--month", "november"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn status_says_how_the_last_drill_ended_whoever_began_it() {
    let site = site("[drill.app]\nsources = [\"app\"]\nchecks = [{ source = \"app\", name = \"rows\", sql = \"select count(*) from notes\", expected = \"5\" }]\n").await;
    assert_eq!(drill(&site, "app").0, 0);
    let well = site.json(&["status"]);
    assert_eq!(of(&well, "app")["last_drill_result"], "passed", "{well}");
    edit(&site, |policy| {
        policy.replace("expected = \"5\"", "expected = \"6\"")
    });
    let (code, report) = drill(&site, "app");
    assert_eq!(code, 22, "{report}");
    let cleanup = of(&report, "app")["cleanup"].as_str().unwrap();
    assert!(cleanup.contains("backup drill --clean"), "{cleanup}");
    let told = harness::run(&mut site.backup(&["--json", "status"]));
    assert_eq!(told.code, 1, "{told}");
    let app = of(&told.json(), "app").clone();
    assert_eq!(app["last_drill_result"], "failed", "{app}");
    assert!(
        app["problems"].to_string().contains("its last drill (app, ")
            && app["problems"].to_string().contains("failed: rows"),
        "{app}"
    );
    let text = harness::run(&mut site.backup(&["status"]));
    assert!(text.stdout.contains("FAILED"), "{text}");
    // The kept target goes when it is told to.
    let kept = || std::fs::read_dir(site.path("state/drills")).unwrap().count();
    assert!(kept() > 0);
    let cleaned = site.json(&["drill", "--clean"]);
    assert_eq!(cleaned["removed"].as_array().unwrap().len(), 1, "{cleaned}");
    assert_eq!(kept(), 0);
    edit(&site, |policy| {
        policy.replace("expected = \"6\"", "expected = \"5\"")
    });
    assert_eq!(drill(&site, "app").0, 0);
    site.json(&["status"]);
}
