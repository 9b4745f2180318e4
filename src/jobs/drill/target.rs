//! The target of a drill: made, restored into, judged and removed.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::super::outline::outline;
use super::super::report::{RestoreReport, SourceDrill};
use super::super::restore::{self, Aim, Request};
use super::super::{Session, restore as restores};
use super::{own, place};
use crate::drill::{Check, Level, Outcome};
use crate::error::{Context as _, Error, Kind, Result};
use crate::policy::{DrillPolicy, UserCheck};
use crate::repository::Repository;
use crate::repository::catalog::Point;
use crate::repository::reader::OpenPoint;
use crate::source::scratch::{ScratchPlan, ScratchTarget, last_of, log_of};
use crate::source::{Context, PointContent as _, RestoreOptions, Restorer};
use crate::state::StateDir;
use crate::types::SourceName;

/// A target takes about so much of what a point holds: the data, its indexes, a log.
const ROOM: u64 = 2;
/// Beside that, for a server's own files, bytes.
const ROOM_LEAST: u64 = 200 << 20;
/// So much of a target's log is looked at for why a restore failed, bytes.
const LOG_LOOKED_AT: u64 = 64 << 10;
/// With less than this a file system is full, bytes.
const FULL: u64 = 4 << 20;
/// So long a drill that is over its budget may take to end in good order.
const ENDING: Duration = Duration::from_secs(60);
/// Differences that are told one by one.
const DIFFERENCES_TOLD: usize = 50;

/// Levels 2 and up. The target is removed, or kept for a while when something failed in it.
pub async fn prove(
    session: &Session,
    state: &StateDir,
    policy: &DrillPolicy,
    source: &SourceName,
    repository: &Repository,
    point: &Point,
    report: &mut SourceDrill,
) -> Result<()> {
    restore::require_identity(session).map_err(|e| e.of_kind(Kind::DrillCouldNotRun))?;
    let restorer = restores::restorer(session, source, &point.commit.kind)
        .map_err(|e| e.of_kind(Kind::DrillCouldNotRun))?;
    let (place, plan) = place::make(session, state, policy, source, &point.commit.kind).await?;
    let given = plan.server.is_some();
    if !given && let Err(why) = &plan.apart {
        report.warnings.push(format!(
            "the target of {source} is in no sandbox of its own, for this host does not allow one: {why}"
        ));
    }
    // Its own token: what a budget ends is not what somebody interrupted.
    let mut own_session = session.clone();
    own_session.cancel = session.cancel.child_token();
    let work = Work {
        session: &own_session,
        policy,
        source,
        repository,
        point,
        restorer: &*restorer,
    };
    let over = place::over_budget(
        session,
        policy,
        place.path().to_owned(),
        own_session.cancel.clone(),
    );
    let mut carried = Box::pin(work.carry_out(plan, report));
    let (done, over) = tokio::select! {
        biased;
        done = &mut carried => (done, None),
        // What was begun ends by itself, so that nothing is written to what is removed.
        why = over => match tokio::time::timeout(ENDING, &mut carried).await {
            Ok(_) | Err(_) => (Ok(()), Some(why)),
        },
    };
    drop(carried);
    report
        .checks
        .extend(over.map(|why| Check::could_not_run("the drill stays within its budget", None, why)));
    own::add_unmade(policy, report, "the drill ended before it was made");
    // Of an objective that was missed there is nothing to look at, and a server that was given is left as it was.
    let failed = |c: &Check| c.result == Outcome::Failed && c.level.is_some();
    let keep = report.checks.iter().any(failed) && done.is_ok() && !given;
    report.cleanup = place::clean(session, policy, place, keep).await;
    if report.cleanup.starts_with(place::NOT_REMOVED) {
        report
            .warnings
            .push(format!("the target of {source} is {}", report.cleanup));
    }
    if given && !policy.keep_failed.is_zero() && report.checks.iter().any(failed) {
        report.cleanup += " (what is on a server that was given is never kept)";
    }
    done
}

struct Work<'a> {
    session: &'a Session,
    policy: &'a DrillPolicy,
    source: &'a SourceName,
    repository: &'a Repository,
    point: &'a Point,
    restorer: &'a dyn Restorer,
}

