//! The chain of all evidence, judged. Pure.
//!
//! What is later is told by numbers that are signed, never by clocks. What is put aside breaks nothing by being there: only
//! what evidence or this host names, and is not as it is named, is a hole in the chain. A hole that other evidence accepts as a loss
//! is told, and is none.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use serde::Serialize;
use ulid::Ulid;

use super::{Evidence, Predicate};
use crate::types::EvidenceRef;

/// Something that is not taken for evidence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Aside {
    /// Under which it was found: a key or a path.
    pub name: String,
    /// The id in that, if it has the name of evidence.
    #[serde(skip)]
    pub id: Option<Ulid>,
    /// Its digest, if it was read.
    #[serde(skip)]
    pub sha256: Option<String>,
    /// Why: a few words that follow the name.
    pub why: String,
}

/// What is named, and is missing, or is not as it is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hole {
    /// The name.
    pub name: EvidenceRef,
    /// What is wrong: a sentence.
    pub why: String,
}

/// Evidence that is lost, and that other evidence accepts as lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Loss {
    /// What is lost.
    #[serde(flatten)]
    pub lost: EvidenceRef,
    /// The evidence that says so.
    pub accepted_by: Ulid,
    /// When it was made.
    pub at: Option<DateTime<Utc>>,
    /// Why there is no way to put it back.
    pub reason: String,
}

impl std::fmt::Display for Loss {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { lost, reason, .. } = self;
        let by = self.accepted_by;
        write!(
            f,
            "{} (number {}) is lost, accepted by {by}",
            lost.id, lost.number
        )?;
        if let Some(at) = self.at {
            write!(f, " on {}", at.format("%Y-%m-%d"))?;
        }
        write!(f, ": {}", reason.replace('\n', " "))
    }
}

/// All evidence, in its order, and what was put aside.
#[derive(Clone, Debug, Default)]
pub struct Chain {
    evidence: Vec<Evidence>,
    aside: Vec<Aside>,
}

impl Chain {
    /// Of what was taken and what was not; of several with one id the first counts.
    pub fn new(evidence: impl IntoIterator<Item = Evidence>, aside: Vec<Aside>) -> Self {
        let mut evidence: Vec<Evidence> = evidence.into_iter().collect();
        evidence.sort_by_key(|e| (e.number(), e.id()));
        let mut seen = BTreeSet::new();
        evidence.retain(|e| seen.insert(e.id()));
        let mut chain = Self { evidence, aside };
        let lost: Vec<EvidenceRef> = chain.accepted().map(|(_, lost)| lost.clone()).collect();
        chain.put_aside(&lost);
        chain
    }

    /// As it is once these losses are accepted.
    #[must_use]
    pub fn without(&self, lost: &[EvidenceRef]) -> Self {
        let mut chain = self.clone();
        chain.put_aside(lost);
        chain
    }

    /// What stands in the place of what was accepted as lost, and is named by nobody as it is, is no evidence: else the loss
    /// would make true what took its place.
    fn put_aside(&mut self, lost: &[EvidenceRef]) {
        if lost.is_empty() {
            return;
        }
        let named = self.names().map(|(_, name)| name).chain(lost);
        let named: BTreeSet<(Ulid, String)> = named.map(|name| (name.id, name.sha256.clone())).collect();
        let lost: BTreeSet<Ulid> = lost.iter().map(|name| name.id).collect();
        let other = |e: &Evidence| lost.contains(&e.id()) && !named.contains(&(e.id(), e.sha256.clone()));
        let (goes, stays) = std::mem::take(&mut self.evidence).into_iter().partition(other);
        self.evidence = stays;
        self.aside.extend(goes.into_iter().map(|e: Evidence| Aside {
            name: e.id().to_string(),
            id: Some(e.id()),
            sha256: Some(e.sha256),
            why: "is not what was accepted as lost under its name".to_owned(),
        }));
    }

    /// The evidence: by number, then by id.
    pub fn evidence(&self) -> &[Evidence] {
        &self.evidence
    }

    /// What is no evidence.
    pub fn aside(&self) -> &[Aside] {
        &self.aside
    }

    fn by_id(&self) -> BTreeMap<Ulid, &Evidence> {
        self.evidence.iter().map(|e| (e.id(), e)).collect()
    }

    fn aside_by_id(&self) -> BTreeMap<Ulid, &Aside> {
        let named = self.aside.iter().filter_map(|a| Some((a.id?, a)));
        named.collect()
    }

    /// Every name of one by another, with who names it.
    fn names(&self) -> impl Iterator<Item = (&Evidence, &EvidenceRef)> {
        let previous = |e: &Evidence| e.statement.predicate.previous.len();
        self.evidence
            .iter()
            .flat_map(move |e| (0..previous(e)).map(move |n| (e, &e.statement.predicate.previous[n])))
    }

    /// Every loss that one accepts, with who does.
    fn accepted(&self) -> impl Iterator<Item = (&Evidence, &EvidenceRef)> {
        let all = self.evidence.iter();
        all.flat_map(|e| e.statement.predicate.lost.iter().map(move |lost| (e, lost)))
    }

    /// What is lost, and accepted as lost. What was put back is neither.
    pub fn losses(&self) -> Vec<Loss> {
        let own = self.by_id();
        let mut seen = BTreeSet::new();
        self.accepted()
            .filter(|(_, lost)| own.get(&lost.id).is_none_or(|e| e.reference() != **lost))
            .filter(|(_, lost)| seen.insert(*lost))
            .map(|(by, lost)| Loss {
                lost: lost.clone(),
                accepted_by: by.id(),
                at: by.report()["at"].as_str().and_then(|at| at.parse().ok()),
                reason: by.statement.predicate.reason.clone().unwrap_or_default(),
            })
            .collect()
    }

