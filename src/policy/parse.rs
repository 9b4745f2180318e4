//! From the text of a policy to a valid [`Policy`], or everything that is wrong with it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono_tz::Tz;
use toml::de::DeTable;

use super::model::{
    CatchUp, DrillPolicy, EncryptionPolicy, ObjectLock, Objective, PocketBasePlace, PocketBasePolicy, Policy,
    PostgresMethod, PostgresPolicy, PrunePolicy, RepositoryPolicy, RetentionRules, SourceKind, SourcePolicy,
    StoreCredentials, StoreUrl, VerifyPolicy,
};
use super::reader::{PolicyErrors, Problem, Problems, Reader};
use crate::schedule::Schedule;
use crate::store::LockMode;
use crate::types::SourceName;

const HOUR: Duration = Duration::from_secs(3600);

/// Looks up an environment variable.
pub type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Parses a policy.
///
/// # Errors
/// Everything that is wrong, each with its place.
pub fn parse(text: &str, path: &Path, lookup: Lookup<'_>) -> Result<Policy, PolicyErrors> {
    let problems = Problems::new(text);
    let policy = match DeTable::parse(text) {
        Ok(table) => {
            let root = Reader::new(table.get_ref(), 0..0, String::new(), "", &problems);
            read(&root, path, lookup)
        }
        Err(e) => {
            problems.add(e.span().unwrap_or(0..0), "", e.message().to_owned(), None);
            None
        }
    };
    let list: Vec<Problem> = problems.into_list();
    match policy {
        Some(policy) if list.is_empty() => Ok(policy),
        _ => Err(PolicyErrors {
            file: path.to_owned(),
            problems: list,
        }),
    }
}

fn read(root: &Reader<'_, '_>, path: &Path, lookup: Lookup<'_>) -> Option<Policy> {
    let environment = root.parsed("environment", str::parse);
    let timezone = zone(root, "timezone").unwrap_or(Tz::UTC);
    let concurrency = root.count("concurrency", 1).unwrap_or(2);
    let repository = root
        .table("repository", "repository")
        .and_then(|r| repository(&r));
    let encryption = root.table("encryption", "encryption").map(|r| encryption(&r));
    let prune = root.table("prune", "prune").map(|r| prune(&r));
    let verify = root
        .table("verify", "verify")
        .map(|r| verify(&r))
        .unwrap_or_default();
    let dir = root.table("state", "state").and_then(|r| {
        let dir = r.filled("dir");
        r.finish(&[]);
        dir
    });
    if let Some(http) = root.table("http", "http") {
        http.parsed("listen", |t| {
            t.parse::<std::net::SocketAddr>()
                .map_err(|_| "must be an address and a port, such as 127.0.0.1:9184")
        });
        http.secret("token");
        http.finish(&[]);
    }
    let retentions: BTreeMap<String, RetentionRules> = root
        .named("retention", "retention")
        .into_iter()
        .map(|(name, _, r)| (name, retention(&r)))
        .collect();
    let mut sources = BTreeMap::new();
    let mut names = Vec::new();
    for (name, span, reader) in root.named("source", "source") {
        names.push(name.clone());
        let policy = source(&reader, timezone, &retentions);
        match name.parse::<SourceName>() {
            Ok(name) => {
                if let Some(policy) = policy {
                    sources.insert(name, policy);
                }
            }
            Err(e) => reader.problem_at(span, e.message().to_owned(), e.hint_text().map(str::to_owned)),
        }
    }
    let drills = root
        .named("drill", "drill")
        .into_iter()
        .map(|(name, _, r)| (name, drill(&r, timezone, &names)))
        .collect();
    for (_, _, reader) in root.named("notify", "notify") {
        notify(&reader);
    }
    root.finish(&["source", "retention", "drill", "notify"]);
    Some(Policy {
        path: path.to_owned(),
        environment: environment?,
        timezone,
        repository: repository?,
        encryption: encryption?,
        prune,
        sources,
        drills,
        verify,
        state_dir: state_dir(dir, lookup),
        concurrency,
    })
}

