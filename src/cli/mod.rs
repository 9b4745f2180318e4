//! The command line: arguments in, documents or tables out. Only here is anything printed.
//!
//! One file for each command; each calls the jobs and shows what they answer.

mod args;
mod ask;
mod check;
mod daemon;
mod demo;
mod drill;
mod errors;
mod evidence;
mod hold;
mod init;
mod key;
mod list;
mod load;
mod logging;
mod printer;
mod progress;
mod prune;
mod restore;
mod run;
mod shell;
mod status;
mod target;
mod text;
mod verify;

use std::ffi::OsString;
use std::future::Future;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser as _;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::clock::World;
use crate::error::{Context as _, Error, Kind, Result};
use crate::jobs::Session;
use crate::jobs::session::Lookup;
use crate::policy::Policy;
use args::{Cli, Command, Global, KeyAction};
use printer::Printer;

/// How long blocking work may hold up the end of the process.
const END: Duration = Duration::from_millis(500);

/// What every command is given.
struct Surroundings {
    world: World,
    lookup: Lookup,
    printer: Printer,
    cancel: CancellationToken,
    global: Global,
}

/// What a command adds to its session.
#[derive(Default)]
struct Extra {
    identity_file: Option<PathBuf>,
    any_environment: bool,
    versions: bool,
}

impl Surroundings {
    /// The policy that `--policy` or the environment names.
    fn policy(&self) -> Result<Policy> {
        load::policy(self.global.policy.as_deref(), &self.lookup)
    }
    /// What the jobs are given, with the policy that is found.
    fn session(&self) -> Result<Session> {
        Ok(self.session_with(self.policy()?, Extra::default()))
    }
    /// As [`Self::session`], with `--identity`; or without a policy, for what `--repository` names.
    fn session_with_identity(
        &self,
        repository: Option<&str>,
        identity_file: Option<PathBuf>,
    ) -> Result<Session> {
        let extra = Extra {
            identity_file,
            any_environment: repository.is_some(),
            ..Extra::default()
        };
        let policy = match repository {
            Some(url) => load::without_policy(url, &self.lookup)?,
            None => self.policy()?,
        };
        Ok(self.session_with(policy, extra))
    }
    /// Tells the daemon of this state directory, if there is one, that what it knows of points may be old.
    fn touch(&self, session: &Session) {
        if let Err(e) = crate::state::touch(&session.policy.state_dir) {
            // It looks by itself within the hour.
            tracing::debug!(error = %e.chain(), "the daemon is not told");
        }
    }
    fn session_with(&self, policy: Policy, extra: Extra) -> Session {
        Session {
            cancel: self.cancel.clone(),
            progress: Arc::new(self.printer.bars().clone()),
            identity_file: extra.identity_file,
            any_environment: extra.any_environment,
            versions: extra.versions,
            ..Session::new(self.world.clone(), policy, self.lookup.clone())
        }
    }
    /// Work that only reads may be dropped at any moment, so an interrupt ends it at once.
    async fn reading<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => Err(Error::new(Kind::Interrupted, "interrupted")),
            done = work => done,
        }
    }
}

/// The process: its arguments, its environment, its clocks.
pub fn main() -> ExitCode {
    if let Some(ended) = crate::sandbox::enter(&std::env::args_os().collect::<Vec<_>>()) {
        return ended;
    }
    // A variable that is no UTF-8 can not be what is asked for; it counts as not set.
    let lookup: Lookup = Arc::new(|name| std::env::var(name).ok());
    ExitCode::from(run(std::env::args_os().collect(), lookup, World::system()))
}

/// Runs a command line (the program's name first); gives the exit code.
pub fn run(args: Vec<OsString>, lookup: Lookup, world: World) -> u8 {
    let cli = match Cli::try_parse_from(&args) {
        Ok(cli) => cli,
        Err(e) => return errors::of_arguments(&args, &e),
    };
    let printer = Printer::new(cli.global.json, cli.global.quiet);
    let surroundings = Surroundings {
        world,
        lookup,
        printer: printer.clone(),
        cancel: CancellationToken::new(),
        global: cli.global.clone(),
    };
    let done = execute(&surroundings, cli.command);
    printer.bars().finish();
    match done {
        Ok(code) => code,
        Err(e) => printer.error(&e),
    }
}

