//! A valid policy, as everything else sees it: names resolved, units parsed, defaults filled in. Secrets stay
//! references until the moment of use.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use chrono_tz::Tz;
use lettre::message::Mailbox;

use crate::drill::Select;
pub use crate::retention::RetentionRules;
use crate::store::LockMode;
use crate::types::{Environment, SourceName};

/// A whole policy.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Where it was read from.
    pub path: PathBuf,
    /// Whose data this is; stored in the repository, and compared at every use.
    pub environment: Environment,
    /// The zone of schedules, calendar retention and echoed times.
    pub timezone: Tz,
    /// Where backups rest.
    pub repository: RepositoryPolicy,
    /// Who can read them.
    pub encryption: EncryptionPolicy,
    /// Expiring, where this host does it.
    pub prune: Option<PrunePolicy>,
    /// What is protected.
    pub sources: BTreeMap<SourceName, SourcePolicy>,
    /// Signs what drills prove.
    pub evidence_key: Option<SecretRef>,
    /// Drills.
    pub drills: BTreeMap<String, DrillPolicy>,
    /// Scheduled verification.
    pub verify: VerifyPolicy,
    /// The local state directory: `state.dir`, `$LIFEBOAT_STATE`, `$STATE_DIRECTORY`, then `/var/lib/lifeboat`.
    pub state_dir: PathBuf,
    /// How many runs at once.
    pub concurrency: u32,
    /// The daemon's HTTP.
    pub http: HttpPolicy,
    /// Who is told, by name.
    pub notify: BTreeMap<String, NotifyPolicy>,
}

/// `[notify.NAME]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotifyPolicy {
    /// The URLs, by kind.
    pub places: BTreeMap<PlaceKind, SecretRef>,
    /// Signs the webhook.
    pub secret: Option<SecretRef>,
    /// Who writes to whom, by e-mail.
    pub email: Option<(Mailbox, Option<Mailbox>)>,
    /// PEM certificates to trust beside the system's.
    pub ca_file: Option<PathBuf>,
    /// Of what.
    pub on: BTreeSet<Event>,
}

/// The kinds of place that take notices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PlaceKind {
    /// JSON of our own.
    Webhook,
    /// Slack's incoming webhook.
    Slack,
    /// Discord's.
    Discord,
    /// Teams' workflow.
    Teams,
    /// A topic of ntfy.
    Ntfy,
    /// A dead-man's switch, healthchecks.io's way.
    Ping,
    /// Uptime Kuma's push monitor.
    Push,
    /// E-mail; its URL is that of the SMTP server.
    Email,
}

impl PlaceKind {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Webhook,
        Self::Slack,
        Self::Discord,
        Self::Teams,
        Self::Ntfy,
        Self::Ping,
        Self::Push,
        Self::Email,
    ];
    /// The key of its URL in the policy.
    pub const fn url_key(self) -> &'static str {
        match self {
            Self::Email => "smtp",
            other => other.name(),
        }
    }
    /// It is told of every slot, not of events.
    pub const fn is_ping(self) -> bool {
        matches!(self, Self::Ping | Self::Push)
    }
    /// Its key in the policy.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Webhook => "webhook",
            Self::Slack => "slack",
            Self::Discord => "discord",
            Self::Teams => "teams",
            Self::Ntfy => "ntfy",
            Self::Ping => "ping",
            Self::Push => "push",
            Self::Email => "email",
        }
    }
}

/// What notices are about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Event {
    /// A slot was not done.
    Failure,
    /// The first that was done after that.
    Recovery,
    /// What a drill proved.
    Drill,
    /// The newest point is older than the objective.
    Objective,
    /// A source that says nothing.
    Quiet,
}

impl Event {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Failure,
        Self::Recovery,
        Self::Drill,
        Self::Objective,
        Self::Quiet,
    ];
    /// Its name in the policy.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Failure => "failure",
            Self::Recovery => "recovery",
            Self::Drill => "drill",
            Self::Objective => "objective",
            Self::Quiet => "quiet",
        }
    }
}

/// `[http]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpPolicy {
    /// Address and port.
    pub listen: SocketAddr,
    /// For everything but health.
    pub token: Option<SecretRef>,
}

impl Default for HttpPolicy {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 9184)),
            token: None,
        }
    }
}

/// A reference to a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretRef {
    /// `{ env = "NAME" }`
    Env(String),
    /// `{ file = "/path" }`
    File(PathBuf),
    /// `{ credential = "name" }`: a file in `$CREDENTIALS_DIRECTORY`.
    Credential(String),
}

