//! Places of drills: each a directory of its own, known to the state directory, so that what a killed drill left is found.
//! Its processes are no concern here: they end with the pipe that holds their sandbox.
//!
//! ```text
//! <state>/drills/<id>.json    where its directory is, and till when it is kept; <id>.lock is locked while the drill goes on
//! <state>/drills/<id>/        the directory, ours alone: home/ (of the target's user), root/, doors/, what is logged;
//!                             or below the system's temporary one, where others have to reach it or the path is too long
//! ```

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{StateDir, make_dir, open_lock, read_json, write_json};
use crate::error::{Context as _, Error, Result};
use crate::types::RunId;

/// The longest path in which the socket of a server still has its place (107 bytes on Linux: unix(7)).
const PATH_MAX_BYTES: usize = 80;

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
    /// Makes the directory. `home/` in it belongs to `owner` (user and group) where one is given, who finds the way to it
    /// only with `reachable`.
    ///
    /// # Errors
    /// It can not be made.
    pub fn make(state: &StateDir, id: RunId, owner: Option<(u32, u32)>, reachable: bool) -> Result<Self> {
        let all = state.path().join("drills");
        make_dir(&all)?;
        let own = all.join(id.to_string());
        let directory = if reachable || own.as_os_str().len() > PATH_MAX_BYTES {
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
        let make = |path: &Path| {
            fs::DirBuilder::new()
                .mode(0o700)
                .create(path)
                .doing(|| format!("can not make the directory {}", path.display()))
        };
        make(&place.directory)?;
        for part in [
            place.home(),
            place.home().join("tmp"),
            place.root(),
            place.doors(),
        ] {
            make(&part)?;
        }
        let doing = || format!("can not give {} away", place.home().display());
        if let Some((user, group)) = owner {
            chown(place.home().join("tmp"), Some(user), Some(group)).doing(doing)?;
            chown(place.home(), Some(user), Some(group)).doing(doing)?;
        }
        if reachable {
            fs::set_permissions(&place.directory, fs::Permissions::from_mode(0o711)).doing(doing)?;
        }
        Ok(place)
    }

    /// All of it.
    pub fn path(&self) -> &Path {
        &self.directory
    }
    /// What is the target's.
    pub fn home(&self) -> PathBuf {
        self.directory.join("home")
    }
    /// Where the root of a sandbox is mounted.
    pub fn root(&self) -> PathBuf {
        self.directory.join("root")
    }
    /// Sockets of ours.
    pub fn doors(&self) -> PathBuf {
        self.directory.join("doors")
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
        self.write(Some(until))?;
        Ok(self.directory)
    }

    /// Removes it.
    ///
    /// # Errors
    /// Something is left; the next start tries again.
    pub fn remove(self) -> Result<()> {
        remove(&self.directory)?;
        forget(&self.entry, &self.lock)
    }
}

fn named(id: RunId) -> String {
    format!("lifeboat-drill-{id}")
}

/// What a sweep removed.
#[derive(Debug, Default)]
pub struct Swept {
    /// Directories of drills that were killed.
    pub killed: Vec<PathBuf>,
    /// Those that were kept long enough.
    pub expired: Vec<PathBuf>,
}

