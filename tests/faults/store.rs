//! Stores on bad days, and what hosts do to each other.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::ffi::OsStrExt as _;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::seaweedfs::SeaweedFs;
use crate::harness::{self, Said, random_hex, run_ok, write_file};
use crate::signals::s3_policy;
use crate::site::{Site, digest, end, entries};

/// What a server in between does with a request.
#[derive(Clone, Debug)]
enum Action {
    /// Hands it on, and the answer back.
    Forward,
    /// Answers by itself.
    Answer(&'static str, &'static str),
    /// Hands it on and closes: it was done, and nobody is told.
    Lose,
    /// Hands it on and closes in the middle of the answer.
    Cut,
}

type Plan = Box<dyn FnMut(&str) -> Action + Send>;

/// A server in front of a real one.
struct Front {
    endpoint: String,
    plan: Arc<Mutex<Plan>>,
}

impl Front {
    fn new(behind: &str) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let plan: Arc<Mutex<Plan>> = Arc::new(Mutex::new(Box::new(|_| Action::Forward)));
        let (behind, shared) = (behind.trim_start_matches("http://").to_owned(), Arc::clone(&plan));
        std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let (behind, plan) = (behind.clone(), Arc::clone(&shared));
                // A client that goes away ends its thread.
                std::thread::spawn(move || drop(serve(stream, &behind, &plan)));
            }
        });
        Self { endpoint, plan }
    }

    /// What it does from now on, by the line of the request.
    fn does(&self, plan: impl FnMut(&str) -> Action + Send + 'static) {
        *self.plan.lock().unwrap() = Box::new(plan);
    }
}

/// One request of a connection.
fn serve(mut client: TcpStream, behind: &str, plan: &Mutex<Plan>) -> std::io::Result<()> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        client.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let length = (head.lines())
        .filter_map(|line| line.split_once(": "))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    client.read_exact(&mut body)?;
    let action = (plan.lock().unwrap())(head.lines().next().unwrap_or_default());
    if let Action::Answer(status, code) = action {
        let text = format!("<Error><Code>{code}</Code><Message>as the test wants it</Message></Error>");
        let length = text.len();
        let answer =
            format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{text}");
        return client.write_all(answer.as_bytes());
    }
    let mut server = TcpStream::connect(behind)?;
    let lines = (head.trim_end().lines()).filter(|line| {
        let name = line.split(':').next().unwrap_or_default().to_lowercase();
        name != "connection" && name != "expect"
    });
    let lines: Vec<&str> = lines.collect();
    server.write_all(format!("{}\r\nConnection: close\r\n\r\n", lines.join("\r\n")).as_bytes())?;
    server.write_all(&body)?;
    let mut answer = Vec::new();
    server.read_to_end(&mut answer)?;
    match action {
        Action::Lose => Ok(()),
        Action::Cut => client.write_all(&answer[..answer.len() - answer.len().min(20)]),
        _ => client.write_all(&answer),
    }
}

/// A site whose repository is behind a front.
async fn s3_site(seed: u64) -> (Site, Front, SeaweedFs) {
    let weed = tokio::task::spawn_blocking(SeaweedFs::start).await.unwrap();
    weed.create_bucket("backups", false).await;
    let front = Front::new(&weed.endpoint);
    let mut site = Site::without_repository(seed);
    site.write_policy(&s3_policy(&front.endpoint, "shop"));
    site.environment = vec![
        ("T_KEY_ID".to_owned(), weed.access_key.clone()),
        ("T_KEY".to_owned(), weed.secret_key.clone()),
    ];
    site.json(&["init"]);
    (site, front, weed)
}

/// A failure with its word and its hint.
#[track_caller]
fn fails(site: &Site, args: &[&str], code: i32, words: &[&str]) -> Said {
    let said = harness::run(&mut site.backup(args));
    assert_eq!(said.code, code, "{args:?}: {said}");
    assert!(
        said.stderr.contains("error: ") && said.stderr.contains("hint: "),
        "{args:?}: {said}"
    );
    for word in words {
        assert!(said.stderr.contains(word), "{word:?}: {said}");
    }
    said
}

