//! The keeper and init of a room: this program again, before it has any thread. Here nothing is async, and nothing is kept.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, BufRead as _, Read, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};

use super::{DOOR, Event, How, INIT, KEEPER, Order, Plan, Program};

/// What is kept of what a program said.
const SAID_BYTES: usize = 16 << 10;
/// What a program that has ended said last is read by then, or another holds its pipe.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// So long programs may take to end in good order, without name spaces.
const GOOD_ORDER: Duration = Duration::from_secs(5);
/// Connections through the door at once; more wait.
const DOOR_THREADS: usize = 64;

/// When this process is to be a keeper or init, it is one, and this gives its exit code.
pub fn enter(arguments: &[OsString]) -> Option<ExitCode> {
    let role = arguments.get(1)?.to_str()?;
    if ![KEEPER, INIT].contains(&role) {
        return None;
    }
    let plan = arguments
        .get(2)
        .and_then(|text| serde_json::from_str::<Plan>(text.to_str()?).ok());
    let done = match (role, plan) {
        (_, None) => Err(io::Error::other("no plan")),
        (KEEPER, Some(plan)) => keep(&plan),
        (_, Some(plan)) => init(&plan),
    };
    Some(match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            // Whoever made us reads it, or is gone.
            let _ = tell(&Event::Broken { why: e.to_string() });
            ExitCode::FAILURE
        }
    })
}

fn tell(event: &Event) -> io::Result<()> {
    let mut line = serde_json::to_vec(event)?;
    line.push(b'\n');
    let mut out = io::stdout().lock();
    out.write_all(&line)?;
    out.flush()
}

/// Makes the name spaces, and waits for init, the first process in them.
fn keep(plan: &Plan) -> io::Result<()> {
    // Nobody inside has our terminal, nor is Ctrl-C in it for them: we end the room in good order.
    rustix::process::setsid()?;
    if plan.apart
        && let Err(why) = leave()
    {
        return tell(&Event::NotApart { why });
    }
    let text = serde_json::to_string(plan)?;
    let mut init = Command::new("/proc/self/exe").arg(INIT).arg(text).spawn()?;
    init.wait().map(drop)
}

#[cfg(target_os = "linux")]
fn leave() -> Result<(), String> {
    super::apart::leave()
}

#[cfg(not(target_os = "linux"))]
fn leave() -> Result<(), String> {
    Err("this system has no name spaces".to_owned())
}

#[cfg(target_os = "linux")]
fn furnish(plan: &Plan) -> io::Result<()> {
    super::apart::furnish(plan)?;
    rustix::thread::set_no_new_privs(true)?;
    // Who runs inside with our number could otherwise open our pipes, and tell what is not so.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn furnish(_: &Plan) -> io::Result<()> {
    Ok(())
}

/// Running programs by their number.
type Running = Arc<Mutex<BTreeMap<u64, Pid>>>;

fn init(plan: &Plan) -> io::Result<()> {
    // A relative name: the path of the directory may be too long for a socket's. (unix(7).)
    std::env::set_current_dir(&plan.doors)?;
    let door = UnixListener::bind(DOOR)?;
    std::env::set_current_dir("/")?;
    // When memory is short it is not the host's own programs that have to go. It may be that nobody may say so.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    if plan.apart
        && let Err(e) = furnish(plan)
    {
        return tell(&Event::NotApart { why: e.to_string() });
    }
    let running = Running::default();
    tell(&Event::Ready)?;
    let mut door = Some(door);
    for line in io::stdin().lock().lines() {
        match serde_json::from_str(&line?)? {
            Order::Start { id, program } => start(plan, &running, id, program),
            Order::Signal { id, number } => {
                let pid = locked(&running).get(&id).copied();
                if let (Some(pid), Some(signal)) = (pid, Signal::from_named_raw(number)) {
                    // It may have ended just now.
                    let _ = rustix::process::kill_process_group(pid, signal);
                }
            }
            Order::Open { port } => {
                if let Some(door) = door.take() {
                    thread::spawn(move || serve(&door, port));
                }
                tell(&Event::Opened)?;
            }
        }
    }
    // The pipe is closed. Process 1 of a name space ends, and everything in it; otherwise it is ended here.
    if !plan.apart {
        end_all(&running);
    }
    Ok(())
}

fn locked(running: &Running) -> std::sync::MutexGuard<'_, BTreeMap<u64, Pid>> {
    running.lock().unwrap_or_else(PoisonError::into_inner)
}

fn start(plan: &Plan, running: &Running, id: u64, program: Program) {
    let not_started = |why: String| How {
        code: None,
        signal: None,
        said: String::new(),
        not_started: Some(why),
    };
    let heard = program.heard;
    match spawn(plan, &program) {
        Ok(child) => {
            if let Ok(pid) = i32::try_from(child.id())
                && let Some(pid) = Pid::from_raw(pid)
            {
                locked(running).insert(id, pid);
                let running = Arc::clone(running);
                thread::spawn(move || {
                    let how =
                        wait(child, pid, heard, &running, id).unwrap_or_else(|e| not_started(e.to_string()));
                    // Nobody hears it when the room is being ended.
                    let _ = tell(&Event::Ended { id, how });
                });
            }
        }
        Err(e) => {
            let _ = tell(&Event::Ended {
                id,
                how: not_started(e.to_string()),
            });
        }
    }
}

