//! The golden repositories of tests/fixtures: what each should hold, and copies of them to work on.
//!
//! This file needs nothing of its neighbours, so that every test binary can take it alone.
#![allow(dead_code, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Where they are kept: `golden-1`, `golden-2`, …, one made by each build that wrote something new.
pub fn home() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// `expected.json`: what the maker saw when it made the repository.
#[derive(Debug, Serialize, Deserialize)]
pub struct Expected {
    /// The build that made it.
    pub made_by: String,
    /// Its environment.
    pub environment: String,
    /// The superuser's password of the PocketBase in it, made for this fixture alone.
    pub pocketbase_password: String,
    /// Every commit, oldest first.
    pub points: Vec<Point>,
    /// What drills left, a line of `evidence list --json` each (none before drills were there).
    #[serde(default)]
    pub evidence: Vec<serde_json::Value>,
    /// The level to which drills proved a point, by its run.
    #[serde(default)]
    pub proven: BTreeMap<String, u64>,
}

/// One commit.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Point {
    pub source: String,
    pub kind: String,
    pub run: String,
    pub at: String,
    pub generation: String,
    pub parent: Option<String>,
    pub manifest_depth: u32,
    pub partial: bool,
    pub tombstoned: bool,
    pub held: bool,
    /// It draws on an object that is recorded as damaged.
    pub damaged: bool,
    /// SHA-256 by file; of a damaged point none.
    pub files: BTreeMap<String, String>,
    /// What its data answered: by statement for Postgres, by title the file's text for PocketBase.
    pub answers: BTreeMap<String, String>,
}

impl Point {
    /// Whether it can be asked for and be had.
    pub fn is_offered(&self) -> bool {
        !self.partial && !self.tombstoned && !self.damaged
    }
}

/// A golden repository.
pub struct Golden {
    pub path: PathBuf,
    pub expected: Expected,
}

/// All of them.
pub fn all() -> Vec<Golden> {
    let found: Vec<Golden> = (1..)
        .map(|n| home().join(format!("golden-{n}")))
        .take_while(|path| path.exists())
        .map(|path| {
            let text = std::fs::read_to_string(path.join("expected.json")).unwrap();
            let expected = serde_json::from_str(&text).unwrap();
            Golden { path, expected }
        })
        .collect();
    assert!(!found.is_empty(), "no golden repository in tests/fixtures");
    found
}

impl Golden {
    /// The repository itself; never written to.
    pub fn repository(&self) -> PathBuf {
        self.path.join("repository")
    }
    /// Copies repository and keys below a directory.
    pub fn copy(&self, to: &Path) -> Copied {
        copy_tree(&self.path, to);
        Copied { path: to.to_owned() }
    }
    /// The points that can be had, newest last.
    pub fn offered<'a>(&'a self, source: &'a str) -> impl Iterator<Item = &'a Point> {
        let points = self.expected.points.iter();
        points.filter(move |p| p.source == source && p.is_offered())
    }
}

/// A copy that may be worked on.
pub struct Copied {
    path: PathBuf,
}

impl Copied {
    pub fn repository(&self) -> PathBuf {
        self.path.join("repository")
    }
    /// The identity that every generation was first wrapped to.
    pub fn identity(&self) -> PathBuf {
        self.path.join("identity")
    }
    /// The key that signed the evidence, and its public half.
    pub fn signing_key(&self) -> PathBuf {
        self.path.join("signing.key")
    }
    pub fn public_key(&self) -> PathBuf {
        self.path.join("signing.pub")
    }
    /// The identity that the generations were wrapped to later on.
    pub fn second_identity(&self) -> PathBuf {
        self.path.join("second-identity")
    }
}

/// Copies files and directories; keys stay private.
fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            std::fs::write(&target, std::fs::read(entry.path()).unwrap()).unwrap();
            std::fs::set_permissions(&target, std::fs::Permissions::from_mode(0o600)).unwrap();
            if from.ends_with("points") {
                as_it_was_put(&target);
            }
        }
    }
}

/// Gives a commit the store time that it had: nothing is built on one that was put long after its run.
fn as_it_was_put(commit: &Path) {
    let text = std::fs::read_to_string(commit).unwrap();
    let Ok(json) = serde_json::from_str::<serde_json::Value>(text.lines().next().unwrap_or_default()) else {
        return;
    };
    let finished = chrono::DateTime::parse_from_rfc3339(json["finished"].as_str().unwrap()).unwrap();
    let file = std::fs::File::options().append(true).open(commit).unwrap();
    file.set_modified(finished.into()).unwrap();
}

/// SHA-256 by file of a restored tree.
pub fn digests<'a>(files: impl IntoIterator<Item = &'a (String, Vec<u8>)>) -> BTreeMap<String, String> {
    let digest = |bytes: &[u8]| lifeboat::types::Digest::of(bytes).to_string();
    files.into_iter().map(|(n, b)| (n.clone(), digest(b))).collect()
}
