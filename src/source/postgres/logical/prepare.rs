//! Making a target ready for a dump: is it absent, empty, or ours from before; the database; the marker.

use serde::{Deserialize, Serialize};

use super::roles::setting;
use crate::error::{Error, Result};
use crate::source::Context;
use crate::source::postgres::connect::{Address, Session, value};
use crate::source::postgres::facts::{Database, MARKER_SCHEMA};
use crate::source::postgres::quote::{ident, literal};

/// How many things in the way are named.
const NAMED_IN_THE_WAY: usize = 5;

/// The comment of the marker schema.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Marker {
    source: String,
    run: String,
    /// We made the database, so we may drop it.
    created: bool,
    /// Extensions that were there before.
    extensions: Vec<String>,
}

/// What a target database is before a restore.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum State {
    /// Not there.
    Absent,
    /// There, with nothing of a user in it.
    Empty,
    /// There, with the marker of this same restore.
    Ours(Marker),
}

/// A session for the target server as a whole.
pub(super) async fn maintenance(address: &Address) -> Result<Session> {
    let mut first = None;
    let own = address.database.as_deref().unwrap_or("postgres");
    for database in ["postgres", "template1", own] {
        match address.with_database(database).connect().await {
            Ok(session) => return Ok(session),
            // Managed servers may have hidden these two; anything else is the same for every database.
            Err(e)
                if e.message().contains("no database")
                    || e.message().contains("may not connect to database") =>
            {
                first.get_or_insert(e);
            }
            Err(e) => return Err(e),
        }
    }
    Err(first.unwrap_or_else(|| Error::failed(format!("{} has no database", address.shown()))))
}

/// Looks at a target database, without changing anything.
///
/// # Errors
/// It is not empty, or holds the marker of another restore: names what is in the way.
pub(super) async fn examine(
    context: &Context,
    server: &Session,
    address: &Address,
    name: &str,
) -> Result<State> {
    let sql = "SELECT EXISTS (SELECT FROM pg_catalog.pg_database WHERE datname = $1)";
    let exists: bool = value(&server.row("look for the database", sql, &[&name]).await?, 0)?;
    if !exists {
        return Ok(State::Absent);
    }
    let session = address.with_database(name).connect().await?;
    let state = state_of(context, &session, name).await;
    session.close().await;
    state
}

async fn state_of(context: &Context, session: &Session, name: &str) -> Result<State> {
    let sql = "SELECT coalesce(obj_description(oid, 'pg_namespace'), '') FROM pg_catalog.pg_namespace \
               WHERE nspname = $1";
    let rows = session.rows("look for a marker", sql, &[&MARKER_SCHEMA]).await?;
    if let Some(row) = rows.first() {
        let text: &str = value(row, 0)?;
        let hint = "Drop the database, or give another target.";
        let marker: Marker = serde_json::from_str(text).map_err(|e| {
            Error::usage(format!(
                "the schema {MARKER_SCHEMA} in database {name:?} is not ours"
            ))
            .hint(hint)
            .because(e)
        })?;
        if marker.source == context.source.as_str() && marker.run == context.run.to_string() {
            return Ok(State::Ours(marker));
        }
        return Err(Error::usage(format!(
            "database {name:?} holds an incomplete restore of another point: {} of source {}",
            marker.run, marker.source
        ))
        .hint(format!(
            "Start that one over with `backup restore {} --at-point {}` and the same --to; or drop the database, or give another target.",
            marker.source, marker.run
        )));
    }
    let found = in_the_way(session).await?;
    if found.is_empty() {
        return Ok(State::Empty);
    }
    let mut shown = found[..found.len().min(NAMED_IN_THE_WAY)].join(", ");
    if found.len() > NAMED_IN_THE_WAY {
        shown.push_str(" and more");
    }
    Err(
        Error::usage(format!("database {name:?} is not empty: it holds {shown}"))
            .hint("Give a database that is empty or not there yet."),
    )
}