impl Work<'_> {
    async fn carry_out(&self, plan: ScratchPlan, report: &mut SourceDrill) -> Result<()> {
        let commit = &self.point.commit;
        let needed = commit.bytes.content.saturating_mul(ROOM) + ROOM_LEAST;
        self.room(&plan, needed)?;
        let mut keys = self.session.key_ring()?;
        report.identity = keys.recipients();
        let opened = OpenPoint::open(self.repository, self.source, commit, &mut keys).await;
        let opened = match opened {
            Ok(opened) => opened,
            Err(e) if e.kind() == Kind::Damaged => {
                report.checks.push(Check::of_error(
                    "everything decodes",
                    Some(Level::Content),
                    Outcome::Failed,
                    "its manifest opens",
                    &e,
                ));
                return Ok(());
            }
            Err(e) => return Err(e),
        };
        let known = outline(&opened, self.restorer).await?;
        let context = self.context(&plan);
        let mut scratch = self.restorer.scratch(&context, plan, &known).await?;
        let worked = self.in_scratch(&mut *scratch, &context, &opened, report).await;
        report.target = scratch.description();
        report.not_tested.extend(scratch.unlooked());
        let ended = scratch.end().await;
        worked.and(ended)
    }

    /// Whether there is room for what the point holds.
    fn room(&self, plan: &ScratchPlan, needed: u64) -> Result<()> {
        let free = rustix::fs::statvfs(&plan.directory)
            .map(|s| s.f_bavail.saturating_mul(s.f_frsize))
            .doing(|| format!("{} can not be looked at", plan.directory.display()))?;
        let (most, what) = match self.policy.budget {
            Some(budget) if budget < free => (budget, "the drill may take"),
            _ => (free, "there is room for"),
        };
        if needed <= most {
            return Ok(());
        }
        Err(Error::new(
            Kind::DrillCouldNotRun,
            format!(
                "it needs about {} MB in {}, and {what} {} MB",
                needed / 1_000_000,
                plan.directory.display(),
                most / 1_000_000
            ),
        )
        .hint("Make room, raise budget in the drill, or set state.dir elsewhere."))
    }

    fn context(&self, plan: &ScratchPlan) -> Context {
        Context {
            world: self.session.world.clone(),
            source: self.source.clone(),
            run: self.point.commit.run,
            scratch: plan.directory.clone(),
            cancel: self.session.cancel.clone(),
            progress: Arc::clone(&self.session.progress),
            known: crate::source::stamps::Stamps::default(),
        }
    }

    async fn in_scratch(
        &self,
        scratch: &mut dyn ScratchTarget,
        context: &Context,
        opened: &OpenPoint,
        report: &mut SourceDrill,
    ) -> Result<()> {
        let request = Request {
            source: self.source.clone(),
            aim: Aim::Point(self.point.commit.run),
            target: Some(scratch.target()),
            options: RestoreOptions {
                new_server: true,
                ..RestoreOptions::default()
            },
            max_gap: None,
            gap_accepted: true,
        };
        let restored = match restores::restore(self.session, &request).await {
            Ok(restored) => restored,
            Err(e) if e.kind() == Kind::Interrupted => return Err(e),
            Err(e) => return self.restore_failed(&e, context, opened, report).await,
        };
        self.restored(restored, report);
        report.checks.extend(scratch.examine(context).await?);
        let took = self.session.world.clock.since_boot() - report.begun;
        report.level_4_seconds = Some(took.as_secs_f64());
        self.apply(scratch, context, report).await
    }

    /// Levels 2 to 4, as far as the restore itself told.
    fn restored(&self, restored: RestoreReport, report: &mut SourceDrill) {
        report.rto_seconds = Some(restored.seconds);
        report.bytes = restored.bytes;
        report.warnings.extend(restored.warnings);
        let rto = self
            .session
            .policy
            .sources
            .get(self.source)
            .and_then(|s| s.objective.rto);
        report.rto_objective_seconds = rto.map(|limit| limit.as_secs_f64());
        let took = Duration::from_secs_f64(restored.seconds.max(0.0));
        report
            .checks
            .extend(rto.map(|limit| Check::objective("recovery time objective", limit, took)));
        let size = format!("{} bytes", restored.bytes);
        report
            .checks
            .push(Check::passed("everything decodes", Level::Content, size.clone()));
        report
            .checks
            .push(Check::passed("it is restored", Level::Restored, size));
        facts(&restored.differences, report);
    }

    /// Levels 5 and 6.
    async fn apply(
        &self,
        scratch: &mut dyn ScratchTarget,
        context: &Context,
        report: &mut SourceDrill,
    ) -> Result<()> {
        let (early, late): (Vec<&UserCheck>, Vec<&UserCheck>) = self
            .policy
            .checks
            .iter()
            .filter(|c| c.source == *self.source)
            .partition(|c| own::is_early(c));
        for check in early {
            report
                .checks
                .push(own::carry_out(self.session, scratch, check).await?);
        }
        report.checks.extend(scratch.run(context).await?);
        for check in late {
            report.checks.push(if scratch.runs() {
                own::carry_out(self.session, scratch, check).await?
            } else {
                Check::could_not_run(&check.name, Some(Level::Own), "the application does not run")
            });
        }
        Ok(())
    }

    /// What a restore that failed says of the levels: of damage, of what is missing here, or of the point itself.
    async fn restore_failed(
        &self,
        e: &Error,
        context: &Context,
        opened: &OpenPoint,
        report: &mut SourceDrill,
    ) -> Result<()> {
        if no_room(&context.scratch, e) {
            let why = format!(
                "there is no room in {}, or no memory: make room, or set state.dir elsewhere",
                context.scratch.display()
            );
            let check = Check::could_not_run("it is restored", Some(Level::Restored), why);
            report.checks.push(check.with_detail(e.chain()));
            return Ok(());
        }
        let failed =
            |name: &str, level| Check::of_error(name, Some(level), Outcome::Failed, "without an error", e);
        match e.kind() {
            Kind::Damaged => report.checks.push(failed("everything decodes", Level::Content)),
            // Refused before anything was written: an extension, a client program.
            Kind::Usage | Kind::DrillCouldNotRun | Kind::NoIdentity => {
                report.checks.push(Check::of_error(
                    "it is restored",
                    Some(Level::Restored),
                    Outcome::CouldNotRun,
                    "it can be looked at",
                    e,
                ));
            }
            _ => {
                report.checks.push(match self.decodes(opened).await {
                    Ok(bytes) => {
                        Check::passed("everything decodes", Level::Content, format!("{bytes} bytes"))
                    }
                    Err(e) if e.kind() == Kind::Interrupted => return Err(e),
                    Err(e) => Check::of_error(
                        "everything decodes",
                        Some(Level::Content),
                        Outcome::Failed,
                        "without an error",
                        &e,
                    ),
                });
                // Its hint is for who restores by hand.
                let check = Check::failed(
                    "it is restored",
                    Level::Restored,
                    "without an error",
                    e.message().to_owned(),
                );
                report.checks.push(check.with_detail(e.chain()));
            }
        }
        Ok(())
    }

    /// Reads the point to its end, to nowhere.
    async fn decodes(&self, opened: &OpenPoint) -> Result<u64> {
        let mut content = opened.content()?;
        let mut bytes = 0;
        while content.next().await?.is_some() {
            while let Some(part) = content.read().await? {
                bytes += part.len() as u64;
                if self.session.cancel.is_cancelled() {
                    return Err(Error::new(Kind::Interrupted, "interrupted"));
                }
            }
        }
        Ok(bytes)
    }
}

