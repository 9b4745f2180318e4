//! Checks: policy, secrets, access, what the store can do, the sources, the next runs. Everything wrong at once.

mod drills;

use chrono::{DateTime, Utc};

use super::Session;
use super::backup::open_source;
use super::report::{CheckReport, CheckedSource, CheckedTask};
use super::session::Role;
use super::timetable;
use crate::error::{Error, Kind, Result};
use crate::policy::{SourcePolicy, examples, secrets};
use crate::repository::{Repository, generation, layout};
use crate::schedule::due::Timetable;
use crate::source::{Finding, Level};
use crate::state::StateDir;
use crate::store::Abilities;
use crate::types::SourceName;

/// Slots of a source that are looked at for those which are never run.
const SLOTS_LOOKED_AT: usize = 200;

/// What is found, and whether policy or secrets are the cause of an error among it.
#[derive(Default)]
struct Found {
    list: Vec<Finding>,
    of_policy: bool,
}

impl Found {
    fn push(&mut self, finding: Finding) {
        self.list.push(finding);
    }
    fn fail(&mut self, name: &str, e: &Error) {
        self.of_policy |= e.kind() == Kind::Usage;
        self.list.push(from_error(name, e));
    }
}

/// Policy, secrets, access, store abilities, sources, next runs; with `notify` a test to every place that takes notices.
///
/// # Errors
/// None: what is wrong is a finding.
pub async fn check(session: &Session, notify: bool) -> Result<CheckReport> {
    let mut found = Found::default();
    let secrets = secrets::check_all(&session.policy, &*session.lookup);
    found.of_policy = secrets.iter().any(|f| f.level == Level::Error);
    found.list.extend(secrets);
    encryption(session, &mut found);
    found.push(state(session));
    let abilities = repository(session, &mut found).await;
    let unusable = super::notices::unusable(session);
    found.of_policy |= !unusable.is_empty();
    found.list.extend(unusable);
    drills::check(session, &mut found).await;
    if notify {
        found.list.extend(super::notices::try_all(session).await);
    }
    let mut sources = Vec::new();
    let mut of_policy = found.of_policy;
    for (name, policy) in &session.policy.sources {
        let (source, by_policy) = source(session, name, policy).await;
        of_policy |= by_policy;
        sources.push(source);
    }
    let errors = found
        .list
        .iter()
        .chain(sources.iter().flat_map(|s| &s.findings))
        .any(|f| f.level == Level::Error);
    Ok(CheckReport {
        ok: !errors,
        findings: found.list,
        abilities,
        sources,
        tasks: tasks(session),
        exit_code: match (errors, of_policy) {
            (false, _) => 0,
            // As every other command says of the same cause.
            (true, true) => Kind::Usage.exit_code(),
            (true, false) => Kind::Failed.exit_code(),
        },
    })
}

fn from_error(name: &str, e: &Error) -> Finding {
    Finding::error(
        name,
        e.chain(),
        e.hint_text().unwrap_or("See the message.").to_owned(),
    )
}

fn encryption(session: &Session, found: &mut Found) {
    let recipients = &session.policy.encryption.recipients;
    if let Some(e) = recipients
        .iter()
        .find_map(|r| generation::parse_recipient(r).err())
    {
        return found.fail("recipients", &e);
    }
    if let Err(e) = examples::refuse(&session.policy) {
        return found.fail("recipients", &e);
    }
    match recipients.len() {
        0 => found.fail(
            "recipients",
            &Error::usage("encryption.recipients is empty")
                .hint("Make a key pair with `backup key generate FILE` and add its recipient."),
        ),
        1 => found.push(Finding::warning(
            "recipients",
            "there is one recipient only",
            "Add a second one (a recovery key kept elsewhere): if the only identity is lost, so are the backups.",
        )),
        n => found.push(Finding::ok("recipients", format!("{n} recipients"))),
    }
}

