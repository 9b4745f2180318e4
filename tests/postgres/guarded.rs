//! What is not ours is never dropped, what is half never looks whole, and what a source has beside tables comes back.

use std::future::Future;
use std::pin::Pin;

use async_trait::async_trait;
use bytes::Bytes;
use lifeboat::error::{Error, Kind, Result};
use lifeboat::source::postgres::{LogicalRestorer, PostgresSource};
use lifeboat::source::{
    Level, PointContent, RestoreOptions, Restored, RestoredUnit, Restorer as _, Source as _,
};

use crate::harness::postgres::PostgresServer;
use crate::harness::run_ok;
use crate::support::{
    Memory, Point, capture, context, policy, restore, restore_with, source_at, take, target, told, url,
    url_as,
};

type Hook = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A point's content that lets something happen when a unit is begun.
struct Meanwhile {
    content: Memory,
    unit: &'static str,
    now: bool,
    hook: Option<Hook>,
}

#[async_trait]
impl PointContent for Meanwhile {
    async fn next(&mut self) -> Result<Option<RestoredUnit>> {
        let unit = self.content.next().await?;
        self.now = unit.as_ref().is_some_and(|u| u.name.as_str() == self.unit);
        Ok(unit)
    }
    async fn read(&mut self) -> Result<Option<Bytes>> {
        if self.now
            && let Some(hook) = self.hook.take()
        {
            hook.await;
        }
        self.content.read().await
    }
}

async fn restore_meanwhile(
    server: &PostgresServer,
    point: &Point,
    to: String,
    unit: &'static str,
    hook: Hook,
) -> Result<Restored> {
    let (mut context, _scratch) = context();
    context.run = point.run;
    let restorer = LogicalRestorer::new().with_client_dir(Some(server.client_dir()));
    let mut content = Meanwhile {
        content: point.content(None),
        unit,
        now: false,
        hook: Some(hook),
    };
    restorer
        .restore(&context, &mut content, &target(to), &RestoreOptions::default())
        .await
}

async fn databases(server: &PostgresServer, patterns: &[&str]) -> Point {
    let mut policy = policy(server);
    policy.databases = patterns.iter().map(|p| (*p).to_owned()).collect();
    let url = lifeboat::secret::SecretText::new(url(server, "postgres"));
    capture(&PostgresSource::new(&policy, url)).await.unwrap()
}

fn refused(error: &Error, named: &str) {
    assert_eq!(error.kind(), Kind::Usage, "{error:?}");
    assert!(told(error).contains(named), "{error:?}");
}

#[tokio::test]
async fn a_database_that_is_filled_while_another_is_restored_is_refused_and_kept() {
    let server = PostgresServer::newest();
    for name in ["aa", "zz"] {
        server.psql("postgres", &format!("create database {name}"));
        server.psql(name, "create table t as select generate_series(1, 5) n");
    }
    let point = databases(server, &["aa", "zz"]).await;
    server.psql("postgres", "drop database aa");
    server.psql("postgres", "drop database zz");
    server.psql("postgres", "create database zz");
    let fill: Hook = Box::pin(async {
        server.psql("zz", "create table precious as select 42 as n");
    });
    let error = restore_meanwhile(server, &point, url(server, ""), "databases/aa.dump", fill)
        .await
        .unwrap_err();
    refused(&error, "precious");
    // The same command again.
    let error = restore(server, &point, target(url(server, "")))
        .await
        .unwrap_err();
    refused(&error, "precious");
    assert_eq!(server.psql("zz", "select n from precious"), "42");
    assert_eq!(
        server.psql(
            "zz",
            "select count(*) from pg_namespace where nspname like 'lifeboat%'"
        ),
        "0"
    );
}

