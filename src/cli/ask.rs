//! Questions: asked on a terminal only, where `--yes` has not answered them before.

use super::Surroundings;
use crate::error::{Context as _, Error, Kind, Result};

/// Asks whether to go on.
///
/// # Errors
/// Interrupted, or the terminal can not be read.
pub async fn yes(surroundings: &Surroundings, question: &str) -> Result<bool> {
    surroundings.printer.question(question);
    let read = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        std::io::stdin().read_line(&mut line).map(|_| line)
    });
    tokio::select! {
        biased;
        () = surroundings.cancel.cancelled() => Err(Error::new(Kind::Interrupted, "interrupted")),
        line = read => {
            let line = line.doing(|| "the answer can not be read")?.doing(|| "the answer can not be read")?;
            Ok(matches!(line.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
        }
    }
}

/// Has something confirmed: by `--yes`, or on a terminal.
///
/// # Errors
/// Refused (2), or nobody to ask (2).
pub async fn confirm(surroundings: &Surroundings, given: bool, what: &str) -> Result<()> {
    if given {
        return Ok(());
    }
    if !surroundings.printer.can_ask() {
        return Err(Error::usage(format!("{what}: not confirmed"))
            .hint("There is no terminal to ask on: add --yes if you mean it."));
    }
    if yes(surroundings, &format!("{what}. Go on?")).await? {
        return Ok(());
    }
    Err(Error::usage(format!("{what}: not confirmed")).hint("Nothing was done."))
}
