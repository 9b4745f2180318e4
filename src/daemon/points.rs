//! What the daemon knows of recovery points: the repository is asked for all of a source now and then, and for one after its
//! run. What is known is kept in the ledger.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures::{StreamExt as _, TryStreamExt as _};

use super::board::Step;
use super::proofs::{Proofs, ShownProof};
use crate::error::{Kind, Result};
use crate::jobs::Session;
use crate::jobs::session::Role;
use crate::jobs::{last, status};
use crate::policy::Policy;
use crate::repository::catalog::READS_AT_ONCE;
use crate::repository::documents::Commit;
use crate::repository::{Repository, layout};
use crate::state::ledger::points::{Looked, PointRecord, PointsSummary};
use crate::state::{self, ledger::Ledger};
use crate::types::{RunId, SourceName};

/// How often the repository is asked for all points of a source: others may prune, verify and write.
pub(super) const LOOK_EVERY: TimeDelta = TimeDelta::hours(1);
/// When it is asked again after it could not tell.
pub(super) const LOOK_AGAIN: TimeDelta = TimeDelta::minutes(2);

/// A source as it is shown.
#[derive(Clone, Debug, PartialEq)]
pub struct ShownSource {
    /// Its name.
    pub name: SourceName,
    /// Its kind: `postgres`, `pocketbase` …
    pub kind: &'static str,
    /// How old its newest point may be: the policy's objective, else twice its interval.
    pub objective: Option<Duration>,
    /// Its points.
    pub points: PointsSummary,
    /// What drills proved of them.
    pub proof: ShownProof,
    /// The repository is being asked for any of this.
    pub looking: bool,
}

impl ShownSource {
    /// When a drill of it passed last, and at which level.
    pub fn last_proof(&self) -> Option<(DateTime<Utc>, u8)> {
        self.proof.proof.as_ref()?.last
    }
}

struct Entry {
    kind: &'static str,
    objective: Option<Duration>,
    /// When all its points are asked for again.
    look: DateTime<Utc>,
    looking: bool,
    /// What is being looked for is compared with what was lost meanwhile: it is looked for once more.
    stale: bool,
    /// Made just now, to be read.
    new: Option<RunId>,
    /// When a run of this state directory ended last, as far as was looked.
    ended: Option<DateTime<Utc>>,
    shown: PointsSummary,
}

/// Every source of the policy, with what is known of its points.
pub struct Points {
    sources: BTreeMap<SourceName, Entry>,
    /// The id of this state directory.
    writer: String,
    /// Where the repository is.
    place: String,
    /// Why the repository could not be asked last; none: it could.
    failed: Option<String>,
    /// When somebody pruned, held or verified last, as far as was looked.
    touched: Option<DateTime<Utc>>,
}

impl Points {
    /// Of no policy yet.
    pub fn new(writer: String) -> Self {
        Self {
            sources: BTreeMap::new(),
            writer,
            place: String::new(),
            failed: None,
            touched: None,
        }
    }

    /// Takes a policy: what is known of its sources is read from the ledger.
    pub fn take(&mut self, policy: &Policy, ledger: &Ledger, now: DateTime<Utc>) {
        self.sources.retain(|name, _| policy.sources.contains_key(name));
        let place = policy.repository.place();
        if self.place != place {
            // Other points, of which nothing is known yet.
            self.sources.clear();
            self.place = place;
        }
        for (name, source) in &policy.sources {
            let entry = self.sources.entry(name.clone()).or_insert_with(|| {
                let shown = ledger
                    .points_summary(name, &self.place, &self.writer, now)
                    .unwrap_or_default();
                Entry {
                    kind: source.kind.name(),
                    objective: None,
                    look: shown.looked.map_or(DateTime::UNIX_EPOCH, |at| at + LOOK_EVERY),
                    looking: false,
                    stale: false,
                    new: None,
                    ended: shown.looked,
                    shown,
                }
            });
            (entry.kind, entry.objective) = (source.kind.name(), status::objective(source, now));
        }
    }

