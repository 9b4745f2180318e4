//! Metrics as Prometheus reads them (its text format 0.0.4): timestamps of what succeeded, never a last status. What is counted
//! is kept in the ledger, so a restart resets nothing.

use std::fmt::Write as _;

use chrono::{DateTime, Utc};

use super::points::ShownSource;
use super::{Shown, ShownTask};
use crate::state::ledger::TOOK_SECONDS;

/// The exposition.
pub fn exposition(shown: &Shown) -> String {
    let mut out = String::new();
    let mut family = |name: &str, kind: &str, help: &str, samples: Vec<(String, f64)>| {
        if samples.is_empty() {
            return;
        }
        // Writing to a String can not fail.
        let _ = writeln!(
            out,
            "# HELP lifeboat_{name} {help}\n# TYPE lifeboat_{name} {kind}"
        );
        for (labels, value) in samples {
            // A histogram's samples have names of their own.
            let (end, labels) = labels.split_at(labels.find('{').unwrap_or(labels.len()));
            let _ = writeln!(out, "lifeboat_{name}{end}{labels} {value}");
        }
    };
    let version = format!("{{version=\"{}\"}}", env!("CARGO_PKG_VERSION"));
    family(
        "build_info",
        "gauge",
        "The version that runs.",
        vec![(version, 1.0)],
    );
    let of_tasks = |value: &dyn Fn(&ShownTask) -> Option<f64>| -> Vec<(String, f64)> {
        let sample = |t: &ShownTask| Some((format!("{{task=\"{}\"}}", t.key), value(t)?));
        shown.tasks.iter().filter_map(sample).collect()
    };
    family(
        "last_success_timestamp_seconds",
        "gauge",
        "When a slot was done last.",
        of_tasks(&|t| seconds(t.totals.last_done)),
    );
    family(
        "last_attempt_timestamp_seconds",
        "gauge",
        "When a slot was begun last.",
        of_tasks(&|t| seconds(t.totals.last_begun)),
    );
    family(
        "next_run_timestamp_seconds",
        "gauge",
        "When the next one begins.",
        of_tasks(&|t| seconds(t.next)),
    );
    family(
        "rpo_target_seconds",
        "gauge",
        "The recovery point objective.",
        of_tasks(&|t| t.rpo.map(|d| d.as_secs_f64())),
    );
    family(
        "running",
        "gauge",
        "Whether a slot is under way.",
        of_tasks(&|t| Some(f64::from(u8::from(t.running.is_some())))),
    );
    family(
        "waiting",
        "gauge",
        "Whether a slot waits for its turn.",
        of_tasks(&|t| Some(f64::from(u8::from(t.waiting.is_some())))),
    );
    let results = shown.tasks.iter().flat_map(|t| {
        let totals = [
            ("done", t.totals.done),
            ("failed", t.totals.failed),
            ("interrupted", t.totals.interrupted),
        ];
        totals.map(|(result, n)| {
            (
                format!("{{task=\"{}\",result=\"{result}\"}}", t.key),
                f64::from(n),
            )
        })
    });
    family(
        "runs_total",
        "counter",
        "Slots by how they ended, over all restarts.",
        results.collect(),
    );
    family(
        "slots_passed_total",
        "counter",
        "Slots that no run answered for, over all restarts.",
        of_tasks(&|t| Some(f64::from(t.totals.passed))),
    );
    durations(&mut family, &shown.tasks);
    family(
        "trouble_since_timestamp_seconds",
        "gauge",
        "Since when slots are not done.",
        of_tasks(&|t| seconds(t.trouble)),
    );
    family(
        "notices_owed",
        "gauge",
        "Notices that nobody took yet.",
        vec![(String::new(), f64::from(shown.owed))],
    );
    points(&mut family, &shown.sources);
    family(
        "memory_writable",
        "gauge",
        "Whether what happens can be written down; nothing is begun while it can not.",
        vec![(String::new(), f64::from(u8::from(shown.memory.is_none())))],
    );
    family(
        "held_until_timestamp_seconds",
        "gauge",
        "The clock was set back, and nothing starts before this; 0 when it was not.",
        vec![(String::new(), seconds(shown.held_until).unwrap_or(0.0))],
    );
    let taken = shown.reload.is_none_or(|(_, taken)| taken);
    family(
        "config_reload_success",
        "gauge",
        "Whether the policy on disk is the one in use.",
        vec![(String::new(), f64::from(u8::from(taken)))],
    );
    if let Some((at, _)) = shown.reload {
        family(
            "config_reload_timestamp_seconds",
            "gauge",
            "When the policy was read anew last.",
            vec![(String::new(), at.timestamp_millis() as f64 / 1000.0)],
        );
    }
    out
}

