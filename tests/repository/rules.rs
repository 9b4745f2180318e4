//! Single rules of the format, each with a test that fails without it.

use std::process::Command;
use std::sync::Arc;

use chrono::TimeDelta;
use lifeboat::error::Kind;
use lifeboat::jobs::backup::Engine;
use lifeboat::repository::documents::{Commit, RepositoryDocument, Tombstone};
use lifeboat::repository::{Repository, Settings, layout};
use lifeboat::source::Cut;
use lifeboat::store::{Store, View};
use lifeboat::types::Key;

use crate::world::{Fixture, MapSource, noise, text};
use crate::{in_directory, in_memory, pages};

fn small() -> MapSource {
    MapSource::default().with("data.db", Cut::Pages, noise(300 << 10, 1))
}

async fn bury(fixture: &Fixture, store: &dyn Store, run: lifeboat::types::RunId) {
    let tombstone = Tombstone {
        place: fixture.repository().await.place(&fixture.source, run),
        at: chrono::DateTime::UNIX_EPOCH,
        reason: "test".into(),
    };
    let bytes = serde_json::to_vec(&tombstone).unwrap();
    store
        .put(
            &layout::tombstone(&fixture.source, run),
            bytes.into(),
            Default::default(),
        )
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_builds_on_a_point_buried_for_half_the_grace() {
    let (fixture, store) = in_memory(50).await;
    let first = fixture.run(&small()).await.unwrap();
    bury(&fixture, &store, first.commit.run).await;
    fixture.clock.advance(TimeDelta::hours(35));
    let second = fixture.run(&small()).await.unwrap();
    assert_eq!(second.commit.parent, Some(first.commit.run), "35 of 36 hours");
    bury(&fixture, &store, second.commit.run).await;
    fixture.clock.advance(TimeDelta::hours(37));
    let third = fixture.run(&small()).await.unwrap();
    assert_eq!(third.commit.parent, None);
    fixture.assert_restores(third.commit.run, &small()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_week_or_other_recipients_make_a_new_generation() {
    let (mut fixture, store) = in_memory(51).await;
    let generation = |taken: &lifeboat::jobs::backup::Taken| taken.commit.generation.id;
    let first = fixture.run(&small()).await.unwrap();
    fixture.clock.advance(TimeDelta::days(6));
    let second = fixture.run(&small()).await.unwrap();
    assert_eq!(generation(&first), generation(&second));
    fixture.clock.advance(TimeDelta::days(2));
    let third = fixture.run(&small()).await.unwrap();
    assert_ne!(generation(&first), generation(&third));
    assert_eq!(
        third.commit.parent,
        Some(second.commit.run),
        "packs of older generations are still drawn on"
    );
    let other = fixture.state_dir().join("other");
    let recipient = lifeboat::jobs::keys::generate(&fixture.session.world, &other).unwrap();
    let policy = Arc::make_mut(&mut fixture.session.policy);
    policy.encryption.recipients.push(recipient);
    let fourth = fixture.run(&small()).await.unwrap();
    assert_ne!(generation(&third), generation(&fourth));
    fixture.assert_restores(fourth.commit.run, &small()).await;
    // No identity ever rests on the host that backs up, nor in the repository.
    for key in store.keys() {
        let bytes = store.get(&key, None, View::Current).await.unwrap();
        let text = String::from_utf8_lossy(&bytes);
        // The pages say what an identity looks like; none is followed by a key.
        let mut keys = text.split("AGE-SECRET-KEY-1").skip(1);
        assert!(
            !keys.any(|rest| rest.starts_with(|c: char| c.is_ascii_alphanumeric())),
            "{key}"
        );
    }
    let state = std::process::Command::new("grep")
        .args(["-rl", "AGE-SECRET-KEY"])
        .arg(fixture.state_dir())
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8(state.stdout).unwrap().trim(),
        other.display().to_string()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn init_refuses_what_may_be_somebodys_repository() {
    let (fixture, store) = in_memory(52).await;
    fixture.run(&small()).await.unwrap();
    assert_eq!(fixture.session.init().await.unwrap_err().kind(), Kind::Usage);
    store.lose(&layout::repository());
    let error = fixture.session.init().await.unwrap_err();
    assert!(error.message().contains("no lifeboat.json"), "{error:?}");
    let shared = fixture.session.store.clone().unwrap();
    assert_eq!(
        Repository::open(shared, Settings::default(), None)
            .await
            .unwrap_err()
            .kind(),
        Kind::NoRepository
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_format_is_neither_written_nor_swept() {
    let (fixture, store) = in_memory(53).await;
    let taken = fixture.run(&small()).await.unwrap();
    let key = layout::repository();
    let good = store.get(&key, None, View::Current).await.unwrap();
    let mut newer = RepositoryDocument::parse(&good, &key, "here").unwrap();
    newer.format += 1;
    store.tamper(&key, newer.to_bytes().unwrap().into());
    let before = store.keys();
    let error = fixture.run(&small()).await.unwrap_err();
    assert!(error.hint_text().unwrap().contains("newer Lifeboat"), "{error:?}");
    lifeboat::jobs::prune::prune(&fixture.session, false)
        .await
        .unwrap_err();
    assert_eq!(store.keys(), before);
    store.tamper(&key, good);
    // A commit with a feature that must be understood.
    let mut commit = taken.commit.clone();
    commit.must_understand = vec!["holograms".into()];
    store.tamper(
        &layout::commit(&fixture.source, commit.run),
        commit.to_bytes().unwrap().into(),
    );
    let error = fixture.content(commit.run).await.unwrap_err();
    assert!(error.message().contains("holograms"), "{error:?}");
    lifeboat::jobs::prune::prune(&fixture.session, false)
        .await
        .unwrap_err();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_is_run_by_one_at_a_time() {
    let (fixture, _) = in_memory(54).await;
    let policy = &fixture.session.policy.sources[&fixture.source];
    let engine = || async {
        let repository = fixture.session.open_for_writing().await.unwrap();
        Engine::new(&fixture.session, repository, &fixture.source, policy, None)
    };
    let first = engine().await.unwrap();
    assert_eq!(engine().await.err().unwrap().kind(), Kind::Busy);
    drop(first);
    assert!(engine().await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_replayed_or_swapped_is_never_taken_for_another() {
    let (fixture, store) = in_memory(55).await;
    let first = fixture.run(&small()).await.unwrap().commit;
    fixture.clock.advance(TimeDelta::minutes(1));
    let mut source = small();
    source.set(
        "data.db",
        Cut::Pages,
        pages(source.units["data.db"].content.clone(), &[1, 2], 9),
    );
    let second = fixture.run(&source).await.unwrap().commit;
    let get = async |key: &Key| store.get(key, None, View::Current).await.unwrap();
    for name in ["0.age", "manifest.age", "refs", "SHA256SUMS"] {
        let (from, to) = (
            layout::run_object(&fixture.source, first.run, name),
            layout::run_object(&fixture.source, second.run, name),
        );
        let good = get(&to).await;
        store.tamper(&to, get(&from).await);
        assert_eq!(
            fixture.content(second.run).await.unwrap_err().kind(),
            Kind::Damaged,
            "{name}"
        );
        store.tamper(&to, good);
    }
    let (from, to) = (
        layout::commit(&fixture.source, first.run),
        layout::commit(&fixture.source, second.run),
    );
    store.tamper(&to, get(&from).await);
    let read: lifeboat::error::Result<Option<Commit>> = fixture
        .repository()
        .await
        .commit(&fixture.source, second.run)
        .await;
    assert_eq!(read.unwrap_err().kind(), Kind::Damaged);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_reads_with_age_zstd_and_sha256sum() {
    let (fixture, directory) = in_directory(56).await;
    let content = text(5 << 20, 3);
    let taken = fixture
        .run(&MapSource::default().with("dump", Cut::Stream, content.clone()))
        .await
        .unwrap();
    let prefix = directory
        .path()
        .join(layout::run_prefix(&fixture.source, taken.commit.run));
    let sums = Command::new("sha256sum")
        .args(["-c", "--quiet", "SHA256SUMS"])
        .current_dir(&prefix)
        .status()
        .unwrap();
    assert!(sums.success());
    let generation = directory
        .path()
        .join(layout::generation_prefix(taken.commit.generation.id));
    let wrap = std::fs::read_dir(generation)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let key = directory.path().join("generation.key");
    let age = |identity: &std::path::Path, file: &std::path::Path| {
        let done = Command::new("age")
            .arg("-d")
            .arg("-i")
            .arg(identity)
            .arg(file)
            .output()
            .unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        done.stdout
    };
    std::fs::write(&key, age(&fixture.identity(), &wrap)).unwrap();
    let plain = age(&key, &prefix.join("0.age"));
    std::fs::write(directory.path().join("pack.zst"), plain).unwrap();
    let zstd = Command::new("zstd")
        .args(["-d", "-q", "-c"])
        .arg(directory.path().join("pack.zst"))
        .output()
        .unwrap();
    assert!(zstd.stdout == content, "age -d | zstd -d gives the content");
    // The last pack is padded: its size tells only a magnitude.
    let plain = std::fs::metadata(directory.path().join("pack.zst"))
        .unwrap()
        .len();
    assert_eq!(lifeboat::repository::frame::padme(plain), plain);
}

#[tokio::test(flavor = "multi_thread")]
async fn packs_are_written_again_when_refresh_says_so() {
    let (mut fixture, _) = in_memory(57).await;
    let policy = Arc::make_mut(&mut fixture.session.policy);
    policy.sources.get_mut(&fixture.source).unwrap().refresh =
        Some(std::time::Duration::from_secs(90 * 86_400));
    let source = MapSource::default().with("data.db", Cut::Pages, noise(40 << 20, 1));
    let first = fixture.run(&source).await.unwrap().commit.run;
    let mut drawn = Vec::new();
    for day in 0..125 {
        fixture.clock.advance(TimeDelta::days(1));
        let taken = fixture.run(&source).await.unwrap();
        assert!(taken.bytes_stored < 22 << 20, "day {day}: at most a pack a day");
        let repository = fixture.repository().await;
        let refs = repository
            .refs(&fixture.source, taken.commit.run, taken.commit.refs)
            .await
            .unwrap();
        drawn.push(
            refs.0
                .get(&first)
                .map_or(0, |r| r.packs.iter().map(|(a, b)| b - a + 1).sum::<u32>()),
        );
        if day == 124 {
            fixture.assert_restores(taken.commit.run, &source).await;
        }
    }
    assert_eq!(drawn[80], 3, "nothing is old enough yet");
    assert_eq!(drawn[124], 0, "everything was written again within thirty days");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_run_left_in_the_state_directory_is_removed_and_a_living_one_is_not() {
    let (fixture, _) = in_memory(58).await;
    let state = lifeboat::state::StateDir::open(fixture.state_dir()).unwrap();
    let living = state
        .scratch("01ARZ3NDEKTSV4RRFFQ69G5FAV".parse().unwrap())
        .unwrap();
    let dead = fixture.state_dir().join("scratch/01ARZ3NDEKTSV4RRFFQ69G5FAW");
    std::fs::create_dir(&dead).unwrap();
    std::fs::write(dead.join("data.db"), b"spooled").unwrap();
    fixture.run(&small()).await.unwrap();
    assert!(!dead.exists());
    assert!(living.path().exists());
    drop(living);
    assert_eq!(
        std::fs::read_dir(fixture.state_dir().join("scratch"))
            .unwrap()
            .count(),
        0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_and_deletions_laid_over_everything_change_nothing_with_versions() {
    let mut kept = None;
    let mut fixture = Fixture::new(59, |world| {
        let store = lifeboat::store::memory::MemoryStore::versioned(world);
        kept = Some(store.clone());
        Arc::new(store) as lifeboat::store::SharedStore
    })
    .await;
    let store = kept.unwrap();
    let run = fixture.run(&small()).await.unwrap().commit.run;
    for (n, key) in store.keys().into_iter().enumerate() {
        if n % 2 == 0 {
            store.tamper(&key, vec![b'x'; 400].into());
        } else {
            store.delete(&key).await.unwrap();
        }
    }
    let verify = |session: &lifeboat::jobs::Session| {
        let session = session.clone();
        async move { lifeboat::jobs::verify::verify(&session, None, None, true).await }
    };
    fixture.session.identity_file = Some(fixture.identity());
    assert!(
        verify(&fixture.session).await.is_err(),
        "without --versions nothing can be read"
    );
    fixture.session.versions = true;
    let report = verify(&fixture.session).await.unwrap();
    assert!(
        report.damaged.is_empty() && report.missing.is_empty(),
        "{report:?}"
    );
    let list = lifeboat::jobs::list::list(&fixture.session, None).await.unwrap();
    assert_eq!(list.sources[0].points[0].run, run);
    let shared = fixture.session.store.clone().unwrap();
    let settings = Settings {
        versions: true,
        object_lock: None,
    };
    let repository = Repository::open(shared, settings, None).await.unwrap();
    let commit = repository.commit(&fixture.source, run).await.unwrap().unwrap();
    let text = std::fs::read_to_string(fixture.identity()).unwrap();
    let identities =
        lifeboat::repository::generation::parse_identities(&lifeboat::secret::SecretText::new(text), "test")
            .unwrap();
    let mut keys = lifeboat::repository::generation::KeyRing::new(identities);
    lifeboat::repository::reader::OpenPoint::open(&repository, &fixture.source, &commit, &mut keys)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_bit_of_lifeboat_json_counts() {
    let (fixture, store) = in_memory(80).await;
    let key = layout::repository();
    let good = store.get(&key, None, View::Current).await.unwrap();
    for bit in 0..good.len() * 8 {
        let mut bytes = good.to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        store.tamper(&key, bytes.into());
        let opened = fixture.session.open(lifeboat::jobs::session::Role::Writer).await;
        assert!(opened.is_err(), "bit {bit} flipped, and the repository opens");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_of_damage_that_is_not_true_hides_nothing() {
    let (fixture, store) = in_memory(81).await;
    let taken = fixture.run(&small()).await.unwrap();
    let place = fixture.place(taken.commit.run).await;
    let damage = |object: &str| lifeboat::repository::documents::Damage {
        place: place.clone(),
        object: object.to_owned(),
        problem: lifeboat::repository::documents::Damage::MISSING.to_owned(),
        at: chrono::DateTime::UNIX_EPOCH,
    };
    let request = lifeboat::jobs::restore::Request {
        source: fixture.source.clone(),
        aim: lifeboat::jobs::restore::Aim::When(lifeboat::when::When::Latest),
        target: None,
        options: lifeboat::source::RestoreOptions::default(),
        max_gap: None,
        gap_accepted: false,
    };
    let record = async |object: &str| {
        let key = layout::damaged(&fixture.source, fixture.session.world.ulid().unwrap());
        let bytes = serde_json::to_vec(&damage(object)).unwrap();
        store.put(&key, bytes.into(), Default::default()).await.unwrap();
    };
    for object in ["0.age", layout::MANIFEST, layout::SUMS] {
        record(object).await;
        lifeboat::jobs::restore::plan(&fixture.session, &request)
            .await
            .unwrap();
    }
    // A true one does.
    store.lose(&layout::pack(&fixture.source, taken.commit.run, 0));
    let error = lifeboat::jobs::restore::plan(&fixture.session, &request)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Damaged);
}
