//! Generations and identities: what needs none, what a rewrap does, and whose recipients are refused.

use serde_json::json;

use super::harness::{lifeboat, run_code, run_ok, write_file};
use super::restore::pb_data;
use super::{Site, error};

/// The recipient of the site's key, and a second key pair.
fn recipients(site: &Site) -> (String, String) {
    let of = |name: &str| {
        let text = std::fs::read_to_string(site.path(name)).unwrap();
        let line = text.lines().find_map(|l| l.strip_prefix("# public key: "));
        line.unwrap().to_owned()
    };
    run_ok(lifeboat().args(["key", "generate"]).arg(site.path("second")));
    (of("key"), of("second"))
}

#[test]
fn what_needs_no_identity_does_without_the_one_that_the_policy_names() {
    let site = Site::new();
    pb_data(&site);
    let (first, _) = recipients(&site);
    site.policy(&format!(
        "recipients = [\"{first}\"]\nidentity = {{ env = \"T_UNSET\" }}"
    ));
    run_ok(&mut site.backup(&["init"]));
    let taken = run_ok(&mut site.backup(&["run", "app", "--json"]));
    let warnings = taken.json()["runs"][0]["warnings"].to_string();
    assert!(
        warnings.contains("identity") && warnings.contains("T_UNSET"),
        "{taken}"
    );
    assert!(!taken.stderr.contains("WARN"), "no line of a log: {taken}");

    let verified = run_ok(&mut site.backup(&["verify", "--json"])).json();
    assert!(verified["objects"].as_u64().unwrap() > 3, "{verified}");
    let error = site.refused(&["verify", "--content"], 2);
    assert!(error["message"].as_str().unwrap().contains("T_UNSET"), "{error}");

    let list = run_ok(&mut site.backup(&["key", "list"]));
    assert!(list.stdout.contains("unknown"), "{list}");
    assert!(
        list.stderr.contains("warning: ") && list.stderr.contains("T_UNSET"),
        "{list}"
    );
    let list = run_ok(&mut site.backup(&["key", "list", "--json"])).json();
    assert_eq!(list["generations"][0]["opens"], json!(null));
    assert_eq!(list["generations"][0]["wraps"], 1);
    let rotated = run_ok(&mut site.backup(&["key", "rotate", "--yes", "--json"])).json();
    assert_eq!(rotated["generations"].as_array().unwrap().len(), 2);
    // One that is named on the command line must be there.
    site.refused(&["key", "list", "--identity", "nothere"], 2);
    let list = run_ok(&mut site.backup(&["key", "list", "--identity", "key", "--json"])).json();
    assert_eq!(list["generations"][0]["opens"], json!(true));
}

#[test]
fn a_rewrap_adds_only_what_is_lacking_and_says_that_it_shuts_nobody_out() {
    let site = Site::new();
    let (first, second) = recipients(&site);
    run_ok(&mut site.backup(&["init"]));
    run_ok(&mut site.backup(&["key", "rotate", "--yes"]));
    let rewrap = || run_ok(&mut site.backup(&["key", "rewrap", "--identity", "key", "--yes", "--json"]));
    let wraps = |said: &super::Said| said.json()["generations"][0]["wraps"].as_u64().unwrap();
    // Made for exactly these when the generation began.
    assert_eq!(wraps(&rewrap()), 1);
    site.policy(&format!("recipients = [\"{first}\", \"{second}\"]"));
    let said = rewrap();
    assert_eq!(wraps(&said), 2);
    assert!(
        said.json()["warnings"].to_string().contains("shuts nobody out"),
        "{said}"
    );
    let again = rewrap();
    assert_eq!(wraps(&again), 2);
    assert!(again.json()["done"].to_string().contains("already"), "{again}");
    // The other order is the same recipients; the second identity opens it now.
    site.policy(&format!("recipients = [\"{second}\", \"{first}\"]"));
    assert_eq!(wraps(&rewrap()), 2);
    let list = run_ok(&mut site.backup(&["key", "list", "--identity", "second", "--json"])).json();
    assert_eq!(list["generations"][0]["opens"], json!(true));
    // A lost state: made anew.
    std::fs::remove_dir_all(site.path("state")).unwrap();
    assert_eq!(wraps(&rewrap()), 3);
}

#[test]
fn recipients_of_the_example_policies_are_refused() {
    let site = Site::new();
    let (first, _) = recipients(&site);
    let text = std::fs::read_to_string(super::harness::project().join("policies/development.toml")).unwrap();
    let mine = text
        .replace(
            "file:///var/tmp/lifeboat-development",
            &format!("file://{}", site.path("dev").display()),
        )
        .replace(
            "/var/tmp/lifeboat-development-state",
            &site.path("dev-state").display().to_string(),
        );
    write_file(site.dir.path(), "development.toml", mine);
    let backup = |args: &[&str]| {
        let mut command = site.backup(args);
        command.env("LIFEBOAT_POLICY", site.path("development.toml"));
        command
    };
    let said = run_code(&mut backup(&["init", "--json"]), 2);
    let refused = error(&said);
    assert!(refused["message"].as_str().unwrap().contains("example"), "{said}");
    assert!(
        refused["hint"].as_str().unwrap().contains("backup key generate"),
        "{said}"
    );
    assert!(!site.path("dev").exists(), "nothing is made");
    // Nor are they slipped in beside one's own later.
    run_ok(&mut site.backup(&["init"]));
    let example = text.split('"').find(|word| word.starts_with("age1")).unwrap();
    site.policy(&format!("recipients = [\"{first}\", \"{example}\"]"));
    let said = run_code(&mut site.backup(&["run", "app"]), 2);
    assert!(said.stderr.contains(example), "{said}");
    site.refused(&["key", "rotate", "--yes"], 2);
    let check = run_code(&mut site.backup(&["check", "--json"]), 2);
    assert!(check.json()["findings"].to_string().contains(example), "{check}");
}
