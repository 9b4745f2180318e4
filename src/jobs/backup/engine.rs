//! Takes one point: the loop over units, the cuts of a long run, and what to do when the ground gives way.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::io::AsyncReadExt as _;
use tokio_util::sync::CancellationToken;

use super::access::identities;
use super::base::{Base, forget_others};
use super::cutter::{Cutter, Old};
use super::segment::{Committed, Ended, Parent, Segment};
use super::{CUT_AFTER, interrupted};
use crate::clock::World;
use crate::error::{Error, Result};
use crate::jobs::Session;
use crate::policy::SourcePolicy;
use crate::progress::Progress;
use crate::repository::documents::Commit;
use crate::repository::generation::{Generation, KeyRing};
use crate::repository::index::{Index, IndexHead, IndexWriter, PackEntry, RunEntry};
use crate::repository::packer::{Packer, PackerTarget};
use crate::repository::{Repository, layout};
use crate::source::stamps::Stamps;
use crate::source::{Capture, Captured, Context, Source};
use crate::state::{self, StateDir};
use crate::types::{RunId, SourceName, hex, unhex};

/// How often a run is taken anew because what it built on went away.
const ATTEMPTS: u32 = 4;
/// The most threads that compress: each holds some 12 MiB, and a run may take 256 MiB (DESIGN, section 10).
const THREADS_MAX: usize = 6;
/// One read from the source.
const READ: usize = 1 << 20;

/// A recovery point was taken.
#[derive(Clone, Debug)]
pub struct Taken {
    /// Its commit.
    pub commit: Commit,
    /// What the operator should know.
    pub warnings: Vec<String>,
    /// Bytes read from the source, all cuts together.
    pub bytes_read: u64,
    /// Bytes written to the store, all cuts together.
    pub bytes_stored: u64,
    /// Bytes of content that the store had already.
    pub bytes_reused: u64,
}

/// Takes points of one source.
pub struct Engine {
    pub(super) world: World,
    pub(super) repository: Repository,
    pub(super) source: SourceName,
    pub(super) kind: &'static str,
    pub(super) slot: Option<DateTime<Utc>>,
    pub(super) writer: String,
    pub(super) grace: Duration,
    pub(super) directory: PathBuf,
    pub(super) refresh: Option<Duration>,
    pub(super) cancel: CancellationToken,
    pub(super) state: StateDir,
    progress: Arc<dyn Progress>,
    pub(super) recipients: Vec<String>,
    pub(super) keys: tokio::sync::Mutex<KeyRing>,
    /// What the operator should know of this run, beside what the source says.
    pub(super) notes: std::sync::Mutex<Vec<String>>,
    stall_timeout: Duration,
    threads: usize,
    /// How long a run goes on before it is cut (tests shorten it).
    pub cut_after: Duration,
    _lock: state::Lock,
}

/// A run under way.
struct Running {
    run: RunId,
    number: u32,
    started: DateTime<Utc>,
    begun: Duration,
    parent: Option<Parent>,
    runs: BTreeMap<u32, RunEntry>,
    packs: BTreeMap<(u32, u32), PackEntry>,
    packer: Packer,
    generation: Generation,
    /// Totals of the cuts before.
    stored_before: u64,
}

enum Attempt {
    Done(Box<Taken>),
    Lost(BTreeSet<(RunId, u32)>),
    Again(&'static str),
}

impl Engine {
    /// For a source of the policy; locks it.
    ///
    /// # Errors
    /// [`crate::error::Kind::Busy`], or the state directory.
    pub fn new(
        session: &Session,
        repository: Repository,
        source: &SourceName,
        policy: &SourcePolicy,
        slot: Option<DateTime<Utc>>,
    ) -> Result<Self> {
        let state = StateDir::open(&session.policy.state_dir)?;
        let lock = state.lock_source(repository.id(), source)?;
        Ok(Self {
            writer: state.writer(&session.world)?,
            directory: state.source(repository.id(), source)?,
            world: session.world.clone(),
            source: source.clone(),
            kind: policy.kind.name(),
            slot,
            refresh: policy.refresh,
            grace: session.policy.repository.grace,
            cancel: session.cancel.clone(),
            state,
            progress: session.progress.clone(),
            recipients: session.policy.encryption.recipients.clone(),
            keys: tokio::sync::Mutex::new(identities(session)),
            notes: std::sync::Mutex::default(),
            stall_timeout: policy.stall_timeout,
            threads: std::thread::available_parallelism()
                .map_or(2, std::num::NonZero::get)
                .min(THREADS_MAX),
            cut_after: CUT_AFTER,
            repository,
            _lock: lock,
        })
    }

