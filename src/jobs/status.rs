//! (being built)
#![allow(missing_docs, unused_variables, clippy::unused_async)]
use super::Session;
use super::report::*;
use crate::error::{Error, Result};
use crate::types::{RunId, SourceName};
/// One sentence, then a line per source.
pub async fn status(session: &Session) -> Result<StatusReport> {
    Err(Error::failed("not built"))
}
