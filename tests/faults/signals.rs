//! SIGINT and SIGTERM in the middle of everything, a second one, and a run that is suspended.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::seaweedfs::SeaweedFs;
use crate::harness::{self, Said};
use crate::site::{Site, digest, end, entries};

const SIGNALS: u32 = 16;
const GRACE_OVER: Duration = Duration::from_secs(80 * 3600);

fn send(child: &std::process::Child, signal: Signal) {
    let pid = Pid::from_raw(child.id().cast_signed()).unwrap();
    kill_process(pid, signal).unwrap();
}

/// How a command ended that a signal was sent to.
#[derive(PartialEq, Eq, Debug)]
enum Ended {
    /// Before the signal came, or in spite of it.
    Done,
    /// In good order.
    Interrupted,
    /// Before it listened to signals.
    TooEarly,
}

fn interrupted(site: &Site, args: &[&str], moment: Duration, signal: Signal, after: &str) -> Ended {
    let begun = Instant::now();
    let child = site.start(args);
    std::thread::sleep(moment.saturating_sub(begun.elapsed()));
    let sent = Instant::now();
    send(&child, signal);
    let said = end(child);
    assert!(
        sent.elapsed() < Duration::from_secs(10),
        "{after}: takes {:?}",
        sent.elapsed()
    );
    assert!(!said.stderr.contains("panicked"), "{after}: {said}");
    let by_default = 128 + signal.as_raw();
    match said.code {
        0 => Ended::Done,
        code if code == by_default && !said.stderr.contains("interrupted") => Ended::TooEarly,
        130 => {
            assert!(
                said.stderr.contains("error: ") && said.stderr.contains("interrupted"),
                "{after}: {said}"
            );
            Ended::Interrupted
        }
        _ => panic!("{after}: {said}"),
    }
}

/// Sends both signals at moments spread over a command, and judges what each leaves.
fn at_any_moment(
    site: &mut Site,
    args: &[&str],
    prepare: impl Fn(&mut Site),
    judge: impl Fn(&mut Site, &Ended, &str),
) {
    prepare(site);
    let begun = Instant::now();
    site.json(args);
    let whole = begun.elapsed();
    judge(site, &Ended::Done, "the first");
    let mut met = 0;
    for n in 0..SIGNALS {
        prepare(site);
        let moment = whole.mul_f64((f64::from(n) + site.random.fraction()) / f64::from(SIGNALS));
        let signal = if n % 2 == 0 { Signal::INT } else { Signal::TERM };
        let after = format!("{args:?}, {signal:?} after {moment:?} of {whole:?}");
        let ended = interrupted(site, args, moment, signal, &after);
        met += u32::from(ended == Ended::Interrupted);
        judge(site, &ended, &after);
    }
    assert!(met >= SIGNALS / 4, "{met} of {SIGNALS} signals met {args:?}");
}

#[test]
fn an_interrupted_run_leaves_an_orphan_at_most() {
    let mut site = Site::new(21);
    at_any_moment(&mut site, &["run"], Site::change, |site, ended, after| {
        let new = site.record(after);
        assert!(*ended != Ended::Done || new == 1, "{after}: {new} new points");
        site.verifies(after);
        site.left_nothing(after);
        let state = site.path("state");
        let repository = entries(&state).into_iter().find(|name| name.len() == 26).unwrap();
        let left = entries(&state.join(repository).join("app"));
        assert!(
            left.iter().all(|n| n == "lock" || n.ends_with(".index")),
            "{after}: {left:?}"
        );
    });
    site.change();
    site.json(&["run"]);
    site.all_restore("the end");
}

#[test]
fn an_interrupted_prune_loses_nothing_and_goes_on_later() {
    let mut site = Site::new(22);
    let due = |site: &mut Site| {
        for _ in 0..2 {
            site.change();
            site.json(&["run"]);
            site.record("a run");
        }
        site.age("repository/sources/app/tombstones", GRACE_OVER);
    };
    due(&mut site);
    at_any_moment(&mut site, &["prune"], due, |site, _, after| {
        let points = site.points();
        assert!(points.len() >= 2, "{after}");
        site.restores(&points[points.len() - 2], after);
        site.verifies(after);
        site.left_nothing(after);
    });
    site.json(&["prune"]);
    assert_eq!(site.points().len(), 2);
    site.all_restore("the end");
}

#[test]
fn an_interrupted_verify_says_so_and_records_nothing() {
    let mut site = Site::new(23);
    site.json(&["run"]);
    at_any_moment(
        &mut site,
        &["verify", "--content"],
        |_| {},
        |site, _, after| {
            assert!(!site.path("repository/sources/app/damaged").exists(), "{after}");
            site.left_nothing(after);
        },
    );
    site.record("the run");
}

#[test]
fn an_interrupted_restore_is_marked_and_goes_on() {
    let mut site = Site::new(24);
    site.json(&["run"]);
    let wanted = digest(&harness::tree(&site.source()));
    let to = site.path("target");
    let command = ["restore", "app", "--at", "latest", "--to", to.to_str().unwrap()];
    let fresh = |site: &mut Site| {
        // Not there the first time.
        let _ = std::fs::remove_dir_all(site.path("target"));
    };
    at_any_moment(&mut site, &command, fresh, |site, ended, after| {
        let to = site.path("target");
        let whole = || digest(&harness::tree(&to)) == wanted;
        if *ended != Ended::Done {
            let marked = to.join(".lifeboat-restore-incomplete").exists();
            assert!(
                marked || !to.exists() || entries(&to).is_empty() || whole(),
                "{after}: {:?}",
                entries(&to)
            );
            site.left_nothing(after);
            if marked || !to.exists() || entries(&to).is_empty() {
                site.json(&command);
            }
        }
        assert!(whole(), "{after}");
    });
}