    pub(super) fn reach(&self, place: &'static str) -> Result<()> {
        self.world.crash.reach(place)
    }

    /// Takes a point.
    ///
    /// # Errors
    /// The source, the store, the state directory, an interrupt. Nothing is committed then but finished cuts.
    pub async fn take_point(&self, source: &dyn Source) -> Result<Taken> {
        let mut lost = BTreeSet::new();
        let mut in_full = false;
        for _ in 0..ATTEMPTS {
            match self.attempt(source, &lost, in_full).await? {
                Attempt::Done(taken) => return Ok(*taken),
                Attempt::Lost(more) => {
                    tracing::warn!(source = %self.source, packs = more.len(), "packs of older runs are gone; the run starts over without them");
                    lost.extend(more);
                }
                Attempt::Again(why) => {
                    tracing::warn!(source = %self.source, why, "the run starts over in full");
                    in_full = true;
                }
            }
        }
        Err(Error::failed(format!(
            "what the run of {} builds on went away {ATTEMPTS} times",
            self.source
        ))
        .hint("Somebody removes objects of this repository; `backup verify` shows what is missing."))
    }

    async fn attempt(
        &self,
        source: &dyn Source,
        lost: &BTreeSet<(RunId, u32)>,
        in_full: bool,
    ) -> Result<Attempt> {
        let (generation, renewed) = self.generation().await?;
        let base = if in_full || renewed {
            None
        } else {
            match self.base_or_rebuilt(lost).await? {
                Some(base) if self.opens_to_all(&base).await? => Some(base),
                _ => None,
            }
        };
        let run = RunId::new(self.world.ulid()?);
        tracing::Span::current().record("run", tracing::field::display(run));
        let scratch = self.state.scratch(run)?;
        let context = Context {
            world: self.world.clone(),
            source: self.source.clone(),
            run,
            scratch: scratch.path().to_owned(),
            cancel: self.cancel.clone(),
            progress: self.progress.clone(),
            known: base
                .as_ref()
                .map_or(Ok(Stamps::default()), |base| base.old.stamps())?,
        };
        // It hears of an interrupt by itself: what it began must have ended before the scratch directory goes.
        let mut capture = source.capture(context).await?;
        let result = tokio::select! {
            biased;
            () = self.cancel.cancelled() => Err(interrupted()),
            result = self.read_all(run, base, generation, &mut *capture) => result,
        };
        capture.cleanup().await;
        result
    }

    /// The base; where the index is lost and an identity is at hand, rebuilt.
    async fn base_or_rebuilt(&self, lost: &BTreeSet<(RunId, u32)>) -> Result<Option<Base>> {
        match self.base(lost).await? {
            Some(base) => Ok(Some(base)),
            None => match self.rebuild(&mut *self.keys.lock().await).await? {
                Some(_) => self.base(lost).await,
                None => Ok(None),
            },
        }
    }

