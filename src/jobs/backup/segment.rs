//! Ends a run: manifest, references, digests, the checks, the commit, and the checks once more (DESIGN, section 5,
//! "Order of writing"). Before the commit nothing exists; a crash leaves an orphan run.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use base64::Engine as _;
use chrono::{DateTime, Utc};

use super::Engine;
use crate::error::{Error, Result};
use crate::repository::documents::{
    Bytes, Clocks, Commit, CommitGeneration, Damage, FORMAT, Reference, Refs, Sums, Tombstone,
};
use crate::repository::generation::{self, Generation};
use crate::repository::index::{ChainEntry, Index, Lines, PackEntry, RunEntry, UnsealedIndex};
use crate::repository::manifest::{DIFFERENCES_MAX, ManifestHead, ManifestWriter, difference};
use crate::repository::packer::{Packed, object_head};
use crate::repository::{layout, pack};
use crate::source::Captured;
use crate::types::{Digest, RunId};

/// The checks before a commit are not older than this when it is sent.
const CHECKS_MAX_AGE: Duration = Duration::from_secs(600);
/// How often slow checks are made anew.
const CHECKS_MAX: u32 = 5;

/// What the run before this one left to build on.
pub struct Parent {
    /// The run.
    pub run: RunId,
    /// Its chain of manifests.
    pub chain: Vec<ChainEntry>,
    /// Its index, to tell the difference from.
    pub index: Index,
}

/// A run that is about to be ended.
pub struct Segment {
    /// The run.
    pub run: RunId,
    /// Its number in the index.
    pub number: u32,
    /// When it began.
    pub started: DateTime<Utc>,
    /// What it builds on.
    pub parent: Option<Parent>,
    /// A cut of a long run.
    pub partial: bool,
    /// What is known of all runs by number (this one excluded).
    pub runs: BTreeMap<u32, RunEntry>,
    /// What is known of all older packs.
    pub packs: BTreeMap<(u32, u32), PackEntry>,
    /// Its own packs.
    pub packed: Packed,
    /// Content used, by frame number of the index.
    pub live: Vec<u64>,
    /// Counts.
    pub content: u64,
    /// Counts.
    pub read: u64,
    /// Counts.
    pub reused: u64,
}

/// What must be there for a commit to be right.
struct Needed {
    refs: Refs,
    sizes: BTreeMap<RunId, BTreeMap<String, u64>>,
}

