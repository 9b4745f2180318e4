//! (being built)
#![allow(missing_docs, unused_variables, clippy::unused_async)]
use super::Session;
use super::report::*;
use crate::error::{Error, Result};
use crate::types::{RunId, SourceName};
/// Keeps a point whatever retention says.
pub async fn add(session: &Session, run: RunId, who: &str, why: &str) -> Result<HoldReport> {
    Err(Error::failed("not built"))
}
/// Ends a hold (prune credentials).
pub async fn remove(session: &Session, run: RunId) -> Result<HoldReport> {
    Err(Error::failed("not built"))
}
/// All holds.
pub async fn list(session: &Session) -> Result<HoldReport> {
    Err(Error::failed("not built"))
}
