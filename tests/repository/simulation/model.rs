//! What must be true, kept apart from the code that is tested: which points exist, what they hold, which objects they
//! were read from, and who may remove them when.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use lifeboat::store::memory::MemoryStore;
use lifeboat::store::{Store as _, View};
use lifeboat::types::{Digest, Key};

use super::sea::Actor;

pub type Content = BTreeMap<String, Vec<u8>>;

/// 72 h of grace and the hour on top.
const GRACE: TimeDelta = TimeDelta::hours(73);

/// A point whose commit the store holds, or held.
#[derive(Clone)]
pub struct PointModel {
    pub writer: Actor,
    pub partial: bool,
    pub at: DateTime<Utc>,
    pub finished: DateTime<Utc>,
    pub stored: DateTime<Utc>,
    /// What it must restore to; `None` for a cut of a long run.
    pub content: Option<Arc<Content>>,
    /// The objects that a restore read, with what they held; `None` until it was restored once.
    pub needed: Option<BTreeMap<Key, Digest>>,
    /// It could not be restored when it appeared: allowed only where the run then says so.
    pub broken: bool,
    /// Its commit was deleted, rightly.
    pub deleted: bool,
    /// Its run succeeded.
    pub confirmed: bool,
}

#[derive(Default)]
pub struct Model {
    /// By commit key.
    pub points: BTreeMap<Key, PointModel>,
    /// What each writer is backing up.
    pub writing: BTreeMap<Actor, Arc<Content>>,
    /// What each commit was sent for: one that comes late may come when its writer is at the next already.
    sent_for: BTreeMap<Key, Arc<Content>>,
    /// The window that a pruner's policy keeps.
    pub windows: BTreeMap<Actor, TimeDelta>,
    /// Commits that have not been restored yet.
    pub to_learn: BTreeSet<Key>,
    /// Keys before whose put or deletion the process slept, and commits whose writer did during the run: the ground may
    /// be gone when it wakes, and it must notice.
    pub slept: BTreeSet<Key>,
    /// Who slept since the operation began.
    pub sleepers: BTreeSet<Actor>,
    pub violations: Vec<String>,
    /// Since when each tombstone stands, put anew or not.
    buried_since: BTreeMap<Key, DateTime<Utc>>,
    puts: BTreeMap<Key, Digest>,
    needed_by: BTreeMap<Key, BTreeSet<Key>>,
}

/// What stood around a key before it was deleted.
pub struct Before {
    held: bool,
    existed: bool,
}

fn beside(commit: &Key, folder: &str) -> Key {
    Key::from_text(commit.as_str().replace("/points/", folder))
}

impl Before {
    pub async fn look(memory: &MemoryStore, key: &Key) -> Self {
        let mut found = Self {
            held: false,
            existed: memory.head(key, View::Current).await.unwrap().is_some(),
        };
        if key.as_str().contains("/points/") {
            let hold = beside(key, "/holds/");
            found.held = memory.head(&hold, View::Current).await.unwrap().is_some();
        }
        found
    }
}

impl Model {
    fn violation(&mut self, text: String) {
        self.violations.push(text);
    }

    /// Somebody begins to put something.
    pub fn is_sent(&mut self, actor: Actor, key: &Key) {
        if key.as_str().contains("/points/")
            && let Some(content) = self.writing.get(&actor)
        {
            self.sent_for
                .entry(key.clone())
                .or_insert_with(|| content.clone());
        }
    }

