//! A restored pb_data that PocketBase itself serves, in a sandbox of its own. Before it boots, whatever in its settings
//! could reach anything is turned off: a copy that mails users or prunes the original's backups would be a disaster.

mod data;
mod quiet;

use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::lchown;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

use self::data::NAMED;
use self::quiet::Access;
use crate::drill::{Check, Level, Outcome};
use crate::error::{Context as _, Error, Kind, Result};
use crate::sandbox::{Process, Program, Sandbox};
use crate::source::scratch::{ScratchPlan, ScratchTarget, last_of};
use crate::source::{Context, Target};
use crate::types::some_of;

/// One that takes longer to begin does not.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// An answer may take so long.
const ANSWER: Duration = Duration::from_secs(60);
/// Its port, where it has a network of its own.
const PORT: u16 = 8090;
const INSTALL: &str = "Install the version that serves the original in a directory of PATH, or set binaries in the drill to its directory.";
/// What is kept of its log for a message.
const LOG_TOLD_BYTES: u64 = 2000;

/// A restored pb_data.
pub(super) struct PocketBaseScratch {
    plan: ScratchPlan,
    data: PathBuf,
    program: Option<PathBuf>,
    sandbox: Sandbox,
    running: Option<Running>,
    version: Option<String>,
    /// The databases are sound, so that it may be booted.
    sound: bool,
    unlooked: Vec<String>,
    /// Ends queries with the drill.
    cancel: Option<CancellationToken>,
}

struct Running {
    process: Process,
    url: String,
    client: reqwest::Client,
}

impl PocketBaseScratch {
    /// Makes the sandbox; PocketBase is booted when the data is there.
    ///
    /// # Errors
    /// It can not be made.
    pub(super) async fn start(plan: ScratchPlan) -> Result<Self> {
        let program = program(plan.binaries.as_deref())
            .map(|path| {
                path.canonicalize()
                    .doing(|| format!("can not read {}", path.display()))
            })
            .transpose()?;
        let sandbox = plan.sandbox(program.iter().cloned().collect()).await?;
        Ok(Self {
            data: plan.home.join("pb_data"),
            plan,
            program,
            sandbox,
            running: None,
            version: None,
            sound: false,
            unlooked: Vec::new(),
            cancel: None,
        })
    }

    fn order(&self, program: &Path, arguments: Vec<String>) -> Program {
        let mut environment = vec![
            ("HOME".to_owned(), "/nonexistent".to_owned()),
            // No program such as sendmail is found, and no proxy leads out.
            ("PATH".to_owned(), "/nonexistent".to_owned()),
        ];
        if let Some(memory) = self.plan.memory {
            // It reserves more addresses than it uses memory, so a limit of the system's would be none of this.
            environment.push(("GOMEMLIMIT".to_owned(), memory.to_string()));
        }
        Program {
            program: program.display().to_string(),
            arguments,
            environment,
            directory: self.sandbox.home().display().to_string(),
            heard: false,
            memory: None,
        }
    }

