//! A restored pb_data that PocketBase itself serves, on this host's loopback only. Before it boots, whatever in its settings
//! could reach anything is turned off: a copy that mails users or prunes the original's backups would be a disaster.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::lchown;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use aws_lc_rs::hmac;
use base64::Engine as _;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, params};
use serde_json::{Value, json};
use tokio::process::{Child, Command};

use super::facts;
use crate::clock::World;
use crate::drill::{Check, Level};
use crate::error::{Context as _, Error, Kind, Result};
use crate::source::scratch::{ScratchPlan, ScratchTarget};
use crate::source::{Context, Target};

/// One that takes longer to begin does not.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// An answer may take so long.
const ANSWER: Duration = Duration::from_secs(60);
/// Problems of one kind that are named.
const NAMED: usize = 20;
/// Where nobody listens: mail that the copy would send ends here.
const NOWHERE_PORT: u16 = 1;
/// For so long a token opens the copy.
const TOKEN_SECONDS: i64 = 3600;

/// A restored pb_data.
pub(super) struct PocketBaseScratch {
    plan: ScratchPlan,
    data: PathBuf,
    running: Option<Running>,
    version: Option<String>,
}

struct Running {
    child: Child,
    url: String,
}

impl PocketBaseScratch {
    pub(super) fn new(plan: ScratchPlan) -> Self {
        Self {
            data: plan.directory.join("pb_data"),
            plan,
            running: None,
            version: None,
        }
    }

    /// The program, from the drill's directory, or where programs are.
    fn program(&self) -> Option<PathBuf> {
        let mut candidates = Vec::new();
        match &self.plan.binaries {
            Some(path) => candidates.extend([path.join("pocketbase"), path.clone()]),
            None => {
                let path = std::env::var_os("PATH").unwrap_or_default();
                candidates.extend(std::env::split_paths(&path).map(|dir| dir.join("pocketbase")));
                candidates.extend(
                    ["/usr/local/bin", "/opt/pocketbase"].map(|dir| Path::new(dir).join("pocketbase")),
                );
            }
        }
        candidates.into_iter().find(|path| path.is_file())
    }

    /// Boots it. `Err` with [`Kind::DrillCouldNotRun`]: nobody knows whether it would.
    async fn boot(&mut self, context: &Context) -> Result<Access> {
        let program = self.program().ok_or_else(|| {
            Error::new(Kind::DrillCouldNotRun, "the program pocketbase is not here").hint(
                "Install the version that serves the original, or set binaries in the drill to its directory.",
            )
        })?;
        let mut asked = Command::new(&program);
        asked.arg("--version").env_clear().kill_on_drop(true);
        if let Ok(Ok(said)) = tokio::time::timeout(PATIENCE, asked.output()).await {
            self.version = Some(String::from_utf8_lossy(&said.stdout).trim().to_owned());
        }
        let access = neutralise(&self.data.join("data.db"), &context.world)?;
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .and_then(|listener| listener.local_addr())
            .doing(|| "no port can be had on the loopback")?
            .port();
        let log = self.plan.directory.join("pocketbase.log");
        let written = std::fs::File::create(&log).doing(|| format!("can not write {}", log.display()))?;
        let none = self.plan.directory.join("none");
        let mut command = Command::new(&program);
        command
            .arg("serve")
            .arg(format!("--http=127.0.0.1:{port}"))
            .arg("--dir")
            .arg(&self.data)
            // No hook and no migration of this host runs on the copy.
            .arg("--hooksDir")
            .arg(&none)
            .arg("--migrationsDir")
            .arg(&none)
            .arg("--publicDir")
            .arg(&none)
            .arg("--automigrate=false")
            .env_clear()
            .env("HOME", "/nonexistent")
            // No program such as sendmail is found, and no proxy leads out.
            .env("PATH", "/nonexistent")
            .current_dir(&self.plan.directory)
            .stdin(Stdio::null())
            .stdout(written.try_clone().doing(|| "a file can not be opened twice")?)
            .stderr(written)
            .kill_on_drop(true);
        if let Some(owner) = self.plan.run_as {
            give(&self.data, owner)?;
            command.uid(owner.0).gid(owner.1);
        }
        if let Some(memory) = self.plan.memory {
            // It reserves more addresses than it uses memory, so a limit of the system's would be none of this.
            command.env("GOMEMLIMIT", memory.to_string());
        }
        let mut child = command
            .spawn()
            .doing(|| format!("{} can not be started", program.display()))?;
        let url = format!("http://127.0.0.1:{port}");
        let begun = context.world.clock.since_boot();
        loop {
            if context.cancel.is_cancelled() {
                return Err(Error::new(Kind::Interrupted, "interrupted"));
            }
            let ended = child.try_wait().doing(|| "a child's end can not be told")?;
            let late = context.world.clock.since_boot() - begun > PATIENCE;
            if ended.is_some() || late {
                let said = std::fs::read_to_string(&log).unwrap_or_default();
                let last = said
                    .lines()
                    .rev()
                    .find(|l| !l.trim().is_empty())
                    .unwrap_or("nothing");
                let how = ended.map_or("does not answer".to_owned(), |status| format!("ended ({status})"));
                return Err(Error::failed(format!("PocketBase {how}; it said: {last}")));
            }
            if get(&format!("{url}/api/health"), None).await.is_ok() {
                break;
            }
            context.world.clock.sleep(LOOK_AGAIN).await;
        }
        self.running = Some(Running { child, url });
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
            let address = format!("{}/api/collections/{name}/records?perPage=1", running.url);
            match get(&address, Some(&access.token)).await {
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
                named(&problems),
            )
        }])
    }
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

