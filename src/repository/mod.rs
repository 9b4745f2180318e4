//! The repository: format 1 of DESIGN, section 5. Nothing is ever overwritten; a commit makes a point exist.

pub mod catalog;
pub mod documents;
pub mod evidence;
pub mod frame;
pub mod generation;
pub mod index;
pub mod layout;
mod locks;
pub mod manifest;
pub mod pack;
pub mod packer;
mod payload;
pub mod reader;

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use chrono::Duration;

use crate::clock::World;
use crate::error::{Error, Kind, Result};
use crate::policy::ObjectLock;
use crate::store::{Fault, Lock, PutOptions, SharedStore, Store, StoreError, View, list_all};
use crate::types::{Digest, Environment, Key, RepositoryId, RunId, SourceName};

use documents::{FORMAT, Place, RepositoryDocument};

/// An open repository.
#[derive(Clone, Debug)]
pub struct Repository {
    store: SharedStore,
    document: Arc<RepositoryDocument>,
    view: View,
    lock: Option<ObjectLock>,
}

/// How a repository is opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct Settings {
    /// Read the first version of every key.
    pub versions: bool,
    /// Lock what is written.
    pub object_lock: Option<ObjectLock>,
}

impl Settings {
    fn view(self) -> View {
        if self.versions { View::First } else { View::Current }
    }
}

impl Repository {
    /// Makes a repository at a URL that holds none.
    ///
    /// # Errors
    /// There is one already, or objects that look like ours without `lifeboat.json`.
    pub async fn init(
        store: SharedStore,
        environment: &Environment,
        settings: Settings,
        world: &World,
    ) -> Result<Self> {
        let key = layout::repository();
        if read(&*store, &key, settings.view()).await?.is_some() {
            let there = Self::open(store, settings, Some(environment)).await?;
            return Err(Error::usage(format!(
                "there is a repository already: {} of environment {}",
                there.id(),
                there.document.environment
            ))
            .hint("Nothing to do: `backup check` shows whether it can be used."));
        }
        for prefix in [
            layout::keys_prefix(),
            layout::sources_prefix(),
            layout::evidence_prefix(),
        ] {
            let page = store.list(&prefix, None, View::Current).await?;
            if let Some(found) = page.objects.first() {
                return Err(Error::usage(format!(
                    "{} holds {} but no lifeboat.json",
                    store.location(),
                    found.key
                ))
                .hint("It may be a repository whose lifeboat.json was lost: restore that object, or choose another URL. Nothing was written."));
            }
        }
        let document = RepositoryDocument {
            format: FORMAT,
            repository: RepositoryId::new(world.ulid()?),
            environment: environment.clone(),
            created: world.clock.now(),
            least_reader: FORMAT,
            must_understand: Vec::new(),
        };
        let repository = Self {
            store,
            document: Arc::new(document),
            view: settings.view(),
            lock: settings.object_lock,
        };
        let place = [
            (
                layout::restore_page(),
                Bytes::from_static(include_bytes!("../../scripts/RESTORE.md")),
            ),
            (
                layout::restore_script(),
                Bytes::from_static(include_bytes!("../../scripts/restore.py")),
            ),
            (key.clone(), Bytes::from(repository.document.to_bytes()?)),
        ];
        for (key, body) in place {
            // The two pages may be there from an init that was cut short; equal bytes are success.
            repository.put(world, &key, body).await?;
        }
        let back = Self::open(repository.store.clone(), settings, Some(environment)).await?;
        if back.document != repository.document {
            return Err(Error::failed(format!("{key} reads back as another one"))
                .hint("Somebody else made a repository here at the same time; run `backup check`."));
        }
        Ok(repository)
    }

    /// Opens the repository at a URL, and compares its environment.
    ///
    /// # Errors
    /// [`Kind::NoRepository`], an unknown format, or another environment ([`Kind::Usage`]).
    pub async fn open(
        store: SharedStore,
        settings: Settings,
        environment: Option<&Environment>,
    ) -> Result<Self> {
        let key = layout::repository();
        let Some(bytes) = read(&*store, &key, settings.view()).await? else {
            return Err(Error::new(
                Kind::NoRepository,
                format!("there is no repository at {}", store.location()),
            )
            .hint("Check repository.url; `backup init` makes a repository."));
        };
        let document = RepositoryDocument::parse(&bytes, &key, &store.location())?;
        if let Some(environment) = environment.filter(|e| **e != document.environment) {
            return Err(Error::usage(format!(
                "the repository at {} belongs to environment {}, the policy to {environment}",
                store.location(),
                document.environment
            ))
            .hint("Use the policy of that environment, or another repository; one environment never touches another's backups."));
        }
        Ok(Self {
            store,
            document: Arc::new(document),
            view: settings.view(),
            lock: settings.object_lock,
        })
    }