    async fn read_all(
        &self,
        run: RunId,
        base: Option<Base>,
        generation: Generation,
        capture: &mut dyn Capture,
    ) -> Result<Attempt> {
        let started = self.world.clock.now();
        let mut key = [0; 32];
        self.world.random.fill(&mut key)?;
        let mut block_size = 0;
        let (mut parent, mut old, mut runs, mut packs) =
            (None, None::<Old>, BTreeMap::new(), BTreeMap::new());
        if let Some(base) = base {
            let head = &base.old.index.trailer.head;
            block_size = head.block_size;
            key = unhex(&head.key)
                .and_then(|k| k.try_into().ok())
                .ok_or_else(|| Error::failed("the block index is damaged"))?;
            runs = base.runs;
            packs = base
                .old
                .index
                .trailer
                .packs
                .iter()
                .map(|(r, p, e)| ((*r, *p), *e))
                .collect();
            let index = Index::open(&self.index_path(base.commit.run))?;
            parent = Some(Parent {
                run: base.commit.run,
                chain: base.chain,
                index,
            });
            old = Some(base.old);
        }
        let mut unit = capture.next().await?;
        if block_size == 0 {
            block_size = block_size_for(unit.as_ref().and_then(|u| u.size_hint).unwrap_or(0));
        }
        let head = IndexHead {
            repository: self.repository.id(),
            source: self.source.clone(),
            run,
            key: hex(&key),
            block_size,
        };
        let number = runs.keys().last().map_or(0, |n| n + 1);
        let index = IndexWriter::create(&self.index_path(run), head)?;
        let mut cutter = Cutter::new(key, block_size, old, index)?;
        let mut running = Running {
            run,
            number,
            started,
            begun: self.world.clock.since_boot(),
            parent,
            runs,
            packs,
            packer: self.packer(run, &generation)?,
            generation,
            stored_before: 0,
        };
        self.progress.phase(&format!("backing up {}", self.source), None);
        let mut buffer = vec![0; READ];
        while let Some(head) = unit {
            if !cutter.begin(&head)? {
                let mut content = capture.open().await?;
                loop {
                    let read = tokio::time::timeout(self.stall_timeout, content.read(&mut buffer));
                    let length = read
                        .await
                        .map_err(|_| self.stalled(&head.name))?
                        .map_err(|e| Error::failed(format!("{} can not be read", head.name)).because(e))?;
                    if length == 0 {
                        break;
                    }
                    cutter.push(&buffer[..length], &mut running.packer).await?;
                    self.progress.advance(length as u64);
                    if self.is_long(&running) && cutter.can_cut() {
                        running = match self.cut(running, &mut cutter).await? {
                            Ok(next) => next,
                            Err(again) => return Ok(again),
                        };
                    }
                }
                drop(content);
                capture.close().await?;
                cutter.end(&mut running.packer).await?;
            }
            unit = capture.next().await?;
            if unit.is_some() && self.is_long(&running) {
                running = match self.cut(running, &mut cutter).await? {
                    Ok(next) => next,
                    Err(again) => return Ok(again),
                };
            }
        }
        let captured = capture.finish().await?;
        self.complete(running, cutter, captured).await
    }

    fn is_long(&self, running: &Running) -> bool {
        self.world.clock.since_boot().saturating_sub(running.begun) >= self.cut_after
    }

    fn stalled(&self, name: &crate::types::UnitName) -> Error {
        Error::failed(format!(
            "{name} gave no byte for {}",
            humantime::format_duration(self.stall_timeout)
        ))
        .hint("The source hangs; stall_timeout in the policy sets how long to wait.")
    }

    fn index_path(&self, run: RunId) -> PathBuf {
        self.directory.join(format!("{run}.index"))
    }

    fn packer(&self, run: RunId, generation: &Generation) -> Result<Packer> {
        Ok(Packer::start(PackerTarget {
            repository: self.repository.clone(),
            world: self.world.clone(),
            source: self.source.clone(),
            run,
            recipient: generation.age_recipient()?,
            threads: self.threads,
        }))
    }

