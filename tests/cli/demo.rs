//! The demo, played.

use std::path::Path;
use std::process::{Command, Stdio};

use super::harness::{self, lifeboat, run_ok, temp_dir};

/// The demo with the parts that the tests have, in a directory that another user's server can pass.
fn demo(dir: &Path) -> Command {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o711)).unwrap();
    let mut command = lifeboat();
    command
        .arg("demo")
        .current_dir(dir)
        .env("TMPDIR", dir)
        .env(
            "LIFEBOAT_DEMO_POSTGRES_BIN",
            harness::project().join(".services/postgres/18/bin"),
        )
        .env("LIFEBOAT_DEMO_POCKETBASE", harness::binary("pocketbase"));
    command
}

#[test]
fn the_demo_plays_to_its_end_and_leaves_nothing() {
    let dir = temp_dir();
    let said = run_ok(&mut demo(dir.path()));
    for line in [
        "520 were there, 520 are restored: equal",
        "13 were there, 13 are restored: equal",
        "byte for byte the same",
    ] {
        assert!(said.stdout.contains(line), "{line}: {said}");
    }
    assert_eq!(
        std::fs::read_dir(dir.path()).unwrap().count(),
        0,
        "nothing is left"
    );
}

#[test]
fn an_interrupted_demo_ends_its_servers_and_leaves_nothing() {
    use std::io::{BufRead as _, BufReader};
    let dir = temp_dir();
    let mut child = demo(dir.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(
        out.any(|line| line.unwrap() == "$ backup init"),
        "it did not come that far"
    );
    let pid = i32::try_from(child.id())
        .ok()
        .and_then(rustix::process::Pid::from_raw)
        .unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    // Read on, or it would wait for room.
    out.for_each(drop);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(
        std::fs::read_dir(dir.path()).unwrap().count(),
        0,
        "nothing is left"
    );
}
