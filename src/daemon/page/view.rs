//! What the status page says, from what the daemon shows and remembers: values only, no HTML.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Days, NaiveDate, TimeDelta, Utc};
use chrono_tz::Tz;

use crate::daemon::points::ShownSource;
use crate::daemon::task::BACKOFF;
use crate::daemon::{Shown, ShownTask};
use crate::error::Result;
use crate::schedule::due::Why;
use crate::state::ledger::days::{PassedSpan, Quarter};
use crate::state::ledger::points::PointRecord;
use crate::state::ledger::proofs::Proof;
use crate::state::ledger::{Ledger, SlotRecord};
use crate::types::SourceName;

/// The days of the strip.
pub const DAYS: u64 = 30;
/// A slot that was begun so long after its time is late.
const LATE: TimeDelta = TimeDelta::minutes(15);
/// Points of the size curve.
const SIZES: u32 = 30;
/// The most points that one timeline is made of.
const POINTS: u32 = 20_000;
/// The most rows of a table.
pub const ROWS: u32 = 30;

/// How a day went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Went {
    /// Nothing was to be done.
    Nothing,
    /// Every slot was done.
    Well,
    /// Some late, or made good by a later one.
    Late,
    /// Some were not run at all.
    Missed,
    /// Some failed.
    Failed,
}

impl Went {
    /// In a word.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Nothing => "nothing due",
            Self::Well => "ok",
            Self::Late => "late",
            Self::Missed => "missed",
            Self::Failed => "failed",
        }
    }
}

/// A day of the strip.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Day {
    /// In the policy's zone.
    pub date: NaiveDate,
    /// How it went.
    pub went: Went,
    /// Slots done, late among them, failed, missed.
    pub counts: [u32; 4],
}

/// The last days, oldest first.
pub fn strip(quarters: &[Quarter], passed: &[PassedSpan], zone: Tz, now: DateTime<Utc>) -> Vec<Day> {
    let day = |at: DateTime<Utc>| at.with_timezone(&zone).date_naive();
    let today = day(now);
    let mut counts: BTreeMap<NaiveDate, [u32; 4]> = BTreeMap::new();
    for quarter in quarters {
        let of = counts.entry(day(quarter.start)).or_default();
        of[0] += quarter.done;
        of[1] += quarter.late;
        of[2] += quarter.failed;
    }
    for span in passed.iter().filter(|span| span.why != Why::Blackout.text()) {
        // What a later slot made good is late; its run is that slot's.
        let column = if span.why == Why::MadeGood.text() { 1 } else { 3 };
        let (first, last) = (day(span.first), day(span.last));
        let days = (last - first).num_days().max(0);
        // Known are both ends and how many; what lies between had some when there are enough for each day.
        let each = i64::from(span.count) > days;
        let dates = first.iter_days().take_while(|d| *d <= last);
        for date in dates.filter(|d| each || *d == first || *d == last) {
            counts.entry(date).or_default()[column] += 1;
        }
    }
    let dates = (0..DAYS)
        .rev()
        .filter_map(|back| today.checked_sub_days(Days::new(back)));
    dates
        .map(|date| {
            let counts = counts.get(&date).copied().unwrap_or_default();
            let [done, late, failed, missed] = counts;
            let went = match () {
                () if failed > 0 => Went::Failed,
                () if missed > 0 => Went::Missed,
                () if late > 0 => Went::Late,
                () if done > 0 => Went::Well,
                () => Went::Nothing,
            };
            Day { date, went, counts }
        })
        .collect()
}

/// A source's line.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// Its name.
    pub name: SourceName,
    /// Its kind.
    pub kind: &'static str,
    /// What is not well.
    pub problems: Vec<String>,
    /// Its points are known.
    pub known: bool,
    /// The age of the newest point.
    pub age: Option<Duration>,
    /// How old it may be.
    pub objective: Option<Duration>,
    /// How many points restore.
    pub points: u32,
    /// The size of the newest, bytes.
    pub content: u64,
    /// Sizes of the last points, oldest first, bytes.
    pub sizes: Vec<u64>,
    /// The last days.
    pub days: Vec<Day>,
    /// The slot under way or waiting, in words.
    pub doing: Option<String>,
    /// When the next one starts.
    pub next: Option<DateTime<Utc>>,
    /// It has a schedule.
    pub scheduled: bool,
    /// What drills proved of it, in words.
    pub proven: String,
}

