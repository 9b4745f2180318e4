//! Sweep: takes no list's word (DESIGN, section 5). For every run prefix found it reads the commit by key; a commit
//! found and not listed, or a parent or referenced run that is neither listed nor tombstoned, aborts.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use super::{MARGIN, Roots, grace};
use crate::error::{Error, Kind, Result};
use crate::jobs::Session;
use crate::jobs::report::{PruneReport, Swept};
use crate::repository::catalog::Catalog;
use crate::repository::documents::Tombstone;
use crate::repository::{Repository, layout};
use crate::store::{Fault, ObjectInfo};
use crate::types::{Key, RunId, SourceName};

/// An orphan run is left alone for at least this long.
const ORPHAN_AGE: TimeDelta = TimeDelta::days(7);
/// How old the answer that a commit is absent may be when an object of its run is deleted.
const FRESH: Duration = Duration::from_secs(30);

/// What a run's prefix holds.
type Found = BTreeMap<RunId, Vec<ObjectInfo>>;

/// What goes of one run.
struct Removal {
    run: RunId,
    why: &'static str,
    /// In the order of deletion.
    objects: Vec<ObjectInfo>,
    /// Whether nothing of it stays, so that its tombstone goes too.
    all: bool,
}

/// Plans and carries out the sweep of one source.
///
/// # Errors
/// Anything that makes a list doubtful; nothing more is removed then.
pub async fn sweep(
    session: &Session,
    repository: &Repository,
    source: &SourceName,
    expired: &BTreeSet<RunId>,
    now: DateTime<Utc>,
    report: &mut PruneReport,
) -> Result<()> {
    let found = found(repository, source).await?;
    let catalog = consistent(session, repository, source, &found, report).await?;
    let grace = grace(session);
    let due: BTreeSet<RunId> = expired
        .iter()
        .filter(|run| {
            catalog
                .tombstones
                .get(run)
                .is_some_and(|since| now - *since > grace + MARGIN)
        })
        .filter(|run| catalog.points.contains_key(run))
        .copied()
        .collect();
    // Commits go first, all of them: one that stays after all (held or brought back meanwhile) is a root again before
    // any object that it draws on is touched.
    let mut gone = BTreeSet::new();
    let catalog = if report.dry_run {
        gone.extend(due.iter().copied());
        catalog
    } else {
        for run in &due {
            stop_if_cancelled(session)?;
            if delete_commit(session, repository, source, *run, &catalog, report).await? {
                gone.insert(*run);
            }
        }
        consistent(session, repository, source, &found, report).await?
    };
    let roots: Roots<'_> = catalog
        .points
        .iter()
        .filter(|(run, _)| !(report.dry_run && gone.contains(run)))
        .map(|(r, p)| (*r, p))
        .collect();
    let Some(needed) = needed(repository, source, &roots, report).await? else {
        return Ok(());
    };
    for removal in plan(&found, &catalog, &roots, &gone, &needed, now, grace) {
        stop_if_cancelled(session)?;
        let swept = Swept {
            source: source.clone(),
            run: removal.run,
            why: removal.why,
            objects: removal.objects.len() as u64 + u64::from(gone.contains(&removal.run)),
            bytes: removal.objects.iter().map(|o| o.size).sum(),
        };
        if report.dry_run || carry_out(session, repository, source, &removal, &catalog, report).await? {
            report.sweep.push(swept);
        }
    }
    Ok(())
}

fn stop_if_cancelled(session: &Session) -> Result<()> {
    if session.cancel.is_cancelled() {
        return Err(Error::new(Kind::Interrupted, "interrupted")
            .hint("Run prune again; it goes on where it stopped."));
    }
    Ok(())
}

async fn found(repository: &Repository, source: &SourceName) -> Result<Found> {
    let prefix = layout::runs_prefix(source);
    let mut found = Found::new();
    for object in repository.list(&prefix).await? {
        if let Some((run, _)) = layout::run_and_name(&object.key, &prefix) {
            found.entry(run).or_default().push(object);
        }
    }
    Ok(found)
}

/// How often lists are looked at again that do not agree with what keys say.
const LOOKS: u32 = 3;

