//! For the fuzz targets (`fuzz/`) and the test that replays their corpora: one wrapper around everything that parses what
//! it may not have written, with what must hold whatever the bytes are. No part of the interface; it panics where a
//! property does not hold.

use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt;
use std::path::Path;

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use chrono_tz::Tz;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use ulid::Ulid;

use crate::policy;
use crate::repository::documents::{
    self, Commit, Damage, FORMAT, Hold, Place, Refs, RepositoryDocument, Sums, Tombstone, parse_placed,
};
use crate::repository::evidence;
use crate::repository::frame::{self, FRAME_CONTENT_MAX, FrameEncoder};
use crate::repository::index::{Index, Lines};
use crate::repository::manifest::{Line, ManifestHead, ManifestReader, ManifestWriter, Merge, STRETCH};
use crate::repository::pack::Head;
use crate::repository::{layout, pack as packs};
use crate::schedule::Schedule;
use crate::source::pocketbase::{facts as pocketbase_facts, wal as sqlite_wal};
use crate::source::postgres::facts as postgres_facts;
use crate::types::{Digest, GenerationId, Key, RepositoryId, RunId, SourceName, UnitName};
use crate::when::{self as instants, When};

/// A wrapper.
pub type Wrapper = fn(&[u8]);

/// Every wrapper by the name of its target.
pub const TARGETS: [(&str, Wrapper); 14] = [
    ("pack", pack),
    ("frames", frames),
    ("manifest", manifest),
    ("commit", commit),
    ("refs", refs),
    ("sums", sums),
    ("documents", documents),
    ("policy", policy),
    ("when", when),
    ("cron", cron),
    ("facts", facts),
    ("keys", keys),
    ("wal", wal),
    ("index", index),
];

/// Of the first golden repository, and of no other: a key that guards nothing.
const IDENTITY: &str = "AGE-SECRET-KEY-165P6ZV6JXC95389D76AUJ3UVGKP6QSZ3A2X7MF8XS8GCSVFQUD8QTERW77";

fn place() -> Place {
    Place {
        format: FORMAT,
        repository: RepositoryId::new(Ulid::from_parts(1, 1)),
        source: "app".parse().unwrap_or_else(|_| unreachable!()),
        run: RunId::new(Ulid::from_parts(1, 2)),
    }
}

/// Whether a value holds a number that JSON does not carry exactly.
fn has_fraction(value: &Value) -> bool {
    match value {
        Value::Number(n) => n.is_f64(),
        Value::Array(list) => list.iter().any(has_fraction),
        Value::Object(map) => map.values().any(has_fraction),
        _ => false,
    }
}

fn text_of(data: &[u8]) -> Option<&str> {
    std::str::from_utf8(data).ok()
}

/// A sealed object, or its plaintext: the age header, the head frame, the run of frames.
pub fn pack(data: &[u8]) {
    let Ok(identity) = IDENTITY.parse::<age::x25519::Identity>() else {
        unreachable!()
    };
    let place = place();
    let expected = Head {
        format: FORMAT,
        repository: place.repository,
        source: place.source,
        run: place.run,
        object: "0.age".to_owned(),
    };
    if let Ok(plaintext) = packs::decrypt(data, &[&identity], "an object") {
        assert!(plaintext.len() < data.len());
        assert_eq!(
            packs::open(data, &identity, &expected).is_ok(),
            packs::compare_head(&plaintext, &expected).is_ok()
        );
    }
    if packs::compare_head(data, &expected).is_ok() {
        let mut other = expected;
        other.object = "1.age".to_owned();
        assert!(packs::compare_head(data, &other).is_err());
    }
    frames(data);
}

/// One frame, and a run of them.
pub fn frames(data: &[u8]) {
    if let Ok(content) = frame::decode(data) {
        assert!(content.len() <= FRAME_CONTENT_MAX);
        assert_eq!(frame::content_size(data).ok(), Some(content.len() as u64));
        let mut again = vec![0xAA; content.len()];
        assert!(frame::decode_to(data, &mut again).is_ok() && again == content);
        assert!(frame::decode_to(data, &mut vec![0; content.len() + 1]).is_err());
        assert_eq!(
            frame::decode(&encoded(&content)).ok().as_deref(),
            Some(&content[..])
        );
    }
    // A run of frames says how much it holds, and holds that if every frame decodes. (zstd's stream does not hold a frame to
    // what it claims, if its last block is empty: whoever writes content somewhere decodes frame by frame, as here.)
    let Ok(total) = frame::content_length(data) else {
        return;
    };
    if total > 4 * FRAME_CONTENT_MAX as u64 {
        return;
    }
    let mut found = 0;
    for frame in frame::frames(data)
        .map_while(Result::ok)
        .filter(|f| !frame::is_skippable(f))
    {
        let Ok(content) = frame::decode(frame) else { return };
        found += content.len() as u64;
    }
    assert_eq!(found, total);
}

