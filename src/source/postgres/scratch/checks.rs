//! Level 6 of a cluster: everything is read, every view asked, every index looked at.

use std::collections::BTreeMap;

use super::{NAMED, PostgresScratch};
use crate::drill::{Check, Level, Outcome};
use crate::error::{Error, Kind, Result};
use crate::source::Context;
use crate::source::postgres::client;
use crate::source::postgres::connect::{Session, value};
use crate::source::postgres::quote::ident;
use crate::types::some_of;

/// What is wrong, for everybody; and what the server said, which may hold rows.
#[derive(Default)]
struct Problems {
    names: Vec<String>,
    details: Vec<String>,
}

impl Problems {
    fn push(&mut self, name: String, error: &Error) {
        if self.details.len() < NAMED {
            self.details.push(format!("{name}: {}", error.chain()));
        }
        self.names.push(name);
    }
}

impl PostgresScratch {
    /// amcheck of every index and every table of a database: Postgres' documentation, appendix F, "amcheck".
    pub(super) async fn amcheck(
        &mut self,
        context: &Context,
        database: &str,
        checks: &mut Vec<Check>,
    ) -> Result<()> {
        let name = format!("amcheck of {database}");
        let session = self.session(database).await?;
        // Event triggers of the backup are none of this; no event is one of theirs.
        let triggers = "SELECT evtname::text FROM pg_event_trigger WHERE evtenabled <> 'D'";
        for row in session.rows("list the event triggers", triggers, &[]).await? {
            let sql = format!(
                "ALTER EVENT TRIGGER {} DISABLE",
                ident(&value::<String>(&row, 0)?)
            );
            session.run("turn an event trigger off", &sql).await?;
        }
        let there = "SELECT EXISTS (SELECT FROM pg_available_extensions WHERE name = 'amcheck')";
        if !value::<bool>(&session.row("look for amcheck", there, &[]).await?, 0)? {
            let why = format!(
                "amcheck is not here: install the contrib package of PostgreSQL {}",
                self.server.major
            );
            checks.push(Check::could_not_run(name, Some(Level::Application), why));
            return Ok(());
        }
        let install = "CREATE EXTENSION IF NOT EXISTS amcheck WITH SCHEMA pg_catalog";
        if let Err(e) = session.run("install amcheck", install).await {
            let (level, how) = (Some(Level::Application), Outcome::CouldNotRun);
            checks.push(Check::of_error(name, level, how, "it can be looked at", &e));
            return Ok(());
        }
        let sql = "SELECT c.oid::int8, n.nspname::text, c.relname::text FROM pg_class c
             JOIN pg_index i ON i.indexrelid = c.oid JOIN pg_namespace n ON n.oid = c.relnamespace
             JOIN pg_am a ON a.oid = c.relam
             WHERE a.amname = 'btree' AND c.relkind = 'i' AND i.indisvalid AND i.indisready AND c.relpersistence <> 't'";
        let mut problems = Problems::default();
        let rows = session
            .rows_unless(&context.cancel, "list the indexes", sql)
            .await?;
        let indexes = rows.len();
        for row in rows {
            let (oid, schema, index): (i64, String, String) =
                (value(&row, 0)?, value(&row, 1)?, value(&row, 2)?);
            let sql = format!("SELECT bt_index_check({oid}::oid::regclass, true)");
            match session.rows_unless(&context.cancel, "check an index", &sql).await {
                Ok(_) => {}
                Err(e) if e.kind() == Kind::Interrupted => return Err(e),
                Err(e) => problems.push(format!("{schema}.{index}"), &e),
            }
        }
        self.other_indexes(context, database, &session, &mut problems)
            .await?;
        let tables = self.tables(context, database, &session, &mut problems).await?;
        session.close().await;
        checks.push(
            judged(
                name,
                Level::Application,
                &problems.names,
                format!("{indexes} indexes and {tables} tables are sound"),
            )
            .with_detail(problems.details.join("; ")),
        );
        Ok(())
    }