/// Why the lists do not do.
enum Doubt {
    /// Somebody may have committed or swept between two looks.
    Again(Error),
    /// No later look helps.
    Lasting(Error),
}

impl From<Error> for Doubt {
    fn from(e: Error) -> Self {
        Self::Lasting(e)
    }
}

/// A catalog that keys agree with. Runs and other prunes go on meanwhile, so a doubt is looked at again before it counts.
async fn consistent(
    session: &Session,
    repository: &Repository,
    source: &SourceName,
    found: &Found,
    report: &PruneReport,
) -> Result<Catalog> {
    let mut looks = 1;
    loop {
        let catalog = repository.catalog(source).await?;
        match check_lists(session, repository, source, found, &catalog, report).await {
            Ok(()) => return Ok(catalog),
            Err(Doubt::Again(e)) if looks < LOOKS => {
                tracing::debug!(source = %source, error = %e.chain(), "the lists are looked at again");
                looks += 1;
            }
            Err(Doubt::Again(e) | Doubt::Lasting(e)) => return Err(e),
        }
    }
}

/// Found but not listed: the list of commits lacks some, and nothing may go. A parent or referenced run neither listed
/// nor tombstoned: the same; where its key says that the commit is gone, it is buried, since a tombstone is what tells
/// everybody so, and the next prune goes on. What is recorded as damaged explains itself and stops nothing.
async fn check_lists(
    session: &Session,
    repository: &Repository,
    source: &SourceName,
    found: &Found,
    catalog: &Catalog,
    report: &PruneReport,
) -> std::result::Result<(), Doubt> {
    if let Some(why) = catalog.unreadable.values().next() {
        return Err(Error::damaged(why.problem.clone()).into());
    }
    let not_listed = |run: RunId| {
        Doubt::Again(Error::failed(format!(
            "the commit of {run} is there and was not listed"
        )))
    };
    for run in found.keys().filter(|run| !catalog.points.contains_key(run)) {
        if repository.read(&layout::commit(source, *run)).await?.is_some() {
            return Err(not_listed(*run));
        }
    }
    let recorded = |run: RunId| catalog.damage.keys().any(|(r, _)| *r == run);
    let commits: Vec<_> = catalog.points.values().map(|p| &p.commit).collect();
    let (refs, damaged) = repository.refs_of(source, &commits).await?;
    for (run, problem) in damaged {
        if !recorded(run) {
            return Err(Doubt::Again(Error::damaged(problem).hint(
                "Run `backup verify`, which records the damage, then prune again.",
            )));
        }
    }
    let parents = commits
        .iter()
        .filter_map(|c| c.parent)
        .filter(|p| found.contains_key(p));
    let drawn_on: BTreeSet<RunId> = refs
        .values()
        .flat_map(|r| r.0.keys().copied())
        .chain(parents)
        .collect();
    let unknown = drawn_on
        .into_iter()
        .filter(|r| !catalog.points.contains_key(r) && !catalog.tombstones.contains_key(r));
    let mut lost = Vec::new();
    for run in unknown {
        if repository.read(&layout::commit(source, run)).await?.is_some() {
            return Err(not_listed(run));
        }
        if repository.tombstone(source, run).await?.is_none() {
            lost.push(run);
        }
    }
    let Some(first) = lost.first() else { return Ok(()) };
    for run in lost.iter().filter(|_| !report.dry_run) {
        super::entomb(session, repository, source, *run, "its commit is gone").await?;
    }
    Err(Doubt::Lasting(Error::failed(format!(
        "run {first}, which others draw on, is neither listed nor tombstoned"
    ))
    .hint("Somebody removed its commit. It is buried now, so that the next prune can go on; what others need of it stays.")))
}

/// What the roots draw on: by run, object names. `None`: that of some can not be told, so nothing but commits may go.
async fn needed(
    repository: &Repository,
    source: &SourceName,
    roots: &Roots<'_>,
    report: &mut PruneReport,
) -> Result<Option<BTreeMap<RunId, Needs>>> {
    let commits: Vec<_> = roots.values().map(|p| &p.commit).collect();
    let (all, damaged) = repository.refs_of(source, &commits).await?;
    if let Some(run) = damaged.keys().next() {
        report.warnings.push(format!(
            "{source}: what the damaged point {run} draws on can not be told; no packs go before it has expired"
        ));
        return Ok(None);
    }
    let mut needed: BTreeMap<RunId, Needs> = BTreeMap::new();
    for refs in all.values() {
        for reference in refs.0.values() {
            let needs = needed.entry(reference.run).or_default();
            needs.packs.extend(reference.packs.iter().copied());
            needs.manifest |= reference.manifest;
        }
    }
    Ok(Some(needed))
}

