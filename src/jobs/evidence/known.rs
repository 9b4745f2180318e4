//! All that this host knows of evidence: what the repository has, what waits here, and what was seen before.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use ulid::Ulid;

use super::super::Session;
use crate::error::{Error, Result};
use crate::repository::evidence::{Aside, Chain, EVIDENCE_MAX_BYTES, Evidence, PublicKey};
use crate::repository::{Repository, layout};
use crate::state::evidence::EvidenceState;
use crate::types::{EvidenceRef, RepositoryId, some_of};

/// Evidence read at once.
const READS_AT_ONCE: usize = 16;
/// Evidence that is named, and not listed, is asked for by its key: so much of it.
const ASKED_MAX: usize = 1000;
/// Things that are named in a sentence.
const NAMED: usize = 3;

/// All that is known of evidence.
#[derive(Debug, Default)]
pub struct Known {
    /// What was taken for evidence, and what was put aside.
    pub chain: Chain,
    /// What this host had seen before it looked.
    pub remembered: Vec<EvidenceRef>,
    /// Of the chain: what is in the state directory only.
    pub here: BTreeMap<Ulid, Bytes>,
    /// What could not be read here.
    troubles: Vec<String>,
}

impl Known {
    /// What is missing or was changed, a sentence each: then nobody knows all that drills found.
    pub fn problems(&self) -> Vec<String> {
        self.problems_of(&self.chain)
    }

    /// The same of a chain that goes on from this one.
    pub fn problems_of(&self, chain: &Chain) -> Vec<String> {
        let mut problems = chain.problems(&self.remembered);
        problems.extend(self.troubles.iter().cloned());
        problems
    }

    /// What the operator should know, and what breaks nothing.
    pub fn warnings(&self) -> Vec<String> {
        let mut told = Vec::new();
        let aside = self.chain.aside();
        if !aside.is_empty() {
            let named = aside.iter().map(|a| format!("{} {}", a.name, a.why));
            told.push(format!("put aside, as no evidence: {}", some(named)));
        }
        if !self.here.is_empty() {
            let named = self.here.keys().map(ToString::to_string);
            told.push(format!(
                "evidence waits in the state directory for a drill that may write into the repository: {}",
                some(named)
            ));
        }
        told
    }
}

/// The first of several, and how many there are beside.
pub fn some(all: impl IntoIterator<Item = String>) -> String {
    some_of(&all.into_iter().collect::<Vec<_>>(), NAMED, "; ")
}

/// What a session's state directory knows; none: the session has no policy, and no state of its own.
pub fn state(session: &Session, repository: Option<RepositoryId>) -> Option<EvidenceState> {
    let policy = &session.policy;
    let place = policy.repository.place();
    (!session.any_environment).then(|| EvidenceState::new(&policy.state_dir, place, repository))
}

/// Whether evidence is of this repository, as far as it says.
fn belongs(evidence: &Evidence, repository: Option<RepositoryId>) -> bool {
    match (evidence.statement.predicate.repository, repository) {
        (Some(its), Some(own)) => its == own,
        _ => true,
    }
}

struct Reading<'a> {
    session: &'a Session,
    key: Option<&'a PublicKey>,
    repository: Option<RepositoryId>,
    evidence: BTreeMap<Ulid, Evidence>,
    aside: Vec<Aside>,
}

impl Reading<'_> {
    /// Takes what stands under an id, or puts it aside.
    fn take(&mut self, name: String, id: Ulid, bytes: std::result::Result<Bytes, String>) -> bool {
        let sha256 = bytes
            .as_ref()
            .ok()
            .map(|b| crate::types::Digest::of(b).to_string());
        let evidence = bytes.and_then(|bytes| Evidence::accept(id, &bytes, self.key));
        let why = match evidence {
            Ok(evidence) if !belongs(&evidence, self.repository) => {
                "is evidence of another repository".to_owned()
            }
            Ok(evidence) => {
                self.evidence.insert(id, evidence);
                return true;
            }
            Err(why) => why,
        };
        let id = Some(id);
        self.aside.push(Aside {
            name,
            id,
            sha256,
            why,
        });
        false
    }

    async fn of_repository(&mut self, repository: &Repository, remembered: &[EvidenceRef]) -> Result<()> {
        let listed = repository.list_evidence().await?;
        self.aside.extend(listed.others.into_iter().map(|key| Aside {
            name: key.to_string(),
            id: None,
            sha256: None,
            why: "has no name of evidence".to_owned(),
        }));
        self.of_ids(repository, listed.named).await?;
        // A list may lack what is there: what is named and was not found is asked for by its key.
        let mut asked: BTreeSet<Ulid> = BTreeSet::new();
        loop {
            let known: BTreeSet<Ulid> = self.aside.iter().filter_map(|a| a.id).collect();
            let names = self
                .evidence
                .values()
                .map(|e| &e.statement.predicate)
                .flat_map(|said| said.previous.iter().chain(&said.lost));
            let absent: BTreeSet<Ulid> = names
                .chain(remembered)
                .map(|name| name.id)
                .filter(|id| !self.evidence.contains_key(id) && !known.contains(id) && !asked.contains(id))
                .take(ASKED_MAX.saturating_sub(asked.len()))
                .collect();
            let mut wanted = BTreeMap::new();
            for id in absent {
                asked.insert(id);
                if let Some(size) = repository.evidence_size(id).await? {
                    wanted.insert(id, size);
                }
            }
            if wanted.is_empty() {
                return Ok(());
            }
            self.of_ids(repository, wanted).await?;
        }
    }

    async fn of_ids(&mut self, repository: &Repository, wanted: BTreeMap<Ulid, u64>) -> Result<()> {
        let mut read = futures::stream::iter(wanted)
            .map(|(id, size)| async move {
                if size > EVIDENCE_MAX_BYTES {
                    return Ok((id, Some(Err("is too large to be read".to_owned()))));
                }
                let bytes = repository.read_evidence(id).await?;
                Ok::<_, Error>((id, bytes.map(Ok)))
            })
            .buffer_unordered(READS_AT_ONCE);
        while let Some((id, bytes)) = read.try_next().await? {
            if let Some(bytes) = bytes {
                self.take(layout::evidence(id).to_string(), id, bytes);
            }
        }
        Ok(())
    }
}

