use super::*;
use proptest::prelude::*;

const NOW: &str = "2026-11-24T12:00:00Z"; // a Tuesday

fn at_from(text: &str, now: &str) -> Result<When> {
    parse(text, Tz::Europe__Berlin, now.parse().unwrap())
}
fn at(text: &str) -> Result<When> {
    at_from(text, NOW)
}
fn is(text: &str, wanted: &str) {
    assert_eq!(at(text).unwrap(), When::At(wanted.parse().unwrap()), "{text}");
}

#[test]
fn absolute_instants_are_read_in_the_zone() {
    for (text, wanted) in [
        ("2026-11-21T14:03:00Z", "2026-11-21T14:03:00Z"),
        ("2026-11-21t14:03:00z", "2026-11-21T14:03:00Z"),
        ("2026-11-21T14:03:00.25+01:00", "2026-11-21T13:03:00.25Z"),
        (
            "2026-11-21 14:03:00.123456789+0100",
            "2026-11-21T13:03:00.123456789Z",
        ),
        ("2026-11-21 14:03:00+01", "2026-11-21T13:03:00Z"),
        ("2026-11-21 14:03 -05:30", "2026-11-21T19:33:00Z"),
        ("2026-11-21 14:03", "2026-11-21T13:03:00Z"),
        ("2026-11-21T14:03", "2026-11-21T13:03:00Z"),
        (" 2026-07-21 14:03:09 ", "2026-07-21T12:03:09Z"),
    ] {
        is(text, wanted);
    }
    assert_eq!(at("latest").unwrap(), When::Latest);
}

#[test]
fn words_are_read_in_the_zone() {
    for (text, wanted) in [
        ("now", NOW),
        ("2 hours ago", "2026-11-24T10:00:00Z"),
        ("2h ago", "2026-11-24T10:00:00Z"),
        ("2 HOURS AGO", "2026-11-24T10:00:00Z"),
        ("90 minutes ago", "2026-11-24T10:30:00Z"),
        ("yesterday 14:00", "2026-11-23T13:00:00Z"),
        ("yesterday at 9:30", "2026-11-23T08:30:00Z"),
        // Midnight and noon, and capital letters, which the lenient parser got wrong or panicked at.
        ("yesterday 12am", "2026-11-22T23:00:00Z"),
        ("yesterday 12 PM", "2026-11-23T11:00:00Z"),
        ("yesterday 5 PM", "2026-11-23T16:00:00Z"),
        ("Yesterday 9:30pm", "2026-11-23T20:30:00Z"),
        ("today 00:30:01", "2026-11-23T23:30:01Z"),
        ("monday 14:00", "2026-11-23T13:00:00Z"),
        ("tuesday 12:59", "2026-11-24T11:59:00Z"),
        ("tuesday 14:00", "2026-11-17T13:00:00Z"),
        ("last tuesday 12:59", "2026-11-17T11:59:00Z"),
        ("last fri 8pm", "2026-11-20T19:00:00Z"),
        // Days are of the calendar and keep the time of day over a change of clocks; hours have elapsed.
        ("31 days ago", "2026-10-24T11:00:00Z"),
        ("744 hours ago", "2026-10-24T12:00:00Z"),
        ("2 days ago 14:00", "2026-11-22T13:00:00Z"),
        ("1 month ago", "2026-10-24T11:00:00Z"),
    ] {
        is(text, wanted);
    }
}

#[test]
fn a_local_time_that_happened_twice_is_refused_with_both() {
    let overlap = "2026-10-26T01:30:00Z";
    for text in [
        "2026-10-25 02:30",
        "2026-10-25T02:30:00",
        "yesterday 02:30",
        "1 day ago",
    ] {
        let error = at_from(text, overlap).unwrap_err();
        assert_eq!(error.kind(), Kind::Usage, "{text}");
        assert!(
            error.message().contains("happened twice in Europe/Berlin"),
            "{error:?}"
        );
        assert_eq!(
            error.hint_text().unwrap(),
            "Say which: 2026-10-25T02:30:00+02:00 or 2026-10-25T02:30:00+01:00."
        );
    }
    // An elapsed time is never in doubt.
    let hour_ago = at_from("1 hour ago", "2026-10-25T01:30:00Z").unwrap();
    assert_eq!(hour_ago, When::At("2026-10-25T00:30:00Z".parse().unwrap()));
}

#[test]
fn a_local_time_that_never_happened_is_refused_with_the_gap() {
    for text in ["2026-03-29 02:30", "yesterday 02:30"] {
        let error = at_from(text, "2026-03-30T10:00:00Z").unwrap_err();
        assert_eq!(error.kind(), Kind::Usage, "{text}");
        assert_eq!(
            error.message(),
            "2026-03-29 02:30:00 never happened in Europe/Berlin: the clocks went forward from 2026-03-29 02:00:00 to 2026-03-29 03:00:00"
        );
        assert!(error.hint_text().unwrap().contains("2026-03-29T03:00:00+02:00"));
    }
}