/// Whether a restore failed of what this host lacks, and not of the point.
fn no_room(directory: &Path, e: &Error) -> bool {
    const SAID: [&str; 4] = [
        "No space left on device",
        "Disk quota exceeded",
        "out of memory",
        "Cannot allocate memory",
    ];
    // A server that ends of it says so only in its log.
    let told = [e.chain(), last_of(&log_of(directory), LOG_LOOKED_AT)];
    let full = rustix::fs::statvfs(directory).is_ok_and(|s| s.f_bavail.saturating_mul(s.f_frsize) < FULL);
    full || SAID
        .iter()
        .any(|said| told.iter().any(|told| told.contains(said)))
}

/// Level 4, as the restore compared it.
fn facts(differences: &[String], report: &mut SourceDrill) {
    if differences.is_empty() {
        report.checks.push(Check::passed(
            "facts of the backup",
            Level::Facts,
            "no difference",
        ));
    }
    for difference in differences.iter().take(DIFFERENCES_TOLD) {
        report.checks.push(Check::failed(
            "facts of the backup",
            Level::Facts,
            "no difference",
            difference.clone(),
        ));
    }
    if let Some(more) = differences.len().checked_sub(DIFFERENCES_TOLD).filter(|n| *n > 0) {
        let told = format!("and {more} more differences");
        report.checks.push(Check::failed(
            "facts of the backup",
            Level::Facts,
            "no difference",
            told,
        ));
    }
}
