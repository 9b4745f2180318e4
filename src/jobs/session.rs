//! What every job is given: the world, the policy, the outside's variables, and how to open things with the right
//! credentials.

use std::path::PathBuf;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::clock::World;
use crate::policy::Policy;
use crate::progress::Progress;

/// Looks up an environment variable. Injected, so that tests need no process environment.
pub type Lookup = Arc<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// One command's surroundings.
#[derive(Clone)]
pub struct Session {
    /// Time, randomness, crash points.
    pub world: World,
    /// The policy.
    pub policy: Arc<Policy>,
    /// Environment variables.
    pub lookup: Lookup,
    /// Ends the work early (SIGINT, SIGTERM).
    pub cancel: CancellationToken,
    /// Where progress goes.
    pub progress: Arc<dyn Progress>,
    /// `--identity FILE`, instead of the policy's.
    pub identity_file: Option<PathBuf>,
    /// No policy was given (`--repository URL`): the environment is not compared.
    pub any_environment: bool,
    /// `--versions`: read the first version of every key.
    pub versions: bool,
}
