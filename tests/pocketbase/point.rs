//! A point in memory: what a capture gave, handed to a restorer.
#![allow(clippy::unwrap_used)]

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use lifeboat::clock::World;
use lifeboat::error::Result;
use lifeboat::policy::{PocketBasePlace, PocketBasePolicy, SecretRef};
use lifeboat::progress::Silent;
use lifeboat::source::pocketbase::{PocketBaseRestorer, PocketBaseSource};
use lifeboat::source::{
    Context, PointContent, RestoreOptions, Restored, RestoredUnit, Restorer as _, Source as _, Target,
};
use lifeboat::types::RunId;
use tokio::io::AsyncReadExt as _;
use tokio_util::sync::CancellationToken;

#[derive(Debug)]
pub struct Point {
    pub units: VecDeque<(RestoredUnit, Vec<u8>)>,
    left: Option<Bytes>,
    pub at: DateTime<Utc>,
    pub warnings: Vec<String>,
}

impl Point {
    pub fn unit(&self, name: &str) -> Option<&[u8]> {
        self.units
            .iter()
            .find(|(u, _)| u.name.as_str() == name)
            .map(|(_, b)| b.as_slice())
    }
}

#[async_trait]
impl PointContent for Point {
    async fn next(&mut self) -> Result<Option<RestoredUnit>> {
        let Some((unit, bytes)) = self.units.pop_front() else {
            return Ok(None);
        };
        self.left = (!bytes.is_empty()).then(|| bytes.into());
        Ok(Some(unit))
    }
    async fn read(&mut self) -> Result<Option<Bytes>> {
        Ok(self.left.take())
    }
}

pub fn context(scratch: &Path) -> Context {
    let world = World::system();
    Context {
        source: "app".parse().unwrap(),
        run: RunId::new(world.ulid().unwrap()),
        world,
        scratch: scratch.to_owned(),
        cancel: CancellationToken::new(),
        progress: Arc::new(Silent),
        known: lifeboat::source::stamps::Stamps::default(),
    }
}

pub fn local(path: &Path) -> PocketBaseSource {
    let place = PocketBasePlace::Local(path.to_owned());
    PocketBaseSource::new(
        &PocketBasePolicy {
            place,
            logs: true,
            storage: true,
            settings_key: None,
        },
        None,
    )
}

pub fn remote(url: &str, identity: &str, password: &str) -> PocketBaseSource {
    let reference = SecretRef::Env("UNUSED".into());
    let place = PocketBasePlace::Remote {
        url: url.to_owned(),
        identity: reference.clone(),
        password: reference,
    };
    let secret = |text: &str| lifeboat::secret::SecretText::new(text.to_owned());
    let policy = PocketBasePolicy {
        place,
        logs: true,
        storage: true,
        settings_key: None,
    };
    PocketBaseSource::new(&policy, Some((secret(identity), secret(password))))
}

/// Takes a snapshot into memory, as a run does.
pub async fn take(source: &PocketBaseSource) -> Result<Point> {
    let scratch = tempfile::tempdir().unwrap();
    let mut capture = source.capture(context(scratch.path())).await?;
    let mut units = VecDeque::new();
    while let Some(head) = capture.next().await? {
        let mut bytes = Vec::new();
        let mut content = capture.open().await?;
        content.read_to_end(&mut bytes).await.unwrap();
        capture.close().await?;
        let unit = RestoredUnit {
            name: head.name,
            size: bytes.len() as u64,
            attributes: head.attributes,
        };
        units.push_back((unit, bytes));
    }
    let captured = capture.finish().await?;
    capture.cleanup().await;
    let names: Vec<_> = units.iter().map(|(u, _)| u.name.clone()).collect();
    assert!(names.is_sorted(), "units come in order");
    assert!(captured.facts["rows"].is_u64());
    Ok(Point {
        units,
        left: None,
        at: captured.at,
        warnings: captured.warnings,
    })
}

/// Restores into a directory and expects the facts to agree.
pub async fn restore(mut point: Point, to: &Path) -> Restored {
    let scratch = tempfile::tempdir().unwrap();
    let context = context(scratch.path());
    let target = Target::Directory(to.to_owned());
    let options = RestoreOptions::default();
    PocketBaseRestorer
        .examine(&context, &target, &options)
        .await
        .unwrap();
    let restored = PocketBaseRestorer
        .restore(&context, &mut point, &target, &options)
        .await
        .unwrap();
    assert!(restored.differences.is_empty(), "{:?}", restored.differences);
    restored
}