fn named(problems: &[String]) -> String {
    let more = problems.len().saturating_sub(NAMED);
    let mut told = problems[..problems.len().min(NAMED)].join("; ");
    if more > 0 {
        told += &format!("; and {more} more");
    }
    told
}

/// What opens the copy, and what it must serve.
struct Access {
    token: String,
    /// Rows of the collections that have records, by name.
    rows: BTreeMap<String, u64>,
}

fn sql(e: rusqlite::Error) -> Error {
    Error::failed("the restored data.db can not be used").because(e)
}

/// Turns off what could reach anything, and makes a superuser's token from what is in the database (a password would
/// have to be an argument). Nothing of it is in the backup.
fn neutralise(data: &Path, world: &World) -> Result<Access> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(data, flags).map_err(sql)?;
    let change = connection.transaction().map_err(sql)?;
    if let Some(text) = facts::settings(&change).map_err(sql)? {
        let parsed = serde_json::from_slice::<Value>(&text);
        let Some(quiet) = parsed.ok().filter(Value::is_object).map(quiet) else {
            return Err(Error::new(
                Kind::DrillCouldNotRun,
                "the settings are encrypted, so nothing tells what a copy would reach",
            )
            .hint("PocketBase is booted only with settings that were turned off before."));
        };
        change
            .execute(
                "UPDATE _params SET value = ?1 WHERE id = 'settings'",
                [quiet.to_string().into_bytes()],
            )
            .map_err(sql)?;
    }
    let options =
        "SELECT id, json_extract(options, '$.authToken.secret') FROM _collections WHERE name = '_superusers'";
    let (collection, secret): (String, String) = change
        .query_row(options, [], |r| Ok((r.get(0)?, r.get(1)?)))
        .map_err(sql)?;
    let known = change
        .query_row(
            "SELECT id, tokenKey FROM _superusers WHERE tokenKey <> '' LIMIT 1",
            [],
            |r| Ok((r.get::<_, String>(0)?, r.get::<_, String>(1)?)),
        )
        .optional()
        .map_err(sql)?;
    let mut rows = BTreeMap::new();
    {
        let mut statement = change
            .prepare("SELECT name FROM _collections WHERE type <> 'view' ORDER BY name")
            .map_err(sql)?;
        let names = statement.query_map([], |r| r.get::<_, String>(0)).map_err(sql)?;
        for name in names {
            let name = name.map_err(sql)?;
            let count = format!("SELECT count(*) FROM \"{}\"", name.replace('"', "\"\""));
            let count: i64 = change.query_row(&count, [], |r| r.get(0)).map_err(sql)?;
            rows.insert(name, u64::try_from(count).unwrap_or(0));
        }
    }
    let (id, key) = match known {
        Some(known) => known,
        None => {
            let (id, key) = (
                world.ulid()?.to_string()[..15].to_lowercase(),
                format!("{}{}", world.ulid()?, world.ulid()?),
            );
            let insert = "INSERT INTO _superusers (id, email, password, tokenKey) VALUES (?1, ?2, 'x', ?3)";
            change
                .execute(insert, params![id, format!("{id}@drill.invalid"), key])
                .map_err(sql)?;
            *rows.entry("_superusers".to_owned()).or_default() += 1;
            (id, key)
        }
    };
    change.commit().map_err(sql)?;
    connection.close().map_err(|(_, e)| sql(e))?;
    let until = world.clock.now().timestamp() + TOKEN_SECONDS;
    let claims = json!({
        "id": id, "type": "auth", "collectionId": collection, "exp": until, "refreshable": false,
    });
    Ok(Access {
        token: token(&claims, &format!("{key}{secret}")),
        rows,
    })
}

