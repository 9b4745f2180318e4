//! The policy file: every shipped policy parses, and everything that is wrong with a bad one is told at once.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::Path;

use lifeboat::error::Kind;
use lifeboat::policy::{self, SecretRef, secrets};
use proptest::prelude::*;

const SHIPPED: [&str; 4] = ["example", "development", "staging", "production"];

fn shipped(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("policies").join(name)).unwrap()
}

/// A change to a policy: a line left out, doubled, cut, or a piece of another one put into it.
fn changed(text: &str, changes: &[(usize, usize, u8)]) -> String {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    for (at, other, how) in changes {
        let (at, other) = (at % lines.len(), other % lines.len());
        let piece = lines[other].clone();
        match how % 5 {
            0 => lines[at] = String::new(),
            1 => lines.insert(at, piece),
            2 => lines[at] = lines[at].chars().take(other % 30).collect(),
            3 => {
                let key = lines[at].split('=').next().unwrap_or_default().to_owned();
                lines[at] = format!("{key}= {}", piece.split_once('=').map_or("7", |(_, v)| v));
            }
            _ => lines[at] = lines[at].replace('"', ""),
        }
    }
    lines.join("\n")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever is done to a policy: it is valid, or there is a reason with a place inside the text.
    #[test]
    fn a_policy_is_valid_or_there_is_a_reason(
        changes in prop::collection::vec((0usize..400, 0usize..400, any::<u8>()), 1..4),
    ) {
        let text = changed(&shipped("example.toml"), &changes);
        if let Err(errors) = policy::parse(&text, Path::new("p.toml"), &nothing) {
            prop_assert!(!errors.problems.is_empty(), "refused without a reason:\n{}", text);
            for problem in errors.problems {
                prop_assert!(problem.line >= 1 && problem.line <= text.lines().count() + 1);
                prop_assert!(problem.column >= 1 && !problem.message.is_empty());
            }
        }
    }

    #[test]
    fn no_text_makes_it_panic(text in "(\\PC|\n){0,200}") {
        let _ = policy::parse(&text, Path::new("p.toml"), &nothing);
    }
}

fn nothing(_: &str) -> Option<String> {
    None
}

#[test]
fn every_shipped_policy_parses_and_is_of_its_environment() {
    for name in SHIPPED {
        let text = shipped(&format!("{name}.toml"));
        let policy = policy::parse(&text, Path::new("p.toml"), &nothing).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(policy.environment.as_str(), name);
        assert!(!policy.sources.is_empty());
    }
}

#[test]
fn the_example_has_every_key() {
    let text = shipped("example.toml");
    for key in policy::keys::KEYS {
        let there = text
            .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .any(|word| word == key.name);
        assert!(there, "{}.{} is not in example.toml", key.section, key.name);
    }
}

#[test]
fn every_variable_is_in_the_template_and_every_template_line_is_empty() {
    let template = shipped("env.template");
    let names: BTreeSet<&str> = template
        .lines()
        .filter(|l| !l.starts_with('#'))
        .filter_map(|l| l.split_once('='))
        .map(|(n, _)| n)
        .collect();
    for line in template.lines().filter(|l| !l.starts_with('#') && !l.is_empty()) {
        assert!(line.ends_with('='), "{line}: a template has no values");
    }
    for name in SHIPPED {
        for piece in shipped(&format!("{name}.toml")).split("env = \"").skip(1) {
            let variable = piece.split('"').next().unwrap();
            assert!(
                names.contains(variable) || variable == "NAME",
                "{variable} of {name}.toml is not in env.template"
            );
        }
    }
    for ours in policy::variables::VARIABLES {
        assert!(names.contains(ours.name), "{} is not in env.template", ours.name);
    }
}

