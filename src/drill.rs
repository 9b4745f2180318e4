//! Drills, decided: which point is restored and why that one, which level its checks reach, what the whole comes to, what is
//! to be learned from it. Pure.

mod check;
pub mod measured;

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

pub use check::{Check, clip, told};

use crate::types::RunId;

/// The drill of an identity that is kept elsewhere, which no policy describes.
pub const RECOVERY_KEY: &str = "recovery-key";

/// How far a drill got; each level stands on those below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Every object that the point draws on is there.
    Present,
    /// Each has the digest that was recorded.
    Digests,
    /// Everything decrypts and decodes, and its content has the digests that were recorded.
    Content,
    /// It was restored into a scratch server without an error.
    Restored,
    /// The result equals the facts recorded when it was backed up.
    Facts,
    /// The operator's own checks.
    Own,
    /// The application runs on it.
    Application,
}

impl Level {
    /// All of them, from the lowest.
    pub const ALL: [Self; 7] = [
        Self::Present,
        Self::Digests,
        Self::Content,
        Self::Restored,
        Self::Facts,
        Self::Own,
        Self::Application,
    ];
    /// Its number.
    pub const fn number(self) -> u8 {
        self as u8
    }
    /// What it says, in words.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Present => "objects present",
            Self::Digests => "digests of objects",
            Self::Content => "everything decodes",
            Self::Restored => "restored without an error",
            Self::Facts => "equal to the facts of the backup",
            Self::Own => "your own checks",
            Self::Application => "the application runs",
        }
    }
}

/// How a check, a source's drill or a whole drill ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// As it should be.
    Passed,
    /// Not as it should be.
    Failed,
    /// Whether it is as it should be is not known: something that the drill needs is not there.
    CouldNotRun,
}

impl Outcome {
    /// Its stable name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "failed",
            Self::CouldNotRun => "could_not_run",
        }
    }
    /// In a sentence.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "failed",
            Self::CouldNotRun => "could not run",
        }
    }
}

/// The highest level that the checks reach: every level up to it has none that did not pass, and its own has one that did.
pub fn reached(checks: &[Check]) -> Option<Level> {
    let mut reached = None;
    for level in Level::ALL {
        let mut own = checks.iter().filter(|c| c.level == Some(level.number()));
        if own.clone().any(|c| c.result != Outcome::Passed) {
            break;
        }
        if own.next().is_some() {
            reached = Some(level);
        } else if level <= Level::Facts {
            // Above it a level that nobody asked for is passed over; below, what was not looked at is not reached.
            break;
        }
    }
    reached
}

/// What checks come to: one that failed outweighs one that could not run.
pub fn outcome<'a>(checks: impl IntoIterator<Item = &'a Check>) -> Outcome {
    worst(checks.into_iter().map(|c| c.result))
}

/// The worst of several.
pub fn worst(all: impl IntoIterator<Item = Outcome>) -> Outcome {
    let rank = |o: &Outcome| match o {
        Outcome::Passed => 0,
        Outcome::CouldNotRun => 1,
        Outcome::Failed => 2,
    };
    all.into_iter().max_by_key(rank).unwrap_or(Outcome::CouldNotRun)
}

/// A point that may be drilled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its run.
    pub run: RunId,
    /// The instant it restores to.
    pub at: DateTime<Utc>,
    /// Retention takes it within the drill's window.
    pub expires: bool,
}

/// Which point a drill takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Select {
    /// The newest.
    #[default]
    Latest,
    /// One by chance.
    Random,
    /// The oldest.
    Oldest,
    /// The one that retention takes next.
    BeforeExpiry,
}

impl Select {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Latest, Self::Random, Self::Oldest, Self::BeforeExpiry];
    /// As the policy has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Latest => "latest",
            Self::Random => "random",
            Self::Oldest => "oldest",
            Self::BeforeExpiry => "before-expiry",
        }
    }
}

