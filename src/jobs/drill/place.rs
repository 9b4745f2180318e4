//! Where a target stands: made, watched while it is used, removed or kept.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::super::Session;
use super::{own, users};
use crate::error::{Error, Kind, Result};
use crate::policy::{DrillPolicy, Sandboxing, SourceKind};
use crate::secret::SecretText;
use crate::source::scratch::ScratchPlan;
use crate::state::StateDir;
use crate::state::drills::DrillPlace;
use crate::types::{RunId, SourceName};

/// How a cleanup begins that did not succeed.
pub const NOT_REMOVED: &str = "not removed yet";
/// How often the space is looked at that a target takes.
const LOOK: Duration = Duration::from_secs(5);

/// Makes the place of a target: apart where the platform allows it. As root everything in it belongs to a user that has
/// nothing else; without a sandbox to `nobody`, since servers want a user with a name.
pub async fn make(
    session: &Session,
    state: &StateDir,
    policy: &DrillPolicy,
    source: &SourceName,
    kind: &str,
) -> Result<(DrillPlace, ScratchPlan)> {
    let server = match &policy.server {
        Some(reference) if kind.starts_with("postgres") => Some(session.secret(reference)?),
        _ => None,
    };
    let (settings_key, without_storage) = of_pocketbase(session, source)?;
    let root = rustix::process::geteuid().is_root();
    let id = RunId::new(session.world.ulid()?);
    let user = if root { Some(users::own(session)?) } else { None };
    let place = DrillPlace::make(state, id, user, false)?;
    let plan = |place: &DrillPlace, user, apart| ScratchPlan {
        directory: place.path().to_owned(),
        home: place.home(),
        root: place.root(),
        doors: place.doors(),
        user,
        apart,
        server: server.clone(),
        settings_key: settings_key.clone(),
        without_storage,
        binaries: policy.binaries.clone(),
        memory: policy.memory,
        commands: own::programs(policy, source),
    };
    let tried = plan(&place, user, Ok(()));
    let tried_apart = match &server {
        Some(_) => Ok(Err("the server was given, and checks have to reach it".to_owned())),
        None => tried.try_apart().await,
    };
    let why = match tried_apart {
        Ok(Ok(())) => return Ok((place, tried)),
        Ok(Err(why)) => why,
        Err(e) => {
            place.remove()?;
            return Err(e);
        }
    };
    if server.is_none() && policy.sandbox == Sandboxing::Required {
        place.remove()?;
        return Err(Error::new(
            Kind::DrillCouldNotRun,
            format!("this host allows no sandbox: {why}"),
        )
        .hint(
            "Without one code in a backup does what our user may do, reading keys included. Allow name spaces (in a container a \
             right of its own), give the drill a server, or set sandbox = \"optional\" in it where you trust what was backed up.",
        ));
    }
    if !root {
        let plan = plan(&place, None, Err(why));
        return Ok((place, plan));
    }
    place.remove()?;
    let user = Some(users::nobody()?);
    let place = DrillPlace::make(state, RunId::new(session.world.ulid()?), user, true)?;
    let plan = plan(&place, user, Err(why));
    Ok((place, plan))
}

/// What a drill of a PocketBase wants to know of its source: the key of its settings, and whether storage/ is left out.
fn of_pocketbase(session: &Session, source: &SourceName) -> Result<(Option<SecretText>, bool)> {
    match session.policy.sources.get(source).map(|s| &s.kind) {
        Some(SourceKind::PocketBase(of)) => {
            let key = of.settings_key.as_ref();
            let key = key.map(|reference| session.secret(reference)).transpose()?;
            Ok((key, !of.storage))
        }
        _ => Ok((None, false)),
    }
}

/// Removes the target, or keeps it; says what was done.
pub async fn clean(session: &Session, policy: &DrillPolicy, place: DrillPlace, keep: bool) -> String {
    let path = place.path().to_owned();
    let until =
        session.world.clock.now() + chrono::TimeDelta::from_std(policy.keep_failed).unwrap_or_default();
    let kept = keep && !policy.keep_failed.is_zero();
    let cleaned = tokio::task::spawn_blocking(move || {
        if kept {
            place.keep(until).map(drop)
        } else {
            place.remove()
        }
    });
    match cleaned.await {
        Ok(Ok(())) if kept => format!(
            "kept at {} until {}: the target is in home, what its programs said in target.log; `backup drill --clean` removes it",
            path.display(),
            until.format("%Y-%m-%d %H:%M:%SZ")
        ),
        Ok(Ok(())) => "removed: nothing is left".to_owned(),
        Ok(Err(e)) => format!("{NOT_REMOVED}, the next drill tries again: {}", e.chain()),
        Err(e) => format!("{NOT_REMOVED}, the next drill tries again: {e}"),
    }
}

/// Ends when the drill takes more time or more room than it may; says which.
pub async fn over_budget(
    session: &Session,
    policy: &DrillPolicy,
    directory: PathBuf,
    cancel: CancellationToken,
) -> String {
    let begun = session.world.clock.since_boot();
    loop {
        session.world.clock.sleep(LOOK.min(policy.timeout)).await;
        let took = session.world.clock.since_boot() - begun;
        let why = if took >= policy.timeout {
            Some(format!(
                "it took longer than {}",
                humantime::format_duration(policy.timeout)
            ))
        } else if let Some(budget) = policy.budget {
            let looked = directory.clone();
            let taken = tokio::task::spawn_blocking(move || taken(&looked)).await;
            let taken = taken.unwrap_or_default();
            (taken > budget).then(|| format!("it took {taken} bytes of disk, and may take {budget}"))
        } else {
            None
        };
        if let Some(why) = why {
            cancel.cancel();
            return why;
        }
    }
}

/// What a directory takes, bytes; what vanishes meanwhile takes nothing.
fn taken(directory: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let Ok(entries) = std::fs::read_dir(directory) else {
        return 0;
    };
    let mut sum = 0;
    for entry in entries.flatten() {
        match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => sum += taken(&entry.path()),
            Ok(metadata) => sum += metadata.blocks() * 512,
            Err(_) => {}
        }
    }
    sum
}