/// Removes what drills left that were killed, and targets that were kept long enough.
///
/// # Errors
/// The state directory can not be read. What can not be removed is told in the log, and is in no drill's way.
pub fn sweep(state: &StateDir, now: DateTime<Utc>) -> Result<Swept> {
    let all = state.path().join("drills");
    let entries = match fs::read_dir(&all) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Swept::default()),
        Err(e) => return Err(e).doing(|| format!("can not read {}", all.display())),
    };
    let mut swept = Swept::default();
    for found in entries {
        let lock = found.doing(|| format!("can not read {}", all.display()))?.path();
        let id = lock
            .file_stem()
            .and_then(|stem| stem.to_str()?.parse::<RunId>().ok());
        let (Some(id), Some("lock")) = (id, lock.extension().and_then(|e| e.to_str())) else {
            continue;
        };
        match open_lock(&lock) {
            Ok(held) if held.try_lock().is_err() => continue,
            Ok(_) => {}
            Err(e) => {
                tracing::warn!(path = %lock.display(), error = %e.chain(), "it is no lock of a drill, and is left alone");
                continue;
            }
        }
        let entry = all.join(format!("{id}.json"));
        let ours = [all.join(id.to_string()), std::env::temp_dir().join(named(id))];
        let known = match read_json::<Entry>(&entry) {
            Ok(known) => known,
            Err(e) => {
                tracing::warn!(path = %entry.display(), error = %e.chain(), "where a drill's target is can not be read: it is looked for where it would be made now");
                None
            }
        };
        let was_kept = known.as_ref().is_some_and(|known| known.keep_until.is_some());
        // Without an entry it was killed before it made anything, or nobody knows.
        let places = match known {
            Some(Entry {
                keep_until: Some(until),
                ..
            }) if until > now => continue,
            // Only what we would have made ourselves, under whatever TMPDIR: the file could say anything.
            Some(known)
                if ours[0] == known.directory || known.directory.file_name() == ours[1].file_name() =>
            {
                vec![known.directory]
            }
            Some(_) => {
                tracing::warn!(path = %entry.display(), "what it names is no place of a drill, and is left alone");
                continue;
            }
            None => ours.to_vec(),
        };
        let mut whole = true;
        for place in places {
            match remove(&place) {
                Ok(true) if was_kept => swept.expired.push(place),
                Ok(true) => swept.killed.push(place),
                Ok(false) => {}
                Err(e) => {
                    whole = false;
                    tracing::warn!(path = %place.display(), error = %e.chain(), "what a drill left is not removed yet");
                }
            }
        }
        if whole {
            forget(&entry, &lock)?;
        }
    }
    Ok(swept)
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