#[test]
fn every_variable_and_every_secret_is_explained() {
    let page = shipped("environment.md");
    for ours in policy::variables::VARIABLES {
        assert!(page.contains(&format!("| `{}` |", ours.name)), "{}", ours.name);
    }
    for name in SHIPPED {
        for line in shipped(&format!("{name}.toml")).lines() {
            let line = line.split('#').next().unwrap();
            for kind in ["env", "file", "credential"] {
                for piece in line.split(&format!("{{ {kind} = \"")).skip(1) {
                    let place = piece.split('"').next().unwrap();
                    let told = page
                        .lines()
                        .any(|l| l.starts_with(&format!("| {name} |")) && l.contains(&format!("`{place}`")));
                    assert!(told, "{place} of {name}.toml is not in environment.md");
                }
            }
        }
    }
}

/// Every variable of our own that the code names stands in the table.
#[test]
fn no_variable_is_read_that_is_not_in_the_table() {
    fn walk(directory: &Path, told: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, told);
            } else if path.extension().is_some_and(|e| e == "rs") {
                for piece in std::fs::read_to_string(&path).unwrap().split("LIFEBOAT_").skip(1) {
                    let end = piece
                        .find(|c: char| !c.is_ascii_uppercase() && c != '_')
                        .unwrap_or(piece.len());
                    told.insert(format!("LIFEBOAT_{}", &piece[..end]));
                }
            }
        }
    }
    let mut told = BTreeSet::new();
    walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut told);
    told.remove("LIFEBOAT_");
    let table: BTreeSet<String> = policy::variables::VARIABLES
        .iter()
        .map(|v| v.name.to_owned())
        .collect();
    assert_eq!(told, table);
}

/// Compares a file made from the table of keys; writes it where that is asked for.
fn is_made_from_the_table(name: &str, wanted: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("policies").join(name);
    if std::env::var_os("LIFEBOAT_WRITE_SCHEMA").is_some() {
        std::fs::write(&path, wanted).unwrap();
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        there == wanted,
        "{name} is old: write it with LIFEBOAT_WRITE_SCHEMA=1 cargo test --test policy"
    );
}

#[test]
fn the_schema_and_the_page_of_keys_are_those_that_the_code_describes() {
    let schema = serde_json::to_string_pretty(&policy::schema::schema()).unwrap() + "\n";
    is_made_from_the_table("policy.schema.json", &schema);
    is_made_from_the_table("keys.md", &policy::schema::page());
}

const BAD: &str = r#"environment = "Prod uction"
timezone = "Mars/Olympus"
concurency = 3

[repository]
url = "ftp://x"
access_key_id = "AKIAVERYSECRET"
grace = "1h"
object_lock = { mode = "hard" }

[encryption]
recipients = ["age1nonsense"]

[source.orders]
kind = "postgres"
shedule = "0 2 * * *"
schedule = "0 2 * *"
retention = "standrad"
path = "/x"
url = { env = "X", file = "/y" }

[source."a/b"]
kind = "pocketbase"
url = "https://user:hunter2@host"

[retention.standard]
daily = -1

[drill.x]
sources = ["ordrs"]
"#;

#[test]
fn everything_wrong_is_told_at_once_with_line_and_suggestion() {
    let errors = policy::parse(BAD, Path::new("p.toml"), &nothing).unwrap_err();
    let text = errors.to_string();
    for wanted in [
        "p.toml:1:15: environment: \"Prod uction\" is not an environment name",
        "p.toml:2:12: timezone: \"Mars/Olympus\" is no IANA time zone",
        "p.toml:3:1: concurency: unknown key (did you mean concurrency?)",
        "p.toml:6:7: repository.url: must begin with s3:// or file:///",
        "p.toml:7:17: repository.access_key_id: must be a reference to a secret, not the secret itself",
        "repository: secret_access_key is missing",
        "p.toml:8:9: repository.grace: must be at least 2h",
        "repository.object_lock.mode: \"hard\" is none of governance, compliance",
        "repository.object_lock: days is missing",
        "encryption.recipients: \"age1nonsense\" is not an age recipient",
        "p.toml:16:1: source.orders.shedule: unknown key (did you mean schedule?)",
        "p.toml:17:12: source.orders.schedule: \"0 2 * *\" is not a schedule: it has 4 fields",
        "source.orders.retention: there is no [retention.standrad] (did you mean \"standard\"?)",
        "source.orders.path: a postgres source has no such key",
        "source.orders.url: must name one place of the secret",
        "\"a/b\" is not a source name",
        "source.a/b.url: must be an http:// or https:// URL without credentials",
        "source.a/b: superuser is missing",
        "retention.standard.daily: must be from 0 to 1000000",
        "drill.x.sources: there is no [source.ordrs] (did you mean \"orders\"?)",
    ] {
        assert!(text.contains(wanted), "missing: {wanted}\nin:\n{text}");
    }
    for secret in ["AKIAVERYSECRET", "hunter2"] {
        assert!(!text.contains(secret), "a secret is repeated:\n{text}");
    }
    assert_eq!(lifeboat::error::Error::from(errors).kind(), Kind::Usage);
}

