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

use super::frame::FrameEncoder;
use super::pack::{self, Head, PACK_TARGET, Sealed};
use super::{Repository, layout};
use crate::clock::World;
use crate::error::{Error, Kind, Result};
use crate::types::{Digest, RunId, SourceName};

/// Packs on their way to the store at once.
const UPLOADS_AT_ONCE: usize = 3;

/// Frames on their way beside those that the threads have in hand; a frame is 4 MiB at most. It bounds those, too, that
/// wait in the assembler for one before them.
const FRAMES_WAITING: usize = 4;

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
    shelf: Arc<Mutex<Vec<Vec<u8>>>>,
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
        let shelf = Arc::new(Mutex::new(Vec::new()));
        let jobs_rx = Arc::new(Mutex::new(jobs_rx));
        let workers = (0..threads)
            .map(|_| {
                let (jobs, out, shelf) = (jobs_rx.clone(), compressed_tx.clone(), shelf.clone());
                let failed = failed.clone();
                tokio::task::spawn_blocking(move || guard(&failed, || compress(&jobs, &out, &shelf)))
            })
            .collect();
        drop(compressed_tx);
        let assembler = {
            let (target, failed) = (target.clone(), failed.clone());
            tokio::task::spawn_blocking(move || {
                guard(&failed, || assemble(&target, compressed, &sealed_tx, &failed))
            })
        };
        let uploads = {
            let failed = failed.clone();
            let uploads = async move {
                let result = tokio::select! {
                    biased;
                    () = failed.cancelled() => Err(stopped()),
                    result = upload(target, sealed) => result,
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
            shelf,
        }
    }

    /// An empty buffer, one that was used before if there is one.
    pub fn buffer(&self) -> Vec<u8> {
        let used = self.shelf.lock().ok().and_then(|mut shelf| shelf.pop());
        used.unwrap_or_else(|| Vec::with_capacity(super::frame::FRAME_CONTENT_MAX))
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

fn guard<T>(failed: &CancellationToken, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let result = work();
    if result.is_err() {
        failed.cancel();
    }
    result
}

fn compress(
    jobs: &Mutex<mpsc::Receiver<Job>>,
    out: &mpsc::Sender<Compressed>,
    shelf: &Mutex<Vec<Vec<u8>>>,
) -> Result<()> {
    let mut encoder = FrameEncoder::new()?;
    loop {
        let job = jobs.lock().map_err(|_| stopped())?.blocking_recv();
        let Some(Job {
            sequence,
            mut content,
            room,
        }) = job
        else {
            return Ok(());
        };
        let compressed = Compressed {
            sequence,
            frame: encoder.encode(&content)?,
            content: content.len() as u64,
            room,
        };
        if let Ok(mut shelf) = shelf.lock()
            && shelf.len() < 4
        {
            content.clear();
            shelf.push(content);
        }
        out.blocking_send(compressed).map_err(|_| stopped())?;
    }
}

fn assemble(
    target: &PackerTarget,
    mut frames: mpsc::Receiver<Compressed>,
    out: &mpsc::Sender<ToUpload>,
    failed: &CancellationToken,
) -> Result<Vec<Placed>> {
    let mut places = Vec::new();
    let mut waiting: BTreeMap<u64, Compressed> = BTreeMap::new();
    let mut number = 0;
    let mut plaintext = head(target, number)?;
    let mut content = 0;
    while let Some(frame) = frames.blocking_recv() {
        waiting.insert(frame.sequence, frame);
        while let Some(frame) = waiting.remove(&(places.len() as u64)) {
            places.push(Placed {
                pack: number,
                at: plaintext.len() as u32,
                length: frame.frame.len() as u32,
            });
            plaintext.extend_from_slice(&frame.frame);
            content += frame.content;
            drop(frame.room);
            if plaintext.len() >= PACK_TARGET {
                let full = std::mem::take(&mut plaintext);
                send(target, number, full, false, content, out)?;
                number += 1;
                plaintext = head(target, number)?;
                content = 0;
            }
        }
    }
    if !waiting.is_empty() || failed.is_cancelled() {
        return Err(stopped());
    }
    if content > 0 {
        send(target, number, plaintext, true, content, out)?;
    }
    Ok(places)
}

fn head(target: &PackerTarget, number: u32) -> Result<Vec<u8>> {
    let mut plaintext = Vec::with_capacity(PACK_TARGET + super::frame::FRAME_CONTENT_MAX + 4096);
    plaintext.extend(
        object_head(
            &target.repository,
            &target.source,
            target.run,
            &layout::pack_name(number),
        )
        .to_frame()?,
    );
    Ok(plaintext)
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

fn send(
    target: &PackerTarget,
    number: u32,
    plaintext: Vec<u8>,
    last: bool,
    content: u64,
    out: &mpsc::Sender<ToUpload>,
) -> Result<()> {
    let sealed = pack::seal(plaintext, last, &target.recipient)?;
    out.blocking_send(ToUpload {
        number,
        sealed,
        content,
    })
    .map_err(|_| stopped())
}

async fn upload(target: PackerTarget, mut sealed: mpsc::Receiver<ToUpload>) -> Result<BTreeMap<u32, Stored>> {
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
        let target = target.clone();
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
                .put_digested(&target.world, &key, sealed.bytes, sealed.digest)
                .await?;
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