async fn in_the_way(session: &Session) -> Result<Vec<String>> {
    let member = |class: &str, alias: &str| {
        format!(
            "NOT EXISTS (SELECT FROM pg_catalog.pg_depend e WHERE e.classid = 'pg_catalog.{class}'::regclass \
             AND e.objid = {alias}.oid AND e.deptype = 'e')"
        )
    };
    let user = "n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'";
    let sql = format!(
        "SELECT CASE c.relkind WHEN 'S' THEN 'sequence' WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view' \
         WHEN 'f' THEN 'foreign table' ELSE 'table' END, n.nspname || '.' || c.relname \
         FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         WHERE c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f') AND c.relpersistence <> 't' AND {user} AND {} \
         UNION ALL SELECT 'schema', n.nspname FROM pg_catalog.pg_namespace n \
         WHERE n.nspname <> 'public' AND {user} AND {} \
         UNION ALL SELECT 'function', n.nspname || '.' || p.proname FROM pg_catalog.pg_proc p \
         JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace WHERE {user} AND {} \
         UNION ALL SELECT 'type', n.nspname || '.' || t.typname FROM pg_catalog.pg_type t \
         JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace WHERE t.typtype IN ('b', 'd', 'e', 'r') \
         AND t.typcategory <> 'A' AND {user} AND {} \
         UNION ALL SELECT 'large object', l.oid::text FROM pg_catalog.pg_largeobject_metadata l \
         UNION ALL SELECT 'publication', pubname FROM pg_catalog.pg_publication \
         UNION ALL SELECT 'event trigger', v.evtname FROM pg_catalog.pg_event_trigger v WHERE {} \
         UNION ALL SELECT 'foreign server', s.srvname FROM pg_catalog.pg_foreign_server s WHERE {} LIMIT {}",
        member("pg_class", "c"),
        member("pg_namespace", "n"),
        member("pg_proc", "p"),
        member("pg_type", "t"),
        member("pg_event_trigger", "v"),
        member("pg_foreign_server", "s"),
        NAMED_IN_THE_WAY + 1
    );
    let rows = session.rows("look what is in the target", &sql, &[]).await?;
    let named =
        |row: &tokio_postgres::Row| Ok(format!("{} {:?}", value::<&str>(row, 0)?, value::<&str>(row, 1)?));
    rows.iter().map(named).collect()
}

/// Makes the target database ready: created or emptied, and marked.
///
/// # Errors
/// It can not be created, emptied or marked.
pub(super) async fn database(
    context: &Context,
    server: &Session,
    address: &Address,
    name: &str,
    state: &State,
    recorded: &Database,
    warnings: &mut Vec<String>,
) -> Result<bool> {
    let created = match state {
        State::Absent => true,
        State::Empty => false,
        State::Ours(marker) if marker.created => {
            let sql = format!("DROP DATABASE {} WITH (FORCE)", ident(name));
            server
                .run(&format!("drop the incomplete database {name:?}"), &sql)
                .await?;
            true
        }
        State::Ours(marker) => {
            let session = address.with_database(name).connect().await?;
            empty(&session, marker)
                .await
                .map_err(|e| e.hint("Empty the database by hand, or give another target."))?;
            session.close().await;
            false
        }
    };
    if created {
        let version = server.version().await?;
        let sql = create_database(name, recorded, version, warnings);
        server
            .run(&format!("create the database {name:?}"), &sql)
            .await
            .map_err(|e| {
                e.hint("Create an empty database by hand and restore into it, if its locale is not on this server.")
            })?;
    }
    let session = address.with_database(name).connect().await?;
    mark(context, &session, created).await?;
    session.close().await;
    Ok(created)
}

async fn mark(context: &Context, session: &Session, created: bool) -> Result<()> {
    let rows = session
        .rows(
            "list the extensions",
            "SELECT extname::text FROM pg_catalog.pg_extension",
            &[],
        )
        .await?;
    let extensions: Result<Vec<String>> = rows.iter().map(|row| value(row, 0)).collect();
    let marker = Marker {
        source: context.source.to_string(),
        run: context.run.to_string(),
        created,
        extensions: extensions?,
    };
    let text = serde_json::to_string(&marker).map_err(|e| Error::failed("no marker").because(e))?;
    let sql = format!(
        "BEGIN; CREATE SCHEMA {MARKER_SCHEMA}; COMMENT ON SCHEMA {MARKER_SCHEMA} IS {}; COMMIT",
        literal(&text)
    );
    session.run("mark the database as incomplete", &sql).await
}

