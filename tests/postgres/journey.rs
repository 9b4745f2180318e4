//! There and back again, on every version that is installed.

use std::process::Stdio;

use lifeboat::secret::SecretText;
use lifeboat::source::postgres::PostgresSource;
use lifeboat::source::{RestoreOptions, Source as _};

use crate::harness::postgres::PostgresServer;
use crate::harness::random_hex;
use crate::support::{capture, policy, restore, restore_with, source_at, take, target, url};

/// Everything that a dump is easily wrong about.
const SEED: &str = r#"
create schema "we""ird; $(x) ..";
create type mood as enum ('glad', 'sad');
create domain positive as int check (value > 0);
create table "-leading 'dash' ; drop table x" (id serial primary key, "a""b" text, m mood, p positive);
insert into "-leading 'dash' ; drop table x" ("a""b", m, p)
  select 'line' || chr(10) || n || chr(9) || '\.', 'sad', n from generate_series(1, 1000) n;
create table "we""ird; $(x) ..".été (id int generated always as identity, data bytea);
insert into "we""ird; $(x) ..".été (data) select decode(md5(n::text), 'hex') from generate_series(1, 50) n;
create table part (id int, at date) partition by range (at);
create table part_1 partition of part for values from ('2020-01-01') to ('2021-01-01');
create table part_2 partition of part default;
create index on part (id);
insert into part select n, date '2020-06-01' + n from generate_series(1, 500) n;
create unlogged table scratch as select n from generate_series(1, 20) n;
create table parent (a int); create table child (b int) inherits (parent);
insert into parent values (1); insert into child values (2, 3), (4, 5);
create materialized view seen as select count(*) as n from part;
create materialized view unseen as select 1 as one with no data;
create view v as select * from parent;
create sequence lonely start 7 increment -3 maxvalue 100 minvalue -100;
create sequence used; select setval('used', 4242);
create function f(int) returns int language sql as 'select $1 + 1';
create function tf() returns trigger language plpgsql as 'begin return new; end';
create trigger t before insert on parent for each row execute function tf();
alter table child enable row level security; create policy p on child using (b > 0);
select lo_from_bytea(0, decode('00ff5c0a27', 'hex')), lo_from_bytea(0, convert_to(repeat('large', 1000), 'UTF8'));
comment on table parent is 'it''s';
"#;

/// What is compared between source and target, as text.
const LOOK: [&str; 8] = [
    r#"select md5(string_agg(t::text, ';' order by id)) from "-leading 'dash' ; drop table x" t"#,
    r#"select md5(string_agg(t::text, ';' order by id)) from "we""ird; $(x) ..".été t"#,
    "select count(*), sum(id), max(at) from part",
    "select count(*) from scratch",
    "select (select sum(a) from only parent), (select sum(a + b) from child), obj_description('parent'::regclass)",
    "select n from seen",
    "select md5(string_agg(lo_get(oid)::text, ';' order by oid)), count(*) from pg_largeobject_metadata",
    "select last_value, is_called, (select last_value from lonely), (select is_called from lonely) from used",
];

#[tokio::test]
async fn every_version_comes_back_whole() {
    for major in PostgresServer::all_majors() {
        let server = PostgresServer::shared(major);
        let name = format!("hos\"tile'; $(x)=/..%\nñ {}", random_hex(4));
        server.psql(
            "postgres",
            &format!("create database \"{}\"", name.replace('"', "\"\"")),
        );
        server.psql(&name, SEED);
        let point = take(server, &name).await;
        assert_eq!(point.units.len(), 4, "{major}");
        let back = format!("{name} back");
        let restored = restore(server, &point, target(url(server, &back))).await.unwrap();
        assert_eq!(restored.differences, Vec::<String>::new(), "{major}");
        for sql in LOOK {
            assert_eq!(server.psql(&back, sql), server.psql(&name, sql), "{major}: {sql}");
        }
        assert_eq!(server.psql(&back, "select nextval('used')"), "4243");
        assert_eq!(server.psql(&back, "select nextval('lonely')"), "7");
        assert_eq!(
            server.psql(
                &back,
                "select count(*) from pg_namespace where nspname like 'lifeboat%'"
            ),
            "0"
        );
        let newest = PostgresServer::newest();
        let moved = format!("{name} from {major}");
        let restored = restore(newest, &point, target(url(newest, &moved)))
            .await
            .unwrap();
        assert_eq!(
            restored.differences,
            Vec::<String>::new(),
            "{major} to the newest"
        );
        let facts = point.json("facts.json");
        let relations = facts["databases"][0]["relations"].as_array().unwrap();
        let rows = |name: &str| relations.iter().find(|r| r["name"] == name).unwrap()["rows"].clone();
        assert_eq!(rows("-leading 'dash' ; drop table x"), 1000, "{major}");
        assert_eq!(rows("part"), serde_json::Value::Null);
        let info = &point.captured.facts;
        assert_eq!(
            info["server_version_num"].as_u64().unwrap() / 10_000,
            u64::from(major)
        );
        assert!(info["system_identifier"].is_string() && info["lsn"].is_string());
        let skew = (point.captured.source_clock - point.captured.host_clock)
            .num_milliseconds()
            .abs();
        assert!(skew < 1000, "the same machine's clock: {skew} ms off");
    }
}

