//! A PocketBase elsewhere, by its backup API: it makes a zip, which is read by ranges (the central directory first, then
//! entry by entry) and removed afterwards. Only the databases are spooled, to count their rows.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use reqwest::{Client, Method, Response, StatusCode};
use serde_json::{Value, json};
use tokio::io::AsyncRead;
use tokio_util::sync::CancellationToken;

use super::facts::{self, Facts};
use super::ranged::Ranged;
use crate::clock::World;
use crate::error::{Context as _, Error, Kind, Result};
use crate::policy::PocketBasePolicy;
use crate::secret::SecretText;
use crate::source::{Attributes, Capture, Captured, Context, Cut, UnitHead};
use crate::types::UnitName;

/// Making a backup may take as long as PocketBase needs to zip its data.
const BACKUP_TIMEOUT: Duration = Duration::from_secs(4 * 3600);
/// Backups of ours begin so; leftovers of runs that died are removed.
const PREFIX: &str = "lifeboat_";
/// How often a backup that another one stands in the way of is asked for again.
const BUSY_TRIES: u32 = 6;
/// Entries up to this size are read into memory, larger ones into the scratch directory.
const IN_MEMORY: u64 = 4 << 20;

/// A remote server and its superuser.
#[derive(Clone)]
pub struct Remote {
    pub(super) client: Client,
    pub(super) base: String,
    identity: SecretText,
    password: SecretText,
}

pub(super) fn unreachable(what: &str, e: reqwest::Error) -> Error {
    // The URL may hold a token.
    Error::failed(format!("PocketBase does not answer: {what}"))
        .hint("Is the URL right, and the server running? `backup check` tries it.")
        .because(e.without_url())
}

impl Remote {
    /// For a base URL.
    ///
    /// # Errors
    /// TLS can not be set up.
    pub fn new(url: &str, identity: SecretText, password: SecretText) -> Result<Self> {
        // Main has installed a provider already; tests and other callers may not have.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let client = Client::builder()
            .connect_timeout(Duration::from_secs(10))
            .read_timeout(Duration::from_secs(120))
            .build()
            .map_err(|e| Error::failed("an HTTP client can not be set up").because(e))?;
        Ok(Self {
            client,
            base: url.trim_end_matches('/').to_owned(),
            identity,
            password,
        })
    }

    /// Tries the superuser.
    ///
    /// # Errors
    /// It is not let in.
    pub async fn check(&self) -> Result<()> {
        let token = self.log_in().await?;
        self.call(Method::GET, "/api/backups", &token, None, None)
            .await
            .map(|_| ())
    }

    pub(super) async fn log_in(&self) -> Result<SecretText> {
        let body = json!({"identity": self.identity.expose(), "password": self.password.expose()});
        let answer = self
            .client
            .post(format!(
                "{}/api/collections/_superusers/auth-with-password",
                self.base
            ))
            .json(&body)
            .send()
            .await
            .map_err(|e| unreachable("logging in", e))?;
        match answer.status() {
            status if status.is_success() => {
                let value: Value = answer.json().await.map_err(|e| unreachable("logging in", e))?;
                let token = value["token"]
                    .as_str()
                    .ok_or_else(|| Error::failed("PocketBase gave no token"))?;
                Ok(SecretText::new(token.to_owned()))
            }
            StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(Error::failed(
                "PocketBase does not let the superuser in",
            )
            .hint("Check superuser.identity and superuser.password; it must be a superuser, not a user.")),
            status => Err(
                Error::failed(format!("PocketBase answered {status} to the log-in"))
                    .hint("Is the URL the base URL of a PocketBase 0.23 or newer?"),
            ),
        }
    }

    pub(super) async fn call(
        &self,
        method: Method,
        path: &str,
        token: &SecretText,
        body: Option<Value>,
        timeout: Option<Duration>,
    ) -> Result<Response> {
        let mut request = self
            .client
            .request(method, format!("{}{path}", self.base))
            .header("Authorization", token.expose());
        if let Some(body) = body {
            request = request.json(&body);
        }
        if let Some(timeout) = timeout {
            request = request.timeout(timeout);
        }
        let answer = request.send().await.map_err(|e| unreachable(path, e))?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let status = answer.status();
        let text: String = answer
            .text()
            .await
            .unwrap_or_default()
            .chars()
            .take(300)
            .collect();
        Err(Error::failed(format!("PocketBase answered {status} to {path}")).because(text))
    }

