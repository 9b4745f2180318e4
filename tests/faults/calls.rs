//! The n-th system call of a thread fails, for every kind of call that reads or writes files. What ends with 0 has done
//! its work; what does not says why; and the same command without the fault succeeds.
//!
//! Strace injects the faults, and counts the calls of each thread for itself: with n, every thread that gets that far
//! fails once. A sweep takes an even spread of the n; the sweeps that take all are ignored, and have their command in
//! ARCHITECTURE.md.

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::Value;

use crate::harness::{self, Said, binary};
use crate::site::{Site, digest, end};

/// No command here takes a tenth of it: then it hangs.
const PATIENCE: Duration = Duration::from_secs(60);
/// As long has one that nobody wakes.
const DEAF: Duration = Duration::from_secs(5);
/// What a file system answers: it is broken, full, or not ours.
const ERRORS: [&str; 3] = ["EIO", "ENOSPC", "EACCES"];
/// Calls on files and descriptors that no file system fails: they wait, or concern this process alone.
const LEFT_OUT: [&str; 17] = [
    "close",
    "dup",
    "dup3",
    "epoll_create1",
    "epoll_ctl",
    "epoll_pwait",
    "epoll_wait",
    "eventfd2",
    "execve",
    "fcntl",
    "getcwd",
    "ioctl",
    "mmap",
    "pipe2",
    "poll",
    "ppoll",
    "readlink",
];
/// More than any exit code of ours but 130.
const CODES_END: i32 = 24;
const GRACE_OVER: Duration = Duration::from_secs(80 * 3600);

/// How much of it is tried.
#[derive(Clone, Copy)]
pub enum Sweep {
    /// So many n for each kind of call, evenly spread, each with one of the errors.
    Spread(usize),
    /// Every n with every error.
    Whole,
}

/// A fault.
struct Fault<'a> {
    call: &'a str,
    error: &'a str,
    n: usize,
}

/// How a command with a fault ended.
pub struct Outcome {
    pub said: Said,
    /// The calls that failed, as strace shows them.
    pub injected: Vec<String>,
    pub what: String,
}

/// A command under strace; strace ends as the command does.
fn traced(site: &Site, args: &[&str], more: &[&str]) -> (Said, String) {
    let log = site.path("strace");
    let ours = site.backup(args);
    let mut command = Command::new(binary("strace"));
    command
        .env_clear()
        .args(["-f", "-qq", "-y", "--seccomp-bpf", "-s", "0", "-o"])
        .arg(&log)
        .args(more)
        .arg("--")
        .arg(ours.get_program())
        .args(ours.get_args())
        .current_dir(site.dir.path());
    for (name, value) in ours.get_envs() {
        command.env(name, value.unwrap_or_default());
    }
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .unwrap();
    let said = in_time(child, &log, args);
    let lines = std::fs::read_to_string(&log).unwrap_or_default();
    assert!(
        !said.stderr.contains("strace: "),
        "strace can not trace here (in a container: docker run --cap-add SYS_PTRACE): {said}"
    );
    (said, lines)
}

/// Ends what hangs, and fails; but a thread that was not woken, because its wake-up was failed, is no failure.
fn in_time(child: std::process::Child, log: &Path, args: &[&str]) -> Said {
    let group = Pid::from_raw(child.id().cast_signed()).unwrap();
    let (done, over) = mpsc::channel::<()>();
    let log = log.to_owned();
    let watch = std::thread::spawn(move || {
        let begun = Instant::now();
        let inner =
            || std::fs::read_to_string(&log).is_ok_and(|text| whole(&text).iter().any(|line| is_inner(line)));
        while over.recv_timeout(Duration::from_millis(500)) == Err(mpsc::RecvTimeoutError::Timeout) {
            let deaf = begun.elapsed() > DEAF && inner();
            if deaf || begun.elapsed() > PATIENCE {
                // It may end at this very moment.
                let _ = kill_process_group(group, Signal::KILL);
                return !deaf;
            }
        }
        false
    });
    let said = end(child);
    drop(done);
    assert!(!watch.join().unwrap(), "{args:?} hangs: {said}");
    said
}

/// The lines of a trace, those put together that other threads' lines stand between: what a call was of is in its first half.
fn whole(log: &str) -> Vec<String> {
    let mut begun = BTreeMap::new();
    let mut lines = Vec::new();
    for line in log.lines() {
        let thread = line.split(' ').next().unwrap_or_default();
        if let Some(first) = line.strip_suffix(" <unfinished ...>") {
            begun.insert(thread, first);
        } else if let Some((_, rest)) = line.split_once(" resumed>") {
            lines.push(format!("{}{rest}", begun.remove(thread).unwrap_or(thread)));
        } else {
            lines.push(line.to_owned());
        }
    }
    lines
}