    /// Boots it. `Err` with [`Kind::DrillCouldNotRun`]: nobody knows whether it would.
    async fn boot(&mut self, context: &Context) -> Result<Access> {
        let program = self.program.clone().ok_or_else(absent)?;
        let mut asked = self.order(&program, vec!["--version".to_owned()]);
        asked.heard = true;
        let mut asked = self.sandbox.start(asked).await?;
        if let Ok(said) = tokio::time::timeout(PATIENCE, asked.ended()).await {
            let first = said?.said;
            self.version = first.lines().next().map(|line| line.trim().to_owned());
        }
        let (data, key) = (self.data.join("data.db"), self.plan.settings_key.clone());
        let (cancel, world) = (context.cancel.clone(), context.world.clone());
        let access =
            tokio::task::spawn_blocking(move || quiet::neutralise(&data, key.as_ref(), &cancel, &world))
                .await
                .map_err(|e| Error::failed("a thread ended unexpectedly").because(e))??;
        if let Some(owner) = self.plan.user {
            // Nothing runs as this user yet, so nobody changes what is given.
            give(&self.data, owner)?;
        }
        let port = if self.sandbox.apart() { PORT } else { free_port()? };
        let home = self.sandbox.home().display().to_string();
        let url = format!("http://127.0.0.1:{port}");
        let mut arguments = vec!["serve".to_owned(), format!("--http=127.0.0.1:{port}")];
        // No hook and no migration of this host runs on the copy.
        for (name, directory) in [
            ("--dir", "pb_data"),
            ("--hooksDir", "none"),
            ("--migrationsDir", "none"),
            ("--publicDir", "none"),
        ] {
            arguments.extend([name.to_owned(), format!("{home}/{directory}")]);
        }
        arguments.push("--automigrate=false".to_owned());
        let order = self.order(&program, arguments);
        let process = self.sandbox.start(order).await?;
        let mut client = reqwest::Client::builder()
            .timeout(ANSWER)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none());
        if self.sandbox.apart() {
            client = client.unix_socket(self.sandbox.open(port).await?);
        }
        let client = client
            .build()
            .map_err(|e| Error::failed("no client for the copy can be made").because(e))?;
        let mut running = Running { process, url, client };
        let begun = context.world.clock.since_boot();
        loop {
            if context.cancel.is_cancelled() {
                return Err(Error::new(Kind::Interrupted, "interrupted"));
            }
            let answers = running.get("/api/health", None).await.is_ok();
            // Looked at after the answer: on a port of the host another program could have given it.
            let ended = running.process.try_ended()?;
            let late = context.world.clock.since_boot() - begun > PATIENCE;
            if ended.is_some() || (late && !answers) {
                let how = ended.map_or("does not answer".to_owned(), |how| {
                    format!("did not stay: {}", how.text())
                });
                return Err(Error::failed(format!("PocketBase {how}"))
                    .because(format!("it said: {}", last_of(&self.plan.log(), LOG_TOLD_BYTES))));
            }
            if answers {
                break;
            }
            context.world.clock.sleep(LOOK_AGAIN).await;
        }
        self.running = Some(running);
        Ok(access)
    }

    /// What it serves is what is in the tables: asked as a superuser, collection by collection.
    async fn serves(&self, access: &Access) -> Result<Vec<Check>> {
        let Some(running) = &self.running else {
            return Ok(Vec::new());
        };
        let mut problems = Vec::new();
        let mut records = 0;
        for (collection, rows) in &access.rows {
            let name: String = url::form_urlencoded::byte_serialize(collection.as_bytes()).collect();
            let path = format!("/api/collections/{name}/records?perPage=1");
            match running.get(&path, Some(&access.token)).await {
                Ok(answer) if answer["totalItems"].as_u64() == Some(*rows) => records += rows,
                Ok(answer) => problems.push(format!(
                    "{collection}: {} records instead of {rows}",
                    answer["totalItems"]
                )),
                Err(e) => problems.push(format!("{collection}: {}", e.chain())),
            }
        }
        let expected = format!("the records of {} collections", access.rows.len());
        Ok(vec![if problems.is_empty() {
            Check::passed(
                "PocketBase serves every collection",
                Level::Application,
                format!("{expected}: {records}"),
            )
        } else {
            Check::failed(
                "PocketBase serves every collection",
                Level::Application,
                expected,
                some_of(&problems, NAMED, "; "),
            )
        }])
    }
}

impl Running {
    async fn get(&self, path: &str, token: Option<&str>) -> Result<Value> {
        let failed = |e: reqwest::Error| Error::failed("it does not answer").because(e.without_url());
        let mut request = self.client.get(format!("{}{path}", self.url));
        if let Some(token) = token {
            request = request.header("Authorization", token);
        }
        let answer = request.send().await.map_err(failed)?;
        let status = answer.status();
        if !status.is_success() {
            return Err(Error::failed(format!("it answers {status}")));
        }
        answer.json().await.map_err(failed)
    }
}

fn absent() -> Error {
    Error::new(Kind::DrillCouldNotRun, "the program pocketbase is not here").hint(INSTALL)
}

/// What the program that would be booted says it is, such as `pocketbase version 0.40.6`.
///
/// # Errors
/// There is none, or it does not run.
pub(super) async fn installed(binaries: Option<&Path>) -> Result<String> {
    let program = program(binaries).ok_or_else(absent)?;
    let mut asked = Command::new(&program);
    asked
        .arg("--version")
        .env_clear()
        .env("HOME", "/nonexistent")
        .current_dir("/")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let fails = |why: String| {
        let what = format!("{} can not be run", program.display());
        Error::new(Kind::DrillCouldNotRun, what)
            .because(why)
            .hint(INSTALL)
    };
    let said = tokio::time::timeout(PATIENCE, asked.output())
        .await
        .map_err(|_| fails("it does not end".to_owned()))?
        .map_err(|e| fails(e.to_string()))?;
    let text = String::from_utf8_lossy(&said.stdout);
    match text.lines().next() {
        Some(first) if said.status.success() => Ok(first.trim().to_owned()),
        _ => Err(fails(format!("asked for its version: {}", said.status))),
    }
}

/// The program, from the drill's directory, or where programs are.
fn program(binaries: Option<&Path>) -> Option<PathBuf> {
    let mut candidates = Vec::new();
    match binaries {
        // A directory with a server's programs says nothing of this one.
        Some(path) if !path.join("initdb").exists() && !path.join("bin/initdb").exists() => {
            candidates.extend([path.join("pocketbase"), path.to_owned()]);
        }
        _ => {
            let path = std::env::var_os("PATH").unwrap_or_default();
            candidates.extend(std::env::split_paths(&path).map(|dir| dir.join("pocketbase")));
            candidates
                .extend(["/usr/local/bin", "/opt/pocketbase"].map(|dir| Path::new(dir).join("pocketbase")));
        }
    }
    candidates.into_iter().find(|path| path.is_file())
}

