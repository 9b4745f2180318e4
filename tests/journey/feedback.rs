//! What drills teach: how long a restore takes, which key opens what, and what the daemon shows and tells of them.

use std::process::Child;
use std::time::Duration;

use serde_json::{Value, json};

use crate::drills::{command, drill, edit, nothing_is_left, of, site, verify};
use crate::evidence::answer;
use crate::harness::{self, poll};
use crate::site::Site;

/// The rate of the evidence: bytes and seconds of a source's restore.
fn measured(report: &Value, source: &str) -> (f64, f64) {
    let of_source = of(report, source);
    (
        of_source["bytes"].as_f64().unwrap(),
        of_source["rto_seconds"].as_f64().unwrap(),
    )
}

/// `status`, whatever its exit code.
fn status(site: &Site) -> (i32, Value) {
    let said = harness::run(&mut command(site, &["status"]));
    (said.code, said.json())
}

#[tokio::test(flavor = "multi_thread")]
async fn status_predicts_a_restore_of_todays_size_at_the_rate_that_drills_measured() {
    let site = site("[drill.weekly]\nsources = [\"orders\"]\n").await;
    edit(&site, |policy| {
        policy.replace("binaries = \"BINARIES\"\n", "").replace(
            "url = { env = \"T_ORDERS_URL\" }",
            "url = { env = \"T_ORDERS_URL\" }\nobjective = { rto = \"1h\" }",
        )
    });
    // Nothing was measured: nothing is predicted.
    let (_, document) = status(&site);
    let orders = of(&document, "orders");
    assert_eq!(
        (
            &orders["predicted_restore_seconds"],
            &orders["predicted_by"],
            &orders["rto_objective_seconds"]
        ),
        (&Value::Null, &Value::Null, &json!(3600.0)),
        "{document}"
    );
    assert!(
        !harness::run(&mut site.backup(&["status"]))
            .stdout
            .contains("a restore takes")
    );
    // A drill of a small point; the newest one is far larger, and takes longer in proportion.
    let (code, report) = drill(&site, "weekly");
    assert_eq!(code, 0, "{report:#}");
    let (bytes, seconds) = measured(&report, "orders");
    site.sql("insert into orders (note) select repeat(md5(n::text), 20) from generate_series(1, 20000) n");
    site.json(&["run", "orders"]);
    let listed = site.json(&["list", "orders"]);
    let points = of(&listed, "orders")["points"].as_array().unwrap().clone();
    let newest = points.last().unwrap()["bytes_read"].as_f64().unwrap();
    assert!(newest > bytes * 20.0, "{newest} {bytes}");
    let (code, document) = status(&site);
    let orders = of(&document, "orders");
    let predicted = orders["predicted_restore_seconds"].as_f64().unwrap();
    assert!(predicted > seconds * 20.0, "{predicted} {seconds}");
    assert_eq!(code, 0, "{document}");
    assert_eq!(
        (&orders["predicted_by"]["drill"], &orders["predicted_by"]["at"]),
        (&json!("weekly"), &report["at"])
    );
    assert_eq!(of(&document, "app")["predicted_restore_seconds"], Value::Null);
    let text = harness::run_ok(&mut site.backup(&["status"])).stdout;
    assert!(
        text.contains("orders: a restore takes about ") && text.contains(", as measured by the drill of 20"),
        "{text}"
    );
    // Longer than it may: a problem, before anything is lost.
    edit(&site, |policy| policy.replace("rto = \"1h\"", "rto = \"1s\""));
    let (code, document) = status(&site);
    assert_eq!((code, &document["ok"]), (1, &json!(false)), "{document}");
    let problems = of(&document, "orders")["problems"].to_string();
    assert!(
        problems.contains("a restore takes about ") && problems.contains("the objective is 1s"),
        "{problems}"
    );
    // A drill that could not run measures nothing: the one before it is still what is known.
    edit(&site, |policy| {
        policy.replace(
            "sources = [\"orders\"]",
            "sources = [\"orders\"]\nbinaries = \"/nowhere\"",
        )
    });
    assert_eq!(drill(&site, "weekly").0, 23);
    let by = of(&status(&site).1, "orders")["predicted_by"].clone();
    assert_eq!(by["at"], report["at"], "{by}");
}

/// A daemon that answers on a port.
struct Daemon {
    child: Child,
    port: u16,
}

impl Daemon {
    fn start(site: &Site, port: u16) -> Self {
        let mut daemon = command(site, &["daemon"]);
        let child = daemon.env("T_TOKEN", "open sesame").spawn().unwrap();
        Self { child, port }
    }