/// A task that is no source's: its name, what is not well, the last days, when it starts next.
pub type TaskLine = (String, Vec<String>, Vec<Day>, Option<DateTime<Utc>>);

/// The front page.
#[derive(Clone, Debug, PartialEq)]
pub struct Overview {
    /// Whose data it is.
    pub environment: String,
    /// The one sentence.
    pub sentence: String,
    /// Nothing needs attention.
    pub well: bool,
    /// Worst first.
    pub lines: Vec<Line>,
    /// Drills, retention and verification.
    pub tasks: Vec<TaskLine>,
    /// What is not well with the daemon itself.
    pub notes: Vec<String>,
    /// When it was made, and the policy's zone.
    pub made: (DateTime<Utc>, Tz),
}

/// Makes the front page.
///
/// # Errors
/// The daemon's memory can not be read.
pub fn overview(shown: &Shown, ledger: &Ledger, now: DateTime<Utc>) -> Result<Overview> {
    let mut lines = Vec::new();
    for source in &shown.sources {
        lines.push(line(shown, source, ledger, now)?);
    }
    // What needs attention first; then what would lose most, measured by what it may.
    lines.sort_by(|a, b| {
        let rank = |l: &Line| {
            let ratio = match (l.age, l.objective) {
                (Some(age), Some(objective)) => age.as_secs_f64() / objective.as_secs_f64().max(1.0),
                _ => 0.0,
            };
            (l.problems.is_empty(), l.known, ratio)
        };
        let ((a1, a2, a3), (b1, b2, b3)) = (rank(a), rank(b));
        (a1, a2)
            .cmp(&(b1, b2))
            .then(b3.total_cmp(&a3))
            .then(a.name.cmp(&b.name))
    });
    let mut tasks = Vec::new();
    for task in shown.tasks.iter().filter(|t| !t.key.starts_with("run ")) {
        let problems = troubles(ledger, task, now)?;
        tasks.push((
            task.key.clone(),
            problems,
            days(shown, ledger, &task.key, now)?,
            task.next,
        ));
    }
    let mut notes = Vec::new();
    if shown.stopping {
        notes.push("The daemon stops.".to_owned());
    }
    if shown.reload.is_some_and(|(_, taken)| !taken) {
        notes.push("The policy on disk is not taken: an older one is in use. The log says why.".to_owned());
    }
    if let Some(why) = &shown.memory {
        notes.push(format!("Nothing is begun: {why}."));
    }
    if let Some(why) = &shown.repository {
        notes.push(format!("The repository can not be asked: {why}."));
    }
    if let Some(why) = &shown.evidence {
        notes.push(format!("What drills proved can not be told: {why}."));
    }
    if let Some(until) = shown.held_until {
        notes.push(format!(
            "The clock was set back: what was run already is not run again, so nothing starts before {}.",
            clock(until, shown.zone)
        ));
    }
    if shown.owed > 0 {
        notes.push(match shown.owed {
            1 => "1 notice was not taken yet by the place that the policy names.".to_owned(),
            n => format!("{n} notices were not taken yet by the places that the policy names."),
        });
    }
    let (sentence, well) = sentence(&lines, &tasks);
    Ok(Overview {
        environment: shown.environment.clone(),
        sentence,
        well,
        lines,
        tasks,
        notes,
        made: (now, shown.zone),
    })
}

