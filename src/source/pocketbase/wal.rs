//! What SQLite's write-ahead log says, read from outside. Formats: SQLite's "WAL-mode File Format", sections 1 and 2.

use std::os::unix::fs::FileExt;

/// The header of a wal-index (`-shm`), both copies equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexHeader {
    /// Counts commits.
    pub changes: u32,
    /// Bytes of a page.
    pub page_size: u32,
    /// Last committed frame.
    pub last_frame: u32,
    /// Pages of the database after that commit.
    pub pages: u32,
    /// Salts of the log.
    pub salts: [u8; 8],
}

/// Reads the header; `None` while a writer is changing it.
pub fn read_index(shm: &impl FileExt) -> std::io::Result<Option<IndexHeader>> {
    let mut bytes = [0; 96];
    shm.read_exact_at(&mut bytes, 0)?;
    if bytes[..48] != bytes[48..] {
        return Ok(None);
    }
    let number = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let mut sums = (0u32, 0u32);
    for at in (0..40).step_by(8) {
        sums.0 = sums.0.wrapping_add(number(at)).wrapping_add(sums.1);
        sums.1 = sums.1.wrapping_add(number(at + 4)).wrapping_add(sums.0);
    }
    if sums != (number(40), number(44)) {
        return Ok(None);
    }
    // 65,536 does not fit and is written as 1.
    let size = u32::from(u16::from_ne_bytes([bytes[14], bytes[15]]));
    let page_size = (size & 0xFE00) | ((size & 1) << 16);
    let mut salts = [0; 8];
    salts.copy_from_slice(&bytes[32..40]);
    Ok(Some(IndexHeader {
        changes: number(8),
        page_size,
        last_frame: number(16),
        pages: number(20),
        salts,
    }))
}

/// A place in one log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Salts of the log; zero before the first.
    pub salts: [u8; 8],
    /// Frames read.
    pub frame: u32,
    /// The checksum up to there.
    sums: (u32, u32),
    /// Whether checksums are big-endian.
    big_endian: bool,
}

impl Position {
    /// Before everything.
    pub const NONE: Self = Self {
        salts: [0; 8],
        frame: 0,
        sums: (0, 0),
        big_endian: false,
    };
}

/// Why a log was not read on.
#[derive(Debug)]
pub enum Stop {
    /// It is not what the index says: try again.
    Changed(&'static str),
    /// It can not be read.
    Io(std::io::Error),
    /// The run was interrupted.
    Interrupted,
}

impl From<std::io::Error> for Stop {
    fn from(e: std::io::Error) -> Self {
        Self::Io(e)
    }
}

impl Stop {
    /// A file of SQLite's that is gone or shorter than it was told: somebody truncated, closed or removed it just now.
    pub fn of_shared(e: std::io::Error) -> Self {
        use std::io::ErrorKind;
        match e.kind() {
            ErrorKind::NotFound => Self::Changed("it was closed or removed"),
            ErrorKind::UnexpectedEof => Self::Changed("its log was cut"),
            _ => Self::Io(e),
        }
    }
}

const HEADER: u64 = 32;
const FRAME_HEADER: u64 = 24;

fn big(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn sum(bytes: &[u8], big_endian: bool, (mut a, mut b): (u32, u32)) -> (u32, u32) {
    for pair in bytes.chunks_exact(8) {
        let word = |at: usize| {
            let four = [pair[at], pair[at + 1], pair[at + 2], pair[at + 3]];
            if big_endian {
                u32::from_be_bytes(four)
            } else {
                u32::from_le_bytes(four)
            }
        };
        a = a.wrapping_add(word(0)).wrapping_add(b);
        b = b.wrapping_add(word(4)).wrapping_add(a);
    }
    (a, b)
}

/// Reads the frames of a log from a position up to the last committed one, each verified by salts and cumulative
/// checksum, and gives page number and image of each. Answers the new position and the number of commits passed.
///
/// # Errors
/// What is there is not what the index says.
pub fn read_frames(
    wal: &impl FileExt,
    from: Position,
    index: &IndexHeader,
    mut take: impl FnMut(u32, &[u8]) -> std::io::Result<()>,
) -> Result<(Position, u32), Stop> {
    let mut position = from;
    if position.salts != index.salts || position.frame == 0 {
        position = Position {
            salts: index.salts,
            ..Position::NONE
        };
        if index.last_frame == 0 {
            return Ok((position, 0));
        }
        let mut header = [0; HEADER as usize];
        wal.read_exact_at(&mut header, 0).map_err(Stop::of_shared)?;
        let magic = big(&header, 0);
        position.big_endian = magic & 1 == 1;
        let sums = sum(&header[..24], position.big_endian, (0, 0));
        let right = magic & !1 == 0x377f_0682
            && header[16..24] == index.salts
            && big(&header, 8) == index.page_size
            && sums == (big(&header, 24), big(&header, 28));
        if !right {
            return Err(Stop::Changed("the header of the log"));
        }
        position.sums = sums;
    }
    if index.last_frame < position.frame {
        return Err(Stop::Changed("the log went back"));
    }
    let size = FRAME_HEADER + u64::from(index.page_size);
    let mut frame = vec![0; size as usize];
    let mut commits = 0;
    while position.frame < index.last_frame {
        wal.read_exact_at(&mut frame, HEADER + u64::from(position.frame) * size)
            .map_err(Stop::of_shared)?;
        let (head, page) = frame.split_at(FRAME_HEADER as usize);
        let sums = sum(
            page,
            position.big_endian,
            sum(&head[..8], position.big_endian, position.sums),
        );
        if head[8..16] != index.salts || sums != (big(head, 16), big(head, 20)) {
            return Err(Stop::Changed("a frame of the log"));
        }
        position.sums = sums;
        position.frame += 1;
        commits += u32::from(big(head, 4) != 0);
        take(big(head, 0), page)?;
    }
    Ok((position, commits))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    use rusqlite::Connection;

    #[test]
    fn a_log_cut_or_begun_anew_under_its_index_is_a_change_and_no_failure() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.db");
        let writer = Connection::open(&path).unwrap();
        writer
            .execute_batch(
                "PRAGMA journal_mode = WAL; CREATE TABLE t (x); INSERT INTO t VALUES (randomblob(9000))",
            )
            .unwrap();
        let index = read_index(&File::open(directory.path().join("x.db-shm")).unwrap())
            .unwrap()
            .unwrap();
        let bytes = std::fs::read(directory.path().join("x.db-wal")).unwrap();
        let copy = directory.path().join("copy");
        let read = |bytes: &[u8]| {
            std::fs::write(&copy, bytes).unwrap();
            read_frames(&File::open(&copy).unwrap(), Position::NONE, &index, |_, _| Ok(()))
        };
        let (position, commits) = read(&bytes).unwrap();
        assert_eq!((position.frame, commits), (index.last_frame, index.changes));
        for length in 0..bytes.len() {
            assert!(
                matches!(read(&bytes[..length]), Err(Stop::Changed(_))),
                "cut at {length}"
            );
        }
        for at in (0..bytes.len()).step_by(97) {
            let mut other = bytes.clone();
            other[at] ^= 1;
            assert!(!matches!(read(&other), Err(Stop::Io(_))), "flipped at {at}");
        }
    }

    #[test]
    fn an_index_that_is_being_made_is_a_change() {
        let file = tempfile::tempfile().unwrap();
        let error = read_index(&file).unwrap_err();
        assert!(matches!(Stop::of_shared(error), Stop::Changed(_)));
    }
}
