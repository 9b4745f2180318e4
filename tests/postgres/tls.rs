//! TLS modes and Unix sockets, for our own sessions and for the programs alike. (The certificates in `tls/` are of no
//! use for anything else; they end in a hundred years.)

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};

use crate::harness::postgres::PostgresServer;
use crate::harness::{poll, project};
use crate::support::{capture, source_at, told, url};

fn file(name: &str) -> String {
    project()
        .join("tests/postgres/tls")
        .join(name)
        .to_string_lossy()
        .into_owned()
}

/// A server with TLS; its certificate is for 127.0.0.1.
fn server() -> PostgresServer {
    let server = PostgresServer::start(15);
    let data = server.data_directory();
    let owner = std::fs::metadata(&data).unwrap();
    for name in ["server.crt", "server.key"] {
        let to = data.join(name);
        std::fs::copy(file(name), &to).unwrap();
        std::fs::set_permissions(&to, std::fs::Permissions::from_mode(0o600)).unwrap();
        chown(&to, Some(owner.uid()), Some(owner.gid())).unwrap();
    }
    server.psql("postgres", "alter system set ssl = on");
    server.psql("postgres", "select pg_reload_conf()");
    let on = poll(std::time::Duration::from_secs(20), || {
        (server.psql("postgres", "show ssl") == "on").then_some(())
    });
    assert!(on.is_some(), "no TLS");
    server.psql("postgres", "create table t as select 1 as x");
    server
}

#[tokio::test]
async fn each_mode_checks_what_it_says() {
    let server = server();
    let (ca, other) = (file("ca.crt"), file("other.crt"));
    let base = url(&server, "postgres");
    for parameters in [
        "sslmode=disable".to_owned(),
        "sslmode=prefer".to_owned(),
        "sslmode=require".to_owned(),
        format!("sslmode=require&sslrootcert={ca}"),
        format!("sslmode=verify-ca&sslrootcert={ca}"),
        format!("sslmode=verify-full&sslrootcert={ca}"),
    ] {
        let point = capture(&source_at(&server, format!("{base}?{parameters}"))).await;
        assert!(point.is_ok(), "{parameters}: {:?}", point.err());
    }
    let by_name = base.replace("127.0.0.1", "localhost");
    for (url, parameters) in [
        (&base, format!("sslmode=require&sslrootcert={other}")),
        (&base, format!("sslmode=verify-ca&sslrootcert={other}")),
        (&by_name, format!("sslmode=verify-full&sslrootcert={ca}")),
    ] {
        let error = capture(&source_at(&server, format!("{url}?{parameters}")))
            .await
            .err()
            .expect("a refusal");
        let text = told(&error);
        assert!(
            text.contains("TLS with") && text.contains("certificate"),
            "{parameters}: {text}"
        );
        assert!(text.contains("sslrootcert"), "{parameters}: {text}");
    }
    let missing = format!("{base}?sslmode=verify-full&sslrootcert=/nonexistent/ca.crt");
    let error = capture(&source_at(&server, missing))
        .await
        .err()
        .expect("a refusal");
    assert!(told(&error).contains("/nonexistent/ca.crt"), "{error:?}");
    // With TLS required by the server, our sessions and the programs all use it.
    server.psql("postgres", "create role sealed login superuser password 'pw'");
    let hba = server.data_directory().join("pg_hba.conf");
    std::fs::write(
        &hba,
        "local all all scram-sha-256\nhostssl all all all scram-sha-256\n",
    )
    .unwrap();
    server.psql("postgres", "select pg_reload_conf()");
    let refused = poll(std::time::Duration::from_secs(20), || {
        let mut plain = server.client("psql", "postgres");
        let said = crate::harness::run(plain.env("PGSSLMODE", "disable").args(["-X", "-c", "select 1"]));
        (said.code != 0).then_some(())
    });
    assert!(refused.is_some());
    capture(&source_at(
        &server,
        format!("{base}?sslmode=verify-full&sslrootcert={ca}"),
    ))
    .await
    .unwrap();
    let error = capture(&source_at(&server, format!("{base}?sslmode=disable")))
        .await
        .err()
        .expect("a refusal");
    assert!(told(&error).contains("pg_hba"), "{error:?}");
}

#[tokio::test]
async fn a_unix_socket_does() {
    let server = PostgresServer::newest();
    let name = server.create_database();
    server.psql(&name, "create table t as select 1 as x");
    let url = format!(
        "postgres://{}:{}@/{name}?host={}&port={}&sslmode=require",
        server.user(),
        server.password(),
        server.socket_directory().display(),
        server.port()
    );
    let point = capture(&source_at(server, url)).await.unwrap();
    assert_eq!(
        point.json("facts.json")["databases"][0]["relations"][0]["rows"],
        1
    );
}
