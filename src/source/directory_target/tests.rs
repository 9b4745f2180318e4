use std::os::unix::fs::{MetadataExt as _, symlink};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::clock::World;
use crate::error::Kind;
use crate::progress::Silent;
use crate::source::Attributes;
use crate::types::UnitName;

struct One(Vec<Bytes>);

#[async_trait]
impl PointContent for One {
    async fn next(&mut self) -> Result<Option<RestoredUnit>> {
        Ok(None)
    }
    async fn read(&mut self) -> Result<Option<Bytes>> {
        Ok(if self.0.is_empty() {
            None
        } else {
            Some(self.0.remove(0))
        })
    }
}

fn context() -> Context {
    let world = World::system();
    Context {
        source: "app".parse().unwrap(),
        run: RunId::new(world.ulid().unwrap()),
        scratch: PathBuf::new(),
        cancel: CancellationToken::new(),
        progress: Arc::new(Silent),
        world,
        known: crate::source::stamps::Stamps::default(),
    }
}

fn unit(name: &str, size: u64) -> RestoredUnit {
    RestoredUnit {
        name: UnitName::from_bytes(name.as_bytes()).unwrap(),
        size,
        attributes: Attributes {
            mode: Some(0o4640),
            modified_ms: Some(1_700_000_000_123),
        },
    }
}

async fn put(target: &mut DirectoryTarget, name: &str, text: &str) -> Result<u64> {
    let mut content = One(vec![Bytes::copy_from_slice(text.as_bytes())]);
    target
        .write_unit(&unit(name, text.len() as u64), &mut content)
        .await
}

#[tokio::test]
async fn writes_files_and_takes_the_marker_away_last() {
    let base = tempfile::tempdir().unwrap();
    let path = base.path().join("new/target");
    let context = context();
    let mut target = DirectoryTarget::open(&context, &path).unwrap();
    assert_eq!(put(&mut target, "a/b/one", "1").await.unwrap(), 1);
    put(&mut target, "a/b/two", "22").await.unwrap();
    put(&mut target, "z\n%", "").await.unwrap();
    assert!(path.join(MARKER).exists());
    target.finish().await.unwrap();
    assert!(!path.join(MARKER).exists());
    assert_eq!(std::fs::read_to_string(path.join("a/b/two")).unwrap(), "22");
    let meta = std::fs::metadata(path.join("a/b/one")).unwrap();
    assert_eq!(meta.mode() & 0o7777, 0o640, "no setuid bit comes back");
    assert_eq!((meta.mtime(), meta.mtime_nsec()), (1_700_000_000, 123_000_000));
    assert_eq!(std::fs::metadata(path.join("a")).unwrap().mode() & 0o777, 0o700);
    assert_eq!(std::fs::metadata(path.join("z\n%")).unwrap().len(), 0);
}

#[tokio::test]
async fn the_same_restore_goes_on_and_another_is_refused() {
    let base = tempfile::tempdir().unwrap();
    let context = context();
    let mut target = DirectoryTarget::open(&context, base.path()).unwrap();
    put(&mut target, "one", "half").await.unwrap();
    assert!(
        DirectoryTarget::open(&context, base.path()).is_err(),
        "two at once"
    );
    drop(target);
    let mut other = context.clone();
    other.run = RunId::new(context.world.ulid().unwrap());
    let error = DirectoryTarget::examine(&other, base.path()).unwrap_err();
    assert_eq!(error.kind(), Kind::Usage);
    assert!(error.message().contains(&context.run.to_string()), "{error}");
    let mut target = DirectoryTarget::open(&context, base.path()).unwrap();
    put(&mut target, "one", "whole").await.unwrap();
    target.finish().await.unwrap();
    assert_eq!(std::fs::read_to_string(base.path().join("one")).unwrap(), "whole");
    assert!(
        DirectoryTarget::examine(&context, base.path()).is_err(),
        "complete: not empty"
    );
}

#[tokio::test]
async fn names_five_things_in_the_way() {
    let base = tempfile::tempdir().unwrap();
    for n in 0..7 {
        std::fs::write(base.path().join(format!("f{n}")), "").unwrap();
    }
    let error = DirectoryTarget::examine(&context(), base.path()).unwrap_err();
    assert_eq!(error.kind(), Kind::Usage);
    assert!(error.message().ends_with("more"), "{error}");
    assert_eq!(error.message().matches("\"f").count(), 5, "{error}");
    let file = base.path().join("f0");
    assert_eq!(
        DirectoryTarget::examine(&context(), &file).unwrap_err().kind(),
        Kind::Usage
    );
}

#[tokio::test]
async fn a_planted_link_leads_nowhere() {
    let base = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("victim"), "safe").unwrap();
    let mut target = DirectoryTarget::open(&context(), base.path()).unwrap();
    symlink(outside.path(), base.path().join("dir")).unwrap();
    symlink(outside.path().join("victim"), base.path().join("file")).unwrap();
    assert!(put(&mut target, "dir/new", "x").await.is_err());
    put(&mut target, "file", "own").await.unwrap();
    assert!(!outside.path().join("new").exists());
    assert_eq!(
        std::fs::read_to_string(outside.path().join("victim")).unwrap(),
        "safe"
    );
}

#[tokio::test]
async fn a_wrong_length_a_cancel_and_the_marker_name_are_errors() {
    let base = tempfile::tempdir().unwrap();
    let context = context();
    let mut target = DirectoryTarget::open(&context, base.path()).unwrap();
    let mut short = One(vec![Bytes::from_static(b"abc")]);
    let error = target.write_unit(&unit("x", 4), &mut short).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Damaged);
    assert_eq!(
        put(&mut target, MARKER, "").await.unwrap_err().kind(),
        Kind::Damaged
    );
    context.cancel.cancel();
    assert_eq!(
        put(&mut target, "y", "1").await.unwrap_err().kind(),
        Kind::Interrupted
    );
    assert!(base.path().join(MARKER).exists());
}

#[tokio::test]
async fn a_large_file_is_what_it_was_and_a_false_size_is_told() {
    let base = tempfile::tempdir().unwrap();
    let mut target = DirectoryTarget::open(&context(), base.path()).unwrap();
    let pieces: Vec<Bytes> = (1..=10u8).map(|n| vec![n; 3 << 20].into()).collect();
    let size = 30 << 20;
    let mut content = One(pieces.clone());
    let written = target.write_unit(&unit("large", size), &mut content).await;
    assert_eq!(written.unwrap(), size);
    assert!(std::fs::read(base.path().join("large")).unwrap() == pieces.concat());
    for (name, false_size) in [("longer", size + 1), ("shorter", size - 1), ("endless", u64::MAX)] {
        let mut content = One(pieces.clone());
        let error = target.write_unit(&unit(name, false_size), &mut content).await;
        let error = error.unwrap_err();
        assert_eq!(error.kind(), Kind::Damaged, "{error}");
        assert!(error.to_string().contains(&format!("{size} bytes, recorded")));
    }
}
