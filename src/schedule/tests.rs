use chrono::TimeDelta;

use super::*;
use proptest::prelude::*;

fn slots(text: &str, zone: Tz, from: &str, count: usize) -> Vec<String> {
    let from: DateTime<Utc> = from.parse().unwrap();
    let schedule = Schedule::parse(text, zone).unwrap();
    schedule
        .next_slots(from, count)
        .iter()
        .map(|s| s.with_timezone(&zone).to_rfc3339())
        .collect()
}

#[test]
fn days_of_month_and_week_are_alternatives() {
    // The 13th or a Friday.
    assert_eq!(
        slots("0 0 13 * 5", Tz::UTC, "2026-11-09T00:00:00Z", 3),
        [
            "2026-11-13T00:00:00+00:00",
            "2026-11-20T00:00:00+00:00",
            "2026-11-27T00:00:00+00:00"
        ]
    );
    assert_eq!(
        slots("0 0 13 * 1", Tz::UTC, "2026-11-10T00:00:00Z", 2),
        ["2026-11-13T00:00:00+00:00", "2026-11-16T00:00:00+00:00"]
    );
}

#[test]
fn a_slot_in_the_gap_comes_once_after_it_and_one_in_the_overlap_once() {
    let berlin = Tz::Europe__Berlin;
    assert_eq!(
        slots("30 2 * * *", berlin, "2027-03-27T12:00:00Z", 2),
        ["2027-03-28T03:00:00+02:00", "2027-03-29T02:30:00+02:00"]
    );
    assert_eq!(
        slots("30 2 * * *", berlin, "2026-10-24T12:00:00Z", 2),
        ["2026-10-25T02:30:00+02:00", "2026-10-26T02:30:00+01:00"]
    );
    let london = Tz::Europe__London;
    assert_eq!(
        slots("0 0 * * *", london, "2027-03-27T12:00:00Z", 2),
        ["2027-03-28T00:00:00+00:00", "2027-03-29T00:00:00+01:00"]
    );
    assert_eq!(slots("0 * * * *", berlin, "2026-10-24T23:30:00Z", 3).len(), 3);
}

#[test]
fn what_is_no_schedule_is_refused() {
    for bad in [
        "",
        "* * * *",
        "* * * * * *",
        "61 * * * *",
        "0 0 31 2 *",
        "@often",
        "a b c d e",
    ] {
        assert!(Schedule::parse(bad, Tz::UTC).is_err(), "{bad:?}");
    }
    for good in [
        "@hourly",
        "@daily",
        "@weekly",
        "@monthly",
        "@yearly",
        "*/15 * * * *",
        "0 5 * * 0",
        "0 0 29 2 *",
        "0 2 * * MON-FRI",
    ] {
        assert!(Schedule::parse(good, Tz::UTC).is_ok(), "{good:?}");
    }
}

#[test]
fn the_usual_interval_is_the_largest_of_a_year() {
    let now: DateTime<Utc> = "2026-11-24T00:00:00Z".parse().unwrap();
    let interval = |text| {
        Schedule::parse(text, Tz::UTC)
            .unwrap()
            .usual_interval(now)
            .unwrap()
            .as_secs()
    };
    assert_eq!(interval("@hourly"), 3600);
    assert_eq!(interval("0 2 * * *"), 86_400);
    assert_eq!(interval("0 2 * * MON-FRI"), 3 * 86_400);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn slots_only_go_forward(minute in 0u8..60, hour in 0u8..24, start in 1_700_000_000i64..1_900_000_000) {
        for zone in [Tz::UTC, Tz::Europe__Berlin, Tz::America__New_York, Tz::Australia__Lord_Howe, Tz::Africa__Casablanca] {
            let schedule = Schedule::parse(&format!("{minute} {hour} * * *"), zone).unwrap();
            let from = DateTime::from_timestamp(start, 0).unwrap();
            let slots = schedule.next_slots(from, 10);
            prop_assert_eq!(slots.len(), 10);
            for pair in slots.windows(2) {
                let apart = pair[1] - pair[0];
                prop_assert!(apart >= TimeDelta::hours(22) && apart <= TimeDelta::hours(26), "{} {}", zone, apart);
            }
        }
    }
}

