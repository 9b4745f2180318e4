//! (being built)
#![allow(missing_docs, unused_variables, clippy::unused_async)]
use super::Session;
use super::report::*;
use crate::error::{Error, Result};
use crate::source::{RestoreOptions, Target};
use crate::types::{RunId, SourceName};
use crate::when::When;

/// What is to be restored.
#[derive(Clone, Debug)]
pub enum Aim {
    /// `--at`
    When(When),
    /// `--at-point RUN`
    Point(RunId),
}

/// A restore of one source.
#[derive(Clone, Debug)]
pub struct Request {
    pub source: SourceName,
    pub aim: Aim,
    /// `None` only for a plan.
    pub target: Option<Target>,
    pub options: RestoreOptions,
    /// `--max-gap`.
    pub max_gap: Option<std::time::Duration>,
    /// `--yes`, or a terminal said yes to the gap.
    pub gap_accepted: bool,
}

/// Plans a restore: nothing is written. A gap over the limit is [`crate::error::Kind::Unreachable`] unless accepted.
pub async fn plan(session: &Session, request: &Request) -> Result<RestoreReport> {
    Err(Error::failed("not built"))
}
/// Plans again and carries out.
pub async fn restore(session: &Session, request: &Request) -> Result<RestoreReport> {
    Err(Error::failed("not built"))
}