/// Settings that reach nothing: no mail, no bucket, no schedule, no rule that locks a drill out.
fn quiet(mut settings: Value) -> Value {
    // With SMTP off PocketBase would take the host's sendmail; so it is on, and leads nowhere.
    settings["smtp"] = json!({"enabled": true, "host": "127.0.0.1", "port": NOWHERE_PORT});
    settings["backups"] = json!({"cron": "", "cronMaxKeep": 0, "s3": {"enabled": false}});
    settings["s3"] = json!({"enabled": false});
    settings["superuserIPs"] = json!([]);
    settings["rateLimits"] = json!({"enabled": false, "rules": []});
    settings["trustedProxy"] = json!({"headers": []});
    settings
}

/// A JWT with HMAC-SHA256 (RFC 7519), as PocketBase signs them: with the record's key and the collection's secret.
fn token(claims: &Value, key: &str) -> String {
    let engine = base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let signed = format!(
        "{}.{}",
        engine.encode(json!({"alg": "HS256", "typ": "JWT"}).to_string()),
        engine.encode(claims.to_string())
    );
    let tag = hmac::sign(
        &hmac::Key::new(hmac::HMAC_SHA256, key.as_bytes()),
        signed.as_bytes(),
    );
    format!("{signed}.{}", engine.encode(tag.as_ref()))
}

