//! What a run may build on: an index fenced to a commit that exists, and the packs that it may not draw on.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use chrono::{DateTime, Duration};

use super::Engine;
use super::cutter::{Old, PackName};
use crate::error::{Error, Result};
use crate::repository::documents::Commit;
use crate::repository::index::{ChainEntry, Index, RunEntry};
use crate::repository::layout;
use crate::types::RunId;

/// Less of a pack than this share in use: its blocks count as changed (DESIGN, section 5).
const LIVE_LEAST_PERCENT: u64 = 40;

/// A commit is late when it came so long after the checks before it (600 s, five times at most).
const LATE: Duration = Duration::hours(1);

/// What a run builds on.
pub struct Base {
    /// The commit.
    pub commit: Commit,
    /// Runs by number.
    pub runs: BTreeMap<u32, RunEntry>,
    /// Chain of manifests, whole one first.
    pub chain: Vec<ChainEntry>,
    /// Its index and what is not trusted.
    pub old: Old,
}

/// The indexes in a source's state directory, newest run first.
fn candidates(directory: &Path) -> Result<Vec<(RunId, PathBuf)>> {
    let entries = std::fs::read_dir(directory)
        .map_err(|e| Error::failed(format!("can not read {}", directory.display())).because(e))?;
    let mut found = Vec::new();
    for entry in entries {
        let path = entry
            .map_err(|e| Error::failed(format!("can not read {}", directory.display())).because(e))?
            .path();
        let run = path
            .file_name()
            .and_then(|n| n.to_str())
            .and_then(|n| n.strip_suffix(".index"))
            .and_then(|n| n.parse().ok());
        if let Some(run) = run {
            found.push((run, path));
        }
    }
    found.sort_unstable_by_key(|(run, _)| std::cmp::Reverse(*run));
    Ok(found)
}

/// Removes every index but this one. The state is a cache: what can not be removed is told and left.
pub fn forget_others(directory: &Path, keep: Option<RunId>) -> Result<()> {
    for (run, path) in candidates(directory)? {
        if Some(run) != keep
            && let Err(e) = std::fs::remove_file(&path)
        {
            tracing::warn!(path = %path.display(), error = %e, "an old block index was not removed");
        }
    }
    Ok(())
}

impl Engine {
    /// Adopts the newest index whose commit is found by key and not about to be swept.
    ///
    /// # Errors
    /// The store can not tell.
    pub async fn base(&self, lost: &BTreeSet<(RunId, u32)>) -> Result<Option<Base>> {
        for (run, path) in candidates(&self.directory)? {
            let Some(commit) = self.repository.commit(&self.source, run).await? else {
                continue;
            };
            if !self.parent_is_safe(run).await? || self.is_doubtful(&commit).await? {
                continue;
            }
            let index = match Index::open(&path) {
                Ok(index) => index,
                Err(e) => {
                    tracing::warn!(source = %self.source, error = %e.chain(), "the block index is not used; the run uploads in full");
                    continue;
                }
            };
            let head = &index.trailer.head;
            if (head.repository, &head.source, head.run) != (self.repository.id(), &self.source, run) {
                continue;
            }
            let Some(distrusted) = self.distrusted(&index, lost).await? else {
                continue;
            };
            return Ok(Some(Base {
                commit,
                runs: index.trailer.runs.clone(),
                chain: index.trailer.chain.clone(),
                old: Old { index, distrusted },
            }));
        }
        Ok(None)
    }

    /// Recorded as damaged, or put so long after its run was finished that what it draws on may have been swept before,
    /// with nobody left to tell. Such a point may restore, but nothing is built on it.
    ///
    /// # Errors
    /// The store can not tell.
    pub async fn is_doubtful(&self, commit: &Commit) -> Result<bool> {
        let damage = self.repository.damage(&self.source).await?;
        let plain = ["commit", layout::SUMS, layout::REFS];
        if plain
            .iter()
            .any(|name| damage.contains_key(&(commit.run, (*name).to_owned())))
        {
            return Ok(true);
        }
        let key = layout::commit(&self.source, commit.run);
        let Some(info) = self.repository.store().head(&key, self.repository.view()).await? else {
            return Ok(true);
        };
        let finished = commit.finished + (commit.clocks.store - commit.clocks.host);
        Ok(info.modified - finished > LATE)
    }

    /// Present, and not tombstoned for longer than half the grace.
    ///
    /// # Errors
    /// The store can not tell.
    pub async fn parent_is_safe(&self, run: RunId) -> Result<bool> {
        if self
            .repository
            .read(&layout::commit(&self.source, run))
            .await?
            .is_none()
        {
            return Ok(false);
        }
        let key = layout::tombstone(&self.source, run);
        let Some(info) = self.repository.store().head(&key, self.repository.view()).await? else {
            return Ok(true);
        };
        let age = self.repository.store().now().await? - info.modified;
        let half = Duration::from_std(self.grace / 2).unwrap_or(Duration::hours(36));
        Ok(age < half)
    }