/// What shows something and is not well: no error, but a report and its code.
fn ends(site: &Site, args: &[&str], code: i32, words: &[&str]) -> Said {
    let said = harness::run(&mut site.backup(args));
    assert_eq!(said.code, code, "{args:?}: {said}");
    for word in words {
        assert!(
            said.stderr.contains(word) || said.stdout.contains(word),
            "{word:?}: {said}"
        );
    }
    said
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_answers_with_errors_is_waited_for_and_then_told() {
    let (mut site, front, _weed) = s3_site(51).await;
    // For good: nothing is committed, and the reason is told.
    for (status, code, words) in [
        ("403 Forbidden", "AccessDenied", &["credentials"][..]),
        ("409 Conflict", "OperationAborted", &["put "]),
        ("503 Slow Down", "SlowDown", &["try again later"]),
    ] {
        front.does(move |line| match line.starts_with("PUT") {
            true => Action::Answer(status, code),
            false => Action::Forward,
        });
        let begun = Instant::now();
        fails(&site, &["run"], 1, words);
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "{status}: {:?}",
            begun.elapsed()
        );
        front.does(|_| Action::Forward);
        assert_eq!(site.record(status), 0);
    }
    // For a while: the run goes through.
    for (status, code) in [
        ("429 Too Many Requests", "TooManyRequests"),
        ("500 Internal Server Error", "InternalError"),
        ("503 Service Unavailable", "ServiceUnavailable"),
    ] {
        let mut requests = 0;
        front.does(move |_| {
            requests += 1;
            match requests % 4 {
                0 => Action::Answer(status, code),
                _ => Action::Forward,
            }
        });
        site.change();
        site.json(&["run"]);
        front.does(|_| Action::Forward);
        assert_eq!(site.record(status), 1);
    }
    site.all_restore("the end");
}

