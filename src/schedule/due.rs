//! A schedule, what was settled of it, and the clock in; what is due, what was missed and why, and when to look again out. Pure.
//!
//! A slot is settled once: a run answers for it, or it is passed over with a reason. Slots are settled in their order, so one
//! instant tells which are: those up to it.

use std::time::Duration;

use chrono::{DateTime, NaiveTime, TimeDelta, TimeZone as _, Utc};
use chrono_tz::Tz;

use super::Schedule;

/// A start that is later than this was missed: the daemon was away, the host was suspended, or the run before went on.
const LATE: TimeDelta = TimeDelta::seconds(60);
/// The clock may step back by this without any slot being run again.
const STEP_BACK: TimeDelta = TimeDelta::hours(1);
/// Slots that are counted one by one when many were missed.
const COUNTED_MAX: u32 = 10_000;

/// What a source asks for beside its slots.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Spread of the start; the source's part of it is fixed by its name.
    pub jitter: Duration,
    /// Missed slots are made good by one run; otherwise they are passed over.
    pub catch_up: bool,
    /// Slots older than this are not caught up.
    pub max_age: Duration,
    /// No run starts in these.
    pub blackout: Vec<Blackout>,
}

/// A span of the day on the wall clock, which may go over midnight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blackout {
    /// Its first minute.
    pub from: NaiveTime,
    /// The first minute after it.
    pub to: NaiveTime,
}

impl Blackout {
    /// Reads `22:00-06:00`.
    pub fn parse(text: &str) -> Option<Self> {
        let time = |t: &str| NaiveTime::parse_from_str(t, "%H:%M").ok();
        let (from, to) = text.split_once('-')?;
        let span = Self {
            from: time(from)?,
            to: time(to)?,
        };
        (span.from != span.to).then_some(span)
    }
    fn has(&self, time: NaiveTime) -> bool {
        if self.from < self.to {
            self.from <= time && time < self.to
        } else {
            self.from <= time || time < self.to
        }
    }
}

/// Why no run answers for a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// One run for a later slot makes it good.
    MadeGood,
    /// It is older than `max_age`.
    TooOld,
    /// `catch_up = "skip"`.
    Skipped,
    /// `catch_up = "skip"`, and it fell into a blackout.
    Blackout,
}

impl Why {
    /// In words, for logs and the status page.
    pub const fn text(self) -> &'static str {
        match self {
            Self::MadeGood => "missed, and made good by a later run",
            Self::TooOld => "missed, and older than max_age",
            Self::Skipped => "missed, and skipped by the policy",
            Self::Blackout => "skipped, since it fell into a blackout",
        }
    }
}

/// Slots that no run answers for, neighbours with one reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passed {
    /// The first.
    pub first: DateTime<Utc>,
    /// The last.
    pub last: DateTime<Utc>,
    /// How many; at least so many when it is [`Self::more`].
    pub count: u32,
    /// They were too many to count.
    pub more: bool,
    /// Why.
    pub why: Why,
}

/// What to do now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// Settled without a run, oldest first.
    pub passed: Vec<Passed>,
    /// The slot to run now.
    pub due: Option<DateTime<Utc>>,
    /// When to look again, if nothing is due; none: the schedule never comes again.
    pub next: Option<DateTime<Utc>>,
    /// All slots up to here are settled, with what is passed and due.
    pub settled: DateTime<Utc>,
    /// The clock stepped back so far that what was settled says nothing any more; slots are taken from now on.
    pub stepped_back: bool,
}

/// The fixed part of the jitter that a name has.
pub fn offset(name: &str, jitter: Duration) -> Duration {
    let digest = blake3::hash(name.as_bytes());
    let mut half = [0; 8];
    half.copy_from_slice(&digest.as_bytes()[..8]);
    let whole = u64::try_from(jitter.as_millis()).unwrap_or(u64::MAX);
    Duration::from_millis(match whole {
        0 => 0,
        whole => u64::from_le_bytes(half) % whole,
    })
}

/// A source's schedule with its rules.
#[derive(Clone, Debug)]
pub struct Timetable {
    schedule: Schedule,
    rules: Rules,
    offset: TimeDelta,
}

impl Timetable {
    /// Of a source.
    pub fn new(name: &str, schedule: Schedule, rules: Rules) -> Self {
        let offset = TimeDelta::from_std(offset(name, rules.jitter)).unwrap_or_default();
        Self {
            schedule,
            rules,
            offset,
        }
    }

