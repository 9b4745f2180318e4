//! Everything ends, and what must be there is looked for.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use chrono::TimeDelta;
use lifeboat::repository::layout;
use lifeboat::store::{SharedStore, View, list_all};
use lifeboat::types::{Key, RunId};

use super::actors::{self, Op};
use super::sea::{Actor, Verdict};
use super::voyage::Voyage;
use super::{PRUNERS, RESTORER, Tally, WRITERS, Weather};

impl Voyage {
    /// Everything that is under way ends, without another fault.
    pub async fn come_home(&mut self) {
        self.calm = true;
        self.suspended.clear();
        for actor in 0..=RESTORER {
            self.hosts[&actor].clock.skew_ms.store(0, Ordering::SeqCst);
        }
        // What began under faults may still fail of them.
        let calm = std::mem::take(&mut self.calm);
        self.settle().await;
        while !self.running.is_empty() {
            let waiting = self.sea.state().parked.len();
            for _ in 0..waiting {
                self.sea.release(0, Verdict::Do);
            }
            self.settle().await;
        }
        self.calm = calm;
        self.sea.deliver(true).await;
        self.learn().await;
        self.judge();
    }

    pub async fn do_now(&mut self, actor: Actor, op: Op) {
        self.start(actor, op);
        self.settle().await;
        while self.running.contains_key(&actor) {
            self.sea.release(0, Verdict::Do);
            self.settle().await;
        }
        self.learn().await;
        self.judge();
    }

    /// Every point that must be there is listed and restores.
    pub async fn look_at_everything(&mut self) {
        let repository = self.repository(false).await;
        let catalog = repository.catalog(&actors::source_name()).await.unwrap();
        let prefix = layout::points_prefix(&actors::source_name());
        let alive = self.sea.state().model.alive();
        for (key, point) in alive {
            let run = actors::run_of(&key, &prefix).unwrap();
            assert!(
                catalog.points.contains_key(&run),
                "seed {}: {run} is not listed\n{}",
                self.seed,
                self.log.join("\n")
            );
            let store: SharedStore = Arc::new(self.sea.memory.clone());
            let found = actors::content(store, run, &self.identity, self.weather.thief).await;
            let same = match &found {
                Ok(found) => point.content.as_ref().is_none_or(|c| **c == *found),
                Err(_) => false,
            };
            assert!(
                same,
                "seed {}: {run} does not restore: {:?}\n{}",
                self.seed,
                found.map(|_| "other bytes"),
                self.log.join("\n")
            );
        }
    }

    /// Nothing is left of what nobody needs.
    pub async fn look_for_litter(&mut self) {
        let prefix = layout::runs_prefix(&actors::source_name());
        let listed = list_all(&self.sea.memory, &prefix, View::Current).await.unwrap();
        let repository = self.repository(false).await;
        let catalog = repository.catalog(&actors::source_name()).await.unwrap();
        let commits: Vec<_> = catalog.points.values().map(|p| &p.commit).collect();
        let (refs, _) = repository
            .refs_of(&actors::source_name(), &commits)
            .await
            .unwrap();
        let state = self.sea.state();
        let runs: BTreeSet<RunId> = state
            .model
            .points
            .iter()
            .filter(|(_, p)| !p.deleted)
            .filter_map(|(k, _)| actors::run_of(k, &layout::points_prefix(&actors::source_name())))
            .collect();
        let mut needed: BTreeSet<Key> = state
            .model
            .alive()
            .into_iter()
            .flat_map(|(_, p)| p.needed.unwrap_or_default().into_keys())
            .collect();
        // A cut also keeps what the run that goes on from it may draw on.
        let cuts = refs.iter().filter(|(run, _)| catalog.points[run].commit.partial);
        for reference in cuts.flat_map(|(_, refs)| refs.0.values()) {
            let packs = reference.packs.iter().flat_map(|(a, b)| *a..=*b);
            needed.extend(packs.map(|n| layout::pack(&actors::source_name(), reference.run, n)));
        }
        for object in listed {
            let run = layout::run_and_name(&object.key, &prefix).unwrap().0;
            assert!(
                runs.contains(&run) || needed.contains(&object.key),
                "seed {}: {} is left over\n{}",
                self.seed,
                object.key,
                self.log.join("\n")
            );
        }
    }

    pub async fn finish(mut self) -> Tally {
        self.come_home().await;
        self.look_at_everything().await;
        if !self.weather.thief {
            if self.sea.state().model.points.values().any(|p| p.broken) {
                // What nobody has recorded yet stops prune until verify tells it.
                self.do_now(WRITERS[0], Op::Verify).await;
            }
            // A commit gone without a tombstone stops one prune, which mends that.
            self.calm = false;
            self.weather = Weather::calm(&self.weather);
            self.do_now(PRUNERS[0], Op::Prune).await;
            self.calm = true;
            for actor in [WRITERS[0], PRUNERS[0], WRITERS[1], PRUNERS[1]] {
                let op = if WRITERS.contains(&actor) {
                    Op::Run { cut: false }
                } else {
                    Op::Prune
                };
                self.do_now(actor, op).await;
                self.pass_time(TimeDelta::days(9)).await;
            }
            self.look_at_everything().await;
            for _ in 0..3 {
                for actor in PRUNERS {
                    self.do_now(actor, Op::Prune).await;
                }
                self.pass_time(TimeDelta::days(9)).await;
            }
            self.look_at_everything().await;
            if !self.sea.state().model.points.values().any(|p| p.broken) {
                self.look_for_litter().await;
            }
        }
        self.tally.deleted = self
            .sea
            .state()
            .model
            .points
            .values()
            .filter(|p| p.deleted)
            .count() as u64;
        self.tally
    }
}
