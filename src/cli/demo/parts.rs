//! What the demo runs: a PostgreSQL and a PocketBase that are on this host.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::jobs::session::Lookup;

/// A directory of PostgreSQL programs.
pub const POSTGRES_VARIABLE: &str = "LIFEBOAT_DEMO_POSTGRES_BIN";
/// The PocketBase program.
pub const POCKETBASE_VARIABLE: &str = "LIFEBOAT_DEMO_POCKETBASE";
/// What has to be in the directory: the server's programs, and the clients that dump and restore.
const PROGRAMS: [&str; 6] = [
    "initdb",
    "postgres",
    "psql",
    "pg_dump",
    "pg_dumpall",
    "pg_restore",
];
const HINT: &str = "Put it on PATH, or name it with LIFEBOAT_DEMO_POSTGRES_BIN (a directory of programs) or LIFEBOAT_DEMO_POCKETBASE (a \
     program); in the project's directory, `scripts/services install` fetches both.";

/// The parts.
#[derive(Clone, Debug)]
pub struct Parts {
    /// Directory of PostgreSQL's programs.
    pub postgres: PathBuf,
    /// PocketBase.
    pub pocketbase: PathBuf,
}

/// Finds the parts: by variable, in `./.services`, in the system's directories, in `PATH`.
///
/// # Errors
/// One is missing.
pub fn find(lookup: &Lookup) -> Result<Parts> {
    Ok(Parts {
        postgres: postgres(lookup)?,
        pocketbase: pocketbase(lookup)?,
    })
}

fn postgres(lookup: &Lookup) -> Result<PathBuf> {
    if let Some(dir) = lookup(POSTGRES_VARIABLE).filter(|dir| !dir.is_empty()) {
        let dir = PathBuf::from(dir);
        return match PROGRAMS.iter().find(|program| !dir.join(program).is_file()) {
            None => resolved(&dir),
            Some(missing) => Err(Error::failed(format!(
                "{POSTGRES_VARIABLE} is {}, and {missing} is not in it",
                dir.display()
            ))
            .hint(HINT)),
        };
    }
    let mut candidates = newest_first(Path::new(".services/postgres"));
    candidates.extend(newest_first(Path::new("/usr/lib/postgresql")));
    candidates.extend(path(lookup));
    candidates
        .iter()
        .find(|dir| PROGRAMS.iter().all(|program| dir.join(program).is_file()))
        .map(|dir| resolved(dir))
        .unwrap_or_else(|| {
            Err(Error::failed(
                "the demo needs a PostgreSQL server with its client programs, and there is none",
            )
            .hint(HINT))
        })
}

fn pocketbase(lookup: &Lookup) -> Result<PathBuf> {
    if let Some(program) = lookup(POCKETBASE_VARIABLE).filter(|program| !program.is_empty()) {
        let program = PathBuf::from(program);
        if program.is_file() {
            return resolved(&program);
        }
        return Err(Error::failed(format!(
            "{POCKETBASE_VARIABLE} is {}, which is not there",
            program.display()
        ))
        .hint(HINT));
    }
    let mut candidates = vec![PathBuf::from(".services/bin")];
    candidates.extend(path(lookup));
    candidates
        .iter()
        .map(|dir| dir.join("pocketbase"))
        .find(|program| program.is_file())
        .map(|program| resolved(&program))
        .unwrap_or_else(|| Err(Error::failed("the demo needs PocketBase, and it is not there").hint(HINT)))
}

/// `DIR/<version>/bin`, the highest version first.
fn newest_first(dir: &Path) -> Vec<PathBuf> {
    let mut versions: Vec<(u32, PathBuf)> = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let version = entry.file_name().to_str()?.parse().ok()?;
            Some((version, entry.path().join("bin")))
        })
        .collect();
    versions.sort_by_key(|(version, _)| std::cmp::Reverse(*version));
    versions.into_iter().map(|(_, path)| path).collect()
}

fn path(lookup: &Lookup) -> Vec<PathBuf> {
    let path = lookup("PATH").unwrap_or_default();
    // Relative entries would mean something else in the demo's directory.
    std::env::split_paths(&path)
        .filter(|dir| dir.is_absolute())
        .collect()
}

/// Whether a program is in `PATH`.
pub fn in_path(lookup: &Lookup, program: &str) -> Option<PathBuf> {
    path(lookup)
        .into_iter()
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

fn resolved(path: &Path) -> Result<PathBuf> {
    path.canonicalize()
        .map_err(|e| Error::failed(format!("can not find {}", path.display())).because(e))
}
