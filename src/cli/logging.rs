//! Logs: to standard error, as text or JSON.

use std::io::{self, Write};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use super::args::{Global, LogFormat};
use super::progress::Bars;
use crate::error::{Error, Result};
use crate::jobs::session::Lookup;

/// What is logged, where `--verbose`, `--quiet` and this are in play.
pub const FILTER_VARIABLE: &str = "LIFEBOAT_LOG";

#[derive(Clone)]
struct Log(Bars);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.suspend(|| io::stderr().lock().write(bytes))
    }
    fn flush(&mut self) -> io::Result<()> {
        io::stderr().lock().flush()
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;
    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// Begins to log. `-v` and `-q` win over the variable; without any of them warnings are logged.
///
/// # Errors
/// The variable is no filter.
pub fn start(global: &Global, lookup: &Lookup, bars: &Bars) -> Result<()> {
    let directives = match (global.quiet, global.verbose) {
        (true, _) => "error".to_owned(),
        (_, 0) => lookup(FILTER_VARIABLE)
            .filter(|text| !text.trim().is_empty())
            // The SDK warns of what our own errors say better.
            .unwrap_or_else(|| "warn,aws_config=error,aws_smithy_runtime=error".to_owned()),
        (_, 1) => "warn,lifeboat=info".to_owned(),
        (_, 2) => "info,lifeboat=debug".to_owned(),
        (_, _) => "debug,lifeboat=trace".to_owned(),
    };
    let filter = EnvFilter::builder().parse(&directives).map_err(|e| {
        Error::usage(format!("{FILTER_VARIABLE} is not a log filter: {e}"))
            .hint("It is a level (error, warn, info, debug, trace) or filters such as lifeboat=debug.")
    })?;
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(Log(bars.clone()));
    let started = match global.log_format {
        LogFormat::Text => subscriber.try_init(),
        LogFormat::Json => subscriber.json().try_init(),
    };
    // An error says that this process logs already (several commands in one process: tests); that one goes on.
    drop(started);
    Ok(())
}
