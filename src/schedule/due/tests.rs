use proptest::prelude::*;

use super::*;

const HOUR: Duration = Duration::from_secs(3600);

fn rules() -> Rules {
    Rules {
        jitter: Duration::ZERO,
        catch_up: true,
        max_age: 24 * HOUR,
        blackout: Vec::new(),
    }
}

fn table(text: &str, zone: Tz, rules: Rules) -> Timetable {
    Timetable::new("app", Schedule::parse(text, zone).unwrap(), rules)
}

fn at(text: &str) -> DateTime<Utc> {
    text.parse().unwrap()
}

#[test]
fn a_slot_is_due_once_at_its_time() {
    let hourly = table("0 * * * *", Tz::UTC, rules());
    let before = hourly.decide(at("2026-11-26T10:00:00Z"), at("2026-11-26T10:59:59Z"));
    assert_eq!((before.due, &before.passed[..]), (None, &[][..]));
    assert_eq!(before.next, Some(at("2026-11-26T11:00:00Z")));
    let then = hourly.decide(before.settled, at("2026-11-26T11:00:00Z"));
    assert_eq!(
        (then.due, then.settled),
        (Some(at("2026-11-26T11:00:00Z")), at("2026-11-26T11:00:00Z"))
    );
    let after = hourly.decide(then.settled, at("2026-11-26T11:00:01Z"));
    assert_eq!((after.due, after.next), (None, Some(at("2026-11-26T12:00:00Z"))));
}

#[test]
fn missed_slots_are_made_good_by_one_run_or_skipped_and_told() {
    let (settled, now) = (at("2026-11-26T10:00:00Z"), at("2026-11-26T15:20:00Z"));
    let once = table("0 * * * *", Tz::UTC, rules()).decide(settled, now);
    assert_eq!(once.due, Some(at("2026-11-26T15:00:00Z")));
    let passed = Passed {
        first: at("2026-11-26T11:00:00Z"),
        last: at("2026-11-26T14:00:00Z"),
        count: 4,
        more: false,
        why: Why::MadeGood,
    };
    assert_eq!(once.passed, [passed]);
    let skip = Rules {
        catch_up: false,
        ..rules()
    };
    let skipped = table("0 * * * *", Tz::UTC, skip).decide(settled, now);
    assert_eq!(
        (skipped.due, skipped.next),
        (None, Some(at("2026-11-26T16:00:00Z")))
    );
    assert_eq!(
        (skipped.passed[0].count, skipped.passed[0].why),
        (5, Why::Skipped)
    );
    assert_eq!(skipped.passed[0].last, at("2026-11-26T15:00:00Z"));
}

#[test]
fn what_is_too_old_is_not_caught_up() {
    let rules = Rules {
        max_age: 2 * HOUR,
        ..rules()
    };
    let daily = table("0 2 * * *", Tz::UTC, rules);
    let late = daily.decide(at("2026-11-20T02:00:00Z"), at("2026-11-26T05:00:00Z"));
    assert_eq!(late.due, None);
    assert_eq!((late.passed[0].count, late.passed[0].why), (6, Why::TooOld));
    assert_eq!(late.next, Some(at("2026-11-27T02:00:00Z")));
    let soon = daily.decide(at("2026-11-20T02:00:00Z"), at("2026-11-26T03:59:00Z"));
    assert_eq!(
        (soon.due, soon.passed[0].count),
        (Some(at("2026-11-26T02:00:00Z")), 5)
    );
}

#[test]
fn years_of_missed_minutes_are_told_in_a_moment() {
    let minutely = table("* * * * *", Tz::UTC, rules());
    let decision = minutely.decide(at("2006-01-01T00:00:00Z"), at("2026-11-26T00:00:00Z"));
    assert_eq!(decision.due, Some(at("2026-11-26T00:00:00Z")));
    assert!(decision.passed[0].more && decision.passed[0].count > COUNTED_MAX);
    assert_eq!(decision.passed[0].first, at("2006-01-01T00:01:00Z"));
    // Those of the last day are counted.
    assert_eq!(decision.passed[1].why, Why::MadeGood);
    assert_eq!(decision.passed[1].count, 1440);
}

