//! Generations: the repository's own key pairs. The host makes one, wraps its identity to the policy's recipients,
//! uploads the wrap, reads it back and forgets the identity: from then on it can write and not read.

use std::collections::BTreeMap;

use age::secrecy::ExposeSecret as _;
use chrono::{DateTime, Duration, Utc};
use serde::{Deserialize, Serialize};
use ulid::Ulid;
use zeroize::Zeroizing;

use super::{Repository, layout, pack};
use crate::clock::World;
use crate::error::{Error, Kind, Result};
use crate::secret::SecretText;
use crate::store::{Fault, PutOptions, View, list_all};
use crate::types::{Digest, GenerationId, Key};

/// A new generation is made when the last one is older than this.
pub const GENERATION_MAX_AGE_DAYS: i64 = 7;

/// What the host keeps of its generation: nothing secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Generation {
    /// Its id.
    pub id: GenerationId,
    /// Its recipient: what packs are encrypted to.
    pub recipient: String,
    /// The policy's recipients that its identity was wrapped to, sorted.
    pub wrapped_to: Vec<String>,
    /// Key of the wrap.
    pub wrap_id: Ulid,
    /// Digest of the wrap.
    pub wrap_digest: Digest,
    /// When it was made (host clock).
    pub created: DateTime<Utc>,
}

impl Generation {
    /// The age recipient.
    ///
    /// # Errors
    /// The local state is damaged.
    pub fn age_recipient(&self) -> Result<age::x25519::Recipient> {
        parse_recipient(&self.recipient)
    }
    /// Whether it may serve a run that begins now.
    pub fn serves(&self, recipients: &[String], now: DateTime<Utc>) -> bool {
        let age = now - self.created;
        self.wrapped_to == sorted(recipients)
            && age < Duration::days(GENERATION_MAX_AGE_DAYS)
            && age > Duration::hours(-1)
    }
    /// Key of its wrap.
    pub fn wrap_key(&self) -> Key {
        layout::wrap(self.id, self.wrap_id)
    }
}

fn sorted(recipients: &[String]) -> Vec<String> {
    let mut list = recipients.to_vec();
    list.sort();
    list.dedup();
    list
}

/// Parses an age recipient of the policy.
///
/// # Errors
/// Not an X25519 recipient.
pub fn parse_recipient(text: &str) -> Result<age::x25519::Recipient> {
    text.parse().map_err(|e: &str| {
        Error::usage(format!("{text:?} is not an age recipient: {e}"))
            .hint("A recipient looks like age1… ; `backup key generate FILE` makes a key pair.")
    })
}

/// Makes a generation: key pair, wrap, upload, read back. The identity is wiped when this returns.
///
/// # Errors
/// The store, or a wrap that does not read back.
pub async fn create(repository: &Repository, world: &World, recipients: &[String]) -> Result<Generation> {
    if recipients.is_empty() {
        return Err(Error::usage("encryption.recipients is empty")
            .hint("Add at least one age recipient; two are advised."));
    }
    let identity = age::x25519::Identity::generate();
    let id = GenerationId::new(world.ulid()?);
    let (wrap_id, wrap_digest) = wrap_identity(repository, world, id, &identity, recipients).await?;
    Ok(Generation {
        id,
        recipient: identity.to_public().to_string(),
        wrapped_to: sorted(recipients),
        wrap_id,
        wrap_digest,
        created: world.clock.now(),
    })
}

/// Wraps a generation's identity to recipients, uploads the wrap and reads it back.
///
/// # Errors
/// As [`create`].
pub async fn wrap_identity(
    repository: &Repository,
    world: &World,
    id: GenerationId,
    identity: &age::x25519::Identity,
    recipients: &[String],
) -> Result<(Ulid, Digest)> {
    let secret = identity.to_string();
    // Valid as an age identity file: `age -d -i recovery.key WRAP > generation.key` is all that is needed.
    let text = Zeroizing::new(format!(
        "# lifeboat repository={} generation={id}\n# public key: {}\n{}\n",
        repository.id(),
        identity.to_public(),
        secret.expose_secret()
    ));
    let recipients = sorted(recipients)
        .iter()
        .map(|r| parse_recipient(r))
        .collect::<Result<Vec<_>>>()?;
    let wrapped = encrypt_small(text.as_bytes(), &recipients)?;
    let digest = Digest::of(&wrapped);
    let wrap_id = world.ulid()?;
    let key = layout::wrap(id, wrap_id);
    let options = PutOptions {
        digest: Some(digest),
        lock: repository.lock_for_put(world).await?,
        ..PutOptions::default()
    };
    repository.store().put(&key, wrapped.into(), options).await?;
    let back = repository.store().get(&key, None, View::Current).await?;
    if Digest::of(&back) != digest {
        return Err(
            Error::damaged(format!("{key} reads back with other bytes than were written"))
                .hint("The store is not to be trusted; nothing was encrypted to this generation."),
        );
    }
    Ok((wrap_id, digest))
}

fn encrypt_small(plaintext: &[u8], recipients: &[age::x25519::Recipient]) -> Result<Vec<u8>> {
    use std::io::Write as _;
    let broken = |e: String| Error::failed(format!("a key can not be wrapped: {e}"));
    let encryptor = age::Encryptor::with_recipients(recipients.iter().map(|r| r as &dyn age::Recipient))
        .map_err(|e| broken(e.to_string()))?;
    let mut bytes = Vec::new();
    let mut writer = encryptor
        .wrap_output(&mut bytes)
        .map_err(|e| broken(e.to_string()))?;
    writer.write_all(plaintext).map_err(|e| broken(e.to_string()))?;
    writer.finish().map_err(|e| broken(e.to_string()))?;
    Ok(bytes)
}

