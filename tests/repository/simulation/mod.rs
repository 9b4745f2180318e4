//! A seeded simulation of the store and of everybody who uses it: two writers of one source, two pruners with different
//! policies, an operator, a restorer, and a thief with the writer's credentials. Their processes meet only in the
//! store, each call of which waits for the driver: it chooses who goes on, what fails, how late a reply is, who dies or
//! sleeps for days. After every step the model looks whether a promise was broken. A seed replays a failure:
//!
//! ```text
//! LIFEBOAT_SEED=4711 cargo nextest run a_seed_replays --run-ignored all --no-capture
//! ```

mod actors;
mod ending;
mod fate;
mod model;
mod recording;
mod sea;
mod voyage;

use std::ops::Range;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use lifeboat::store::memory::MemoryOptions;

use self::sea::Actor;
use self::voyage::Voyage;

const WRITERS: [Actor; 2] = [0, 1];
const PRUNERS: [Actor; 2] = [2, 3];
const OPERATOR: Actor = 4;
const RESTORER: Actor = 5;

/// SplitMix64.
pub struct Rng(u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }
    fn chance(&mut self, per_mille: u64) -> bool {
        self.below(1000) < per_mille
    }
}

/// What kind of world a seed makes.
#[derive(Debug)]
struct Weather {
    /// Faults in a thousand calls.
    faults: u64,
    crashes: u64,
    lists: u64,
    suspends: bool,
    skews: bool,
    rollbacks: bool,
    thief: bool,
    one_writer: bool,
    options: MemoryOptions,
}

impl Weather {
    fn calm(&self) -> Self {
        Self {
            faults: 0,
            crashes: 0,
            lists: 0,
            suspends: false,
            skews: false,
            rollbacks: false,
            ..*self
        }
    }
    fn of(rng: &mut Rng) -> Self {
        let thief = rng.chance(200);
        let mode = if thief { 2 } else { rng.below(3) };
        Self {
            faults: [0, 5, 20, 60][rng.below(4) as usize],
            crashes: [0, 5, 15][rng.below(3) as usize],
            lists: [0, 10, 60][rng.below(3) as usize],
            suspends: rng.chance(500),
            skews: rng.chance(400),
            rollbacks: rng.chance(300),
            thief,
            one_writer: rng.chance(400),
            options: MemoryOptions {
                refuses_overwrite: mode == 0,
                keeps_versions: mode == 2,
                locks: mode == 2,
                page: [1000, 7][rng.below(2) as usize],
            },
        }
    }
}

/// What a seed did.
#[derive(Debug, Default)]
pub struct Tally {
    steps: u64,
    points: u64,
    deleted: u64,
    broken: u64,
    runs: u64,
    faults: u64,
    crashes: u64,
    restores: u64,
}

fn sail(seed: u64, steps: u64) -> Tally {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut voyage = Voyage::begin(seed).await;
        for _ in 0..steps {
            voyage.step().await;
        }
        voyage.finish().await
    })
}

#[allow(clippy::print_stdout, reason = "a soak tells what it did")]
fn say(text: &str) {
    println!("{text}");
}

const STEPS: u64 = 3000;

/// Runs seeds on both cores until they are through or the time is over; says how many and what they did.
fn fleet(seeds: Range<u64>, until: Option<Instant>) {
    let next = Mutex::new(seeds);
    let sum = Mutex::new((0u64, Tally::default()));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let Some(seed) = next.lock().unwrap().next() else {
                        return;
                    };
                    if until.is_some_and(|end| Instant::now() > end) {
                        return;
                    }
                    let tally = sail(seed, STEPS);
                    let mut sum = sum.lock().unwrap();
                    sum.0 += 1;
                    let all = &mut sum.1;
                    all.steps += tally.steps;
                    all.points += tally.points;
                    all.deleted += tally.deleted;
                    all.broken += tally.broken;
                    all.runs += tally.runs;
                    all.faults += tally.faults;
                    all.crashes += tally.crashes;
                    all.restores += tally.restores;
                }
            });
        }
    });
    let (seeds, tally) = sum.into_inner().unwrap();
    say(&format!("{seeds} seeds: {tally:?}"));
    // A simulation in which nothing happens shows nothing.
    assert!(tally.points > seeds * 3 && tally.deleted > seeds / 2, "{tally:?}");
}

#[test]
fn nothing_is_lost_in_any_weather() {
    fleet(0..48, None);
}

#[test]
#[ignore = "an hour: scripts/soak"]
fn soak_nothing_is_lost_in_any_weather() {
    let number = |name: &str, default: u64| {
        std::env::var(name)
            .ok()
            .map_or(default, |text| text.parse().expect("a number"))
    };
    let first = number("LIFEBOAT_SEED", 1_000);
    let seconds = number("LIFEBOAT_SOAK_SECONDS", 3_600);
    fleet(
        first..u64::MAX,
        Some(Instant::now() + Duration::from_secs(seconds)),
    );
}

#[test]
#[ignore = "replays one seed: LIFEBOAT_SEED"]
fn a_seed_replays() {
    let seed = std::env::var("LIFEBOAT_SEED").map_or(0, |s| s.parse().expect("a number"));
    say(&format!("{:?}", sail(seed, STEPS)));
}
