//! The drill of a recovery key: an identity that is kept elsewhere is brought here, and must open every generation that what is
//! in the repository is encrypted to. Nothing is restored.

use std::collections::{BTreeMap, BTreeSet};

use super::Session;
use super::keys;
use super::report::{DrillReport, SourceDrill};
use super::session::Role;
use crate::drill::{self, Check, Outcome, RECOVERY_KEY};
use crate::error::{Error, Kind, Result};
use crate::repository::Repository;
use crate::repository::generation::KeyRing;
use crate::types::{GenerationId, SourceName};

/// What is looked at, as its check says.
const OPENS: &str = "the identity opens it";

/// The generations of a repository: by source, and what is known of each.
#[derive(Default)]
struct Generations {
    /// Those that a source's points, and what they draw on, are encrypted to; and what could not be read of it.
    of: BTreeMap<SourceName, (BTreeSet<GenerationId>, Vec<Check>)>,
    /// Their recipients, as commits name them.
    recipients: BTreeMap<GenerationId, BTreeSet<String>>,
}

/// Carries the drill out. What it finds is in the report; also that it could not run.
///
/// # Errors
/// It was interrupted.
pub async fn drill(session: &Session) -> Result<DrillReport> {
    let (at, begun) = (session.world.clock.now(), session.world.clock.since_boot());
    let mut warnings = Vec::new();
    let sources = match prove(session, &mut warnings).await {
        Ok(sources) => sources,
        Err(e) if e.kind() == Kind::Interrupted => return Err(e),
        // Nobody knows, of any source that the policy names.
        Err(e) => {
            let names = session.policy.sources.keys();
            let unknown = Check::could_not_run("the recovery key", None, told(&e));
            names
                .map(|name| judged(name.clone(), vec![unknown.clone()]))
                .collect()
        }
    };
    Ok(DrillReport {
        drill: RECOVERY_KEY.to_owned(),
        environment: session.policy.environment.to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        result: drill::worst(sources.iter().map(|s| s.result)),
        level: None,
        at,
        seconds: (session.world.clock.since_boot() - begun).as_secs_f64(),
        sources,
        evidence: None,
        warnings,
        interrupted: false,
        error: None,
    })
}

async fn prove(session: &Session, warnings: &mut Vec<String>) -> Result<Vec<SourceDrill>> {
    let keys = identity(session);
    let repository = session.open(Role::Writer).await?;
    let generations = Generations::read(session, &repository).await?;
    if generations.of.is_empty() {
        warnings
            .push("the repository has no source yet: there is nothing that the key could open".to_owned());
    }
    let mut checks: BTreeMap<GenerationId, Check> = BTreeMap::new();
    let (mut keys, unknown) = match keys {
        Ok(keys) => (keys, None),
        Err(e) => {
            let unknown = Check::could_not_run("the recovery key", None, told(&e));
            (KeyRing::new(Vec::new()), Some(unknown))
        }
    };
    let identities = keys.recipients();
    let expected = &session.policy.encryption.recipients;
    let is_recipient = expected.iter().any(|r| identities.contains(r));
    if unknown.is_none() && !is_recipient {
        warnings.push(format!(
            "{} is no recipient of the policy: what is backed up from now on does not open to it; add it to \
             encryption.recipients",
            identities.join(", ")
        ));
    }
    let mut sources = Vec::new();
    for (source, (own, unread)) in &generations.of {
        let mut of_source = unread.clone();
        of_source.extend(unknown.clone());
        for id in own.iter().filter(|_| unknown.is_none()) {
            if session.cancel.is_cancelled() {
                return Err(Error::new(Kind::Interrupted, "interrupted"));
            }
            let check = match checks.get(id) {
                Some(check) => check.clone(),
                None => opened(&repository, &mut keys, *id, generations.recipients.get(id)).await,
            };
            checks.insert(*id, check.clone());
            of_source.push(check);
        }
        let mut report = judged(source.clone(), of_source);
        report.repository = Some(repository.id().to_string());
        report.identity.clone_from(&identities);
        sources.push(report);
    }
    Ok(sources)
}

