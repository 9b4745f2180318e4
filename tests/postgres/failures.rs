//! What goes wrong is an error that says what and what to do, and never a success.

use std::io::Read as _;
use std::process::{Child, Stdio};
use std::time::Duration;

use lifeboat::error::Kind;
use lifeboat::source::{Level, Source as _};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::AsyncReadExt as _;

use crate::harness::postgres::PostgresServer;
use crate::harness::{free_port, poll};
use crate::support::{capture, context, source_at, told, url, url_as};

const SENTINEL: &str = "sentinel-password-4711";

#[tokio::test]
async fn each_failed_connection_has_its_own_words_and_no_password() {
    let server = PostgresServer::newest();
    let nowhere = format!(
        "postgres://postgres:{SENTINEL}@127.0.0.1:{}/postgres",
        free_port()
    );
    let cases = [
        (url_as(server, server.user(), SENTINEL, "postgres"), "password"),
        (nowhere, "no Postgres server answers"),
        (url(server, "not_there"), "no database \"not_there\""),
        (
            format!("postgres://x:{SENTINEL}@/x?host=/nonexistent"),
            "no Postgres server answers",
        ),
        (
            format!("postgres://x:{SENTINEL}@host.invalid/x"),
            "no Postgres server answers",
        ),
        (
            format!("postgres://x:{SENTINEL}@h/x?sslmode=verify-full"),
            "needs a root certificate",
        ),
        (format!("{}?sslmode=require", url(server, "postgres")), "TLS"),
        (format!("http://x:{SENTINEL}@h"), "postgres://"),
    ];
    for (url, expected) in cases {
        let source = source_at(server, url);
        let (context, _scratch) = context();
        let error = source.capture(context).await.err().expect("a failure");
        let text = told(&error);
        assert!(text.contains(expected), "{expected}: {text}");
        assert!(error.hint_text().is_some(), "{text}");
        // The password may have come from either place.
        assert!(expected != "password" || text.contains("PGPASSWORD"), "{text}");
        let findings = source.check(&lifeboat::clock::World::system()).await;
        assert_eq!(findings.last().unwrap().level, Level::Error);
        let all = format!(
            "{text} {error:?} {source:?} {}",
            serde_json::to_string(&findings).unwrap()
        );
        assert!(
            !all.contains(SENTINEL) && !all.contains(server.password()),
            "{all}"
        );
    }
}

/// The process number of the dump of a database.
fn dump_of(database: &str) -> Option<Pid> {
    let wanted = format!("PGDATABASE={database}");
    let own = std::process::id().to_string();
    std::fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
        let path = entry.path();
        let stat = std::fs::read_to_string(path.join("stat")).ok()?;
        let (name, rest) = stat.rsplit_once(") ")?;
        let parent = rest.split(' ').nth(1)?;
        let environment = std::fs::read(path.join("environ")).ok()?;
        let is = name.ends_with("(pg_dump")
            && parent == own
            && environment.split(|b| *b == 0).any(|v| v == wanted.as_bytes());
        is.then(|| entry.file_name().to_str()?.parse().ok().and_then(Pid::from_raw))
            .flatten()
    })
}

fn big_database(server: &PostgresServer) -> String {
    let name = server.create_database();
    server.psql(
        &name,
        "create table big as select n, repeat(md5(n::text), 20) t from generate_series(1, 30000) n",
    );
    name
}