/// What came of ending a run.
pub enum Ended {
    /// The commit exists.
    Committed(Box<Committed>),
    /// Packs that the point draws on are gone: take the run again without them.
    Lost(BTreeSet<(RunId, u32)>),
    /// The parent or the generation is gone: take the run again in full.
    Again(&'static str),
}

/// A committed run.
pub struct Committed {
    /// Its commit.
    pub commit: Commit,
    /// Runs by number, this one included.
    pub runs: BTreeMap<u32, RunEntry>,
    /// Packs.
    pub packs: BTreeMap<(u32, u32), PackEntry>,
    /// Its chain.
    pub chain: Vec<ChainEntry>,
}

impl Segment {
    /// Packs in use with their live content, and the numbers of the runs they are in.
    fn live_packs(&self, index: &UnsealedIndex) -> Result<BTreeMap<(u32, u32), PackEntry>> {
        let mut packs: BTreeMap<(u32, u32), PackEntry> = BTreeMap::new();
        for (number, stored) in &self.packed.packs {
            packs.insert(
                (self.number, *number),
                PackEntry {
                    size: stored.size,
                    content: stored.content,
                    live: 0,
                },
            );
        }
        for (frame, place) in index.frames.iter().enumerate() {
            let live = self.live.get(frame).copied().unwrap_or(0);
            if live == 0 {
                continue;
            }
            let known = self.packs.get(&(place.run, place.pack)).copied();
            let entry = match packs.entry((place.run, place.pack)) {
                std::collections::btree_map::Entry::Occupied(o) => o.into_mut(),
                std::collections::btree_map::Entry::Vacant(v) => {
                    let known = known
                        .ok_or_else(|| Error::failed("the block index names a pack that it does not know"))?;
                    v.insert(PackEntry { live: 0, ..known })
                }
            };
            entry.live += live;
        }
        Ok(packs)
    }
}

impl Engine {
    /// Ends a run.
    ///
    /// # Errors
    /// The store, the state directory; nothing is committed then, or the point is recorded as damaged.
    pub async fn end(
        &self,
        segment: Segment,
        index: UnsealedIndex,
        generation: &Generation,
        captured: &Captured,
    ) -> Result<Ended> {
        let packs = segment.live_packs(&index)?;
        let parent_chain = segment
            .parent
            .as_ref()
            .map(|p| p.chain.clone())
            .unwrap_or_default();
        let whole = parent_chain.is_empty() || parent_chain.len() as u32 > DIFFERENCES_MAX;
        let base_chain = if whole { Vec::new() } else { parent_chain };
        let used: BTreeSet<u32> = packs
            .iter()
            .filter(|(_, e)| e.live > 0)
            .map(|((run, _), _)| *run)
            .collect();
        let in_chain: BTreeSet<RunId> = base_chain.iter().map(|c| c.run).collect();
        let runs: BTreeMap<u32, RunEntry> = segment
            .runs
            .iter()
            .filter(|(n, r)| used.contains(n) || in_chain.contains(&r.run))
            .map(|(n, r)| (*n, r.clone()))
            .collect();

        let clocks = self.clocks(captured).await?;
        let manifest = self.write_manifest(&segment, &index, generation, captured, &runs, &base_chain)?;
        self.reach("before the manifest is put")?;
        let manifest_key = layout::run_object(&self.source, segment.run, layout::MANIFEST);
        self.repository
            .put_digested(
                &self.world,
                &manifest_key,
                manifest.bytes.clone(),
                manifest.digest,
            )
            .await?;

        let needed = needed(&runs, &packs, segment.number, &in_chain);
        let place = self.repository.place(&self.source, segment.run);
        let refs = needed.refs.to_bytes(&place)?;
        self.put_plain(segment.run, layout::REFS, &refs).await?;

        let mut sums = Sums::default();
        for (number, stored) in &segment.packed.packs {
            sums.0.insert(layout::pack_name(*number), stored.digest);
        }
        sums.0.insert(layout::MANIFEST.to_owned(), manifest.digest);
        sums.0.insert(layout::REFS.to_owned(), Digest::of(&refs));
        let sums_bytes = sums.to_bytes(&place);
        self.put_plain(segment.run, layout::SUMS, &sums_bytes).await?;

        let mut chain = base_chain;
        chain.push(ChainEntry {
            run: segment.run,
            manifest: manifest.digest,
        });
        let mut all_runs = runs.clone();
        all_runs.insert(
            segment.number,
            RunEntry {
                run: segment.run,
                generation: generation.id,
                sums: Digest::of(&sums_bytes),
            },
        );
        let stored_packs: u64 = segment.packed.packs.values().map(|p| p.size).sum();
        let stored = stored_packs + (manifest.bytes.len() + refs.len() + sums_bytes.len()) as u64;
        let pack_list = packs
            .iter()
            .filter(|(_, e)| e.live > 0)
            .map(|((r, p), e)| (*r, *p, *e))
            .collect();
        index.seal(all_runs.clone(), pack_list, chain.clone())?;

        let wrap = match generation::is_intact(&self.repository, generation).await? {
            true => generation::wrap_bytes(&self.repository, generation).await?,
            false => return Ok(Ended::Again("the generation's wrap is gone or different")),
        };
        let commit = Commit {
            format: FORMAT,
            must_understand: Vec::new(),
            repository: self.repository.id(),
            source: self.source.clone(),
            kind: self.kind.to_owned(),
            run: segment.run,
            parent: segment.parent.as_ref().map(|p| p.run),
            slot: self.slot,
            writer: self.writer.clone(),
            partial: segment.partial,
            at: captured.at,
            started: segment.started,
            finished: self.world.clock.now(),
            clocks,
            facts: captured.facts.clone(),
            bytes: Bytes {
                content: segment.content,
                read: segment.read,
                stored,
                reused: segment.reused,
            },
            manifest: manifest.digest,
            manifest_depth: chain.len() as u32,
            refs: Digest::of(&refs),
            sums: Digest::of(&sums_bytes),
            generation: CommitGeneration {
                id: generation.id,
                recipient: generation.recipient.clone(),
                wrap: base64::engine::general_purpose::STANDARD.encode(wrap),
            },
            stream: None,
            log: None,
        };
        let mut own: BTreeMap<String, u64> = segment
            .packed
            .packs
            .iter()
            .map(|(n, p)| (layout::pack_name(*n), p.size))
            .collect();
        own.insert(layout::MANIFEST.to_owned(), manifest.bytes.len() as u64);
        own.insert(layout::REFS.to_owned(), refs.len() as u64);
        own.insert(layout::SUMS.to_owned(), sums_bytes.len() as u64);
        if let Some(ended) = self.check_and_commit(&commit, &own, &needed, generation).await? {
            return Ok(ended);
        }
        let packs = packs.into_iter().filter(|(_, e)| e.live > 0).collect();
        Ok(Ended::Committed(Box::new(Committed {
            commit,
            runs: all_runs,
            packs,
            chain,
        })))
    }