    /// Packs whose blocks count as changed. `None`: what the index's point is read by is missing, so nothing may build
    /// on it.
    async fn distrusted(
        &self,
        index: &Index,
        lost: &BTreeSet<(RunId, u32)>,
    ) -> Result<Option<BTreeSet<PackName>>> {
        let number_of: BTreeMap<RunId, u32> = index.trailer.runs.iter().map(|(n, r)| (r.run, *n)).collect();
        let mut distrusted = BTreeSet::new();
        for (run, pack, entry) in &index.trailer.packs {
            if entry.live * 100 < entry.content * LIVE_LEAST_PERCENT {
                distrusted.insert((*run, *pack));
            }
        }
        distrusted.extend(self.to_refresh(index));
        let damage = self.repository.damage(&self.source).await?;
        let damaged = damage
            .keys()
            .filter_map(|(run, object)| Some((*run, layout::pack_number(object)?)));
        for (run, pack) in damaged.chain(lost.iter().copied()) {
            if let Some(number) = number_of.get(&run) {
                distrusted.insert((*number, pack));
            }
        }
        // What is gone or cut short by now is told in time to upload it again.
        for (run, entry) in &index.trailer.runs {
            let wanted = index
                .trailer
                .packs
                .iter()
                .filter(|(r, _, _)| r == run)
                .map(|(_, pack, told)| (layout::pack_name(*pack), told.size))
                .collect();
            let there = self.sizes_by_key(entry.run, &wanted).await?;
            let in_chain = index.trailer.chain.iter().any(|c| c.run == entry.run);
            let readable = !in_chain || !damage.contains_key(&(entry.run, layout::MANIFEST.to_owned()));
            if !there.contains_key(layout::SUMS)
                || in_chain && !there.contains_key(layout::MANIFEST)
                || !readable
            {
                return Ok(None);
            }
            for (_, pack, told) in index.trailer.packs.iter().filter(|(r, _, _)| r == run) {
                if there.get(&layout::pack_name(*pack)) != Some(&told.size) {
                    distrusted.insert((*run, *pack));
                }
            }
        }
        Ok(Some(distrusted))
    }

    /// Packs older than `refresh`: each has one day of thirty, by a hash of its name, so that a thirtieth of the source is
    /// written again in a day (at least a pack, at most the share rounded up to one).
    fn to_refresh(&self, index: &Index) -> Vec<PackName> {
        const DAYS: u64 = 30;
        let Some(refresh) = self.refresh else {
            return Vec::new();
        };
        let now = self.world.clock.now();
        let today = u64::try_from(now.timestamp() / 86_400).unwrap_or(0) % DAYS;
        let made =
            |run: RunId| DateTime::from_timestamp_millis(run.ulid().timestamp_ms() as i64).unwrap_or(now);
        let age_max = Duration::from_std(refresh).unwrap_or(Duration::MAX);
        let budget = index.trailer.packs.iter().map(|(_, _, e)| e.live).sum::<u64>() / DAYS;
        let mut spent = 0;
        let mut chosen = Vec::new();
        for (number, pack, entry) in &index.trailer.packs {
            let Some(run) = index.trailer.runs.get(number).map(|r| r.run) else {
                continue;
            };
            let name = blake3::hash(format!("{run}/{pack}").as_bytes());
            let day = u64::from(name.as_bytes()[0]) | u64::from(name.as_bytes()[1]) << 8;
            if now - made(run) > age_max && day % DAYS == today && spent <= budget {
                spent += entry.live;
                chosen.push((*number, *pack));
            }
        }
        chosen
    }

    /// Names and sizes of an older run's objects. A list may lag, so what it does not show as it should be (a pack of a
    /// recorded size, the digests, the manifest) is asked for by key before it counts as gone.
    ///
    /// # Errors
    /// The store.
    pub async fn sizes_by_key(
        &self,
        run: RunId,
        packs: &BTreeMap<String, u64>,
    ) -> Result<BTreeMap<String, u64>> {
        let mut there = self.sizes_of(run).await?;
        let mut doubtful: Vec<&str> = packs
            .iter()
            .filter(|(name, size)| there.get(*name) != Some(size))
            .map(|(name, _)| name.as_str())
            .collect();
        let plain = [layout::SUMS, layout::MANIFEST];
        doubtful.extend(plain.iter().filter(|name| !there.contains_key(**name)));
        for name in doubtful {
            let key = layout::run_object(&self.source, run, name);
            match self.repository.store().head(&key, self.repository.view()).await? {
                Some(info) => there.insert(name.to_owned(), info.size),
                None => there.remove(name),
            };
        }
        Ok(there)
    }

    /// Names and sizes of a run's objects, from a list.
    ///
    /// # Errors
    /// The store.
    pub async fn sizes_of(&self, run: RunId) -> Result<BTreeMap<String, u64>> {
        let prefix = layout::runs_prefix(&self.source);
        Ok(self
            .repository
            .list(&layout::run_prefix(&self.source, run))
            .await?
            .into_iter()
            .filter_map(|o| Some((layout::run_and_name(&o.key, &prefix)?.1.to_owned(), o.size)))
            .collect())
    }
}
