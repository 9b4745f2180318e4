//! A cluster of a drill's own: initialised in a private directory, reached by a Unix socket there and in no other way,
//! with nothing in its configuration that could archive, replicate or load what the original did.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};
use tokio::process::{Child, Command};
use tokio_postgres::SimpleQueryMessage;

use super::client::{self, Clients};
use super::connect::{Address, Session, value};
use crate::drill::{Check, Level, Outcome};
use crate::error::{Context as _, Error, Kind, Result};
use crate::secret::SecretText;
use crate::source::scratch::{ScratchPlan, ScratchTarget};
use crate::source::{Context, Target};

/// A server that takes longer to begin, or to end, does not.
const PATIENCE: Duration = Duration::from_secs(90);
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// The number in the socket's name; the directory is the cluster's own.
const PORT: u16 = 5432;
/// What is kept of a server's log for a message.
const LOG_TOLD_BYTES: usize = 2000;
/// Problems of one kind that are named.
const NAMED: usize = 20;
/// What a cluster is told at its start: nobody comes in from outside, nothing goes out, and it may forget everything.
const SETTINGS: [&str; 24] = [
    "listen_addresses=",
    "unix_socket_permissions=0700",
    "archive_mode=off",
    "restore_command=",
    "primary_conninfo=",
    "shared_preload_libraries=",
    "session_preload_libraries=",
    "local_preload_libraries=",
    "wal_level=minimal",
    "max_wal_senders=0",
    "max_logical_replication_workers=0",
    "fsync=off",
    "synchronous_commit=off",
    "full_page_writes=off",
    "max_wal_size=2GB",
    "shared_buffers=64MB",
    "maintenance_work_mem=64MB",
    "max_connections=20",
    "autovacuum=off",
    "max_prepared_transactions=0",
    "logging_collector=off",
    "log_destination=stderr",
    "ssl=off",
    "jit=off",
];

/// Server programs of one version.
struct Server {
    major: u32,
    version: String,
    directory: PathBuf,
}

/// The server programs of a major version.
///
/// # Errors
/// There are none: names the package.
async fn find(binaries: Option<&Path>, major: u32) -> Result<Server> {
    let candidates = match binaries {
        Some(directory) => vec![directory.to_owned(), directory.join("bin")],
        None => client::candidates(),
    };
    let mut others = Vec::new();
    for directory in candidates {
        if !directory.join("initdb").is_file() {
            continue;
        }
        let mut command = Command::new(directory.join("postgres"));
        command
            .arg("--version")
            .env_clear()
            .env("LC_ALL", "C")
            .kill_on_drop(true);
        let Ok(Ok(output)) = tokio::time::timeout(PATIENCE, command.output()).await else {
            continue;
        };
        match client::parse_version(&String::from_utf8_lossy(&output.stdout)) {
            Some((found, version)) if found == major => {
                return Ok(Server {
                    major,
                    version,
                    directory,
                });
            }
            Some((_, version)) => others.push(format!("{version} in {}", directory.display())),
            None => {}
        }
    }
    let have = match others.as_slice() {
        [] => "there are none here".to_owned(),
        some => format!("there are {}", some.join(", ")),
    };
    Err(Error::new(
        Kind::DrillCouldNotRun,
        format!("no PostgreSQL {major} server programs to restore into: {have}"),
    )
    .hint(format!(
        "Install postgresql-{major} (Debian, Ubuntu) or postgresql{major}-server (RPM), or set binaries in the drill."
    )))
}

/// A cluster that runs.
pub(super) struct PostgresScratch {
    server: Server,
    clients: Vec<Clients>,
    child: Child,
    address: Address,
    url: SecretText,
    log: PathBuf,
    databases: Vec<String>,
    apart: String,
}