#[test]
fn no_run_starts_in_a_blackout_and_one_does_behind_it() {
    let night = Rules {
        blackout: vec![Blackout::parse("22:00-06:00").unwrap()],
        ..rules()
    };
    let berlin = Tz::Europe__Berlin;
    let hourly = table("30 * * * *", berlin, night.clone());
    let in_it = hourly.decide(at("2026-11-26T20:30:00Z"), at("2026-11-26T21:30:00Z"));
    assert_eq!((in_it.due, in_it.next), (None, Some(at("2026-11-27T05:00:00Z"))));
    assert_eq!(in_it.settled, at("2026-11-26T20:30:00Z"), "it is not settled yet");
    let behind = hourly.decide(in_it.settled, at("2026-11-27T05:00:00Z"));
    assert_eq!(behind.due, Some(at("2026-11-27T04:30:00Z")));
    assert_eq!((behind.passed[0].count, behind.passed[0].why), (7, Why::MadeGood));
    let skip = Rules {
        catch_up: false,
        ..night
    };
    let skipped =
        table("30 * * * *", berlin, skip).decide(at("2026-11-26T20:30:00Z"), at("2026-11-26T21:30:00Z"));
    assert_eq!((skipped.due, skipped.passed[0].why), (None, Why::Blackout));
    assert_eq!(
        hourly.next_starts(at("2026-11-26T20:00:00Z"), 3),
        [
            "2026-11-26T20:30:00Z",
            "2026-11-27T05:00:00Z",
            "2026-11-27T05:30:00Z"
        ]
        .map(at)
    );
    assert!(Blackout::parse("22:00").is_none() && Blackout::parse("06:00-06:00").is_none());
}

#[test]
fn a_clock_that_is_set_back_neither_repeats_slots_nor_waits_for_years() {
    let hourly = table("0 * * * *", Tz::UTC, rules());
    let little = hourly.decide(at("2026-11-26T11:00:00Z"), at("2026-11-26T10:30:00Z"));
    assert_eq!((little.due, little.stepped_back), (None, false));
    assert_eq!(little.next, Some(at("2026-11-26T12:00:00Z")));
    let far = hourly.decide(at("2031-01-01T00:00:00Z"), at("2026-11-26T10:30:00Z"));
    assert!(far.stepped_back && far.due.is_none());
    assert_eq!(far.next, Some(at("2026-11-26T11:00:00Z")));
}

#[test]
fn jitter_is_fixed_by_the_name_and_spreads() {
    let jitter = Duration::from_secs(600);
    assert_eq!(offset("app", jitter), offset("app", jitter));
    assert_eq!(offset("app", Duration::ZERO), Duration::ZERO);
    let offsets: Vec<_> = (0..500).map(|n| offset(&format!("app{n}"), jitter)).collect();
    assert!(offsets.iter().all(|o| *o < jitter));
    let early = offsets.iter().filter(|o| **o < jitter / 2).count();
    assert!((200..300).contains(&early), "{early} of 500 in the first half");
    let spread = Rules { jitter, ..rules() };
    let hourly = table("0 * * * *", Tz::UTC, spread);
    let start = at("2026-11-26T11:00:00Z") + offset("app", jitter);
    assert_eq!(
        hourly
            .decide(at("2026-11-26T10:00:00Z"), start - TimeDelta::milliseconds(1))
            .due,
        None
    );
    assert_eq!(
        hourly.decide(at("2026-11-26T10:00:00Z"), start).due,
        Some(at("2026-11-26T11:00:00Z"))
    );
    assert_eq!(hourly.next_starts(at("2026-11-26T10:30:00Z"), 1), [start]);
}

#[test]
fn the_one_whose_objective_is_most_overdue_goes_first() {
    let waiting = |name: &str, priority, age: Option<u64>, rpo: Option<u64>| Waiting {
        name: name.into(),
        priority,
        age: age.map(Duration::from_secs),
        rpo: rpo.map(Duration::from_secs),
        slot: at("2026-11-26T11:00:00Z"),
    };
    let mut all = vec![
        waiting("young", 0, Some(10), Some(3600)),
        waiting("late", 0, Some(7200), Some(3600)),
        waiting("first", 5, Some(1), Some(3600)),
        waiting("new", 0, None, None),
        waiting("plain", 0, Some(86_400), None),
        waiting("also late", 0, Some(7200), Some(3600)),
    ];
    order(&mut all);
    let names: Vec<_> = all.iter().map(|w| w.name.as_str()).collect();
    assert_eq!(names, ["first", "new", "also late", "late", "plain", "young"]);
}

