//! Who can read what: every present recipient reads every point taken since; an identity that opens nothing is told.

use std::path::PathBuf;
use std::sync::Arc;

use lifeboat::jobs::{check, keys};
use lifeboat::source::{Cut, Level};

use crate::in_memory;
use crate::world::{Fixture, MapSource, noise};

fn source() -> MapSource {
    MapSource::default().with("data.db", Cut::Pages, noise(300 << 10, 1))
}

/// A key pair beside the state directory: file and recipient.
fn key(fixture: &Fixture, name: &str) -> (PathBuf, String) {
    let file = fixture.identity().with_file_name(name);
    let recipient = keys::generate(&fixture.session.world, &file).unwrap();
    (file, recipient)
}

fn set_recipients(fixture: &mut Fixture, recipients: &[&String]) {
    let policy = Arc::make_mut(&mut fixture.session.policy);
    policy.encryption.recipients = recipients.iter().map(|r| (*r).clone()).collect();
}

#[tokio::test(flavor = "multi_thread")]
async fn points_taken_after_the_recipients_changed_open_to_each_of_them() {
    let (mut fixture, _) = in_memory(120).await;
    let old = fixture.session.policy.encryption.recipients[0].clone();
    let (second_file, second) = key(&fixture, "second");
    let (third_file, third) = key(&fixture, "third");
    let first_point = fixture.run(&source()).await.unwrap();
    assert!(first_point.warnings.is_empty(), "{:?}", first_point.warnings);

    // Without an identity at hand nothing older can be opened to the new ones: all is uploaded again.
    set_recipients(&mut fixture, &[&second, &third]);
    let replaced = fixture.run(&source()).await.unwrap();
    assert_eq!((replaced.commit.parent, replaced.bytes_reused), (None, 0));
    assert!(
        replaced.warnings[0].contains("the recipients changed"),
        "{:?}",
        replaced.warnings
    );
    for file in [&second_file, &third_file] {
        let content = fixture.content_with(replaced.commit.run, file).await.unwrap();
        assert!(content["data.db"] == source().units["data.db"].content);
    }
    assert!(
        fixture.content(replaced.commit.run).await.is_err(),
        "the old one is no recipient any more"
    );
    fixture.assert_restores(first_point.commit.run, &source()).await;

    // One more: the same. With the identity of an older recipient at hand only a wrap is added.
    set_recipients(&mut fixture, &[&second, &third, &old]);
    fixture.session.identity_file = Some(second_file.clone());
    let added = fixture.run(&source()).await.unwrap();
    assert_eq!(added.commit.parent, Some(replaced.commit.run));
    assert!(
        added.bytes_reused > 0 && added.warnings.is_empty(),
        "{:?}",
        added.warnings
    );
    fixture.session.identity_file = None;
    fixture.assert_restores(added.commit.run, &source()).await;
    // A recipient that is gone costs nothing.
    set_recipients(&mut fixture, &[&second, &old]);
    let fewer = fixture.run(&source()).await.unwrap();
    assert_eq!(fewer.commit.parent, Some(added.commit.run));
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_rewrap_nothing_is_uploaded_again() {
    let (mut fixture, _) = in_memory(121).await;
    let old = fixture.session.policy.encryption.recipients[0].clone();
    let first = fixture.run(&source()).await.unwrap();
    let (file, added) = key(&fixture, "added");
    set_recipients(&mut fixture, &[&old, &added]);
    fixture.session.identity_file = Some(fixture.identity());
    keys::rewrap(&fixture.session).await.unwrap();
    fixture.session.identity_file = None;
    let second = fixture.run(&source()).await.unwrap();
    assert_eq!(second.commit.parent, Some(first.commit.run));
    for run in [first.commit.run, second.commit.run] {
        fixture.content_with(run, &file).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn check_tells_an_identity_that_opens_nothing() {
    let (mut fixture, _) = in_memory(122).await;
    let (wrong, _) = key(&fixture, "wrong");
    let (other, added) = key(&fixture, "other");
    let found = async |fixture: &Fixture| {
        let report = check::check(&fixture.session, false).await.unwrap();
        let finding = report.findings.into_iter().find(|f| f.name == "identity");
        finding.map(|f| (f.level, f.text))
    };
    assert_eq!(found(&fixture).await, None);
    // Before the first run the recipients decide, then the generations.
    for _ in 0..2 {
        fixture.session.identity_file = Some(wrong.clone());
        let (level, text) = found(&fixture).await.unwrap();
        assert_eq!(level, Level::Error, "{text}");
        assert!(text.contains("opens nothing"), "{text}");
        fixture.session.identity_file = Some(fixture.identity());
        assert_eq!(found(&fixture).await.unwrap().0, Level::Ok);
        fixture.session.identity_file = None;
        fixture.run(&source()).await.unwrap();
    }
    let old = fixture.session.policy.encryption.recipients[0].clone();
    set_recipients(&mut fixture, &[&old, &added]);
    fixture.run(&source()).await.unwrap();
    fixture.session.identity_file = Some(other);
    let (level, text) = found(&fixture).await.unwrap();
    assert_eq!(level, Level::Warning, "{text}");
    assert!(
        text.contains("of the newest 2 generations the identity opens 1"),
        "{text}"
    );
}