#[tokio::test]
async fn roles_owners_grants_and_settings_move_to_another_server() {
    let majors = PostgresServer::local_majors();
    let from = PostgresServer::start(15);
    let to = PostgresServer::start(*majors.last().unwrap());
    from.psql(
        "postgres",
        r#"create role "gr""oup"; create role "o'wner; --" login password 'pw' in role "gr""oup";
           create role reader; alter role "o'wner; --" set search_path = "$user", public;
           create role bystander;"#,
    );
    from.psql(
        "postgres",
        r#"create database one owner "o'wner; --" template template0 encoding 'LATIN1' lc_collate 'C' lc_ctype 'C'"#,
    );
    from.psql("postgres", "create database two");
    from.psql(
        "postgres",
        r#"alter database two set work_mem = '5MB';
           revoke connect on database two from public; grant connect on database two to reader;
           comment on database two is 'the second'"#,
    );
    from.psql(
        "one",
        r#"set role "o'wner; --"; create schema s; create table s.t as select 'é'::text as x; grant select on s.t to reader"#,
    );
    from.psql("two", "create table t as select generate_series(1, 10) n; create extension hstore; create extension pg_trgm");
    let point = capture(&source_at(&from, url(&from, ""))).await.unwrap();
    let names: Vec<&str> = point.units.iter().map(|(u, _)| u.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "cluster.json",
            "databases/one.dump",
            "databases/postgres.dump",
            "databases/two.dump",
            "facts.json",
            "globals.sql"
        ]
    );
    assert!(String::from_utf8_lossy(point.unit("globals.sql")).contains("SCRAM-SHA-256"));
    // The URL's database alone without `databases`; what `databases` says with it, and `*` is every one.
    let dumps = async |databases: &[&str]| {
        let mut policy = policy(&from);
        policy.databases = databases.iter().map(|d| (*d).to_owned()).collect();
        let point = capture(&PostgresSource::new(&policy, SecretText::new(url(&from, "one"))))
            .await
            .unwrap();
        let names = point.units.iter().map(|(u, _)| u.name.to_string());
        names.filter(|n| n.starts_with("databases/")).collect::<Vec<_>>()
    };
    assert_eq!(dumps(&[]).await, ["databases/one.dump"]);
    assert_eq!(dumps(&["t*"]).await, ["databases/two.dump"]);
    let all = [
        "databases/one.dump",
        "databases/postgres.dump",
        "databases/two.dump",
    ];
    assert_eq!(dumps(&["*"]).await, all);
    let options = RestoreOptions {
        only_database: Some("one".into()),
        ..RestoreOptions::default()
    };
    let restored = restore_with(&to, &point, target(url(&to, "")), options, None)
        .await
        .unwrap();
    assert_eq!(restored.differences, Vec::<String>::new());
    assert_eq!(to.psql("one", "select x from s.t"), "é");
    let owner = "select tableowner from pg_tables where tablename = 't'";
    assert_eq!(to.psql("one", owner), "o'wner; --");
    assert_eq!(
        to.psql("one", "select has_table_privilege('reader', 's.t', 'select')"),
        "t"
    );
    assert_eq!(
        to.psql("postgres", "select pg_encoding_to_char(encoding), pg_get_userbyid(datdba) from pg_database where datname = 'one'"),
        "LATIN1|o'wner; --"
    );
    let role = "select pg_has_role('o''wner; --', 'gr\"oup', 'member'), rolpassword from pg_authid where rolname like 'o%wner%'";
    assert_eq!(to.psql("postgres", role), from.psql("postgres", role));
    assert_eq!(
        to.psql(
            "postgres",
            "select setconfig from pg_db_role_setting where setrole <> 0"
        ),
        from.psql(
            "postgres",
            "select setconfig from pg_db_role_setting where setrole <> 0"
        )
    );
    assert_eq!(
        to.psql(
            "postgres",
            "select count(*) from pg_roles where rolname = 'bystander'"
        ),
        "0"
    );
    // The rest, to the same server: `one` is in the way now and is named before anything is written.
    let refused = restore(&to, &point, target(url(&to, ""))).await.unwrap_err();
    assert!(refused.message().contains("\"one\" is not empty"), "{refused}");
    assert_eq!(
        to.psql(
            "postgres",
            "select count(*) from pg_database where datname = 'two'"
        ),
        "0"
    );
    to.psql("postgres", "drop database one");
    // hstore and pg_trgm may not be installed for the newest server: then nothing is written, and they are named.
    if to.psql(
        "postgres",
        "select count(*) from pg_available_extensions where name in ('hstore', 'pg_trgm')",
    ) == "2"
    {
        let restored = restore(&to, &point, target(url(&to, ""))).await.unwrap();
        assert_eq!(restored.differences, Vec::<String>::new());
        assert_eq!(
            to.psql("two", "select count(*), current_setting('work_mem') from t"),
            "10|5MB"
        );
        let acl = "select has_database_privilege('reader', 'two', 'connect'), has_database_privilege('gr\"oup', 'two', 'connect'), shobj_description(oid, 'pg_database') from pg_database where datname = 'two'";
        assert_eq!(to.psql("postgres", acl), "t|f|the second");
    } else {
        let error = restore(&to, &point, target(url(&to, ""))).await.unwrap_err();
        assert_eq!(error.kind(), lifeboat::error::Kind::Usage);
        assert!(
            error.message().contains("\"hstore\" of database \"two\""),
            "{error:?}"
        );
        assert!(error.hint_text().unwrap().contains("contrib"), "{error:?}");
        let made = "select count(*) from pg_database where datname in ('one', 'two')";
        assert_eq!(to.psql("postgres", made), "0");
    }
    // Back to the version it came from, where the extensions are.
    from.psql("postgres", "alter database two rename to moved");
    from.psql("postgres", "alter database one rename to moved_one");
    let restored = restore_with(
        &from,
        &point,
        target(url(&from, "")),
        RestoreOptions {
            only_database: Some("two".into()),
            ..RestoreOptions::default()
        },
        None,
    )
    .await
    .unwrap();
    assert_eq!(restored.differences, Vec::<String>::new());
    let extensions = "select string_agg(extname || extversion, ',' order by extname) from pg_extension";
    assert_eq!(from.psql("two", extensions), from.psql("moved", extensions));
}

