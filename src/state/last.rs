//! How the last run of each source ended, for `status`: a run that failed leaves no point that would tell of it.
//!
//! ```text
//! <state>/runs/<place>/<source>/last.json    how it ended
//! <state>/runs/<place>/<source>/began        its beginning; locked while it goes on, empty when it has ended
//! <state>/runs/<place>/<source>/lock         held for an instant, while the two are read or written together
//! ```
//!
//! A beginning that nobody holds is of a run that was killed.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{make_dir, modified, open_lock, open_regular, read_json, write_json};
use crate::error::{Context as _, Result};
use crate::types::{RunId, SourceName};

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ending {
    /// With a recovery point.
    Done,
    /// Without one.
    Failed,
    /// By a signal.
    Interrupted,
}

/// The last run of a source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastRun {
    /// The run; none if it left no point.
    pub run: Option<RunId>,
    /// When it began.
    pub began: DateTime<Utc>,
    /// When it ended; none: it was killed.
    pub ended: Option<DateTime<Utc>>,
    /// How.
    pub result: Ending,
    /// Why, when it was not done.
    pub error: Option<String>,
    /// How many runs in a row were not done, this one with them.
    pub failures: u32,
}

/// The runs of one source of one repository, as this state directory has seen them.
#[derive(Debug)]
pub struct Runs {
    directory: PathBuf,
}

/// A run that goes on.
#[derive(Debug)]
pub struct UnderWay {
    directory: PathBuf,
    began: DateTime<Utc>,
    file: File,
}

impl Runs {
    /// Below a state directory. `place` names the repository, also one that can not be reached.
    pub fn new(state: &Path, place: &str, source: &SourceName) -> Self {
        Self {
            directory: state.join("runs").join(place).join(source.as_str()),
        }
    }

    /// A run begins; none: another one goes on, and tells of itself.
    ///
    /// # Errors
    /// The state directory can not be written.
    pub fn begin(&self, now: DateTime<Utc>) -> Result<Option<UnderWay>> {
        make_dir(&self.directory)?;
        let path = self.directory.join("began");
        let doing = || format!("can not write {}", path.display());
        let _lock = lock(&self.directory)?;
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600);
        let mut file = open_regular(&mut options, &path).doing(doing)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Ok(None),
            Err(fs::TryLockError::Error(e)) => return Err(e).doing(doing),
        }
        if let Some(killed) = began(&mut file).doing(doing)? {
            let last = killed_run(killed, read_json(&self.last_file())?);
            write_json(&self.last_file(), &last)?;
        }
        file.set_len(0).doing(doing)?;
        std::io::Seek::rewind(&mut file).doing(doing)?;
        file.write_all(now.to_rfc3339().as_bytes()).doing(doing)?;
        file.sync_all().doing(doing)?;
        Ok(Some(UnderWay {
            directory: self.directory.clone(),
            began: now,
            file,
        }))
    }

    /// The last run that ended or was killed; none: this state directory knows of none.
    ///
    /// # Errors
    /// What is there can not be read.
    pub fn last(&self) -> Result<Option<LastRun>> {
        let path = self.directory.join("lock");
        let lock = match open_regular(OpenOptions::new().read(true), &path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e).doing(|| format!("can not read {}", path.display())),
        };
        lock.lock_shared()
            .doing(|| format!("can not lock {}", path.display()))?;
        let last = read_json(&self.last_file())?;
        let path = self.directory.join("began");
        let mut file = match open_regular(OpenOptions::new().read(true), &path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(last),
            Err(e) => return Err(e).doing(|| format!("can not read {}", path.display())),
        };
        if file.try_lock_shared().is_err() {
            return Ok(last);
        }
        let killed = began(&mut file).doing(|| format!("can not read {}", path.display()))?;
        Ok(match killed {
            Some(killed) => Some(killed_run(killed, last)),
            None => last,
        })
    }

    /// When a run ended last, by the file system's clock; none: none did, or it can not be told.
    pub fn written(&self) -> Option<DateTime<Utc>> {
        modified(&self.last_file())
    }

    fn last_file(&self) -> PathBuf {
        self.directory.join("last.json")
    }
}

