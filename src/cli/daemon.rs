//! `backup daemon`

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc};
use tokio_cron_scheduler::{Job, JobScheduler};

use super::Surroundings;
use super::load;
use crate::daemon::{self, Given, Shown, http};
use crate::error::{Context as _, Error, Result};
use crate::progress::Silent;
use crate::state::StateDir;

/// How often the daemon is woken.
const WAKE: Duration = Duration::from_secs(1);

/// Runs until it is told to stop.
pub async fn daemon(surroundings: &Surroundings) -> Result<u8> {
    let mut session = surroundings.session()?;
    daemon::startable(&session)?;
    session.progress = Arc::new(Silent);
    let token = match &session.policy.http.token {
        Some(reference) => Some(session.secret(reference)?),
        None => None,
    };
    let shown = Arc::new(Mutex::new(Shown::default()));
    let (ask, asked) = mpsc::channel(1);
    // Before it listens: a second one is refused at once.
    let state = StateDir::open(&session.policy.state_dir)?;
    let lock = state.lock_daemon()?;
    let server = http::serve(&session, token, shown.clone(), ask).await?;
    state.listens(server.address)?;
    let reload = Arc::new(Notify::new());
    let mut hangup = signal(SignalKind::hangup()).doing(|| "signals can not be listened to")?;
    let rung = reload.clone();
    let reloading = Arc::new(AtomicBool::new(false));
    let begun = reloading.clone();
    let hangups = tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            // systemctl reload returns when READY comes after this (sd_notify(3)).
            begun.store(true, Ordering::SeqCst);
            match NotifyState::monotonic_usec_now() {
                Ok(now) => say(&[NotifyState::Reloading, now]),
                Err(e) => tracing::debug!(error = %e, "the time can not be told"),
            }
            rung.notify_one();
        }
    });
    let (wake, _waker) = waker().await?;
    let (path, lookup) = (surroundings.global.policy.clone(), surroundings.lookup.clone());
    let (ready, reloaded) = (AtomicBool::new(false), Mutex::new(None));
    let given = Given {
        session,
        lock,
        load: Arc::new(move || load::policy(path.as_deref(), &lookup)),
        reload,
        wake,
        asked,
        tell: Arc::new(move |now: &Shown| {
            let mut last = reloaded.lock().unwrap_or_else(PoisonError::into_inner);
            if *last != now.reload {
                *last = now.reload;
                if reloading.swap(false, Ordering::SeqCst) {
                    ready.store(false, Ordering::Relaxed);
                }
            }
            notify(now, &ready);
            *shown.lock().unwrap_or_else(PoisonError::into_inner) = now.clone();
        }),
    };
    let done = daemon::run(given).await;
    hangups.abort();
    server.end().await;
    done.map(|()| 0)
}

/// Rings every second, for as long as the scheduler lives.
async fn waker() -> Result<(Arc<Notify>, JobScheduler)> {
    let failed = |e| Error::failed("the wake-up can not be started").because(e);
    let wake = Arc::new(Notify::new());
    let rung = wake.clone();
    let scheduler = JobScheduler::new().await.map_err(failed)?;
    let job = Job::new_repeated_async(WAKE, move |_, _| {
        let rung = rung.clone();
        Box::pin(async move { rung.notify_one() })
    });
    scheduler.add(job.map_err(failed)?).await.map_err(failed)?;
    scheduler.start().await.map_err(failed)?;
    Ok((wake, scheduler))
}

/// Tells systemd, if it asked. The watchdog is fed by the loop itself, so one that hangs is noticed.
fn notify(shown: &Shown, ready: &AtomicBool) {
    let sentence = shown.sentence();
    let mut states = vec![NotifyState::Watchdog, NotifyState::Status(&sentence)];
    if shown.stopping {
        states.push(NotifyState::Stopping);
    } else if !ready.swap(true, Ordering::Relaxed) {
        states.push(NotifyState::Ready);
    }
    say(&states);
}

fn say(states: &[NotifyState<'_>]) {
    if let Err(e) = sd_notify::notify(states) {
        tracing::debug!(error = %e, "systemd could not be told");
    }
}
