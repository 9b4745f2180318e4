//! (being built)
#![allow(missing_docs, unused_variables, clippy::unused_async)]
use super::Session;
use super::report::*;
use crate::error::{Error, Result};
use crate::types::{RunId, SourceName};
/// Digests of stored objects; `content` decrypts and decodes too.
pub async fn verify(
    session: &Session,
    source: Option<&SourceName>,
    sample_percent: Option<u8>,
    content: bool,
) -> Result<VerifyReport> {
    Err(Error::failed("not built"))
}
