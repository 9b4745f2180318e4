//! What `check` finds out.

use serde::Serialize;

/// What `check` found out about one thing.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// What was looked at: `client`, `access`, `free space` …
    pub name: String,
    /// How it is.
    pub level: Level,
    /// One sentence.
    pub text: String,
    /// What to do, when it is not good.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// How a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Good.
    Ok,
    /// Works, but the operator should know.
    Warning,
    /// A run would fail.
    Error,
}

impl Finding {
    /// All is well.
    pub fn ok(name: &str, text: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            level: Level::Ok,
            text: text.into(),
            hint: None,
        }
    }
    /// Works, but.
    pub fn warning(name: &str, text: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            level: Level::Warning,
            text: text.into(),
            hint: Some(hint.into()),
        }
    }
    /// Will not work.
    pub fn error(name: &str, text: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            level: Level::Error,
            text: text.into(),
            hint: Some(hint.into()),
        }
    }
}