/// The frame of a content.
fn encoded(content: &[u8]) -> Vec<u8> {
    thread_local! {
        static ENCODER: std::cell::RefCell<Option<FrameEncoder>> = const { std::cell::RefCell::new(None) };
    }
    ENCODER.with_borrow_mut(|kept| {
        let encoder = kept.get_or_insert_with(|| FrameEncoder::new().unwrap_or_else(|_| unreachable!()));
        encoder.encode(content).unwrap_or_else(|_| unreachable!())
    })
}

/// Manifests: compressed, or as texts parted by NULs, the oldest first.
pub fn manifest(data: &[u8]) {
    let open = |plaintext: Vec<u8>| ManifestReader::new(Bytes::from(plaintext), "m");
    if data.starts_with(&0xFD2F_B528u32.to_le_bytes()) {
        if let Ok(reader) = open(data.to_vec()) {
            reader.take_while(std::result::Result::is_ok).for_each(drop);
        }
        return;
    }
    let texts = || data.split(|b| *b == 0).take(9).map(framed);
    for text in texts() {
        if let Ok(reader) = open(text) {
            manifest_comes_back(reader);
        }
    }
    let Ok(readers) = texts().map(open).collect::<Result<Vec<_>, _>>() else {
        return;
    };
    let mut before: Option<Line> = None;
    let mut unit: Option<(UnitName, u64)> = None;
    for line in Merge::new(readers) {
        let Ok(line) = line else { return };
        assert!(before.as_ref().is_none_or(|b| b.order() < line.order()));
        let told: u64 = line.extents().iter().map(|e| u64::from(e.length)).sum();
        match &line {
            Line::Gone { .. } => panic!("a merged manifest names what is gone"),
            Line::Unit { name, size, .. } => {
                assert_eq!(told, if *size <= STRETCH { *size } else { 0 });
                unit = Some((name.clone(), *size));
            }
            Line::Stretch { name, at, length, .. } => {
                assert!(told == u64::from(*length) && told <= STRETCH);
                assert!(unit.as_ref().is_some_and(|(n, s)| n == name && at < s));
            }
        }
        before = Some(line);
    }
}

/// A text in frames, as a manifest is.
fn framed(text: &[u8]) -> Vec<u8> {
    text.chunks(FRAME_CONTENT_MAX).flat_map(encoded).collect()
}

/// What was read from a manifest is written and read again.
fn manifest_comes_back(mut reader: ManifestReader) {
    let head: ManifestHead = reader.head.clone();
    let lines: Vec<Line> = reader.by_ref().map_while(std::result::Result::ok).collect();
    let Ok(mut writer) = ManifestWriter::new(&head, Vec::new()) else {
        unreachable!()
    };
    for line in &lines {
        assert!(writer.push(line).is_ok());
    }
    let Ok(written) = writer.finish() else {
        unreachable!()
    };
    let Ok(again) = ManifestReader::new(Bytes::from(written), "m") else {
        panic!("a manifest that was just written can not be read")
    };
    assert!(has_fraction(&head.facts) || again.head == head);
    assert_eq!(again.collect::<Result<Vec<_>, _>>().ok(), Some(lines));
}

/// The first line of a commit.
pub fn commit(data: &[u8]) {
    let bytes = documents::with_digest(data.to_vec());
    let wanted = serde_json::from_slice::<Commit>(data).ok();
    let place = wanted.as_ref().map_or_else(place, |c| Place {
        format: FORMAT,
        repository: c.repository,
        source: c.source.clone(),
        run: c.run,
    });
    let parse = |bytes: &[u8]| {
        let key = layout::commit(&place.source, place.run);
        Commit::parse(bytes, &key, place.repository, &place.source, place.run)
    };
    let Ok(commit) = parse(&bytes) else { return };
    assert!(commit.format == FORMAT && commit.must_understand.is_empty());
    assert_eq!(Some(&commit), wanted.as_ref());
    let _ = commit.clocks.source_minus_store_ms();
    let mut flipped = bytes;
    flipped[0] ^= 1;
    assert!(parse(&flipped).is_err());
    if let Ok(bytes) = commit.to_bytes()
        && !has_fraction(&commit.facts)
        && !commit.log.as_ref().is_some_and(has_fraction)
    {
        assert_eq!(parse(&bytes).ok(), Some(commit));
    }
}

