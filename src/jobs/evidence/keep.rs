//! Evidence is kept: in the repository, or, where that can not be written, here until it can.

use bytes::Bytes;
use ulid::Ulid;

use super::super::Session;
use super::super::report::DrillReport;
use super::super::session::Role;
use super::known::{self, Known};
use super::signing_key;
use crate::error::{Context as _, Error, Kind, Result};
use crate::repository::evidence::{self, Chain, Evidence, PublicKey, SigningKey, Statement, Subject};
use crate::repository::{Repository, layout};
use crate::state::StateDir;
use crate::state::evidence::EvidenceState;
use crate::types::RepositoryId;

/// Keeps evidence: what drills found, and what was accepted as lost.
pub struct Keeper {
    key: Option<SigningKey>,
}

/// What is to be kept.
pub(super) struct Sealed {
    /// Its id.
    pub id: Ulid,
    envelope: Bytes,
}

impl Sealed {
    /// The chain of what was known, with this one.
    pub fn joined_to(&self, known: &Known) -> Result<Chain> {
        let made = Evidence::parse(&self.envelope).map_err(Error::failed)?;
        let evidence = known.chain.evidence().iter().cloned().chain([made]);
        Ok(Chain::new(evidence, known.chain.aside().to_vec()))
    }
}

impl Keeper {
    /// Reads the signing key: before a drill, so that none is made in vain.
    ///
    /// # Errors
    /// It is missing or unreadable.
    pub fn new(session: &Session) -> Result<Self> {
        Ok(Self {
            key: signing_key(session)?,
        })
    }

    /// What checks what it signs.
    pub(super) fn public(&self) -> Option<PublicKey> {
        self.key.as_ref().map(SigningKey::public)
    }

    /// That nobody signs.
    pub(super) fn warning(&self) -> Option<String> {
        self.key.is_none().then(|| {
            "the evidence is signed by nobody: make a key with `backup key signing FILE`, and set evidence.key".to_owned()
        })
    }

    /// Keeps what a drill found, and puts into the repository what waits here. The report is told where it is.
    ///
    /// # Errors
    /// It could be kept nowhere.
    pub async fn keep(&self, session: &Session, report: &mut DrillReport) -> Result<()> {
        report.warnings.extend(self.warning());
        let public = self.public();
        // Of an interrupt nothing is waited for that hangs.
        let opened = session.interruptible(session.open(Role::Writer)).await;
        let repository = opened.as_ref().ok();
        let read = session
            .interruptible(known::read(session, repository, public.as_ref()))
            .await;
        let known = match read {
            Ok(known) => known,
            Err(e) => {
                report.warnings.push(format!(
                    "the evidence in the repository can not be read ({}): what follows is joined to what this host knows of it",
                    e.chain()
                ));
                known::read(session, None, public.as_ref()).await?
            }
        };
        report.warnings.extend(known.problems());
        let state = state(session, repository)?;
        let about = repository
            .map(Repository::id)
            .or(state.repository().ok().flatten());
        let statement = of_drill(session, report, &known, about)?;
        let sealed = self.seal(&statement)?;
        report.warnings.extend(known.warnings());
        let kept = write(session, &opened, &known, &sealed, &mut report.warnings).await;
        report.evidence = Some(kept.map_err(|e| {
            e.hint("The report says what the drill found; mend what is in the way and drill again.")
        })?);
        Ok(())
    }

    /// Seals a statement.
    pub(super) fn seal(&self, statement: &Statement) -> Result<Sealed> {
        Ok(Sealed {
            id: statement.predicate.id,
            envelope: evidence::seal(statement, self.key.as_ref())?,
        })
    }
}

/// What this host knows of evidence.
fn state(session: &Session, repository: Option<&Repository>) -> Result<EvidenceState> {
    known::state(session, repository.map(Repository::id))
        .ok_or_else(|| Error::usage("evidence wants a policy"))
}

/// What a drill found, behind what is known.
fn of_drill(
    session: &Session,
    report: &DrillReport,
    known: &Known,
    about: Option<RepositoryId>,
) -> Result<Statement> {
    let id = session.world.ulid()?;
    let subject: Vec<Subject> = report
        .sources
        .iter()
        .filter_map(|s| Some(evidence::subject(&layout::commit(&s.source, s.run?), s.commit?)))
        .collect();
    let previous = known.chain.tips(&known.remembered);
    let said = serde_json::to_value(report.without_details()).doing(|| "the report can not be written")?;
    evidence::statement(id, previous, about, subject, said)
}

/// Keeps evidence, here and then in the repository, with what waits here, and remembers it as the newest. Tells where it is.
///
/// # Errors
/// It could be kept nowhere.
pub(super) async fn write(
    session: &Session,
    opened: &Result<Repository>,
    known: &Known,
    sealed: &Sealed,
    warnings: &mut Vec<String>,
) -> Result<String> {
    let state = state(session, opened.as_ref().ok())?;
    // Here first: whatever happens to the repository or to this process, it is not lost.
    let here =
        StateDir::open(&session.policy.state_dir).and_then(|_| state.keep(sealed.id, &sealed.envelope));
    let there = match opened {
        Ok(repository) => {
            let put = put(session, repository, &state, known, sealed, warnings);
            session.interruptible(put).await
        }
        Err(e) => Err(Error::failed(e.chain())),
    };
    let place = match (there, &here) {
        (Ok(()), _) => {
            if let Err(e) = state.forget(sealed.id) {
                warnings.push(e.chain());
            }
            layout::evidence(sealed.id).to_string()
        }
        (Err(e), Ok(path)) => {
            warnings.push(format!(
                "the evidence is not in the repository ({}); it is at {}, and goes there with the next drill that may write",
                e.chain(),
                path.display()
            ));
            path.display().to_string()
        }
        (Err(there), Err(here)) => {
            return Err(Error::failed(format!(
                "the evidence is kept nowhere: not in the repository ({}), nor here ({})",
                there.chain(),
                here.chain()
            )));
        }
    };
    // The new one is the newest that this host knows.
    let remembered = sealed
        .joined_to(known)
        .and_then(|chain| state.remember(|remembered| chain.tips(remembered)));
    if let Err(e) = remembered {
        warnings.push(format!(
            "this host does not remember its newest evidence: {}",
            e.chain()
        ));
    }
    Ok(place)
}

/// Puts what waits here, oldest first, and then the new one.
async fn put(
    session: &Session,
    repository: &Repository,
    state: &EvidenceState,
    known: &Known,
    sealed: &Sealed,
    warnings: &mut Vec<String>,
) -> Result<()> {
    let waiting = known.chain.evidence().iter().filter_map(|e| {
        let bytes = known.here.get(&e.id())?;
        Some((e.id(), bytes.clone()))
    });
    for (id, envelope) in waiting {
        match repository.put_evidence(&session.world, id, envelope).await {
            Ok(_) => state.forget(id)?,
            // Somebody put something under its name. What follows it says so; the new one is not held up.
            Err(e) if e.kind() == Kind::Damaged => warnings.push(e.chain()),
            Err(e) => return Err(e),
        }
    }
    let Sealed { id, envelope } = sealed;
    repository
        .put_evidence(&session.world, *id, envelope.clone())
        .await?;
    Ok(())
}
