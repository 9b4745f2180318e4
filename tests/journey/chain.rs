//! The chain of evidence: what is junk, what is withheld, two hosts at once, and what it proves of points.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};

use crate::drills::{drill, edit, of, site, verify};
use crate::harness::{self, poll};
use crate::site::Site;

/// Files of evidence in a directory, by name.
pub fn files(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return Vec::new();
    };
    let mut files: Vec<PathBuf> = entries.map(|e| e.unwrap().path()).collect();
    files.sort();
    files
}

/// The statements of `evidence list`, in its order.
pub fn statements(site: &Site) -> Vec<Value> {
    let listed = site.json(&["evidence", "list"]);
    let all = listed["evidence"].as_array().unwrap().iter();
    all.map(|e| site.json(&["evidence", "show", e["id"].as_str().unwrap()]))
        .collect()
}

/// Ids that a statement names as those before it.
pub fn previous(statement: &Value) -> Vec<String> {
    let all = statement["predicate"]["previous"].as_array().unwrap().iter();
    all.map(|p| p["id"].as_str().unwrap().to_owned()).collect()
}

pub fn id(statement: &Value) -> String {
    statement["predicate"]["id"].as_str().unwrap().to_owned()
}

pub fn is_proven(site: &Site) -> bool {
    let list = site.json(&["list", "app"]);
    !list["sources"][0]["points"][0]["drilled"].is_null()
}