/// `refs`
pub fn refs(data: &[u8]) {
    let first = data.split(|b| *b == b'\n').find(|l| !l.is_empty());
    let place = first
        .and_then(|l| serde_json::from_slice::<Place>(l).ok())
        .unwrap_or_else(place);
    let key = layout::run_object(&place.source, place.run, layout::REFS);
    let Ok(refs) = Refs::parse(data, &key, &place) else {
        return;
    };
    let packs = refs.0.values().flat_map(|r| &r.packs);
    let total: u64 = packs.map(|(a, b)| u64::from(b - a) + 1).sum();
    assert!(total <= documents::REFERENCED_PACKS_MAX);
    let Ok(written) = refs.to_bytes(&place) else {
        panic!("references that were read can not be written")
    };
    assert_eq!(Refs::parse(&written, &key, &place).ok(), Some(refs));
}

/// `SHA256SUMS` below its first line.
pub fn sums(data: &[u8]) {
    let place = place();
    let key = layout::run_object(&place.source, place.run, layout::SUMS);
    drop(Sums::parse(data, &key, &place));
    let text = [&Sums::default().to_bytes(&place)[..], data].concat();
    let Ok(sums) = Sums::parse(&text, &key, &place) else {
        return;
    };
    let mut other = place.clone();
    other.run = RunId::new(Ulid::from_parts(1, 3));
    assert!(Sums::parse(&text, &key, &other).is_err());
    assert_eq!(Sums::parse(&sums.to_bytes(&place), &key, &place).ok(), Some(sums));
}

/// `lifeboat.json`, tombstones, holds, records of damage, evidence.
pub fn documents(data: &[u8]) {
    let key = layout::repository();
    if let Ok(document) = RepositoryDocument::parse(&documents::with_digest(data.to_vec()), &key, "here") {
        let again = document
            .to_bytes()
            .and_then(|b| RepositoryDocument::parse(&b, &key, "here"));
        assert_eq!(again.ok(), Some(document));
    }
    placed(data, &key, |t: &Tombstone| &t.place);
    placed(data, &key, |h: &Hold| &h.place);
    placed(data, &key, |d: &Damage| &d.place);
    // Evidence: what is read is sealed again, and says the same.
    if let Ok(read) = evidence::Evidence::parse(data) {
        let again = evidence::seal(&read.statement, None)
            .map_err(|e| e.chain())
            .and_then(|sealed| evidence::Evidence::accept(read.id(), &sealed, None));
        let text = |e: &evidence::Evidence| serde_json::to_string(&e.statement).ok();
        assert_eq!(again.ok().as_ref().map(text), Some(text(&read)));
    }
}

fn placed<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(
    data: &[u8],
    key: &Key,
    place_of: fn(&T) -> &Place,
) {
    let place = serde_json::from_slice::<T>(data).map_or_else(|_| place(), |d| place_of(&d).clone());
    let Ok(document) = parse_placed(data, key, place_of, &place) else {
        return;
    };
    let again = documents::to_json(&document).and_then(|b| parse_placed(&b, key, place_of, &place));
    assert_eq!(again.ok(), Some(document));
}

/// The policy file.
pub fn policy(data: &[u8]) {
    let Some(text) = text_of(data) else { return };
    let lines = text.split('\n').count();
    for value in [None, Some("x".to_owned())] {
        if let Err(errors) = policy::parse(text, Path::new("policy.toml"), &|_| value.clone()) {
            let problems = &errors.problems;
            assert!(!problems.is_empty());
            assert!(
                problems
                    .iter()
                    .all(|p| (1..=lines).contains(&p.line) && p.column >= 1)
            );
            assert!(problems.iter().all(|p| !p.message.is_empty()));
        }
    }
}

const ZONES: [Tz; 6] = [
    Tz::UTC,
    Tz::Europe__Berlin,
    Tz::America__New_York,
    Tz::Australia__Lord_Howe,
    Tz::Pacific__Apia,
    Tz::Asia__Kathmandu,
];

