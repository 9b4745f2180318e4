//! A PocketBase on this host: list storage/ first, then copy the databases, then list what appeared between; every file
//! that a row refers to must be there, else again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use tokio::io::AsyncRead;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::ahead::{Ahead, SMALL};
use super::copy::{self, copy_database};
use super::facts::{self, DatabaseFacts, Facts};
use super::storage::Storage;
use crate::error::{Context as _, Error, Result};
use crate::policy::PocketBasePolicy;
use crate::source::{Attributes, Capture, Captured, Context, Cut, Finding, UnitHead, is_inside};
use crate::types::UnitName;

/// How often the snapshot is taken anew because a file was missing.
const ATTEMPTS: u32 = 5;

/// What a unit is read from.
enum Content {
    File(PathBuf),
    Text(Vec<u8>),
    /// `facts.json`, once the databases are counted.
    Facts,
}

struct Unit {
    head: UnitHead,
    content: Content,
}

impl Unit {
    /// Path and size of a small file.
    fn small(&self) -> Option<(&PathBuf, u64)> {
        let size = self.head.size_hint.filter(|size| *size <= SMALL)?;
        match &self.content {
            Content::File(path) => Some((path, size)),
            Content::Text(_) | Content::Facts => None,
        }
    }
}

/// A snapshot of a local pb_data.
pub struct LocalCapture {
    units: VecDeque<Unit>,
    current: Option<Unit>,
    ahead: Ahead,
    /// Whether the current unit was opened.
    opened: bool,
    at: DateTime<Utc>,
    facts: Facts,
    files: usize,
    counting: Option<Counting>,
    warnings: Vec<String>,
}

/// The copies being checked and counted, while they are backed up: what a database holds is told behind it.
struct Counting {
    work: JoinHandle<Result<BTreeMap<String, DatabaseFacts>>>,
    _stop: DropGuard,
}

impl Counting {
    fn start(databases: BTreeMap<&'static str, PathBuf>, cancel: &CancellationToken) -> Self {
        let cancel = cancel.child_token();
        let stop = cancel.clone().drop_guard();
        let work = tokio::task::spawn_blocking(move || {
            let count =
                |(name, copy): (&str, PathBuf)| Ok((name.to_owned(), facts::of_database(&copy, &cancel)?));
            databases.into_iter().map(count).collect()
        });
        Self { work, _stop: stop }
    }
}

/// Checks a local pb_data.
pub fn check(directory: &Path) -> Vec<Finding> {
    let database = directory.join("data.db");
    let metadata = match std::fs::metadata(&database) {
        Ok(metadata) => metadata,
        Err(e) => {
            return vec![Finding::error(
                "access",
                format!("{} can not be read: {e}", database.display()),
                "path must be the pb_data directory, and readable for this user.",
            )];
        }
    };
    let mut findings = vec![Finding::ok(
        "access",
        format!("{} is there, {} bytes", database.display(), metadata.len()),
    )];
    let user = rustix::process::geteuid().as_raw();
    if user != 0 && user != metadata.uid() {
        findings.push(Finding::error(
            "user",
            format!(
                "{} belongs to user {}, this is user {user}",
                database.display(),
                metadata.uid()
            ),
            "Run as the user of PocketBase, or as root: SQLite's lock files must stay usable for both.",
        ));
    }
    if let Ok(Some(problem)) = copy::not_wal(&database) {
        findings.push(Finding::error(
            "mode",
            format!(
                "{} can not be copied while it is used: {problem}",
                database.display()
            ),
            "PocketBase keeps its databases in WAL mode: open it with PocketBase once.",
        ));
    }
    if is_on_network(directory) {
        findings.push(Finding::error(
            "file system",
            format!("{} is on a network file system", directory.display()),
            "SQLite's write-ahead log does not work there; run Lifeboat on the host of the files.",
        ));
    }
    findings
}

fn is_on_network(path: &Path) -> bool {
    const NETWORK: [i64; 5] = [0x6969, 0x517B, 0xFF53_4D42, 0xFE53_4D42, 0x0102_1997];
    rustix::fs::statfs(path).is_ok_and(|s| NETWORK.contains(&{ s.f_type }))
}

