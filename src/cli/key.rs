//! `backup key generate|list|rotate|rewrap`

use std::path::Path;

use serde::Serialize;

use super::Surroundings;
use super::args::KeyAction;
use super::ask::confirm;
use super::text::table;
use crate::error::Result;
use crate::jobs;
use crate::jobs::report::KeyReport;

#[derive(Serialize)]
struct Generated<'a> {
    recipient: String,
    identity_file: &'a Path,
}

/// Makes a key pair: the recipient is shown, the identity never.
pub fn generate(surroundings: &Surroundings, file: &Path) -> Result<u8> {
    let report = Generated {
        recipient: jobs::keys::generate(&surroundings.world, file)?,
        identity_file: file,
    };
    surroundings.printer.note(&format!(
        "the identity is in {}: keep it away from the hosts that back up; the recipient belongs into the policy",
        file.display()
    ));
    surroundings
        .printer
        .result(&report, || format!("{}\n", report.recipient))?;
    Ok(0)
}

#[derive(Serialize)]
struct Signing<'a> {
    public_key: String,
    key_file: &'a Path,
}

/// Makes a key pair that signs evidence: the public key is shown, the private one never.
pub fn signing(surroundings: &Surroundings, file: &Path) -> Result<u8> {
    let report = Signing {
        public_key: jobs::evidence::generate_signing_key(file)?,
        key_file: file,
    };
    surroundings.printer.note(&format!(
        "the private key is in {}: name it in evidence.key; the public key verifies, and belongs to the auditors",
        file.display()
    ));
    surroundings
        .printer
        .result(&report, || report.public_key.clone())?;
    Ok(0)
}

/// What needs the repository.
pub async fn key(surroundings: &Surroundings, action: KeyAction) -> Result<u8> {
    let report = match action {
        KeyAction::Generate { file } => return generate(surroundings, &file),
        KeyAction::Signing { file } => return signing(surroundings, &file),
        KeyAction::List { identity } => {
            let session = surroundings.session_with_identity(None, identity)?;
            surroundings.reading(jobs::keys::list(&session)).await?
        }
        KeyAction::Rotate { yes } => {
            let session = surroundings.session()?;
            confirm(
                surroundings,
                yes,
                "rotate begins a new generation: what is written from now on is encrypted to it",
            )
            .await?;
            session.interruptible(jobs::keys::rotate(&session)).await?
        }
        KeyAction::Rewrap { identity, yes } => {
            let session = surroundings.session_with_identity(None, identity)?;
            let what = format!(
                "rewrap lets the policy's {} recipients open every generation that this identity opens; it shuts nobody out",
                session.policy.encryption.recipients.len()
            );
            confirm(surroundings, yes, &what).await?;
            session.interruptible(jobs::keys::rewrap(&session)).await?
        }
    };
    for warning in &report.warnings {
        surroundings.printer.warning(warning);
    }
    surroundings.printer.result(&report, || text(&report))?;
    Ok(0)
}

fn text(report: &KeyReport) -> String {
    let mut out: String = report.done.iter().map(|done| format!("{done}\n")).collect();
    if report.generations.is_empty() {
        return out + "no generations: the first run makes one\n";
    }
    out += &table(
        ["generation", ">wraps", "opens", "current"],
        report.generations.iter().map(|g| {
            let opens = match g.opens {
                Some(true) => "yes",
                Some(false) => "NO",
                None => "unknown",
            };
            [
                g.generation.to_string(),
                g.wraps.to_string(),
                opens.to_owned(),
                if g.current { "yes" } else { "" }.to_owned(),
            ]
        }),
    );
    out
}