/// The identity that is to be proven: the one that was brought, never the policy's.
fn identity(session: &Session) -> Result<KeyRing> {
    if session.identity_file.is_none() {
        return Err(Error::new(
            Kind::DrillCouldNotRun,
            "no identity was given: what is proven is the one that is kept elsewhere, not the policy's",
        )
        .hint("Bring it, and name its file: `backup drill recovery-key --identity FILE`."));
    }
    session.key_ring()
}

/// Whether the identities open a generation, and what comes out is its identity.
async fn opened(
    repository: &Repository,
    keys: &mut KeyRing,
    id: GenerationId,
    recipients: Option<&BTreeSet<String>>,
) -> Check {
    let known = recipients.map(|r| r.iter().cloned().collect::<Vec<_>>().join(", "));
    let (result, actual) = match keys.open(repository, id, None).await {
        Ok(identity) => {
            let actual = identity.to_public().to_string();
            let same = known.as_ref().is_none_or(|expected| *expected == actual);
            (if same { Outcome::Passed } else { Outcome::Failed }, actual)
        }
        Err(e) if e.kind() == Kind::NoIdentity => {
            let hint = "`backup key rewrap --identity FILE`, with an identity that opens it, wraps it to the policy's \
                        recipients";
            (Outcome::Failed, format!("it does not open ({hint})"))
        }
        Err(e) if e.kind() == Kind::Damaged => (Outcome::Failed, told(&e)),
        Err(e) => (Outcome::CouldNotRun, told(&e)),
    };
    let passed = result == Outcome::Passed;
    Check {
        name: format!("generation {id}"),
        level: None,
        result,
        // Nothing names the recipient of what is only drawn on, and whose own points are gone.
        expected: known.unwrap_or_else(|| if passed { actual.clone() } else { OPENS.to_owned() }),
        actual,
        detail: None,
    }
}

/// A source's part, from its checks.
fn judged(source: SourceName, checks: Vec<Check>) -> SourceDrill {
    SourceDrill {
        result: drill::outcome(&checks),
        checks,
        not_tested: vec!["levels 0 to 6: nothing was restored".to_owned()],
        ..SourceDrill::new(source)
    }
}

/// An error with its hint, as the actual of a check.
fn told(e: &Error) -> String {
    match e.hint_text() {
        Some(hint) => format!("{} ({hint})", e.chain()),
        None => e.chain(),
    }
}

impl Generations {
    /// Those of every source that the repository has, of the policy or not.
    async fn read(session: &Session, repository: &Repository) -> Result<Self> {
        let mut all = Self::default();
        for source in repository.sources().await? {
            if session.cancel.is_cancelled() {
                return Err(Error::new(Kind::Interrupted, "interrupted"));
            }
            let catalog = repository.catalog(&source).await?;
            let unreadable = |(what, why): (String, &str)| Check::could_not_run(what, None, why);
            let commits: Vec<_> = catalog.points.values().map(|p| &p.commit).collect();
            let (refs, damaged) = repository.refs_of(&source, &commits).await?;
            let unread = catalog
                .unreadable
                .iter()
                .map(|(run, why)| (format!("the commit of {run}"), why.problem.as_str()))
                .chain(
                    damaged
                        .iter()
                        .map(|(run, why)| (format!("what {run} draws on"), why.as_str())),
                );
            let unread = unread.map(unreadable).collect();
            let mut own = BTreeSet::new();
            for commit in commits {
                let generation = &commit.generation;
                own.insert(generation.id);
                let known = all.recipients.entry(generation.id).or_default();
                known.insert(generation.recipient.clone());
            }
            own.extend(
                refs.values()
                    .flat_map(|refs| refs.0.values().map(|r| r.generation)),
            );
            all.of.insert(source, (own, unread));
        }
        // What the next runs are encrypted to, and no point is yet.
        if let Some((newest, _)) = keys::wraps(repository).await?.pop_last() {
            let newer = all
                .of
                .values()
                .all(|(own, _)| own.last().is_none_or(|last| *last < newest));
            for (own, _) in all.of.values_mut().filter(|_| newer) {
                own.insert(newest);
            }
        }
        Ok(all)
    }
}