/// What of a run is drawn on by others.
#[derive(Default)]
struct Needs {
    packs: Vec<(u32, u32)>,
    manifest: bool,
}

impl Needs {
    fn wants(&self, name: &str) -> bool {
        match layout::pack_number(name) {
            Some(n) => self.packs.iter().any(|(a, b)| (*a..=*b).contains(&n)),
            // Digests are needed as long as anything is; refs tell a reader of the commit only.
            None => name == layout::SUMS || name == layout::MANIFEST && self.manifest,
        }
    }
}

/// Packs, manifest, refs, SHA256SUMS.
fn rank(name: &str) -> u8 {
    match name {
        layout::SUMS => 3,
        layout::REFS => 2,
        layout::MANIFEST => 1,
        _ => 0,
    }
}

fn plan(
    found: &Found,
    catalog: &Catalog,
    roots: &Roots<'_>,
    gone: &BTreeSet<RunId>,
    needed: &BTreeMap<RunId, Needs>,
    now: DateTime<Utc>,
    grace: TimeDelta,
) -> Vec<Removal> {
    let mut removals = Vec::new();
    let name = |o: &ObjectInfo| o.key.as_str().rsplit('/').next().unwrap_or_default().to_owned();
    let buried = |run: &RunId| catalog.tombstones.contains_key(run);
    // Commit and objects gone: only the tombstone is left of it.
    let husks = catalog
        .tombstones
        .keys()
        .filter(|r| !roots.contains_key(r) && !found.contains_key(r) && !needed.contains_key(r));
    for run in husks {
        removals.push(Removal {
            run: *run,
            why: "remains",
            objects: Vec::new(),
            all: true,
        });
    }
    for (run, objects) in found.iter().filter(|(run, _)| !roots.contains_key(run)) {
        let why = match (gone.contains(run), buried(run)) {
            (true, _) => "expired",
            (false, true) => "remains",
            (false, false) => "orphan",
        };
        if why == "orphan" {
            let newest = objects.iter().map(|o| o.modified).max();
            if needed.contains_key(run) || newest.is_none_or(|m| now - m <= grace.max(ORPHAN_AGE)) {
                continue;
            }
        }
        let wants = |o: &ObjectInfo| needed.get(run).is_some_and(|n| n.wants(&name(o)));
        let mut going: Vec<ObjectInfo> = objects.iter().filter(|o| !wants(o)).cloned().collect();
        going.sort_by_key(|o| rank(&name(o)));
        // A list may have hidden just what others need: the tombstone stays as long as anybody names the run.
        let all = going.len() == objects.len() && !needed.contains_key(run);
        if why == "expired" || !going.is_empty() || (buried(run) && all) {
            removals.push(Removal {
                run: *run,
                why,
                objects: going,
                all,
            });
        }
    }
    removals
}

/// Deletes a commit, if tombstone, hold and commit, read again by key, say so. `false`: it stays.
async fn delete_commit(
    session: &Session,
    repository: &Repository,
    source: &SourceName,
    run: RunId,
    catalog: &Catalog,
    report: &mut PruneReport,
) -> Result<bool> {
    let key = layout::commit(source, run);
    // The one that the plan saw may have been taken back and another one put: its age counts anew.
    let tombstone = layout::tombstone(source, run);
    let head = repository.store().head(&tombstone, repository.view()).await?;
    let since = head.map(|info| info.modified);
    let now = repository.store().now().await?;
    let buried = repository.tombstone(source, run).await?.is_some()
        && since.is_some_and(|since| now - since > grace(session) + MARGIN);
    // A hold that can not be read holds all the same.
    let held = repository.read(&layout::hold(source, run)).await?.is_some();
    let commit = repository.commit(source, run).await?;
    let same = commit.as_ref() == catalog.points.get(&run).map(|p| &p.commit);
    if !buried || held || !same {
        report.warnings.push(format!(
            "{source}: {run} was held or brought back meanwhile, and stays"
        ));
        return Ok(false);
    }
    session.world.crash.reach("before a commit is deleted")?;
    if !delete(repository, &key, report).await? {
        return Ok(false);
    }
    if repository.read(&key).await?.is_some() {
        return Err(
            Error::failed(format!("the commit of {run} is still there after it was deleted"))
                .hint("With versions shown, the first one counts: sweep without --versions."),
        );
    }
    Ok(true)
}

