//! The roles that come with a restore: all of them with a whole server, the needed ones with less.

use lifeboat::source::RestoreOptions;

use crate::harness::postgres::PostgresServer;
use crate::support::{capture, restore, restore_with, source_at, target, url, url_as};

/// Roles that no object needs, beside those that own something.
const ROLES: &str = r#"
create role app_owner; create role grp createdb;
create role alice login password 'pw' valid until '2031-01-02 03:04:05+00' connection limit 7;
alter role alice set search_path = "$user", public; alter role alice set work_mem = '5MB';
grant app_owner to alice; grant grp to alice with admin option;
create role backup_role login password 'pw2'; grant pg_read_all_data to backup_role;
create role "odd'; -- ""r" createrole bypassrls; create role kept login password 'recorded'; grant grp to kept"#;

const LOOK: [&str; 3] = [
    "select rolname, rolsuper, rolinherit, rolcreaterole, rolcreatedb, rolcanlogin, rolreplication, rolbypassrls, \
     rolconnlimit, rolpassword, rolvaliduntil from pg_authid where rolname !~ '^pg_' and rolname not in ('postgres', 'kept') order by 1",
    "select roleid::regrole, member::regrole, admin_option from pg_auth_members where member::regrole::text not like 'pg_%' \
     and member::regrole::text not in ('kept', 'postgres') order by 1, 2",
    "select setrole::regrole, setconfig from pg_db_role_setting where setdatabase = 0 order by 1",
];

fn source_server() -> PostgresServer {
    let from = PostgresServer::start(15);
    from.psql("postgres", ROLES);
    from.psql("postgres", "create database one owner app_owner");
    from.psql("postgres", "create database two");
    from.psql(
        "one",
        "set role app_owner; create table t as select generate_series(1, 3) n",
    );
    from
}

#[tokio::test]
async fn a_whole_server_gets_every_recorded_role_that_it_lacks() {
    let from = source_server();
    let to = PostgresServer::start(*PostgresServer::local_majors().last().unwrap());
    // One that is there: never altered, and told.
    to.psql("postgres", "create role kept login password 'its own' createdb");
    let kept = "select rolpassword, rolcreatedb from pg_authid where rolname = 'kept'";
    let before = to.psql("postgres", kept);
    let point = capture(&source_at(&from, url(&from, ""))).await.unwrap();
    let restored = restore(&to, &point, target(url(&to, ""))).await.unwrap();
    assert_eq!(restored.differences, Vec::<String>::new());
    for sql in LOOK {
        assert_eq!(to.psql("postgres", sql), from.psql("postgres", sql), "{sql}");
    }
    assert!(
        to.psql("postgres", LOOK[0])
            .contains("alice|f|t|f|f|t|f|f|7|SCRAM-SHA-256$")
    );
    assert!(
        to.psql("postgres", LOOK[1])
            .contains("pg_read_all_data|backup_role|f")
    );
    assert_eq!(to.psql("postgres", kept), before);
    assert_eq!(
        to.psql(
            "postgres",
            "select count(*) from pg_auth_members where member::regrole::text = 'kept'"
        ),
        "0"
    );
    let told = restored.warnings.join("\n");
    assert!(
        told.contains("created the missing roles \"alice\", \"app_owner\", \"backup_role\""),
        "{told}"
    );
    assert!(
        told.contains("left as they are (password, settings, groups): \"kept\", \"postgres\""),
        "{told}"
    );
    assert!(
        told.contains("not put into groups that they were recorded in: \"kept in grp\""),
        "{told}"
    );
    // The restored server lets the role in with its old password.
    let login = to
        .client("psql", "one")
        .env("PGUSER", "alice")
        .env("PGPASSWORD", "pw")
        .args(["-XAtc", "select count(*) from t"])
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&login.stdout),
        "3\n",
        "{}",
        String::from_utf8_lossy(&login.stderr)
    );
}

#[tokio::test]
async fn one_database_gets_the_roles_that_it_needs_and_the_others_are_told() {
    let from = source_server();
    let to = PostgresServer::start(15);
    let point = capture(&source_at(&from, url(&from, ""))).await.unwrap();
    let options = RestoreOptions {
        only_database: Some("one".into()),
        ..RestoreOptions::default()
    };
    let restored = restore_with(&to, &point, target(url(&to, "")), options, None)
        .await
        .unwrap();
    assert_eq!(restored.differences, Vec::<String>::new());
    assert_eq!(
        to.psql(
            "postgres",
            "select string_agg(rolname, ',' order by rolname) from pg_roles where rolname !~ '^pg_'"
        ),
        "app_owner,postgres"
    );
    let told = restored.warnings.join("\n");
    assert!(told.contains("created the missing roles \"app_owner\""), "{told}");
    let left = told
        .lines()
        .find(|l| l.contains("left out"))
        .unwrap_or_else(|| panic!("{told}"));
    for name in ["\"alice\"", "\"backup_role\"", "\"grp\"", "globals.sql"] {
        assert!(left.contains(name), "{name}: {left}");
    }
}

#[tokio::test]
async fn who_may_not_make_every_role_makes_those_that_he_may_and_tells_the_others() {
    let from = source_server();
    from.psql(
        "postgres",
        "create role power superuser login password 'x'; grant grp to power; create role maker login",
    );
    from.psql("postgres", "create database three owner maker");
    from.psql(
        "three",
        "set role maker; create table t as select generate_series(1, 3) n",
    );
    let to = PostgresServer::start(16);
    to.psql(
        "postgres",
        "create role maker login createdb createrole password 'pw'",
    );
    let point = capture(&source_at(&from, url(&from, ""))).await.unwrap();
    let mut its_own = point.clone();
    // Of the point's databases the one that the role owns: it may restore no other.
    let cluster = &mut its_own.units[0].1;
    let mut document: serde_json::Value = serde_json::from_slice(cluster).unwrap();
    document["databases"]
        .as_array_mut()
        .unwrap()
        .retain(|d| d["name"] == "three");
    *cluster = serde_json::to_vec(&document).unwrap().into();
    let restored = restore(&to, &its_own, target(url_as(&to, "maker", "pw", "")))
        .await
        .unwrap();
    let told = restored.warnings.join("\n");
    assert!(told.contains("role \"power\" is left out"), "{told}");
    assert!(
        told.contains("role \"backup_role\" is not in \"pg_read_all_data\""),
        "{told}"
    );
    assert_eq!(
        to.psql("postgres", "select rolpassword like 'SCRAM%', pg_has_role('alice', 'app_owner', 'member') from pg_authid where rolname = 'alice'"),
        "t|t"
    );
    assert_eq!(
        to.psql(
            "postgres",
            "select count(*) from pg_roles where rolname = 'power'"
        ),
        "0"
    );
    // Who may make none is told which are left out.
    let plain = PostgresServer::start(16);
    plain.psql("postgres", "create role maker login createdb password 'pw'");
    let restored = restore(&plain, &its_own, target(url_as(&plain, "maker", "pw", "")))
        .await
        .unwrap();
    let told = restored.warnings.join("\n");
    assert!(
        told.contains("left out (the user may not create roles): \"alice\""),
        "{told}"
    );
    assert_eq!(plain.psql("three", "select count(*) from t"), "3");
}
