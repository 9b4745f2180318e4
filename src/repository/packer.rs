//! The packer: takes frames' contents in order, compresses them on several threads, fills packs, seals and uploads
//! them. Every queue is bounded, so a slow store slows the source and nothing grows.
//!
//! ```text
//! content ─► workers (zstd, decoded again) ─► assembler (in order, packs, age) ─► uploads
//! ```

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::Instrument as _;

use super::frame::{FRAME_CONTENT_MAX, FrameEncoder};
use super::pack::{self, Head, PACK_TARGET, Sealed, Sealing};
use super::{Repository, layout};
use crate::clock::World;
use crate::error::{Error, Kind, Result};
use crate::types::{Digest, RunId, SourceName};

/// Packs on their way to the store at once.
const UPLOADS_AT_ONCE: usize = 3;

/// Frames on their way beside those that the threads have in hand; a frame is 4 MiB at most. It bounds those, too, that
/// wait in the assembler for one before them.
const FRAMES_WAITING: usize = 4;

/// Room for a frame, or for its content: zstd asks for this much (`ZSTD_COMPRESSBOUND`).
const FRAME_BUFFER: usize = FRAME_CONTENT_MAX + (FRAME_CONTENT_MAX >> 8);
/// Room for a pack.
const PACK_BUFFER: usize = pack::sealed_length(PACK_TARGET + FRAME_BUFFER + 4096);

/// Where a frame ended up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Pack number.
    pub pack: u32,
    /// Position in the pack's plaintext.
    pub at: u32,
    /// Length.
    pub length: u32,
}

/// A pack that the store has confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Sealed size.
    pub size: u64,
    /// Its SHA-256.
    pub digest: Digest,
    /// Content in it.
    pub content: u64,
}

/// What a packer did.
#[derive(Debug, Default)]
pub struct Packed {
    /// Places of the frames, in the order they were given.
    pub frames: Vec<Placed>,
    /// Packs by number.
    pub packs: BTreeMap<u32, Stored>,
}

struct Job {
    sequence: u64,
    content: Vec<u8>,
    room: OwnedSemaphorePermit,
}

struct Compressed {
    sequence: u64,
    frame: Vec<u8>,
    content: u64,
    room: OwnedSemaphorePermit,
}

struct ToUpload {
    number: u32,
    sealed: Sealed,
    content: u64,
}

/// Takes contents of frames.
pub struct Packer {
    jobs: mpsc::Sender<Job>,
    room: Arc<Semaphore>,
    next: u64,
    workers: Vec<JoinHandle<Result<()>>>,
    assembler: JoinHandle<Result<Vec<Placed>>>,
    uploads: JoinHandle<Result<BTreeMap<u32, Stored>>>,
    failed: CancellationToken,
    /// A packer that is given up uploads nothing more.
    guard: DropGuard,
    shelves: Arc<Shelves>,
}

/// Buffers that were used before: the first touch of new memory costs more than what is written there.
struct Shelf {
    buffers: Mutex<Vec<Vec<u8>>>,
    /// The capacity of each.
    room: usize,
    /// So many are kept.
    most: usize,
}

struct Shelves {
    frames: Shelf,
    packs: Shelf,
}

impl Shelf {
    fn new(room: usize, most: usize) -> Self {
        Self {
            buffers: Mutex::default(),
            room,
            most,
        }
    }
    /// An empty buffer.
    fn take(&self) -> Vec<u8> {
        let used = self.buffers.lock().ok().and_then(|mut buffers| buffers.pop());
        used.unwrap_or_else(|| Vec::with_capacity(self.room))
    }
    fn give(&self, mut buffer: Vec<u8>) {
        if let Ok(mut buffers) = self.buffers.lock()
            && buffers.len() < self.most
            && buffer.capacity() >= self.room
        {
            buffer.clear();
            buffers.push(buffer);
        }
    }
}

/// Which run a packer writes.
#[derive(Clone, Debug)]
pub struct PackerTarget {
    /// The repository.
    pub repository: Repository,
    /// World, for locks.
    pub world: World,
    /// The source.
    pub source: SourceName,
    /// The run.
    pub run: RunId,
    /// What packs are encrypted to.
    pub recipient: age::x25519::Recipient,
    /// Threads that compress.
    pub threads: usize,
}

