//! Defects that a drill must catch: dumps that are less than they say, and indexes that lie.

use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::drills::{command, drill, edit, nothing_is_left, of, site};
use crate::harness::{self, write_file};
use crate::site::Site;

/// Client programs among which one is a script of ours: it answers `--version` as the real one does.
fn with_script(site: &Site, name: &str, program: &str, script: &str) -> PathBuf {
    let real = site.server.client_dir();
    let directory = site.path(name);
    std::fs::create_dir(&directory).unwrap();
    for other in ["pg_dump", "pg_dumpall", "pg_restore", "psql"] {
        if other != program {
            symlink(real.join(other), directory.join(other)).unwrap();
        }
    }
    let program_of_it = real.join(program);
    let text = format!(
        "#!/bin/sh\ncase \"$*\" in *--version*) exec {} --version ;; esac\n{script}\n",
        program_of_it.display()
    );
    let path = write_file(&directory, program, text);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    directory
}

/// A pg_dump that lies: it ends with 0, and gives what a script makes of the dump.
fn lying(site: &Site, name: &str, script: &str) -> PathBuf {
    let dump = site.server.client_dir().join("pg_dump");
    let script = script.replace("PG_DUMP", &dump.display().to_string());
    with_script(site, name, "pg_dump", &script)
}

/// A pg_restore that does something more, in SQL, once it is done.
fn spoiling(site: &Site, name: &str, sql: &str) -> PathBuf {
    let real = site.server.client_dir();
    let script = format!(
        "{} \"$@\" || exit\ncase \"$*\" in *post-data*|*dbname*) exec {} -qXc \"{sql}\" ;; esac",
        real.join("pg_restore").display(),
        real.join("psql").display(),
    );
    with_script(site, name, "pg_restore", &script)
}

