//! The catalog: which points a source has, and what is known about each, from plain objects alone.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use futures::StreamExt as _;
use ulid::Ulid;

use super::documents::{Commit, Damage, Hold, Refs, Sums, Tombstone, parse_placed};
use super::{Repository, layout};
use crate::clock::World;
use crate::error::{Error, Kind, Result};
use crate::types::{Digest, Key, RunId, SourceName};

/// How many small objects are read at once.
pub const READS_AT_ONCE: usize = 16;

/// A point as the catalog knows it.
#[derive(Clone, Debug)]
pub struct Point {
    /// Its commit.
    pub commit: Commit,
    /// SHA-256 of the object that holds the commit: what drills prove is proven of this.
    pub digest: Digest,
    /// Store time of that.
    pub modified: DateTime<Utc>,
    /// Its tombstone's store time.
    pub tombstoned: Option<DateTime<Utc>>,
    /// Whether it is held.
    pub held: bool,
}

/// Why a commit can not be read.
#[derive(Clone, Debug)]
pub struct Unreadable {
    /// In words.
    pub problem: String,
    /// It is not damaged, only of a newer format.
    pub newer: bool,
}

/// A source's points, tombstones, holds and damage.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    /// By run, oldest first (run ids sort by time).
    pub points: BTreeMap<RunId, Point>,
    /// Commits that can not be read. Never silently skipped.
    pub unreadable: BTreeMap<RunId, Unreadable>,
    /// Store times of all tombstones, also those whose commit is gone.
    pub tombstones: BTreeMap<RunId, DateTime<Utc>>,
    /// All holds.
    pub holds: BTreeSet<RunId>,
    /// What was found damaged, by run and object.
    pub damage: BTreeMap<(RunId, String), Damage>,
}

impl Repository {
    /// Reads a source's catalog.
    ///
    /// # Errors
    /// The store. A commit that is damaged or of a newer format is not an error here; it is told in [`Catalog::unreadable`].
    pub async fn catalog(&self, source: &SourceName) -> Result<Catalog> {
        let prefix = layout::points_prefix(source);
        let tombstones = self.runs_below(&layout::tombstones_prefix(source)).await?;
        let holds: BTreeSet<RunId> = self
            .runs_below(&layout::holds_prefix(source))
            .await?
            .into_keys()
            .collect();
        let damage = self.damage(source).await?;
        let listed = self.list(&prefix).await?;
        let mut catalog = Catalog {
            tombstones,
            holds,
            damage,
            ..Catalog::default()
        };
        let read = futures::stream::iter(listed)
            .map(|object| async move {
                let run = layout::run_of_json(&object.key, &layout::points_prefix(source));
                let read = match run {
                    Some(run) => self.commit_digested(source, run).await,
                    None => Err(Error::damaged(format!(
                        "{} is not the name of a point",
                        object.key
                    ))),
                };
                (object, run, read)
            })
            .buffered(READS_AT_ONCE)
            .collect::<Vec<_>>()
            .await;
        for (object, run, commit) in read {
            match (run, commit) {
                (Some(run), Ok(Some((commit, digest)))) => {
                    let point = Point {
                        commit,
                        digest,
                        modified: object.modified,
                        tombstoned: catalog.tombstones.get(&run).copied(),
                        held: catalog.holds.contains(&run),
                    };
                    catalog.points.insert(run, point);
                }
                // Swept between the list and the read.
                (Some(_), Ok(None)) => {}
                (Some(run), Err(e)) if matches!(e.kind(), Kind::Damaged | Kind::Newer) => {
                    let newer = e.kind() == Kind::Newer;
                    let problem = e.chain();
                    catalog.unreadable.insert(run, Unreadable { problem, newer });
                }
                (None, Err(_)) => {}
                (_, Err(e)) => return Err(e),
                (None, Ok(_)) => {}
            }
        }
        Ok(catalog)
    }

    /// Reads a commit by its key; `None` when it is proven absent.
    ///
    /// # Errors
    /// The store; damaged or of an unknown format.
    pub async fn commit(&self, source: &SourceName, run: RunId) -> Result<Option<Commit>> {
        let read = self.commit_digested(source, run).await?;
        Ok(read.map(|(commit, _)| commit))
    }

    /// As [`Self::commit`], with the digest of the object.
    async fn commit_digested(&self, source: &SourceName, run: RunId) -> Result<Option<(Commit, Digest)>> {
        let key = layout::commit(source, run);
        match self.read(&key).await? {
            Some(bytes) => {
                let commit = Commit::parse(&bytes, &key, self.id(), source, run)?;
                Ok(Some((commit, Digest::of(&bytes))))
            }
            None => Ok(None),
        }
    }

