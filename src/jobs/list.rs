//! What there is: points, windows, and everything about one point.

use std::collections::BTreeMap;

use super::Session;
use super::evidence::{self, Proven};
use super::outline::outline;
use super::report::{
    ListReport, ListedObject, ListedPoint, ListedReference, ListedSource, PointReport, UnreadablePoint,
    Window,
};
use super::restore::restorer;
use super::session::Role;
use crate::error::{Error, Kind, Result};
use crate::repository::catalog::{Catalog, Point};
use crate::repository::documents::{Commit, Refs};
use crate::repository::reader::OpenPoint;
use crate::repository::{Repository, layout};
use crate::source::{Part, RestoreOptions};
use crate::types::{RunId, SourceName};

/// Points and windows of all sources, or one: those of the policy, and those of which the repository has something.
///
/// # Errors
/// The repository; an unknown source.
pub async fn list(session: &Session, source: Option<&SourceName>) -> Result<ListReport> {
    let repository = session.open(Role::Writer).await?;
    let mut names = repository.sources().await?;
    names.extend(session.policy.sources.keys().cloned());
    if let Some(source) = source {
        if !names.contains(source) {
            return Err(Error::usage(format!(
                "neither the policy nor the repository has a source {source}"
            ))
            .hint(format!("There is: {}.", join(&names))));
        }
        names.retain(|n| n == source);
    }
    let mut sources = Vec::new();
    let told = evidence::told(session, &repository).await;
    for name in names {
        sources.push(listed(&repository, name, &told.proven).await?);
    }
    Ok(ListReport {
        sources,
        warnings: [told.problems, told.warnings].concat(),
    })
}

fn join(names: &std::collections::BTreeSet<SourceName>) -> String {
    names
        .iter()
        .map(SourceName::as_str)
        .collect::<Vec<_>>()
        .join(", ")
}

async fn listed(repository: &Repository, source: SourceName, proven: &Proven) -> Result<ListedSource> {
    let catalog = repository.catalog(&source).await?;
    // Damage is seldom; references are read only when some is recorded.
    let mut refs: BTreeMap<RunId, Result<Refs>> = BTreeMap::new();
    if !catalog.damage.is_empty() {
        for point in catalog.points.values() {
            refs.insert(
                point.commit.run,
                repository
                    .refs(&source, point.commit.run, point.commit.refs)
                    .await,
            );
        }
    }
    let points: Vec<ListedPoint> = catalog
        .points
        .values()
        .filter(|p| !p.commit.partial)
        .map(|p| ListedPoint {
            drilled: proven.point(&source, p.commit.run, p.digest).cloned(),
            ..listed_point(p, damage(&catalog, p, refs.get(&p.commit.run)))
        })
        .collect();
    let shown = || {
        points
            .iter()
            .filter(|p| p.tombstoned.is_none() && p.damaged.is_none())
    };
    let windows = match (shown().map(|p| p.at).min(), shown().map(|p| p.at).max()) {
        (Some(from), Some(to)) => vec![Window {
            from,
            to,
            kind: "points",
        }],
        _ => Vec::new(),
    };
    Ok(ListedSource {
        kind: catalog.points.values().next_back().map(|p| p.commit.kind.clone()),
        unreadable: catalog
            .unreadable
            .iter()
            .map(|(run, why)| UnreadablePoint {
                run: *run,
                problem: why.problem.clone(),
                newer_format: why.newer,
            })
            .collect(),
        source,
        points,
        windows,
    })
}

fn damage(catalog: &Catalog, point: &Point, refs: Option<&Result<Refs>>) -> Option<String> {
    match refs? {
        Ok(refs) => catalog
            .damage_of(point, refs)
            .map(|d| format!("{} of run {}: {}", d.object, d.place.run, d.problem)),
        Err(e) => Some(e.chain()),
    }
}

fn listed_point(point: &Point, damaged: Option<String>) -> ListedPoint {
    let commit = &point.commit;
    ListedPoint {
        run: commit.run,
        at: commit.at,
        started: commit.started,
        finished: commit.finished,
        bytes_content: commit.bytes.content,
        bytes_read: commit.bytes.read,
        bytes_stored: commit.bytes.stored,
        parent: commit.parent,
        drilled: None,
        held: point.held,
        tombstoned: point.tombstoned,
        damaged,
    }
}

/// Facts, refs and locks of one run.
///
/// # Errors
/// No such point; the repository.
pub async fn point(session: &Session, run: RunId) -> Result<PointReport> {
    let repository = session.open(Role::Writer).await?;
    let source = session.source_of_run(&repository, run).await?;
    let catalog = repository.catalog(&source).await?;
    let point = catalog.points.get(&run).ok_or_else(|| {
        Error::damaged(format!("the commit of {run} can not be read")).hint("`backup verify` tells more.")
    })?;
    let refs = match repository.refs(&source, run, point.commit.refs).await {
        Ok(refs) => Ok(refs),
        Err(e) if e.kind() == Kind::Damaged => Err(e),
        Err(e) => return Err(e),
    };
    let listed_refs = refs
        .iter()
        .flat_map(|r| r.0.values())
        .map(|r| ListedReference {
            run: r.run,
            packs: r.packs.iter().map(|(a, b)| u64::from(b - a) + 1).sum(),
        })
        .collect();
    let mut objects = Vec::new();
    for info in repository.list(&layout::run_prefix(&source, run)).await? {
        let lock = match repository.object_lock() {
            Some(_) => repository
                .store()
                .head(&info.key, repository.view())
                .await?
                .and_then(|i| i.lock),
            None => None,
        };
        objects.push(ListedObject {
            key: info.key.to_string(),
            bytes: info.size,
            locked_until: lock.map(|l| l.until),
        });
    }
    let commit = &point.commit;
    let databases = parts(session, &repository, &source, commit).await?;
    Ok(PointReport {
        point: listed_point(point, damage(&catalog, point, Some(&refs))),
        source,
        kind: commit.kind.clone(),
        facts: commit.facts.clone(),
        databases,
        generation: commit.generation.id,
        clock_offset_ms: commit.clocks.source_minus_store_ms(),
        slot: commit.slot,
        refs: listed_refs,
        objects,
    })
}

/// What the point holds, where an identity at hand opens it.
async fn parts(
    session: &Session,
    repository: &Repository,
    source: &SourceName,
    commit: &Commit,
) -> Result<Option<Vec<Part>>> {
    // An identity that can not be had here shows less; it is no reason to show nothing.
    let mut keys = match session.key_ring() {
        Ok(keys) if !keys.is_empty() => keys,
        Err(e) if session.identity_file.is_some() => return Err(e),
        _ => return Ok(None),
    };
    let Ok(restorer) = restorer(session, source, &commit.kind) else {
        return Ok(Some(Vec::new()));
    };
    let point = match OpenPoint::open(repository, source, commit, &mut keys).await {
        Ok(point) => point,
        Err(e) if matches!(e.kind(), Kind::NoIdentity | Kind::Damaged) => return Ok(None),
        Err(e) => return Err(e),
    };
    let parts = match outline(&point, &*restorer).await {
        Ok(outline) => restorer.parts(&outline, &RestoreOptions::default()),
        Err(e) => Err(e),
    };
    match parts {
        Ok(parts) => Ok(Some(parts)),
        Err(e) if e.kind() == Kind::Damaged => Ok(None),
        Err(e) => Err(e),
    }
}
