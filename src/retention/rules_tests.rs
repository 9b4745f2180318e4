use super::*;
use proptest::prelude::*;
use ulid::Ulid;

fn time(text: &str) -> DateTime<Utc> {
    text.parse().unwrap()
}

fn point(number: u64, at: DateTime<Utc>) -> Point {
    Point {
        run: RunId::new(Ulid::from_parts(number, 0)),
        at,
        finished: at + TimeDelta::minutes(1),
        store_modified: at + TimeDelta::minutes(1),
        partial: false,
        parent: None,
        held: false,
        proven: false,
        tombstoned: false,
        damaged: false,
    }
}

/// Points at these times, numbered in this order.
fn points(times: &[&str]) -> Vec<Point> {
    (1u64..).zip(times).map(|(n, at)| point(n, time(at))).collect()
}

const NONE: RetentionRules = RetentionRules {
    window: None,
    hourly: 0,
    daily: 0,
    weekly: 0,
    monthly: 0,
    yearly: 0,
};

/// The reasons of each point, in order; empty where it expires.
fn reasons(points: &[Point], rules: RetentionRules, zone: Tz, now: &str) -> Vec<String> {
    let decisions = plan(points, Some(&rules), zone, time(now));
    decisions.iter().map(|d| d.keep.join("; ")).collect()
}

#[test]
fn without_rules_everything_is_kept() {
    let points = points(&[
        "2020-01-01T00:00:00Z",
        "2021-01-01T00:00:00Z",
        "2022-01-01T00:00:00Z",
    ]);
    for decision in plan(&points, None, Tz::UTC, time("2026-11-24T00:00:00Z")) {
        assert!(
            decision
                .keep
                .contains(&"no retention: everything is kept".to_owned()),
            "{decision:?}"
        );
    }
}

#[test]
fn the_newest_two_the_newest_proven_and_the_held_are_kept_whatever_the_rules() {
    let mut points = points(&[
        "2026-01-01T00:00:00Z",
        "2026-01-02T00:00:00Z",
        "2026-01-03T00:00:00Z",
        "2026-01-04T00:00:00Z",
        "2026-01-05T00:00:00Z",
    ]);
    points[0].held = true;
    points[1].proven = true;
    let now = "2026-11-24T00:00:00Z";
    assert_eq!(
        reasons(&points, NONE, Tz::UTC, now),
        ["hold", "newest proven", "", "newest 2", "newest 2"]
    );
    points[2].proven = true;
    assert_eq!(
        reasons(&points, NONE, Tz::UTC, now),
        ["hold", "", "newest proven", "newest 2", "newest 2"]
    );
}

#[test]
fn a_day_is_the_zones_day() {
    // 23:30 and 00:30 in Berlin: two days, though one day in UTC.
    let points = points(&[
        "2026-11-19T22:30:00Z",
        "2026-11-19T23:30:00Z",
        "2026-11-20T12:00:00Z",
        "2026-11-21T12:00:00Z",
    ]);
    let rules = RetentionRules { daily: 3, ..NONE };
    let now = "2026-11-24T00:00:00Z";
    assert_eq!(
        reasons(&points, rules, Tz::Europe__Berlin, now),
        [
            "daily 2026-11-19",
            "",
            "newest 2; daily 2026-11-20",
            "newest 2; daily 2026-11-21"
        ]
    );
    assert_eq!(
        reasons(&points, rules, Tz::UTC, now)[..2],
        ["", "daily 2026-11-19"]
    );
}

#[test]
fn days_without_a_point_do_not_count() {
    let points = points(&[
        "2026-03-01T02:00:00Z",
        "2026-06-01T02:00:00Z",
        "2026-06-02T02:00:00Z",
        "2026-11-23T02:00:00Z",
    ]);
    let rules = RetentionRules { daily: 3, ..NONE };
    assert_eq!(
        reasons(&points, rules, Tz::UTC, "2026-11-24T00:00:00Z"),
        [
            "",
            "daily 2026-06-01",
            "newest 2; daily 2026-06-02",
            "newest 2; daily 2026-11-23"
        ]
    );
}

#[test]
fn the_two_hours_of_one_name_are_two_buckets() {
    let points = points(&[
        "2026-10-25T00:10:00Z",
        "2026-10-25T00:50:00Z",
        "2026-10-25T01:10:00Z",
        "2026-10-25T02:10:00Z",
        "2026-10-25T03:10:00Z",
    ]);
    let rules = RetentionRules { hourly: 4, ..NONE };
    assert_eq!(
        reasons(&points, rules, Tz::Europe__Berlin, "2026-10-26T00:00:00Z"),
        [
            "",
            "hourly 2026-10-25 02h+0200",
            "hourly 2026-10-25 02h+0100",
            "newest 2; hourly 2026-10-25 03h+0100",
            "newest 2; hourly 2026-10-25 04h+0100"
        ]
    );
}

