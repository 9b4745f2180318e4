//! The only place that prints. Results go to standard output, everything else to standard error.

use std::io::{ErrorKind, IsTerminal as _, Write};

use serde::Serialize;

use super::progress::Bars;
use super::text::clean;
use crate::error::{Context as _, Error, Result};
use crate::jobs::report::Failure;

/// Version of every JSON document.
pub const JSON_FORMAT: u32 = 1;

#[derive(Serialize)]
struct Document<'a, T> {
    format: u32,
    #[serde(flatten)]
    body: &'a T,
}

#[derive(Serialize)]
struct Failed {
    error: Failure,
}

/// What is shown, and where.
#[derive(Clone, Debug)]
pub struct Printer {
    json: bool,
    quiet: bool,
    bars: Bars,
}

impl Printer {
    /// For these options.
    pub fn new(json: bool, quiet: bool) -> Self {
        let shown = !quiet && std::io::stderr().is_terminal();
        Self {
            json,
            quiet,
            bars: Bars::new(shown),
        }
    }
    /// Whether results are JSON.
    pub fn is_json(&self) -> bool {
        self.json
    }
    /// Where progress goes.
    pub fn bars(&self) -> &Bars {
        &self.bars
    }
    /// Whether somebody can be asked.
    pub fn can_ask(&self) -> bool {
        std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
    }

    /// The result of a command, once: its document, or its text (whose last line is ended).
    ///
    /// # Errors
    /// Standard output can not be written. (A reader that has gone away wants no more: that is no error.)
    pub fn result<T: Serialize>(&self, report: &T, text: impl FnOnce() -> String) -> Result<()> {
        if self.json {
            let document = Document {
                format: JSON_FORMAT,
                body: report,
            };
            let mut bytes =
                serde_json::to_vec(&document).doing(|| "the document can not be written as JSON")?;
            bytes.push(b'\n');
            return self.out(&bytes);
        }
        self.text(&text())
    }

    /// Text on standard output as it comes.
    ///
    /// # Errors
    /// As [`Self::result`].
    pub fn text(&self, text: &str) -> Result<()> {
        self.out(clean(text).as_bytes())
    }

    /// Bytes on standard output, as they are.
    ///
    /// # Errors
    /// As [`Self::result`].
    pub fn out(&self, bytes: &[u8]) -> Result<()> {
        self.bars.suspend(|| {
            let mut out = std::io::stdout().lock();
            match out.write_all(bytes).and_then(|()| out.flush()) {
                Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(()),
                other => other.doing(|| "standard output can not be written"),
            }
        })
    }

    /// Something good to know; not with `--quiet`, nor with `--json`: its document says what there is to know.
    pub fn note(&self, text: &str) {
        if !self.quiet {
            self.to_people(text);
        }
    }

    /// Something that must be said now, also with `--json`: no document would say it, or only when it is too late.
    pub fn tell(&self, text: &str) {
        self.err(&format!("{}\n", clean(text)));
    }

    /// Something that the document says, for those who get none.
    fn to_people(&self, text: &str) {
        if !self.json {
            self.tell(text);
        }
    }

    /// A question, answered on the same line.
    pub fn question(&self, text: &str) {
        self.err(&format!("{} [y/N] ", clean(text)));
    }

    /// Works, but.
    pub fn warning(&self, text: &str) {
        self.tell(&format!("warning: {text}"));
    }

    /// A failure of a part, which the result tells too.
    pub fn failure(&self, what: &str, failure: &Failure) {
        self.to_people(&format!("error: {what}: {}", failure.message));
        if let Some(hint) = &failure.hint {
            self.to_people(&format!("  hint: {hint}"));
        }
    }

    /// The error that ended the command; gives its exit code. With `--json` it is the document.
    pub fn error(&self, error: &Error) -> u8 {
        let mut code = error.kind().exit_code();
        if self.json {
            let document = Failed {
                error: Failure::from(error),
            };
            if let Err(e) = self.result(&document, String::new) {
                self.tell(&format!("error: {}", error.chain()));
                self.tell(&format!("error: {}", e.chain()));
                code = e.kind().exit_code();
            }
        }
        self.to_people(&format!("error: {}", error.chain()));
        if let Some(hint) = error.hint_text() {
            self.to_people(&format!("  hint: {hint}"));
        }
        code
    }

    fn err(&self, text: &str) {
        self.bars.suspend(|| {
            // There is nowhere left to tell that standard error is closed; the exit code says the rest.
            let _ = std::io::stderr().lock().write_all(text.as_bytes());
        });
    }
}
