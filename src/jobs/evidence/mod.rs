//! Evidence: kept by drills, listed, shown, and verified: also offline, with nothing but files and a public key.

mod accept;
mod files;
mod keep;
mod known;
mod month;
mod proven;

use std::path::Path;

use ulid::Ulid;

use super::Session;
use super::report::{EvidenceList, EvidenceReport, ListedEvidence};
use super::session::Role;
use crate::error::{Error, Kind, Result};
use crate::repository::Repository;
use crate::repository::evidence::{self, Aside, Chain, Evidence, Loss, PublicKey, SigningKey};

pub use accept::{Acceptance, accept};
pub use files::verify_files;
pub use keep::Keeper;
pub use month::{Month, month};
pub use proven::{LastDrill, Proven};

use known::Known;

/// Makes a signing key: the private half goes to a new file (0600), the public one is given, in PEM.
///
/// # Errors
/// The file is there, or can not be written.
pub fn generate_signing_key(file: &Path) -> Result<String> {
    let (secret, public) = evidence::generate_key()?;
    super::keys::write_new(file, secret.expose())?;
    Ok(public)
}

/// The policy's signing key.
///
/// # Errors
/// It is missing or unreadable.
fn signing_key(session: &Session) -> Result<Option<SigningKey>> {
    let Some(reference) = &session.policy.evidence_key else {
        return Ok(None);
    };
    let key = session
        .secret(reference)
        .and_then(|text| SigningKey::parse(&text));
    key.map(Some).map_err(|e| e.while_doing("evidence.key"))
}

/// All that is known of the evidence of a repository; only what the policy's key has signed counts, where it has one.
async fn known(session: &Session, repository: &Repository) -> Result<Known> {
    let key = signing_key(session)?.map(|key| key.public());
    known::read(session, Some(repository), key.as_ref()).await
}

/// What stands as the result of what accepts a loss.
const ACCEPTED: &str = "accepted";

/// What evidence says, in a line.
fn listed(evidence: &Evidence, here: bool) -> ListedEvidence {
    let report = evidence.report();
    let text = |key: &str| report[key].as_str().unwrap_or_default().to_owned();
    let sources = report["sources"].as_array().into_iter().flatten();
    let lost = &evidence.statement.predicate.lost;
    ListedEvidence {
        id: evidence.id().to_string(),
        number: evidence.number(),
        at: report["at"].as_str().and_then(|at| at.parse().ok()),
        drill: text("drill"),
        result: match lost.is_empty() {
            true => text("result"),
            false => ACCEPTED.to_owned(),
        },
        level: report["level"].as_u64(),
        sources: sources
            .filter_map(|s| s["source"].as_str().map(str::to_owned))
            .collect(),
        lost: lost.iter().map(|lost| lost.id.to_string()).collect(),
        signed: !evidence.signatures.is_empty(),
        here,
    }
}

/// Every evidence, in the order of the chain, and what is amiss with it.
///
/// # Errors
/// The repository.
pub async fn list(session: &Session) -> Result<EvidenceList> {
    let repository = session.open(Role::Writer).await?;
    let known = known(session, &repository).await?;
    let own = known.chain.evidence().iter();
    let lost = known.chain.losses();
    Ok(EvidenceList {
        evidence: own.map(|e| listed(e, known.here.contains_key(&e.id()))).collect(),
        put_aside: known.chain.aside().to_vec(),
        problems: known.problems(),
        warnings: with_losses(&lost, known.warnings()),
        lost,
    })
}

/// One of them: the report that it holds.
///
/// # Errors
/// There is none of this id; it is put aside.
pub async fn show(session: &Session, id: Ulid) -> Result<Evidence> {
    let repository = session.open(Role::Writer).await?;
    let known = known(session, &repository).await?;
    let mut own = known.chain.evidence().iter();
    if let Some(evidence) = own.find(|e| e.id() == id) {
        return Ok(evidence.clone());
    }
    let mut aside = known.chain.aside().iter();
    Err(match aside.find(|a| a.id == Some(id)) {
        Some(aside) => Error::damaged(format!("{} {}", aside.name, aside.why)),
        None => Error::usage(format!("there is no evidence {id}"))
            .hint("`backup evidence list` shows what there is."),
    })
}

