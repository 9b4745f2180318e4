//! A snapshot of some databases of one server, read as dumps.
//!
//! Units, in their order: `cluster.json`, `databases/NAME.dump` for each, `facts.json`, `globals.sql`. Each database has
//! a session that holds an exported snapshot; the dump program reads in it, and so do the facts, beside it.

use std::io::Cursor;
use std::sync::Arc;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use tokio::io::AsyncRead;
use tokio::task::JoinHandle;

use super::inspect::{self, Scope};
use super::{LogicalSettings, unit_of};
use crate::error::{Context as _, Error, Result};
use crate::source::postgres::client::{self, Clients, Pipe, Running};
use crate::source::postgres::connect::{Address, Session, instant, interrupted, value};
use crate::source::postgres::facts::{
    CLUSTER_UNIT, Cluster, DatabaseFacts, FACTS_UNIT, Facts, GLOBALS_UNIT, MARKER_SCHEMA, encode,
};
use crate::source::{Attributes, Capture, Captured, Context, Cut, UnitHead};
use crate::types::UnitName;

/// A database held at its snapshot.
struct Held {
    address: Address,
    session: Arc<Session>,
    snapshot: String,
    size: Option<u64>,
    /// An incomplete restore's marker stands in it.
    marked: bool,
}

/// Which unit comes next, or is being read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Cluster,
    Dump(usize),
    Facts,
    Globals,
}

/// The clocks of source and host, read together.
struct Clocks {
    source: DateTime<Utc>,
    host: DateTime<Utc>,
    spread_ms: u64,
}

/// A snapshot being read.
pub(super) struct LogicalCapture {
    context: Context,
    address: Address,
    clients: Clients,
    settings: LogicalSettings,
    cluster: Cluster,
    facts: Facts,
    held: Vec<Option<Held>>,
    clocks: Clocks,
    /// The unit given last.
    step: Option<Step>,
    child: Option<Running>,
    counting: Option<JoinHandle<Result<DatabaseFacts>>>,
    warnings: Vec<String>,
}

impl LogicalCapture {
    /// Fixes the snapshot of every database, one right after another.
    pub(super) async fn begin(
        context: Context,
        address: Address,
        session: Session,
        clients: Clients,
        settings: LogicalSettings,
    ) -> Result<Self> {
        let version = session.version().await?;
        let listed = super::chosen(&session, &address, &settings).await?;
        let mut databases = Vec::new();
        for listed in listed {
            let unit = unit_of(&listed.database.name)?;
            databases.push((unit, listed));
        }
        databases.sort_by(|a, b| a.0.cmp(&b.0));
        let mut held = Vec::new();
        // First all sessions, then all snapshots, so that connecting does not part the instants.
        for (_, listed) in &databases {
            if context.cancel.is_cancelled() {
                return Err(interrupted());
            }
            let address = address.with_database(&listed.database.name);
            let session = address.connect().await?;
            held.push((address, session, listed.size.and_then(|s| u64::try_from(s).ok())));
        }
        let mut snapshots = Vec::new();
        for (_, session, _) in &held {
            snapshots.push(snapshot(session, &settings).await?);
        }
        let clocks = read_clocks(&context, &session).await?;
        let mut cluster = describe(&session, version, &clients).await?;
        let mut warnings = super::left_out(&session, &address, &settings).await?;
        let mut ready = Vec::new();
        for (((unit, listed), (address, session, size)), (id, at)) in
            databases.into_iter().zip(held).zip(snapshots)
        {
            let mut database = listed.database;
            database.unit = unit.to_string();
            database.snapshot_at = at;
            database.roles = inspect::roles_of_database(&session).await?;
            let marked = is_marked(&session).await?;
            if marked {
                warnings.push(format!(
                    "database {:?} holds an incomplete restore (schema {MARKER_SCHEMA})",
                    database.name
                ));
            }
            cluster.databases.push(database);
            ready.push(Some(Held {
                address,
                session: Arc::new(session),
                snapshot: id,
                size,
                marked,
            }));
        }
        if !cluster.role_passwords {
            warnings.push(
                "the role may not read the passwords of roles: they are not in the backup, and restored roles have none"
                    .into(),
            );
        }
        if clients.major >= 17 && version < 170_000 {
            warnings.push(format!(
                "pg_dump {} was used for a server of version {}: the dump can only be restored into 17 or newer",
                clients.version, cluster.version_text
            ));
        }
        let facts = Facts {
            format: Facts::FORMAT,
            databases: Vec::new(),
            excluded: settings.exclude.clone(),
            warnings: Vec::new(),
        };
        Ok(Self {
            context,
            address,
            clients,
            settings,
            cluster,
            facts,
            held: ready,
            clocks,
            step: None,
            child: None,
            counting: None,
            warnings,
        })
    }

