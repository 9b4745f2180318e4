//! A sentinel in every secret that a policy can name, all commands in success and in failure with every log there is:
//! the sentinel is nowhere but where the operator put it, and in the environment of Postgres's own programs.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;

use crate::harness::pocketbase::{PocketBase, SUPERUSER};
use crate::harness::postgres::PostgresServer;
use crate::harness::processes::family;
use crate::harness::seaweedfs::SeaweedFs;
use crate::harness::{self, Said, TempDir, lifeboat, random_hex, run_ok, temp_dir, write_file};
use crate::site::{end, files};

/// The place of the test: every secret is a random word that stands nowhere else.
struct Vault {
    dir: TempDir,
    port: u16,
    server: &'static PostgresServer,
    app: PocketBase,
    weed: SeaweedFs,
    database: String,
    role: String,
    /// What must not be found, by what it is.
    sentinels: BTreeMap<&'static str, String>,
    /// They, and what they may be written as.
    needles: Vec<(Vec<u8>, &'static str)>,
    /// The two bytes that a needle begins with.
    begins: Vec<bool>,
    /// Files that were clean, by name and time.
    clean: RefCell<BTreeSet<(PathBuf, SystemTime)>>,
}

/// As it stands in a URL.
fn percent_encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |out, b| match b {
        b if b.is_ascii_alphanumeric() => out + &char::from(b).to_string(),
        b => out + &format!("%{b:02X}"),
    })
}

