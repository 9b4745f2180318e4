//! Several databases of one server, with the real binary: a plan and a restore that agree, and what they tell.

use serde_json::{Value, json};

use crate::harness::{self, Said, TempDir, postgres::PostgresServer, random_hex, write_file};

struct Place {
    directory: TempDir,
    server: &'static PostgresServer,
    tag: String,
}

impl Place {
    fn new() -> Self {
        let server = PostgresServer::newest();
        let place = Self {
            directory: harness::temp_dir(),
            server,
            tag: format!("db_{}", random_hex(4)),
        };
        let key = place.directory.path().join("key");
        let recipient = harness::run_ok(harness::lifeboat().args(["key", "generate"]).arg(&key)).stdout;
        let root = place.directory.path().display();
        let policy = format!(
            r#"environment = "test"
[repository]
url = "file://{root}/repository"
[encryption]
recipients = ["{recipient}"]
[state]
dir = "{root}/state"
[source.orders]
kind = "postgres"
url = {{ env = "T_URL" }}
client_dir = "{clients}"
databases = ["{tag}_*"]
"#,
            recipient = recipient.trim(),
            clients = server.client_dir().display(),
            tag = place.tag,
        );
        write_file(place.directory.path(), "policy.toml", policy);
        for (name, rows) in [("small", 10), ("large", 5000)] {
            server.psql("postgres", &format!("create database {}", place.database(name)));
            server.psql(
                &place.database(name),
                &format!("create table t as select n, repeat('x', 100) x from generate_series(1, {rows}) n; create table empty (x int)"),
            );
        }
        harness::run_ok(&mut place.backup(&["init"]));
        harness::run_ok(&mut place.backup(&["run"]));
        place
    }
    fn database(&self, name: &str) -> String {
        format!("{}_{name}", self.tag)
    }
    fn backup(&self, args: &[&str]) -> std::process::Command {
        let mut command = harness::lifeboat();
        command
            .current_dir(self.directory.path())
            .env("T_URL", self.server.url("postgres"))
            .env("PGPASSWORD", self.server.password())
            .args(args);
        command
    }
    fn restore(&self, args: &[&str]) -> Said {
        let args = [
            &[
                "restore",
                "orders",
                "--at",
                "latest",
                "--identity",
                "key",
                "--json",
            ],
            args,
        ]
        .concat();
        harness::run(&mut self.backup(&args))
    }
    fn target(&self, database: &str) -> String {
        let server = self.server;
        format!(
            "postgres://{}@{}:{}/{database}",
            server.user(),
            server.host(),
            server.port()
        )
    }
}

fn names(document: &Value) -> Vec<(String, u64, u64)> {
    let list = document["databases"]
        .as_array()
        .unwrap_or_else(|| panic!("{document}"));
    list.iter()
        .map(|d| {
            let number = |field: &str| d[field].as_u64().unwrap();
            (
                d["name"].as_str().unwrap().to_owned(),
                number("tables"),
                number("rows"),
            )
        })
        .collect()
}

