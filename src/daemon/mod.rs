//! The daemon: schedules that can not be silently missed.
//!
//! It is woken every second, and asks the timetables (pure, `schedule::due`) what is due. What they decide is written into the
//! ledger before anything is done about it, so a crash at any moment leaves a slot that is either settled or open, and an
//! open one is looked up in the repository before it is run again. One run's hang, panic or failure touches no other.

mod board;
pub mod http;
pub mod metrics;
pub mod page;
pub mod points;
mod shown;
pub mod task;
mod tell;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use self::board::{Board, Step};
use self::task::{Ended, Resolved, Task};
use crate::error::{Error, Result};
use crate::jobs::Session;
use crate::policy::Policy;
use crate::state::StateDir;
use crate::state::ledger::notices::Owed;
use crate::state::ledger::points::Looked;
use crate::state::ledger::{Ledger, Outcome};
use crate::types::SourceName;

pub use shown::{Shown, ShownTask};

/// The longest time between two looks, whatever the timetables say.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// How long runs may take to end after the daemon was told to stop.
const DEADLINE: Duration = Duration::from_secs(20);

/// Reads the policy anew.
pub type Load = Arc<dyn Fn() -> Result<Policy> + Send + Sync>;
/// Is told what the daemon shows of itself, whenever that changes.
pub type Tell = Arc<dyn Fn(&Shown) + Send + Sync>;

/// What the daemon is given.
pub struct Given {
    /// World, policy, secrets. Its token stops the daemon.
    pub session: Session,
    /// For a reload.
    pub load: Load,
    /// Asks for a reload (SIGHUP).
    pub reload: Arc<Notify>,
    /// Wakes the daemon.
    pub wake: Arc<Notify>,
    /// What is asked of it over HTTP.
    pub asked: mpsc::Receiver<Asked>,
    /// Hears of every change.
    pub tell: Tell,
}

/// A run that somebody asks for.
#[derive(Debug)]
pub struct Asked {
    /// Of this source.
    pub source: SourceName,
    /// Whether it will be: not when one is under way, or none is known yet.
    pub taken: oneshot::Sender<bool>,
}

enum Done {
    Resolved(Task, Result<Resolved>),
    Ended(Task, chrono::DateTime<chrono::Utc>, Ended),
    Delivered(Owed, Result<Option<()>>),
    Looked(SourceName, Result<Looked>),
}

/// Runs until the session's token is cancelled.
///
/// # Errors
/// Another daemon has the state directory, or it can not be used at all.
pub async fn run(mut given: Given) -> Result<()> {
    let state = StateDir::open(&given.session.policy.state_dir)?;
    let _lock = state.lock_daemon()?;
    let (ledger, rebuilt) = Ledger::open(&given.session.policy.state_dir)?;
    if rebuilt {
        tracing::warn!("the daemon's memory was damaged; it is rebuilt from the repository");
    }
    let writer = state.writer(&given.session.world)?;
    let now = given.session.world.clock.now();
    let mut board = Board::new(ledger, &given.session.policy, writer, now)?;
    let mut session = given.session.clone();
    let mut work: JoinSet<Done> = JoinSet::new();
    tracing::info!(tasks = board.len(), "the daemon is ready");
    while !session.cancel.is_cancelled() {
        let now = session.world.clock.now();
        for step in board.turn(now, session.policy.concurrency) {
            begin(&mut work, &session, step);
        }
        (given.tell)(board.shown(now, session.world.clock.since_boot()));
        let wait = board.wait(session.world.clock.now()).min(LOOK_AGAIN);
        tokio::select! {
            biased;
            () = session.cancel.cancelled() => {}
            Some(done) = work.join_next(), if !work.is_empty() => {
                settle(&mut board, &session, done);
            }
            () = given.reload.notified() => reload(&given, &mut session, &mut board),
            Some(asked) = given.asked.recv() => {
                let taken = board.run_now(&asked.source, session.world.clock.now());
                // Who asked may have gone away; the run is made all the same.
                let _ = asked.taken.send(taken);
            }
            () = given.wake.notified() => {}
            () = session.world.clock.sleep(wait) => {}
        }
    }
    tracing::info!(under_way = work.len(), "the daemon stops");
    board.stopping = true;
    (given.tell)(board.shown(session.world.clock.now(), session.world.clock.since_boot()));
    let drained = async {
        while let Some(done) = work.join_next().await {
            settle(&mut board, &session, done);
        }
    };
    tokio::select! {
        () = drained => {}
        // The ledger knows what was under way; the next start finds out how it ended.
        () = session.world.clock.sleep(DEADLINE) => tracing::warn!("runs did not end in time; they are cut off"),
    }
    board.cut_off(session.world.clock.now());
    Ok(())
}