    fn start_dump(&mut self, n: usize) -> Result<Box<dyn AsyncRead + Send + Unpin>> {
        let held = self.held.get(n).and_then(Option::as_ref).ok_or_else(gone)?;
        let name = &self.cluster.databases.get(n).ok_or_else(gone)?.name;
        self.context.progress.phase(&format!("dumping {name}"), held.size);
        let mut arguments = vec![
            "--format=custom".to_owned(),
            // Uncompressed, so that what did not change is found again in the next dump.
            "--compress=0".to_owned(),
            "--no-password".to_owned(),
            format!("--snapshot={}", held.snapshot),
            format!("--lock-wait-timeout={}", self.settings.lock_wait.as_millis()),
        ];
        arguments.extend(
            self.settings
                .exclude
                .iter()
                // The definitions stay: views, keys and functions that name the table restore.
                .map(|p| format!("--exclude-table-data={p}")),
        );
        if held.marked {
            arguments.push(format!("--exclude-schema={MARKER_SCHEMA}"));
        }
        if self.cluster.standby {
            arguments.push("--no-unlogged-table-data".to_owned());
        }
        let cancel = &self.context.cancel;
        let (child, stdout, _) = client::start(
            &self.clients,
            "pg_dump",
            &arguments,
            &held.address,
            Pipe::Out,
            cancel,
        )?;
        let scope = Scope {
            exclude: self.settings.exclude.clone(),
            standby: self.cluster.standby,
            only_table: None,
        };
        let (session, name, cancel) = (held.session.clone(), name.clone(), cancel.clone());
        self.counting = Some(tokio::spawn(async move {
            inspect::facts(&session, &name, &scope, &cancel).await
        }));
        self.child = Some(child);
        Ok(Box::new(stdout.ok_or_else(gone)?))
    }

    fn start_globals(&mut self) -> Result<Box<dyn AsyncRead + Send + Unpin>> {
        let database = self.address.database.as_deref().unwrap_or("postgres");
        let mut arguments = vec![
            "--globals-only".to_owned(),
            "--no-password".to_owned(),
            format!(
                "--database={}",
                crate::source::postgres::quote::conninfo_database(database)
            ),
        ];
        if !self.cluster.role_passwords {
            arguments.push("--no-role-passwords".to_owned());
        }
        let cancel = &self.context.cancel;
        let (child, stdout, _) = client::start(
            &self.clients,
            "pg_dumpall",
            &arguments,
            // pg_dump and pg_restore do so by themselves.
            &self.address.with_option("-c statement_timeout=0"),
            Pipe::Out,
            cancel,
        )?;
        self.child = Some(child);
        Ok(Box::new(stdout.ok_or_else(gone)?))
    }

    /// Facts that can not be read end the snapshot, and a dump that begins after that says only so: the facts' error
    /// is the one to tell.
    async fn cause_of(&mut self, dump: Error) -> Error {
        let counting = self
            .counting
            .take_if(|c| c.is_finished() && dump.chain().contains("snapshot"));
        match counting {
            Some(counting) => AbortOnDrop(counting).join().await.err().unwrap_or(dump),
            None => dump,
        }
    }

    /// The dump has ended well: takes its facts over and lets its snapshot go.
    async fn end_dump(&mut self, n: usize) -> Result<()> {
        let counting = self.counting.take().ok_or_else(gone)?;
        let mut facts = AbortOnDrop(counting)
            .join()
            .await
            .map_err(|e| e.while_doing("the facts of the snapshot"))?;
        let held = self.held.get_mut(n).and_then(Option::take).ok_or_else(gone)?;
        // A sequence that is gone by now says nothing about the dump.
        if let Ok(values) = inspect::sequence_values(&held.session, &facts.sequences).await {
            for (sequence, value) in facts.sequences.iter_mut().zip(values) {
                sequence.after = (!sequence.excluded).then_some(value);
            }
        }
        self.facts.databases.push(facts);
        if let Some(session) = Arc::into_inner(held.session) {
            session.close().await;
        }
        Ok(())
    }
}