    pub fn was_put(&mut self, actor: Actor, key: &Key, body: &Bytes, now: DateTime<Utc>) {
        let digest = Digest::of(body);
        if let Some(before) = self.puts.insert(key.clone(), digest)
            && before != digest
            && !key.as_str().contains("/tombstones/")
            && !key.as_str().contains("/holds/")
        {
            self.violation(format!("{key} was put twice with other bytes"));
        }
        if key.as_str().contains("/tombstones/") {
            self.buried(key, now);
        }
        if !key.as_str().contains("/points/") {
            return;
        }
        let line = body.split(|b| *b == b'\n').next().unwrap_or_default();
        let commit: serde_json::Value = serde_json::from_slice(line).expect("a commit is JSON");
        let time = |name: &str| {
            let text = commit[name].as_str().expect("a time");
            text.parse::<DateTime<Utc>>().expect("a time")
        };
        let partial = commit["partial"].as_bool().expect("partial");
        if let Some(known) = self.points.get_mut(key) {
            if !known.deleted {
                return;
            }
            // One that slept between looking for its commit and sending it can not know that another attempt of it was
            // stored after all, shown, and swept. Its run must then say that the point does not restore.
            if !known.confirmed && self.sleepers.contains(&actor) && self.slept.contains(key) {
                known.deleted = false;
                known.stored = now;
                self.to_learn.insert(key.clone());
            } else {
                self.violation(format!("{key} came back after it was deleted"));
            }
            return;
        }
        let point = PointModel {
            writer: actor,
            partial,
            at: time("at"),
            finished: time("finished"),
            stored: now,
            content: (!partial).then(|| self.sent_for[key].clone()),
            needed: None,
            broken: false,
            deleted: false,
            confirmed: false,
        };
        if self.sleepers.contains(&actor) {
            self.slept.insert(key.clone());
        }
        self.points.insert(key.clone(), point);
        self.to_learn.insert(key.clone());
    }

    pub fn buried(&mut self, tombstone: &Key, now: DateTime<Utc>) {
        self.buried_since.entry(tombstone.clone()).or_insert(now);
    }

    pub fn learned(&mut self, commit: &Key, needed: BTreeMap<Key, Digest>) {
        for key in needed.keys() {
            self.needed_by
                .entry(key.clone())
                .or_default()
                .insert(commit.clone());
        }
        if let Some(point) = self.points.get_mut(commit) {
            point.needed = Some(needed);
        }
    }

    pub fn was_deleted(&mut self, actor: Actor, key: &Key, before: &Before, now: DateTime<Utc>) {
        if !before.existed {
            return;
        }
        self.buried_since.remove(key);
        if self.points.contains_key(key) {
            self.commit_deleted(actor, key, before, now);
            return;
        }
        for commit in self.needed_by.get(key).cloned().unwrap_or_default() {
            let Some(point) = self.points.get_mut(&commit).filter(|p| !p.deleted) else {
                continue;
            };
            if !point.confirmed && self.slept.contains(&commit) {
                point.broken = true;
            } else {
                self.violation(format!("{key} was deleted, and {commit} needs it"));
            }
        }
    }

    fn commit_deleted(&mut self, actor: Actor, key: &Key, before: &Before, now: DateTime<Utc>) {
        let since = self.buried_since.get(&beside(key, "/tombstones/")).copied();
        let buried_long = since.is_some_and(|since| now - since > GRACE);
        // One that sleeps between its last look and the deletion can not know what happened meanwhile.
        let blind = self.sleepers.contains(&actor) && self.slept.contains(key);
        if !buried_long && !blind {
            self.violation(format!(
                "{key} was deleted before its grace was over: {:?}",
                since
            ));
        }
        if before.held {
            self.violation(format!("{key} was deleted though it was held"));
        }
        let point = self.points[key].clone();
        if !point.partial {
            if let Some(window) = self.windows.get(&actor)
                && now - point.at <= *window
            {
                self.violation(format!("{key} was deleted inside of the window"));
            }
            for trusted in [true, false] {
                let mut newest: Vec<_> = self
                    .points
                    .iter()
                    .filter(|(_, p)| !p.deleted && !p.partial)
                    .filter(|(_, p)| !trusted || (p.finished - p.stored).abs() <= TimeDelta::minutes(59))
                    .map(|(k, p)| (p.at, k.clone()))
                    .collect();
                newest.sort_unstable();
                if newest.iter().rev().take(2).any(|(_, k)| k == key) {
                    let all: Vec<_> = self
                        .points
                        .iter()
                        .filter(|(_, p)| !p.partial)
                        .map(|(k, p)| {
                            format!(
                                "{k} at {} finished {} stored {} deleted {}",
                                p.at, p.finished, p.stored, p.deleted
                            )
                        })
                        .collect();
                    self.violation(format!(
                        "{key} was deleted by {actor} at {now}, one of the newest two (trusted: {trusted}): {all:#?}"
                    ));
                }
            }
        }
        if let Some(point) = self.points.get_mut(key) {
            point.deleted = true;
        }
    }

    /// Points that must restore.
    pub fn alive(&self) -> Vec<(Key, PointModel)> {
        self.points
            .iter()
            .filter(|(_, p)| !p.deleted && !p.broken)
            .map(|(k, p)| (k.clone(), p.clone()))
            .collect()
    }
}
