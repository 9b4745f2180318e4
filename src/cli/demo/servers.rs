//! The demo's servers: started by it, ended by it, also on an error or an interrupt.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use url::Url;

use super::stage::Stage;
use crate::error::{Context as _, Error, Result};
use crate::types::hex;

/// How long a server may take to answer.
const START: Duration = Duration::from_secs(30);
/// How long one may take to end before it is killed.
const END_TRIES: u32 = 500;
const END_STEP: Duration = Duration::from_millis(20);
/// Another process may take a port between the look and the start.
const TRIES: u32 = 3;

/// A child that does not outlive the demo.
pub struct Server {
    child: Child,
    end: Signal,
    log: PathBuf,
}

impl Server {
    fn start(mut command: Command, log: &Path, end: Signal) -> Result<Self> {
        let what = || format!("can not write {}", log.display());
        let out = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(log)
            .doing(what)?;
        let err = out.try_clone().doing(what)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            // An interrupt at the terminal reaches the demo, which ends its servers in order.
            .process_group(0)
            .spawn()
            .doing(|| format!("can not start {}", command.get_program().to_string_lossy()))?;
        Ok(Self {
            child,
            end,
            log: log.to_owned(),
        })
    }
    fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }
    fn last_words(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log).into_owned();
        let lines: Vec<&str> = log.lines().rev().take(5).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("; ")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.has_ended() {
            return;
        }
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // It can have ended just now; the wait below tells.
            let _ = kill_process(pid, self.end);
        }
        for _ in 0..END_TRIES {
            if self.has_ended() {
                return;
            }
            std::thread::sleep(END_STEP);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Random bytes as text.
pub fn random(stage: &Stage<'_>, bytes: usize) -> Result<String> {
    let mut buffer = vec![0; bytes];
    stage.surroundings.world.random.fill(&mut buffer)?;
    Ok(hex(&buffer))
}

fn free_port() -> Result<u16> {
    let what = || "no free port on 127.0.0.1";
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).doing(what)?;
    Ok(listener.local_addr().doing(what)?.port())
}

/// Asks again until the answer is yes, the server has ended, or the time is over.
async fn ready(
    stage: &Stage<'_>,
    server: &mut Server,
    name: &str,
    mut ask: impl AsyncFnMut() -> bool,
) -> Result<bool> {
    let clock = &stage.surroundings.world.clock;
    let deadline = clock.since_boot() + START;
    loop {
        if server.has_ended() {
            return Ok(false);
        }
        if ask().await {
            return Ok(true);
        }
        if clock.since_boot() > deadline {
            return Err(Error::failed(format!(
                "{name} does not answer: {}",
                server.last_words()
            )));
        }
        stage.wait(Duration::from_millis(50)).await?;
    }
}

/// A throwaway PostgreSQL.
pub struct Postgres {
    _server: Server,
    programs: PathBuf,
    port: u16,
    /// The password of its one role, `demo`.
    pub password: String,
    /// What it calls itself.
    pub version: String,
}

impl Postgres {
    /// Makes a cluster and starts it.
    ///
    /// # Errors
    /// It does not start.
    pub async fn start(stage: &Stage<'_>, programs: &Path) -> Result<Self> {
        let home = stage.root().join("postgres");
        DirBuilder::new()
            .mode(0o700)
            .create(&home)
            .doing(|| "can not make a directory for PostgreSQL")?;
        let user = server_user()?;
        own(&home, user)?;
        let password = random(stage, 16)?;
        let password_file = home.join("password");
        write_private(&password_file, password.as_bytes())?;
        own(&password_file, user)?;
        let mut initdb = tokio::process::Command::from(as_user(&programs.join("initdb"), user));
        initdb
            .arg("--pgdata")
            .arg(home.join("data"))
            .arg("--pwfile")
            .arg(&password_file)
            .args([
                "--username=demo",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--no-locale",
                "--no-sync",
            ])
            .current_dir(&home);
        stage.quietly(initdb).await?;
        fs::remove_file(&password_file).doing(|| "can not remove the password file")?;
        for _ in 0..TRIES {
            let port = free_port()?;
            let mut command = as_user(&programs.join("postgres"), user);
            command.arg("-D").arg(home.join("data")).current_dir(&home);
            let port_setting = format!("port={port}");
            // What a crash of the host would lose does not matter here.
            for setting in [
                "listen_addresses=127.0.0.1",
                "unix_socket_directories=",
                "fsync=off",
                "shared_buffers=32MB",
                &port_setting,
            ] {
                command.args(["-c", setting]);
            }
            let mut server = Server::start(command, &stage.root().join("postgres.log"), Signal::INT)?;
            let mut postgres = Self {
                programs: programs.to_owned(),
                port,
                password: password.clone(),
                version: String::new(),
                _server: match ready(stage, &mut server, "PostgreSQL", async || {
                    try_psql(stage, programs, port, &password, "postgres", "select 1")
                        .await
                        .is_ok()
                })
                .await?
                {
                    true => server,
                    false => continue,
                },
            };
            postgres.version = postgres.sql(stage, "postgres", "show server_version").await?;
            return Ok(postgres);
        }
        Err(Error::failed("PostgreSQL does not start"))
    }

