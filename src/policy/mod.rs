//! The policy file: what, when, where, how long.

mod drills;
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
        // Of one that is not even TOML, the section of its own.
        let table: toml::Table = text.parse().or_else(|_| section(&text, "state").parse()).ok()?;
        let dir = table.get("state")?.get("dir")?.as_str()?;
        Some(path.parent().unwrap_or(Path::new("")).join(dir))
    });
    parse::state_dir(named, lookup)
}

/// The lines of a section of a text that may not be TOML elsewhere.
fn section(text: &str, name: &str) -> String {
    let head = format!("[{name}]");
    let mut lines = text.lines().skip_while(|line| line.trim() != head);
    let first = lines.next().map(str::to_owned);
    let rest = lines.take_while(|line| !line.trim_start().starts_with('['));
    first
        .into_iter()
        .chain(rest.map(str::to_owned))
        .collect::<Vec<_>>()
        .join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_directory_of_a_policy_that_is_not_even_toml_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("policy.toml");
        for text in [
            "[state]\ndir = \"here\"\n\n[source.app]\nkind =\n",
            "environment = \n[source.app]\nkind = 'x\n[state]\ndir = \"here\"",
        ] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(
                state_dir_of(Some(&path), &|_: &str| None),
                dir.path().join("here"),
                "{text}"
            );
        }
    }
}