    /// Everything can be read back: a dump that goes nowhere.
    pub(super) async fn dump(
        &self,
        context: &Context,
        database: &str,
        checks: &mut Vec<Check>,
    ) -> Result<()> {
        let name = format!("pg_dump of {database}");
        let clients = match client::for_dump(&self.clients, self.server.major) {
            Ok(clients) => clients,
            Err(e) => {
                checks.push(Check::of_error(
                    name,
                    Some(Level::Application),
                    Outcome::CouldNotRun,
                    "it can be looked at",
                    &e,
                ));
                return Ok(());
            }
        };
        let arguments = ["--format=plain", "--file=/dev/null", "--no-password"].map(str::to_owned);
        let address = self.address.with_database(database);
        let (running, ..) = client::start(
            clients,
            "pg_dump",
            &arguments,
            &address,
            client::Pipe::In,
            &context.cancel,
        )?;
        match running.finish().await {
            Ok(_) => checks.push(Check::passed(name, Level::Application, "everything is read")),
            Err(e) if e.kind() == Kind::Interrupted => return Err(e),
            Err(e) => checks.push(Check::of_error(
                name,
                Some(Level::Application),
                Outcome::Failed,
                "everything is read",
                &e,
            )),
        }
        Ok(())
    }

    /// Every table that amcheck knows, from version 14 on; gives how many.
    async fn tables(
        &mut self,
        context: &Context,
        database: &str,
        session: &Session,
        problems: &mut Problems,
    ) -> Result<i64> {
        if self.server.major < 14 {
            return Ok(0);
        }
        let sql = "SELECT n.nspname::text, c.relname::text, v.msg FROM pg_class c
             JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_am a ON a.oid = c.relam AND a.amname = 'heap'
             CROSS JOIN LATERAL verify_heapam(c.oid) v
             WHERE c.relkind IN ('r', 'm', 't') AND c.relpersistence <> 't'";
        match session
            .rows_unless(&context.cancel, "check the tables", sql)
            .await
        {
            Ok(rows) => {
                for row in rows {
                    let (schema, table, said): (String, String, String) =
                        (value(&row, 0)?, value(&row, 1)?, value(&row, 2)?);
                    problems.names.push(format!("{schema}.{table}: {said}"));
                }
            }
            Err(e) if e.kind() == Kind::Interrupted => return Err(e),
            Err(e) => problems.push("not every table can be looked at".to_owned(), &e),
        }
        let sql =
            "SELECT count(*) FILTER (WHERE a.amname = 'heap'), count(*) FILTER (WHERE a.amname <> 'heap')
             FROM pg_class c JOIN pg_am a ON a.oid = c.relam
             WHERE c.relkind IN ('r', 'm', 't') AND c.relpersistence <> 't'";
        let row = session.row("count the tables", sql, &[]).await?;
        let tables = value::<i64>(&row, 0)?;
        let others: i64 = value(&row, 1)?;
        if others > 0 {
            self.unlooked.push(format!(
                "{others} tables of {database} whose access method amcheck does not know"
            ));
        }
        Ok(tables)
    }

    /// Indexes of other kinds: GIN by amcheck where it can, the others by nothing.
    async fn other_indexes(
        &mut self,
        context: &Context,
        database: &str,
        session: &Session,
        problems: &mut Problems,
    ) -> Result<()> {
        let sql = "SELECT c.oid::int8, n.nspname::text, c.relname::text, a.amname::text,
                 a.amname = 'gin' AND to_regprocedure('pg_catalog.gin_index_check(regclass)') IS NOT NULL
             FROM pg_class c JOIN pg_index i ON i.indexrelid = c.oid JOIN pg_namespace n ON n.oid = c.relnamespace
             JOIN pg_am a ON a.oid = c.relam
             WHERE a.amname <> 'btree' AND c.relkind = 'i' AND i.indisvalid AND i.indisready AND c.relpersistence <> 't'";
        let mut kinds: BTreeMap<String, u64> = BTreeMap::new();
        for row in session
            .rows_unless(&context.cancel, "list the indexes", sql)
            .await?
        {
            let (oid, schema, index): (i64, String, String) =
                (value(&row, 0)?, value(&row, 1)?, value(&row, 2)?);
            if !value::<bool>(&row, 4)? {
                *kinds.entry(value(&row, 3)?).or_default() += 1;
                continue;
            }
            let sql = format!("SELECT gin_index_check({oid}::oid::regclass)");
            match session.rows_unless(&context.cancel, "check an index", &sql).await {
                Ok(_) => {}
                Err(e) if e.kind() == Kind::Interrupted => return Err(e),
                Err(e) => problems.push(format!("{schema}.{index}"), &e),
            }
        }
        if !kinds.is_empty() {
            let kinds: Vec<String> = kinds.iter().map(|(kind, n)| format!("{n} of {kind}")).collect();
            self.unlooked.push(format!(
                "indexes of {database} that amcheck does not know ({}): the restore built them anew",
                kinds.join(", ")
            ));
        }
        Ok(())
    }

