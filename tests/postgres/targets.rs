//! Where a restore may go, what is refused, and how an interrupted one goes on.

use lifeboat::error::Kind;
use lifeboat::source::{RestoreOptions, Target};

use crate::harness::postgres::PostgresServer;
use crate::harness::{random_hex, tree};
use crate::support::{restore, restore_with, take, target, told, url, url_as};

fn options(database: Option<&str>, table: Option<&str>) -> RestoreOptions {
    RestoreOptions {
        only_database: database.map(Into::into),
        only_table: table.map(Into::into),
        ..RestoreOptions::default()
    }
}

#[tokio::test]
async fn a_directory_gets_the_dumps_and_the_programs_can_use_them() {
    let server = PostgresServer::newest();
    let name = server.create_database();
    server.psql(&name, "create table t as select generate_series(1, 100) n");
    let point = take(server, &name).await;
    let dir = crate::harness::temp_dir();
    let path = dir.path().join("out");
    restore(server, &point, Target::Directory(path.clone()))
        .await
        .unwrap();
    let files: Vec<(String, Vec<u8>)> = tree(&path);
    let names: Vec<&str> = files.iter().map(|(n, _)| n.as_str()).collect();
    let dump = format!("databases/{name}.dump");
    assert_eq!(
        names,
        ["cluster.json", dump.as_str(), "facts.json", "globals.sql"]
    );
    for (file, bytes) in &files {
        assert_eq!(bytes, point.unit(file));
    }
    let back = server.create_database();
    let said = crate::harness::run_ok(
        server
            .client("pg_restore", &back)
            .arg("--exit-on-error")
            .arg("-d")
            .arg(&back)
            .arg(path.join(&dump)),
    );
    assert_eq!(said.stderr, "");
    assert_eq!(server.psql(&back, "select sum(n) from t"), "5050");
    let again = restore(server, &point, Target::Directory(path))
        .await
        .unwrap_err();
    assert_eq!(again.kind(), Kind::Usage);
    assert!(again.message().contains("cluster.json"), "{again}");
}

#[tokio::test]
async fn a_target_that_is_not_empty_is_refused_and_untouched() {
    let server = PostgresServer::newest();
    let name = server.create_database();
    server.psql(&name, "create table t as select 1 as x");
    let point = take(server, &name).await;
    for (sql, named) in [
        ("create table \"in the way\" (x int)", "in the way"),
        ("create schema other", "other"),
        (
            "create function f() returns int language sql as 'select 1'",
            "public.f",
        ),
        ("create type e as enum ('a')", "public.e"),
        ("select lo_create(4711)", "4711"),
        ("create sequence sq", "public.sq"),
    ] {
        let busy = server.create_database();
        server.psql(&busy, sql);
        let error = restore(server, &point, target(url(server, &busy)))
            .await
            .unwrap_err();
        assert_eq!(error.kind(), Kind::Usage);
        assert!(error.message().contains(named), "{error}");
        assert_eq!(
            server.psql(
                &busy,
                "select count(*) from pg_namespace where nspname like 'lifeboat%'"
            ),
            "0"
        );
    }
    // One that is empty but for an extension's own objects will do.
    let empty = server.create_database();
    let restored = restore(server, &point, target(url(server, &empty)))
        .await
        .unwrap();
    assert_eq!(restored.differences, Vec::<String>::new());
}

