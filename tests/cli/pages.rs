//! Completions, manual pages, and what is written beside them; the units of packaging/.

use super::COMMANDS;
use super::harness::{lifeboat, project, run_code, run_ok, temp_dir};

#[test]
fn completions_and_manual_pages() {
    for shell in ["bash", "zsh", "fish"] {
        let said = run_ok(lifeboat().args(["completions", shell]));
        assert!(
            said.stdout.contains("backup") && said.stdout.contains("max-gap"),
            "{shell}"
        );
    }
    let dir = temp_dir();
    let pages = dir.path().join("man/man1");
    let said = run_ok(lifeboat().args(["--json", "man"]).arg(&pages));
    for command in COMMANDS {
        let page = std::fs::read_to_string(pages.join(format!("backup-{command}.1"))).unwrap();
        assert!(page.contains("Example"), "{command}");
    }
    assert!(pages.join("backup.1").is_file() && pages.join("backup-hold-add.1").is_file());
    // Beside them, the policies that only a checkout has otherwise.
    let said = said.json();
    let (listed, policies) = (
        said["pages"].as_array().unwrap(),
        said["policies"].as_array().unwrap(),
    );
    assert_eq!(listed.len() + 1, std::fs::read_dir(&pages).unwrap().count());
    assert_eq!(
        policies.len(),
        std::fs::read_dir(pages.join("policies")).unwrap().count()
    );
    let shipped = project().join("policies/example.toml");
    assert_eq!(
        std::fs::read(pages.join("policies/example.toml")).unwrap(),
        std::fs::read(shipped).unwrap()
    );
    // What is meant to be pasted is neither filled nor hyphenated.
    let page = std::fs::read_to_string(pages.join("backup-restore.1")).unwrap();
    let examples = page.split(".nf\n").nth(1).unwrap().split(".fi").next().unwrap();
    assert!(page.starts_with(".nh\n"), "{page}");
    assert!(
        examples.contains("\n  backup restore orders \\-\\-at \\(aq2026\\-11\\-24 14:03\\(aq \\-\\-to postgres://restorer@db2/orders\n"),
        "{examples}"
    );
    assert!(examples.contains("WHEN: RFC 3339"), "{examples}");
}

/// A command that is understood gets as far as its policy, which is not there.
fn is_understood(place: &str, command: &str) {
    let mut words = command.split_whitespace();
    let program = words.next().unwrap();
    assert!(
        program == "backup" || program.ends_with("/backup"),
        "{place}: {command}"
    );
    let words: Vec<&str> = words.filter(|word| !word.starts_with("/etc/lifeboat/")).collect();
    let words = words.into_iter().filter(|word| *word != "--policy");
    let said = run_code(lifeboat().args(words).env("LIFEBOAT_POLICY", "/nonexistent"), 2);
    assert!(
        said.stderr.contains("can not read the policy"),
        "{place}: {command}: {said}"
    );
}

#[test]
fn the_units_and_cron_lines_call_what_there_is() {
    let directory = project().join("packaging/systemd");
    let mut services = 0;
    for entry in std::fs::read_dir(&directory).unwrap() {
        let path = entry.unwrap().path();
        let place = path.display().to_string();
        if path.extension().is_some_and(|e| e == "timer") {
            assert!(path.with_extension("service").is_file(), "{place} has no service");
            continue;
        }
        let unit = std::fs::read_to_string(&path).unwrap();
        // What runs all the time needs no timer.
        let timer = path.with_extension("timer").is_file();
        assert_eq!(timer, unit.contains("\nType=oneshot\n"), "{place}");
        let command = unit.lines().find_map(|l| l.strip_prefix("ExecStart=")).unwrap();
        is_understood(&place, &command.replace("%%", "%"));
        // No secret stands in a unit: it is a credential.
        assert!(
            unit.contains("LoadCredential=") && !unit.contains("PASSWORD"),
            "{place}"
        );
        services += 1;
    }
    assert_eq!(services, 6);
    let cron = std::fs::read_to_string(project().join("packaging/cron/lifeboat")).unwrap();
    let mut commands = 0;
    for line in cron.lines().map(|l| l.trim_start_matches('#')) {
        if !line.starts_with(|c: char| c.is_ascii_digit()) {
            continue;
        }
        let (_, command) = line.split_once("lifeboat  ").unwrap();
        for command in command.split("||") {
            let command = command.split('>').next().unwrap().replace("\\%", "%");
            is_understood(line, &command);
            commands += 1;
        }
    }
    assert_eq!(commands, 6);
}

#[test]
fn the_credentials_of_the_units_are_those_of_the_production_policy() {
    for unit in ["run", "daemon"] {
        credentials_of(unit);
    }
}

#[track_caller]
fn credentials_of(unit: &str) {
    let unit = format!("packaging/systemd/lifeboat-{unit}.service");
    let unit = std::fs::read_to_string(project().join(unit)).unwrap();
    let policy = std::fs::read_to_string(project().join("policies/production.toml")).unwrap();
    let mut given: Vec<&str> = unit
        .lines()
        .filter_map(|l| l.strip_prefix("LoadCredential=")?.split(':').next())
        .collect();
    let mut wanted: Vec<&str> = policy
        .split("credential = \"")
        .skip(1)
        .filter_map(|rest| rest.split('"').next())
        .collect();
    given.sort_unstable();
    wanted.sort_unstable();
    assert_eq!(given, wanted);
}
