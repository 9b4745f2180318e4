//! Every store keeps the contract of `lifeboat::store`: memory, a directory, an S3 server in this process, a real
//! SeaweedFS; and the S3 store tells every fault of a server for what it is.

#![allow(clippy::unwrap_used)]

#[path = "stores/faults.rs"]
mod faults;
#[path = "harness/seaweedfs.rs"]
mod seaweedfs;

use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use chrono::Utc;
use hyper_util::rt::{TokioExecutor, TokioIo};
use lifeboat::clock::World;
use lifeboat::error::Kind;
use lifeboat::policy::{RepositoryPolicy, StoreUrl};
use lifeboat::secret::SecretText;
use lifeboat::store::directory::DirectoryStore;
use lifeboat::store::memory::{MemoryOptions, MemoryStore};
use lifeboat::store::retry::Retry;
use lifeboat::store::s3::{S3Config, S3Store, S3Timeouts};
use lifeboat::store::wrappers::{Observe, Operation};
use lifeboat::store::{
    Abilities, Fault, Lock, LockMode, PutOptions, SharedStore, Store, StoreError, View, conformance, list_all,
};
use lifeboat::types::{Digest, Key};
use seaweedfs::SeaweedFs;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

fn world() -> World {
    World::system()
}

fn key(text: &str) -> Key {
    Key::from_text(text)
}

fn secret(text: &str) -> SecretText {
    SecretText::new(text.to_owned())
}

async fn probe(store: &SharedStore) -> Abilities {
    let found = store
        .probe("probe/01JDAAAAAAAAAAAAAAAAAAAAAA/", world().clock.now())
        .await;
    found.unwrap()
}

async fn conform(store: SharedStore) -> Abilities {
    conform_but(store, &[]).await
}

/// Every rule holds but for those that the server is known to break.
async fn conform_but(store: SharedStore, known: &[&str]) -> Abilities {
    let abilities = probe(&store).await;
    let mut broken = conformance::run(store, &abilities)
        .await
        .err()
        .unwrap_or_default();
    broken.retain(|b| !known.contains(&b.rule));
    assert!(broken.is_empty(), "{broken:#?}");
    abilities
}

/// What every store here can do.
fn able() -> Abilities {
    Abilities {
        refuses_overwrite: true,
        checks_digest: true,
        lists_at_once: true,
        reads_ranges: true,
        keeps_versions: false,
        locks: false,
        deletes: true,
        clock_offset_ms: 0,
    }
}

fn without_offset(abilities: Abilities) -> Abilities {
    assert!(abilities.clock_offset_ms.abs() < 5_000, "{abilities:?}");
    Abilities {
        clock_offset_ms: 0,
        ..abilities
    }
}

#[tokio::test]
async fn memory_conforms() {
    let found = conform(Arc::new(MemoryStore::new(&world()))).await;
    assert_eq!(without_offset(found), able());
    let found = conform(Arc::new(MemoryStore::versioned(&world()))).await;
    let versioned = Abilities {
        keeps_versions: true,
        locks: true,
        ..able()
    };
    assert_eq!(without_offset(found), versioned);
    let careless = MemoryOptions {
        refuses_overwrite: false,
        page: 7,
        ..MemoryOptions::default()
    };
    let found = conform(Arc::new(MemoryStore::with_options(&world(), careless))).await;
    assert!(!found.refuses_overwrite);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_conforms() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("new/backups");
    let store = DirectoryStore::create(root.clone()).unwrap();
    let found = conform(Arc::new(store)).await;
    assert_eq!(without_offset(found), able());
    assert_modes(&root);
    // Nothing is left where files are written before they have their names.
    let staging: Vec<_> = std::fs::read_dir(root.join(".lifeboat staging"))
        .unwrap()
        .collect();
    assert!(staging.is_empty(), "{staging:?}");
    // What was deleted leaves no empty directories.
    assert!(!root.join("probe").exists());
}

