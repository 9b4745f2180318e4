//! Secrets by reference: resolved at the moment of use, never kept in a file of ours, an argument or a log.

use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::parse::Lookup;
use super::{PocketBasePlace, Policy, SecretRef, SourceKind};
use crate::error::{Error, Result};
use crate::secret::SecretText;
use crate::types::Finding;

/// The longest secret file that is read.
const SECRET_MAX_BYTES: u64 = 1 << 20;

/// Resolves a reference. One line end at the end of a file is not part of the secret.
///
/// # Errors
/// Unset, missing, unreadable or empty; the message names the place, never the secret.
pub fn resolve(reference: &SecretRef, lookup: Lookup<'_>) -> Result<SecretText> {
    match reference {
        SecretRef::Env(name) => match lookup(name) {
            Some(text) if !text.is_empty() => Ok(SecretText::new(text)),
            Some(_) => Err(Error::usage(format!("the environment variable {name} is empty"))),
            None => Err(
                Error::usage(format!("the environment variable {name} is not set"))
                    .hint("Set it where this command runs (in a unit: EnvironmentFile=), or correct the reference in the policy."),
            ),
        },
        SecretRef::File(path) => read(path),
        SecretRef::Credential(name) => read(&credential(name, lookup)?),
    }
}

fn credential(name: &str, lookup: Lookup<'_>) -> Result<PathBuf> {
    let directory = lookup("CREDENTIALS_DIRECTORY").ok_or_else(|| {
        Error::usage(format!(
            "the credential {name} can not be read: CREDENTIALS_DIRECTORY is not set"
        ))
        .hint("systemd sets it for units with LoadCredential=; elsewhere use { file = … }.")
    })?;
    Ok(Path::new(&directory).join(name))
}

fn read(path: &Path) -> Result<SecretText> {
    let failed = |e: std::io::Error| {
        Error::usage(format!("the secret file {} can not be read", path.display()))
            .hint("It must exist and be readable by this user, and by nobody else.")
            .because(e)
    };
    let mut bytes = Vec::new();
    // Bounded by what is read, not by what the file claims: a device has no size.
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(SECRET_MAX_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > SECRET_MAX_BYTES {
        return Err(Error::usage(format!(
            "the secret file {} is too large to be a secret",
            path.display()
        )));
    }
    // The bytes are part of the error that would tell where they are wrong: it is left out.
    let mut text = String::from_utf8(bytes)
        .map_err(|_| Error::usage(format!("the secret file {} is not text", path.display())))?;
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    if text.is_empty() {
        return Err(Error::usage(format!(
            "the secret file {} is empty",
            path.display()
        )));
    }
    Ok(SecretText::new(text))
}

/// Every secret that the policy refers to, with its key.
pub fn references(policy: &Policy) -> Vec<(String, &SecretRef)> {
    let mut all = Vec::new();
    if let Some(pair) = &policy.repository.credentials {
        all.push(("repository.access_key_id".to_owned(), &pair.access_key_id));
        all.push(("repository.secret_access_key".to_owned(), &pair.secret_access_key));
    }
    if let Some(identity) = &policy.encryption.identity {
        all.push(("encryption.identity".to_owned(), identity));
    }
    if let Some(pair) = policy.prune.as_ref().and_then(|p| p.credentials.as_ref()) {
        all.push(("prune.access_key_id".to_owned(), &pair.access_key_id));
        all.push(("prune.secret_access_key".to_owned(), &pair.secret_access_key));
    }
    for (name, source) in &policy.sources {
        match &source.kind {
            SourceKind::Postgres(postgres) => all.push((format!("source.{name}.url"), &postgres.url)),
            SourceKind::PocketBase(pocketbase) => {
                if let PocketBasePlace::Remote {
                    identity, password, ..
                } = &pocketbase.place
                {
                    all.push((format!("source.{name}.superuser.identity"), identity));
                    all.push((format!("source.{name}.superuser.password"), password));
                }
                let key = pocketbase.settings_key.as_ref();
                all.extend(key.map(|key| (format!("source.{name}.settings_key"), key)));
            }
            SourceKind::Bucket { .. } => {}
        }
    }
    if let Some(key) = &policy.evidence_key {
        all.push(("evidence.key".to_owned(), key));
    }
    for (name, drill) in &policy.drills {
        if let Some(server) = &drill.server {
            all.push((format!("drill.{name}.server"), server));
        }
    }
    if let Some(token) = &policy.http.token {
        all.push(("http.token".to_owned(), token));
    }
    for (name, told) in &policy.notify {
        let places = told.places.iter().map(|(kind, url)| (kind.url_key(), url));
        let secret = told.secret.iter().map(|secret| ("secret", secret));
        all.extend(
            places
                .chain(secret)
                .map(|(key, r)| (format!("notify.{name}.{key}"), r)),
        );
    }
    all
}

/// Tries every secret: a finding for each that is missing or readable by others, or one that says all are there.
pub fn check_all(policy: &Policy, lookup: Lookup<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let references = references(policy);
    for (key, reference) in &references {
        if let Err(e) = resolve(reference, lookup) {
            let hint = e
                .hint_text()
                .unwrap_or("Provide it, or correct the reference in the policy.")
                .to_owned();
            findings.push(Finding::error("secrets", format!("{key}: {}", e.chain()), hint));
        } else if let SecretRef::File(path) = reference
            && std::fs::metadata(path).is_ok_and(|m| m.permissions().mode() & 0o077 != 0)
        {
            findings.push(Finding::warning(
                "secrets",
                format!("{key}: {} can be read by others", path.display()),
                format!("chmod 600 {}", path.display()),
            ));
        }
    }
    if findings.is_empty() {
        findings.push(Finding::ok(
            "secrets",
            match references.len() {
                0 => "none is needed".to_owned(),
                1 => "1 secret is there".to_owned(),
                n => format!("{n} secrets are there"),
            },
        ));
    }
    findings
}

/// Every secret of some keys that is missing, all named in one error.
///
/// # Errors
/// At least one is missing.
pub fn require(policy: &Policy, lookup: Lookup<'_>, needed: impl Fn(&str) -> bool) -> Result<()> {
    let mut missing = Vec::new();
    for (key, reference) in references(policy) {
        if needed(&key)
            && let Err(e) = resolve(reference, lookup)
        {
            missing.push(format!("{key}: {}", e.chain()));
        }
    }
    match missing.as_slice() {
        [] => Ok(()),
        [one] => Err(Error::usage(one.clone()).hint("`backup check` tries every secret of the policy.")),
        many => Err(Error::usage(format!(
            "{} secrets are missing:\n  {}",
            many.len(),
            many.join("\n  ")
        ))
        .hint("`backup check` tries every secret of the policy.")),
    }
}
