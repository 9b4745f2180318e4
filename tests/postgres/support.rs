//! A point kept in memory instead of a repository, and the shorthand of these tests.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use lifeboat::clock::World;
use lifeboat::error::{Error, Result};
use lifeboat::policy::model::{PostgresMethod, PostgresPolicy, SecretRef};
use lifeboat::progress::Silent;
use lifeboat::secret::SecretText;
use lifeboat::source::postgres::{LogicalRestorer, PostgresSource};
use lifeboat::source::{
    Captured, Context, Outline, PointContent, RestoreOptions, Restored, RestoredUnit, Restorer as _,
    Source as _, Target, Wanted,
};
use lifeboat::types::RunId;
use tokio::io::AsyncReadExt as _;
use tokio_util::sync::CancellationToken;

use crate::harness::TempDir;
use crate::harness::postgres::PostgresServer;

/// A captured point.
#[derive(Clone)]
pub struct Point {
    pub units: Vec<(RestoredUnit, Bytes)>,
    pub captured: Captured,
    pub run: RunId,
}

impl Point {
    pub fn unit(&self, name: &str) -> &Bytes {
        let found = self.units.iter().find(|(u, _)| u.name.as_str() == name);
        &found.unwrap_or_else(|| panic!("no unit {name}")).1
    }
    pub fn json(&self, name: &str) -> serde_json::Value {
        serde_json::from_slice(self.unit(name)).unwrap()
    }
    /// What a job finds out about it before it restores.
    pub fn outline(&self, restorer: &LogicalRestorer) -> Outline {
        let mut outline = Outline::default();
        for (unit, bytes) in &self.units {
            let name = unit.name.to_string();
            if restorer.wants(&unit.name) == Wanted::Content {
                outline.documents.insert(name.clone(), bytes.clone());
            }
            outline.sizes.insert(name, unit.size);
        }
        outline
    }
    /// The content, to be read once. `damage` is the unit (by its place) that breaks half way.
    pub fn content(&self, damage: Option<usize>) -> Memory {
        Memory {
            units: self.units.clone(),
            next: 0,
            at: 0,
            damage,
        }
    }
}

pub struct Memory {
    units: Vec<(RestoredUnit, Bytes)>,
    next: usize,
    at: usize,
    damage: Option<usize>,
}

#[async_trait]
impl PointContent for Memory {
    async fn next(&mut self) -> Result<Option<RestoredUnit>> {
        self.at = 0;
        self.next += 1;
        Ok(self.units.get(self.next - 1).map(|(u, _)| u.clone()))
    }
    async fn read(&mut self) -> Result<Option<Bytes>> {
        let (_, bytes) = &self.units[self.next - 1];
        if self.damage == Some(self.next - 1) && self.at * 2 >= bytes.len() {
            return Err(Error::damaged("a frame is not what was written"));
        }
        if self.at >= bytes.len() {
            return Ok(None);
        }
        let end = (self.at + 64 * 1024).min(bytes.len());
        let chunk = bytes.slice(self.at..end);
        self.at = end;
        Ok(Some(chunk))
    }
}

pub fn context() -> (Context, TempDir) {
    let world = World::system();
    let scratch = crate::harness::temp_dir();
    let context = Context {
        source: "orders".parse().unwrap(),
        run: RunId::new(world.ulid().unwrap()),
        scratch: scratch.path().to_path_buf(),
        cancel: CancellationToken::new(),
        progress: Arc::new(Silent),
        world,
        known: lifeboat::source::stamps::Stamps::default(),
    };
    (context, scratch)
}

pub fn policy(server: &PostgresServer) -> PostgresPolicy {
    PostgresPolicy {
        method: PostgresMethod::Logical,
        url: SecretRef::Env("UNUSED".into()),
        databases: Vec::new(),
        exclude: Vec::new(),
        client_dir: Some(server.client_dir()),
        jobs: None,
    }
}

/// The URL of a database of any name, as any role.
pub fn url_as(server: &PostgresServer, user: &str, password: &str, database: &str) -> String {
    let encode = |text: &str| text.bytes().map(|b| format!("%{b:02X}")).collect::<String>();
    format!(
        "postgres://{}:{}@{}:{}/{}",
        encode(user),
        encode(password),
        server.host(),
        server.port(),
        encode(database)
    )
}

pub fn url(server: &PostgresServer, database: &str) -> String {
    url_as(server, server.user(), server.password(), database)
}

pub fn source_at(server: &PostgresServer, url: String) -> PostgresSource {
    PostgresSource::new(&policy(server), SecretText::new(url))
}

pub fn target(url: String) -> Target {
    Target::Postgres(SecretText::new(url))
}

/// Takes a point of one database.
pub async fn take(server: &PostgresServer, database: &str) -> Point {
    capture(&source_at(server, url(server, database))).await.unwrap()
}

/// Takes a point as a job does.
pub async fn capture(source: &PostgresSource) -> Result<Point> {
    let (context, _scratch) = context();
    let run = context.run;
    let mut capture = source.capture(context).await?;
    let result: Result<_> = async {
        let mut units: Vec<(RestoredUnit, Bytes)> = Vec::new();
        while let Some(head) = capture.next().await? {
            let mut content = Vec::new();
            capture
                .open()
                .await?
                .read_to_end(&mut content)
                .await
                .map_err(|e| Error::failed("read").because(e))?;
            capture.close().await?;
            if let Some((last, _)) = units.last() {
                assert!(
                    last.name < head.name,
                    "units out of order: {} {}",
                    last.name,
                    head.name
                );
            }
            let unit = RestoredUnit {
                name: head.name,
                size: content.len() as u64,
                attributes: head.attributes,
            };
            units.push((unit, content.into()));
        }
        Ok((units, capture.finish().await?))
    }
    .await;
    capture.cleanup().await;
    let (units, captured) = result?;
    assert!(serde_json::to_string(&captured.facts).unwrap().len() <= 1024);
    Ok(Point { units, captured, run })
}

/// Restores a point as a job does.
pub async fn restore(server: &PostgresServer, point: &Point, to: Target) -> Result<Restored> {
    restore_with(server, point, to, RestoreOptions::default(), None).await
}

pub async fn restore_with(
    server: &PostgresServer,
    point: &Point,
    to: Target,
    options: RestoreOptions,
    damage: Option<usize>,
) -> Result<Restored> {
    let (mut context, _scratch) = context();
    context.run = point.run;
    let restorer = LogicalRestorer::new().with_client_dir(Some(server.client_dir()));
    restorer.examine(&context, &to, &options).await?;
    let outline = point.outline(&restorer);
    restorer.parts(&outline, &options)?;
    restorer.examine_for(&context, &outline, &to, &options).await?;
    restorer
        .restore(&context, &mut point.content(damage), &to, &options)
        .await
}

/// The message, its causes and its hint.
pub fn told(error: &Error) -> String {
    format!("{} ({})", error.chain(), error.hint_text().unwrap_or_default())
}
