//! Disks that are full, read-only or not ours: the message names the path and what to do, nothing half-written is
//! offered, and the same command succeeds once the disk is mended.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::{self, Said, binary};
use crate::site::{Site, digest, entries};

/// `nobody`, who owns nothing.
const NOBODY: u32 = 65534;

/// The one line of a failure and its hint.
#[track_caller]
fn says(said: &Said, code: i32, words: &[&str]) {
    assert_eq!(said.code, code, "{said}");
    assert!(!said.stderr.contains("panicked"), "{said}");
    assert!(
        said.stderr.contains("error: ") && said.stderr.contains("hint: "),
        "no hint: {said}"
    );
    for word in words {
        assert!(said.stderr.contains(word), "{word:?} is not said: {said}");
    }
}

/// The binary under a limit of the size of a file, which fails writes as a full disk does (EFBIG).
fn limited(site: &Site, kib: u32, args: &[&str]) -> Command {
    let ours = site.backup(args);
    let mut command = Command::new("/bin/sh");
    // The signal that would end it is ignored, so that the call fails.
    let script = format!("trap '' XFSZ; ulimit -f {}; exec \"$@\"", kib * 2);
    copy_surroundings(&ours, &mut command, &["-c", &script, "sh"]);
    command
}

/// `command` with some first arguments, then those of another, whose environment it gets.
fn copy_surroundings(ours: &Command, command: &mut Command, first: &[&str]) {
    command
        .env_clear()
        .args(first)
        .arg(ours.get_program())
        .args(ours.get_args());
    for (name, value) in ours.get_envs() {
        command.env(name, value.unwrap_or_default());
    }
    if let Some(dir) = ours.get_current_dir() {
        command.current_dir(dir);
    }
}

#[test]
fn files_that_may_not_grow_fail_a_run_and_a_restore() {
    let mut site = Site::new(31);
    site.change();
    // A pack is more than that, a database too: the scratch copy of the state directory fails first.
    let said = harness::run(&mut limited(&site, 64, &["run"]));
    says(&said, 1, &["can not be copied", "state directory"]);
    assert_eq!(site.record("the limit"), 0);
    // The copies fit, the pack does not.
    let said = harness::run(&mut limited(&site, 600, &["run"]));
    says(&said, 1, &["0.age"]);
    assert_eq!(site.record("the limit"), 0);
    site.left_nothing("the limit");
    site.json(&["run"]);
    assert_eq!(site.record("no limit"), 1);

    let to = site.path("target");
    let command = ["restore", "app", "--at", "latest", "--to", to.to_str().unwrap()];
    let said = harness::run(&mut limited(&site, 64, &command));
    says(&said, 1, &[to.to_str().unwrap()]);
    assert!(entries(&to).contains(&".lifeboat-restore-incomplete".to_owned()));
    site.json(&command);
    assert!(digest(&harness::tree(&to)) == digest(&harness::tree(&site.source())));
    site.all_restore("the end");
}

#[test]
fn a_full_state_directory_is_named() {
    let site = Site::new(35);
    let said = harness::run(&mut limited(&site, 64, &["run"]));
    says(&said, 1, &[site.path("state").to_str().unwrap()]);
}

/// A shell in a mount namespace of its own, with our binary as `$B`.
pub fn mounting(site: &Site, script: &str) -> Said {
    let ours = site.backup(&[]);
    let mut command = Command::new("unshare");
    let own = rustix::process::geteuid().is_root();
    let how: &[&str] = if own {
        &["--mount"]
    } else {
        &["--mount", "--map-root-user"]
    };
    command
        .env_clear()
        .args(how)
        .args(["--", "/bin/sh", "-c", script]);
    for (name, value) in ours.get_envs() {
        command.env(name, value.unwrap_or_default());
    }
    let said = harness::run(command.env("B", ours.get_program()).current_dir(site.dir.path()));
    assert!(
        !said.stderr.contains("unshare:") && !said.stderr.contains("mount:"),
        "a file system can not be mounted here (in a container: docker run --cap-add SYS_ADMIN \
         --security-opt apparmor=unconfined): {said}"
    );
    said
}