    /// When runs will start, as far as nothing comes between: slots with jitter, behind blackouts.
    pub fn next_starts(&self, now: DateTime<Utc>, count: usize) -> Vec<DateTime<Utc>> {
        let slots = std::iter::successors(self.schedule.next(now - self.offset), |slot| {
            self.schedule.next(*slot)
        });
        let mut starts: Vec<DateTime<Utc>> = Vec::new();
        // Slots of one blackout start together, once.
        let slots = slots.take(count * 1500).filter(|slot| self.ever_runs(*slot));
        for start in slots.map(|slot| self.start(slot)) {
            if start > now && starts.last() != Some(&start) {
                starts.push(start);
            }
            if starts.len() == count {
                break;
            }
        }
        starts
    }

    /// When the next run starts, as far as nothing comes between: of a slot after those that are settled.
    pub fn next_start(&self, settled: DateTime<Utc>, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let after = settled.max(now - self.offset);
        let slots = std::iter::successors(self.schedule.next(after), |slot| self.schedule.next(*slot));
        slots
            .take(1500)
            .filter(|slot| self.ever_runs(*slot))
            .map(|slot| self.start(slot))
            .find(|start| *start > now)
    }

    /// Whether a slot is none of the schedule's, and not too old to be run: somebody asked for it.
    pub fn was_asked_for(&self, slot: DateTime<Utc>, now: DateTime<Utc>) -> bool {
        let named = self.schedule.next(slot - TimeDelta::seconds(1)) == Some(slot);
        !named && slot >= self.oldest(now)
    }

    /// Of so many next slots, how many are never run: jitter or a blackout puts them off until they are too old.
    pub fn never_run(&self, now: DateTime<Utc>, count: usize) -> usize {
        let slots = self.schedule.next_slots(now, count);
        slots.iter().filter(|slot| !self.ever_runs(**slot)).count()
    }

    /// Whether a slot is run at all, when nothing comes between.
    fn ever_runs(&self, slot: DateTime<Utc>) -> bool {
        let start = self.start(slot);
        matches!(self.fate(slot, self.oldest(start), start), Fate::Run)
    }

    /// Slots before this are too old to be run.
    fn oldest(&self, now: DateTime<Utc>) -> DateTime<Utc> {
        let max_age = TimeDelta::from_std(self.rules.max_age).ok();
        max_age
            .and_then(|age| now.checked_sub_signed(age))
            .unwrap_or(DateTime::<Utc>::MIN_UTC)
    }

    /// Slots whose time has come and that nobody has settled, whether they wait for jitter or a blackout or not: the newest,
    /// and those that it makes good.
    pub fn pending(
        &self,
        settled: DateTime<Utc>,
        now: DateTime<Utc>,
    ) -> (Option<DateTime<Utc>>, Option<Passed>) {
        let slots = std::iter::successors(self.schedule.next(settled), |slot| self.schedule.next(*slot));
        let (mut newest, mut passed) = (None, None::<Passed>);
        for slot in slots.take_while(|slot| *slot <= now).take(COUNTED_MAX as usize) {
            if let Some(before) = newest.replace(slot) {
                match &mut passed {
                    Some(span) => (span.last, span.count) = (before, span.count + 1),
                    None => {
                        passed = Some(Passed {
                            first: before,
                            last: before,
                            count: 1,
                            more: false,
                            why: Why::MadeGood,
                        });
                    }
                }
            }
        }
        (newest, passed)
    }

    /// What is due at `now`, when all slots up to `settled` are settled.
    pub fn decide(&self, settled: DateTime<Utc>, now: DateTime<Utc>) -> Decision {
        let mut decision = Decision {
            settled,
            ..Decision::default()
        };
        if settled > now + STEP_BACK {
            decision.stepped_back = true;
            decision.settled = now;
        }
        let reached = now - self.offset;
        let mut book = Book::default();
        let oldest = self.oldest(now);
        let mut newest = None;
        let mut at = decision.settled;
        while let Some(slot) = self.schedule.next(at).filter(|slot| *slot <= reached) {
            at = slot;
            if let Some(before) = newest.replace(slot) {
                book.pass(before, self.why(before, oldest));
            }
            if book.counted > COUNTED_MAX && at < oldest - LATE {
                book.skip_counting();
                at = oldest - LATE;
            }
        }
        decision.passed = book.passed;
        if let Some(slot) = newest {
            let mut last = Book::default();
            match self.fate(slot, oldest, now) {
                Fate::Run => {
                    decision.due = Some(slot);
                    decision.settled = slot;
                }
                Fate::Wait(until) => {
                    // It is run later, and makes the others good then.
                    decision.next = Some(until);
                    if let Some(passed) = decision.passed.last() {
                        decision.settled = passed.last;
                    }
                    return decision;
                }
                Fate::Pass(why) => {
                    last.pass(slot, why);
                    decision.settled = slot;
                }
            }
            for passed in last.passed {
                match decision.passed.last_mut() {
                    Some(before) if before.why == passed.why => {
                        before.last = passed.last;
                        before.count += passed.count;
                    }
                    _ => decision.passed.push(passed),
                }
            }
        }
        if decision.due.is_none() {
            let next = self.schedule.next(decision.settled.max(reached));
            decision.next = next.map(|slot| self.start(slot));
        }
        decision
    }