fn spawn(plan: &Plan, program: &Program) -> io::Result<Child> {
    let log = || io::stderr().try_clone_to_owned_fd().map(Stdio::from);
    let mut command = match program.memory {
        // Set by the program itself before it is what it is to be: for another process it takes a right that root may lack.
        Some(memory) => {
            let mut shell = Command::new("/bin/sh");
            shell.args(["-c", "ulimit -v \"$0\" && exec \"$@\""]);
            shell.arg((memory / 1024).to_string()).arg(&program.program);
            shell
        }
        None => Command::new(&program.program),
    };
    command
        .args(&program.arguments)
        .env_clear()
        .envs(program.environment.iter().map(|(name, value)| (name, value)))
        .current_dir(&program.directory)
        // A group of its own, so that it ends with its children.
        .process_group(0)
        .stdin(Stdio::null());
    if program.heard {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
    } else {
        command.stdout(log()?).stderr(log()?);
    }
    if let Some((user, group)) = plan.user {
        command.uid(user).gid(group);
    }
    command.spawn()
}

trait TryCloneFd {
    fn try_clone_to_owned_fd(&self) -> io::Result<std::os::fd::OwnedFd>;
}

impl<T: std::os::fd::AsFd> TryCloneFd for T {
    fn try_clone_to_owned_fd(&self) -> io::Result<std::os::fd::OwnedFd> {
        self.as_fd().try_clone_to_owned()
    }
}

fn wait(mut child: Child, pid: Pid, heard: bool, running: &Running, id: u64) -> io::Result<How> {
    let said = Arc::new(Mutex::new(Vec::new()));
    let (done, last_words) = mpsc::channel();
    if heard {
        let streams: [Option<Box<dyn Read + Send>>; 2] = [
            child.stdout.take().map(|s| Box::new(s) as _),
            child.stderr.take().map(|s| Box::new(s) as _),
        ];
        for stream in streams.into_iter().flatten() {
            let (said, done) = (Arc::clone(&said), done.clone());
            thread::spawn(move || {
                listen(stream, &said);
                drop(done);
            });
        }
    }
    drop(done);
    // Not buried before its number is forgotten: another process could have it then.
    loop {
        match rustix::process::waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT) {
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
            Ok(_) => break,
        }
    }
    locked(running).remove(&id);
    // What it left in its group.
    let _ = rustix::process::kill_process_group(pid, Signal::KILL);
    let status = child.wait()?;
    // Nothing is ever sent: this returns when both streams are at their end, or when that takes too long.
    let _: Result<(), _> = last_words.recv_timeout(LAST_WORDS);
    let said = said.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(How {
        code: status.code(),
        signal: status.signal(),
        said: String::from_utf8_lossy(&said).trim().to_owned(),
        not_started: None,
    })
}

/// Keeps the last of what a stream gives.
fn listen(mut stream: Box<dyn Read + Send>, said: &Mutex<Vec<u8>>) {
    let mut buffer = [0; 4096];
    // A stream that can not be read is at its end; the exit code still decides.
    while let Ok(n @ 1..) = stream.read(&mut buffer) {
        let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
        said.extend_from_slice(&buffer[..n]);
        let more = said.len().saturating_sub(SAID_BYTES);
        said.drain(..more);
    }
}

/// Ends what runs, in good order first: Postgres gives its shared memory back.
fn end_all(running: &Running) {
    let step = Duration::from_millis(20);
    let all = |signal| {
        for pid in locked(running).values() {
            let _ = rustix::process::kill_process_group(*pid, signal);
        }
    };
    all(Signal::QUIT);
    let mut waited = Duration::ZERO;
    while !locked(running).is_empty() && waited < GOOD_ORDER {
        thread::sleep(step);
        waited += step;
    }
    all(Signal::KILL);
}

/// Leads every connection to a port on the loopback.
fn serve(door: &UnixListener, port: u16) {
    let open = Arc::new(Mutex::new(0usize));
    for stream in door.incoming() {
        let Ok(stream) = stream else {
            continue;
        };
        {
            let mut open = open.lock().unwrap_or_else(PoisonError::into_inner);
            if *open >= DOOR_THREADS {
                // Closed: whoever called may call again.
                continue;
            }
            *open += 1;
        }
        let open = Arc::clone(&open);
        thread::spawn(move || {
            // What goes wrong here is seen by who called: the connection ends.
            let _ = carry(&stream, port);
            *open.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        });
    }
}

fn carry(outside: &UnixStream, port: u16) -> io::Result<()> {
    let inside = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    let (mut from_outside, mut to_inside) = (outside.try_clone()?, inside.try_clone()?);
    let there = thread::spawn(move || {
        let copied = io::copy(&mut from_outside, &mut to_inside).map(drop);
        // Either may be closed already.
        let _ = to_inside.shutdown(Shutdown::Write);
        copied
    });
    let (mut from_inside, mut to_outside) = (inside, outside.try_clone()?);
    let copied = io::copy(&mut from_inside, &mut to_outside).map(drop);
    let _ = outside.shutdown(Shutdown::Both);
    let _ = from_inside.shutdown(Shutdown::Both);
    match there.join() {
        Ok(there) => there.and(copied),
        Err(_) => Err(io::Error::other("a thread ended unexpectedly")),
    }
}