/// Wake-ups within the process are no files: nobody survives their failure, and it does not happen.
fn is_inner(line: &str) -> bool {
    line.ends_with("(INJECTED)") && (line.contains("<anon_inode:") || line.contains("<socket:"))
}

/// The most calls that one thread makes, by kind of call.
fn counted(site: &Site, args: &[&str]) -> BTreeMap<String, usize> {
    let (said, lines) = traced(site, args, &["-e", "trace=file,desc"]);
    assert_eq!(said.code, 0, "{said}");
    let mut threads: BTreeMap<(String, String), usize> = BTreeMap::new();
    for line in lines.lines() {
        let mut words = line.splitn(2, ' ');
        let (Some(thread), Some(rest)) = (words.next(), words.next()) else {
            continue;
        };
        let Some((call, _)) = rest.trim_start().split_once('(') else {
            continue;
        };
        if call
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        {
            *threads.entry((call.to_owned(), thread.to_owned())).or_default() += 1;
        }
    }
    let mut most = BTreeMap::new();
    for ((call, _), count) in threads {
        let most = most.entry(call).or_default();
        *most = count.max(*most);
    }
    most.retain(|call, _| !LEFT_OUT.contains(&call.as_str()));
    most
}

/// The faults of a sweep.
fn faults(counts: &BTreeMap<String, usize>, sweep: Sweep) -> Vec<Fault<'_>> {
    let mut faults = Vec::new();
    for (call, count) in counts {
        match sweep {
            Sweep::Whole => {
                for n in 1..=*count {
                    faults.extend(ERRORS.map(|error| Fault { call, error, n }));
                }
            }
            Sweep::Spread(most) => {
                let taken = most.min(*count);
                for i in 0..taken {
                    let error = ERRORS[faults.len() % ERRORS.len()];
                    // From the first to the last.
                    let n = if taken == 1 {
                        1
                    } else {
                        1 + i * (count - 1) / (taken - 1)
                    };
                    faults.push(Fault { call, error, n });
                }
            }
        }
    }
    faults
}

/// Runs a command with a fault, and judges how it ended.
fn with_fault(site: &Site, args: &[&str], fault: &Fault<'_>) -> Outcome {
    let Fault { call, error, n } = fault;
    let (trace, inject) = (
        format!("trace={call}"),
        format!("inject={call}:error={error}:when={n}"),
    );
    let (said, lines) = traced(site, args, &["-e", &trace, "-e", &inject]);
    let lines = whole(&lines);
    let injected: Vec<String> = (lines.iter())
        .filter(|line| line.ends_with("(INJECTED)"))
        .cloned()
        .collect();
    let what = format!("{args:?}, {call} number {n}: {error}\n{}", injected.join("\n"));
    if lines.iter().any(|line| is_inner(line)) {
        return Outcome { said, injected, what };
    }
    // The loader's own reads come before the first of ours.
    let loader = said.code == 127 && said.stderr.contains("error while loading shared libraries");
    assert!(loader || said.code < CODES_END, "{what}\n{said}");
    assert!(!said.stderr.contains("panicked"), "{what}\n{said}");
    let mute = injected.iter().any(|line| line.contains("write(2<"));
    assert!(
        said.code == 0 || mute || said.stderr.contains("error") || said.stdout.contains("\"message\":"),
        "{what}\nfails without a word\n{said}"
    );
    Outcome { said, injected, what }
}

/// Every fault of a sweep over a command; at least one of each kind must have been met.
pub fn sweep(
    site: &mut Site,
    sweep: Sweep,
    args: &[&str],
    prepare: impl Fn(&mut Site),
    judge: impl Fn(&mut Site, &Outcome),
) {
    prepare(site);
    let counts = counted(site, args);
    judge_clean(site, &judge);
    let mut met = BTreeMap::<&str, usize>::new();
    let mut failed = Vec::new();
    for fault in faults(&counts, sweep) {
        // One that fails does not hide the others.
        let one = std::panic::AssertUnwindSafe(|| {
            prepare(site);
            let outcome = with_fault(site, args, &fault);
            *met.entry(fault.call).or_default() += usize::from(!outcome.injected.is_empty());
            judge(site, &outcome);
        });
        if std::panic::catch_unwind(one).is_err() {
            failed.push(format!("{} {}: {}", fault.call, fault.n, fault.error));
        }
    }
    assert!(failed.is_empty(), "{args:?}: {failed:#?}, each told above");
    let never: Vec<_> = met.iter().filter(|(_, count)| **count == 0).collect();
    assert!(never.is_empty(), "{args:?}: no fault of {never:?} was met");
}