/// Takes the snapshot.
///
/// # Errors
/// pb_data can not be read, or a referenced file is missing five times.
pub async fn capture(directory: &Path, policy: &PocketBasePolicy, context: &Context) -> Result<LocalCapture> {
    if is_inside(&context.scratch, directory) {
        return Err(
            Error::usage(format!("the state directory lies inside {}", directory.display()))
                .hint("Set state.dir to a directory outside pb_data."),
        );
    }
    if let Some(problem) = check(directory)
        .into_iter()
        .find(|f| f.level == crate::source::Level::Error)
    {
        return Err(Error::failed(problem.text).hint(problem.hint.unwrap_or_default()));
    }
    let (directory, policy, context) = (directory.to_owned(), policy.clone(), context.clone());
    tokio::task::spawn_blocking(move || snapshot(&directory, &policy, &context))
        .await
        .map_err(|e| Error::failed("a thread ended unexpectedly").because(e))?
}

fn snapshot(directory: &Path, policy: &PocketBasePolicy, context: &Context) -> Result<LocalCapture> {
    let mut missing = Vec::new();
    for attempt in 0..ATTEMPTS {
        let stage = context.scratch.join(format!("storage{attempt}"));
        let mut storage = Storage::new(context.known.clone());
        if policy.storage {
            storage.list(&context.cancel, &directory.join("storage"), &stage)?;
        }
        let mut databases = BTreeMap::new();
        let names: &[&'static str] = if policy.logs {
            &["auxiliary.db", "data.db"]
        } else {
            &["data.db"]
        };
        let mut at = context.world.clock.now();
        for name in names {
            let path = directory.join(name);
            // One that can not be looked at is there, as is a link that leads nowhere, and is not left out in silence.
            if *name != "data.db" {
                let found = std::fs::symlink_metadata(&path);
                if found
                    .as_ref()
                    .is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound)
                {
                    continue;
                }
                found.doing(|| format!("{} can not be read", path.display()))?;
            }
            let copy = context.scratch.join(name);
            copy_database(&context.world, &context.cancel, &path, &copy)?;
            at = context.world.clock.now();
            databases.insert(*name, copy);
        }
        if policy.storage {
            storage.list(&context.cancel, &directory.join("storage"), &stage)?;
        }
        let data = databases
            .get("data.db")
            .ok_or_else(|| Error::failed("there is no data.db"))?;
        if !facts::has_collections(data)? {
            storage.warn("data.db has no collections: is it PocketBase's?".to_owned());
        }
        let (files, elsewhere) = facts::files(data)?;
        let named = files
            .iter()
            .map(|file| UnitName::from_bytes(format!("storage/{file}").as_bytes()))
            .collect::<Result<BTreeSet<_>>>()?;
        missing = if policy.storage && !elsewhere {
            absent(&named, &storage)
        } else {
            Vec::new()
        };
        if missing.is_empty() {
            storage.drop_temporary(&named);
            let facts = Facts {
                format: 1,
                files,
                files_elsewhere: elsewhere,
                ..Facts::default()
            };
            return assemble(databases, storage, facts, at, &context.cancel);
        }
    }
    Err(Error::failed(format!(
        "{} files that rows refer to are missing in storage/: {}",
        missing.len(),
        missing[..missing.len().min(3)].join(", ")
    ))
    .hint("A row names collection/record/file. Restore the file, or clear the field; then run again."))
}

/// What rows name and storage/ lacks, as rows name it.
fn absent(named: &BTreeSet<UnitName>, storage: &Storage) -> Vec<String> {
    let absent = named.iter().filter(|name| !storage.files.contains_key(name));
    absent
        .map(|name| name.as_str().trim_start_matches("storage/").to_owned())
        .collect()
}