    /// Ends the run here with a partial commit and goes on as a new run with it as parent.
    async fn cut(
        &self,
        running: Running,
        cutter: &mut Cutter,
    ) -> Result<std::result::Result<Running, Attempt>> {
        let Running {
            run,
            number,
            started,
            parent,
            runs,
            packs,
            mut packer,
            generation,
            stored_before,
            ..
        } = running;
        cutter.flush(&mut packer).await?;
        let packed = packer.finish().await?;
        cutter.place(number, &packed)?;
        let next = RunId::new(self.world.ulid()?);
        tracing::Span::current().record("run", tracing::field::display(next));
        let mut head = cutter.index.head().clone();
        head.run = run;
        // The part goes to a file of its own, fenced to the partial commit; the whole goes on in a file for the next run.
        let whole = self.directory.join(format!("{next}.index"));
        let mut head_next = head.clone();
        head_next.run = next;
        let rest = cutter.index.fork(&whole, head_next)?;
        let mut part = std::mem::replace(&mut cutter.index, rest);
        let mut live = cutter.live.clone();
        cutter.append_rest(&mut part, &mut live)?;
        let counts = cutter.counts;
        let segment = Segment {
            run,
            number,
            started,
            parent,
            partial: true,
            runs,
            packs,
            packed,
            live,
            content: counts.content,
            read: counts.read,
            reused: counts.reused,
        };
        let now = self.world.clock.now();
        let so_far = Captured {
            at: now,
            source_clock: now,
            host_clock: now,
            clock_spread_ms: 0,
            facts: serde_json::Value::Null,
            warnings: Vec::new(),
        };
        let committed = match self
            .end(segment, part.finish_records()?, &generation, &so_far)
            .await?
        {
            Ended::Committed(committed) => *committed,
            Ended::Lost(lost) => return Ok(Err(Attempt::Lost(lost))),
            Ended::Again(why) => return Ok(Err(Attempt::Again(why))),
        };
        let mut all_packs = committed.packs;
        // Packs of the old index that the rest may still draw on.
        if let Some(old) = cutter.old() {
            for (r, p, entry) in &old.index.trailer.packs {
                all_packs.entry((*r, *p)).or_insert(*entry);
            }
        }
        let mut all_runs = committed.runs;
        if let Some(old) = cutter.old() {
            for (n, entry) in &old.index.trailer.runs {
                all_runs.entry(*n).or_insert_with(|| entry.clone());
            }
        }
        Ok(Ok(Running {
            run: next,
            number: number + 1,
            started: self.world.clock.now(),
            begun: self.world.clock.since_boot(),
            parent: Some(Parent {
                run,
                chain: committed.chain,
                index: Index::open(&self.index_path(run))?,
            }),
            runs: all_runs,
            packs: all_packs,
            packer: self.packer(next, &generation)?,
            generation,
            stored_before: stored_before + committed.commit.bytes.stored,
        }))
    }

    async fn complete(&self, running: Running, mut cutter: Cutter, captured: Captured) -> Result<Attempt> {
        let Running {
            run,
            number,
            started,
            parent,
            runs,
            packs,
            mut packer,
            generation,
            stored_before,
            ..
        } = running;
        cutter.flush(&mut packer).await?;
        let packed = packer.finish().await?;
        cutter.place(number, &packed)?;
        let Cutter {
            index, live, counts, ..
        } = cutter;
        let segment = Segment {
            run,
            number,
            started,
            parent,
            partial: false,
            runs,
            packs,
            packed,
            live,
            content: counts.content,
            read: counts.read,
            reused: counts.reused,
        };
        let committed = match self
            .end(segment, index.finish_records()?, &generation, &captured)
            .await?
        {
            Ended::Committed(committed) => *committed,
            Ended::Lost(lost) => return Ok(Attempt::Lost(lost)),
            Ended::Again(why) => return Ok(Attempt::Again(why)),
        };
        forget_others(&self.directory, Some(run))?;
        let mut warnings = captured.warnings;
        warnings.extend(self.extend_locks(&committed).await?);
        warnings.append(&mut *self.notes.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(Attempt::Done(Box::new(Taken {
            bytes_read: counts.read,
            bytes_stored: stored_before + committed.commit.bytes.stored,
            bytes_reused: counts.reused,
            commit: committed.commit,
            warnings,
        })))
    }

    /// Object Lock: objects of older runs that this point draws on and that have less than half of their time left.
    async fn extend_locks(&self, committed: &Committed) -> Result<Vec<String>> {
        if self.repository.object_lock().is_none() {
            return Ok(Vec::new());
        }
        let mut keys = Vec::new();
        for (number, entry) in &committed.runs {
            if entry.run == committed.commit.run {
                continue;
            }
            for name in [layout::SUMS, layout::REFS, layout::MANIFEST] {
                keys.push(layout::run_object(&self.source, entry.run, name));
            }
            let packs = committed.packs.keys().filter(|(r, _)| r == number);
            keys.extend(packs.map(|(_, p)| layout::pack(&self.source, entry.run, *p)));
        }
        let refused = self.repository.extend_locks(&self.world, keys).await?;
        Ok(if refused == 0 {
            Vec::new()
        } else {
            vec![format!(
                "the Object Lock of {refused} older objects could not be extended; `backup prune` extends them where its credential may"
            )]
        })
    }
}

/// Blocks are 8 KiB up to 64 GiB of source, 16 KiB up to 512 GiB, else 64 KiB (DESIGN, section 5).
fn block_size_for(size: u64) -> u32 {
    match size {
        s if s <= 64 << 30 => 8 << 10,
        s if s <= 512 << 30 => 16 << 10,
        _ => 64 << 10,
    }
}
