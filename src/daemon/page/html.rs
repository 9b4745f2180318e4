//! The status page as HTML. Everything that comes from outside is escaped by the template; nothing on it needs a script.

use std::time::Duration;

use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::picture;
use super::view::{DAYS, Line, Overview, ROWS, SourceView, clock, span};
use crate::state::ledger::{Outcome, SlotRecord};
use crate::types::{rfc3339, size};

/// Its style, which the policy of the page's content names by its digest.
pub const STYLE: &str = include_str!("style.css");

fn page(title: &str, environment: &str, made: (DateTime<Utc>, Tz), again: bool, body: &Markup) -> String {
    let whole = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                // Once a minute anew, without a script.
                @if again { meta http-equiv="refresh" content="60"; }
                title { (title) " · Lifeboat" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header class="soft" { a href="/" { "Lifeboat" } " · " (environment) }
                main { (body) }
                footer {
                    p {
                        "As of " (clock(made.0, made.1)) ". Times are those of " (made.1.name())
                        ". Version " (env!("CARGO_PKG_VERSION")) "."
                    }
                }
            }
        }
    };
    whole.into_string()
}

/// The front page.
pub fn overview(view: &Overview) -> String {
    let now = view.made.0;
    let body = html! {
        h1 class=[(!view.well).then_some("bad")] { (view.sentence) }
        @for note in &view.notes { p class="note" { (note) } }
        @if !view.lines.is_empty() {
            table {
                thead { tr {
                    th scope="col" { "Source" } th scope="col" { (DAYS) " days" } th scope="col" { "Newest point" }
                    th scope="col" { "Size" } th scope="col" { "Next run" }
                } }
                tbody { @for line in &view.lines { (source_row(line, now, view.made.1)) } }
            }
        }
        @if !view.tasks.is_empty() {
            h2 { "Drills, retention and verification" }
            table { tbody {
                @for (key, problems, days, next) in &view.tasks {
                    tr {
                        th scope="row" { a href=(format!("/tasks/{key}")) { (key) } (list(problems)) }
                        td class="picture" data-label="30 days" { (picture::strip(days)) }
                        td data-label="Next" { (next_of(*next, now, view.made.1)) }
                    }
                }
            } }
        }
        p class="legend" { "▮ ok  ▖ late  ○ missed  ✕ failed  · nothing due" }
    };
    page(
        if view.well { "All is well" } else { "Attention" },
        &view.environment,
        view.made,
        true,
        &body,
    )
}

fn list(problems: &[String]) -> Markup {
    html! { @for problem in problems { div class="problem" { "✕ " (problem) } } }
}

fn next_of(next: Option<DateTime<Utc>>, now: DateTime<Utc>, zone: Tz) -> Markup {
    html! {
        @match next {
            None => "–",
            Some(at) => {
                @match (at - now).to_std() {
                    Ok(wait) => { "in " (span(wait)) },
                    Err(_) => "now",
                }
                div class="soft" { (clock(at, zone)) }
            }
        }
    }
}

fn source_row(line: &Line, now: DateTime<Utc>, zone: Tz) -> Markup {
    html! {
        tr {
            th scope="row" {
                a href=(format!("/sources/{}", line.name)) { (line.name) }
                " " span class="soft" { (line.kind) }
                (list(&line.problems))
                @if let Some(doing) = &line.doing { div class="soft" { (doing) } }
            }
            td class="picture" data-label="30 days" { (picture::strip(&line.days)) }
            td data-label="Newest point" { (age(line)) div class="soft" { (line.proven) } }
            td data-label="Size" {
                @if line.points > 0 { span class="size" { (size(line.content)) } (picture::sparkline(&line.sizes)) } @else { "–" }
            }
            td data-label="Next run" {
                @if line.scheduled { (next_of(line.next, now, zone)) } @else { "by hand only" }
            }
        }
    }
}

/// The age of the newest point, and a bar against what it may be.
fn age(line: &Line) -> Markup {
    let share = |age: Duration, objective: Duration| {
        (age.as_secs_f64() / objective.as_secs_f64().max(1.0) * 100.0).min(100.0)
    };
    html! {
        @match (line.known, line.age) {
            (false, _) => "not known yet",
            (_, None) => "none",
            (_, Some(age)) => {
                (span(age)) " ago"
                @if let Some(objective) = line.objective {
                    span class="soft" { " of " (span(objective)) }
                    // Drawn, not styled: the page allows no style of an element.
                    svg class="bar-picture" aria-hidden="true" viewBox="0 0 100 6" width="128" height="8" {
                        rect class="bar-back" x="0" y="0" width="100" height="6" rx="2" {}
                        rect class=(if age > objective { "bar-over" } else { "bar-in" }) x="0" y="0"
                            width=(format!("{:.0}", share(age, objective))) height="6" rx="2" {}
                    }
                } @else {
                    div class="soft" { "no objective" }
                }
            }
        }
    }
}

