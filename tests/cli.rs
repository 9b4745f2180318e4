//! The command line as scripts meet it: help, exit codes, JSON errors and refusals of the real binary. What needs servers
//! is in tests/journey.rs.
#![allow(clippy::unwrap_used)]

#[path = "cli/demo.rs"]
mod demo;
mod harness;
#[path = "cli/interrupt.rs"]
mod interrupt;
#[path = "cli/keys.rs"]
mod keys;
#[path = "cli/operate.rs"]
mod operate;
#[path = "cli/pages.rs"]
mod pages;
#[path = "cli/restore.rs"]
mod restore;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use harness::{Said, TempDir, lifeboat, run, run_code, run_ok, temp_dir, write_file};
use serde_json::{Value, json};

const COMMANDS: [&str; 16] = [
    "demo",
    "init",
    "check",
    "run",
    "daemon",
    "list",
    "restore",
    "drill",
    "evidence",
    "verify",
    "prune",
    "hold",
    "status",
    "key",
    "completions",
    "man",
];

/// A directory with a key pair and a policy of two sources that nobody serves.
struct Site {
    dir: TempDir,
}

impl Site {
    fn new() -> Self {
        let dir = temp_dir();
        let key = dir.path().join("key");
        let recipient = run_ok(lifeboat().args(["key", "generate"]).arg(&key)).stdout;
        let site = Self { dir };
        site.policy(&format!("recipients = [\"{}\"]", recipient.trim()));
        site
    }
    fn policy(&self, encryption: &str) {
        let text = format!(
            r#"environment = "test"
timezone = "Europe/Berlin"

[repository]
url = "file://{root}/repository"

[encryption]
{encryption}

[state]
dir = "{root}/state"

[source.orders]
kind = "postgres"
url = {{ env = "T_ORDERS_URL" }}

[source.app]
kind = "pocketbase"
path = "{root}/pb_data"
"#,
            root = self.dir.path().display()
        );
        write_file(self.dir.path(), "policy.toml", text);
    }
    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }
    fn backup(&self, args: &[&str]) -> Command {
        let mut command = lifeboat();
        command
            .env("LIFEBOAT_POLICY", self.path("policy.toml"))
            .env("T_ORDERS_URL", "postgres://u@127.0.0.1:1/orders")
            .current_dir(self.dir.path())
            .args(args);
        command
    }
    /// Must end with the code, as text and as JSON alike; gives the error.
    #[track_caller]
    fn refused(&self, args: &[&str], code: i32) -> Value {
        let text = run_code(&mut self.backup(args), code);
        assert_eq!(text.stdout, "", "results only on standard output: {text}");
        assert!(text.stderr.contains("error: "), "{text}");
        let said = run_code(self.backup(args).arg("--json"), code);
        error(&said)
    }
}

/// The one document, which is an error.
#[track_caller]
fn error(said: &Said) -> Value {
    assert!(
        said.stdout.starts_with("{\"format\":1,\"error\":{\"code\":"),
        "{said}"
    );
    let error = said.json()["error"].clone();
    assert!(
        error["message"]
            .as_str()
            .is_some_and(|m| !m.is_empty() && !m.contains('\n')),
        "{said}"
    );
    assert!(error.as_object().unwrap().contains_key("hint"), "{said}");
    error
}

#[test]
fn help_and_version_are_answers_and_come_at_once() {
    let begun = std::time::Instant::now();
    let help = run_ok(lifeboat().arg("--help"));
    let version = run_ok(lifeboat().arg("--version"));
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    assert_eq!(version.stdout, format!("backup {}\n", env!("CARGO_PKG_VERSION")));
    assert_eq!(help.stderr, "");
    for command in COMMANDS {
        assert!(
            help.stdout.contains(&format!("\n  {command} ")),
            "{command}: {help}"
        );
        let own = run_ok(lifeboat().args([command, "--help"]));
        assert!(own.stdout.contains("Example:\n  backup "), "{command}: {own}");
    }
    assert!(!help.stdout.contains("\n  wal "), "{help}");
    run_code(lifeboat().arg("wal"), 2);
    for line in [
        "\n  2    usage or policy\n",
        "\n  130  interrupted\n",
        "LIFEBOAT_POLICY",
    ] {
        assert!(help.stdout.contains(line), "{line}: {help}");
    }
}

