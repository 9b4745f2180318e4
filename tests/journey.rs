//! The whole journey with the real binary, a real Postgres and a real PocketBase, into a directory and into a real S3
//! server: policy, keys, init, check, run, list, restore, verify, prune, hold, status, and restore.py beside our own.
#![allow(clippy::unwrap_used)]

#[path = "journey/accept.rs"]
mod accept;
#[path = "journey/apart.rs"]
mod apart;
#[path = "journey/chain.rs"]
mod chain;
#[path = "journey/check.rs"]
mod check;
#[path = "journey/databases.rs"]
mod databases;
#[path = "journey/defects.rs"]
mod defects;
#[path = "journey/drills.rs"]
mod drills;
#[path = "journey/evidence.rs"]
mod evidence;
#[path = "journey/feedback.rs"]
mod feedback;
#[path = "journey/golden.rs"]
mod golden;
mod harness;
#[path = "journey/kept.rs"]
mod kept;
#[path = "journey/site.rs"]
mod site;

use harness::pocketbase::PocketBase;
use harness::seaweedfs::SeaweedFs;
use serde_json::{Value, json};
use site::{Site, Store, restore_py};

fn source<'a>(document: &'a Value, name: &str) -> &'a Value {
    document["sources"]
        .as_array()
        .unwrap()
        .iter()
        .find(|s| s["source"] == name)
        .unwrap()
}

fn runs(document: &Value) -> Vec<(&str, &str)> {
    let runs = document["runs"].as_array().unwrap();
    runs.iter()
        .map(|r| (r["source"].as_str().unwrap(), r["result"].as_str().unwrap()))
        .collect()
}