/// `state.dir`, `$LIFEBOAT_STATE`, systemd's `$STATE_DIRECTORY`, then `/var/lib/lifeboat`.
fn state_dir(policy: Option<String>, lookup: Lookup<'_>) -> PathBuf {
    let set = |name: &str| lookup(name).filter(|v| !v.is_empty());
    policy
        .or_else(|| set("LIFEBOAT_STATE"))
        // systemd gives a list when there are several.
        .or_else(|| set("STATE_DIRECTORY").map(|list| list.split(':').next().unwrap_or_default().to_owned()))
        .map_or_else(|| PathBuf::from("/var/lib/lifeboat"), PathBuf::from)
}

fn zone(reader: &Reader<'_, '_>, key: &str) -> Option<Tz> {
    reader.parsed(key, |text| {
        text.parse::<Tz>()
            .map_err(|_| format!("{text:?} is no IANA time zone, such as Europe/Berlin"))
    })
}

fn schedule(reader: &Reader<'_, '_>, zone: Tz) -> Option<String> {
    reader.parsed("schedule", |text| {
        Schedule::parse(text, zone)
            .map(|_| text.to_owned())
            .map_err(|e| match e.hint_text() {
                Some(hint) => format!("{} ({hint})", e.chain()),
                None => e.chain(),
            })
    })
}

fn credentials(reader: &Reader<'_, '_>) -> Option<StoreCredentials> {
    let id = reader.secret("access_key_id");
    let key = reader.secret("secret_access_key");
    match (reader.value("access_key_id"), reader.value("secret_access_key")) {
        (Some(_), None) => reader.missing("secret_access_key"),
        (None, Some(_)) => reader.missing("access_key_id"),
        _ => {}
    }
    Some(StoreCredentials {
        access_key_id: id?,
        secret_access_key: key?,
    })
}

/// Parses a repository's URL.
///
/// # Errors
/// What is wrong with it.
pub fn store_url(text: &str) -> Result<StoreUrl, String> {
    if let Some(rest) = text.strip_prefix("file://") {
        return match rest {
            path if path.starts_with('/') && path.len() > 1 => Ok(StoreUrl::Directory(PathBuf::from(path))),
            _ => Err("a directory is written file:///absolute/path".to_owned()),
        };
    }
    if let Some(rest) = text.strip_prefix("s3://") {
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let plain = |s: &str| s.bytes().all(|b| b.is_ascii_graphic() && !b"\\?#%".contains(&b));
        if bucket.is_empty() || !plain(bucket) || !plain(prefix) || prefix.contains("//") {
            return Err("a bucket is written s3://BUCKET/PREFIX, of plain characters".to_owned());
        }
        let prefix = prefix.trim_matches('/').to_owned();
        return Ok(StoreUrl::S3 {
            bucket: bucket.to_owned(),
            prefix,
        });
    }
    Err("must begin with s3:// or file:///".to_owned())
}

fn repository(reader: &Reader<'_, '_>) -> Option<RepositoryPolicy> {
    let url = reader.parsed("url", store_url);
    let endpoint = reader.parsed("endpoint", |text| match url::Url::parse(text) {
        Ok(u) if matches!(u.scheme(), "http" | "https") && u.has_host() && u.password().is_none() => {
            Ok(text.to_owned())
        }
        _ => Err("must be an http:// or https:// URL without credentials"),
    });
    let object_lock = reader.table("object_lock", "object_lock").and_then(|r| {
        let mode = r.one_of("mode", &["governance", "compliance"]);
        let days = r.count("days", 1);
        r.finish(&[]);
        let mode = if mode? == "compliance" {
            LockMode::Compliance
        } else {
            LockMode::Governance
        };
        Some(ObjectLock { mode, days: days? })
    });
    let policy = RepositoryPolicy {
        endpoint,
        region: reader.filled("region"),
        path_style: reader.boolean("path_style"),
        ca_file: reader.filled("ca_file").map(PathBuf::from),
        max_rate: reader.size("max_rate"),
        grace: reader.duration("grace").unwrap_or(72 * HOUR),
        object_lock,
        versions: reader.boolean("versions").unwrap_or(false),
        credentials: credentials(reader),
        url: url.clone().unwrap_or(StoreUrl::Directory(PathBuf::new())),
    };
    if policy.grace < 2 * HOUR {
        reader.problem(
            "grace",
            "must be at least 2h: undo ends an hour before it, sweep begins an hour after it",
            None,
        );
    }
    reader.finish(&[]);
    url.map(|_| policy)
}

