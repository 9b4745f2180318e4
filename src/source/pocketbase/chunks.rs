//! Copies a file in chunks, as fast as the machine's memory and cores allow.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use super::wal::Stop;
use crate::source::room::{make_hole, read_up_to};

/// What is copied at once, bytes; as many of them in a round as there are helpers, and one.
const CHUNK: usize = 1 << 20;
/// The most threads that read ahead.
const HELPERS_MAX: usize = 3;

/// How many threads read ahead on this machine.
pub(super) fn helpers() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    (cores - 1).min(HELPERS_MAX)
}

/// A chunk that a helper has in hand: what was read of it.
type Chunk = (Vec<u8>, std::io::Result<usize>);

/// One that reads ahead for the thread that writes.
struct Helper {
    ask: SyncSender<(u64, Vec<u8>)>,
    answers: Receiver<Chunk>,
}

/// Copies a file that may grow or be cut meanwhile, until it ends, and calls `between` after each round of chunks. Gives how
/// long the copy is: there is no hole in it.
///
/// The helpers read the next chunks, and have memory for them brought in by reading the copy where it is a hole yet (see
/// [`crate::source::room`]).
pub(super) fn copy_chunks(
    helpers: usize,
    from: &File,
    to: &File,
    between: impl FnMut() -> Result<(), Stop>,
) -> Result<u64, Stop> {
    let hole = make_hole(to, from.metadata()?.len());
    let read = |at, buffer: &mut [u8]| read_up_to(from, at, buffer);
    let copied = copy_what_is_read(helpers, &read, to, hole, between)?;
    if to.metadata()?.len() != copied {
        to.set_len(copied)?;
    }
    Ok(copied)
}

/// Reads from a place on until the buffer is full or there is no more.
trait Read: Fn(u64, &mut [u8]) -> std::io::Result<usize> + Sync {}
impl<T: Fn(u64, &mut [u8]) -> std::io::Result<usize> + Sync> Read for T {}

fn copy_what_is_read(
    helpers: usize,
    from: &impl Read,
    to: &File,
    hole: bool,
    mut between: impl FnMut() -> Result<(), Stop>,
) -> Result<u64, Stop> {
    std::thread::scope(|scope| {
        // Where no more threads can be had it is copied with fewer.
        let helpers: Vec<_> = (0..helpers)
            .map_while(|_| {
                let (ask, asked) = sync_channel(1);
                let (answer, answers) = sync_channel(1);
                let work = move || help(from, hole.then_some(to), &asked, &answer);
                let thread = std::thread::Builder::new().spawn_scoped(scope, work);
                thread.is_ok().then_some(Helper { ask, answers })
            })
            .collect();
        let mut buffers = vec![vec![0; CHUNK]; helpers.len()];
        let mut buffer = vec![0; CHUNK];
        let mut at = 0;
        loop {
            for (place, (helper, buffer)) in (1u64..).zip(helpers.iter().zip(buffers.drain(..))) {
                let ahead = at + place * CHUNK as u64;
                helper.ask.send((ahead, buffer)).map_err(|_| gone())?;
            }
            let mut length = from(at, &mut buffer)?;
            to.write_all_at(&buffer[..length], at)?;
            let mut copied = length;
            for helper in &helpers {
                let (buffer, read) = helper.answers.recv().map_err(|_| gone())?;
                let read = read?;
                // What comes behind a chunk that ended early is not taken: the file may have grown since.
                if length == CHUNK {
                    length = read;
                    to.write_all_at(&buffer[..length], at + copied as u64)?;
                    copied += length;
                }
                buffers.push(buffer);
            }
            if copied == 0 {
                return Ok(at);
            }
            at += copied as u64;
            between()?;
        }
    })
}

fn help(from: &impl Read, hole: Option<&File>, asked: &Receiver<(u64, Vec<u8>)>, answer: &SyncSender<Chunk>) {
    while let Ok((at, mut buffer)) = asked.recv() {
        let room = hole.map_or(Ok(0), |to| read_up_to(to, at, &mut buffer));
        let read = room.and_then(|_| from(at, &mut buffer));
        if answer.send((buffer, read)).is_err() {
            break;
        }
    }
}