    /// Has PocketBase make a backup; another one under way is waited for.
    async fn make_backup(&self, world: &World, name: &str, token: &SecretText) -> Result<Response> {
        let mut tries = 0;
        loop {
            let body = Some(json!({"name": name}));
            // The answer comes when the zip is whole: no read timeout applies.
            let client = Client::builder().connect_timeout(Duration::from_secs(10)).build();
            let patient = Self {
                client: client.map_err(|e| unreachable("backing up", e))?,
                ..self.clone()
            };
            match patient
                .call(Method::POST, "/api/backups", token, body, Some(BACKUP_TIMEOUT))
                .await
            {
                Ok(answer) => return Ok(answer),
                Err(e) if e.chain().contains("400") && tries < BUSY_TRIES => {
                    tries += 1;
                    world.clock.sleep(Duration::from_secs(5 << tries.min(4))).await;
                }
                Err(e) => {
                    return Err(e.hint("Another backup or restore of PocketBase may be under way; run again when it is done."));
                }
            }
        }
    }

    /// Removes backups of ours: this run's, and those that dead runs left.
    async fn remove(&self, only: Option<&str>) -> Result<()> {
        let token = self.log_in().await?;
        let answer = self.call(Method::GET, "/api/backups", &token, None, None).await?;
        let list: Value = answer
            .json()
            .await
            .map_err(|e| unreachable("listing backups", e))?;
        let names = list
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|b| b["key"].as_str());
        for name in names.filter(|n| n.starts_with(PREFIX) && only.is_none_or(|o| o == *n)) {
            self.call(
                Method::DELETE,
                &format!("/api/backups/{name}"),
                &token,
                None,
                None,
            )
            .await?;
        }
        Ok(())
    }

    /// Takes the snapshot.
    ///
    /// # Errors
    /// The server, or a backup that can not be read.
    pub async fn capture(self, policy: &PocketBasePolicy, context: &Context) -> Result<RemoteCapture> {
        self.remove(None).await?;
        let name = format!("{PREFIX}{}.zip", context.run.to_string().to_lowercase());
        let mut capture = RemoteCapture {
            remote: self,
            name,
            scratch: context.scratch.clone(),
            archive: None,
            units: BTreeMap::new().into_iter(),
            current: None,
            at: context.world.clock.now(),
            clocks: None,
            facts: Value::Null,
            warnings: Vec::new(),
        };
        let begun = tokio::select! {
            biased;
            () = context.cancel.cancelled() => Err(Error::new(Kind::Interrupted, "interrupted")),
            begun = capture.begin(policy, context) => begun,
        };
        match begun {
            Ok(()) => Ok(capture),
            Err(e) => {
                capture.cleanup().await;
                Err(e)
            }
        }
    }
}

type Archive = Arc<Mutex<zip::ZipArchive<Ranged>>>;

enum Content {
    Spooled(PathBuf),
    Text(Vec<u8>),
    Entry(usize, u64),
}

struct Unit {
    head: UnitHead,
    content: Content,
}

/// A snapshot of a remote PocketBase.
pub struct RemoteCapture {
    remote: Remote,
    name: String,
    scratch: PathBuf,
    archive: Option<Archive>,
    units: std::collections::btree_map::IntoIter<UnitName, Unit>,
    current: Option<Unit>,
    at: DateTime<Utc>,
    /// Server's and host's clock, and half the round trip in milliseconds.
    clocks: Option<(DateTime<Utc>, DateTime<Utc>, u64)>,
    facts: Value,
    warnings: Vec<String>,
}