#[tokio::test]
async fn an_interrupted_restore_is_marked_and_the_same_command_starts_over() {
    let server = PostgresServer::newest();
    let name = server.create_database();
    server.psql(
        &name,
        "create table a as select n, repeat('x', 300) t from generate_series(1, 20000) n; \
         create type mood as enum ('glad'); create table b (m mood); create schema s; create table s.c (x serial); \
         create function f() returns int language sql as 'select 1'; select lo_from_bytea(0, 'abc')",
    );
    let point = take(server, &name).await;
    let marked = "select count(*) from pg_namespace where nspname = 'lifeboat_restore_incomplete'";
    // Once into a database that the restore makes, once into one that was there.
    let made = format!("made_{}", random_hex(4));
    for back in [made, server.create_database()] {
        let to = || target(url(server, &back));
        let error = restore_with(server, &point, to(), RestoreOptions::default(), Some(1))
            .await
            .unwrap_err();
        assert_eq!(error.kind(), Kind::Damaged);
        let text = told(&error);
        assert!(
            text.contains("left incomplete") && text.contains("lifeboat_restore_incomplete"),
            "{text}"
        );
        assert!(text.contains("a frame is not what was written"), "{text}");
        assert_eq!(server.psql(&back, marked), "1");
        let mut other = point.clone();
        other.run = lifeboat::types::RunId::new(lifeboat::clock::World::system().ulid().unwrap());
        let refused = restore(server, &other, to()).await.unwrap_err();
        assert_eq!(refused.kind(), Kind::Usage);
        assert!(refused.message().contains(&point.run.to_string()), "{refused}");
        let again = format!("backup restore orders --at-point {}", point.run);
        assert!(refused.hint_text().unwrap().contains(&again), "{refused:?}");
        assert!(text.contains(&format!("--at-point {}", point.run)), "{text}");
        let restored = restore(server, &point, to()).await.unwrap();
        assert_eq!(restored.differences, Vec::<String>::new());
        assert_eq!(server.psql(&back, marked), "0");
        assert_eq!(server.psql(&back, "select count(*) from a"), "20000");
    }
}

#[tokio::test]
async fn markers_go_last_and_together() {
    let from = PostgresServer::start(15);
    from.psql("postgres", "create database one");
    from.psql("postgres", "create database two");
    for name in ["one", "two"] {
        from.psql(name, "create table t as select generate_series(1, 5) n");
    }
    let source = crate::support::source_at(&from, url(&from, ""));
    let point = crate::support::capture(&source).await.unwrap();
    let server = PostgresServer::newest();
    // What is wrong shows when the first database is whole already.
    let mut broken = point.clone();
    let facts = broken
        .units
        .iter_mut()
        .find(|(u, _)| u.name.as_str() == "facts.json");
    let facts = &mut facts.unwrap().1;
    let mut document: serde_json::Value = serde_json::from_slice(facts).unwrap();
    document["databases"]
        .as_array_mut()
        .unwrap()
        .retain(|d| d["name"] != "two");
    *facts = serde_json::to_vec(&document).unwrap().into();
    let (mut context, _scratch) = crate::support::context();
    context.run = point.run;
    let restorer =
        lifeboat::source::postgres::LogicalRestorer::new().with_client_dir(Some(server.client_dir()));
    let error = lifeboat::source::Restorer::restore(
        &restorer,
        &context,
        &mut broken.content(None),
        &target(url(server, "")),
        &RestoreOptions::default(),
    )
    .await
    .unwrap_err();
    assert_eq!(error.kind(), Kind::Damaged);
    // The same restore starts over, where a whole database would be in its way.
    let restored = restore(server, &point, target(url(server, ""))).await.unwrap();
    assert_eq!(restored.differences, Vec::<String>::new());
    for name in ["one", "two"] {
        assert_eq!(server.psql(name, "select count(*) from t"), "5");
    }
}

#[tokio::test]
async fn a_difference_is_reported() {
    let server = PostgresServer::newest();
    let name = server.create_database();
    // A rule that swallows every second row: the dump program restores it after the data, so make the target differ
    // by what the recorded facts say instead.
    server.psql(
        &name,
        "create table t as select generate_series(1, 10) n; create sequence s; select setval('s', 9)",
    );
    let mut point = take(server, &name).await;
    let at = point
        .units
        .iter()
        .position(|(u, _)| u.name.as_str() == "facts.json")
        .unwrap();
    let text = String::from_utf8(point.units[at].1.to_vec()).unwrap();
    let text = text
        .replace("\"rows\":10", "\"rows\":11")
        .replace("\"last_value\":9", "\"last_value\":8");
    point.units[at].1 = text.into_bytes().into();
    let restored = restore(server, &point, target(url(server, &format!("{name}_back"))))
        .await
        .unwrap();
    assert_eq!(restored.differences.len(), 2, "{:?}", restored.differences);
    assert!(restored.differences[0].contains("has 10 rows, recorded are 11"));
    assert!(restored.differences[1].contains("stands at 9, recorded is 8"));
}

