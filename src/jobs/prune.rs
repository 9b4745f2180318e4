//! (being built)
#![allow(missing_docs, unused_variables, clippy::unused_async)]
use super::Session;
use super::report::*;
use crate::error::{Error, Result};
use crate::types::{RunId, SourceName};
/// Plans; carries out unless `dry_run`.
pub async fn prune(session: &Session, dry_run: bool) -> Result<PruneReport> {
    Err(Error::failed("not built"))
}
/// Removes a tombstone.
pub async fn undo(session: &Session, run: RunId) -> Result<Expired> {
    Err(Error::failed("not built"))
}