    /// The runs named by `<run>.json` below a prefix, with store times.
    ///
    /// # Errors
    /// The store.
    pub async fn runs_below(&self, prefix: &str) -> Result<BTreeMap<RunId, DateTime<Utc>>> {
        Ok(self
            .list(prefix)
            .await?
            .into_iter()
            .filter_map(|o| Some((layout::run_of_json(&o.key, prefix)?, o.modified)))
            .collect())
    }

    /// What was found damaged in a source, and not found whole later.
    ///
    /// # Errors
    /// The store.
    pub async fn damage(&self, source: &SourceName) -> Result<BTreeMap<(RunId, String), Damage>> {
        let mut damage: BTreeMap<(RunId, String), Damage> = BTreeMap::new();
        for object in self.list(&layout::damaged_prefix(source)).await? {
            let Some(bytes) = self.read(&object.key).await? else {
                continue;
            };
            // A record of damage that is itself damaged can not name anything; verify tells of it.
            if let Ok(record) = serde_json::from_slice::<Damage>(&bytes)
                && record.place.repository == self.id()
                && record.place.source == *source
            {
                let object = (record.place.run, record.object.clone());
                // Keys are in the order of their making.
                match record.problem.as_str() {
                    Damage::MENDED => damage.retain(|o, d| *o != object || d.is_lasting()),
                    _ => drop(damage.insert(object, record)),
                }
            }
        }
        Ok(damage)
    }

    /// Records damage, or that there is none any more, behind all earlier records: the newest counts, whatever clocks say.
    ///
    /// # Errors
    /// The store.
    pub async fn record_damage(&self, world: &World, damage: &Damage) -> Result<()> {
        let source = &damage.place.source;
        let prefix = layout::damaged_prefix(source);
        let last = self.list(&prefix).await?.into_iter().next_back();
        let after = last
            .and_then(|o| {
                o.key
                    .as_str()
                    .strip_prefix(&prefix)?
                    .strip_suffix(".json")?
                    .parse()
                    .ok()
            })
            .and_then(|last: Ulid| last.increment().ok());
        let id = world.ulid()?;
        let key = layout::damaged(source, after.map_or(id, |after| id.max(after)));
        self.put(world, &key, super::documents::to_json(damage)?.into())
            .await
    }

    /// Reads a run's references and compares their digest.
    ///
    /// # Errors
    /// Damaged or missing.
    pub async fn refs(&self, source: &SourceName, run: RunId, digest: Digest) -> Result<Refs> {
        let key = layout::run_object(source, run, layout::REFS);
        Refs::parse(
            &self.read_checked(&key, digest).await?,
            &key,
            &self.place(source, run),
        )
    }

    /// Reads a run's digests and compares their own.
    ///
    /// # Errors
    /// Damaged or missing.
    pub async fn sums(&self, source: &SourceName, run: RunId, digest: Digest) -> Result<Sums> {
        let key = layout::run_object(source, run, layout::SUMS);
        Sums::parse(
            &self.read_checked(&key, digest).await?,
            &key,
            &self.place(source, run),
        )
    }

    /// Reads an object that must have a digest.
    ///
    /// # Errors
    /// Damaged or missing.
    pub async fn read_checked(&self, key: &Key, digest: Digest) -> Result<bytes::Bytes> {
        let bytes = self.read_present(key).await?;
        compare_digest(key, &bytes, digest)?;
        Ok(bytes)
    }

    /// Reads an object that must be there.
    ///
    /// # Errors
    /// Missing.
    pub async fn read_present(&self, key: &Key) -> Result<bytes::Bytes> {
        self.read(key).await?.ok_or_else(|| {
            Error::damaged(format!("{key} is missing")).hint("`backup verify` tells how far the damage goes.")
        })
    }

    /// Reads the tombstone of a run and compares its place; `None` when absent.
    ///
    /// # Errors
    /// The store; a forged or damaged one.
    pub async fn tombstone(&self, source: &SourceName, run: RunId) -> Result<Option<Tombstone>> {
        let key = layout::tombstone(source, run);
        match self.read(&key).await? {
            Some(bytes) => Ok(Some(parse_placed(
                &bytes,
                &key,
                |t: &Tombstone| &t.place,
                &self.place(source, run),
            )?)),
            None => Ok(None),
        }
    }

    /// Reads the hold of a run; `None` when absent. A damaged hold still holds.
    ///
    /// # Errors
    /// The store; damaged.
    pub async fn hold(&self, source: &SourceName, run: RunId) -> Result<Option<Hold>> {
        let key = layout::hold(source, run);
        match self.read(&key).await? {
            Some(bytes) => Ok(Some(parse_placed(
                &bytes,
                &key,
                |h: &Hold| &h.place,
                &self.place(source, run),
            )?)),
            None => Ok(None),
        }
    }
}

