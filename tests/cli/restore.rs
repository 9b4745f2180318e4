//! Gaps, `--all` and restores without a policy, on a source that needs no server.

use std::time::Duration;

use serde_json::json;

use super::harness::{lifeboat, run, run_ok, write_file};
use super::{Site, error};

/// A PocketBase's databases without a PocketBase: what a snapshot needs.
pub fn pb_data(site: &Site) {
    let data = site.path("pb_data");
    std::fs::create_dir(&data).unwrap();
    for name in ["data.db", "auxiliary.db"] {
        let database = rusqlite::Connection::open(data.join(name)).unwrap();
        database
            .execute_batch(
                "pragma journal_mode = wal; create table t (a); insert into t values (1), (2), (3); create table _collections (id, name, fields, type)",
            )
            .unwrap();
    }
}

#[test]
fn a_gap_is_refused_until_it_is_accepted_and_all_sources_go_to_one_instant() {
    let site = Site::new();
    pb_data(&site);
    let policy = std::fs::read_to_string(site.path("policy.toml")).unwrap();
    write_file(
        site.dir.path(),
        "policy.toml",
        policy + "objective = { rpo = \"1s\" }\n",
    );
    run_ok(&mut site.backup(&["init"]));
    let taken = run_ok(&mut site.backup(&["run", "app", "--json"])).json();
    assert_eq!(taken["runs"][0]["result"], "done");
    assert!(taken.get("error").is_none());
    let id = taken["runs"][0]["run"].as_str().unwrap().to_owned();
    // Only time makes a gap.
    std::thread::sleep(Duration::from_millis(1200));
    let now = lifeboat::clock::World::system().clock.now().to_rfc3339();
    let identity = ["--identity", "key"];
    let restore = |more: &[&str]| {
        let args = [&["--json", "restore"], more, &["--at", &now], &identity[..]].concat();
        run(&mut site.backup(&args))
    };

    // One source.
    let said = restore(&["app", "--to", "one"]);
    assert_eq!(said.code, 20, "{said}");
    let refused = error(&said);
    assert!(
        refused["hint"].as_str().unwrap().contains("--max-gap"),
        "{refused}"
    );
    assert!(!site.path("one").exists(), "a refusal writes nothing");
    assert_eq!(restore(&["app", "--to", "one", "--max-gap", "1s"]).code, 20);
    let dry = restore(&["app", "--dry-run", "--max-gap", "1h"]);
    assert_eq!((dry.code, &dry.json()["dry_run"]), (0, &json!(true)), "{dry}");
    let said = restore(&["app", "--to", "one", "--max-gap", "1h"]);
    assert_eq!(said.code, 0, "{said}");
    let report = said.json();
    assert_eq!(
        (&report["run"], &report["precision"]),
        (&json!(id), &json!("point"))
    );
    assert!(report["gap_seconds"].as_f64().unwrap() > 1.0, "{report}");
    assert!(report["requested"].is_string(), "{report}");
    let plan = said.stderr.find("gap    ").unwrap_or_else(|| panic!("{said}"));
    assert!(
        said.stderr.starts_with("at: ") && said.stderr[plan..].contains("size"),
        "{said}"
    );
    let rows = |file: &str| -> i64 {
        let database = rusqlite::Connection::open(site.path(file)).unwrap();
        database
            .query_row("select count(*) from t", [], |row| row.get(0))
            .unwrap()
    };
    assert_eq!(rows("one/data.db"), 3);

    // All: orders has no point, which does not hold back the app; a gap that nobody accepted holds back everything.
    let said = restore(&["--all", "--to", "all"]);
    assert_eq!(said.code, 20, "{said}");
    assert!(!site.path("all").exists(), "a refusal writes nothing");
    let said = restore(&["--all", "--to", "all", "--yes"]);
    assert_eq!(said.code, 3, "{said}");
    let report = said.json();
    assert_eq!(report["sources"][0]["run"], json!(id), "{report}");
    assert_eq!(report["sources"][0]["error"], json!(null), "{report}");
    assert_eq!(report["sources"][1]["source"], "orders");
    assert_eq!(report["sources"][1]["error"]["code"], "unreachable");
    assert_eq!(rows("all/app/data.db"), 3);
    // Each to its own place; without a policy the repository says what there is.
    let said = run(lifeboat().current_dir(site.dir.path()).args([
        "--json",
        "restore",
        "--all",
        "--at",
        "latest",
        "--repository",
        "repository",
        "--identity",
        "key",
        "--to",
        "app=two",
    ]));
    assert_eq!(said.code, 0, "{said}");
    assert_eq!(rows("two/data.db"), 3);
    let without_policy = |args: &[&str]| {
        let mut command = lifeboat();
        command.current_dir(site.dir.path()).arg("--json").args(args);
        run(command.args(["--repository", "repository"]))
    };
    let said = without_policy(&["list", "app"]);
    assert_eq!(
        (said.code, &said.json()["sources"][0]["points"][0]["run"]),
        (0, &json!(id)),
        "{said}"
    );
    let said = without_policy(&["verify", "--content", "--identity", "key"]);
    assert_eq!((said.code, &said.json()["missing"]), (0, &json!([])), "{said}");
    assert!(said.json()["objects"].as_u64().unwrap() > 4, "{said}");
    // A state directory that is no use (here: something is in the way of its scratch) does not keep a restore from working,
    // and nothing is left in the place that serves instead.
    std::fs::create_dir_all(site.path("tmp")).unwrap();
    std::fs::create_dir_all(site.path("useless")).unwrap();
    write_file(site.dir.path(), "useless/scratch", "");
    let mut command = lifeboat();
    command
        .current_dir(site.dir.path())
        .env("LIFEBOAT_STATE", site.path("useless"))
        .env("TMPDIR", site.path("tmp"));
    let args = [
        "restore",
        "app",
        "--at",
        "latest",
        "--repository",
        "repository",
        "--identity",
        "key",
        "--to",
        "four",
    ];
    let said = run(command.args(args));
    assert_eq!((said.code, rows("four/data.db")), (0, 3), "{said}");
    assert!(std::fs::read_dir(site.path("tmp")).unwrap().next().is_none());
    // This very point.
    let said = run(&mut site.backup(&[
        "restore",
        "app",
        "--at-point",
        &id,
        "--to",
        "three",
        "--identity",
        "key",
    ]));
    assert_eq!((said.code, rows("three/data.db")), (0, 3), "{said}");
}