fn gone() -> Stop {
    Stop::Io(std::io::Error::other("a thread that copies ended unexpectedly"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(content: &[u8]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(content, 0).unwrap();
        file
    }

    fn content_of(file: &File) -> Vec<u8> {
        let mut content = vec![0; file.metadata().unwrap().len() as usize];
        file.read_exact_at(&mut content, 0).unwrap();
        content
    }

    fn bytes(length: usize) -> Vec<u8> {
        (0..length).map(|n| (n / 4096 % 251 + n % 7 + 1) as u8).collect()
    }

    #[test]
    fn the_copy_is_the_file_whatever_its_length_and_the_helpers() {
        for helpers in 0..=HELPERS_MAX {
            for length in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 4 * CHUNK, 9 * CHUNK + 5] {
                let content = bytes(length);
                let to = file(b"what was there before");
                let mut rounds = 0;
                let copied = copy_chunks(helpers, &file(&content), &to, || {
                    rounds += 1;
                    Ok(())
                })
                .unwrap();
                assert_eq!(copied, length as u64);
                assert!(content_of(&to) == content, "{length} bytes, {helpers} helpers");
                assert_eq!(rounds, length.div_ceil(CHUNK * (helpers + 1)));
            }
        }
    }

    #[test]
    fn a_file_that_grows_has_no_hole_in_its_copy() {
        let content = bytes(9 * CHUNK + 5);
        for helpers in 0..=HELPERS_MAX {
            let from = file(&content[..CHUNK + 7]);
            let to = file(b"");
            let mut rounds = 0;
            let copied = copy_chunks(helpers, &from, &to, || {
                rounds += 1;
                let more = (2 * CHUNK + 100) * (rounds + 1);
                from.write_all_at(&content[..more.min(content.len())], 0)?;
                Ok(())
            })
            .unwrap();
            assert_eq!(copied, content.len() as u64);
            assert!(content_of(&to) == content, "{helpers} helpers");
        }
    }

    #[test]
    fn what_came_behind_the_end_since_is_read_again() {
        let content = bytes(4 * CHUNK);
        for helpers in 1..=HELPERS_MAX {
            // The file ended in its first chunk; the next moment there is all of it.
            let first = std::sync::atomic::AtomicBool::new(true);
            let read = |at: u64, buffer: &mut [u8]| {
                let from = &content[content.len().min(at as usize)..];
                let mut length = buffer.len().min(from.len());
                if at == 0 && first.swap(false, std::sync::atomic::Ordering::Relaxed) {
                    length = 1000;
                }
                buffer[..length].copy_from_slice(&from[..length]);
                Ok(length)
            };
            let to = file(b"");
            let copied = copy_what_is_read(helpers, &read, &to, true, || Ok(())).unwrap();
            assert_eq!(copied, content.len() as u64);
            assert!(content_of(&to) == content, "{helpers} helpers");
        }
    }

    #[test]
    fn a_file_that_is_cut_ends_where_it_was_read_to() {
        let content = bytes(9 * CHUNK);
        for helpers in 0..=HELPERS_MAX {
            let from = file(&content);
            let to = file(b"");
            let copied = copy_chunks(helpers, &from, &to, || Ok(from.set_len(CHUNK as u64 / 2)?)).unwrap();
            assert_eq!(copied, ((helpers + 1) * CHUNK) as u64);
            assert!(content_of(&to) == content[..copied as usize], "{helpers} helpers");
        }
    }

    #[test]
    fn what_comes_between_may_end_it() {
        let from = file(&bytes(9 * CHUNK));
        let ended = copy_chunks(1, &from, &file(b""), || Err(Stop::Interrupted));
        assert!(matches!(ended, Err(Stop::Interrupted)));
    }

    #[test]
    fn a_copy_that_can_not_be_written_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("copy");
        std::fs::write(&path, "").unwrap();
        let readable = File::open(path).unwrap();
        let failed = copy_chunks(1, &file(&bytes(CHUNK)), &readable, || Ok(()));
        assert!(matches!(failed, Err(Stop::Io(_))));
    }
}
