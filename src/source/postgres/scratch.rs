//! A cluster of a drill's own: initialised in a private directory, reached by a Unix socket there and in no other way,
//! with nothing in its configuration that could archive, replicate or load what the original did.

mod checks;
mod given;
mod programs;

use std::os::unix::fs::FileTypeExt as _;
use std::time::Duration;

use async_trait::async_trait;
use tokio_postgres::SimpleQueryMessage;

use self::given::Given;
use self::programs::{Server, installation};
pub(super) use self::programs::{find, places};
use super::client::{self, Clients};
use super::connect::{Address, Session};
use super::logical::proof::Recorded;
use crate::drill::{Check, Level};
use crate::error::{Context as _, Error, Kind, Result};
use crate::sandbox::{How, Process, Program, Sandbox};
use crate::secret::SecretText;
use crate::source::scratch::{ScratchPlan, ScratchTarget, last_of, not_one};
use crate::source::{Context, Target};

/// A server that takes longer to begin, or to end, does not.
const PATIENCE: Duration = Duration::from_secs(90);
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// The number in the socket's name; the directory is the cluster's own.
const PORT: u16 = 5432;
/// What is kept of a server's log for a message.
const LOG_TOLD_BYTES: u64 = 2000;
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

/// Whether a server that is given to drills can be one, as far as looking tells; gives its version.
///
/// # Errors
/// As a drill that takes it.
pub(super) async fn examine_given(
    url: &SecretText,
    major: Option<u32>,
    backed_up: Option<&str>,
    databases: &[String],
) -> Result<String> {
    Given::examine(&given_address(url)?, major, backed_up, databases).await
}

fn given_address(url: &SecretText) -> Result<Address> {
    let address = Address::parse(url)?;
    if let Some(database) = address.database() {
        return Err(Error::new(
            Kind::DrillCouldNotRun,
            format!("the URL of the drill's server names a database, {database}"),
        )
        .hint("Write it without one: databases are restored under their own names."));
    }
    Ok(address)
}

