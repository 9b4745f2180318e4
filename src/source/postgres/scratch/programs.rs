//! Server programs: where they are, of which version, and what has to be seen of them from inside of a sandbox.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use tokio::process::Command;

use super::PATIENCE;
use crate::error::{Context as _, Error, Kind, Result};
use crate::source::postgres::client;

/// Server programs of one version.
pub(in crate::source::postgres) struct Server {
    pub(super) major: u32,
    pub(in crate::source::postgres) version: String,
    pub(in crate::source::postgres) directory: PathBuf,
}

/// Directories with server programs of any version.
pub(in crate::source::postgres) fn places(binaries: Option<&Path>) -> Vec<PathBuf> {
    let mut candidates = match binaries {
        // A directory with pocketbase says nothing of these.
        Some(directory) if !directory.join("pocketbase").is_file() => {
            vec![directory.to_owned(), directory.join("bin")]
        }
        _ => client::candidates(),
    };
    candidates.retain(|directory| directory.join("initdb").is_file());
    candidates
}

/// The server programs of a major version.
///
/// # Errors
/// There are none: names the package.
pub(in crate::source::postgres) async fn find(binaries: Option<&Path>, major: u32) -> Result<Server> {
    let mut others = Vec::new();
    for directory in places(binaries) {
        match client::version_of(&directory.join("postgres")).await {
            Some((found, version)) if found == major => {
                // The way by which it was found may not be there inside of a sandbox.
                let directory = directory
                    .canonicalize()
                    .doing(|| format!("can not read {}", directory.display()))?;
                return Ok(Server {
                    major,
                    version,
                    directory,
                });
            }
            Some((_, version)) => others.push(format!("{version} in {}", directory.display())),
            None => {}
        }
    }
    let have = match others.as_slice() {
        [] => "there are none here".to_owned(),
        some => format!("there are {}", some.join(", ")),
    };
    Err(Error::new(
        Kind::DrillCouldNotRun,
        format!("no PostgreSQL {major} server programs to restore into: {have}"),
    )
    .hint(format!(
        "Install postgresql-{major} (Debian, Ubuntu) or postgresql{major}-server (RPM), or set binaries in the drill."
    )))
}

/// What has to be seen of a server's installation: what stands beside its programs, and libraries wherever they are. Of a
/// distribution's all is seen anyway.
pub(super) async fn installation(directory: &Path) -> Vec<PathBuf> {
    // Not all of what is above: it may be somebody's home, or hold the sockets of a server.
    let beside = ["lib", "lib64", "share", "libexec"];
    let mut visible = vec![directory.to_owned()];
    if let Some(whole) = directory.parent() {
        visible.extend(
            beside
                .iter()
                .map(|name| whole.join(name))
                .filter(|path| path.is_dir()),
        );
    }
    // The loader of glibc names what it loads, and starts nothing (ld.so(8)); another one gives the version.
    for name in ["postgres", "initdb", "psql"] {
        let mut asked = Command::new(directory.join(name));
        asked
            .arg("--version")
            .env_clear()
            .env("LD_TRACE_LOADED_OBJECTS", "1")
            .kill_on_drop(true);
        // What can not be started is told when it is needed.
        if let Ok(Ok(output)) = tokio::time::timeout(PATIENCE, asked.output()).await {
            visible.extend(libraries(&String::from_utf8_lossy(&output.stdout)));
        }
    }
    visible
}

/// The directories of libraries that are elsewhere than a distribution's: of lines such as `libpq.so.5 => /opt/x/libpq.so.5 (0x7f…)`.
fn libraries(text: &str) -> BTreeSet<PathBuf> {
    text.lines()
        .filter_map(|line| {
            let path = Path::new(line.split(" => ").nth(1)?.split(" (").next()?);
            let real = path.canonicalize().ok()?;
            let usual = ["/usr", "/lib", "/lib64", "/nix", "/gnu"];
            (!usual.iter().any(|tree| real.starts_with(tree))).then_some(())?;
            // By the name that the loader uses.
            let parent = path.parent()?;
            parent.canonicalize().ok()
        })
        .collect()
}
