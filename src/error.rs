//! The one public error: what happened, where, and what to do about it.
//!
//! A [`Kind`] is named by what the caller should do next and fixes the exit code (DESIGN, section 7: the
//! table of exit codes is a contract). Messages are lower case, without a full stop; the hint is a sentence.
//! A wrapped cause is printed once, at the edge, so a message does not repeat its source.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;

/// What the caller should do about an error; each kind has one stable exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// It did not work; a retry or a repair outside Lifeboat is needed.
    Failed,
    /// The command line or the policy is wrong; nothing was tried.
    Usage,
    /// At least one source done and at least one not.
    Partial,
    /// There is no repository at the URL.
    NoRepository,
    /// This source is being run by this state directory.
    Busy,
    /// No identity opens it.
    NoIdentity,
    /// The target instant can not be restored.
    Unreachable,
    /// Objects are damaged or missing.
    Damaged,
    /// A drill ran and failed.
    DrillFailed,
    /// A drill could not run.
    DrillCouldNotRun,
    /// Written by a newer Lifeboat, in a way that this build does not know.
    Newer,
    /// Stopped by a signal.
    Interrupted,
}

impl Kind {
    /// The process exit code of this kind.
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Failed | Self::Newer => 1,
            Self::Usage => 2,
            Self::Partial => 3,
            Self::NoRepository => 10,
            Self::Busy => 11,
            Self::NoIdentity => 12,
            Self::Unreachable => 20,
            Self::Damaged => 21,
            Self::DrillFailed => 22,
            Self::DrillCouldNotRun => 23,
            Self::Interrupted => 130,
        }
    }

    /// The stable name of this kind in JSON (`error.code`).
    pub const fn code(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Usage => "usage",
            Self::Partial => "partial",
            Self::NoRepository => "no_repository",
            Self::Busy => "busy",
            Self::NoIdentity => "no_identity",
            Self::Unreachable => "unreachable",
            Self::Damaged => "damaged",
            Self::DrillFailed => "drill_failed",
            Self::DrillCouldNotRun => "drill_could_not_run",
            Self::Newer => "newer_format",
            Self::Interrupted => "interrupted",
        }
    }
}

/// An error with its kind, message, hint and cause.
pub struct Error(Box<Inner>);

struct Inner {
    kind: Kind,
    message: Cow<'static, str>,
    hint: Option<Cow<'static, str>>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// The result type of the whole crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of a kind with a message (lower case, no full stop, no secret).
    pub fn new(kind: Kind, message: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(Inner {
            kind,
            message: message.into(),
            hint: None,
            source: None,
        }))
    }
    /// Something did not work (exit 1).
    pub fn failed(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Kind::Failed, message)
    }
    /// The command line or the policy is wrong (exit 2).
    pub fn usage(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Kind::Usage, message)
    }
    /// Stored bytes are not what was written (exit 21).
    pub fn damaged(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Kind::Damaged, message)
    }
    /// Adds what the reader should do: a sentence.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<Cow<'static, str>>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }
    /// Keeps the cause.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }
    /// The same, of another kind: what it means to who called.
    #[must_use]
    pub fn of_kind(mut self, kind: Kind) -> Self {
        self.0.kind = kind;
        self
    }
    /// Puts what was being done before the message, keeping kind, hint and cause.
    #[must_use]
    pub fn while_doing(mut self, doing: impl fmt::Display) -> Self {
        self.0.message = format!("{doing}: {}", self.0.message).into();
        self
    }
    /// The kind.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }
    /// The message alone.
    pub fn message(&self) -> &str {
        &self.0.message
    }
    /// The hint, if there is one.
    pub fn hint_text(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }
    /// The message with the chain of causes, each once.
    pub fn chain(&self) -> String {
        let mut text = self.0.message.to_string();
        let mut cause = StdError::source(self);
        while let Some(error) = cause {
            let part = error.to_string();
            if !text.contains(&part) {
                text.push_str(": ");
                text.push_str(&part);
            }
            cause = error.source();
        }
        text
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.0.kind, self.chain())?;
        if let Some(hint) = &self.0.hint {
            write!(f, " ({hint})")?;
        }
        Ok(())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|e| e as &(dyn StdError + 'static))
    }
}

/// Turns any error into ours, saying what was being done.
pub trait Context<T> {
    /// Wraps the error as [`Kind::Failed`] with a message.
    fn doing<M: Into<Cow<'static, str>>>(self, message: impl FnOnce() -> M) -> Result<T>;
}

impl<T, E: Into<Box<dyn StdError + Send + Sync>>> Context<T> for std::result::Result<T, E> {
    fn doing<M: Into<Cow<'static, str>>>(self, message: impl FnOnce() -> M) -> Result<T> {
        self.map_err(|e| Error::failed(message()).because(e))
    }
}
