//! What can be refused is, before anything is written; and what a point holds can be told without restoring it.

use lifeboat::error::{Error, Kind};
use lifeboat::source::postgres::LogicalRestorer;
use lifeboat::source::{Level, RestoreOptions, Restorer as _, Source as _, Target};

use crate::harness::postgres::PostgresServer;
use crate::support::{Point, capture, context, restore_with, source_at, take, target, told, url, url_as};

fn only(database: Option<&str>, table: Option<&str>) -> RestoreOptions {
    RestoreOptions {
        only_database: database.map(Into::into),
        only_table: table.map(Into::into),
        ..RestoreOptions::default()
    }
}

fn databases(server: &PostgresServer) -> String {
    server.psql(
        "postgres",
        "select string_agg(datname, ',' order by datname) from pg_database",
    )
}

/// What a dry run says.
async fn examined(
    server: &PostgresServer,
    point: &Point,
    to: Target,
    options: RestoreOptions,
) -> Result<Vec<String>, Error> {
    let (mut context, _scratch) = context();
    context.run = point.run;
    let restorer = LogicalRestorer::new().with_client_dir(Some(server.client_dir()));
    restorer.examine(&context, &to, &options).await?;
    let outline = point.outline(&restorer);
    restorer.parts(&outline, &options)?;
    restorer.examine_for(&context, &outline, &to, &options).await
}

#[tokio::test]
async fn a_dry_run_refuses_what_the_restore_would() {
    let from = PostgresServer::start(15);
    from.psql("postgres", "create database one");
    from.psql("postgres", "create database two");
    from.psql(
        "one",
        "create table t as select generate_series(1, 10) n; create table u (x int)",
    );
    from.psql("two", "create table t as select generate_series(1, 20) n");
    let point = capture(&source_at(&from, url(&from, ""))).await.unwrap();
    let server = PostgresServer::newest();
    let before = databases(server);

    let several = examined(
        server,
        &point,
        target(url(server, "x")),
        RestoreOptions::default(),
    )
    .await
    .unwrap_err();
    assert_eq!(several.kind(), Kind::Usage);
    assert!(
        several
            .message()
            .contains("several databases (\"one\", \"postgres\", \"two\")"),
        "{several}"
    );
    let whose = examined(server, &point, target(url(server, "")), only(None, Some("t")))
        .await
        .unwrap_err();
    assert!(whose.message().contains("whose table?"), "{whose}");
    let unknown = examined(server, &point, target(url(server, "")), only(Some("three"), None))
        .await
        .unwrap_err();
    assert_eq!(unknown.kind(), Kind::Usage);
    assert!(
        told(&unknown).contains("\"one\", \"postgres\", \"two\""),
        "{unknown:?}"
    );

    // An extension of the last database that the server can not have.
    let mut lacking = point.clone();
    let facts = &mut lacking
        .units
        .iter_mut()
        .find(|(u, _)| u.name.as_str() == "facts.json")
        .unwrap()
        .1;
    let mut document: serde_json::Value = serde_json::from_slice(facts).unwrap();
    let two = document["databases"]
        .as_array_mut()
        .unwrap()
        .iter_mut()
        .find(|d| d["name"] == "two")
        .unwrap();
    two["extensions"]
        .as_array_mut()
        .unwrap()
        .push(serde_json::json!({"name": "pg_partman", "version": "5"}));
    *facts = serde_json::to_vec(&document).unwrap().into();
    for error in [
        examined(
            server,
            &lacking,
            target(url(server, "")),
            RestoreOptions::default(),
        )
        .await
        .unwrap_err(),
        restore_with(
            server,
            &lacking,
            target(url(server, "")),
            RestoreOptions::default(),
            None,
        )
        .await
        .unwrap_err(),
    ] {
        assert_eq!(error.kind(), Kind::Usage);
        assert!(
            error.message().contains("\"pg_partman\" of database \"two\""),
            "{error}"
        );
        assert!(
            error.hint_text().unwrap().contains("postgresql-18-partman"),
            "{error:?}"
        );
    }
    assert_eq!(databases(server), before, "nothing was written");
    // The other database does without.
    let restored = restore_with(
        server,
        &lacking,
        target(url(server, "")),
        only(Some("one"), None),
        None,
    )
    .await
    .unwrap();
    assert_eq!(restored.differences, Vec::<String>::new());
    server.psql("postgres", "drop database one");

    // What it holds.
    let restorer = LogicalRestorer::new();
    let outline = point.outline(&restorer);
    let parts = restorer.parts(&outline, &RestoreOptions::default()).unwrap();
    let shown: Vec<(&str, u64, u64)> = parts
        .iter()
        .map(|p| (p.name.as_str(), p.tables, p.rows))
        .collect();
    assert_eq!(shown, [("one", 2, 10), ("postgres", 0, 0), ("two", 1, 20)]);
    assert_eq!(parts[0].bytes, point.unit("databases/one.dump").len() as u64);
    // Each has a snapshot of its own; the point is of the last one, and says how much older the first is.
    let at = point.captured.at;
    assert_eq!(parts.iter().map(|p| p.at).max(), Some(at));
    let first = parts.iter().map(|p| p.at).min().unwrap();
    assert!(first < at);
    let spread = point.captured.facts["snapshot_spread_ms"].as_i64().unwrap();
    assert!(
        spread >= 1 && spread - 1 <= (at - first).num_milliseconds(),
        "{spread}"
    );
}