#[test]
fn a_leap_second_is_the_next_second_and_there_are_few() {
    is("2016-12-31T23:59:60Z", "2017-01-01T00:00:00Z");
    is("2017-01-01 00:59:60.5", "2017-01-01T00:00:00.5Z");
    for bad in [
        "2026-11-21T14:03:60Z",
        "2026-11-21 23:59:60",
        "2026-11-21T23:59:61Z",
        "yesterday 23:59:60",
    ] {
        assert_eq!(at(bad).unwrap_err().kind(), Kind::Usage, "{bad}");
    }
}

#[test]
fn the_future_can_not_be_restored() {
    for text in ["2026-11-24T12:00:01Z", "today 14:00", "2099-01-01 00:00"] {
        let error = at(text).unwrap_err();
        assert_eq!(error.kind(), Kind::Unreachable, "{text}");
    }
    is("2026-11-24T12:00:00Z", NOW);
}

#[test]
fn nonsense_is_refused_with_examples() {
    for nonsense in [
        "",
        "soon",
        "12",
        "14:00",
        "ago",
        "-1",
        "2026",
        "2026-11",
        "2026-11-21",
        "26-11-21 14:03",
        "2026-1-2 3:4",
        "2026-13-01 00:00",
        "2026-02-30 00:00",
        "2026-11-21 25:00",
        "2026-11-21 24:00",
        "2026-11-21x14:03",
        "2026-11-21 14",
        "2026-11-21 14:3",
        "2026-11-21 14:03:00.",
        "2026-11-21 14:03:00.1234567890",
        "2026-11-21 14:03.5",
        "2026-11-21 14:03+25:00",
        "2026-11-21 14:03+01:60",
        "2026-11-21 14:03 CET",
        "2026-11-21 14:03ä",
        "+12026-01-01 00:00",
        "01/04/18 10:00",
        "yesterday",
        "today",
        "monday",
        "last friday",
        "yesterday 25:00",
        "yesterday 13pm",
        "yesterday 0am",
        "yesterday 14",
        "yesterday 14:60",
        "2 hours",
        "2 hours ago 14:00",
        "12345 days ago",
        "2 parsecs ago",
        "2 mooon ago",
        "ago ago",
        "now 14:00",
        "now now",
        "tomorrowish 14:00",
        "last 14:00",
        "latest 14:00",
        "9999 years ago",
    ] {
        let error = at(nonsense).unwrap_err();
        assert_eq!(error.kind(), Kind::Usage, "{nonsense}: {error:?}");
        assert!(error.hint_text().is_some_and(|h| h.contains(':')), "{nonsense}");
    }
}

#[test]
fn an_instant_is_echoed_in_utc_and_in_the_zone() {
    let instant = "2026-11-21T13:03:00Z".parse().unwrap();
    assert_eq!(
        echo(instant, Tz::Europe__Berlin),
        "2026-11-21T13:03:00Z (2026-11-21 14:03:00 CET, Europe/Berlin)"
    );
}

proptest! {
    #[test]
    fn what_is_echoed_is_read_back(seconds in 0i64..1_795_000_000, nanoseconds in 0u32..1_000_000_000) {
        let instant = DateTime::from_timestamp(seconds, nanoseconds).unwrap();
        for zone in [Tz::UTC, Tz::Europe__Berlin, Tz::America__New_York, Tz::Asia__Kathmandu] {
            let text = echo(instant, zone);
            let first = text.split(' ').next().unwrap();
            let now = "2026-11-24T12:00:00Z".parse().unwrap();
            prop_assert_eq!(parse(first, zone, now).unwrap(), When::At(instant));
            let offset = instant.with_timezone(&zone).to_rfc3339();
            prop_assert_eq!(parse(&offset, zone, now).unwrap(), When::At(instant));
        }
    }

    /// A local time is read as the one instant that shows it, or refused.
    #[test]
    fn a_local_time_is_shown_by_its_instant(seconds in 0i64..1_795_000_000) {
        for zone in [Tz::Europe__Berlin, Tz::Australia__Lord_Howe, Tz::America__St_Johns] {
            let instant = DateTime::from_timestamp(seconds, 0).unwrap();
            let local = instant.with_timezone(&zone).format("%Y-%m-%d %H:%M:%S").to_string();
            match parse(&local, zone, "2026-11-24T12:00:00Z".parse().unwrap()) {
                Ok(When::At(read)) => prop_assert_eq!(read, instant),
                Ok(When::Latest) => prop_assert!(false),
                Err(e) => prop_assert!(e.message().contains("happened twice"), "{:?}", e),
            }
        }
    }

    #[test]
    fn no_text_makes_it_panic(
        text in "\\PC{0,40}",
        likely in "(last |)(yesterday|today|[A-Za-z]{1,12}|[0-9]{1,6} ?(H|hours|days|month|years|s)) ?(ago|AGO|at|) ?([0-9]{1,3}(:[0-9]{1,2}){0,2}|) ?(am|PM|Z|)",
        dated in "[0-9]{4}-[0-9]{2}-[0-9]{2}[ T][0-9:.]{0,12}([+-][0-9:]{0,6}|Z|)",
    ) {
        for text in [text, likely, dated] {
            let _ = at(&text);
        }
    }
}