/// Verifies the chain of a repository, against this key or else the policy's.
///
/// # Errors
/// The repository can not be read. What is wrong is an answer.
pub async fn verify(
    session: &Session,
    key: Option<&PublicKey>,
    newest: Option<Ulid>,
) -> Result<EvidenceReport> {
    let policy = match key {
        Some(_) => None,
        None => signing_key(session)
            .map_err(|e| e.hint("Give the public key with --key."))?
            .map(|key| key.public()),
    };
    let key = key.or(policy.as_ref());
    let repository = session.open(Role::Writer).await?;
    let known = known::read(session, Some(&repository), key).await?;
    let mut report = judged(&known.chain, key, newest);
    report.problems.extend(known.problems());
    report.warnings.extend(known.warnings());
    report.ok = report.problems.is_empty();
    let here = |n: &ListedEvidence| known.here.keys().any(|id| id.to_string() == n.id);
    if let Some(newest) = &mut report.newest {
        newest.here = here(newest);
    }
    Ok(report)
}

/// Auditors are told what was accepted as lost, before all else.
fn with_losses(lost: &[Loss], others: Vec<String>) -> Vec<String> {
    lost.iter().map(ToString::to_string).chain(others).collect()
}

/// What is to be told of any chain, beside its own problems: what has the name of evidence and is none, that there is none at
/// all, and what somebody noted. What stands where evidence was accepted as lost is no problem: that place is known.
fn judged(chain: &Chain, key: Option<&PublicKey>, newest: Option<Ulid>) -> EvidenceReport {
    let lost = chain.losses();
    let is_lost = |aside: &Aside| lost.iter().any(|loss| Some(loss.lost.id) == aside.id);
    let named = chain.aside().iter().filter(|a| a.id.is_some());
    let say = |a: &Aside| format!("{} {}", a.name, a.why);
    let mut problems: Vec<String> = named.clone().filter(|a| !is_lost(a)).map(say).collect();
    let in_place = named.clone().filter(|a| is_lost(a)).map(say).collect();
    if chain.evidence().is_empty() {
        problems.push("there is no evidence".to_owned());
    }
    problems.extend(newest.into_iter().flat_map(|noted| chain.since(noted)));
    EvidenceReport {
        ok: problems.is_empty(),
        evidence: chain.evidence().len() + named.count(),
        newest: chain.evidence().last().map(|e| listed(e, false)),
        signatures_checked: key.is_some(),
        problems,
        passed_over: chain.aside().iter().filter(|a| a.id.is_none()).count(),
        put_aside: chain.aside().to_vec(),
        warnings: with_losses(&lost, in_place),
        lost,
    }
}

/// What drills proved, and what is to be told of that.
#[derive(Debug, Default)]
pub struct Told {
    /// The points.
    pub proven: Proven,
    /// Why it may not be all, a sentence each.
    pub problems: Vec<String>,
    /// What breaks nothing.
    pub warnings: Vec<String>,
}

/// The points that drills proved, for what is shown only: where it can not be told, nothing is proven, and why is said.
pub async fn told(session: &Session, repository: &Repository) -> Told {
    let doubt = |why: &str| format!("what drills proved can not be told for sure: {why}");
    match known(session, repository).await {
        Ok(known) => Told {
            proven: Proven::told_by(&known.chain),
            problems: match known.problems() {
                none if none.is_empty() => Vec::new(),
                some => vec![doubt(&format!(
                    "{} (put it back from a copy; where there is none: `backup evidence accept`)",
                    known::some(some)
                ))],
            },
            warnings: known.warnings(),
        },
        Err(e) if e.kind() == Kind::Interrupted => Told::default(),
        Err(e) => Told {
            problems: vec![doubt(&e.chain())],
            ..Told::default()
        },
    }
}

/// The points that drills proved, as far as the evidence that is there says.
///
/// # Errors
/// The store.
pub async fn proven(session: &Session, repository: &Repository) -> Result<Proven> {
    Ok(Proven::told_by(&known(session, repository).await?.chain))
}

/// The points that drills proved, for who removes others: all evidence is read, and nothing of it is missing.
///
/// # Errors
/// The store; evidence that others or this host name, and that is missing or was changed.
pub async fn settled(session: &Session, repository: &Repository) -> Result<(Proven, Vec<String>)> {
    let known = known(session, repository).await?;
    match known.problems() {
        none if none.is_empty() => Ok((Proven::told_by(&known.chain), known.warnings())),
        some => Err(Error::damaged(format!(
            "what drills proved can not be told, and nothing expires before it can: {}",
            known::some(some)
        ))
        .hint("Put it back from a copy; where there is none, `backup evidence accept` lists what is lost, and accepts it.")),
    }
}