fn state(session: &Session) -> Finding {
    match StateDir::open(&session.policy.state_dir).and_then(|s| s.writer(&session.world)) {
        Ok(_) => Finding::ok(
            "state",
            format!("{} can be written", session.policy.state_dir.display()),
        ),
        Err(e) => from_error("state", &e),
    }
}

/// What was told of the secrets is not told again of what needs them.
fn without_secrets(session: &Session, name: &str, needed: impl Fn(&str) -> bool) -> Option<Finding> {
    session.require(needed).err().map(|_| {
        Finding::warning(
            name,
            "not tried: a secret that it needs is missing",
            "Provide the secrets named above.",
        )
    })
}

async fn repository(session: &Session, findings: &mut Found) -> Option<Abilities> {
    if let Some(finding) = without_secrets(session, "repository", |key| key.starts_with("repository.")) {
        findings.push(finding);
        return None;
    }
    let repository = match session.open(Role::Writer).await {
        Ok(repository) => repository,
        Err(e) => {
            findings.fail("repository", &e);
            return None;
        }
    };
    findings.push(Finding::ok(
        "repository",
        format!(
            "{} at {}, environment {}",
            repository.id(),
            repository.store().location(),
            repository.document().environment
        ),
    ));
    if let Some(finding) = identity(session, &repository).await {
        // What is wrong with it is what encryption.identity refers to.
        findings.of_policy |= finding.level == Level::Error;
        findings.push(finding);
    }
    // What may not be changed is not probed either: probing writes.
    if let Err(e) = repository.writable() {
        findings.fail("repository", &e);
        return None;
    }
    let probe = match session.world.ulid() {
        Ok(ulid) => layout::probe_prefix(ulid),
        Err(e) => {
            findings.fail("store", &e);
            return None;
        }
    };
    let abilities = match repository.store().probe(&probe, session.world.clock.now()).await {
        Ok(abilities) => abilities,
        Err(e) => {
            findings.fail("store", &e.into());
            return None;
        }
    };
    for text in super::init::warnings(session, &abilities) {
        if !text.starts_with("there is one recipient") {
            findings.push(Finding::warning(
                "store",
                text,
                "See README.md, \"What the store must be able to do\".",
            ));
        }
    }
    if session.policy.prune.is_some() {
        match without_secrets(session, "prune", |key| key.starts_with("prune.")) {
            Some(finding) => findings.push(finding),
            None => match session.open(Role::Pruner).await {
                Ok(_) => findings.push(Finding::ok(
                    "prune",
                    "the prune credentials can read the repository",
                )),
                Err(e) => findings.fail("prune", &e),
            },
        }
    }
    Some(abilities)
}

/// Whether the identity at hand opens the newest generations; before the first, whether it is of the policy's recipients.
async fn identity(session: &Session, repository: &Repository) -> Option<Finding> {
    /// Of a repository of years.
    const NEWEST: usize = 10;
    // What is missing is told with the other secrets.
    if session.require(|key| key == "encryption.identity").is_err() {
        return None;
    }
    let (mut keys, wraps) = match (session.key_ring(), super::keys::wraps(repository).await) {
        (Ok(keys), _) if keys.is_empty() => return None,
        (Ok(keys), Ok(wraps)) => (keys, wraps),
        (Err(e), _) | (_, Err(e)) => return Some(from_error("identity", &e)),
    };
    let known = &session.policy.encryption.recipients;
    let (mut opened, mut closed) = (0, 0);
    for id in wraps.into_keys().rev().take(NEWEST) {
        match super::keys::opens(repository, &mut keys, id).await {
            Ok(Some(true)) => opened += 1,
            Ok(_) => closed += 1,
            Err(e) => return Some(from_error("identity", &e)),
        }
    }
    let listed = keys.recipients().iter().any(|r| known.contains(r));
    Some(match (opened, closed) {
        (0, 0) if listed => Finding::ok("identity", "it is of one of the recipients"),
        (_, 0) if opened > 0 => Finding::ok("identity", format!("it opens the newest {opened} generations")),
        (0, _) => Finding::error(
            "identity",
            "the identity opens nothing of this repository",
            "encryption.identity must be the key of one of encryption.recipients; `backup key list` shows what it opens.",
        ),
        (_, _) => Finding::warning(
            "identity",
            format!(
                "of the newest {} generations the identity opens {opened}",
                opened + closed
            ),
            "`backup key rewrap --identity FILE`, with an identity that opens the others, lets this one read their points too.",
        ),
    })
}

