//! Losses of evidence are accepted, by evidence: what was proven by what is lost is not known any more, and all may go on.

use std::collections::BTreeSet;

use serde_json::json;
use ulid::Ulid;

use super::super::Session;
use super::super::report::AcceptReport;
use super::super::session::Role;
use super::keep::{self, Keeper};
use super::known::{self, Known};
use crate::error::{Error, Result};
use crate::repository::evidence::{self, Hole};
use crate::types::EvidenceRef;

/// What somebody accepts.
#[derive(Clone, Copy, Debug)]
pub struct Acceptance<'a> {
    /// Ids of what is lost.
    pub ids: &'a [Ulid],
    /// Why it can not be put back.
    pub reason: Option<&'a str>,
    /// Who says so.
    pub by: &'a str,
    /// Nothing is written.
    pub dry_run: bool,
}

/// Accepts losses.
///
/// # Errors
/// The repository; the signing key; an id that is no hole of the chain, or none is given, or no reason.
pub async fn accept(session: &Session, asked: Acceptance<'_>) -> Result<AcceptReport> {
    let keeper = Keeper::new(session)?;
    // Of what can not be read nobody knows whether it is lost.
    let repository = session.interruptible(session.open(Role::Writer)).await?;
    let public = keeper.public();
    let known = session
        .interruptible(known::read(session, Some(&repository), public.as_ref()))
        .await?;
    let lost = lost(&known, asked.ids)?;
    let reason = asked
        .reason
        .map(str::trim)
        .filter(|reason| !reason.is_empty())
        .ok_or_else(|| {
            Error::usage("no reason is given")
                .hint("Say with --reason what happened to it, for who reads the evidence later.")
        })?;
    let report = json!({
        "environment": session.policy.environment.to_string(),
        "version": env!("CARGO_PKG_VERSION"),
        "at": session.world.clock.now(),
        "by": asked.by,
    });
    let statement = evidence::acceptance(
        session.world.ulid()?,
        known.chain.without(&lost).tips(&known.remembered),
        Some(repository.id()),
        lost.clone(),
        reason,
        report,
    )?;
    let sealed = keeper.seal(&statement)?;
    let problems = known.problems_of(&sealed.joined_to(&known)?);
    let mut warnings: Vec<String> = keeper.warning().into_iter().chain(known.warnings()).collect();
    let evidence = match asked.dry_run {
        true => None,
        false => Some(keep::write(session, &Ok(repository), &known, &sealed, &mut warnings).await?),
    };
    Ok(AcceptReport {
        dry_run: asked.dry_run,
        id: sealed.id.to_string(),
        number: statement.predicate.number,
        evidence,
        lost,
        reason: reason.to_owned(),
        signed: public.is_some(),
        statement,
        problems,
        warnings,
    })
}

/// What these ids name of what is lost now.
fn lost(known: &Known, ids: &[Ulid]) -> Result<Vec<EvidenceRef>> {
    let holes = known.chain.holes(&known.remembered);
    let of = |id: Ulid| holes.iter().filter(move |hole| hole.name.id == id);
    if ids.is_empty() {
        return Err(which(&holes));
    }
    let others: BTreeSet<&Ulid> = ids.iter().filter(|id| of(**id).next().is_none()).collect();
    if !others.is_empty() {
        let said: Vec<String> = others.iter().map(|id| no_hole(known, **id)).collect();
        return Err(Error::usage(format!(
            "only what is lost now can be accepted as lost: {}",
            said.join("; ")
        ))
        .hint("`backup evidence accept` without an id lists what is lost. Nothing was accepted."));
    }
    // Two of one id, where two name it by different digests.
    let lost: BTreeSet<EvidenceRef> = ids
        .iter()
        .flat_map(|id| of(*id))
        .map(|hole| hole.name.clone())
        .collect();
    let mut lost: Vec<EvidenceRef> = lost.into_iter().collect();
    lost.sort_by_key(|lost| (lost.number, lost.id));
    Ok(lost)
}

/// Nobody said which.
fn which(holes: &[Hole]) -> Error {
    if holes.is_empty() {
        return Error::usage("no evidence is lost: there is nothing to accept");
    }
    let said: Vec<String> = holes.iter().map(|hole| hole.why.clone()).collect();
    let ids: BTreeSet<String> = holes.iter().map(|hole| hole.name.id.to_string()).collect();
    let ids: Vec<String> = ids.into_iter().collect();
    Error::usage(format!(
        "it is not said which loss is accepted. Lost is: {}",
        said.join("; ")
    ))
    .hint(format!(
        "Put it back from a copy; where there is none: backup evidence accept {} --reason \"what happened\"",
        ids.join(" ")
    ))
}

/// Why there is nothing to accept of this one.
fn no_hole(known: &Known, id: Ulid) -> String {
    if let Some(loss) = known.chain.losses().iter().find(|loss| loss.lost.id == id) {
        return loss.to_string();
    }
    if known.chain.evidence().iter().any(|e| e.id() == id) {
        return format!("{id} is there");
    }
    match known.chain.aside().iter().find(|a| a.id == Some(id)) {
        Some(aside) => format!("{} {}, and nothing follows it", aside.name, aside.why),
        None => format!("nobody knows of evidence {id}"),
    }
}
