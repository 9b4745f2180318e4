//! The real process: signals, systemd, HTTP, another daemon.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::process::Child;
use std::time::Duration;

use chrono::TimeDelta;
use lifeboat::clock::{Clock as _, SystemClock};
use lifeboat::state::ledger::{Ledger, Outcome};

use crate::harness::{self, write_file};
use crate::site::{Site, end};

/// A site whose source was last settled two hours ago and runs every hour, so that a daemon has something to do at once.
pub fn site(seed: u64) -> (Site, u16) {
    let port = harness::free_port();
    let mut site = Site::new(seed);
    let policy = std::fs::read_to_string(site.path("policy.toml")).unwrap();
    let policy = policy.replace(
        "retention = \"short\"\n",
        "retention = \"short\"\nschedule = \"0 * * * *\"\nmax_age = \"2d\"\n",
    );
    let http = format!("\n[http]\nlisten = \"127.0.0.1:{port}\"\ntoken = {{ env = \"T_TOKEN\" }}\n");
    write_file(site.dir.path(), "policy.toml", policy + &http);
    site.environment.push(("T_TOKEN".into(), "open sesame".into()));
    (site, port)
}

pub fn due(site: &Site) {
    let (mut ledger, _) = Ledger::open(&site.path("state")).unwrap();
    let now = SystemClock.now();
    ledger
        .settle("run app", now - TimeDelta::hours(2), &[], None, now)
        .unwrap();
}

/// The header with the token.
pub const TOKEN: &str = "Authorization: Bearer open sesame\r\n";

