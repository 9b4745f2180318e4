//! Who can read what a run writes: its generation, and those that it draws on.

use std::collections::BTreeSet;
use std::sync::PoisonError;

use super::Engine;
use super::base::Base;
use crate::error::{Error, Kind, Result};
use crate::jobs::Session;
use crate::jobs::wraps::Wraps;
use crate::repository::generation::{self, Generation, KeyRing};
use crate::state;

impl Engine {
    /// The generation to encrypt to; `true` when an older one was found gone or different, so that nothing may build on it.
    pub(super) async fn generation(&self) -> Result<(Generation, bool)> {
        let (state, id) = (self.state.clone(), self.repository.id());
        let _lock = tokio::task::spawn_blocking(move || state.lock_generation(id))
            .await
            .map_err(|e| Error::failed("a thread ended unexpectedly").because(e))??;
        let file = self.state.generation_file(id)?;
        let known: Option<Generation> = state::read_json(&file)?;
        let mut gone = false;
        if let Some(known) = known {
            let intact = generation::is_intact(&self.repository, &known).await?;
            if intact && known.serves(&self.recipients, self.world.clock.now()) {
                Wraps::read(&self.state, id)?.record(known.id, &known.wrapped_to)?;
                return Ok((known, false));
            }
            gone = !intact;
        }
        let new = generation::create(&self.repository, &self.world, &self.recipients).await?;
        state::write_json(&file, &new)?;
        Wraps::read(&self.state, id)?.record(new.id, &new.wrapped_to)?;
        Ok((new, gone))
    }

    /// Whether every present recipient can open all that a point on this base would draw on: where an identity is at hand,
    /// what lacks a wrap for them is wrapped now.
    pub(super) async fn opens_to_all(&self, base: &Base) -> Result<bool> {
        let (state, id) = (self.state.clone(), self.repository.id());
        let _lock = tokio::task::spawn_blocking(move || state.lock_generation(id))
            .await
            .map_err(|e| Error::failed("a thread ended unexpectedly").because(e))??;
        let mut known = Wraps::read(&self.state, id)?;
        let drawn_on: BTreeSet<_> = base.runs.values().map(|r| r.generation).collect();
        let mut keys = self.keys.lock().await;
        for id in drawn_on {
            if known.cover(id, &self.recipients) {
                continue;
            }
            match keys.open(&self.repository, id, None).await {
                Ok(identity) => {
                    generation::wrap_identity(&self.repository, &self.world, id, &identity, &self.recipients)
                        .await?;
                    known.record(id, &self.recipients)?;
                }
                Err(e) if matches!(e.kind(), Kind::NoIdentity | Kind::Damaged) => {
                    self.note(
                        "the recipients changed: this run was uploaded in full, since not all of them can open what \
                         earlier runs wrote; `backup key rewrap --identity FILE`, with an identity that opens them, \
                         lets the new ones read the older points too"
                            .to_owned(),
                    );
                    return Ok(false);
                }
                Err(e) => return Err(e),
            }
        }
        Ok(true)
    }

    fn note(&self, text: String) {
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        if !notes.contains(&text) {
            notes.push(text);
        }
    }
}

/// The identities at hand, if any: a host that only backs up has none, and needs none.
pub(super) fn identities(session: &Session) -> KeyRing {
    session.key_ring().unwrap_or_else(|e| {
        // The report of the run warns of it.
        tracing::debug!(error = %e.chain(), "the identity is not used; it is needed only to rebuild a lost index");
        KeyRing::new(Vec::new())
    })
}
