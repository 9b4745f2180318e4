//! The evidence in golden repositories: how it is made, and that every later build reads it and goes on from it.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::Maker;
use crate::drills::programs;
use crate::harness;
use crate::harness::golden::{self, Copied, Golden};

/// One that passes, one that fails, one that can not run.
pub(super) fn drills(key: &Path) -> String {
    format!(
        r#"[evidence]
key = {{ file = "{key}" }}
[drill.all]
sources = ["app", "orders", "shop"]
checks = [{{ source = "orders", name = "there are orders", sql = "select count(*) > 0 from orders" }}]
[drill.wrong]
sources = ["orders"]
keep_failed = "0s"
checks = [{{ source = "orders", name = "how many", sql = "select count(*) from orders", expected = "7" }}]
[drill.impossible]
sources = ["orders"]
binaries = "/nonexistent"
"#,
        key = key.display()
    )
}

impl Maker {
    pub(super) fn make_signing_key(&self) {
        let mut command = harness::lifeboat();
        command.args(["key", "signing"]).arg(self.path("signing.key"));
        let public = harness::run_ok(&mut command).stdout;
        harness::write_file(self.directory.path(), "signing.pub", public);
    }

    fn drills(&self, arguments: &[&str], code: i32) -> Value {
        let mut command = self.backup(arguments);
        harness::run_code(command.env("PATH", programs()), code).json()
    }

    /// Drills that end in every way, and evidence that is lost and whose loss is accepted.
    pub(super) fn drill(&mut self) {
        self.drills(&["drill", "all"], 0);
        self.drills(&["drill", "wrong"], 22);
        for _ in 0..2 {
            self.drills(&["drill", "impossible"], 23);
        }
        let lost = list(&mut self.backup(&["evidence", "list"])).pop().unwrap();
        let identity = self.path("second-identity");
        let identity = identity.to_str().unwrap();
        self.drills(&["drill", "recovery-key", "--identity", identity], 0);
        let lost = lost["id"].as_str().unwrap();
        std::fs::remove_file(self.path(&format!("repository/evidence/{lost}.json"))).unwrap();
        self.json(&[
            "evidence",
            "accept",
            lost,
            "--reason",
            "removed by hand, for the fixture",
        ]);
        self.drills(&["drill", "all"], 0);
        self.evidence = list(&mut self.backup(&["evidence", "list"]));
        self.proven = proven(&mut self.backup(&["list"]));
    }
}

/// What is told of each.
fn list(command: &mut Command) -> Vec<Value> {
    let document = harness::run_ok(command).json();
    document["evidence"].as_array().unwrap().clone()
}

fn proven(command: &mut Command) -> BTreeMap<String, u64> {
    let document = harness::run_ok(command).json();
    let mut levels = BTreeMap::new();
    for source in document["sources"].as_array().unwrap() {
        for point in source["points"].as_array().unwrap() {
            if let Some(level) = point["drilled"]["level"].as_u64() {
                levels.insert(point["run"].as_str().unwrap().to_owned(), level);
            }
        }
    }
    levels
}

/// Golden repositories with evidence, copied to where they can be worked on, with a policy.
fn each(each: impl Fn(&Golden, &Copied, &dyn Fn(&[&str]) -> Command)) {
    for golden in golden::all()
        .into_iter()
        .filter(|g| !g.expected.evidence.is_empty())
    {
        let directory = harness::temp_dir();
        let copied = golden.copy(&directory.path().join("copy"));
        let mut policy = format!(
            r#"
environment = "{environment}"
[repository]
url = "file://{repository}"
[encryption]
recipients = ["{recipient}"]
identity = {{ file = "{identity}" }}
[state]
dir = "{state}"
"#,
            environment = golden.expected.environment,
            repository = copied.repository().display(),
            recipient = super::recipient(&copied.identity()),
            identity = copied.identity().display(),
            state = directory.path().join("state").display(),
        );
        for source in super::SOURCES {
            // Only what was backed up is asked for.
            policy += &match source {
                "orders" => format!("[source.{source}]\nkind = \"postgres\"\nurl = {{ env = \"T_URL\" }}\n"),
                _ => format!("[source.{source}]\nkind = \"pocketbase\"\npath = \"/nonexistent\"\n"),
            };
        }
        policy += &drills(&copied.signing_key());
        let policy = harness::write_file(directory.path(), "policy.toml", policy);
        let backup = move |arguments: &[&str]| {
            let mut command = harness::lifeboat();
            command
                .env("T_URL", "postgres://nobody@127.0.0.1:1/nothing")
                .env("PATH", programs())
                .args(["--json", "--policy"])
                .arg(&policy)
                .args(arguments);
            command
        };
        each(&golden, &copied, &backup);
    }
}

