//! Whether the drills of the policy could run on this host: what signs and reads, what they restore into, what they check with.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};

use super::{Found, from_error, without_secrets};
use crate::error::{Error, Result};
use crate::jobs::Session;
use crate::jobs::backup::open_source;
use crate::policy::{DrillPolicy, SourceKind, SourcePolicy, UserCheckKind};
use crate::repository::evidence::SigningKey;
use crate::source::{DrillNeeds, Finding};
use crate::types::SourceName;

/// Where programs of checks are looked for, beside those of the target.
const PATH: [&str; 3] = ["/usr/local/bin", "/usr/bin", "/bin"];

/// All that is to be told of drills; nothing where the policy has none.
pub(super) async fn check(session: &Session, found: &mut Found) {
    evidence(session, found);
    let drills = &session.policy.drills;
    if !drills.is_empty() && session.policy.encryption.identity.is_none() && session.identity_file.is_none() {
        let e = Error::usage("no drill can run: there is no encryption.identity to read the backups with");
        let hint = "Set encryption.identity to a reference to an age identity. A host that only backs up has none, and no [drill.NAME].";
        found.fail("identity", &e.hint(hint));
    }
    for (name, policy) in drills {
        drill(session, name, policy, found).await;
    }
}

/// What evidence is signed with. That it is missing where the policy names it is told with the other secrets.
fn evidence(session: &Session, found: &mut Found) {
    match &session.policy.evidence_key {
        Some(reference) => match session.secret(reference).map(|text| SigningKey::parse(&text)) {
            Ok(Ok(_)) => found.push(Finding::ok("evidence", "there is a key that signs it")),
            Ok(Err(e)) => found.fail("evidence", &e.while_doing("evidence.key")),
            Err(_) => {}
        },
        None if !session.policy.drills.is_empty() => found.push(Finding::warning(
            "evidence",
            "what drills prove is signed by nobody: the policy has no evidence.key",
            "`backup key signing FILE` makes a key; name it with key = { file = \"FILE\" } in [evidence].",
        )),
        None => {}
    }
}

async fn drill(session: &Session, name: &str, policy: &DrillPolicy, found: &mut Found) {
    let told = format!("drill {name}");
    let (mut here, mut well) = (Vec::new(), true);
    for source in &policy.sources {
        let Some(of) = session.policy.sources.get(source) else {
            continue;
        };
        let path = match target(session, name, policy, source, of).await {
            Ok((text, path)) => {
                here.push(text);
                Some(path)
            }
            Err(mut finding) => {
                well = false;
                finding.name.clone_from(&told);
                finding.text = format!("{source}: {}", finding.text);
                found.push(finding);
                None
            }
        };
        for (check, e) in checks(policy, source, of, path.as_deref()) {
            well = false;
            found.fail(&told, &e.while_doing(format!("{source}: check {check:?}")));
        }
    }
    here.retain(|text| !text.is_empty());
    here.dedup();
    if well {
        found.push(Finding::ok(&told, ready(&here)));
    }
}

fn ready(here: &[String]) -> String {
    match here {
        [] => "nothing is missing".to_owned(),
        [one] => format!("{one} is here"),
        [first @ .., last] => format!("{} and {last} are here", first.join(", ")),
    }
}

/// What the target of a source is made with, and where programs of checks are.
async fn target(
    session: &Session,
    name: &str,
    policy: &DrillPolicy,
    source: &SourceName,
    of: &SourcePolicy,
) -> Result<(String, Vec<PathBuf>), Finding> {
    let (own, server_key) = (format!("source.{source}."), format!("drill.{name}.server"));
    let needed = |key: &str| key.starts_with(&own) || key == server_key;
    if let Some(finding) = without_secrets(session, "drill", needed) {
        return Err(finding);
    }
    // A kind that can not be backed up is told of its source.
    let opened = open_source(session, source, of).map_err(|_| {
        Finding::warning(
            "drill",
            "not tried: the source can not be used",
            "Put right what is said of the source.",
        )
    })?;
    let server = policy.server.as_ref().map(|reference| session.secret(reference));
    let server = server.transpose().map_err(|e| from_error("drill", &e))?;
    let needs = DrillNeeds {
        binaries: policy.binaries.as_deref(),
        server: server.as_ref(),
    };
    let ready = opened.check_drill(&needs).await?;
    Ok((ready.text, ready.path))
}

/// Checks of a source that can not be made for certain, by name. Without the target's path programs named by no path may be there.
fn checks<'a>(
    policy: &'a DrillPolicy,
    source: &SourceName,
    of: &SourcePolicy,
    path: Option<&[PathBuf]>,
) -> Vec<(&'a str, Error)> {
    let own = policy.checks.iter().filter(|c| c.source == *source);
    own.filter_map(|check| {
        let made = match &check.what {
            UserCheckKind::Http(_) if matches!(of.kind, SourceKind::Postgres(_)) => {
                Err(Error::usage("a Postgres answers no http requests")
                    .hint("Use sql or command for it; http is for PocketBase."))
            }
            UserCheckKind::Command(words) => words.first().map_or(Ok(()), |word| program(word, path)),
            UserCheckKind::Http(_) | UserCheckKind::Sql { .. } => Ok(()),
        };
        Some((check.name.as_str(), made.err()?))
    })
    .collect()
}

/// Whether a program is there, for who runs checks.
fn program(word: &str, path: Option<&[PathBuf]>) -> Result<()> {
    let given = Path::new(word);
    if given.is_absolute() {
        return match given.metadata() {
            Ok(found) if found.is_file() => startable(given),
            Ok(_) => Err(Error::failed(format!("{word} is no program")).hint("Name the program itself.")),
            Err(e) => Err(Error::failed(format!("the program {word} can not be found"))
                .because(e)
                .hint("Install it, or correct command in the check.")),
        };
    }
    let Some(path) = path else { return Ok(()) };
    let system = PATH.iter().map(PathBuf::from);
    let all: Vec<PathBuf> = path.iter().cloned().chain(system).collect();
    if all
        .iter()
        .any(|directory| startable(&directory.join(word)).is_ok())
    {
        return Ok(());
    }
    let all: Vec<String> = all.iter().map(|d| d.display().to_string()).collect();
    Err(
        Error::failed(format!("the program {word} is not in {}", all.join(", ")))
            .hint("Install it, or write its whole path in the check."),
    )
}

/// Checks run as somebody else where we are root, and as ourselves otherwise.
fn startable(program: &Path) -> Result<()> {
    let root = rustix::process::geteuid().is_root();
    let may = if root {
        let found = program.metadata();
        found.is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o001 != 0)
    } else {
        access(program, Access::EXEC_OK).is_ok() && program.is_file()
    };
    if may {
        return Ok(());
    }
    let (who, mode) = if root {
        ("by others than root, and checks run as another user", "a+rx")
    } else {
        ("by this user", "u+x")
    };
    Err(
        Error::failed(format!("{} can not be executed {who}", program.display()))
            .hint(format!("chmod {mode} {}", program.display())),
    )
}