/// Joins a task, and ends it when the waiting ends first.
struct AbortOnDrop<T>(JoinHandle<Result<T>>);

impl<T> AbortOnDrop<T> {
    async fn join(mut self) -> Result<T> {
        (&mut self.0).await.doing(|| "a task ended early")?
    }
}

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn gone() -> Error {
    Error::failed("the capture's calls came in a wrong order")
}

/// Begins the transaction that everything of a database is read in.
async fn snapshot(session: &Session, settings: &LogicalSettings) -> Result<(String, DateTime<Utc>)> {
    let begin = format!(
        "SET lock_timeout = {}; BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY NOT DEFERRABLE",
        settings.lock_wait.as_millis()
    );
    session.run("begin the snapshot", &begin).await?;
    let sql = "SELECT pg_export_snapshot(), (extract(epoch FROM clock_timestamp()) * 1000000)::int8";
    let row = session.row("export the snapshot", sql, &[]).await?;
    Ok((value(&row, 0)?, instant(value(&row, 1)?)?))
}

async fn is_marked(session: &Session) -> Result<bool> {
    let sql = "SELECT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = $1)";
    value(
        &session.row("look for a marker", sql, &[&MARKER_SCHEMA]).await?,
        0,
    )
}

/// The closest of three readings.
async fn read_clocks(context: &Context, session: &Session) -> Result<Clocks> {
    let clock = &context.world.clock;
    let sql = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::int8";
    let mut best: Option<Clocks> = None;
    for _ in 0..3 {
        let (began, host) = (clock.since_boot(), clock.now());
        let row = session.row("read the server's clock", sql, &[]).await?;
        let took = clock.since_boot().saturating_sub(began);
        let spread_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX).max(1);
        if best.as_ref().is_none_or(|b| spread_ms < b.spread_ms) {
            best = Some(Clocks {
                source: instant(value(&row, 0)?)?,
                host,
                spread_ms,
            });
        }
    }
    best.ok_or_else(gone)
}

async fn describe(session: &Session, version: u32, clients: &Clients) -> Result<Cluster> {
    let sql = "SELECT current_setting('server_version'), pg_is_in_recovery()";
    let row = session.row("ask for the server's version", sql, &[]).await?;
    let standby: bool = value(&row, 1)?;
    let role_passwords = inspect::reads_passwords(session).await?;
    // Managed servers may refuse these two; they are for information.
    let position = if standby {
        "pg_last_wal_replay_lsn()"
    } else {
        "pg_current_wal_lsn()"
    };
    let lsn = optional(session, &format!("SELECT {position}::text")).await?;
    let system_identifier = optional(
        session,
        "SELECT system_identifier::text FROM pg_catalog.pg_control_system()",
    )
    .await?;
    Ok(Cluster {
        format: Cluster::FORMAT,
        version,
        version_text: value(&row, 0)?,
        dump_major: clients.major,
        dump_version: clients.version.clone(),
        system_identifier,
        lsn,
        standby,
        role_passwords,
        roles: inspect::roles(session, role_passwords).await?,
        memberships: inspect::memberships(session, version).await?,
        tablespaces: inspect::tablespaces(session).await?,
        databases: Vec::new(),
    })
}

pub(super) async fn optional(session: &Session, sql: &str) -> Result<Option<String>> {
    match session.row("ask for the server's position", sql, &[]).await {
        Ok(row) => value(&row, 0),
        Err(e) if session.is_closed() => Err(e),
        Err(_) => Ok(None),
    }
}