#[test]
fn a_day_field_that_begins_with_a_star_does_not_add_days() {
    // Odd days that are Mondays: Vixie's rule; the alternative would be half of all days.
    let odd_mondays = slots("0 0 */2 * 1", Tz::UTC, "2026-11-01T00:00:00Z", 3);
    assert_eq!(
        odd_mondays,
        [
            "2026-11-09T00:00:00+00:00",
            "2026-11-23T00:00:00+00:00",
            "2026-12-07T00:00:00+00:00"
        ]
    );
    // A whole range is not a star.
    assert_eq!(
        slots("0 0 1-31 * 1", Tz::UTC, "2026-11-03T12:00:00Z", 1),
        ["2026-11-04T00:00:00+00:00"]
    );
}

#[test]
fn several_hours_of_a_day_follow_the_rule_of_one() {
    let berlin = Tz::Europe__Berlin;
    assert_eq!(
        slots("30 2,14 * * *", berlin, "2027-03-27T20:00:00Z", 3),
        [
            "2027-03-28T03:00:00+02:00",
            "2027-03-28T14:30:00+02:00",
            "2027-03-29T02:30:00+02:00"
        ]
    );
    assert_eq!(
        slots("30 2,14 * * *", berlin, "2026-10-24T20:00:00Z", 3),
        [
            "2026-10-25T02:30:00+02:00",
            "2026-10-25T14:30:00+01:00",
            "2026-10-26T02:30:00+01:00"
        ]
    );
    // What falls into one gap comes once.
    assert_eq!(
        slots("*/15 2 * * *", berlin, "2027-03-27T20:00:00Z", 2),
        ["2027-03-28T03:00:00+02:00", "2027-03-29T02:00:00+02:00"]
    );
    // A gap at midnight: the day still has its slot.
    assert_eq!(
        slots("0 0 * * *", Tz::Asia__Beirut, "2026-03-28T12:00:00Z", 2),
        ["2026-03-29T01:00:00+03:00", "2026-03-30T00:00:00+03:00"]
    );
    // Samoa skipped a whole day.
    assert_eq!(
        slots("0 12 * * *", Tz::Pacific__Apia, "2011-12-29T00:00:00Z", 3),
        [
            "2011-12-29T12:00:00-10:00",
            "2011-12-31T00:00:00+14:00",
            "2011-12-31T12:00:00+14:00"
        ]
    );
}

#[test]
fn patterns_of_every_hour_go_by_elapsed_time() {
    assert_eq!(
        slots("@hourly", Tz::Europe__Berlin, "2026-10-24T23:30:00Z", 4),
        [
            "2026-10-25T02:00:00+02:00",
            "2026-10-25T02:00:00+01:00",
            "2026-10-25T03:00:00+01:00",
            "2026-10-25T04:00:00+01:00"
        ]
    );
    assert_eq!(
        slots("30 * * * *", Tz::Europe__Berlin, "2027-03-28T00:00:00Z", 2),
        ["2027-03-28T01:30:00+01:00", "2027-03-28T03:30:00+02:00"]
    );
}

#[test]
fn another_dialect_is_refused() {
    for bad in [
        "MON * * * *",
        "0 0 L * *",
        "0 0 ? * *",
        "0 0 15W * *",
        "0 0 * * 5#2",
        "0 0 * * +1",
        "5/10 * * * *",
        "*/0 * * * *",
        "50-10 * * * *",
        "0 24 * * *",
        "0 0 0 * *",
        "0 0 * 13 *",
        "0 0 * * 8",
        "0 0 31 4,6,9,11 *",
        "0 0 30-31 2 */2",
        "1,,2 * * * *",
        "-1 * * * *",
        "0 0 * * monday",
        "@reboot",
    ] {
        assert!(Schedule::parse(bad, Tz::UTC).is_err(), "{bad:?}");
    }
    let same = |a: &str, b: &str| {
        let from = "2026-11-21T00:00:00Z";
        assert_eq!(slots(a, Tz::UTC, from, 9), slots(b, Tz::UTC, from, 9), "{a} {b}");
    };
    same("@midnight", "0 0 * * *");
    same("0 0 * * SAT-SUN", "0 0 * * 0,6");
    same("0 0 * * 5-7", "0 0 * * 0,5,6");
    same("0 0 * jan,MAR *", "0 0 * 1,3 *");
    same("@ANNUALLY", "0 0 1 1 *");
}