/// Runs a capture to its dump, does something after the first bytes, reads on, and gives what close says.
async fn disturbed(
    server: &PostgresServer,
    name: &str,
    disturb: impl FnOnce(&lifeboat::source::Context),
) -> lifeboat::error::Error {
    let (context, _scratch) = context();
    let source = source_at(server, url(server, name));
    let mut capture = source.capture(context.clone()).await.unwrap();
    capture.next().await.unwrap();
    capture.open().await.unwrap();
    capture.close().await.unwrap();
    capture.next().await.unwrap();
    let mut content = capture.open().await.unwrap();
    let mut first = vec![0u8; 200_000];
    content.read_exact(&mut first).await.unwrap();
    disturb(&context);
    let mut rest = Vec::new();
    content.read_to_end(&mut rest).await.unwrap();
    let error = capture.close().await.expect_err("the dump was cut short");
    assert!(capture.finish().await.is_err(), "and never counts as done");
    capture.cleanup().await;
    let left = format!("select count(*) from pg_stat_activity where datname = '{name}'");
    let gone = poll(Duration::from_secs(10), || {
        (server.psql("postgres", &left) == "0").then_some(())
    });
    assert!(gone.is_some(), "sessions are left");
    error
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_dump_is_a_failure() {
    let server = PostgresServer::newest();
    let name = big_database(server);
    let error = disturbed(server, &name, |_| {
        let pid = dump_of(&name).expect("no pg_dump");
        kill_process(pid, Signal::KILL).unwrap();
    })
    .await;
    assert!(error.message().contains("killed by signal 9"), "{error:?}");
    assert!(error.message().contains(&name), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_connection_is_a_failure() {
    let server = PostgresServer::newest();
    let name = big_database(server);
    let error = disturbed(server, &name, |_| {
        server.psql(
            "postgres",
            &format!("select pg_terminate_backend(pid) from pg_stat_activity where datname = '{name}'"),
        );
    })
    .await;
    assert_eq!(error.kind(), Kind::Failed);
    assert!(error.message().contains("pg_dump failed"), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_dump_ends_at_once() {
    let server = PostgresServer::newest();
    let name = big_database(server);
    let error = disturbed(server, &name, |context| context.cancel.cancel()).await;
    assert_eq!(error.kind(), Kind::Interrupted);
    assert!(dump_of(&name).is_none(), "the child is gone");
}

/// A session that has done something and sits on it.
struct Sitting(Child);

impl Sitting {
    fn start(server: &PostgresServer, database: &str, sql: &str) -> Self {
        let mut child = server
            .client("psql", database)
            .args([
                "-X",
                "-q",
                "-t",
                "-A",
                "-c",
                &format!("begin; {sql}"),
                "-c",
                "select 'ready'",
            ])
            .args(["-c", "select pg_sleep(60)"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut word = [0u8; 5];
        child.stdout.as_mut().unwrap().read_exact(&mut word).unwrap();
        Self(child)
    }
}

impl Drop for Sitting {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_locked_for_long_fails_and_is_named() {
    let server = PostgresServer::newest();
    let name = server.create_database();
    server.psql(&name, "create table free (x int); create table held (x int)");
    let sitting = Sitting::start(server, &name, "lock table held in access exclusive mode");
    let source = source_at(server, url(server, &name)).with_lock_wait(Duration::from_millis(300));
    let error = capture(&source).await.err().expect("a failure");
    let text = told(&error);
    assert!(text.contains("held") || text.contains("lock timeout"), "{text}");
    assert!(text.contains("Another session holds a lock"), "{text}");
    drop(sitting);
    let freed = poll(Duration::from_secs(10), || {
        server.psql(
            "postgres",
            &format!("select pg_terminate_backend(pid) from pg_stat_activity where datname = '{name}'"),
        );
        Some(())
    });
    assert!(freed.is_some());
    capture(&source_at(server, url(server, &name))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_dropped_under_the_snapshot_is_a_failure() {
    let server = PostgresServer::newest();
    let name = server.create_database();
    server.psql(&name, "create table stays (x int); create table goes (x int)");
    let (context, _scratch) = context();
    let source = source_at(server, url(server, &name));
    let mut capture = source.capture(context).await.unwrap();
    server.psql(&name, "drop table goes");
    capture.next().await.unwrap();
    capture.open().await.unwrap();
    capture.close().await.unwrap();
    capture.next().await.unwrap();
    let mut rest = Vec::new();
    capture
        .open()
        .await
        .unwrap()
        .read_to_end(&mut rest)
        .await
        .unwrap();
    let error = capture
        .close()
        .await
        .expect_err("a table of the snapshot is gone");
    assert_eq!(error.kind(), Kind::Failed);
    capture.cleanup().await;
}

#[tokio::test]
async fn a_role_without_rights_gets_a_warning_or_an_error_that_names_the_table() {
    let server = PostgresServer::start(15);
    server.psql(
        "postgres",
        "create role reader login password 'pw'; create role nobody login password 'pw'",
    );
    server.psql(
        "postgres",
        "create table secret (x int); grant select on secret to reader",
    );
    let source = source_at(&server, url_as(&server, "reader", "pw", "postgres"));
    let point = capture(&source).await.unwrap();
    assert!(
        point
            .captured
            .warnings
            .iter()
            .any(|w| w.contains("passwords of roles")),
        "{:?}",
        point.captured.warnings
    );
    assert!(!String::from_utf8_lossy(point.unit("globals.sql")).contains("SCRAM"));
    assert!(String::from_utf8_lossy(point.unit("globals.sql")).contains("CREATE ROLE reader"));
    assert!(
        point.json("facts.json")["warnings"][0]
            .as_str()
            .unwrap()
            .contains("passwords of roles")
    );
    let source = source_at(&server, url_as(&server, "nobody", "pw", "postgres"));
    let findings = source.check(&lifeboat::clock::World::system()).await;
    let bad = findings
        .iter()
        .find(|f| f.level == Level::Error)
        .expect("an error");
    assert!(bad.text.contains("\"secret\"") && bad.hint.as_ref().unwrap().contains("pg_read_all_data"));
    let error = capture(&source).await.err().expect("a failure");
    assert!(told(&error).contains("secret"), "{error:?}");
}

#[tokio::test]
async fn programs_older_than_the_server_are_refused_with_the_package() {
    let server = PostgresServer::newest();
    let mut policy = crate::support::policy(server);
    policy.client_dir = Some(crate::harness::postgres::client_dir(15));
    let secret = lifeboat::secret::SecretText::new(url(server, "postgres"));
    let source = lifeboat::source::postgres::PostgresSource::new(&policy, secret);
    let error = capture(&source).await.err().expect("a failure");
    assert!(told(&error).contains("postgresql-client-18"), "{error:?}");
    assert!(told(&error).contains("client_dir"), "{error:?}");
}
