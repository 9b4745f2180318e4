//! kill -9 of a restore into a database: it is marked, and the same command starts over.

use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::calls::{POINTS_MOST, Sweep, anew, sweep};
use crate::harness::postgres::PostgresServer;
use crate::harness::{self, write_file};
use crate::site::{Site, end, entries};

const KILLS: u32 = 6;
const ROWS: &str = "30000";

/// A repository with a point of a database, and the restore's target in `T_TARGET`.
fn site_of(server: &PostgresServer, database: &str, copy: &str, seed: u64) -> Site {
    let mut site = Site::without_repository(seed);
    let policy = std::fs::read_to_string(site.path("policy.toml")).unwrap();
    let orders = format!(
        "\n[source.orders]\nkind = \"postgres\"\nurl = {{ env = \"T_URL\" }}\nclient_dir = \"{}\"\n",
        server.client_dir().display()
    );
    write_file(site.dir.path(), "policy.toml", policy + &orders);
    site.environment = vec![
        ("T_URL".to_owned(), server.url(database)),
        ("T_TARGET".to_owned(), server.url(copy)),
    ];
    site.json(&["init"]);
    site.json(&["run", "orders"]);
    site
}

/// The same command: what a server has not noticed yet of the killed one is waited for.
#[track_caller]
fn again(site: &Site, command: &[&str], after: &str) {
    let said = harness::run(&mut site.backup(command));
    assert_eq!(said.code, 0, "{after}, again: {said}");
}

#[test]
fn a_killed_restore_of_a_database_is_marked_and_starts_over() {
    let server = PostgresServer::newest();
    let (database, copy) = (
        server.create_database(),
        format!("copy_{}", harness::random_hex(6)),
    );
    server.psql(
        &database,
        &format!(
            "create table t as select a, md5(a::text) || repeat('x', 500) as b from generate_series(1, {ROWS}) a;
             create table u as table t; create index on t (b); create index on u (b)"
        ),
    );
    let mut site = site_of(server, &database, &copy, 41);
    let command = ["restore", "orders", "--at", "latest", "--to", "env:T_TARGET"];
    let begun = Instant::now();
    site.json(&command);
    let whole = begun.elapsed();
    let mut marked = 0;
    let mut n = 0;
    // Until one met it in the middle: a machine that has less to do than before is quicker than before.
    while n < KILLS || (marked == 0 && n < 10 * KILLS) {
        server.psql(
            "postgres",
            &format!("drop database if exists {copy} with (force)"),
        );
        let place = (f64::from(n % KILLS) + site.random.fraction()) / f64::from(KILLS);
        let moment = whole.mul_f64(place * 0.85f64.powi((n / KILLS) as i32));
        n += 1;
        let mut child = site.start(&command);
        std::thread::sleep(moment);
        child.kill().unwrap();
        let mut over = end(child).code == 0;
        let after = format!("killed after {moment:?} of {whole:?}");
        let there = server.psql(
            "postgres",
            &format!("select count(*) from pg_database where datname = '{copy}'"),
        );
        if !over && there == "1" {
            let schemas = "select count(*) from pg_namespace where nspname like '%lifeboat%'";
            let tables = "select count(*) from pg_class where relname in ('t', 'u') and relkind = 'r'";
            let (mark, tables) = (server.psql(&copy, schemas), server.psql(&copy, tables));
            marked += u32::from(mark == "1");
            // The mark goes last: without it the database is whole, which is looked at below, or was not begun.
            over = mark == "0" && tables != "0";
        }
        if !over {
            again(&site, &command, &after);
        }
        for table in ["t", "u"] {
            let facts = format!(
                "select count(*), min(b) = md5('1') || repeat('x', 500) from {table} where a = 1 or true"
            );
            let found = server.psql(&copy, &facts.replace("min(b)", "max(b) filter (where a = 1)"));
            assert_eq!(found, format!("{ROWS}|t"), "{after}");
        }
        let left = "select count(*) from pg_namespace where nspname like '%lifeboat%'";
        assert_eq!(server.psql(&copy, left), "0", "{after}: a mark is left");
    }
    assert!(marked > 0, "no kill left a mark");
    // The next run removes what the killed spooled, which no kill may leave for ever.
    site.json(&["run", "orders"]);
    assert_eq!(entries(&site.path("state/scratch")), [""; 0]);
    assert!(whole < Duration::from_secs(60));
}