/// As on a managed server: the role owns its database and may make more, and nothing else.
#[tokio::test]
async fn an_ordinary_role_backs_up_and_restores_its_own() {
    let server = PostgresServer::newest();
    let role = format!("plain_{}", random_hex(4));
    server.psql(
        "postgres",
        &format!("create role {role} login createdb password 'pw'"),
    );
    server.psql("postgres", &format!("create database {role} owner {role}"));
    let sql = "create table t (id serial primary key, x text); insert into t (x) select n::text from generate_series(1, 9) n; \
               create schema s; create function s.f() returns int language sql as 'select 1'; select lo_from_bytea(0, 'ab')";
    server.psql(&role, &format!("set role {role}; {sql}"));
    let own = |database: &str| crate::support::url_as(server, &role, "pw", database);
    let point = capture(&source_at(server, own(&role))).await.unwrap();
    assert!(
        point.captured.warnings.iter().any(|w| w.contains("passwords")),
        "{:?}",
        point.captured.warnings
    );
    let back = format!("{role}_back");
    let restored = restore(server, &point, target(own(&back))).await.unwrap();
    assert_eq!(restored.differences, Vec::<String>::new());
    assert_eq!(
        server.psql(
            &back,
            "select count(*), max(tableowner) from t, pg_tables where tablename = 't'"
        ),
        format!("9|{role}")
    );
}

