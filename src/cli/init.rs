//! `backup init [--generate-identity FILE]`

use std::path::Path;

use super::Surroundings;
use super::args::InitArgs;
use super::text::clean;
use crate::error::{Error, Result};
use crate::jobs;
use crate::jobs::report::InitReport;
use crate::policy::SecretRef;
use crate::repository::generation;
use crate::store::Abilities;

/// Makes the repository, and before that a key pair if one is asked for.
pub async fn init(surroundings: &Surroundings, args: &InitArgs) -> Result<u8> {
    if args.generate_identity.is_some() {
        // No key pair for a repository that is there already.
        let session = surroundings.session()?;
        if let Ok(there) = session.open(jobs::session::Role::Writer).await {
            return Err(Error::usage(format!("there is a repository already: {}", there.id())).hint(
                "`backup key generate FILE` makes a key pair, `backup key rotate` encrypts to it from now on.",
            ));
        }
    }
    let recipient = match &args.generate_identity {
        Some(file) => Some(recipient_of(surroundings, file)?),
        None => None,
    };
    let session = surroundings.session()?;
    if let (Some(recipient), Some(file)) = (recipient, &args.generate_identity)
        && !session.policy.encryption.recipients.contains(&recipient)
    {
        return Err(Error::usage(format!(
            "the policy does not encrypt to the recipient of {}: no repository was made",
            file.display()
        ))
        .hint(format!(
            "Put it into {} and run the same command again: {}",
            session.policy.path.display(),
            policy_lines(&recipient)
        )));
    }
    let report = session.interruptible(jobs::init::init(&session)).await?;
    for warning in &report.warnings {
        surroundings.printer.warning(warning);
    }
    let directory = session.policy.repository.is_directory();
    surroundings
        .printer
        .result(&report, || text(&report, directory))?;
    Ok(0)
}

/// The recipient of the identity in a file, which is made if it is not there.
fn recipient_of(surroundings: &Surroundings, file: &Path) -> Result<String> {
    let printer = &surroundings.printer;
    if !file.exists() {
        let recipient = jobs::keys::generate(&surroundings.world, file)?;
        printer.tell(&format!(
            "made a key pair: the identity is in {} (keep it away from this host), its recipient is\n{recipient}",
            file.display()
        ));
        return Ok(recipient);
    }
    let reference = SecretRef::File(file.to_owned());
    let text = crate::policy::secrets::resolve(&reference, &*surroundings.lookup)?;
    let identities = generation::parse_identities(&text, &file.display().to_string())?;
    match identities.as_slice() {
        [identity] => Ok(identity.to_public().to_string()),
        _ => Err(
            Error::usage(format!("{} holds more than one identity", file.display()))
                .hint("Give a file with one, or leave --generate-identity out."),
        ),
    }
}

fn policy_lines(recipient: &str) -> String {
    format!("[encryption] recipients = [\"{recipient}\"]")
}

fn text(report: &InitReport, directory: bool) -> String {
    let mut out = format!(
        "repository {} of environment {} is ready at {}\n",
        report.repository,
        report.environment,
        clean(&report.location)
    );
    out.push_str(&abilities(&report.abilities, directory));
    out
}

/// What a store can do, a line each. A directory has no clock of its own, and no credentials.
pub fn abilities(abilities: &Abilities, directory: bool) -> String {
    let line = |able: bool, yes: &str, no: &str| format!("  {}\n", if able { yes } else { no });
    let mut out = "the store\n".to_owned();
    let a = abilities;
    out += &line(
        a.refuses_overwrite,
        "refuses to replace an object",
        "does not tell when an object is replaced (keys are never used twice)",
    );
    out += &line(
        a.checks_digest,
        "checks the digest of what it is sent",
        "does not check digests",
    );
    out += &line(
        a.lists_at_once,
        "lists new objects at once",
        "lists new objects late",
    );
    out += &line(a.reads_ranges, "reads ranges", "does not read ranges");
    out += &line(a.keeps_versions, "keeps versions", "keeps no versions");
    out += &line(a.locks, "locks objects", "does not lock objects");
    if directory {
        out += "  is a directory: whoever can write to it can delete too, so keep a copy elsewhere\n";
        return out;
    }
    out += &line(
        a.deletes,
        "lets these credentials delete",
        "does not let these credentials delete",
    );
    out += &format!("  is {} ms off this host's clock\n", a.clock_offset_ms);
    out
}