#[test]
fn usage_errors_end_with_2_and_are_json_where_asked() {
    for args in [
        &[][..],
        &["nothing"],
        &["run", "--nothing"],
        &["restore"],
        &["restore", "a", "--all", "--at", "latest", "--dry-run"],
        &["restore", "a", "--to", "x"],
        &[
            "restore",
            "a",
            "--at",
            "latest",
            "--at-point",
            "01ARZ3NDEKTSV4RRFFQ69G5FAV",
            "--to",
            "x",
        ],
        &["restore", "a", "--at", "latest", "--to", "x", "--max-gap", "soon"],
        &["restore", "A", "--at", "latest", "--to", "x"],
        &["restore", "a", "--at-point", "latest", "--to", "x"],
        &[
            "restore",
            "--all",
            "--at-point",
            "01ARZ3NDEKTSV4RRFFQ69G5FAV",
            "--to",
            "x",
        ],
        &[
            "restore",
            "a",
            "--at",
            "latest",
            "--to",
            "x",
            "--repository",
            "/r",
            "--policy",
            "p",
        ],
        &["verify", "--sample", "0%"],
        &["verify", "--identity", "x"],
        &["prune", "--dry-run", "--undo", "01ARZ3NDEKTSV4RRFFQ69G5FAV"],
        &["hold", "add", "01ARZ3NDEKTSV4RRFFQ69G5FAV"],
        &["hold", "add", "short", "--why", "x"],
        &["key"],
        &["completions", "cobol"],
        &["status", "-q", "-v"],
        &["status", "--log-format", "xml"],
        &["demo", "--json"],
        &["completions", "bash", "--json"],
    ] {
        let text = run_code(lifeboat().args(args).current_dir("/"), 2);
        assert_eq!(
            text.stdout.starts_with('{'),
            args.contains(&"--json"),
            "{args:?}: {text}"
        );
        assert_ne!(text.stderr.is_empty(), text.stdout.is_empty(), "{args:?}: {text}");
        let said = run_code(
            lifeboat()
                .arg("--json")
                .args(args.iter().filter(|a| **a != "--json"))
                .current_dir("/"),
            2,
        );
        assert_eq!(error(&said)["code"], "usage", "{args:?}");
    }
    let said = run_code(lifeboat().args(["--json", "rstore"]), 2);
    assert_eq!(
        said.stdout,
        "{\"format\":1,\"error\":{\"code\":\"usage\",\"message\":\"unrecognized subcommand 'rstore'\",\"hint\":\"Did you mean restore?\"}}\n"
    );
    let said = run_code(lifeboat().args(["check"]).env("LIFEBOAT_LOG", "lifeboat=loud"), 2);
    assert!(said.stderr.contains("LIFEBOAT_LOG"), "{said}");
}

#[test]
fn a_password_on_the_command_line_is_refused_and_never_repeated() {
    let site = Site::new();
    for to in [
        "postgres://u:sentinel@h/db",
        "postgresql://u:sen@tinel@h/db",
        "postgres://h/db?password=sentinel",
        "orders=postgres://u:sentinel@h/db",
    ] {
        let args: &[&str] = match to.strip_prefix("orders=") {
            None => &["restore", "orders", "--at", "latest", "--to", to],
            Some(_) => &["restore", "--all", "--at", "latest", "--to", "app=x", "--to", to],
        };
        let said = run_code(site.backup(args).arg("--json"), 2);
        let all = format!("{}{}", said.stdout, said.stderr);
        assert!(!all.contains("sentinel") && !all.contains("tinel@"), "{all}");
        assert!(
            error(&said)["hint"].as_str().unwrap().contains("--to env:NAME"),
            "{said}"
        );
    }
    // Wrong arguments are quoted in the message, without their passwords.
    let said = run_code(lifeboat().args(["list", "a", "postgres://u:sentinel@h/db"]), 2);
    assert!(said.stderr.contains("postgres://u:***@h/db"), "{said}");
    assert!(!said.stderr.contains("sentinel"), "{said}");
}