    /// The same repository through another store handle (other credentials).
    #[must_use]
    pub fn with_store(&self, store: SharedStore) -> Self {
        Self {
            store,
            ..self.clone()
        }
    }
    /// Its id.
    pub fn id(&self) -> RepositoryId {
        self.document.repository
    }
    /// What `lifeboat.json` says.
    pub fn document(&self) -> &RepositoryDocument {
        &self.document
    }
    /// Whether this build may write to it and sweep it.
    ///
    /// # Errors
    /// [`Kind::Newer`].
    pub fn writable(&self) -> Result<()> {
        self.document.writable(&self.store.location())
    }
    /// The store.
    pub fn store(&self) -> &dyn Store {
        &*self.store
    }
    /// The store, shared.
    pub fn shared_store(&self) -> SharedStore {
        self.store.clone()
    }
    /// Which versions reads want.
    pub fn view(&self) -> View {
        self.view
    }
    /// The Object Lock of this repository.
    pub fn object_lock(&self) -> Option<ObjectLock> {
        self.lock
    }
    /// The place that a plain document of a run names.
    pub fn place(&self, source: &SourceName, run: RunId) -> Place {
        Place {
            format: FORMAT,
            repository: self.id(),
            source: source.clone(),
            run,
        }
    }
    /// The lock of an object put now.
    ///
    /// # Errors
    /// None today; kept for stores whose clock must be asked.
    pub async fn lock_for_put(&self, world: &World) -> Result<Option<Lock>> {
        Ok(self.lock.map(|lock| Lock {
            mode: lock.mode,
            until: world.clock.now() + Duration::days(i64::from(lock.days)),
        }))
    }
    /// Puts an object with its digest and lock. An object with the same bytes there already is success.
    ///
    /// # Errors
    /// The store; other bytes under the key.
    pub async fn put(&self, world: &World, key: &Key, body: Bytes) -> Result<()> {
        let digest = Digest::of(&body);
        self.put_digested(world, key, body, digest).await
    }
    /// [`Self::put`] of bytes whose digest is known.
    ///
    /// # Errors
    /// As [`Self::put`].
    pub async fn put_digested(&self, world: &World, key: &Key, body: Bytes, digest: Digest) -> Result<()> {
        self.put_until(world, key, body, digest, None).await
    }
    /// [`Self::put_digested`] that is not tried again after an instant since boot.
    ///
    /// # Errors
    /// As [`Self::put`].
    pub async fn put_until(
        &self,
        world: &World,
        key: &Key,
        body: Bytes,
        digest: Digest,
        not_after: Option<std::time::Duration>,
    ) -> Result<()> {
        self.writable()?;
        let options = PutOptions {
            digest: Some(digest),
            lock: self.lock_for_put(world).await?,
            not_after,
        };
        match self.store.put(key, body.clone(), options).await {
            Ok(()) => Ok(()),
            Err(e) if e.fault == Fault::Exists => {
                let there = self.store.get(key, None, View::Current).await?;
                if there == body {
                    Ok(())
                } else {
                    Err(Error::failed(format!("{key} is there already with other bytes"))
                        .hint("Nothing was overwritten. Two writers may share one state directory's copy; see `backup check`."))
                }
            }
            Err(e) => Err(e.into()),
        }
    }
    /// Reads an object; `None` when it is proven absent.
    ///
    /// # Errors
    /// When the store can not tell.
    pub async fn read(&self, key: &Key) -> Result<Option<Bytes>> {
        read(&*self.store, key, self.view).await
    }
    /// The sources that have anything in the repository.
    ///
    /// # Errors
    /// The store.
    pub async fn sources(&self) -> Result<BTreeSet<SourceName>> {
        let mut sources = BTreeSet::new();
        let mut after: Option<String> = None;
        loop {
            let page = self
                .store
                .list(&layout::sources_prefix(), after.as_deref(), self.view)
                .await?;
            let Some(first) = page.objects.first() else {
                return Ok(sources);
            };
            // Skip the rest of this source: its keys are below "sources/<name>/", and '0' follows '/'.
            let Some(source) = layout::source_of(&first.key) else {
                after = Some(first.key.as_str().to_owned());
                continue;
            };
            after = Some(format!("{}{source}0", layout::sources_prefix()));
            sources.insert(source);
        }
    }
    /// All objects with a prefix.
    ///
    /// # Errors
    /// The store.
    pub async fn list(&self, prefix: &str) -> Result<Vec<crate::store::ObjectInfo>> {
        Ok(list_all(&*self.store, prefix, self.view).await?)
    }
}

async fn read(store: &dyn Store, key: &Key, view: View) -> Result<Option<Bytes>> {
    match store.get(key, None, view).await {
        Ok(bytes) => Ok(Some(bytes)),
        Err(StoreError {
            fault: Fault::NotFound,
            ..
        }) => Ok(None),
        Err(e) => Err(e.into()),
    }
}
