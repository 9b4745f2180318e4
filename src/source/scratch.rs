//! What a drill restores into: a target of its own, that nobody else can reach, with what proves the result.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use async_trait::async_trait;

use super::{Context, Target};
use crate::drill::Check;
use crate::error::{Context as _, Error, Kind, Result};
use crate::sandbox::{NoRoom, Plan, Sandbox};
use crate::secret::SecretText;

/// What a scratch target is made with.
#[derive(Clone, Debug)]
pub struct ScratchPlan {
    /// Private to us, and the caller removes it: the parts below are in it, and what is written down of the target.
    pub directory: PathBuf,
    /// Everything of the target stands and works here.
    pub home: PathBuf,
    /// Empty: the root of a sandbox.
    pub root: PathBuf,
    /// Sockets that lead to the target.
    pub doors: PathBuf,
    /// User and group of its processes and files, when we are root; none: our own.
    pub user: Option<(u32, u32)>,
    /// It has name spaces of its own; otherwise why not.
    pub apart: Result<(), String>,
    /// A server for Postgres, in place of a cluster of the drill's own.
    pub server: Option<SecretText>,
    /// The policy has left storage/ of PocketBase out.
    pub without_storage: bool,
    /// What PocketBase encrypts its settings with.
    pub settings_key: Option<SecretText>,
    /// Where server programs are; otherwise they are looked for.
    pub binaries: Option<PathBuf>,
    /// The most memory of each of its processes, bytes.
    pub memory: Option<u64>,
    /// Programs of the operator's checks, which have to be seen from inside.
    pub commands: Vec<PathBuf>,
}

impl ScratchPlan {
    fn plan(&self, visible: Vec<PathBuf>) -> Plan {
        Plan {
            home: self.home.clone(),
            root: self.root.clone(),
            doors: self.doors.clone(),
            user: self.user,
            visible,
            apart: self.apart.is_ok(),
        }
    }

    /// Makes the sandbox of the target, in which these programs are seen too; what they say goes to a log beside its home.
    ///
    /// # Errors
    /// It can not be made.
    pub async fn sandbox(&self, mut visible: Vec<PathBuf>) -> Result<Sandbox> {
        visible.extend(self.commands.iter().cloned());
        let log = self.log();
        let written = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&log)
            .doing(|| format!("can not write {}", log.display()))?;
        match Sandbox::make(&self.plan(visible), written).await {
            Ok(sandbox) => Ok(sandbox),
            Err(NoRoom::NotApart(why)) => {
                Err(Error::new(Kind::DrillCouldNotRun, "the sandbox can not be made").because(why))
            }
            Err(NoRoom::Failed(e)) => Err(e),
        }
    }

    /// Whether name spaces can be had here.
    ///
    /// # Errors
    /// Neither can be told.
    pub async fn try_apart(&self) -> Result<Result<(), String>> {
        let null = File::options()
            .write(true)
            .open("/dev/null")
            .doing(|| "can not open /dev/null")?;
        let result = match Sandbox::make(&self.plan(Vec::new()), null).await {
            Ok(sandbox) => {
                sandbox.end().await?;
                Ok(())
            }
            Err(NoRoom::NotApart(why)) => Err(why),
            Err(NoRoom::Failed(e)) => return Err(e),
        };
        let door = self.doors.join("door");
        match std::fs::remove_file(&door) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(e).doing(|| format!("can not remove {}", door.display()))
            }
            _ => Ok(result),
        }
    }

    /// Where what its programs say is written.
    pub fn log(&self) -> PathBuf {
        log_of(&self.directory)
    }

    /// How the target is kept apart, for the evidence.
    pub fn apart_text(&self) -> String {
        let user = match self.user {
            Some((user, _)) => format!("as user {user}"),
            None => "as our own user".to_owned(),
        };
        match &self.apart {
            Ok(()) => format!(
                "in a sandbox of its own (network, processes, shared memory, files) that nothing leaves, {user}"
            ),
            Err(why) => format!("NOT in a sandbox of its own ({why}), {user}"),
        }
    }
}

/// A check asks for one value.
pub fn not_one(what: &str) -> Error {
    Error::failed(format!("the query gives {what}, and a check compares one value"))
        .hint("Ask for one row of one column, with one statement.")
}

/// The log of the target in a directory.
pub fn log_of(directory: &Path) -> PathBuf {
    directory.join("target.log")
}

/// The end of a log, for a message.
pub fn last_of(log: &Path, bytes: u64) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(bytes)))?;
        let mut text = Vec::new();
        file.take(bytes).read_to_end(&mut text)?;
        Ok(text)
    };
    // A log that can not be read says nothing.
    String::from_utf8_lossy(&read().unwrap_or_default())
        .trim()
        .to_owned()
}

/// A target of a drill. Ended with [`ScratchTarget::end`]; dropped, its processes are killed.
#[async_trait]
pub trait ScratchTarget: Send + Sync {
    /// Where the restore goes.
    fn target(&self) -> Target;
    /// What it is, for the evidence: program, version, how it is kept apart.
    fn description(&self) -> String;
    /// Level 4, beyond the facts that the restore compared.
    ///
    /// # Errors
    /// The checks could not be made; one that did not pass is no error.
    async fn examine(&mut self, context: &Context) -> Result<Vec<Check>>;
    /// The one value of a query, as text; none: NULL, or no row. Before [`ScratchTarget::run`].
    ///
    /// # Errors
    /// What the server says.
    async fn query(&mut self, database: Option<&str>, sql: &str) -> Result<Option<String>>;
    /// Level 6: the application runs on what was restored.
    ///
    /// # Errors
    /// As of [`ScratchTarget::examine`].
    async fn run(&mut self, context: &Context) -> Result<Vec<Check>>;
    /// Whether checks of the application can be made, after [`ScratchTarget::run`].
    fn runs(&self) -> bool {
        true
    }
    /// What no check looks at, a phrase each.
    fn unlooked(&self) -> Vec<String> {
        Vec::new()
    }
    /// Where the application answers once it runs, as those inside see it; and a client that reaches it.
    ///
    /// # Errors
    /// No client can be made.
    fn http(&self) -> Result<Option<(String, reqwest::Client)>>;
    /// What tells a program of the operator's where it is, as environment variables.
    fn environment(&self) -> Vec<(String, String)>;
    /// Where such a program is started.
    fn sandbox(&mut self) -> &mut Sandbox;
    /// Ends its processes.
    ///
    /// # Errors
    /// One does not end.
    async fn end(self: Box<Self>) -> Result<()>;
}
