//! What runs in a drill's target runs on data that may hold anything. It reaches nothing of the host, and nothing of it stays.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use crate::drills::{check, command, drill, edit, nothing_is_left, of, site};
use crate::harness::postgres::PostgresServer;
use crate::harness::{self, Said};
use crate::site::Site;

/// The user whom these tests become, where they can.
const SOMEBODY: u32 = 65_534;

/// A program that does everything that it should not, and writes down what of it worked.
fn hostile(site: &Site, trap: u16) -> String {
    let script = r#"
import os, socket, subprocess
done = []
def attempt(name, do, *what):
    try:
        do(*what)
        done.append(name)
    except Exception:
        pass
def local(path):
    socket.socket(socket.AF_UNIX).connect(path)
attempt('network', socket.create_connection, ('127.0.0.1', TRAP), 5)
attempt('production', local, 'SOCKET')
attempt('state', os.listdir, 'STATE')
attempt('key', open, 'KEY')
open('MARK', 'w')
attempt('process 1', os.listdir, '/proc/1/fd')
attempt('system', open, '/usr/mark', 'w')
attempt('kill', os.kill, HARNESS, 0)
subprocess.Popen(['setsid', 'sleep', '600'], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
open('done', 'w').write('done: ' + ' '.join(done))
"#;
    let socket = (site.server.socket_directory()).join(format!(".s.PGSQL.{}", site.server.port()));
    let script = script
        .replace("TRAP", &trap.to_string())
        .replace("SOCKET", &socket.display().to_string())
        .replace("STATE", &site.path("state").display().to_string())
        .replace("KEY", &site.path("signing.key").display().to_string())
        .replace("MARK", &mark(trap).display().to_string())
        .replace("HARNESS", &std::process::id().to_string());
    let hex: String = script.bytes().map(|b| format!("{b:02x}")).collect();
    // The server works in its data directory.
    format!("cd .. && python3 -c \"exec(bytes.fromhex('{hex}').decode())\"")
}

fn mark(trap: u16) -> PathBuf {
    PathBuf::from(format!("/tmp/hostile-{trap}"))
}

/// A table whose restore runs that program as the server's user, and one that leads to a trap.
fn arm(site: &Site, trap: u16) {
    let program = hostile(site, trap).replace('\'', "''");
    site.sql(&format!(
        "create function strike(n int) returns int language plpgsql as $f$
         begin
             if current_setting('listen_addresses') = '' then
                 execute $c$copy (select 1) to program '{program}'$c$;
             end if;
             return n;
         end $f$;
         create table armed (n int check (strike(n) > 0));
         insert into armed values (1);
         create extension postgres_fdw;
         create server outside foreign data wrapper postgres_fdw options (host '127.0.0.1', port '{trap}', dbname 'x');
         create user mapping for current_user server outside options (user 'x', password 'x');
         create foreign table away (n int) server outside"
    ));
}

fn trap() -> (TcpListener, u16) {
    let trap = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    trap.set_nonblocking(true).unwrap();
    let port = trap.local_addr().unwrap().port();
    (trap, port)
}

#[tokio::test(flavor = "multi_thread")]
async fn code_in_a_dump_reaches_nothing_and_leaves_nothing() {
    let (trap, port) = trap();
    let told = r#"checks = [
    { source = "orders", name = "what it did", command = ["sh", "-c", "cat done; exit 3"] },
    { source = "orders", name = "the link leads out", sql = "select count(*) from away", timeout = "5s" },
]
"#;
    let site = site(&format!(
        "[drill.orders]\nsources = [\"orders\"]\nkeep_failed = \"0s\"\n{told}"
    ))
    .await;
    arm(&site, port);
    site.json(&["run", "orders"]);
    let (code, report) = drill(&site, "orders");
    let orders = of(&report, "orders");
    assert_eq!(code, 22, "{report:#}");
    // It ran, as a superuser of the scratch server, and nothing of what it tried worked.
    assert_eq!(
        (
            &check(orders, "it is restored")["result"],
            &check(orders, "facts of")["result"]
        ),
        (&json!("passed"), &json!("passed")),
        "{orders:#}"
    );
    assert_eq!(check(orders, "what it did")["detail"], "done:", "{orders:#}");
    assert_eq!(check(orders, "the link leads out")["result"], "failed");
    let called = trap.accept();
    assert!(called.is_err(), "the copy called out: {called:?}");
    assert!(!mark(port).exists(), "its /tmp is not the host's");
    nothing_is_left(&site);
    assert_eq!(shared_memory(), [0; 0]);
}