#[tokio::test]
async fn of_two_restores_into_one_database_the_second_is_refused() {
    let server = PostgresServer::newest();
    let name = server.create_database();
    server.psql(&name, "create table t as select generate_series(1, 5) n");
    let point = take(server, &name).await;
    let back = format!("{name}_back");
    let (second, to) = (point.clone(), url(server, &back));
    let hook: Hook = Box::pin(async move {
        let error = restore(server, &second, target(to)).await.unwrap_err();
        refused(&error, "another restore into database");
        assert!(told(&error).contains("_back"), "{error:?}");
    });
    let unit: &'static str = format!("databases/{name}.dump").leak();
    let restored = restore_meanwhile(server, &point, url(server, &back), unit, hook)
        .await
        .unwrap();
    assert_eq!(restored.differences, Vec::<String>::new());
    assert_eq!(server.psql(&back, "select count(*) from t"), "5");
}

/// Things that a database can hold without a table.
const THINGS: [(&str, &str); 12] = [
    ("create type pair as (a int, b int)", "pair"),
    (
        "create operator public.=== (leftarg = int, rightarg = int, function = int4eq)",
        "===",
    ),
    ("create collation coll from \"C\"", "coll"),
    ("create text search configuration conf (copy = simple)", "conf"),
    ("create text search dictionary dict (template = simple)", "dict"),
    ("create cast (text as int) with inout", "cast"),
    (
        "alter default privileges in schema public grant select on tables to public",
        "default acl",
    ),
    (
        "alter default privileges revoke execute on functions from public",
        "default acl",
    ),
    (
        "create subscription sub connection 'host=/nonexistent' publication p with (connect = false)",
        "subscription",
    ),
    ("create foreign data wrapper wrap", "wrap"),
    ("create operator family fam using btree", "fam"),
    ("create publication pub", "pub"),
];

#[tokio::test]
async fn whatever_a_database_holds_is_in_the_way_and_an_interrupted_restore_takes_back_its_own() {
    let server = PostgresServer::newest();
    let name = server.create_database();
    server.psql(
        &name,
        "create table t as select n, repeat('x', 300) x from generate_series(1, 3) n",
    );
    for (sql, _) in THINGS {
        server.psql(&name, sql);
    }
    let point = take(server, &name).await;
    for (sql, named) in THINGS {
        let busy = server.create_database();
        server.psql(&busy, sql);
        let error = restore(server, &point, target(url(server, &busy)))
            .await
            .unwrap_err();
        refused(&error, named);
        server.psql(&busy, "select 1");
        for off in [
            "alter subscription sub set (slot_name = none)",
            "drop subscription sub",
        ] {
            if named == "subscription" {
                server.psql(&busy, off);
            }
        }
    }
    // Whole but for the facts: everything is there, and the marker. One that was made, one that was there.
    let facts = point
        .units
        .iter()
        .position(|(u, _)| u.name.as_str() == "facts.json");
    for back in [format!("{name}_made"), server.create_database()] {
        let to = || target(url(server, &back));
        let broken = restore_with(server, &point, to(), RestoreOptions::default(), facts)
            .await
            .unwrap_err();
        assert_eq!(broken.kind(), Kind::Damaged, "{broken:?}");
        assert_eq!(
            server.psql(
                &back,
                "select count(*) from pg_subscription where subdbid = \
            (select oid from pg_database where datname = current_database())"
            ),
            "1"
        );
        let restored = restore(server, &point, to()).await.unwrap();
        assert_eq!(restored.differences, Vec::<String>::new());
        assert_eq!(server.psql(&back, "select count(*) from t"), "3");
        assert_eq!(server.psql(&back, "select count(*) from pg_default_acl"), "2");
    }
}