fn execute(surroundings: &Surroundings, command: Command) -> Result<u8> {
    let global = &surroundings.global;
    if global.quiet && global.verbose > 0 {
        return Err(Error::usage("--quiet and --verbose can not be had together"));
    }
    let usual = match command {
        Command::Daemon => logging::Usual::Everything,
        _ => logging::Usual::Warnings,
    };
    logging::start(global, usual, &surroundings.lookup, surroundings.printer.bars())?;
    // What needs no runtime.
    match &command {
        Command::Completions(args) => return shell::completions(surroundings, args),
        Command::Man(args) => return shell::man(surroundings, args),
        Command::Key(args) => {
            if let KeyAction::Generate { file } = &args.action {
                return key::generate(surroundings, file);
            }
        }
        _ => {}
    }
    // An error says that a provider is there already; any serves.
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        // As the main thread has: the daemon runs on these what commands run on that one. Only what is touched is taken.
        .thread_stack_size(8 << 20)
        .build()
        .doing(|| "the runtime can not be started")?;
    let done = runtime.block_on(until_signalled(surroundings, command));
    // Blocking work that does not end (a question nobody answers) does not hold up the process.
    runtime.shutdown_timeout(END);
    done
}

/// Runs a command; the first signal asks it to end, the second ends it.
async fn until_signalled(surroundings: &Surroundings, command: Command) -> Result<u8> {
    let listen = |kind| signal(kind).doing(|| "signals can not be listened to");
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    // Its log is for machines, each line of it.
    let daemon = matches!(command, Command::Daemon);
    let work = dispatch(surroundings, command);
    tokio::pin!(work);
    loop {
        tokio::select! {
            biased;
            () = either(&mut interrupt, &mut terminate) => {
                if surroundings.cancel.is_cancelled() {
                    return Err(Error::new(Kind::Interrupted, "interrupted twice: ended at once"));
                }
                if daemon {
                    tracing::info!("told to end: runs end in good order (once more: at once)");
                } else {
                    surroundings.printer.tell("interrupted: ending in good order (once more: at once)");
                }
                surroundings.cancel.cancel();
            }
            done = &mut work => return done.map_err(|e| errors::of_interrupt(surroundings.cancel.is_cancelled(), e)),
        }
    }
}

async fn either(one: &mut Signal, other: &mut Signal) {
    tokio::select! {
        _ = one.recv() => {}
        _ = other.recv() => {}
    }
}

async fn dispatch(surroundings: &Surroundings, command: Command) -> Result<u8> {
    match command {
        Command::Demo(args) => demo::demo(surroundings, &args).await,
        Command::Init(args) => init::init(surroundings, &args).await,
        Command::Check(args) => check::check(surroundings, &args).await,
        Command::Run(args) => run::run(surroundings, &args).await,
        Command::Daemon => daemon::daemon(surroundings).await,
        Command::List(args) => list::list(surroundings, &args).await,
        Command::Restore(args) => restore::restore(surroundings, &args).await,
        Command::Drill(args) => drill::drill(surroundings, &args).await,
        Command::Evidence(args) => evidence::evidence(surroundings, args.action).await,
        Command::Verify(args) => verify::verify(surroundings, args).await,
        Command::Prune(args) => prune::prune(surroundings, &args).await,
        Command::Hold(args) => hold::hold(surroundings, args.action).await,
        Command::Status(args) => status::status(surroundings, &args).await,
        Command::Key(args) => key::key(surroundings, args.action).await,
        // Done before the runtime was there.
        Command::Completions(args) => shell::completions(surroundings, &args),
        Command::Man(args) => shell::man(surroundings, &args),
    }
}
