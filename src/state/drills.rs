//! Places of drills: each a directory of its own, known to the state directory, so that what a killed drill left is found.
//!
//! ```text
//! <state>/drills/<id>.json    where its directory is, and till when it is kept; locked while the drill goes on
//! <state>/drills/<id>/        the directory; or, where another user has to reach it, below the system's temporary one
//! ```

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt as _, chown};
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use super::{StateDir, make_dir, open_lock, read_json, write_json};
use crate::error::{Context as _, Error, Result};
use crate::types::RunId;

/// The longest path in which the socket of a server still has its place (107 bytes on Linux: unix(7)).
const PATH_MAX_BYTES: usize = 70;
/// How often what does not end is told to, before its directory is left for the next start.
const KILLS: usize = 50;

/// What is known of a drill's place.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Entry {
    directory: PathBuf,
    /// It failed, and its target is kept until then.
    keep_until: Option<DateTime<Utc>>,
}

/// The directory of a drill that goes on.
#[derive(Debug)]
pub struct DrillPlace {
    entry: PathBuf,
    lock: PathBuf,
    directory: PathBuf,
    _held: File,
}

impl DrillPlace {
    /// Makes the directory (0700), which belongs to `owner` (user and group) where one is given.
    ///
    /// # Errors
    /// It can not be made.
    pub fn make(state: &StateDir, id: RunId, owner: Option<(u32, u32)>) -> Result<Self> {
        let all = state.path().join("drills");
        make_dir(&all)?;
        let own = all.join(id.to_string());
        let directory = if owner.is_some() || own.as_os_str().len() > PATH_MAX_BYTES {
            std::env::temp_dir().join(named(id))
        } else {
            own
        };
        let lock = all.join(format!("{id}.lock"));
        let held = open_lock(&lock)?;
        held.try_lock()
            .doing(|| format!("can not lock {}", lock.display()))?;
        let place = Self {
            entry: all.join(format!("{id}.json")),
            lock,
            directory,
            _held: held,
        };
        place.write(None)?;
        let doing = || format!("can not make the directory {}", place.directory.display());
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&place.directory)
            .doing(doing)?;
        if let Some((user, group)) = owner {
            chown(&place.directory, Some(user), Some(group)).doing(doing)?;
        }
        Ok(place)
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.directory
    }

    fn write(&self, keep_until: Option<DateTime<Utc>>) -> Result<()> {
        let entry = Entry {
            directory: self.directory.clone(),
            keep_until,
        };
        write_json(&self.entry, &entry)
    }

    /// Leaves the directory until an instant.
    ///
    /// # Errors
    /// It can not be written down; then the next start removes it.
    pub fn keep(self, until: DateTime<Utc>) -> Result<PathBuf> {
        end_processes(&self.directory)?;
        self.write(Some(until))?;
        Ok(self.directory)
    }

    /// Ends what still runs in it, and removes it.
    ///
    /// # Errors
    /// Something is left; the next start tries again.
    pub fn remove(self) -> Result<()> {
        end_processes(&self.directory)?;
        remove(&self.directory)?;
        forget(&self.entry, &self.lock)
    }
}

fn named(id: RunId) -> String {
    format!("lifeboat-drill-{id}")
}

/// Removes what drills left that were killed, and targets that were kept long enough. Gives the directories.
///
/// # Errors
/// The state directory can not be read. What can not be removed is told in the log, and is in no drill's way.
pub fn sweep(state: &StateDir, now: DateTime<Utc>) -> Result<Vec<PathBuf>> {
    let all = state.path().join("drills");
    let entries = match fs::read_dir(&all) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e).doing(|| format!("can not read {}", all.display())),
    };
    let mut removed = Vec::new();
    for found in entries {
        let lock = found.doing(|| format!("can not read {}", all.display()))?.path();
        let id = lock
            .file_stem()
            .and_then(|stem| stem.to_str()?.parse::<RunId>().ok());
        let (Some(id), Some("lock")) = (id, lock.extension().and_then(|e| e.to_str())) else {
            continue;
        };
        let held = open_lock(&lock)?;
        if held.try_lock().is_err() {
            continue;
        }
        let entry = all.join(format!("{id}.json"));
        let Some(known) = read_json::<Entry>(&entry)? else {
            // It was killed before it made anything.
            forget(&entry, &lock)?;
            continue;
        };
        if known.keep_until.is_some_and(|until| until > now) {
            continue;
        }
        // Only what we would have made ourselves: the file could say anything.
        let ours = [all.join(id.to_string()), std::env::temp_dir().join(named(id))];
        if !ours.contains(&known.directory) {
            tracing::warn!(path = %entry.display(), "what it names is no place of a drill, and is left alone");
            continue;
        }
        // Of one that is kept for people all processes have ended; who works in it now is one of them.
        let ended = match known.keep_until {
            None if known.directory.exists() => end_processes(&known.directory),
            _ => Ok(()),
        };
        let removed_it = ended.and_then(|()| remove(&known.directory));
        match removed_it.and_then(|()| forget(&entry, &lock)) {
            Ok(()) => removed.push(known.directory),
            Err(e) => {
                tracing::warn!(path = %known.directory.display(), error = %e.chain(), "what a drill left is not removed yet");
            }
        }
    }
    Ok(removed)
}