impl Packer {
    /// Starts the threads.
    pub fn start(target: PackerTarget) -> Self {
        let threads = target.threads.max(1);
        let (jobs, jobs_rx) = mpsc::channel::<Job>(threads + FRAMES_WAITING);
        let (compressed_tx, compressed) = mpsc::channel::<Compressed>(threads + FRAMES_WAITING);
        let (sealed_tx, sealed) = mpsc::channel::<ToUpload>(1);
        let failed = CancellationToken::new();
        let shelves = Arc::new(Shelves {
            frames: Shelf::new(FRAME_BUFFER, 4),
            packs: Shelf::new(PACK_BUFFER, 1),
        });
        let jobs_rx = Arc::new(Mutex::new(jobs_rx));
        let workers = (0..threads)
            .map(|_| {
                let (jobs, out, shelves) = (jobs_rx.clone(), compressed_tx.clone(), shelves.clone());
                let failed = failed.clone();
                tokio::task::spawn_blocking(move || guard(&failed, || compress(&jobs, &out, &shelves.frames)))
            })
            .collect();
        drop(compressed_tx);
        let assembler = {
            let (target, failed, shelves) = (target.clone(), failed.clone(), shelves.clone());
            tokio::task::spawn_blocking(move || {
                let mut assembler = Assembler::new(target, sealed_tx, shelves);
                guard(&failed, || assembler.assemble(compressed, &failed))
            })
        };
        let uploads = {
            let (failed, shelves) = (failed.clone(), shelves.clone());
            let uploads = async move {
                let result = tokio::select! {
                    biased;
                    () = failed.cancelled() => Err(stopped()),
                    result = upload(target, sealed, &shelves) => result,
                };
                if result.is_err() {
                    failed.cancel();
                }
                result
            };
            tokio::spawn(uploads.in_current_span())
        };
        Self {
            jobs,
            room: Arc::new(Semaphore::new(threads + FRAMES_WAITING)),
            next: 0,
            workers,
            assembler,
            uploads,
            guard: failed.clone().drop_guard(),
            failed,
            shelves,
        }
    }

    /// An empty buffer, one that was used before if there is one.
    pub fn buffer(&self) -> Vec<u8> {
        self.shelves.frames.take()
    }

    /// Hands over the content of the next frame; its number is the count of frames before it.
    ///
    /// # Errors
    /// A thread or an upload failed; [`Self::finish`] tells why.
    pub async fn push(&mut self, content: Vec<u8>) -> Result<()> {
        let room = tokio::select! {
            biased;
            () = self.failed.cancelled() => return Err(stopped()),
            room = self.room.clone().acquire_owned() => room.map_err(|_| stopped())?,
        };
        let job = Job {
            sequence: self.next,
            content,
            room,
        };
        self.next += 1;
        self.jobs.send(job).await.map_err(|_| stopped())
    }

    /// Waits until every pack is confirmed by the store.
    ///
    /// # Errors
    /// The first thing that failed.
    pub async fn finish(self) -> Result<Packed> {
        drop(self.jobs);
        let guard = self.guard;
        let mut problems = Vec::new();
        for worker in self.workers {
            problems.extend(joined(worker.await).err());
        }
        let frames = joined(self.assembler.await);
        let packs = joined(self.uploads.await);
        match (frames, packs) {
            (Ok(frames), Ok(packs)) if problems.is_empty() => {
                guard.disarm();
                Ok(Packed { frames, packs })
            }
            (frames, packs) => {
                problems.extend(packs.err());
                problems.extend(frames.err());
                // A closed queue is a consequence; the cause is another's.
                problems.sort_by_key(|e| e.message() == STOPPED);
                Err(problems.into_iter().next().unwrap_or_else(stopped))
            }
        }
    }
}

const STOPPED: &str = "packing was stopped";

fn stopped() -> Error {
    Error::failed(STOPPED)
}

fn joined<T>(result: std::result::Result<Result<T>, tokio::task::JoinError>) -> Result<T> {
    result.unwrap_or_else(|e| {
        Err(Error::new(Kind::Failed, "a thread of the packer ended unexpectedly").because(e))
    })
}

/// Stops everything if the work fails, or panics.
fn guard<T>(failed: &CancellationToken, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let stop = failed.clone().drop_guard();
    let result = work()?;
    stop.disarm();
    Ok(result)
}

fn compress(jobs: &Mutex<mpsc::Receiver<Job>>, out: &mpsc::Sender<Compressed>, shelf: &Shelf) -> Result<()> {
    let mut encoder = FrameEncoder::new()?;
    loop {
        let job = jobs.lock().map_err(|_| stopped())?.blocking_recv();
        let Some(Job {
            sequence,
            content,
            room,
        }) = job
        else {
            return Ok(());
        };
        let mut frame = shelf.take();
        encoder.encode_to(&content, &mut frame)?;
        let compressed = Compressed {
            sequence,
            frame,
            content: content.len() as u64,
            room,
        };
        shelf.give(content);
        out.blocking_send(compressed).map_err(|_| stopped())?;
    }
}

/// Lays frames into packs, in their order.
struct Assembler {
    target: PackerTarget,
    out: mpsc::Sender<ToUpload>,
    shelves: Arc<Shelves>,
    number: u32,
    /// The pack that is being filled.
    pack: Option<Sealing>,
    /// Content in it.
    content: u64,
}

