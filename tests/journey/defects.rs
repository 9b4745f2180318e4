//! Defects that a drill must catch: dumps that are less than they say, and indexes that lie.

use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::drills::{drill, edit, nothing_is_left, of, site};
use crate::harness::{self, write_file};
use crate::site::Site;

/// Client programs among which pg_dump is one that lies: it ends with 0, and gives what a script makes of the dump.
fn lying(site: &Site, name: &str, script: &str) -> PathBuf {
    let real = site.server.client_dir();
    let directory = site.path(name);
    std::fs::create_dir(&directory).unwrap();
    for program in ["pg_dumpall", "pg_restore", "psql"] {
        symlink(real.join(program), directory.join(program)).unwrap();
    }
    let dump = real.join("pg_dump");
    let text = format!(
        "#!/bin/sh\ncase \"$*\" in *--version*) exec {0} --version ;; esac\n{1}\n",
        dump.display(),
        script.replace("PG_DUMP", &dump.display().to_string())
    );
    let path = write_file(&directory, "pg_dump", text);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    directory
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
