//! Which points drills proved.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use serde_json::Value;

use super::super::report::Drilled;
use crate::drill::measured::Timed;
use crate::drill::{Outcome, RECOVERY_KEY};
use crate::repository::catalog::Catalog;
use crate::repository::evidence::{Chain, Evidence};
use crate::repository::layout;
use crate::types::{Digest, RunId, SourceName};

/// What was proven of points, by the last drill of each that says anything of it.
#[derive(Clone, Debug, Default)]
pub struct Proven(
    BTreeMap<(SourceName, RunId), Proof>,
    BTreeMap<SourceName, LastDrill>,
);

/// The last drill of a source, and the last that passed.
#[derive(Clone, Debug)]
pub struct LastDrill {
    /// `[drill.NAME]`
    pub drill: String,
    /// When it began.
    pub at: DateTime<Utc>,
    /// How it ended.
    pub result: Outcome,
    /// The first check that was not as it should be.
    pub why: Option<String>,
    /// The last that passed, whatever was found of its point since.
    pub passed: Option<Drilled>,
}

#[derive(Clone, Debug)]
struct Proof {
    drilled: Drilled,
    /// Digest of the commit that was restored.
    commit: String,
}

impl Proven {
    /// As a chain says, in its order: what failed a later drill is proven no more.
    pub fn told_by(chain: &Chain) -> Self {
        let (mut proven, mut lasts) = (BTreeMap::new(), BTreeMap::<SourceName, LastDrill>::new());
        for evidence in chain.evidence() {
            let sources = evidence.report()["sources"].as_array();
            for said in sources.into_iter().flatten() {
                let source: Option<SourceName> = said["source"].as_str().and_then(|s| s.parse().ok());
                let run: Option<RunId> = said["run"].as_str().and_then(|r| r.parse().ok());
                let Some(source) = source else { continue };
                if let Some(mut last) = last_drill(evidence, said) {
                    let before = lasts.remove(&source).and_then(|before| before.passed);
                    last.passed = last.passed.or(before);
                    lasts.insert(source.clone(), last);
                }
                let Some(run) = run else { continue };
                match verdict(said) {
                    Some(true) => match proof(evidence, said, &source, run) {
                        Some(proof) => drop(proven.insert((source, run), proof)),
                        None => drop(proven.remove(&(source, run))),
                    },
                    Some(false) => drop(proven.remove(&(source, run))),
                    None => {}
                }
            }
        }
        Self(proven, lasts)
    }

    /// Whether a point is proven whose commit has this digest.
    pub fn point(&self, source: &SourceName, run: RunId, commit: Digest) -> Option<&Drilled> {
        let proof = self.0.get(&(source.clone(), run))?;
        (proof.commit == commit.to_string()).then_some(&proof.drilled)
    }

    /// What drills proved of a source, run by run, whatever their commits are now.
    pub fn of<'a>(&'a self, source: &'a SourceName) -> impl Iterator<Item = (RunId, &'a Drilled)> {
        self.0
            .iter()
            .filter(move |((of, _), _)| of == source)
            .map(|((_, run), proof)| (*run, &proof.drilled))
    }

    /// Sources that were drilled.
    pub fn sources(&self) -> impl Iterator<Item = &SourceName> {
        self.1.keys()
    }

    /// Runs of a source, whatever their commits are now.
    pub fn of_source<'a>(&'a self, source: &'a SourceName) -> impl Iterator<Item = RunId> + 'a {
        self.0
            .keys()
            .filter(move |(of, _)| of == source)
            .map(|(_, run)| *run)
    }

    /// The points of a catalog that are proven.
    pub fn points(&self, source: &SourceName, catalog: &Catalog) -> BTreeSet<RunId> {
        let points = catalog.points.iter();
        points
            .filter(|(run, point)| self.point(source, **run, point.digest).is_some())
            .map(|(run, _)| *run)
            .collect()
    }

    /// The last proof of a source, also of a point that is gone; not of one whose commit is another now.
    pub fn last(&self, source: &SourceName, catalog: &Catalog) -> Option<&Drilled> {
        let own = self.0.iter().filter(|((of, _), _)| of == source);
        own.filter(|((_, run), proof)| {
            let now = catalog.points.get(run).map(|point| point.digest.to_string());
            now.is_none_or(|now| now == proof.commit)
        })
        .map(|(_, proof)| &proof.drilled)
        .max_by_key(|drilled| drilled.at)
    }

    /// When a drill of a source passed last.
    pub fn last_passed(&self, source: &SourceName) -> Option<DateTime<Utc>> {
        Some(self.last_drill(source)?.passed.as_ref()?.at)
    }

    /// The last drill of a source.
    pub fn last_drill(&self, source: &SourceName) -> Option<&LastDrill> {
        self.1.get(source)
    }

    /// When the last drill of a name began.
    pub fn last_of(&self, drill: &str) -> Option<DateTime<Utc>> {
        let own = self.1.values().filter(|last| last.drill == drill);
        own.map(|last| last.at).max()
    }
}

