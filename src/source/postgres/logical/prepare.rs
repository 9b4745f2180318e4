//! Making a target ready for a dump: is it absent, empty, or ours from before; the database; the marker.

use serde::{Deserialize, Serialize};
use tokio_postgres::error::SqlState;

use super::clear;
use super::roles::setting;
use crate::error::{Error, Result};
use crate::source::Context;
use crate::source::postgres::connect::{Address, Session, value};
use crate::source::postgres::facts::{Database, MARKER_SCHEMA};
use crate::source::postgres::quote::{ident, literal};

/// How long the lock of a target may take to come free.
const LOCK_PATIENCE: &str = "5s";

/// The comment of the marker schema.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Marker {
    source: String,
    run: String,
    /// We made the database, so we may drop it.
    created: bool,
    /// Extensions that were there before.
    pub(super) extensions: Vec<String>,
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

/// A session for the target server as a whole, and the address to use from here on: where the role may, its sessions
/// and programs fire no event triggers, which would do to what is restored as they do to what users change, and of which
/// those of logins could keep everybody out.
pub(super) async fn maintenance(address: &Address) -> Result<(Session, Address)> {
    // A database whose sessions are read-only unless told otherwise is written all the same.
    let writing = address.with_option("-c default_transaction_read_only=off");
    let quiet = writing.with_option("-c event_triggers=off");
    for address in [quiet, writing] {
        match any_database(&address).await {
            Ok(session) => return Ok((session, address)),
            // Not before version 17, not every role, not through every pooler.
            Err(e) if e.chain().contains("event_triggers") || e.chain().contains("startup parameter") => {}
            Err(e) => return Err(e),
        }
    }
    Ok((any_database(address).await?, address.clone()))
}

async fn any_database(address: &Address) -> Result<Session> {
    let mut first = None;
    let own = address.database.as_deref().unwrap_or("postgres");
    for database in ["postgres", "template1", own] {
        match address.with_database(database).connect().await {
            Ok(session) => return Ok(session),
            // Managed servers may have hidden these two; anything else is the same for every database.
            Err(e)
                if e.message().contains("no database")
                    || e.message().contains("may not connect to database")
                        && !e.chain().contains("event_triggers") =>
            {
                first.get_or_insert(e);
            }
            Err(e) => return Err(e),
        }
    }
    Err(first.unwrap_or_else(|| Error::failed(format!("{} has no database", address.shown()))))
}

/// Takes the lock of a target database, for as long as the server's session lives: two restores into one database at
/// once would each drop what the other makes. A server takes a moment to notice that the client of a killed restore is
/// gone: it is waited for.
///
/// # Errors
/// Another session has it.
pub(super) async fn lock(server: &Session, name: &str) -> Result<()> {
    let digest = blake3::hash(format!("lifeboat restore {name}").as_bytes());
    let mut half = [0u8; 8];
    half.copy_from_slice(&digest.as_bytes()[..8]);
    let key = i64::from_be_bytes(half);
    let doing = "lock the target database";
    let row = server
        .row(doing, "SELECT pg_try_advisory_lock($1)", &[&key])
        .await?;
    if value(&row, 0)? || wait_for_lock(server, key).await? {
        return Ok(());
    }
    let sql = "SELECT pid FROM pg_catalog.pg_locks WHERE locktype = 'advisory' AND objsubid = 1 AND granted \
               AND classid::int8 = ($1::int8 >> 32) & 4294967295 AND objid::int8 = $1::int8 & 4294967295 LIMIT 1";
    let holder = server.rows(doing, sql, &[&key]).await?;
    let who = match holder.first() {
        Some(row) => format!(" (server process {})", value::<i32>(row, 0)?),
        None => String::new(),
    };
    Err(Error::usage(format!(
        "another restore into database {name:?} is under way{who}"
    ))
    .hint("Wait for its end, or end it, and run the same command again."))
}

/// Waits for a lock that another session has; `false`: it still has it.
async fn wait_for_lock(server: &Session, key: i64) -> Result<bool> {
    let doing = "wait for the lock of the target database";
    let set = |patience: &'static str| async move {
        let sql = format!("SET lock_timeout = '{patience}'");
        server
            .batch_execute(&sql)
            .await
            .map_err(|e| server.failed(doing, &e))
    };
    set(LOCK_PATIENCE).await?;
    let got = match server.query_one("SELECT pg_advisory_lock($1)", &[&key]).await {
        Ok(_) => true,
        Err(e) if e.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => false,
        Err(e) => return Err(server.failed(doing, &e)),
    };
    // As it was set for every session of ours.
    set("0").await?;
    Ok(got)
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
    let found = clear::in_the_way(session).await?;
    if found.is_empty() {
        return Ok(State::Empty);
    }
    Err(clear::not_empty(name, &found))
}

