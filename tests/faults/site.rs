//! A PocketBase's data without a PocketBase, a repository in a directory, and a ledger of what was backed up.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rusqlite::Connection;
use serde_json::Value;

use crate::harness::{self, Said, TempDir, lifeboat, run_ok, temp_dir, write_file};

/// Files of a directory by name.
pub type Tree = Vec<(String, Vec<u8>)>;

/// Numbers that are the same in each run of a test.
pub struct Seeded(u64);

impl Seeded {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }
    /// splitmix64.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
    /// From 0 to 1.
    pub fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length + 8);
        while bytes.len() < length {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(length);
        bytes
    }
}

/// The place of a test.
pub struct Site {
    pub dir: TempDir,
    pub random: Seeded,
    /// Whether a change now and then is larger than a pack.
    pub large: bool,
    /// Secrets of the policy.
    pub environment: Vec<(String, String)>,
    version: u64,
    /// What the source held when each point was taken, by run; of restored points only the digest is kept.
    ledger: BTreeMap<String, [u8; 32]>,
}

impl Site {
    /// With a repository, and a source that nobody has backed up yet.
    pub fn new(seed: u64) -> Self {
        let site = Self::without_repository(seed);
        run_ok(&mut site.backup(&["init"]));
        site
    }

    pub fn without_repository(seed: u64) -> Self {
        let dir = quick_dir();
        let key = dir.path().join("key");
        run_ok(lifeboat().args(["key", "generate"]).arg(&key));
        let mut site = Self {
            dir,
            random: Seeded::new(seed),
            large: true,
            environment: Vec::new(),
            version: 0,
            ledger: BTreeMap::new(),
        };
        site.write_policy(&site.directory_policy());
        site.make_source();
        site
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn recipient(&self) -> String {
        let key = std::fs::read_to_string(self.path("key")).unwrap();
        key.lines()
            .find_map(|l| l.strip_prefix("# public key: "))
            .unwrap()
            .to_owned()
    }

    /// The keys of [repository] for a directory.
    pub fn directory_policy(&self) -> String {
        format!("url = \"file://{}\"", self.path("repository").display())
    }

    /// The policy, with the keys of [repository].
    pub fn write_policy(&self, repository: &str) {
        let text = format!(
            r#"environment = "test"

[repository]
{repository}

[encryption]
recipients = ["{recipient}"]
identity = {{ file = "{root}/key" }}

[prune]

[state]
dir = "{root}/state"

[source.app]
kind = "pocketbase"
path = "{root}/pb_data"
retention = "short"

[retention.short]
daily = 1
"#,
            recipient = self.recipient(),
            root = self.dir.path().display(),
        );
        write_file(self.dir.path(), "policy.toml", text);
    }

    pub fn backup(&self, args: &[&str]) -> Command {
        let mut command = lifeboat();
        command
            .env("LIFEBOAT_POLICY", self.path("policy.toml"))
            .envs(self.environment.iter().cloned())
            .current_dir(self.dir.path())
            .args(args);
        command
    }

    /// A command that must succeed; its document.
    #[track_caller]
    pub fn json(&self, args: &[&str]) -> Value {
        run_ok(self.backup(&["--json"]).args(args)).json()
    }

    /// A command that is under way.
    pub fn start(&self, args: &[&str]) -> Child {
        self.backup(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    // ---- the source

    pub fn source(&self) -> PathBuf {
        self.path("pb_data")
    }

    fn make_source(&mut self) {
        std::fs::create_dir(self.source()).unwrap();
        for name in ["data.db", "auxiliary.db"] {
            let database = Connection::open(self.source().join(name)).unwrap();
            database
                .execute_batch(
                    "pragma journal_mode = wal; pragma synchronous = off;
                     create table notes (id text primary key, n int, body blob, doc text);
                     create table _collections (id text, name text, fields text, type text);
                     insert into _collections values
                        ('c1', 'notes', '[{\"type\":\"file\",\"name\":\"doc\"}]', 'base');
                     create table _params (id text, value json);
                     insert into _params values ('settings', cast('{\"s3\":{\"enabled\":false}}' as blob));",
                )
                .unwrap();
            for n in 0..60 {
                let body = self.random.bytes(4000);
                database
                    .execute(
                        "insert into notes values (?1, ?2, ?3, '')",
                        (format!("r{n}"), n, body),
                    )
                    .unwrap();
            }
        }
        for n in 0..12 {
            self.put_file(n);
        }
        let big = self.random.bytes(1 << 20);
        write_file(&self.source(), "storage/c1/big/thumb.bin", big);
    }

    /// A file, and the row that names it.
    fn put_file(&mut self, number: u64) {
        let length = 100 + self.random.below(40_000) as usize;
        let content = self.random.bytes(length);
        let name = format!("file{}.bin", self.version);
        let record = format!("r{number}");
        let place = self.source().join("storage/c1").join(&record);
        if place.exists() {
            std::fs::remove_dir_all(&place).unwrap();
        }
        write_file(&place, &name, content);
        let database = Connection::open(self.source().join("data.db")).unwrap();
        let set = "update notes set doc = ?1 where id = ?2";
        assert_eq!(database.execute(set, (&name, &record)).unwrap(), 1);
    }

    /// Changes the source everywhere: both databases, files that come, change and go. Every eighth change is large.
    pub fn change(&mut self) {
        self.version += 1;
        for name in ["data.db", "auxiliary.db"] {
            let database = Connection::open(self.source().join(name)).unwrap();
            database.execute_batch("pragma synchronous = off").unwrap();
            for _ in 0..4 {
                let (row, body) = (self.random.below(60), self.random.bytes(4000));
                let set = "update notes set n = ?1, body = ?2 where id = ?3";
                let row = format!("r{row}");
                database.execute(set, (self.version as i64, body, row)).unwrap();
            }
        }
        for _ in 0..2 {
            let number = self.random.below(12);
            self.put_file(number);
        }
        // More than a pack now and then; small again with the next change.
        let length = match self.version % 8 {
            0 if self.large => 18 << 20,
            1 => 50_000,
            _ => return,
        };
        let big = self.random.bytes(length);
        write_file(&self.source(), "storage/c1/big/thumb.bin", big);
    }

    // ---- what was backed up

    /// The runs that `list` shows as recoverable, oldest first.
    #[track_caller]
    pub fn points(&self) -> Vec<String> {
        self.listed(false)
    }

    /// A run of the ledger.
    pub fn known(&self) -> String {
        self.ledger.keys().next().unwrap().clone()
    }

    /// The runs that `list` shows as expired: they can be had back for a while.
    #[track_caller]
    pub fn expired(&self) -> Vec<String> {
        self.listed(true)
    }

    #[track_caller]
    fn listed(&self, expired: bool) -> Vec<String> {
        let list = self.json(&["list"]);
        let mut runs = Vec::new();
        for source in list["sources"].as_array().unwrap() {
            for point in source["points"].as_array().unwrap() {
                if point["tombstoned"].is_null() != expired {
                    runs.push(point["run"].as_str().unwrap().to_owned());
                }
            }
        }
        runs
    }

    /// Points that are not in the ledger yet are of the source as it is now. Gives how many there were.
    #[track_caller]
    pub fn record(&mut self, after: &str) -> usize {
        let new: Vec<String> = (self.points().into_iter())
            .filter(|run| !self.ledger.contains_key(run))
            .collect();
        if !new.is_empty() {
            let now = digest(&harness::tree(&self.source()));
            for run in &new {
                self.ledger.insert(run.clone(), now);
                self.restores(run, after);
            }
        }
        new.len()
    }

    /// A point gives back what the ledger says.
    #[track_caller]
    pub fn restores(&self, run: &str, after: &str) {
        let to = self.path("restored");
        // What an earlier one left, that was not what it should be.
        let _ = std::fs::remove_dir_all(&to);
        let command = ["restore", "app", "--at-point", run, "--to", to.to_str().unwrap()];
        let said = harness::run(self.backup(&["--json"]).args(command));
        assert_eq!(said.code, 0, "{after}: {run} does not restore: {said}");
        let tree = harness::tree(&to);
        let wanted = self.ledger[run];
        assert!(
            digest(&tree) == wanted,
            "{after}: {run} gives other bytes: {:?}",
            self.unlike_source(&tree)
        );
        std::fs::remove_dir_all(&to).unwrap();
    }

    /// Names that differ from the source as it is now: for messages.
    pub fn unlike_source(&self, tree: &Tree) -> Vec<String> {
        let source: BTreeMap<_, _> = harness::tree(&self.source()).into_iter().collect();
        let tree: BTreeMap<_, _> = tree.iter().cloned().collect();
        let names = source.keys().chain(tree.keys());
        let unlike: std::collections::BTreeSet<_> = names
            .filter(|name| source.get(*name) != tree.get(*name))
            .collect();
        unlike.into_iter().cloned().collect()
    }

    /// Everything that is shown restores, and everything that is there is what was written.
    #[track_caller]
    pub fn all_restore(&mut self, after: &str) {
        self.record(after);
        for run in self.points() {
            self.restores(&run, after);
        }
        self.verifies(after);
    }

    #[track_caller]
    pub fn verifies(&self, after: &str) {
        let said = harness::run(&mut self.backup(&["--json", "verify"]));
        assert_eq!(said.code, 0, "{after}: {said}");
        let verified = said.json();
        let clean = |name: &str| verified[name].as_array().unwrap().is_empty();
        assert!(clean("damaged") && clean("missing"), "{after}: {said}");
    }

    /// Makes files look old to the store: tombstones whose grace is over, runs that were given up.
    pub fn age(&self, below: &str, by: Duration) {
        for path in files(&self.path(below)) {
            let file = std::fs::File::open(&path).unwrap();
            let modified = file.metadata().unwrap().modified().unwrap();
            file.set_modified(modified - by).unwrap();
        }
    }

    /// Whether a tombstone was put a moment ago.
    pub fn is_young(&self, run: &str) -> bool {
        let tombstone = self.path(&format!("repository/sources/app/tombstones/{run}.json"));
        let modified = std::fs::metadata(tombstone).unwrap().modified().unwrap();
        modified
            .elapsed()
            .is_ok_and(|age| age < Duration::from_secs(3600))
    }

    /// Nothing but what belongs into repository and state: no staging file, no spool.
    #[track_caller]
    pub fn left_nothing(&self, after: &str) {
        for place in ["repository/.lifeboat staging", "state/scratch"] {
            let left = entries(&self.path(place));
            assert!(left.is_empty(), "{after}: {place} holds {left:?}");
        }
    }

    /// The runs that have objects, and neither a commit nor a tombstone.
    pub fn orphans(&self) -> Vec<String> {
        let source = self.path("repository/sources/app");
        let known = [
            entries(&source.join("points")),
            entries(&source.join("tombstones")),
        ]
        .concat();
        // A directory that a kill left empty holds no object, and is none.
        entries(&source.join("runs"))
            .into_iter()
            .filter(|run| !known.contains(&format!("{run}.json")))
            .filter(|run| !entries(&source.join("runs").join(run)).is_empty())
            .collect()
    }
}

/// A directory in memory where there is room: what is killed loses nothing that it wrote, synced or not, and thousands
/// of syncs take their time elsewhere.
fn quick_dir() -> TempDir {
    const MEMORY: &str = "/dev/shm";
    const ROOM: u64 = 1 << 30;
    let free = rustix::fs::statvfs(MEMORY).map_or(0, |stat| stat.f_bavail * stat.f_frsize);
    let made = tempfile::Builder::new()
        .prefix("lifeboat-test-")
        .tempdir_in(MEMORY);
    match made {
        Ok(dir) if free > ROOM && std::env::var_os("TMPDIR").is_none() => dir,
        _ => temp_dir(),
    }
}

/// The names in a directory, sorted; none where it is missing.
pub fn entries(dir: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return Vec::new();
    };
    let mut names: Vec<String> = entries
        .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// Every file below a directory; none where it is missing.
pub fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut left = vec![dir.to_owned()];
    while let Some(next) = left.pop() {
        let Ok(entries) = std::fs::read_dir(&next) else {
            continue;
        };
        for entry in entries {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.is_symlink() {
                left.push(path);
            } else {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

pub fn digest(tree: &Tree) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for (name, bytes) in tree {
        hasher.update(&(name.len() as u64).to_le_bytes());
        hasher.update(name.as_bytes());
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    }
    *hasher.finalize().as_bytes()
}

/// What a program that was started says at its end.
pub fn end(child: Child) -> Said {
    use std::os::unix::process::ExitStatusExt as _;
    let output = child.wait_with_output().unwrap();
    Said {
        code: (output.status.code()).unwrap_or_else(|| 128 + output.status.signal().unwrap_or(0)),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}
