//! Losses of evidence that are accepted: what goes on from then, who is told all the same, and what can not be accepted.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::chain::{files, id, previous, statements};
use crate::drills::{command, drill, edit, site, verify};
use crate::harness::{self, Said};
use crate::kept::read_only;
use crate::site::Site;

/// Accepts, which must be done.
fn accept(site: &Site, id: &str) -> Value {
    site.json(&["evidence", "accept", id, "--reason", "a lifecycle rule"])
}

/// Whether `status` is well.
fn is_well(site: &Site) -> bool {
    let said = harness::run(&mut site.backup(&["--json", "status"]));
    let status = said.json();
    assert_eq!(said.code == 0, status["ok"] == json!(true), "{said}");
    assert_eq!(said.code == 0, status["problems"] == json!([]), "{said}");
    said.code == 0
}

/// As the machine verifies that made it.
fn verify_here(site: &Site) -> Said {
    harness::run(&mut site.backup(&["--json", "evidence", "verify"]))
}

/// What is told of a loss.
fn sentence(lost: &str, number: u64, done: &Value) -> String {
    let by = done["id"].as_str().unwrap();
    let at = done["statement"]["predicate"]["report"]["at"].as_str().unwrap();
    format!(
        "{lost} (number {number}) is lost, accepted by {by} on {}: a lifecycle rule",
        &at[..10]
    )
}

fn object(site: &Site, id: &str) -> PathBuf {
    site.path("repository/evidence").join(format!("{id}.json"))
}