/// Whether there was something to remove.
fn remove(directory: &Path) -> Result<bool> {
    let metadata = match fs::symlink_metadata(directory) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(false),
        found => found.doing(|| format!("can not look at {}", directory.display()))?,
    };
    // Whatever stands in its place that we did not make is not ours to remove.
    if !metadata.is_dir() || metadata.uid() != rustix::process::geteuid().as_raw() {
        return Err(Error::failed(format!(
            "{} is no directory of ours",
            directory.display()
        )));
    }
    if fs::remove_dir_all(directory).is_ok() {
        return Ok(true);
    }
    // Directories that are closed to us, or too deep for so many open files: these programs cope with both, and follow no
    // links. (GNU coreutils, fts(3).)
    for words in [
        &["chmod", "-R", "u+rwx", "--"][..],
        &["rm", "-rf", "--one-file-system", "--"],
    ] {
        let (program, arguments) = (words[0], &words[1..]);
        let ended = Command::new(program)
            .args(arguments)
            .arg(directory)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        // What is left is told below, with what is in its way.
        drop(ended);
    }
    match fs::remove_dir_all(directory) {
        Err(e) if e.kind() != ErrorKind::NotFound => {
            Err(e).doing(|| format!("can not remove {}", directory.display()))
        }
        _ => Ok(true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(state: &StateDir, now: DateTime<Utc>) -> Vec<PathBuf> {
        let swept = sweep(state, now).unwrap();
        [swept.killed, swept.expired].concat()
    }

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
        let place = DrillPlace::make(&state, id(1), None, false).unwrap();
        fs::write(place.path().join("file"), b"x").unwrap();
        assert!(all(&state, now).is_empty(), "it is in use");
        assert!(place.path().join("file").exists());
        place.remove().unwrap();
        assert!(names(root.path()).is_empty());
    }

    #[test]
    fn what_was_killed_goes_at_the_next_start() {
        let (root, state) = state();
        let now = "2026-11-26T12:00:00Z".parse().unwrap();
        let place = DrillPlace::make(&state, id(2), None, false).unwrap();
        let directory = place.path().to_owned();
        fs::create_dir(place.home().join("data")).unwrap();
        drop(place);
        assert_eq!(all(&state, now), std::slice::from_ref(&directory));
        assert!(!directory.exists() && names(root.path()).is_empty());
    }

    #[test]
    fn what_was_made_under_another_tmpdir_goes_too() {
        let (root, state) = state();
        let now = "2026-11-26T12:00:00Z".parse().unwrap();
        let other = root.path().join("other");
        fs::create_dir(&other).unwrap();
        let place = DrillPlace::make(&state, id(5), None, false).unwrap();
        let moved = other.join(named(id(5)));
        fs::rename(place.path(), &moved).unwrap();
        let entry = Entry {
            directory: moved.clone(),
            keep_until: None,
        };
        write_json(&place.entry, &entry).unwrap();
        drop(place);
        assert_eq!(all(&state, now), std::slice::from_ref(&moved));
        assert!(!moved.exists() && names(root.path()).is_empty());
    }

    #[test]
    fn a_link_in_its_place_is_left_alone_and_so_is_what_it_leads_to() {
        let (root, state) = state();
        let now = "2026-11-26T12:00:00Z".parse().unwrap();
        let precious = root.path().join("precious");
        fs::create_dir(&precious).unwrap();
        fs::write(precious.join("file"), b"x").unwrap();
        let place = DrillPlace::make(&state, id(6), None, false).unwrap();
        let directory = place.path().to_owned();
        fs::remove_dir_all(&directory).unwrap();
        std::os::unix::fs::symlink(&precious, &directory).unwrap();
        drop(place);
        assert!(all(&state, now).is_empty());
        assert!(precious.join("file").exists());
    }

    #[test]
    fn what_is_closed_or_too_deep_is_removed_all_the_same() {
        let (root, state) = state();
        let place = DrillPlace::make(&state, id(8), None, false).unwrap();
        let closed = place.home().join("closed");
        fs::create_dir_all(closed.join("below")).unwrap();
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).unwrap();
        // Deeper than a process may have files open.
        let script = "import os\nfor _ in range(3000):\n    os.mkdir('d')\n    os.chdir('d')";
        let made = Command::new("python3")
            .args(["-c", script])
            .current_dir(place.home())
            .status();
        assert!(made.unwrap().success());
        place.remove().unwrap();
        assert!(names(root.path()).is_empty());
    }

    #[test]
    fn an_entry_that_can_not_be_read_forgets_no_target() {
        let (root, state) = state();
        let now = "2026-11-26T12:00:00Z".parse().unwrap();
        let place = DrillPlace::make(&state, id(7), None, false).unwrap();
        let directory = place.path().to_owned();
        fs::write(&place.entry, b"{").unwrap();
        drop(place);
        assert_eq!(all(&state, now), std::slice::from_ref(&directory));
        assert!(!directory.exists() && names(root.path()).is_empty());
    }

    #[test]
    fn a_failed_one_is_kept_for_its_time() {
        let (root, state) = state();
        let now: DateTime<Utc> = "2026-11-26T12:00:00Z".parse().unwrap();
        let place = DrillPlace::make(&state, id(3), None, false).unwrap();
        let kept = place.keep(now).unwrap();
        let before = now - chrono::TimeDelta::seconds(1);
        assert!(all(&state, before).is_empty() && kept.exists());
        assert_eq!(all(&state, now), std::slice::from_ref(&kept));
        assert!(!kept.exists() && names(root.path()).is_empty());
    }

    #[test]
    fn what_an_entry_names_elsewhere_is_left_alone() {
        let (root, state) = state();
        let now = "2026-11-26T12:00:00Z".parse().unwrap();
        let precious = root.path().join("precious");
        fs::create_dir(&precious).unwrap();
        let place = DrillPlace::make(&state, id(4), None, false).unwrap();
        let entry = Entry {
            directory: precious.clone(),
            keep_until: None,
        };
        write_json(&place.entry, &entry).unwrap();
        drop(place);
        assert!(all(&state, now).is_empty());
        assert!(precious.exists());
    }
}