    /// Runs SQL; gives the rows, a line each, columns parted by `|`.
    ///
    /// # Errors
    /// psql failed.
    pub async fn sql(&self, stage: &Stage<'_>, database: &str, sql: &str) -> Result<String> {
        try_psql(stage, &self.programs, self.port, &self.password, database, sql).await
    }

    /// The URL of a database, with the password or without.
    ///
    /// # Errors
    /// None in practice: its parts are plain.
    pub fn url(&self, database: &str, with_password: bool) -> Result<String> {
        let mut url = Url::parse(&format!("postgres://demo@127.0.0.1:{}/{database}", self.port))
            .doing(|| "the server's URL can not be written")?;
        if with_password && url.set_password(Some(&self.password)).is_err() {
            return Err(Error::failed("the server's URL takes no password"));
        }
        Ok(url.into())
    }
}

async fn try_psql(
    stage: &Stage<'_>,
    programs: &Path,
    port: u16,
    password: &str,
    database: &str,
    sql: &str,
) -> Result<String> {
    let mut command = tokio::process::Command::new(programs.join("psql"));
    command
        .args([
            "--no-psqlrc",
            "--quiet",
            "--tuples-only",
            "--no-align",
            "--set=ON_ERROR_STOP=1",
            "--command",
            sql,
        ])
        .env("PGHOST", "127.0.0.1")
        .env("PGPORT", port.to_string())
        .env("PGUSER", "demo")
        .env("PGPASSWORD", password)
        .env("PGDATABASE", database);
    Ok(stage.quietly(command).await?.trim_end().to_owned())
}

/// PostgreSQL refuses to run as root: then it runs as `postgres`, or as `nobody`.
fn server_user() -> Result<Option<(u32, u32)>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let users = fs::read_to_string("/etc/passwd").doing(|| "can not read /etc/passwd")?;
    let find = |name: &str| {
        users.lines().find_map(|line| {
            let mut fields = line.split(':');
            (fields.next() == Some(name)).then_some(())?;
            let user = fields.nth(1)?.parse().ok()?;
            Some((user, fields.next()?.parse().ok()?))
        })
    };
    find("postgres").or_else(|| find("nobody")).map(Some).ok_or_else(|| {
        Error::failed("PostgreSQL does not run as root, and this host has neither a user postgres nor a user nobody")
            .hint("Run the demo as another user than root.")
    })
}

fn own(path: &Path, user: Option<(u32, u32)>) -> Result<()> {
    match user {
        Some((user, group)) => {
            chown(path, Some(user), Some(group)).doing(|| format!("can not give {} away", path.display()))
        }
        None => Ok(()),
    }
}

fn as_user(program: &Path, user: Option<(u32, u32)>) -> Command {
    let mut command = Command::new(program);
    if let Some((user, group)) = user {
        command.uid(user).gid(group);
    }
    command
}

/// Writes a new file that only its owner reads.
///
/// # Errors
/// It is there already, or can not be written.
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || -> std::io::Result<()> {
        let mut file: File = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        file.write_all(bytes)
    };
    write().doing(|| format!("can not write {}", path.display()))
}

/// A throwaway PocketBase.
pub struct PocketBase {
    _server: Server,
    url: String,
    client: reqwest::Client,
}

/// What a new PocketBase begins with: a superuser, so that it asks for none, and one collection.
const MIGRATION: &str = r#"migrate((app) => {
  const superuser = new Record(app.findCollectionByNameOrId("_superusers"))
  superuser.set("email", "demo@example.com")
  superuser.set("password", $os.getenv("DEMO_SUPERUSER_PASSWORD"))
  app.save(superuser)
  app.save(new Collection({
    type: "base", name: "notes",
    listRule: "", viewRule: "", createRule: "", deleteRule: "",
    fields: [
      { type: "text", name: "title" },
      { type: "file", name: "paper", maxSelect: 1, maxSize: 5242880 },
    ],
  }))
}, () => {})
"#;

