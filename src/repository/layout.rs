//! Every object key of repository format 1 (DESIGN, section 5). Nothing else builds keys.

use ulid::Ulid;

use crate::types::{GenerationId, Key, RunId, SourceName};

/// The file that makes a URL a repository.
pub fn repository() -> Key {
    Key::from_text("lifeboat.json")
}
/// The page on restoring without Lifeboat.
pub fn restore_page() -> Key {
    Key::from_text("RESTORE.md")
}
/// The script that restores without Lifeboat.
pub fn restore_script() -> Key {
    Key::from_text("restore.py")
}
/// Where the wraps of a generation's identity are.
pub fn generation_prefix(generation: GenerationId) -> String {
    format!("keys/{generation}/")
}
/// All wraps.
pub fn keys_prefix() -> String {
    "keys/".to_owned()
}
/// One wrap of a generation's identity.
pub fn wrap(generation: GenerationId, id: Ulid) -> Key {
    Key::from_text(format!("keys/{generation}/{id}.age"))
}
/// All sources.
pub fn sources_prefix() -> String {
    "sources/".to_owned()
}
/// All runs of a source.
pub fn runs_prefix(source: &SourceName) -> String {
    format!("sources/{source}/runs/")
}
/// The objects of a run.
pub fn run_prefix(source: &SourceName, run: RunId) -> String {
    format!("sources/{source}/runs/{run}/")
}
/// A named object of a run (as `SHA256SUMS` spells it).
pub fn run_object(source: &SourceName, run: RunId, name: &str) -> Key {
    Key::from_text(format!("sources/{source}/runs/{run}/{name}"))
}
/// A pack.
pub fn pack(source: &SourceName, run: RunId, number: u32) -> Key {
    run_object(source, run, &pack_name(number))
}
/// A pack's name within its run.
pub fn pack_name(number: u32) -> String {
    format!("{number}.age")
}
/// The number in a pack's name.
pub fn pack_number(name: &str) -> Option<u32> {
    let number: u32 = name.strip_suffix(".age")?.parse().ok()?;
    (pack_name(number) == name).then_some(number)
}
/// The manifest's name within its run.
pub const MANIFEST: &str = "manifest.age";
/// The references' name within their run.
pub const REFS: &str = "refs";
/// The digests' name within their run.
pub const SUMS: &str = "SHA256SUMS";
/// All commits of a source.
pub fn points_prefix(source: &SourceName) -> String {
    format!("sources/{source}/points/")
}
/// A commit.
pub fn commit(source: &SourceName, run: RunId) -> Key {
    Key::from_text(format!("sources/{source}/points/{run}.json"))
}
/// All tombstones of a source.
pub fn tombstones_prefix(source: &SourceName) -> String {
    format!("sources/{source}/tombstones/")
}
/// A tombstone.
pub fn tombstone(source: &SourceName, run: RunId) -> Key {
    Key::from_text(format!("sources/{source}/tombstones/{run}.json"))
}
/// All holds of a source.
pub fn holds_prefix(source: &SourceName) -> String {
    format!("sources/{source}/holds/")
}
/// A hold.
pub fn hold(source: &SourceName, run: RunId) -> Key {
    Key::from_text(format!("sources/{source}/holds/{run}.json"))
}
/// All records of damage of a source.
pub fn damaged_prefix(source: &SourceName) -> String {
    format!("sources/{source}/damaged/")
}
/// A record of damage.
pub fn damaged(source: &SourceName, id: Ulid) -> Key {
    Key::from_text(format!("sources/{source}/damaged/{id}.json"))
}
/// The log streams of a source (kept for later; sweep leaves them alone).
pub fn log_prefix(source: &SourceName) -> String {
    format!("sources/{source}/log/")
}
/// What drills proved.
pub fn evidence_prefix() -> String {
    "evidence/".to_owned()
}
/// What a drill proved.
pub fn evidence(id: Ulid) -> Key {
    Key::from_text(format!("evidence/{id}.json"))
}
/// The id in a key of evidence.
pub fn evidence_id(key: &Key) -> Option<Ulid> {
    let id = key.as_str().strip_prefix("evidence/")?.strip_suffix(".json")?;
    // Ids are read in small letters too; a name has one spelling.
    id.parse().ok().filter(|id| evidence(*id) == *key)
}
/// Small objects by which a store's abilities are found out.
pub fn probe_prefix(id: Ulid) -> String {
    format!("probe/{id}/")
}
/// All of those.
pub fn probes_prefix() -> String {
    "probe/".to_owned()
}

/// The run named by a `<run>.json` key below a prefix.
pub fn run_of_json(key: &Key, prefix: &str) -> Option<RunId> {
    key.as_str()
        .strip_prefix(prefix)?
        .strip_suffix(".json")?
        .parse()
        .ok()
}
/// The run and object name of a key below [`runs_prefix`].
pub fn run_and_name<'k>(key: &'k Key, runs_prefix: &str) -> Option<(RunId, &'k str)> {
    let (run, name) = key.as_str().strip_prefix(runs_prefix)?.split_once('/')?;
    Some((run.parse().ok()?, name))
}
/// The source named by a key below [`sources_prefix`].
pub fn source_of(key: &Key) -> Option<SourceName> {
    let (source, _) = key.as_str().strip_prefix("sources/")?.split_once('/')?;
    source.parse().ok()
}
/// The generation named by a key below [`keys_prefix`].
pub fn generation_of(key: &Key) -> Option<GenerationId> {
    let (generation, _) = key.as_str().strip_prefix("keys/")?.split_once('/')?;
    generation.parse().ok()
}
/// Whether a key of this text would be one of ours (`init` refuses a URL that holds some without `lifeboat.json`).
pub fn is_ours(key: &Key) -> bool {
    ["keys/", "sources/", "evidence/"]
        .iter()
        .any(|p| key.as_str().starts_with(p))
        || [repository(), restore_page(), restore_script()].contains(key)
}

/// Of any text as a key: what is told of it is there, and spelled in one way only. For `fuzzing`; panics otherwise.
#[doc(hidden)]
pub fn assert_reads_back(text: &str) {
    let key = Key::from_text(text);
    let (source, generation) = (source_of(&key), generation_of(&key));
    if let Some(generation) = generation {
        assert!(text.starts_with(&generation_prefix(generation)));
    }
    if let Some(source) = &source {
        assert!(text.starts_with(&format!("{}{source}/", sources_prefix())));
        type Make = fn(&SourceName, RunId) -> Key;
        let kinds: [(String, Make); 3] = [
            (points_prefix(source), commit),
            (tombstones_prefix(source), tombstone),
            (holds_prefix(source), hold),
        ];
        for (prefix, make) in kinds {
            if let Some(run) = run_of_json(&key, &prefix) {
                assert_eq!(make(source, run), key);
            }
        }
        if let Some((run, name)) = run_and_name(&key, &runs_prefix(source)) {
            assert_eq!(run_object(source, run, name), key);
            if let Some(number) = pack_number(name) {
                assert_eq!(pack(source, run, number), key);
            }
        }
    }
    assert!(source.is_none() && generation.is_none() || is_ours(&key));
    if key.is_plain() {
        let path = std::path::Path::new("/root").join(text);
        let plain = |part| matches!(part, std::path::Component::Normal(_));
        assert!(path.components().skip(1).all(plain) && path.starts_with("/root"));
    }
}