#[test]
fn weeks_are_iso_weeks_also_at_the_end_of_a_year() {
    // 1 January 2027 is a Friday of the 53rd week of 2026; 4 January begins the first of 2027.
    let points = points(&[
        "2026-12-27T12:00:00Z",
        "2026-12-28T12:00:00Z",
        "2027-01-01T12:00:00Z",
        "2027-01-03T12:00:00Z",
        "2027-01-04T12:00:00Z",
    ]);
    let rules = RetentionRules { weekly: 3, ..NONE };
    assert_eq!(
        reasons(&points, rules, Tz::UTC, "2027-01-05T00:00:00Z"),
        [
            "weekly 2026-W52",
            "",
            "",
            "newest 2; weekly 2026-W53",
            "newest 2; weekly 2027-W01"
        ]
    );
}

#[test]
fn months_and_years_are_of_the_calendar() {
    let points = points(&[
        "2024-12-31T23:30:00Z",
        "2025-01-31T12:00:00Z",
        "2025-02-01T00:00:00Z",
        "2025-02-28T12:00:00Z",
        "2026-11-01T00:00:00Z",
        "2026-11-23T00:00:00Z",
    ]);
    let rules = RetentionRules {
        monthly: 3,
        yearly: 2,
        ..NONE
    };
    assert_eq!(
        reasons(&points, rules, Tz::Europe__Berlin, "2026-11-24T00:00:00Z"),
        [
            // In Berlin it already was 2025.
            "",
            "monthly 2025-01",
            "",
            "monthly 2025-02; yearly 2025",
            "newest 2",
            "newest 2; monthly 2026-11; yearly 2026"
        ]
    );
}

#[test]
fn a_window_keeps_all_of_it_to_its_first_instant() {
    let points = points(&[
        "2026-11-16T23:59:59Z",
        "2026-11-17T00:00:00Z",
        "2026-11-20T00:00:00Z",
        "2026-11-20T00:00:01Z",
        "2026-11-20T00:00:02Z",
    ]);
    let rules = |window| RetentionRules {
        window: Some(window),
        ..NONE
    };
    let week = Duration::from_secs(7 * 86_400);
    assert_eq!(
        reasons(&points, rules(week), Tz::UTC, "2026-11-24T00:00:00Z"),
        [
            "",
            "window 7days",
            "window 7days",
            "newest 2; window 7days",
            "newest 2; window 7days"
        ]
    );
    // One that no calendar holds is no reason to expire.
    let all = reasons(&points, rules(Duration::MAX), Tz::UTC, "2026-11-24T00:00:00Z");
    assert!(all.iter().all(|r| r.contains("window")), "{all:?}");
}

#[test]
fn a_commit_off_its_store_time_takes_no_place() {
    let mut points = points(&[
        "2026-11-20T02:00:00Z",
        "2026-11-21T02:00:00Z",
        "2026-11-22T02:00:00Z",
        "2026-11-22T20:00:00Z",
        "2026-11-22T21:00:00Z",
    ]);
    for forged in &mut points[3..] {
        forged.store_modified = time("2026-11-23T12:00:00Z");
    }
    let rules = RetentionRules { daily: 2, ..NONE };
    assert_eq!(
        reasons(&points, rules, Tz::UTC, "2026-11-24T00:00:00Z"),
        [
            "",
            "newest 2; daily 2026-11-21",
            "newest 2; daily 2026-11-22",
            "newest 2",
            "newest 2; daily 2026-11-22"
        ]
    );
}

#[test]
fn in_a_copied_repository_recorded_time_decides_and_old_copies_go_in_time() {
    let days = |from: i64, to: i64| -> Vec<Point> {
        let start = time("2026-11-01T02:00:00Z");
        (from..to)
            .map(|d| point(d as u64 + 1, start + TimeDelta::days(d)))
            .collect()
    };
    let mut points = days(0, 10);
    for copied in &mut points {
        copied.store_modified = time("2026-11-11T00:00:00Z");
    }
    let rules = RetentionRules { daily: 3, ..NONE };
    let kept = |points: &[Point], now: &str| {
        let decisions = plan(points, Some(&rules), Tz::UTC, time(now));
        decisions.iter().map(Decision::kept).collect::<Vec<_>>()
    };
    assert_eq!(
        kept(&points, "2026-11-11T00:00:00Z"),
        [vec![false; 7], vec![true; 3]].concat()
    );
    // One of the day after stands beside the copies, and takes the place of the oldest by its time.
    points.extend(days(10, 11));
    assert_eq!(
        kept(&points, "2026-11-11T12:00:00Z"),
        [vec![false; 8], vec![true; 3]].concat()
    );
    points.extend(days(11, 14));
    assert_eq!(
        kept(&points, "2026-11-14T12:00:00Z"),
        [vec![false; 11], vec![true; 3]].concat()
    );
}