/// A request with these further headers, each with its line end.
pub fn ask(port: u16, method: &str, path: &str, headers: &str, body: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
    .ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

fn get(port: u16, path: &str, token: Option<&str>) -> Option<String> {
    let token = token.map_or(String::new(), |t| format!("Authorization: Bearer {t}\r\n"));
    ask(port, "GET", path, &token, "")
}

#[track_caller]
pub fn until(port: u16, path: &str, words: &str) -> String {
    let mut last = None;
    let found = harness::poll(Duration::from_secs(60), || {
        last = get(port, path, Some("open sesame"));
        last.clone().filter(|answer| answer.contains(words))
    });
    found.unwrap_or_else(|| panic!("{path} never says {words:?}: {last:?}"))
}

pub fn signal(child: &Child, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_child(child);
    rustix::process::kill_process(pid, signal).unwrap();
}

#[test]
fn a_missed_slot_is_made_good_at_the_start_and_everything_tells_of_it() {
    let (site, port) = site(211);
    due(&site);
    let daemon = site.start(&["daemon"]);
    until(
        port,
        "/metrics",
        "lifeboat_runs_total{task=\"run app\",result=\"done\"} 1",
    );
    assert!(until(port, "/healthz", "alive").starts_with("HTTP/1.1 200"));
    assert!(until(port, "/readyz", "next: run app").starts_with("HTTP/1.1 200"));
    let metrics = get(port, "/metrics", Some("open sesame")).unwrap();
    for name in ["last_success", "last_attempt", "next_run"] {
        let line = format!("lifeboat_{name}_timestamp_seconds{{task=\"run app\"}} 1");
        assert!(metrics.contains(&line), "{line}: {metrics}");
    }
    // Health needs no token, metrics do.
    assert!(get(port, "/healthz", None).unwrap().starts_with("HTTP/1.1 200"));
    for wrong in [None, Some("open"), Some("")] {
        let answer = get(port, "/metrics", wrong).unwrap();
        assert!(
            answer.starts_with("HTTP/1.1 401") && !answer.contains("lifeboat_"),
            "{answer}"
        );
    }
    let alive = harness::run(&mut site.backup(&["status", "--alive"]));
    assert_eq!((alive.code, alive.stdout.as_str()), (0, "alive\n"), "{alive}");
    // One is enough for a state directory.
    let second = harness::run(&mut site.backup(&["daemon"]));
    assert_ne!(second.code, 0);
    let other = format!("127.0.0.1:{}", harness::free_port());
    let policy = std::fs::read_to_string(site.path("policy.toml")).unwrap();
    write_file(
        site.dir.path(),
        "other.toml",
        policy.replace(&format!("127.0.0.1:{port}"), &other),
    );
    let second = harness::run(&mut site.backup(&["--policy", "other.toml", "daemon"]));
    assert_eq!(second.code, 11, "{second}");
    assert!(second.stderr.contains("another daemon"), "{second}");
    signal(&daemon, rustix::process::Signal::TERM);
    let said = end(daemon);
    assert_eq!(said.code, 0, "{said}");
    assert_eq!(site.points().len(), 1);
    for text in [&said.stdout, &said.stderr] {
        assert!(!text.contains("open sesame"), "{text}");
    }
    assert!(
        said.stderr.contains("a slot is done"),
        "its log tells what it did: {said}"
    );
    let dead = harness::run(&mut site.backup(&["status", "--alive"]));
    assert_eq!(dead.code, 1, "{dead}");
    assert!(dead.stderr.contains("no daemon answers"), "{dead}");
}

/// By the real clock, and the real wake-up.
#[test]
fn a_slot_comes_by_itself_within_its_minute() {
    let (site, port) = site(215);
    let policy = std::fs::read_to_string(site.path("policy.toml")).unwrap();
    write_file(
        site.dir.path(),
        "policy.toml",
        policy.replace("0 * * * *", "* * * * *"),
    );
    let daemon = site.start(&["--log-format", "json", "daemon"]);
    let done = harness::poll(Duration::from_secs(90), || {
        let metrics = get(port, "/metrics", Some("open sesame"))?;
        metrics.contains("result=\"done\"} 1").then_some(())
    });
    assert!(done.is_some());
    signal(&daemon, rustix::process::Signal::TERM);
    let said = end(daemon);
    assert_eq!(said.code, 0, "{said}");
    let (ledger, _) = Ledger::open(&site.path("state")).unwrap();
    let slots = ledger
        .since("run app", SystemClock.now() - TimeDelta::hours(1))
        .unwrap();
    assert!(!slots.is_empty());
    for slot in slots {
        assert!(slot.began - slot.slot < TimeDelta::seconds(20), "{slot:?}");
    }
    // One JSON document a line, with the slot on those that are about one.
    let lines: Vec<serde_json::Value> = said
        .stderr
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    let begun = lines
        .iter()
        .find(|l| l["fields"]["message"] == "a slot begins")
        .unwrap();
    assert_eq!(begun["fields"]["task"], "run app");
    assert!(begun["fields"]["slot"].is_string());
}

#[test]
fn a_killed_daemon_leaves_a_slot_that_the_next_one_answers_for_once() {
    let (site, port) = site(212);
    due(&site);
    for delay_ms in [0u64, 15, 30, 60] {
        let mut daemon = site.start(&["daemon"]);
        harness::poll(Duration::from_secs(20), || get(port, "/healthz", None)).unwrap();
        harness::poll(Duration::from_millis(delay_ms), || None::<()>);
        daemon.kill().unwrap();
        daemon.wait().unwrap();
    }
    let daemon = site.start(&["daemon"]);
    until(port, "/readyz", "next: run app");
    until(port, "/metrics", "lifeboat_running{task=\"run app\"} 0");
    until(port, "/metrics", "lifeboat_waiting{task=\"run app\"} 0");
    signal(&daemon, rustix::process::Signal::TERM);
    assert_eq!(end(daemon).code, 0);
    let (ledger, _) = Ledger::open(&site.path("state")).unwrap();
    assert!(ledger.under_way().unwrap().is_empty());
    let done = ledger
        .since("run app", SystemClock.now() - TimeDelta::days(1))
        .unwrap();
    let done: Vec<_> = done.iter().filter(|r| r.outcome == Outcome::Done).collect();
    assert_eq!(done.len(), site.points().len());
    assert!(
        (1..=2).contains(&done.len()),
        "the hour may have struck meanwhile: {done:?}"
    );
}

#[test]
fn systemd_is_told_when_it_asks() {
    let (mut site, port) = site(213);
    let socket = site.path("notify");
    let listener = UnixDatagram::bind(&socket).unwrap();
    listener.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    site.environment
        .push(("NOTIFY_SOCKET".into(), socket.display().to_string()));
    let daemon = site.start(&["daemon"]);
    let heard = |words: &str| {
        let mut buffer = [0; 4096];
        let mut all = String::new();
        for _ in 0..200 {
            let length = listener.recv(&mut buffer).unwrap();
            let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
            if text.contains(words) {
                return text;
            }
            all += &text;
        }
        panic!("{words:?} was not heard: {all}");
    };
    assert!(heard("READY=1").contains("STATUS="));
    assert!(heard("WATCHDOG=1").contains("next: run app"));
    // A bad policy is told, and the old one goes on.
    let good = std::fs::read_to_string(site.path("policy.toml")).unwrap();
    write_file(
        site.dir.path(),
        "policy.toml",
        good.replace("0 * * * *", "nonsense"),
    );
    signal(&daemon, rustix::process::Signal::HUP);
    // systemctl waits from one to the other, also where the policy is bad.
    assert!(heard("RELOADING=1").contains("MONOTONIC_USEC="));
    assert!(heard("READY=1").contains("the policy on disk is not taken"));
    // It is alive all the same, and found though its policy is not good.
    harness::run_ok(&mut site.backup(&["status", "--alive"]));
    // What only a restart can take is not taken, and told.
    let other = harness::free_port().to_string();
    let taken = |policy: String, word: &str| {
        write_file(site.dir.path(), "policy.toml", policy);
        signal(&daemon, rustix::process::Signal::HUP);
        heard("RELOADING=1");
        assert!(heard("READY=1").contains(word), "{word}");
    };
    taken(good.replace(&port.to_string(), &other), "is not taken");
    taken(good.replace("T_TOKEN", "T_KEY"), "is not taken");
    taken(good.replace("schedule = \"0 * * * *\"\n", ""), "is not taken");
    until(port, "/metrics", "lifeboat_config_reload_success 0");
    write_file(site.dir.path(), "policy.toml", &good);
    signal(&daemon, rustix::process::Signal::HUP);
    heard("RELOADING=1");
    assert!(!heard("READY=1").contains("not taken"));
    until(port, "/metrics", "lifeboat_config_reload_success 1");
    signal(&daemon, rustix::process::Signal::TERM);
    heard("STOPPING=1");
    assert_eq!(end(daemon).code, 0);
}

#[test]
fn what_a_daemon_can_not_do_is_told_at_once() {
    let (site, port) = site(214);
    let good = std::fs::read_to_string(site.path("policy.toml")).unwrap();
    let told = |policy: &str, code: i32, words: &[&str]| {
        write_file(site.dir.path(), "policy.toml", policy);
        let said = harness::run(&mut site.backup(&["daemon"]));
        assert_eq!(said.code, code, "{said}");
        for word in words {
            assert!(said.stderr.contains(word), "{word:?}: {said}");
        }
    };
    told(
        &good.replace("schedule = \"0 * * * *\"\n", ""),
        2,
        &["nothing in the policy has a schedule", "hint: "],
    );
    told(&good.replace("0 * * * *", "0 * *"), 2, &["schedule"]);
    told(&good.replace("T_TOKEN", "T_NOT_SET"), 2, &["T_NOT_SET"]);
    let taken = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = taken.local_addr().unwrap().to_string();
    told(
        &good.replace(&format!("127.0.0.1:{port}"), &address),
        1,
        &["can not listen", "http.listen"],
    );
}

/// The lines of a run, in the order of writing.
fn lines_of_runs(said: &str) -> Vec<serde_json::Value> {
    let lines = said.lines().filter_map(|line| serde_json::from_str(line).ok());
    lines
        .filter(|line: &serde_json::Value| line["span"]["name"] == "run")
        .collect()
}

#[test]
fn every_line_of_a_run_says_source_slot_and_run() {
    let (mut site, port) = site(216);
    due(&site);
    site.environment.push(("LIFEBOAT_LOG".into(), "debug".into()));
    let daemon = site.start(&["--log-format", "json", "daemon"]);
    until(
        port,
        "/metrics",
        "lifeboat_runs_total{task=\"run app\",result=\"done\"} 1",
    );
    signal(&daemon, rustix::process::Signal::TERM);
    let said = end(daemon);
    let lines = lines_of_runs(&said.stderr);
    let run = &site.points()[0];
    let slot = &lines[0]["span"]["slot"];
    assert!(lines.len() > 15 && slot.is_string(), "{said}");
    for line in &lines {
        assert_eq!(
            (&line["span"]["source"], &line["span"]["slot"]),
            (&"app".into(), slot),
            "{line}"
        );
        // Before there is one, there is none to tell.
        assert!(
            line["span"]["run"].is_null() || line["span"]["run"] == **run,
            "{line}"
        );
    }
    // What is put for a run is told with it, whichever thread puts it.
    let puts = |line: &&serde_json::Value| {
        let key = line["fields"]["key"].as_str().unwrap_or_default();
        line["fields"]["call"] == "put" && key.contains(&format!("/runs/{run}/"))
    };
    let all: Vec<serde_json::Value> = said
        .stderr
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    let put: Vec<_> = all.iter().filter(puts).collect();
    assert!(put.len() >= 4, "{said}");
    for line in put {
        assert_eq!(line["span"]["run"], **run, "{line}");
    }
    assert_eq!(lines.last().unwrap()["fields"]["message"], "the run ended");
}

#[test]
fn the_journal_gets_fields() {
    let site = Site::new(217);
    let journal = site.path("journal");
    std::fs::create_dir(&journal).unwrap();
    let socket = UnixDatagram::bind(journal.join("socket")).unwrap();
    socket.set_nonblocking(true).unwrap();
    // Its place is fixed (systemd's journal, native protocol); here it is ours.
    let script = format!(
        "mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/journal && mount --bind {} /run/systemd/journal || exit 99
         $B -v --log-format journal run app",
        journal.display()
    );
    let said = crate::full::mounting(&site, &script);
    assert_eq!(said.code, 0, "{said}");
    let mut buffer = vec![0; 1 << 16];
    let mut heard = Vec::new();
    while let Ok(length) = socket.recv(&mut buffer) {
        // Each value is led by its length, eight bytes.
        let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
        heard.push(text.replace(
            |c: char| c != '\n' && (c.is_control() || c == char::REPLACEMENT_CHARACTER),
            "",
        ));
    }
    let ended = heard.iter().find(|entry| entry.contains("the run ended"));
    let ended = ended.unwrap_or_else(|| panic!("{heard:?}"));
    let run = &site.points()[0];
    for field in [
        "PRIORITY\n5\n",
        "SYSLOG_IDENTIFIER\nbackup\n",
        "LIFEBOAT_SOURCE\napp\n",
        &format!("LIFEBOAT_RUN\n{run}\n"),
    ] {
        assert!(ended.contains(field), "{field}: {ended}");
    }
    assert!(!said.stderr.contains("the run ended"), "{said}");
    // Elsewhere there is none.
    let none = crate::full::mounting(
        &site,
        "mount -t tmpfs tmpfs /run || exit 99; $B --log-format journal run app",
    );
    assert_eq!(none.code, 2, "{none}");
    assert!(none.stderr.contains("the journal can not be reached"), "{none}");
}

#[test]
fn a_full_state_directory_makes_slots_wait_and_loses_none() {
    let (site, port) = site(218);
    let policy = std::fs::read_to_string(site.path("policy.toml")).unwrap();
    let every_minute = policy.replace("0 * * * *", "* * * * *");
    write_file(site.dir.path(), "policy.toml", every_minute);
    due(&site);
    // Everything of the daemon's memory is on a small disk that somebody else fills.
    let script = "cp -a state before; mount -t tmpfs -o mode=0700,size=1m tmpfs state || exit 99; cp -a before/. state/
         said() { n=0; until grep -q \"$1\" log; do n=$((n+1)); [ $n -lt 900 ] || return 1; sleep 0.1; done; }
         $B --log-format json daemon 2>log & daemon=$!
         said 'a slot is done' || exit 90
         dd if=/dev/zero of=state/filler bs=4k 2>/dev/null
         said 'nothing is begun until it can' || exit 91
         $B -q status --alive || exit 92
         kill -0 $daemon || exit 93
         cp log log.full; rm state/filler; kill -HUP $daemon
         said 'was read anew' || exit 94
         n=$(grep -c 'a slot is done' log.full)
         m=0; until [ $(grep -c 'a slot is done' log) -gt $n ]; do m=$((m+1)); [ $m -lt 900 ] || exit 95; sleep 0.1; done
         kill $daemon; wait $daemon || exit 96
         cp -a state/. before/";
    let said = crate::full::mounting(&site, script);
    let log = std::fs::read_to_string(site.path("log")).unwrap();
    assert_eq!(said.code, 0, "{said}{log}");
    let (ledger, _) = Ledger::open(&site.path("before")).unwrap();
    let done = ledger.totals("run app").unwrap();
    assert_eq!(
        (done.done as usize, done.failed),
        (site.points().len(), 0),
        "{log}"
    );
    let slots = ledger
        .since("run app", SystemClock.now() - TimeDelta::hours(1))
        .unwrap();
    assert!(
        slots.len() >= 2 && slots.iter().all(|s| s.outcome == Outcome::Done),
        "{slots:?}"
    );
    assert!(get(port, "/healthz", None).is_none());
}

#[test]
fn connections_that_say_nothing_stop_neither_health_nor_runs() {
    let (site, port) = site(219);
    due(&site);
    // A daemon that may have few files open.
    let mut command = std::process::Command::new("/bin/sh");
    let ours = site.backup(&["daemon"]);
    command
        .env_clear()
        .args(["-c", "ulimit -n 160; exec \"$0\" daemon"])
        .arg(ours.get_program())
        .current_dir(site.dir.path())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    for (name, value) in ours.get_envs() {
        command.env(name, value.unwrap_or_default());
    }
    let daemon = command.spawn().unwrap();
    until(port, "/metrics", "result=\"done\"} 1");
    let idle: Vec<TcpStream> = (0..400)
        .filter_map(|_| {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
            stream.write_all(b"GET / HTTP/1.1\r\nHost: ").ok()?;
            Some(stream)
        })
        .collect();
    assert!(idle.len() > 100, "{}", idle.len());
    until(port, "/healthz", "alive");
    until(port, "/metrics", "lifeboat_running{task=\"run app\"} 0");
    let asked = harness::poll(Duration::from_secs(30), || {
        ask(port, "POST", "/sources/app/run", TOKEN, "").filter(|a| a.starts_with("HTTP/1.1 303"))
    });
    assert!(asked.is_some());
    until(port, "/metrics", "result=\"done\"} 2");
    drop(idle);
    signal(&daemon, rustix::process::Signal::TERM);
    assert_eq!(end(daemon).code, 0);
}

#[test]
fn a_daemon_whose_memory_is_held_hears_that_it_is_to_end() {
    let (site, port) = site(220);
    let daemon = site.start(&["daemon"]);
    until(port, "/readyz", "next:");
    let db = rusqlite::Connection::open(site.path("state/daemon.db")).unwrap();
    db.busy_timeout(Duration::from_secs(10)).unwrap();
    db.execute_batch("BEGIN IMMEDIATE").unwrap();
    let answer = until(port, "/readyz", "nothing is begun");
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    let asked = ask(port, "POST", "/sources/app/run", TOKEN, "").unwrap();
    assert!(asked.starts_with("HTTP/1.1 503"), "{asked}");
    until(port, "/metrics", "lifeboat_memory_writable 0");
    signal(&daemon, rustix::process::Signal::TERM);
    // It ends while the memory is held.
    let said = end(daemon);
    assert_eq!(said.code, 0, "{said}");
    assert!(said.stderr.contains("the daemon stops"), "{said}");
    db.execute_batch("ROLLBACK").unwrap();
}