#[tokio::test(flavor = "multi_thread")]
async fn replies_that_get_lost_and_bodies_that_are_cut_change_nothing() {
    let (mut site, front, _weed) = s3_site(52).await;
    for each in [2, 3] {
        let mut puts = 0;
        front.does(move |line| {
            puts += u32::from(line.starts_with("PUT"));
            match line.starts_with("PUT") && puts % each == 0 {
                true => Action::Lose,
                false => Action::Forward,
            }
        });
        site.change();
        site.json(&["run"]);
        assert_eq!(site.record("replies lost"), 1);
        // Each object the first time that it is read, and a list now and then.
        let (mut seen, mut lists) = (BTreeSet::new(), 0);
        front.does(move |line| {
            let is_list = line.contains("list-type");
            lists += u32::from(is_list);
            let cut = match is_list {
                true => lists % 25 == 0,
                false => line.starts_with("GET") && seen.insert(line.to_owned()),
            };
            if cut { Action::Cut } else { Action::Forward }
        });
        site.all_restore("bodies cut");
        site.change();
        site.json(&["run"]);
        assert_eq!(site.record("bodies cut"), 1);
    }
    // Deletions whose replies are lost.
    front.does(|_| Action::Forward);
    let mut deletes = 0;
    front.does(move |line| {
        deletes += u32::from(line.starts_with("DELETE"));
        match line.starts_with("DELETE") && deletes % 2 == 1 {
            true => Action::Lose,
            false => Action::Forward,
        }
    });
    site.json(&["prune"]);
    front.does(|_| Action::Forward);
    site.all_restore("the end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_not_there_or_not_ours_is_told_apart() {
    let (site, front, weed) = s3_site(53).await;
    site.json(&["run"]);
    let commands = [
        &["run"][..],
        &["list"],
        &["verify"],
        &["prune"],
        &["restore", "app", "--at", "latest", "--to", "x"],
    ];
    // No such bucket, and nothing under the prefix.
    let text = std::fs::read_to_string(site.path("policy.toml")).unwrap();
    for (url, word) in [
        ("s3://no-such-bucket/shop", "bucket"),
        ("s3://backups/elsewhere", "backup init"),
    ] {
        write_file(
            site.dir.path(),
            "policy.toml",
            text.replace("s3://backups/shop", url),
        );
        for command in commands {
            fails(&site, command, 10, &[word]);
        }
    }
    write_file(site.dir.path(), "policy.toml", &text);
    // Wrong secrets.
    for command in commands {
        let said = harness::run(site.backup(command).env("T_KEY", random_hex(20)));
        assert_eq!(said.code, 1, "{command:?}: {said}");
        assert!(said.stderr.contains("credentials"), "{command:?}: {said}");
    }
    // Nobody at home: told within the patience of the retries.
    let nobody = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap();
    write_file(
        site.dir.path(),
        "policy.toml",
        text.replace(&front.endpoint, &format!("http://{nobody}")),
    );
    fails(&site, &["list"], 1, &["try again later"]);
    assert!(!site.path("x").exists(), "nothing was restored");
    drop(weed);
}

/// `lifeboat.json` of a newer format that readers of this one may read: a line of JSON, and its digest.
fn newer(ours: &str) -> String {
    let mut document: Value = serde_json::from_str(ours.lines().next().unwrap()).unwrap();
    assert_eq!(
        (&document["format"], &document["least_reader"]),
        (&json!(1), &json!(1))
    );
    document["format"] = json!(2);
    let line = serde_json::to_string(&document).unwrap();
    format!("{line}\n{}\n", lifeboat::types::Digest::of(line.as_bytes()))
}

#[test]
fn a_newer_format_that_may_be_read_is_read() {
    let mut site = Site::new(58);
    site.json(&["run"]);
    site.record("the run");
    let place = site.path("repository/lifeboat.json");
    let ours = std::fs::read_to_string(&place).unwrap();
    std::fs::write(&place, newer(&ours)).unwrap();
    let before = harness::tree(&site.path("repository"));
    assert_eq!(site.points().len(), 1);
    site.all_restore("a newer format");
    site.json(&["verify", "--content"]);
    ends(&site, &["check"], 1, &["format 2", "newer Lifeboat"]);
    assert!(
        harness::tree(&site.path("repository")) == before,
        "something was written"
    );
    // Damage in it is told, and not recorded.
    let pack = harness::tree(&site.path("repository"))
        .into_iter()
        .map(|(name, _)| name)
        .find(|name| name.ends_with("/0.age"))
        .unwrap();
    std::fs::remove_file(site.path("repository").join(pack)).unwrap();
    let before = harness::tree(&site.path("repository"));
    ends(&site, &["verify"], 21, &["MISSING"]);
    assert!(harness::tree(&site.path("repository")) == before);
    // One that wants a newer reader is refused to readers too.
    let wants = newer(&ours).replace("\"least_reader\":1", "\"least_reader\":2");
    std::fs::write(&place, wants).unwrap();
    fails(&site, &["list"], 1, &["reader of format 2", "newer Lifeboat"]);
}

#[test]
fn a_point_of_a_newer_kind_hides_no_other() {
    let mut site = Site::new(59);
    site.json(&["run"]);
    site.record("the run");
    let known = site.known();
    site.change();
    let newer = site.json(&["run"])["runs"][0]["run"].as_str().unwrap().to_owned();
    let place = site.path(&format!("repository/sources/app/points/{newer}.json"));
    let ours = std::fs::read_to_string(&place).unwrap();
    let line = ours.lines().next().unwrap().replacen(
        "\"format\":1",
        "\"format\":1,\"must_understand\":[\"holograms\"]",
        1,
    );
    let digest = lifeboat::types::Digest::of(line.as_bytes());
    std::fs::write(&place, format!("{line}\n{digest}\n")).unwrap();
    let before = harness::tree(&site.path("repository"));
    // What is known is shown, verified and restored; what is not is told, and is no damage.
    let said = ends(&site, &["list", "--json"], 1, &["holograms"]);
    let listed: Value = serde_json::from_str(&said.stdout).unwrap();
    assert_eq!(listed["sources"][0]["points"][0]["run"], json!(known));
    assert_eq!(listed["sources"][0]["unreadable"][0]["newer_format"], json!(true));
    ends(&site, &["verify"], 1, &["holograms", "nothing is damaged"]);
    fails(
        &site,
        &["restore", "app", "--at-point", &newer, "--to", "x"],
        1,
        &["holograms"],
    );
    site.restores(&known, "a newer kind");
    // Nothing is built on it and nothing swept beside it.
    fails(&site, &["run"], 1, &["holograms", "newer"]);
    fails(&site, &["prune"], 1, &["holograms"]);
    assert!(
        harness::tree(&site.path("repository")) == before,
        "something was written"
    );
}

#[test]
fn somebody_elses_data_and_a_newer_format_are_left_alone() {
    let mut site = Site::new(54);
    site.change();
    site.json(&["run"]);
    site.record("the run");
    let place = site.path("repository/lifeboat.json");
    let ours = std::fs::read_to_string(&place).unwrap();
    std::fs::write(&place, newer(&ours)).unwrap();
    let before = harness::tree(&site.path("repository"));
    for command in [
        &["run"][..],
        &["prune"],
        &["prune", "--undo", &site.known()],
        &["hold", "add", &site.known(), "--why", "x"],
        &["hold", "remove", &site.known()],
        &["key", "rotate", "--yes"],
        &["key", "rewrap", "--yes"],
    ] {
        fails(&site, command, 1, &["format", "newer"]);
    }
    assert!(
        harness::tree(&site.path("repository")) == before,
        "something was written"
    );
    // No repository of ours, and none at all.
    for text in ["{}", "<html>", ""] {
        std::fs::write(&place, text).unwrap();
        for command in [&["run"][..], &["list"], &["prune"], &["init"]] {
            let said = harness::run(&mut site.backup(command));
            assert!(said.code != 0 && said.code < 24, "{text:?}, {command:?}: {said}");
            assert!(
                said.stderr.contains("lifeboat.json"),
                "{text:?}, {command:?}: {said}"
            );
        }
        assert_eq!(
            std::fs::read_to_string(&place).unwrap(),
            text,
            "nothing is overwritten"
        );
    }
    std::fs::remove_file(&place).unwrap();
    let said = harness::run(&mut site.backup(&["init"]));
    assert!(said.code != 0 && !place.exists(), "{said}");
    std::fs::write(&place, &ours).unwrap();
    site.all_restore("the end");
}

#[test]
fn one_source_is_run_once_at_a_time_and_hosts_do_not_hurt_each_other() {
    let mut site = Site::new(55);
    site.json(&["run"]);
    site.record("the first");
    site.change();
    // The same state directory: while one holds the lock, the other ends with 11.
    let slow = std::fs::read_to_string(site.path("policy.toml")).unwrap();
    let slow = slow.replace("[repository]\n", "[repository]\nmax_rate = \"200 KiB\"\n");
    write_file(site.dir.path(), "slow.toml", slow);
    let first = site.start(&["--policy", "slow.toml", "run"]);
    let lock = harness::poll(Duration::from_secs(20), || {
        let state = entries(&site.path("state")).into_iter().find(|n| n.len() == 26)?;
        let lock = std::fs::File::open(site.path("state").join(state).join("app/lock")).ok()?;
        matches!(lock.try_lock(), Err(std::fs::TryLockError::WouldBlock)).then_some(())
    });
    assert!(lock.is_some(), "the first run takes no lock");
    fails(&site, &["run"], 11, &["being run already"]);
    let said = end(first);
    assert_eq!(said.code, 0, "{said}");
    assert_eq!(site.record("two at once"), 1);

    // Two other hosts and a prune, all at once, again and again.
    for round in 0..4 {
        site.change();
        let start = |state: &str, args: &[&str]| {
            let policy = std::fs::read_to_string(site.path("policy.toml")).unwrap();
            let (from, to) = (
                format!("{}/state", site.dir.path().display()),
                format!("{}/{state}", site.dir.path().display()),
            );
            let file = format!("{state}.toml");
            write_file(site.dir.path(), &file, policy.replace(&from, &to));
            site.backup(&["--policy", &file])
                .args(args)
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        };
        let all = [
            start("one", &["run"]),
            start("two", &["run"]),
            start("three", &["prune"]),
        ];
        for child in all {
            let said = end(child);
            assert_eq!(said.code, 0, "round {round}: {said}");
        }
        let new = site.record("hosts at once");
        assert!(new <= 2, "{new}");
        site.verifies("hosts at once");
    }
    site.all_restore("the end");
}

#[test]
fn a_host_that_was_rolled_back_takes_whole_points() {
    let mut site = Site::new(56);
    site.json(&["run"]);
    site.record("the first");
    let copy = |from: &str, to: &str| {
        // Not there the first time.
        let _ = std::fs::remove_dir_all(site.path(to));
        let status = std::process::Command::new("cp")
            .arg("-a")
            .arg(site.path(from))
            .arg(site.path(to))
            .status();
        assert!(status.unwrap().success());
    };
    copy("state", "old");
    for _ in 0..3 {
        site.change();
        site.json(&["run"]);
        site.record("a run");
    }
    // The state of a snapshot, while the repository went on; twice, with a prune between.
    let old = |site: &Site| {
        std::fs::remove_dir_all(site.path("state")).unwrap();
        let status = std::process::Command::new("cp")
            .arg("-a")
            .arg(site.path("old"))
            .arg(site.path("state"))
            .status();
        assert!(status.unwrap().success());
    };
    for _ in 0..2 {
        old(&site);
        site.change();
        site.json(&["run"]);
        assert_eq!(site.record("rolled back"), 1);
        site.all_restore("rolled back");
        site.json(&["prune"]);
        site.age(
            "repository/sources/app/tombstones",
            Duration::from_secs(80 * 3600),
        );
        site.json(&["prune"]);
        site.all_restore("rolled back and pruned");
    }
}

#[test]
fn odd_names_come_back_as_they_were() {
    let mut site = Site::new(57);
    let storage = site.source().join("storage/c1/odd");
    std::fs::create_dir_all(&storage).unwrap();
    let long = "n".repeat(255);
    let names: [&[u8]; 9] = [
        b"..x",
        b"...",
        b"new\nline",
        b"quote'\"`$(x)",
        b"back\\slash %2e%2e",
        b" space ",
        b"\xff\xfe not utf-8",
        "\u{202e}gnp.\u{1f980}".as_bytes(),
        long.as_bytes(),
    ];
    for name in names {
        let place = storage.join(std::ffi::OsStr::from_bytes(name));
        std::fs::write(place, site.random.bytes(2000)).unwrap();
    }
    // A path of 1,000 characters.
    let deep = storage.join(["d".repeat(200), "e".repeat(200), "f".repeat(200), "g".repeat(200)].join("/"));
    std::fs::create_dir_all(&deep).unwrap();
    std::fs::write(deep.join("h".repeat(200)), b"deep").unwrap();
    // What is no file is left out, and told.
    std::os::unix::fs::symlink("/etc/passwd", storage.join("link")).unwrap();
    let said = run_ok(&mut site.backup(&["run"]));
    assert!(said.stderr.contains("neither a file nor a directory"), "{said}");
    std::fs::remove_file(storage.join("link")).unwrap();
    assert_eq!(site.record("odd names"), 1);
    let to = site.path("odd");
    run_ok(
        site.backup(&["restore", "app", "--at", "latest", "--to"])
            .arg(&to),
    );
    assert_eq!(
        entries(&to.join("storage/c1/odd")).len(),
        names.len() + 1,
        "every name is there"
    );
    for name in names {
        let name = std::ffi::OsStr::from_bytes(name);
        let (ours, theirs) = (storage.join(name), to.join("storage/c1/odd").join(name));
        assert_eq!(std::fs::read(ours).unwrap(), std::fs::read(theirs).unwrap());
    }
    assert!(digest(&harness::tree(&to)) == digest(&harness::tree(&site.source())));
    site.all_restore("the end");
}
