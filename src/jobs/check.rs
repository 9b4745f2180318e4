//! (being built)
#![allow(missing_docs, unused_variables, clippy::unused_async)]
use super::Session;
use super::report::*;
use crate::error::{Error, Result};
use crate::types::{RunId, SourceName};
/// Policy, secrets, access, store abilities, sources, next runs. Everything wrong at once.
pub async fn check(session: &Session) -> Result<CheckReport> {
    Err(Error::failed("not built"))
}
