//! What a drill restores into: a target of its own, that nobody else can reach, with what proves the result.

use std::path::PathBuf;

use async_trait::async_trait;

use super::{Context, Target};
use crate::drill::Check;
use crate::error::Result;

/// Users that the processes of a scratch target run as when we are root, which Postgres refuses to be.
const USERS: [&str; 3] = ["postgres", "lifeboat", "nobody"];

/// What a scratch target is made with.
#[derive(Clone, Debug)]
pub struct ScratchPlan {
    /// A private directory, in which everything of it stands and works; the caller removes it.
    pub directory: PathBuf,
    /// User and group that its processes run as, and that the directory belongs to; none: our own.
    pub run_as: Option<(u32, u32)>,
    /// Where server programs are; otherwise they are looked for.
    pub binaries: Option<PathBuf>,
    /// The most memory of each of its processes, bytes.
    pub memory: Option<u64>,
}

/// A target of a drill. Ended with [`ScratchTarget::end`]; dropped, its processes are killed.
#[async_trait]
pub trait ScratchTarget: Send + Sync {
    /// Where the restore goes.
    fn target(&self) -> Target;
    /// What it is, for the evidence: program, version, how it is kept apart.
    fn description(&self) -> String;
    /// Checks of what was restored: beyond the facts that the restore compared, and of the application on it.
    ///
    /// # Errors
    /// The checks could not be made; one that did not pass is no error.
    async fn prove(&mut self, context: &Context) -> Result<Vec<Check>>;
    /// The one value of a query, as text; none: NULL, or no row.
    ///
    /// # Errors
    /// What the server says.
    async fn query(&mut self, database: Option<&str>, sql: &str) -> Result<Option<String>>;
    /// Where the application answers, once it runs: `http://127.0.0.1:PORT`.
    fn url(&self) -> Option<String>;
    /// What tells a program of the operator's where it is, as environment variables.
    fn environment(&self) -> Vec<(String, String)>;
    /// Ends its processes.
    ///
    /// # Errors
    /// One does not end.
    async fn end(&mut self) -> Result<()>;
}

/// The user and group of the first of some users that this system has, when we are root.
pub fn user_for_root() -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let known = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let of = |name: &str| {
        let line = known.lines().find(|l| l.split(':').next() == Some(name))?;
        let mut fields = line.split(':').skip(2);
        let (user, group): (u32, u32) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        (user != 0).then_some((user, group))
    };
    // Numbers need no names.
    Some(USERS.iter().find_map(|name| of(name)).unwrap_or((65_534, 65_534)))
}