#[test]
fn targets_that_can_not_be_are_refused_before_anything_is_read() {
    let site = Site::new();
    write_file(site.dir.path(), "two", "a\nb\n");
    let restore = |to: &[&str]| {
        let mut args = vec!["restore", "orders", "--at", "latest"];
        for target in to {
            args.extend(["--to", target]);
        }
        site.refused(&args, 2)
    };
    assert!(
        restore(&[])["message"]
            .as_str()
            .unwrap()
            .contains("--to is missing")
    );
    assert!(
        restore(&["a", "b"])["message"]
            .as_str()
            .unwrap()
            .contains("more than once")
    );
    for bad in [
        "",
        "mysql://h/db",
        "https://h/x",
        "s3://",
        "env:T_NOTHING",
        "file:/nonexistent",
        "file:two",
    ] {
        restore(&[bad]);
    }
    let all = |to: &[&str]| {
        let mut args = vec!["restore", "--all", "--at", "latest"];
        for target in to {
            args.extend(["--to", target]);
        }
        site.refused(&args, 2)
    };
    assert!(all(&["orders=a"])["message"].as_str().unwrap().contains("app"));
    assert!(
        all(&["orders=a", "ap=b"])["hint"]
            .as_str()
            .unwrap()
            .contains("Did you mean app?")
    );
    assert!(
        all(&["postgres://h/db"])["message"]
            .as_str()
            .unwrap()
            .contains("directory")
    );
    write_file(site.dir.path(), "full/stranger", "x");
    assert!(all(&["full"])["message"].as_str().unwrap().contains("stranger"));
}

#[test]
fn what_needs_a_log_is_refused_for_sources_without_one() {
    let site = Site::new();
    for (option, value) in [("--at-lsn", "0/1"), ("--at-xid", "7"), ("--at-name", "x")] {
        let error = site.refused(&["restore", "orders", option, value, "--to", "x"], 2);
        let message = error["message"].as_str().unwrap();
        assert!(
            message.contains(option) && message.contains("dumps, not a log"),
            "{message}"
        );
    }
    let at = ["restore", "app", "--at", "latest", "--to", "x"];
    for more in [&["--timeline", "2"][..], &["--no-recover"]] {
        let error = site.refused(&[&at[..], more].concat(), 2);
        assert!(
            error["message"]
                .as_str()
                .unwrap()
                .contains("snapshots, not a log"),
            "{error}"
        );
    }
    let error = site.refused(&[&at[..], &["--only-table", "t"]].concat(), 2);
    assert!(error["message"].as_str().unwrap().contains("Postgres"), "{error}");
}

#[test]
fn unknown_sources_are_refused_with_the_name_that_was_meant() {
    let site = Site::new();
    let error = site.refused(&["run", "order"], 2);
    assert_eq!(error["message"], "there is no source \"order\"");
    assert_eq!(error["hint"], "Did you mean orders? There is: app, orders.");
    assert!(!site.path("repository").exists(), "a refusal makes nothing");
    assert!(!site.path("state").exists(), "a refusal makes nothing");
}

#[test]
fn policies_are_found_and_everything_wrong_in_them_is_told() {
    let dir = temp_dir();
    let said = run_code(
        lifeboat()
            .args(["check", "--json"])
            .arg("--policy")
            .arg(dir.path().join("none.toml")),
        2,
    );
    assert_eq!(error(&said)["code"], "usage");
    let policy = write_file(
        dir.path(),
        "policy.toml",
        "environment = \"Test\"\nenviroment = 1\n[repository]\nurl = 3\n",
    );
    let said = run_code(lifeboat().args(["check", "--policy"]).arg(&policy), 2);
    assert!(
        said.stderr.contains("enviroment") && said.stderr.contains("url"),
        "{said}"
    );
}

#[test]
fn no_repository_ends_with_10() {
    let site = Site::new();
    for args in [
        &["list"][..],
        &["status"],
        &["verify"],
        &["key", "list"],
        &["hold", "list"],
        &["prune", "--dry-run"],
    ] {
        assert_eq!(site.refused(args, 10)["code"], "no_repository", "{args:?}");
    }
    // A run tells it of each source, and of itself.
    let said = run_code(
        site.backup(&["run", "orders", "--json"])
            .env("T_ORDERS_URL", "postgres://u@127.0.0.1:1/x"),
        10,
    );
    assert_eq!(said.json()["runs"][0]["result"], "failed", "{said}");
    assert_eq!(said.json()["error"]["code"], "no_repository", "{said}");
    // Without a policy too.
    let to = site.path("to");
    let said = run_code(
        lifeboat()
            .args(["--json", "restore", "orders", "--at", "latest", "--to"])
            .arg(&to)
            .arg("--repository")
            .arg(site.path("repository")),
        10,
    );
    assert_eq!(error(&said)["code"], "no_repository");
    assert!(!to.exists());
}