async fn journey(store: Store) {
    let site = Site::new(store).await;
    site.sql("create table orders (id int primary key, note text); insert into orders select n, 'order ' || n from generate_series(1, 1000) n");
    let first = site
        .app
        .create_record_with_file("notes", "first", 1, "a.txt", b"first file")
        .await;

    // Refusals before there is a repository.
    assert_eq!(site.refused(&["list"], 10)["code"], "no_repository");
    let said = harness::run_code(&mut site.backup(&["--json", "run"]), 10);
    assert_eq!(runs(&said.json()), [("app", "failed"), ("orders", "failed")]);
    let made = site.json(&["init"]);
    assert_eq!(made["environment"], "journey");
    assert_eq!(site.refused(&["init"], 2)["code"], "usage");
    let check = site.json(&["check"]);
    assert_eq!(check["ok"], json!(true), "{check:#}");
    assert_eq!(source(&check, "orders")["next_runs"].as_array().unwrap().len(), 5);

    // Two points, with an accident between.
    let document = site.json(&["run"]);
    assert_eq!(runs(&document), [("app", "done"), ("orders", "done")]);
    let before = site.sql("select clock_timestamp() at time zone 'utc'");
    let between = format!("{}Z", before.replace(' ', "T"));
    site.sql("delete from orders where id > 500; insert into orders values (5000, 'after')");
    site.app
        .delete_record("notes", first["id"].as_str().unwrap())
        .await;
    site.app
        .create_record_with_file("notes", "second", 2, "b.txt", b"second file")
        .await;
    let document = site.json(&["run", "orders", "app"]);
    assert_eq!(runs(&document), [("orders", "done"), ("app", "done")]);
    assert!(document["runs"][0]["bytes_stored"].as_u64().unwrap() > 0);

    let list = site.json(&["list"]);
    for name in ["orders", "app"] {
        let points = source(&list, name)["points"].as_array().unwrap();
        assert_eq!(points.len(), 2);
        assert!(points[0]["at"].as_str().unwrap() < points[1]["at"].as_str().unwrap());
        assert_eq!(points[1]["parent"], points[0]["run"]);
        assert_eq!(source(&list, name)["windows"][0]["kind"], "points");
        let one = site.json(&["list", points[0]["run"].as_str().unwrap()]);
        assert_eq!(one["source"], name);
        assert!(!one["objects"].as_array().unwrap().is_empty());
    }

    // The past instant, into a new database of the same server, rows compared.
    let copy = format!("{}_restored", site.database);
    let plan = site.json(&["restore", "orders", "--at", &between, "--dry-run"]);
    assert_eq!(plan["precision"], "point");
    assert!(plan["gap_seconds"].as_f64().unwrap() > 0.0);
    assert_eq!(plan["dry_run"], json!(true));
    harness::write_file(site.directory.path(), "target", site.server.url(&copy));
    let target = format!("file:{}", site.path("target").display());
    let restored = site.json(&["restore", "orders", "--at", &between, "--to", &target]);
    assert_eq!(restored["differences"], json!([]), "{restored:#}");
    assert!(
        !restored["target"]
            .as_str()
            .unwrap()
            .contains(site.server.password())
    );
    assert_eq!(
        site.server
            .psql(&copy, "select count(*), max(id), min(note) from orders")
            .trim(),
        "1000|1000|order 1"
    );
    // A second time the target is not empty.
    let error = site.refused(&["restore", "orders", "--at", "latest", "--to", &target], 2);
    assert!(
        error["message"].as_str().unwrap().contains("orders")
            || error["message"].as_str().unwrap().contains("empty")
    );

    // The app, at the same instant, served by the real binary.
    let app = site.path("restored_app");
    let restored = site.json(&["restore", "app", "--at", &between, "--to", app.to_str().unwrap()]);
    assert_eq!(restored["differences"], json!([]), "{restored:#}");
    assert_eq!(
        site.refused(
            &["restore", "app", "--at", "latest", "--to", app.to_str().unwrap()],
            2
        )["code"],
        "usage"
    );
    restore_py_agrees(&site).await;
    let served = PocketBase::start_on(&app, site.app.password()).await;
    let records = served.records("notes").await;
    assert_eq!(records.len(), 1);
    assert_eq!(records[0]["title"], "first");
    assert_eq!(served.file(&records[0]).await, b"first file");

    // Verify, status, retention, holds.
    let verified = site.json(&["verify", "--content"]);
    assert_eq!(
        (&verified["damaged"], &verified["missing"]),
        (&json!([]), &json!([]))
    );
    assert!(verified["objects"].as_u64().unwrap() > 8);
    let status = site.json(&["status"]);
    assert_eq!(status["ok"], json!(true), "{status:#}");
    let planned = site.json(&["prune", "--dry-run"]);
    let pruned = site.json(&["prune"]);
    assert_eq!(planned["keep"], pruned["keep"]);
    assert_eq!(pruned["keep"].as_array().unwrap().len(), 4);
    let run = source(&list, "orders")["points"][0]["run"]
        .as_str()
        .unwrap()
        .to_owned();
    site.json(&["hold", "add", &run, "--why", "test"]);
    assert_eq!(site.json(&["hold", "list"])["holds"][0]["why"], "test");
    site.json(&["hold", "remove", &run]);
    assert_eq!(
        site.json(&["key", "list"])["generations"][0]["opens"],
        json!(true)
    );

    // Another environment's policy is refused.
    let key = std::fs::read_to_string(site.path("key")).unwrap();
    let recipient = key
        .lines()
        .find_map(|l| l.strip_prefix("# public key: "))
        .unwrap()
        .to_owned();
    site.write_policy(&recipient, "staging");
    for command in [
        &["run"][..],
        &["list"],
        &["prune"],
        &["restore", "app", "--at", "latest", "--dry-run"],
    ] {
        let said = harness::run(site.backup(&["--json"]).args(command));
        assert_eq!(said.code, 2, "{command:?}: {}", said.stdout);
        assert!(said.stdout.contains("belongs to environment"), "{}", said.stdout);
    }
}

