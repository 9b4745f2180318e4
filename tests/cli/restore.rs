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
                "pragma journal_mode = wal; create table t (a); insert into t values (1), (2), (3)",
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
