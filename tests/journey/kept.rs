//! Where evidence goes: also while the repository can not be written, of a drill that is stopped, and what never goes into it.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::chain::{files, id, is_proven, previous, statements};
use crate::drills::{command, edit, nothing_is_left, of, processes, site, site_in, verify};
use crate::evidence::answer;
use crate::harness::seaweedfs::SeaweedFs;
use crate::harness::{self, Said, poll};
use crate::site::{Site, Store};

/// A drill, and what it said on standard error.
fn drilled(site: &Site, arguments: &[&str]) -> (Said, Value) {
    let said = harness::run(&mut command(site, arguments));
    let document = said.json();
    (said, document)
}

/// The same command while the repository can not be written.
pub fn read_only(site: &Site, of: &Command) -> Command {
    let mut command = Command::new("unshare");
    command.arg("--mount");
    if !rustix::process::geteuid().is_root() {
        command.arg("--map-root-user");
    }
    let repository = site.path("repository");
    let script = "mount --bind \"$0\" \"$0\" && mount -o remount,bind,ro \"$0\" || exit 99; exec \"$@\"";
    command.args(["sh", "-c", script]).arg(repository);
    command.arg(of.get_program()).args(of.get_args());
    command.env_clear();
    for (name, value) in of.get_envs() {
        command.env(name, value.unwrap());
    }
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn evidence_waits_here_while_the_repository_can_not_be_written() {
    let site = site("[drill.app]\nsources = [\"app\"]\n").await;
    let mut sealed = Vec::new();
    for n in 1..=2 {
        let said = harness::run(&mut read_only(&site, &command(&site, &["drill", "app"])));
        assert_eq!(said.code, 0, "{said}");
        let kept = said.json()["evidence"].as_str().unwrap().to_owned();
        assert!(
            Path::new(&kept).starts_with(site.path("state/evidence")),
            "{kept}"
        );
        assert!(said.stderr.contains(&format!("it is at {kept}")), "{said}");
        let bytes = std::fs::read(&kept).unwrap();
        sealed.push((Path::new(&kept).file_name().unwrap().to_owned(), bytes));
        assert!(files(&site.path("repository/evidence")).is_empty());
        let listed = site.json(&["evidence", "list"]);
        assert_eq!(listed["evidence"].as_array().unwrap().len(), n, "{listed}");
        assert_eq!(listed["evidence"][0]["here"], json!(true), "{listed}");
    }
    assert!(is_proven(&site));
    let statements_here = statements(&site);
    assert_eq!(previous(&statements_here[1]), [id(&statements_here[0])]);
    let said = harness::run_ok(&mut site.backup(&["--json", "evidence", "verify"]));
    assert_eq!(said.json()["evidence"], json!(2), "{said}");
    site.json(&["prune"]);
    // Away altogether: that is known, and evidence too.
    let (there, away) = (site.path("repository"), site.path("away"));
    std::fs::rename(&there, &away).unwrap();
    let (said, report) = drilled(&site, &["drill", "app"]);
    assert_eq!(
        (said.code, &report["result"]),
        (23, &json!("could_not_run")),
        "{said}"
    );
    std::fs::rename(&away, &there).unwrap();
    assert_eq!(statements(&site).len(), 3);
    // Whoever may write takes all of it along, as it was.
    let (said, report) = drilled(&site, &["drill", "app"]);
    assert_eq!(said.code, 0, "{said}");
    assert!(
        report["evidence"].as_str().unwrap().starts_with("evidence/"),
        "{report}"
    );
    assert!(files(&site.path("state/evidence")).is_empty());
    for (name, bytes) in sealed {
        assert_eq!(
            std::fs::read(site.path("repository/evidence").join(name)).unwrap(),
            bytes
        );
    }
    let said = verify(&site, &[site.path("repository/evidence").to_str().unwrap()]);
    assert_eq!((said.code, &said.json()["evidence"]), (0, &json!(4)), "{said}");
    let all = statements(&site);
    let numbers: Vec<_> = all
        .iter()
        .map(|s| s["predicate"]["number"].as_u64().unwrap())
        .collect();
    assert_eq!(numbers, [1, 2, 3, 4]);
    // For people the id is on the page.
    let text = harness::run(site.backup(&["drill", "app"]).env("PATH", path_of(&site)));
    let newest = statements(&site).pop().unwrap();
    assert!(
        text.stdout
            .contains(&format!("evidence: evidence/{}.json", id(&newest))),
        "{text}"
    );
}

/// Where server programs are found.
fn path_of(site: &Site) -> std::ffi::OsString {
    let command = command(site, &[]);
    let mut all = command.get_envs();
    let found = all.find(|(name, _)| *name == "PATH").unwrap();
    found.1.unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drill_that_nobody_can_sign_is_not_made_and_a_report_is_shown_whatever_happens() {
    let site = site("[drill.app]\nsources = [\"app\"]\nchecks = [{ source = \"app\", name = \"our own\", command = [\"true\"] }]\n").await;
    let (key, away) = (site.path("signing.key"), site.path("signing.away"));
    std::fs::rename(&key, &away).unwrap();
    for content in [None, Some("no key at all\n")] {
        if let Some(content) = content {
            std::fs::write(&key, content).unwrap();
        }
        let said = harness::run_code(&mut command(&site, &["drill", "app"]), 2);
        assert!(said.stdout.contains("evidence.key"), "{said}");
        // Not even a place for it.
        assert!(!site.path("state/drills").exists());
        assert!(files(&site.path("repository/evidence")).is_empty());
    }
    std::fs::rename(&away, &key).unwrap();
    // Nowhere to keep it: a repository that can not be written, and a file in place of the directory here.
    std::fs::write(site.path("state/evidence"), b"in the way").unwrap();
    let said = harness::run(&mut read_only(&site, &command(&site, &["drill", "app"])));
    assert_eq!(said.code, 1, "{said}");
    let report = said.json();
    assert_eq!(
        (&report["result"], &report["evidence"]),
        (&json!("passed"), &Value::Null),
        "{report}"
    );
    assert!(
        report["error"]["message"]
            .as_str()
            .unwrap()
            .contains("is kept nowhere"),
        "{report}"
    );
    assert!(
        of(&report, "app")["checks"].to_string().contains("our own"),
        "{report}"
    );
    // Where the repository takes it, nothing is missing.
    let (said, report) = drilled(&site, &["drill", "app"]);
    assert_eq!(said.code, 0, "{said}");
    assert!(
        report["evidence"].as_str().unwrap().starts_with("evidence/"),
        "{report}"
    );
}

/// Waits until a drill's own check sleeps.
fn until_it_waits(site: &Site) {
    let sleeps = |pid: &u32| {
        std::fs::read_to_string(format!("/proc/{pid}/cmdline"))
            .is_ok_and(|line| line.split('\0').take(2).eq(["sleep", "600"]))
    };
    let there = poll(Duration::from_secs(150), || {
        processes(site).iter().any(sleeps).then_some(())
    });
    assert!(there.is_some(), "the drill does not get there");
}

const WAITS: &str = "[drill.waits]\nsources = [\"app\", \"orders\"]\nSCHEDULEchecks = [{ source = \"app\", name = \"waits\", command = [\"sleep\", \"600\"] }]\n";

fn interrupted(site: &Site) {
    let statement = statements(site).pop().unwrap();
    let report = &statement["predicate"]["report"];
    assert_eq!(
        (&report["result"], &report["interrupted"]),
        (&json!("could_not_run"), &json!(true)),
        "{report:#}"
    );
    let app = of(report, "app");
    let checks = app["checks"].as_array().unwrap();
    let found = |name: &str| {
        checks
            .iter()
            .find(|c| c["name"] == name)
            .unwrap_or_else(|| panic!("no {name}: {app:#}"))
    };
    assert_eq!(
        found("it is restored")["result"],
        json!("passed"),
        "what was found stands"
    );
    assert_eq!(found("interrupted")["result"], json!("could_not_run"));
    assert_eq!(
        (&app["level"], &of(report, "orders")["result"]),
        (&json!(4), &json!("could_not_run"))
    );
    nothing_is_left(site);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_drill_leaves_evidence_of_what_it_found() {
    let site = site(&WAITS.replace("SCHEDULE", "")).await;
    let mut child = command(&site, &["drill", "waits"]);
    let child = child
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    until_it_waits(&site);
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(
        report["evidence"].as_str().unwrap().starts_with("evidence/"),
        "{report}"
    );
    interrupted(&site);
    assert!(!is_proven(&site));
}

/// A daemon of the site with a page, whose log is kept.
fn daemon_of(site: &Site) -> (u16, Child) {
    let port = harness::free_port();
    edit(site, |policy| {
        format!("{policy}\n[http]\nlisten = \"127.0.0.1:{port}\"\ntoken = {{ env = \"T_TOKEN\" }}\n")
    });
    let mut daemon = command(site, &["daemon"]);
    daemon.env("T_TOKEN", "open sesame").stderr(Stdio::piped());
    (port, daemon.spawn().unwrap())
}

/// Stops a daemon, and gives its log.
fn stopped(daemon: Child) -> String {
    let pid = rustix::process::Pid::from_child(&daemon);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let output = daemon.wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_is_stopped_leaves_evidence_of_its_drill() {
    let site = site(&WAITS.replace("SCHEDULE", "schedule = \"* * * * *\"\n")).await;
    let (_, daemon) = daemon_of(&site);
    until_it_waits(&site);
    let log = stopped(daemon);
    interrupted(&site);
    let newest = id(&statements(&site).pop().unwrap());
    assert!(log.contains(&newest), "the log names its evidence: {log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_users_data_stand_in_no_evidence_log_or_notice() {
    let site = Site::new(Store::Directory).await;
    // Only in the scratch server, which has no port, are these the same: its index can not be made.
    site.sql(
        "create function part(text) returns text language sql immutable as
             $$ select case when inet_server_port() is null then split_part($1, '#', 1) else $1 end $$;
         create table people (mail text);
         insert into people values ('ada.lovelace@example.com#1'), ('ada.lovelace@example.com#2');
         create unique index on people (part(mail))",
    );
    edit(&site, |policy| {
        format!(
            "{policy}\n[drill.orders]\nsources = [\"orders\"]\nschedule = \"* * * * *\"\nkeep_failed = \"0s\"\n"
        )
    });
    site.json(&["init"]);
    site.json(&["run", "orders"]);
    let (said, report) = drilled(&site, &["drill", "orders"]);
    assert_eq!(said.code, 22, "{said}");
    let restored = of(&report, "orders")["checks"]
        .as_array()
        .unwrap()
        .iter()
        .find(|c| c["name"] == "it is restored")
        .unwrap();
    let actual = restored["actual"].as_str().unwrap();
    assert!(
        actual.contains("pg_restore failed") && !actual.contains("ada.lovelace"),
        "{restored}"
    );
    let port = harness::free_port();
    edit(&site, |policy| {
        format!(
            "{policy}\n[http]\nlisten = \"127.0.0.1:{port}\"\ntoken = {{ env = \"T_TOKEN\" }}\n\n[notify.ops]\nwebhook = {{ env = \"T_HOOK\" }}\non = [\"failure\", \"drill\"]\n"
        )
    });
    let mut daemon = command(&site, &["daemon"]);
    daemon
        .env("T_TOKEN", "open sesame")
        // Nobody listens there: what is owed stays in the memory.
        .env("T_HOOK", "http://127.0.0.1:9/hook")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let daemon = daemon.spawn().unwrap();
    let two = poll(Duration::from_secs(150), || {
        let page = answer(port, "/");
        (files(&site.path("repository/evidence")).len() == 2 && page.contains("drill orders")).then_some(page)
    });
    let failed = poll(Duration::from_secs(20), || {
        let page = answer(port, "/metrics");
        page.contains("lifeboat_runs_total{task=\"drill orders\",result=\"failed\"} 1")
            .then_some(())
    });
    let page = answer(port, "/");
    rustix::process::kill_process(
        rustix::process::Pid::from_child(&daemon),
        rustix::process::Signal::TERM,
    )
    .unwrap();
    let output = daemon.wait_with_output().unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(two.is_some() && failed.is_some(), "no drill was made: {log}");
    assert!(log.contains("pg_restore failed"), "{log}");
    let mut said: Vec<(String, Vec<u8>)> = vec![
        ("log".to_owned(), output.stderr),
        ("page".to_owned(), page.into_bytes()),
    ];
    // What notices hold and what the page shows comes from its memory.
    said.extend(harness::tree(&site.path("state")));
    for file in files(&site.path("repository/evidence")) {
        let envelope: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        use base64::Engine as _;
        let statement = base64::engine::general_purpose::STANDARD
            .decode(envelope["payload"].as_str().unwrap())
            .unwrap();
        assert!(String::from_utf8_lossy(&statement).contains("pg_restore failed"));
        said.push((file.display().to_string(), statement));
    }
    let owed = said.iter().any(|(name, bytes)| {
        name.starts_with("daemon.db") && String::from_utf8_lossy(bytes).contains("pg_restore failed")
    });
    assert!(owed, "there is a notice");
    for (what, bytes) in said {
        assert!(
            !String::from_utf8_lossy(&bytes).contains("ada.lovelace"),
            "{what} holds a row"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_server_said_is_for_who_drills_by_hand_and_is_not_kept() {
    let site = site("[drill.app]\nsources = [\"app\"]\n").await;
    // A store that can not be read has something to say.
    let (points, away) = (site.path("repository/sources/app/points"), site.path("points"));
    std::fs::rename(&points, &away).unwrap();
    std::os::unix::fs::symlink(&away, &points).unwrap();
    let (said, report) = drilled(&site, &["drill", "app"]);
    assert_eq!(said.code, 23, "{said}");
    let check = &of(&report, "app")["checks"][0];
    let words = "points is a symbolic link";
    assert!(check["detail"].as_str().unwrap().contains(words), "{check}");
    assert!(!check["actual"].as_str().unwrap().contains(words), "{check}");
    let by_hand = site
        .backup(&["drill", "app"])
        .env("PATH", path_of(&site))
        .output()
        .unwrap();
    let by_hand = String::from_utf8_lossy(&by_hand.stdout).into_owned();
    assert!(by_hand.contains(words), "{by_hand}");
    for statement in statements(&site) {
        let text = statement.to_string();
        assert!(
            text.contains("the drill") && !text.contains(words) && !text.contains("detail"),
            "{text}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_whose_key_can_not_be_read_makes_no_drill_and_says_why() {
    let site = site("[drill.app]\nsources = [\"app\"]\nschedule = \"* * * * *\"\n").await;
    std::fs::write(site.path("signing.key"), b"no key at all\n").unwrap();
    let (port, daemon) = daemon_of(&site);
    let failed = poll(Duration::from_secs(150), || {
        let page = answer(port, "/metrics");
        page.contains("lifeboat_runs_total{task=\"drill app\",result=\"failed\"} 1")
            .then_some(())
    });
    let log = stopped(daemon);
    assert!(
        failed.is_some() && log.contains("evidence.key: the signing key can not be read"),
        "{log}"
    );
    assert!(!site.path("state/drills").exists() && files(&site.path("repository/evidence")).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runner_elsewhere_needs_an_identity_and_credentials_that_only_read() {
    let site = site_in(
        Store::S3(SeaweedFs::start()),
        "[drill.both]\nsources = [\"orders\", \"app\"]\n",
    )
    .await;
    let Store::S3(weed) = &site.store else {
        panic!("no store")
    };
    // Another host: nothing of the first one's state, no way to the sources, and an identity of the drill's own.
    edit(&site, |policy| {
        policy.replace(
            &site.path("state").display().to_string(),
            &site.path("runner").display().to_string(),
        )
    });
    let runner = |arguments: &[&str]| {
        let mut command = command(&site, arguments);
        command
            .env_remove("T_ORDERS_URL")
            .env("LIFEBOAT_STATE", site.path("runner"))
            .env("T_KEY_ID", &weed.reader.0)
            .env("T_KEY", &weed.reader.1);
        command
    };
    let before = objects(weed).await;
    let said = harness::run(&mut runner(&["drill", "both"]));
    assert_eq!((said.code, &said.json()["level"]), (0, &json!(6)), "{said}");
    let kept = said.json()["evidence"].as_str().unwrap().to_owned();
    assert!(
        Path::new(&kept).starts_with(site.path("runner/evidence")),
        "{said}"
    );
    // Writes are denied, and nothing was written.
    let denied = harness::run(&mut runner(&[
        "hold",
        "add",
        said.json()["sources"][0]["run"].as_str().unwrap(),
    ]));
    assert_ne!(denied.code, 0, "{denied}");
    assert_eq!(objects(weed).await, before);
    assert_eq!(verify(&site, &[&kept]).code, 0);
}

async fn objects(weed: &SeaweedFs) -> Vec<String> {
    let listed = weed
        .client()
        .list_objects_v2()
        .bucket("backups")
        .send()
        .await
        .unwrap();
    assert_ne!(listed.is_truncated(), Some(true));
    listed
        .contents()
        .iter()
        .map(|o| o.key().unwrap().to_owned())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn evidence_is_locked_where_points_are() {
    let store = Store::S3(SeaweedFs::start());
    let site = site_in(store, "[drill.app]\nsources = [\"app\"]\n").await;
    let Store::S3(weed) = &site.store else {
        panic!("no store")
    };
    weed.create_bucket("locked", true).await;
    edit(&site, |policy| {
        policy.replace(
            "url = \"s3://backups/shop\"",
            "url = \"s3://locked/shop\"\nobject_lock = { mode = \"governance\", days = 1 }",
        )
    });
    site.json(&["init"]);
    site.json(&["run", "app"]);
    let said = harness::run(&mut command(&site, &["drill", "app"]));
    assert_eq!(said.code, 0, "{said}");
    let key = format!("shop/{}", said.json()["evidence"].as_str().unwrap());
    let head = weed
        .client()
        .head_object()
        .bucket("locked")
        .key(&key)
        .send()
        .await
        .unwrap();
    assert!(head.object_lock_retain_until_date().is_some(), "{key}");
}
