//! What an operator meets day by day: status after failed runs, logs, exit codes of one cause, paths in policies.

use std::process::Stdio;

use serde_json::{Value, json};

use super::Site;
use super::harness::{run_code, run_ok, write_file};
use super::restore::pb_data;

fn source<'a>(document: &'a Value, name: &str) -> &'a Value {
    let sources = document["sources"].as_array().unwrap();
    sources.iter().find(|s| s["source"] == name).unwrap()
}

/// A policy of the app alone.
fn app_only(site: &Site) {
    let policy = std::fs::read_to_string(site.path("policy.toml")).unwrap();
    let (before, after) = policy.split_once("[source.orders]").unwrap();
    let (_, app) = after.split_once("[source.app]").unwrap();
    write_file(
        site.dir.path(),
        "policy.toml",
        format!("{before}[source.app]{app}"),
    );
}

#[test]
fn status_tells_of_failed_interrupted_and_killed_runs() {
    let site = Site::new();
    app_only(&site);
    pb_data(&site);
    run_ok(&mut site.backup(&["init"]));
    run_ok(&mut site.backup(&["run", "app"]));
    let status = |code| run_code(&mut site.backup(&["status", "--json"]), code).json();
    let good = status(0);
    assert_eq!(source(&good, "app")["last_run"]["result"], "done");

    // Twice without its data: the point is young, and still all is not well.
    std::fs::rename(site.path("pb_data"), site.path("away")).unwrap();
    for n in 1..=2 {
        run_code(&mut site.backup(&["run", "app"]), 1);
        let bad = status(1);
        let app = source(&bad, "app");
        assert_eq!(
            (&app["last_run"]["result"], &app["last_run"]["failures"]),
            (&json!("failed"), &json!(n))
        );
        let problem = app["problems"][0].as_str().unwrap();
        assert!(problem.contains("pb_data"), "{problem}");
        assert!(
            bad["sentence"].as_str().unwrap().contains("need attention"),
            "{bad}"
        );
    }
    let text = run_code(&mut site.backup(&["status"]), 1);
    assert!(text.stdout.contains("none of the last 2 runs was done"), "{text}");
    // What is wrong before the repository is reached counts too.
    std::fs::rename(site.path("repository"), site.path("repository.away")).unwrap();
    run_code(&mut site.backup(&["run", "app"]), 10);
    std::fs::rename(site.path("repository.away"), site.path("repository")).unwrap();
    assert_eq!(source(&status(1), "app")["last_run"]["failures"], 3);

    std::fs::rename(site.path("away"), site.path("pb_data")).unwrap();
    let places = std::fs::read_dir(site.path("state/runs")).unwrap();
    let directory = places.last().unwrap().unwrap().path().join("app");
    // A beginning that nobody holds is a run that was killed, however it came about.
    let now = lifeboat::clock::World::system().clock.now();
    write_file(&directory, "began", now.to_rfc3339());
    let killed = status(1);
    let problem = source(&killed, "app")["problems"].to_string();
    assert!(
        problem.contains("interrupted") && problem.contains("killed"),
        "{problem}"
    );

    // One that is done makes good for all.
    run_ok(&mut site.backup(&["run", "app"]));
    assert_eq!(source(&status(0), "app")["last_run"]["failures"], 0);
    // And lost state costs nothing.
    std::fs::remove_dir_all(site.path("state")).unwrap();
    assert_eq!(source(&status(0), "app")["last_run"], Value::Null);
}

#[test]
fn status_tells_a_run_that_was_stopped_from_one_that_was_killed() {
    use rustix::process::{Pid, Signal, kill_process};
    let site = Site::new();
    run_ok(&mut site.backup(&["init"]));
    // A server that never answers: the run is under way for as long as it is let.
    let server = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let url = format!(
        "postgres://u@{}/orders?sslmode=disable",
        server.local_addr().unwrap()
    );
    let stop = |signal| {
        let mut child = site
            .backup(&["run", "orders"])
            .env("T_ORDERS_URL", &url)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let _connection = server.accept().unwrap();
        let going_on = run_code(&mut site.backup(&["status", "--json"]), 1).json();
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).unwrap();
        kill_process(pid, signal).unwrap();
        child.wait().unwrap();
        let stopped = run_code(&mut site.backup(&["status", "--json"]), 1).json();
        [going_on, stopped].map(|status| source(&status, "orders")["last_run"].clone())
    };
    let [before, stopped] = stop(Signal::TERM);
    assert_eq!(before, Value::Null);
    assert_eq!(
        (&stopped["result"], &stopped["failures"]),
        (&json!("interrupted"), &json!(1))
    );
    assert!(stopped["ended"].is_string(), "{stopped}");
    let [before, killed] = stop(Signal::KILL);
    assert_eq!(before, stopped, "one that goes on is not the last one yet");
    assert_eq!(
        (&killed["result"], &killed["failures"], &killed["ended"]),
        (&json!("interrupted"), &json!(2), &Value::Null)
    );
    let text = run_code(&mut site.backup(&["status"]), 1);
    assert!(text.stdout.contains("it was killed"), "{text}");
}