    fn fate(&self, slot: DateTime<Utc>, oldest: DateTime<Utc>, now: DateTime<Utc>) -> Fate {
        let start = slot + self.offset;
        if slot < oldest {
            return Fate::Pass(Why::TooOld);
        }
        if !self.rules.catch_up {
            if self.dark_until(start).is_some() {
                return Fate::Pass(Why::Blackout);
            }
            if now - start > LATE {
                return Fate::Pass(Why::Skipped);
            }
        }
        match self.dark_until(now) {
            Some(until) => Fate::Wait(until),
            None => Fate::Run,
        }
    }

    /// Why a slot that is not the newest is passed.
    fn why(&self, slot: DateTime<Utc>, oldest: DateTime<Utc>) -> Why {
        if slot < oldest {
            Why::TooOld
        } else if self.rules.catch_up {
            Why::MadeGood
        } else if self.dark_until(slot + self.offset).is_some() {
            Why::Blackout
        } else {
            Why::Skipped
        }
    }

    /// When a slot starts that nothing keeps from it.
    fn start(&self, slot: DateTime<Utc>) -> DateTime<Utc> {
        let start = slot + self.offset;
        self.dark_until(start).unwrap_or(start)
    }

    /// The end of the blackout that an instant lies in; through those that follow at once.
    fn dark_until(&self, instant: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let zone = self.schedule.zone;
        let mut at = instant;
        // As many as there are; together they may be the whole day, which the policy's author must have meant.
        for _ in 0..=self.rules.blackout.len() {
            let time = at.with_timezone(&zone).time();
            let Some(span) = self.rules.blackout.iter().find(|span| span.has(time)) else {
                break;
            };
            at = next_time(at, span.to, zone)?;
        }
        (at > instant).then_some(at)
    }
}

enum Fate {
    Run,
    Wait(DateTime<Utc>),
    Pass(Why),
}

/// The first instant after another at which the wall clock shows a time, or has passed it over.
fn next_time(after: DateTime<Utc>, time: NaiveTime, zone: Tz) -> Option<DateTime<Utc>> {
    let mut day = after.with_timezone(&zone).date_naive();
    for _ in 0..3 {
        let local = day.and_time(time);
        let instant = match zone.from_local_datetime(&local) {
            chrono::LocalResult::Single(at) => at.with_timezone(&Utc),
            // The later one: a blackout holds through both of its repeated hours.
            chrono::LocalResult::Ambiguous(_, at) => at.with_timezone(&Utc),
            chrono::LocalResult::None => chrono_tz::GapInfo::new(&local, &zone)?.end?.with_timezone(&Utc),
        };
        if instant > after {
            return Some(instant);
        }
        day = day.succ_opt()?;
    }
    None
}

#[derive(Default)]
struct Book {
    passed: Vec<Passed>,
    counted: u32,
}

impl Book {
    fn pass(&mut self, slot: DateTime<Utc>, why: Why) {
        self.counted += 1;
        match self.passed.last_mut() {
            Some(last) if last.why == why => {
                last.last = slot;
                last.count += 1;
            }
            _ => self.passed.push(Passed {
                first: slot,
                last: slot,
                count: 1,
                more: false,
                why,
            }),
        }
    }
    fn skip_counting(&mut self) {
        if let Some(last) = self.passed.last_mut() {
            last.more = true;
        }
    }
}

/// What waits for its turn.
#[derive(Clone, Debug, PartialEq)]
pub struct Waiting {
    /// The source.
    pub name: String,
    /// Higher goes first.
    pub priority: i32,
    /// Age of its newest point.
    pub age: Option<Duration>,
    /// Its objective.
    pub rpo: Option<Duration>,
    /// Its slot.
    pub slot: DateTime<Utc>,
}

/// In which order those that wait are run: by priority; then by how much of their objective has gone by, sources without any
/// point first; then by slot and name.
pub fn order(waiting: &mut [Waiting]) {
    let share = |w: &Waiting| match (w.age, w.rpo) {
        (None, _) => f64::INFINITY,
        (Some(age), Some(rpo)) if !rpo.is_zero() => age.as_secs_f64() / rpo.as_secs_f64(),
        // Without an objective a day is one.
        (Some(age), _) => age.as_secs_f64() / 86_400.0,
    };
    waiting.sort_by(|a, b| {
        b.priority
            .cmp(&a.priority)
            .then_with(|| share(b).total_cmp(&share(a)))
            .then_with(|| a.slot.cmp(&b.slot))
            .then_with(|| a.name.cmp(&b.name))
    });
}

#[cfg(test)]
mod tests;