fn failing(source: &Value) -> String {
    let checks = source["checks"].as_array().unwrap().iter();
    let failed: Vec<_> = checks.filter(|c| c["result"] != "passed").collect();
    serde_json::to_string(&failed).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_that_is_less_than_it_says_is_caught() {
    let site = site("[drill.orders]\nsources = [\"orders\"]\nkeep_failed = \"0s\"\n").await;
    let honest = format!("client_dir = \"{}\"", site.server.client_dir().display());
    for (name, script, level, words) in [
        // What a backup itself would not take.
        ("empty", "exit 0", None, ""),
        (
            "text",
            "echo 'pg_dump: error: connection to server failed'",
            None,
            "",
        ),
        ("cut", "PG_DUMP \"$@\" | head -c 1500", None, ""),
        // What it can not see: the dump is whole, and holds less than the tables did.
        (
            "rows",
            "exec PG_DUMP --exclude-table-data=public.orders \"$@\"",
            Some(3),
            "orders",
        ),
        (
            "sequence",
            "exec PG_DUMP --exclude-table-data=public.orders_id_seq \"$@\"",
            Some(3),
            "orders_id_seq",
        ),
        (
            "index",
            "exec PG_DUMP --exclude-table-data=nothing --no-comments \"$@\"",
            Some(6),
            "",
        ),
    ] {
        let directory = lying(&site, name, script);
        let lies = format!("client_dir = \"{}\"", directory.display());
        edit(&site, |policy| policy.replace(&honest, &lies));
        let ran = harness::run(&mut site.backup(&["--json", "run", "orders"]));
        edit(&site, |policy| policy.replace(&lies, &honest));
        let Some(level) = level else {
            // Nothing is committed, or the drill tells.
            if ran.code == 0 {
                let (code, report) = drill(&site, "orders");
                assert_eq!(code, 22, "{name}: {report:#}");
                assert!(
                    of(&report, "orders")["level"].as_u64().unwrap() <= 2,
                    "{name}: {report:#}"
                );
            }
            continue;
        };
        assert_eq!(ran.code, 0, "{name}: {ran}");
        let (code, report) = drill(&site, "orders");
        let orders = of(&report, "orders");
        if level == 6 {
            assert_eq!(code, 0, "{name}: {report:#}");
            continue;
        }
        assert_eq!(
            (code, &orders["level"]),
            (22, &json!(level)),
            "{name}: {report:#}"
        );
        assert!(failing(orders).contains(words), "{name}: {}", failing(orders));
    }
    nothing_is_left(&site);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_does_not_hold_its_order_is_caught() {
    let site = site("[drill.orders]\nsources = [\"orders\"]\nkeep_failed = \"0s\"\n").await;
    // An order that is another one each time it is asked.
    site.sql(
        "create function chaos(a int, b int) returns int language sql immutable as
             'select case when random() < 0.5 then -1 else 1 end';
         create operator class chaos_ops for type int using btree as
             operator 1 <, operator 2 <=, operator 3 =, operator 4 >=, operator 5 >, function 1 chaos(int, int);
         create index broken on orders (id chaos_ops)",
    );
    site.json(&["run", "orders"]);
    let (code, report) = drill(&site, "orders");
    let orders = of(&report, "orders");
    assert_eq!((code, &orders["level"]), (22, &json!(4)), "{report:#}");
    let failed = failing(orders);
    assert!(
        failed.contains("amcheck of") && failed.contains("broken"),
        "{failed}"
    );
    nothing_is_left(&site);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_after_a_restore_is_caught_at_level_four() {
    let site = site("[drill.orders]\nsources = [\"orders\"]\nkeep_failed = \"0s\"\n").await;
    let role = format!("clerk_{}", harness::random_hex(4));
    site.sql(&format!(
        "create extension citext; create role {role} login; grant select on orders to {role};
         create function twice(n int) returns int language sql as 'select n * 2'"
    ));
    site.json(&["run", "orders"]);
    let honest = format!("client_dir = \"{}\"", site.server.client_dir().display());
    for (name, sql, words) in [
        (
            "role",
            format!("drop owned by {role}; drop role {role}"),
            format!("{role}\\\" is missing"),
        ),
        (
            "rights",
            format!("alter role {role} superuser"),
            format!("{role}\\\" has other rights"),
        ),
        (
            "extension",
            "drop extension citext cascade".to_owned(),
            "extension \\\"citext\\\" is missing".to_owned(),
        ),
        (
            "rows",
            "delete from orders where id > 400".to_owned(),
            "400 rows, recorded are 500".to_owned(),
        ),
        (
            "function",
            "create or replace function twice(n int) returns int language sql as 'select n * 3'".to_owned(),
            "its schema has the digest".to_owned(),
        ),
    ] {
        let directory = spoiling(&site, name, &sql);
        let lies = format!("client_dir = \"{}\"", directory.display());
        edit(&site, |policy| policy.replace(&honest, &lies));
        let (code, report) = drill(&site, "orders");
        edit(&site, |policy| policy.replace(&lies, &honest));
        let orders = of(&report, "orders");
        assert_eq!((code, &orders["level"]), (22, &json!(3)), "{name}: {report:#}");
        assert!(failing(orders).contains(&words), "{name}: {}", failing(orders));
    }
    let (code, report) = drill(&site, "orders");
    assert_eq!(code, 0, "{report:#}");
    // That a new server gets the role is nothing to be told; that nobody can log in as it is.
    let told = of(&report, "orders")["warnings"].to_string();
    assert!(
        !told.contains("created the missing roles") && told.contains("no recorded password"),
        "{told}"
    );
    nothing_is_left(&site);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_an_extension_is_told_with_what_to_install() {
    let site = site("[drill.orders]\nsources = [\"orders\"]\nbinaries = \"BINARIES\"\n").await;
    site.sql("create extension citext");
    site.json(&["run", "orders"]);
    // The same programs with their libraries, without it.
    let bin = site.server.bin_dir().canonicalize().unwrap();
    let services = std::path::Path::new("/usr/lib/postgresql");
    let whole = if bin.starts_with(services) {
        bin.parent().unwrap()
    } else {
        bin.ancestors().nth(3).unwrap()
    };
    let lesser = site.path("lesser");
    harness::run_ok(std::process::Command::new("cp").arg("-r").arg(whole).arg(&lesser));
    harness::run_ok(
        std::process::Command::new("find")
            .arg(&lesser)
            .args(["-name", "citext*", "-delete"]),
    );
    let bin = lesser.join(bin.strip_prefix(whole).unwrap());
    edit(&site, |policy| {
        policy.replace("BINARIES", &bin.display().to_string())
    });
    let (code, report) = drill(&site, "orders");
    assert_eq!(code, 23, "{report:#}");
    let said = failing(of(&report, "orders"));
    assert!(said.contains("citext") && said.contains("Install"), "{said}");
    nothing_is_left(&site);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_page_and_another_collation_are_caught_at_level_six() {
    let site = site("[drill.orders]\nsources = [\"orders\"]\nkeep_failed = \"0s\"\nchecks = [{ source = \"orders\", name = \"damage\", sql = \"select damage()\" }]\n").await;
    // Done in the scratch server, after the facts were compared.
    for (name, statement, words) in [
        (
            "page",
            "checkpoint; execute format('copy (select 1) to program $x$printf XXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXX | dd of=%s bs=1 seek=8 conv=notrunc status=none$x$', pg_relation_filepath('public.orders'));
             perform public.pg_buffercache_evict_relation('public.orders'::regclass)",
            "orders",
        ),
        (
            "collation",
            "update pg_database set datcollversion = 'an old one'",
            "an old one",
        ),
    ] {
        site.sql(&format!(
            "create extension if not exists pg_buffercache;
             create or replace procedure settle() language plpgsql as $f$ begin perform 1; end $f$;
             create or replace function damage() returns bool language plpgsql as $f$
             begin
                 {};
                 return true;
             end $f$",
            statement.replace("checkpoint; execute", "execute 'checkpoint'; execute")
        ));
        site.json(&["run", "orders"]);
        let (code, report) = drill(&site, "orders");
        let orders = of(&report, "orders");
        assert_eq!((code, &orders["level"]), (22, &json!(5)), "{name}: {report:#}");
        assert!(failing(orders).contains(words), "{name}: {}", failing(orders));
    }
    nothing_is_left(&site);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_is_not_whole_is_caught_at_level_four() {
    let site = site("[drill.app]\nsources = [\"app\"]\nkeep_failed = \"0s\"\n").await;
    let data = site.app.data_directory().to_owned();
    let database = rusqlite::Connection::open(data.join("data.db")).unwrap();
    database.busy_timeout(std::time::Duration::from_secs(10)).unwrap();
    let file: String = database
        .query_row("select doc from notes where doc <> '' limit 1", [], |row| {
            row.get(0)
        })
        .unwrap();
    let path = harness::tree(&data.join("storage"))
        .into_iter()
        .map(|(name, _)| data.join("storage").join(name))
        .find(|path| path.ends_with(&file))
        .unwrap();
    let judge = |what: &str, words: &str| {
        let ran = harness::run(&mut site.backup(&["--json", "run", "app"]));
        if ran.code != 0 {
            // The backup itself tells, and there is no new point.
            assert!(ran.to_string().contains(words), "{what}: {ran}");
            return;
        }
        let (code, report) = drill(&site, "app");
        let app = of(&report, "app");
        assert_eq!((code, &app["level"]), (22, &json!(3)), "{what}: {report:#}");
        assert!(failing(app).contains(words), "{what}: {}", failing(app));
    };
    let content = std::fs::read(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    judge("a missing file", &file);
    // What is not in a point by the policy is not missing, and not proven.
    edit(&site, |policy| {
        policy.replace("kind = \"pocketbase\"", "kind = \"pocketbase\"\nstorage = false")
    });
    site.json(&["run", "app"]);
    let (code, report) = drill(&site, "app");
    assert_eq!(code, 0, "{report:#}");
    assert!(
        of(&report, "app")["not_tested"]
            .to_string()
            .contains("the policy leaves storage out"),
        "{report:#}"
    );
    edit(&site, |policy| policy.replace("\nstorage = false", ""));
    std::fs::write(&path, content).unwrap();
    database
        .execute("update notes set doc = 'nowhere.txt' where doc = ?1", [&file])
        .unwrap();
    judge("a row that points to no file", "nowhere.txt");
    database
        .execute("update notes set doc = ?1 where doc = 'nowhere.txt'", [&file])
        .unwrap();
    site.json(&["run", "app"]);
    assert_eq!(drill(&site, "app").0, 0);
    nothing_is_left(&site);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_settings_key_that_does_not_fit_is_caught() {
    let site = site("[drill.app]\nsources = [\"app\"]\nkeep_failed = \"0s\"\n").await;
    let data = site.path("sealed");
    let key = harness::random_hex(16);
    harness::run_ok(
        std::process::Command::new(harness::binary("pocketbase"))
            .args(["--encryptionEnv", "T_SETTINGS_KEY", "--dir"])
            .arg(&data)
            .args(["superuser", "upsert", "a@example.com", &harness::random_hex(8)])
            .env("T_SETTINGS_KEY", &key),
    );
    let old = format!("path = \"{}\"", site.app.data_directory().display());
    let new = format!("path = \"{}\"", data.display());
    edit(&site, |policy| policy.replace(&old, &new));
    site.json(&["run", "app"]);
    let (code, report) = drill(&site, "app");
    let app = of(&report, "app");
    assert_eq!((code, &app["level"]), (23, &json!(4)), "{report:#}");
    assert!(failing(app).contains("Set settings_key"), "{app}");
    edit(&site, |policy| {
        policy.replace(
            &new,
            &format!("{new}\nsettings_key = {{ env = \"T_SETTINGS_KEY\" }}"),
        )
    });
    for (key, code, level) in [(harness::random_hex(16), 22, 4), (key, 0, 6)] {
        let said = harness::run(command(&site, &["drill", "app"]).env("T_SETTINGS_KEY", key));
        assert_eq!(
            (said.code, &said.json()["level"]),
            (code, &json!(level)),
            "{said}"
        );
    }
    nothing_is_left(&site);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bit_in_any_object_is_caught() {
    let site = site("[drill.app]\nsources = [\"app\"]\nkeep_failed = \"0s\"\n").await;
    let repository = site.path("repository");
    let mut looked = Vec::new();
    for (name, bytes) in harness::tree(&repository) {
        // Of other sources, or what describes the repository and no point.
        if !name.starts_with("sources/app/") && !name.starts_with("generations/") && !name.contains("/app/") {
            continue;
        }
        let class = name.rsplit('/').next().unwrap().to_owned();
        let path = repository.join(&name);
        let mut changed = bytes.clone();
        let middle = changed.len() / 2;
        changed[middle] ^= 0x10;
        std::fs::write(&path, changed).unwrap();
        let said = harness::run(&mut command(&site, &["drill", "app"]));
        assert!(
            said.code == 22 || said.code == 23 && class.contains("wrap"),
            "{name}: {said}"
        );
        std::fs::write(&path, bytes).unwrap();
        looked.push(class);
    }
    assert!(looked.len() >= 4, "{looked:?}");
    site.json(&["verify"]);
    assert_eq!(drill(&site, "app").0, 0, "{looked:?}");
    nothing_is_left(&site);
}