#[tokio::test]
async fn one_table_comes_back() {
    let server = PostgresServer::newest();
    let name = server.create_database();
    server.psql(
        &name,
        "create schema s; create table s.\"T\" as select generate_series(1, 7) n; create table other (x int)",
    );
    let point = take(server, &name).await;
    let back = server.create_database();
    let restored = restore_with(
        server,
        &point,
        target(url(server, &back)),
        options(None, Some("s.T")),
        None,
    )
    .await
    .unwrap();
    assert_eq!(restored.differences, Vec::<String>::new());
    assert!(restored.bytes > 0, "{restored:?}");
    assert_eq!(server.psql(&back, "select count(*) from s.\"T\""), "7");
    assert_eq!(server.psql(&back, "select to_regclass('other') is null"), "t");
    let dir = crate::harness::temp_dir();
    let to = Target::Directory(dir.path().to_path_buf());
    let error = restore_with(server, &point, to, options(None, Some("s.T")), None)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Usage);
}

#[tokio::test]
async fn missing_roles_are_named_when_they_can_not_be_created() {
    let server = PostgresServer::newest();
    let tag = random_hex(4);
    let name = server.create_database();
    server.psql(
        "postgres",
        &format!("create role owner_{tag}; create role maker_{tag} login createdb password 'pw'"),
    );
    server.psql(
        &name,
        &format!("create table t (x int); alter table t owner to owner_{tag}"),
    );
    let point = take(server, &name).await;
    server.psql(&name, &format!("drop owned by owner_{tag}"));
    server.psql("postgres", &format!("drop role owner_{tag}"));
    let back = format!("{name}_back");
    let to = target(url_as(server, &format!("maker_{tag}"), "pw", &back));
    let error = restore(server, &point, to).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Usage);
    assert!(error.message().contains(&format!("owner_{tag}")), "{error}");
    assert!(error.hint_text().unwrap().contains("globals.sql"), "{error:?}");
    let exists = format!("select count(*) from pg_database where datname = '{back}'");
    assert_eq!(
        server.psql("postgres", &exists),
        "0",
        "refused before anything was made"
    );
    let restored = restore(server, &point, target(url(server, &back))).await.unwrap();
    assert_eq!(restored.differences, Vec::<String>::new());
    assert!(
        restored
            .warnings
            .iter()
            .any(|w| w.contains("created the missing roles")),
        "{:?}",
        restored.warnings
    );
    server.psql("postgres", &format!("drop database \"{back}\" with (force)"));
    server.psql("postgres", &format!("drop role owner_{tag}, maker_{tag}"));
}

#[tokio::test]
async fn a_database_that_is_read_only_by_its_settings_comes_back_so() {
    let server = PostgresServer::newest();
    let name = server.create_database();
    server.psql(&name, "create table t as select generate_series(1, 10) n");
    let read_only = format!("alter database {name} set default_transaction_read_only = on");
    server.psql(&name, &read_only);
    let point = take(server, &name).await;
    let back = format!("{name}_back");
    // It has the setting before the restore is done with it, as when it is made by name.
    server.psql("postgres", &format!("create database {back}"));
    server.psql("postgres", &read_only.replace(&name, &back));
    for to in [url(server, &back), url(server, &format!("{name}_new"))] {
        let restored = restore(server, &point, target(to)).await.unwrap();
        assert_eq!(restored.differences, [""; 0]);
    }
    for name in [back, format!("{name}_new")] {
        assert_eq!(server.psql(&name, "select count(*) from t"), "10");
        let left = "select count(*) from pg_namespace where nspname like '%lifeboat%'";
        assert_eq!(server.psql(&name, left), "0");
    }
}