/// Makes the target database ready: created or emptied, and marked. What it is is looked at now: others may have used it
/// since the restore began.
///
/// # Errors
/// It can not be created, emptied or marked, or is not empty any more.
pub(super) async fn database(
    context: &Context,
    server: &Session,
    address: &Address,
    name: &str,
    recorded: &Database,
    warnings: &mut Vec<String>,
) -> Result<bool> {
    let created = match examine(context, server, address, name).await? {
        State::Absent => true,
        State::Empty => false,
        State::Ours(marker) => {
            start_over(context, server, address, name, &marker).await?;
            marker.created
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
    mark(context, &session, name, created).await?;
    session.close().await;
    Ok(created)
}

/// Takes back what an interrupted restore of ours has left. The session that saw the marker is open until then: no
/// other database can have taken the name of the one that it is in.
async fn start_over(
    context: &Context,
    server: &Session,
    address: &Address,
    name: &str,
    marker: &Marker,
) -> Result<()> {
    let session = address.with_database(name).connect().await?;
    if state_of(context, &session, name).await? != State::Ours(marker.clone()) {
        return Err(
            Error::failed(format!("database {name:?} was changed by somebody else"))
                .hint("Look what is in it, then run the same command again."),
        );
    }
    if !marker.created {
        clear::empty(&session, marker)
            .await
            .map_err(|e| e.hint("Empty the database by hand, or give another target."))?;
        session.close().await;
        return Ok(());
    }
    let doing = format!("drop the incomplete database {name:?}");
    clear::drop_subscriptions(&session, &doing).await?;
    let sql = "SELECT oid::int8 FROM pg_catalog.pg_database WHERE datname = current_database()";
    let seen: i64 = value(&session.row(&doing, sql, &[]).await?, 0)?;
    let sql = "SELECT EXISTS (SELECT FROM pg_catalog.pg_database WHERE datname = $1 AND oid::int8 = $2)";
    let same: bool = value(&server.row(&doing, sql, &[&name, &seen]).await?, 0)?;
    if !same {
        return Err(
            Error::failed(format!("database {name:?} was replaced by somebody else"))
                .hint("Look what is in it, then run the same command again."),
        );
    }
    // Ends our own session too.
    server
        .run(&doing, &format!("DROP DATABASE {} WITH (FORCE)", ident(name)))
        .await
}

/// The schema first, then a look, then the comment that makes the schema a marker: nothing with a marker in it was
/// anybody else's before. All in one transaction, in which each statement sees what others have committed: a kill in
/// between would leave a schema without the comment, which is taken for nobody's and stops the same command.
async fn mark(context: &Context, session: &Session, name: &str, created: bool) -> Result<()> {
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
    let doing = "mark the database as incomplete";
    let begin = format!("BEGIN ISOLATION LEVEL READ COMMITTED; CREATE SCHEMA {MARKER_SCHEMA}");
    session.run(doing, &begin).await?;
    let found = clear::in_the_way(session).await?;
    if !found.is_empty() {
        session.run(doing, "ROLLBACK").await?;
        return Err(clear::not_empty(name, &found));
    }
    let comment = literal(&text);
    let end = format!("COMMENT ON SCHEMA {MARKER_SCHEMA} IS {comment}; COMMIT");
    session.run(doing, &end).await
}

/// The restore is complete.
pub(super) async fn unmark(session: &Session) -> Result<()> {
    quietly(
        session,
        "remove the marker",
        &format!("DROP SCHEMA {MARKER_SCHEMA}"),
    )
    .await
}

/// A statement that fires no event trigger, restored ones least of all, also where the server can not be told so. To
/// switch one fires none; others never see it, since all is one transaction.
async fn quietly(session: &Session, doing: &str, sql: &str) -> Result<()> {
    let triggers = "SELECT evtname::text, evtenabled::text FROM pg_catalog.pg_event_trigger \
                    WHERE evtenabled <> 'D' AND pg_has_role(evtowner, 'USAGE') \
                    AND coalesce(current_setting('event_triggers', true), 'on') <> 'off'";
    let (mut off, mut on) = (Vec::new(), Vec::new());
    for row in session.rows(doing, triggers, &[]).await? {
        let alter = format!("ALTER EVENT TRIGGER {}", ident(value(&row, 0)?));
        let how = match value::<&str>(&row, 1)? {
            "A" => "ENABLE ALWAYS",
            "R" => "ENABLE REPLICA",
            _ => "ENABLE",
        };
        off.push(format!("{alter} DISABLE; "));
        on.push(format!("; {alter} {how}"));
    }
    let sql = format!("BEGIN; {}{sql}{}; COMMIT", off.concat(), on.concat());
    session.run(doing, &sql).await
}

/// A database that we made has the schema `public`, which its source may not have had.
pub(super) async fn drop_public(session: &Session) -> Result<()> {
    quietly(
        session,
        "drop the schema public, which the source has not",
        "DROP SCHEMA IF EXISTS public",
    )
    .await
}

/// Tablespaces of the point that the server lacks.
pub(super) async fn lacking_tablespaces(server: &Session, recorded: &[String]) -> Result<Vec<String>> {
    let there = super::inspect::tablespaces(server).await?;
    Ok(recorded.iter().filter(|t| !there.contains(t)).cloned().collect())
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
