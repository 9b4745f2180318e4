//! (being built)
#![allow(missing_docs, unused_variables, clippy::unused_async)]
use super::Session;
use super::report::*;
use crate::error::{Error, Result};
use crate::types::{RunId, SourceName};
/// Points and windows of all sources, or one.
pub async fn list(session: &Session, source: Option<&SourceName>) -> Result<ListReport> {
    Err(Error::failed("not built"))
}
/// Facts, refs and locks of one run.
pub async fn point(session: &Session, run: RunId) -> Result<PointReport> {
    Err(Error::failed("not built"))
}