#[test]
fn a_buried_point_takes_no_place_of_one_that_can_be_offered() {
    let mut points = points(&[
        "2026-11-20T02:00:00Z",
        "2026-11-21T02:00:00Z",
        "2026-11-22T02:00:00Z",
        "2026-11-23T02:00:00Z",
    ]);
    for buried in &mut points[2..] {
        buried.tombstoned = true;
    }
    assert_eq!(
        reasons(&points, NONE, Tz::UTC, "2026-11-24T00:00:00Z"),
        ["newest 2", "newest 2", "newest 2", "newest 2"]
    );
}

#[test]
fn a_partial_commit_goes_when_a_full_one_descends_from_it_or_after_a_week() {
    let mut points = points(&[
        "2026-11-20T00:00:00Z",
        "2026-11-20T00:30:00Z",
        "2026-11-20T01:00:00Z",
        "2026-11-23T00:00:00Z",
        "2026-11-10T00:00:00Z",
    ]);
    for (n, parent) in [(1, 0), (2, 1)] {
        points[n].parent = Some(points[parent].run);
    }
    for n in [0, 1, 3, 4] {
        points[n].partial = true;
    }
    let now = "2026-11-24T00:00:00Z";
    let open = "a cut that the next run may go on from";
    assert_eq!(
        reasons(&points, NONE, Tz::UTC, now),
        ["", "", "newest 2", open, ""]
    );
    // Without the full one, both cuts of this week stay. A circle of parents ends.
    points[2].partial = true;
    points[0].parent = Some(points[2].run);
    assert_eq!(reasons(&points, NONE, Tz::UTC, now), [open, open, open, open, ""]);
    points[4].held = true;
    assert_eq!(reasons(&points, NONE, Tz::UTC, now)[4], "hold");
}

const NOW: i64 = 1_795_000_000;

fn any_point() -> impl Strategy<Value = (i64, i64, u8)> {
    // Most within two years, some ahead; most of them where the store says, some not.
    let seconds = prop_oneof![8 => -60_000_000i64..0, 1 => -200_000i64..0, 1 => -10_000i64..90_000_000];
    let off = prop_oneof![6 => Just(60i64), 1 => -100_000i64..100_000, 1 => -60_000_000i64..60_000_000];
    (seconds, off, any::<u8>())
}

fn built(parts: &[(i64, i64, u8)]) -> Vec<Point> {
    let at = |seconds| DateTime::from_timestamp(NOW + seconds, 0).unwrap();
    (1u64..)
        .zip(parts)
        .map(|(n, (seconds, off, flags))| Point {
            store_modified: at(seconds + off),
            partial: flags % 8 == 1,
            held: flags % 16 == 2,
            proven: flags % 8 == 3,
            tombstoned: flags % 8 == 4,
            ..point(n, at(*seconds))
        })
        .collect()
}

fn any_rules() -> impl Strategy<Value = RetentionRules> {
    (
        prop::option::of(0u64..10_000_000),
        0u32..5,
        0u32..5,
        0u32..5,
        0u32..5,
        0u32..3,
    )
        .prop_map(
            |(window, hourly, daily, weekly, monthly, yearly)| RetentionRules {
                window: window.map(Duration::from_secs),
                hourly,
                daily,
                weekly,
                monthly,
                yearly,
            },
        )
}

fn decide(points: &[Point], rules: &RetentionRules) -> BTreeMap<RunId, Vec<String>> {
    let now = DateTime::from_timestamp(NOW, 0).unwrap();
    let decisions = plan(points, Some(rules), Tz::Europe__Berlin, now);
    assert_eq!(decisions.len(), points.len());
    decisions.into_iter().map(|d| (d.run, d.keep)).collect()
}

fn is_kept(decisions: &BTreeMap<RunId, Vec<String>>, point: &Point) -> bool {
    !decisions[&point.run].is_empty()
}

