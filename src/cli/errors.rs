//! Errors of the arguments, and of commands that were interrupted.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};

use super::printer::Printer;
use super::target::without_passwords;
use crate::error::{Error, Kind};

/// What can be done without a policy.
const OF_REPOSITORY: &str = "Only `list`, `restore` and `verify` take --repository and go without a policy; this command needs --policy FILE.";

/// Shows what is wrong with the arguments (or `--help`, `--version`); gives the exit code.
pub fn of_arguments(args: &[OsString], error: &clap::Error) -> u8 {
    let json = args.iter().take_while(|a| *a != "--").any(|a| a == "--json");
    let printer = Printer::new(json, false);
    if error.exit_code() == 0 {
        // Help or version: asked for, so it is the result.
        return match printer.out(error.render().to_string().as_bytes()) {
            Ok(()) => 0,
            Err(e) => printer.error(&e),
        };
    }
    let ours = without_passwords(&error.render().to_string());
    if !json {
        printer.tell(ours.trim_end());
        if is_of_repository(error) {
            printer.tell(&format!("  hint: {OF_REPOSITORY}"));
        }
        return Kind::Usage.exit_code();
    }
    printer.error(&as_error(error, &ours))
}

/// Whether `--repository` was given to a command that does not take it.
fn is_of_repository(error: &clap::Error) -> bool {
    error.kind() == ErrorKind::UnknownArgument
        && matches!(error.get(ContextKind::InvalidArg), Some(ContextValue::String(arg)) if arg.starts_with("--repository"))
}

fn as_error(error: &clap::Error, text: &str) -> Error {
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return Error::usage("a command is missing").hint("`backup --help` shows them.");
    }
    // The first paragraph is the message; the others are tips and the usage.
    let message = text.split("\n\n").next().unwrap_or(text);
    let message = message.trim_start_matches("error: ");
    let message = message.split_whitespace().collect::<Vec<_>>().join(" ");
    let suggestion = [
        ContextKind::SuggestedArg,
        ContextKind::SuggestedSubcommand,
        ContextKind::SuggestedValue,
    ]
    .into_iter()
    .find_map(|kind| match error.get(kind) {
        Some(ContextValue::String(one)) => Some(one.clone()),
        Some(ContextValue::Strings(several)) => several.first().cloned(),
        _ => None,
    });
    match suggestion {
        _ if is_of_repository(error) => Error::usage(message).hint(OF_REPOSITORY),
        Some(meant) => Error::usage(message).hint(format!("Did you mean {meant}?")),
        None => Error::usage(message).hint("`backup COMMAND --help` shows what a command takes."),
    }
}

/// After a signal, whatever went wrong is an interrupt: children get the same signal from the terminal and fail first.
pub fn of_interrupt(cancelled: bool, error: Error) -> Error {
    if cancelled && error.kind() != Kind::Interrupted {
        return Error::new(Kind::Interrupted, "interrupted").because(error);
    }
    error
}