/// Runs `restore` with the identity, as a script does.
fn restored(site: &Site, more: &[&str]) -> super::harness::Said {
    let args = [&["--json", "restore"], more, &["--identity", "key"]].concat();
    run(&mut site.backup(&args))
}

/// A site whose only source is the app, with an objective.
fn app_only(rpo: &str) -> Site {
    let site = Site::new();
    pb_data(&site);
    let policy = std::fs::read_to_string(site.path("policy.toml")).unwrap();
    let (before, after) = policy.split_once("[source.orders]").unwrap();
    let (_, app) = after.split_once("[source.app]").unwrap();
    write_file(
        site.dir.path(),
        "policy.toml",
        format!("{before}[source.app]{app}objective = {{ rpo = \"{rpo}\" }}\n"),
    );
    run_ok(&mut site.backup(&["init"]));
    site
}

#[test]
fn the_newest_is_never_refused_for_its_age_and_its_age_is_told() {
    let site = app_only("1s");
    run_ok(&mut site.backup(&["run"]));
    // Only time makes an age.
    std::thread::sleep(Duration::from_millis(1300));
    for (args, text) in [
        (&["app", "--at", "latest", "--to", "one"][..], "app"),
        (&["--all", "--at", "latest", "--to", "all"], "all"),
        (&["--all", "--at", "latest", "--dry-run"], "dry"),
    ] {
        let said = restored(&site, args);
        assert_eq!(said.code, 0, "{text}: {said}");
        let document = said.json();
        let report = match document.get("sources") {
            Some(sources) => &sources[0],
            None => &document,
        };
        assert!(report["requested"].is_string(), "{text}: {document}");
        assert!(
            report["age_seconds"].as_f64().unwrap() > 1.0,
            "{text}: {document}"
        );
        assert_eq!(report["age_seconds"], report["gap_seconds"], "{text}: {document}");
        assert!(said.stderr.contains("  age    1."), "{text}: {said}");
    }
}

#[test]
fn the_hint_of_a_refused_gap_works_when_it_is_pasted_later() {
    let site = app_only("1s");
    run_ok(&mut site.backup(&["run"]));
    std::thread::sleep(Duration::from_millis(3300));
    let said = restored(&site, &["app", "--at", "1 second ago", "--dry-run"]);
    assert_eq!(said.code, 20, "{said}");
    let hint = error(&said)["hint"].as_str().unwrap().to_owned();
    let word_after = |option: &str| {
        let rest = hint
            .split(option)
            .nth(1)
            .unwrap_or_else(|| panic!("{option}: {hint}"));
        rest.trim_start()
            .split([' ', '.', ','])
            .next()
            .unwrap()
            .to_owned()
    };
    let (gap, run_id) = (word_after("--max-gap"), word_after("--at-point"));
    std::thread::sleep(Duration::from_millis(2200));
    let said = restored(
        &site,
        &["app", "--at", "1 second ago", "--dry-run", "--max-gap", &gap],
    );
    assert_eq!(said.code, 0, "{said}");
    assert_eq!(
        restored(&site, &["app", "--at-point", &run_id, "--dry-run"]).code,
        0
    );
}

