//! The pictures of the status page: SVG, no script. What colour tells, a shape and a text tell too.

use chrono::{DateTime, Utc};
use maud::{Markup, html};

use super::view::{Day, Went, clock, span};
use crate::state::ledger::points::PointRecord;

/// The last days, a mark each: full when well, half when late, a ring when missed, a cross when failed, a dot when nothing
/// was due.
pub fn strip(days: &[Day]) -> Markup {
    let count = |went| days.iter().filter(|d| d.went == went).count();
    let label = format!(
        "{} days: {} ok, {} late, {} missed, {} failed",
        days.len(),
        count(Went::Well),
        count(Went::Late),
        count(Went::Missed),
        count(Went::Failed)
    );
    let width = days.len() * 8;
    html! {
        svg class="strip" role="img" aria-label=(label) viewBox=(format!("0 0 {width} 18")) {
            @for (n, day) in days.iter().enumerate() {
                @let x = n * 8;
                g class=(day.went.word().replace(' ', "-")) {
                    title { (title(day)) }
                    // To point at.
                    rect class="field" x=(x) y="0" width="8" height="18" {}
                    @match day.went {
                        Went::Well => { rect x=(x + 1) y="1" width="6" height="16" rx="1" {} },
                        Went::Late => { rect x=(x + 1) y="9" width="6" height="8" rx="1" {} },
                        Went::Missed => { circle class="line" cx=(x + 4) cy="9" r="3" {} },
                        Went::Failed => {
                            path class="line" d=(format!("M{} 5l6 8m0 -8l-6 8", x + 1)) {}
                        },
                        Went::Nothing => { circle cx=(x + 4) cy="9" r="1" {} },
                    }
                }
            }
        }
    }
}

fn title(day: &Day) -> String {
    let [done, late, failed, missed] = day.counts;
    let mut parts = vec![format!("{}: {}", day.date, day.went.word())];
    for (count, what) in [
        (done, "done"),
        (late, "late"),
        (failed, "failed"),
        (missed, "missed"),
    ] {
        if count > 0 {
            parts.push(format!("{count} {what}"));
        }
    }
    parts.join(", ")
}

/// Sizes as a line, oldest first.
pub fn sparkline(sizes: &[u64]) -> Markup {
    let top = sizes.iter().copied().max().unwrap_or(0).max(1) as f64;
    let step = 80.0 / (sizes.len().max(2) - 1) as f64;
    let points: Vec<String> = sizes
        .iter()
        .enumerate()
        .map(|(n, size)| format!("{:.1},{:.1}", n as f64 * step, 17.0 - 15.0 * *size as f64 / top))
        .collect();
    html! {
        @if sizes.len() > 1 {
            svg class="spark" aria-hidden="true" viewBox="0 0 80 18" {
                polyline points=(points.join(" ")) {}
            }
        }
    }
}

/// The width of the timeline, in its own units.
const WIDTH: f64 = 1000.0;
/// Points nearer to one another than this are one mark.
const APART: f64 = 3.0;

/// The recovery window: from the oldest point to now, with a mark for each point and a band for each gap that is longer than
/// the objective.
pub fn timeline(
    points: &[PointRecord],
    objective: Option<std::time::Duration>,
    zone: chrono_tz::Tz,
    now: DateTime<Utc>,
) -> Markup {
    let mut oldest_first: Vec<&PointRecord> = points.iter().collect();
    oldest_first.reverse();
    let Some(first) = oldest_first.first().map(|p| p.at) else {
        return html! { p { "There is no recovery point yet." } };
    };
    let whole = (now - first).num_milliseconds().max(1) as f64;
    let x = |at: DateTime<Utc>| ((at - first).num_milliseconds() as f64 / whole * WIDTH).clamp(0.0, WIDTH);
    let whole_ones: Vec<DateTime<Utc>> = oldest_first
        .iter()
        .filter(|p| !p.damaged && p.tombstoned.is_none())
        .map(|p| p.at)
        .collect();
    let mut gaps = Vec::new();
    if let Some(objective) = objective {
        let ends = whole_ones.iter().skip(1).copied().chain([now]);
        for (from, to) in whole_ones.iter().copied().zip(ends) {
            if (to - from).to_std().is_ok_and(|gap| gap > objective) {
                gaps.push((from, to));
            }
        }
    }
    let mut marks: Vec<(f64, &PointRecord, usize)> = Vec::new();
    for point in &oldest_first {
        let at = x(point.at);
        match marks.last_mut() {
            // What differs from its neighbours is never hidden by them.
            Some((last, shown, count)) if at - *last < APART && state(point) == state(shown) => {
                (*shown, *count) = (point, *count + 1);
            }
            _ => marks.push((at, point, 1)),
        }
    }
    let label = format!(
        "{} recovery points from {} to {}, {} gaps longer than the objective",
        whole_ones.len(),
        clock(first, zone),
        clock(now, zone),
        gaps.len()
    );
    html! {
        // On a phone it is moved under the finger.
        div class="scroll" tabindex="0" { svg class="timeline" role="img" aria-label=(label) viewBox="-8 0 1016 58" {
            line class="axis" x1="0" y1="24" x2="1000" y2="24" {}
            @for (from, to) in &gaps {
                rect class="gap" x=(format!("{:.1}", x(*from))) y="12"
                    width=(format!("{:.1}", (x(*to) - x(*from)).max(1.0))) height="24" {
                    title { "gap of " (span((*to - *from).to_std().unwrap_or_default())) ", from " (clock(*from, zone)) " to " (clock(*to, zone)) }
                }
            }
            @for (at, point, count) in &marks {
                @let cx = format!("{at:.1}");
                a href=(format!("#{}", point.run)) {
                    @match state(point) {
                        "damaged" => {
                            path class="line damaged" d=(format!("M{:.1} 19l10 10m0 -10l-10 10", at - 5.0)) { title { (mark(point, *count, zone)) } }
                        },
                        "expiring" => { circle class="line expiring" cx=(cx) cy="24" r="5" { title { (mark(point, *count, zone)) } } },
                        _ => { circle class="point" cx=(cx) cy="24" r="5" { title { (mark(point, *count, zone)) } } },
                    }
                }
            }
            text x="0" y="54" { (clock(first, zone)) }
            text x="1000" y="54" text-anchor="end" { "now" }
        } }
        p class="legend" {
            "● recovery point  ○ expired, goes soon  ✕ damaged  ▒ gap longer than the objective"
        }
    }
}

/// How a point stands.
pub fn state(point: &PointRecord) -> &'static str {
    if point.damaged {
        "damaged"
    } else if point.tombstoned.is_some() {
        "expiring"
    } else {
        "ok"
    }
}

fn mark(point: &PointRecord, count: usize, zone: chrono_tz::Tz) -> String {
    let what = match count {
        1 => state(point).replace("ok", "recovery point"),
        n => format!("{n} points, the last one"),
    };
    format!("{what} of {}", clock(point.at, zone))
}
