//! The arguments: a contract, since scripts and runbooks depend on them (DESIGN, section 7).

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, ArgGroup, Args, Parser, Subcommand, ValueEnum};

use crate::error::{Error, Result};
use crate::types::{RunId, SourceName};

/// What an instant may be, for every help that speaks of one.
macro_rules! when {
    () => {
        "WHEN: RFC 3339 (2026-11-24T14:03:00Z); YYYY-MM-DD HH:MM[:SS] in the policy's zone (without a policy: UTC);
'2 hours ago'; 'yesterday 14:00'; latest"
    };
}

/// What is below the help of `drill`.
const DRILL: &str = "Example:
  backup drill weekly
  backup drill recovery-key --identity /media/usb/recovery.key

Each source of the drill: a point is chosen and restored into a target of the drill's own, which nobody else can reach, and
which is removed afterwards (kept for keep_failed where something failed). Levels: 0 objects present, 1 digests of objects,
2 everything decodes, 3 restored without an error, 4 equal to the facts of the backup, 5 your own checks, 6 the application
runs (Postgres: everything is dumped, every index checked; PocketBase: it boots and serves every collection).

Postgres needs the server programs of the point's major version (postgresql-NN), PocketBase the program pocketbase; binaries
in the drill says where they are. They run in a sandbox: a network, processes and files of their own. The evidence goes
to evidence/ in the repository, signed by evidence.key; where that can not be written it waits in the state directory. Exit 22:
something is not as it should be; 23: nobody knows; 1: the evidence could be kept nowhere; 130: stopped, with evidence.

recovery-key is a drill without [drill.NAME]: the identity of --identity must open every generation of every source that the
repository has. Nothing is restored. Once a year, say, with the key that is kept elsewhere.";

/// What is below the help of `daemon`, and in its manual page.
const DAEMON: &str = "Example:
  backup daemon --policy /etc/lifeboat/policy.toml

A slot begins at its time, once. One that was missed (the host was off, the daemon away) is made good by one run, unless
catch_up = \"skip\" or it is older than max_age; what is passed over is written down with the reason. A try that fails is
made again after 30 s and after 2 min; then the slot has failed, which [notify.NAME] is told of. The clock set back: what
was run already is not run again, so nothing starts until the clock has caught up, an hour at most.

SIGHUP reads the policy anew, and keeps the old one when the new one is bad (log, metric and page say so); state.dir and
http.* need a restart. What `backup check` calls an error of schedules and places is not taken. SIGTERM ends it in good order: runs under way are interrupted, and have 20 s to clean up; what was cut off is
run again by the next start. A second daemon with the same state directory is refused with exit code 11.

Over HTTP, on http.listen (127.0.0.1:9184), /healthz and /readyz need no token; /metrics and the pages need http.token, as
bearer or as a password. What it remembers is in daemon.db in the state directory. Lost or damaged, it is put aside and
rebuilt from the repository; that costs a run too many at most.

Files: policies/example.toml has every key; packaging/ has units, rules for alerts, containers.";

/// Told below `backup --help`: the exit codes and our environment variables, each once.
const AFTER_HELP: &str = concat!(
    "\
Example:
  backup restore orders --at 'yesterday 14:00' --to postgres://restorer@db2/orders

",
    when!(),
    "

Exit codes:
  0    done
  1    failed (none done; status: an objective is missed)
  2    usage or policy
  3    at least one source done and at least one not
  10   no repository
  11   this source is being run by this state directory
  12   no identity opens it
  20   the target instant can not be restored
  21   damaged or missing objects
  22   a drill failed
  23   a drill could not run
  130  interrupted

Environment:
  LIFEBOAT_POLICY           the policy file, where --policy is not given
  LIFEBOAT_STATE            the state directory, where the policy gives none
  LIFEBOAT_LOG              what is logged: a level, or filters such as lifeboat=debug
  LIFEBOAT_PG_BIN           where Postgres client programs are looked for first
  LIFEBOAT_DEMO_POSTGRES_BIN, LIFEBOAT_DEMO_POCKETBASE
                            what `backup demo` runs: a directory of programs, a program"
);

/// The whole command line.
#[derive(Debug, Parser)]
#[command(
    name = "backup",
    version,
    about = "Backs up databases and object storage, and proves it by restoring",
    after_help = AFTER_HELP,
    disable_help_subcommand = true,
    subcommand_required = true,
    arg_required_else_help = true,
    max_term_width = 110
)]
pub struct Cli {
    /// For every command.
    #[command(flatten)]
    pub global: Global,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Clone, Debug, Default, Args)]
