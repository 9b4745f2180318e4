//! What every job is given: the world, the policy, the outside's variables, and how to open things with the right
//! credentials.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::clock::World;
use crate::error::{Error, Kind, Result};
use crate::policy::{Policy, SecretRef, examples, secrets};
use crate::progress::{Progress, Silent};
use crate::repository::generation::{self, KeyRing};
use crate::repository::{Repository, Settings, layout};
use crate::secret::SecretText;
use crate::store::{self, SharedStore};
use crate::types::{RunId, SourceName};

/// How long interrupted work may take to end.
const CLEANING_UP: Duration = Duration::from_secs(5);

/// Looks up an environment variable. Injected, so that tests need no process environment.
pub type Lookup = Arc<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// One command's surroundings.
#[derive(Clone)]
pub struct Session {
    /// Time, randomness, crash points.
    pub world: World,
    /// The policy.
    pub policy: Arc<Policy>,
    /// Environment variables.
    pub lookup: Lookup,
    /// Ends the work early (SIGINT, SIGTERM).
    pub cancel: CancellationToken,
    /// Where progress goes.
    pub progress: Arc<dyn Progress>,
    /// `--identity FILE`, instead of the policy's.
    pub identity_file: Option<PathBuf>,
    /// No policy was given (`--repository URL`): the environment is not compared.
    pub any_environment: bool,
    /// `--versions`: read the first version of every key.
    pub versions: bool,
    /// A store instead of the policy's: simulations.
    pub store: Option<SharedStore>,
}

/// Which credentials a repository is opened with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// `[repository]`: takes points, reads, restores.
    Writer,
    /// `[prune]`: may delete.
    Pruner,
}

impl Session {
    /// Of a policy, with nothing else said.
    pub fn new(world: World, policy: Policy, lookup: Lookup) -> Self {
        Self {
            world,
            policy: Arc::new(policy),
            lookup,
            cancel: CancellationToken::new(),
            progress: Arc::new(Silent),
            identity_file: None,
            any_environment: false,
            versions: false,
            store: None,
        }
    }
    /// Resolves a secret.
    ///
    /// # Errors
    /// It is missing or unreadable.
    pub fn secret(&self, reference: &SecretRef) -> Result<SecretText> {
        secrets::resolve(reference, &*self.lookup)
    }

    /// Every missing secret of some keys of the policy, named at once.
    ///
    /// # Errors
    /// At least one is missing.
    pub fn require(&self, needed: impl Fn(&str) -> bool) -> Result<()> {
        secrets::require(&self.policy, &*self.lookup, needed)
    }