proptest! {
    #[test]
    fn two_that_can_be_offered_stay(parts in prop::collection::vec(any_point(), 0..30), rules in any_rules()) {
        let points = built(&parts);
        let decisions = decide(&points, &rules);
        let offered: Vec<_> = points.iter().filter(|p| !p.partial && !p.tombstoned).collect();
        prop_assert!(offered.iter().filter(|p| is_kept(&decisions, p)).count() >= offered.len().min(2));
        for point in points.iter().filter(|p| p.held) {
            prop_assert!(is_kept(&decisions, point));
        }
    }

    #[test]
    fn the_order_of_the_points_does_not_matter(
        (parts, order) in prop::collection::vec(any_point(), 0..20)
            .prop_flat_map(|p| { let n = p.len(); (Just(p), Just((0..n).collect::<Vec<_>>()).prop_shuffle()) }),
        rules in any_rules(),
    ) {
        let points = built(&parts);
        let shuffled: Vec<_> = order.iter().map(|n| points[*n].clone()).collect();
        prop_assert_eq!(decide(&points, &rules), decide(&shuffled, &rules));
    }

    /// Burying, and then removing, what expires changes nothing else: a plan can be carried out in any steps.
    #[test]
    fn carrying_the_plan_out_does_not_change_it(parts in prop::collection::vec(any_point(), 0..25), rules in any_rules()) {
        let mut points = built(&parts);
        let before = decide(&points, &rules);
        for point in &mut points {
            point.tombstoned |= before[&point.run].is_empty();
        }
        prop_assert_eq!(&decide(&points, &rules), &before);
        points.retain(|p| is_kept(&before, p));
        for (run, reasons) in decide(&points, &rules) {
            prop_assert!(!reasons.is_empty(), "{} expires after all", run);
        }
    }

    #[test]
    fn a_doubtful_or_buried_point_expires_no_other(
        parts in prop::collection::vec(any_point(), 1..25),
        forged in any_point(),
        rules in any_rules(),
    ) {
        let now = DateTime::from_timestamp(NOW, 0).unwrap();
        let points = built(&parts);
        let before = decide(&points, &rules);
        let mut more = points.clone();
        let (at, off, _) = forged;
        for kind in 0..3 {
            let mut forged = Point { run: RunId::new(Ulid::from_parts(9_999, kind)), ..built(&[(at, off, 0)])[0].clone() };
            match kind {
                0 => forged.at = now + TimeDelta::hours(2) + TimeDelta::seconds(at.abs()),
                1 => forged.tombstoned = true,
                _ => forged.store_modified = forged.finished + TimeDelta::minutes(61 + off.abs()),
            }
            more.push(forged);
        }
        let after = decide(&more, &rules);
        for point in points.iter().filter(|p| doubt(p, now) == Doubt::None && !p.tombstoned) {
            prop_assert!(!is_kept(&before, point) || is_kept(&after, point), "{} lost its place", point.run);
        }
    }

    #[test]
    fn a_newer_point_brings_no_expired_one_back(parts in prop::collection::vec(any_point(), 1..25), rules in any_rules()) {
        let points = built(&parts);
        let before = decide(&points, &rules);
        let mut more = points.clone();
        more.push(Point { run: RunId::new(Ulid::from_parts(9_999, 0)), ..built(&[(90_000_001, 60, 0)])[0].clone() });
        let after = decide(&more, &rules);
        for point in &points {
            prop_assert!(is_kept(&before, point) || !is_kept(&after, point), "{} came back", point.run);
        }
    }

    #[test]
    fn each_reason_is_true(parts in prop::collection::vec(any_point(), 0..25), rules in any_rules()) {
        let points = built(&parts);
        let now = DateTime::from_timestamp(NOW, 0).unwrap();
        for (run, reasons) in decide(&points, &rules) {
            let point = points.iter().find(|p| p.run == run).unwrap();
            let local = point.at.with_timezone(&Tz::Europe__Berlin);
            for reason in reasons {
                let (word, rest) = reason.split_once(' ').unwrap_or((&reason, ""));
                prop_assert!(match (word, rest) {
                    ("hold", _) => point.held,
                    ("newest", "proven") => point.proven,
                    ("newest", _) => !point.partial,
                    ("window", _) => now - point.at <= TimeDelta::from_std(rules.window.unwrap()).unwrap(),
                    ("hourly", label) => rules.hourly > 0 && local.format("%Y-%m-%d %Hh%z").to_string() == label,
                    ("daily", label) => rules.daily > 0 && local.format("%Y-%m-%d").to_string() == label,
                    ("weekly", label) => rules.weekly > 0 && local.format("%G-W%V").to_string() == label,
                    ("monthly", label) => rules.monthly > 0 && local.format("%Y-%m").to_string() == label,
                    ("yearly", label) => rules.yearly > 0 && local.format("%Y").to_string() == label,
                    ("a", _) => point.partial,
                    _ => false,
                }, "{} of {:?}", reason, point);
            }
        }
    }
}
