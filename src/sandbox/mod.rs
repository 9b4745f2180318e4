//! A room of their own for programs that work on restored data, which may hold anything: functions that call out, settings
//! that mail or delete, schedules. Where the platform allows it has its own processes, network (a loopback and nothing
//! else), shared memory and files: the system's programs, and one directory. What runs there reaches nobody, is seen by
//! nobody, and ends with the room; the room ends when the pipe to its keeper is closed, so a kill of ours leaves nothing.
//!
//! ```text
//! backup ──► keeper (this program again: makes the name spaces) ──► init (process 1: mounts, then starts what it is told)
//!            └ one line of JSON an order on stdin, one line an event on stdout; stderr is the log
//! ```
//!
//! (namespaces(7), user_namespaces(7), pid_namespaces(7), pivot_root(2).)

#[cfg(target_os = "linux")]
mod apart;
mod inside;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::oneshot;

use crate::error::{Context as _, Error, Result};

pub use inside::enter;

/// The first argument by which this program knows that it is to be a keeper, and its child that it is to be init.
const KEEPER: &str = "sandbox-keeper";
const INIT: &str = "sandbox-init";
/// Where the directory of a room is inside of it.
pub const HOME: &str = "/drill";
/// The name of the socket that leads to a port inside.
const DOOR: &str = "door";
/// A room that takes longer to begin, or to end, does not.
const PATIENCE: Duration = Duration::from_secs(30);

/// The program that keepers are, where it is not the one that runs.
static PROGRAM: OnceLock<PathBuf> = OnceLock::new();

/// Has keepers be another program than the one that runs, which is for tests of the library: it is none of ours. Once only.
pub fn keepers_are(program: PathBuf) {
    // A second time it is the same one.
    let _ = PROGRAM.set(program);
}

/// What a room is made of.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// The directory that is [`HOME`] inside, and that everything there is written to.
    pub home: PathBuf,
    /// An empty directory, on which the room's root is mounted.
    pub root: PathBuf,
    /// A directory of ours alone, for the socket that leads in.
    pub doors: PathBuf,
    /// User and group of everything inside, when we are root; none: our own.
    pub user: Option<(u32, u32)>,
    /// What has to be seen inside beside the system's programs, at the same path.
    pub visible: Vec<PathBuf>,
    /// With name spaces of its own.
    pub apart: bool,
}

/// A program to start.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Program {
    /// Its path, or a name that is looked for in `PATH`.
    pub program: String,
    /// What follows it.
    pub arguments: Vec<String>,
    /// All of its environment.
    pub environment: Vec<(String, String)>,
    /// Where it works.
    pub directory: String,
    /// What it says is kept for [`Ended::said`]; otherwise it goes to the room's log.
    pub heard: bool,
    /// The most addresses that it may take, bytes.
    pub memory: Option<u64>,
}

/// What init is told.
#[derive(Debug, Serialize, Deserialize)]
enum Order {
    Start { id: u64, program: Program },
    Signal { id: u64, number: i32 },
    Open { port: u16 },
}

/// What init tells.
#[derive(Debug, Serialize, Deserialize)]
enum Event {
    Ready,
    NotApart { why: String },
    Broken { why: String },
    Ended { id: u64, how: How },
    Opened,
}

/// How a program ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct How {
    /// Its exit code.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// What it said, at most its last few kilobytes.
    pub said: String,
    /// It could not be started, and why.
    pub not_started: Option<String>,
}

impl How {
    /// It ended with 0.
    pub fn success(&self) -> bool {
        self.code == Some(0)
    }
    /// In words, without what it said.
    pub fn text(&self) -> String {
        match (&self.not_started, self.code, self.signal) {
            (Some(why), ..) => format!("it can not be started: {why}"),
            (None, Some(code), _) => format!("it ended with {code}"),
            (None, None, Some(signal)) => format!("it was ended by signal {signal}"),
            (None, None, None) => "it ended".to_owned(),
        }
    }
}

/// Why there is no room.
#[derive(Debug)]
pub enum NoRoom {
    /// The platform does not allow name spaces, for this reason.
    NotApart(String),
    /// Something else.
    Failed(Error),
}

#[derive(Default)]
struct Waiting {
    ended: BTreeMap<u64, oneshot::Sender<How>>,
    opened: Option<oneshot::Sender<()>>,
}

/// A room. Dropped, everything in it is killed.
pub struct Sandbox {
    keeper: Child,
    orders: ChildStdin,
    waiting: Arc<Mutex<Waiting>>,
    next: u64,
    apart: bool,
    home: PathBuf,
    /// Held open, so that the socket's path is short however long the directory's is.
    doors: File,
}

/// A program that was started.
#[derive(Debug)]
pub struct Process {
    id: u64,
    ended: oneshot::Receiver<How>,
    how: Option<How>,
}

fn gone() -> Error {
    Error::failed("the sandbox ended unexpectedly")
}

impl Sandbox {
    /// Makes a room. What its programs say that nobody hears goes to `log`.
    ///
    /// # Errors
    /// See [`NoRoom`].
    pub async fn make(plan: &Plan, log: File) -> Result<Self, NoRoom> {
        Self::begin(plan, log).await
    }