/// The restore is complete.
pub(super) async fn unmark(session: &Session) -> Result<()> {
    session
        .run("remove the marker", &format!("DROP SCHEMA {MARKER_SCHEMA}"))
        .await
}

fn create_database(name: &str, recorded: &Database, version: u32, warnings: &mut Vec<String>) -> String {
    let mut sql = format!(
        "CREATE DATABASE {} TEMPLATE template0 ENCODING {} LC_COLLATE {} LC_CTYPE {}",
        ident(name),
        literal(&recorded.encoding),
        literal(&recorded.collate),
        literal(&recorded.ctype)
    );
    let locale = recorded.locale.as_deref().unwrap_or_default();
    match recorded.provider.as_str() {
        "icu" if version >= 150_000 => {
            sql.push_str(&format!(" LOCALE_PROVIDER icu ICU_LOCALE {}", literal(locale)));
            if let Some(rules) = recorded.icu_rules.as_deref().filter(|_| version >= 160_000) {
                sql.push_str(&format!(" ICU_RULES {}", literal(rules)));
            }
        }
        "builtin" if version >= 170_000 => {
            sql.push_str(&format!(
                " LOCALE_PROVIDER builtin BUILTIN_LOCALE {}",
                literal(locale)
            ));
        }
        "libc" if version >= 150_000 => sql.push_str(" LOCALE_PROVIDER libc"),
        "libc" => {}
        other => warnings.push(format!(
            "database {name:?} had the locale provider {other}, which this server does not know: it has {} of libc",
            recorded.collate
        )),
    }
    sql
}

/// What belongs to a database beside its content; applied to databases that the restore created.
///
/// # Errors
/// One of them is refused.
pub(super) async fn properties(server: &Session, name: &str, recorded: &Database) -> Result<()> {
    let target = ident(name);
    let mut statements = Vec::new();
    if let Some(comment) = &recorded.comment {
        statements.push(format!("COMMENT ON DATABASE {target} IS {}", literal(comment)));
    }
    for s in &recorded.settings {
        let Some(set) = setting(&s.setting) else { continue };
        statements.push(match &s.role {
            Some(role) => format!("ALTER ROLE {} IN DATABASE {target} SET {set}", ident(role)),
            None => format!("ALTER DATABASE {target} SET {set}"),
        });
    }
    if recorded.connection_limit != -1 {
        statements.push(format!(
            "ALTER DATABASE {target} CONNECTION LIMIT {}",
            recorded.connection_limit
        ));
    }
    if let Some(grants) = &recorded.grants {
        statements.push(format!("REVOKE ALL ON DATABASE {target} FROM PUBLIC"));
        for g in grants {
            let role = g.role.as_deref().map_or_else(|| "PUBLIC".to_owned(), ident);
            let option = if g.grantable { " WITH GRANT OPTION" } else { "" };
            // A privilege is a keyword; anything else did not come from a server.
            if g.privilege.bytes().all(|b| b.is_ascii_uppercase()) {
                statements.push(format!(
                    "GRANT {} ON DATABASE {target} TO {role}{option}",
                    g.privilege
                ));
            }
        }
    }
    statements.push(format!(
        "ALTER DATABASE {target} OWNER TO {}",
        ident(&recorded.owner)
    ));
    server
        .run(
            &format!("set the properties of database {name:?}"),
            &statements.join(";\n"),
        )
        .await
}