/// A cluster that runs.
pub(super) struct PostgresScratch {
    server: Server,
    clients: Vec<Clients>,
    sandbox: Sandbox,
    /// None: the server was given.
    postgres: Option<Process>,
    given: Option<Given>,
    address: Address,
    url: SecretText,
    plan: ScratchPlan,
    databases: Vec<String>,
    recorded: Option<Recorded>,
    unlooked: Vec<String>,
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
        backed_up: Option<&str>,
        clients: Vec<Clients>,
    ) -> Result<Self> {
        if let Some(url) = plan.server.clone() {
            return Self::at(plan, url, major, databases, backed_up, clients).await;
        }
        let server = find(plan.binaries.as_deref(), major).await?;
        let mut sandbox = plan.sandbox(installation(&server.directory).await).await?;
        let home = sandbox.home().display().to_string();
        let data = format!("{home}/data");
        let options = ["--username=postgres", "--auth-local=trust", "--auth-host=reject"];
        let more = ["--encoding=UTF8", "--locale=C", "--no-sync"];
        let mut initdb = program(&server, "initdb", &home);
        initdb.heard = true;
        initdb.arguments = vec!["--pgdata".to_owned(), data.clone()];
        initdb
            .arguments
            .extend(options.into_iter().chain(more).map(str::to_owned));
        let made = ended(context, sandbox.start(initdb).await?).await?;
        if !made.success() {
            return Err(
                Error::new(Kind::DrillCouldNotRun, format!("initdb failed: {}", made.text()))
                    .because(made.said),
            );
        }
        let mut postgres = program(&server, "postgres", &home);
        postgres.memory = plan.memory;
        postgres.arguments = ["-D", &data, "-k", &home].map(str::to_owned).to_vec();
        let port = format!("port={PORT}");
        for setting in SETTINGS.into_iter().chain([port.as_str()]) {
            postgres.arguments.extend(["-c".to_owned(), setting.to_owned()]);
        }
        let postgres = sandbox.start(postgres).await?;
        let directory: String =
            url::form_urlencoded::byte_serialize(plan.doors.as_os_str().as_encoded_bytes()).collect();
        let url = SecretText::new(format!(
            "postgres://postgres@/?host={}&port={PORT}",
            directory.replace('+', "%20")
        ));
        let mut scratch = Self {
            server,
            clients,
            sandbox,
            postgres: Some(postgres),
            given: None,
            address: Address::parse(&url)?,
            url,
            plan,
            databases,
            recorded: None,
            unlooked: Vec::new(),
        };
        scratch.ready(context).await?;
        Ok(scratch)
    }

    /// What the restored cluster is compared with.
    pub(super) fn compare_with(&mut self, recorded: Recorded) {
        self.recorded = Some(recorded);
    }

    /// Takes a server that was given.
    async fn at(
        plan: ScratchPlan,
        url: SecretText,
        major: u32,
        databases: Vec<String>,
        backed_up: Option<&str>,
        clients: Vec<Clients>,
    ) -> Result<Self> {
        let address = given_address(&url)?;
        let programs = client::for_dump(&clients, major)?;
        let sandbox = plan.sandbox(Vec::new()).await?;
        let given = Given::take(&address, major, backed_up, &databases).await?;
        Ok(Self {
            server: Server {
                major,
                version: given.version.clone(),
                directory: programs.directory().to_owned(),
            },
            clients,
            sandbox,
            postgres: None,
            given: Some(given),
            address,
            url,
            plan,
            databases,
            recorded: None,
            unlooked: Vec::new(),
        })
    }

    async fn ready(&mut self, context: &Context) -> Result<()> {
        let begun = context.world.clock.since_boot();
        let mut linked = false;
        loop {
            if context.cancel.is_cancelled() {
                return Err(super::connect::interrupted());
            }
            if let Some(postgres) = &mut self.postgres
                && let Some(how) = postgres.try_ended()?
            {
                return Err(Error::new(
                    Kind::DrillCouldNotRun,
                    format!("the scratch server ended at once: {}", how.text()),
                )
                .because(self.told()));
            }
            linked = linked || self.link()?;
            let answer = if linked {
                self.address.connect().await.map_err(|e| e.chain())
            } else {
                Err("it has no socket".to_owned())
            };
            match answer {
                Ok(session) => {
                    session.close().await;
                    return Ok(());
                }
                Err(e) if context.world.clock.since_boot() - begun > PATIENCE => {
                    return Err(
                        Error::new(Kind::DrillCouldNotRun, "the scratch server does not answer")
                            .because(format!("{e}; its log: {}", self.told())),
                    );
                }
                Err(_) => context.world.clock.sleep(LOOK_AGAIN).await,
            }
        }
    }

    /// Has the server's socket in a directory of ours, before anything of the backup runs in it: code that is restored could
    /// put another one, or a link to another server, in its place.
    fn link(&self) -> Result<bool> {
        let name = format!(".s.PGSQL.{PORT}");
        let socket = self.plan.home.join(&name);
        match std::fs::symlink_metadata(&socket) {
            Ok(found) if found.file_type().is_socket() => {}
            Ok(_) => return Err(Error::failed(format!("{} is no socket", socket.display()))),
            Err(_) => return Ok(false),
        }
        std::fs::hard_link(&socket, self.plan.doors.join(&name))
            .doing(|| format!("can not link {}", socket.display()))?;
        Ok(true)
    }

    /// The end of the server's log.
    fn told(&self) -> String {
        last_of(&self.plan.log(), LOG_TOLD_BYTES)
    }

    async fn session(&self, database: &str) -> Result<Session> {
        self.address.with_database(database).connect().await
    }
}

/// Waits for the end of a program that answers soon.
async fn ended(context: &Context, mut process: Process) -> Result<How> {
    tokio::select! {
        biased;
        () = context.cancel.cancelled() => Err(super::connect::interrupted()),
        how = process.ended() => how,
    }
}