/// Whether the generation's wrap is in the store as it was written; `false` means: make a new generation.
///
/// # Errors
/// When the store can not tell.
pub async fn is_intact(repository: &Repository, generation: &Generation) -> Result<bool> {
    match repository
        .store()
        .get(&generation.wrap_key(), None, View::Current)
        .await
    {
        Ok(bytes) => Ok(Digest::of(&bytes) == generation.wrap_digest),
        Err(e) if e.fault == Fault::NotFound => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// The wrap's bytes, for the commit.
///
/// # Errors
/// Gone or different.
pub async fn wrap_bytes(repository: &Repository, generation: &Generation) -> Result<Vec<u8>> {
    let bytes = repository
        .store()
        .get(&generation.wrap_key(), None, View::Current)
        .await?;
    if Digest::of(&bytes) != generation.wrap_digest {
        return Err(Error::damaged(format!(
            "{} is not what was written",
            generation.wrap_key()
        )));
    }
    Ok(bytes.to_vec())
}

/// Reads identities from the text of an age identity file.
///
/// # Errors
/// No X25519 identity in it.
pub fn parse_identities(text: &SecretText, what: &str) -> Result<Vec<age::x25519::Identity>> {
    let mut identities = Vec::new();
    for (number, line) in text.expose().lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let identity = line.parse().map_err(|_| {
            Error::usage(format!("{what}: line {} is not an age identity", number + 1))
                .hint("It is a file as age-keygen writes it: a line that begins with AGE-SECRET-KEY-1. Passphrases and plugins are not taken: decrypt the file first.")
        })?;
        identities.push(identity);
    }
    if identities.is_empty() {
        return Err(Error::usage(format!("{what} holds no age identity"))
            .hint("It is a file as age-keygen or `backup key generate FILE` writes it."));
    }
    Ok(identities)
}

/// Opens generations with the operator's identities, each once.
pub struct KeyRing {
    identities: Vec<age::x25519::Identity>,
    opened: BTreeMap<GenerationId, age::x25519::Identity>,
}

impl KeyRing {
    /// With these identities.
    pub fn new(identities: Vec<age::x25519::Identity>) -> Self {
        Self {
            identities,
            opened: BTreeMap::new(),
        }
    }
    /// Whether there is any identity.
    pub fn is_empty(&self) -> bool {
        self.identities.is_empty()
    }
    /// The recipients that its identities are of.
    pub fn recipients(&self) -> Vec<String> {
        let publics = self.identities.iter().map(|i| i.to_public().to_string());
        publics.collect()
    }
    /// The identity of a generation: any wrap that opens serves, `extra` (the commit's own) too.
    ///
    /// # Errors
    /// [`Kind::NoIdentity`] when none opens.
    pub async fn open(
        &mut self,
        repository: &Repository,
        id: GenerationId,
        extra: Option<&[u8]>,
    ) -> Result<age::x25519::Identity> {
        if let Some(identity) = self.opened.get(&id) {
            return Ok(identity.clone());
        }
        if self.identities.is_empty() {
            return Err(
                Error::new(Kind::NoIdentity, "there is no identity to read the backups with")
                    .hint("Set encryption.identity in the policy, or give --identity FILE."),
            );
        }
        let mut problems = Vec::new();
        if let Some(wrap) = extra {
            match self.unwrap(wrap, id, "the commit's wrap") {
                Ok(identity) => return Ok(self.remember(id, identity)),
                Err(e) => problems.push(e),
            }
        }
        let view = repository.view();
        for object in list_all(repository.store(), &layout::generation_prefix(id), view).await? {
            match repository.store().get(&object.key, None, view).await {
                Ok(wrap) => match self.unwrap(&wrap, id, object.key.as_str()) {
                    Ok(identity) => return Ok(self.remember(id, identity)),
                    Err(e) => problems.push(e),
                },
                Err(e) if e.fault == Fault::NotFound => {}
                Err(e) => problems.push(e.into()),
            }
        }
        // A damaged wrap beside one that is only for others: the identity is what the operator can change.
        Err(problems
            .into_iter()
            .max_by_key(|e| e.kind() == Kind::NoIdentity)
            .unwrap_or_else(|| Error::damaged(format!("every wrap of generation {id} is missing"))))
    }
    fn remember(&mut self, id: GenerationId, identity: age::x25519::Identity) -> age::x25519::Identity {
        self.opened.insert(id, identity.clone());
        identity
    }
    fn unwrap(&self, wrap: &[u8], id: GenerationId, name: &str) -> Result<age::x25519::Identity> {
        let all: Vec<&age::x25519::Identity> = self.identities.iter().collect();
        let text = Zeroizing::new(pack::decrypt(wrap, &all, name)?);
        let text = std::str::from_utf8(&text).map_err(|_| Error::damaged(format!("{name} is not text")))?;
        if !text
            .lines()
            .next()
            .unwrap_or_default()
            .ends_with(&format!("generation={id}"))
        {
            return Err(Error::damaged(format!("{name} belongs to another generation")));
        }
        parse_identities(&SecretText::new(text.to_owned()), name)?
            .pop()
            .ok_or_else(|| Error::damaged(format!("{name} is empty")))
    }
}

impl std::fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KeyRing({} identities)", self.identities.len())
    }
}
