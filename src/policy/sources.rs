//! `[source.NAME]`: what is common to all kinds, and what each kind has of its own.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono_tz::Tz;

use super::model::{
    CatchUp, Objective, PocketBasePlace, PocketBasePolicy, PostgresMethod, PostgresPolicy, RetentionRules,
    SourceKind, SourcePolicy, StoreUrl,
};
use super::parse::{HOUR, http_url, schedule, store_url, zone};
use super::reader::Reader;

const SECOND: Duration = Duration::from_secs(1);

/// `[source.NAME]`
pub(super) fn source(
    reader: &Reader<'_, '_>,
    zone_of_policy: Tz,
    retentions: &BTreeMap<String, RetentionRules>,
) -> Option<SourcePolicy> {
    let timezone = zone(reader, "timezone").unwrap_or(zone_of_policy);
    let kind = kind(reader);
    if reader.value("follow").is_some() && !has_log(reader) {
        reader.problem(
            "follow",
            "this source has no log to follow",
            Some("postgres with method = \"physical\" and pocketbase with path have one".to_owned()),
        );
    }
    let retention = reader
        .filled("retention")
        .and_then(|name| match retentions.get(&name) {
            Some(rules) => Some((name, *rules)),
            None => {
                let near = super::keys::nearest(&name, retentions.keys().map(String::as_str));
                let hint = near.map_or_else(
                    || format!("add [retention.{name}]"),
                    |n| format!("did you mean {n:?}?"),
                );
                reader.problem("retention", format!("there is no [retention.{name}]"), Some(hint));
                None
            }
        });
    let objective = reader
        .table("objective", "objective")
        .map(|r| {
            let objective = Objective {
                rpo: r.duration_from("rpo", SECOND),
                rto: r.duration_from("rto", SECOND),
            };
            r.finish(&[]);
            objective
        })
        .unwrap_or_default();
    let blackout = reader.items("blackout").unwrap_or_default();
    for (text, span) in blackout.iter().filter(|(text, _)| !is_span(text)) {
        reader.problem_in(
            "blackout",
            span.clone(),
            format!("{text:?} is not a span of the day"),
            Some("write it as 22:00-06:00".to_owned()),
        );
    }
    let catch_up = match reader.one_of("catch_up", &["once", "skip"]) {
        Some("skip") => CatchUp::Skip,
        _ => CatchUp::Once,
    };
    let schedule = schedule(reader, timezone);
    let policy = SourcePolicy {
        kind: SourceKind::Bucket { url: String::new() },
        schedule,
        timezone,
        follow: reader.duration_from("follow", SECOND),
        retention,
        objective,
        jitter: reader.duration("jitter").unwrap_or(Duration::ZERO),
        catch_up,
        max_age: reader.duration_from("max_age", SECOND).unwrap_or(24 * HOUR),
        timeout: reader.duration_from("timeout", SECOND).unwrap_or(24 * HOUR),
        stall_timeout: reader
            .duration_from("stall_timeout", SECOND)
            .unwrap_or(Duration::from_secs(600)),
        priority: reader
            .integer("priority", -1000..=1000)
            .and_then(|n| i32::try_from(n).ok())
            .unwrap_or(0),
        refresh: reader.duration_from("refresh", 24 * HOUR),
        blackout: blackout.into_iter().map(|(text, _)| text).collect(),
    };
    reader.finish(&[]);
    kind.map(|kind| SourcePolicy { kind, ..policy })
}

/// By what is written, so that it is told beside whatever else is wrong.
fn has_log(reader: &Reader<'_, '_>) -> bool {
    let text = |key: &str| reader.value(key).and_then(|v| v.get_ref().as_str());
    match text("kind") {
        Some("postgres") => text("method") == Some("physical"),
        Some("pocketbase") => reader.value("url").is_none(),
        Some("bucket") => false,
        // Not known: that is told already.
        _ => true,
    }
}

fn is_span(text: &str) -> bool {
    let time = |t: &str| chrono::NaiveTime::parse_from_str(t, "%H:%M").is_ok();
    text.split_once('-')
        .is_some_and(|(from, to)| time(from) && time(to) && from != to)
}

