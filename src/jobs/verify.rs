//! Verifies: the bytes are what was written. Digests need no identity; `content` decrypts and decodes too.

use std::collections::{BTreeMap, BTreeSet};

use futures::StreamExt as _;

use super::Session;
use super::report::{Problem, VerifyReport};
use super::session::Role;
use crate::error::{Error, Kind, Result};
use crate::repository::catalog::{Catalog, Point};
use crate::repository::documents::{Damage, Sums};
use crate::repository::generation::KeyRing;
use crate::repository::manifest::Extent;
use crate::repository::reader::OpenPoint;
use crate::repository::{Repository, layout};
use crate::types::{Digest, GenerationId, Key, RunId, SourceName};

/// Objects read at once; each is about 16 MiB.
const READS_AT_ONCE: usize = 4;

/// Digests of stored objects; `content` decrypts and decodes too.
///
/// # Errors
/// The repository can not be read at all; no identity for `content`. Damage is an answer, not an error.
pub async fn verify(
    session: &Session,
    source: Option<&SourceName>,
    sample_percent: Option<u8>,
    content: bool,
) -> Result<VerifyReport> {
    let repository = session.open(Role::Writer).await?;
    // Digests need no identity, so neither is it looked for.
    let mut keys = if content {
        session.key_ring()?
    } else {
        KeyRing::new(Vec::new())
    };
    if content && keys.is_empty() {
        return Err(Error::new(Kind::NoIdentity, "there is no identity to decrypt with")
            .hint("Set encryption.identity in the policy, or give --identity FILE; without --content none is needed."));
    }
    let mut names = repository.sources().await?;
    if let Some(source) = source {
        if !names.contains(source) && !session.policy.sources.contains_key(source) {
            return Err(Error::usage(format!(
                "neither the policy nor the repository has a source {source}"
            )));
        }
        names.retain(|n| n == source);
    }
    let seed = session.world.ulid()?.to_string();
    let mut report = VerifyReport::default();
    for name in &names {
        let mut work = Work {
            session,
            repository: &repository,
            source: name,
            report: &mut report,
            found: BTreeMap::new(),
            sound: BTreeSet::new(),
            generations: BTreeMap::new(),
        };
        work.source(
            sample_percent.map(|p| (p, seed.as_str())),
            content.then_some(&mut keys),
        )
        .await?;
    }
    Ok(report)
}

/// Digests of everything that one point draws on; damage is recorded, as by [`verify`].
///
/// # Errors
/// The repository can not be read at all. Damage is an answer, not an error.
pub async fn verify_point(
    session: &Session,
    repository: &Repository,
    source: &SourceName,
    catalog: &Catalog,
    point: &Point,
) -> Result<VerifyReport> {
    let mut report = VerifyReport::default();
    let mut work = Work {
        session,
        repository,
        source,
        report: &mut report,
        found: BTreeMap::new(),
        sound: BTreeSet::new(),
        generations: BTreeMap::new(),
    };
    let mut expected = Expected::new();
    work.add_expected(point, &mut expected).await?;
    work.read(expected.into_iter().collect()).await?;
    work.wraps().await?;
    work.record(catalog).await?;
    work.record_mended(catalog, false).await?;
    Ok(report)
}

/// An object of a run.
type Object = (RunId, String);
/// What points draw on, with digests.
type Expected = BTreeMap<Object, Digest>;

struct Work<'a> {
    session: &'a Session,
    repository: &'a Repository,
    source: &'a SourceName,
    report: &'a mut VerifyReport,
    /// Damage by run and object.
    found: BTreeMap<Object, String>,
    /// What was read and is as it was written.
    sound: BTreeSet<Object>,
    /// The wraps that commits carry, by generation.
    generations: BTreeMap<GenerationId, BTreeSet<Vec<u8>>>,
}