/// Two bytes choose a zone and an instant; the rest is text.
fn zoned(data: &[u8]) -> Option<(Tz, DateTime<Utc>, &str)> {
    let ([zone, day], rest) = data.split_first_chunk()?;
    let now = DateTime::from_timestamp(1_767_225_600, 0)? + TimeDelta::hours(i64::from(*day) * 35);
    Some((ZONES[usize::from(*zone) % ZONES.len()], now, text_of(rest)?))
}

/// `--at`
pub fn when(data: &[u8]) {
    let Some((zone, now, text)) = zoned(data) else {
        return;
    };
    let Ok(When::At(instant)) = instants::parse(text, zone, now) else {
        return;
    };
    assert!(instant <= now);
    assert!(!instants::echo(instant, zone).is_empty());
    // The same moment said as RFC 3339 is the same moment.
    let told = instant.to_rfc3339();
    if (DateTime::UNIX_EPOCH..now).contains(&instant) {
        assert_eq!(instants::parse(&told, zone, now).ok(), Some(When::At(instant)));
    }
}

/// A schedule.
pub fn cron(data: &[u8]) {
    let Some((zone, now, text)) = zoned(data) else {
        return;
    };
    let Ok(schedule) = Schedule::parse(text, zone) else {
        return;
    };
    let slots = schedule.next_slots(now, 5);
    assert!(slots.iter().all(|slot| *slot > now) && slots.is_sorted_by(|a, b| a < b));
    if let (Some(usual), [first, .., last]) = (schedule.usual_interval(now), &slots[..]) {
        assert!(!usual.is_zero() && last > first);
    }
}

/// What is recorded beside dumps and copies.
pub fn facts(data: &[u8]) {
    postgres_facts_come_back::<postgres_facts::Cluster>(data);
    postgres_facts_come_back::<postgres_facts::Facts>(data);
    if let Ok(facts) = serde_json::from_slice::<pocketbase_facts::Facts>(data) {
        let again = serde_json::to_vec(&facts)
            .ok()
            .and_then(|b| serde_json::from_slice(&b).ok());
        assert_eq!(again, Some(facts));
    }
}

fn postgres_facts_come_back<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(data: &[u8]) {
    if let Ok(facts) = postgres_facts::decode::<T>("facts", data) {
        let again = postgres_facts::encode("facts", &facts).and_then(|b| postgres_facts::decode("facts", &b));
        assert_eq!(again.ok(), Some(facts));
    }
}

/// Object keys, ids, digests and names of units.
pub fn keys(data: &[u8]) {
    if let Ok(name) = UnitName::from_bytes(data) {
        assert_eq!(name.to_bytes(), data);
        assert_eq!(
            UnitName::try_from(name.as_str().to_owned()).ok(),
            Some(name.clone())
        );
        let path = Path::new("/root").join(name.to_path());
        let inside = |part| matches!(part, std::path::Component::Normal(_));
        assert!(path.starts_with("/root") && path.components().skip(1).all(inside));
    }
    let Some(text) = text_of(data) else { return };
    if let Ok(name) = UnitName::try_from(text.to_owned()) {
        assert_eq!(name.as_str(), text);
    }
    layout::assert_reads_back(text);
    assert!(text.parse::<RunId>().is_ok_and(|id| id.to_string() == text) == text.parse::<RunId>().is_ok());
    assert!(text.parse::<GenerationId>().is_ok() == text.parse::<RunId>().is_ok());
    assert!(
        text.parse::<SourceName>()
            .is_ok_and(|name| name.as_str() == text && !text.contains(['/', '.']))
            == text.parse::<SourceName>().is_ok()
    );
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(digest.to_string(), text);
    }
}

/// Bytes read as a file is.
struct Slice<'a>(&'a [u8]);

impl FileExt for Slice<'_> {
    fn read_at(&self, out: &mut [u8], at: u64) -> std::io::Result<usize> {
        let from = usize::try_from(at).unwrap_or(usize::MAX).min(self.0.len());
        let length = out.len().min(self.0.len() - from);
        out[..length].copy_from_slice(&self.0[from..from + length]);
        Ok(length)
    }
    fn write_at(&self, _: &[u8], _: u64) -> std::io::Result<usize> {
        Err(std::io::ErrorKind::Unsupported.into())
    }
}

