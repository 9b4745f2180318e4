//! Copies a SQLite database that is being written, without making its writers wait and without writing to it.
//!
//! While the file is copied a read transaction is held, and slid along: every few milliseconds a new one begins, the log is
//! read and verified up to its last commit, and only then the old one ends. So no log restarts before all of it was read,
//! and a checkpoint can only change pages that were read from the log. The copy is the file with every page that any
//! frame touched replaced by its last image: the state of the last commit read.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::Read as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};
use rustix::process::{Flock, FlockType, fcntl_getlk};
use tokio_util::sync::CancellationToken;

use super::chunks::{copy_chunks, helpers};
use super::wal::{self, IndexHeader, Position, Stop};
use crate::clock::World;
use crate::error::{Context as _, Error, Kind, Result};

/// What is copied of a file that nobody has open before an interrupt is heard, bytes.
const COPIED_AT_ONCE: u64 = 64 << 20;
/// How often a copy is begun anew because the ground changed.
const ATTEMPTS: u32 = 5;
/// How often a log is looked at that changes while it is first read.
const FIRST_LOOKS: u32 = 50;
/// The least SQLite that may open a database which others write: before it, a checkpoint could lose commits.
const SQLITE_LEAST: i32 = 3_051_003;
/// How often a header that is being changed is read again.
const HEADER_READS: u32 = 100_000;

/// Copies the database at `path` to `to`.
///
/// # Errors
/// It can not be read, or changes its identity under the copy five times, or the run was interrupted.
pub fn copy_database(world: &World, cancel: &CancellationToken, path: &Path, to: &Path) -> Result<()> {
    if rusqlite::version_number() < SQLITE_LEAST {
        return Err(Error::failed(
            "this build's SQLite is too old to read a database that others write",
        ));
    }
    // SQLite keeps its log beside the file that a link leads to.
    let path = &path
        .canonicalize()
        .doing(|| format!("{} can not be found", path.display()))?;
    let mut why = "";
    for _ in 0..ATTEMPTS {
        world.crash.reach("before a database is copied")?;
        let result = match beside(path, "-shm").try_exists() {
            Ok(true) => copy_live(cancel, path, to),
            Ok(false) => copy_resting(cancel, path, to),
            Err(e) => Err(Stop::Io(e)),
        };
        match result {
            Ok(()) => return Ok(()),
            Err(Stop::Changed(what)) => why = what,
            Err(Stop::Interrupted) => return Err(Error::new(Kind::Interrupted, "interrupted")),
            Err(Stop::Io(e)) => {
                return Err(Error::failed(format!("{} can not be copied", path.display()))
                    .hint(format!(
                        "Is it readable and writable for this user, and is there room in the state directory, at {}?",
                        to.display()
                    ))
                    .because(e));
            }
        }
    }
    Err(Error::failed(format!(
        "{} changed under the copy {ATTEMPTS} times: {why}",
        path.display()
    ))
    .hint("Is somebody replacing the database? Run again."))
}

/// `data.db` → `data.db-wal`
pub fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn sql(e: rusqlite::Error) -> Stop {
    Stop::Io(match e.sqlite_error_code() {
        Some(rusqlite::ErrorCode::DiskFull) => std::io::Error::new(
            std::io::ErrorKind::StorageFull,
            format!("no space left on device: {e}"),
        ),
        _ => std::io::Error::other(e),
    })
}

fn create(path: &Path) -> std::io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
}

/// Nobody has it open: the file and what its log holds, recovered in the copy.
fn copy_resting(cancel: &CancellationToken, path: &Path, to: &Path) -> Result<(), Stop> {
    // What can not be looked at is there: a log that is taken for none would lose its commits.
    let identity = |p: &Path| match std::fs::metadata(p) {
        Ok(m) => Ok(Some((m.dev(), m.ino(), m.size(), m.mtime(), m.mtime_nsec()))),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    };
    let log = beside(path, "-wal");
    let before = (identity(path)?, identity(&log)?);
    if is_open(path)? {
        return Err(Stop::Changed(
            "somebody has it open, and the index of its log is gone: -wal or -shm was removed, and what is written meanwhile is in no file",
        ));
    }
    if let Some(problem) = not_wal(path)? {
        return Err(Stop::Io(std::io::Error::other(problem)));
    }
    let copied_log = beside(to, "-wal");
    for stale in [&copied_log, &beside(to, "-shm")] {
        match std::fs::remove_file(stale) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e.into()),
            _ => {}
        }
    }
    copy_file(cancel, path, to)?;
    if before.1.is_some() {
        copy_file(cancel, &log, &copied_log).map_err(|stop| match stop {
            Stop::Io(e) => Stop::of_shared(e),
            stop => stop,
        })?;
    }
    if beside(path, "-shm").try_exists()? || before != (identity(path)?, identity(&log)?) {
        return Err(Stop::Changed("somebody opened it"));
    }
    let connection = Connection::open(to).map_err(sql)?;
    // Takes the log's commits into the copy, which is nobody's but ours and needs no index in shared memory.
    connection
        .pragma_update(None, "locking_mode", "exclusive")
        .map_err(sql)?;
    connection
        .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
        .map_err(sql)?;
    connection.close().map_err(|(_, e)| sql(e))?;
    Ok(())
}