impl Assembler {
    fn new(target: PackerTarget, out: mpsc::Sender<ToUpload>, shelves: Arc<Shelves>) -> Self {
        Self {
            target,
            out,
            shelves,
            number: 0,
            pack: None,
            content: 0,
        }
    }

    fn assemble(
        &mut self,
        mut frames: mpsc::Receiver<Compressed>,
        failed: &CancellationToken,
    ) -> Result<Vec<Placed>> {
        let mut places = Vec::new();
        let mut waiting: BTreeMap<u64, Compressed> = BTreeMap::new();
        while let Some(frame) = frames.blocking_recv() {
            waiting.insert(frame.sequence, frame);
            while let Some(frame) = waiting.remove(&(places.len() as u64)) {
                places.push(self.place(frame)?);
            }
        }
        if !waiting.is_empty() || failed.is_cancelled() {
            return Err(stopped());
        }
        if let Some(mut pack) = self.pack.take() {
            pack.pad()?;
            self.send(pack)?;
        }
        Ok(places)
    }

    fn place(&mut self, frame: Compressed) -> Result<Placed> {
        let mut pack = match self.pack.take() {
            Some(pack) => pack,
            None => self.begin()?,
        };
        let place = Placed {
            pack: self.number,
            at: pack.length() as u32,
            length: frame.frame.len() as u32,
        };
        pack.push(&frame.frame)?;
        self.content += frame.content;
        self.shelves.frames.give(frame.frame);
        drop(frame.room);
        if pack.length() >= PACK_TARGET {
            self.send(pack)?;
        } else {
            self.pack = Some(pack);
        }
        Ok(place)
    }

    fn begin(&self) -> Result<Sealing> {
        let target = &self.target;
        let object = layout::pack_name(self.number);
        let head = object_head(&target.repository, &target.source, target.run, &object);
        let mut pack = Sealing::new(&target.recipient, self.shelves.packs.take())?;
        pack.push(&head.to_frame()?)?;
        Ok(pack)
    }

    /// Hands a pack over; the next frame begins another.
    fn send(&mut self, pack: Sealing) -> Result<()> {
        let pack = ToUpload {
            number: self.number,
            sealed: pack.finish()?,
            content: std::mem::take(&mut self.content),
        };
        self.number += 1;
        self.out.blocking_send(pack).map_err(|_| stopped())
    }
}

/// The head of an encrypted object of a run.
pub fn object_head(repository: &Repository, source: &SourceName, run: RunId, object: &str) -> Head {
    Head {
        format: super::documents::FORMAT,
        repository: repository.id(),
        source: source.clone(),
        run,
        object: object.to_owned(),
    }
}

async fn upload(
    target: PackerTarget,
    mut sealed: mpsc::Receiver<ToUpload>,
    shelves: &Arc<Shelves>,
) -> Result<BTreeMap<u32, Stored>> {
    let mut packs = BTreeMap::new();
    let mut running = JoinSet::new();
    loop {
        if running.len() >= UPLOADS_AT_ONCE {
            if let Some(done) = running.join_next().await {
                let (number, stored) = joined(done)?;
                packs.insert(number, stored);
            }
            continue;
        }
        let Some(ToUpload {
            number,
            sealed,
            content,
        }) = sealed.recv().await
        else {
            break;
        };
        let (target, shelves) = (target.clone(), shelves.clone());
        let put = async move {
            target.world.crash.reach("before a pack is put")?;
            let key = layout::pack(&target.source, target.run, number);
            let stored = Stored {
                size: sealed.bytes.len() as u64,
                digest: sealed.digest,
                content,
            };
            target
                .repository
                .put_digested(&target.world, &key, sealed.bytes.clone(), sealed.digest)
                .await?;
            // A store may hold on to it for a while.
            if let Ok(mut bytes) = sealed.bytes.try_into_mut() {
                bytes.clear();
                shelves.packs.give(bytes.into());
            }
            target.world.crash.reach("after a pack was put")?;
            Ok((number, stored))
        };
        running.spawn(put.in_current_span());
    }
    while let Some(done) = running.join_next().await {
        let (number, stored) = joined(done)?;
        packs.insert(number, stored);
    }
    Ok(packs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_that_fails_or_panics_stops_everything_and_no_other() {
        let of = |work: fn() -> Result<()>| {
            let failed = CancellationToken::new();
            let ended = std::panic::catch_unwind(|| guard(&failed, work).is_ok());
            (ended.ok(), failed.is_cancelled())
        };
        assert_eq!(of(|| Ok(())), (Some(true), false));
        assert_eq!(of(|| Err(stopped())), (Some(false), true));
        assert_eq!(of(|| panic!("as an encoder may")), (None, true));
    }
}
