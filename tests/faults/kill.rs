//! kill -9 at moments spread over the whole duration of a run, a prune and a restore.

use std::time::{Duration, Instant};

use crate::harness;
use crate::harness::seaweedfs::SeaweedFs;
use crate::site::{Site, digest, end, entries};

const KILLS: u32 = 50;
/// Older than the grace and its hour, 73 h.
const GRACE_OVER: Duration = Duration::from_secs(80 * 3600);
/// Older than an orphan has to be, 7 days.
const ABANDONED: Duration = Duration::from_secs(8 * 24 * 3600);

/// Starts a command and kills it at a moment; whether it was over before.
fn killed(site: &Site, args: &[&str], moment: Duration) -> bool {
    let begun = Instant::now();
    let mut child = site.start(args);
    std::thread::sleep(moment.saturating_sub(begun.elapsed()));
    child.kill().unwrap();
    let said = end(child);
    assert!(matches!(said.code, 0 | 137), "{said}");
    said.code == 0
}

/// Moments of a command: evenly spread over its duration and random between two of them, early and late ones in turn.
struct Moments {
    whole: Duration,
}

impl Moments {
    /// Over the duration of what nobody kills, the quickest of three.
    fn of(site: &mut Site, mut once: impl FnMut(&mut Site) -> Duration) -> Self {
        let quickest = (0..3).map(|_| once(site)).min().unwrap();
        Self {
            whole: quickest.mul_f64(1.2),
        }
    }
    fn get(&self, site: &mut Site, n: u32) -> Duration {
        let place = f64::from(n * 17 % KILLS) + site.random.fraction();
        self.whole.mul_f64(place / f64::from(KILLS))
    }
    /// A machine that has less to do than before is quicker than before.
    fn learn(&mut self, over: bool) {
        if over {
            self.whole = self.whole.mul_f64(0.95);
        }
    }
}

fn timed_run(site: &mut Site) -> Duration {
    site.change();
    let begun = Instant::now();
    site.json(&["run"]);
    let took = begun.elapsed();
    site.record("a run");
    took
}

/// A run of changed content, killed at a moment; whether it was over before, and words for what came of it.
fn killed_run(site: &mut Site, moments: &mut Moments, moment: Duration) -> (bool, String) {
    site.change();
    let after = format!("a run killed after {moment:?} of {:?}", moments.whole);
    let over = killed(site, &["run"], moment);
    moments.learn(over);
    // A commit that is there is whole: it is the source as it was.
    let new = site.record(&after);
    assert!(new <= 1 && (!over || new == 1), "{after}: {new} new points");
    (over, after)
}

#[test]
fn a_run_killed_at_any_moment_leaves_whole_points_only() {
    let mut site = Site::new(1);
    let mut moments = Moments::of(&mut site, timed_run);
    let (mut cut_short, mut orphans) = (0, 0);
    for n in 0..KILLS {
        let moment = moments.get(&mut site, n);
        let (over, after) = killed_run(&mut site, &mut moments, moment);
        cut_short += u32::from(!over);
        site.verifies(&after);
        orphans = orphans.max(site.orphans().len());
        if n == KILLS / 2 {
            site.all_restore(&after);
        }
    }
    // Else the kills came too late to tell anything.
    assert!(cut_short > KILLS / 2, "{cut_short} of {KILLS} kills met a run");
    // One that surely comes between the first pack and the commit.
    let runs = site.path("repository/sources/app/runs");
    for _ in 0..KILLS {
        if orphans > 0 {
            break;
        }
        site.change();
        let before = entries(&runs).len();
        let mut child = site.start(&["run"]);
        let begun = Instant::now();
        while entries(&runs).len() == before && begun.elapsed() < Duration::from_secs(10) {
            std::hint::spin_loop();
        }
        child.kill().unwrap();
        end(child);
        site.record("a run killed after its first pack");
        orphans = site.orphans().len();
    }
    assert!(orphans > 0, "no kill left an orphan");

    // What the killed left is swept at its age, and not before.
    site.json(&["prune"]);
    assert_eq!(site.orphans().len(), orphans);
    for orphan in site.orphans() {
        site.age(&format!("repository/sources/app/runs/{orphan}"), ABANDONED);
    }
    site.json(&["prune"]);
    assert!(site.orphans().is_empty(), "{:?}", site.orphans());
    site.age("repository/.lifeboat staging", ABANDONED);
    site.change();
    site.json(&["run"]);
    site.all_restore("the end");
    site.left_nothing("the end");
}

#[test]
fn a_prune_killed_at_any_moment_loses_no_point_that_it_keeps() {
    let mut site = Site::new(2);
    timed_run(&mut site);
    let held = site.points().remove(0);
    site.json(&["hold", "add", &held, "--why", "the test"]);
    let mut moments = Moments::of(&mut site, |site| {
        timed_run(site);
        timed_run(site);
        site.age("repository/sources/app/tombstones", GRACE_OVER);
        let begun = Instant::now();
        site.json(&["prune"]);
        begun.elapsed()
    });
    let mut cut_short = 0;
    for n in 0..KILLS {
        timed_run(&mut site);
        // Points whose grace is over, and an orphan in some rounds.
        site.age("repository/sources/app/tombstones", GRACE_OVER);
        if n % 5 == 0 {
            let moment = moments.whole / 2;
            site.change();
            killed(&site, &["run"], moment);
            site.record("a killed run");
        }
        for orphan in site.orphans() {
            site.age(&format!("repository/sources/app/runs/{orphan}"), ABANDONED);
        }
        let kept = kept(&site);
        let moment = moments.get(&mut site, n);
        let after = format!("a prune killed after {moment:?} of {:?}", moments.whole);
        let over = killed(&site, &["prune"], moment);
        moments.learn(over);
        cut_short += u32::from(!over);
        let points = site.points();
        for run in &kept {
            assert!(points.contains(run), "{after}: {run} was kept and is gone");
        }
        assert!(points.contains(&held), "{after}: the held point is gone");
        site.restores(points.last().unwrap(), &after);
        site.verifies(&after);
        if n % 25 == 24 {
            // What expired just now can be had back, whatever the prune had done of it.
            for run in site.expired() {
                if site.is_young(&run) {
                    site.json(&["prune", "--undo", &run]);
                }
            }
            site.all_restore(&after);
        }
    }
    assert!(cut_short > KILLS / 2, "{cut_short} of {KILLS} kills met a prune");
    site.json(&["prune"]);
    site.age("repository/sources/app/tombstones", GRACE_OVER);
    let last = site.json(&["prune"]);
    assert!(site.orphans().is_empty(), "{:?}: {last}", site.orphans());
    timed_run(&mut site);
    site.all_restore("the end");
    assert!(site.points().contains(&held));
}

