//! SIGTERM while the store hangs: what only reads ends at once, what writes after a moment to clean up.

use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;

use super::Site;
use super::harness::{lifeboat, write_file};

/// A store that takes a connection and never answers, and a command that is told to end while it waits for it: its exit
/// code, its document, and how long it took to end.
fn ended_while_the_store_hangs(arguments: &[&str], policy: Option<&Site>) -> (Option<i32>, Value, Duration) {
    let store = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let endpoint = format!("http://{}", store.local_addr().unwrap());
    let mut command = lifeboat();
    if let Some(site) = policy {
        let text = std::fs::read_to_string(site.path("policy.toml")).unwrap();
        let own = format!("url = \"file://{}/repository\"", site.dir.path().display());
        assert!(text.contains(&own));
        let away = format!("url = \"s3://bucket/x\"\nendpoint = \"{endpoint}\"\nregion = \"us-east-1\"");
        write_file(site.dir.path(), "hanging.toml", text.replace(&own, &away));
        command.arg("--policy").arg(site.path("hanging.toml"));
    }
    let child = command
        .arg("--json")
        .args(arguments)
        .env("AWS_ENDPOINT_URL", endpoint)
        .env("AWS_REGION", "us-east-1")
        .env("AWS_ACCESS_KEY_ID", "id")
        .env("AWS_SECRET_ACCESS_KEY", "secret")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let _connection = store.accept().unwrap();
    let begun = std::time::Instant::now();
    let pid = i32::try_from(child.id())
        .ok()
        .and_then(rustix::process::Pid::from_raw)
        .unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let output = child.wait_with_output().unwrap();
    let document = serde_json::from_slice(&output.stdout).unwrap();
    (output.status.code(), document, begun.elapsed())
}

#[test]
fn an_interrupt_ends_what_only_reads_at_once() {
    let plan = [
        "restore",
        "app",
        "--at",
        "latest",
        "--dry-run",
        "--repository",
        "s3://bucket/x",
    ];
    let (code, document, took) = ended_while_the_store_hangs(&plan, None);
    assert_eq!(code, Some(130));
    assert!(took < Duration::from_secs(3), "{took:?}");
    assert_eq!(document["error"]["code"], "interrupted");
}

#[test]
fn an_interrupt_ends_what_writes_after_a_moment_though_the_store_hangs() {
    std::thread::scope(|scope| {
        let commands: [&[&str]; 4] = [
            &["run", "app"],
            &["prune", "--dry-run"],
            &["hold", "add", "01ARZ3NDEKTSV4RRFFQ69G5FAV", "--why", "x"],
            &["init"],
        ];
        for arguments in commands {
            scope.spawn(move || {
                let (code, document, took) = ended_while_the_store_hangs(arguments, Some(&Site::new()));
                assert_eq!(code, Some(130), "{arguments:?}: {document}");
                assert!(took < Duration::from_secs(20), "{arguments:?}: {took:?}");
            });
        }
    });
}
