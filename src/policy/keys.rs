//! The one table of policy keys: what is read, what the schema says, what the manual lists.

/// The type of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// Text.
    Text,
    /// A list of texts.
    Texts,
    /// A whole number, not negative.
    Integer,
    /// `true` or `false`.
    Boolean,
    /// A duration as text: `30s`, `15m`, `72h`, `7d`.
    Duration,
    /// A number of bytes, or text: `20 MiB`.
    Size,
    /// `{ env = … }`, `{ file = … }` or `{ credential = … }`.
    Secret,
    /// One of these texts.
    OneOf(&'static [&'static str]),
    /// A table with these keys of the section of this name.
    Table(&'static str),
    /// A list of such tables.
    Tables(&'static str),
    /// Any whole number.
    Signed,
}

/// One key.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Section: `""`, `repository`, `source`, ….
    pub section: &'static str,
    /// Name.
    pub name: &'static str,
    /// Type.
    pub kind: Type,
    /// Whether it must be there.
    pub required: bool,
    /// What it is for, with its default.
    pub doc: &'static str,
}

const fn key(section: &'static str, name: &'static str, kind: Type, doc: &'static str) -> Key {
    Key {
        section,
        name,
        kind,
        required: false,
        doc,
    }
}
const fn must(section: &'static str, name: &'static str, kind: Type, doc: &'static str) -> Key {
    Key {
        section,
        name,
        kind,
        required: true,
        doc,
    }
}

use Type::{Boolean, Duration, Integer, OneOf, Secret, Signed, Size, Table, Tables, Text, Texts};

/// Sections whose keys are names of the operator's choice, each a table.
pub const NAMED: [(&str, &str); 4] = [
    ("source", "What is protected: [source.NAME]"),
    ("retention", "How long points are kept: [retention.NAME]"),
    ("drill", "Test restores: [drill.NAME]"),
    ("notify", "Who is told: [notify.NAME]"),
];

