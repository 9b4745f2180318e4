//! A check of a drill: what should be, what is, and what was said of it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Level, Outcome};
use crate::error::{Error, Kind};

/// The longest text of a report.
const TEXT_CHARS: usize = 1000;

/// A check of a drill.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What was looked at.
    pub name: String,
    /// The number of the level that it belongs to; none: an objective.
    pub level: Option<u8>,
    /// How it ended.
    pub result: Outcome,
    /// What should be.
    pub expected: String,
    /// What is.
    pub actual: String,
    /// What a server or a program said of it. It may hold rows of users' data: who drills by hand is told, and nobody else;
    /// evidence, logs and notices are without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

impl Check {
    fn new(
        name: impl Into<String>,
        level: Option<Level>,
        result: Outcome,
        expected: impl Into<String>,
        actual: impl Into<String>,
    ) -> Self {
        Self {
            name: name.into(),
            level: level.map(Level::number),
            result,
            expected: expected.into(),
            actual: actual.into(),
            detail: None,
        }
    }
    /// Of an error: what went wrong, and beside it what a server or a program said.
    pub fn of_error(
        name: impl Into<String>,
        level: Option<Level>,
        result: Outcome,
        expected: impl Into<String>,
        error: &Error,
    ) -> Self {
        let check = Self::new(name, level, result, expected, told(error));
        let chain = error.chain();
        if check.actual.contains(&chain) {
            check
        } else {
            check.with_detail(chain)
        }
    }
    /// With what a server or a program said.
    #[must_use]
    pub fn with_detail(self, detail: impl Into<String>) -> Self {
        let detail = Some(detail.into()).filter(|d| !d.is_empty());
        Self { detail, ..self }
    }
    /// Cut to what somebody reads: whatever a row or a program says, the evidence of it can be read back.
    #[must_use]
    pub fn clipped(self) -> Self {
        Self {
            name: clip(self.name),
            expected: clip(self.expected),
            actual: clip(self.actual),
            detail: self.detail.map(clip),
            ..self
        }
    }
    /// Without.
    #[must_use]
    pub fn without_detail(self) -> Self {
        Self { detail: None, ..self }
    }
    /// As it should be.
    pub fn passed(name: impl Into<String>, level: Level, is: impl Into<String>) -> Self {
        let is = is.into();
        Self::new(name, Some(level), Outcome::Passed, is.clone(), is)
    }
    /// Compared with what should be.
    pub fn compared(
        name: impl Into<String>,
        level: Level,
        expected: impl Into<String>,
        actual: impl Into<String>,
    ) -> Self {
        let (expected, actual) = (expected.into(), actual.into());
        let result = passed_if(expected == actual);
        Self::new(name, Some(level), result, expected, actual)
    }
    /// Not as it should be.
    pub fn failed(
        name: impl Into<String>,
        level: Level,
        expected: impl Into<String>,
        actual: impl Into<String>,
    ) -> Self {
        Self::new(name, Some(level), Outcome::Failed, expected, actual)
    }
    /// Nobody knows.
    pub fn could_not_run(name: impl Into<String>, level: Option<Level>, why: impl Into<String>) -> Self {
        Self::new(name, level, Outcome::CouldNotRun, "it can be looked at", why)
    }
    /// Whether something took no longer than it may.
    pub fn objective(name: &str, limit: Duration, actual: Duration) -> Self {
        let text = |of: Duration| humantime::format_duration(Duration::from_secs(of.as_secs())).to_string();
        let expected = format!("at most {}", text(limit));
        Self::new(name, None, passed_if(actual <= limit), expected, text(actual))
    }
}

const fn passed_if(well: bool) -> Outcome {
    if well { Outcome::Passed } else { Outcome::Failed }
}

/// An error with its hint, as far as everybody may know it: what failed has its causes from servers and programs, which quote
/// rows of users' data.
pub fn told(error: &Error) -> String {
    let what = match error.kind() {
        Kind::Failed => error.message().to_owned(),
        _ => error.chain(),
    };
    match error.hint_text() {
        Some(hint) => format!("{what} ({hint})"),
        None => what,
    }
}

/// A text of a report, cut.
pub fn clip(text: String) -> String {
    match text.char_indices().nth(TEXT_CHARS) {
        Some((end, _)) => format!("{}… ({} bytes)", &text[..end], text.len()),
        None => text,
    }
}