fn begin(work: &mut JoinSet<Done>, session: &Session, step: Step) {
    let mut session = session.clone();
    session.cancel = session.cancel.child_token();
    match step {
        Step::Resolve(task, settled, left) => {
            work.spawn(async move {
                let asked = task.clone();
                let inner = AbortOnDropHandle::new(tokio::spawn(async move {
                    task::resolve(&session, &asked, settled, left).await
                }));
                let resolved = inner.await.unwrap_or_else(|e| {
                    Err(Error::failed("looking up what is settled ended unexpectedly").because(e))
                });
                Done::Resolved(task, resolved)
            });
        }
        Step::Deliver(owed) => {
            work.spawn(async move {
                let notice = owed.clone();
                let inner =
                    AbortOnDropHandle::new(tokio::spawn(
                        async move { tell::deliver(&session, &notice).await },
                    ));
                let delivered = inner.await.unwrap_or_else(|e| {
                    Err(Error::failed("delivering a notice ended unexpectedly").because(e))
                });
                Done::Delivered(owed, delivered)
            });
        }
        Step::Look(source, known, only) => {
            work.spawn(async move {
                let asked = source.clone();
                let inner = AbortOnDropHandle::new(tokio::spawn(async move {
                    points::look(&session, &asked, known, only).await
                }));
                let found = inner.await.unwrap_or_else(|e| {
                    Err(Error::failed("asking for recovery points ended unexpectedly").because(e))
                });
                Done::Looked(source, found)
            });
        }
        Step::Start(task, slot) => {
            tracing::info!(task = task.key(), slot = %slot, "a slot begins");
            work.spawn(async move {
                let asked = task.clone();
                // A task of its own: a panic ends this run and nothing else.
                let inner = AbortOnDropHandle::new(tokio::spawn(async move {
                    task::carry_out(&session, &asked, slot).await
                }));
                let ended = inner
                    .await
                    .unwrap_or_else(|e| Ended::failed(format!("it ended unexpectedly: {e}")));
                Done::Ended(task, slot, ended)
            });
        }
    }
}

fn settle(board: &mut Board, session: &Session, done: std::result::Result<Done, tokio::task::JoinError>) {
    let now = session.world.clock.now();
    match done {
        Ok(Done::Resolved(task, resolved)) => board.resolved(&task, resolved, now),
        Ok(Done::Ended(task, slot, ended)) => {
            let key = task.key();
            match ended.outcome {
                Outcome::Done => tracing::info!(task = key, slot = %slot, run = ?ended.run, "a slot is done"),
                outcome => {
                    tracing::error!(task = key, slot = %slot, outcome = outcome.name(), error = ended.error, "a slot is not done");
                }
            }
            board.ended(&task, slot, ended, now);
        }
        Ok(Done::Looked(source, found)) => board.looked(&source, found, now),
        Ok(Done::Delivered(owed, result)) => board.delivered(&owed, result, now),
        // The outer tasks await and do nothing that could panic.
        Err(e) => tracing::error!(error = %e, "a task of the daemon ended unexpectedly"),
    }
}

/// Takes the new policy, or keeps the old one and says so.
fn reload(given: &Given, session: &mut Session, board: &mut Board) {
    let now = session.world.clock.now();
    let loaded = (given.load)().map(Arc::new).and_then(|policy| {
        if policy.state_dir == session.policy.state_dir {
            board.take(&policy, now)?;
            Ok(policy)
        } else {
            Err(Error::usage("state.dir is another one").hint("Restart the daemon for that."))
        }
    });
    match loaded {
        Ok(policy) => {
            session.policy = policy;
            board.reloaded(now, true);
            tracing::info!(tasks = board.len(), "the policy was read anew");
        }
        Err(e) => {
            board.reloaded(now, false);
            tracing::error!(error = %e.chain(), hint = e.hint_text(), "the new policy is not taken; the old one stays");
        }
    }
}