/// Reads until a line holds a word.
fn wait_for(reader: &mut impl std::io::BufRead, word: &str) -> String {
    let mut all = String::new();
    while !all.contains(word) {
        let read = reader.read_line(&mut all).unwrap();
        assert!(read > 0, "{word:?} was not said: {all}");
    }
    all
}

#[test]
fn a_second_signal_ends_at_once() {
    let site = Site::new(25);
    // A store that takes the connection and never answers.
    let silent = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    site.write_policy(&s3_policy(
        &format!("http://{}", silent.local_addr().unwrap()),
        "x",
    ));
    for (first, second) in [(Signal::INT, Signal::INT), (Signal::TERM, Signal::INT)] {
        let mut child = site
            .backup(&["--json", "prune"])
            .env("T_KEY_ID", "id")
            .env("T_KEY", "secret")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let _connection = silent.accept().unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        send(&child, first);
        wait_for(&mut stderr, "once more: at once");
        let sent = Instant::now();
        // It may have ended in good order by itself: that is as good.
        send(&child, second);
        let mut rest = String::new();
        while stderr.read_line(&mut rest).unwrap() > 0 {}
        let said = Said {
            stderr: rest,
            ..end(child)
        };
        assert_eq!(said.code, 130, "{said}");
        assert!(sent.elapsed() < Duration::from_secs(3), "{:?}", sent.elapsed());
        assert_eq!(said.json()["error"]["code"], "interrupted", "{said}");
    }
}

/// The keys of [repository] for a server.
pub fn s3_policy(endpoint: &str, more: &str) -> String {
    format!(
        "url = \"s3://backups/{more}\"\nendpoint = \"{endpoint}\"\nregion = \"us-east-1\"\n\
         access_key_id = {{ env = \"T_KEY_ID\" }}\nsecret_access_key = {{ env = \"T_KEY\" }}\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_run_ends_well_or_fails_and_the_next_succeeds() {
    let weed = tokio::task::spawn_blocking(SeaweedFs::start).await.unwrap();
    weed.create_bucket("backups", false).await;
    let mut site = Site::new(26);
    site.write_policy(&s3_policy(&weed.endpoint, "suspended"));
    // The run that is suspended is slow enough to be met in the middle, and does not wait long for its source.
    let text = std::fs::read_to_string(site.path("policy.toml")).unwrap();
    let slow = text
        .replace("[source.app]\n", "[source.app]\nstall_timeout = \"1s\"\n")
        .replace("[repository]\n", "[repository]\nmax_rate = \"1 MiB\"\n");
    let slow = harness::write_file(site.dir.path(), "slow.toml", slow);
    site.environment = vec![
        ("T_KEY_ID".to_owned(), weed.access_key.clone()),
        ("T_KEY".to_owned(), weed.secret_key.clone()),
    ];
    site.json(&["init"]);
    for n in 0..3u64 {
        site.change();
        let moment = Duration::from_millis(100 + 400 * n);
        let child = site.start(&["--policy", slow.to_str().unwrap(), "run"]);
        std::thread::sleep(moment);
        send(&child, Signal::STOP);
        std::thread::sleep(Duration::from_secs(3));
        send(&child, Signal::CONT);
        let said = end(child);
        let after = format!("suspended after {moment:?}: {said}");
        let failed = said.code == 1 && said.stderr.contains("error: ");
        assert!(said.code == 0 || failed, "{after}");
        let new = site.record(&after);
        assert!(new == 1 || failed && new == 0, "{after}");
        site.change();
        site.json(&["run"]);
        assert_eq!(site.record(&after), 1);
    }
    site.all_restore("the end");
}

/// A signal between the commit's arrival and the word of it: strace lets every new name be there long before its writer
/// hears of it.
#[test]
fn an_interrupt_after_the_commit_does_not_deny_it() {
    let mut site = Site::new(27);
    site.json(&["run"]);
    site.record("the first run");
    site.change();
    let ours = site.backup(&["run"]);
    let mut command = std::process::Command::new(harness::binary("strace"));
    command
        .env_clear()
        .args([
            "-f",
            "-qq",
            "--seccomp-bpf",
            "-o",
            "/dev/null",
            "-e",
            "trace=linkat",
        ])
        .args(["-e", "inject=linkat:delay_exit=700000", "--"])
        .arg(ours.get_program())
        .args(ours.get_args());
    for (name, value) in ours.get_envs() {
        command.env(name, value.unwrap_or_default());
    }
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let points = site.path("repository/sources/app/points");
    let there = harness::poll(Duration::from_secs(60), || {
        (entries(&points).len() == 2).then_some(())
    });
    assert!(there.is_some(), "no commit");
    let list = format!("/proc/{0}/task/{0}/children", child.id());
    let backup: i32 = std::fs::read_to_string(list).unwrap().trim().parse().unwrap();
    kill_process(Pid::from_raw(backup).unwrap(), Signal::INT).unwrap();
    let said = end(child);
    assert_eq!(site.record("the interrupt"), 1);
    assert!(said.code == 0 || said.code == 130, "{said}");
    assert!(!said.stderr.contains("Nothing was committed"), "{said}");
}
