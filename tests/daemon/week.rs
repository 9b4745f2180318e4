//! The real process on a clock that runs faster (libfaketime, below every call that tells or waits for time), killed again and
//! again.

use std::process::{Child, Command};
use std::time::{Duration, Instant};

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use lifeboat::state::ledger::Ledger;
use rustix::process::Signal;

use crate::harness::{binary, write_file};
use crate::process::signal;
use crate::site::{Seeded, Site, end};
use crate::slots::each_is_answered_once;
use crate::world::{at, commits};

/// A clock that began at an instant and runs so many times as fast as ours.
struct Fast {
    begin: DateTime<Utc>,
    begun: Instant,
    times: u32,
}

impl Fast {
    fn now(&self) -> DateTime<Utc> {
        self.begin + TimeDelta::from_std(self.begun.elapsed() * self.times).unwrap()
    }

    /// Puts a command on this clock.
    fn on(&self, command: &mut Command) {
        let now = self.now().to_rfc3339_opts(SecondsFormat::Secs, false);
        let wall = now[..19].replace('T', " ");
        command
            .env("LD_PRELOAD", binary("libfaketime"))
            .env("TZ", "UTC")
            .env("NO_FAKE_STAT", "1")
            .env("FAKETIME", format!("@{wall} x{}", self.times));
    }
}

fn start(site: &Site, clock: &Fast) -> Child {
    let mut command = site.backup(&["daemon"]);
    clock.on(&mut command);
    // Nobody reads what it says until it has ended.
    command.env("LIFEBOAT_LOG", "error");
    command
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap()
}

/// Kills a daemon again and again, `kills` times within a span; then every slot of it must be answered for, once.
#[allow(clippy::print_stdout)]
fn killed(seed: u64, times: u32, span: TimeDelta, kills: u32, minutes: i64) {
    let mut site = Site::new(seed);
    site.large = false;
    let policy = std::fs::read_to_string(site.path("policy.toml")).unwrap();
    let schedule = format!("retention = \"short\"\nschedule = \"*/{minutes} * * * *\"\nmax_age = \"30d\"\n");
    let listen = "\n[http]\nlisten = \"127.0.0.1:0\"\ntoken = { env = \"T_TOKEN\" }\n";
    let policy = policy.replace("retention = \"short\"\n", &schedule) + listen;
    write_file(site.dir.path(), "policy.toml", policy);
    site.environment.push(("T_TOKEN".into(), "open sesame".into()));
    let clock = Fast {
        begin: at("2026-11-26T00:00:30Z"),
        begun: Instant::now(),
        times,
    };
    let until = clock.begin + span;
    let mut random = Seeded::new(seed);
    let whole = span.to_std().unwrap() / times / kills;
    let mut killed = 0;
    while clock.now() < until {
        let mut daemon = start(&site, &clock);
        // Somewhere within its share of the span; it lives and dies at every moment of a slot.
        std::thread::sleep(whole.mul_f64(0.5 + random.fraction()));
        assert!(
            daemon.try_wait().unwrap().is_none(),
            "it ended by itself: {}",
            end(daemon)
        );
        daemon.kill().unwrap();
        end(daemon);
        killed += 1;
    }
    // The next one makes good what the last left, and a slot after the span is answered for.
    let daemon = start(&site, &clock);
    let answered = || commits(&site).into_values().flatten().any(|slot| slot > until);
    assert!(crate::harness::poll(Duration::from_secs(60), || answered().then_some(())).is_some());
    signal(&daemon, Signal::TERM);
    let said = end(daemon);
    assert_eq!(said.code, 0, "{said}");
    println!("killed {killed} times");
    assert!(killed * 10 >= kills * 7, "{killed} kills");
    let slots: Vec<_> = commits(&site).into_values().flatten().collect();
    let (ledger, rebuilt) = Ledger::open(&site.path("state")).unwrap();
    // Behind the span a slot may have been under way when the last one was told to end.
    let under_way = ledger.under_way().unwrap();
    assert!(
        !rebuilt && under_way.iter().all(|r| r.slot > until),
        "{under_way:?}"
    );
    let mut records = ledger.since("run app", clock.begin).unwrap();
    records.retain(|r| r.slot <= until);
    let every = TimeDelta::minutes(minutes);
    let first = at("2026-11-26T00:00:00Z") + every;
    let own = each_is_answered_once(&slots, &records, (first, every), until);
    println!("{own} slots with points of their own, {} points", slots.len());
    assert!(
        own * 2 > u32::try_from(span.num_minutes() / minutes).unwrap(),
        "{own} slots"
    );
    site.verifies("a daemon that was killed again and again");
}

#[test]
fn a_daemon_that_is_killed_again_and_again_answers_for_every_slot_once() {
    // Some hours, in half a minute.
    killed(281, 600, TimeDelta::hours(5), 12, 10);
}

#[test]
#[ignore = "a week takes a quarter of an hour: see ARCHITECTURE.md"]
fn a_daemon_that_is_killed_for_a_week_answers_for_every_slot_once() {
    killed(282, 600, TimeDelta::days(7), 120, 60);
}
