//! Secrets by reference (being built: replaced by the policy branch).
use super::SecretRef;
use crate::error::{Error, Result};
use crate::secret::SecretText;
/// Resolves.
pub fn resolve(reference: &SecretRef, lookup: &dyn Fn(&str) -> Option<String>) -> Result<SecretText> {
    match reference {
        SecretRef::File(path) => std::fs::read_to_string(path)
            .map(SecretText::new)
            .map_err(|e| Error::usage(format!("can not read {}", path.display())).because(e)),
        SecretRef::Env(name) => lookup(name)
            .map(SecretText::new)
            .ok_or_else(|| Error::usage(format!("{name} is not set"))),
        SecretRef::Credential(_) => Err(Error::failed("not built")),
    }
}
/// (being built)
pub fn check_all(
    _policy: &super::Policy,
    _lookup: &dyn Fn(&str) -> Option<String>,
) -> Vec<crate::source::Finding> {
    Vec::new()
}