impl Work<'_> {
    async fn source(&mut self, sample: Option<(u8, &str)>, keys: Option<&mut KeyRing>) -> Result<()> {
        let catalog = self.repository.catalog(self.source).await?;
        for (run, why) in &catalog.unreadable {
            if why.newer {
                self.report.unknown.push(Problem {
                    key: layout::commit(self.source, *run).to_string(),
                    problem: why.problem.clone(),
                });
            } else {
                self.damaged(*run, "commit", why.problem.clone());
            }
        }
        self.report.objects += catalog.points.len() as u64;
        let mut expected = Expected::new();
        for point in catalog.points.values() {
            self.add_expected(point, &mut expected).await?;
        }
        let chosen: Vec<_> = expected
            .iter()
            .filter(|((run, name), _)| {
                sample.is_none_or(|(percent, seed)| in_sample(seed, *run, name, percent))
            })
            .map(|(object, digest)| (object.clone(), *digest))
            .collect();
        self.read(chosen).await?;
        self.wraps().await?;
        let whole = keys.is_some();
        if let Some(keys) = keys {
            self.content(&catalog, &expected, keys).await?;
        }
        self.record(&catalog).await?;
        self.record_mended(&catalog, whole).await
    }

    /// What a point draws on, with digests; plain objects are compared here.
    async fn add_expected(&mut self, point: &Point, expected: &mut Expected) -> Result<()> {
        let commit = &point.commit;
        let run = commit.run;
        let carried = self.generations.entry(commit.generation.id).or_default();
        use base64::Engine as _;
        match base64::engine::general_purpose::STANDARD.decode(&commit.generation.wrap) {
            Ok(wrap) => drop(carried.insert(wrap)),
            Err(_) => self.damaged(run, "commit", "its wrap is not base64".into()),
        }
        match self.repository.sums(self.source, run, commit.sums).await {
            Ok(sums) => {
                self.sound.insert((run, layout::SUMS.to_owned()));
                expected.extend(sums.0.into_iter().map(|(name, digest)| ((run, name), digest)));
            }
            Err(e) => self.object_problem(run, layout::SUMS, e)?,
        }
        let refs = match self.repository.refs(self.source, run, commit.refs).await {
            Ok(refs) => refs,
            Err(e) => return self.object_problem(run, layout::REFS, e),
        };
        for reference in refs.0.values() {
            self.generations.entry(reference.generation).or_default();
            let sums: Sums = match self
                .repository
                .sums(self.source, reference.run, reference.sums)
                .await
            {
                Ok(sums) => sums,
                Err(e) => {
                    self.object_problem(reference.run, layout::SUMS, e)?;
                    continue;
                }
            };
            let packs = reference
                .packs
                .iter()
                .flat_map(|(a, b)| *a..=*b)
                .map(layout::pack_name);
            for name in packs.chain(reference.manifest.then(|| layout::MANIFEST.to_owned())) {
                match sums.0.get(&name) {
                    Some(digest) => {
                        expected.insert((reference.run, name), *digest);
                    }
                    None => self.damaged(
                        run,
                        layout::REFS,
                        format!("it names {name} of run {}, which has none", reference.run),
                    ),
                }
            }
        }
        Ok(())
    }

    async fn read(&mut self, objects: Vec<((RunId, String), Digest)>) -> Result<()> {
        let (repository, source) = (self.repository, self.source);
        let mut results = futures::stream::iter(objects)
            .map(|((run, name), digest)| async move {
                let key = layout::run_object(source, run, &name);
                let read = repository.read(&key).await;
                let found = match read {
                    Ok(Some(bytes)) => {
                        let length = bytes.len() as u64;
                        let digest_found = tokio::task::spawn_blocking(move || Digest::of(&bytes))
                            .await
                            .map_err(|e| Error::failed("a thread ended unexpectedly").because(e));
                        digest_found.map(|d| (Some(d == digest), length))
                    }
                    Ok(None) => Ok((None, 0)),
                    Err(e) => Err(e),
                };
                (run, name, found)
            })
            .buffer_unordered(READS_AT_ONCE);
        while let Some((run, name, found)) = results.next().await {
            if self.session.cancel.is_cancelled() {
                return Err(Error::new(Kind::Interrupted, "interrupted"));
            }
            let (same, length) = found?;
            self.report.objects += 1;
            self.report.bytes += length;
            self.session.progress.advance(length);
            match same {
                Some(true) => drop(self.sound.insert((run, name))),
                Some(false) => {
                    self.found.insert((run, name), Damage::DIFFERS.into());
                }
                None => {
                    self.found.insert((run, name), Damage::MISSING.into());
                }
            }
        }
        Ok(())
    }

    /// Every generation in use has the wrap that its commits carry, and every other wrap is an age file at least (who can
    /// open it, only its identity can tell).
    async fn wraps(&mut self) -> Result<()> {
        for (id, carried) in std::mem::take(&mut self.generations) {
            let prefix = layout::generation_prefix(id);
            let wraps = self.repository.list(&prefix).await?;
            self.report.objects += wraps.len() as u64;
            let mut found: BTreeSet<bytes::Bytes> = BTreeSet::new();
            for object in wraps {
                let Some(bytes) = self.repository.read(&object.key).await? else {
                    continue;
                };
                if !carried.contains(&bytes[..]) && age::Decryptor::new_buffered(&bytes[..]).is_err() {
                    self.report.damaged.push(Problem {
                        key: object.key.to_string(),
                        problem: "it is not a wrap".into(),
                    });
                }
                found.insert(bytes);
            }
            if !carried.iter().all(|wrap| found.contains(&wrap[..])) {
                self.report.missing.push(Problem {
                    key: prefix,
                    problem: "the wrap that commits of this generation carry is missing or damaged".into(),
                });
            }
        }
        Ok(())
    }

    /// Decrypts and decodes every line of every point, each distinct one once.
    async fn content(&mut self, catalog: &Catalog, expected: &Expected, keys: &mut KeyRing) -> Result<()> {
        let mut seen: BTreeSet<[u8; 16]> = BTreeSet::new();
        for point in catalog.points.values().filter(|p| !p.commit.partial) {
            let run = point.commit.run;
            let open = match OpenPoint::open(self.repository, self.source, &point.commit, keys).await {
                Ok(open) => open,
                Err(e) if e.kind() == Kind::Damaged => {
                    let opened_first = self.opened_first(point).await?;
                    if !self.explained(&opened_first, expected).await? {
                        self.damaged(run, layout::MANIFEST, e.chain());
                    }
                    continue;
                }
                Err(e) => return Err(e),
            };
            if let Err(e) = self.lines(&open, expected, &mut seen).await {
                if e.kind() != Kind::Damaged {
                    return Err(e);
                }
                self.damaged(run, layout::MANIFEST, e.chain());
            }
        }
        Ok(())
    }

    /// What is read before the first line of a point.
    async fn opened_first(&self, point: &Point) -> Result<Vec<Object>> {
        let run = point.commit.run;
        let mut names: Vec<Object> = [layout::MANIFEST, layout::REFS, layout::SUMS]
            .map(|name| (run, name.to_owned()))
            .into();
        match self.repository.refs(self.source, run, point.commit.refs).await {
            Ok(refs) => names.extend(refs.0.values().flat_map(|r| {
                let manifest = r.manifest.then(|| (r.run, layout::MANIFEST.to_owned()));
                manifest.into_iter().chain([(r.run, layout::SUMS.to_owned())])
            })),
            Err(e) if e.kind() == Kind::Damaged => {}
            Err(e) => return Err(e),
        }
        Ok(names)
    }

    /// Whether one of these objects is damaged itself: then it is recorded, and not the manifest that names it, from
    /// which points that are whole may hang. What a sample passed over is read now.
    async fn explained(&mut self, objects: &[Object], expected: &Expected) -> Result<bool> {
        let unread = objects
            .iter()
            .filter(|o| !self.found.contains_key(o) && !self.sound.contains(o))
            .filter_map(|o| Some((o.clone(), *expected.get(o)?)))
            .collect();
        self.read(unread).await?;
        Ok(objects.iter().any(|o| self.found.contains_key(o)))
    }

    async fn lines(
        &mut self,
        open: &OpenPoint,
        expected: &Expected,
        seen: &mut BTreeSet<[u8; 16]>,
    ) -> Result<()> {
        let mut worst = None;
        for line in open.lines()? {
            let line = line?;
            if self.session.cancel.is_cancelled() {
                return Err(Error::new(Kind::Interrupted, "interrupted"));
            }
            let mut name = [0; 16];
            name.copy_from_slice(&blake3::hash(format!("{line:?}").as_bytes()).as_bytes()[..16]);
            if !seen.insert(name) {
                continue;
            }
            match open.fetch(&line).await {
                Ok(content) => self.session.progress.advance(content.len() as u64),
                Err(e) if e.kind() == Kind::Damaged => {
                    let pack = |e: &Extent| (e.run, layout::pack_name(e.pack));
                    let packs: BTreeSet<Object> = line.extents().iter().map(pack).collect();
                    if !self
                        .explained(&packs.into_iter().collect::<Vec<_>>(), expected)
                        .await?
                    {
                        worst = Some(e);
                    }
                }
                Err(e) => return Err(e),
            }
        }
        worst.map_or(Ok(()), Err)
    }

    fn object_problem(&mut self, run: RunId, name: &str, e: Error) -> Result<()> {
        if e.kind() != Kind::Damaged {
            return Err(e);
        }
        let text = e.chain();
        let problem = if text.ends_with("is missing") {
            Damage::MISSING.to_owned()
        } else {
            text
        };
        self.found.insert((run, name.to_owned()), problem);
        Ok(())
    }

    fn damaged(&mut self, run: RunId, object: &str, problem: String) {
        self.found.entry((run, object.to_owned())).or_insert(problem);
    }

    /// Records that what was told to be damaged is whole now: a store may have denied for a while what it had, or somebody
    /// brought it back. What only decoding can tell is taken back only after decoding.
    async fn record_mended(&mut self, catalog: &Catalog, content: bool) -> Result<()> {
        for ((run, object), damage) in &catalog.damage {
            let by_digest = [Damage::MISSING, Damage::DIFFERS].contains(&damage.problem.as_str());
            let looked_at = if object == "commit" {
                !damage.is_lasting() && catalog.points.contains_key(run)
            } else {
                let name = (*run, object.clone());
                self.sound.contains(&name) && (by_digest || content || object != layout::MANIFEST)
            };
            let told = |p: &Problem| p.key == key_of(self.source, *run, object).as_str();
            if !looked_at || self.report.damaged.iter().chain(&self.report.missing).any(told) {
                continue;
            }
            let mended = Damage {
                place: self.repository.place(self.source, *run),
                object: object.clone(),
                problem: Damage::MENDED.to_owned(),
                at: self.session.world.clock.now(),
            };
            if let Err(e) = self.repository.record_damage(&self.session.world, &mended).await {
                tracing::warn!(run = %run, object, error = %e.chain(), "an object is whole again and it could not be recorded");
            }
        }
        Ok(())
    }

    /// Tells what was found, and records what is new, so that no damaged point is offered and the next run makes it
    /// good.
    async fn record(&mut self, catalog: &Catalog) -> Result<()> {
        for ((run, object), problem) in std::mem::take(&mut self.found) {
            let key = key_of(self.source, run, &object);
            let told = Problem {
                key: key.to_string(),
                problem: problem.clone(),
            };
            if problem == Damage::MISSING {
                self.report.missing.push(told);
            } else {
                self.report.damaged.push(told);
            }
            if catalog.damage.contains_key(&(run, object.clone())) {
                continue;
            }
            let damage = Damage {
                place: self.repository.place(self.source, run),
                object,
                problem,
                at: self.session.world.clock.now(),
            };
            if let Err(e) = self.repository.record_damage(&self.session.world, &damage).await {
                // A read-only credential may verify; the answer is the same, only nobody else learns of it.
                tracing::warn!(key = %key, error = %e.chain(), "damage was found and could not be recorded");
            }
        }
        Ok(())
    }
}

fn key_of(source: &SourceName, run: RunId, object: &str) -> Key {
    if object == "commit" {
        layout::commit(source, run)
    } else {
        layout::run_object(source, run, object)
    }
}

/// Whether an object is in the sample of this verify.
fn in_sample(seed: &str, run: RunId, name: &str, percent: u8) -> bool {
    let digest = blake3::hash(format!("{seed}/{run}/{name}").as_bytes());
    let number = u32::from_le_bytes([
        digest.as_bytes()[0],
        digest.as_bytes()[1],
        digest.as_bytes()[2],
        0,
    ]);
    number % 100 < u32::from(percent)
}