impl Vault {
    async fn new() -> Self {
        let server = PostgresServer::newest();
        let weed = tokio::task::spawn_blocking(SeaweedFs::start).await.unwrap();
        weed.create_bucket("backups", false).await;
        let app = PocketBase::start().await;
        app.create_collection("notes").await;
        app.create_record_with_file("notes", "first", 1, "a.txt", b"a file")
            .await;
        let (database, role) = (server.create_database(), format!("role_{}", random_hex(4)));
        let password = format!("p:w@/%? {}", random_hex(12));
        server.psql(
            "postgres",
            &format!("create role {role} superuser login password '{password}'"),
        );
        server.psql(&database, "create table t as select generate_series(1, 20000) a");
        let dir = temp_dir();
        run_ok(lifeboat().args(["key", "generate"]).arg(dir.path().join("key")));
        let key = std::fs::read_to_string(dir.path().join("key")).unwrap();
        let identity = key.lines().find(|l| l.starts_with("AGE-SECRET-KEY")).unwrap();
        let sentinels = BTreeMap::from([
            ("the secret key of the store", weed.secret_key.clone()),
            ("another secret key of the store", random_hex(20)),
            ("the database's password", password[8..].to_owned()),
            ("a wrong password of the database", random_hex(12)),
            ("the superuser's password", app.password().to_owned()),
            ("a wrong password of the superuser", random_hex(16)),
            ("the identity", identity.to_owned()),
            ("the token", random_hex(16)),
            ("the webhook", random_hex(16)),
            ("the signing secret", random_hex(16)),
            ("the mail password", random_hex(16)),
        ]);
        let needles: Vec<_> = (sentinels.iter())
            .flat_map(|(what, word)| {
                let base64 = base64::engine::general_purpose::STANDARD.encode(word);
                let base64 = base64.trim_end_matches('=').to_owned();
                [word.clone(), word.to_lowercase(), base64].map(|form| (form.into_bytes(), *what))
            })
            .collect();
        let mut begins = vec![false; 1 << 16];
        for (needle, _) in &needles {
            begins[usize::from(needle[0]) << 8 | usize::from(needle[1])] = true;
        }
        let vault = Self {
            needles,
            begins,
            clean: RefCell::default(),
            dir,
            port: harness::free_port(),
            server,
            app,
            weed,
            database,
            role,
            sentinels,
        };
        vault.write();
        vault
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    fn sentinel(&self, name: &str) -> &str {
        &self.sentinels[name]
    }

    /// Policy and secrets; half of these are files, half variables.
    fn write(&self) {
        let key = std::fs::read_to_string(self.path("key")).unwrap();
        let recipient = key
            .lines()
            .find_map(|l| l.strip_prefix("# public key: "))
            .unwrap();
        write_file(
            self.dir.path(),
            "secrets/store",
            self.sentinel("the secret key of the store"),
        );
        let superuser = self.sentinel("the superuser's password");
        write_file(self.dir.path(), "secrets/superuser", superuser);
        write_file(
            self.dir.path(),
            "secrets/target",
            self.url("postgres", "the database's password"),
        );
        let text = format!(
            r#"environment = "test"

[repository]
url = "s3://backups/shop"
endpoint = "{endpoint}"
region = "us-east-1"
access_key_id = {{ env = "T_KEY_ID" }}
secret_access_key = {{ file = "{root}/secrets/store" }}

[encryption]
recipients = ["{recipient}"]
identity = {{ file = "{root}/key" }}

[prune]
access_key_id = {{ env = "T_KEY_ID" }}
secret_access_key = {{ env = "T_KEY" }}

[state]
dir = "{root}/state"

[source.orders]
kind = "postgres"
url = {{ env = "T_ORDERS_URL" }}
client_dir = "{clients}"
schedule = "0 0 1 1 *"

[source.app]
kind = "pocketbase"
url = "{app}"
superuser = {{ identity = {{ env = "T_SUPERUSER" }}, password = {{ file = "{root}/secrets/superuser" }} }}

[http]
listen = "127.0.0.1:{port}"
token = {{ env = "T_TOKEN" }}

[notify.ops]
webhook = {{ env = "T_WEBHOOK" }}
secret = {{ env = "T_SIGNING" }}
slack = {{ env = "T_WEBHOOK" }}
discord = {{ env = "T_WEBHOOK" }}
teams = {{ env = "T_WEBHOOK" }}
ntfy = {{ env = "T_WEBHOOK" }}
ping = {{ env = "T_WEBHOOK" }}
push = {{ env = "T_WEBHOOK" }}
email = "ops@example.net"
smtp = {{ env = "T_SMTP" }}
"#,
            port = self.port,
            endpoint = self.weed.endpoint,
            root = self.dir.path().display(),
            clients = self.server.client_dir().display(),
            app = self.app.url(),
        );
        write_file(self.dir.path(), "policy.toml", text);
    }

    fn url(&self, database: &str, password: &str) -> String {
        let word = self.sentinel(password);
        let whole = match password {
            "the database's password" => percent_encoded(&format!("p:w@/%? {word}")),
            _ => word.to_owned(),
        };
        let (host, port) = (self.server.host(), self.server.port());
        format!("postgres://{}:{whole}@{host}:{port}/{database}", self.role)
    }

    fn backup(&self, args: &[&str]) -> Command {
        let mut command = lifeboat();
        command
            .env("LIFEBOAT_POLICY", self.path("policy.toml"))
            .env("LIFEBOAT_LOG", "trace")
            .env("T_KEY_ID", &self.weed.access_key)
            .env("T_KEY", &self.weed.secret_key)
            .env(
                "T_ORDERS_URL",
                self.url(&self.database, "the database's password"),
            )
            .env("T_SUPERUSER", SUPERUSER)
            .env("T_TOKEN", self.sentinel("the token"))
            // Nobody listens there: what fails is logged.
            .env(
                "T_WEBHOOK",
                format!("https://127.0.0.1:1/{}", self.sentinel("the webhook")),
            )
            .env("T_SIGNING", self.sentinel("the signing secret"))
            .env(
                "T_SMTP",
                format!(
                    "smtps://lifeboat:{}@127.0.0.1:1",
                    self.sentinel("the mail password")
                ),
            )
            .current_dir(self.dir.path())
            .args(args);
        command
    }

    /// Every sentinel in some bytes, in plain and in what it may be written as.
    fn found_in(&self, bytes: &[u8]) -> BTreeSet<&'static str> {
        let mut found = BTreeSet::new();
        for at in 0..bytes.len().saturating_sub(2) {
            // Most bytes begin none.
            if self.begins[usize::from(bytes[at]) << 8 | usize::from(bytes[at + 1])] {
                let rest = &bytes[at..];
                let here = self.needles.iter().filter(|(needle, _)| rest.starts_with(needle));
                found.extend(here.map(|(_, what)| *what));
            }
        }
        found
    }

    #[track_caller]
    fn assert_clean(&self, place: &str, bytes: &[u8]) {
        let found = self.found_in(bytes);
        assert!(found.is_empty(), "{place} holds {found:?}");
    }

    /// Runs a command to its end, with its output and its children watched.
    #[track_caller]
    fn watched(&self, mut command: Command, code: i32) -> Said {
        let shown: Vec<_> = command
            .get_args()
            .map(|a| a.to_string_lossy().into_owned())
            .collect();
        let shown = shown.join(" ");
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let pid = child.id();
        let (done, over) = mpsc::channel::<()>();
        let watch = std::thread::spawn(move || {
            let mut seen = BTreeSet::new();
            while over.recv_timeout(Duration::from_millis(1)) == Err(mpsc::RecvTimeoutError::Timeout) {
                seen.extend(family(pid));
            }
            seen
        });
        let said = end(child);
        drop(done);
        for process in watch.join().unwrap() {
            self.assert_clean(
                &format!("the command line of {}", process.name),
                &process.arguments,
            );
            if process.is_child {
                let found = self.found_in(&process.environment);
                // The one way in that is neither an argument nor a file that a kill would leave behind.
                // (pg_dumpall asks a shell for pg_dump.)
                let is_client = String::from_utf8_lossy(&process.arguments).contains("pg_dump");
                let is_client = is_client || process.name.starts_with("pg_");
                let allowed = is_client.then_some("the database's password");
                let more: Vec<_> = found.iter().filter(|what| Some(**what) != allowed).collect();
                assert!(
                    more.is_empty(),
                    "the environment of {} holds {more:?}",
                    process.name
                );
            }
        }
        self.assert_clean(&format!("the output of {shown}"), said.stdout.as_bytes());
        self.assert_clean(&format!("the log of {shown}"), said.stderr.as_bytes());
        assert_eq!(
            said.code,
            code,
            "{shown}: {}",
            said.stderr
                .chars()
                .rev()
                .take(3000)
                .collect::<String>()
                .chars()
                .rev()
                .collect::<String>()
        );
        self.assert_files_clean();
        said
    }

