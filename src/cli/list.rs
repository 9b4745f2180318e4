//! `backup list [SOURCE | RUN]`

use chrono::SecondsFormat;
use chrono_tz::Tz;

use super::Surroundings;
use super::args::{ListArgs, run_id};
use super::load;
use super::text::{clean, count, rfc3339, size, table, utc, utc_or};
use crate::error::{Kind, Result};
use crate::jobs;
use crate::jobs::report::{ListReport, ListedPoint, ListedSource, PointReport};
use crate::types::{RunId, SourceName};

/// Shows points and windows; exit 21 when a commit can not be read.
pub async fn list(surroundings: &Surroundings, args: &ListArgs) -> Result<u8> {
    let session = surroundings.session_with_identity(args.repository.as_deref(), args.identity.clone())?;
    let zone = session.policy.timezone;
    // A source may have a name that would do for a run in small letters.
    let is_source = |what: &&str| session.policy.sources.keys().any(|s| s.as_str() == *what);
    let run: Option<RunId> = args
        .what
        .as_deref()
        .filter(|what| !is_source(what))
        .and_then(|what| run_id(what).ok());
    if let Some(run) = run {
        let report = surroundings.reading(jobs::list::point(&session, run)).await?;
        surroundings
            .printer
            .result(&report, || point_text(&report, zone))?;
        return Ok(0);
    }
    let source: Option<SourceName> = args.what.as_deref().map(str::parse).transpose()?;
    let report = surroundings
        .reading(jobs::list::list(&session, source.as_ref()))
        .await?;
    for source in &report.sources {
        for unreadable in &source.unreadable {
            surroundings.printer.warning(&format!(
                "{}: the commit of {} can not be read: {}",
                source.source, unreadable.run, unreadable.problem
            ));
        }
    }
    for warning in &report.warnings {
        surroundings.printer.warning(warning);
    }
    surroundings.printer.result(&report, || text(&report, zone))?;
    let mut unreadable = report.sources.iter().flat_map(|s| &s.unreadable).peekable();
    if unreadable.peek().is_none() {
        return Ok(0);
    }
    let newer = unreadable.all(|point| point.newer_format);
    Ok(if newer { Kind::Newer } else { Kind::Damaged }.exit_code())
}

fn text(report: &ListReport, zone: Tz) -> String {
    if report.sources.is_empty() {
        return "no sources\n".to_owned();
    }
    let parts: Vec<String> = report
        .sources
        .iter()
        .map(|source| source_text(source, zone))
        .collect();
    parts.join("\n")
}

fn source_text(source: &ListedSource, zone: Tz) -> String {
    let kind = source.kind.as_deref().unwrap_or("no point yet");
    let expired = source.points.iter().filter(|p| p.tombstoned.is_some()).count() as u64;
    let mut out = format!(
        "{} ({}): {}",
        source.source,
        clean(kind),
        count(source.points.len() as u64 - expired, "recovery point")
    );
    if expired > 0 {
        out += &format!(", and {expired} expired that `backup prune --undo RUN` brings back for a while");
    }
    out.push('\n');
    for window in &source.windows {
        let what = match window.kind {
            "continuous" => "every instant",
            _ => "points",
        };
        out += &format!(
            "{what} from {} to {}\n",
            load::echo(window.from, zone),
            load::echo(window.to, zone)
        );
    }
    if source.points.is_empty() {
        return out;
    }
    // The zone's own column only where it says something else.
    if zone == Tz::UTC {
        out += &table(
            ["run", "at (UTC)", ">content", ">stored", "state"],
            source.points.iter().map(|p| {
                let [run, at, content, stored, state] = cells(p);
                [run, at, content, stored, state]
            }),
        );
        return out;
    }
    let local = format!("at ({zone})");
    out += &table(
        ["run", "at (UTC)", &local, ">content", ">stored", "state"],
        source.points.iter().map(|p| {
            let [run, at, content, stored, state] = cells(p);
            // The same instant with its offset: either one finds this point.
            let here =
                p.at.with_timezone(&zone)
                    .to_rfc3339_opts(SecondsFormat::AutoSi, true);
            [run, at, here, content, stored, state]
        }),
    );
    out
}

fn cells(point: &ListedPoint) -> [String; 5] {
    [
        point.run.to_string(),
        super::text::point(point.at),
        size(point.bytes_content),
        size(point.bytes_stored),
        state(point),
    ]
}

fn state(point: &ListedPoint) -> String {
    let mut words = Vec::new();
    if let Some(reason) = &point.damaged {
        words.push(format!("DAMAGED: {reason}"));
    }
    if let Some(since) = point.tombstoned {
        words.push(format!("expired {}", utc(since)));
    }
    if point.held {
        words.push("held".to_owned());
    }
    if let Some(drilled) = &point.drilled {
        words.push(format!("drilled {} (level {})", utc(drilled.at), drilled.level));
    }
    words.join(", ")
}

fn point_text(report: &PointReport, zone: Tz) -> String {
    let point = &report.point;
    let facts = serde_json::to_string_pretty(&report.facts).unwrap_or_default();
    let state = state(point);
    let mut out = format!(
        "run          {}\nsource       {} ({})\nrestores to  {}\nslot         {}\nstarted      {}\nfinished     {}\n\
         content      {}\nread         {}\nstored       {}\nparent       {}\ngeneration   {}\nclock        {} ms ahead of the store's\nstate        {}\n",
        point.run,
        report.source,
        clean(&report.kind),
        load::echo(point.at, zone),
        report
            .slot
            .map_or_else(|| "none: by hand".to_owned(), |slot| load::echo(slot, zone)),
        rfc3339(point.started),
        rfc3339(point.finished),
        size(point.bytes_content),
        size(point.bytes_read),
        size(point.bytes_stored),
        point.parent.map_or_else(|| "none".to_owned(), |p| p.to_string()),
        report.generation,
        report.clock_offset_ms,
        if state.is_empty() { "ok" } else { &state },
    );
    out += &format!("facts        {}\n", facts.replace('\n', "\n             "));
    match &report.databases {
        Some(databases) if databases.is_empty() => {}
        Some(databases) => {
            out.push('\n');
            out += &table(
                ["database", ">bytes", ">tables", ">rows", "snapshot (UTC)"],
                databases.iter().map(|d| {
                    let (tables, rows) = (d.tables.to_string(), d.rows.to_string());
                    [d.name.clone(), d.bytes.to_string(), tables, rows, rfc3339(d.at)]
                }),
            );
        }
        None => out += "databases    not shown: no identity at hand opens it (--identity FILE)\n",
    }
    out.push('\n');
    out += &table(
        ["draws on run", ">packs"],
        report
            .refs
            .iter()
            .map(|r| [r.run.to_string(), r.packs.to_string()]),
    );
    out.push('\n');
    out += &table(
        ["object", ">bytes", "locked until (UTC)"],
        report
            .objects
            .iter()
            .map(|o| [o.key.clone(), o.bytes.to_string(), utc_or(o.locked_until, "-")]),
    );
    out
}