impl PostgresScratch {
    /// Makes and starts a cluster of a major version; `databases` are those that it is to get.
    ///
    /// # Errors
    /// No such programs, or they fail; what they said is in the message.
    pub(super) async fn start(
        context: &Context,
        plan: ScratchPlan,
        major: u32,
        databases: Vec<String>,
        clients: Vec<Clients>,
    ) -> Result<Self> {
        let server = find(plan.binaries.as_deref(), major).await?;
        let (data, log) = (plan.directory.join("data"), plan.directory.join("server.log"));
        let mut initdb = command(&server, "initdb", &plan);
        initdb
            .arg("--pgdata")
            .arg(&data)
            .args(["--username=postgres", "--auth-local=trust", "--auth-host=reject"])
            .args(["--encoding=UTF8", "--locale=C", "--no-sync"])
            .stdin(Stdio::null());
        let made = initdb.output();
        let made = tokio::select! {
            biased;
            () = context.cancel.cancelled() => return Err(super::connect::interrupted()),
            made = made => made.doing(|| "initdb can not be started")?,
        };
        if !made.status.success() {
            let said = String::from_utf8_lossy(&made.stderr).trim().to_owned();
            return Err(Error::new(Kind::DrillCouldNotRun, "initdb failed").because(said));
        }
        let written = std::fs::File::create(&log).doing(|| format!("can not write {}", log.display()))?;
        let mut postgres = command(&server, "postgres", &plan);
        postgres.arg("-D").arg(&data).arg("-k").arg(&plan.directory);
        for setting in SETTINGS {
            postgres.arg("-c").arg(setting);
        }
        let child = postgres
            .arg("-c")
            .arg(format!("port={PORT}"))
            .stdin(Stdio::null())
            .stdout(written.try_clone().doing(|| "a file can not be opened twice")?)
            .stderr(written)
            .spawn()
            .doing(|| "postgres can not be started")?;
        if let (Some(memory), Some(pid)) = (
            plan.memory,
            child.id().and_then(|id| Pid::from_raw(id.cast_signed())),
        ) {
            let limit = Rlimit {
                current: Some(memory),
                maximum: Some(memory),
            };
            prlimit(Some(pid), Resource::As, limit).doing(|| "the memory of postgres can not be limited")?;
        }
        let directory: String =
            url::form_urlencoded::byte_serialize(plan.directory.as_os_str().as_encoded_bytes()).collect();
        let url = SecretText::new(format!(
            "postgres://postgres@/?host={}&port={PORT}",
            directory.replace('+', "%20")
        ));
        let apart = match plan.run_as {
            Some((user, _)) => format!("as user {user}"),
            None => "as our own user".to_owned(),
        };
        let mut scratch = Self {
            server,
            clients,
            child,
            address: Address::parse(&url)?,
            url,
            log,
            databases,
            apart,
        };
        scratch.ready(context).await?;
        Ok(scratch)
    }

    async fn ready(&mut self, context: &Context) -> Result<()> {
        let begun = context.world.clock.since_boot();
        loop {
            if context.cancel.is_cancelled() {
                return Err(super::connect::interrupted());
            }
            if let Some(status) = self.child.try_wait().doing(|| "a child's end can not be told")? {
                return Err(Error::new(
                    Kind::DrillCouldNotRun,
                    format!("the scratch server ended at once ({status})"),
                )
                .because(self.told()));
            }
            match self.address.connect().await {
                Ok(session) => {
                    session.close().await;
                    return Ok(());
                }
                Err(e) if context.world.clock.since_boot() - begun > PATIENCE => {
                    return Err(
                        Error::new(Kind::DrillCouldNotRun, "the scratch server does not answer")
                            .because(format!("{}; its log: {}", e.chain(), self.told())),
                    );
                }
                Err(_) => context.world.clock.sleep(LOOK_AGAIN).await,
            }
        }
    }

    /// The end of the server's log.
    fn told(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let from = text.len().saturating_sub(LOG_TOLD_BYTES);
        String::from_utf8_lossy(&text[from..]).trim().to_owned()
    }

    async fn session(&self, database: &str) -> Result<Session> {
        self.address.with_database(database).connect().await
    }