    /// A command that is right, with a text log and with one of JSON.
    #[track_caller]
    fn both_logs(&self, args: &[&str], code: i32) {
        self.watched(self.backup(args), code);
        let mut json = self.backup(&["--json", "--log-format", "json"]);
        json.args(args);
        self.watched(json, code);
    }

    fn assert_files_clean(&self) {
        for file in files(self.dir.path()) {
            let ours = ["key", "secrets/store", "secrets/superuser", "secrets/target"];
            let modified = std::fs::metadata(&file).unwrap().modified().unwrap();
            let known = (file.clone(), modified);
            if !ours.iter().any(|name| file == self.path(name)) && !self.clean.borrow().contains(&known) {
                self.assert_clean(&file.display().to_string(), &std::fs::read(&file).unwrap());
                self.clean.borrow_mut().insert(known);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_shown_or_left_anywhere() {
    let vault = Vault::new().await;
    vault.watched(vault.backup(&["init"]), 0);
    vault.both_logs(&["check"], 0);
    vault.both_logs(&["run"], 0);
    vault.both_logs(&["list"], 0);
    let list = run_ok(&mut vault.backup(&["--json", "list"])).json();
    let run = list["sources"][1]["points"][0]["run"]
        .as_str()
        .unwrap()
        .to_owned();
    for args in [
        &["list", &run][..],
        &["status"],
        &["verify", "--content"],
        &["hold", "add", &run, "--why", "the test"],
        &["prune", "--dry-run"],
        &["prune"],
        &["hold", "remove", &run],
        &["key", "list"],
        &["restore", "--all", "--at", "latest", "--dry-run"],
        &["restore", "app", "--at", "latest", "--to", "app"],
        &["restore", "orders", "--at", "latest", "--to", "orders"],
    ] {
        vault.watched(vault.backup(args), 0);
    }
    vault.watched(
        vault.backup(&[
            "--json",
            "--log-format",
            "json",
            "restore",
            "app",
            "--at",
            "latest",
            "--to",
            "app2",
        ]),
        0,
    );
    // Into a database: by a variable and by a file.
    let copy = format!("{}_copy", vault.database);
    let mut restore = vault.backup(&["restore", "orders", "--at", "latest", "--to", "env:T_TARGET"]);
    restore.env("T_TARGET", vault.url(&copy, "the database's password"));
    vault.watched(restore, 0);
    assert_eq!(vault.server.psql(&copy, "select count(*) from t"), "20000");

    vault.daemon();
    vault.write();

    // Failures, in which what is wrong is quoted.
    let wrong_store = |args: &[&str]| {
        let mut command = vault.backup(args);
        command.env("T_KEY", vault.sentinel("another secret key of the store"));
        command
    };
    vault.watched(wrong_store(&["prune"]), 1);
    write_file(
        vault.dir.path(),
        "secrets/store",
        vault.sentinel("another secret key of the store"),
    );
    for args in [&["run"][..], &["list"], &["verify"], &["status"], &["check"]] {
        vault.both_logs(args, 1);
    }
    vault.write();
    for url in [
        vault.url(&vault.database, "a wrong password of the database"),
        vault.url("no_such_database", "the database's password"),
        vault
            .url(&vault.database, "the database's password")
            .replace(':', "::"),
        format!("{}/?x=y", vault.url(&vault.database, "the database's password")),
    ] {
        for json in [
            &["run", "orders"][..],
            &["--json", "--log-format", "json", "run", "orders"],
            &["check"],
        ] {
            let mut command = vault.backup(json);
            command.env("T_ORDERS_URL", &url);
            let code = if url.contains("::") { 2 } else { 1 };
            let said = vault.watched_any(command);
            assert!(said.code == code || said.code == 1 || said.code == 2, "{said}");
        }
    }
    write_file(
        vault.dir.path(),
        "secrets/superuser",
        vault.sentinel("a wrong password of the superuser"),
    );
    vault.both_logs(&["run", "app"], 1);
    vault.write();
    // A policy that is wrong is told without what a confused operator wrote into it.
    let policy = std::fs::read_to_string(vault.path("policy.toml")).unwrap();
    for (name, value) in [
        (
            "secret_access_key",
            vault.sentinel("another secret key of the store"),
        ),
        ("token", vault.sentinel("the token")),
    ] {
        let wrong: Vec<String> = (policy.lines())
            .map(|line| match line.starts_with(&format!("{name} =")) {
                true => format!("{name} = \"{value}\""),
                false => line.to_owned(),
            })
            .collect();
        // The operator's file does hold it: only what is said counts.
        let elsewhere = temp_dir();
        let file = write_file(elsewhere.path(), "wrong.toml", wrong.join("\n"));
        let mut command = vault.backup(&["--json", "list"]);
        command.env("LIFEBOAT_POLICY", file);
        vault.watched(command, 2);
    }

    // And the repository, object by object.
    let client = vault.weed.client();
    let mut pages = client.list_objects_v2().bucket("backups").into_paginator().send();
    let mut objects = 0;
    while let Some(page) = pages.next().await {
        for object in page.unwrap().contents() {
            let key = object.key().unwrap();
            let got = client
                .get_object()
                .bucket("backups")
                .key(key)
                .send()
                .await
                .unwrap();
            vault.assert_clean(key, &got.body.collect().await.unwrap().into_bytes());
            objects += 1;
        }
    }
    assert!(objects > 10);
    assert_eq!(
        harness::run(&mut vault.backup(&["verify", "--content"])).code,
        0,
        "all is well at the end"
    );
}

impl Vault {
    /// The daemon: a run that is asked for, every kind of notice to places that do not answer, every page.
    fn daemon(&self) {
        // An objective that is missed at once.
        let policy = std::fs::read_to_string(self.path("policy.toml")).unwrap();
        let strict = "schedule = \"0 0 1 1 *\"\nobjective = { rpo = \"1s\" }";
        write_file(
            self.dir.path(),
            "policy.toml",
            policy.replace("schedule = \"0 0 1 1 *\"", strict),
        );
        let log = std::fs::File::create(self.path("daemon.log")).unwrap();
        let mut command = self.backup(&["daemon"]);
        command.stdout(log.try_clone().unwrap()).stderr(log);
        let mut child = command.spawn().unwrap();
        let bearer = format!("Authorization: Bearer {}\r\n", self.sentinel("the token"));
        let page = |method: &str, path: &str| {
            let said = crate::process::ask(self.port, method, path, &bearer, "")?;
            self.assert_clean(path, said.as_bytes());
            Some(said)
        };
        let until = |path: &str, words: &str| {
            let found = harness::poll(Duration::from_secs(60), || {
                page("GET", path).filter(|said| said.contains(words))
            });
            let log = || std::fs::read_to_string(self.path("daemon.log")).unwrap();
            assert!(found.is_some(), "{path} never says {words}: {}", log());
        };
        until("/", "its newest recovery point is");
        assert!(
            page("POST", "/sources/orders/run")
                .unwrap()
                .starts_with("HTTP/1.1 303")
        );
        until(
            "/metrics",
            "lifeboat_runs_total{task=\"run orders\",result=\"done\"} 1",
        );
        let told = |kind: &str| {
            let log = std::fs::read_to_string(self.path("daemon.log")).unwrap();
            let line = format!("place=\"{kind}\"");
            let failed = |l: &&str| l.contains("a notice was not taken") && l.contains(&line);
            log.lines().find(failed).map(drop)
        };
        for kind in [
            "webhook", "slack", "discord", "teams", "ntfy", "ping", "push", "email",
        ] {
            assert!(
                harness::poll(Duration::from_secs(60), || told(kind)).is_some(),
                "{kind}"
            );
        }
        for path in [
            "/",
            "/sources/orders",
            "/sources/app",
            "/metrics",
            "/readyz",
            "/healthz",
        ] {
            page("GET", path).unwrap();
        }
        for process in family(child.id()) {
            self.assert_clean(&format!("the arguments of {}", process.name), &process.arguments);
        }
        crate::process::signal(&child, rustix::process::Signal::TERM);
        assert!(child.wait().unwrap().success());
        self.assert_files_clean();
    }

    #[track_caller]
    fn watched_any(&self, command: Command) -> Said {
        let mut probe = Command::new(command.get_program());
        probe
            .env_clear()
            .args(command.get_args())
            .current_dir(self.dir.path());
        for (name, value) in command.get_envs() {
            probe.env(name, value.unwrap_or_default());
        }
        let said = harness::run(&mut probe);
        self.watched(command, said.code)
    }
}