#[tokio::test]
async fn restored_event_triggers_do_not_fire_on_the_restore() {
    for major in PostgresServer::local_majors() {
        if ![16, 18].contains(&major) {
            continue;
        }
        let server = PostgresServer::start(major);
        server.psql("postgres", "create database shop");
        server.psql(
            "shop",
            "create table log (t text); \
             create function note() returns event_trigger language plpgsql as \
             $$ begin insert into public.log values (tg_tag); end $$; \
             create function never() returns event_trigger language plpgsql as $$ begin raise 'no drops here'; end $$; \
             create event trigger notes on ddl_command_end execute function note(); \
             create event trigger nevers on sql_drop execute function never(); \
             alter event trigger nevers enable always",
        );
        server.psql("shop", "create table made (x int)");
        if major >= 17 {
            server.psql(
                "shop",
                "create function login() returns event_trigger language plpgsql as \
                 $$ begin insert into public.log values ('login'); if session_user = 'postgres' then raise 'nobody'; end if; end $$; \
                 create event trigger logins on login execute function login(); \
                 alter event trigger logins disable",
            );
        }
        let before = server.psql("shop", "select string_agg(t, ',' order by t) from log");
        if major >= 17 {
            server.psql("shop", "alter event trigger logins enable always");
        }
        let quiet = |database: &str, sql: &str| {
            let mut psql = server.client("psql", database);
            if major >= 17 {
                psql.env("PGOPTIONS", "-c event_triggers=off");
            }
            run_ok(psql.args(["-XAtc", sql])).stdout.trim().to_owned()
        };
        let options = if major >= 17 {
            "?options=-c%20event_triggers%3Doff"
        } else {
            ""
        };
        let point = capture(&source_at(&server, format!("{}{options}", url(&server, "shop"))))
            .await
            .unwrap();
        let expected = quiet("shop", "select string_agg(t, ',' order by t) from log");
        assert!(expected.starts_with(&before), "{major}");
        quiet("postgres", "create database there");
        let facts = point
            .units
            .iter()
            .position(|(u, _)| u.name.as_str() == "facts.json");
        for back in ["back", "there"] {
            let to = || target(url(&server, back));
            // Interrupted when the triggers stand already, too.
            let broken = restore_with(&server, &point, to(), RestoreOptions::default(), facts).await;
            assert_eq!(broken.unwrap_err().kind(), Kind::Damaged, "{major}");
            let restored = restore(&server, &point, to()).await.unwrap();
            assert_eq!(restored.differences, Vec::<String>::new(), "{major}");
            let marker = "select count(*) from pg_namespace where nspname like 'lifeboat%'";
            assert_eq!(quiet(back, marker), "0", "{major}");
            let log = quiet(back, "select string_agg(t, ',' order by t) from log");
            assert_eq!(log, expected, "{major}");
            let all = "select string_agg(evtname || ' ' || evtenabled::text, ',' order by evtname) from pg_event_trigger";
            assert_eq!(quiet(back, all), quiet("shop", all), "{major}");
        }
    }
}

#[tokio::test]
async fn the_role_that_made_the_source_is_made_wherever_its_objects_are() {
    for sql in [
        "create publication pub",
        "create foreign data wrapper wrap",
        "alter default privileges for role postgres grant select on tables to alice",
        "create table t (x int); alter table t owner to alice; grant select on t to postgres",
        "create table t (x int); alter table t owner to alice; grant select (x) on t to postgres",
        "create table t (a int, b int); create statistics st on a, b from t; alter table t owner to alice",
        "create collation coll from \"C\"",
    ] {
        let from = PostgresServer::start(17);
        from.psql(
            "postgres",
            "create role alice; create role helper superuser login password 'pw'",
        );
        from.psql("postgres", "create database one owner alice");
        from.psql("one", sql);
        let mut psql = from.client("psql", "postgres");
        psql.env("PGUSER", "helper").env("PGPASSWORD", "pw");
        run_ok(psql.args(["-XAtc", "alter role postgres rename to boss"]));
        let source = source_at(&from, url_as(&from, "boss", from.password(), "one"));
        let point = capture(&source).await.unwrap();
        let to = PostgresServer::newest();
        let back = to.create_database();
        let restored = restore(to, &point, target(url(to, &back)))
            .await
            .unwrap_or_else(|e| panic!("{sql}: {}", told(&e)));
        assert_eq!(restored.differences, Vec::<String>::new(), "{sql}");
        assert_eq!(
            to.psql("postgres", "select count(*) from pg_roles where rolname = 'boss'"),
            "1",
            "{sql}"
        );
        to.psql("postgres", &format!("drop database \"{back}\""));
        to.psql("postgres", "drop role boss, alice");
    }
}