/// One sentence for the whole.
fn sentence(lines: &[Line], tasks: &[TaskLine]) -> (String, bool) {
    let worst = lines.iter().filter_map(|l| Some((l.age?, &l.name))).max();
    let loss = worst.map_or_else(String::new, |(age, name)| {
        format!(" Worst possible loss now: {} ({name}).", span(age))
    });
    let unknown = lines.iter().filter(|l| !l.known).count();
    let mut bad = lines.iter().filter(|l| !l.problems.is_empty());
    let count = bad.clone().count();
    let all = lines.len();
    if all == 0 {
        return ("The policy has no sources.".to_owned(), true);
    }
    if let Some(first) = bad.next() {
        let problem = first.problems.first().map_or("", String::as_str);
        let need = if count == 1 { "needs" } else { "need" };
        let sources = if all == 1 { "source" } else { "sources" };
        let text = format!(
            "{count} of {all} {sources} {need} attention: {}, {problem}.{loss}",
            first.name
        );
        return (text, false);
    }
    if unknown > 0 {
        let text = format!("The recovery points of {unknown} of {all} sources are being looked up.");
        return (text, false);
    }
    if let Some((key, ..)) = tasks.iter().find(|(_, problems, ..)| !problems.is_empty()) {
        let text = format!("Every source is recoverable, but {key} needs attention.{loss}");
        return (text, false);
    }
    let subject = match all {
        1 => "The one source is".to_owned(),
        n => format!("All {n} sources are"),
    };
    (format!("{subject} recoverable.{loss}"), true)
}

fn line(shown: &Shown, source: &ShownSource, ledger: &Ledger, now: DateTime<Utc>) -> Result<Line> {
    let key = format!("run {}", source.name);
    let task = shown.tasks.iter().find(|t| t.key == key);
    let points = &source.points;
    let known = points.looked.is_some();
    let age = points.newest.map(|at| (now - at).to_std().unwrap_or_default());
    let mut problems = Vec::new();
    if known && points.points == 0 {
        problems.push("there is no recovery point".to_owned());
    }
    if let (Some(age), Some(objective)) = (age, source.objective)
        && age > objective
    {
        problems.push(format!(
            "its newest recovery point is {} old and may be {} at most",
            span(age),
            span(objective)
        ));
    }
    match points.damaged {
        0 => {}
        1 => problems.push("1 recovery point is damaged".to_owned()),
        n => problems.push(format!("{n} recovery points are damaged")),
    }
    match points.future {
        0 => {}
        1 => problems.push("the time of 1 recovery point lies in the future: a clock was wrong".to_owned()),
        n => problems.push(format!(
            "the times of {n} recovery points lie in the future: a clock was wrong"
        )),
    }
    if let Some(task) = task {
        if let Some((tries, error, next)) = &task.failed {
            problems.push(format!(
                "{tries} of {} tries failed: {error}; the next is at {}",
                BACKOFF.len() + 1,
                clock(*next, shown.zone)
            ));
        }
        problems.extend(troubles(ledger, task, now)?);
    }
    if points.foreign > 0 {
        problems.push(format!(
            "another state directory writes points of it too ({} in the last 7 days): each run of one is a new history for the other",
            points.foreign
        ));
    }
    let mut sizes: Vec<u64> = ledger
        .points(&source.name, SIZES)?
        .iter()
        .map(|p| p.content)
        .collect();
    sizes.reverse();
    let doing = task.and_then(|t| match (t.running, t.waiting) {
        (Some(slot), _) => Some(format!("under way for the slot of {}", clock(slot, shown.zone))),
        (_, Some(slot)) => Some(format!(
            "the slot of {} waits for its turn",
            clock(slot, shown.zone)
        )),
        _ => None,
    });
    Ok(Line {
        name: source.name.clone(),
        kind: source.kind,
        problems,
        known,
        age,
        objective: source.objective,
        points: points.points,
        content: points.content,
        sizes,
        days: days(shown, ledger, &key, now)?,
        doing,
        next: task.and_then(|t| t.next),
        scheduled: task.is_some(),
        proven: proven(source.proof.proof.as_ref(), now),
    })
}

/// Whether its newest proven point was drilled, when, and at which level.
fn proven(proof: Option<&Proof>, now: DateTime<Utc>) -> String {
    match proof {
        None => "what drills proved is not known yet".to_owned(),
        Some(Proof { newest: None, .. }) => "never proven".to_owned(),
        Some(Proof {
            newest: Some((at, level)),
            ..
        }) => format!(
            "proven at level {level}, {} ago",
            span((now - *at).to_std().unwrap_or_default())
        ),
    }
}