#[test]
fn the_usual_interval_does_not_depend_on_the_day_that_asks() {
    for now in [
        "2026-11-23T00:00:00Z",
        "2026-11-27T00:00:00Z",
        "2026-11-28T13:00:00Z",
    ] {
        let now: DateTime<Utc> = now.parse().unwrap();
        let hours = |text| {
            let schedule = Schedule::parse(text, Tz::Europe__Berlin).unwrap();
            schedule.usual_interval(now).unwrap().as_secs_f64() / 3600.0
        };
        // From Friday 17:59 to Monday 09:00.
        assert_eq!(hours("* 9-17 * * 1-5"), 63.0 + 1.0 / 60.0);
        assert_eq!(hours("0 2,14 * * *"), 12.0);
        assert_eq!(hours("0 2 * * *"), 24.0);
        assert_eq!(hours("@monthly"), 31.0 * 24.0);
        assert_eq!(hours("@yearly"), 365.0 * 24.0);
        assert_eq!(hours("0 0 29 2 *"), 1461.0 * 24.0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Against the definition: each minute of some days around any instant, tried by hand.
    #[test]
    fn slots_are_those_of_the_definition(
        minute in "\\*|\\*/(7|20)|[0-9]|1[0-9],4[0-9]",
        hour in "\\*|\\*/(2|5)|[0-4]|[0-2],1[0-9]|0-23",
        day in "\\*|\\*/2|[1-9]|2[0-8]",
        weekday in "\\*|\\*/2|[0-7]|mon-fri",
        near in prop::sample::select(vec![1_774_746_000i64, 1_792_890_000, 1_775_314_800, 1_791_041_400]),
        offset in -90_000i64..90_000,
    ) {
        let text = format!("{minute} {hour} {day} * {weekday}");
        for zone in [Tz::UTC, Tz::Europe__Berlin, Tz::Australia__Lord_Howe, Tz::Asia__Beirut] {
            let schedule = Schedule::parse(&text, zone).unwrap();
            let from = DateTime::from_timestamp(near + offset, 0).unwrap();
            let until = from + TimeDelta::days(3);
            let wanted = by_definition(&schedule, from, until);
            let slots: Vec<_> = std::iter::successors(schedule.next(from), |s| schedule.next(*s))
                .take_while(|s| *s <= until)
                .collect();
            prop_assert_eq!(slots, wanted, "{} {} from {}", text, zone, from);
        }
    }

    #[test]
    fn no_text_makes_it_panic(text in "\\PC{0,30}", likely in "[0-9*/,A-Za-z?#-]{1,5}( [0-9*/,LW?#-]{1,6}){4}") {
        for text in [text, likely] {
            if let Ok(schedule) = Schedule::parse(&text, Tz::Europe__Berlin) {
                let now = DateTime::from_timestamp(1_790_000_000, 0).unwrap();
                prop_assert!(schedule.next(now).is_some());
                prop_assert!(schedule.usual_interval(now).is_some());
            }
        }
    }
}

fn by_definition(schedule: &Schedule, from: DateTime<Utc>, until: DateTime<Utc>) -> Vec<DateTime<Utc>> {
    let times = schedule.fields.minutes_of_day();
    let has = |local: NaiveDateTime| {
        schedule.fields.has_day(local.date()) && times.contains(&(local.hour() * 60 + local.minute()))
    };
    let mut slots = std::collections::BTreeSet::new();
    if schedule.fields.every_hour() {
        let mut at = DateTime::from_timestamp(from.timestamp() / 60 * 60, 0).unwrap();
        while at <= until {
            if has(at.with_timezone(&schedule.zone).naive_local()) {
                slots.insert(at);
            }
            at += TimeDelta::minutes(1);
        }
    } else {
        let mut local = (from - TimeDelta::days(2))
            .date_naive()
            .and_hms_opt(0, 0, 0)
            .unwrap();
        while local < (until + TimeDelta::days(2)).naive_utc() {
            if has(local) {
                // In a gap: the first local time after it that exists.
                let mut shown = local;
                let instant = loop {
                    match schedule.zone.from_local_datetime(&shown).earliest() {
                        Some(instant) => break instant,
                        None => shown += TimeDelta::minutes(1),
                    }
                };
                slots.insert(instant.with_timezone(&Utc));
            }
            local += TimeDelta::minutes(1);
        }
    }
    slots.into_iter().filter(|s| *s > from && *s <= until).collect()
}
