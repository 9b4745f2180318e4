//! What an operator meets day by day: status after failed runs, logs, exit codes of one cause, paths in policies.

use std::process::Stdio;

use serde_json::{Value, json};

use super::Site;
use super::harness::{lifeboat, run_code, run_ok, write_file};
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
        assert!(bad["sentence"].as_str().unwrap().contains("attention"), "{bad}");
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

#[test]
fn without_an_objective_and_a_schedule_a_gap_is_accepted_and_told() {
    let site = Site::new();
    pb_data(&site);
    run_ok(&mut site.backup(&["init"]));
    run_ok(&mut site.backup(&["run", "app"]));
    let later = lifeboat::clock::World::system().clock.now().to_rfc3339();
    let args = [
        "--json",
        "restore",
        "app",
        "--at",
        &later,
        "--dry-run",
        "--identity",
        "key",
    ];
    let told = run_ok(&mut site.backup(&args)).json()["warnings"].to_string();
    assert!(told.contains("any gap is accepted"), "{told}");
    // A limit that is given is held, and nothing is said of one that is lacking.
    let more = [&args[..], &["--max-gap", "1h"]].concat();
    let told = run_ok(&mut site.backup(&more)).json()["warnings"].to_string();
    assert_eq!(told, "[]");
}

#[test]
fn with_json_the_document_says_it_and_standard_error_is_left_to_warnings() {
    let site = Site::new();
    pb_data(&site);
    run_ok(&mut site.backup(&["init"]));
    for (args, code) in [
        (&["list", "nosuch"][..], 2),
        (&["run", "orders"], 1),
        (&["key", "generate", "key"], 2),
        (&["restore", "app", "--at", "latest"], 2),
        (&["status", "--nothing"], 2),
    ] {
        let said = run_code(site.backup(args).arg("--json"), code);
        assert_eq!(said.stderr, "", "{args:?}: {said}");
        assert!(said.json()["error"]["message"].is_string(), "{said}");
        let text = run_code(&mut site.backup(args), code);
        assert!(text.stderr.contains("error: "), "{args:?}: {text}");
    }
    let made = run_ok(site.backup(&["key", "generate", "other"]).arg("--json"));
    assert_eq!(made.stderr, "");
}

#[test]
fn holds_and_undo_say_what_they_did() {
    let site = Site::new();
    app_only(&site);
    pb_data(&site);
    let policy = std::fs::read_to_string(site.path("policy.toml")).unwrap();
    let with = |retention: &str| {
        let text = format!("{policy}retention = \"r\"\n[retention.r]\n{retention}\n[prune]\n");
        write_file(site.dir.path(), "policy.toml", text);
    };
    with("window = \"1s\"");
    run_ok(&mut site.backup(&["init"]));
    let mut runs: Vec<String> = Vec::new();
    for _ in 0..7 {
        let taken = run_ok(&mut site.backup(&["run", "app", "--json"])).json();
        runs.push(taken["runs"][0]["run"].as_str().unwrap().to_owned());
    }
    run_ok(&mut site.backup(&["hold", "add", &runs[0].to_lowercase(), "--why", "x"]));
    let removed = run_ok(&mut site.backup(&["hold", "remove", &runs[0], "--json"])).json();
    assert_eq!(
        (&removed["removed"], &removed["holds"]),
        (&json!(runs[0]), &json!([]))
    );
    // A run in small letters is a run, not a source.
    let one = run_ok(&mut site.backup(&["list", &runs[0].to_lowercase(), "--json"])).json();
    assert_eq!(one["run"], json!(runs[0]));

    std::thread::sleep(std::time::Duration::from_millis(1100));
    let pruned = run_ok(&mut site.backup(&["prune", "--json"])).json();
    let expired = pruned["expire"].as_array().unwrap().len();
    assert!(expired >= 4, "{pruned}");
    // The policy keeps everything now: one line for all of them, with the first few.
    with("window = \"9d\"");
    let told = run_ok(&mut site.backup(&["prune"]));
    let warnings: Vec<&str> = told.stderr.lines().collect();
    assert_eq!(warnings.len(), 1, "{told}");
    assert!(
        warnings[0].contains(&format!("{expired} recovery points had expired")),
        "{told}"
    );
    assert_eq!(
        runs.iter().filter(|r| warnings[0].contains(r.as_str())).count(),
        3,
        "{told}"
    );
    let undone = run_ok(&mut site.backup(&["prune", "--undo", &runs[0].to_lowercase(), "--json"])).json();
    assert_eq!(
        (&undone["run"], &undone["source"]),
        (&json!(runs[0]), &json!("app"))
    );
    assert!(
        undone.get("undo_until").is_none() && undone.get("tombstoned").is_none(),
        "{undone}"
    );
}