fn zones() -> impl Strategy<Value = Tz> {
    prop::sample::select(vec![
        Tz::UTC,
        Tz::Europe__Berlin,
        Tz::America__New_York,
        Tz::Australia__Lord_Howe,
        Tz::Africa__Casablanca,
        Tz::Pacific__Apia,
    ])
}

fn texts() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "0 * * * *",
        "*/20 * * * *",
        "30 2 * * *",
        "0 0 * * *",
        "15 1,3 * * 0",
        "0 6 1 * *",
        "5 2-4 * * MON-FRI",
    ])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever the daemon's absences and the clock's steps are: every slot is settled once, in order, by a run or with a
    /// reason, and no slot is run twice.
    #[test]
    fn every_slot_is_settled_once(
        zone in zones(), text in texts(), year in 2024i64..2034, day in 0i64..366, catch_up: bool,
        steps in prop::collection::vec((1u32..200_000, 0u32..3), 1..60), jitter_minutes in 0u64..90,
        dark: bool,
    ) {
        let schedule = Schedule::parse(text, zone).unwrap();
        let rules = Rules {
            jitter: Duration::from_secs(60 * jitter_minutes),
            catch_up,
            max_age: 30 * HOUR,
            blackout: if dark { vec![Blackout::parse("23:15-03:40").unwrap()] } else { Vec::new() },
        };
        let late = TimeDelta::from_std(offset("app", rules.jitter)).unwrap();
        let timetable = Timetable::new("app", schedule.clone(), rules.clone());
        let begin = DateTime::from_timestamp((year - 1970) * 31_556_952 + day * 86_400, 0).unwrap();
        let (mut now, mut settled) = (begin, begin);
        let mut answered: Vec<(DateTime<Utc>, Option<Why>)> = Vec::new();
        for (seconds, kind) in steps {
            now = match kind {
                // Away, or a clock set back by a little, or woken when it asked to be.
                0 => now + TimeDelta::seconds(i64::from(seconds)),
                1 => (now - TimeDelta::seconds(i64::from(seconds % 3600))).max(settled - STEP_BACK),
                _ => timetable.decide(settled, now).next.unwrap_or(now),
            };
            let decision = timetable.decide(settled, now);
            prop_assert!(!decision.stepped_back && decision.settled >= settled);
            for passed in &decision.passed {
                let mut slots = vec![passed.first];
                while let Some(next) = schedule.next(*slots.last().unwrap()).filter(|s| *s <= passed.last) {
                    slots.push(next);
                }
                prop_assert_eq!(slots.len(), passed.count as usize);
                prop_assert!(slots.last() == Some(&passed.last));
                answered.extend(slots.into_iter().map(|slot| (slot, Some(passed.why))));
            }
            if let Some(slot) = decision.due {
                prop_assert!(slot + late <= now && now - slot <= TimeDelta::from_std(rules.max_age).unwrap());
                let dark_now = rules.blackout.iter().any(|span| span.has(now.with_timezone(&zone).time()));
                prop_assert!(!dark_now, "a run starts in a blackout");
                answered.push((slot, None));
            } else if let Some(next) = decision.next {
                prop_assert!(next > now, "it would be looked at again at once");
            }
            settled = decision.settled;
        }
        // In order and without a gap: exactly the schedule's own slots.
        let mut expected = Vec::new();
        let mut slot = begin;
        while let Some(next) = schedule.next(slot).filter(|next| Some(*next) <= answered.last().map(|(s, _)| *s)) {
            expected.push(next);
            slot = next;
        }
        let slots: Vec<_> = answered.iter().map(|(slot, _)| *slot).collect();
        prop_assert_eq!(slots, expected);
        // What was missed is made good: where slots are caught up, none is passed over but for age or a later run.
        if catch_up {
            prop_assert!(answered.iter().all(|(_, why)| !matches!(why, Some(Why::Skipped | Why::Blackout))));
        }
        for pair in answered.windows(2) {
            if pair[0].1 == Some(Why::MadeGood) {
                prop_assert!(matches!(pair[1].1, None | Some(Why::MadeGood | Why::TooOld)));
            }
        }
    }
}