    /// What a path answers, once it holds these words.
    #[track_caller]
    fn answers(&self, path: &str, words: &[&str]) -> String {
        let mut last = String::new();
        let said = poll(Duration::from_secs(30), || {
            last = answer(self.port, path);
            words.iter().all(|word| last.contains(word)).then(|| last.clone())
        });
        said.unwrap_or_else(|| panic!("{path} never holds {words:?}: {last}"))
    }

    fn stop(mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // One that was stopped is gone already; a test that failed leaves none.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn page_and_metrics_say_which_source_is_proven_when_and_at_which_level() {
    let site = site(
        "[drill.app]\nsources = [\"app\"]\nschedule = \"0 5 * * 0\"\n\n[drill.orders]\nsources = [\"orders\"]\n",
    )
    .await;
    let port = harness::free_port();
    edit(&site, |policy| {
        format!("{policy}\n[http]\nlisten = \"127.0.0.1:{port}\"\ntoken = {{ env = \"T_TOKEN\" }}\n")
    });
    let (code, report) = drill(&site, "app");
    assert_eq!(code, 0, "{report:#}");
    let seconds = of(&report, "app")["rto_seconds"].as_f64().unwrap();
    let begun: chrono::DateTime<chrono::Utc> = report["at"].as_str().unwrap().parse().unwrap();
    let success = format!(
        "lifeboat_drill_last_success_timestamp_seconds{{source=\"app\"}} {}",
        begun.timestamp_millis() as f64 / 1000.0
    );
    let daemon = Daemon::start(&site, port);
    let metrics = daemon.answers("/metrics", &[&success]);
    for line in [
        "lifeboat_drill_last_level{source=\"app\"} 6".to_owned(),
        format!("lifeboat_drill_restore_seconds{{source=\"app\"}} {seconds}"),
        "lifeboat_drill_interval_seconds{source=\"app\"} 604800".to_owned(),
    ] {
        assert!(metrics.lines().any(|l| l == line), "{line}: {metrics}");
    }
    // What was never proven has no time of it, and what no schedule drills is not waited for.
    assert!(!metrics.contains("lifeboat_drill_last_success_timestamp_seconds{source=\"orders\"}"));
    assert!(!metrics.contains("lifeboat_drill_interval_seconds{source=\"orders\"}"));
    daemon.answers("/", &["proven at level 6, ", "never proven"]);
    daemon.answers("/sources/app", &["Drills: proven at level 6, "]);
    daemon.answers("/sources/orders", &["Drills: never proven"]);
    // A drill by hand is seen within seconds.
    assert_eq!(drill(&site, "orders").0, 0);
    daemon.answers("/sources/orders", &["Drills: proven at level 6, "]);
    // It is remembered: also by a daemon that can not ask.
    daemon.stop();
    std::fs::rename(site.path("repository"), site.path("away")).unwrap();
    let daemon = Daemon::start(&site, port);
    daemon.answers("/", &["What drills proved can not be told: "]);
    daemon.answers("/metrics", &[&success]);
    daemon.answers("/sources/orders", &["Drills: proven at level 6, "]);
    daemon.stop();
}

/// A key pair of the operator's: its file and its recipient.
fn key_pair(site: &Site, name: &str) -> (String, String) {
    let file = site.path(name);
    harness::run_ok(site.plain().args(["key", "generate"]).arg(&file));
    let text = std::fs::read_to_string(&file).unwrap();
    let recipient = text.lines().find_map(|l| l.strip_prefix("# public key: "));
    (file.display().to_string(), recipient.unwrap().to_owned())
}

/// The drill of a recovery key, with these arguments: its exit code and its report.
fn recovery_key(site: &Site, arguments: &[&str]) -> (i32, Value) {
    let all = [&["drill", "recovery-key"], arguments].concat();
    let said = harness::run(&mut command(site, &all));
    assert!([0, 22, 23].contains(&said.code), "{said}");
    assert_eq!(said.json()["drill"], "recovery-key", "{said}");
    (said.code, said.json())
}

/// The generations that a source's checks name, and how each ended.
fn generations(report: &Value, source: &str) -> Vec<(String, String)> {
    let checks = of(report, source)["checks"].as_array().unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    checks
        .iter()
        .map(|c| (text(&c["name"]), text(&c["result"])))
        .collect()
}

/// The generations of the repository, oldest first, as checks name them.
fn known(site: &Site) -> Vec<String> {
    let listed = site.json(&["key", "list"]);
    let all = listed["generations"].as_array().unwrap().iter();
    all.map(|g| format!("generation {}", g["generation"].as_str().unwrap()))
        .collect()
}

fn passed(names: &[&String]) -> Vec<(String, String)> {
    let names = names.iter();
    names.map(|name| ((*name).clone(), "passed".to_owned())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recovery_key_is_proven_on_every_generation_of_every_source() {
    let site = site("").await;
    let (recovery, recipient) = key_pair(&site, "recovery.key");
    let identity = ["--identity", recovery.as_str()];
    // What was written before it was a recipient does not open to it, which is named, with what mends it.
    let (code, report) = recovery_key(&site, &identity);
    assert_eq!(
        (code, &report["result"], &report["level"]),
        (22, &json!("failed"), &Value::Null),
        "{report:#}"
    );
    let first = known(&site);
    for source in ["orders", "app"] {
        let check = &of(&report, source)["checks"][0];
        assert_eq!(
            (&check["name"], &check["result"]),
            (&json!(first[0]), &json!("failed"))
        );
        assert!(check["expected"].as_str().unwrap().starts_with("age1"), "{check}");
        assert!(
            check["actual"].as_str().unwrap().contains("backup key rewrap"),
            "{check}"
        );
    }
    let warnings = report["warnings"].to_string();
    assert!(warnings.contains("is no recipient of the policy"), "{warnings}");
    // Rewrapped it opens; so do generations that came later, also one that nothing is encrypted to yet.
    edit(&site, |policy| {
        policy.replace("\"]\nidentity", &format!("\", \"{recipient}\"]\nidentity"))
    });
    site.json(&["key", "rewrap", "--yes"]);
    let (code, report) = recovery_key(&site, &identity);
    assert_eq!(
        (code, generations(&report, "app")),
        (0, passed(&[&first[0]])),
        "{report:#}"
    );
    site.json(&["key", "rotate", "--yes"]);
    site.json(&["run", "app"]);
    site.json(&["key", "rotate", "--yes"]);
    let all = known(&site);
    assert_eq!(all.len(), 3);
    let (code, report) = recovery_key(&site, &identity);
    assert_eq!((code, &report["result"]), (0, &json!("passed")), "{report:#}");
    assert_eq!(generations(&report, "app"), passed(&[&all[0], &all[1], &all[2]]));
    assert_eq!(generations(&report, "orders"), passed(&[&all[0], &all[2]]));
    for source in ["orders", "app"] {
        let of_source = of(&report, source);
        assert_eq!(
            (&of_source["level"], &of_source["run"], &of_source["identity"]),
            (&Value::Null, &Value::Null, &json!([recipient]))
        );
        for check in of_source["checks"].as_array().unwrap() {
            assert_eq!(check["expected"], check["actual"], "{check}");
        }
    }
    // Also what is only drawn on, by a point of another generation.
    let points = site.path("repository/sources/app/points");
    let oldest = std::fs::read_dir(&points)
        .unwrap()
        .map(|e| e.unwrap().path())
        .min();
    let (oldest, away) = (oldest.unwrap(), site.path("away.json"));
    std::fs::rename(&oldest, &away).unwrap();
    let (code, report) = recovery_key(&site, &identity);
    std::fs::rename(&away, &oldest).unwrap();
    assert_eq!(
        (code, generations(&report, "app")),
        (0, passed(&[&all[0], &all[1], &all[2]])),
        "{report:#}"
    );
    // One that it was left out of: only that one, in the source that uses it.
    edit(&site, |policy| {
        policy.replace(&format!(", \"{recipient}\"]"), "]")
    });
    site.json(&["key", "rotate", "--yes"]);
    site.json(&["run", "orders"]);
    let lost = known(&site).pop().unwrap();
    let (code, report) = recovery_key(&site, &identity);
    assert_eq!(code, 22, "{report:#}");
    assert_eq!(of(&report, "app")["result"], "passed");
    assert_eq!(
        generations(&report, "orders"),
        [passed(&[&all[0]]), vec![(lost, "failed".to_owned())]].concat()
    );
    let mut people = site.backup(&["drill", "recovery-key", "--identity", &recovery]);
    let text = harness::run_code(&mut people, 22).stdout;
    assert!(
        text.contains("orders FAILED, it opens 1 of 2 generations"),
        "{text}"
    );
    // A wrap that opens and holds another identity proves nothing.
    forge(&site, all[1].strip_prefix("generation ").unwrap(), &recipient);
    let (code, report) = recovery_key(&site, &identity);
    assert_eq!(code, 22, "{report:#}");
    let check = of(&report, "app")["checks"]
        .as_array()
        .unwrap()
        .iter()
        .find(|c| c["name"] == all[1].as_str())
        .unwrap();
    assert_eq!(check["result"], "failed");
    assert!(check["actual"].as_str().unwrap().starts_with("age1"), "{check}");
    assert_ne!(check["expected"], check["actual"]);
    nothing_is_left(&site);
    // All of it is evidence; none of it is a restore.
    let listed = site.json(&["evidence", "list"]);
    let listed = listed["evidence"].as_array().unwrap();
    let results: Vec<&str> = listed.iter().map(|e| e["result"].as_str().unwrap()).collect();
    assert_eq!(
        results,
        [
            "failed", "passed", "passed", "passed", "failed", "failed", "failed"
        ]
    );
    assert!(
        listed
            .iter()
            .all(|e| e["drill"] == "recovery-key" && e["level"].is_null()),
        "{listed:?}"
    );
    assert_eq!(
        verify(&site, &[site.path("repository/evidence").to_str().unwrap()]).code,
        0
    );
    let month = site.json(&["evidence", "report"]);
    let app = of(&month, "app");
    assert_eq!(
        (&app["passed"], &app["failed"], &app["last_passed"]),
        (&json!(0), &json!(0), &Value::Null)
    );
    assert_eq!(of(&status(&site).1, "app")["last_drill"], Value::Null);
}

/// Lays wraps of another identity in the place of a generation's.
fn forge(site: &Site, generation: &str, recipient: &str) {
    let (other, _) = key_pair(site, "other.key");
    let document = std::fs::read_to_string(site.path("repository/lifeboat.json")).unwrap();
    let document: Value = serde_json::from_str(document.lines().next().unwrap()).unwrap();
    let text = format!(
        "# lifeboat repository={} generation={generation}\n{}",
        document["repository"].as_str().unwrap(),
        std::fs::read_to_string(other).unwrap()
    );
    let plain = harness::write_file(site.directory.path(), "forged", text);
    for wrap in std::fs::read_dir(site.path("repository/keys").join(generation)).unwrap() {
        let mut age = std::process::Command::new("age");
        age.args(["-r", recipient, "-o"])
            .arg(wrap.unwrap().path())
            .arg(&plain);
        harness::run_ok(&mut age);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recovery_key_that_is_not_here_proves_nothing() {
    let site = site("").await;
    let empty = harness::write_file(site.directory.path(), "empty", "nothing\n");
    let missing = site.path("missing.key");
    for (arguments, words) in [
        // The policy's identity opens everything, and is not what is asked for.
        (vec![], "no identity was given"),
        (
            vec!["--identity", missing.to_str().unwrap()],
            "missing.key can not be read",
        ),
        (
            vec!["--identity", empty.to_str().unwrap()],
            "is not an age identity",
        ),
    ] {
        let (code, report) = recovery_key(&site, &arguments);
        assert_eq!(
            (code, &report["result"]),
            (23, &json!("could_not_run")),
            "{report:#}"
        );
        for source in ["orders", "app"] {
            let check = &of(&report, source)["checks"][0];
            assert_eq!(check["result"], "could_not_run");
            assert!(check["actual"].as_str().unwrap().contains(words), "{check}");
        }
        let evidence = report["evidence"].as_str().unwrap();
        assert!(evidence.starts_with("evidence/"), "{evidence}");
    }
    // No repository: nobody knows, of any source of the policy.
    let key = site.path("key");
    let identity = ["--identity", key.to_str().unwrap()];
    std::fs::rename(site.path("repository"), site.path("gone")).unwrap();
    let (code, report) = recovery_key(&site, &identity);
    assert_eq!(
        (code, report["sources"].as_array().unwrap().len()),
        (23, 2),
        "{report:#}"
    );
    std::fs::rename(site.path("gone"), site.path("repository")).unwrap();
    assert_eq!(recovery_key(&site, &identity).0, 0);
    // Its name is its own.
    edit(&site, |policy| {
        format!("{policy}\n[drill.recovery-key]\nsources = [\"app\"]\n")
    });
    let said = harness::run_code(&mut site.backup(&["--json", "status"]), 2);
    let told = said.json()["error"].to_string();
    assert!(
        told.contains("drill.recovery-key: this name is reserved") && told.contains("take another name"),
        "{said}"
    );
}