/// What prune says that it would keep.
fn kept(site: &Site) -> Vec<String> {
    let plan = site.json(&["prune", "--dry-run"]);
    let keep = plan["keep"].as_array().unwrap().iter();
    keep.map(|k| k["run"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_restore_killed_at_any_moment_is_completed_by_the_same_command() {
    let mut site = Site::new(3);
    timed_run(&mut site);
    let run = site.points().remove(0);
    let to = site.path("killed");
    let command = ["restore", "app", "--at-point", &run, "--to", to.to_str().unwrap()];
    let mut moments = Moments::of(&mut site, |site| {
        let begun = Instant::now();
        site.json(&command);
        let took = begun.elapsed();
        std::fs::remove_dir_all(&to).unwrap();
        took
    });
    let wanted = digest(&harness::tree(&site.source()));
    let marker = to.join(".lifeboat-restore-incomplete");
    let (mut cut_short, mut marked) = (0, 0);
    for n in 0..KILLS {
        let moment = moments.get(&mut site, n);
        let after = format!("a restore killed after {moment:?} of {:?}", moments.whole);
        let over = killed(&site, &command, moment);
        moments.learn(over);
        if !over {
            cut_short += 1;
            // Half a restore never looks like a whole one.
            let files = harness::tree(&to_if_there(&to));
            marked += u32::from(marker.exists());
            assert!(
                marker.exists() || files.is_empty() || digest(&files) == wanted || only_a_new_marker(&files),
                "{after}: files and no marker"
            );
            if digest(&files) != wanted || marker.exists() {
                // Another point into it is refused, while this one goes on.
                site.json(&command);
            }
        }
        assert!(digest(&harness::tree(&to)) == wanted, "{after}: other bytes");
        std::fs::remove_dir_all(&to).unwrap();
    }
    assert!(
        cut_short > KILLS / 2 && marked > 0,
        "{cut_short} kills met a restore, {marked} left a marker"
    );
    // The spool of killed restores goes with the next one.
    site.restores(&run, "the end");
    site.left_nothing("the end");
}

fn only_a_new_marker(files: &crate::site::Tree) -> bool {
    matches!(files.as_slice(), [(name, _)] if name == ".lifeboat-restore-incomplete.new")
}

/// The directory, made where the kill came before that.
fn to_if_there(to: &std::path::Path) -> std::path::PathBuf {
    std::fs::create_dir_all(to).unwrap();
    to.to_owned()
}

/// On a real bucket with Object Lock: what is put is locked, and nothing half written is.
#[tokio::test(flavor = "multi_thread")]
async fn runs_and_prunes_killed_on_a_locked_bucket_leave_whole_points_only() {
    const KILLS: u32 = 16;
    let weed = tokio::task::spawn_blocking(SeaweedFs::start).await.unwrap();
    weed.create_bucket("locked", true).await;
    let mut site = Site::without_repository(4);
    let policy = crate::signals::s3_policy(&weed.endpoint, "shop").replace("s3://backups", "s3://locked");
    site.write_policy(&format!(
        "{policy}\nobject_lock = {{ mode = \"governance\", days = 2 }}"
    ));
    site.environment = vec![
        ("T_KEY_ID".to_owned(), weed.access_key.clone()),
        ("T_KEY".to_owned(), weed.secret_key.clone()),
    ];
    site.json(&["init"]);
    let mut moments = Moments::of(&mut site, timed_run);
    let mut cut_short = 0;
    for n in 0..KILLS {
        let moment = moments.get(&mut site, n * 3);
        let (over, _) = killed_run(&mut site, &mut moments, moment);
        cut_short += u32::from(!over);
        if n % 4 == 3 {
            killed(&site, &["prune"], moment / 2);
            site.record("a killed prune");
        }
    }
    assert!(cut_short > KILLS / 3, "{cut_short} of {KILLS} kills met a run");
    site.change();
    site.json(&["run"]);
    site.all_restore("the end");
    site.verifies("the end");
    // Every commit and pack is locked: a listing of the bucket by its own client says so.
    let client = weed.client();
    let listed = client.list_objects_v2().bucket("locked").send().await.unwrap();
    let mut locked = 0;
    for object in listed.contents() {
        let key = object.key().unwrap();
        if key.ends_with(".age") || key.contains("/points/") {
            let head = client
                .head_object()
                .bucket("locked")
                .key(key)
                .send()
                .await
                .unwrap();
            assert!(head.object_lock_retain_until_date().is_some(), "{key}");
            locked += 1;
        }
    }
    assert!(locked > 10, "{locked}");
}