#[test]
fn the_plan_says_what_the_restore_says() {
    let place = Place::new();
    let (small, large) = (place.database("small"), place.database("large"));
    // Several databases for one.
    let to = place.target(&place.database("x"));
    for args in [&["--to", &to, "--dry-run"][..], &["--to", &to]] {
        let said = place.restore(args);
        assert_eq!(said.code, 2, "{said}");
        assert!(said.stdout.contains("several databases"), "{said}");
    }
    // A table that is not there.
    let to_server = place.target("");
    for args in [
        &["--only-database", &small, "--only-table", "tt", "--dry-run"][..],
        &["--only-database", &small, "--only-table", "tt", "--to", &to],
    ] {
        let said = place.restore(args);
        assert_eq!(said.code, 2, "{said}");
        assert!(
            said.json()["error"]["hint"]
                .as_str()
                .unwrap()
                .contains("public.t"),
            "{said}"
        );
    }
    let made = format!(
        "select count(*) from pg_database where datname = '{}'",
        place.database("x")
    );
    assert_eq!(place.server.psql("postgres", &made), "0");
    // What is in it.
    let whole = place.restore(&["--dry-run"]);
    assert_eq!(whole.code, 0, "{whole}");
    let expected = [(large.clone(), 2, 5000), (small.clone(), 2, 10)];
    assert_eq!(names(&whole.json()), expected);
    assert!(
        whole.stderr.contains(&format!("holds  database \"{large}\"")),
        "{whole}"
    );
    assert!(whole.stderr.contains("2 tables, 5000 rows"), "{whole}");
    let one = place.restore(&["--dry-run", "--only-database", &small]).json();
    assert_eq!(names(&one), expected[1..]);
    assert!(one["bytes"].as_u64().unwrap() * 10 < whole.json()["bytes"].as_u64().unwrap());
    // One table, and how much of the point was read for it.
    let said = place.restore(&["--only-database", &large, "--only-table", "t", "--to", &to]);
    assert_eq!(said.code, 0, "{said}");
    assert!(said.json()["bytes"].as_u64().unwrap() > 100_000, "{said}");
    assert_eq!(
        place.server.psql(&place.database("x"), "select count(*) from t"),
        "5000"
    );
    // The names are taken on this server.
    for args in [&["--to", &to_server, "--dry-run"][..], &["--to", &to_server]] {
        let said = place.restore(args);
        assert_eq!(said.code, 2, "{said}");
        assert!(said.stdout.contains("is not empty"), "{said}");
    }
}

#[test]
fn a_run_shows_its_databases_and_when_each_was_read() {
    let place = Place::new();
    let list = harness::run_ok(&mut place.backup(&["list", "--json"])).json();
    let run = list["sources"][0]["points"][0]["run"]
        .as_str()
        .unwrap()
        .to_owned();
    let at = list["sources"][0]["points"][0]["at"].as_str().unwrap().to_owned();
    let shown = harness::run_ok(&mut place.backup(&["list", &run, "--identity", "key", "--json"])).json();
    let expected = [
        (place.database("large"), 2, 5000),
        (place.database("small"), 2, 10),
    ];
    assert_eq!(names(&shown), expected);
    let instants: Vec<&str> = shown["databases"]
        .as_array()
        .unwrap()
        .iter()
        .map(|d| d["at"].as_str().unwrap())
        .collect();
    assert_eq!(
        instants.iter().max(),
        Some(&at.as_str()),
        "the point is of the last one"
    );
    assert!(shown["facts"]["snapshot_spread_ms"].is_u64(), "{shown}");
    let text = harness::run_ok(&mut place.backup(&["list", &run, "--identity", "key"])).stdout;
    assert!(
        text.contains("SNAPSHOT (UTC)") && text.contains(instants[0]),
        "{text}"
    );
    // Without an identity the rest is shown, and what is not.
    let bare = harness::run_ok(&mut place.backup(&["list", &run]));
    assert!(bare.stdout.contains("databases    not shown"), "{bare}");
    assert!(!bare.stdout.contains(&place.database("small")), "{bare}");
    let bare = harness::run_ok(&mut place.backup(&["list", &run, "--json"])).json();
    assert_eq!(bare["databases"], json!(null));
}

#[test]
fn a_restore_to_a_directory_tells_commands_that_work() {
    let place = Place::new();
    let said = harness::run_ok(&mut place.backup(&[
        "restore",
        "orders",
        "--at",
        "latest",
        "--identity",
        "key",
        "--to",
        "it's out",
    ]));
    let steps: Vec<&str> = said
        .stdout
        .lines()
        .filter_map(|l| l.strip_prefix("next: "))
        .collect();
    assert_eq!(steps.len(), 3, "{said}");
    assert!(
        steps[0].starts_with("psql -d postgres -f ") && steps[0].contains("globals.sql"),
        "{said}"
    );
    let fresh = PostgresServer::start(18);
    for step in &steps[1..] {
        let mut shell = fresh.client("sh", "postgres");
        let path = format!(
            "{}:{}",
            fresh.client_dir().display(),
            std::env::var("PATH").unwrap()
        );
        let mut command = std::process::Command::new("sh");
        for (name, value) in shell.env("PATH", path).get_envs() {
            command.env(name, value.unwrap());
        }
        harness::run_ok(command.arg("-c").arg(step));
    }
    assert_eq!(
        fresh.psql(&place.database("large"), "select count(*) from t"),
        "5000"
    );
}
