//! Drills of a real Postgres and a real PocketBase: what is proven, at which level; what is caught; what is left.

use std::io::Read as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::chain::sha256;
use crate::harness::postgres::PostgresServer;
use crate::harness::{self, Said, poll, project};
use crate::site::{Site, Store};

/// A site with a point of each source, and drills.
pub async fn site(drills: &str) -> Site {
    site_in(Store::Directory, drills).await
}

/// The same, in a store.
pub async fn site_in(store: Store, drills: &str) -> Site {
    let site = Site::new(store).await;
    site.sql(
        "create table orders (id serial primary key, note text);
         insert into orders (note) select 'order ' || n from generate_series(1, 500) n;
         create index on orders (note)",
    );
    for n in 0..5 {
        site.app
            .create_record_with_file("notes", &format!("note {n}"), n, "a.txt", b"a file")
            .await;
    }
    let key = harness::run_ok(
        site.plain()
            .args(["key", "signing"])
            .arg(site.path("signing.key")),
    );
    harness::write_file(site.directory.path(), "signing.pub", key.stdout);
    edit(&site, |policy| {
        format!(
            "{policy}\n[evidence]\nkey = {{ file = \"{}\" }}\n\n{drills}",
            site.path("signing.key").display()
        )
    });
    site.json(&["init"]);
    site.json(&["run"]);
    site
}

pub fn edit(site: &Site, change: impl FnOnce(String) -> String) {
    let policy = std::fs::read_to_string(site.path("policy.toml")).unwrap();
    harness::write_file(site.directory.path(), "policy.toml", change(policy));
}

/// Where the programs are that drills look for, as PATH.
pub fn programs() -> String {
    let directories = [
        PostgresServer::newest().bin_dir(),
        project().join(".services/bin"),
        PathBuf::from("/usr/bin:/bin"),
    ];
    directories.map(|d| d.display().to_string()).join(":")
}

/// A command that finds the server programs.
pub fn command(site: &Site, arguments: &[&str]) -> Command {
    let mut command = site.backup(&["--json"]);
    command.env("PATH", programs()).args(arguments);
    command
}

pub fn drill(site: &Site, name: &str) -> (i32, Value) {
    let said = harness::run(&mut command(site, &["drill", name]));
    assert!([0, 22, 23].contains(&said.code), "{said}");
    (said.code, said.json())
}

pub fn of<'a>(report: &'a Value, source: &str) -> &'a Value {
    let mut sources = report["sources"].as_array().unwrap().iter();
    sources
        .find(|s| s["source"] == source)
        .unwrap_or_else(|| panic!("{report}"))
}

pub fn check<'a>(source: &'a Value, name: &str) -> &'a Value {
    let mut checks = source["checks"].as_array().unwrap().iter();
    checks
        .find(|c| c["name"].as_str().unwrap().starts_with(name))
        .unwrap_or_else(|| panic!("no {name} in {source}"))
}

#[track_caller]
pub fn nothing_is_left(site: &Site) {
    let left: Vec<_> = std::fs::read_dir(site.path("state/drills"))
        .map(|entries| entries.map(|e| e.unwrap().path()).collect())
        .unwrap_or_default();
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(processes(site), [0; 0], "a process is left");
}

/// Processes of sandboxes of this site: keepers know its directory, and the others descend from them.
pub fn processes(site: &Site) -> Vec<u32> {
    let directory = site.directory.path().display().to_string();
    let read =
        |pid: u32, file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let all: Vec<u32> = std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    let parent = |pid: u32| -> Option<u32> {
        let stat = read(pid, "stat");
        stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
    };
    let is_sandbox = |pid: u32| {
        let line = read(pid, "cmdline");
        line.contains("sandbox-") && line.contains(&directory)
    };
    all.into_iter()
        .filter(|pid| std::iter::successors(Some(*pid), |pid| parent(*pid)).any(is_sandbox))
        .collect()
}