#[test]
fn a_bad_policy_is_told_whole() {
    let bad = include_str!("policy/bad.toml");
    let errors = policy::parse(bad, Path::new("policy.toml"), &nothing).unwrap_err();
    let text = errors.to_string();
    assert_eq!(text, include_str!("policy/bad.txt").trim_end(), "\n{text}");
    assert!(!text.contains("SENTINEL"), "a secret is repeated:\n{text}");
    assert!(!format!("{:?}", lifeboat::error::Error::from(errors)).contains("SENTINEL"));
}

#[test]
fn what_only_a_bucket_has_is_refused_for_a_directory() {
    let text = shipped("development.toml").replace(
        "[encryption]",
        "object_lock = { mode = \"governance\", days = 7 }\nregion = \"x\"\n[encryption]",
    );
    let errors = policy::parse(&text, Path::new("p.toml"), &nothing).unwrap_err();
    let told: Vec<_> = errors
        .problems
        .iter()
        .map(|p| (p.path.as_str(), p.message.as_str()))
        .collect();
    assert_eq!(
        told,
        [
            ("repository.object_lock", "has no meaning for a directory"),
            ("repository.region", "has no meaning for a directory")
        ]
    );
}

#[test]
fn every_mistake_of_syntax_is_told() {
    let text = "environment = \nenvironment = \"a\"\n[repository\nurl = \"SENTINEL\nx = 1\n";
    let errors = policy::parse(text, Path::new("p.toml"), &nothing).unwrap_err();
    let lines: BTreeSet<usize> = errors.problems.iter().map(|p| p.line).collect();
    assert!([1, 2, 3].iter().all(|l| lines.contains(l)), "{errors}");
    assert!(!errors.to_string().contains("SENTINEL"), "{errors}");
}

#[test]
fn text_that_is_no_toml_is_told_with_its_line() {
    let errors = policy::parse("environment = \n", Path::new("p.toml"), &nothing).unwrap_err();
    assert!(errors.to_string().contains("p.toml:1:"), "{errors}");
    for bad in ["", "[", "a = 1\na = 2\n", "\u{0}"] {
        assert!(policy::parse(bad, Path::new("p.toml"), &nothing).is_err());
    }
}

#[test]
fn secrets_come_from_where_the_policy_says() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("secret");
    std::fs::write(&file, "from a file\n").unwrap();
    let place = directory.path().to_str().unwrap().to_owned();
    let lookup = move |name: &str| match name {
        "NAMED" => Some("from the environment".to_owned()),
        "EMPTY" => Some(String::new()),
        "CREDENTIALS_DIRECTORY" => Some(place.clone()),
        _ => None,
    };
    let get = |reference: SecretRef| secrets::resolve(&reference, &lookup);
    assert_eq!(
        get(SecretRef::Env("NAMED".into())).unwrap().expose(),
        "from the environment"
    );
    assert_eq!(
        get(SecretRef::File(file.clone())).unwrap().expose(),
        "from a file"
    );
    assert_eq!(
        get(SecretRef::Credential("secret".into())).unwrap().expose(),
        "from a file"
    );
    for bad in [
        SecretRef::Env("UNSET".into()),
        SecretRef::Env("EMPTY".into()),
        SecretRef::Credential("none".into()),
        SecretRef::File("/nowhere/x".into()),
    ] {
        assert_eq!(get(bad).unwrap_err().kind(), Kind::Usage);
    }
    assert_eq!(
        format!("{:?} {0}", get(SecretRef::File(file)).unwrap()),
        "<secret> <secret>"
    );
}

