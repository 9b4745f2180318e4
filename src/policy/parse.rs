//! From the text of a policy to a valid [`Policy`], or everything that is wrong with it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono_tz::Tz;
use toml::de::DeTable;

use super::drills::drill;
use super::model::{
    EncryptionPolicy, Event, HttpPolicy, NotifyPolicy, ObjectLock, PlaceKind, Policy, PrunePolicy,
    RepositoryPolicy, RetentionRules, StoreCredentials, StoreUrl, VerifyPolicy,
};
use super::reader::{PolicyErrors, Problem, Problems, Reader};
use super::sources::source;
use crate::drill::RECOVERY_KEY;
use crate::schedule::Schedule;
use crate::store::LockMode;
use crate::types::SourceName;

pub(super) const HOUR: Duration = Duration::from_secs(3600);

/// Looks up an environment variable.
pub type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Parses a policy.
///
/// # Errors
/// Everything that is wrong, each with its place.
pub fn parse(text: &str, path: &Path, lookup: Lookup<'_>) -> Result<Policy, PolicyErrors> {
    let problems = Problems::new(text, directory_of(path));
    let (table, errors) = DeTable::parse_recoverable(text);
    // What was understood of a broken text would only be said to lack the rest. The messages repeat no value.
    for e in &errors {
        problems.add(e.span().unwrap_or(0..0), "", e.message().to_owned(), None);
    }
    let policy = if errors.is_empty() {
        let root = Reader::new(table.get_ref(), 0..0, String::new(), "", &problems);
        read(&root, path, lookup)
    } else {
        None
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

/// The directory of a policy: relative paths in it are taken from there.
fn directory_of(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    path.parent().map_or_else(PathBuf::new, Path::to_owned)
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
        let dir = r.path("dir");
        r.finish(&[]);
        dir
    });
    let http = root.table("http", "http").map(|r| http(&r)).unwrap_or_default();
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
    let drills: BTreeMap<_, _> = root
        .named("drill", "drill")
        .into_iter()
        .map(|(name, span, r)| {
            if name == RECOVERY_KEY {
                let hint =
                    format!("`backup drill {RECOVERY_KEY}` needs no policy of its own: take another name");
                r.problem_at(span, "this name is reserved", Some(hint));
            }
            (name, drill(&r, timezone, &names))
        })
        .collect();
    let evidence_key = root.table("evidence", "evidence").and_then(|r| {
        let key = r.secret("key");
        r.finish(&[]);
        key
    });
    let mut told = BTreeMap::new();
    for (name, _, reader) in root.named("notify", "notify") {
        told.insert(name, notify(&reader));
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
        evidence_key,
        verify,
        state_dir: state_dir(dir, lookup),
        concurrency,
        http,
        notify: told,
    })
}

/// `state.dir`, `$LIFEBOAT_STATE`, systemd's `$STATE_DIRECTORY`, then `/var/lib/lifeboat`.
pub(super) fn state_dir(policy: Option<PathBuf>, lookup: Lookup<'_>) -> PathBuf {
    let set = |name: &str| lookup(name).filter(|v| !v.is_empty());
    // systemd gives a list when there are several.
    let of_systemd =
        || set("STATE_DIRECTORY").map(|list| list.split(':').next().unwrap_or_default().to_owned());
    policy.unwrap_or_else(|| {
        set("LIFEBOAT_STATE")
            .or_else(of_systemd)
            .map_or_else(|| PathBuf::from("/var/lib/lifeboat"), PathBuf::from)
    })
}

pub(super) fn zone(reader: &Reader<'_, '_>, key: &str) -> Option<Tz> {
    reader.parsed(key, |text| {
        text.parse::<Tz>()
            .map_err(|_| format!("{text:?} is no IANA time zone, such as Europe/Berlin"))
    })
}

pub(super) fn schedule(reader: &Reader<'_, '_>, zone: Tz) -> Option<String> {
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
        // Credentials before an @ would be taken for a name, and shown.
        let name = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
        let part = |s: &str| {
            !["", ".", ".."].contains(&s)
                && s.bytes()
                    .all(|b| b.is_ascii_graphic() && !b"\\?#%@:".contains(&b))
        };
        let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
        let good = !bucket.is_empty() && bucket.bytes().all(name);
        if !good || !(prefix.is_empty() || prefix.split('/').all(part)) {
            return Err("a bucket is written s3://BUCKET/PREFIX, of plain characters".to_owned());
        }
        return Ok(StoreUrl::S3 {
            bucket: bucket.to_owned(),
            prefix: prefix.to_owned(),
        });
    }
    Err("must begin with s3:// or file:///".to_owned())
}

/// Parses the URL of a server; one with a name, a password or a token in it is refused and not repeated.
pub(super) fn http_url(text: &str) -> Result<String, &'static str> {
    match url::Url::parse(text) {
        Ok(u)
            if matches!(u.scheme(), "http" | "https")
                && u.has_host()
                && u.password().is_none()
                && u.username().is_empty() =>
        {
            Ok(text.to_owned())
        }
        _ => Err("must be an http:// or https:// URL without credentials"),
    }
}

/// What only a bucket has: in the policy of a directory it would silently mean nothing.
const OF_BUCKETS: [&str; 8] = [
    "endpoint",
    "region",
    "path_style",
    "ca_file",
    "object_lock",
    "versions",
    "access_key_id",
    "secret_access_key",
];