    async fn put_plain(&self, run: RunId, name: &str, bytes: &[u8]) -> Result<()> {
        self.reach("before a plain object is put")?;
        let key = layout::run_object(&self.source, run, name);
        self.repository
            .put(&self.world, &key, bytes.to_vec().into())
            .await
    }

    /// The store's clock read now, and the capture's pair, brought to one instant of the host.
    async fn clocks(&self, captured: &Captured) -> Result<Clocks> {
        let before = self.world.clock.now();
        let store = self.repository.store().now().await?;
        let after = self.world.clock.now();
        let middle = before + (after - before) / 2;
        let spread = (after - before).num_milliseconds().unsigned_abs();
        Ok(Clocks {
            source: captured.source_clock,
            host: captured.host_clock,
            store: store - (middle - captured.host_clock),
            spread_ms: captured.clock_spread_ms + spread,
        })
    }

    fn write_manifest(
        &self,
        segment: &Segment,
        index: &UnsealedIndex,
        generation: &Generation,
        captured: &Captured,
        runs: &BTreeMap<u32, RunEntry>,
        base_chain: &[ChainEntry],
    ) -> Result<pack::Sealed> {
        let mut table: Vec<_> = runs.iter().map(|(n, r)| (*n, r.run, r.generation)).collect();
        table.push((segment.number, segment.run, generation.id));
        let last = base_chain.last();
        let head = ManifestHead {
            format: FORMAT,
            repository: self.repository.id(),
            source: self.source.clone(),
            kind: self.kind.to_owned(),
            run: segment.run,
            at: captured.at,
            partial: segment.partial,
            parent: last.map(|c| c.run),
            parent_manifest: last.map(|c| c.manifest),
            depth: base_chain.len() as u32 + 1,
            runs: table,
            index_key: index.head().key.clone(),
            block_size: index.head().block_size,
            facts: captured.facts.clone(),
        };
        let object = object_head(&self.repository, &self.source, segment.run, layout::MANIFEST);
        let mut writer = ManifestWriter::new(&head, object.to_frame()?)?;
        let run_of = |n: u32| {
            if n == segment.number {
                Some(segment.run)
            } else {
                segment.runs.get(&n).map(|r| r.run)
            }
        };
        let lines = Lines::new(index.records()?, &index.frames, &run_of);
        match segment.parent.as_ref().filter(|_| last.is_some()) {
            Some(parent) => {
                let old_run_of = |n: u32| parent.index.trailer.runs.get(&n).map(|r| r.run);
                let old = Lines::new(parent.index.records()?, &parent.index.frames, &old_run_of);
                for line in difference(lines, old) {
                    writer.push(&line?)?;
                }
            }
            None => {
                for line in lines {
                    writer.push(&line?)?;
                }
            }
        }
        pack::seal(&writer.finish()?, &generation.age_recipient()?)
    }