async fn get(url: &str, token: Option<&str>) -> Result<Value> {
    let failed = |e: reqwest::Error| Error::failed("it does not answer").because(e.without_url());
    let client = reqwest::Client::builder()
        .timeout(ANSWER)
        .no_proxy()
        .build()
        .map_err(failed)?;
    let mut request = client.get(url);
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

/// Checks of the databases themselves, and of the files that rows name.
fn of_data(data: &Path) -> Result<Vec<Check>> {
    let mut checks = Vec::new();
    for name in ["data.db", "auxiliary.db"] {
        let path = data.join(name);
        if !path
            .try_exists()
            .doing(|| format!("{} can not be read", path.display()))?
        {
            continue;
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let failed = |e: rusqlite::Error| Error::failed(format!("{name} can not be read")).because(e);
        let connection = Connection::open_with_flags(&path, flags).map_err(failed)?;
        let problems = |pragma: &str| -> Result<Vec<String>> {
            let mut statement = connection.prepare(pragma).map_err(failed)?;
            let columns = statement.column_count();
            let rows = statement.query_map([], |row| {
                let cells = (0..columns).map(|i| row.get_ref(i).map(shown));
                Ok(cells.collect::<rusqlite::Result<Vec<_>>>()?.join(" "))
            });
            let rows = rows.map_err(failed)?.take(NAMED + 1);
            // A page that can not be read ends it, and is a problem like the others.
            Ok(rows.map(|row| row.unwrap_or_else(|e| e.to_string())).collect())
        };
        let integrity = problems("PRAGMA integrity_check")?.join("; ");
        checks.push(Check::compared(
            format!("integrity of {name}"),
            Level::Facts,
            "ok",
            integrity,
        ));
        let foreign = problems("PRAGMA foreign_key_check")?;
        checks.push(Check::compared(
            format!("foreign keys of {name}"),
            Level::Facts,
            "",
            foreign.join("; "),
        ));
    }
    let (files, elsewhere) = facts::files(&data.join("data.db"))?;
    if !elsewhere {
        let mut missing = Vec::new();
        for file in &files {
            let path = data.join("storage").join(file);
            if !path
                .try_exists()
                .doing(|| format!("{} can not be read", path.display()))?
            {
                missing.push(file.clone());
            }
        }
        let expected = format!("{} files that rows name", files.len());
        checks.push(if missing.is_empty() {
            Check::passed("files that rows name", Level::Facts, expected)
        } else {
            Check::failed(
                "files that rows name",
                Level::Facts,
                expected,
                format!("{} are missing: {}", missing.len(), named(&missing)),
            )
        });
    }
    Ok(checks)
}

fn shown(value: ValueRef<'_>) -> String {
    match value {
        ValueRef::Null => "NULL".to_owned(),
        ValueRef::Integer(n) => n.to_string(),
        ValueRef::Real(n) => n.to_string(),
        ValueRef::Text(text) | ValueRef::Blob(text) => String::from_utf8_lossy(text).into_owned(),
    }
}

#[async_trait]
impl ScratchTarget for PocketBaseScratch {
    fn target(&self) -> Target {
        Target::Directory(self.data.clone())
    }

    fn description(&self) -> String {
        let program = self.version.as_deref().unwrap_or("PocketBase was not booted");
        format!(
            "{program}: loopback only; mail, buckets, schedules, hooks and migrations are turned off before it boots; it is not in a network of its own"
        )
    }

    async fn prove(&mut self, context: &Context) -> Result<Vec<Check>> {
        let data = self.data.clone();
        let mut checks = tokio::task::spawn_blocking(move || of_data(&data))
            .await
            .map_err(|e| Error::failed("a thread ended unexpectedly").because(e))??;
        // A broken database is not booted: what it would say is known.
        if checks.iter().any(|c| c.result != crate::drill::Outcome::Passed) {
            return Ok(checks);
        }
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
            Err(e) => checks.push(Check::failed(
                "PocketBase boots",
                Level::Application,
                "it answers",
                e.chain(),
            )),
        }
        Ok(checks)
    }

    async fn query(&mut self, database: Option<&str>, query: &str) -> Result<Option<String>> {
        let name = database.unwrap_or("data.db");
        if !["data.db", "auxiliary.db"].contains(&name) {
            return Err(Error::usage(format!("there is no database {name}"))
                .hint("There are data.db and auxiliary.db."));
        }
        let (path, query) = (self.data.join(name), query.to_owned());
        let ask = move || {
            let failed = |e: rusqlite::Error| Error::failed("the query can not be carried out").because(e);
            let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
            let connection = Connection::open_with_flags(path, flags).map_err(failed)?;
            connection
                .pragma_update(None, "query_only", true)
                .map_err(failed)?;
            let value = connection.query_row(&query, [], |row| {
                Ok(match row.get_ref(0)? {
                    ValueRef::Null => None,
                    value => Some(shown(value)),
                })
            });
            value.optional().map(Option::flatten).map_err(failed)
        };
        tokio::task::spawn_blocking(ask)
            .await
            .map_err(|e| Error::failed("a thread ended unexpectedly").because(e))?
    }

    fn url(&self) -> Option<String> {
        self.running.as_ref().map(|r| r.url.clone())
    }

    fn environment(&self) -> Vec<(String, String)> {
        let mut list = vec![("POCKETBASE_DIR".to_owned(), self.data.display().to_string())];
        list.extend(self.url().map(|url| ("POCKETBASE_URL".to_owned(), url)));
        list
    }

    async fn end(&mut self) -> Result<()> {
        match &mut self.running {
            Some(running) => running.child.kill().await.doing(|| "PocketBase can not be ended"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
