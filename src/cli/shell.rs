//! `backup completions SHELL` and `backup man DIR`.

use clap::CommandFactory as _;
use serde::Serialize;

use super::Surroundings;
use super::args::{Cli, CompletionsArgs, ManArgs};
use crate::error::{Context as _, Error, Result};

/// Prints the completions of a shell.
pub fn completions(surroundings: &Surroundings, args: &CompletionsArgs) -> Result<u8> {
    if surroundings.printer.is_json() {
        return Err(
            Error::usage("completions are a shell's program, not a JSON document").hint("Leave --json out."),
        );
    }
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "backup", &mut script);
    surroundings.printer.out(&script)?;
    Ok(0)
}

#[derive(Serialize)]
struct Pages {
    pages: Vec<String>,
}

/// Writes the manual pages: one for the program and one for each command.
pub fn man(surroundings: &Surroundings, args: &ManArgs) -> Result<u8> {
    let what = || format!("the manual pages can not be written to {}", args.dir.display());
    std::fs::create_dir_all(&args.dir).doing(what)?;
    let mut command = Cli::command();
    command.build();
    let mut pages = Vec::new();
    let mut left = vec![command];
    while let Some(command) = left.pop() {
        left.extend(command.get_subcommands().filter(|c| !c.is_hide_set()).cloned());
        let path = clap_mangen::Man::new(command)
            .generate_to(&args.dir)
            .doing(what)?;
        pages.push(path.display().to_string());
    }
    pages.sort();
    let report = Pages { pages };
    surroundings.printer.result(&report, || {
        report.pages.iter().map(|page| format!("{page}\n")).collect()
    })?;
    Ok(0)
}