fn forget(entry: &Path, lock: &Path) -> Result<()> {
    for path in [entry, lock] {
        match fs::remove_file(path) {
            Err(e) if e.kind() != ErrorKind::NotFound => {
                return Err(e).doing(|| format!("can not remove {}", path.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

fn remove(directory: &Path) -> Result<()> {
    match fs::symlink_metadata(directory) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Ok(metadata) if metadata.is_dir() => {}
        _ => return Err(Error::failed(format!("{} is no directory", directory.display()))),
    }
    fs::remove_dir_all(directory).doing(|| format!("can not remove {}", directory.display()))
}

/// Kills every process that works in a directory: what a drill starts does, and nothing else.
fn end_processes(directory: &Path) -> Result<()> {
    for _ in 0..KILLS {
        let left = processes_in(directory)?;
        if left.is_empty() {
            return Ok(());
        }
        for pid in left {
            match kill_process(pid, Signal::KILL) {
                Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                Err(e) => {
                    return Err(Error::failed(format!(
                        "process {} of a drill can not be ended",
                        pid.as_raw_nonzero()
                    ))
                    .because(e));
                }
            }
        }
        // A killed process is gone when its parent, or init, has seen it.
        std::thread::yield_now();
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    Err(Error::failed(format!(
        "processes in {} do not end",
        directory.display()
    )))
}

fn processes_in(directory: &Path) -> Result<Vec<Pid>> {
    let directory = directory
        .canonicalize()
        .doing(|| format!("can not read {}", directory.display()))?;
    let mut found = Vec::new();
    let all = match fs::read_dir("/proc") {
        Ok(all) => all,
        // No such list on this system: what was started here is ended by who started it.
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(found),
        Err(e) => return Err(e).doing(|| "can not read /proc"),
    };
    for entry in all {
        let entry = entry.doing(|| "can not read /proc")?;
        let pid = entry
            .file_name()
            .to_str()
            .and_then(|name| Pid::from_raw(name.parse().ok()?));
        // Others' processes can not be looked at, and are not ours.
        if let Some(pid) = pid
            && fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd.starts_with(&directory))
        {
            found.push(pid);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u64) -> RunId {
        RunId::new(ulid::Ulid::from_parts(n, 7))
    }

    fn state() -> (tempfile::TempDir, StateDir) {
        let root = tempfile::tempdir().unwrap();
        let state = StateDir::open(root.path()).unwrap();
        (root, state)
    }

    fn names(root: &Path) -> Vec<String> {
        let entries = fs::read_dir(root.join("drills")).unwrap();
        let mut names: Vec<_> = entries
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_place_is_there_while_it_is_used_and_gone_after() {
        let (root, state) = state();
        let now = "2026-11-26T12:00:00Z".parse().unwrap();
        let place = DrillPlace::make(&state, id(1), None).unwrap();
        fs::write(place.path().join("file"), b"x").unwrap();
        assert!(sweep(&state, now).unwrap().is_empty(), "it is in use");
        assert!(place.path().join("file").exists());
        place.remove().unwrap();
        assert!(names(root.path()).is_empty());
    }

    #[test]
    fn what_was_killed_goes_at_the_next_start_with_its_processes() {
        let (root, state) = state();
        let now = "2026-11-26T12:00:00Z".parse().unwrap();
        let place = DrillPlace::make(&state, id(2), None).unwrap();
        let directory = place.path().to_owned();
        fs::create_dir(directory.join("data")).unwrap();
        let mut child = std::process::Command::new("sleep")
            .arg("600")
            .current_dir(directory.join("data"))
            .spawn()
            .unwrap();
        let waits = std::thread::spawn(move || child.wait().unwrap());
        drop(place);
        assert_eq!(sweep(&state, now).unwrap(), std::slice::from_ref(&directory));
        assert!(!directory.exists() && names(root.path()).is_empty());
        assert!(!waits.join().unwrap().success(), "it was ended");
    }

    #[test]
    fn a_failed_one_is_kept_for_its_time() {
        let (root, state) = state();
        let now: DateTime<Utc> = "2026-11-26T12:00:00Z".parse().unwrap();
        let place = DrillPlace::make(&state, id(3), None).unwrap();
        let kept = place.keep(now).unwrap();
        let before = now - chrono::TimeDelta::seconds(1);
        assert!(sweep(&state, before).unwrap().is_empty() && kept.exists());
        assert_eq!(sweep(&state, now).unwrap(), std::slice::from_ref(&kept));
        assert!(!kept.exists() && names(root.path()).is_empty());
    }

    #[test]
    fn what_an_entry_names_elsewhere_is_left_alone() {
        let (root, state) = state();
        let now = "2026-11-26T12:00:00Z".parse().unwrap();
        let precious = root.path().join("precious");
        fs::create_dir(&precious).unwrap();
        let place = DrillPlace::make(&state, id(4), None).unwrap();
        let entry = Entry {
            directory: precious.clone(),
            keep_until: None,
        };
        write_json(&place.entry, &entry).unwrap();
        drop(place);
        assert!(sweep(&state, now).unwrap().is_empty());
        assert!(precious.exists());
    }
}