/// The command that was only counted ended well.
fn judge_clean(site: &mut Site, judge: &impl Fn(&mut Site, &Outcome)) {
    let outcome = Outcome {
        said: Said {
            code: 0,
            stdout: String::new(),
            stderr: String::new(),
        },
        injected: Vec::new(),
        what: "without a fault".to_owned(),
    };
    judge(site, &outcome);
}

/// With more points than this a sweep begins anew: looking at them all would take longer each time.
pub const POINTS_MOST: usize = 8;

/// A new repository, and no state.
pub fn anew(site: &Site) {
    for name in ["repository", "state"] {
        std::fs::remove_dir_all(site.path(name)).unwrap();
    }
    site.json(&["init"]);
}

fn runs(extent: Sweep) {
    let mut site = Site::new(11);
    site.large = false;
    site.json(&["run"]);
    site.record("the first run");
    let ready = |site: &mut Site| {
        if site.points().len() > POINTS_MOST {
            anew(site);
            site.json(&["run"]);
            site.record("a first run");
        }
        site.change();
    };
    sweep(&mut site, extent, &["run"], ready, |site, outcome| {
        let new = site.record(&outcome.what);
        assert!(
            outcome.said.code != 0 || new == 1,
            "{}\nends with 0 and {new} points\n{}",
            outcome.what,
            outcome.said
        );
        site.json(&["run"]);
        assert_eq!(site.record(&outcome.what), 1);
        site.verifies(&outcome.what);
    });
    site.all_restore("the end");
    site.age("repository/.lifeboat staging", Duration::from_secs(25 * 3600));
    site.json(&["run"]);
    site.left_nothing("the end");
}

#[test]
fn a_run_survives_any_call_that_fails() {
    runs(Sweep::Spread(2));
}

#[test]
#[ignore = "the whole sweep takes long: see ARCHITECTURE.md"]
fn a_run_survives_every_call_that_fails() {
    runs(Sweep::Whole);
}

/// A point without them would be shown, and found to be less when it is needed.
#[test]
fn what_can_not_be_looked_at_is_not_left_out() {
    let mut site = Site::new(16);
    site.large = false;
    site.json(&["run"]);
    site.record("the first run");
    for name in [
        "auxiliary.db",
        "data.db-shm",
        "data.db-wal",
        "data.db-journal",
        "storage",
    ] {
        site.change();
        let path = site.source().join(name);
        let path = path.to_str().unwrap();
        let inject = "inject=stat,statx,newfstatat,access:error=EIO";
        let trace = "trace=stat,statx,newfstatat,access";
        let (said, lines) = traced(&site, &["run"], &["-P", path, "-e", trace, "-e", inject]);
        assert!(lines.contains("(INJECTED)"), "{name} is not looked at: {lines}");
        assert_eq!(said.code, 1, "{name}: {said}");
        assert!(said.stderr.contains("Input/output error"), "{name}: {said}");
        assert_eq!(site.record(name), 0, "{name}: a point without it");
        site.json(&["run"]);
        assert_eq!(site.record(name), 1);
    }
    site.all_restore("the end");
}

fn first_runs(extent: Sweep) {
    let mut site = Site::new(12);
    site.large = false;
    let fresh = |site: &mut Site| {
        for name in ["repository", "state"] {
            // Not there the first time.
            let _ = std::fs::remove_dir_all(site.path(name));
        }
    };
    sweep(&mut site, extent, &["init"], fresh, |site, outcome| {
        let again = harness::run(&mut site.backup(&["init"]));
        // Made already: then it says so.
        let made = again.code == 2 && again.stderr.contains("already");
        assert!(
            again.code == 0 || made,
            "{}\n{}\nagain: {again}",
            outcome.what,
            outcome.said
        );
        assert!(outcome.said.code != 0 || made, "{}\n{again}", outcome.what);
        assert_eq!(site.points().len(), 0, "{}", outcome.what);
    });
    let fresh = |site: &mut Site| {
        fresh(site);
        site.json(&["init"]);
    };
    sweep(&mut site, extent, &["run"], fresh, |site, outcome| {
        let new = site.record(&outcome.what);
        assert!(outcome.said.code != 0 || new == 1, "{}", outcome.what);
        site.json(&["run"]);
        assert_eq!(site.record(&outcome.what), 1, "{}", outcome.what);
        site.verifies(&outcome.what);
    });
}

#[test]
fn init_and_a_first_run_survive_any_call_that_fails() {
    first_runs(Sweep::Spread(1));
}

#[test]
#[ignore = "the whole sweep takes long: see ARCHITECTURE.md"]
fn init_and_a_first_run_survive_every_call_that_fails() {
    first_runs(Sweep::Whole);
}