#[test]
fn a_key_pair_is_made_once_and_its_identity_never_shown() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = temp_dir();
    let file = dir.path().join("recovery.key");
    let said = run_ok(lifeboat().args(["--json", "key", "generate"]).arg(&file));
    let recipient = said.json()["recipient"].as_str().unwrap().to_owned();
    assert!(recipient.starts_with("age1"), "{said}");
    let text = std::fs::read_to_string(&file).unwrap();
    let identity = text.lines().find(|l| l.starts_with("AGE-SECRET-KEY-1")).unwrap();
    assert!(!said.stdout.contains(identity) && !said.stderr.contains(identity));
    assert_eq!(
        std::fs::metadata(&file).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let again = run_code(lifeboat().args(["--json", "key", "generate"]).arg(&file), 2);
    assert_eq!(error(&again)["code"], "usage");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), text, "never replaced");
}

#[test]
fn init_makes_nothing_until_the_policy_encrypts_to_the_new_key() {
    let site = Site::new();
    let file = site.path("recovery.key");
    let said = run_code(
        &mut site.backup(&["--json", "init", "--generate-identity", "recovery.key"]),
        2,
    );
    let text = std::fs::read_to_string(&file).unwrap();
    let recipient = text
        .lines()
        .find_map(|l| l.strip_prefix("# public key: "))
        .unwrap();
    let hint = error(&said)["hint"].as_str().unwrap().to_owned();
    assert!(
        hint.contains(&format!("recipients = [\"{recipient}\"]")),
        "{hint}"
    );
    assert!(!site.path("repository/lifeboat.json").exists());
    site.policy(&format!("recipients = [\"{recipient}\"]"));
    let made = run_ok(&mut site.backup(&["--json", "init", "--generate-identity", "recovery.key"])).json();
    assert_eq!(
        (&made["format"], &made["environment"]),
        (&json!(1), &json!("test"))
    );
    assert!(site.path("repository/lifeboat.json").exists());
    assert_eq!(std::fs::read_to_string(&file).unwrap(), text, "the same key pair");
}

#[test]
fn an_empty_repository_answers_and_key_operations_are_confirmed() {
    let site = Site::new();
    run_ok(&mut site.backup(&["init"]));
    let list = run_ok(&mut site.backup(&["list", "--json"])).json();
    assert_eq!(list["sources"].as_array().unwrap().len(), 2);
    assert!(
        run_ok(&mut site.backup(&["list"]))
            .stdout
            .contains("orders (no point yet): 0 recovery points\n")
    );
    assert_eq!(run_ok(&mut site.backup(&["hold", "list"])).stdout, "no holds\n");
    // Status can not be good where there is no point: 1, and still a document.
    let status = run_code(&mut site.backup(&["status", "--json"]), 1).json();
    assert_eq!((&status["format"], &status["ok"]), (&json!(1), &json!(false)));
    // The instant is told before anything else, also with --json and --quiet.
    let said = run_code(
        &mut site.backup(&[
            "-q",
            "--json",
            "restore",
            "app",
            "--at",
            "2026-11-20 14:03",
            "--dry-run",
        ]),
        20,
    );
    assert!(
        said.stderr
            .starts_with("at: 2026-11-20T13:03:00Z (2026-11-20 14:03:00 CET"),
        "{said}"
    );
    assert_eq!(error(&said)["code"], "unreachable");
    // Nobody to ask.
    for action in ["rotate", "rewrap"] {
        let error = site.refused(&["key", action], 2);
        assert!(error["hint"].as_str().unwrap().contains("--yes"), "{error}");
    }
    let rotated = run_ok(&mut site.backup(&["--json", "key", "rotate", "--yes"])).json();
    assert_eq!(rotated["generations"].as_array().unwrap().len(), 1);
}

#[test]
fn output_that_can_not_be_written_is_a_failure_and_a_reader_that_left_is_not() {
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let status = lifeboat()
        .args(["completions", "bash"])
        .stdin(Stdio::null())
        .stdout(full)
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(1));
    let mut child = lifeboat()
        .args(["completions", "bash"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn the_demo_says_what_is_missing() {
    let dir = temp_dir();
    let said = run(lifeboat()
        .arg("demo")
        .current_dir(dir.path())
        .env("PATH", dir.path())
        .env("TMPDIR", dir.path())
        .env("LIFEBOAT_DEMO_POSTGRES_BIN", Path::new("/nonexistent")));
    assert_eq!(said.code, 1, "{said}");
    assert!(said.stderr.contains("scripts/services install"), "{said}");
    assert!(said.stderr.contains("LIFEBOAT_DEMO_POCKETBASE"), "{said}");
    assert_eq!(
        std::fs::read_dir(dir.path()).unwrap().count(),
        0,
        "nothing is left"
    );
}