/// Why a file that nobody has open in WAL mode can not be copied. In rollback mode what is in it may be half a
/// transaction, which only the journal beside it can undo; PocketBase keeps its databases in WAL mode. (SQLite's "Database
/// File Format", section 1.3: bytes 18 and 19.)
///
/// # Errors
/// It can not be read.
pub fn not_wal(path: &Path) -> std::io::Result<Option<&'static str>> {
    let file = File::open(path)?;
    if file.metadata()?.len() == 0 {
        return Ok(None);
    }
    let mut header = [0; 20];
    file.read_exact_at(&mut header, 0)?;
    let journal = match std::fs::metadata(beside(path, "-journal")) {
        Ok(metadata) => metadata.len() > 0,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => false,
        Err(e) => return Err(e),
    };
    Ok(if !header.starts_with(b"SQLite format 3\0") {
        Some("it is no SQLite database")
    } else if header[18..] != [2, 2] {
        Some("it is in rollback mode, not in WAL mode")
    } else if journal {
        Some("a rollback journal lies beside it")
    } else {
        None
    })
}

/// The bytes of a database that are locked by who has it open in WAL mode. (SQLite's `os.h`: SHARED_FIRST, SHARED_SIZE.)
const SHARED: (u64, u64) = (0x4000_0002, 510);

/// Whether another process has a database open.
fn is_open(path: &Path) -> std::io::Result<bool> {
    let asked = Flock {
        start: SHARED.0,
        length: SHARED.1,
        ..Flock::from(FlockType::WriteLock)
    };
    // This file is closed before any connection of ours is there, whose locks would go with it.
    Ok(fcntl_getlk(File::open(path)?, &asked)?.is_some())
}

fn copy_file(cancel: &CancellationToken, from: &Path, to: &Path) -> Result<(), Stop> {
    let source = File::open(from)?;
    let mut target = create(to)?;
    loop {
        go_on(cancel)?;
        if std::io::copy(&mut (&source).take(COPIED_AT_ONCE), &mut target)? == 0 {
            return Ok(());
        }
    }
}

fn go_on(cancel: &CancellationToken) -> Result<(), Stop> {
    if cancel.is_cancelled() {
        return Err(Stop::Interrupted);
    }
    Ok(())
}

/// The two connections between which the read transaction slides.
struct Slider {
    // Order of fields is order of dropping: a descriptor of ours that closes while a connection is open would take the
    // connection's POSIX locks with it.
    holding: Connection,
    waiting: Connection,
    shm: File,
    database: Arc<File>,
    path: PathBuf,
    identity: [(u64, u64); 2],
}

impl Slider {
    fn attach(path: &Path) -> Result<Self, Stop> {
        let database = Arc::new(File::open(path)?);
        let shm = File::open(beside(path, "-shm")).map_err(Stop::of_shared)?;
        let identity = identities(path)?;
        let holding = connect(path)?;
        let waiting = connect(path)?;
        begin(&holding)?;
        Ok(Self {
            holding,
            waiting,
            shm,
            database,
            path: path.to_owned(),
            identity,
        })
    }

    fn header(&self) -> Result<IndexHeader, Stop> {
        for _ in 0..HEADER_READS {
            if let Some(header) = wal::read_index(&self.shm).map_err(Stop::of_shared)? {
                return Ok(header);
            }
            std::thread::yield_now();
        }
        Err(Stop::Changed("the header of the index"))
    }

    /// Begins the next transaction, lets `read` read the log, and ends the one before.
    fn slide(&mut self, read: impl FnOnce(&IndexHeader) -> Result<(), Stop>) -> Result<(), Stop> {
        if identities(&self.path)? != self.identity {
            return Err(Stop::Changed("it was replaced"));
        }
        begin(&self.waiting)?;
        let header = self.header()?;
        read(&header)?;
        self.holding.execute_batch("ROLLBACK").map_err(sql)?;
        std::mem::swap(&mut self.holding, &mut self.waiting);
        Ok(())
    }
}

fn identities(path: &Path) -> Result<[(u64, u64); 2], Stop> {
    let of = |p: &Path| std::fs::metadata(p).map(|m| (m.dev(), m.ino()));
    match (of(path), of(&beside(path, "-shm"))) {
        (Ok(database), Ok(shm)) => Ok([database, shm]),
        _ => Err(Stop::Changed("it was closed or removed")),
    }
}

fn connect(path: &Path) -> Result<Connection, Stop> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(sql)?;
    connection.busy_timeout(Duration::from_secs(5)).map_err(sql)?;
    connection
        .set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)
        .map_err(sql)?;
    connection
        .execute_batch("PRAGMA query_only = 1; PRAGMA wal_autocheckpoint = 0")
        .map_err(sql)?;
    Ok(connection)
}

