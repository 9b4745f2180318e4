//! What `backup check` says of drills before the first one: everything that would end it, and what is here for it.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use serde_json::{Value, json};

use crate::drills::{command, edit};
use crate::harness::postgres::PostgresServer;
use crate::harness::{self, binary};
use crate::site::{Site, Store};

const BOTH: &str = "[drill.weekly]\nsources = [\"orders\", \"app\"]\n";

/// A site with a repository, without a key for evidence; its policy ends with this.
async fn site(more: &str) -> Site {
    let site = Site::new(Store::Directory).await;
    edit(&site, |policy| format!("{policy}\n{more}"));
    site.json(&["init"]);
    site
}

/// Ends the policy with something else than before.
fn change(site: &Site, from: &str, to: &str) {
    edit(site, |policy| {
        assert!(policy.contains(from), "{from}: {policy}");
        policy.replace(from, to)
    });
}

/// What `check` says, and how it ends.
fn checked(site: &Site) -> (i32, Value) {
    let said = harness::run(&mut command(site, &["check"]));
    (said.code, said.json())
}

/// Findings of a name: level, text and hint.
fn of<'a>(report: &'a Value, name: &str) -> Vec<(&'a str, &'a str, &'a str)> {
    let findings = report["findings"].as_array().unwrap().iter();
    let text = |f: &'a Value, key: &str| f[key].as_str().unwrap_or_default();
    findings
        .filter(|f| f["name"] == name)
        .map(|f| (text(f, "level"), text(f, "text"), text(f, "hint")))
        .collect()
}

/// Exactly one finding of a name, which is an error and says this, with a hint that says that.
#[track_caller]
fn one_error(report: &Value, name: &str, says: &[&str], hint: &str) {
    let found = of(report, name);
    let [(level, text, hinted)] = found[..] else {
        panic!("{found:?}");
    };
    assert_eq!(level, "error", "{found:?}");
    for part in says {
        assert!(text.contains(part), "{part}: {found:?}");
    }
    assert!(hinted.contains(hint), "{hint}: {found:?}");
    assert_eq!(report["ok"], json!(false));
}

fn pocketbase_version() -> String {
    let said = harness::run_ok(std::process::Command::new(binary("pocketbase")).arg("--version"));
    said.stdout.trim().rsplit(' ').next().unwrap().to_owned()
}

fn signing_key(site: &Site) {
    let key = harness::run_ok(
        site.plain()
            .args(["key", "signing"])
            .arg(site.path("signing.key")),
    );
    harness::write_file(site.directory.path(), "signing.pub", key.stdout);
}

#[tokio::test(flavor = "multi_thread")]
async fn check_says_what_a_drill_would_be_made_with_and_what_it_would_be_without() {
    let site = site(BOTH).await;
    // Nobody signs: it can run, and the operator should know.
    let (code, report) = checked(&site);
    assert_eq!((code, &report["ok"]), (0, &json!(true)), "{report:#}");
    let [(level, text, hint)] = of(&report, "evidence")[..] else {
        panic!("{report:#}");
    };
    assert_eq!(level, "warning");
    assert!(text.contains("signed by nobody") && hint.contains("backup key signing"));
    let server = site.sql("show server_version");
    let server = server.split(' ').next().unwrap();
    let ready = format!(
        "PostgreSQL {server} and pocketbase {} are here",
        pocketbase_version()
    );
    assert_eq!(of(&report, "drill weekly"), [("ok", ready.as_str(), "")]);
    // For people the same stands in the table.
    let path = command(&site, &[])
        .get_envs()
        .find_map(|(n, v)| (n == "PATH").then(|| v.map(|v| v.to_owned())));
    let said = harness::run_ok(site.backup(&["check"]).env("PATH", path.flatten().unwrap()));
    assert!(said.stdout.contains(&ready), "{said}");

    // A directory without programs: both sources, each with what to install.
    edit(&site, |policy| format!("{policy}binaries = \"/nonexistent\"\n"));
    let (code, report) = checked(&site);
    assert_eq!(code, 1, "{report:#}");
    let found = of(&report, "drill weekly");
    let [(orders, no_server, install), (app, no_pocketbase, set)] = found[..] else {
        panic!("{found:?}");
    };
    assert_eq!((orders, app), ("error", "error"));
    let major = site.server.major();
    assert!(
        no_server.starts_with(&format!("orders: no PostgreSQL {major} server programs")),
        "{found:?}"
    );
    assert!(install.contains(&format!("postgresql-{major}")), "{found:?}");
    assert!(
        no_pocketbase.contains("app: the program pocketbase is not here"),
        "{found:?}"
    );
    assert!(set.contains("binaries"), "{found:?}");
    // Its own drill says the same.
    site.json(&["run"]);
    let said = harness::run_code(&mut command(&site, &["drill"]), 23);
    assert!(
        said.stdout
            .contains(&format!("no PostgreSQL {major} server programs")),
        "{said}"
    );
    // Also where the source does not answer.
    let mut silent = command(&site, &["check"]);
    silent.env("T_ORDERS_URL", "postgres://nobody:sentinel@127.0.0.1:1/none");
    let said = harness::run_code(&mut silent, 1);
    assert!(said.stdout.contains("no PostgreSQL server programs"), "{said}");
    assert!(!said.stdout.contains("sentinel") && !said.stderr.contains("sentinel"));

    // A pocketbase that does not start is none.
    let broken = harness::write_file(site.directory.path(), "broken/pocketbase", "#!/bin/sh\nexit 3\n");
    executable(&broken, 0o755);
    change(&site, "\"orders\", \"app\"", "\"app\"");
    change(&site, "/nonexistent", broken.parent().unwrap().to_str().unwrap());
    let (code, report) = checked(&site);
    assert_eq!(code, 1, "{report:#}");
    one_error(
        &report,
        "drill weekly",
        &["broken/pocketbase can not be run"],
        "Install",
    );
}