#[test]
fn every_missing_secret_is_named_at_once() {
    let policy = policy::parse(&shipped("example.toml"), Path::new("p.toml"), &nothing).unwrap();
    let error = secrets::require(&policy, &nothing, |_| true).unwrap_err();
    for name in [
        "EXAMPLE_S3_ACCESS_KEY_ID",
        "EXAMPLE_S3_SECRET_ACCESS_KEY",
        "EXAMPLE_ORDERS_URL",
        "EXAMPLE_SHOP_PASSWORD",
        "example_identity",
    ] {
        assert!(error.message().contains(name), "{name}: {error:?}");
    }
}

#[test]
fn the_policy_is_looked_for_where_it_is_said_to_be() {
    let lookup = |name: &str| (name == "LIFEBOAT_POLICY").then(|| "/etc/other.toml".to_owned());
    let given = policy::find(Some(Path::new("given.toml")), &lookup).unwrap();
    assert_eq!(given, Path::new("given.toml"));
    assert_eq!(policy::find(None, &lookup).unwrap(), Path::new("/etc/other.toml"));
    if policy::PLACES.iter().all(|p| !Path::new(p).exists()) {
        let error = policy::find(None, &nothing).unwrap_err();
        assert_eq!(error.kind(), Kind::Usage);
        for place in [
            "--policy",
            "LIFEBOAT_POLICY",
            "./policy.toml",
            "/etc/lifeboat/policy.toml",
        ] {
            assert!(error.message().contains(place), "{error:?}");
        }
    }
}

#[test]
fn a_secret_that_is_none_is_refused_and_not_repeated() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("secret");
    let get = |bytes: &[u8]| {
        std::fs::write(&file, bytes).unwrap();
        secrets::resolve(&SecretRef::File(file.clone()), &nothing)
    };
    assert_eq!(get(b"two lines\n\n").unwrap().expose(), "two lines\n");
    for bad in [&b""[..], b"\n", b"\r\n", b"SENTINEL\xff", &[b'x'; (1 << 20) + 1]] {
        let error = get(bad).unwrap_err();
        assert_eq!(error.kind(), Kind::Usage);
        assert!(!format!("{error:?}").contains("SENTINEL"), "{error:?}");
    }
    // A device never ends.
    assert!(secrets::resolve(&SecretRef::File("/dev/zero".into()), &nothing).is_err());
}

/// What later versions run is read and validated already.
#[test]
fn a_policy_with_physical_and_bucket_sources_parses() {
    let text = include_str!("policy/shop.toml");
    let policy = policy::parse(text, Path::new("p.toml"), &nothing).unwrap_or_else(|e| panic!("{e}"));
    let kinds: Vec<_> = policy
        .sources
        .iter()
        .map(|(name, s)| (name.as_str(), s.kind.name()))
        .collect();
    assert_eq!(
        kinds,
        [
            ("app", "pocketbase"),
            ("media", "bucket"),
            ("orders", "postgres-physical")
        ]
    );
    assert_eq!(policy.timezone.name(), "Europe/Berlin");
    let orders = policy.sources.values().last().unwrap();
    assert_eq!(orders.follow.unwrap().as_secs(), 5);
    assert_eq!(orders.objective.rpo.unwrap().as_secs(), 30);
    assert_eq!(orders.retention.as_ref().unwrap().1.monthly, 12);
}