#[test]
fn hints_fit_where_they_are_given() {
    let site = Site::new();
    // A directory has no bucket; the URL of the command line is not in the policy.
    let error = site.refused(&["list"], 10);
    let hint = error["hint"].as_str().unwrap();
    assert!(
        hint.contains("`backup init`") && !hint.contains("bucket"),
        "{hint}"
    );
    let nowhere = site.path("nowhere").display().to_string();
    let said = run_code(lifeboat().args(["--json", "list", "--repository", &nowhere]), 10);
    let hint = said.json()["error"]["hint"].as_str().unwrap().to_owned();
    assert!(
        hint.contains("--repository") && !hint.contains("repository.url"),
        "{hint}"
    );
    // What goes without a policy is said where it is asked of what does not.
    for args in [&["status"][..], &["hold", "list"]] {
        let said = run_code(site.backup(args).args(["--repository", "/r"]), 2);
        assert!(
            said.stderr.contains("Only `list`, `restore` and `verify`"),
            "{said}"
        );
    }
    let error = site.refused(&["key", "generate", "nodir/x.key"], 2);
    assert_eq!(error["hint"], "Make it first: mkdir -p nodir");
    // Nothing is named that only a checkout has.
    let said = run_code(lifeboat().arg("check").current_dir(site.dir.path().join("..")), 2);
    assert!(said.stderr.contains("backup man DIR"), "{said}");
    let said = run_code(site.backup(&["run", "orders"]).env_remove("T_ORDERS_URL"), 2);
    assert!(!said.stderr.contains("policies/"), "{said}");
}

#[test]
fn a_store_of_ones_own_without_credentials_asks_no_metadata_service() {
    let begun = std::time::Instant::now();
    let said = run_code(
        lifeboat()
            .args(["list", "--repository", "s3://bucket/x"])
            .env("AWS_ENDPOINT_URL", "http://127.0.0.1:1"),
        1,
    );
    assert!(
        said.stderr
            .contains("no credentials: set repository.access_key_id"),
        "{said}"
    );
    assert!(
        said.stderr.contains("AWS_SECRET_ACCESS_KEY") && !said.stderr.contains("IMDS"),
        "{said}"
    );
    assert!(begun.elapsed() < std::time::Duration::from_secs(5));
}

#[test]
fn status_counts_damaged_points_and_names_the_newest() {
    let site = Site::new();
    app_only(&site);
    pb_data(&site);
    run_ok(&mut site.backup(&["init"]));
    let mut runs: Vec<String> = Vec::new();
    for _ in 0..4 {
        let taken = run_ok(&mut site.backup(&["run", "app", "--json"])).json();
        runs.push(taken["runs"][0]["run"].as_str().unwrap().to_owned());
    }
    // All of them draw on the first one's pack.
    let pack = site
        .path("repository/sources/app/runs")
        .join(&runs[0])
        .join("0.age");
    let mut bytes = std::fs::read(&pack).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&pack, bytes).unwrap();
    run_code(&mut site.backup(&["verify"]), 21);
    let status = run_code(&mut site.backup(&["status", "--json"]), 1).json();
    let problems = source(&status, "app")["problems"].as_array().unwrap();
    let of_damage: Vec<&str> = problems
        .iter()
        .filter_map(Value::as_str)
        .filter(|p| p.contains("damaged"))
        .collect();
    assert_eq!(of_damage.len(), 1, "{status}");
    assert!(
        of_damage[0].starts_with("4 recovery points are damaged") && of_damage[0].contains(&runs[3]),
        "{status}"
    );
}
