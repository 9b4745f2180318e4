//! Logs: to standard error, as text or JSON.

use std::io::{self, Write};

use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer, Registry};

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

/// What is logged when nothing is said of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usual {
    /// Commands tell what they did by themselves.
    Warnings,
    /// Nobody sees the daemon but by its log.
    Everything,
}

/// What is logged of others: the SDK warns of what our own errors say better.
const OTHERS: &str = "warn,aws_config=error,aws_smithy_runtime=error";
/// What a level may be.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Begins to log. `-v` and `-q` win over the variable; without any of them warnings are logged, and of the daemon what it
/// does (`usual`).
///
/// # Errors
/// The variable is no filter.
pub fn start(global: &Global, usual: Usual, lookup: &Lookup, bars: &Bars) -> Result<()> {
    let given = lookup(FILTER_VARIABLE).filter(|text| !text.trim().is_empty());
    let directives = match (global.quiet, global.verbose, given) {
        (true, ..) => "error".to_owned(),
        (_, 0, None) if usual == Usual::Warnings => OTHERS.to_owned(),
        (_, 0, None) => format!("{OTHERS},lifeboat=info"),
        (_, 0, Some(text)) => directives(&text)?,
        (_, 1, _) => format!("{OTHERS},lifeboat=info"),
        (_, 2, _) => format!("{OTHERS},lifeboat=debug"),
        // Never more of others: what they trace might be secret.
        (_, _, _) => "info,lifeboat=trace".to_owned(),
    };
    let filter = EnvFilter::builder()
        .parse(&directives)
        .map_err(|e| no_filter(&e.to_string()))?;
    let lines = |json: bool| {
        let lines = tracing_subscriber::fmt::layer()
            .with_ansi(false)
            .with_writer(Log(bars.clone()));
        match json {
            true => lines.json().with_span_list(false).boxed(),
            false => lines.boxed(),
        }
    };
    let layer = match global.log_format {
        LogFormat::Json => lines(true),
        LogFormat::Journal => journal().map_err(|e| {
            Error::usage("the journal can not be reached")
                .hint("--log-format journal is for systemd; use text or json elsewhere.")
                .because(e)
        })?,
        LogFormat::Text if journal_takes_stderr(lookup) => journal().unwrap_or_else(|_| lines(false)),
        LogFormat::Text => lines(false),
    };
    let started = tracing_subscriber::registry().with(layer).with(filter).try_init();
    // An error says that this process logs already (several commands in one process: tests); that one goes on.
    drop(started);
    Ok(())
}

type Layered = Box<dyn Layer<Registry> + Send + Sync>;

/// Source, slot and run become fields of the journal's own, with our name before theirs.
fn journal() -> io::Result<Layered> {
    let layer = tracing_journald::layer()?;
    Ok(layer.with_field_prefix(Some("LIFEBOAT".to_owned())).boxed())
}

/// Whether standard error goes to the journal (systemd.exec(5), `$JOURNAL_STREAM`).
fn journal_takes_stderr(lookup: &Lookup) -> bool {
    let Ok(stat) = rustix::fs::fstat(io::stderr()) else {
        return false;
    };
    lookup("JOURNAL_STREAM").is_some_and(|named| named == format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// The directives of a filter. A level alone is that of Lifeboat's own logs; a word that is neither a level nor a place
/// would silently log nothing, so it is refused.
fn directives(text: &str) -> Result<String> {
    let text = text.trim();
    let level = text.to_ascii_lowercase();
    if LEVELS.contains(&level.as_str()) {
        return Ok(format!("{OTHERS},lifeboat={level}"));
    }
    for part in text.split(',').map(str::trim) {
        let (place, level) = match part.split_once('=') {
            Some((place, level)) => (place, Some(level)),
            None => (part, None),
        };
        let is_level = |word: &str| LEVELS.contains(&word.to_ascii_lowercase().as_str());
        let is_place = |word: &str| {
            !word.is_empty()
                && word
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b':')
        };
        let good = match level {
            Some(level) => is_place(place) && is_level(level),
            None => is_level(place) || place == "lifeboat" || place.starts_with("lifeboat::"),
        };
        if !good {
            return Err(no_filter(&format!("{part:?} is neither a level nor PLACE=LEVEL")));
        }
    }
    Ok(text.to_owned())
}

fn no_filter(why: &str) -> Error {
    Error::usage(format!("{FILTER_VARIABLE} is not a log filter: {why}")).hint(
        "It is a level (off, error, warn, info, debug, trace), or filters such as lifeboat=debug,hyper=info.",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_that_would_mean_nothing_are_refused() {
        assert_eq!(
            directives(" DEBUG ").unwrap(),
            format!("{OTHERS},lifeboat=debug"),
            "a level is of our own logs"
        );
        for good in [
            "lifeboat=debug",
            "lifeboat::store=trace,hyper=info",
            "warn,lifeboat",
        ] {
            assert_eq!(directives(good).unwrap(), good);
        }
        for bad in [
            "bogus=,",
            "bogus",
            "debug,",
            ",",
            "=info",
            "lifeboat=loud",
            "inof",
        ] {
            let e = directives(bad).unwrap_err();
            assert!(e.message().contains("LIFEBOAT_LOG"), "{bad}: {}", e.message());
        }
    }
}