/// Owners of System V shared memory that only targets of drills have.
fn shared_memory() -> Vec<u32> {
    let table = std::fs::read_to_string("/proc/sysvipc/shm").unwrap();
    let owners = table
        .lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().nth(7)?.parse().ok());
    owners.filter(|owner| (61_184..65_520).contains(owner)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_copy_signs_opens_nothing_else() {
    let keys = "import json, sqlite3, os
db = sqlite3.connect(os.environ['POCKETBASE_DIR'] + '/data.db')
secrets = [v['secret'] for (o,) in db.execute(\\\"select options from _collections where type = 'auth'\\\") for v in json.loads(o).values() if isinstance(v, dict) and 'secret' in v]
keys = [k for (k,) in db.execute('select tokenKey from _superusers')]
print(json.dumps([[s[:12] for s in secrets], [k[:12] for k in keys]])); raise SystemExit(3)";
    let site = site(&format!(
        "[drill.app]\nsources = [\"app\"]\nkeep_failed = \"0s\"\nchecks = [{{ source = \"app\", name = \"keys\", command = [\"python3\", \"-c\", \"{}\"] }}]\n",
        keys.replace('\n', "\\n")
    ))
    .await;
    let original = rusqlite::Connection::open(site.app.data_directory().join("data.db")).unwrap();
    let (code, report) = drill(&site, "app");
    assert_eq!(code, 22, "{report:#}");
    let app = of(&report, "app");
    let said = check(app, "keys")["detail"].as_str().unwrap().to_owned();
    let [secrets, keys]: [Vec<String>; 2] = serde_json::from_str(&said).unwrap();
    assert!(secrets.len() >= 5 && !keys.is_empty(), "{said}");
    let count = |sql: &str, what: &str| -> i64 { original.query_row(sql, [what], |row| row.get(0)).unwrap() };
    for secret in secrets {
        assert_eq!(
            count(
                "select count(*) from _collections where instr(options, ?1)",
                &secret
            ),
            0,
            "a secret of the original"
        );
    }
    assert_eq!(
        keys.iter()
            .filter(|key| count(
                "select count(*) from _superusers where substr(tokenKey, 1, 12) = ?1",
                key
            ) > 0)
            .count(),
        keys.len() - 1,
        "the key of who asks is another one"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_ends_in_its_time_and_takes_its_children_with_it() {
    let checks = r#"[drill.app]
sources = ["app"]
keep_failed = "0s"
checks = [
    { source = "app", name = "for ever", command = ["sleep", "600"], timeout = "1s" },
    { source = "app", name = "a child that stays", command = ["sh", "-c", "setsid sleep 600 >/dev/null 2>&1 & exit 0"] },
    { source = "app", name = "a child that holds the pipe", command = ["sh", "-c", "setsid sleep 600 & exit 0"] },
    { source = "app", name = "more than anybody reads", command = ["sh", "-c", "yes | head -c 200000000; exit 4"] },
    { source = "app", name = "no such program", command = ["/nowhere/at/all"] },
]
"#;
    let site = site(checks).await;
    let (code, report) = drill(&site, "app");
    assert_eq!(code, 22, "{report:#}");
    let app = of(&report, "app");
    for (name, result, words) in [
        ("for ever", "failed", "no answer within 1s"),
        ("a child that stays", "passed", "it ends with 0"),
        ("a child that holds the pipe", "passed", "it ends with 0"),
        ("more than anybody reads", "failed", "it ended with 4"),
        (
            "no such program",
            "could_not_run",
            "/nowhere/at/all can not be started",
        ),
    ] {
        let found = check(app, name);
        assert_eq!(found["result"], result, "{found}");
        assert!(found["actual"].as_str().unwrap().contains(words), "{found}");
    }
    let said = check(app, "more than anybody reads")["detail"].as_str().unwrap();
    assert!(said.len() <= 500, "{}", said.len());
    nothing_is_left(&site);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_level_is_not_reached_past_a_check_that_was_not_made() {
    let site = site("[drill.slow]\nsources = [\"orders\"]\ntimeout = \"8s\"\nkeep_failed = \"0s\"\nchecks = [{ source = \"orders\", name = \"waits\", command = [\"sleep\", \"600\"] }, { source = \"orders\", name = \"comes after\", command = [\"true\"] }]\n").await;
    let (code, report) = drill(&site, "slow");
    let orders = of(&report, "orders");
    assert_eq!((code, &orders["level"]), (23, &json!(4)), "{report:#}");
    assert_eq!(check(orders, "amcheck of")["result"], "passed", "{orders:#}");
    assert_eq!(check(orders, "comes after")["result"], "could_not_run");
    nothing_is_left(&site);
    assert_eq!(
        shared_memory(),
        [0; 0],
        "a server that is ended hard leaves memory"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_check_looks_at_is_said() {
    let site = site("[drill.orders]\nsources = [\"orders\"]\nkeep_failed = \"0s\"\n").await;
    site.sql(
        "create index on orders using brin (id);
         create index on orders using hash (note);
         create view fine as select note from orders;
         create function setting() returns text language plpgsql stable as
             $f$ begin return current_setting('app.tenant'); end $f$;
         create view wants as select note from orders where note = setting();
         create function no() returns event_trigger language plpgsql as
             $f$ begin raise exception 'not here'; end $f$;
         create event trigger no on ddl_command_start when tag in ('CREATE EXTENSION') execute function no()",
    );
    site.json(&["run", "orders"]);
    // Another event trigger fires whatever a session says; and a setting is in the way of who asks the catalog.
    site.sql("alter event trigger no enable always");
    site.sql(&format!(
        "alter database {} set quote_all_identifiers = on",
        site.database
    ));
    site.json(&["run", "orders"]);
    let (code, report) = drill(&site, "orders");
    let orders = of(&report, "orders");
    assert_eq!((code, &orders["level"]), (0, &json!(6)), "{report:#}");
    let said = orders["not_tested"].to_string();
    for words in ["1 of brin", "1 of hash", "built them anew", "public.wants"] {
        assert!(said.contains(words), "{words}: {said}");
    }
    assert!(!said.contains("public.fine"), "{said}");
    assert_eq!(check(orders, "views of")["actual"], "1 views can be asked");
    nothing_is_left(&site);
}

/// A drill by somebody who is not root, begun by a script (`exec "$@"` is the drill).
fn as_somebody(site: &Site, script: &str, name: &str) -> Said {
    // The project may lie where nobody else may look.
    let program = site.path("program");
    if !program.exists() {
        std::fs::copy(env!("CARGO_BIN_EXE_backup"), &program).unwrap();
    }
    let clients = site.server.client_dir();
    edit(site, |policy| {
        let real = clients.canonicalize().unwrap();
        policy.replace(&clients.display().to_string(), &real.display().to_string())
    });
    let real = |path: PathBuf| path.canonicalize().unwrap().display().to_string();
    let pocketbase = harness::binary("pocketbase").canonicalize().unwrap();
    let path = [
        real(site.server.bin_dir()),
        pocketbase.parent().unwrap().display().to_string(),
        "/usr/bin:/bin".to_owned(),
    ];
    let drill = command(site, &["drill", name]);
    let mut whole = if rustix::process::geteuid().is_root() {
        give(site.directory.path());
        let mut command = Command::new("setpriv");
        command.args([
            format!("--reuid={SOMEBODY}").as_str(),
            &format!("--regid={SOMEBODY}"),
            "--clear-groups",
            "sh",
        ]);
        command
    } else {
        Command::new("sh")
    };
    whole
        .args(["-c", script, "sh"])
        .arg(program)
        .args(drill.get_args())
        .env_clear()
        .envs(drill.get_envs().filter_map(|(name, value)| Some((name, value?))))
        .env("PATH", path.join(":"))
        .current_dir("/");
    harness::run(&mut whole)
}

fn give(path: &Path) {
    if path.symlink_metadata().unwrap().is_dir() {
        for entry in std::fs::read_dir(path).unwrap() {
            give(&entry.unwrap().path());
        }
    }
    std::os::unix::fs::lchown(path, Some(SOMEBODY), Some(SOMEBODY)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drill_needs_no_root_and_says_where_there_is_no_sandbox() {
    let site = site("[drill.both]\nsources = [\"orders\", \"app\"]\nsandbox = \"required\"\nchecks = [{ source = \"app\", name = \"our own\", command = [\"./check-app\"] }]\n").await;
    let text = "#!/bin/sh\necho changed >>\"$0\" || touch /drill/could-not\ntest -e /drill/could-not\n";
    let own = harness::write_file(site.directory.path(), "check-app", text);
    std::fs::set_permissions(&own, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let said = as_somebody(&site, "exec \"$@\"", "both");
    assert_eq!(said.code, 0, "{said}");
    // It belongs to who drills, and is not changed from inside all the same.
    assert_eq!(std::fs::read_to_string(&own).unwrap(), text);
    let report = said.json();
    for source in ["orders", "app"] {
        let target = of(&report, source)["target"].as_str().unwrap().to_owned();
        assert!(
            target.contains("in a sandbox of its own") && !target.contains("NOT"),
            "{target}"
        );
    }
    nothing_is_left(&site);
    // A host that allows no name spaces: everything is proven all the same, and what is less is said.
    let forbid = "exec unshare --user --map-current-user --keep-caps sh -c 'echo 0 >/proc/sys/user/max_user_namespaces && exec setpriv --bounding-set=-all --inh-caps=-all --ambient-caps=-all \"$@\"' sh \"$@\"";
    let said = as_somebody(&site, forbid, "both");
    assert_eq!(said.code, 23, "{said}");
    assert!(
        said.stdout.contains("this host allows no sandbox") && said.stdout.contains("sandbox = \\\"optional"),
        "{said}"
    );
    nothing_is_left(&site);
    edit(&site, |policy| {
        let policy = policy.replace("sandbox = \"required\"", "sandbox = \"optional\"");
        policy.replace("command = [\"./check-app\"]", "command = [\"true\"]")
    });
    let said = as_somebody(&site, forbid, "both");
    assert_eq!(said.code, 0, "{said}");
    let report = said.json();
    assert_eq!(report["level"], 6);
    for source in ["orders", "app"] {
        let of_source = of(&report, source);
        assert!(
            of_source["target"]
                .as_str()
                .unwrap()
                .contains("NOT in a sandbox of its own"),
            "{of_source}"
        );
        assert!(
            of_source["warnings"].to_string().contains("does not allow one"),
            "{of_source}"
        );
    }
    nothing_is_left(&site);
}

fn on_server(site: &Site, url: &str) -> Said {
    harness::run(command(site, &["drill", "given"]).env("T_DRILL_URL", url))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_was_given_is_empty_before_and_after() {
    let site = site("[drill.given]\nsources = [\"orders\"]\nserver = { env = \"T_DRILL_URL\" }\nkeep_failed = \"0s\"\nchecks = [{ source = \"orders\", name = \"it is reached\", command = [\"psql\", \"-XAtc\", \"select count(*) from orders\"] }]\n").await;
    let role = format!("role_{}", harness::random_hex(4));
    site.sql(&format!("create role {role}; grant select on orders to {role}"));
    site.json(&["run", "orders"]);
    let given = PostgresServer::start(site.server.major());
    let url = given.url("");
    let content = || {
        let sql = "select string_agg(name, ',' order by name) from (select datname::text as name from pg_database where not datistemplate union all select rolname from pg_roles where rolname !~ '^pg_') a";
        given.psql("postgres", sql).trim().to_owned()
    };
    let before = content();
    let said = on_server(&site, &url);
    assert_eq!((said.code, &said.json()["level"]), (0, &json!(6)), "{said}");
    let target = of(&said.json(), "orders")["target"].to_string();
    assert!(target.contains("a server that was given"), "{target}");
    assert_eq!(content(), before);
    // Killed in the middle, it leaves something, which is in no way of the next one.
    let mut killed = command(&site, &["drill", "given"]);
    let mut killed = killed.env("T_DRILL_URL", &url).spawn().unwrap();
    let restored = harness::poll(std::time::Duration::from_secs(60), || {
        content().contains(&role).then_some(())
    });
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert!(restored.is_some() && content() != before, "{}", content());
    let said = on_server(&site, &url);
    assert_eq!(said.code, 0, "{said}");
    assert_eq!(content(), before);
    nothing_is_left(&site);
    // Where anything else is, nothing is done.
    given.psql("postgres", "create database precious");
    let said = on_server(&site, &url);
    assert_eq!(said.code, 23, "{said}");
    assert!(
        said.stdout.contains("is not empty: it has the database precious"),
        "{said}"
    );
    assert!(content().contains("precious"));
    let said = on_server(&site, &site.server.url(""));
    assert_eq!(said.code, 23, "{said}");
    assert!(said.stdout.contains("is the one that was backed up"), "{said}");
    given.psql("postgres", "drop database precious");
    edit(&site, |policy| {
        policy
            .replace("keep_failed = \"0s\"", "keep_failed = \"1h\"")
            .replace("select count(*) from orders", "select 1 / 0")
    });
    let said = on_server(&site, &url);
    assert_eq!(said.code, 22, "{said}");
    assert!(said.stdout.contains("is never kept"), "{said}");
    assert_eq!(content(), before);
    assert_eq!(site.sql("select count(*) from orders"), "500");
    nothing_is_left(&site);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_takes_no_more_memory_than_it_may() {
    let site = site("[drill.orders]\nsources = [\"orders\"]\nkeep_failed = \"0s\"\nmemory = \"700 MiB\"\nchecks = [{ source = \"orders\", name = \"much\", sql = \"select length(repeat('x', 900000000)) > 0\" }]\n").await;
    let (code, report) = drill(&site, "orders");
    let orders = of(&report, "orders");
    assert_eq!((code, &orders["level"]), (22, &json!(4)), "{report:#}");
    let said = check(orders, "much")["detail"].as_str().unwrap().to_owned();
    assert!(said.contains("out of memory"), "{said}");
    nothing_is_left(&site);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_full_says_nothing_of_the_point() {
    let site = site("[drill.orders]\nsources = [\"orders\"]\n").await;
    // Little to dump, much to restore.
    site.sql(
        "create table wide as select 1::int2 as a from generate_series(1, 8000000); create index on wide (a)",
    );
    site.json(&["run", "orders"]);
    std::fs::create_dir_all(site.path("state/drills")).unwrap();
    let drill = command(&site, &["drill", "orders"]);
    let mut small = Command::new("unshare");
    small.arg("--mount");
    if !rustix::process::geteuid().is_root() {
        small.arg("--map-root-user");
    }
    let script = "mount -t tmpfs -o size=350m,mode=0700 none \"$0\" || exit 99; exec \"$@\"";
    small.args(["sh", "-c", script]).arg(site.path("state/drills"));
    small.arg(drill.get_program()).args(drill.get_args()).env_clear();
    for (name, value) in drill.get_envs() {
        small.env(name, value.unwrap());
    }
    let said = harness::run(&mut small);
    assert_eq!(said.code, 23, "{said}");
    let report = said.json();
    let restored = check(of(&report, "orders"), "it is restored");
    assert!(
        restored["actual"]
            .as_str()
            .unwrap()
            .contains("there is no room in"),
        "{restored}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drill_finds_both_programs_and_checks_beside_the_policy() {
    let site = site("[drill.both]\nsources = [\"orders\", \"app\"]\nbinaries = \"BINARIES\"\nchecks = [{ source = \"app\", name = \"our own\", command = [\"bin/check-app\"] }]\n").await;
    std::fs::create_dir(site.path("bin")).unwrap();
    let own = harness::write_file(
        site.directory.path(),
        "bin/check-app",
        "#!/bin/sh\ntest -f \"$POCKETBASE_DIR/data.db\"\n",
    );
    std::fs::set_permissions(&own, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let pocketbase = harness::binary("pocketbase").canonicalize().unwrap();
    edit(&site, |policy| {
        policy.replace("BINARIES", &pocketbase.parent().unwrap().display().to_string())
    });
    let (code, report) = drill(&site, "both");
    assert_eq!((code, &report["level"]), (0, &json!(6)), "{report:#}");
    assert_eq!(check(of(&report, "app"), "our own")["result"], "passed");
    nothing_is_left(&site);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_acts_by_itself_does_not() {
    let look = "import os, sqlite3; v = sqlite3.connect(os.environ['POCKETBASE_DIR'] + '/data.db').execute('select value from _params').fetchone()[0]; raise SystemExit(b'real.example' in (v if isinstance(v, bytes) else v.encode()))";
    let site = site(&format!("[drill.app]\nsources = [\"app\"]\ntimeout = \"60s\"\nkeep_failed = \"0s\"\nchecks = [{{ source = \"app\", name = \"settings\", command = [\"python3\", \"-c\", \"{look}\"] }}]\n")).await;
    let database = rusqlite::Connection::open(site.app.data_directory().join("data.db")).unwrap();
    database.busy_timeout(std::time::Duration::from_secs(10)).unwrap();
    // Whatever is changed is changed back, and it takes for ever.
    database
        .execute_batch(
            "create trigger back after update on _params begin
                 update _params set value = '{\"smtp\":{\"enabled\":true,\"host\":\"smtp.real.example\"}}';
                 select count(*) from (with recursive r(x) as (select 1 union all select x + 1 from r) select x from r);
             end",
        )
        .unwrap();
    site.json(&["run", "app"]);
    let (code, report) = drill(&site, "app");
    assert_eq!((code, &report["level"]), (0, &json!(6)), "{report:#}");
    nothing_is_left(&site);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tablespace_of_production_is_not_touched() {
    let server = PostgresServer::start_with(18, &["allow_in_place_tablespaces=on"]);
    let site = site("[drill.orders]\nsources = [\"orders\"]\nkeep_failed = \"0s\"\n").await;
    let database = server.create_database();
    server.psql("postgres", "create tablespace fast location ''");
    // Frozen: reading it changes no page.
    for sql in [
        "create table t tablespace fast as select generate_series(1, 5) n",
        "vacuum freeze t",
        "checkpoint",
    ] {
        server.psql(&database, sql);
    }
    let url = server.url(&database);
    let with = |mut command: Command| harness::run_ok(command.env("T_ORDERS_URL", &url)).json();
    with(site.backup(&["--json", "run", "orders"]));
    let place = server.data_directory().join("pg_tblspc");
    let before = harness::tree(&place);
    assert!(!before.is_empty());
    let report = with(command(&site, &["drill", "orders"]));
    assert_eq!(report["level"], 6, "{report:#}");
    server.psql(&database, "checkpoint");
    assert_eq!(harness::tree(&place), before);
    nothing_is_left(&site);
}