/// Reads all that can be known. `key`: what is not signed by it is put aside.
///
/// # Errors
/// The store. What is no evidence is none; what can not be read here is told.
pub async fn read(
    session: &Session,
    repository: Option<&Repository>,
    key: Option<&PublicKey>,
) -> Result<Known> {
    let mut known = Known::default();
    let id = repository.map(Repository::id);
    let state = state(session, id);
    // Before the repository is asked: what somebody puts there meanwhile, and forgets here, is missing nowhere.
    let mut waiting = Vec::new();
    let mut about = id;
    if let Some(state) = &state {
        let told = |e: Error| match e.hint_text() {
            Some(hint) => format!("{} ({hint})", e.chain()),
            None => e.chain(),
        };
        let mut looked = || {
            about = state.repository()?;
            known.remembered = state.remembered()?;
            waiting = state.waiting(EVIDENCE_MAX_BYTES)?;
            Ok(())
        };
        known.troubles.extend(looked().err().map(told));
    }
    let mut reading = Reading {
        session,
        key,
        repository: about,
        evidence: BTreeMap::new(),
        aside: Vec::new(),
    };
    if let Some(repository) = repository {
        reading.of_repository(repository, &known.remembered).await?;
    }
    for waits in waiting {
        reading.of_here(waits, &mut known.here);
    }
    known.chain = Chain::new(reading.evidence.into_values(), reading.aside);
    // Where there is none, and never was, nothing is written.
    let any = !known.chain.evidence().is_empty() || !known.remembered.is_empty();
    if let (Some(state), Some(_), true) = (&state, repository, any) {
        remember(session, state, &known.chain);
    }
    Ok(known)
}

impl Reading<'_> {
    /// What waits here: evidence of this repository that is not in it yet.
    fn of_here(&mut self, waits: crate::state::evidence::Waiting, here: &mut BTreeMap<Ulid, Bytes>) {
        let (name, id) = (waits.path.display().to_string(), waits.id);
        let parsed = waits.bytes.as_ref().ok().and_then(|b| Evidence::parse(b).ok());
        if let Some(parsed) = &parsed {
            let environment = parsed.report()["environment"].as_str();
            // It waits for another one.
            if !belongs(parsed, self.repository)
                || environment != Some(self.session.policy.environment.to_string().as_str())
            {
                return;
            }
            match self.evidence.get(&id) {
                // It was put, and its reply was lost; the next drill removes it here.
                Some(there) if there.sha256 == parsed.sha256 => {}
                Some(_) => {
                    self.aside.push(Aside {
                        name,
                        id: None,
                        sha256: None,
                        why: "is in the repository with other bytes".to_owned(),
                    });
                    return;
                }
                None => {}
            }
        }
        let bytes = waits.bytes.clone();
        if self.take(name, id, waits.bytes)
            && let Ok(bytes) = bytes
        {
            here.insert(id, bytes);
        }
    }
}

/// Keeps what is the newest now. Whoever only looks may not be able to; then who drills remembers.
fn remember(session: &Session, state: &EvidenceState, chain: &Chain) {
    if !session.policy.state_dir.is_dir() {
        return;
    }
    let kept = state.remember(|known| chain.tips(known));
    if let Err(e) = kept {
        tracing::debug!(error = %e.chain(), "what is the newest evidence is not remembered");
    }
}