/// The page of a source. `seal`: what its button sends along; none: there is no button.
pub fn source(view: &SourceView, seal: Option<&str>, asked: bool) -> String {
    let line = &view.line;
    let (now, zone) = view.made;
    let body = html! {
        h1 class=[(!line.problems.is_empty()).then_some("bad")] {
            (line.name)
            @if line.problems.is_empty() { ": recoverable" } @else { " needs attention" }
        }
        (list(&line.problems))
        @if asked { p class="note" { "A run was asked for: it begins when its turn comes." } }
        @if let Some(doing) = &line.doing { p { (doing) } }
        p { "Newest point: " (age(line)) }
        p { "Drills: " (line.proven) }
        (picture::strip(&line.days))
        @if let Some(seal) = seal {
            form method="post" action=(format!("/sources/{}/run", line.name)) {
                input type="hidden" name="seal" value=(seal);
                button { "Run now" }
            }
        }
        h2 { "Recovery window" }
        (picture::timeline(&view.points, line.objective, zone, now))
        (points(view))
        h2 { "Runs" }
        (slots(&format!("/sources/{}", line.name), &view.slots, zone))
        @if !view.passed.is_empty() {
            h2 { "Slots without a run" }
            ul { @for span in view.passed.iter().take(ROWS as usize) {
                li {
                    (span.count) " from " (clock(span.first, zone)) " to " (clock(span.last, zone)) ": " (span.why)
                }
            } }
        }
    };
    page(line.name.as_str(), &view.environment, view.made, false, &body)
}

fn points(view: &SourceView) -> Markup {
    let zone = view.made.1;
    html! {
        table {
            thead { tr {
                th scope="col" { "Recovery point" } th scope="col" { "Size" } th scope="col" { "Added" }
                th scope="col" { "To restore it" }
            } }
            tbody { @for point in view.points.iter().take(ROWS as usize) {
                tr id=(point.run) {
                    th scope="row" {
                        (clock(point.at, zone))
                        @match picture::state(point) {
                            "damaged" => { div class="problem" { "✕ damaged" } },
                            "expiring" => { div class="soft" { "○ expired, goes soon" } },
                            _ => {}
                        }
                        div class="soft" { (point.run) }
                    }
                    td data-label="Size" { (size(point.content)) }
                    td data-label="Added" { (size(point.stored)) }
                    td data-label="To restore it" {
                        @match picture::state(point) {
                            "expiring" => { "first " code { "backup prune --undo " (point.run) } },
                            "damaged" => { "not whole: " code { "backup list " (point.run) } " says why" },
                            _ => code { "backup restore --policy " (view.policy) " " (view.line.name) " --at " (rfc3339(point.at)) " --to TARGET" },
                        }
                    }
                }
            } }
        }
        p class="soft" {
            "Where the policy names no identity, add " code { "--identity FILE" } "; TARGET is new or empty."
        }
        @if view.points.len() > ROWS as usize {
            p class="soft" {
                "The newest " (ROWS) " of " (view.points.len()) " are listed; "
                code { "backup list " (view.line.name) } " shows all."
            }
        }
    }
}

fn slots(base: &str, slots: &[SlotRecord], zone: Tz) -> Markup {
    html! {
        @if slots.is_empty() { p { "None yet." } } @else {
            table {
                thead { tr {
                    th scope="col" { "Slot" } th scope="col" { "How it ended" } th scope="col" { "Took" }
                } }
                tbody { @for slot in slots {
                    tr {
                        th scope="row" {
                            a href=(format!("{base}/slots/{}", slot.slot.timestamp_millis())) { (clock(slot.slot, zone)) }
                        }
                        td { (outcome(slot)) }
                        td data-label="Took" { (took(slot)) }
                    }
                } }
            }
        }
    }
}

fn outcome(slot: &SlotRecord) -> Markup {
    html! {
        @match slot.outcome {
            Outcome::Done => "▮ done",
            Outcome::Running => "… under way",
            Outcome::Failed | Outcome::Interrupted => {
                span class="problem" { "✕ " (slot.outcome.name()) ": " (slot.error.as_deref().unwrap_or("no cause is known")) }
            }
        }
        @if slot.tries > 1 { span class="soft" { " (begun " (slot.tries) " times)" } }
    }
}

fn took(slot: &SlotRecord) -> String {
    let took = slot
        .ended
        .map(|ended| (ended - slot.began).to_std().unwrap_or_default());
    took.map_or_else(|| "–".to_owned(), span)
}

/// What a page of a task or a slot is about.
pub struct About<'a> {
    /// Whose data it is.
    pub environment: &'a str,
    /// The task's key.
    pub key: &'a str,
    /// The address of the task's page.
    pub base: &'a str,
    /// When it was made, and the policy's zone.
    pub made: (DateTime<Utc>, Tz),
}

/// The page of a task that is no source's.
pub fn task(about: &About<'_>, records: &[SlotRecord]) -> String {
    let body = html! {
        h1 { (about.key) }
        (slots(about.base, records, about.made.1))
    };
    page(about.key, about.environment, about.made, false, &body)
}

/// The page of a slot: how it ended, and why, in one sentence.
pub fn slot(about: &About<'_>, record: &SlotRecord) -> String {
    let zone = about.made.1;
    let bad = matches!(record.outcome, Outcome::Failed | Outcome::Interrupted);
    let body = html! {
        h1 class=[bad.then_some("bad")] {
            (about.key) ", slot of " (clock(record.slot, zone)) ": " (record.outcome.name())
        }
        @if let Some(error) = &record.error { p class="problem" { (error) } }
        dl {
            dt { "Begun" } dd { (clock(record.began, zone)) @if record.tries > 1 { ", for the " (record.tries) ". time" } }
            dt { "Ended" } dd { @match record.ended { Some(at) => (clock(at, zone)), None => "not yet" } }
            dt { "Took" } dd { (took(record)) }
            @if let Some(run) = &record.run {
                dt { "Recovery point" }
                dd { a href=(format!("{}#{run}", about.base)) { (run) } }
            }
        }
        @if bad {
            p { "The log has more: look for the slot " code { (rfc3339(record.slot)) } "." }
        }
        p { a href=(about.base) { "All slots of " (about.key) } }
    };
    page(about.key, about.environment, about.made, false, &body)
}