fn encryption(reader: &Reader<'_, '_>) -> EncryptionPolicy {
    let recipients = reader.texts("recipients").unwrap_or_default();
    for text in &recipients {
        if let Err(why) = text.parse::<age::x25519::Recipient>() {
            let hint = "a recipient begins with age1; `backup key generate FILE` makes a key pair".to_owned();
            reader.problem(
                "recipients",
                format!("{} is not an age recipient: {why}", shown(text)),
                Some(hint),
            );
        }
    }
    if reader.value("recipients").is_some() && recipients.is_empty() {
        reader.problem(
            "recipients",
            "must name at least one recipient",
            Some("two are advised".to_owned()),
        );
    }
    let policy = EncryptionPolicy {
        recipients,
        identity: reader.secret("identity"),
    };
    reader.finish(&[]);
    policy
}

/// A text for a message; a secret key given by mistake is not repeated.
fn shown(text: &str) -> String {
    if text.to_uppercase().contains("SECRET-KEY") {
        "an identity (a secret!)".to_owned()
    } else {
        format!("{text:?}")
    }
}

fn prune(reader: &Reader<'_, '_>) -> PrunePolicy {
    let policy = PrunePolicy {
        schedule: schedule(reader, Tz::UTC),
        credentials: credentials(reader),
        versions: reader.boolean("versions").unwrap_or(false),
    };
    reader.finish(&[]);
    policy
}

fn verify(reader: &Reader<'_, '_>) -> VerifyPolicy {
    let sample = reader.parsed("sample", percent);
    let policy = VerifyPolicy {
        schedule: schedule(reader, Tz::UTC),
        sample_percent: sample,
    };
    reader.finish(&[]);
    policy
}

/// Parses `N%`, 1 to 100.
///
/// # Errors
/// Anything else.
pub fn percent(text: &str) -> Result<u8, String> {
    text.trim()
        .strip_suffix('%')
        .and_then(|n| n.trim().parse().ok())
        .filter(|n| (1..=100).contains(n))
        .ok_or_else(|| format!("{text:?} is not a share such as 10%"))
}

fn retention(reader: &Reader<'_, '_>) -> RetentionRules {
    let rules = RetentionRules {
        window: reader.duration("window"),
        hourly: reader.count("hourly", 0).unwrap_or(0),
        daily: reader.count("daily", 0).unwrap_or(0),
        weekly: reader.count("weekly", 0).unwrap_or(0),
        monthly: reader.count("monthly", 0).unwrap_or(0),
        yearly: reader.count("yearly", 0).unwrap_or(0),
    };
    reader.finish(&[]);
    rules
}