/// Every key.
pub const KEYS: &[Key] = &[
    must(
        "",
        "environment",
        Text,
        "Whose data this is; a repository belongs to one environment and refuses others",
    ),
    key(
        "",
        "timezone",
        Text,
        "IANA zone of schedules, calendar retention and echoed times; default UTC",
    ),
    key("", "concurrency", Integer, "Runs at once; default 2"),
    must("", "repository", Table("repository"), "Where backups rest"),
    must("", "encryption", Table("encryption"), "Who can read them"),
    key("", "prune", Table("prune"), "Expiring, only where it is done"),
    key("", "verify", Table("verify"), "Scheduled verification"),
    key("", "evidence", Table("evidence"), "What drills prove"),
    key("", "state", Table("state"), "Local state"),
    key("", "http", Table("http"), "The daemon's HTTP"),
    must(
        "repository",
        "url",
        Text,
        "s3://BUCKET/PREFIX or file:///DIRECTORY",
    ),
    key("repository", "endpoint", Text, "URL of an S3-compatible store"),
    key(
        "repository",
        "region",
        Text,
        "Region; default: the AWS chain's, us-east-1 with an endpoint",
    ),
    key(
        "repository",
        "path_style",
        Boolean,
        "Bucket in the path; default: true with an endpoint",
    ),
    key(
        "repository",
        "ca_file",
        Text,
        "PEM certificates to trust instead of the system's",
    ),
    key(
        "repository",
        "max_rate",
        Size,
        "Bytes per second; default no limit",
    ),
    key(
        "repository",
        "grace",
        Duration,
        "How long an expired point can be had back; default 72h",
    ),
    key(
        "repository",
        "object_lock",
        Table("object_lock"),
        "Object Lock of everything written; default none",
    ),
    key(
        "repository",
        "versions",
        Boolean,
        "Read the first version of every key; default false",
    ),
    key(
        "repository",
        "access_key_id",
        Secret,
        "Default: the standard AWS chain",
    ),
    key(
        "repository",
        "secret_access_key",
        Secret,
        "Default: the standard AWS chain",
    ),
    must(
        "object_lock",
        "mode",
        OneOf(&["governance", "compliance"]),
        "Who may shorten a lock",
    ),
    must("object_lock", "days", Integer, "Days from each PUT"),
    must(
        "encryption",
        "recipients",
        Texts,
        "age recipients (age1…); two or more are advised",
    ),
    key(
        "encryption",
        "identity",
        Secret,
        "An age identity file, only where restores and drills run",
    ),
    key("prune", "schedule", Text, "Cron"),
    key(
        "prune",
        "access_key_id",
        Secret,
        "Credentials that may delete; default: the repository's",
    ),
    key(
        "prune",
        "secret_access_key",
        Secret,
        "Credentials that may delete; default: the repository's",
    ),
    key(
        "prune",
        "versions",
        Boolean,
        "Also remove the versions behind what is deleted; default false",
    ),
    key("verify", "schedule", Text, "Cron"),
    key(
        "verify",
        "sample",
        Text,
        "Share of objects per verify, such as 10%; default 100%",
    ),
    key(
        "state",
        "dir",
        Text,
        "Default: $LIFEBOAT_STATE, $STATE_DIRECTORY, /var/lib/lifeboat",
    ),
    key("http", "listen", Text, "Address and port; default 127.0.0.1:9184"),
    key("http", "token", Secret, "For everything but health"),
    must(
        "source",
        "kind",
        OneOf(&["postgres", "pocketbase", "bucket"]),
        "Kind of source",
    ),
    key(
        "source",
        "schedule",
        Text,
        "5-field cron or @hourly …; default: only by hand",
    ),
    key(
        "source",
        "timezone",
        Text,
        "Zone of this schedule; default: the policy's",
    ),
    key(
        "source",
        "follow",
        Duration,
        "The log reaches the store at least this often",
    ),
    key(
        "source",
        "retention",
        Text,
        "Name of a [retention.NAME]; default: everything is kept",
    ),
    key("source", "objective", Table("objective"), "Recovery objectives"),
    key("source", "jitter", Duration, "Spread of the start; default 0s"),
    key(
        "source",
        "catch_up",
        OneOf(&["once", "skip"]),
        "Missed slots; default once",
    ),
    key(
        "source",
        "max_age",
        Duration,
        "Older slots are not caught up; default 1d",
    ),
    key("source", "timeout", Duration, "A longer run fails; default 24h"),
    key(
        "source",
        "stall_timeout",
        Duration,
        "A run that gets no byte of a dump or file for this long fails (other work, as counting rows, is under `timeout` alone); default 10m",
    ),
    key("source", "priority", Signed, "Higher runs first; default 0"),
    key(
        "source",
        "refresh",
        Duration,
        "Packs older than this are written again; default off",
    ),
    key(
        "source",
        "blackout",
        Texts,
        "Spans of the day in which no run starts, HH:MM-HH:MM",
    ),
    key(
        "source",
        "url",
        Type::Text,
        "postgres: reference to the connection URL; bucket: s3://…; pocketbase: base URL",
    ),
    key(
        "source",
        "method",
        OneOf(&["logical", "physical"]),
        "postgres: dumps, or base backups and WAL; default logical",
    ),
    key(
        "source",
        "databases",
        Texts,
        "postgres: names, * as wildcard (\"*\" alone: all); default: the URL's, else all",
    ),
    key(
        "source",
        "exclude",
        Texts,
        "postgres: tables whose rows are left out, as pg_dump --exclude-table-data",
    ),
    key(
        "source",
        "client_dir",
        Text,
        "postgres: where pg_dump and the others are",
    ),
    key("source", "jobs", Integer, "postgres: parallel jobs of a restore"),
    key(
        "source",
        "access",
        OneOf(&["auto", "files", "protocol"]),
        "postgres, physical: how files are read; default auto",
    ),
    key(
        "source",
        "data_directory",
        Text,
        "postgres, physical: PGDATA on this host",
    ),
    key("source", "slot", Text, "postgres, physical: replication slot"),
    key(
        "source",
        "slot_without_limit",
        Boolean,
        "postgres, physical: accept max_slot_wal_keep_size = -1; default false",
    ),
    key(
        "source",
        "retain_limit",
        Size,
        "postgres, physical: WAL that a slot may retain",
    ),
    key("source", "path", Text, "pocketbase: pb_data on this host"),
    key(
        "source",
        "superuser",
        Table("superuser"),
        "pocketbase with url: who may make backups",
    ),
    key(
        "source",
        "settings_key",
        Secret,
        "pocketbase: what --encryptionEnv names, if its settings are encrypted; drills boot a copy only with it",
    ),
    key(
        "source",
        "logs",
        Boolean,
        "pocketbase: auxiliary.db too; default true",
    ),
    key(
        "source",
        "storage",
        Boolean,
        "pocketbase: storage/ too; default true",
    ),
    must("superuser", "identity", Secret, "E-mail"),
    must("superuser", "password", Secret, "Password"),
    key("objective", "rpo", Duration, "Most that may be lost"),
    key("objective", "rto", Duration, "Most that a restore may take"),
    key(
        "retention",
        "window",
        Duration,
        "Every point of this span is kept",
    ),
    key("retention", "hourly", Integer, "Hours with a point"),
    key("retention", "daily", Integer, "Days"),
    key("retention", "weekly", Integer, "ISO weeks"),
    key("retention", "monthly", Integer, "Months"),
    key("retention", "yearly", Integer, "Years"),
    key(
        "evidence",
        "key",
        Secret,
        "An Ed25519 private key that signs it; `backup key signing FILE` makes one",
    ),
    must("drill", "sources", Texts, "Which sources"),
    key("drill", "schedule", Text, "Cron"),
    key(
        "drill",
        "at",
        OneOf(&["latest", "random", "oldest", "before-expiry"]),
        "Which point; default latest",
    ),
    key("drill", "checks", Tables("check"), "Your own checks"),
    key(
        "drill",
        "window",
        Duration,
        "How far back a random point may lie; how far ahead before-expiry looks, default 7d",
    ),
    key(
        "drill",
        "max_age",
        Duration,
        "Fails when the newest point is older",
    ),
    key(
        "drill",
        "keep_failed",
        Duration,
        "How long a failed target is kept; default 24h",
    ),
    key("drill", "budget", Size, "Most disk space of its target"),
    key(
        "drill",
        "memory",
        Size,
        "Most memory of a process of the scratch server",
    ),
    key("drill", "timeout", Duration, "Most time; default 12h"),
    key(
        "drill",
        "binaries",
        Text,
        "The directory with initdb and postgres, or with pocketbase; otherwise they are looked for",
    ),
    key(
        "drill",
        "sandbox",
        Text,
        "required (default), or optional: where the host allows none the target runs without, and code in a backup does what our user may",
    ),
    key(
        "drill",
        "server",
        Secret,
        "URL of a Postgres server for drills alone, in place of a cluster of their own; everything on it is removed",
    ),
    must("check", "source", Text, "The source it is about"),
    must("check", "name", Text, "Its name in the evidence"),
    key(
        "check",
        "sql",
        Text,
        "A query whose one value must be true, or expected",
    ),
    key(
        "check",
        "database",
        Text,
        "The database of the query, where there are several",
    ),
    key("check", "expected", Text, "The value, as text"),
    key(
        "check",
        "command",
        Texts,
        "A program that must end with 0; it is started beside the target, and sees only the system's programs, itself and the target",
    ),
    key("check", "timeout", Duration, "Most time; default 5m"),
    key(
        "check",
        "http",
        Text,
        "A URL of the restored application that must answer 200; host and port are the scratch server's",
    ),
    key("notify", "webhook", Secret, "URL for JSON"),
    key("notify", "secret", Secret, "Signs the webhook (HMAC)"),
    key("notify", "slack", Secret, "URL"),
    key("notify", "discord", Secret, "URL"),
    key("notify", "teams", Secret, "URL"),
    key("notify", "ntfy", Secret, "URL"),
    key("notify", "ping", Secret, "Dead-man ping URL (healthchecks.io)"),
    key("notify", "push", Secret, "Uptime Kuma push URL"),
    key("notify", "email", Text, "Address to write to"),
    key("notify", "from", Text, "Address that writes; default: the same"),
    key(
        "notify",
        "ca_file",
        Text,
        "PEM certificates to trust beside the system's",
    ),
    key("notify", "smtp", Secret, "smtps:// URL with its password"),
    key(
        "notify",
        "on",
        Texts,
        "failure, recovery, drill, objective, quiet",
    ),
];

/// The keys of a section.
pub fn of_section(section: &str) -> impl Iterator<Item = &'static Key> {
    let section = section.to_owned();
    KEYS.iter().filter(move |k| k.section == section)
}

/// The nearest of some names to a misspelt one, if any is near.
pub fn nearest<'a>(name: &str, among: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    among
        .map(|known| (distance(name, known), known))
        .filter(|(d, known)| *d <= 1 + known.len() / 4)
        .min()
        .map(|(_, known)| known)
}

/// Levenshtein distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let cost = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = cost.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