/// Since when, and why, its slots are not done.
fn troubles(ledger: &Ledger, task: &ShownTask, now: DateTime<Utc>) -> Result<Vec<String>> {
    let Some(since) = task.trouble else {
        return Ok(Vec::new());
    };
    let slots = ledger.newest_slots(&task.key, 5)?;
    let cause = slots.iter().find_map(|s| s.error.clone());
    let age = span((now - since).to_std().unwrap_or_default());
    Ok(vec![format!(
        "its slots have failed for {age}: {}",
        cause.unwrap_or_else(|| "no cause is known".to_owned())
    )])
}

fn days(shown: &Shown, ledger: &Ledger, key: &str, now: DateTime<Utc>) -> Result<Vec<Day>> {
    // A day more, since days begin at other times elsewhere.
    let from = now - TimeDelta::days(DAYS as i64 + 1);
    let (quarters, passed) = (ledger.quarters(key, from, LATE)?, ledger.passed(key, from)?);
    Ok(strip(&quarters, &passed, shown.zone, now))
}

/// The page of a source.
#[derive(Clone, Debug, PartialEq)]
pub struct SourceView {
    /// Its line.
    pub line: Line,
    /// Its points, newest first.
    pub points: Vec<PointRecord>,
    /// Its slots, newest first.
    pub slots: Vec<SlotRecord>,
    /// Slots that no run answered for, newest first.
    pub passed: Vec<PassedSpan>,
    /// Whose data it is.
    pub environment: String,
    /// Where the policy is, as a shell takes it.
    pub policy: String,
    /// When it was made, and the policy's zone.
    pub made: (DateTime<Utc>, Tz),
}

/// Makes the page of a source; `None`: the policy has none of that name.
///
/// # Errors
/// The daemon's memory can not be read.
pub fn source(shown: &Shown, ledger: &Ledger, name: &str, now: DateTime<Utc>) -> Result<Option<SourceView>> {
    let Some(source) = shown.sources.iter().find(|s| s.name.as_str() == name) else {
        return Ok(None);
    };
    let key = format!("run {}", source.name);
    let mut passed = ledger.passed(&key, now - TimeDelta::days(DAYS as i64))?;
    passed.reverse();
    Ok(Some(SourceView {
        line: line(shown, source, ledger, now)?,
        points: ledger.points(&source.name, POINTS)?,
        slots: ledger.newest_slots(&key, ROWS)?,
        passed,
        environment: shown.environment.clone(),
        policy: shown.policy.clone(),
        made: (now, shown.zone),
    }))
}