impl PocketBase {
    /// Starts one on `DIR/pb_data`; in an empty `DIR` it begins with a collection `notes`.
    ///
    /// # Errors
    /// It does not start.
    pub async fn start(stage: &Stage<'_>, program: &Path, home: &Path) -> Result<Self> {
        let migrations = home.join("pb_migrations");
        fs::create_dir_all(&migrations).doing(|| "can not make a directory for PocketBase")?;
        if !home.join("pb_data").exists() {
            write_private(&migrations.join("1_demo.js"), MIGRATION.as_bytes())?;
        }
        let client = reqwest::Client::builder()
            .no_proxy()
            .timeout(START)
            .build()
            .doing(|| "the HTTP client can not be made")?;
        let password = random(stage, 16)?;
        for _ in 0..TRIES {
            let address = format!("127.0.0.1:{}", free_port()?);
            let mut command = Command::new(program);
            command.args(["serve", "--http", &address]);
            for (option, name) in [
                ("--dir", "pb_data"),
                ("--migrationsDir", "pb_migrations"),
                ("--hooksDir", "pb_hooks"),
                ("--publicDir", "pb_public"),
            ] {
                command.arg(option).arg(home.join(name));
            }
            command
                .env("DEMO_SUPERUSER_PASSWORD", &password)
                .current_dir(home);
            let mut server = Server::start(command, &home.join("pocketbase.log"), Signal::TERM)?;
            let url = format!("http://{address}");
            let health = format!("{url}/api/health");
            let up = ready(stage, &mut server, "PocketBase", async || {
                client
                    .get(&health)
                    .send()
                    .await
                    .is_ok_and(|a| a.status().is_success())
            })
            .await?;
            if up {
                return Ok(Self {
                    _server: server,
                    url,
                    client,
                });
            }
        }
        Err(Error::failed("PocketBase does not start"))
    }

    /// Makes a note with a paper.
    ///
    /// # Errors
    /// PocketBase refuses it.
    pub async fn add(&self, stage: &Stage<'_>, title: &str, paper: &[u8]) -> Result<()> {
        let boundary = random(stage, 16)?;
        let mut body = format!(
            "--{boundary}\r\nContent-Disposition: form-data; name=\"title\"\r\n\r\n{title}\r\n\
             --{boundary}\r\nContent-Disposition: form-data; name=\"paper\"; filename=\"paper.bin\"\r\n\
             Content-Type: application/octet-stream\r\n\r\n"
        )
        .into_bytes();
        body.extend_from_slice(paper);
        body.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
        let request = self
            .client
            .post(format!("{}/api/collections/notes/records", self.url))
            .header(
                "Content-Type",
                format!("multipart/form-data; boundary={boundary}"),
            )
            .body(body);
        answer(request).await.map(drop)
    }

    /// Deletes a note, and with it its paper.
    ///
    /// # Errors
    /// PocketBase refuses it.
    pub async fn delete(&self, id: &str) -> Result<()> {
        let request = self
            .client
            .delete(format!("{}/api/collections/notes/records/{id}", self.url));
        answer(request).await.map(drop)
    }

    /// Every note as the API shows it, with its paper's bytes, in the order of their ids.
    ///
    /// # Errors
    /// PocketBase does not answer, or a paper is missing.
    pub async fn notes(&self) -> Result<Vec<(Value, Vec<u8>)>> {
        let list = format!("{}/api/collections/notes/records?perPage=500&sort=id", self.url);
        let page = answer(self.client.get(list)).await?;
        let page: Value = serde_json::from_slice(&page).doing(|| "PocketBase's answer is not JSON")?;
        let mut notes = Vec::new();
        for note in page["items"].as_array().into_iter().flatten() {
            let part = |name: &str| note[name].as_str().unwrap_or_default();
            let file = format!("{}/api/files/notes/{}/{}", self.url, part("id"), part("paper"));
            notes.push((note.clone(), answer(self.client.get(file)).await?));
        }
        Ok(notes)
    }
}

async fn answer(request: reqwest::RequestBuilder) -> Result<Vec<u8>> {
    let what = || "PocketBase does not answer";
    let answer = request.send().await.doing(what)?;
    let status = answer.status();
    let body = answer.bytes().await.doing(what)?;
    if !status.is_success() {
        return Err(Error::failed(format!(
            "PocketBase says {status}: {}",
            String::from_utf8_lossy(&body)
        )));
    }
    Ok(body.to_vec())
}
