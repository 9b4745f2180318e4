//! The rules, each a pure function; below them the samples that each one must find wrong.

use crate::code::{self, line_of, names_after, places};

/// The modules at the root of the crate, from the top down; one may import its own layer and those below.
const LAYERS: &[&[&str]] = &[
    &["cli", "fuzzing"],
    &["daemon"],
    &["jobs"],
    &["repository", "source", "notify"],
    &["store", "state", "policy", "sandbox"],
    &[
        "schedule",
        "drill",
        "retention",
        "recovery",
        "when",
        "types",
        "error",
        "clock",
        "secret",
        "progress",
    ],
];

/// Modules that decide and do not act.
const PURE: &[&str] = &["schedule", "drill", "retention", "recovery", "when", "types"];
/// What they may not name.
const IMPURE: &[(&str, &[&str])] = &[
    ("std::", &["fs", "net", "process", "env", "thread"]),
    ("crate::", &["clock"]),
];

/// A needle in code, the places where it may stand, and why only there.
const NAMES: &[(&[&str], &[&str], &str)] = &[
    (
        &[
            "aws_sdk*",
            "aws_config*",
            "aws_smithy*",
            "aws_types*",
            "aws_credential*",
        ],
        &["src/store/s3"],
        "only store/s3 names the AWS SDK",
    ),
    (
        &["tokio_postgres*", "postgres_protocol*", "postgres_types*"],
        &["src/source/postgres"],
        "only source/postgres names Postgres",
    ),
    (
        &[
            "Utc::now",
            "Local::now",
            "SystemTime::now",
            "Instant::now",
            "getrandom::*",
        ],
        &["src/clock.rs"],
        "time and randomness come from clock::World",
    ),
    (
        &["Key::from_text"],
        &["src/repository/layout", "src/store", "src/types"],
        "only repository/layout builds object keys",
    ),
    (
        &["println!", "eprintln!", "print!", "eprint!", "dbg!"],
        &["src/cli", "src/main.rs"],
        "only the command line prints",
    ),
    (
        &[".unwrap()", ".expect("],
        &[],
        "an error on the way is returned, not a panic",
    ),
];

/// Lines that a file may have.
const LINES_MAX: usize = 600;

/// A source file, its comments, texts and test items blanked.
pub struct SourceFile {
    /// Its path in the project.
    pub path: String,
    code: String,
    modules: Vec<String>,
}

impl SourceFile {
    /// Reads one.
    pub fn new(path: &str, text: &str) -> Self {
        let (code, modules) = code::without_tests(&code::without_comments_and_texts(text));
        Self {
            path: path.to_owned(),
            code,
            modules,
        }
    }

    /// The paths, without `.rs`, of the test modules it declares.
    pub fn test_modules(&self) -> Vec<String> {
        let folder = self
            .path
            .strip_suffix("/mod.rs")
            .or_else(|| self.path.strip_suffix("/lib.rs"))
            .or_else(|| self.path.strip_suffix(".rs"))
            .unwrap_or(&self.path);
        self.modules
            .iter()
            .map(|name| format!("{folder}/{name}"))
            .collect()
    }

    /// The module at the root of the crate that it belongs to.
    fn module(&self) -> &str {
        let inside = self.path.strip_prefix("src/").unwrap_or(&self.path);
        inside.split('/').next().unwrap_or(inside).trim_end_matches(".rs")
    }

    /// How many `super::` lead from its top to the root of the crate.
    fn depth(&self) -> usize {
        let steps = self.path.trim_start_matches("src/").split('/').count();
        if self.path.ends_with("/mod.rs") {
            steps - 1
        } else {
            steps
        }
    }

    fn problem(&self, line: usize, what: impl std::fmt::Display) -> String {
        format!("{}:{line}: {what}", self.path)
    }
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|names| names.contains(&module))
}

/// Imports go down only.
pub fn arrows(file: &SourceFile) -> Vec<String> {
    let module = file.module();
    if ["lib", "main"].contains(&module) {
        return Vec::new();
    }
    let Some(own) = layer(module) else {
        return vec![file.problem(
            1,
            format!("{module} has no layer: give it one in tests/tidy/rules.rs"),
        )];
    };
    let mut used = names_after(&file.code, "crate::");
    // Written as climbing out of the module, it is the same arrow.
    let climb = "super::".repeat(file.depth());
    used.extend(
        names_after(&file.code, &climb)
            .into_iter()
            .filter(|(_, name)| layer(name).is_some()),
    );
    used.iter()
        .filter_map(|(line, name)| match layer(name) {
            None => Some(file.problem(*line, format!("crate::{name} has no layer"))),
            Some(other) if other < own => {
                Some(file.problem(*line, format!("{module} imports {name}, which stands above it")))
            }
            Some(_) => None,
        })
        .collect()
}