/// Verified without a policy.
fn verify(copied: &Copied) -> Command {
    let mut command = harness::lifeboat();
    command
        .args(["--json", "evidence", "verify", "--key"])
        .arg(copied.public_key())
        .arg(copied.repository().join("evidence"));
    command
}

#[test]
fn the_golden_evidence_is_of_every_kind() {
    let newest = golden::all().pop().unwrap();
    let told: Vec<(&str, &str)> = newest
        .expected
        .evidence
        .iter()
        .map(|e| {
            (
                e["drill"].as_str().unwrap_or_default(),
                e["result"].as_str().unwrap(),
            )
        })
        .collect();
    let expected = [
        ("all", "passed"),
        ("wrong", "failed"),
        ("impossible", "could_not_run"),
        ("recovery-key", "passed"),
        ("", "accepted"),
        ("all", "passed"),
    ];
    assert_eq!(told, expected);
    assert_eq!(newest.expected.proven.len(), 3);
}

#[test]
fn the_golden_evidence_is_verified_and_says_what_it_said() {
    each(|golden, copied, backup| {
        let said = harness::run_ok(&mut verify(copied)).json();
        assert_eq!(said["signatures_checked"], json!(true), "{said}");
        assert_eq!(said["problems"], json!([]), "{said}");
        let listed = list(&mut backup(&["evidence", "list"]));
        assert_eq!(listed.len(), golden.expected.evidence.len());
        for (line, recorded) in listed.iter().zip(&golden.expected.evidence) {
            for (key, value) in recorded.as_object().unwrap() {
                assert_eq!(&line[key], value, "{key} of {line}");
            }
        }
        assert_eq!(proven(&mut backup(&["list"])), golden.expected.proven);

        for file in std::fs::read_dir(copied.repository().join("evidence")).unwrap() {
            let file = file.unwrap().path();
            let bytes = std::fs::read(&file).unwrap();
            let mut changed = bytes.clone();
            let middle = changed.len() / 2;
            changed[middle] ^= 1;
            std::fs::write(&file, changed).unwrap();
            harness::run_code(&mut verify(copied), 21);
            std::fs::write(&file, bytes).unwrap();
        }
    });
}

#[test]
fn a_drill_goes_on_from_golden_evidence() {
    each(|golden, copied, backup| {
        let report = harness::run_ok(&mut backup(&["drill", "all"])).json();
        let listed = list(&mut backup(&["evidence", "list"]));
        let (last, before) = listed.split_last().unwrap();
        assert_eq!(before.len(), golden.expected.evidence.len());
        let object = format!("evidence/{}.json", last["id"].as_str().unwrap());
        assert_eq!(
            (&report["evidence"], &report["result"]),
            (&json!(object), &json!("passed"))
        );
        let numbers = |e: &[Value]| e.iter().filter_map(|e| e["number"].as_u64()).max();
        assert_eq!(last["number"].as_u64(), numbers(before).map(|n| n + 1));
        let said = harness::run_ok(&mut verify(copied)).json();
        assert_eq!(said["problems"], json!([]), "{said}");
    });
}