fn source(
    reader: &Reader<'_, '_>,
    zone_of_policy: Tz,
    retentions: &BTreeMap<String, RetentionRules>,
) -> Option<SourcePolicy> {
    let timezone = zone(reader, "timezone").unwrap_or(zone_of_policy);
    let kind = kind(reader);
    let retention = reader
        .filled("retention")
        .and_then(|name| match retentions.get(&name) {
            Some(rules) => Some((name, *rules)),
            None => {
                let near = super::keys::nearest(&name, retentions.keys().map(String::as_str));
                let hint = near.map_or_else(
                    || format!("add [retention.{name}]"),
                    |n| format!("did you mean {n:?}?"),
                );
                reader.problem("retention", format!("there is no [retention.{name}]"), Some(hint));
                None
            }
        });
    let objective = reader
        .table("objective", "objective")
        .map(|r| {
            let objective = Objective {
                rpo: r.duration("rpo"),
                rto: r.duration("rto"),
            };
            r.finish(&[]);
            objective
        })
        .unwrap_or_default();
    let blackout = reader.texts("blackout").unwrap_or_default();
    for span in blackout.iter().filter(|s| !is_span(s)) {
        reader.problem(
            "blackout",
            format!("{span:?} is not a span of the day"),
            Some("write it as 22:00-06:00".to_owned()),
        );
    }
    let catch_up = match reader.one_of("catch_up", &["once", "skip"]) {
        Some("skip") => CatchUp::Skip,
        _ => CatchUp::Once,
    };
    let schedule = schedule(reader, timezone);
    let policy = SourcePolicy {
        kind: SourceKind::Bucket { url: String::new() },
        schedule,
        timezone,
        follow: reader.duration("follow"),
        retention,
        objective,
        jitter: reader.duration("jitter").unwrap_or(Duration::ZERO),
        catch_up,
        max_age: reader.duration("max_age").unwrap_or(24 * HOUR),
        timeout: reader.duration("timeout").unwrap_or(24 * HOUR),
        stall_timeout: reader
            .duration("stall_timeout")
            .unwrap_or(Duration::from_secs(600)),
        priority: reader
            .integer("priority", -1000..=1000)
            .and_then(|n| i32::try_from(n).ok())
            .unwrap_or(0),
        refresh: reader.duration("refresh"),
        blackout,
    };
    reader.finish(&[]);
    kind.map(|kind| SourcePolicy { kind, ..policy })
}

fn is_span(text: &str) -> bool {
    let time = |t: &str| chrono::NaiveTime::parse_from_str(t, "%H:%M").is_ok();
    text.split_once('-')
        .is_some_and(|(from, to)| time(from) && time(to) && from != to)
}

/// Keys that one kind of source has and the others have not.
const POSTGRES: &[&str] = &["method", "databases", "exclude", "client_dir", "jobs"];
const PHYSICAL: &[&str] = &[
    "access",
    "data_directory",
    "slot",
    "slot_without_limit",
    "retain_limit",
];
const POCKETBASE: &[&str] = &["path", "superuser", "logs", "storage"];

fn kind(reader: &Reader<'_, '_>) -> Option<SourceKind> {
    let kind = reader.one_of("kind", &["postgres", "pocketbase", "bucket"])?;
    let foreign: Vec<&str> = match kind {
        "postgres" => POCKETBASE.to_vec(),
        "pocketbase" => [POSTGRES, PHYSICAL].concat(),
        _ => [POSTGRES, PHYSICAL, POCKETBASE].concat(),
    };
    for key in foreign.into_iter().filter(|k| reader.value(k).is_some()) {
        reader.problem(key, format!("a {kind} source has no such key"), None);
    }
    match kind {
        "postgres" => postgres(reader).map(SourceKind::Postgres),
        "pocketbase" => pocketbase(reader).map(SourceKind::PocketBase),
        _ => {
            if reader.value("url").is_none() {
                reader.missing("url");
            }
            let url = reader.parsed("url", |text| match store_url(text) {
                Ok(StoreUrl::S3 { .. }) => Ok(text.to_owned()),
                _ => Err("must be s3://BUCKET/PREFIX".to_owned()),
            })?;
            Some(SourceKind::Bucket { url })
        }
    }
}