/// Modules that decide do no I/O, read no clock and know no runtime.
pub fn pure(file: &SourceFile) -> Vec<String> {
    if !PURE.contains(&file.module()) {
        return Vec::new();
    }
    let mut problems: Vec<String> = ["tokio", "reqwest", "rusqlite", "rustix"]
        .iter()
        .flat_map(|name| places(&file.code, name).into_iter().map(move |at| (at, name)))
        .map(|(at, name)| file.problem(line_of(&file.code, at), format!("a pure module names {name}")))
        .collect();
    for (prefix, names) in IMPURE {
        problems.extend(
            names_after(&file.code, prefix)
                .into_iter()
                .filter(|(_, name)| names.contains(&name.as_str()))
                .map(|(line, name)| file.problem(line, format!("a pure module names {prefix}{name}"))),
        );
    }
    problems
}

/// Names that belong in one place stand there alone.
pub fn names(file: &SourceFile) -> Vec<String> {
    NAMES
        .iter()
        .filter(|(_, homes, _)| !homes.iter().any(|home| file.path.starts_with(home)))
        .flat_map(|(needles, _, why)| needles.iter().map(move |needle| (needle, why)))
        .flat_map(|(needle, why)| {
            places(&file.code, needle)
                .into_iter()
                .map(move |at| file.problem(line_of(&file.code, at), format!("{needle}: {why}")))
        })
        .collect()
}

/// Work that is left for later is an issue, not a word in a file.
pub fn unfinished(path: &str, text: &str) -> Vec<String> {
    // Put together here, so that this file does not name them itself.
    let words = [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("to", "do!"),
        concat!("unimpl", "emented!"),
    ];
    words
        .iter()
        .flat_map(|word| places(text, word).into_iter().map(move |at| (word, at)))
        .map(|(word, at)| format!("{path}:{}: {word}", line_of(text, at)))
        .collect()
}

/// A long file is split along its seams.
pub fn long(path: &str, text: &str) -> Vec<String> {
    let lines = text.lines().count();
    if lines <= LINES_MAX {
        return Vec::new();
    }
    vec![format!(
        "{path}: {lines} lines, more than {LINES_MAX}: split it along its seams"
    )]
}

/// No path of one machine, no host that serves packages: they are nobody's who reads this.
pub fn foreign(path: &str, text: &str) -> Vec<String> {
    let words = [
        concat!("/wo", "rk/"),
        concat!("crates", ".io"),
        concat!("pypi", ".org"),
        concat!("python", "hosted.org"),
        concat!("npmjs", ".org"),
        concat!("deb.deb", "ian.org"),
    ];
    words
        .iter()
        .filter_map(|word| {
            text.find(word)
                .map(|at| format!("{path}:{}: {word}", line_of(text, at)))
        })
        .collect()
}

/// Whether a script is bash's.
pub fn is_bash(text: &str) -> bool {
    text.lines()
        .next()
        .is_some_and(|line| line.starts_with("#!") && line.contains("bash"))
}

/// What names its interpreter can be run.
pub fn script_mode(path: &str, text: &str, mode: u32) -> Vec<String> {
    match (text.starts_with("#!"), mode & 0o111 == 0o111) {
        (true, false) => vec![format!("{path}: not executable")],
        (false, true) => vec![format!("{path}: executable, and names no interpreter")],
        _ => Vec::new(),
    }
}

mod seen_failing {
    use super::*;

    fn found(rule: fn(&SourceFile) -> Vec<String>, path: &str, text: &str) -> Vec<String> {
        rule(&SourceFile::new(path, text))
    }

    #[test]
    fn an_import_of_what_stands_above() {
        for (path, text) in [
            ("src/store/s3.rs", "use crate::repository::Pack;"),
            ("src/types/ids.rs", "fn f() { crate::store::open() }"),
            (
                "src/jobs/run.rs",
                "use crate::{\n    error::Error,\n    cli::{table, json},\n};",
            ),
            ("src/source/mod.rs", "use super::jobs::Plan;"),
            (
                "src/source/postgres/wal.rs",
                "use super::super::super::daemon::Tick;",
            ),
            ("src/novelty.rs", "fn f() {}"),
            ("src/jobs/run.rs", "use crate::novelty::X;"),
        ] {
            assert_eq!(found(arrows, path, text).len(), 1, "{path}: {text}");
        }
        for (path, text) in [
            (
                "src/jobs/run.rs",
                "use crate::{error::Error, repository::{cli, Pack}};",
            ),
            (
                "src/store/mod.rs",
                "/// See [`crate::cli`].\nuse crate::policy::Policy;",
            ),
            (
                "src/store/mod.rs",
                "#[cfg(test)]\nmod tests {\n use crate::cli::X;\n}",
            ),
            (
                "src/source/postgres/wal.rs",
                "use super::client::Client; use super::super::jobs;",
            ),
            ("src/lib.rs", "pub use crate::cli::main;"),
            (
                "src/store/mod.rs",
                "const C: char = '\"'; const T: &str = r#\"crate::cli::X \"\"#;",
            ),
        ] {
            assert_eq!(found(arrows, path, text), [""; 0], "{path}");
        }
    }