#[tokio::test]
async fn databases_that_are_never_taken_are_told() {
    let server = PostgresServer::newest();
    server.psql("postgres", "create database shapes is_template true");
    server.psql("postgres", "create database closed allow_connections false");
    let source = source_at(server, url(server, ""));
    let point = capture(&source).await.unwrap();
    let found = source.check(&lifeboat::clock::World::system()).await;
    for (name, why) in [("shapes", "template"), ("closed", "allows no connections")] {
        let text = format!("database {name:?} is not backed up");
        let fits = |line: &str| line.contains(&text) && line.contains(why);
        assert!(
            point.captured.warnings.iter().any(|w| fits(w)),
            "{:?}",
            point.captured.warnings
        );
        assert!(
            found.iter().any(|f| f.level == Level::Warning && fits(&f.text)),
            "{found:?}"
        );
    }
    // Who chose one database did not mean them.
    let one = capture(&source_at(server, url(server, "postgres")))
        .await
        .unwrap();
    assert_eq!(one.captured.warnings, Vec::<String>::new());
}

#[tokio::test]
async fn tables_in_a_tablespace_that_the_target_lacks_come_back_and_it_is_told() {
    let from = PostgresServer::start_with(16, &["allow_in_place_tablespaces=on"]);
    from.psql("postgres", "create database one");
    from.psql("postgres", "create tablespace fast location ''");
    from.psql(
        "one",
        "create table t tablespace fast as select generate_series(1, 5) n",
    );
    let point = take(&from, "one").await;
    let to = PostgresServer::newest();
    let restored = restore(to, &point, target(url(to, "one_back"))).await.unwrap();
    assert_eq!(restored.differences, Vec::<String>::new());
    assert_eq!(to.psql("one_back", "select count(*) from t"), "5");
    assert!(
        restored.warnings.iter().any(|w| w.contains("fast")),
        "{:?}",
        restored.warnings
    );
    // Where it is, it is used.
    restore(&from, &point, target(url(&from, "one_back")))
        .await
        .unwrap();
    let place = "select count(*) from pg_class c join pg_tablespace s on s.oid = c.reltablespace \
                 where c.relname = 't' and s.spcname = 'fast'";
    assert_eq!(from.psql("one_back", place), "1");
}

#[tokio::test]
async fn a_source_with_a_statement_timeout_and_without_public_comes_back_as_it_was() {
    let server = PostgresServer::newest();
    let name = server.create_database();
    server.psql(
        &name,
        "drop schema public; create schema s; create table s.t as select 1 as n",
    );
    server.psql(
        "postgres",
        &format!("alter database \"{name}\" set statement_timeout = '1ms'"),
    );
    let point = take(server, &name).await;
    assert!(!point.unit("globals.sql").is_empty());
    let back = format!("{name}_back");
    let restored = restore(server, &point, target(url(server, &back))).await.unwrap();
    assert_eq!(restored.differences, Vec::<String>::new());
    server.psql(
        "postgres",
        &format!("alter database \"{back}\" reset statement_timeout"),
    );
    assert_eq!(
        server.psql(
            &back,
            "select count(*) from pg_namespace where nspname = 'public'"
        ),
        "0"
    );
    let there = server.create_database();
    let restored = restore(server, &point, target(url(server, &there)))
        .await
        .unwrap();
    assert!(
        restored.warnings.iter().any(|w| w.contains("schema public")),
        "{:?}",
        restored.warnings
    );
}