fn postgres(reader: &Reader<'_, '_>) -> Option<PostgresPolicy> {
    let method = match reader.one_of("method", &["logical", "physical"]) {
        Some("physical") => PostgresMethod::Physical,
        _ => PostgresMethod::Logical,
    };
    reader.one_of("access", &["auto", "files", "protocol"]);
    reader.filled("data_directory");
    reader.filled("slot");
    reader.boolean("slot_without_limit");
    reader.size("retain_limit");
    if method == PostgresMethod::Logical {
        for key in PHYSICAL.iter().filter(|k| reader.value(k).is_some()) {
            reader.problem(key, "needs method = \"physical\"", None);
        }
    }
    if reader.value("url").is_none() {
        reader.missing("url");
    }
    let url = reader.secret("url");
    let databases = reader.texts("databases").unwrap_or_else(|| vec!["*".to_owned()]);
    if databases.iter().any(String::is_empty) {
        reader.problem("databases", "a name must not be empty", None);
    }
    Some(PostgresPolicy {
        method,
        databases,
        exclude: reader.texts("exclude").unwrap_or_default(),
        client_dir: reader.filled("client_dir").map(PathBuf::from),
        jobs: reader.count("jobs", 1),
        url: url?,
    })
}

fn pocketbase(reader: &Reader<'_, '_>) -> Option<PocketBasePolicy> {
    let superuser = reader.table("superuser", "superuser").map(|r| {
        let pair = (r.secret("identity"), r.secret("password"));
        r.finish(&[]);
        pair
    });
    let logs = reader.boolean("logs").unwrap_or(true);
    let storage = reader.boolean("storage").unwrap_or(true);
    let place = match (reader.value("path").is_some(), reader.value("url").is_some()) {
        (true, false) => reader
            .filled("path")
            .map(|path| PocketBasePlace::Local(PathBuf::from(path))),
        (false, true) => {
            let url = reader.parsed("url", |text| match url::Url::parse(text) {
                Ok(u) if matches!(u.scheme(), "http" | "https") && u.password().is_none() => {
                    Ok(text.to_owned())
                }
                _ => Err("must be an http:// or https:// URL without credentials"),
            });
            if superuser.is_none() {
                reader.missing("superuser");
            }
            match (url, superuser) {
                (Some(url), Some((Some(identity), Some(password)))) => Some(PocketBasePlace::Remote {
                    url,
                    identity,
                    password,
                }),
                _ => None,
            }
        }
        (true, true) => {
            reader.problem(
                "url",
                "path and url exclude each other",
                Some("path: on this host; url: by its API".to_owned()),
            );
            None
        }
        (false, false) => {
            reader.missing("path");
            None
        }
    };
    Some(PocketBasePolicy {
        place: place?,
        logs,
        storage,
    })
}

fn drill(reader: &Reader<'_, '_>, zone: Tz, sources: &[String]) -> DrillPolicy {
    let named = reader.texts("sources").unwrap_or_default();
    for name in named.iter().filter(|n| !sources.contains(n)) {
        let near = super::keys::nearest(name, sources.iter().map(String::as_str));
        reader.problem(
            "sources",
            format!("there is no [source.{name}]"),
            near.map(|n| format!("did you mean {n:?}?")),
        );
    }
    reader.one_of("at", &["latest", "random", "oldest", "before-expiry"]);
    for key in ["window", "max_age", "keep_failed"] {
        reader.duration(key);
    }
    reader.size("budget");
    reader.filled("binaries");
    for check in reader.tables("checks", "check") {
        check.filled("source");
        check.filled("name");
        check.filled("sql");
        check.text("expected");
        check.texts("command");
        check.filled("http");
        check.finish(&[]);
    }
    let policy = DrillPolicy {
        sources: named.iter().filter_map(|n| n.parse().ok()).collect(),
        schedule: schedule(reader, zone),
    };
    reader.finish(&[]);
    policy
}

fn notify(reader: &Reader<'_, '_>) {
    for key in [
        "webhook", "secret", "slack", "discord", "teams", "ntfy", "ping", "smtp",
    ] {
        reader.secret(key);
    }
    reader.filled("email");
    let events = ["failure", "recovery", "drill", "objective", "quiet"];
    for event in reader.texts("on").unwrap_or_default() {
        if !events.contains(&event.as_str()) {
            let near =
                super::keys::nearest(&event, events.into_iter()).map(|n| format!("did you mean {n:?}?"));
            reader.problem("on", format!("{event:?} is none of {}", events.join(", ")), near);
        }
    }
    reader.finish(&[]);
}
