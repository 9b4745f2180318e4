//! What the daemon shows of itself: to systemd, over HTTP, to whoever waits for it.

use std::time::Duration;

use chrono::{DateTime, Utc};
use chrono_tz::Tz;

use super::points::ShownSource;
use crate::state::ledger::Totals;

/// A task as it is shown.
#[derive(Clone, Debug, PartialEq)]
pub struct ShownTask {
    /// Its key.
    pub key: String,
    /// When it starts next.
    pub next: Option<DateTime<Utc>>,
    /// The slot that it answers for just now.
    pub running: Option<DateTime<Utc>>,
    /// The slot that waits for its turn.
    pub waiting: Option<DateTime<Utc>>,
    /// Tries of it that failed, why the last did, and when the next one is.
    pub failed: Option<(usize, String, DateTime<Utc>)>,
    /// What is settled is known.
    pub known: bool,
    /// Its objective.
    pub rpo: Option<Duration>,
    /// Counts over all restarts.
    pub totals: Totals,
    /// Since when its slots are not done.
    pub trouble: Option<DateTime<Utc>>,
}

/// What the daemon shows of itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Shown {
    /// Whose data it is.
    pub environment: String,
    /// Where the policy is, as a shell takes it.
    pub policy: String,
    /// The zone of the policy.
    pub zone: Tz,
    /// Its tasks, by key.
    pub tasks: Vec<ShownTask>,
    /// The policy's sources, by name.
    pub sources: Vec<ShownSource>,
    /// How the last reload went, and when.
    pub reload: Option<(DateTime<Utc>, bool)>,
    /// The clock was set back: nothing starts before this.
    pub held_until: Option<DateTime<Utc>>,
    /// Why the ledger can not be written, and nothing is begun.
    pub memory: Option<String>,
    /// Why the repository could not be asked for points; none: it could, or was not asked yet.
    pub repository: Option<String>,
    /// Why what drills proved could not be read; none: it could, or was not looked at yet.
    pub evidence: Option<String>,
    /// Notices that nobody took yet.
    pub owed: u32,
    /// When the loop turned last, since boot.
    pub turned: Option<Duration>,
    /// It was told to stop.
    pub stopping: bool,
}

impl Shown {
    /// One sentence.
    pub fn sentence(&self) -> String {
        if self.stopping {
            return "Stopping.".to_owned();
        }
        let running: Vec<&str> = self
            .tasks
            .iter()
            .filter(|t| t.running.is_some())
            .map(|t| t.key.as_str())
            .collect();
        let next = self
            .tasks
            .iter()
            .filter_map(|t| Some((t.next?, t.key.as_str())))
            .min();
        let unknown = self.tasks.iter().filter(|t| !t.known).count();
        let mut parts = vec![match self.tasks.len() {
            1 => "1 task".to_owned(),
            n => format!("{n} tasks"),
        }];
        if unknown > 0 {
            parts.push(format!("{unknown} waiting for the repository"));
        }
        if !running.is_empty() {
            parts.push(format!("under way: {}", running.join(", ")));
        }
        if let Some((at, key)) = next {
            parts.push(format!("next: {key} at {}", at.format("%Y-%m-%d %H:%M:%SZ")));
        }
        if let Some(why) = &self.memory {
            parts.push(format!("nothing is begun: {why}"));
        }
        if let Some(why) = &self.repository {
            parts.push(format!("the repository can not be asked: {why}"));
        }
        if let Some(until) = self.held_until {
            parts.push(format!(
                "the clock was set back: nothing starts before {}",
                until.format("%Y-%m-%d %H:%M:%SZ")
            ));
        }
        if self.reload.is_some_and(|(_, taken)| !taken) {
            parts.push("the policy on disk is not taken, an older one is in use".to_owned());
        }
        parts.join("; ")
    }
}