/// SQLite's log under its index: 40 bytes of the index, then the log; checksums are made right first, since no random
/// bytes would be.
pub fn wal(data: &[u8]) {
    let Some((head, log)) = data.split_first_chunk::<40>() else {
        return;
    };
    drop(sqlite_wal::read_index(&Slice(data)));
    let mut index = [0; 96];
    index[..40].copy_from_slice(head);
    seal_index(&mut index);
    let Ok(Some(header)) = sqlite_wal::read_index(&Slice(&index)) else {
        panic!("an index with right checksums is not read")
    };
    for log in [log.to_vec(), sealed_log(log, &header)] {
        let log = Slice(&log);
        let mut frames = 0u32;
        let read = sqlite_wal::read_frames(&log, sqlite_wal::Position::NONE, &header, |_, page| {
            assert_eq!(page.len(), header.page_size as usize);
            frames += 1;
            Ok(())
        });
        let Ok((position, commits)) = read else { continue };
        assert_eq!(
            (position.frame, position.salts),
            (header.last_frame, header.salts)
        );
        assert!(frames == header.last_frame && commits <= frames);
        // From there on there is nothing.
        if frames > 0 {
            let again =
                sqlite_wal::read_frames(&log, position, &header, |_, _| panic!("a frame after the last"));
            assert!(again.is_ok_and(|(p, c)| p == position && c == 0));
        }
    }
}

/// SQLite's checksum over words of either order.
fn checksum(bytes: &[u8], word: fn([u8; 4]) -> u32, (mut a, mut b): (u32, u32)) -> (u32, u32) {
    for pair in bytes.chunks_exact(8) {
        a = a
            .wrapping_add(word([pair[0], pair[1], pair[2], pair[3]]))
            .wrapping_add(b);
        b = b
            .wrapping_add(word([pair[4], pair[5], pair[6], pair[7]]))
            .wrapping_add(a);
    }
    (a, b)
}

fn seal_index(index: &mut [u8; 96]) {
    let (a, b) = checksum(&index[..40], u32::from_ne_bytes, (0, 0));
    index[40..44].copy_from_slice(&a.to_ne_bytes());
    index[44..48].copy_from_slice(&b.to_ne_bytes());
    index.copy_within(..48, 48);
}

/// The log with page size, salts and checksums as its index wants them.
fn sealed_log(log: &[u8], index: &sqlite_wal::IndexHeader) -> Vec<u8> {
    let mut log = log.to_vec();
    let frame = 24 + index.page_size as usize;
    if log.len() < 32 {
        return log;
    }
    let big_endian = log[3] & 1 == 1;
    let word: fn([u8; 4]) -> u32 = if big_endian {
        u32::from_be_bytes
    } else {
        u32::from_le_bytes
    };
    log[..4].copy_from_slice(&(0x377F_0682 | u32::from(big_endian)).to_be_bytes());
    log[8..12].copy_from_slice(&index.page_size.to_be_bytes());
    log[16..24].copy_from_slice(&index.salts);
    let mut sums = checksum(&log[..24], word, (0, 0));
    let put = |at: &mut [u8], (a, b): (u32, u32)| {
        at[..4].copy_from_slice(&a.to_be_bytes());
        at[4..8].copy_from_slice(&b.to_be_bytes());
    };
    put(&mut log[24..32], sums);
    for frame in log[32..].chunks_exact_mut(frame) {
        frame[8..16].copy_from_slice(&index.salts);
        sums = checksum(&frame[24..], word, checksum(&frame[..8], word, sums));
        put(&mut frame[16..24], sums);
    }
    log
}

/// A block index without its digest, which is added.
pub fn index(data: &[u8]) {
    let file = rustix::fs::memfd_create("index", rustix::fs::MemfdFlags::CLOEXEC).map(std::fs::File::from);
    let Ok(mut file) = file else { return };
    let digest = *blake3::hash(data).as_bytes();
    if file
        .write_all(data)
        .and_then(|()| file.write_all(&digest))
        .is_err()
    {
        return;
    }
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let Ok(index) = Index::open(Path::new(&path)) else {
        return;
    };
    drop(index.stream_blocks());
    let run_of = |number| index.trailer.runs.get(&number).map(|entry| entry.run);
    if let Ok(records) = index.records() {
        let lines = Lines::new(records, &index.frames, &run_of);
        lines.take_while(std::result::Result::is_ok).for_each(drop);
    }
}