/// A span of time for people: two units, the larger ones.
pub fn span(of: Duration) -> String {
    let seconds = of.as_secs();
    let units = [("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)];
    let Some(first) = units.iter().position(|(_, unit)| seconds >= *unit) else {
        return "0 s".to_owned();
    };
    let (name, unit) = units[first];
    let text = format!("{} {name}", seconds / unit);
    match units.get(first + 1) {
        Some((name, small)) if seconds % unit >= *small && seconds / unit < 10 => {
            format!("{text} {} {name}", seconds % unit / small)
        }
        _ => text,
    }
}

/// An instant for people, in a zone.
pub fn clock(at: DateTime<Utc>, zone: Tz) -> String {
    // Slots are whole minutes; what is asked for or tried again is not.
    let form = match at.timestamp() % 60 {
        0 => "%Y-%m-%d %H:%M %Z",
        _ => "%Y-%m-%d %H:%M:%S %Z",
    };
    at.with_timezone(&zone).format(form).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    #[test]
    fn a_day_is_told_by_the_worst_of_its_slots_in_the_zone_of_the_policy() {
        let zone: Tz = "Asia/Kolkata".parse().unwrap();
        let now = at("2026-11-26T12:00:00Z");
        let quarter = |start, done, late, failed| Quarter {
            start: at(start),
            done,
            late,
            failed,
        };
        let passed = |first, last, count, why: Why| PassedSpan {
            first: at(first),
            last: at(last),
            count,
            why: why.text().to_owned(),
        };
        let quarters = [
            // 00:00 and 23:45 of the 20th there.
            quarter("2026-11-19T18:30:00Z", 1, 0, 0),
            quarter("2026-11-20T18:15:00Z", 1, 0, 0),
            quarter("2026-11-21T03:00:00Z", 3, 1, 0),
            quarter("2026-11-22T03:00:00Z", 3, 1, 1),
            quarter("2026-11-26T03:00:00Z", 1, 0, 0),
        ];
        let spans = [
            passed("2026-11-23T03:00:00Z", "2026-11-23T09:00:00Z", 7, Why::MadeGood),
            passed("2026-11-24T03:00:00Z", "2026-11-25T09:00:00Z", 30, Why::TooOld),
            passed("2026-11-26T02:00:00Z", "2026-11-26T02:00:00Z", 1, Why::Blackout),
        ];
        let days = strip(&quarters, &spans, zone, now);
        assert_eq!(days.len(), 30);
        assert_eq!(days[0].date.to_string(), "2026-10-28");
        let last: Vec<Went> = days[22..].iter().map(|d| d.went).collect();
        use Went::*;
        assert_eq!(last, [Nothing, Well, Late, Failed, Late, Missed, Missed, Well]);
        assert_eq!(days[23].counts, [2, 0, 0, 0]);
    }

    fn some(name: &str, minutes: u64, problem: Option<&str>) -> Line {
        Line {
            name: name.parse().unwrap(),
            kind: "pocketbase",
            problems: problem.map(str::to_owned).into_iter().collect(),
            known: true,
            age: Some(Duration::from_secs(minutes * 60)),
            objective: None,
            points: 1,
            content: 1,
            sizes: Vec::new(),
            days: Vec::new(),
            doing: None,
            next: None,
            scheduled: true,
            proven: "never proven".to_owned(),
        }
    }

    #[test]
    fn one_sentence_tells_the_whole() {
        let well = [
            some("orders", 41, None),
            some("app", 3, None),
            some("media", 9, None),
        ];
        let told = sentence(&well, &[]);
        assert_eq!(
            told,
            (
                "All 3 sources are recoverable. Worst possible loss now: 41 min (orders).".to_owned(),
                true
            )
        );
        let bad = [some("orders", 90, Some("there is no room")), some("app", 3, None)];
        let told = sentence(&bad, &[]);
        assert_eq!(
            told.0,
            "1 of 2 sources needs attention: orders, there is no room. Worst possible loss now: 1 h 30 min (orders)."
        );
        assert!(!told.1);
        let mut unknown = some("app", 0, None);
        (unknown.known, unknown.age) = (false, None);
        assert!(
            !sentence(&[unknown], &[]).1,
            "what is not known is not called well"
        );
        let prune = ("prune".to_owned(), vec!["x".to_owned()], Vec::new(), None);
        assert!(!sentence(&well, &[prune]).1);
        assert_eq!(sentence(&[], &[]).0, "The policy has no sources.");
    }

    #[test]
    fn what_drills_proved_is_said_with_its_level() {
        let now = "2026-11-26T10:00:00Z".parse::<DateTime<Utc>>().unwrap();
        let proof = |newest| Proof {
            newest,
            last: Some((now, 6)),
            restore_seconds: None,
        };
        let told = |newest| proven(Some(&proof(newest)), now);
        assert_eq!(
            told(Some((now - TimeDelta::days(2), 4))),
            "proven at level 4, 2 d ago"
        );
        assert_eq!(told(None), "never proven");
        assert_eq!(proven(None, now), "what drills proved is not known yet");
    }

    #[test]
    fn spans_have_two_units_at_most() {
        let of = |s| span(Duration::from_secs(s));
        let told = [
            of(0),
            of(59),
            of(60),
            of(5400),
            of(86_400 * 9 + 3600),
            of(86_400 * 40 + 3600),
        ];
        assert_eq!(told, ["0 s", "59 s", "1 min", "1 h 30 min", "9 d 1 h", "40 d"]);
    }
}