pub struct Global {
    /// The policy file [default: $LIFEBOAT_POLICY, ./policy.toml, /etc/lifeboat/policy.toml]
    #[arg(long, global = true, value_name = "FILE")]
    pub policy: Option<PathBuf>,
    /// One JSON document on standard output
    #[arg(long, global = true)]
    pub json: bool,
    /// No progress and no notes: results, warnings and errors only
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// Log more: what is done; twice: every object too
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,
    /// How logs are written to standard error
    #[arg(
        long,
        global = true,
        value_name = "text|json",
        default_value = "text",
        hide_possible_values = true
    )]
    pub log_format: LogFormat,
}

/// How logs are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    #[default]
    Text,
    /// A JSON object a line.
    Json,
    /// Fields for systemd's journal; used by itself where the journal takes standard error.
    Journal,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show the whole story on throwaway data, each command as it runs
    Demo(DemoArgs),
    /// Make the repository (and a key pair)
    Init(InitArgs),
    /// Try policy, secrets, access, store and sources; show the next runs
    Check(CheckArgs),
    /// Take recovery points now
    Run(RunArgs),
    /// Run what has a schedule, until it is told to stop
    #[command(
        after_help = DAEMON
    )]
    Daemon,
    /// Show recovery points and recovery windows, or all of one run
    List(ListArgs),
    /// Restore a source, or all of them, as of an instant
    Restore(Box<RestoreArgs>),
    /// Restore points into scratch servers, and prove them
    Drill(DrillArgs),
    /// What drills proved
    Evidence(EvidenceArgs),
    /// Compare the stored objects with what was written
    Verify(VerifyArgs),
    /// Expire and remove what retention does not keep
    Prune(PruneArgs),
    /// Keep a recovery point whatever retention says
    Hold(HoldArgs),
    /// One sentence, then a line for each source
    Status(StatusArgs),
    /// Make age key pairs, show and renew the repository's generations
    Key(KeyArgs),
    /// Print the completions of a shell
    Completions(CompletionsArgs),
    /// Write the manual pages into a directory, and example policies into DIR/policies
    Man(ManArgs),
}

/// `status`
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  backup status || mail -s 'backups need a look' ops@example.com </dev/null"
)]
pub struct StatusArgs {
    /// Only ask the daemon of this policy whether its loop turns (for containers): 0 or 1, whatever the backups are
    #[arg(long)]
    pub alive: bool,
}

/// `check`
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  backup check --policy policies/production.toml --notify")]
pub struct CheckArgs {
    /// Also send a test to every place that [notify] names
    #[arg(long)]
    pub notify: bool,
}

/// `demo`
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  backup demo\n\nIt runs a PostgreSQL and a PocketBase of its own, found in this order: the environment variables\nLIFEBOAT_DEMO_POSTGRES_BIN and LIFEBOAT_DEMO_POCKETBASE, ./.services, /usr/lib/postgresql, PATH."
)]
pub struct DemoArgs {
    /// Leave the directory with the repository and the restored data
    #[arg(long)]
    pub keep: bool,
}

/// `init`
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  backup init --generate-identity recovery.key")]
pub struct InitArgs {
    /// Make a key pair first, if FILE is not there: the identity goes there (0600) and is never shown
    #[arg(long, value_name = "FILE")]
    pub generate_identity: Option<PathBuf>,
}

/// `run`
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  backup run orders app")]
pub struct RunArgs {
    /// Which sources [default: all of the policy]
    #[arg(value_name = "SOURCE")]
    pub sources: Vec<String>,
}

/// `list`
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  backup list orders\n  backup list 01K9ZB3T7Q8M4V6W2X1Y0ZABCD")]
pub struct ListArgs {
    /// A source, or a run (26 characters) [default: every source]
    #[arg(value_name = "SOURCE|RUN")]
    pub what: Option<String>,
    /// Without a policy, of the repository at URL
    #[arg(long, value_name = "URL", conflicts_with = "policy")]
    pub repository: Option<String>,
    /// The age identity, instead of the policy's: with one, the databases of a run are shown
    #[arg(long, value_name = "FILE")]
    pub identity: Option<PathBuf>,
}