    /// amcheck of every index and every table of a database: Postgres' documentation, appendix F, "amcheck".
    async fn amcheck(&self, context: &Context, database: &str, checks: &mut Vec<Check>) -> Result<()> {
        let name = format!("amcheck of {database}");
        let session = self.session(database).await?;
        let install = "CREATE EXTENSION IF NOT EXISTS amcheck WITH SCHEMA pg_catalog";
        if let Err(e) = session.run("install amcheck", install).await {
            let why = format!(
                "{}; install the contrib package of PostgreSQL {}",
                e.chain(),
                self.server.major
            );
            checks.push(Check::could_not_run(name, Some(Level::Application), why));
            return Ok(());
        }
        let sql = "SELECT c.oid::int8, n.nspname::text, c.relname::text FROM pg_class c
             JOIN pg_index i ON i.indexrelid = c.oid JOIN pg_namespace n ON n.oid = c.relnamespace
             JOIN pg_am a ON a.oid = c.relam
             WHERE a.amname = 'btree' AND c.relkind = 'i' AND i.indisvalid AND i.indisready AND c.relpersistence <> 't'";
        let mut problems = Vec::new();
        let rows = session
            .rows_unless(&context.cancel, "list the indexes", sql)
            .await?;
        let indexes = rows.len();
        for row in rows {
            let (oid, schema, index): (i64, String, String) =
                (value(&row, 0)?, value(&row, 1)?, value(&row, 2)?);
            let sql = format!("SELECT bt_index_check({oid}::oid::regclass, true)");
            match session.rows_unless(&context.cancel, "check an index", &sql).await {
                Ok(_) => {}
                Err(e) if e.kind() == Kind::Interrupted => return Err(e),
                Err(e) => problems.push(format!("{schema}.{index}: {}", e.chain())),
            }
        }
        let mut tables = 0;
        if self.server.major >= 14 {
            let sql = "SELECT n.nspname::text, c.relname::text, v.msg FROM pg_class c
                 JOIN pg_namespace n ON n.oid = c.relnamespace CROSS JOIN LATERAL verify_heapam(c.oid) v
                 WHERE c.relkind IN ('r', 'm', 't') AND c.relpersistence <> 't'";
            match session
                .rows_unless(&context.cancel, "check the tables", sql)
                .await
            {
                Ok(rows) => {
                    for row in rows {
                        let (schema, table, said): (String, String, String) =
                            (value(&row, 0)?, value(&row, 1)?, value(&row, 2)?);
                        problems.push(format!("{schema}.{table}: {said}"));
                    }
                }
                Err(e) if e.kind() == Kind::Interrupted => return Err(e),
                Err(e) => problems.push(e.chain()),
            }
            let sql =
                "SELECT count(*) FROM pg_class WHERE relkind IN ('r', 'm', 't') AND relpersistence <> 't'";
            tables = value::<i64>(&session.row("count the tables", sql, &[]).await?, 0)?;
        }
        session.close().await;
        checks.push(judged(
            name,
            &problems,
            format!("{indexes} indexes and {tables} tables are sound"),
        ));
        Ok(())
    }

    /// Everything can be read back: a dump that goes nowhere.
    async fn dump(&self, context: &Context, database: &str, checks: &mut Vec<Check>) -> Result<()> {
        let name = format!("pg_dump of {database}");
        let clients = match client::for_dump(&self.clients, self.server.major) {
            Ok(clients) => clients,
            Err(e) => {
                checks.push(Check::could_not_run(name, Some(Level::Application), e.chain()));
                return Ok(());
            }
        };
        let arguments = ["--format=plain", "--file=/dev/null", "--no-password"].map(str::to_owned);
        let address = self.address.with_database(database);
        let (running, ..) = client::start(
            clients,
            "pg_dump",
            &arguments,
            &address,
            client::Pipe::In,
            &context.cancel,
        )?;
        match running.finish().await {
            Ok(_) => checks.push(Check::passed(name, Level::Application, "everything is read")),
            Err(e) if e.kind() == Kind::Interrupted => return Err(e),
            Err(e) => checks.push(Check::failed(
                name,
                Level::Application,
                "everything is read",
                e.chain(),
            )),
        }
        Ok(())
    }
}