/// A key pair of a store; without it the standard AWS chain is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreCredentials {
    /// `access_key_id`
    pub access_key_id: SecretRef,
    /// `secret_access_key`
    pub secret_access_key: SecretRef,
}

/// Where the repository is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreUrl {
    /// `file:///path`
    Directory(PathBuf),
    /// `s3://bucket/prefix`
    S3 {
        /// Bucket.
        bucket: String,
        /// Prefix without slashes at its ends; may be empty.
        prefix: String,
    },
}

/// `[repository]`
#[derive(Clone, Debug)]
pub struct RepositoryPolicy {
    /// `url`
    pub url: StoreUrl,
    /// `endpoint`
    pub endpoint: Option<String>,
    /// `region`
    pub region: Option<String>,
    /// `path_style`; `None`: path style with an endpoint, virtual hosts without.
    pub path_style: Option<bool>,
    /// `ca_file`: PEM certificates to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// `max_rate`, bytes per second.
    pub max_rate: Option<u64>,
    /// `grace`: how long a tombstoned point can be had back.
    pub grace: Duration,
    /// `object_lock`
    pub object_lock: Option<ObjectLock>,
    /// `versions`: read the first version of every key.
    pub versions: bool,
    /// `access_key_id`, `secret_access_key`
    pub credentials: Option<StoreCredentials>,
}

impl RepositoryPolicy {
    /// Where it is, as a key of what the state directory keeps about it: known also when it can not be reached.
    pub fn place(&self) -> String {
        let endpoint = self.endpoint.as_deref().unwrap_or_default();
        match &self.url {
            StoreUrl::Directory(path) => format!("{endpoint}\nfile://{}", path.display()),
            StoreUrl::S3 { bucket, prefix } => format!("{endpoint}\ns3://{bucket}/{prefix}"),
        }
    }
}

impl RepositoryPolicy {
    /// Whether it is a directory of this host.
    pub fn is_directory(&self) -> bool {
        matches!(self.url, StoreUrl::Directory(_))
    }
}

/// `object_lock = { mode, days }`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObjectLock {
    /// How strict.
    pub mode: LockMode,
    /// Days from each PUT.
    pub days: u32,
}

/// `[encryption]`
#[derive(Clone, Debug, Default)]
pub struct EncryptionPolicy {
    /// age recipients (`age1…`), each tried to parse.
    pub recipients: Vec<String>,
    /// Where restores and drills run only.
    pub identity: Option<SecretRef>,
}

/// `[prune]`
#[derive(Clone, Debug)]
pub struct PrunePolicy {
    /// Cron, for the daemon.
    pub schedule: Option<String>,
    /// Its own credentials, which may delete.
    pub credentials: Option<StoreCredentials>,
    /// `versions = true`: removes the versions behind what it deletes.
    pub versions: bool,
}

/// `[verify]`
#[derive(Clone, Debug, Default)]
pub struct VerifyPolicy {
    /// Cron, for the daemon.
    pub schedule: Option<String>,
    /// Percent of objects per verify, 1–100.
    pub sample_percent: Option<u8>,
}

/// `[source.NAME]`
#[derive(Clone, Debug)]
pub struct SourcePolicy {
    /// Kind and its own settings.
    pub kind: SourceKind,
    /// Cron; without it only by hand.
    pub schedule: Option<String>,
    /// The source's zone (default: the policy's).
    pub timezone: Tz,
    /// Log reaches the store at least this often.
    pub follow: Option<Duration>,
    /// Name and rules of its retention; `None`: everything is kept.
    pub retention: Option<(String, RetentionRules)>,
    /// RPO and RTO objectives.
    pub objective: Objective,
    /// Deterministic spread of the start.
    pub jitter: Duration,
    /// What happens to missed slots.
    pub catch_up: CatchUp,
    /// Slots older than this are not caught up.
    pub max_age: Duration,
    /// A run longer than this fails.
    pub timeout: Duration,
    /// A run that gets no byte of a dump or file for this long fails.
    pub stall_timeout: Duration,
    /// Higher runs first.
    pub priority: i32,
    /// Packs older than this are written again; off by default.
    pub refresh: Option<Duration>,
    /// No runs start in these spans of the day, `HH:MM-HH:MM`.
    pub blackout: Vec<String>,
}

/// The kinds of source.
#[derive(Clone, Debug)]
pub enum SourceKind {
    /// `kind = "postgres"`
    Postgres(PostgresPolicy),
    /// `kind = "pocketbase"`
    PocketBase(PocketBasePolicy),
    /// `kind = "bucket"`
    Bucket {
        /// `s3://bucket/prefix`
        url: String,
    },
}