/// `restore`
#[derive(Debug, Args)]
#[command(
    after_help = concat!("Example:\n  backup restore orders --at '2026-11-24 14:03' --to postgres://restorer@db2/orders\n  backup restore --all --at '2 hours ago' --to /srv/restored\n\n", when!(), "\n\nTARGET: a new or empty directory, or a postgres:// URL: of a database, or of a server, where databases keep\ntheir names and missing roles are made; or env:NAME, file:PATH, where one stands (a password belongs there,\nnot on the command line). With --all: one directory, or SOURCE=TARGET once per source."),
    group = ArgGroup::new("which").args(["source", "all"]).required(true),
    group = ArgGroup::new("moment").args(["at", "at_lsn", "at_xid", "at_name", "at_point"]).required(true),
)]
pub struct RestoreArgs {
    /// The source
    #[arg(value_name = "SOURCE")]
    pub source: Option<SourceName>,
    /// Every source, to one instant
    #[arg(long, conflicts_with_all = ["at_lsn", "at_xid", "at_name", "at_point", "only_database", "only_table", "timeline"])]
    pub all: bool,
    /// The instant, on the source's own clock (with --all: on the store's clock)
    #[arg(long, value_name = "WHEN")]
    pub at: Option<String>,
    /// A position in the log: for physical sources, not built yet
    #[arg(long, value_name = "LSN")]
    pub at_lsn: Option<String>,
    /// A transaction of the log: for physical sources, not built yet
    #[arg(long, value_name = "XID")]
    pub at_xid: Option<String>,
    /// A restore point named in the log: for physical sources, not built yet
    #[arg(long, value_name = "NAME")]
    pub at_name: Option<String>,
    /// This recovery point
    #[arg(long, value_name = "RUN", value_parser = run_id)]
    pub at_point: Option<RunId>,
    /// Where to: see below
    #[arg(long, value_name = "[SOURCE=]TARGET")]
    pub to: Vec<OsString>,
    /// Show what would be restored; nothing is written
    #[arg(long)]
    pub dry_run: bool,
    /// Reuse what is in the target: for physical sources, not built yet
    #[arg(long)]
    pub reuse: bool,
    /// Accept a recovery point that is up to D (15m, 2h, 1day) before the instant [default: the source's objective.rpo,
    /// else twice its schedule's interval; with neither, any gap]
    #[arg(long, value_name = "D", value_parser = duration)]
    pub max_gap: Option<Duration>,
    /// Answer every question with yes
    #[arg(long)]
    pub yes: bool,
    /// Only this database of the point
    #[arg(long, value_name = "D")]
    pub only_database: Option<String>,
    /// Only this table: TABLE (in public) or SCHEMA.TABLE, letters as they are; a name with a dot or a quote in double
    /// quotes, as in SQL
    #[arg(long, value_name = "T")]
    pub only_table: Option<String>,
    /// Read the first version of every object, whatever was laid over it
    #[arg(long)]
    pub versions: bool,
    /// Restore without a policy, from the repository at URL
    #[arg(long, value_name = "URL", conflicts_with = "policy")]
    pub repository: Option<String>,
    /// The age identity, instead of the policy's
    #[arg(long, value_name = "FILE")]
    pub identity: Option<PathBuf>,
    /// The timeline to follow: for physical sources, not built yet
    #[arg(long, value_name = "N")]
    pub timeline: Option<u32>,
    /// Leave a physical copy as it is, without recovery: for physical sources, not built yet
    #[arg(long)]
    pub no_recover: bool,
}

/// `verify`
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  backup verify --sample 10%\n  backup verify orders --content --identity recovery.key"
)]
pub struct VerifyArgs {
    /// Only this source
    #[arg(value_name = "SOURCE")]
    pub source: Option<SourceName>,
    /// So many percent of the objects only
    #[arg(long, value_name = "N%", value_parser = percent)]
    pub sample: Option<u8>,
    /// Decrypt and decode as well
    #[arg(long)]
    pub content: bool,
    /// The age identity, instead of the policy's
    #[arg(long, value_name = "FILE", requires = "content")]
    pub identity: Option<PathBuf>,
    /// Without a policy, of the repository at URL
    #[arg(long, value_name = "URL", conflicts_with = "policy")]
    pub repository: Option<String>,
}

/// `drill`
#[derive(Debug, Args)]
#[command(after_help = DRILL)]
pub struct DrillArgs {
    /// The drill of the policy, or recovery-key [default: all of the policy]
    #[arg(value_name = "NAME")]
    pub name: Option<String>,
    /// Drill nothing: remove the targets of failed drills that are kept
    #[arg(long, conflicts_with_all = ["name", "identity"])]
    pub clean: bool,
    /// The age identity, instead of the policy's
    #[arg(long, value_name = "FILE")]
    pub identity: Option<PathBuf>,
}