/// Whether the commit of a run is there just now: an answer that took long, or a host that was suspended over it, says
/// nothing of now, and is asked for again.
async fn commit_is_there(
    session: &Session,
    repository: &Repository,
    source: &SourceName,
    run: RunId,
) -> Result<bool> {
    let clock = &session.world.clock;
    loop {
        let asked = clock.since_boot();
        if repository.read(&layout::commit(source, run)).await?.is_some() {
            return Ok(true);
        }
        if clock.since_boot().saturating_sub(asked) <= FRESH {
            return Ok(false);
        }
    }
}

/// Removes the objects of one run whose commit is gone. `false`: they were not to go after all.
async fn carry_out(
    session: &Session,
    repository: &Repository,
    source: &SourceName,
    removal: &Removal,
    catalog: &Catalog,
    report: &mut PruneReport,
) -> Result<bool> {
    let run = removal.run;
    if removal.why != "orphan" && repository.tombstone(source, run).await?.is_none() {
        return Ok(false);
    }
    if removal.why == "orphan" {
        // Its writer may have slept, and be at work on it again.
        let now = repository.store().now().await?;
        let there = repository.list(&layout::run_prefix(source, run)).await?;
        let newest = there.iter().map(|o| o.modified).max();
        if newest.is_some_and(|m| now - m <= grace(session).max(ORPHAN_AGE)) {
            return Ok(false);
        }
    }
    if commit_is_there(session, repository, source, run).await? {
        return Ok(false);
    }
    if removal.why == "orphan" {
        // Said first, then looked once more: a writer puts its commit, then looks for this. One of the two sees the other,
        // however long either slept.
        super::entomb(session, repository, source, run, Tombstone::ORPHAN).await?;
        if commit_is_there(session, repository, source, run).await? {
            delete(repository, &layout::tombstone(source, run), report).await?;
            return Ok(false);
        }
    }
    for object in &removal.objects {
        // Looked for before each, so that less is lost of a run whose writer wakes just now.
        if removal.why == "orphan" && commit_is_there(session, repository, source, run).await? {
            return Ok(false);
        }
        session.world.crash.reach("before an object is deleted")?;
        if !delete(repository, &object.key, report).await? {
            return Ok(true);
        }
    }
    if removal.all && (removal.why == "orphan" || catalog.tombstones.contains_key(&run)) {
        session.world.crash.reach("before a tombstone is deleted")?;
        delete(repository, &layout::tombstone(source, run), report).await?;
    }
    Ok(true)
}

/// Deletes an object; `false`: it is locked, which is a state and told.
async fn delete(repository: &Repository, key: &Key, report: &mut PruneReport) -> Result<bool> {
    match repository.store().delete(key).await {
        Ok(()) => Ok(true),
        Err(e) if e.fault == Fault::Locked => {
            report
                .warnings
                .push(format!("{key} is locked and goes when its lock ends"));
            Ok(false)
        }
        Err(e) if e.fault == Fault::Denied => {
            Err(Error::from(e).hint("[prune] needs credentials that may delete; the writer's should not."))
        }
        Err(e) => Err(e.into()),
    }
}

/// Removes what `check` left behind where its credential could not delete.
///
/// # Errors
/// The store.
pub async fn probes(session: &Session, repository: &Repository, report: &mut PruneReport) -> Result<()> {
    let now = repository.store().now().await?;
    for object in repository.list(&layout::probes_prefix()).await? {
        if session.cancel.is_cancelled() {
            return Err(Error::new(Kind::Interrupted, "interrupted"));
        }
        if now - object.modified > TimeDelta::days(1) {
            delete(repository, &object.key, report).await?;
        }
    }
    Ok(())
}