    #[test]
    fn a_pure_module_that_acts() {
        for text in [
            "use std::{collections::BTreeMap, fs};",
            "use std::fs::File;",
            "use crate::clock::World;",
            "async fn f() { tokio::time::sleep(d).await }",
        ] {
            assert_eq!(found(pure, "src/retention.rs", text).len(), 1, "{text}");
            assert_eq!(found(pure, "src/schedule/zones.rs", text).len(), 1, "{text}");
            assert_eq!(found(pure, "src/jobs/run.rs", text).len(), 0, "{text}");
        }
        assert_eq!(
            found(pure, "src/when.rs", "use std::fmt; use crate::error::Error;").len(),
            0
        );
    }

    #[test]
    fn a_name_out_of_its_place() {
        for (path, text, home) in [
            (
                "src/jobs/run.rs",
                "use aws_sdk_s3::Client;",
                "src/store/s3/mod.rs",
            ),
            (
                "src/store/mod.rs",
                "use tokio_postgres::NoTls;",
                "src/source/postgres/logical.rs",
            ),
            ("src/jobs/run.rs", "let t = chrono::Utc::now();", "src/clock.rs"),
            (
                "src/jobs/run.rs",
                "let t = tokio::time::Instant::now();",
                "src/clock.rs",
            ),
            (
                "src/jobs/run.rs",
                "Key::from_text(name)",
                "src/repository/layout.rs",
            ),
            ("src/jobs/run.rs", "println!(\"hello\")", "src/cli/run.rs"),
            ("src/jobs/run.rs", "f().unwrap();", ""),
            ("src/jobs/run.rs", "f()\n    .expect(\"told\");", ""),
        ] {
            assert_eq!(found(names, path, text).len(), 1, "{text}");
            if !home.is_empty() {
                assert_eq!(found(names, home, text), [""; 0], "{text}");
            }
        }
        for text in [
            "f().unwrap_or(0); // never .unwrap()",
            "let s = \"println!\"; s.expect_none();",
            "fn f() {}\n#[cfg(test)]\nmod tests {\n fn g() { if true { f().unwrap() } }\n}",
            "rustls::crypto::aws_lc_rs::default_provider()",
            "write!(out, \"Utc::now\"); writeln!(out)",
            "fn f<'a>(x: &'a str) -> char { '\\'' } // .unwrap()",
        ] {
            assert_eq!(found(names, "src/jobs/run.rs", text), [""; 0], "{text}");
        }
        // What stands after a test module is looked at again.
        let after = "#[cfg(test)]\nmod tests { fn g() {} }\nfn f() { g().unwrap() }";
        assert_eq!(
            found(names, "src/jobs/run.rs", after),
            ["src/jobs/run.rs:3: .unwrap(): an error on the way is returned, not a panic"]
        );
    }

    #[test]
    fn a_test_module_in_a_file_of_its_own_is_known() {
        let file = SourceFile::new("src/store/mod.rs", "#[cfg(test)]\nmod tests;\nmod real;");
        assert_eq!(file.test_modules(), ["src/store/tests"]);
        let file = SourceFile::new("src/when.rs", "#[cfg(test)]\npub(crate) mod cases;");
        assert_eq!(file.test_modules(), ["src/when/cases"]);
        assert_eq!(
            SourceFile::new("src/lib.rs", "#[cfg(test)] mod t;").test_modules(),
            ["src/t"]
        );
    }

    #[test]
    fn a_word_that_puts_work_off() {
        for word in [
            concat!("// TO", "DO: later"),
            concat!("# FIX", "ME"),
            concat!("to", "do!()"),
        ] {
            assert_eq!(unfinished("src/a.rs", word).len(), 1, "{word}");
        }
        assert_eq!(unfinished("src/a.rs", "MASTODON todo_list"), [""; 0]);
    }

    #[test]
    fn a_file_that_has_outgrown_itself() {
        assert_eq!(long("src/a.rs", &"\n".repeat(LINES_MAX + 1)).len(), 1);
        assert_eq!(long("src/a.rs", &"\n".repeat(LINES_MAX)).len(), 0);
    }

    #[test]
    fn a_word_of_another_place() {
        for word in [
            concat!("see /wo", "rk/main"),
            concat!("https://pypi", ".org/simple"),
        ] {
            assert_eq!(foreign("README.md", word).len(), 1, "{word}");
        }
        assert_eq!(foreign("README.md", "workspace, crates, PyPI"), [""; 0]);
    }

    #[test]
    fn a_script_that_can_not_be_run() {
        assert_eq!(script_mode("scripts/x", "#!/usr/bin/env bash\n", 0o644).len(), 1);
        assert_eq!(script_mode("scripts/x.md", "# Title\n", 0o755).len(), 1);
        assert_eq!(script_mode("scripts/x", "#!/usr/bin/env bash\n", 0o755).len(), 0);
        assert_eq!(script_mode("scripts/x.md", "# Title\n", 0o644).len(), 0);
        assert!(is_bash("#!/usr/bin/env bash\n") && !is_bash("#!/usr/bin/env python3\n"));
    }
}