/// `evidence`
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  backup evidence list")]
pub struct EvidenceArgs {
    /// What to do.
    #[command(subcommand)]
    pub action: EvidenceAction,
}

/// What to do with evidence.
#[derive(Debug, Subcommand)]
pub enum EvidenceAction {
    /// Show all of it, a line each
    #[command(after_help = "Example:\n  backup evidence list")]
    List,
    /// Show one as a report, in Markdown; with --json the signed statement
    #[command(after_help = "Example:\n  backup evidence show 01K9ZB3T7Q8M4V6W2X1Y0ZABCD >report.md")]
    Show {
        /// Its id
        #[arg(value_parser = evidence_id)]
        id: ulid::Ulid,
    },
    /// What a month's drills proved, and which sources and points no drill ever did, in Markdown
    #[command(after_help = "Example:\n  backup evidence report --month 2026-11 >report.md")]
    Report {
        /// The month, of UTC [default: this one]
        #[arg(long, value_name = "YYYY-MM")]
        month: Option<String>,
    },
    /// Verify signatures and chain; of files without a policy and without a network
    #[command(
        after_help = "Example:\n  backup evidence verify --key drill.pub evidence/\n\nA chain does not tell that its newest evidence is withheld. Note the id of the newest that you verified, and give it with\n--newest the next time; a host that drills remembers by itself. Exit 21: something is missing, was changed, or is no\nevidence under the name of evidence, or there is none at all. Files of other names are passed over, and counted."
    )]
    Verify {
        /// The public key, in PEM [default: of the repository's evidence: that of evidence.key]
        #[arg(long, value_name = "FILE")]
        key: Option<PathBuf>,
        /// The newest evidence that is known from before: it must be there, and everything later joined to it
        #[arg(long, value_name = "ID", value_parser = evidence_id)]
        newest: Option<ulid::Ulid>,
        /// Files or directories with evidence [default: the repository's]
        #[arg(value_name = "FILES")]
        files: Vec<PathBuf>,
    },
    /// Accept that evidence is lost: it is missing or was changed, and there is no copy to put back
    #[command(
        after_help = "Example:\n  backup evidence accept 01K9ZB3T7Q8M4V6W2X1Y0ZABCD --reason \"deleted by a lifecycle rule; see ticket 1234\"\n\nUntil evidence that is named by other evidence, or known to this host, is there again, nothing expires and `status` fails.\nPut it back from a copy where there is one: that needs no acceptance. Else this writes evidence, signed as a drill's is, that\nit is lost, and why; from then on only `evidence list`, `report` and `verify` tell it, as a warning. What it proved of\nrecovery points is not known any more."
    )]
    Accept {
        /// What is lost [without: what is lost is listed, with the command that accepts it, and exit 2]
        #[arg(value_name = "ID", value_parser = evidence_id)]
        ids: Vec<ulid::Ulid>,
        /// What happened to it, for who reads the evidence later
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
        /// Show what would be written; nothing is
        #[arg(long)]
        dry_run: bool,
    },
}

fn evidence_id(text: &str) -> Result<ulid::Ulid, String> {
    text.parse().map_err(|_| "it is no id of evidence".to_owned())
}

/// `prune`
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  backup prune --dry-run")]
pub struct PruneArgs {
    /// Show what would go and what stays; nothing is changed
    #[arg(long)]
    pub dry_run: bool,
    /// Bring an expired recovery point back
    #[arg(long, value_name = "RUN", conflicts_with = "dry_run", value_parser = run_id)]
    pub undo: Option<RunId>,
}

/// `hold`
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  backup hold add 01K9ZB3T7Q8M4V6W2X1Y0ZABCD --why 'audit of 2026'")]
pub struct HoldArgs {
    /// What to do.
    #[command(subcommand)]
    pub action: HoldAction,
}