fn executable(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn check_reads_the_key_that_a_drill_signs_with_and_wants_an_identity() {
    let site = site(BOTH).await;
    signing_key(&site);
    let identity = std::fs::read_to_string(site.path("key")).unwrap();
    let identity = identity.lines().last().unwrap().to_owned();
    edit(&site, |policy| {
        format!(
            "{policy}\n[evidence]\nkey = {{ file = \"{}\" }}\n",
            site.path("KEY").display()
        )
    });
    let mut before = "KEY";
    for (file, code) in [("key", 2), ("signing.pub", 2), ("signing.key", 0)] {
        edit(&site, |policy| {
            let path =
                |name: &str| format!("[evidence]\nkey = {{ file = \"{}\" }}", site.path(name).display());
            policy.replace(&path(before), &path(file))
        });
        before = file;
        let said = harness::run(&mut command(&site, &["check"]));
        assert_eq!(said.code, code, "{file}: {said}");
        assert!(!said.stdout.contains(&identity) && !said.stderr.contains(&identity));
        let report = said.json();
        if code == 0 {
            assert_eq!(of(&report, "evidence")[0].0, "ok");
        } else {
            one_error(
                &report,
                "evidence",
                &["evidence.key", "can not be read"],
                "backup key signing FILE",
            );
            harness::run_code(&mut command(&site, &["drill"]), code);
        }
    }
    // One that is not there is told once, with the secrets.
    std::fs::remove_file(site.path("signing.key")).unwrap();
    let (code, report) = checked(&site);
    assert_eq!(code, 2);
    assert_eq!(of(&report, "evidence"), []);
    assert_eq!(
        report.to_string().matches("evidence.key: ").count(),
        1,
        "{report:#}"
    );
    signing_key(&site);

    let line = format!("identity = {{ file = \"{}\" }}", site.path("key").display());
    change(&site, &line, "");
    let (code, report) = checked(&site);
    assert_eq!(code, 2, "{report:#}");
    one_error(&report, "identity", &["no drill can run"], "encryption.identity");
    // A host that drills nothing needs none.
    change(&site, BOTH, "");
    let (code, report) = checked(&site);
    assert_eq!((code, of(&report, "identity").len()), (0, 0), "{report:#}");
    // A credential that only the unit has is told with the secrets, and once.
    change(
        &site,
        "[encryption]",
        "[encryption]\nidentity = { credential = \"drill_identity\" }",
    );
    edit(&site, |policy| format!("{policy}\n{BOTH}"));
    let (code, report) = checked(&site);
    assert_eq!(code, 2);
    assert_eq!(
        report.to_string().matches("drill_identity").count(),
        1,
        "{report:#}"
    );
    assert_eq!(of(&report, "identity"), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn check_tells_checks_that_can_never_be_made() {
    let site = site("").await;
    let script = harness::write_file(site.directory.path(), "asks.sh", "#!/bin/sh\nexit 0\n");
    executable(&script, 0o644);
    let script = script.display().to_string();
    let one = |source: &str, what: &str| {
        format!(
            "[drill.own]\nsources = [\"orders\", \"app\"]\nchecks = [{{ source = \"{source}\", name = \"mine\", {what} }}]\n"
        )
    };
    let as_command = |program: &str| format!("command = [\"{program}\"]");
    let mut before = String::new();
    for (source, what, says, code) in [
        (
            "orders",
            "http = \"http://127.0.0.1/api/health\"".to_owned(),
            "a Postgres answers no http",
            2,
        ),
        (
            "orders",
            as_command("/opt/none/check"),
            "/opt/none/check can not be found",
            1,
        ),
        (
            "app",
            as_command("no-such-program"),
            "no-such-program is not in /usr/local/bin",
            1,
        ),
        (
            "orders",
            as_command("no-such-program"),
            "no-such-program is not in /",
            1,
        ),
        (
            "app",
            as_command("./asks.sh"),
            // Beside the policy.
            "can not be executed",
            1,
        ),
        ("app", as_command(&script), "can not be executed", 1),
        ("app", as_command("/usr"), "/usr is no program", 1),
        // What stands beside the server, and what is everywhere.
        ("orders", as_command("initdb"), "", 0),
        ("app", as_command("sh"), "", 0),
        ("app", "http = \"http://127.0.0.1/api/health\"".to_owned(), "", 0),
    ] {
        let drill = one(source, &what);
        edit(&site, |policy| {
            format!("{}{drill}", policy.strip_suffix(&before).unwrap())
        });
        before = drill;
        let (ended, report) = checked(&site);
        assert_eq!(ended, code, "{what}: {report:#}");
        if code == 0 {
            assert_eq!(of(&report, "drill own")[0].0, "ok", "{what}: {report:#}");
        } else {
            let check = format!("{source}: check \"mine\"");
            one_error(&report, "drill own", &[&check, says], "");
        }
    }
    executable(Path::new(&script), 0o755);
    let drill = one("app", &as_command(&script));
    edit(&site, |policy| {
        format!("{}{drill}", policy.strip_suffix(&before).unwrap())
    });
    assert_eq!(checked(&site).0, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn check_looks_at_the_server_that_was_given_to_drills() {
    let drill = "[drill.given]\nsources = [\"orders\"]\nserver = { env = \"T_DRILL_URL\" }\n";
    let site = site(drill).await;
    let given = PostgresServer::start(site.server.major());
    let bare = given.url("postgres");
    let bare = bare.strip_suffix("/postgres").unwrap().to_owned();
    let checked = |url: &str| {
        let said = harness::run(command(&site, &["check"]).env("T_DRILL_URL", url));
        assert!(
            !said.stdout.contains(given.password()) && !said.stdout.contains("sentinel"),
            "{said}"
        );
        (said.code, said.json())
    };
    let (code, report) = checked(&bare);
    let version = given.psql("postgres", "show server_version");
    let version = version.trim();
    let ready = format!("a server of PostgreSQL {version} is here");
    assert_eq!(
        (code, &of(&report, "drill given")[..]),
        (0, &[("ok", ready.as_str(), "")][..]),
        "{report:#}"
    );
    // Looking leaves nothing.
    let databases =
        "select string_agg(datname, ' ' order by datname) from pg_database where not datistemplate";
    assert_eq!(given.psql("postgres", databases).trim(), "postgres");

    let own = site.server.url("postgres");
    let own = own.strip_suffix("/postgres").unwrap().to_owned();
    for (url, says, hint) in [
        ("postgres://drill:sentinel@127.0.0.1:1", "can not be used", ""),
        (&own, "is the one that was backed up", "server of its own"),
        (&given.url("shop"), "names a database, shop", "without one"),
    ] {
        let (code, report) = checked(url);
        assert_eq!(code, 1, "{report:#}");
        one_error(&report, "drill given", &["orders: ", says], hint);
    }
    given.psql("postgres", "create database somebodys");
    let (code, report) = checked(&bare);
    assert_eq!(code, 1);
    one_error(
        &report,
        "drill given",
        &["is not empty", "somebodys"],
        "server of its own",
    );
    // What a killed drill has left is its successor's to remove.
    given.psql("postgres", "create database lifeboat_drill");
    assert_eq!(checked(&bare).0, 0);
    assert_eq!(
        given.psql("postgres", databases).trim(),
        "lifeboat_drill postgres somebodys"
    );

    // A secret that is missing is told once.
    let said = harness::run_code(&mut command(&site, &["check"]), 2);
    assert_eq!(said.stdout.matches("T_DRILL_URL is not set").count(), 1, "{said}");
}