#[test]
fn a_dry_run_needs_every_key_that_the_restore_needs() {
    let site = app_only("1h");
    run_ok(&mut site.backup(&["run"]));
    run_ok(&mut site.backup(&["key", "rotate", "--yes"]));
    let taken = run_ok(&mut site.backup(&["run", "--json"])).json();
    let run_id = taken["runs"][0]["run"].as_str().unwrap().to_owned();
    let shown = run_ok(&mut site.backup(&["list", &run_id, "--json"])).json();
    assert!(
        !shown["refs"].as_array().unwrap().is_empty(),
        "it draws on the first: {shown}"
    );
    run_ok(&mut site.backup(&[
        "restore",
        "app",
        "--at",
        "latest",
        "--identity",
        "key",
        "--dry-run",
    ]));
    // The first generation's key, wrapped for somebody else: the point's own opens, what it draws on does not.
    let other = run_ok(lifeboat().args(["key", "generate"]).arg(site.path("second"))).stdout;
    let other: age::x25519::Recipient = other.trim().parse().unwrap();
    let wrap = age::encrypt(&other, b"for somebody else").unwrap();
    let newest = shown["generation"].as_str().unwrap();
    for generation in std::fs::read_dir(site.path("repository/keys")).unwrap().flatten() {
        if generation.file_name() != newest {
            for file in std::fs::read_dir(generation.path()).unwrap().flatten() {
                std::fs::write(file.path(), &wrap).unwrap();
            }
        }
    }
    for args in [
        &[
            "restore",
            "app",
            "--at",
            "latest",
            "--identity",
            "key",
            "--dry-run",
        ][..],
        &[
            "restore",
            "app",
            "--at",
            "latest",
            "--identity",
            "key",
            "--to",
            "out",
        ],
    ] {
        site.refused(args, 12);
    }
    assert!(!site.path("out").exists());
}

#[test]
fn without_an_identity_all_is_refused_once_and_nothing_is_said_of_a_result() {
    let site = app_only("1h");
    run_ok(&mut site.backup(&["run"]));
    for args in [
        &["restore", "--all", "--at", "latest", "--to", "all"][..],
        &["restore", "app", "--at", "latest", "--to", "all"],
    ] {
        let said = run(&mut site.backup(args));
        assert_eq!(said.code, 12, "{said}");
        assert_eq!(said.stderr.matches("error: ").count(), 1, "{said}");
        assert!(
            !said.stderr.contains("NOT restored") && said.stdout.is_empty(),
            "{said}"
        );
    }
    assert!(!site.path("all").exists());
    // A plan needs none, and says what it did not look at.
    let said = run_ok(&mut site.backup(&["restore", "app", "--at", "latest", "--dry-run"]));
    assert!(said.stderr.contains("there is no identity at hand"), "{said}");
}

#[test]
fn a_refused_all_says_it_once_and_a_failed_source_has_every_field() {
    let site = app_only("1s");
    run_ok(&mut site.backup(&["run"]));
    std::thread::sleep(Duration::from_millis(1300));
    let now = lifeboat::clock::World::system().clock.now().to_rfc3339();
    let said = run(&mut site.backup(&[
        "restore",
        "--all",
        "--at",
        &now,
        "--to",
        "all",
        "--identity",
        "key",
    ]));
    assert_eq!(said.code, 20, "{said}");
    assert_eq!(said.stderr.matches("more than the").count(), 1, "{said}");
    // One that is not there yet beside one that is.
    let policy = std::fs::read_to_string(site.path("policy.toml")).unwrap();
    let more = format!(
        "\n[source.later]\nkind = \"pocketbase\"\npath = \"{}\"\n",
        site.path("x").display()
    );
    write_file(site.dir.path(), "policy.toml", policy + &more);
    let said = restored(&site, &["--all", "--at", "latest", "--to", "all"]);
    assert_eq!(said.code, 3, "{said}");
    let document = said.json();
    let fields = |at: usize| -> Vec<String> {
        document["sources"][at]
            .as_object()
            .unwrap()
            .keys()
            .cloned()
            .collect()
    };
    assert_eq!(
        document["sources"][1]["error"]["code"], "unreachable",
        "{document}"
    );
    assert_eq!(document["sources"][1]["run"], json!(null), "{document}");
    let (done, refused) = (fields(0), fields(1));
    assert!(
        done.len() > 15 && done.iter().all(|f| refused.contains(f)),
        "{done:?} {refused:?}"
    );
}

