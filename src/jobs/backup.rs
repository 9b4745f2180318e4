//! (being built)
#![allow(missing_docs, unused_variables, clippy::unused_async)]
use super::Session;
use super::report::*;
use crate::error::{Error, Result};
use crate::types::{RunId, SourceName};
/// Takes a recovery point of each source; never an error itself: each report says how its run ended. Runs at most `policy.concurrency` at once.
pub async fn run(session: &Session, sources: &[SourceName]) -> Vec<RunReport> {
    Vec::new()
}