fn assert_modes(path: &Path) {
    let metadata = std::fs::symlink_metadata(path).unwrap();
    let mode = metadata.permissions().mode() & 0o777;
    if metadata.is_dir() {
        assert_eq!(mode, 0o700, "{}", path.display());
        for entry in std::fs::read_dir(path).unwrap() {
            assert_modes(&entry.unwrap().path());
        }
    } else {
        assert_eq!(mode, 0o600, "{}", path.display());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_follows_no_links_and_takes_no_odd_names() {
    let dir = tempfile::tempdir().unwrap();
    let (root, outside) = (dir.path().join("root"), dir.path().join("outside"));
    std::fs::create_dir_all(&outside).unwrap();
    std::fs::write(outside.join("file"), b"outside").unwrap();
    let store = DirectoryStore::create(root.clone()).unwrap();
    symlink(&outside, root.join("dir")).unwrap();
    symlink(outside.join("file"), root.join("link")).unwrap();

    for text in ["dir/file", "link"] {
        let error = store.get(&key(text), None, View::Current).await.unwrap_err();
        assert_eq!(error.fault, Fault::Refused, "{error}");
    }
    assert!(store.head(&key("link"), View::Current).await.is_err());
    let through = key("dir/new");
    let put = store.put(&through, Bytes::from_static(b"x"), PutOptions::default());
    assert!(put.await.is_err());
    assert!(!outside.join("new").exists());
    assert!(store.delete(&key("dir/file")).await.is_err());
    assert!(outside.join("file").exists());
    for text in ["", "/x", "a//b", "a/../b", "..", "a/.", "a b", "a\nb", "ä"] {
        let error = store
            .put(&key(text), Bytes::new(), PutOptions::default())
            .await
            .unwrap_err();
        assert_eq!(error.fault, Fault::Refused, "{text:?}: {error}");
        let error = store.get(&key(text), None, View::Current).await.unwrap_err();
        assert_eq!(error.fault, Fault::Refused, "{text:?}: {error}");
    }
    store
        .put(&key("real/file"), Bytes::from_static(b"x"), PutOptions::default())
        .await
        .unwrap();
    std::fs::write(root.join(".lifeboat staging/half"), b"half").unwrap();
    for prefix in ["", "d", "dir/", "..", "../outside/", "a//", "/"] {
        let page = match store.list(prefix, None, View::Current).await {
            // Not shown as empty: what is behind the link is not known.
            Err(e) if prefix == "dir/" && e.fault == Fault::Refused => continue,
            other => other.unwrap(),
        };
        let keys: Vec<_> = page.objects.iter().map(|o| o.key.as_str()).collect();
        let due: &[&str] = if prefix.is_empty() { &["real/file"] } else { &[] };
        assert_eq!(keys, due, "{prefix:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_removes_what_a_crash_left_and_nothing_younger() {
    let dir = tempfile::tempdir().unwrap();
    let staging = dir.path().join(".lifeboat staging");
    std::fs::create_dir(&staging).unwrap();
    for (name, hours) in [("1-0", 25), ("1-1", 23)] {
        let file = std::fs::File::create(staging.join(name)).unwrap();
        let then = world().clock.now() - chrono::Duration::hours(hours);
        file.set_modified(then.into()).unwrap();
    }
    let store = DirectoryStore::open(dir.path().to_owned());
    store
        .put(&key("a"), Bytes::from_static(b"x"), PutOptions::default())
        .await
        .unwrap();
    assert!(!staging.join("1-0").exists());
    assert!(staging.join("1-1").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_is_missing_is_no_bucket() {
    let dir = tempfile::tempdir().unwrap();
    let store = DirectoryStore::open(dir.path().join("none"));
    let put = store.put(&key("a"), Bytes::new(), PutOptions::default()).await;
    assert_eq!(put.unwrap_err().fault, Fault::NoBucket);
    let get = store.get(&key("a"), None, View::Current).await;
    assert_eq!(get.unwrap_err().fault, Fault::NoBucket);
    let head = store.head(&key("a"), View::Current).await;
    assert_eq!(head.unwrap_err().fault, Fault::NoBucket);
    assert_eq!(store.now().await.unwrap_err().fault, Fault::NoBucket);
    for prefix in ["", "a//"] {
        let list = store.list(prefix, None, View::Current).await;
        assert_eq!(list.unwrap_err().fault, Fault::NoBucket);
    }
    assert!(!dir.path().join("none").exists());
}

/// An S3 server in this process, over files; gives its endpoint.
async fn serve_s3_in_process(root: &Path) -> String {
    let mut builder = s3s::service::S3ServiceBuilder::new(s3s_fs::FileSystem::new(root).unwrap());
    builder.set_auth(s3s::auth::SimpleAuth::from_single("test-key", "test-secret"));
    let service = builder.build();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = service.clone();
            tokio::spawn(async move {
                let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                let _ = server.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    format!("http://{address}")
}

#[tokio::test(flavor = "multi_thread")]
async fn s3_in_process_conforms() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("bucket")).unwrap();
    let endpoint = serve_s3_in_process(dir.path()).await;
    let config = S3Config {
        endpoint: Some(endpoint),
        credentials: Some((secret("test-key"), secret("test-secret"))),
        ..S3Config::new("bucket".to_owned(), "some/prefix".to_owned())
    };
    // That server answers 500 for what is a directory to it and for names that are too long for its files, looks for the
    // key and writes it in two steps, and keeps an object whose digest it has refused.
    // It also says that it has encoded the keys of a list when it has not, which `%` suffers from.
    let known = [
        "odd keys are keys",
        "what is above a key is no key",
        "long keys are keys",
        "of parallel puts one wins",
    ];
    let store = Arc::new(S3Store::connect(config).await.unwrap());
    let found = conform_but(store, &known).await;
    let due = Abilities {
        checks_digest: false,
        ..able()
    };
    assert_eq!(without_offset(found), due);
}

fn weed_config(weed: &SeaweedFs, bucket: &str, prefix: &str) -> S3Config {
    S3Config {
        endpoint: Some(weed.endpoint.clone()),
        credentials: Some((secret(&weed.access_key), secret(&weed.secret_key))),
        ..S3Config::new(bucket.to_owned(), prefix.to_owned())
    }
}

async fn connect(config: S3Config) -> SharedStore {
    Arc::new(S3Store::connect(config).await.unwrap())
}

/// One server for all that needs one: it takes seconds to start.
#[tokio::test(flavor = "multi_thread")]
async fn seaweedfs_conforms_and_keeps_versions_and_locks() {
    let weed = tokio::task::spawn_blocking(SeaweedFs::start).await.unwrap();
    weed.create_bucket("plain", false).await;
    weed.create_bucket("locked", true).await;

    let found = conform(connect(weed_config(&weed, "plain", "shop")).await).await;
    assert_eq!(without_offset(found), able());
    // Smaller pages end in more places; and no prefix.
    let small = S3Config {
        page: 100,
        ..weed_config(&weed, "locked", "")
    };
    let found = conform(connect(small).await).await;
    let versioned = Abilities {
        keeps_versions: true,
        locks: true,
        ..able()
    };
    assert_eq!(without_offset(found), versioned);

    first_versions_show_through(&weed).await;
    locks_are_set_told_and_lengthened(&weed).await;
    wrong_credentials_and_buckets_are_told(&weed).await;
    tls_needs_the_right_authority(&weed).await;
    a_policy_opens_a_store(&weed).await;
}

async fn first_versions_show_through(weed: &SeaweedFs) {
    let client = weed.client();
    for page in [1000, 2] {
        let prefix = format!("first-{page}");
        let config = S3Config {
            page,
            ..weed_config(weed, "locked", &prefix)
        };
        let store = connect(config).await;
        let names = ["a-b", "a/1", "a/2", "a/3", "a0"];
        for name in names {
            let body = Bytes::from(format!("first {name}"));
            store.put(&key(name), body, PutOptions::default()).await.unwrap();
        }
        // Garbage laid over some, delete markers over others, both over one, and a key that never was ours.
        for (name, times) in [("a/1", 5), ("a/3", 1), ("a0", 3)] {
            for n in 0..times {
                let body = format!("garbage {n}").into_bytes().into();
                let call = client.put_object().bucket("locked").body(body);
                call.key(format!("{prefix}/{name}")).send().await.unwrap();
            }
        }
        for name in ["a-b", "a/3", "a0", "a/none"] {
            store.delete(&key(name)).await.unwrap();
        }
        let current = list_all(&*store, "", View::Current).await.unwrap();
        let current: Vec<_> = current.iter().map(|o| o.key.as_str()).collect();
        assert_eq!(current, ["a/1", "a/2"], "page {page}");
        let first = list_all(&*store, "", View::First).await.unwrap();
        let told: Vec<_> = first.iter().map(|o| (o.key.as_str(), o.size)).collect();
        let due: Vec<_> = names.iter().map(|n| (*n, 6 + n.len() as u64)).collect();
        assert_eq!(told, due, "page {page}");
        for name in names {
            let got = store.get(&key(name), None, View::First).await.unwrap();
            assert_eq!(got, format!("first {name}"));
            let part = store.get(&key(name), Some(1..5), View::First).await.unwrap();
            assert_eq!(part, "irst");
            let head = store.head(&key(name), View::First).await.unwrap().unwrap();
            assert_eq!(head.size, 6 + name.len() as u64);
        }
        assert!(store.head(&key("a0"), View::Current).await.unwrap().is_none());
        assert!(store.head(&key("a/none"), View::First).await.unwrap().is_none());
        let current = store.get(&key("a/1"), None, View::Current).await.unwrap();
        assert_eq!(current, "garbage 4");
    }
}

async fn locks_are_set_told_and_lengthened(weed: &SeaweedFs) {
    let store = connect(weed_config(weed, "locked", "locks")).await;
    let now = store.now().await.unwrap();
    let lock = |days: i64, mode| Lock {
        mode,
        until: now + chrono::Duration::days(days),
    };
    let (object, body) = (key("object"), Bytes::from_static(b"locked"));
    let options = PutOptions {
        digest: Some(Digest::of(&body)),
        lock: Some(lock(1, LockMode::Governance)),
        ..PutOptions::default()
    };
    store.put(&object, body.clone(), options).await.unwrap();
    let head = store.head(&object, View::Current).await.unwrap().unwrap();
    assert_eq!(head.lock, options.lock);

    store
        .extend_lock(&object, lock(3, LockMode::Governance))
        .await
        .unwrap();
    // Never shorter, and that is no error: it holds long enough.
    store
        .extend_lock(&object, lock(2, LockMode::Governance))
        .await
        .unwrap();
    let head = store.head(&object, View::First).await.unwrap().unwrap();
    assert_eq!(head.lock, Some(lock(3, LockMode::Governance)));

    // A plain delete lays a marker over it; the first version stays, its lock too, and can still be lengthened.
    store.delete(&object).await.unwrap();
    store
        .extend_lock(&object, lock(4, LockMode::Governance))
        .await
        .unwrap();
    let head = store.head(&object, View::First).await.unwrap().unwrap();
    assert_eq!(head.lock, Some(lock(4, LockMode::Governance)));
    let got = store.get(&object, None, View::First).await.unwrap();
    assert_eq!(got, body);

    let unlocked = key("unlocked");
    store
        .put(&unlocked, body.clone(), PutOptions::default())
        .await
        .unwrap();
    let head = store.head(&unlocked, View::Current).await.unwrap().unwrap();
    assert_eq!(head.lock, None);
    store
        .extend_lock(&unlocked, lock(1, LockMode::Compliance))
        .await
        .unwrap();
    // A stricter mode stays.
    store
        .extend_lock(&unlocked, lock(2, LockMode::Governance))
        .await
        .unwrap();
    let head = store.head(&unlocked, View::Current).await.unwrap().unwrap();
    assert_eq!(head.lock, Some(lock(2, LockMode::Compliance)));

    let missing = store
        .extend_lock(&key("none"), lock(1, LockMode::Governance))
        .await;
    assert_eq!(missing.unwrap_err().fault, Fault::NotFound);
    let plain = connect(weed_config(weed, "plain", "locks")).await;
    let refused = plain.put(&object, body, options).await.unwrap_err();
    assert!(!refused.fault.is_transient(), "{refused:?}");
    assert!(plain.head(&object, View::Current).await.unwrap().is_none());
}

/// Every call of a store, with the faults that they end in.
async fn all_faults(store: &SharedStore) -> Vec<Result<Fault, String>> {
    let key = key("some/key");
    let body = Bytes::from_static(b"body");
    fn fault<T>(result: Result<T, StoreError>) -> Result<Fault, String> {
        match result {
            Err(e) => Ok(e.fault),
            Ok(_) => Err("it worked".to_owned()),
        }
    }
    vec![
        fault(store.put(&key, body, PutOptions::default()).await),
        fault(store.get(&key, None, View::Current).await),
        fault(store.head(&key, View::Current).await),
        fault(store.list("some/", None, View::Current).await),
        fault(store.delete(&key).await),
        fault(store.list("some/", None, View::First).await),
    ]
}

async fn wrong_credentials_and_buckets_are_told(weed: &SeaweedFs) {
    let wrong_secret = S3Config {
        credentials: Some((secret(&weed.access_key), secret("sentinel-of-a-secret"))),
        ..weed_config(weed, "plain", "")
    };
    let wrong_key = S3Config {
        credentials: Some((secret("sentinel-of-a-key"), secret("sentinel-of-a-secret"))),
        ..weed_config(weed, "plain", "")
    };
    for config in [wrong_secret, wrong_key] {
        let store = connect(config).await;
        for fault in all_faults(&store).await {
            assert_eq!(fault, Ok(Fault::Denied));
        }
        let error = store.get(&key("x"), None, View::Current).await.unwrap_err();
        let text = format!("{error:?} {error} {store:?}");
        assert!(
            !text.contains("sentinel") && !text.contains(&weed.access_key),
            "{text}"
        );
        // A refusal has a Date too.
        assert!(
            (store.now().await.unwrap() - world().clock.now())
                .num_seconds()
                .abs()
                < 5
        );
    }
    let store = connect(weed_config(weed, "no-such-bucket", "p")).await;
    let faults = all_faults(&store).await;
    assert!(faults.iter().all(|f| *f == Ok(Fault::NoBucket)), "{faults:?}");
    assert_eq!(store.now().await.unwrap_err().fault, Fault::NoBucket);
}

async fn tls_needs_the_right_authority(weed: &SeaweedFs) {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tls");
    let config = |ca: Option<&str>| S3Config {
        endpoint: Some(weed.tls_endpoint.clone()),
        ca_file: ca.map(|name| fixtures.join(name)),
        ..weed_config(weed, "plain", "tls")
    };
    let store = connect(config(Some("ca.pem"))).await;
    let body = Bytes::from(vec![7u8; 3 << 20]);
    store
        .put(&key("over-tls"), body.clone(), PutOptions::default())
        .await
        .unwrap();
    let got = store.get(&key("over-tls"), None, View::Current).await.unwrap();
    assert_eq!(got, body);

    let store = connect(config(None)).await;
    let error = store
        .get(&key("over-tls"), None, View::Current)
        .await
        .unwrap_err();
    assert_eq!(error.fault, Fault::Unavailable);
    assert!(error.cause.contains("certificate"), "{}", error.cause);

    for wrong in ["README.md", "none.pem"] {
        let error = S3Store::connect(config(Some(wrong))).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Usage);
        assert!(error.message().contains("ca_file"), "{error}");
    }
}

fn policy(url: StoreUrl) -> RepositoryPolicy {
    RepositoryPolicy {
        url,
        endpoint: None,
        region: None,
        path_style: None,
        ca_file: None,
        max_rate: None,
        grace: Duration::from_secs(72 * 3600),
        object_lock: None,
        versions: false,
        credentials: None,
    }
}

async fn a_policy_opens_a_store(weed: &SeaweedFs) {
    let s3 = StoreUrl::S3 {
        bucket: "plain".to_owned(),
        prefix: "opened".to_owned(),
    };
    let s3 = RepositoryPolicy {
        endpoint: Some(weed.endpoint.clone()),
        max_rate: Some(1 << 30),
        ..policy(s3)
    };
    let credentials = (secret(&weed.access_key), secret(&weed.secret_key));
    let dir = tempfile::tempdir().unwrap();
    let directory = policy(StoreUrl::Directory(dir.path().to_owned()));
    for (policy, credentials) in [(s3, Some(credentials)), (directory, None)] {
        let store = lifeboat::store::open(&policy, credentials, &world())
            .await
            .unwrap();
        let (key, body) = (key("a/b"), Bytes::from_static(b"bytes"));
        for _ in 0..2 {
            // The second one is what a lost reply looks like: the same bytes again.
            store
                .put(&key, body.clone(), PutOptions::default())
                .await
                .unwrap();
        }
        assert_eq!(store.get(&key, None, View::Current).await.unwrap(), body);
        let other = store.put(&key, Bytes::from_static(b"other"), PutOptions::default());
        assert_eq!(other.await.unwrap_err().fault, Fault::Exists);
    }
}