#[test]
fn a_target_may_name_its_source_and_no_other() {
    let site = app_only("1h");
    run_ok(&mut site.backup(&["run"]));
    let said = restored(&site, &["app", "--at", "latest", "--to", "app=./named"]);
    assert_eq!(said.code, 0, "{said}");
    assert!(site.path("named/data.db").exists() && !site.path("app=.").exists());
    let said = restored(&site, &["app", "--at", "latest", "--to", "orders=./other"]);
    assert_eq!(said.code, 2, "{said}");
    assert!(!site.path("other").exists() && !site.path("orders=.").exists());
}

#[test]
fn what_is_not_built_yet_is_said_plainly() {
    let site = app_only("1h");
    run_ok(&mut site.backup(&["run"]));
    for option in [&["--reuse", "--yes"][..], &["--timeline", "2"], &["--no-recover"]] {
        let args = [
            &[
                "restore",
                "app",
                "--at",
                "latest",
                "--to",
                "t",
                "--identity",
                "key",
            ],
            option,
        ]
        .concat();
        let refused = site.refused(&args, 2);
        assert!(
            refused["message"].as_str().unwrap().contains("not built yet"),
            "{option:?}: {refused}"
        );
    }
    for option in ["--at-lsn", "--at-xid", "--at-name"] {
        let refused = site.refused(&["restore", "app", option, "1", "--to", "t"], 2);
        assert!(
            refused["message"].as_str().unwrap().contains("not built yet"),
            "{option}: {refused}"
        );
    }
    let refused = site.refused(
        &[
            "restore",
            "app",
            "--at",
            "latest",
            "--to",
            "s3://b/x",
            "--identity",
            "key",
        ],
        2,
    );
    assert!(
        refused["hint"].as_str().unwrap().contains("directory"),
        "{refused}"
    );
    let help = run_ok(lifeboat().args(["restore", "--help"])).stdout;
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(help.matches("not built yet").count(), 6, "{help}");
    assert!(!help.contains("s3://"), "{help}");
    let refused = site.refused(&["restore", "app", "--at", "latest"], 2);
    assert!(!refused["hint"].as_str().unwrap().contains("s3://"), "{refused}");
}

#[test]
fn one_instant_is_shown_the_same_everywhere_and_finds_its_point_again() {
    let site = app_only("1h");
    run_ok(&mut site.backup(&["run"]));
    let document = run_ok(&mut site.backup(&["list", "--json"])).json();
    let point = &document["sources"][0]["points"][0];
    let (id, at) = (
        point["run"].as_str().unwrap().to_owned(),
        point["at"].as_str().unwrap().to_owned(),
    );
    let shown = [
        run_ok(&mut site.backup(&["list"])).stdout,
        run_ok(&mut site.backup(&["list", &id])).stdout,
        run_ok(&mut site.backup(&["status"])).stdout,
        run_ok(&mut site.backup(&[
            "restore",
            "app",
            "--at",
            "latest",
            "--dry-run",
            "--identity",
            "key",
        ]))
        .stdout,
    ];
    for text in &shown {
        assert!(text.contains(&at), "{at}: {text}");
    }
    // The zone's column too.
    let table = &shown[0];
    let line = table
        .lines()
        .find(|l| l.starts_with(&id))
        .unwrap_or_else(|| panic!("{table}"));
    for instant in line
        .split_whitespace()
        .filter(|word| word.contains('T') && word.contains(':'))
    {
        let said = restored(&site, &["app", "--at", instant, "--dry-run"]);
        assert_eq!(said.json()["run"], json!(id), "{instant}: {said}");
        assert_eq!(said.json()["gap_seconds"], json!(0.0), "{instant}: {said}");
    }
}

#[test]
fn an_incomplete_restore_of_another_source_is_named() {
    let site = app_only("1h");
    run_ok(&mut site.backup(&["run"]));
    let marker = r#"{"source":"orders","run":"01ARZ3NDEKTSV4RRFFQ69G5FAV","started":"2026-11-24T10:00:00Z"}"#;
    std::fs::create_dir(site.path("half")).unwrap();
    write_file(&site.path("half"), ".lifeboat-restore-incomplete", marker);
    let args = [
        "restore",
        "app",
        "--at",
        "latest",
        "--to",
        "half",
        "--identity",
        "key",
    ];
    let refused = site.refused(&args, 2);
    let hint = refused["hint"].as_str().unwrap();
    assert!(
        hint.contains("backup restore orders --at-point 01ARZ3NDEKTSV4RRFFQ69G5FAV"),
        "{hint}"
    );
}
