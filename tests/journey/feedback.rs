//! What drills teach: how long a restore takes, which key opens what, and what the daemon shows and tells of them.

use serde_json::{Value, json};

use crate::drills::{command, drill, edit, of, site};
use crate::harness;
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