/// What to do with a hold.
#[derive(Debug, Subcommand)]
pub enum HoldAction {
    /// Keep a recovery point
    #[command(after_help = "Example:\n  backup hold add 01K9ZB3T7Q8M4V6W2X1Y0ZABCD --why 'audit of 2026'")]
    Add {
        /// The run
        #[arg(value_parser = run_id)]
        run: RunId,
        /// Why; it is kept with the hold
        #[arg(long, value_name = "TEXT")]
        why: String,
    },
    /// End a hold
    #[command(after_help = "Example:\n  backup hold remove 01K9ZB3T7Q8M4V6W2X1Y0ZABCD")]
    Remove {
        /// The run
        #[arg(value_parser = run_id)]
        run: RunId,
    },
    /// Show the holds
    #[command(after_help = "Example:\n  backup hold list")]
    List {
        /// Only that of this run
        #[arg(value_parser = run_id)]
        run: Option<RunId>,
    },
}

/// `key`
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  backup key generate recovery.key")]
pub struct KeyArgs {
    /// What to do.
    #[command(subcommand)]
    pub action: KeyAction,
}

/// What to do with keys.
#[derive(Debug, Subcommand)]
pub enum KeyAction {
    /// Make an age key pair: the identity goes to FILE (0600), the recipient is printed
    #[command(after_help = "Example:\n  backup key generate recovery.key")]
    Generate {
        /// A new file
        file: PathBuf,
    },
    /// Make an Ed25519 key pair that signs evidence: the private key goes to FILE (0600), the public one is printed, in PEM
    #[command(after_help = "Example:\n  backup key signing drill.key >drill.pub")]
    Signing {
        /// A new file
        file: PathBuf,
    },
    /// Show the repository's generations
    #[command(after_help = "Example:\n  backup key list --identity recovery.key")]
    List {
        /// The age identity, instead of the policy's
        #[arg(long, value_name = "FILE")]
        identity: Option<PathBuf>,
    },
    /// Begin a new generation now
    #[command(after_help = "Example:\n  backup key rotate --yes")]
    Rotate {
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Wrap every generation to the policy's present recipients; it shuts nobody out
    #[command(
        after_help = "Example:\n  backup key rewrap --identity recovery.key --yes\n\nIt lets recipients that joined the policy open what was written before. It revokes nothing: older wraps stay, so\na recipient that left still opens every generation that it could open. What is written after the next run is\nclosed to it, since a change of recipients begins a new generation. A generation that this host wrapped to all\nof the policy's recipients before is left as it is."
    )]
    Rewrap {
        /// The age identity, instead of the policy's
        #[arg(long, value_name = "FILE")]
        identity: Option<PathBuf>,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

/// `completions`
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  backup completions bash >/etc/bash_completion.d/backup")]
pub struct CompletionsArgs {
    /// The shell
    pub shell: clap_complete::Shell,
}

/// `man`
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  backup man ./lifeboat && cp ./lifeboat/policies/development.toml policy.toml\n\nThe manual pages go to DIR, the policies that come with Lifeboat (example.toml with every key, development, staging\nand production, env.template, their documentation and schema) to DIR/policies."
)]
pub struct ManArgs {
    /// The directory; made if it is not there
    pub dir: PathBuf,
}

/// A run, in whatever case it was typed; everywhere else it has one spelling only.
pub fn run_id(text: &str) -> Result<RunId> {
    text.parse()
        .or_else(|e| text.to_ascii_uppercase().parse().map_err(|_| e))
}

fn duration(text: &str) -> Result<Duration> {
    humantime::parse_duration(text)
        .map_err(|e| Error::usage(format!("{text:?} is not a span of time (15m, 2h, 1day): {e}")))
}

fn percent(text: &str) -> Result<u8> {
    let number = text.strip_suffix('%').unwrap_or(text).trim_end();
    number
        .parse()
        .ok()
        .filter(|n| (1..=100).contains(n))
        .ok_or_else(|| Error::usage(format!("{text:?} is not a percentage from 1% to 100%")))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_definition_is_sound_and_every_command_shows_an_example() {
        fn visit(command: &clap::Command) {
            let after = command.get_after_help().map(ToString::to_string);
            assert!(
                after.is_some_and(|text| text.contains("Example:\n  backup ")),
                "{} has no example",
                command.get_name()
            );
            command.get_subcommands().for_each(visit);
        }
        Cli::command().debug_assert();
        visit(&Cli::command());
    }

    #[test]
    fn spans_and_percentages() {
        assert_eq!(duration("2h").unwrap(), Duration::from_secs(7200));
        assert!(duration("soon").is_err());
        assert_eq!(percent("10%").unwrap(), 10);
        assert_eq!(percent("100").unwrap(), 100);
        for bad in ["0%", "101", "-1", "%", "ten"] {
            assert!(percent(bad).is_err(), "{bad}");
        }
    }
}