/// The worst moment: the schema is made, and the comment that makes it a marker is not.
#[test]
fn a_restore_killed_while_it_marks_the_database_starts_over() {
    let server = PostgresServer::newest();
    let (database, copy) = (server.create_database(), server.create_database());
    server.psql(&database, "create table t as select generate_series(1, 100) a");
    let site = site_of(server, &database, &copy, 42);
    // Readers go on, and the comment waits.
    let mut holder = server
        .client("psql", &copy)
        .args(["--no-psqlrc", "--quiet", "--command"])
        .arg("begin; lock table pg_catalog.pg_description in exclusive mode; select pg_sleep(120)")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let sees = |what: &str| {
        let sql = format!("select count(*) from pg_stat_activity where datname = '{copy}' and {what}");
        harness::poll(Duration::from_secs(60), || {
            (server.psql("postgres", &sql) == "1").then_some(())
        })
    };
    assert!(sees("wait_event = 'PgSleep'").is_some(), "no lock");
    let command = ["restore", "orders", "--at", "latest", "--to", "env:T_TARGET"];
    let mut child = site.start(&command);
    let waits = sees("wait_event_type = 'Lock' and query like 'COMMENT ON SCHEMA%'");
    child.kill().unwrap();
    let said = end(child);
    assert!(waits.is_some(), "the restore did not come to its mark: {said}");
    server.psql(
        "postgres",
        &format!("select pg_terminate_backend(pid) from pg_stat_activity where datname = '{copy}'"),
    );
    holder.wait().unwrap();
    again(&site, &command, "killed at its mark");
    assert_eq!(server.psql(&copy, "select count(*) from t"), "100");
}

/// Calls of ours and of the client programs fail, one after the other: what is shown restores, row by row.
fn dumps(extent: Sweep) {
    let server = PostgresServer::newest();
    let (database, copy) = (server.create_database(), server.create_database());
    server.psql(
        &database,
        "create table t as select a, md5(a::text) || repeat('x', 200) as b from generate_series(1, 4000) a;
         create table u (n int)",
    );
    let mut site = site_of(server, &database, &copy, 43);
    let points = |site: &Site| -> Vec<String> {
        let listed = site.json(&["list", "orders"]);
        let points = listed["sources"][0]["points"].as_array().unwrap().iter();
        points.map(|p| p["run"].as_str().unwrap().to_owned()).collect()
    };
    let content = |name: &str| {
        let digest = "select md5(string_agg(b, '' order by a)) || (select count(*) from u) from t";
        server.psql(name, digest)
    };
    let restores = |site: &Site, run: &str, what: &str| {
        server.psql("postgres", &format!("drop database {copy} with (force)"));
        let command = ["restore", "orders", "--at-point", run, "--to", "env:T_TARGET"];
        again(site, &command, what);
        assert_eq!(content(&copy), content(&database), "{what}");
    };
    let known = std::cell::RefCell::new(points(&site));
    let change = |site: &mut Site| {
        if points(site).len() > POINTS_MOST {
            anew(site);
            site.json(&["run", "orders"]);
        }
        server.psql(&database, "insert into u values (1)");
        *known.borrow_mut() = points(site);
    };
    sweep(&mut site, extent, &["run", "orders"], change, |site, outcome| {
        let mut new = points(site);
        new.retain(|run| !known.borrow().contains(run));
        if outcome.said.code == 0 {
            assert_eq!(new.len(), 1, "{}\n{}", outcome.what, outcome.said);
        }
        // Also one that was committed by a run which failed after that.
        for run in &new {
            restores(site, run, &outcome.what);
        }
        if outcome.said.code != 0 {
            site.json(&["run", "orders"]);
        }
    });
    let newest = points(&site);
    restores(&site, newest.last().unwrap(), "the end");
    assert_eq!(entries(&site.path("state/scratch")), [""; 0]);
}

#[test]
fn a_dump_survives_any_call_that_fails() {
    dumps(Sweep::Spread(1));
}

#[test]
#[ignore = "the whole sweep takes long: see ARCHITECTURE.md"]
fn a_dump_survives_every_call_that_fails() {
    dumps(Sweep::Whole);
}
