//! An object's key, relative to the repository's prefix. Only `repository::layout` builds new ones.

use std::fmt;

/// A key below the repository's prefix: `/`-separated, never empty, never starting with `/`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(String);

impl Key {
    /// A key from its text. For `repository::layout`, and for stores that report what they hold.
    pub fn from_text(text: impl Into<String>) -> Self {
        Self(text.into())
    }
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
    /// Whether every part is a plain file name, so a directory store may map it to a path.
    pub fn is_plain(&self) -> bool {
        !self.0.is_empty()
            && self.0.len() <= 1024
            && self.0.split('/').all(|part| {
                !part.is_empty() && part != "." && part != ".." && part.bytes().all(|b| b.is_ascii_graphic())
            })
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
