//! HTTP connections: a bounded number, none of which may idle.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// The most connections at once.
const CONNECTIONS_MOST: usize = 256;
/// How long a request may take to say what it wants, and a connection to say nothing.
const HEADERS: Duration = Duration::from_secs(5);
/// How long a connection may be there.
const LONGEST: Duration = Duration::from_secs(60);
/// After how long connections are taken again when none could be.
const AGAIN: Duration = Duration::from_millis(200);
/// How many connections there may be at once: a part of the files that the process may have open, so that a run never lacks
/// one because of them. As many files as the system allows are asked for first.
fn most() -> usize {
    let mut limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if limit.current != limit.maximum && setrlimit(Resource::Nofile, raised).is_ok() {
        limit = raised;
    }
    let files = limit.current.unwrap_or(u64::MAX);
    usize::try_from(files / 4)
        .unwrap_or(CONNECTIONS_MOST)
        .clamp(4, CONNECTIONS_MOST)
}

/// Serves connections until the token is cancelled, a bounded number at once, none of which may idle.
pub async fn serve(listener: TcpListener, router: Router, cancel: CancellationToken) {
    let places = Arc::new(Semaphore::new(most()));
    let mut open = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = cancel.cancelled() => break,
            Some(_) = open.join_next(), if !open.is_empty() => continue,
            accepted = next(&listener, &places) => accepted,
        };
        let Some((stream, place)) = accepted else {
            // No file is free just now, or the peer has gone: the next one may do.
            tokio::time::sleep(AGAIN).await;
            continue;
        };
        let (service, ends) = (TowerToHyperService::new(router.clone()), cancel.clone());
        open.spawn(async move {
            let _place = place;
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADERS)
                .serve_connection(TokioIo::new(stream), service);
            let mut connection = std::pin::pin!(connection);
            tokio::select! {
                done = tokio::time::timeout(LONGEST, connection.as_mut()) => match done {
                    Ok(Ok(())) => {}
                    Ok(Err(e)) => tracing::debug!(error = %e, "an HTTP connection ended"),
                    Err(_) => tracing::debug!("an HTTP connection took too long"),
                },
                () = ends.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    drop(connection.await);
                }
            }
        });
    }
    while open.join_next().await.is_some() {}
}

async fn next(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> Option<(tokio::net::TcpStream, OwnedSemaphorePermit)> {
    let place = places.clone().acquire_owned().await.ok()?;
    let (stream, _) = listener.accept().await.ok()?;
    Some((stream, place))
}