    /// Work that hears of an interrupt by itself and may clean up then, but is not waited for when what it calls hangs.
    ///
    /// # Errors
    /// Its own; [`Kind::Interrupted`].
    pub async fn interruptible<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let patience = async {
            self.cancel.cancelled().await;
            self.world.clock.sleep(CLEANING_UP).await;
        };
        tokio::select! {
            biased;
            done = work => done,
            () = patience => Err(Error::new(Kind::Interrupted, "interrupted")
                .hint("Something hung while it ended; the same command again goes on or starts over.")),
        }
    }

    /// The store, with the credentials of a role.
    ///
    /// # Errors
    /// A missing secret; no bucket or directory.
    pub async fn store(&self, role: Role) -> Result<SharedStore> {
        if let Some(store) = &self.store {
            return Ok(store.clone());
        }
        let wanted = if role == Role::Pruner {
            "prune."
        } else {
            "repository."
        };
        self.require(|key| key.starts_with(wanted))?;
        let repository = &self.policy.repository;
        let credentials = match role {
            Role::Writer => repository.credentials.as_ref(),
            Role::Pruner => {
                let prune = self.policy.prune.as_ref().ok_or_else(|| {
                    Error::usage("the policy has no [prune]")
                        .hint("Expiring is done where [prune] gives its own credentials, which may delete.")
                })?;
                prune.credentials.as_ref().or(repository.credentials.as_ref())
            }
        };
        let credentials = match credentials {
            Some(pair) => Some((
                self.secret(&pair.access_key_id)?,
                self.secret(&pair.secret_access_key)?,
            )),
            None => None,
        };
        store::open(repository, credentials, &self.world).await
    }

    fn settings(&self) -> Settings {
        Settings {
            versions: self.versions || self.policy.repository.versions,
            object_lock: self.policy.repository.object_lock,
        }
    }

    /// The repository, to change it: expire, sweep, hold.
    ///
    /// # Errors
    /// As [`Self::open`]; a format that this build may only read.
    pub async fn open_for_changing(&self, role: Role) -> Result<Repository> {
        let repository = self.open(role).await?;
        repository.writable()?;
        Ok(repository)
    }

    /// The repository, with the credentials of a role.
    ///
    /// # Errors
    /// No repository, another environment, an unknown format.
    pub async fn open(&self, role: Role) -> Result<Repository> {
        let environment = (!self.any_environment).then_some(&self.policy.environment);
        let opened = Repository::open(self.store(role).await?, self.settings(), environment).await;
        opened.map_err(|e| self.where_to_look(e))
    }

    /// Where there is no repository: what gave the URL, and what makes one.
    fn where_to_look(&self, e: Error) -> Error {
        if e.kind() != Kind::NoRepository {
            return e;
        }
        e.hint(if self.any_environment {
            "Check the URL that --repository gives."
        } else if self.policy.repository.is_directory() {
            "`backup init` makes the directory and the repository; or correct repository.url in the policy."
        } else {
            "`backup init` makes the repository, once the bucket is there; or correct repository.url in the policy."
        })
    }

    /// The repository as a run uses it: never with `versions`, since what is written must be what is read.
    ///
    /// # Errors
    /// As [`Self::open_for_changing`]; a policy that encrypts to a recipient of the examples.
    pub async fn open_for_writing(&self) -> Result<Repository> {
        examples::refuse(&self.policy)?;
        let settings = Settings {
            versions: false,
            ..self.settings()
        };
        let opened = Repository::open(
            self.store(Role::Writer).await?,
            settings,
            Some(&self.policy.environment),
        )
        .await;
        let repository = opened.map_err(|e| self.where_to_look(e))?;
        repository.writable()?;
        Ok(repository)
    }

    /// Makes the repository.
    ///
    /// # Errors
    /// As [`Repository::init`].
    pub async fn init(&self) -> Result<Repository> {
        let settings = Settings {
            versions: false,
            ..self.settings()
        };
        Repository::init(
            self.store(Role::Writer).await?,
            &self.policy.environment,
            settings,
            &self.world,
        )
        .await
    }

    /// The identities at hand: `--identity FILE`, else the policy's; empty without either.
    ///
    /// # Errors
    /// Unreadable, or no identity in it.
    pub fn key_ring(&self) -> Result<KeyRing> {
        if self.identity_file.is_none() {
            self.require(|key| key == "encryption.identity")?;
        }
        let reference = match &self.identity_file {
            Some(path) => Some(SecretRef::File(path.clone())),
            None => self.policy.encryption.identity.clone(),
        };
        match reference {
            Some(reference) => {
                let text = self.secret(&reference)?;
                Ok(KeyRing::new(generation::parse_identities(&text, "the identity")?))
            }
            None => Ok(KeyRing::new(Vec::new())),
        }
    }

    /// Finds the source that has a point or a tombstone of this run.
    ///
    /// # Errors
    /// None has.
    pub async fn source_of_run(&self, repository: &Repository, run: RunId) -> Result<SourceName> {
        for source in repository.sources().await? {
            if repository.read(&layout::commit(&source, run)).await?.is_some() {
                return Ok(source);
            }
        }
        Err(Error::usage(format!("there is no recovery point {run}"))
            .hint("`backup list` shows the recovery points."))
    }
}
