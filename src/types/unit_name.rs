//! The name of a unit: any bytes outside, one safe spelling inside.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A unit's name: a relative path of any bytes but NUL, kept percent-encoded.
///
/// Printable ASCII other than `%` stands for itself, valid UTF-8 beyond ASCII too; every other byte is `%XX`
/// (upper-case hex). So one name has one spelling, manifests are text, and sorting is by these bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct UnitName(String);

impl UnitName {
    /// From the bytes that the source uses.
    ///
    /// # Errors
    /// Empty, absolute, with an empty, `.` or `..` part, with a NUL, or longer than 4,096 bytes.
    pub fn from_bytes(raw: &[u8]) -> Result<Self> {
        check(raw)?;
        let mut text = String::with_capacity(raw.len());
        let mut rest = raw;
        while let Some(&b) = rest.first() {
            if b < 0x80 {
                if b.is_ascii_graphic() && b != b'%' || b == b' ' {
                    text.push(char::from(b));
                } else {
                    escape(&mut text, b);
                }
                rest = &rest[1..];
                continue;
            }
            // One character of UTF-8 at a time; whatever is not valid goes byte by byte.
            let length = (2..=4).find(|n| rest.get(..*n).is_some_and(|s| std::str::from_utf8(s).is_ok()));
            match length.and_then(|n| std::str::from_utf8(&rest[..n]).ok().map(|s| (n, s))) {
                Some((n, s)) if !s.chars().any(char::is_control) => {
                    text.push_str(s);
                    rest = &rest[n..];
                }
                _ => {
                    escape(&mut text, b);
                    rest = &rest[1..];
                }
            }
        }
        Ok(Self(text))
    }
    /// The encoded spelling.
    pub fn as_str(&self) -> &str {
        &self.0
    }
    /// The bytes that the source uses.
    pub fn to_bytes(&self) -> Vec<u8> {
        decode(&self.0).unwrap_or_default()
    }
    /// The name as a relative path, safe to join to a target directory.
    pub fn to_path(&self) -> PathBuf {
        use std::os::unix::ffi::OsStringExt as _;
        PathBuf::from(std::ffi::OsString::from_vec(self.to_bytes()))
    }
}

fn escape(text: &mut String, b: u8) {
    use fmt::Write as _;
    // Writing to a String can not fail.
    let _ = write!(text, "%{b:02X}");
}

fn decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = text.bytes();
    let mut raw = Vec::with_capacity(text.len());
    while let Some(b) = bytes.next() {
        if b == b'%' {
            let pair = [bytes.next()?, bytes.next()?];
            let pair = std::str::from_utf8(&pair).ok()?;
            raw.push(u8::from_str_radix(pair, 16).ok()?);
        } else {
            raw.push(b);
        }
    }
    Some(raw)
}

fn check(raw: &[u8]) -> Result<()> {
    let bad_part = |part: &[u8]| part.is_empty() || part == b"." || part == b"..";
    if raw.is_empty() || raw.len() > 4096 || raw.contains(&0) || raw.split(|b| *b == b'/').any(bad_part) {
        return Err(Error::failed(format!(
            "the name {:?} can not be kept: it is empty, absolute, too long, or has a part that is empty, '.' or '..'",
            String::from_utf8_lossy(raw)
        )));
    }
    Ok(())
}

impl fmt::Display for UnitName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for UnitName {
    type Error = Error;
    fn try_from(text: String) -> Result<Self> {
        // Read back from a manifest: only the spelling that we would have written is taken.
        let name = decode(&text)
            .and_then(|raw| Self::from_bytes(&raw).ok())
            .filter(|name| name.0 == text);
        name.ok_or_else(|| Error::damaged(format!("{text:?} is not a unit name")))
    }
}

impl From<UnitName> for String {
    fn from(name: UnitName) -> Self {
        name.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn refuses_names_that_leave_the_target() {
        for bad in [&b""[..], b"/a", b"a//b", b"..", b"a/../b", b"a/.", b"a\0b", b"a/"] {
            assert!(UnitName::from_bytes(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn every_name_comes_back(raw in proptest::collection::vec(1u8..=255, 1..200)) {
            if let Ok(name) = UnitName::from_bytes(&raw) {
                prop_assert_eq!(name.to_bytes(), raw);
                let again: UnitName = String::from(name.clone()).try_into().unwrap();
                prop_assert_eq!(again, name);
            }
        }
    }
}