impl SourceKind {
    /// The name recorded in commits.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Postgres(p) => match p.method {
                PostgresMethod::Logical => "postgres-logical",
                PostgresMethod::Physical => "postgres-physical",
            },
            Self::PocketBase(_) => "pocketbase",
            Self::Bucket { .. } => "bucket",
        }
    }
}

/// `method`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PostgresMethod {
    /// Dumps.
    Logical,
    /// Base backups and WAL.
    Physical,
}

/// A Postgres source.
#[derive(Clone, Debug)]
pub struct PostgresPolicy {
    /// `method`, default logical.
    pub method: PostgresMethod,
    /// The connection URL, with its password: a secret.
    pub url: SecretRef,
    /// `databases`, with `*` as wildcard: of those that allow connections and are no templates. Empty: the URL's database, or all where it names none.
    pub databases: Vec<String>,
    /// Tables left out (data and definition), as `pg_dump --exclude-table` patterns.
    pub exclude: Vec<String>,
    /// Where the client programs are.
    pub client_dir: Option<PathBuf>,
    /// Parallel jobs of a restore.
    pub jobs: Option<u32>,
}

/// A PocketBase source.
#[derive(Clone, Debug)]
pub struct PocketBasePolicy {
    /// Here, or elsewhere.
    pub place: PocketBasePlace,
    /// auxiliary.db too.
    pub logs: bool,
    /// storage/ too.
    pub storage: bool,
    /// What its settings are encrypted with; for drills.
    pub settings_key: Option<SecretRef>,
}

/// Where a PocketBase is.
#[derive(Clone, Debug)]
pub enum PocketBasePlace {
    /// `path`: pb_data on this host.
    Local(PathBuf),
    /// `url` with `superuser = { identity = …, password = … }`, two references.
    Remote {
        /// Base URL of the server.
        url: String,
        /// E-mail of the superuser.
        identity: SecretRef,
        /// Its password.
        password: SecretRef,
    },
}

/// `objective`
#[derive(Clone, Copy, Debug, Default)]
pub struct Objective {
    /// Recovery point objective.
    pub rpo: Option<Duration>,
    /// Recovery time objective.
    pub rto: Option<Duration>,
}

/// `catch_up`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum CatchUp {
    /// Missed slots are made good by one run.
    #[default]
    Once,
    /// Missed slots are recorded and skipped.
    Skip,
}

/// `[drill.NAME]`
#[derive(Clone, Debug)]
pub struct DrillPolicy {
    /// Which sources.
    pub sources: Vec<SourceName>,
    /// Cron.
    pub schedule: Option<String>,
    /// Which point.
    pub select: Select,
    /// How far back a random point may lie, and how soon one is to expire that is drilled before.
    pub window: Option<Duration>,
    /// It fails when the newest point is older.
    pub max_age: Option<Duration>,
    /// How long the target of one that failed is kept.
    pub keep_failed: Duration,
    /// The most disk space that its target may take, bytes.
    pub budget: Option<u64>,
    /// The most memory that a process of a scratch server may take, bytes.
    pub memory: Option<u64>,
    /// The most time that it may take.
    pub timeout: Duration,
    /// Where server programs are.
    pub binaries: Option<PathBuf>,
    /// The URL of a Postgres server for drills, in place of a cluster of their own.
    pub server: Option<SecretRef>,
    /// Whether its target may be without a sandbox.
    pub sandbox: Sandboxing,
    /// The operator's own checks.
    pub checks: Vec<UserCheck>,
}

/// `sandbox`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Sandboxing {
    /// Where there can be none, nothing is drilled.
    #[default]
    Required,
    /// Where there can be none, the target runs without.
    Optional,
}

/// A check of the operator's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserCheck {
    /// The source that it is about.
    pub source: SourceName,
    /// Its name in the evidence.
    pub name: String,
    /// The most time that it may take.
    pub timeout: Duration,
    /// What is done.
    pub what: UserCheckKind,
}

/// What a check of the operator's own does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UserCheckKind {
    /// A query of one value, which must be the expected one; without one, true.
    Sql {
        /// Of this database; none: the only one.
        database: Option<String>,
        /// The query.
        query: String,
        /// The value, as text.
        expected: Option<String>,
    },
    /// A program that must end with 0.
    Command(Vec<String>),
    /// Path and query of a URL of the restored application, which must answer 200.
    Http(String),
}