/// When prune and verify come next.
fn tasks(session: &Session) -> Vec<CheckedTask> {
    let now = session.world.clock.now();
    let timetables = timetable::of_tasks(&session.policy);
    let checked = timetables.into_iter().map(|(task, timetable)| CheckedTask {
        task,
        next_runs: timetable.next_starts(now, 5),
    });
    checked.collect()
}

/// A schedule that can not meet the objective.
fn too_seldom(policy: &SourcePolicy, now: DateTime<Utc>) -> Option<Finding> {
    let (rpo, interval) = (policy.objective.rpo?, super::status::interval(policy, now)?);
    let words = |of: std::time::Duration| humantime::format_duration(of).to_string();
    (interval > rpo).then(|| {
        Finding::warning(
            "objective",
            format!(
                "its schedule leaves {} between two points, and objective.rpo is {}",
                words(interval),
                words(rpo)
            ),
            "Run it more often, or raise objective.rpo: it is missed between any two runs.",
        )
    })
}

/// What is said of slots that jitter or a blackout puts off until they are older than `max_age`; an error when that is all.
pub fn never_run(timetable: &Timetable, now: DateTime<Utc>) -> Option<Finding> {
    const HINT: &str = "Raise max_age, or lower jitter, or make the blackout shorter.";
    let why = "jitter or a blackout puts them off for longer than max_age, or catch_up = \"skip\" passes them over there";
    match timetable.never_run(now, SLOTS_LOOKED_AT) {
        0 => None,
        SLOTS_LOOKED_AT => Some(Finding::error(
            "schedule",
            format!("its slots are never run: {why}"),
            HINT,
        )),
        n => Some(Finding::warning(
            "schedule",
            format!("{n} of its next {SLOTS_LOOKED_AT} slots are not run: {why}"),
            HINT,
        )),
    }
}

/// A source, and whether policy or secrets are the cause of an error.
async fn source(session: &Session, name: &SourceName, policy: &SourcePolicy) -> (CheckedSource, bool) {
    let mut findings = Found::default();
    let own = format!("source.{name}.");
    match without_secrets(session, "source", |key| key.starts_with(&own)) {
        Some(finding) => findings.push(finding),
        None => match open_source(session, name, policy) {
            Ok(source) => findings.list = source.check(&session.world).await,
            Err(e) => findings.fail("source", &e),
        },
    }
    if policy.retention.is_none() {
        findings.push(Finding::warning(
            "retention",
            "there is no retention: everything is kept",
            "Name a [retention.NAME] in the source, or leave it so.",
        ));
    }
    let mut next_runs = Vec::new();
    match timetable::of_source(name, policy) {
        Ok(None) => findings.push(Finding::warning(
            "schedule",
            "there is no schedule: it runs only by hand",
            "Set schedule, or call `backup run` from a timer.",
        )),
        Ok(Some(timetable)) => {
            let now = session.world.clock.now();
            next_runs = timetable.next_starts(now, 5);
            findings.list.extend(too_seldom(policy, now));
            let never = never_run(&timetable, now);
            findings.of_policy |= never.as_ref().is_some_and(|f| f.level == Level::Error);
            findings.list.extend(never);
        }
        Err(e) => findings.fail("schedule", &e),
    }
    let checked = CheckedSource {
        source: name.clone(),
        kind: policy.kind.name().to_owned(),
        findings: findings.list,
        next_runs,
    };
    (checked, findings.of_policy)
}
