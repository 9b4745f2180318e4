//! From the policy to a store.

use std::sync::Arc;

use super::SharedStore;
use super::directory::DirectoryStore;
use super::logged::Logged;
use super::retry::Retry;
use super::s3::{S3Config, S3Store};
use super::wrappers::Throttle;
use crate::clock::World;
use crate::error::Result;
use crate::policy::{RepositoryPolicy, StoreUrl};
use crate::secret::SecretText;

/// Opens the store of a repository: with retries, with the policy's `max_rate`, every call told to the log.
///
/// `credentials` are the access key id and the secret access key; without them S3 uses the standard AWS chain. The store is
/// not asked anything yet: that the bucket or directory is there is told by the first call.
///
/// # Errors
/// A `ca_file` that can not be used, or an endpoint that is no URL.
pub async fn open(
    policy: &RepositoryPolicy,
    credentials: Option<(SecretText, SecretText)>,
    world: &World,
) -> Result<SharedStore> {
    let store: SharedStore = match &policy.url {
        StoreUrl::Directory(path) => Arc::new(DirectoryStore::open(path.clone())),
        StoreUrl::S3 { bucket, prefix } => {
            let config = S3Config {
                endpoint: policy.endpoint.clone(),
                region: policy.region.clone(),
                path_style: policy.path_style,
                ca_file: policy.ca_file.clone(),
                credentials,
                ..S3Config::new(bucket.clone(), prefix.clone())
            };
            Arc::new(S3Store::connect(config).await?)
        }
    };
    let store = Logged::new(store, world);
    // The limit is inside, so that an attempt made again pays again.
    Ok(match policy.max_rate {
        Some(rate) => Arc::new(Retry::new(Throttle::new(store, world, rate), world)),
        None => Arc::new(Retry::new(store, world)),
    })
}