fn prunes(extent: Sweep) {
    let mut site = Site::new(13);
    site.large = false;
    let due = |site: &mut Site| {
        while site.points().len() < 4 {
            site.change();
            site.json(&["run"]);
            site.record("a run");
        }
        site.age("repository/sources/app/tombstones", GRACE_OVER);
    };
    due(&mut site);
    site.json(&["prune"]);
    sweep(&mut site, extent, &["prune"], due, |site, outcome| {
        // Four points, of which the newest two are kept.
        let points = site.points();
        assert!(points.len() >= 2, "{}", outcome.what);
        for run in &points {
            site.restores(run, &outcome.what);
        }
        site.verifies(&outcome.what);
        let pruned = site.json(&["prune"]);
        assert_eq!(pruned["keep"].as_array().unwrap().len(), 2, "{}", outcome.what);
        assert_eq!(site.points(), points[points.len() - 2..], "{}", outcome.what);
        if outcome.said.code == 0 {
            assert_eq!(points.len(), 2, "{}\nends with 0\n{}", outcome.what, outcome.said);
        }
    });
    site.age("repository/sources/app/tombstones", GRACE_OVER);
    site.json(&["prune"]);
    assert!(site.orphans().is_empty());
    site.all_restore("the end");
}

#[test]
fn a_prune_survives_any_call_that_fails() {
    prunes(Sweep::Spread(1));
}

#[test]
#[ignore = "the whole sweep takes long: see ARCHITECTURE.md"]
fn a_prune_survives_every_call_that_fails() {
    prunes(Sweep::Whole);
}

fn restores(extent: Sweep) {
    let mut site = Site::new(14);
    site.large = false;
    site.json(&["run"]);
    let wanted = digest(&harness::tree(&site.source()));
    let to = site.path("target");
    let to = to.to_str().unwrap();
    let command = ["restore", "app", "--at", "latest", "--to", to];
    let fresh = |site: &mut Site| {
        // Not there the first time.
        let _ = std::fs::remove_dir_all(site.path("target"));
    };
    sweep(&mut site, extent, &command, fresh, |site, outcome| {
        let whole = |dir: &Path| dir.exists() && digest(&harness::tree(dir)) == wanted;
        let target = site.path("target");
        if outcome.said.code == 0 {
            assert!(whole(&target), "{}\n{}", outcome.what, outcome.said);
        } else if !whole(&target) {
            let again = harness::run(&mut site.backup(&command));
            assert_eq!(
                again.code, 0,
                "{}\n{}\nagain: {again}",
                outcome.what, outcome.said
            );
        }
        assert!(whole(&target), "{}", outcome.what);
    });
}

#[test]
fn a_restore_survives_any_call_that_fails() {
    restores(Sweep::Spread(2));
}

#[test]
#[ignore = "the whole sweep takes long: see ARCHITECTURE.md"]
fn a_restore_survives_every_call_that_fails() {
    restores(Sweep::Whole);
}

/// What only reads tells all of it or fails: and records no damage where there is none.
fn reads(extent: Sweep) {
    let mut site = Site::new(15);
    site.large = false;
    for _ in 0..3 {
        site.change();
        site.json(&["run"]);
        site.record("a run");
    }
    for command in [
        &["--json", "list"][..],
        &["--json", "verify"],
        &["--json", "prune", "--dry-run"],
    ] {
        let wanted = site.json(&command[1..]);
        let telling = |document: &Value| {
            let mut document = document.clone();
            // The time that it took, and what is said beside.
            for key in ["seconds", "warnings"] {
                document.as_object_mut().unwrap().remove(key);
            }
            // Till when, counted from now.
            for expired in document["expire"].as_array_mut().into_iter().flatten() {
                expired.as_object_mut().unwrap().remove("undo_until");
            }
            document
        };
        sweep(
            &mut site,
            extent,
            command,
            |_| {},
            |site, outcome| {
                if outcome.said.code == 0 && !outcome.injected.is_empty() {
                    let told = outcome.said.json();
                    assert_eq!(telling(&told), telling(&wanted), "{}", outcome.what);
                }
                assert_eq!(site.points().len(), 3);
            },
        );
        site.all_restore("the end");
    }
    assert!(!site.path("repository/sources/app/damaged").exists());
}

#[test]
fn what_only_reads_tells_all_or_fails() {
    reads(Sweep::Spread(2));
}

#[test]
#[ignore = "the whole sweep takes long: see ARCHITECTURE.md"]
fn what_only_reads_tells_all_or_fails_at_every_call() {
    reads(Sweep::Whole);
}

#[test]
fn a_call_in_two_lines_is_one() {
    let log = "7 write(4<anon_inode:[eventfd]>, \"\", 8 <unfinished ...>\n8 read(3</x>, \"\", 1) = 0\n7 <... write resumed>) = -1 EIO (Input/output error) (INJECTED)";
    let lines = whole(log);
    assert_eq!(lines.len(), 2);
    assert!(is_inner(&lines[1]) && !is_inner(&lines[0]), "{lines:?}");
}