/// Chooses, and says why. `chance` is a random number; `window` holds for [`Select::Random`]: the newest point is in it always.
pub fn choose(
    candidates: &[Candidate],
    which: Select,
    window: Option<Duration>,
    now: DateTime<Utc>,
    chance: u64,
) -> Option<(Candidate, String)> {
    let mut sorted = candidates.to_vec();
    sorted.sort_by_key(|c| (c.at, c.run));
    let (newest, oldest) = (*sorted.last()?, *sorted.first()?);
    Some(match which {
        Select::Latest => (newest, "the newest point".to_owned()),
        Select::Oldest => (oldest, "the oldest point".to_owned()),
        Select::Random => {
            let span = window.and_then(|w| TimeDelta::from_std(w).ok());
            let from = span.and_then(|span| now.checked_sub_signed(span));
            sorted.retain(|c| c.run == newest.run || from.is_none_or(|from| c.at >= from));
            let count = sorted.len() as u64;
            let place = usize::try_from(chance % count).unwrap_or_default();
            let chosen = sorted.get(place).copied().unwrap_or(newest);
            (chosen, format!("one of {count} points, by chance"))
        }
        Select::BeforeExpiry => match sorted.iter().find(|c| c.expires) {
            Some(next) => (*next, "the point that retention takes next".to_owned()),
            None => (oldest, "the oldest point: retention takes none soon".to_owned()),
        },
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::error::{Error, Kind};

    fn check(level: Option<u8>, result: Outcome) -> Check {
        Check {
            name: String::new(),
            level,
            result,
            expected: String::new(),
            actual: String::new(),
            detail: None,
        }
    }

    #[test]
    fn a_level_stands_on_those_below_it() {
        use Outcome::{CouldNotRun, Failed, Passed};
        let of = |results: &[(u8, Outcome)]| {
            let checks: Vec<_> = results.iter().map(|(l, r)| check(Some(*l), *r)).collect();
            reached(&checks).map(Level::number)
        };
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[(0, Failed), (1, Passed)]), None);
        assert_eq!(of(&[(0, Passed), (1, Passed), (2, Passed)]), Some(2));
        assert_eq!(of(&[(0, Passed), (2, Passed)]), Some(0), "what was not looked at");
        let base = [(0, Passed), (1, Passed), (2, Passed), (3, Passed), (4, Passed)];
        assert_eq!(of(&base), Some(4));
        assert_eq!(
            of(&[&base[..], &[(6, Passed)]].concat()),
            Some(6),
            "nobody has own checks"
        );
        assert_eq!(of(&[&base[..], &[(5, Failed), (6, Passed)]].concat()), Some(4));
        assert_eq!(
            of(&[&base[..], &[(5, Passed), (6, CouldNotRun)]].concat()),
            Some(5)
        );
        assert_eq!(of(&[&base[..], &[(4, Failed)]].concat()), Some(3));
    }

    #[test]
    fn what_a_server_said_is_a_detail_and_never_what_everybody_is_told() {
        let said = "duplicate key (Key (mail)=(ada@example.com) already exists.)";
        let of = |kind| {
            let error = Error::new(kind, "pg_restore failed").because(said).hint("Look.");
            Check::of_error(
                "it is restored",
                Some(Level::Restored),
                Outcome::Failed,
                "no error",
                &error,
            )
        };
        let check = of(Kind::Failed);
        assert_eq!(
            (check.actual.as_str(), check.level),
            ("pg_restore failed (Look.)", Some(3))
        );
        assert!(check.detail.as_deref().unwrap().contains("ada@example.com"));
        assert!(serde_json::to_string(&check).unwrap().contains("ada@example.com"));
        assert!(
            !serde_json::to_string(&check.without_detail())
                .unwrap()
                .contains("detail")
        );
        // What our own checks of bytes say holds no rows, and has no server in it.
        let check = of(Kind::Damaged);
        assert!(check.actual.contains("duplicate key"));
        let plain = Error::failed("there is no room");
        let check = Check::of_error("room", None, Outcome::CouldNotRun, "room", &plain);
        assert_eq!((check.actual.as_str(), check.detail), ("there is no room", None));
    }

    #[test]
    fn what_failed_outweighs_what_could_not_run() {
        use Outcome::{CouldNotRun, Failed, Passed};
        let of = |all: &[Outcome]| outcome(&all.iter().map(|r| check(None, *r)).collect::<Vec<_>>());
        assert_eq!(of(&[Passed, Passed]), Passed);
        assert_eq!(of(&[Passed, CouldNotRun]), CouldNotRun);
        assert_eq!(of(&[CouldNotRun, Failed, Passed]), Failed);
        assert_eq!(of(&[]), CouldNotRun, "nothing was looked at");
    }

    #[test]
    fn a_text_is_cut_to_what_somebody_reads() {
        let long = "ä".repeat(12_600_000);
        let check = Check::compared("x", Level::Own, "v1", long).clipped();
        assert!(check.actual.len() < 2100 && check.actual.ends_with("(25200000 bytes)"));
        assert_eq!(clip("short".to_owned()), "short");
    }

    #[test]
    fn an_objective_is_met_to_the_last_second() {
        let hour = Duration::from_secs(3600);
        assert_eq!(Check::objective("rpo", hour, hour).result, Outcome::Passed);
        let late = Check::objective("rpo", hour, hour + Duration::from_secs(1));
        assert_eq!((late.result, late.actual.as_str()), (Outcome::Failed, "1h 1s"));
    }

    proptest! {
        #[test]
        fn the_point_is_one_that_was_asked_for(
            hours in proptest::collection::vec((0i64..2000, any::<bool>()), 0..40),
            chance in any::<u64>(), days in 0u64..100, which in 0usize..4,
        ) {
            let now: DateTime<Utc> = "2026-11-26T12:00:00Z".parse().unwrap();
            let candidates: Vec<Candidate> = hours.iter().zip(0u64..).map(|((h, expires), n)| Candidate {
                run: RunId::new(ulid::Ulid::from_parts(1_700_000_000_000 + n, u128::from(n))),
                at: now - TimeDelta::hours(*h),
                expires: *expires,
            }).collect();
            let which = [Select::Latest, Select::Random, Select::Oldest, Select::BeforeExpiry][which];
            let window = Duration::from_secs(days * 86_400);
            match choose(&candidates, which, Some(window), now, chance) {
                None => prop_assert!(candidates.is_empty()),
                Some((chosen, _)) => {
                    let newest = candidates.iter().map(|c| c.at).max().unwrap();
                    let oldest = candidates.iter().map(|c| c.at).min().unwrap();
                    prop_assert!(candidates.contains(&chosen));
                    match which {
                        Select::Latest => prop_assert_eq!(chosen.at, newest),
                        Select::Oldest => prop_assert_eq!(chosen.at, oldest),
                        Select::Random => prop_assert!(chosen.at == newest || chosen.at >= now - TimeDelta::from_std(window).unwrap()),
                        Select::BeforeExpiry => {
                            let soon: Vec<_> = candidates.iter().filter(|c| c.expires).map(|c| c.at).collect();
                            prop_assert_eq!(chosen.at, soon.iter().min().copied().unwrap_or(oldest));
                        }
                    }
                }
            }
        }

        #[test]
        fn every_point_has_its_chance(count in 1usize..30) {
            let now: DateTime<Utc> = "2026-11-26T12:00:00Z".parse().unwrap();
            let candidates: Vec<Candidate> = (0..count as u64).map(|n| Candidate {
                run: RunId::new(ulid::Ulid::from_parts(n, 0)),
                at: now - TimeDelta::hours(n as i64),
                expires: false,
            }).collect();
            let chosen: std::collections::BTreeSet<RunId> = (0..count as u64)
                .filter_map(|chance| choose(&candidates, Select::Random, None, now, chance))
                .map(|(c, _)| c.run)
                .collect();
            prop_assert_eq!(chosen.len(), count);
        }
    }
}
