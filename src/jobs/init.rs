//! (being built)
#![allow(missing_docs, unused_variables, clippy::unused_async)]
use super::Session;
use super::report::*;
use crate::error::{Error, Result};
use crate::types::{RunId, SourceName};
/// Makes the repository and shows what its store can do.
pub async fn init(session: &Session) -> Result<InitReport> {
    Err(Error::failed("not built"))
}