#[tokio::test(flavor = "multi_thread")]
async fn junk_beside_evidence_is_told_by_name_and_breaks_nothing() {
    let site = site("[drill.app]\nsources = [\"app\"]\n").await;
    assert_eq!(drill(&site, "app").0, 0);
    let evidence = site.path("repository/evidence");
    let first = files(&evidence).remove(0);
    let unsigned = {
        let mut envelope: Value = serde_json::from_slice(&std::fs::read(&first).unwrap()).unwrap();
        envelope["signatures"] = json!([]);
        envelope.to_string()
    };
    for (name, content) in [
        ("readme.txt", "somebody was here"),
        ("7ZZZZZZZZZZZZZZZZZZZZZZZZZ.json", "no evidence at all"),
        ("7ZZZZZZZZZZZZZZZZZZZZZZZZY.json", unsigned.as_str()),
    ] {
        std::fs::write(evidence.join(name), content).unwrap();
    }
    let (code, report) = drill(&site, "app");
    assert_eq!(code, 0, "{report:#}");
    let told = report["warnings"].to_string();
    assert!(
        told.contains("evidence/readme.txt") && told.contains("7ZZZZZZZZZZZZZZZZZZZZZZZZZ"),
        "{told}"
    );
    let statements = statements(&site);
    assert_eq!(statements.len(), 2);
    assert_eq!(
        (&statements[1]["predicate"]["number"], previous(&statements[1])),
        (&json!(2), vec![id(&statements[0])])
    );
    let listed = site.json(&["evidence", "list"]);
    assert_eq!(
        (listed["put_aside"].as_array().unwrap().len(), &listed["problems"]),
        (3, &json!([])),
        "{listed:#}"
    );
    assert!(is_proven(&site));
    let status = site.json(&["status"]);
    assert_eq!(
        (&status["ok"], &status["problems"]),
        (&json!(true), &json!([])),
        "{status}"
    );
    assert!(status["warnings"].to_string().contains("evidence/readme.txt"));
    let pruned = site.json(&["prune"]);
    assert!(
        pruned["warnings"].to_string().contains("evidence/readme.txt"),
        "{pruned}"
    );
    let plan = site.json(&["restore", "app", "--at", "latest", "--dry-run"]);
    assert_eq!(plan["drilled"]["level"], json!(6), "{plan}");
    // Whoever verifies is told of what has the name of evidence and is none.
    let said = verify(&site, &[evidence.to_str().unwrap()]);
    let document = said.json();
    assert_eq!((said.code, &document["passed_over"]), (21, &json!(1)), "{said}");
    assert_eq!(document["problems"].as_array().unwrap().len(), 2, "{said}");
    for name in [
        "7ZZZZZZZZZZZZZZZZZZZZZZZZZ.json",
        "7ZZZZZZZZZZZZZZZZZZZZZZZZY.json",
    ] {
        std::fs::remove_file(evidence.join(name)).unwrap();
    }
    assert_eq!(verify(&site, &[evidence.to_str().unwrap()]).code, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_point_that_failed_a_later_drill_or_is_another_now_is_proven_no_more() {
    let site = site("[drill.app]\nsources = [\"app\"]\nkeep_failed = \"0s\"\nchecks = [{ source = \"app\", name = \"own\", sql = \"select 1\" }]\n").await;
    assert_eq!(drill(&site, "app").0, 0);
    assert!(is_proven(&site));
    edit(&site, |policy| policy.replace("select 1", "select 0"));
    assert_eq!(drill(&site, "app").0, 22);
    assert!(!is_proven(&site));
    let status = harness::run_code(&mut site.backup(&["--json", "status"]), 1).json();
    assert!(of(&status, "app")["last_drill"].is_null(), "{status}");
    let pruned = site.json(&["prune"]);
    assert!(!pruned["keep"].to_string().contains("newest proven"), "{pruned}");
    // One that could not run says nothing.
    edit(&site, |policy| policy.replace("select 0", "select 1"));
    assert_eq!(drill(&site, "app").0, 0);
    edit(&site, |policy| {
        policy.replace("keep_failed = \"0s\"", "binaries = \"/nowhere\"")
    });
    assert_eq!(drill(&site, "app").0, 23);
    assert!(is_proven(&site));
    // Another commit under the same name: nobody has restored that one.
    let commit = files(&site.path("repository/sources/app/points")).remove(0);
    let text = std::fs::read_to_string(&commit).unwrap();
    let line = text.lines().next().unwrap().replacen('{', "{ ", 1);
    std::fs::write(&commit, format!("{line}\n{}\n", sha256(line.as_bytes()))).unwrap();
    assert!(!is_proven(&site));
    assert_eq!(
        of(&site.json(&["evidence", "report"]), "app")["points_proven"],
        json!(0)
    );
    let plan = site.json(&["restore", "app", "--at", "latest", "--dry-run"]);
    assert!(plan["drilled"].is_null(), "{plan}");
}

/// By a library, and not by the code that is tested.
pub fn sha256(bytes: &[u8]) -> String {
    aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes)
        .as_ref()
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn evidence_that_is_withheld_is_told_by_the_host_that_made_it() {
    let site = site("[drill.app]\nsources = [\"app\"]\n").await;
    for _ in 0..2 {
        assert_eq!(drill(&site, "app").0, 0);
    }
    let evidence = site.path("repository/evidence");
    let newest = id(&statements(&site)[1]);
    let (path, away) = (evidence.join(format!("{newest}.json")), site.path("away.json"));
    std::fs::rename(&path, &away).unwrap();
    // The files alone do not tell, unless somebody has noted the newest.
    let directory = evidence.to_str().unwrap();
    assert_eq!(verify(&site, &[directory]).code, 0);
    let noted = verify(&site, &["--newest", &newest, directory]);
    assert!(
        noted.code == 21 && noted.json()["problems"].to_string().contains("is missing"),
        "{noted}"
    );
    let missing = format!("{newest} (number 2), which this host knows, is missing");
    let said = harness::run(&mut site.backup(&["--json", "evidence", "verify"]));
    assert_eq!(
        (said.code, said.json()["signatures_checked"].as_bool()),
        (21, Some(true)),
        "{said}"
    );
    assert!(said.stdout.contains(&missing), "{said}");
    let status = harness::run(&mut site.backup(&["--json", "status"]));
    assert_eq!(
        (status.code, &status.json()["ok"]),
        (1, &json!(false)),
        "{status}"
    );
    assert!(status.stdout.contains(&missing), "{status}");
    for command in ["list", "report"] {
        let document = site.json(&["evidence", command]);
        assert!(document["problems"].to_string().contains(&missing), "{document}");
    }
    let pruned = site.refused(&["prune"], 21);
    assert!(pruned["message"].as_str().unwrap().contains(&missing), "{pruned}");
    // Looking does not make it forgotten, and the next drill names it.
    let (code, report) = drill(&site, "app");
    assert_eq!(code, 0);
    assert!(report["warnings"].to_string().contains(&missing), "{report}");
    let next = statements(&site).pop().unwrap();
    assert_eq!(next["predicate"]["number"], json!(3));
    assert!(previous(&next).contains(&newest), "{next}");
    let told = verify(&site, &[directory]);
    assert!(
        told.code == 21
            && told
                .stdout
                .contains(&format!("follows {newest}, which is missing")),
        "{told}"
    );
    site.refused(&["prune"], 21);
    std::fs::rename(&away, &path).unwrap();
    assert_eq!(verify(&site, &["--newest", &newest, directory]).code, 0);
    site.json(&["prune"]);
    // All of it.
    let emptied = site.path("emptied");
    std::fs::rename(&evidence, &emptied).unwrap();
    std::fs::create_dir(&evidence).unwrap();
    let said = verify(&site, &[directory]);
    assert!(
        said.code == 21 && said.stdout.contains("there is no evidence"),
        "{said}"
    );
    let said = harness::run(&mut site.backup(&["--json", "evidence", "verify"]));
    assert!(said.code == 21 && said.stdout.contains("is missing"), "{said}");
    site.refused(&["prune"], 21);
    assert_eq!(harness::run(&mut site.backup(&["status"])).code, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn drills_of_two_hosts_at_once_are_joined_by_the_next() {
    let site = site("[drill.app]\nsources = [\"app\"]\n").await;
    assert_eq!(drill(&site, "app").0, 0);
    let evidence = site.path("repository/evidence");
    let first = files(&evidence);
    assert_eq!(drill(&site, "app").0, 0);
    let one: Vec<PathBuf> = files(&evidence)
        .into_iter()
        .filter(|p| !first.contains(p))
        .collect();
    let away = site.path("away.json");
    std::fs::rename(&one[0], &away).unwrap();
    // Another host has not seen it.
    edit(&site, |policy| policy.replace("/state\"", "/state-of-another\""));
    assert_eq!(drill(&site, "app").0, 0);
    std::fs::rename(&away, &one[0]).unwrap();
    let directory = evidence.to_str().unwrap();
    let forked = verify(&site, &[directory]);
    assert_eq!(
        (forked.code, &forked.json()["evidence"]),
        (0, &json!(3)),
        "{forked}"
    );
    assert_eq!(drill(&site, "app").0, 0);
    let statements = statements(&site);
    let numbers: Vec<_> = statements
        .iter()
        .map(|s| s["predicate"]["number"].as_u64().unwrap())
        .collect();
    assert_eq!(numbers, [1, 2, 2, 3]);
    let mut both = vec![id(&statements[1]), id(&statements[2])];
    both.sort();
    assert_eq!(previous(&statements[3]), both);
    assert_eq!(verify(&site, &["--newest", &both[0], directory]).code, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_file_of_evidence_is_passed_over_and_never_waited_for() {
    let site = site("[drill.app]\nsources = [\"app\"]\n").await;
    assert_eq!(drill(&site, "app").0, 0);
    let copy = site.path("copy");
    std::fs::create_dir(&copy).unwrap();
    for file in files(&site.path("repository/evidence")) {
        std::fs::copy(&file, copy.join(file.file_name().unwrap())).unwrap();
    }
    let pipe = |name: &str| {
        let kind = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, copy.join(name), kind, rustix::fs::Mode::RWXU, 0).unwrap();
    };
    std::fs::write(copy.join("readme.md"), b"for auditors").unwrap();
    std::fs::create_dir(copy.join("more")).unwrap();
    pipe("pipe");
    let _socket = std::os::unix::net::UnixListener::bind(copy.join("socket")).unwrap();
    let directory = copy.to_str().unwrap().to_owned();
    let look = || {
        let mut child = site.plain();
        child
            .args(["--json", "evidence", "verify", "--key"])
            .arg(site.path("signing.pub"))
            .arg(&directory);
        let mut child = child.stdout(Stdio::piped()).spawn().unwrap();
        let ended = poll(Duration::from_secs(30), || child.try_wait().unwrap());
        let Some(ended) = ended else {
            child.kill().unwrap();
            panic!("it waits for a pipe");
        };
        let mut said = String::new();
        child.stdout.take().unwrap().read_to_string(&mut said).unwrap();
        (
            ended.code().unwrap(),
            serde_json::from_str::<Value>(&said).unwrap(),
        )
    };
    let (code, report) = look();
    assert_eq!(
        (code, &report["passed_over"], &report["evidence"]),
        (0, &json!(4), &json!(1)),
        "{report:#}"
    );
    // Under the name of evidence it is told, and not opened.
    pipe("7ZZZZZZZZZZZZZZZZZZZZZZZZA.json");
    std::fs::create_dir(copy.join("7ZZZZZZZZZZZZZZZZZZZZZZZZB.json")).unwrap();
    let large = std::fs::File::create(copy.join("7ZZZZZZZZZZZZZZZZZZZZZZZZC.json")).unwrap();
    large.set_len((16 << 20) + 1).unwrap();
    let (code, report) = look();
    let problems = report["problems"].to_string();
    assert_eq!(
        (code, report["problems"].as_array().unwrap().len()),
        (21, 3),
        "{report:#}"
    );
    assert!(
        problems.contains("no regular file") && problems.contains("is not read"),
        "{problems}"
    );
    site.refused(
        &["evidence", "verify", copy.join("readme.md").to_str().unwrap()],
        2,
    );
}