    /// What the next evidence names: all that no other one does. What a host remembers and can not be found is among it, and
    /// stands for what was put in its place.
    pub fn tips(&self, remembered: &[EvidenceRef]) -> Vec<EvidenceRef> {
        let named: BTreeSet<Ulid> = self.names().map(|(_, name)| name.id).collect();
        let aside = self.aside_by_id();
        let mut tips: BTreeMap<Ulid, EvidenceRef> = BTreeMap::new();
        for evidence in &self.evidence {
            tips.insert(evidence.id(), evidence.reference());
        }
        for known in remembered {
            // As it was, but not what is asked for now: of another key, say. It is nobody's previous.
            let is_aside = aside
                .get(&known.id)
                .is_some_and(|a| a.sha256.as_ref() == Some(&known.sha256));
            if !is_aside {
                tips.insert(known.id, known.clone());
            }
        }
        tips.retain(|id, _| !named.contains(id));
        let mut tips: Vec<EvidenceRef> = tips.into_values().collect();
        tips.sort_by_key(|tip| (tip.number, tip.id));
        tips
    }

    /// What is wrong with the chain, a sentence each, in its order.
    pub fn problems(&self, remembered: &[EvidenceRef]) -> Vec<String> {
        let holes = self.holes(remembered).into_iter();
        holes.map(|hole| hole.why).collect()
    }

    /// Where the chain is broken, and no evidence accepts that, in its order.
    pub fn holes(&self, remembered: &[EvidenceRef]) -> Vec<Hole> {
        let (own, aside) = (self.by_id(), self.aside_by_id());
        let mut holes = Vec::new();
        let mut hole = |name: &EvidenceRef, why: String| {
            let name = name.clone();
            holes.push(Hole { name, why });
        };
        for (evidence, name) in self.names() {
            let id = evidence.id();
            let changed = || format!("evidence {id} follows {}, which was changed since", name.id);
            match (own.get(&name.id), aside.get(&name.id)) {
                (Some(before), _) if before.sha256 != name.sha256 => hole(name, changed()),
                (Some(before), _) if before.number() != name.number => hole(
                    name,
                    format!(
                        "evidence {id} follows {} as number {}, and that is number {}",
                        name.id,
                        name.number,
                        before.number()
                    ),
                ),
                (Some(_), _) => {}
                (None, Some(other)) if other.sha256.as_ref() == Some(&name.sha256) => {
                    hole(
                        name,
                        format!("evidence {id} follows {}, which {}", name.id, other.why),
                    );
                }
                (None, Some(_)) => hole(name, changed()),
                (None, None) => hole(
                    name,
                    format!("evidence {id} follows {}, which is missing", name.id),
                ),
            }
        }
        let named: BTreeSet<Ulid> = self.names().map(|(_, name)| name.id).collect();
        for known in remembered {
            let (id, number) = (known.id, known.number);
            let is = own.get(&id).map(|e| Some(&e.sha256));
            let is = is.or_else(|| aside.get(&id).map(|a| a.sha256.as_ref()));
            match is {
                Some(is) if is == Some(&known.sha256) => {}
                Some(_) => hole(
                    known,
                    format!("evidence {id} (number {number}) was changed since this host saw it"),
                ),
                // Told already by what follows it.
                None if named.contains(&id) => {}
                None => hole(
                    known,
                    format!(
                        "evidence {id} (number {number}), which this host knows, is missing: it is withheld, or was deleted"
                    ),
                ),
            }
        }
        let accepted: BTreeSet<&EvidenceRef> = self.accepted().map(|(_, lost)| lost).collect();
        holes.retain(|hole| !accepted.contains(&hole.name));
        holes
    }

    /// Whether evidence that somebody noted is there (or was accepted as lost), and everything later is joined to it: what is
    /// not, a sentence each.
    pub fn since(&self, noted: Ulid) -> Vec<String> {
        let there = self.evidence.iter().find(|e| e.id() == noted);
        let number = there.map(Evidence::number).or_else(|| {
            let lost = self.losses().into_iter().find(|loss| loss.lost.id == noted);
            lost.map(|loss| loss.lost.number)
        });
        let Some(number) = number else {
            return vec![match self.aside_by_id().get(&noted) {
                Some(aside) => format!("evidence {noted}, the newest that was known, {}", aside.why),
                None => format!("evidence {noted}, the newest that was known, is missing"),
            }];
        };
        // Those that follow it, and what these follow beside it: a drill somewhere else at the same time. A name has a smaller
        // number than who gives it, so one way through the order finds all.
        let previous = |e: &Evidence| {
            let Predicate { previous, lost, .. } = &e.statement.predicate;
            let names = previous.iter().chain(lost);
            names.map(|name| name.id).collect::<Vec<_>>()
        };
        let mut joined = BTreeSet::from([noted]);
        for evidence in &self.evidence {
            if previous(evidence).iter().any(|id| joined.contains(id)) {
                joined.insert(evidence.id());
            }
        }
        for evidence in self.evidence.iter().rev() {
            if evidence.id() != noted && joined.contains(&evidence.id()) {
                joined.extend(previous(evidence));
            }
        }
        let later = self.evidence.iter().filter(|e| e.number() > number);
        later
            .filter(|e| !joined.contains(&e.id()))
            .map(|e| {
                format!(
                    "evidence {} (number {}) is later than {noted}, and is not joined to it",
                    e.id(),
                    e.number()
                )
            })
            .collect()
    }
}

#[cfg(test)]
mod tests;