    /// The checks, the commit, the checks once more. `None`: the commit exists and stands.
    async fn check_and_commit(
        &self,
        commit: &Commit,
        own: &BTreeMap<String, u64>,
        needed: &Needed,
        generation: &Generation,
    ) -> Result<Option<Ended>> {
        let key = layout::commit(&self.source, commit.run);
        let bytes = commit.to_bytes()?;
        for _ in 0..CHECKS_MAX {
            let begun = self.world.clock.since_boot();
            let there = self.sizes_of(commit.run).await?;
            if &there != own {
                return Err(Error::damaged(format!(
                    "the store does not list the objects of run {} as they were written",
                    commit.run
                ))
                .hint("Nothing was committed. `backup check` shows what this store can do; run again."));
            }
            let lost = self.missing(needed).await?;
            if !lost.is_empty() {
                for (run, name) in &lost {
                    self.record_damage(*run, name, Damage::MISSING).await?;
                }
                let packs = lost
                    .iter()
                    .map(|(run, name)| Some((*run, layout::pack_number(name)?)))
                    .collect::<Option<BTreeSet<_>>>();
                return Ok(Some(match packs {
                    Some(packs) => Ended::Lost(packs),
                    None => Ended::Again("digests or a manifest of an older run are missing"),
                }));
            }
            if let Some(parent) = commit.parent
                && !self.parent_is_safe(parent).await?
            {
                return Ok(Some(Ended::Again("the parent is gone or about to be swept")));
            }
            if !generation::is_intact(&self.repository, generation).await? {
                return Ok(Some(Ended::Again("the generation's wrap is gone or different")));
            }
            if self.is_orphaned(commit.run).await? {
                return Ok(Some(Ended::Again(
                    "it was taken for an orphan, and is being swept",
                )));
            }
            self.reach("before the commit is put")?;
            if self.cancel.is_cancelled() {
                return Err(super::interrupted());
            }
            let not_after = begun + CHECKS_MAX_AGE;
            if self.world.clock.since_boot() > not_after {
                continue;
            }
            let body = bytes::Bytes::from(bytes.clone());
            let digest = Digest::of(&body);
            let put = self
                .repository
                .put_until(&self.world, &key, body, digest, Some(not_after));
            match put.await {
                Ok(()) => {}
                // Stored or not, it was not confirmed in time: the same bytes once more, after fresh checks.
                Err(_) if self.world.clock.since_boot() > not_after => continue,
                Err(e) => return Err(e),
            }
            self.reach("after the commit was put")?;
            self.confirm(commit, own, needed).await?;
            return Ok(None);
        }
        Err(
            Error::failed("the checks before the commit took longer than 10 minutes, five times")
                .hint("The store is too slow to be safe; nothing was committed."),
        )
    }

