//! Takes recovery points: capture, cut, pack, commit.

mod access;
mod base;
mod chunker;
mod cutter;
mod engine;
mod rebuild;
mod segment;

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures::StreamExt as _;
use tracing::Instrument as _;

use super::report::{Failure, RunReport, RunResult};
use super::{Session, last};
use crate::error::{Error, Kind, Result};
use crate::policy::{PocketBasePlace, SourceKind, SourcePolicy};
use crate::source::Source;
use crate::source::pocketbase::PocketBaseSource;
use crate::source::postgres::PostgresSource;
use crate::types::{SourceName, rfc3339};

pub use engine::{Engine, Taken};

/// How long a run goes on before it is cut.
pub const CUT_AFTER: Duration = Duration::from_secs(30 * 60);

pub(crate) fn interrupted() -> Error {
    Error::new(Kind::Interrupted, "interrupted")
        .hint("`backup list` shows whether its point was committed by then; the next run goes on from the last one.")
}

/// Takes a recovery point of each source; never an error itself: each report says how its run ended. Runs at most
/// `policy.concurrency` at once.
pub async fn run(session: &Session, sources: &[SourceName]) -> Vec<RunReport> {
    let at_once = session.policy.concurrency.max(1) as usize;
    futures::stream::iter(sources.to_vec())
        .map(|source| async move { run_one(session, &source, None).await })
        .buffered(at_once)
        .collect()
        .await
}

/// Takes a recovery point of one source for a slot.
pub async fn run_one(session: &Session, name: &SourceName, slot: Option<DateTime<Utc>>) -> RunReport {
    // Every line of a run tells which: the id is known when it is made. At the level that is always logged.
    let span = tracing::error_span!(
        "run",
        source = %name,
        slot = slot.map(rfc3339),
        run = tracing::field::Empty
    );
    Box::pin(told(session, name, slot)).instrument(span).await
}

async fn told(session: &Session, name: &SourceName, slot: Option<DateTime<Utc>>) -> RunReport {
    let begun = session.world.clock.since_boot();
    let mut warnings = Vec::new();
    let under_way = last::begin(session, name, &mut warnings);
    tracing::info!("a run begins");
    let result = take(session, name, slot).await;
    let seconds = session
        .world
        .clock
        .since_boot()
        .saturating_sub(begun)
        .as_secs_f64();
    let mut report = RunReport {
        source: name.clone(),
        run: None,
        result: RunResult::Done,
        slot,
        at: None,
        error: None,
        warnings,
        bytes_read: 0,
        bytes_stored: 0,
        bytes_reused: 0,
        seconds,
        exit_code: 0,
    };
    match result {
        Ok(taken) => {
            report.run = Some(taken.commit.run);
            report.at = Some(taken.commit.at);
            report.warnings.extend(taken.warnings);
            report.warnings.extend(unused_identity(session));
            report.bytes_read = taken.bytes_read;
            report.bytes_stored = taken.bytes_stored;
            report.bytes_reused = taken.bytes_reused;
        }
        Err(e) => {
            report.result = if e.kind() == Kind::Interrupted {
                RunResult::Interrupted
            } else {
                RunResult::Failed
            };
            report.exit_code = e.kind().exit_code();
            report.error = Some(Failure::from(&e));
        }
    }
    last::end(session, under_way, &mut report);
    tracing::info!(result = ?report.result, bytes_read = report.bytes_read, bytes_stored = report.bytes_stored, seconds, "the run ended");
    report
}

/// A run needs no identity, but uses one that the policy names: to rebuild a lost index.
fn unused_identity(session: &Session) -> Option<String> {
    let e = session.key_ring().err()?;
    Some(format!(
        "the policy's identity is not used; a run needs it only to rebuild a lost index: {}",
        e.chain()
    ))
}

async fn take(session: &Session, name: &SourceName, slot: Option<DateTime<Utc>>) -> Result<Taken> {
    let policy = session
        .policy
        .sources
        .get(name)
        .ok_or_else(|| Error::usage(format!("the policy has no source {name}")))?;
    let own = format!("source.{name}.");
    session.require(|key| key.starts_with("repository.") || key.starts_with(&own))?;
    let source = open_source(session, name, policy)?;
    let work = async {
        let repository = session.open_for_writing().await?;
        let engine = Engine::new(session, repository, name, policy, slot)?;
        engine.take_point(&*source).await
    };
    tokio::select! {
        taken = session.interruptible(work) => taken,
        () = session.world.clock.sleep(policy.timeout) => Err(Error::failed(format!(
            "the run of {name} took longer than its timeout of {}",
            humantime::format_duration(policy.timeout)
        ))
        .hint("Raise timeout in the policy; the next run goes on from what was uploaded, if it was cut in between.")),
    }
}

/// The source that the policy describes, its secrets resolved.
///
/// # Errors
/// A missing secret; a kind that this build can not run.
pub fn open_source(session: &Session, name: &SourceName, policy: &SourcePolicy) -> Result<Arc<dyn Source>> {
    match &policy.kind {
        SourceKind::Postgres(postgres) => {
            if policy.kind.name() == "postgres-physical" {
                return Err(
                    not_built(name, "method = \"physical\"").hint("Use method = \"logical\" until then.")
                );
            }
            Ok(Arc::new(PostgresSource::new(
                postgres,
                session.secret(&postgres.url)?,
            )))
        }
        SourceKind::PocketBase(pocketbase) => {
            let superuser = match &pocketbase.place {
                PocketBasePlace::Local(_) => None,
                PocketBasePlace::Remote {
                    identity, password, ..
                } => Some((session.secret(identity)?, session.secret(password)?)),
            };
            Ok(Arc::new(PocketBaseSource::new(pocketbase, superuser)))
        }
        SourceKind::Bucket { .. } => {
            Err(not_built(name, "kind = \"bucket\"").hint("Leave this source out until then."))
        }
    }
}

fn not_built(name: &SourceName, what: &str) -> Error {
    Error::usage(format!(
        "source {name}: {what} can be written in a policy, and is not built yet in this version"
    ))
}
