//! `[drill.NAME]`

use std::time::Duration;

use chrono_tz::Tz;

use super::model::{DrillPolicy, Sandboxing, UserCheck, UserCheckKind};
use super::parse::{HOUR, schedule};
use super::reader::Reader;
use crate::drill::Select;

/// A check that takes longer has no answer.
const CHECK_TIMEOUT: Duration = Duration::from_secs(300);

/// Reads a drill; `sources` are the policy's.
pub(super) fn drill(reader: &Reader<'_, '_>, zone: Tz, sources: &[String]) -> DrillPolicy {
    let named = reader.items("sources").unwrap_or_default();
    let undefined = |name: &str| {
        let near = super::keys::nearest(name, sources.iter().map(String::as_str));
        let hint = near.map(|n| format!("did you mean {n:?}?"));
        (!sources.iter().any(|s| s == name)).then(|| (format!("there is no [source.{name}]"), hint))
    };
    for (name, span) in &named {
        if let Some((message, hint)) = undefined(name) {
            reader.problem_in("sources", span.clone(), message, hint);
        }
    }
    if reader
        .value("sources")
        .is_some_and(|v| v.get_ref().as_array().is_some_and(|a| a.is_empty()))
    {
        reader.problem("sources", "must name at least one source", None);
    }
    let select = reader.one_of("at", &Select::ALL.map(Select::name));
    let select = Select::ALL.into_iter().find(|s| Some(s.name()) == select);
    let mut checks: Vec<UserCheck> = Vec::new();
    for check in reader.tables("checks", "check") {
        if let Some((message, hint)) = check.filled("source").and_then(|name| undefined(&name)) {
            check.problem("source", message, hint);
        } else if let Some(name) = check
            .filled("source")
            .filter(|name| !named.iter().any(|(n, _)| n == name))
        {
            let hint = Some("name it in sources of the drill too".to_owned());
            check.problem("source", format!("{name} is not a source of this drill"), hint);
        }
        if let Some(own) = user_check(&check) {
            let same = |c: &&UserCheck| c.source == own.source && c.name == own.name;
            if checks.iter().find(same).is_some() {
                let message = format!("there are two checks of the name {:?}", own.name);
                check.problem("name", message, Some("name each one differently".to_owned()));
            }
            checks.push(own);
        }
        check.finish(&[]);
    }
    let policy = DrillPolicy {
        sources: named.iter().filter_map(|(n, _)| n.parse().ok()).collect(),
        schedule: schedule(reader, zone),
        select: select.unwrap_or_default(),
        window: reader.duration("window"),
        max_age: reader.duration("max_age"),
        keep_failed: reader.duration("keep_failed").unwrap_or(24 * HOUR),
        budget: reader.size("budget"),
        memory: reader.size("memory"),
        timeout: reader
            .duration_from("timeout", Duration::from_secs(1))
            .unwrap_or(12 * HOUR),
        binaries: reader.path("binaries"),
        server: reader.secret("server"),
        sandbox: match reader.one_of("sandbox", &["required", "optional"]) {
            Some("optional") => Sandboxing::Optional,
            _ => Sandboxing::Required,
        },
        checks,
    };
    reader.finish(&[]);
    policy
}

/// A check of a drill: exactly one of the things that it may do.
fn user_check(reader: &Reader<'_, '_>) -> Option<UserCheck> {
    let (source, name) = (reader.filled("source"), reader.filled("name"));
    let (query, expected, database) = (
        reader.filled("sql"),
        reader.text("expected"),
        reader.filled("database"),
    );
    let (command, http) = (reader.texts("command"), reader.filled("http"));
    let timeout = reader.duration_from("timeout", Duration::from_secs(1));
    let given = [query.is_some(), command.is_some(), http.is_some()];
    let wanted = "a check has one of sql, command and http";
    if given.iter().filter(|g| **g).count() != 1 {
        let written = ["sql", "command", "http"]
            .iter()
            .any(|key| reader.value(key).is_some());
        if !written || given.iter().filter(|g| **g).count() > 1 {
            reader.problem_at(reader.span.clone(), wanted, None);
        }
        return None;
    }
    for (key, value) in [("expected", &expected), ("database", &database)] {
        if value.is_some() && query.is_none() {
            reader.problem(key, "is for a check with sql", None);
        }
    }
    if command.as_ref().is_some_and(Vec::is_empty) {
        reader.problem("command", "names no program", None);
        return None;
    }
    let what = match (query, command, http) {
        (Some(query), ..) => UserCheckKind::Sql {
            database,
            query,
            expected,
        },
        (_, Some(mut command), _) => {
            // A path is of the policy's directory, as of any key; a name is looked for.
            if let Some(program) = command.first_mut().filter(|program| program.contains('/')) {
                *program = reader.beside(program).display().to_string();
            }
            UserCheckKind::Command(command)
        }
        (.., Some(http)) => {
            let path = url::Url::parse(&http)
                .ok()
                .filter(|url| matches!(url.scheme(), "http" | "https"))
                .map(|url| url[url::Position::BeforePath..url::Position::AfterQuery].to_owned());
            if path.is_none() {
                let hint =
                    "such as http://127.0.0.1/api/health: host and port are those of the scratch server";
                reader.problem("http", format!("{http:?} is no URL"), Some(hint.to_owned()));
            }
            UserCheckKind::Http(path?)
        }
        _ => return None,
    };
    Some(UserCheck {
        source: source?.parse().ok()?,
        name: name?,
        timeout: timeout.unwrap_or(CHECK_TIMEOUT),
        what,
    })
}
