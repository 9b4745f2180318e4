//! (being built)
#![allow(missing_docs, unused_variables, clippy::unused_async)]
use super::Session;
use super::report::*;
use crate::error::{Error, Result};
use crate::types::{RunId, SourceName};
/// Makes an age key pair: identity written to FILE (0600, never replacing), returns the recipient.
pub fn generate(session_world: &crate::clock::World, file: &std::path::Path) -> Result<String> {
    Err(Error::failed("not built"))
}
/// The generations.
pub async fn list(session: &Session) -> Result<KeyReport> {
    Err(Error::failed("not built"))
}
/// A new generation now.
pub async fn rotate(session: &Session) -> Result<KeyReport> {
    Err(Error::failed("not built"))
}
/// Wraps every generation that the identity opens to the present recipients.
pub async fn rewrap(session: &Session) -> Result<KeyReport> {
    Err(Error::failed("not built"))
}