#[tokio::test]
async fn dump_and_facts_are_of_one_instant_while_writers_go_on() {
    let server = PostgresServer::newest();
    let name = server.create_database();
    server.psql(
        &name,
        "create table account (id int primary key, amount bigint); \
         insert into account select n, 1000 from generate_series(1, 200) n; \
         create table ledger (id bigserial primary key, note text); \
         insert into ledger (note) select repeat('x', 200) from generate_series(1, 30000); \
         create table padding as select n, repeat('p', 500) t from generate_series(1, 40000) n",
    );
    // Moves money for ever, each move its own transaction with a line in the ledger.
    let writer = "do $$ begin loop \
        update account set amount = amount - 1 where id = (select 1 + floor(random() * 99)::int); \
        update account set amount = amount + 1 where id = (select 101 + floor(random() * 99)::int); \
        insert into ledger (note) values ('moved'); commit; end loop; end $$";
    let mut child = server
        .client("psql", &name)
        .args(["-X", "-q", "-c", writer])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let grown = crate::harness::poll(std::time::Duration::from_secs(20), || {
        (server.psql(&name, "select count(*) > 30100 from ledger") == "t").then_some(())
    });
    assert!(grown.is_some(), "the writer does not write");
    let point = take(server, &name).await;
    let moved_on = server
        .psql(&name, "select count(*) from ledger")
        .parse::<u64>()
        .unwrap();
    server.psql(
        "postgres",
        &format!("select pg_terminate_backend(pid) from pg_stat_activity where datname = '{name}' and query like 'do %'"),
    );
    child.wait().unwrap();
    let back = format!("{name}_back");
    let restored = restore(server, &point, target(url(server, &back))).await.unwrap();
    assert_eq!(
        restored.differences,
        Vec::<String>::new(),
        "facts and dump are of one snapshot"
    );
    assert_eq!(server.psql(&back, "select sum(amount) from account"), "200000");
    let there = server
        .psql(&back, "select count(*) from ledger")
        .parse::<u64>()
        .unwrap();
    assert!(
        there < moved_on,
        "the writer went on during the dump: {there} {moved_on}"
    );
}

fn excluding(
    server: &PostgresServer,
    name: &str,
    exclude: &[&str],
) -> lifeboat::source::postgres::PostgresSource {
    let mut policy = policy(server);
    policy.exclude = exclude.iter().map(|e| (*e).to_owned()).collect();
    let secret = lifeboat::secret::SecretText::new(url(server, name));
    lifeboat::source::postgres::PostgresSource::new(&policy, secret)
}

#[tokio::test]
async fn the_rows_of_excluded_tables_are_left_out_and_not_missed() {
    let server = PostgresServer::newest();
    let name = server.create_database();
    server.psql(
        &name,
        "create table keep (id serial); create table log_1 (id serial primary key, x int); create table \"Log_2\" (x int); \
         create schema s; create table s.log_3 (x int); insert into keep select from generate_series(1, 3); \
         insert into log_1 (x) select 1; insert into s.log_3 select 1; create view seen as select x from log_1",
    );
    let point = capture(&excluding(server, &name, &["log*", "s.*", "nothing_like_it"]))
        .await
        .unwrap();
    assert!(
        point
            .captured
            .warnings
            .iter()
            .any(|w| w.contains("\"nothing_like_it\" matches no table")),
        "{:?}",
        point.captured.warnings
    );
    let back = format!("{name}_back");
    let restored = restore(server, &point, target(url(server, &back))).await.unwrap();
    assert_eq!(restored.differences, Vec::<String>::new());
    assert!(
        restored
            .warnings
            .iter()
            .any(|w| w.contains("left the rows of tables out")),
        "{:?}",
        restored.warnings
    );
    let rows = "select (select count(*) from keep), (select count(*) from log_1), (select count(*) from s.log_3), (select count(*) from seen)";
    assert_eq!(server.psql(&back, rows), "3|0|0|0");
}

#[tokio::test]
async fn an_exclusion_that_no_restore_could_survive_is_refused() {
    let server = PostgresServer::newest();
    let name = server.create_database();
    server.psql(
        &name,
        "create table orders (id int primary key); create table lines (o int constraint of_order references orders)",
    );
    let error = match capture(&excluding(server, &name, &["orders"])).await {
        Ok(_) => panic!("captured"),
        Err(e) => e.chain(),
    };
    assert!(error.contains("lines") && error.contains("of_order"), "{error}");
    capture(&excluding(server, &name, &["orders", "lines"]))
        .await
        .unwrap();
}

#[tokio::test]
async fn check_tells_what_is_there() {
    let server = PostgresServer::newest();
    let name = server.create_database();
    server.psql(&name, "create table t as select 1 as x");
    let findings = source_at(server, url(server, &name))
        .check(&lifeboat::clock::World::system())
        .await;
    let text = serde_json::to_string(&findings).unwrap();
    for finding in &findings {
        assert_eq!(finding.level, lifeboat::source::Level::Ok, "{text}");
    }
    for part in [name.as_str(), "pg_dump", "Postgres 18", "can be read"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}