/// Empties a database that was empty before an interrupted restore of ours.
async fn empty(session: &Session, marker: &Marker) -> Result<()> {
    let doing = "empty the incomplete database";
    let sql = "SELECT 1, evtname::text FROM pg_catalog.pg_event_trigger \
         UNION ALL SELECT 2, pubname::text FROM pg_catalog.pg_publication \
         UNION ALL SELECT 3, nspname::text FROM pg_catalog.pg_namespace n WHERE nspname !~ '^pg_' \
         AND nspname NOT IN ('information_schema', 'public') AND nspname <> $1 \
         AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend e WHERE e.classid = 'pg_catalog.pg_namespace'::regclass \
         AND e.objid = n.oid AND e.deptype = 'e') \
         UNION ALL SELECT 4, extname::text FROM pg_catalog.pg_extension WHERE extname::text <> ALL ($2) \
         UNION ALL SELECT 5, srvname::text FROM pg_catalog.pg_foreign_server ORDER BY 1";
    let rows = session
        .rows(doing, sql, &[&MARKER_SCHEMA, &marker.extensions])
        .await?;
    for row in rows {
        let name = ident(value(&row, 1)?);
        let sql = match value::<i32>(&row, 0)? {
            1 => format!("DROP EVENT TRIGGER IF EXISTS {name}"),
            2 => format!("DROP PUBLICATION IF EXISTS {name}"),
            3 => format!("DROP SCHEMA IF EXISTS {name} CASCADE"),
            4 => format!("DROP EXTENSION IF EXISTS {name} CASCADE"),
            _ => format!("DROP SERVER IF EXISTS {name} CASCADE"),
        };
        session.run(doing, &sql).await?;
    }
    empty_public(session, doing).await?;
    loop {
        let sql = "SELECT count(lo_unlink(oid)) FROM \
                   (SELECT oid FROM pg_catalog.pg_largeobject_metadata LIMIT 1000) l";
        if value::<i64>(&session.row(doing, sql, &[]).await?, 0)? == 0 {
            break;
        }
    }
    session
        .run(doing, &format!("DROP SCHEMA {MARKER_SCHEMA}"))
        .await?;
    let left = in_the_way(session).await?;
    if left.is_empty() {
        return Ok(());
    }
    Err(Error::failed(format!(
        "the incomplete database could not be emptied: {} is left",
        left.join(", ")
    )))
}

/// Drops what is in `public`, one object at a time, leaving the schema itself as the server made it.
async fn empty_public(session: &Session, doing: &str) -> Result<()> {
    let member =
        "EXISTS (SELECT FROM pg_catalog.pg_depend e WHERE e.objid = o.oid AND e.deptype IN ('e', 'i', 'a'))";
    let queries = [
        format!(
            "SELECT CASE o.relkind WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW' WHEN 'S' THEN 'SEQUENCE' \
             WHEN 'f' THEN 'FOREIGN TABLE' ELSE 'TABLE' END, quote_ident(o.relname) FROM pg_catalog.pg_class o \
             WHERE o.relnamespace = 'public'::regnamespace AND o.relkind IN ('r', 'p', 'v', 'm', 'S', 'f') \
             AND (o.relkind <> 'S' OR NOT {member})"
        ),
        format!(
            "SELECT 'ROUTINE', quote_ident(o.proname) || '(' || pg_get_function_identity_arguments(o.oid) || ')' \
             FROM pg_catalog.pg_proc o WHERE o.pronamespace = 'public'::regnamespace AND o.prokind <> 'a' AND NOT {member}"
        ),
        format!(
            "SELECT 'AGGREGATE', quote_ident(o.proname) || '(' || pg_get_function_identity_arguments(o.oid) || ')' \
             FROM pg_catalog.pg_proc o WHERE o.pronamespace = 'public'::regnamespace AND o.prokind = 'a' AND NOT {member}"
        ),
        format!(
            "SELECT CASE o.typtype WHEN 'd' THEN 'DOMAIN' ELSE 'TYPE' END, quote_ident(o.typname) \
             FROM pg_catalog.pg_type o WHERE o.typnamespace = 'public'::regnamespace \
             AND (o.typtype IN ('d', 'e', 'r') OR o.typtype = 'b' AND o.typcategory <> 'A' OR o.typtype = 'c' \
             AND EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.oid = o.typrelid AND c.relkind = 'c')) AND NOT {member}"
        ),
    ];
    for sql in queries {
        for row in session.rows(doing, &sql, &[]).await? {
            let (kind, name): (&str, &str) = (value(&row, 0)?, value(&row, 1)?);
            session
                .run(doing, &format!("DROP {kind} IF EXISTS public.{name} CASCADE"))
                .await?;
        }
    }
    Ok(())
}