#[tokio::test]
async fn one_table_that_can_not_be_had_is_refused_before_anything_is_made() {
    let server = PostgresServer::newest();
    let name = server.create_database();
    server.psql(
        &name,
        "create table orders (id int); create schema s; create table s.ghosts (id int); create table \"Orders\" (x int); \
         create table part (id int) partition by range (id); create table part_1 partition of part default; \
         insert into part select generate_series(1, 5)",
    );
    let mut point = take(server, &name).await;
    let back = format!("{name}_back");
    let before = databases(server);
    for (table, named) in [
        ("ghost", "s.ghosts"),
        ("s.orders", "public.Orders, public.orders"),
        ("ORDERS", "public.Orders, public.orders"),
        ("nothing_like_it_at_all", "schema.table"),
        ("bad\"name", "double quotes"),
        ("a.b.c", "SCHEMA.TABLE"),
        ("part", "partition"),
    ] {
        for error in [
            examined(
                server,
                &point,
                target(url(server, &back)),
                only(None, Some(table)),
            )
            .await
            .unwrap_err(),
            restore_with(
                server,
                &point,
                target(url(server, &back)),
                only(None, Some(table)),
                None,
            )
            .await
            .unwrap_err(),
        ] {
            assert_eq!(error.kind(), Kind::Usage, "{table}: {error:?}");
            assert!(told(&error).contains(named), "{table}: {error:?}");
        }
    }
    let facts = &mut point
        .units
        .iter_mut()
        .find(|(u, _)| u.name.as_str() == "facts.json")
        .unwrap()
        .1;
    let text = String::from_utf8(facts.to_vec()).unwrap();
    let marked = text.replace("\"name\":\"orders\",", "\"name\":\"orders\",\"excluded\":true,");
    assert_ne!(text, marked);
    *facts = marked.into_bytes().into();
    let error = examined(
        server,
        &point,
        target(url(server, &back)),
        only(None, Some("orders")),
    )
    .await
    .unwrap_err();
    assert!(
        error.message().contains("left the rows of table public.orders"),
        "{error}"
    );
    assert_eq!(databases(server), before, "nothing was made");
}

#[tokio::test]
async fn tables_with_hostile_names_come_back_alone() {
    let server = PostgresServer::newest();
    let name = server.create_database();
    let mut given = Vec::new();
    for (n, (schema, table, text)) in [
        ("public", "bad\"name", "\"bad\"\"name\""),
        ("public", "a.b", "\"a.b\""),
        (
            "we\"ird; $(x) *",
            "it's -- \\ %*?[a-z]",
            "\"we\"\"ird; $(x) *\".it's -- \\ %*?[a-z]",
        ),
        ("--schema=x", "-T", "--schema=x.-T"),
        ("public", "Été\nline", "Été\nline"),
    ]
    .into_iter()
    .enumerate()
    {
        let quoted = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
        let full = format!("{}.{}", quoted(schema), quoted(table));
        server.psql(
            &name,
            &format!(
                "create schema if not exists {}; create table {full} as select generate_series(1, {}) n",
                quoted(schema),
                n + 1
            ),
        );
        given.push((full, text));
    }
    let point = take(server, &name).await;
    for (n, (full, text)) in given.iter().enumerate() {
        let back = server.create_database();
        let restored = restore_with(
            server,
            &point,
            target(url(server, &back)),
            only(None, Some(text)),
            None,
        )
        .await
        .unwrap_or_else(|e| panic!("{text}: {e:?}"));
        assert_eq!(restored.differences, Vec::<String>::new(), "{text}");
        assert_eq!(
            server.psql(&back, &format!("select count(*) from {full}")),
            (n + 1).to_string()
        );
        assert_eq!(
            server.psql(
                &back,
                "select count(*) from pg_tables where schemaname not in ('pg_catalog', 'information_schema')"
            ),
            "1"
        );
    }
}

#[tokio::test]
async fn large_objects_that_the_role_may_not_read_are_an_error_of_check_and_of_run_alike() {
    for major in PostgresServer::local_majors() {
        let server = PostgresServer::start(major);
        let reads = if major >= 14 {
            "grant pg_read_all_data to reader"
        } else {
            "select 1"
        };
        server.psql(
            "postgres",
            &format!("create role reader login password 'pw'; {reads}; select lo_from_bytea(4711, 'abc')"),
        );
        let source = source_at(&server, url_as(&server, "reader", "pw", "postgres"));
        let check = async || source.check(&lifeboat::clock::World::system()).await;
        let errors = async || -> Vec<(String, String)> {
            let all = check().await.into_iter();
            all.filter(|f| f.level == Level::Error)
                .map(|f| (f.text, f.hint.unwrap_or_default()))
                .collect()
        };
        let found = errors().await;
        let failure = capture(&source).await.err();
        assert_eq!(
            found.is_empty(),
            failure.is_none(),
            "{major}: {found:?} {failure:?}"
        );
        if let Some(failure) = failure {
            let (text, hint) = &found[0];
            assert!(
                text.contains("large objects") && text.contains("4711"),
                "{major}: {text}"
            );
            assert!(hint.contains("lo_compat_privileges"), "{major}: {hint}");
            assert!(failure.chain().contains("large object"), "{major}: {failure:?}");
            assert_eq!(
                failure.hint_text(),
                Some(hint.as_str()),
                "{major}: the same advice"
            );
        }
        // Each advice helps.
        for (advice, undo) in [
            (
                "grant select on large object 4711 to reader",
                "revoke select on large object 4711 from reader",
            ),
            (
                "alter role reader set lo_compat_privileges = on",
                "alter role reader reset lo_compat_privileges",
            ),
            (
                "alter large object 4711 owner to reader",
                "alter large object 4711 owner to postgres",
            ),
        ] {
            server.psql("postgres", advice);
            assert_eq!(errors().await, [], "{major}: {advice}");
            capture(&source)
                .await
                .unwrap_or_else(|e| panic!("{major}: {advice}: {e:?}"));
            server.psql("postgres", undo);
        }
    }
}