/// What stands between two marks that the script wrote.
fn part<'a>(said: &'a Said, name: &str) -> &'a str {
    let (_, rest) = said
        .stderr
        .split_once(&format!("== {name}\n"))
        .unwrap_or_else(|| panic!("{name}: {said}"));
    rest.split("== ").next().unwrap()
}

/// A script that runs commands on a small file system at a place, then on a large one.
fn on_a_full_disk(site: &Site, place: &str, before: &str, command: &str, kib: u32) -> Said {
    let place = site.path(place).display().to_string();
    mounting(
        site,
        &format!(
            "mkdir -p {place}; mount -t tmpfs -o mode=0700,size={kib}k tmpfs {place} || exit 99
             {before}
             echo '== full' >&2; $B {command}; echo \"code $?\" >&2
             echo '== list' >&2; $B list app >&2
             mount -o remount,size=64m {place}
             echo '== mended' >&2; $B {command}; echo \"code $?\" >&2
             rm -rf out; echo '== restored' >&2; $B restore app --at latest --to out; echo \"code $?\" >&2
             echo '== verified' >&2; $B verify; echo \"code $?\" >&2"
        ),
    )
}

#[test]
fn a_full_disk_fails_cleanly_and_goes_on_once_there_is_room() {
    for (place, command, kib) in [
        ("repository", "run", 700),
        ("state", "run", 300),
        ("out", "restore app --at latest --to out", 700),
    ] {
        let mut site = Site::without_repository(32);
        site.change();
        let before = if place == "out" {
            "$B init; $B run"
        } else {
            "$B init"
        };
        let said = on_a_full_disk(&site, place, before, command, kib);
        let full = part(&said, "full");
        assert!(full.contains("code 1\n"), "{place}: {said}");
        assert!(
            full.contains("error: ") && full.contains("hint: "),
            "{place}: {full}"
        );
        assert!(full.contains("o space left"), "{place}: {full}");
        let path = site.path(place).display().to_string();
        let told = if place == "state" {
            "state directory"
        } else {
            path.as_str()
        };
        assert!(full.contains(told), "{place}: {full}");
        assert!(
            place == "out" || !part(&said, "list").contains("01"),
            "{place}: {said}"
        );
        assert!(part(&said, "mended").contains("code 0\n"), "{place}: {said}");
        assert!(part(&said, "verified").contains("code 0\n"), "{place}: {said}");
        if place != "out" {
            assert!(part(&said, "restored").contains("code 0\n"), "{place}: {said}");
            let restored = harness::tree(&site.path("out"));
            assert!(
                digest(&restored) == digest(&harness::tree(&site.source())),
                "{place}"
            );
        }
    }
}

#[test]
fn a_read_only_file_system_is_named() {
    let mut site = Site::new(33);
    site.change();
    site.json(&["run"]);
    for place in ["repository", "state"] {
        let path = site.path(place).display().to_string();
        let said = mounting(
            &site,
            &format!(
                "mount --bind {path} {path} && mount -o remount,bind,ro {path} || exit 99
                 echo '== run' >&2; $B run; echo \"code $?\" >&2
                 echo '== list' >&2; $B list; echo \"code $?\" >&2
                 echo '== verify' >&2; $B verify; echo \"code $?\" >&2
                 echo '== restore' >&2; $B restore app --at latest --to out-{place}; echo \"code $?\" >&2"
            ),
        );
        let run = part(&said, "run");
        assert!(
            run.contains("code 1\n") && run.contains("error: ") && run.contains("hint: "),
            "{place}: {run}"
        );
        assert!(run.contains("ead-only") && run.contains(&path), "{place}: {run}");
        for reading in ["list", "verify", "restore"] {
            assert!(
                part(&said, reading).contains("code 0\n"),
                "{place}, {reading}: {said}"
            );
        }
    }
    site.all_restore("the end");
}