fn assemble(
    databases: BTreeMap<&'static str, PathBuf>,
    storage: Storage,
    facts: Facts,
    at: DateTime<Utc>,
    cancel: &CancellationToken,
) -> Result<LocalCapture> {
    let mut units = BTreeMap::new();
    let mut add = |head: UnitHead, content: Content| {
        units.insert(head.name.clone(), Unit { head, content });
    };
    for (name, copy) in &databases {
        let size = std::fs::metadata(copy)
            .doing(|| format!("{} can not be read", copy.display()))?
            .len();
        add(
            UnitHead {
                name: UnitName::from_bytes(name.as_bytes())?,
                cut: Cut::Pages,
                attributes: Attributes {
                    mode: Some(0o600),
                    modified_ms: None,
                },
                size_hint: Some(size),
                stamp: None,
            },
            Content::File(copy.clone()),
        );
    }
    let files = storage.files.len();
    add(super::facts_head(None)?, Content::Facts);
    for (name, file) in storage.files {
        add(
            UnitHead {
                name,
                cut: Cut::Whole,
                attributes: Attributes {
                    mode: Some(file.mode),
                    modified_ms: Some(file.modified_ms),
                },
                size_hint: Some(file.size),
                stamp: Some(file.stamp),
            },
            Content::File(file.path),
        );
    }
    let mut warnings = storage.warnings;
    if facts.files_elsewhere {
        warnings.push("PocketBase keeps its files in an S3 bucket: they are not in this point".to_owned());
    }
    Ok(LocalCapture {
        units: units.into_values().collect(),
        current: None,
        ahead: Ahead::default(),
        opened: true,
        at,
        facts,
        files,
        counting: Some(Counting::start(databases, cancel)),
        warnings,
    })
}

impl LocalCapture {
    /// The facts, as a unit, when the databases are counted.
    async fn counted(&mut self) -> Result<Unit> {
        if let Some(counting) = self.counting.take() {
            self.facts.databases = counting
                .work
                .await
                .map_err(|e| Error::failed("a thread ended unexpectedly").because(e))??;
        }
        let text = serde_json::to_vec_pretty(&self.facts).doing(|| "the facts can not be written")?;
        Ok(Unit {
            head: super::facts_head(Some(text.len()))?,
            content: Content::Text(text),
        })
    }
}

#[async_trait]
impl Capture for LocalCapture {
    async fn next(&mut self) -> Result<Option<UnitHead>> {
        if !self.opened {
            self.ahead.passed();
        }
        self.opened = false;
        self.current = self.units.pop_front();
        if matches!(&self.current, Some(unit) if matches!(unit.content, Content::Facts)) {
            self.current = Some(self.counted().await?);
        }
        Ok(self.current.as_ref().map(|u| u.head.clone()))
    }
    async fn open(&mut self) -> Result<Box<dyn AsyncRead + Send + Unpin>> {
        self.opened = true;
        let unit = self
            .current
            .as_ref()
            .ok_or_else(|| Error::failed("no unit to open"))?;
        Ok(match &unit.content {
            Content::Text(text) => Box::new(std::io::Cursor::new(text.clone())),
            Content::Facts => return Err(Error::failed("the facts are not counted yet")),
            Content::File(path) => {
                if unit.small().is_some() {
                    let next = self.units.iter().map_while(Unit::small);
                    let content = self.ahead.take(path.clone(), next).await;
                    if let Some(content) = content.doing(|| format!("{} can not be read", unit.head.name))? {
                        return Ok(Box::new(std::io::Cursor::new(content)));
                    }
                }
                let mut file = tokio::fs::File::open(path)
                    .await
                    .doing(|| format!("{} can not be read", unit.head.name))?;
                file.set_max_buf_size(1 << 20);
                Box::new(file)
            }
        })
    }
    async fn close(&mut self) -> Result<()> {
        Ok(())
    }
    async fn finish(&mut self) -> Result<Captured> {
        let data = self.facts.databases.get("data.db");
        let rows: u64 = data.map_or(0, |d| d.rows.values().sum());
        Ok(Captured {
            at: self.at,
            source_clock: self.at,
            host_clock: self.at,
            clock_spread_ms: 0,
            facts: serde_json::json!({
                "rows": rows,
                "pages": data.map_or(0, |d| d.pages),
                "files": self.files,
            }),
            warnings: std::mem::take(&mut self.warnings),
        })
    }
    // Copies and links lie in the run's scratch directory, which the caller removes.
    async fn cleanup(&mut self) {}
}