/// Which points of the app are proven, oldest first.
fn proven(site: &Site) -> Vec<bool> {
    let list = site.json(&["list", "app"]);
    let points = list["sources"][0]["points"].as_array().unwrap().iter();
    points.map(|point| !point["drilled"].is_null()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_loss_in_the_middle_is_accepted_and_retention_goes_on() {
    let site = site("[drill.app]\nsources = [\"app\"]\n").await;
    assert_eq!(drill(&site, "app").0, 0);
    site.json(&["run", "app"]);
    for _ in 0..2 {
        assert_eq!(drill(&site, "app").0, 0);
    }
    let made = statements(&site);
    let (lost, there) = (id(&made[0]), id(&made[1]));
    assert_eq!(proven(&site), [true, true]);
    let refused = site.refused(&["evidence", "accept"], 2);
    assert!(refused["message"].as_str().unwrap().contains("nothing to accept"));
    let away = site.path("away.json");
    std::fs::rename(object(&site, &lost), &away).unwrap();
    // It is in the way, and what is in the way says what to do.
    assert!(!is_well(&site));
    for told in [
        site.refused(&["prune"], 21)["hint"].to_string(),
        harness::run(&mut site.backup(&["status"])).stdout,
    ] {
        assert!(told.contains("backup evidence accept"), "{told}");
    }
    // Which it is, and the command that accepts it.
    let which = site.refused(&["evidence", "accept"], 2);
    assert!(
        which["message"]
            .as_str()
            .unwrap()
            .contains(&format!("follows {lost}, which is missing")),
        "{which}"
    );
    assert!(
        which["hint"]
            .as_str()
            .unwrap()
            .contains(&format!("backup evidence accept {lost} --reason ")),
        "{which}"
    );
    // What is there, what nobody knows, without a reason: nothing of it.
    let unknown = "01ARZ3NDEKTSV4RRFFQ69G5FAV";
    for (arguments, named) in [
        (&[&there, "--reason", "x"][..], format!("{there} is there")),
        (
            &[&lost, unknown, "--reason", "x"],
            format!("nobody knows of evidence {unknown}"),
        ),
        (&[&lost], "no reason is given".to_owned()),
        (&[&lost, "--reason", " "], "no reason is given".to_owned()),
    ] {
        let refused = site.refused(&[&["evidence", "accept"], arguments].concat(), 2);
        assert!(refused["message"].as_str().unwrap().contains(&named), "{refused}");
    }
    let key = site.path("signing.key");
    std::fs::rename(&key, site.path("signing.away")).unwrap();
    let refused = site.refused(&["evidence", "accept", &lost, "--reason", "x"], 2);
    assert!(
        refused["message"].as_str().unwrap().contains("evidence.key"),
        "{refused}"
    );
    std::fs::rename(site.path("signing.away"), &key).unwrap();
    // A plan writes nothing.
    let before = files(&site.path("repository/evidence"));
    let arguments = [
        "evidence",
        "accept",
        &lost,
        "--reason",
        "a lifecycle rule",
        "--dry-run",
    ];
    let plan = site.json(&arguments);
    assert_eq!(
        (&plan["dry_run"], &plan["evidence"]),
        (&json!(true), &Value::Null)
    );
    let of_it = json!([{"id": lost, "number": 1, "sha256": previous_digest(&made[1])}]);
    assert_eq!(plan["statement"]["predicate"]["lost"], of_it, "{plan}");
    let text = harness::run_ok(&mut site.backup(&arguments)).stdout;
    assert!(
        text.contains("nothing was written") && text.contains(&lost),
        "{text}"
    );
    assert_eq!(files(&site.path("repository/evidence")), before);
    assert!(files(&site.path("state/evidence")).is_empty());
    assert!(!is_well(&site));

    let done = accept(&site, &lost);
    let by = done["id"].as_str().unwrap().to_owned();
    assert_eq!(
        (&done["evidence"], &done["lost"], &done["signed"]),
        (&json!(format!("evidence/{by}.json")), &of_it, &json!(true)),
        "{done}"
    );
    assert_eq!((&done["problems"], &done["warnings"]), (&json!([]), &json!([])));
    // No problem, and nothing to tell, for who goes on.
    assert!(is_well(&site));
    for document in [site.json(&["status"]), site.json(&["prune"])] {
        assert_eq!(document["warnings"], json!([]), "{document}");
    }
    assert_eq!(
        proven(&site),
        [false, true],
        "what it proved is not known any more"
    );
    // Auditors are told.
    let directory = site.path("repository/evidence").display().to_string();
    let told = sentence(&lost, 1, &done);
    for said in [
        verify_here(&site),
        verify(&site, &[&directory]),
        verify(&site, &["--newest", &lost, &directory]),
        verify(&site, &["--newest", &there, &directory]),
    ] {
        let report = said.json();
        assert_eq!(
            (said.code, &report["problems"], &report["warnings"]),
            (0, &json!([]), &json!([told])),
            "{said}"
        );
        assert_eq!(
            (&report["lost"][0]["id"], &report["lost"][0]["accepted_by"]),
            (&json!(lost), &json!(by))
        );
        assert!(said.stderr.contains(&format!("warning: {told}")), "{said}");
    }
    for command in ["list", "report"] {
        let document = site.json(&["evidence", command]);
        assert_eq!(
            (&document["problems"], &document["warnings"]),
            (&json!([]), &json!([told])),
            "{document}"
        );
    }
    let markdown = harness::run_ok(&mut site.backup(&["evidence", "report"])).stdout;
    assert!(
        markdown.contains("whole but for 1 accepted loss, every one signed") && markdown.contains(&told),
        "{markdown}"
    );
    assert!(
        !markdown.contains(&format!("| {by} |")),
        "it is no drill: {markdown}"
    );
    let listed = site.json(&["evidence", "list"])["evidence"][2].clone();
    assert_eq!(
        (&listed["id"], &listed["result"], &listed["lost"]),
        (&json!(by), &json!("accepted"), &json!([lost]))
    );
    let shown = harness::run_ok(&mut site.backup(&["evidence", "show", &by])).stdout;
    assert!(
        shown.contains("Loss of evidence, accepted")
            && shown.contains("Reason: a lifecycle rule")
            && shown.contains(&format!("| {lost} | 1 |")),
        "{shown}"
    );
    // Once is enough, and the next drill goes on from it.
    let again = site.refused(&["evidence", "accept", &lost, "--reason", "x"], 2);
    assert!(again["message"].as_str().unwrap().contains(&told), "{again}");
    let (code, report) = drill(&site, "app");
    assert_eq!((code, &report["warnings"]), (0, &json!([])), "{report}");
    let next = statements(&site).pop().unwrap();
    assert_eq!(
        (&next["predicate"]["number"], previous(&next)),
        (&json!(5), vec![by.clone()])
    );
    // It is put back: it is there again.
    std::fs::rename(&away, object(&site, &lost)).unwrap();
    let back = verify_here(&site);
    assert_eq!(
        (back.code, &back.json()["warnings"], &back.json()["lost"]),
        (0, &json!([]), &json!([])),
        "{back}"
    );
    assert!(is_well(&site));
    assert_eq!(proven(&site), [true, true]);
}

/// The digest by which a statement names the one before it.
fn previous_digest(statement: &Value) -> &Value {
    &statement["predicate"]["previous"][0]["sha256"]
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_that_only_this_host_knows_is_accepted_also_while_it_can_not_write() {
    let site = site("[drill.app]\nsources = [\"app\"]\n").await;
    for _ in 0..2 {
        assert_eq!(drill(&site, "app").0, 0);
    }
    let newest = id(&statements(&site)[1]);
    std::fs::remove_file(object(&site, &newest)).unwrap();
    assert!(!is_well(&site));
    let mut arguments = vec![
        "evidence",
        "accept",
        &newest,
        "--reason",
        "a bucket that was restored",
    ];
    let said = harness::run(&mut read_only(&site, &command(&site, &arguments)));
    assert_eq!(said.code, 0, "{said}");
    let done = said.json();
    assert!(
        done["warnings"].to_string().contains("is not in the repository"),
        "{done}"
    );
    assert_eq!(files(&site.path("state/evidence")).len(), 1);
    assert!(is_well(&site), "as far as this host knows");
    let by = done["id"].as_str().unwrap();
    assert_eq!(done["number"], json!(3), "later than what is lost");
    // Another host remembers nothing of what is lost, and needs nothing.
    let state = |name: &str| {
        edit(&site, |policy| {
            let from = policy
                .split("dir = \"")
                .nth(1)
                .unwrap()
                .split('"')
                .next()
                .unwrap();
            policy.replace(from, site.path(name).to_str().unwrap())
        });
    };
    state("another");
    assert!(is_well(&site));
    state("state");
    // The next drill takes it along, and then everybody knows.
    let (code, report) = drill(&site, "app");
    assert_eq!(code, 0, "{report}");
    assert!(files(&site.path("state/evidence")).is_empty() && object(&site, by).is_file());
    let next = statements(&site).pop().unwrap();
    assert_eq!(previous(&next), [by]);
    assert!(is_well(&site));
    site.json(&["prune"]);
    state("another");
    assert!(is_well(&site));
    let said = verify(
        &site,
        &[
            "--newest",
            &newest,
            site.path("repository/evidence").to_str().unwrap(),
        ],
    );
    assert_eq!(said.code, 0, "{said}");
    assert!(
        said.stderr
            .contains(&format!("{newest} (number 2) is lost, accepted by {by} on ")),
        "{said}"
    );
    // All of it, the acceptance too.
    state("state");
    let last = id(&next);
    for file in files(&site.path("repository/evidence")) {
        std::fs::remove_file(file).unwrap();
    }
    assert!(!is_well(&site));
    arguments[2] = &last;
    let done = site.json(&arguments);
    assert_eq!(
        (&done["number"], &done["problems"]),
        (&json!(5), &json!([])),
        "{done}"
    );
    assert!(is_well(&site));
    assert_eq!(verify_here(&site).code, 0);
    site.json(&["prune"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_not_the_key_accepts_nothing_and_what_took_the_place_is_told() {
    let site = site("[drill.app]\nsources = [\"app\"]\n").await;
    assert_eq!(drill(&site, "app").0, 0);
    site.json(&["run", "app"]);
    assert_eq!(drill(&site, "app").0, 0);
    let lost = id(&statements(&site)[0]);
    let path = object(&site, &lost);
    let genuine = std::fs::read(&path).unwrap();
    // Changed by somebody without the key.
    let mut envelope: Value = serde_json::from_slice(&genuine).unwrap();
    envelope["signatures"] = json!([]);
    std::fs::write(&path, envelope.to_string()).unwrap();
    let with_key = std::fs::read_to_string(site.path("policy.toml")).unwrap();
    let signing = site.path("signing.key").display().to_string();
    // Signed by nobody: it counts where the policy asks for no signature, and not here.
    let section = format!("[evidence]\nkey = {{ file = \"{signing}\" }}");
    let without = with_key.replace(&section, "");
    assert_ne!(without, with_key);
    harness::write_file(site.directory.path(), "policy.toml", &without);
    let done = accept(&site, &lost);
    assert_eq!(done["signed"], json!(false));
    assert!(
        done["warnings"].to_string().contains("is signed by nobody"),
        "{done}"
    );
    assert!(is_well(&site), "of who asks for no signature");
    assert_eq!(proven(&site), [false, true], "what took its place proves nothing");
    let forged = object(&site, done["id"].as_str().unwrap());
    harness::write_file(site.directory.path(), "policy.toml", &with_key);
    assert!(!is_well(&site));
    site.refused(&["prune"], 21);
    assert_eq!(verify_here(&site).json()["lost"], json!([]));
    // The same statement under a signature of another one.
    let mut envelope: Value = serde_json::from_slice(&std::fs::read(&forged).unwrap()).unwrap();
    let theirs: Value = serde_json::from_slice(&genuine).unwrap();
    envelope["signatures"] = theirs["signatures"].clone();
    std::fs::write(&forged, envelope.to_string()).unwrap();
    assert!(!is_well(&site));
    std::fs::remove_file(&forged).unwrap();
    // With the key it is accepted, and told what is there instead.
    let done = accept(&site, &lost);
    assert!(is_well(&site));
    site.json(&["prune"]);
    assert_eq!(proven(&site), [false, true]);
    let told = sentence(&lost, 1, &done);
    let directory = site.path("repository/evidence");
    for said in [verify_here(&site), verify(&site, &[directory.to_str().unwrap()])] {
        let report = said.json();
        let warnings = report["warnings"].to_string();
        assert_eq!((said.code, &report["problems"]), (0, &json!([])), "{said}");
        assert!(
            warnings.contains(&told) && warnings.contains("is not signed"),
            "{said}"
        );
    }
    std::fs::write(&path, genuine).unwrap();
    assert_eq!(verify_here(&site).json()["warnings"], json!([]));
    assert_eq!(proven(&site), [true, true]);
}