    /// Whether the versions of collations are those that the system has: an index in another order finds nothing. (Postgres'
    /// documentation, "ALTER COLLATION", notes.)
    pub(super) async fn collations(
        &self,
        context: &Context,
        database: &str,
        checks: &mut Vec<Check>,
    ) -> Result<()> {
        let session = self.session(database).await?;
        let of_database = if self.server.major >= 15 {
            "UNION ALL SELECT 'the database', datcollversion, pg_database_collation_actual_version(oid) FROM pg_database
                 WHERE datname = current_database()"
        } else {
            ""
        };
        let sql = format!(
            "SELECT name::text, has, should FROM (
                 SELECT quote_ident(n.nspname) || '.' || quote_ident(c.collname) AS name, c.collversion AS has,
                     pg_collation_actual_version(c.oid) AS should
                 FROM pg_collation c JOIN pg_namespace n ON n.oid = c.collnamespace
                 WHERE c.collversion IS NOT NULL {of_database}
             ) a WHERE has IS DISTINCT FROM should ORDER BY 1"
        );
        let mut problems = Vec::new();
        for row in session
            .rows_unless(&context.cancel, "look at the collations", &sql)
            .await?
        {
            let name: String = value(&row, 0)?;
            let (has, should): (Option<String>, Option<String>) = (value(&row, 1)?, value(&row, 2)?);
            problems.push(format!(
                "{name} has version {}, the system has {}",
                has.as_deref().unwrap_or("none"),
                should.as_deref().unwrap_or("none")
            ));
        }
        session.close().await;
        let sound = "they are of the system's versions".to_owned();
        checks.push(judged(
            format!("collations of {database}"),
            Level::Application,
            &problems,
            sound,
        ));
        Ok(())
    }

    /// Whether views can still be planned. One that can not is no failure: it may want settings that only the application has.
    pub(super) async fn views(
        &mut self,
        context: &Context,
        database: &str,
        checks: &mut Vec<Check>,
    ) -> Result<()> {
        let session = self.session(database).await?;
        session
            .run("set the session up", "SET statement_timeout = '60s'")
            .await?;
        let sql = "SELECT n.nspname::text, c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE c.relkind = 'v' AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND NOT EXISTS (
                 SELECT 1 FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
             ORDER BY 1, 2";
        let (mut sound, mut problems) = (0, Vec::new());
        for row in session
            .rows_unless(&context.cancel, "list the views", sql)
            .await?
        {
            let (schema, view): (String, String) = (value(&row, 0)?, value(&row, 1)?);
            let sql = format!("SELECT * FROM {}.{} LIMIT 0", ident(&schema), ident(&view));
            match session.rows_unless(&context.cancel, "ask a view", &sql).await {
                Ok(_) => sound += 1,
                Err(e) if e.kind() == Kind::Interrupted => return Err(e),
                Err(_) => problems.push(format!("{schema}.{view}")),
            }
        }
        session.close().await;
        if sound > 0 {
            checks.push(Check::passed(
                format!("views of {database}"),
                Level::Application,
                format!("{sound} views can be asked"),
            ));
        }
        if !problems.is_empty() {
            self.unlooked.push(format!(
                "views of {database} that do not answer without their application: {}",
                some_of(&problems, NAMED, ", ")
            ));
        }
        Ok(())
    }
}

pub(super) fn judged(name: String, level: Level, problems: &[String], sound: String) -> Check {
    match problems {
        [] => Check::passed(name, level, sound),
        some => Check::failed(name, level, sound, some_of(some, NAMED, "; ")),
    }
}