    /// How many sources the repository is being asked for.
    pub fn looking(&self) -> usize {
        self.sources.values().filter(|e| e.looking).count()
    }

    /// Those whose time has come, at most so many.
    pub fn steps(&mut self, ledger: &Ledger, now: DateTime<Utc>, most: usize) -> Vec<Step> {
        let mut steps = Vec::new();
        for (name, entry) in &mut self.sources {
            // A look in the future is one before the clock was set back.
            let due = entry.look <= now || entry.look > now + LOOK_EVERY;
            if entry.looking || steps.len() >= most || !(due || entry.new.is_some()) {
                continue;
            }
            let wanted = match entry.new.take().filter(|_| !due) {
                Some(run) => Ok(Wanted::One(run)),
                None => ledger.known_points(name).map(Wanted::AllBut),
            };
            match wanted {
                Ok(wanted) => {
                    entry.looking = true;
                    steps.push(Step::Look(name.clone(), wanted));
                }
                Err(e) => {
                    tracing::error!(source = %name, error = %e.chain(), "the daemon's memory can not be read");
                    entry.look = now + LOOK_AGAIN;
                }
            }
        }
        steps
    }

    /// When the next look is.
    pub fn next(&self) -> Option<DateTime<Utc>> {
        let waiting = self.sources.values().filter(|e| !e.looking);
        waiting
            .map(|e| e.new.map_or(e.look, |_| DateTime::UNIX_EPOCH))
            .min()
    }

    /// A run of the daemon's ended; with a point, or without.
    pub fn ended(&mut self, policy: &Policy, source: &SourceName, run: Option<RunId>) {
        if let Some(entry) = self.sources.get_mut(source) {
            entry.ended = last::runs(policy, source).written().max(entry.ended);
            entry.new = run.or(entry.new);
        }
    }

    /// Looks whether others who use this state directory made, expired, judged or proved points; `true`: any of it but making.
    pub fn watch(&mut self, policy: &Policy) -> bool {
        for (name, entry) in &mut self.sources {
            let ended = last::runs(policy, name).written();
            if ended > entry.ended {
                (entry.ended, entry.look) = (ended, DateTime::UNIX_EPOCH);
            }
        }
        let touched = state::touched(&policy.state_dir);
        if touched <= self.touched {
            return false;
        }
        self.touched = touched;
        self.changed();
        true
    }

    /// What was known of them was lost.
    pub fn forgotten(&mut self) {
        for entry in self.sources.values_mut() {
            (entry.look, entry.shown) = (DateTime::UNIX_EPOCH, PointsSummary::default());
            entry.stale = entry.looking;
        }
    }

    /// Retention was at work, or verification: everything is looked at again.
    pub fn changed(&mut self) {
        for entry in self.sources.values_mut() {
            entry.look = DateTime::UNIX_EPOCH;
        }
    }

    /// What a look found.
    pub fn looked(
        &mut self,
        ledger: &mut Ledger,
        name: &SourceName,
        found: Result<Looked>,
        now: DateTime<Utc>,
    ) {
        // Asked of a repository that the policy had before, it says nothing of this one.
        let elsewhere = found.as_ref().is_ok_and(|found| found.place != self.place);
        let Some(entry) = self.sources.get_mut(name).filter(|_| !elsewhere) else {
            return;
        };
        entry.looking = false;
        if std::mem::take(&mut entry.stale) {
            return;
        }
        self.failed = found.as_ref().err().map(crate::error::Error::chain);
        let all = found.as_ref().is_ok_and(|found| found.all.is_some());
        let written = found.and_then(|found| {
            ledger.looked(name, &found, now)?;
            ledger.points_summary(name, &self.place, &self.writer, now)
        });
        match written {
            Ok(shown) => {
                if shown.foreign > entry.shown.foreign {
                    tracing::warn!(
                        source = %name, points = shown.foreign,
                        "another state directory writes points of this source too: each run of one is a new history for the other"
                    );
                }
                entry.shown = shown;
                if all {
                    entry.look = now + LOOK_EVERY;
                }
            }
            Err(e) => {
                tracing::warn!(source = %name, error = %e.chain(), "which recovery points there are is not known just now; what is shown may be old");
                entry.look = now + LOOK_AGAIN;
            }
        }
    }

