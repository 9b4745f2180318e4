//! Keys: the operator's age key pairs, and the repository's generations.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use age::secrecy::ExposeSecret as _;
use zeroize::Zeroizing;

use super::Session;
use super::report::{KeyReport, ListedGeneration};
use super::session::Role;
use super::wraps::Wraps;
use crate::clock::World;
use crate::error::{Context as _, Error, Kind, Result};
use crate::repository::generation::{self, Generation, KeyRing};
use crate::repository::{Repository, layout};
use crate::state::{self, StateDir};
use crate::types::GenerationId;

/// Makes an age key pair: identity written to FILE (0600, never replacing), returns the recipient.
///
/// # Errors
/// The file is there already or can not be written.
pub fn generate(world: &World, file: &Path) -> Result<String> {
    let identity = age::x25519::Identity::generate();
    let recipient = identity.to_public().to_string();
    let secret = identity.to_string();
    let text = Zeroizing::new(format!(
        "# created: {}\n# public key: {recipient}\n{}\n",
        world
            .clock
            .now()
            .to_rfc3339_opts(chrono::SecondsFormat::Secs, true),
        secret.expose_secret()
    ));
    write_new(file, &text)?;
    Ok(recipient)
}

/// Writes a secret to a new file (0600).
///
/// # Errors
/// It is there, or can not be written.
pub(super) fn write_new(file: &Path, text: &str) -> Result<()> {
    let mut out = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(file)
        .map_err(|e| match e.kind() {
            std::io::ErrorKind::AlreadyExists => Error::usage(format!("{} is there already", file.display()))
                .hint("An identity is never replaced; choose another file."),
            std::io::ErrorKind::NotFound => {
                let parent = file.parent().unwrap_or(Path::new("."));
                Error::usage(format!("there is no directory {}", parent.display()))
                    .hint(format!("Make it first: mkdir -p {}", parent.display()))
            }
            _ => Error::failed(format!("can not write {}", file.display()))
                .hint("Choose a place that this user may write.")
                .because(e),
        })?;
    out.write_all(text.as_bytes())
        .doing(|| format!("can not write {}", file.display()))?;
    out.sync_all()
        .doing(|| format!("can not write {}", file.display()))
}

/// The generations.
///
/// # Errors
/// The repository, an unreadable identity.
pub async fn list(session: &Session) -> Result<KeyReport> {
    let repository = session.open(Role::Writer).await?;
    report(session, &repository, Vec::new(), Vec::new()).await
}

pub(super) async fn wraps(repository: &Repository) -> Result<BTreeMap<GenerationId, u64>> {
    let mut wraps = BTreeMap::new();
    for object in repository.list(&layout::keys_prefix()).await? {
        if let Some(id) = layout::generation_of(&object.key) {
            *wraps.entry(id).or_insert(0) += 1;
        }
    }
    Ok(wraps)
}

async fn report(
    session: &Session,
    repository: &Repository,
    done: Vec<String>,
    mut warnings: Vec<String>,
) -> Result<KeyReport> {
    let mut keys = at_hand(session, &mut warnings)?;
    let current = current(session, repository)?;
    let mut generations = Vec::new();
    for (id, count) in wraps(repository).await? {
        generations.push(ListedGeneration {
            generation: id,
            wraps: count,
            opens: opens(repository, &mut keys, id).await?,
            current: current.as_ref().is_some_and(|g| g.id == id),
        });
    }
    Ok(KeyReport {
        generations,
        done,
        warnings,
    })
}

/// The identities at hand, for what is shown only: a host whose policy names one that is not there can do without. One
/// that `--identity` names must be there.
fn at_hand(session: &Session, warnings: &mut Vec<String>) -> Result<KeyRing> {
    match session.key_ring() {
        Err(e) if session.identity_file.is_none() => {
            warnings.push(format!(
                "which generations the identity opens is unknown: {}",
                e.chain()
            ));
            Ok(KeyRing::new(Vec::new()))
        }
        keys => keys,
    }
}

pub(super) async fn opens(
    repository: &Repository,
    keys: &mut KeyRing,
    id: GenerationId,
) -> Result<Option<bool>> {
    if keys.is_empty() {
        return Ok(None);
    }
    match keys.open(repository, id, None).await {
        Ok(_) => Ok(Some(true)),
        Err(e) if matches!(e.kind(), Kind::NoIdentity | Kind::Damaged) => Ok(Some(false)),
        Err(e) => Err(e),
    }
}

fn current(session: &Session, repository: &Repository) -> Result<Option<Generation>> {
    let state = StateDir::open(&session.policy.state_dir)?;
    state::read_json(&state.generation_file(repository.id())?)
}

/// A new generation now.
///
/// # Errors
/// The repository, the state directory.
pub async fn rotate(session: &Session) -> Result<KeyReport> {
    let repository = session.open_for_writing().await?;
    let state = StateDir::open(&session.policy.state_dir)?;
    let _lock = state.lock_generation(repository.id())?;
    let new = generation::create(&repository, &session.world, &session.policy.encryption.recipients).await?;
    state::write_json(&state.generation_file(repository.id())?, &new)?;
    Wraps::read(&state, repository.id())?.record(new.id, &new.wrapped_to)?;
    report(
        session,
        &repository,
        vec![format!("runs are encrypted to generation {} from now on", new.id)],
        Vec::new(),
    )
    .await
}

/// Wraps every generation that the identity opens to the present recipients, but those that this host knows each of them
/// to open. It shuts nobody out: older wraps stay, and every commit carries one.
///
/// # Errors
/// No identity; a generation that none opens (the others are done first).
pub async fn rewrap(session: &Session) -> Result<KeyReport> {
    let repository = session.open_for_writing().await?;
    let mut keys = session.key_ring()?;
    if keys.is_empty() {
        return Err(Error::new(
            Kind::NoIdentity,
            "there is no identity to open the generations with",
        )
        .hint("Set encryption.identity in the policy, or give --identity FILE."));
    }
    let recipients = &session.policy.encryption.recipients;
    let state = StateDir::open(&session.policy.state_dir)?;
    let _lock = state.lock_generation(repository.id())?;
    let mut known = Wraps::read(&state, repository.id())?;
    let (mut done, mut closed) = (Vec::new(), Vec::new());
    for id in wraps(&repository).await?.into_keys() {
        if known.cover(id, recipients) {
            done.push(format!(
                "generation {id} is open to these {} recipients already",
                recipients.len()
            ));
            continue;
        }
        match keys.open(&repository, id, None).await {
            Ok(identity) => {
                generation::wrap_identity(&repository, &session.world, id, &identity, recipients).await?;
                known.record(id, recipients)?;
                done.push(format!(
                    "generation {id} is wrapped to {} recipients",
                    recipients.len()
                ));
            }
            Err(e) if e.kind() == Kind::NoIdentity => closed.push(id.to_string()),
            Err(e) => return Err(e),
        }
    }
    if !closed.is_empty() {
        return Err(Error::new(
            Kind::NoIdentity,
            format!("no identity at hand opens generations {}", closed.join(", ")),
        )
        .hint(format!(
            "{} others are done; run it again with an identity that opens these.",
            done.len()
        )));
    }
    let warnings = vec![
        "rewrap shuts nobody out: whoever could open a generation still can; a recipient that left the policy opens \
         nothing written after the next run, which begins a new generation"
            .to_owned(),
    ];
    report(session, &repository, done, warnings).await
}