fn seconds(at: Option<DateTime<Utc>>) -> Option<f64> {
    at.map(|at| at.timestamp_millis() as f64 / 1000.0)
}

/// Writes a family: its name, type, help and samples.
type Family<'a> = &'a mut dyn FnMut(&str, &str, &str, Vec<(String, f64)>);

/// How long the slots that were done took.
fn durations(family: Family<'_>, tasks: &[ShownTask]) {
    let mut samples = Vec::new();
    for task in tasks {
        let took = &task.totals.took;
        let bounds = TOOK_SECONDS.iter().map(u32::to_string).chain(["+Inf".to_owned()]);
        let mut count = 0;
        for (bound, more) in bounds.zip(took.counts) {
            count += more;
            let labels = format!("_bucket{{task=\"{}\",le=\"{bound}\"}}", task.key);
            samples.push((labels, f64::from(count)));
        }
        let labels = format!("{{task=\"{}\"}}", task.key);
        samples.push((format!("_sum{labels}"), took.sum_ms as f64 / 1000.0));
        samples.push((format!("_count{labels}"), f64::from(count)));
    }
    let help = "How long the slots that were done took, over all restarts.";
    family("run_duration_seconds", "histogram", help, samples);
}

/// What is known of recovery points.
fn points(family: Family<'_>, sources: &[ShownSource]) {
    let mut of = |name: &str, help: &str, value: &dyn Fn(&ShownSource) -> Option<f64>| {
        let sample = |s: &ShownSource| Some((format!("{{source=\"{}\"}}", s.name), value(s)?));
        family(name, "gauge", help, sources.iter().filter_map(sample).collect());
    };
    of("recovery_points", "Recovery points that restore.", &|s| {
        s.points.looked.map(|_| f64::from(s.points.points))
    });
    of(
        "recovery_point_newest_timestamp_seconds",
        "The instant of the newest recovery point.",
        &|s| seconds(s.points.newest),
    );
    of(
        "recovery_point_oldest_timestamp_seconds",
        "The instant of the oldest recovery point.",
        &|s| seconds(s.points.oldest),
    );
    of(
        "recovery_point_objective_seconds",
        "How old the newest one may be: the objective, else twice the interval.",
        &|s| s.objective.map(|o| o.as_secs_f64()),
    );
    of("damaged_points", "Recovery points that are damaged.", &|s| {
        s.points.looked.map(|_| f64::from(s.points.damaged))
    });
    of(
        "foreign_points",
        "Recovery points that another state directory wrote since this one writes.",
        &|s| s.points.looked.map(|_| f64::from(s.points.foreign)),
    );
    of(
        "repository_looked_timestamp_seconds",
        "When the repository was asked for all points last.",
        &|s| seconds(s.points.looked),
    );
    of(
        "drill_last_success_timestamp_seconds",
        "When a drill of it passed last.",
        &|s| seconds(s.last_proof().map(|(at, _)| at)),
    );
    of(
        "drill_last_level",
        "The level that this one reached, 0 to 6.",
        &|s| s.last_proof().map(|(_, level)| f64::from(level)),
    );
    of(
        "drill_restore_seconds",
        "How long the restore of this one took.",
        &|s| s.proof.proof.as_ref()?.restore_seconds,
    );
    of(
        "drill_interval_seconds",
        "The usual time between the scheduled drills that name it.",
        &|s| s.proof.interval.map(|i| i.as_secs_f64()),
    );
    let sizes = sources
        .iter()
        .filter(|s| s.points.newest.is_some())
        .flat_map(|s| {
            [("raw", s.points.content), ("stored", s.points.stored)].map(|(stage, bytes)| {
                (
                    format!("{{source=\"{}\",stage=\"{stage}\"}}", s.name),
                    bytes as f64,
                )
            })
        });
    family(
        "backup_size_bytes",
        "gauge",
        "The size of the newest recovery point, and what it added to the repository.",
        sizes.collect(),
    );
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use super::*;
    use crate::daemon::proofs::ShownProof;
    use crate::state::ledger::points::PointsSummary;
    use crate::state::ledger::proofs::Proof;
    use crate::state::ledger::{Took, Totals};

    fn shown() -> Shown {
        let at = |text: &str| Some(text.parse::<DateTime<Utc>>().unwrap());
        let task = |key: &str, last_done| ShownTask {
            key: key.to_owned(),
            next: at("2026-11-26T11:00:00Z"),
            running: at("2026-11-26T10:00:00Z"),
            waiting: None,
            known: true,
            rpo: Some(Duration::from_secs(7200)),
            totals: Totals {
                done: 7,
                failed: 2,
                interrupted: 1,
                passed: 3,
                last_begun: at("2026-11-26T10:00:00.5Z"),
                last_done,
                last_ended: None,
                took: Took {
                    counts: [0, 4, 2, 0, 0, 0, 0, 0, 0, 0, 1],
                    sum_ms: 90_123_500,
                },
            },
            failed: None,
            trouble: at("2026-11-26T09:00:00Z"),
        };
        Shown {
            environment: "test".to_owned(),
            policy: "/etc/lifeboat/policy.toml".to_owned(),
            zone: chrono_tz::UTC,
            sources: vec![
                ShownSource {
                    name: "app".parse().unwrap(),
                    kind: "pocketbase",
                    objective: Some(Duration::from_secs(7200)),
                    points: PointsSummary {
                        points: 12,
                        damaged: 1,
                        foreign: 2,
                        future: 0,
                        oldest: at("2026-10-26T09:00:00Z"),
                        newest: at("2026-11-26T09:00:00Z"),
                        content: 5000,
                        stored: 1200,
                        looked: at("2026-11-26T09:30:00Z"),
                        first_looked: at("2026-10-26T09:30:00Z"),
                    },
                    proof: ShownProof {
                        proof: Some(Proof {
                            newest: None,
                            last: Some((at("2026-11-22T05:00:00Z").unwrap(), 6)),
                            restore_seconds: Some(12.5),
                        }),
                        interval: Some(Duration::from_secs(604_800)),
                    },
                    looking: false,
                },
                ShownSource {
                    name: "new".parse().unwrap(),
                    kind: "pocketbase",
                    objective: None,
                    points: PointsSummary::default(),
                    proof: ShownProof::default(),
                    looking: true,
                },
            ],
            tasks: vec![task("run app", at("2026-11-26T09:00:02Z")), task("run new", None)],
            reload: Some(("2026-11-26T08:00:00Z".parse().unwrap(), true)),
            memory: None,
            repository: None,
            evidence: None,
            held_until: at("2026-11-26T10:20:00Z"),
            owed: 4,
            turned: Some(Duration::from_secs(1)),
            stopping: false,
        }
    }

    #[test]
    fn the_exposition_is_what_it_was() {
        let text = exposition(&shown());
        for line in [
            "# TYPE lifeboat_last_success_timestamp_seconds gauge",
            "lifeboat_last_success_timestamp_seconds{task=\"run app\"} 1795683602",
            "lifeboat_last_attempt_timestamp_seconds{task=\"run app\"} 1795687200.5",
            "lifeboat_next_run_timestamp_seconds{task=\"run new\"} 1795690800",
            "lifeboat_rpo_target_seconds{task=\"run app\"} 7200",
            "# TYPE lifeboat_runs_total counter",
            "lifeboat_runs_total{task=\"run app\",result=\"done\"} 7",
            "lifeboat_runs_total{task=\"run app\",result=\"failed\"} 2",
            "lifeboat_runs_total{task=\"run app\",result=\"interrupted\"} 1",
            "lifeboat_slots_passed_total{task=\"run app\"} 3",
            "lifeboat_running{task=\"run app\"} 1",
            "lifeboat_waiting{task=\"run app\"} 0",
            "lifeboat_trouble_since_timestamp_seconds{task=\"run app\"} 1795683600",
            "lifeboat_notices_owed 4",
            "lifeboat_held_until_timestamp_seconds 1795688400",
            "lifeboat_memory_writable 1",
            "lifeboat_config_reload_success 1",
            "# TYPE lifeboat_run_duration_seconds histogram",
            "lifeboat_run_duration_seconds_bucket{task=\"run app\",le=\"1\"} 0",
            "lifeboat_run_duration_seconds_bucket{task=\"run app\",le=\"10\"} 4",
            "lifeboat_run_duration_seconds_bucket{task=\"run app\",le=\"86400\"} 6",
            "lifeboat_run_duration_seconds_bucket{task=\"run app\",le=\"+Inf\"} 7",
            "lifeboat_run_duration_seconds_sum{task=\"run app\"} 90123.5",
            "lifeboat_run_duration_seconds_count{task=\"run app\"} 7",
            "lifeboat_recovery_points{source=\"app\"} 12",
            "lifeboat_recovery_point_newest_timestamp_seconds{source=\"app\"} 1795683600",
            "lifeboat_recovery_point_objective_seconds{source=\"app\"} 7200",
            "lifeboat_damaged_points{source=\"app\"} 1",
            "lifeboat_foreign_points{source=\"app\"} 2",
            "lifeboat_repository_looked_timestamp_seconds{source=\"app\"} 1795685400",
            "lifeboat_drill_last_success_timestamp_seconds{source=\"app\"} 1795323600",
            "lifeboat_drill_last_level{source=\"app\"} 6",
            "lifeboat_drill_restore_seconds{source=\"app\"} 12.5",
            "lifeboat_drill_interval_seconds{source=\"app\"} 604800",
            "lifeboat_backup_size_bytes{source=\"app\",stage=\"raw\"} 5000",
            "lifeboat_backup_size_bytes{source=\"app\",stage=\"stored\"} 1200",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
        // What never succeeded has no time of success: an age would hide it.
        assert!(!text.contains("lifeboat_last_success_timestamp_seconds{task=\"run new\"}"));
        assert!(
            !text.contains("source=\"new\""),
            "what is not known is not told\n{text}"
        );
        assert!(text.contains(concat!(
            "lifeboat_build_info{version=\"",
            env!("CARGO_PKG_VERSION"),
            "\"} 1"
        )));
    }

    #[test]
    fn every_metric_of_the_alert_rules_is_exposed() {
        let rules = include_str!("../../packaging/prometheus/lifeboat.rules.yml");
        let names = |text: &str| -> BTreeSet<String> {
            let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            words
                .filter(|w| w.starts_with("lifeboat_"))
                .map(str::to_owned)
                .collect()
        };
        let exposed = names(&exposition(&shown()));
        let named = names(rules);
        assert!(named.len() >= 9, "{named:?}");
        assert!(named.is_subset(&exposed), "{:?}", named.difference(&exposed));
        // All that tells of something has an alert; what only informs has none.
        let informs = [
            "build_info",
            "last_attempt_timestamp_seconds",
            "waiting",
            "config_reload_timestamp_seconds",
            "run_duration_seconds",
            "run_duration_seconds_bucket",
            "run_duration_seconds_sum",
            "run_duration_seconds_count",
            "recovery_points",
            "recovery_point_oldest_timestamp_seconds",
            "backup_size_bytes",
            "drill_last_level",
            "drill_restore_seconds",
        ];
        let informs: BTreeSet<String> = informs.iter().map(|n| format!("lifeboat_{n}")).collect();
        let silent: Vec<_> = exposed
            .difference(&named)
            .filter(|n| !informs.contains(*n))
            .collect();
        assert!(silent.is_empty(), "{silent:?}");
    }
}