fn free_port() -> Result<u16> {
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
    Ok(port.doing(|| "no port can be had on the loopback")?.port())
}

/// Gives everything in a directory to a user and a group.
fn give(path: &Path, (user, group): (u32, u32)) -> Result<()> {
    let doing = || format!("{} can not be given to user {user}", path.display());
    lchown(path, Some(user), Some(group)).doing(doing)?;
    if std::fs::symlink_metadata(path).doing(doing)?.is_dir() {
        for entry in std::fs::read_dir(path).doing(doing)? {
            give(&entry.doing(doing)?.path(), (user, group))?;
        }
    }
    Ok(())
}

#[async_trait]
impl ScratchTarget for PocketBaseScratch {
    fn target(&self) -> Target {
        Target::Directory(self.data.clone())
    }

    fn description(&self) -> String {
        let program = self.version.as_deref().unwrap_or("PocketBase was not booted");
        format!(
            "{program}, {}: mail, buckets, schedules, hooks and migrations are turned off and its keys are others before it boots",
            self.plan.apart_text()
        )
    }

    async fn examine(&mut self, context: &Context) -> Result<Vec<Check>> {
        let (data, without_storage) = (self.data.clone(), self.plan.without_storage);
        let cancel = context.cancel.clone();
        self.cancel = Some(cancel.clone());
        let (checks, unlooked) =
            tokio::task::spawn_blocking(move || data::of_data(&data, without_storage, &cancel))
                .await
                .map_err(|e| Error::failed("a thread ended unexpectedly").because(e))??;
        self.unlooked = unlooked;
        self.sound = checks.iter().all(|c| c.result == Outcome::Passed);
        Ok(checks)
    }

    async fn query(&mut self, database: Option<&str>, query: &str) -> Result<Option<String>> {
        let name = database.unwrap_or("data.db");
        if !["data.db", "auxiliary.db"].contains(&name) {
            return Err(Error::usage(format!("there is no database {name}"))
                .hint("There are data.db and auxiliary.db."));
        }
        let (path, query) = (self.data.join(name), query.to_owned());
        let cancel = self.cancel.clone().unwrap_or_default();
        tokio::task::spawn_blocking(move || data::ask(&path, &query, &cancel))
            .await
            .map_err(|e| Error::failed("a thread ended unexpectedly").because(e))?
    }

    async fn run(&mut self, context: &Context) -> Result<Vec<Check>> {
        // A broken database is not booted: what it would say is known.
        if !self.sound {
            return Ok(Vec::new());
        }
        let mut checks = Vec::new();
        match self.boot(context).await {
            Ok(access) => {
                checks.push(Check::passed(
                    "PocketBase boots",
                    Level::Application,
                    "it answers",
                ));
                checks.extend(self.serves(&access).await?);
            }
            Err(e) if e.kind() == Kind::DrillCouldNotRun => {
                let why = [Some(e.chain()), e.hint_text().map(str::to_owned)];
                let why = why.into_iter().flatten().collect::<Vec<_>>().join(". ");
                checks.push(Check::could_not_run(
                    "PocketBase boots",
                    Some(Level::Application),
                    why,
                ));
            }
            Err(e) if e.kind() == Kind::Interrupted => return Err(e),
            Err(e) => checks.push(Check::of_error(
                "PocketBase boots",
                Some(Level::Application),
                Outcome::Failed,
                "it answers",
                &e,
            )),
        }
        Ok(checks)
    }

    fn unlooked(&self) -> Vec<String> {
        self.unlooked.clone()
    }

    fn runs(&self) -> bool {
        self.running.is_some()
    }

    fn http(&self) -> Result<Option<(String, reqwest::Client)>> {
        Ok(self
            .running
            .as_ref()
            .map(|running| (running.url.clone(), running.client.clone())))
    }

    fn environment(&self) -> Vec<(String, String)> {
        let data = self.sandbox.home().join("pb_data");
        let mut list = vec![
            ("PATH".to_owned(), "/usr/local/bin:/usr/bin:/bin".to_owned()),
            ("POCKETBASE_DIR".to_owned(), data.display().to_string()),
        ];
        list.extend(
            self.running
                .as_ref()
                .map(|running| ("POCKETBASE_URL".to_owned(), running.url.clone())),
        );
        list
    }

    fn sandbox(&mut self) -> &mut Sandbox {
        &mut self.sandbox
    }

    async fn end(self: Box<Self>) -> Result<()> {
        self.sandbox.end().await
    }
}

#[cfg(test)]
mod tests;