/// A program with nothing of ours in its environment.
fn program(server: &Server, name: &str, home: &str) -> Program {
    let environment = [
        ("LC_ALL", "C"),
        ("TZ", "UTC"),
        ("PATH", "/usr/local/bin:/usr/bin:/bin"),
        ("HOME", "/nonexistent"),
    ];
    Program {
        program: server.directory.join(name).display().to_string(),
        environment: environment
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .to_vec(),
        directory: home.to_owned(),
        ..Program::default()
    }
}

#[async_trait]
impl ScratchTarget for PostgresScratch {
    fn target(&self) -> Target {
        Target::Postgres(self.url.clone())
    }

    fn description(&self) -> String {
        if self.given.is_some() {
            return format!(
                "PostgreSQL {} at {}, a server that was given for drills: the databases and roles of the drill are dropped afterwards",
                self.server.version,
                self.address.shown()
            );
        }
        format!(
            "PostgreSQL {}, a cluster of the drill's own {}: Unix socket only, no archiving, no replication, no preloaded libraries",
            self.server.version,
            self.plan.apart_text()
        )
    }

    async fn examine(&mut self, _context: &Context) -> Result<Vec<Check>> {
        let Some(recorded) = &self.recorded else {
            return Ok(Vec::new());
        };
        let (schemas, roles) = recorded.differences(&self.address).await?;
        let mut compared = vec![("roles", "as recorded", roles)];
        if recorded.knows_schemas() {
            compared.insert(0, ("schema", "as recorded", schemas));
        } else {
            self.unlooked
                .push("the schema: the point was made before its digest was recorded".to_owned());
        }
        Ok(compared
            .into_iter()
            .map(|(name, sound, problems)| {
                checks::judged(name.to_owned(), Level::Facts, &problems, sound.to_owned())
            })
            .collect())
    }

    async fn run(&mut self, context: &Context) -> Result<Vec<Check>> {
        let mut checks = Vec::new();
        for database in self.databases.clone() {
            // Read first: what amcheck adds is none of the backup's.
            self.dump(context, &database, &mut checks).await?;
            self.views(context, &database, &mut checks).await?;
            self.collations(context, &database, &mut checks).await?;
            self.amcheck(context, &database, &mut checks).await?;
        }
        Ok(checks)
    }

    fn unlooked(&self) -> Vec<String> {
        self.unlooked.clone()
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
        let (mut rows, mut statements) = (Vec::new(), 0);
        for message in messages {
            match message {
                SimpleQueryMessage::Row(row) => rows.push(row),
                SimpleQueryMessage::CommandComplete(_) => statements += 1,
                _ => {}
            }
        }
        match rows.as_slice() {
            _ if statements > 1 => Err(not_one(&format!("{statements} statements"))),
            [] => Ok(None),
            [row] if row.len() == 1 => Ok(row.get(0).map(str::to_owned)),
            [row] => Err(not_one(&format!("{} columns", row.len()))),
            rows => Err(not_one(&format!("{} rows", rows.len()))),
        }
    }

    fn http(&self) -> Result<Option<(String, reqwest::Client)>> {
        Ok(None)
    }

    fn environment(&self) -> Vec<(String, String)> {
        let directory = self.server.directory.display();
        let path = format!("{directory}:/usr/local/bin:/usr/bin:/bin");
        let mut list = vec![("PATH", path)];
        if self.given.is_some() {
            list.extend(self.address.environment());
            list.retain(|(name, _)| *name != "PGDATABASE");
        } else {
            list.extend([
                ("PGHOST", self.sandbox.home().display().to_string()),
                ("PGPORT", PORT.to_string()),
                ("PGUSER", "postgres".to_owned()),
            ]);
        }
        if let [only] = self.databases.as_slice() {
            list.push(("PGDATABASE", only.clone()));
        }
        list.into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect()
    }

    fn sandbox(&mut self) -> &mut Sandbox {
        &mut self.sandbox
    }

    async fn end(self: Box<Self>) -> Result<()> {
        let returned = match self.given {
            Some(given) => given.give_back().await,
            None => Ok(()),
        };
        // What it has not written is never wanted, and its shared memory goes with the sandbox.
        self.sandbox.end().await.and(returned)
    }
}