impl RemoteCapture {
    async fn begin(&mut self, policy: &PocketBasePolicy, context: &Context) -> Result<()> {
        let token = self.remote.log_in().await?;
        let world = &context.world;
        let before = world.clock.now();
        let health = self
            .remote
            .call(Method::GET, "/api/health", &token, None, None)
            .await?;
        let after = world.clock.now();
        let server = date_of(&health);
        let spread = (after - before).num_milliseconds().unsigned_abs() / 2 + 1000;
        self.clocks = server.map(|s| (s, before + (after - before) / 2, spread));
        let made = self.remote.make_backup(world, &self.name, &token).await?;
        // A restore to an instant must never hold what was written later, so the point is of the end of the call by the
        // server's clock. The header has whole seconds: by then a second more may have passed, and no more than this.
        let second = chrono::TimeDelta::seconds(1);
        let by_health = server.map_or(world.clock.now(), |server| {
            server + second + (world.clock.now() - before)
        });
        self.at = date_of(&made).map_or(by_health, |date| by_health.min(date + second));
        let ranged = Ranged::open(self.remote.clone(), world.clone(), self.name.clone()).await?;
        let archive = tokio::task::spawn_blocking(move || zip::ZipArchive::new(ranged))
            .await
            .map_err(|e| Error::failed("a thread ended unexpectedly").because(e))?
            .map_err(|e| Error::failed("PocketBase's backup is no zip").because(e))?;
        let archive = Arc::new(Mutex::new(archive));
        self.archive = Some(archive.clone());
        let (policy, scratch, cancel) = (policy.clone(), self.scratch.clone(), context.cancel.clone());
        let (units, brief, warnings) =
            tokio::task::spawn_blocking(move || list(&archive, &policy, &scratch, &cancel))
                .await
                .map_err(|e| Error::failed("a thread ended unexpectedly").because(e))??;
        self.units = units.into_iter();
        self.facts = brief;
        self.warnings = warnings;
        Ok(())
    }
}

/// The server's clock, in whole seconds.
fn date_of(answer: &Response) -> Option<DateTime<Utc>> {
    let date = answer.headers().get("date")?.to_str().ok()?;
    Some(DateTime::parse_from_rfc2822(date).ok()?.with_timezone(&Utc))
}

fn broken(e: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::failed("PocketBase's backup can not be read").because(e)
}

fn locked(archive: &Archive) -> std::sync::MutexGuard<'_, zip::ZipArchive<Ranged>> {
    archive.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Spools the databases, counts, and names the rest.
fn list(
    archive: &Archive,
    policy: &PocketBasePolicy,
    scratch: &std::path::Path,
    cancel: &CancellationToken,
) -> Result<(BTreeMap<UnitName, Unit>, Value, Vec<String>)> {
    let mut archive = locked(archive);
    let mut units = BTreeMap::new();
    let mut facts = Facts {
        format: 1,
        ..Facts::default()
    };
    let (mut files, mut elsewhere) = (Vec::new(), false);
    for number in 0..archive.len() {
        let mut entry = archive.by_index(number).map_err(broken)?;
        if entry.is_dir() {
            continue;
        }
        let name = UnitName::from_bytes(entry.name_raw())?;
        let text = name.as_str().to_owned();
        let size = entry.size();
        let database = text == "data.db" || text == "auxiliary.db" && policy.logs;
        if database {
            let path = scratch.join(&text);
            let mut file = std::fs::File::create(&path).map_err(broken)?;
            std::io::copy(&mut entry, &mut file).map_err(broken)?;
            drop(entry);
            facts
                .databases
                .insert(text.clone(), facts::of_database(&path, cancel)?);
            if text == "data.db" {
                (files, elsewhere) = facts::files(&path)?;
            }
            let attributes = Attributes {
                mode: Some(0o600),
                modified_ms: None,
            };
            let head = UnitHead {
                name: name.clone(),
                cut: Cut::Pages,
                attributes,
                size_hint: Some(size),
                stamp: None,
            };
            units.insert(
                name,
                Unit {
                    head,
                    content: Content::Spooled(path),
                },
            );
        } else if policy.storage && text.starts_with("storage/") {
            let stamp = format!("zip-{size}-{:08x}", entry.crc32());
            let attributes = Attributes {
                mode: Some(0o600),
                modified_ms: None,
            };
            let head = UnitHead {
                name: name.clone(),
                cut: Cut::Whole,
                attributes,
                size_hint: Some(size),
                stamp: Some(stamp),
            };
            units.insert(
                name,
                Unit {
                    head,
                    content: Content::Entry(number, size),
                },
            );
        }
    }
    if !facts.databases.contains_key("data.db") {
        return Err(Error::failed("PocketBase's backup has no data.db"));
    }
    if policy.storage && !elsewhere {
        let absent: Vec<&String> = files
            .iter()
            .filter(|f| {
                UnitName::from_bytes(format!("storage/{f}").as_bytes()).is_ok_and(|n| !units.contains_key(&n))
            })
            .collect();
        if let Some(first) = absent.first() {
            return Err(Error::failed(format!(
                "{} files that rows refer to are not in PocketBase's backup, such as {first}",
                absent.len()
            ))
            .hint("Restore the file, or clear the field; then run again."));
        }
    }
    facts.files = files;
    facts.files_elsewhere = elsewhere;
    let rows: u64 = facts
        .databases
        .get("data.db")
        .map_or(0, |d| d.rows.values().sum());
    let brief = json!({"rows": rows, "files": units.len(), "remote": true});
    let text = serde_json::to_vec_pretty(&facts).doing(|| "the facts can not be written")?;
    let head = super::facts_head(Some(text.len()))?;
    units.insert(
        head.name.clone(),
        Unit {
            head,
            content: Content::Text(text),
        },
    );
    let warnings = if elsewhere {
        vec!["PocketBase keeps its files in an S3 bucket: they are not in this point".to_owned()]
    } else {
        Vec::new()
    };
    Ok((units, brief, warnings))
}