#[test]
fn logs_tell_phases_and_objects_and_no_secret() {
    let site = Site::new();
    pb_data(&site);
    run_ok(&mut site.backup(&["init"]));
    let log = |args: &[&str], filter: Option<&str>| {
        let mut command = site.backup(&[&["run", "app"][..], args].concat());
        if let Some(filter) = filter {
            command.env("LIFEBOAT_LOG", filter);
        }
        run_ok(&mut command).stderr
    };
    assert_eq!(log(&[], None), "");
    for stderr in [log(&["-v"], None), log(&[], Some("info"))] {
        assert!(
            stderr.contains("INFO") && stderr.contains("a run begins"),
            "{stderr}"
        );
        assert!(
            stderr.contains("backing up app") && stderr.contains("the run ended"),
            "{stderr}"
        );
        assert!(!stderr.contains("DEBUG"), "{stderr}");
    }
    for stderr in [
        log(&["-vv"], None),
        log(&[], Some("debug")),
        log(&[], Some("lifeboat=trace")),
    ] {
        let put = stderr
            .lines()
            .find(|l| l.contains("call=\"put\"") && l.contains("manifest.age"));
        let put = put.unwrap_or_else(|| panic!("{stderr}"));
        assert!(put.contains("bytes=") && put.contains("ms="), "{put}");
        assert!(stderr.contains("call=\"get\""), "{stderr}");
        let identity = std::fs::read_to_string(site.path("key")).unwrap();
        assert!(!stderr.contains(identity.lines().last().unwrap()));
    }
    for bad in ["bogus=,", "bogus", "lifeboat=loud", "debug,"] {
        let said = run_code(site.backup(&["list"]).env("LIFEBOAT_LOG", bad), 2);
        assert!(said.stderr.contains("LIFEBOAT_LOG"), "{bad}: {said}");
    }
}

#[test]
fn one_cause_has_one_exit_code() {
    let site = Site::new();
    pb_data(&site);
    run_ok(&mut site.backup(&["init"]));
    // A missing secret: told once, and 2 as from `run`.
    let said = run_code(site.backup(&["check", "--json"]).env_remove("T_ORDERS_URL"), 2);
    assert_eq!(
        said.stdout.matches("T_ORDERS_URL is not set").count(),
        1,
        "{said}"
    );
    run_code(site.backup(&["run", "orders"]).env_remove("T_ORDERS_URL"), 2);
    // Nobody serves the source: nothing that the policy could mend.
    let said = run_code(&mut site.backup(&["check", "--json"]), 1);
    assert_eq!(said.json()["ok"], json!(false));
    // A directory: no clock of its own, and whoever writes there may delete; neither can be mended.
    let findings = said.json()["findings"].to_string();
    assert!(!findings.contains("can delete"), "{findings}");
    let text = run_code(&mut site.backup(&["check"]), 1).stdout;
    assert!(
        !text.contains("off this host's clock") && text.contains("a directory"),
        "{text}"
    );
    // A point that there is not.
    let unknown = "01ARZ3NDEKTSV4RRFFQ69G5FAV";
    run_ok(&mut site.backup(&["run", "app"]));
    for args in [
        &["list", unknown][..],
        &["hold", "list", unknown],
        &["restore", "app", "--at-point", unknown, "--dry-run"],
        &["prune", "--undo", unknown],
    ] {
        let said = super::harness::run(&mut site.backup(args));
        // The policy has no [prune]; that is the policy's mistake, with the same code.
        assert_eq!(said.code, 2, "{args:?}: {said}");
    }
    let run = run_ok(&mut site.backup(&["list", "app", "--json"])).json();
    let run = run["sources"][0]["points"][0]["run"].as_str().unwrap().to_owned();
    assert_eq!(
        run_ok(&mut site.backup(&["hold", "list", &run])).stdout,
        "no holds\n"
    );
}

#[test]
fn relative_paths_of_a_policy_are_taken_from_its_directory() {
    let site = Site::new();
    pb_data(&site);
    let policy = std::fs::read_to_string(site.path("policy.toml")).unwrap();
    let root = site.dir.path().display().to_string();
    let policy = policy
        .replace(&format!("dir = \"{root}/state\""), "dir = \"./rel/state\"")
        .replace(&format!("path = \"{root}/pb_data\""), "path = \"pb_data\"")
        .replace("[encryption]\n", "[encryption]\nidentity = { file = \"key\" }\n");
    write_file(site.dir.path(), "policy.toml", policy);
    for args in [&["init"][..], &["run", "app"], &["verify", "--content"]] {
        run_ok(site.backup(args).current_dir("/"));
    }
    // By a relative name of the policy, from elsewhere.
    let elsewhere = site.path("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    run_ok(
        site.backup(&["--policy", "../policy.toml", "run", "app"])
            .current_dir(&elsewhere),
    );
    assert!(site.path("rel/state/writer").is_file());
    assert_eq!(std::fs::read_dir(&elsewhere).unwrap().count(), 0);
    assert!(!std::path::Path::new("/rel").exists());
}