#[async_trait]
impl Capture for LogicalCapture {
    async fn next(&mut self) -> Result<Option<UnitHead>> {
        let dumps = self.cluster.databases.len();
        let step = match self.step {
            None => Step::Cluster,
            Some(Step::Cluster) if dumps > 0 => Step::Dump(0),
            Some(Step::Dump(n)) if n + 1 < dumps => Step::Dump(n + 1),
            Some(Step::Cluster | Step::Dump(_)) => Step::Facts,
            Some(Step::Facts) => Step::Globals,
            Some(Step::Globals) => return Ok(None),
        };
        self.step = Some(step);
        let (name, cut, size_hint) = match step {
            Step::Cluster => (UnitName::from_bytes(CLUSTER_UNIT.as_bytes())?, Cut::Whole, None),
            Step::Facts => (UnitName::from_bytes(FACTS_UNIT.as_bytes())?, Cut::Whole, None),
            Step::Globals => (UnitName::from_bytes(GLOBALS_UNIT.as_bytes())?, Cut::Whole, None),
            Step::Dump(n) => {
                let database = self.cluster.databases.get(n).ok_or_else(gone)?;
                let size = self.held.get(n).and_then(Option::as_ref).and_then(|h| h.size);
                (unit_of(&database.name)?, Cut::Stream, size)
            }
        };
        let attributes = Attributes {
            mode: Some(0o600),
            modified_ms: None,
        };
        Ok(Some(UnitHead {
            name,
            cut,
            attributes,
            size_hint,
            stamp: None,
        }))
    }

    async fn open(&mut self) -> Result<Box<dyn AsyncRead + Send + Unpin>> {
        match self.step.ok_or_else(gone)? {
            Step::Cluster => Ok(Box::new(Cursor::new(encode(CLUSTER_UNIT, &self.cluster)?))),
            Step::Dump(n) => self.start_dump(n),
            Step::Facts => {
                self.facts.warnings.clone_from(&self.warnings);
                Ok(Box::new(Cursor::new(encode(FACTS_UNIT, &self.facts)?)))
            }
            Step::Globals => self.start_globals(),
        }
    }

    async fn close(&mut self) -> Result<()> {
        if let Some(child) = self.child.take() {
            let doing = match self.step {
                Some(Step::Dump(n)) => self.cluster.databases.get(n).map(|d| d.name.clone()),
                _ => None,
            };
            let told = match child.finish().await {
                Ok(told) => told,
                Err(e) => {
                    let e = self.cause_of(e).await;
                    return Err(match &doing {
                        Some(name) => e.while_doing(format_args!("database {name:?}")),
                        None => e.while_doing(GLOBALS_UNIT),
                    });
                }
            };
            self.warnings.extend(told.into_iter().map(|line| match &doing {
                Some(name) => format!("database {name:?}: {line}"),
                None => line,
            }));
        }
        if let Some(Step::Dump(n)) = self.step {
            let name = self
                .cluster
                .databases
                .get(n)
                .map(|d| d.name.clone())
                .unwrap_or_default();
            self.end_dump(n)
                .await
                .map_err(|e| e.while_doing(format_args!("database {name:?}")))?;
        }
        Ok(())
    }

    async fn finish(&mut self) -> Result<Captured> {
        if self.facts.databases.len() != self.cluster.databases.len() || self.held.iter().any(Option::is_some)
        {
            return Err(Error::failed("not every database was dumped"));
        }
        let nowhere = self.settings.exclude.iter().filter(|pattern| {
            let databases = &self.facts.databases;
            databases.iter().all(|d| d.unmatched.contains(pattern))
        });
        self.warnings
            .extend(nowhere.map(|p| format!("exclude: {p:?} matches no table")));
        // Restoring to `at` must never give anything later than it: the last snapshot decides. How much older the
        // first one is stands in the facts: no server shares a snapshot between databases.
        let snapshots = || self.cluster.databases.iter().map(|d| d.snapshot_at);
        let at = snapshots().max().unwrap_or(self.clocks.source);
        let spread = at - snapshots().min().unwrap_or(at);
        Ok(Captured {
            at,
            source_clock: self.clocks.source,
            host_clock: self.clocks.host,
            clock_spread_ms: self.clocks.spread_ms,
            facts: serde_json::json!({
                "server_version": self.cluster.version_text,
                "server_version_num": self.cluster.version,
                "client_version": self.cluster.dump_version,
                "system_identifier": self.cluster.system_identifier,
                "lsn": self.cluster.lsn,
                "standby": self.cluster.standby,
                "databases": self.cluster.databases.len(),
                "snapshot_spread_ms": spread.num_microseconds().unwrap_or(i64::MAX).max(0).unsigned_abs().div_ceil(1000),
            }),
            warnings: std::mem::take(&mut self.warnings),
        })
    }

    async fn cleanup(&mut self) {
        self.child = None;
        if let Some(counting) = self.counting.take() {
            for held in self.held.iter().flatten() {
                if !counting.is_finished() {
                    held.session.stop().await;
                }
            }
            counting.abort();
        }
        self.held.clear();
    }
}
