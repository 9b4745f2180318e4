//! What the daemon knows of what drills proved: the evidence is read at a start, after a drill, and once an hour if there is
//! more of it by then. What is known is kept in the ledger.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use chrono::{DateTime, Utc};
use ulid::Ulid;

use super::board::Step;
use super::points::{LOOK_AGAIN, LOOK_EVERY};
use crate::error::Result;
use crate::jobs::session::Role;
use crate::jobs::{Session, evidence};
use crate::policy::{Policy, SecretRef};
use crate::schedule::Schedule;
use crate::state::ledger::Ledger;
use crate::state::ledger::proofs::Proof;
use crate::types::{RunId, SourceName};

/// A source as far as drills go.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ShownProof {
    /// What drills proved of it; none: nobody looked yet.
    pub proof: Option<Proof>,
    /// The usual time between the scheduled drills that name it; none: no such drill does.
    pub interval: Option<Duration>,
}

/// Every source of the policy, with what drills proved of it.
#[derive(Default)]
pub struct Proofs {
    sources: BTreeMap<SourceName, ShownProof>,
    /// Where the repository is.
    place: String,
    /// Whose signatures count.
    key: Option<SecretRef>,
    /// The evidence that is known.
    seen: Option<BTreeSet<Ulid>>,
    /// When it is looked for again.
    look: DateTime<Utc>,
    looking: bool,
    /// What is being looked for is compared with what was lost, or is of another policy: it is looked for once more.
    stale: bool,
    /// Why it could not be read last; none: it could.
    failed: Option<String>,
}

impl Proofs {
    /// Takes a policy: what is known of its sources is read from the ledger.
    pub fn take(&mut self, policy: &Policy, ledger: &Ledger, now: DateTime<Utc>) {
        let place = policy.repository.place();
        let unknown = policy.sources.keys().any(|name| !self.sources.contains_key(name));
        if self.place != place || self.key != policy.evidence_key || unknown {
            (self.place, self.key) = (place, policy.evidence_key.clone());
            self.forgotten();
        }
        let shown = |name: &SourceName| ShownProof {
            proof: ledger.proof(name, &self.place).ok().flatten(),
            interval: interval(policy, name, now),
        };
        let names = policy.sources.keys();
        self.sources = names.map(|name| (name.clone(), shown(name))).collect();
    }

    /// What is to be asked, when its time has come.
    pub fn step(&mut self, now: DateTime<Utc>) -> Option<Step> {
        // A look in the future is one before the clock was set back.
        let due = self.look <= now || self.look > now + LOOK_EVERY;
        if self.looking || !due || self.sources.is_empty() {
            return None;
        }
        (self.looking, self.stale) = (true, false);
        Some(Step::Prove(self.seen.clone()))
    }

    /// When the next look is.
    pub fn next(&self) -> Option<DateTime<Utc>> {
        (!self.looking && !self.sources.is_empty()).then_some(self.look)
    }

    /// The repository is being asked.
    pub fn is_looking(&self) -> bool {
        self.looking
    }

    /// There may be more evidence: a drill ended.
    pub fn changed(&mut self) {
        self.look = DateTime::UNIX_EPOCH;
        self.stale = self.looking;
    }

    /// What was known was lost, or says nothing of this policy.
    pub fn forgotten(&mut self) {
        self.seen = None;
        self.changed();
    }

    /// What a look found; nothing: no more than was known.
    pub fn looked(&mut self, ledger: &mut Ledger, found: Result<Option<Found>>, now: DateTime<Utc>) {
        self.looking = false;
        if std::mem::take(&mut self.stale) {
            return;
        }
        self.look = now + LOOK_EVERY;
        let written = found.and_then(|found| {
            let Some(mut found) = found else { return Ok(()) };
            let mut proof = |name: &SourceName| found.proofs.remove(name).unwrap_or_default();
            let all = self.sources.keys().map(|name| (name.clone(), proof(name)));
            let all: BTreeMap<SourceName, Proof> = all.collect();
            ledger.proved(&self.place, &all)?;
            for (name, shown) in &mut self.sources {
                shown.proof = all.get(name).cloned();
            }
            self.seen = Some(found.seen);
            Ok(())
        });
        self.failed = written.as_ref().err().map(crate::error::Error::chain);
        if let Some(why) = &self.failed {
            tracing::warn!(
                error = why,
                "what drills proved is not known just now; what is shown may be old"
            );
            self.look = now + LOOK_AGAIN;
        }
    }

    /// Why the evidence could not be read last.
    pub fn failed(&self) -> Option<&String> {
        self.failed.as_ref()
    }

    /// What is shown of a source.
    pub fn of(&self, source: &SourceName) -> ShownProof {
        self.sources.get(source).cloned().unwrap_or_default()
    }
}

/// The usual time between the scheduled drills that name a source: of several the shortest.
fn interval(policy: &Policy, source: &SourceName, now: DateTime<Utc>) -> Option<Duration> {
    let drills = policy.drills.values().filter(|d| d.sources.contains(source));
    let schedules = drills.filter_map(|d| Schedule::parse(d.schedule.as_ref()?, policy.timezone).ok());
    schedules.filter_map(|s| s.usual_interval(now)).min()
}

/// What the evidence says.
pub struct Found {
    /// All of it.
    seen: BTreeSet<Ulid>,
    /// By source.
    proofs: BTreeMap<SourceName, Proof>,
}

/// Reads the evidence, where there is other than is known.
///
/// # Errors
/// The repository, or evidence that can not be read: then nobody knows.
pub async fn look(session: &Session, seen: Option<BTreeSet<Ulid>>) -> Result<Option<Found>> {
    let repository = session.open(Role::Writer).await?;
    let ids: BTreeSet<Ulid> = repository.list_evidence().await?.named.into_keys().collect();
    if seen.as_ref() == Some(&ids) {
        return Ok(None);
    }
    let mut proofs: BTreeMap<SourceName, Proof> = BTreeMap::new();
    let proven = evidence::proven(session, &repository).await?;
    for source in proven.sources() {
        let mut newest: Option<RunId> = None;
        let proof = proofs.entry(source.clone()).or_default();
        for (run, drilled) in proven.of(source) {
            let said = (drilled.at, drilled.level);
            if newest.is_none_or(|newest| newest < run) {
                newest = Some(run);
                proof.newest = Some(said);
            }
        }
        if let Some(passed) = proven.last_drill(source).and_then(|last| last.passed.as_ref()) {
            proof.last = Some((passed.at, passed.level));
            proof.restore_seconds = passed.timed.as_ref().map(|timed| timed.seconds);
        }
    }
    Ok(Some(Found { seen: ids, proofs }))
}
