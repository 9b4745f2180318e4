//! Memory for a file that is written, brought in beside the writing.
//!
//! New pages for what is written cost more than the writing where memory is not at hand at once (a virtual machine's first
//! touch of it), and a file system lets one thread at a time write a file. Reading the file where it is a hole yet brings
//! the pages in too, and any number of threads may do that.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use tokio::task::JoinHandle;

/// What is brought in at once, bytes.
const PIECE: usize = 4 << 20;
/// Memory is brought in for no more than this beyond what is written, bytes.
const AHEAD: u64 = 16 << 20;

/// ext2 to ext4, XFS, Btrfs, overlays (which lie on one of them): `linux/magic.h`.
const WORTH_IT: [i64; 4] = [0xEF53, 0x5846_5342, 0x9123_683E, 0x794C_7630];

/// Whether reading a hole brings in memory, and costs nothing else: on a network it would ask the server.
fn is_worth_it(file: &File) -> bool {
    rustix::fs::fstatfs(file).is_ok_and(|s| WORTH_IT.contains(&{ s.f_type }))
}

/// Makes an empty file a hole of some length, where reading it is worth it. A length that the file system does not take is
/// told by who writes, if it is true.
pub(crate) fn make_hole(file: &File, length: u64) -> bool {
    is_worth_it(file) && file.set_len(length).is_ok()
}

/// Reads until the buffer is full or the file ends; gives how much that is.
///
/// # Errors
/// The file can not be read.
pub(crate) fn read_up_to(file: &File, at: u64, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match file.read_at(&mut buffer[length..], at + length as u64) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(length)
}

/// Brings in memory ahead of one who writes a file from its beginning to its end.
pub(crate) struct Room {
    file: Arc<File>,
    /// Up to here memory is brought in; 0 where none is.
    size: u64,
    made: u64,
    running: Option<JoinHandle<std::io::Result<Vec<u8>>>>,
}

impl Room {
    /// For an empty file that may be read, and how much will be written to it, as far as is known.
    pub(crate) fn new(file: Arc<File>, size: u64) -> Self {
        // Never as long as it will be: one that was interrupted must be seen to be short. SQLite takes a database whose end
        // is zeros, and refuses one that lacks a page.
        let hole = size.saturating_sub(PIECE as u64);
        let makes = size > AHEAD && make_hole(&file, hole);
        Self {
            file,
            size: if makes { hole } else { 0 },
            made: 0,
            running: None,
        }
    }

    /// What lies behind `at` is written next.
    ///
    /// # Errors
    /// The file can not be read.
    pub(crate) async fn beyond(&mut self, at: u64) -> std::io::Result<()> {
        if self.running.as_ref().is_some_and(|r| !r.is_finished()) {
            return Ok(());
        }
        let from = self.made.max(at);
        if from >= self.size || from > at + AHEAD {
            return Ok(());
        }
        let mut buffer = self.finish().await?.unwrap_or_else(|| vec![0; PIECE]);
        self.made = self.size.min(from + PIECE as u64);
        let length = (self.made - from) as usize;
        let file = self.file.clone();
        self.running = Some(tokio::task::spawn_blocking(move || {
            read_up_to(&file, from, &mut buffer[..length])?;
            Ok(buffer)
        }));
        Ok(())
    }

    /// Waits for what is under way.
    ///
    /// # Errors
    /// The file can not be read.
    pub(crate) async fn finish(&mut self) -> std::io::Result<Option<Vec<u8>>> {
        match self.running.take() {
            Some(running) => running
                .await
                .unwrap_or_else(|e| Err(std::io::Error::other(e)))
                .map(Some),
            None => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 40 << 20;

    async fn written(file: Arc<File>, size: u64) -> (Room, Vec<u8>) {
        let content: Vec<u8> = (0..SIZE).map(|n| (n / 4096 % 251 + n % 7 + 1) as u8).collect();
        let mut room = Room::new(file.clone(), size);
        let mut at = 0;
        for piece in content.chunks(3 << 20) {
            let end = at + piece.len() as u64;
            room.beyond(end).await.unwrap();
            file.write_all_at(piece, at).unwrap();
            at = end;
            assert!(room.made <= at + AHEAD + PIECE as u64);
        }
        room.finish().await.unwrap();
        (room, content)
    }

    fn content_of(file: &File) -> Vec<u8> {
        let mut content = vec![0; file.metadata().unwrap().len() as usize];
        file.read_exact_at(&mut content, 0).unwrap();
        content
    }

    #[tokio::test]
    async fn what_is_written_is_all_there_is() {
        // Here there are file systems of both kinds.
        for directory in [std::env::temp_dir(), "/dev/shm".into()] {
            let file = Arc::new(tempfile::tempfile_in(&directory).unwrap());
            let (room, content) = written(file.clone(), SIZE).await;
            assert!(content_of(&file) == content, "{directory:?}");
            assert_eq!(room.made > 0, is_worth_it(&file), "{directory:?}");
        }
    }

    #[tokio::test]
    async fn a_file_that_is_not_finished_is_short() {
        let file = Arc::new(tempfile::tempfile().unwrap());
        let mut room = Room::new(file.clone(), SIZE);
        for at in (0..SIZE - PIECE as u64).step_by(PIECE) {
            file.write_all_at(&[1; PIECE], at).unwrap();
            room.beyond(at + PIECE as u64).await.unwrap();
            room.finish().await.unwrap();
            assert!(file.metadata().unwrap().len() <= SIZE - PIECE as u64);
        }
    }

    #[tokio::test]
    async fn a_size_that_is_none_costs_nothing() {
        let file = Arc::new(tempfile::tempfile().unwrap());
        let (room, content) = written(file.clone(), u64::MAX >> 1).await;
        assert!(content_of(&file) == content);
        assert_eq!(room.made, 0);
    }
}
