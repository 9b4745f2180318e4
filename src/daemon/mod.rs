//! The daemon: schedules that can not be silently missed.
//!
//! It is woken every second, and asks the timetables (pure, `schedule::due`) what is due. What they decide is written into the
//! ledger before anything is done about it, so a crash at any moment leaves a slot that is either settled or open, and an
//! open one is looked up in the repository before it is run again. One run's hang, panic or failure touches no other.

mod board;
mod connections;
mod entry;
pub mod http;
pub mod metrics;
pub mod page;
pub mod points;
pub mod proofs;
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
use crate::jobs::{self, Session, check, notices};
use crate::policy::Policy;
use crate::source::Level;
use crate::state::ledger::notices::Owed;
use crate::state::ledger::points::Looked;
use crate::state::ledger::{Ledger, Outcome};
use crate::state::{Lock, StateDir};
use crate::types::{SourceName, rfc3339};

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
    /// The state directory's lock: one daemon is enough for it.
    pub lock: Lock,
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
    Proved(Result<Option<proofs::Found>>),
}

/// Runs until the session's token is cancelled.
///
/// # Errors
/// The state directory can not be used at all.
pub async fn run(mut given: Given) -> Result<()> {
    let state = StateDir::open(&given.session.policy.state_dir)?;
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
    loop {
        // Whoever listens to signals beside this one has its turn, also when something is always due here.
        tokio::task::yield_now().await;
        if session.cancel.is_cancelled() {
            break;
        }
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
                let resolve = async move { task::resolve(&session, &asked, settled, left).await };
                Done::Resolved(task, apart("looking up what is settled", resolve).await)
            });
        }
        Step::Deliver(owed) => {
            work.spawn(async move {
                let notice = owed.clone();
                let deliver = async move { tell::deliver(&session, &notice).await };
                Done::Delivered(owed, apart("delivering a notice", deliver).await)
            });
        }
        Step::Look(source, wanted) => {
            work.spawn(async move {
                let asked = source.clone();
                let look = async move { points::look(&session, &asked, wanted).await };
                Done::Looked(source, apart("asking for recovery points", look).await)
            });
        }
        Step::Prove(seen) => {
            work.spawn(async move {
                let look = async move { proofs::look(&session, seen).await };
                Done::Proved(apart("reading what drills proved", look).await)
            });
        }
        Step::Start(task, slot, since) => {
            tracing::info!(task = task.key(), slot = rfc3339(slot), "a slot begins");
            work.spawn(async move {
                let asked = task.clone();
                let carry_out = async move { Ok(task::carry_out(&session, &asked, slot, since).await) };
                let ended = apart("it", carry_out).await;
                let ended = ended.unwrap_or_else(|e| Ended::failed(e.chain()));
                Done::Ended(task, slot, ended)
            });
        }
    }
}

/// Does something in a task of its own: a panic ends that and nothing else.
async fn apart<T: Send + 'static>(
    what: &str,
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    let done = AbortOnDropHandle::new(tokio::spawn(work)).await;
    done.unwrap_or_else(|e| Err(Error::failed(format!("{what} ended unexpectedly")).because(e)))
}

fn settle(board: &mut Board, session: &Session, done: std::result::Result<Done, tokio::task::JoinError>) {
    let now = session.world.clock.now();
    match done {
        Ok(Done::Resolved(task, resolved)) => board.resolved(&task, resolved, now),
        Ok(Done::Ended(task, slot, ended)) => {
            let key = task.key();
            match ended.outcome {
                Outcome::Done => {
                    let run = ended.run.map(tracing::field::display);
                    tracing::info!(task = key, slot = rfc3339(slot), run, "a slot is done");
                }
                _ if ended.busy => {
                    tracing::info!(
                        task = key,
                        slot = rfc3339(slot),
                        "somebody runs it by hand; its slot waits"
                    );
                }
                _ if ended.again => {
                    tracing::warn!(
                        task = key,
                        slot = rfc3339(slot),
                        error = ended.error,
                        "a try failed"
                    );
                }
                outcome => {
                    tracing::error!(
                        task = key,
                        slot = rfc3339(slot),
                        outcome = outcome.name(),
                        error = ended.error,
                        "a slot is not done"
                    );
                }
            }
            board.ended(&task, slot, ended, now);
        }
        Ok(Done::Looked(source, found)) => board.looked(&source, found, now),
        Ok(Done::Proved(found)) => board.proved(found, now),
        Ok(Done::Delivered(owed, result)) => board.delivered(&owed, result, now),
        // The outer tasks await and do nothing that could panic.
        Err(e) => tracing::error!(error = %e, "a task of the daemon ended unexpectedly"),
    }
}

/// What a policy has to have for a daemon: something on a schedule, and every secret that its work needs, all told at once.
///
/// # Errors
/// It has not.
pub fn startable(session: &Session) -> Result<()> {
    if Task::of_policy(&session.policy)?.is_empty() {
        return Err(Error::usage("nothing in the policy has a schedule")
            .hint("Give a source a schedule, such as \"0 2 * * *\"; or use `backup run` from a timer."));
    }
    session.require(|key: &str| !key.starts_with("encryption."))?;
    let unusable = notices::unusable(session);
    if !unusable.is_empty() {
        let told: Vec<String> = unusable
            .iter()
            .map(|f| format!("{}: {}", f.name, f.text))
            .collect();
        return Err(Error::usage(told.join("; ")).hint("`backup check` tells more."));
    }
    let now = session.world.clock.now();
    for (name, source) in &session.policy.sources {
        let timetable = jobs::timetable::of_source(name, source)?;
        let never = timetable.and_then(|timetable| check::never_run(&timetable, now));
        if let Some(never) = never.filter(|found| found.level == Level::Error) {
            return Err(
                Error::usage(format!("source {name}: {}", never.text)).hint("`backup check` tells more.")
            );
        }
    }
    Ok(())
}

/// Takes the new policy, or keeps the old one and says so.
fn reload(given: &Given, session: &mut Session, board: &mut Board) {
    let now = session.world.clock.now();
    let loaded = (given.load)().map(Arc::new).and_then(|policy| {
        let (new, old) = (&policy, &session.policy);
        let mut others = vec![
            ("state.dir", new.state_dir != old.state_dir),
            ("http.listen", new.http.listen != old.http.listen),
            ("http.token", new.http.token != old.http.token),
        ];
        others.retain(|(_, other)| *other);
        if !others.is_empty() {
            let names: Vec<&str> = others.into_iter().map(|(name, _)| name).collect();
            return Err(
                Error::usage(format!("there is another {}", names.join(" and another ")))
                    .hint("Restart the daemon for that."),
            );
        }
        startable(&Session {
            policy: policy.clone(),
            ..session.clone()
        })?;
        board.take(&policy, now)?;
        Ok(policy)
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