fn judged(name: String, problems: &[String], sound: String) -> Check {
    match problems {
        [] => Check::passed(name, Level::Application, sound),
        some => {
            let more = some.len().saturating_sub(NAMED);
            let mut told = some[..some.len().min(NAMED)].join("; ");
            if more > 0 {
                told += &format!("; and {more} more");
            }
            Check {
                result: Outcome::Failed,
                ..Check::failed(name, Level::Application, sound, told)
            }
        }
    }
}

/// A program with nothing of ours in its environment.
fn command(server: &Server, program: &str, plan: &ScratchPlan) -> Command {
    let mut command = Command::new(server.directory.join(program));
    command
        .env_clear()
        .envs([
            ("LC_ALL", "C"),
            ("TZ", "UTC"),
            ("PATH", "/usr/local/bin:/usr/bin:/bin"),
        ])
        .env("HOME", "/nonexistent")
        .current_dir(&plan.directory)
        .kill_on_drop(true);
    if let Some((user, group)) = plan.run_as {
        command.uid(user).gid(group);
    }
    command
}

#[async_trait]
impl ScratchTarget for PostgresScratch {
    fn target(&self) -> Target {
        Target::Postgres(self.url.clone())
    }

    fn description(&self) -> String {
        format!(
            "PostgreSQL {}, a cluster of the drill's own, {}: Unix socket only, no archiving, no replication, no preloaded libraries",
            self.server.version, self.apart
        )
    }

    async fn prove(&mut self, context: &Context) -> Result<Vec<Check>> {
        let mut checks = Vec::new();
        for database in &self.databases {
            // Read first: what amcheck adds is none of the backup's.
            self.dump(context, database, &mut checks).await?;
            self.amcheck(context, database, &mut checks).await?;
        }
        Ok(checks)
    }

    async fn query(&mut self, database: Option<&str>, sql: &str) -> Result<Option<String>> {
        let database = match (database, self.databases.as_slice()) {
            (Some(name), _) => name.to_owned(),
            (None, [only]) => only.clone(),
            (None, all) => {
                return Err(Error::usage(format!(
                    "there are {} databases, and the check names none",
                    all.len()
                ))
                .hint("Set database in the check."));
            }
        };
        let session = self.session(&database).await?;
        // As the operator's own programs see it.
        session
            .run("set the session up", "RESET search_path; RESET row_security")
            .await?;
        let answer = session.simple_query(sql).await;
        let messages = answer.map_err(|e| session.failed("carry out the query", &e))?;
        session.close().await;
        Ok(messages
            .into_iter()
            .find_map(|message| match message {
                SimpleQueryMessage::Row(row) => Some(row.get(0).map(str::to_owned)),
                _ => None,
            })
            .flatten())
    }

    fn url(&self) -> Option<String> {
        None
    }

    fn environment(&self) -> Vec<(String, String)> {
        let mut list: Vec<(String, String)> = self
            .address
            .environment()
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect();
        list.retain(|(name, _)| name != "PGDATABASE");
        if let [only] = self.databases.as_slice() {
            list.push(("PGDATABASE".to_owned(), only.clone()));
        }
        list
    }

    async fn end(&mut self) -> Result<()> {
        let Some(pid) = self.child.id().and_then(|id| Pid::from_raw(id.cast_signed())) else {
            return Ok(());
        };
        // Immediate: nothing of it is kept that would have to be written. (Postgres' documentation, section 19.5.)
        match kill_process(pid, Signal::QUIT) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(e) => return Err(Error::failed("the scratch server can not be ended").because(e)),
        }
        if let Ok(ended) = tokio::time::timeout(PATIENCE, self.child.wait()).await {
            return ended.map(drop).doing(|| "a child's end can not be told");
        }
        self.child
            .kill()
            .await
            .doing(|| "the scratch server can not be killed")
    }
}
