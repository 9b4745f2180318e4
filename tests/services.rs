//! The harness itself: the real servers start, answer, end, and leave nothing behind.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod harness;

use std::path::Path;
use std::time::Duration;

use harness::pocketbase::PocketBase;
use harness::postgres::PostgresServer;
use harness::{binary, lifeboat, poll, run, run_ok, temp_dir, tree, write_file};
use serde_json::json;

#[test]
fn every_postgres_starts_and_answers_on_tcp_with_a_password() {
    let majors = PostgresServer::all_majors();
    assert!(majors.len() >= 2, "{majors:?}");
    for major in majors {
        let server = PostgresServer::shared(major);
        let version = server.psql("postgres", "show server_version_num");
        assert_eq!(version.parse::<u32>().unwrap() / 10_000, major);
        let database = server.create_database();
        server.psql(
            &database,
            "create table t (v text); insert into t values ('ä'), ('b|c')",
        );
        assert_eq!(server.psql(&database, "select v from t order by 1"), "b|c\nä");
        let wrong = run(server
            .client("psql", &database)
            .env("PGPASSWORD", "wrong")
            .args(["-c", "select 1"]));
        assert!(wrong.stderr.contains("password authentication failed"), "{wrong}");
        let dump = run_ok(&mut server.client("pg_dump", &database));
        assert!(
            dump.stdout.contains("COPY public.t (v) FROM stdin;\nä\nb|c\n"),
            "{dump}"
        );
    }
}

#[tokio::test]
async fn a_url_of_a_postgres_opens_with_a_rust_client() {
    let server = PostgresServer::newest();
    let database = server.create_database();
    let (client, connection) = tokio_postgres::connect(&server.url(&database), tokio_postgres::NoTls)
        .await
        .unwrap();
    let connection = tokio::spawn(connection);
    let row = client
        .query_one("select current_database()::text", &[])
        .await
        .unwrap();
    assert_eq!(row.get::<_, String>(0), database);
    drop(client);
    connection.await.unwrap().unwrap();
}

#[test]
fn a_dropped_postgres_is_gone_with_its_data() {
    let server = PostgresServer::start_with(15, &["wal_level=logical"]);
    assert_eq!(server.psql("postgres", "show wal_level"), "logical");
    let data = server.data_directory();
    let pid = std::fs::read_to_string(data.join("postmaster.pid")).unwrap();
    let pid = pid.lines().next().unwrap().to_owned();
    drop(server);
    assert!(!data.exists());
    assert!(!Path::new("/proc").join(pid).exists());
}

#[tokio::test]
async fn pocketbase_serves_records_and_files_again_after_a_stop_and_a_crash() {
    let mut server = PocketBase::start().await;
    server.create_collection("notes").await;
    let content: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
    let first = server
        .create_record_with_file("notes", "with a file", 1, "doc.bin", &content)
        .await;
    let second = server
        .create_record("notes", &json!({ "title": "ä", "n": 2 }))
        .await;
    let third = server.create_record("notes", &json!({ "title": "gone" })).await;
    server
        .update_record("notes", second["id"].as_str().unwrap(), &json!({ "n": 3 }))
        .await;
    server.delete_record("notes", third["id"].as_str().unwrap()).await;
    server.create_backup("b1.zip").await;
    assert_eq!(server.backups().await, ["b1.zip"]);

    for crash in [false, true] {
        if crash {
            server.kill()
        } else {
            server.stop()
        }
        server.start_again().await;
        let mut titles: Vec<String> = Vec::new();
        for record in server.records("notes").await {
            titles.push(format!("{} {}", record["title"].as_str().unwrap(), record["n"]));
        }
        titles.sort();
        assert_eq!(titles, ["with a file 1", "ä 3"]);
        assert_eq!(server.file(&first).await, content);
    }

    // Another one on a copy of its data.
    server.stop();
    let copy = temp_dir();
    for (name, bytes) in tree(server.data_directory()) {
        write_file(&copy.path().join("pb_data"), &name, bytes);
    }
    let restored = PocketBase::start_on(&copy.path().join("pb_data"), server.password()).await;
    assert_eq!(restored.records("notes").await.len(), 2);
    assert_eq!(restored.file(&first).await, content);
    drop(restored);
    assert!(copy.path().join("pb_data/data.db").exists());
}

#[tokio::test]
async fn a_dropped_pocketbase_is_gone_with_its_data() {
    let server = PocketBase::start().await;
    let (pid, data) = (server.pid(), server.data_directory().to_owned());
    assert!(data.join("data.db").exists());
    drop(server);
    assert!(!data.exists());
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
}

#[test]
fn a_killed_test_leaves_no_server_behind() {
    use std::io::BufRead as _;
    // This test is also the other process: it starts a server, tells where, and waits to be killed.
    if std::env::var_os("LIFEBOAT_TEST_HOLD").is_some() {
        let server = PostgresServer::start(18);
        println!("data={}", server.data_directory().display());
        std::thread::sleep(Duration::from_secs(120));
    }
    let mut test = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", "a_killed_test_leaves_no_server_behind"])
        .env("LIFEBOAT_TEST_HOLD", "1")
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let lines = std::io::BufReader::new(test.stdout.take().unwrap()).lines();
    let data = lines
        .map_while(Result::ok)
        .find_map(|line| line.split_once("data=").map(|(_, path)| path.to_owned()))
        .expect("the other process starts a server");
    let running = Path::new(&data).join("postmaster.pid");
    assert!(running.exists());
    test.kill().unwrap();
    test.wait().unwrap();
    let gone = poll(Duration::from_secs(30), || {
        (!Path::new(&data).exists()).then_some(())
    });
    assert!(gone.is_some(), "{data} is still there");
}

/// Says nothing where no environment names servers; docker-compose.test.yml does.
#[tokio::test]
async fn servers_that_the_environment_names_answer() {
    if let Some(server) = PocketBase::elsewhere().await {
        server.backups().await;
    }
    if let Ok(endpoint) = std::env::var("LIFEBOAT_TEST_S3_ENDPOINT") {
        let answer = reqwest::get(format!("{endpoint}/healthz")).await.unwrap();
        assert!(answer.status().is_success(), "{endpoint}: {}", answer.status());
    }
    for major in PostgresServer::all_majors() {
        if std::env::var_os(format!("LIFEBOAT_TEST_POSTGRES_{major}")).is_some() {
            PostgresServer::shared(major).psql("postgres", "select 1");
        }
    }
}

#[test]
fn the_other_programs_run() {
    for (program, argument) in [("age", "--version"), ("zstd", "--version"), ("weed", "version")] {
        run_ok(std::process::Command::new(binary(program)).arg(argument));
    }
}

#[test]
fn the_binary_runs_with_a_clean_environment() {
    let environment: Vec<_> = lifeboat().get_envs().map(|(name, _)| name.to_owned()).collect();
    assert!(
        environment
            .iter()
            .all(|name| !name.to_string_lossy().starts_with("LIFEBOAT_"))
    );
    run(&mut lifeboat());
}

#[test]
#[should_panic(expected = "no-such-program is missing: run scripts/services install")]
fn a_missing_program_names_the_command_that_installs_it() {
    binary("no-such-program");
}