    /// Why the repository could not be asked last.
    pub fn failed(&self) -> Option<&String> {
        self.failed.as_ref()
    }

    /// What is known of a source's points.
    pub fn of(&self, source: &SourceName) -> Option<&PointsSummary> {
        self.sources.get(source).map(|e| &e.shown)
    }

    /// Every source, by name.
    pub fn shown(&self, proofs: &Proofs) -> Vec<ShownSource> {
        let shown = |(name, entry): (&SourceName, &Entry)| ShownSource {
            name: name.clone(),
            kind: entry.kind,
            objective: entry.objective,
            points: entry.shown,
            proof: proofs.of(name),
            looking: entry.looking || entry.new.is_some() || proofs.is_looking(),
        };
        self.sources.iter().map(shown).collect()
    }
}

/// What the repository is asked for.
pub enum Wanted {
    /// All points; the commits of these are known.
    AllBut(BTreeSet<RunId>),
    /// One that was made just now.
    One(RunId),
}

/// Asks the repository for a source's points.
///
/// # Errors
/// The repository can not tell.
pub async fn look(session: &Session, source: &SourceName, wanted: Wanted) -> Result<Looked> {
    let repository = session.open(Role::Writer).await?;
    let place = session.policy.repository.place();
    let known = match wanted {
        Wanted::AllBut(known) => known,
        Wanted::One(run) => {
            let commit = repository.commit(source, run).await?;
            return Ok(Looked {
                place,
                new: commit.map(|c| record(&c)).into_iter().collect(),
                all: None,
            });
        }
    };
    let listed = repository.runs_below(&layout::points_prefix(source)).await?;
    let tombstones = repository.runs_below(&layout::tombstones_prefix(source)).await?;
    let damaged = damaged(&repository, source).await?;
    let state = |run: &RunId| (tombstones.get(run).copied(), damaged.contains(run));
    let unknown: Vec<RunId> = listed
        .keys()
        .filter(|run| !known.contains(*run))
        .copied()
        .collect();
    let repository = &repository;
    let new = futures::stream::iter(unknown)
        .map(|run| async move {
            match repository.commit(source, run).await {
                Ok(commit) => Ok(commit),
                // Told by verify and status; it is no point that could be shown.
                Err(e) if matches!(e.kind(), Kind::Damaged | Kind::Newer) => Ok(None),
                Err(e) => Err(e),
            }
        })
        .buffer_unordered(READS_AT_ONCE)
        .try_filter_map(|commit| async { Ok(commit.map(|c| record(&c))) })
        .map_ok(|mut point| {
            (point.tombstoned, point.damaged) = state(&point.run);
            point
        })
        .try_collect()
        .await?;
    Ok(Looked {
        place,
        new,
        all: Some(listed.keys().map(|run| (*run, state(run))).collect()),
    })
}

/// The points that draw on something damaged.
async fn damaged(repository: &Repository, source: &SourceName) -> Result<BTreeSet<RunId>> {
    if repository.damage(source).await?.is_empty() {
        return Ok(BTreeSet::new());
    }
    let catalog = repository.catalog(source).await?;
    let commits: Vec<_> = catalog.points.values().map(|p| &p.commit).collect();
    let (refs, unreadable) = repository.refs_of(source, &commits).await?;
    let hit = |run: &&RunId| match (catalog.points.get(run), refs.get(run)) {
        (Some(point), Some(refs)) => catalog.damage_of(point, refs).is_some(),
        _ => unreadable.contains_key(run),
    };
    Ok(catalog.points.keys().filter(hit).copied().collect())
}

fn record(commit: &Commit) -> PointRecord {
    PointRecord {
        run: commit.run,
        at: commit.at,
        finished: commit.finished,
        content: commit.bytes.content,
        stored: commit.bytes.stored,
        writer: commit.writer.clone(),
        partial: commit.partial,
        tombstoned: None,
        damaged: false,
    }
}