impl UnderWay {
    /// The run has ended.
    ///
    /// # Errors
    /// The state directory can not be written.
    pub fn end(
        self,
        now: DateTime<Utc>,
        result: Ending,
        run: Option<RunId>,
        error: Option<String>,
    ) -> Result<()> {
        let path = self.directory.join("last.json");
        let _lock = lock(&self.directory)?;
        let failures = if result == Ending::Done {
            0
        } else {
            failures(read_json(&path)?.as_ref()) + 1
        };
        let last = LastRun {
            run,
            began: self.began,
            ended: Some(now),
            result,
            error,
            failures,
        };
        write_json(&path, &last)?;
        self.file
            .set_len(0)
            .doing(|| format!("can not write {}", self.directory.join("began").display()))
    }

    /// It was no run: another one goes on.
    ///
    /// # Errors
    /// As [`Self::end`].
    pub fn forget(self) -> Result<()> {
        self.file
            .set_len(0)
            .doing(|| format!("can not write {}", self.directory.join("began").display()))
    }
}

fn lock(directory: &Path) -> Result<File> {
    let path = directory.join("lock");
    let file = open_lock(&path)?;
    file.lock().doing(|| format!("can not lock {}", path.display()))?;
    Ok(file)
}

/// The beginning that a file holds; one that was cut off while it was written is none.
fn began(file: &mut File) -> std::io::Result<Option<DateTime<Utc>>> {
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    Ok(text.trim().parse().ok())
}

fn failures(last: Option<&LastRun>) -> u32 {
    last.map_or(0, |last| last.failures)
}

fn killed_run(began: DateTime<Utc>, before: Option<LastRun>) -> LastRun {
    LastRun {
        run: None,
        began,
        ended: None,
        result: Ending::Interrupted,
        error: Some("it never ended: it was killed, or its host went down".to_owned()),
        failures: failures(before.as_ref()) + 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_790_000_000 + second, 0).unwrap()
    }

    #[test]
    fn endings_are_kept_and_a_killed_run_is_known() {
        let directory = tempfile::tempdir().unwrap();
        let source = "orders".parse().unwrap();
        let runs = Runs::new(directory.path(), "place", &source);
        assert_eq!(runs.last().unwrap(), None);
        for n in 1..=2 {
            let run = runs.begin(at(n)).unwrap().unwrap();
            assert!(runs.begin(at(n)).unwrap().is_none(), "one goes on");
            run.end(at(n + 1), Ending::Failed, None, Some("no".into()))
                .unwrap();
            let last = runs.last().unwrap().unwrap();
            assert_eq!((last.result, i64::from(last.failures)), (Ending::Failed, n));
        }
        // One that goes on is not the last one yet; one that was killed is.
        let run = runs.begin(at(10)).unwrap().unwrap();
        assert_eq!(runs.last().unwrap().unwrap().began, at(2));
        drop(run);
        let killed = runs.last().unwrap().unwrap();
        assert_eq!(
            (killed.result, killed.began, killed.ended, killed.failures),
            (Ending::Interrupted, at(10), None, 3)
        );
        // The next one keeps count, and one that is done ends the count.
        runs.begin(at(20)).unwrap().unwrap().forget().unwrap();
        assert_eq!(runs.last().unwrap().unwrap(), killed);
        let run = runs.begin(at(30)).unwrap().unwrap();
        run.end(at(31), Ending::Done, None, None).unwrap();
        let last = runs.last().unwrap().unwrap();
        assert_eq!((last.result, last.failures), (Ending::Done, 0));
        // Another repository's source of the same name is another one.
        assert_eq!(Runs::new(directory.path(), "else", &source).last().unwrap(), None);
    }

    #[test]
    fn lost_or_damaged_state_costs_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let runs = Runs::new(directory.path(), "place", &"orders".parse().unwrap());
        let run = runs.begin(at(1)).unwrap().unwrap();
        run.end(at(2), Ending::Failed, None, None).unwrap();
        fs::write(runs.last_file(), b"{\"run\":").unwrap();
        assert_eq!(runs.last().unwrap(), None);
        fs::write(runs.directory.join("began"), b"2026-11-").unwrap();
        assert_eq!(runs.last().unwrap(), None);
        let run = runs.begin(at(3)).unwrap().unwrap();
        run.end(at(4), Ending::Failed, None, None).unwrap();
        assert_eq!(runs.last().unwrap().unwrap().failures, 1);
    }
}
