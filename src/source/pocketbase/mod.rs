//! PocketBase: a snapshot of pb_data from outside, or of a remote one by its backup API. (Its log comes later.)

mod ahead;
mod chunks;
mod copy;
pub(crate) mod facts;
mod local;
mod ranged;
mod remote;
mod restore;
mod scratch;
mod storage;
pub(crate) mod wal;

use std::path::PathBuf;

use async_trait::async_trait;

use crate::clock::World;
use crate::error::{Error, Result};
use crate::policy::{PocketBasePlace, PocketBasePolicy};
use crate::secret::SecretText;
use crate::source::{Attributes, Capture, Context, Cut, DrillNeeds, DrillReady, Finding, Source, UnitHead};
use crate::types::UnitName;

pub use restore::PocketBaseRestorer;

/// A PocketBase.
pub struct PocketBaseSource {
    policy: PocketBasePolicy,
    superuser: Option<(SecretText, SecretText)>,
}

impl PocketBaseSource {
    /// From the policy; a remote one needs its superuser's e-mail and password.
    pub fn new(policy: &PocketBasePolicy, superuser: Option<(SecretText, SecretText)>) -> Self {
        Self {
            policy: policy.clone(),
            superuser,
        }
    }

    fn remote(&self) -> Result<remote::Remote> {
        match (&self.policy.place, &self.superuser) {
            (PocketBasePlace::Remote { url, .. }, Some((identity, password))) => {
                remote::Remote::new(url, identity.clone(), password.clone())
            }
            _ => Err(Error::usage(
                "a remote PocketBase needs superuser.identity and superuser.password",
            )),
        }
    }
}

#[async_trait]
impl Source for PocketBaseSource {
    async fn check(&self, _world: &World) -> Vec<Finding> {
        match &self.policy.place {
            PocketBasePlace::Local(path) => local::check(path),
            PocketBasePlace::Remote { url, .. } => {
                let tried = match self.remote() {
                    Ok(remote) => remote.check().await,
                    Err(e) => Err(e),
                };
                vec![match tried {
                    Ok(()) => Finding::ok("access", format!("{url} lets the superuser in")),
                    Err(e) => Finding::error(
                        "access",
                        e.chain(),
                        e.hint_text().unwrap_or("See the message.").to_owned(),
                    ),
                }]
            }
        }
    }

    async fn check_drill(&self, needs: &DrillNeeds<'_>) -> Result<DrillReady, Finding> {
        match scratch::installed(needs.binaries).await {
            Ok(version) => Ok(DrillReady {
                text: version.replacen(" version ", " ", 1),
                path: Vec::new(),
            }),
            Err(e) => Err(Finding::error(
                "drill",
                e.chain(),
                e.hint_text().unwrap_or("See the message.").to_owned(),
            )),
        }
    }

    async fn capture(&self, context: Context) -> Result<Box<dyn Capture>> {
        match &self.policy.place {
            PocketBasePlace::Local(path) => {
                let path: PathBuf = std::path::absolute(path)
                    .map_err(|e| Error::failed(format!("{} is no path", path.display())).because(e))?;
                Ok(Box::new(local::capture(&path, &self.policy, &context).await?))
            }
            PocketBasePlace::Remote { .. } => {
                Ok(Box::new(self.remote()?.capture(&self.policy, &context).await?))
            }
        }
    }
}

fn facts_head(size: Option<usize>) -> Result<UnitHead> {
    Ok(UnitHead {
        name: UnitName::from_bytes(b"facts.json")?,
        cut: Cut::Whole,
        attributes: Attributes {
            mode: Some(0o600),
            modified_ms: None,
        },
        size_hint: size.map(|size| size as u64),
        stamp: None,
    })
}