    async fn begin(plan: &Plan, log: File) -> Result<Self, NoRoom> {
        let failed = NoRoom::Failed;
        let text = serde_json::to_string(plan)
            .doing(|| "the directory of a sandbox has a name that is no UTF-8")
            .map_err(failed)?;
        // The file that runs, also when another has taken its place.
        let this = Path::new("/proc/self/exe");
        let mut keeper = Command::new(PROGRAM.get().map_or(this, PathBuf::as_path))
            .arg(KEEPER)
            .arg(text)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .doing(|| "a sandbox can not be started")
            .map_err(failed)?;
        let (Some(orders), Some(events)) = (keeper.stdin.take(), keeper.stdout.take()) else {
            return Err(NoRoom::Failed(gone()));
        };
        let mut events = BufReader::new(events);
        let mut line = String::new();
        let read = tokio::time::timeout(PATIENCE, events.read_line(&mut line)).await;
        match read {
            Ok(read) => read.doing(|| "a sandbox can not be heard").map_err(failed)?,
            Err(_) => {
                return Err(NoRoom::Failed(Error::failed(
                    "the sandbox is not ready after 30 seconds",
                )));
            }
        };
        match serde_json::from_str(&line) {
            Ok(Event::Ready) => {}
            Ok(Event::NotApart { why }) => return Err(NoRoom::NotApart(why)),
            Ok(Event::Broken { why }) => {
                return Err(NoRoom::Failed(
                    Error::failed("the sandbox can not be made").because(why),
                ));
            }
            _ => return Err(NoRoom::Failed(gone())),
        }
        let doors = File::open(&plan.doors)
            .doing(|| format!("can not open {}", plan.doors.display()))
            .map_err(failed)?;
        let waiting = Arc::new(Mutex::new(Waiting::default()));
        tokio::spawn(hear(events, Arc::clone(&waiting)));
        Ok(Self {
            keeper,
            orders,
            waiting,
            next: 0,
            apart: plan.apart,
            home: plan.home.clone(),
            doors,
        })
    }

    /// Whether it has name spaces of its own.
    pub fn apart(&self) -> bool {
        self.apart
    }

    /// Where the room's directory is for those inside.
    pub fn home(&self) -> &Path {
        if self.apart { Path::new(HOME) } else { &self.home }
    }

    async fn order(&mut self, order: &Order) -> Result<()> {
        let mut line = serde_json::to_string(order).doing(|| "an order can not be written")?;
        line.push('\n');
        self.orders
            .write_all(line.as_bytes())
            .await
            .map_err(|e| gone().because(e))
    }

    /// Starts a program inside.
    ///
    /// # Errors
    /// The room is gone. That the program can not be started is told by its end.
    pub async fn start(&mut self, program: Program) -> Result<Process> {
        self.next += 1;
        let id = self.next;
        let (tell, ended) = oneshot::channel();
        lock(&self.waiting).ended.insert(id, tell);
        self.order(&Order::Start { id, program }).await?;
        Ok(Process { id, ended, how: None })
    }

    /// Sends a signal to a program and to all of its group; to one that has ended nothing happens.
    ///
    /// # Errors
    /// The room is gone.
    pub async fn signal(&mut self, process: &Process, signal: rustix::process::Signal) -> Result<()> {
        self.order(&Order::Signal {
            id: process.id,
            number: signal.as_raw(),
        })
        .await
    }

    /// Opens a way to a port on the loopback inside: the path of a Unix socket, which only we reach.
    ///
    /// # Errors
    /// The room is gone.
    pub async fn open(&mut self, port: u16) -> Result<PathBuf> {
        use std::os::fd::AsRawFd as _;
        let (tell, opened) = oneshot::channel();
        lock(&self.waiting).opened = Some(tell);
        self.order(&Order::Open { port }).await?;
        opened.await.map_err(|_| gone())?;
        Ok(PathBuf::from(format!(
            "/proc/self/fd/{}/{DOOR}",
            self.doors.as_raw_fd()
        )))
    }

    /// Ends everything inside, and waits until it has ended.
    ///
    /// # Errors
    /// It does not end.
    pub async fn end(self) -> Result<()> {
        let Self {
            mut keeper, orders, ..
        } = self;
        drop(orders);
        match tokio::time::timeout(PATIENCE, keeper.wait()).await {
            Ok(ended) => ended.map(drop).doing(|| "a sandbox's end can not be told"),
            Err(_) => Err(Error::failed("a sandbox does not end")),
        }
    }
}

fn lock(waiting: &Mutex<Waiting>) -> std::sync::MutexGuard<'_, Waiting> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Hands events to who waits for them; at the end of the room nobody waits any more.
async fn hear(mut events: BufReader<ChildStdout>, waiting: Arc<Mutex<Waiting>>) {
    let mut line = String::new();
    loop {
        line.clear();
        match events.read_line(&mut line).await {
            Ok(1..) => {}
            _ => break,
        }
        match serde_json::from_str(&line) {
            Ok(Event::Ended { id, how }) => {
                if let Some(tell) = lock(&waiting).ended.remove(&id) {
                    // Nobody has to wait for it.
                    let _ = tell.send(how);
                }
            }
            Ok(Event::Opened) => {
                if let Some(tell) = lock(&waiting).opened.take() {
                    let _ = tell.send(());
                }
            }
            Ok(_) => {}
            Err(e) => {
                tracing::warn!(error = %e, "a sandbox says what nobody understands");
                break;
            }
        }
    }
    *lock(&waiting) = Waiting::default();
}

impl Process {
    /// Waits for its end.
    ///
    /// # Errors
    /// The room is gone.
    pub async fn ended(&mut self) -> Result<How> {
        if let Some(how) = &self.how {
            return Ok(how.clone());
        }
        let how = (&mut self.ended).await.map_err(|_| gone())?;
        self.how = Some(how.clone());
        Ok(how)
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// The room is gone.
    pub fn try_ended(&mut self) -> Result<Option<How>> {
        if self.how.is_none() {
            match self.ended.try_recv() {
                Ok(how) => self.how = Some(how),
                Err(oneshot::error::TryRecvError::Empty) => {}
                Err(oneshot::error::TryRecvError::Closed) => return Err(gone()),
            }
        }
        Ok(self.how.clone())
    }
}