    /// After the commit: it is there, and what it draws on is still there.
    async fn confirm(&self, commit: &Commit, own: &BTreeMap<String, u64>, needed: &Needed) -> Result<()> {
        if self.repository.commit(&self.source, commit.run).await?.as_ref() != Some(commit) {
            return Err(Error::failed(format!(
                "the commit of run {} does not read back",
                commit.run
            )));
        }
        // A host that slept for longer than orphans are kept wakes to a run of which nothing is left but its commit.
        let there = self.sizes_by_key(commit.run, own).await?;
        let gone: Vec<&String> = own
            .iter()
            .filter(|(name, size)| there.get(*name) != Some(size))
            .map(|(name, _)| name)
            .collect();
        let lost = self.missing(needed).await?;
        let parent_gone = match commit.parent {
            Some(parent) => !self.parent_is_safe(parent).await?,
            None => false,
        };
        let orphaned = self.is_orphaned(commit.run).await?;
        if lost.is_empty() && gone.is_empty() && !parent_gone && !orphaned {
            return Ok(());
        }
        for name in gone {
            self.record_damage(commit.run, name, Damage::MISSING).await?;
        }
        for (run, name) in &lost {
            self.record_damage(*run, name, Damage::MISSING).await?;
        }
        if parent_gone {
            self.record_damage(commit.run, "commit", Damage::PARENT_SWEPT)
                .await?;
        }
        if orphaned {
            self.record_damage(commit.run, "commit", Damage::ORPHANED).await?;
        }
        Err(Error::failed(format!(
            "what run {} draws on was removed while it was written",
            commit.run
        ))
        .hint("The point is recorded as damaged and is not offered; run again."))
    }

    /// Whether a pruner has said that it sweeps this run, which had no commit then.
    async fn is_orphaned(&self, run: RunId) -> Result<bool> {
        let tombstone = self.repository.tombstone(&self.source, run).await?;
        Ok(tombstone.is_some_and(|t| t.reason == Tombstone::ORPHAN))
    }

    /// Packs, manifests and digests of older runs that are not there with their size.
    async fn missing(&self, needed: &Needed) -> Result<BTreeSet<(RunId, String)>> {
        let mut lost = BTreeSet::new();
        for (run, packs) in &needed.sizes {
            let there = self.sizes_by_key(*run, packs).await?;
            for (name, size) in packs {
                if there.get(name) != Some(size) {
                    lost.insert((*run, name.clone()));
                }
            }
            let manifest = needed.refs.0.get(run).is_some_and(|r| r.manifest);
            let plain = [(layout::SUMS, true), (layout::MANIFEST, manifest)];
            for (name, _) in plain
                .iter()
                .filter(|(n, needed)| *needed && !there.contains_key(*n))
            {
                lost.insert((*run, (*name).to_owned()));
            }
        }
        Ok(lost)
    }

    /// Records damage that a run found.
    ///
    /// # Errors
    /// The store.
    pub async fn record_damage(&self, run: RunId, object: &str, problem: &str) -> Result<()> {
        let damage = Damage {
            place: self.repository.place(&self.source, run),
            object: object.to_owned(),
            problem: problem.to_owned(),
            at: self.world.clock.now(),
        };
        self.repository.record_damage(&self.world, &damage).await
    }
}

fn needed(
    runs: &BTreeMap<u32, RunEntry>,
    packs: &BTreeMap<(u32, u32), PackEntry>,
    own: u32,
    in_chain: &BTreeSet<RunId>,
) -> Needed {
    let mut refs = Refs::default();
    let mut sizes: BTreeMap<RunId, BTreeMap<String, u64>> = BTreeMap::new();
    for entry in runs.values() {
        refs.0.insert(
            entry.run,
            Reference {
                run: entry.run,
                sums: entry.sums,
                generation: entry.generation,
                packs: Vec::new(),
                manifest: in_chain.contains(&entry.run),
            },
        );
        sizes.entry(entry.run).or_default();
    }
    for ((run, pack), entry) in packs.iter().filter(|((run, _), e)| *run != own && e.live > 0) {
        let Some(known) = runs.get(run) else { continue };
        sizes
            .entry(known.run)
            .or_default()
            .insert(layout::pack_name(*pack), entry.size);
        if let Some(reference) = refs.0.get_mut(&known.run) {
            match reference.packs.last_mut() {
                Some((_, to)) if *to + 1 == *pack => *to = *pack,
                _ => reference.packs.push((*pack, *pack)),
            }
        }
    }
    Needed { refs, sizes }
}