/// What a drill of a source came to. That a key opens it is no drill of a point.
fn last_drill(evidence: &Evidence, said: &Value) -> Option<LastDrill> {
    let report = evidence.report();
    let drill = report["drill"].as_str().filter(|name| *name != RECOVERY_KEY)?;
    let at = report["at"].as_str()?.parse().ok()?;
    let result: Outcome = serde_json::from_value(said["result"].clone()).ok()?;
    let level = said["level"].as_u64().and_then(|l| u8::try_from(l).ok());
    let checks = said["checks"].as_array().into_iter().flatten();
    let mut wrong = checks.filter(|check| check["result"] == said["result"] && result != Outcome::Passed);
    let passed = level.filter(|_| result == Outcome::Passed).map(|level| Drilled {
        at,
        level,
        timed: Timed::read(report, said),
    });
    Some(LastDrill {
        drill: drill.to_owned(),
        at,
        result,
        why: wrong
            .next()
            .and_then(|check| Some(check["name"].as_str()?.to_owned())),
        passed,
    })
}

/// Whether a drill says that a point can be restored; none: it says nothing of the point.
fn verdict(said: &Value) -> Option<bool> {
    match said["result"].as_str() {
        Some(result) if result == Outcome::Passed.name() => Some(true),
        Some(result) if result == Outcome::Failed.name() => {
            let failed: Vec<&Value> = said["checks"]
                .as_array()
                .into_iter()
                .flatten()
                .filter(|check| check["result"].as_str() == Some(Outcome::Failed.name()))
                .collect();
            // An objective that was missed is no fault of the point: it is as old as it is.
            let objectives = !failed.is_empty() && failed.iter().all(|check| check["level"].is_null());
            (!objectives).then_some(false)
        }
        _ => None,
    }
}

fn proof(evidence: &Evidence, said: &Value, source: &SourceName, run: RunId) -> Option<Proof> {
    let level = said["level"].as_u64().and_then(|l| u8::try_from(l).ok())?;
    let at = evidence.report()["at"].as_str().and_then(|at| at.parse().ok())?;
    let commit = evidence.subject(&layout::commit(source, run))?.to_owned();
    Some(Proof {
        drilled: Drilled {
            at,
            level,
            timed: Timed::read(evidence.report(), said),
        },
        commit,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use ulid::Ulid;

    use super::*;
    use crate::repository::evidence::{seal, statement, subject};

    const AT: &str = "2026-11-26T12:00:00Z";

    /// Evidence in a row, each of one result of one point.
    fn proven(results: &[Value]) -> Proven {
        let (source, run, digest) = point();
        let mut all: Vec<Evidence> = Vec::new();
        for (said, n) in results.iter().zip(0u64..) {
            let mut said = said.clone();
            said["source"] = json!(source.as_str());
            said["run"] = json!(run.to_string());
            let about = match said["commit"].as_str() {
                Some("another") => Digest::of(b"another"),
                _ => digest,
            };
            let subject = vec![subject(&layout::commit(&source, run), about)];
            let report = json!({"at": AT, "sources": [said]});
            let previous = all.last().map(Evidence::reference).into_iter().collect();
            // The later, the smaller the id: clocks decide nothing.
            let id = Ulid::from_parts(1000 - n, 0);
            let statement = statement(id, previous, None, subject, report).unwrap();
            all.push(Evidence::parse(&seal(&statement, None).unwrap()).unwrap());
        }
        Proven::told_by(&Chain::new(all, Vec::new()))
    }

    fn point() -> (SourceName, RunId, Digest) {
        let run = RunId::new(Ulid::from_parts(5, 5));
        ("orders".parse().unwrap(), run, Digest::of(b"commit"))
    }

    fn is_proven(results: &[Value]) -> bool {
        let (source, run, digest) = point();
        proven(results).point(&source, run, digest).is_some()
    }

    #[test]
    fn the_last_drill_that_says_anything_of_a_point_decides() {
        let passed = json!({"result": "passed", "level": 6, "checks": []});
        let failed = json!({"result": "failed", "level": 2, "checks": [{"level": 3, "result": "failed"}]});
        let unknown = json!({"result": "could_not_run", "level": 2, "checks": []});
        let late = json!({"result": "failed", "level": 6, "checks": [{"level": null, "result": "failed"}, {"level": 6, "result": "passed"}]});
        assert!(!is_proven(&[]));
        assert!(is_proven(std::slice::from_ref(&passed)));
        assert!(
            !is_proven(&[passed.clone(), failed.clone()]),
            "a later drill failed"
        );
        assert!(is_proven(&[failed.clone(), passed.clone()]));
        assert!(is_proven(&[passed.clone(), unknown.clone()]));
        assert!(!is_proven(&[passed.clone(), failed.clone(), unknown]));
        assert!(
            is_proven(&[passed.clone(), late.clone()]),
            "an objective says nothing of the point"
        );
        assert!(!is_proven(&[late]));
        // Of a commit that is another now.
        let mut other = passed.clone();
        other["commit"] = json!("another");
        assert!(!is_proven(&[passed, other]));
        let none = json!({"result": "failed", "level": 2, "checks": []});
        assert!(!is_proven(&[none]));
    }
}