fn repository(reader: &Reader<'_, '_>) -> Option<RepositoryPolicy> {
    let url = reader.parsed("url", store_url);
    if matches!(url, Some(StoreUrl::Directory(_))) {
        for key in OF_BUCKETS.iter().filter(|k| reader.value(k).is_some()) {
            reader.problem(
                key,
                "has no meaning for a directory",
                Some("it is for s3:// repositories".to_owned()),
            );
        }
    }
    let endpoint = reader.parsed("endpoint", http_url);
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
        ca_file: reader.path("ca_file"),
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
    let mut recipients: Vec<String> = Vec::new();
    for (text, span) in reader.items("recipients").unwrap_or_default() {
        if let Err((message, hint)) = recipient(&text) {
            reader.problem_in("recipients", span, message, Some(hint));
        } else if recipients.contains(&text) {
            reader.problem_in(
                "recipients",
                span,
                "is named twice",
                Some("two keys are advised, not one twice".to_owned()),
            );
        }
        recipients.push(text);
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

/// Whether age can encrypt to it here; else why not, and what to do. A secret key given by mistake is not repeated.
fn recipient(text: &str) -> Result<(), (String, String)> {
    let make = "a recipient begins with age1; `backup key generate FILE` makes a key pair".to_owned();
    let lower = text.to_ascii_lowercase();
    if lower.contains("secret-key") || lower.contains("private key") || lower.starts_with("age-plugin-") {
        return Err((
            "an identity is not an age recipient, and a secret".to_owned(),
            make,
        ));
    }
    let Err(why) = text.parse::<age::x25519::Recipient>() else {
        return Ok(());
    };
    let other = match lower.strip_prefix("age1").and_then(|rest| rest.rsplit_once('1')) {
        Some(_) => Some("recipients of age plugins are not supported"),
        None if lower.starts_with("ssh-") => Some("recipients of SSH are not supported"),
        None => None,
    };
    Err(match other {
        Some(message) => (message.to_owned(), make),
        None if lower.starts_with("age1") => (format!("{text:?} is not an age recipient: {why}"), make),
        // It might be anything, a passphrase too.
        None => ("is not an age recipient".to_owned(), make),
    })
}

fn http(reader: &Reader<'_, '_>) -> HttpPolicy {
    let listen = reader.parsed("listen", |t| {
        t.parse::<std::net::SocketAddr>()
            .map_err(|_| "must be an address and a port, such as 127.0.0.1:9184")
    });
    let token = reader.secret("token");
    reader.finish(&[]);
    HttpPolicy {
        listen: listen.unwrap_or(HttpPolicy::default().listen),
        token,
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
    // Every key forgotten or commented out would expire nearly everything.
    let keys = ["window", "hourly", "daily", "weekly", "monthly", "yearly"];
    if rules == RetentionRules::default() && keys.iter().all(|k| reader.value(k).is_none()) {
        reader.problem_at(
            reader.span.clone(),
            "has no rule, so all but the newest two points would expire",
            Some("to keep everything, give the source no retention".to_owned()),
        );
    }
    rules
}

fn notify(reader: &Reader<'_, '_>) -> NotifyPolicy {
    let of_kind = |kind: PlaceKind| Some((kind, reader.secret(kind.url_key())?));
    let places: BTreeMap<_, _> = PlaceKind::ALL.into_iter().filter_map(of_kind).collect();
    let secret = reader.secret("secret");
    let address = |key: &str| {
        reader.parsed(key, |text| {
            text.trim().parse::<lettre::message::Mailbox>().map_err(|_| {
                format!("{text:?} is no e-mail address, such as ops@example.net or Ops <ops@example.net>")
            })
        })
    };
    let (to, from) = (address("email"), address("from"));
    let there = |key: &str| reader.value(key).is_some();
    let known = PlaceKind::ALL.map(PlaceKind::name);
    if !known.iter().any(|k| there(k)) {
        let hint = format!("give one of {}", known.join(", "));
        reader.problem_at(reader.span.clone(), "tells nobody", Some(hint));
    }
    for (key, with) in [
        ("email", "smtp"),
        ("smtp", "email"),
        ("from", "email"),
        ("secret", "webhook"),
    ] {
        if there(key) && !there(with) {
            reader.problem(key, format!("needs {with} beside it"), None);
        }
    }
    let events = Event::ALL.map(Event::name);
    let asked = reader.items("on");
    let mut on = BTreeSet::new();
    for (event, span) in asked.iter().flatten() {
        match Event::ALL.into_iter().find(|e| e.name() == event) {
            Some(event) => drop(on.insert(event)),
            None => {
                let near =
                    super::keys::nearest(event, events.into_iter()).map(|n| format!("did you mean {n:?}?"));
                reader.problem_in(
                    "on",
                    span.clone(),
                    format!("{event:?} is none of {}", events.join(", ")),
                    near,
                );
            }
        }
    }
    let ca_file = reader.path("ca_file");
    reader.finish(&[]);
    NotifyPolicy {
        places,
        secret,
        ca_file,
        email: to.map(|to| (to, from)),
        // Not said: of everything.
        on: if asked.is_some() { on } else { Event::ALL.into() },
    }
}
