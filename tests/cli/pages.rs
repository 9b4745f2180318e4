//! Completions, manual pages, and what is written beside them; the units of packaging/.

use super::COMMANDS;
use super::harness::{lifeboat, run_ok, temp_dir};

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
    let shipped = super::harness::project().join("policies/example.toml");
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