#[async_trait]
impl Capture for RemoteCapture {
    async fn next(&mut self) -> Result<Option<UnitHead>> {
        self.current = self.units.next().map(|(_, unit)| unit);
        Ok(self.current.as_ref().map(|u| u.head.clone()))
    }

    async fn open(&mut self) -> Result<Box<dyn AsyncRead + Send + Unpin>> {
        let unit = self
            .current
            .as_ref()
            .ok_or_else(|| Error::failed("no unit to open"))?;
        let path = match &unit.content {
            Content::Text(text) => return Ok(Box::new(std::io::Cursor::new(text.clone()))),
            Content::Spooled(path) => path.clone(),
            Content::Entry(number, size) => {
                let archive = self
                    .archive
                    .clone()
                    .ok_or_else(|| Error::failed("the backup is closed"))?;
                let (number, size, path) = (*number, *size, self.scratch.join("entry"));
                let read = move || -> Result<Option<Vec<u8>>> {
                    let mut archive = locked(&archive);
                    let mut entry = archive.by_index(number).map_err(broken)?;
                    if size <= IN_MEMORY {
                        let mut bytes = Vec::new();
                        entry
                            .by_ref()
                            .take(IN_MEMORY + 1)
                            .read_to_end(&mut bytes)
                            .map_err(broken)?;
                        return Ok(Some(bytes));
                    }
                    let mut file = std::fs::File::create(&path).map_err(broken)?;
                    std::io::copy(&mut entry, &mut file).map_err(broken)?;
                    Ok(None)
                };
                let read = tokio::task::spawn_blocking(read)
                    .await
                    .map_err(|e| Error::failed("a thread ended unexpectedly").because(e))??;
                match read {
                    Some(bytes) => return Ok(Box::new(std::io::Cursor::new(bytes))),
                    None => self.scratch.join("entry"),
                }
            }
        };
        let file = tokio::fs::File::open(&path)
            .await
            .doing(|| format!("{} can not be read", unit.head.name))?;
        Ok(Box::new(file))
    }

    // The zip reader compares each entry's CRC at its end.
    async fn close(&mut self) -> Result<()> {
        Ok(())
    }

    async fn finish(&mut self) -> Result<Captured> {
        let (server, host, spread) = self.clocks.unwrap_or((self.at, self.at, 60_000));
        Ok(Captured {
            at: self.at,
            source_clock: server,
            host_clock: host,
            clock_spread_ms: spread,
            facts: self.facts.clone(),
            warnings: std::mem::take(&mut self.warnings),
        })
    }

    async fn cleanup(&mut self) {
        if let Err(e) = self.remote.remove(Some(&self.name)).await {
            tracing::warn!(backup = %self.name, error = %e.chain(), "the backup on the PocketBase server was not removed; the next run removes it");
        }
    }
}