/// Keys that one kind of source has and the others have not.
const POSTGRES: &[&str] = &["method", "databases", "exclude", "client_dir", "jobs"];
const PHYSICAL: &[&str] = &[
    "access",
    "data_directory",
    "slot",
    "slot_without_limit",
    "retain_limit",
];
const POCKETBASE: &[&str] = &["path", "superuser", "logs", "storage", "settings_key"];

fn kind(reader: &Reader<'_, '_>) -> Option<SourceKind> {
    let kind = reader.one_of("kind", &["postgres", "pocketbase", "bucket"])?;
    let foreign: Vec<&str> = match kind {
        "postgres" => POCKETBASE.to_vec(),
        "pocketbase" => [POSTGRES, PHYSICAL].concat(),
        _ => [POSTGRES, PHYSICAL, POCKETBASE].concat(),
    };
    for key in foreign.into_iter().filter(|k| reader.value(k).is_some()) {
        reader.problem(key, format!("a {kind} source has no such key"), None);
    }
    match kind {
        "postgres" => postgres(reader).map(SourceKind::Postgres),
        "pocketbase" => pocketbase(reader).map(SourceKind::PocketBase),
        _ => {
            if reader.value("url").is_none() {
                reader.missing("url");
            }
            let url = reader.parsed("url", |text| match store_url(text) {
                Ok(StoreUrl::S3 { .. }) => Ok(text.to_owned()),
                _ => Err("must be s3://BUCKET/PREFIX".to_owned()),
            })?;
            Some(SourceKind::Bucket { url })
        }
    }
}

fn postgres(reader: &Reader<'_, '_>) -> Option<PostgresPolicy> {
    let method = match reader.one_of("method", &["logical", "physical"]) {
        Some("physical") => PostgresMethod::Physical,
        _ => PostgresMethod::Logical,
    };
    reader.one_of("access", &["auto", "files", "protocol"]);
    reader.path("data_directory");
    reader.parsed("slot", |text| {
        let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
        if (1..=63).contains(&text.len()) && text.bytes().all(good) {
            Ok(())
        } else {
            Err("a slot has a name of 1 to 63 of a-z, 0-9 and _")
        }
    });
    reader.boolean("slot_without_limit");
    reader.size("retain_limit");
    if method == PostgresMethod::Logical {
        for key in PHYSICAL.iter().filter(|k| reader.value(k).is_some()) {
            reader.problem(key, "needs method = \"physical\"", None);
        }
    }
    if reader.value("url").is_none() {
        reader.missing("url");
    }
    let url = reader.secret("url");
    let databases = reader.texts("databases").unwrap_or_default();
    if databases.iter().any(String::is_empty) {
        reader.problem("databases", "a name must not be empty", None);
    }
    Some(PostgresPolicy {
        method,
        databases,
        exclude: reader.texts("exclude").unwrap_or_default(),
        client_dir: reader.path("client_dir"),
        jobs: reader.count("jobs", 1),
        url: url?,
    })
}

fn pocketbase(reader: &Reader<'_, '_>) -> Option<PocketBasePolicy> {
    let superuser = reader.table("superuser", "superuser").map(|r| {
        let pair = (r.secret("identity"), r.secret("password"));
        r.finish(&[]);
        pair
    });
    let logs = reader.boolean("logs").unwrap_or(true);
    let storage = reader.boolean("storage").unwrap_or(true);
    let settings_key = reader.secret("settings_key");
    let place = match (reader.value("path").is_some(), reader.value("url").is_some()) {
        (true, false) if superuser.is_some() => {
            reader.problem("superuser", "is for a pocketbase with url", None);
            None
        }
        (true, false) => reader.path("path").map(PocketBasePlace::Local),
        (false, true) => {
            let url = reader.parsed("url", http_url);
            if superuser.is_none() {
                reader.missing("superuser");
            }
            match (url, superuser) {
                (Some(url), Some((Some(identity), Some(password)))) => Some(PocketBasePlace::Remote {
                    url,
                    identity,
                    password,
                }),
                _ => None,
            }
        }
        (true, true) => {
            reader.problem(
                "url",
                "path and url exclude each other",
                Some("path: on this host; url: by its API".to_owned()),
            );
            None
        }
        (false, false) => {
            reader.missing("path");
            None
        }
    };
    Some(PocketBasePolicy {
        place: place?,
        logs,
        storage,
        settings_key,
    })
}
