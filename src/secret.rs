//! Secrets: held so that they are not printed, and wiped when dropped. Where they come from is the policy's
//! `{ env = … }`, `{ file = … }` or `{ credential = … }`; they are never in a file of ours, an argument or a log.

use std::fmt;

use secrecy::{ExposeSecret as _, SecretString};

/// A secret text. `Debug` and `Display` show no part of it.
#[derive(Clone)]
pub struct SecretText(SecretString);

impl SecretText {
    /// Takes a secret over.
    pub fn new(text: String) -> Self {
        Self(SecretString::from(text))
    }
    /// The secret itself: for the moment it is handed to a client or a child's environment.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<secret>")
    }
}

impl fmt::Display for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<secret>")
    }
}
