//! What drills teach: how long a restore takes, which key opens what, and what the daemon shows and tells of them.

use std::process::Child;
use std::time::Duration;

use serde_json::{Value, json};

use crate::drills::{command, drill, edit, of, site};
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

/// What the daemon answers to who knows the token.
fn answer(port: u16, path: &str) -> String {
    use std::io::{Read as _, Write as _};
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
