//! The policy file: what, when, where, how long.

pub mod examples;
pub mod keys;
pub mod model;
pub mod parse;
pub mod reader;
pub mod schema;
pub mod secrets;
mod sources;
pub mod variables;

use std::path::{Path, PathBuf};

pub use model::*;
pub use parse::{Lookup, parse};
pub use reader::{PolicyErrors, Problem};

use crate::error::{Error, Result};

/// Where a policy is looked for, after `--policy` and `$LIFEBOAT_POLICY`.
pub const PLACES: [&str; 2] = ["policy.toml", "/etc/lifeboat/policy.toml"];

/// The policy file: `--policy`, `$LIFEBOAT_POLICY`, `./policy.toml`, `/etc/lifeboat/policy.toml`.
///
/// # Errors
/// None of them is there.
pub fn find(explicit: Option<&Path>, lookup: Lookup<'_>) -> Result<PathBuf> {
    if let Some(path) = explicit {
        return Ok(path.to_owned());
    }
    if let Some(path) = lookup("LIFEBOAT_POLICY").filter(|p| !p.is_empty()) {
        return Ok(path.into());
    }
    PLACES
        .iter()
        .map(PathBuf::from)
        .find(|p| p.exists())
        .ok_or_else(|| {
            Error::usage(format!(
                "there is no policy: neither --policy nor LIFEBOAT_POLICY is given, and there is no ./{}",
                PLACES.join(" or ")
            ))
            .hint("Start with a copy of development.toml: `backup man DIR` writes it to DIR/policies, beside example.toml, which shows every key.")
        })
}

/// Reads and validates a policy.
///
/// # Errors
/// It can not be read; or everything that is wrong with it.
pub fn load(path: &Path, lookup: Lookup<'_>) -> Result<Policy> {
    let text = std::fs::read_to_string(path).map_err(|e| {
        Error::usage(format!("can not read the policy {}", path.display()))
            .hint("Give the right file with --policy FILE or LIFEBOAT_POLICY.")
            .because(e)
    })?;
    Ok(parse(&text, path, lookup)?)
}

/// The state directory of a policy that may be bad: a daemon that was started with it when it was good goes on, and is to be
/// found.
pub fn state_dir_of(path: Option<&Path>, lookup: Lookup<'_>) -> PathBuf {
    let named = path.and_then(|path| {
        let text = std::fs::read_to_string(path).ok()?;
        let table: toml::Table = text.parse().ok()?;
        let dir = table.get("state")?.get("dir")?.as_str()?;
        Some(path.parent().unwrap_or(Path::new("")).join(dir))
    });
    parse::state_dir(named, lookup)
}
