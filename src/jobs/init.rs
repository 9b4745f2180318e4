//! Makes the repository.

use super::Session;
use super::report::InitReport;
use super::session::Role;
use crate::error::{Error, Result};
use crate::policy::{StoreUrl, examples};
use crate::repository::{generation, layout};
use crate::state;
use crate::store::Abilities;

/// Makes the repository and shows what its store can do.
///
/// # Errors
/// No usable recipient, a repository or other people's objects at the URL, the store.
pub async fn init(session: &Session) -> Result<InitReport> {
    let recipients = &session.policy.encryption.recipients;
    if recipients.is_empty() {
        return Err(Error::usage("encryption.recipients is empty")
            .hint("Make a key pair with `backup key generate FILE` and put its recipient into the policy."));
    }
    for recipient in recipients {
        generation::parse_recipient(recipient)?;
    }
    examples::refuse(&session.policy)?;
    if let StoreUrl::Directory(path) = &session.policy.repository.url {
        state::make_dir(path)?;
    }
    let store = session.store(Role::Writer).await?;
    let probe = layout::probe_prefix(session.world.ulid()?);
    let abilities = store.probe(&probe, session.world.clock.now()).await?;
    let repository = session.init().await?;
    Ok(InitReport {
        repository: repository.id(),
        location: repository.store().location(),
        environment: repository.document().environment.clone(),
        warnings: warnings(session, &abilities),
        abilities,
    })
}

/// What the operator should know about keys and store.
pub(super) fn warnings(session: &Session, abilities: &Abilities) -> Vec<String> {
    let mut warnings = Vec::new();
    if session.policy.encryption.recipients.len() == 1 {
        warnings.push("there is one recipient only: if its identity is lost, so are the backups".to_owned());
    }
    let locks = session.policy.repository.object_lock.is_some();
    // Of a directory that goes without saying, and nobody can mend it.
    let directory = session.policy.repository.is_directory();
    if abilities.deletes && !locks && !directory {
        warnings.push(
            "the writer's credentials can delete: who steals this host can delete the backups".to_owned(),
        );
    }
    if locks && !abilities.locks {
        warnings.push("object_lock is set, and the store does not lock what is written".to_owned());
    }
    if abilities.clock_offset_ms.abs() > 5 * 60 * 1000 {
        warnings.push(format!(
            "the store's clock is {} s off this host's",
            abilities.clock_offset_ms / 1000
        ));
    }
    if !abilities.lists_at_once {
        warnings.push("a new object is not in the next list: runs may have to wait for the store".to_owned());
    }
    warnings
}
