//! `backup completions SHELL` and `backup man DIR`.

use clap::CommandFactory as _;
use serde::Serialize;

use super::Surroundings;
use super::args::{Cli, CompletionsArgs, ManArgs};
use crate::error::{Context as _, Error, Result};
use crate::policy::examples;

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
    policies: Vec<String>,
}

/// Writes the manual pages, one for the program and one for each command, and the policies to start from, which only a
/// checkout has otherwise.
pub fn man(surroundings: &Surroundings, args: &ManArgs) -> Result<u8> {
    let what = || format!("the manual pages can not be written to {}", args.dir.display());
    std::fs::create_dir_all(&args.dir).doing(what)?;
    let mut command = Cli::command();
    command.build();
    let mut pages = Vec::new();
    let mut left = vec![command];
    while let Some(command) = left.pop() {
        left.extend(command.get_subcommands().filter(|c| !c.is_hide_set()).cloned());
        let page = page(&command).doing(what)?;
        let path = args.dir.join(clap_mangen::Man::new(command).get_filename());
        std::fs::write(&path, page).doing(|| format!("can not write {}", path.display()))?;
        pages.push(path.display().to_string());
    }
    pages.sort();
    let directory = args.dir.join("policies");
    std::fs::create_dir_all(&directory).doing(what)?;
    let mut policies = Vec::new();
    for (name, text) in examples::FILES {
        let path = directory.join(name);
        std::fs::write(&path, text).doing(|| format!("can not write {}", path.display()))?;
        policies.push(path.display().to_string());
    }
    let report = Pages { pages, policies };
    surroundings.printer.result(&report, || {
        let all = report.pages.iter().chain(&report.policies);
        all.map(|path| format!("{path}\n")).collect()
    })?;
    Ok(0)
}

/// A manual page. What stands below the help holds commands to paste and tables: it is neither filled nor hyphenated.
fn page(command: &clap::Command) -> std::io::Result<Vec<u8>> {
    let man = clap_mangen::Man::new(command.clone());
    // No word is broken anywhere: a broken URL or option can not be pasted.
    let mut out = b".nh\n.ad l\n".to_vec();
    man.render_title(&mut out)?;
    man.render_name_section(&mut out)?;
    man.render_synopsis_section(&mut out)?;
    man.render_description_section(&mut out)?;
    man.render_options_section(&mut out)?;
    if command.get_subcommands().any(|c| !c.is_hide_set()) {
        man.render_subcommands_section(&mut out)?;
    }
    let after = command
        .get_after_long_help()
        .or_else(|| command.get_after_help())
        .map(ToString::to_string);
    if let Some(text) = after {
        out.extend_from_slice(b".SH EXTRA\n.nf\n");
        for line in text.lines() {
            out.extend_from_slice(roff(line).as_bytes());
        }
        out.extend_from_slice(b".fi\n");
    }
    if command.get_version().is_some() {
        man.render_version_section(&mut out)?;
    }
    Ok(out)
}

/// A line as it is: no request, no escape, and every hyphen, quote and caret the character that a shell knows.
fn roff(line: &str) -> String {
    let mut out = String::from(if line.starts_with(['.', '\'']) { "\\&" } else { "" });
    for c in line.chars() {
        match c {
            '\\' => out.push_str("\\(rs"),
            '-' => out.push_str("\\-"),
            '\'' => out.push_str("\\(aq"),
            '`' => out.push_str("\\(ga"),
            '^' => out.push_str("\\(ha"),
            '~' => out.push_str("\\(ti"),
            c => out.push(c),
        }
    }
    out.push('\n');
    out
}
