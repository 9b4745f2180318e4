//! The house rules of DESIGN and ARCHITECTURE, held by a test: which part may import which, where a clock is
//! read, what is printed where, and that nothing unfinished is left lying about.
//!
//! Each rule is a pure function from a file to what is wrong in it, and is seen failing on a bad sample.
#![allow(clippy::unwrap_used)]

#[path = "tidy/code.rs"]
mod code;
#[path = "tidy/packaging.rs"]
mod packaging;
#[path = "tidy/rules.rs"]
mod rules;
#[path = "tidy/step.rs"]
mod step;

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use rules::SourceFile;

fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file of the project by its path inside, sorted; not what builds and installs leave there.
fn files() -> Vec<(String, PathBuf)> {
    let mut found = Vec::new();
    let mut left = vec![project().to_path_buf()];
    while let Some(dir) = left.pop() {
        for entry in std::fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path
                .strip_prefix(project())
                .unwrap()
                .to_string_lossy()
                .into_owned();
            if [".git", "target", ".services"].contains(&name.as_str()) || name.contains("__pycache__") {
                continue;
            }
            if path.is_dir() && !path.is_symlink() {
                left.push(path);
            } else {
                found.push((name, path));
            }
        }
    }
    found.sort();
    found
}

fn texts_under(folders: &[&str]) -> Vec<(String, String)> {
    files()
        .into_iter()
        .filter(|(name, _)| folders.iter().any(|folder| name.starts_with(folder)))
        .filter_map(|(name, path)| Some((name, String::from_utf8(std::fs::read(path).ok()?).ok()?)))
        .collect()
}

/// The sources of the crate, tests left out.
fn sources() -> Vec<SourceFile> {
    let all: Vec<SourceFile> = texts_under(&["src/"])
        .into_iter()
        .filter(|(name, _)| name.ends_with(".rs"))
        .map(|(name, text)| SourceFile::new(&name, &text))
        .collect();
    let tests: BTreeSet<String> = all.iter().flat_map(SourceFile::test_modules).collect();
    all.into_iter()
        .filter(|file| {
            !tests
                .iter()
                .any(|t| file.path == format!("{t}.rs") || file.path.starts_with(&format!("{t}/")))
        })
        .collect()
}

#[track_caller]
fn assert_tidy(problems: Vec<String>) {
    assert!(
        problems.is_empty(),
        "{} untidy:\n{}",
        problems.len(),
        problems.join("\n")
    );
}

fn each_source(rule: impl Fn(&SourceFile) -> Vec<String>) -> Vec<String> {
    let sources = sources();
    assert!(sources.len() > 10, "no sources found");
    sources.iter().flat_map(rule).collect()
}

#[test]
fn imports_go_down_only() {
    assert_tidy(each_source(rules::arrows));
}

#[test]
fn pure_modules_touch_nothing() {
    assert_tidy(each_source(rules::pure));
}

#[test]
fn names_stay_in_their_places() {
    assert_tidy(each_source(rules::names));
}

#[test]
fn nothing_unfinished_is_left() {
    let all = texts_under(&["src/", "tests/", "scripts/", ".ci/"]);
    assert_tidy(
        all.iter()
            .flat_map(|(path, text)| rules::unfinished(path, text))
            .collect(),
    );
}

#[test]
fn files_stay_short() {
    let all = texts_under(&["src/", "tests/"]);
    let rust = all.iter().filter(|(path, _)| path.ends_with(".rs"));
    assert_tidy(rust.flat_map(|(path, text)| rules::long(path, text)).collect());
}

#[test]
fn the_project_speaks_of_itself_alone() {
    let mut problems = Vec::new();
    for (name, path) in files() {
        if !name.ends_with("Cargo.lock") && !path.is_symlink() {
            let bytes = std::fs::read(path).unwrap();
            problems.extend(rules::foreign(&name, &String::from_utf8_lossy(&bytes)));
        }
    }
    assert_tidy(problems);
}

#[test]
fn scripts_are_sound() {
    let mut problems = Vec::new();
    let mut seen = 0;
    for (name, path) in files() {
        if !name.starts_with("scripts/") && name != ".ci/run" {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        problems.extend(rules::script_mode(&name, &text, mode));
        if rules::is_bash(&text) {
            seen += 1;
            let output = std::process::Command::new("bash")
                .arg("-n")
                .arg(&path)
                .output()
                .unwrap();
            if !output.status.success() {
                problems.push(format!("{name}: {}", String::from_utf8_lossy(&output.stderr)));
            }
        }
    }
    assert!(seen >= 3, "no scripts found");
    assert_tidy(problems);
}

#[test]
fn compose_and_services_are_in_step() {
    let read = |name: &str| std::fs::read_to_string(project().join(name)).unwrap();
    assert_tidy(step::out_of_step(
        &read("scripts/services"),
        &read("docker-compose.test.yml"),
    ));
}