/// Our binary where every user can run it.
fn public_binary(site: &Site) -> PathBuf {
    let (from, to) = (env!("CARGO_BIN_EXE_backup"), site.path("backup"));
    if std::fs::hard_link(from, &to).is_err() {
        std::fs::copy(from, &to).unwrap();
    }
    to
}

/// The binary as a user whom permissions bind; as root that is `nobody`.
fn bound(site: &Site, args: &[&str]) -> Command {
    let ours = site.backup(args);
    if !rustix::process::geteuid().is_root() {
        return ours;
    }
    let mut command = Command::new(binary("setpriv"));
    let (user, group) = (format!("--reuid={NOBODY}"), format!("--regid={NOBODY}"));
    command
        .env_clear()
        .args([user.as_str(), &group, "--clear-groups", "--"])
        .arg(site.path("backup"))
        .args(ours.get_args())
        .current_dir("/");
    for (name, value) in ours.get_envs() {
        command.env(name, value.unwrap_or_default());
    }
    command
}

/// Everything below a path to a user.
fn give(path: &Path, user: u32) {
    let tree = Command::new("chown")
        .arg("-R")
        .arg(format!("{user}:{user}"))
        .arg(path)
        .status();
    assert!(tree.unwrap().success());
}

fn mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// The mode of every directory of a tree, the deepest first (and last where they are opened again).
fn modes(path: &Path, bits: u32) {
    let mut all = vec![path.to_owned()];
    let mut next = 0;
    mode(path, 0o700);
    while let Some(dir) = all.get(next).cloned() {
        next += 1;
        for entry in std::fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap().path();
            if entry.is_dir() {
                mode(&entry, 0o700);
                all.push(entry);
            }
        }
    }
    for dir in all.iter().rev() {
        mode(dir, bits);
    }
}

#[test]
fn what_this_user_may_not_write_or_read_is_named() {
    let root = rustix::process::geteuid().is_root();
    let mut site = Site::new(34);
    site.change();
    site.json(&["run"]);
    site.record("the run");
    public_binary(&site);
    mode(site.dir.path(), 0o755);
    let everything = ["repository", "state", "pb_data", "key", "policy.toml"];
    if root {
        for name in everything {
            give(&site.path(name), NOBODY);
        }
    }
    harness::run_ok(&mut bound(&site, &["list"]));
    for (place, denied) in [
        ("repository", 0o500),
        ("repository", 0o000),
        ("state", 0o500),
        ("state", 0o000),
        ("pb_data", 0o000),
    ] {
        let path = site.path(place);
        modes(&path, denied);
        let said = harness::run(&mut bound(&site, &["run"]));
        modes(&path, 0o700);
        says(&said, 1, &[path.to_str().unwrap(), "ermission denied"]);
    }
    // A target below a directory that is sealed.
    let sealed = site.path("sealed");
    std::fs::create_dir(&sealed).unwrap();
    mode(&sealed, 0o500);
    if root {
        give(&sealed, NOBODY);
    }
    let to = sealed.join("x");
    let restore = ["restore", "app", "--at", "latest", "--to", to.to_str().unwrap()];
    says(
        &harness::run(&mut bound(&site, &restore)),
        1,
        &[to.to_str().unwrap(), "ermission denied"],
    );
    mode(&sealed, 0o700);
    harness::run_ok(&mut bound(&site, &restore));
    if root {
        // Somebody else's repository.
        give(&site.path("repository"), 0);
        let said = harness::run(&mut bound(&site, &["run"]));
        says(
            &said,
            1,
            &[site.path("repository").to_str().unwrap(), "ermission denied"],
        );
        give(&site.path("repository"), NOBODY);
    }
    harness::run_ok(&mut bound(&site, &["run"]));
    site.all_restore("the end");
}