/// restore.py beside our own restore into directories: equal byte for byte, for every kind of source.
async fn restore_py_agrees(site: &Site) {
    let repository = site.repository_copy().await;
    for name in ["orders", "app"] {
        let (ours, theirs) = (
            site.path(&format!("ours_{name}")),
            site.path(&format!("theirs_{name}")),
        );
        site.json(&["restore", name, "--at", "latest", "--to", ours.to_str().unwrap()]);
        restore_py(
            &repository,
            &[
                "restore",
                name,
                "--at",
                "latest",
                "--identity",
                site.path("key").to_str().unwrap(),
                "--to",
                theirs.to_str().unwrap(),
            ],
        );
        let (ours, theirs) = (harness::tree(&ours), harness::tree(&theirs));
        assert!(!ours.is_empty());
        let names = |t: &[(String, Vec<u8>)]| t.iter().map(|(n, _)| n.clone()).collect::<Vec<_>>();
        assert_eq!(names(&ours), names(&theirs), "{name}");
        assert!(ours == theirs, "{name}: restore.py gives other bytes");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_whole_journey_in_a_directory() {
    journey(Store::Directory).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_whole_journey_in_a_real_s3_server() {
    let weed = tokio::task::spawn_blocking(SeaweedFs::start).await.unwrap();
    journey(Store::S3(weed)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_say_what_to_do_and_end_with_their_code() {
    let site = Site::new(Store::Directory).await;
    site.json(&["init"]);
    // No point yet.
    assert_eq!(
        site.refused(&["restore", "app", "--at", "latest", "--dry-run"], 20)["code"],
        "unreachable"
    );
    site.json(&["run", "app"]);
    let target = site.path("t");
    let to = target.to_str().unwrap();
    let future = site.refused(
        &["restore", "app", "--at", "2199-01-01T00:00:00Z", "--to", to],
        20,
    );
    assert!(future["message"].as_str().unwrap().contains("future"));
    let early = site.refused(
        &["restore", "app", "--at", "2001-01-01T00:00:00Z", "--to", to],
        20,
    );
    assert!(early["hint"].as_str().unwrap().contains("nearest"), "{early}");
    site.refused(&["restore", "app", "--at", "sometime", "--to", to], 2);
    site.refused(&["restore", "app", "--at", "2026-03-29 02:30", "--to", to], 2);
    site.refused(&["restore", "nothere", "--at", "latest", "--to", to], 2);
    site.refused(&["restore", "app", "--at", "latest"], 2);
    site.refused(
        &["restore", "app", "--at", "latest", "--to", "postgres://u:pw@h/d"],
        2,
    );
    site.refused(&["run", "nothere"], 2);
    site.refused(&["verify", "nothere"], 2);
    site.refused(&["hold", "add", "01ARZ3NDEKTSV4RRFFQ69G5FAV", "--why", "x"], 2);
    site.refused(&["prune", "--undo", "01ARZ3NDEKTSV4RRFFQ69G5FAV"], 2);
    assert!(!target.exists(), "a refusal writes nothing");

    // The wrong identity, and none.
    let wrong = site.path("wrong");
    harness::run_ok(site.plain().args(["key", "generate"]).arg(&wrong));
    let error = site.refused(
        &[
            "restore",
            "app",
            "--at",
            "latest",
            "--to",
            to,
            "--identity",
            wrong.to_str().unwrap(),
        ],
        12,
    );
    assert_eq!(error["code"], "no_identity");
    assert!(!target.exists() || harness::tree(&target).is_empty());

    // Damage: verify tells it, restore refuses the point.
    let repository = site.path("repository/sources/app/runs");
    let pack = walk(&repository)
        .into_iter()
        .find(|p| p.ends_with("0.age"))
        .unwrap();
    let mut bytes = std::fs::read(&pack).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&pack, bytes).unwrap();
    let said = harness::run_code(&mut site.backup(&["--json", "verify"]), 21);
    assert_eq!(said.json()["damaged"].as_array().unwrap().len(), 1);
    assert_eq!(
        site.refused(&["restore", "app", "--at", "latest", "--to", to], 21)["code"],
        "damaged"
    );
    // The next run makes it good.
    site.json(&["run", "app"]);
    site.json(&["restore", "app", "--at", "latest", "--to", to]);

    // Every missing secret is named at once, by its key in the policy.
    let mut bare = site.backup(&["--json", "run", "orders"]);
    bare.env_remove("T_ORDERS_URL");
    let said = harness::run_code(&mut bare, 2);
    let message = said.json()["runs"][0]["error"]["message"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(
        message.contains("source.orders.url") && message.contains("T_ORDERS_URL"),
        "{message}"
    );

    // Wrong password: the run fails, says so, and commits nothing.
    let mut wrong_password = site.backup(&["--json", "run", "orders"]);
    wrong_password.env(
        "T_ORDERS_URL",
        site.server
            .url(&site.database)
            .replace(site.server.password(), "sentinel-password"),
    );
    let said = harness::run_code(&mut wrong_password, 1);
    let document = said.json();
    assert_eq!(document["runs"][0]["result"], "failed");
    assert!(
        document["runs"][0]["error"]["message"]
            .as_str()
            .unwrap()
            .contains("password"),
        "{document:#}"
    );
    assert!(!said.stdout.contains("sentinel-password") && !said.stderr.contains("sentinel-password"));
    // One source done and one not: 3.
    let mut half = site.backup(&["--json", "run"]);
    half.env("T_ORDERS_URL", "postgres://nobody:x@127.0.0.1:1/none");
    let said = harness::run_code(&mut half, 3);
    assert_eq!(runs(&said.json()), [("app", "done"), ("orders", "failed")]);
    assert!(
        source(&site.json(&["list"]), "orders")["points"]
            .as_array()
            .unwrap()
            .is_empty()
    );
}

fn walk(directory: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(walk(&path))
        } else {
            found.push(path)
        }
    }
    found
}

/// A command of RESTORE.md, as an operator copies it.
fn of_the_page(beginning: &str) -> &'static str {
    let page = include_str!("../scripts/RESTORE.md");
    let start = page.find(&format!("`{beginning}")).unwrap() + 1;
    page[start..].split('`').next().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_of_the_repository_brings_a_database_back_with_its_owner_and_settings() {
    let site = Site::new(Store::Directory).await;
    let (database, owner) = (&site.database, format!("owner_of_{}", site.database));
    site.sql("create table orders as select n id from generate_series(1, 1000) n");
    site.sql(&format!("create role {owner} login"));
    site.sql(&format!("alter database {database} owner to {owner}"));
    site.sql(&format!("alter database {database} set work_mem = '7MB'"));
    site.json(&["init"]);
    site.json(&["run", "orders"]);
    let out = site.path("out");
    let identity = site.path("key");
    restore_py(
        &site.path("repository"),
        &[
            "restore",
            "orders",
            "--at",
            "latest",
            "--identity",
            identity.to_str().unwrap(),
            "--to",
            out.to_str().unwrap(),
        ],
    );
    let other = harness::postgres::PostgresServer::start(site.server.major());
    let shell = |beginning: &str, password: &str| {
        let command = of_the_page(beginning).replace("NAME", database);
        let mut psql = other.client("psql", "postgres");
        let path = format!(
            "{}:{}",
            other.client_dir().display(),
            std::env::var("PATH").unwrap()
        );
        let environment: Vec<_> = psql
            .get_envs()
            .filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())))
            .collect();
        psql = std::process::Command::new("bash");
        psql.args(["-c", &command]).current_dir(site.directory.path());
        psql.envs(environment)
            .env("PATH", path)
            .env("PGPASSWORD", password);
        harness::run_ok(&mut psql);
    };
    shell("psql -d postgres -f out/globals.sql", other.password());
    // As the page says, the superuser has the password of the other server now.
    shell("pg_restore --create -d postgres", site.server.password());
    let ask = |sql: &str| {
        let mut psql = other.client("psql", database);
        psql.env("PGPASSWORD", site.server.password());
        harness::run_ok(psql.args(["-XAtc", sql]))
            .stdout
            .trim()
            .to_owned()
    };
    assert_eq!(ask("select count(*), sum(id) from orders"), "1000|500500");
    assert_eq!(ask("show work_mem"), "7MB");
    assert_eq!(
        ask("select pg_get_userbyid(datdba) from pg_database where datname = current_database()"),
        owner
    );
}