impl Repository {
    /// The references of several points, and those whose references are damaged or missing.
    ///
    /// # Errors
    /// The store.
    pub async fn refs_of(
        &self,
        source: &SourceName,
        commits: &[&Commit],
    ) -> Result<(BTreeMap<RunId, Refs>, BTreeMap<RunId, String>)> {
        let read = futures::stream::iter(commits.iter().map(|c| (c.run, c.refs)).collect::<Vec<_>>())
            .map(|(run, digest)| async move { (run, self.refs(source, run, digest).await) })
            .buffered(READS_AT_ONCE)
            .collect::<Vec<_>>()
            .await;
        let (mut refs, mut damaged) = (BTreeMap::new(), BTreeMap::new());
        for (run, result) in read {
            match result {
                Ok(found) => drop(refs.insert(run, found)),
                Err(e) if e.kind() == Kind::Damaged => drop(damaged.insert(run, e.chain())),
                Err(e) => return Err(e),
            }
        }
        Ok((refs, damaged))
    }

    /// The points that records of damage tell to be broken. Without records nothing is read.
    ///
    /// # Errors
    /// The store.
    pub async fn broken(&self, source: &SourceName, catalog: &Catalog) -> Result<BTreeSet<RunId>> {
        if catalog.damage.is_empty() {
            return Ok(BTreeSet::new());
        }
        let commits: Vec<_> = catalog.points.values().map(|p| &p.commit).collect();
        let (refs, damaged) = self.refs_of(source, &commits).await?;
        let told = catalog.points.values().filter(|point| {
            refs.get(&point.commit.run)
                .is_some_and(|refs| catalog.damage_of(point, refs).is_some())
        });
        Ok(told.map(|p| p.commit.run).chain(damaged.into_keys()).collect())
    }

    /// Looks again at an object that a record tells to be missing or different: a store may have denied for a while
    /// what it had, and whoever may write a record may write a wrong one. What else was found wrong stays so.
    ///
    /// # Errors
    /// The store.
    pub async fn is_still_damaged(
        &self,
        source: &SourceName,
        commit: &Commit,
        refs: &Refs,
        damage: &Damage,
    ) -> Result<bool> {
        if damage.object == "commit" || ![Damage::MISSING, Damage::DIFFERS].contains(&damage.problem.as_str())
        {
            return Ok(true);
        }
        let run = damage.place.run;
        let digest = if run == commit.run {
            commit.sums
        } else {
            match refs.0.get(&run) {
                Some(reference) => reference.sums,
                None => return Ok(true),
            }
        };
        let sound = async {
            let sums = self.sums(source, run, digest).await?;
            if damage.object != layout::SUMS {
                let known = sums.0.get(&damage.object).copied();
                let digest = known.ok_or_else(|| Error::damaged("not in its SHA256SUMS"))?;
                let key = layout::run_object(source, run, &damage.object);
                self.read_checked(&key, digest).await?;
            }
            Ok::<_, Error>(())
        };
        match sound.await {
            Ok(()) => Ok(false),
            Err(e) if e.kind() == Kind::Damaged => Ok(true),
            Err(e) => Err(e),
        }
    }
}

impl Catalog {
    /// Why a point can not be restored whole, as far as records of damage tell: the first damaged object that it
    /// draws on.
    pub fn damage_of(&self, point: &Point, refs: &Refs) -> Option<&Damage> {
        self.damages_of(point, refs).next()
    }
    /// All of it.
    pub fn damages_of(&self, point: &Point, refs: &Refs) -> impl Iterator<Item = &Damage> {
        self.damage.iter().filter_map(move |((run, object), damage)| {
            let own = *run == point.commit.run;
            let used = own
                || refs
                    .0
                    .get(run)
                    .is_some_and(|r| match layout::pack_number(object) {
                        Some(n) => r.packs.iter().any(|(a, b)| (*a..=*b).contains(&n)),
                        None => object == layout::SUMS || r.manifest && object == layout::MANIFEST,
                    });
            used.then_some(damage)
        })
    }
    /// The object key that a record of damage is about.
    pub fn damaged_key(source: &SourceName, damage: &Damage) -> Key {
        match damage.object.as_str() {
            "commit" => layout::commit(source, damage.place.run),
            name => layout::run_object(source, damage.place.run, name),
        }
    }
}

/// Compares an object with the digest it was written with.
///
/// # Errors
/// Damaged.
pub fn compare_digest(key: &Key, bytes: &[u8], digest: Digest) -> Result<()> {
    if Digest::of(bytes) == digest {
        return Ok(());
    }
    Err(
        Error::damaged(format!("{key} is not what was written: its SHA-256 differs"))
            .hint("`backup verify` tells how far the damage goes."),
    )
}