pub fn verify(site: &Site, more: &[&str]) -> Said {
    let key = site.path("signing.pub");
    let mut command = site.plain();
    command
        .args(["--json", "evidence", "verify", "--key"])
        .arg(key)
        .args(more);
    harness::run(&mut command)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drill_proves_both_kinds_and_leaves_nothing_but_evidence() {
    let site = site("[drill.weekly]\nsources = [\"orders\", \"app\"]\n").await;
    let (code, report) = drill(&site, "weekly");
    assert_eq!(
        (code, &report["result"], &report["level"]),
        (0, &json!("passed"), &json!(6)),
        "{report:#}"
    );
    let orders = of(&report, "orders");
    for (name, level) in [
        ("objects are there", 0),
        ("objects have", 1),
        ("everything decodes", 2),
        ("it is restored", 3),
        ("facts of", 4),
        ("pg_dump of", 6),
        ("amcheck of", 6),
    ] {
        let check = check(orders, name);
        assert_eq!(
            (&check["level"], &check["result"]),
            (&json!(level), &json!("passed")),
            "{check}"
        );
    }
    assert!(
        orders["target"].as_str().unwrap().contains("Unix socket only"),
        "{orders}"
    );
    assert!(orders["rto_seconds"].as_f64().unwrap() > 0.0 && orders["rpo_seconds"].as_f64().unwrap() > 0.0);
    assert_eq!(orders["not_tested"], json!(["level 5: your own checks"]));
    let app = of(&report, "app");
    for name in [
        "integrity of data.db",
        "foreign keys",
        "files that rows name",
        "PocketBase boots",
        "PocketBase serves every",
    ] {
        assert_eq!(check(app, name)["result"], "passed", "{app}");
    }
    nothing_is_left(&site);
    // The production server and app are as they were, and go on.
    assert_eq!(site.sql("select count(*) from orders"), "500");
    assert_eq!(site.app.records("notes").await.len(), 5);
    // The point is marked wherever it is shown.
    let run = orders["run"].clone();
    let list = site.json(&["list", "orders"]);
    assert_eq!(
        list["sources"][0]["points"][0]["drilled"]["level"],
        json!(6),
        "{list}"
    );
    let plan = site.json(&["restore", "orders", "--at", "latest", "--dry-run"]);
    assert_eq!(
        (&plan["run"], &plan["drilled"]["level"]),
        (&run, &json!(6)),
        "{plan}"
    );
    let status = site.json(&["status"]);
    let shown = of(&status, "app");
    assert_eq!(shown["last_drill"]["level"], json!(6), "{status}");
    // The evidence: signed, in the repository, readable by people.
    let listed = site.json(&["evidence", "list"]);
    assert_eq!(listed["evidence"].as_array().unwrap().len(), 1, "{listed}");
    assert_eq!(
        (&listed["evidence"][0]["result"], &listed["evidence"][0]["signed"]),
        (&json!("passed"), &json!(true))
    );
    let id = listed["evidence"][0]["id"].as_str().unwrap();
    let markdown = harness::run_ok(&mut site.backup(&["evidence", "show", id])).stdout;
    for words in [
        "# Drill weekly: passed",
        "## orders: passed, level 6 (the application runs)",
        "| 4 | facts of the backup | passed |",
        "Not looked at: level 5: your own checks.",
    ] {
        assert!(markdown.contains(words), "{words}: {markdown}");
    }
    let statement = site.json(&["evidence", "show", id]);
    assert_eq!(statement["_type"], "https://in-toto.io/Statement/v1");
    let commit = std::fs::read(
        site.path("repository")
            .join(statement["subject"][0]["name"].as_str().unwrap()),
    )
    .unwrap();
    assert_eq!(
        statement["subject"][0]["digest"]["sha256"],
        json!(sha256(&commit))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn own_checks_are_made_on_what_was_restored() {
    let checks = r#"[drill.checks]
sources = ["orders", "app"]
keep_failed = "0s"
checks = [
    { source = "orders", name = "there are orders", sql = "select count(*) > 0 from orders" },
    { source = "orders", name = "five hundred", sql = "select count(*) from orders", expected = "500" },
    { source = "orders", name = "as Postgres writes it", sql = "select count(*) = 500 from orders", expected = "true" },
    { source = "orders", name = "a program", command = ["psql", "-XAtc", "select 1 / (count(*) - 499) from orders"] },
    { source = "app", name = "sqlite", sql = "select count(*) = 5 from notes" },
    { source = "app", name = "it answers", http = "http://shop.example.net:8090/api/health" },
FAILING
]
"#;
    let failing = r#"    { source = "orders", name = "no such table", sql = "select 1 from missing" },
    { source = "orders", name = "another number", sql = "select count(*) from orders", expected = "501" },
    { source = "orders", name = "nothing at all", sql = "select true where false" },
    { source = "orders", name = "it is false", sql = "select false" },
    { source = "orders", name = "two rows", sql = "select true from generate_series(1, 2)" },
    { source = "orders", name = "two columns", sql = "select true, false" },
    { source = "orders", name = "two statements", sql = "select true; select false" },
    { source = "app", name = "sqlite: two rows", sql = "select 1 from notes" },
    { source = "app", name = "sqlite: two columns", sql = "select 1, 0" },
    { source = "app", name = "a program that fails", command = ["sh", "-c", "echo too bad >&2; exit 3"] },
    { source = "app", name = "no such page", http = "http://localhost/api/nothing" },"#;
    let site = site(&checks.replace("FAILING", "")).await;
    let (code, report) = drill(&site, "checks");
    assert_eq!((code, &report["level"]), (0, &json!(6)), "{report:#}");
    assert_eq!(of(&report, "orders")["not_tested"], json!([]));
    edit(&site, |policy| {
        policy.replace("\n]\n", &format!("\n{failing}\n]\n"))
    });
    let (code, report) = drill(&site, "checks");
    // What the levels below said stays true.
    assert_eq!(
        (code, &report["result"], &report["level"]),
        (22, &json!("failed"), &json!(4)),
        "{report:#}"
    );
    for (source, name, words) in [
        ("orders", "no such table", "does not exist"),
        ("orders", "another number", "500"),
        ("orders", "nothing at all", "no value"),
        ("orders", "it is false", "f"),
        ("orders", "two rows", "2 rows"),
        ("orders", "two columns", "2 columns"),
        ("orders", "two statements", "2 statements"),
        ("app", "sqlite: two rows", "several rows"),
        ("app", "sqlite: two columns", "2 columns"),
        ("app", "a program that fails", "it ended with 3"),
        ("app", "no such page", "404"),
    ] {
        let check = check(of(&report, source), name);
        assert_eq!(
            (&check["result"], &check["level"]),
            (&json!("failed"), &json!(5)),
            "{check}"
        );
        let said = format!("{} {}", check["actual"], check["detail"]);
        assert!(said.contains(words), "{check}");
    }
    assert_eq!(check(of(&report, "orders"), "five hundred")["result"], "passed");
    nothing_is_left(&site);
    // Failures are evidence too, and the chain holds both.
    let chain = verify(&site, &[site.path("repository/evidence").to_str().unwrap()]);
    assert_eq!((chain.code, &chain.json()["evidence"]), (0, &json!(2)), "{chain}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_caught_at_its_level() {
    let site = site(
        "[drill.app]\nsources = [\"app\"]\nkeep_failed = \"0s\"\n\n[drill.stale]\nsources = [\"app\"]\nmax_age = \"1s\"\nkeep_failed = \"0s\"\n",
    )
    .await;
    // A stale point: everything else is well, and told to be.
    let newest: i64 = 1100;
    std::thread::sleep(Duration::from_millis(newest as u64));
    let (code, report) = drill(&site, "stale");
    assert_eq!((code, &report["level"]), (22, &json!(6)), "{report:#}");
    assert_eq!(
        check(of(&report, "app"), "age of the newest point")["result"],
        "failed"
    );
    // A wrong identity: nobody knows.
    let other = site.path("other.key");
    harness::run_ok(site.plain().args(["key", "generate"]).arg(&other));
    let said = harness::run(&mut command(
        &site,
        &["drill", "app", "--identity", other.to_str().unwrap()],
    ));
    assert_eq!(said.code, 23, "{said}");
    assert_eq!(said.json()["result"], "could_not_run");
    nothing_is_left(&site);
    // A bit, a missing object: told with its name, below everything that stands on it.
    let runs = site.path("repository/sources/app/runs");
    let run = std::fs::read_dir(&runs).unwrap().next().unwrap().unwrap().path();
    let pack = run.join("0.age");
    let bytes = std::fs::read(&pack).unwrap();
    let mut changed = bytes.clone();
    changed[bytes.len() / 2] ^= 1;
    for (content, level, name) in [
        (Some(changed), json!(0), "objects have their digests"),
        (None, json!(null), "objects are there"),
    ] {
        match content {
            Some(content) => std::fs::write(&pack, content).unwrap(),
            None => std::fs::remove_file(&pack).unwrap(),
        }
        let (code, report) = drill(&site, "app");
        assert_eq!((code, &report["level"]), (22, &level), "{report:#}");
        let check = check(of(&report, "app"), name);
        assert_eq!(check["result"], "failed");
        assert!(check["actual"].as_str().unwrap().contains("0.age"), "{check}");
        assert!(
            of(&report, "app")["not_tested"].as_array().unwrap().len() >= 4,
            "{report}"
        );
    }
    std::fs::write(&pack, bytes).unwrap();
    site.json(&["verify"]);
    assert_eq!(drill(&site, "app").0, 0, "whole again");
    // No point at all.
    std::fs::rename(site.path("repository/sources/app"), site.path("away")).unwrap();
    let (code, report) = drill(&site, "app");
    assert_eq!((code, &report["result"]), (22, &json!("failed")), "{report}");
    // No repository: nobody knows, and the evidence is kept here.
    std::fs::rename(site.path("repository"), site.path("gone")).unwrap();
    let (code, report) = drill(&site, "app");
    assert_eq!(code, 23, "{report}");
    assert!(
        Path::new(report["evidence"].as_str().unwrap()).starts_with(site.path("state/evidence")),
        "{report}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_program_is_told_with_what_to_install_and_a_budget_holds() {
    let site = site(
        "[drill.none]\nsources = [\"orders\", \"app\"]\nbinaries = \"/nowhere\"\n\n[drill.small]\nsources = [\"orders\"]\nbudget = \"1 MiB\"\n\n[drill.slow]\nsources = [\"app\"]\ntimeout = \"2s\"\nchecks = [{ source = \"app\", name = \"waits\", command = [\"sleep\", \"600\"] }]\n",
    )
    .await;
    let (code, report) = drill(&site, "none");
    assert_eq!(code, 23, "{report:#}");
    let orders = of(&report, "orders");
    let major = site.server.major();
    assert!(
        orders
            .to_string()
            .contains(&format!("Install postgresql-{major}")),
        "{orders}"
    );
    // What needs no program is proven all the same.
    let app = of(&report, "app");
    assert_eq!(
        (&app["level"], &app["result"]),
        (&json!(4), &json!("could_not_run")),
        "{app:#}"
    );
    assert!(
        check(app, "PocketBase boots")["actual"]
            .as_str()
            .unwrap()
            .contains("Install"),
        "{app}"
    );
    let (code, report) = drill(&site, "small");
    assert_eq!(code, 23, "{report:#}");
    assert!(report.to_string().contains("the drill may take 1 MB"), "{report}");
    let (code, report) = drill(&site, "slow");
    assert_eq!(code, 23, "{report:#}");
    assert!(report.to_string().contains("it took longer than 2s"), "{report}");
    nothing_is_left(&site);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drill_that_is_killed_leaves_nothing_behind_the_next_one() {
    let site = site("[drill.both]\nsources = [\"orders\", \"app\"]\nchecks = [{ source = \"orders\", name = \"waits\", command = [\"sleep\", \"600\"] }]\n\n[drill.app]\nsources = [\"app\"]\n").await;
    let mut killed = command(&site, &["drill", "both"]).spawn().unwrap();
    let working = poll(Duration::from_secs(60), || {
        // Keeper, init, the server with its own, and the check that waits.
        (processes(&site).len() >= 9).then_some(())
    });
    assert!(working.is_some(), "the drill does not get there");
    killed.kill().unwrap();
    killed.wait().unwrap();
    let ended = poll(Duration::from_secs(20), || {
        processes(&site).is_empty().then_some(())
    });
    assert!(ended.is_some(), "{:?} outlive the drill", processes(&site));
    let (code, report) = drill(&site, "app");
    assert_eq!(code, 0, "{report:#}");
    nothing_is_left(&site);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_target_is_kept_for_its_time_and_no_longer() {
    let site = site("[drill.app]\nsources = [\"app\"]\nkeep_failed = \"1h\"\nchecks = [{ source = \"app\", name = \"no\", sql = \"select 0\" }]\n").await;
    let (code, report) = drill(&site, "app");
    assert_eq!(code, 22);
    let cleanup = of(&report, "app")["cleanup"].as_str().unwrap().to_owned();
    assert!(
        cleanup.starts_with("kept at ") && cleanup.contains(" until "),
        "{cleanup}"
    );
    let kept = cleanup
        .trim_start_matches("kept at ")
        .split(" until ")
        .next()
        .unwrap();
    assert!(Path::new(kept).join("home/pb_data/data.db").exists(), "{kept}");
    assert_eq!(processes(&site), [0; 0]);
    // Its time is over: the entry says so.
    let entry = std::fs::read_dir(site.path("state/drills"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .find(|p| p.extension().is_some_and(|e| e == "json"))
        .unwrap();
    let mut document: Value = serde_json::from_slice(&std::fs::read(&entry).unwrap()).unwrap();
    document["keep_until"] = json!("2026-01-01T00:00:00Z");
    std::fs::write(&entry, document.to_string()).unwrap();
    edit(&site, |policy| policy.replace("select 0", "select 1"));
    assert_eq!(drill(&site, "app").0, 0);
    assert!(!Path::new(kept).exists());
    nothing_is_left(&site);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_app_reaches_nobody() {
    // Whoever is called is told at once.
    let trap = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = trap.local_addr().unwrap();
    trap.set_nonblocking(true).unwrap();
    let site = site("[drill.app]\nsources = [\"app\"]\nchecks = [{ source = \"app\", name = \"over a minute\", command = [\"sleep\", \"66\"] }, { source = \"app\", name = \"mail is asked for\", command = [\"python3\", \"-c\", \"import os, urllib.request as u, json; u.urlopen(u.Request(os.environ['POCKETBASE_URL'] + '/api/collections/users/request-password-reset', json.dumps({'email': 'a@example.com'}).encode(), {'Content-Type': 'application/json'}))\"] }]\n").await;
    let settings = json!({
        "smtp": {"enabled": true, "host": "127.0.0.1", "port": address.port(), "username": "", "password": "", "tls": false},
        "s3": {"enabled": false},
        "backups": {"cron": "* * * * *", "cronMaxKeep": 1, "s3": {"enabled": true, "bucket": "b", "region": "r", "endpoint": format!("http://{address}"), "accessKey": "a", "secret": "s", "forcePathStyle": true}},
    });
    site.app
        .request(reqwest::Method::PATCH, "/api/settings", Some(&settings))
        .await;
    site.app.request(reqwest::Method::POST, "/api/collections/users/records", Some(&json!({"email": "a@example.com", "password": "long enough", "passwordConfirm": "long enough"}))).await;
    site.json(&["run", "app"]);
    // The original is quiet from here on: only the copy could call.
    site.app
        .request(
            reqwest::Method::PATCH,
            "/api/settings",
            Some(&json!({"smtp": {"enabled": false}, "backups": {"cron": "", "s3": {"enabled": false}}})),
        )
        .await;
    while let Ok((mut stream, _)) = trap.accept() {
        let _ = stream.read(&mut [0; 16]);
    }
    let (code, report) = drill(&site, "app");
    assert_eq!(code, 0, "{report:#}");
    assert_eq!(check(of(&report, "app"), "over a minute")["result"], "passed");
    let called = trap.accept();
    assert!(called.is_err(), "the copy called out: {called:?}");
    nothing_is_left(&site);
}