fn begin(connection: &Connection) -> Result<(), Stop> {
    connection.execute_batch("BEGIN").map_err(sql)?;
    connection
        .query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))
        .map_err(sql)
}

/// The images of pages that frames touched, in a file; the last one of each page counts.
struct Overlay {
    file: File,
    length: u64,
    images: HashMap<u32, u64>,
    position: Position,
    changes: Option<u32>,
    pages: u32,
    page_size: u32,
}

impl Overlay {
    /// Reads on up to the header's last commit, and proves that none was missed.
    fn read(&mut self, path: &Path, header: &IndexHeader) -> Result<(), Stop> {
        let log = File::open(beside(path, "-wal")).map_err(Stop::of_shared)?;
        if self.page_size != 0 && self.page_size != header.page_size {
            return Err(Stop::Changed("the page size"));
        }
        self.page_size = header.page_size;
        let (file, length, images) = (&self.file, &mut self.length, &mut self.images);
        let (position, commits) = wal::read_frames(&log, self.position, header, |page, image| {
            // An image that is replaced is written over: the file stays as small as what changed.
            let at = *images.entry(page).or_insert_with(|| {
                let at = *length;
                *length += image.len() as u64;
                at
            });
            file.write_all_at(image, at)
        })?;
        // Before the first look nothing is known of what was committed earlier: those frames are in the file or here.
        if let Some(before) = self.changes
            && header.changes != before.wrapping_add(commits)
        {
            return Err(Stop::Changed("commits were missed"));
        }
        self.changes = Some(header.changes);
        self.position = position;
        self.pages = header.pages;
        Ok(())
    }
}

/// Attaches, and reads the whole log: what it holds is not in the file yet, or may be brought there at any moment.
fn first_look(path: &Path, to: &Path) -> Result<(Slider, Overlay), Stop> {
    let mut slider = Slider::attach(path)?;
    let mode: String = slider
        .waiting
        .query_row("PRAGMA journal_mode", [], |row| row.get(0))
        .map_err(sql)?;
    if mode != "wal" {
        return Err(Stop::Io(std::io::Error::other(format!(
            "it is in {mode} mode, not in WAL mode"
        ))));
    }
    let mut overlay = Overlay {
        file: create(&beside(to, "-images"))?,
        length: 0,
        images: HashMap::new(),
        position: Position::NONE,
        changes: None,
        pages: 0,
        page_size: 0,
    };
    slider.slide(|header| overlay.read(path, header))?;
    Ok((slider, overlay))
}

/// Others write it.
fn copy_live(cancel: &CancellationToken, path: &Path, to: &Path) -> Result<(), Stop> {
    // A log that was brought into the file whole may be begun anew or cut while it is first read. Looking again is cheap.
    let mut looks = 1;
    let (mut slider, mut overlay) = loop {
        match first_look(path, to) {
            Err(Stop::Changed(_)) if looks < FIRST_LOOKS => looks += 1,
            looked => break looked?,
        }
    };
    let target = create(to)?;
    // The same descriptor: closing another one would drop the locks.
    let database = slider.database.clone();
    let copied = copy_chunks(helpers(), &database, &target, || {
        go_on(cancel)?;
        slider.slide(|header| overlay.read(path, header))
    })?;
    slider.slide(|header| overlay.read(path, header))?;
    drop(slider);
    finish(&target, copied, &overlay)?;
    drop(overlay);
    std::fs::remove_file(beside(to, "-images"))?;
    Ok(())
}

fn finish(target: &File, copied: u64, overlay: &Overlay) -> Result<(), Stop> {
    let size = u64::from(overlay.page_size);
    if overlay.pages == 0 {
        // No commit in any log: the file is all there is.
        return if copied.is_multiple_of(size.max(1)) {
            Ok(())
        } else {
            Err(Stop::Changed("its length"))
        };
    }
    let length = u64::from(overlay.pages) * size;
    let mut image = vec![0; overlay.page_size as usize];
    for (page, at) in &overlay.images {
        if *page == 0 || *page > overlay.pages {
            continue;
        }
        overlay.file.read_exact_at(&mut image, *at)?;
        target.write_all_at(&image, u64::from(*page - 1) * size)?;
    }
    // A page beyond what was copied must have come by the log.
    let first_missing = copied / size + 1;
    let lock_page = (1 << 30) / size + 1;
    for page in first_missing..=u64::from(overlay.pages) {
        let known = u32::try_from(page).is_ok_and(|p| overlay.images.contains_key(&p));
        if !known && page != lock_page {
            return Err(Stop::Changed("a page at its end is missing"));
        }
    }
    target.set_len(length)?;
    Ok(())
}

/// Opens a finished copy read-only, without any file beside it.
///
/// # Errors
/// It is no database.
pub fn open_copy(path: &Path) -> Result<Connection> {
    let mut url = url::Url::from_file_path(path)
        .map_err(|()| Error::failed(format!("{} is no absolute path", path.display())))?;
    url.set_query(Some("immutable=1"));
    let flags =
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    Connection::open_with_flags(url.as_str(), flags).doing(|| format!("{} is no database", path.display()))
}
