//! The alert rules, judged by Prometheus itself.

use std::collections::BTreeSet;
use std::process::Command;

use crate::harness::{binary, project, run};

#[test]
fn every_alert_is_silent_while_all_is_well_and_fires_when_it_is_not() {
    let packaged = project().join("packaging/prometheus");
    for args in [
        ["check", "rules", "lifeboat.rules.yml"],
        ["test", "rules", "lifeboat.tests.yml"],
    ] {
        let said = run(Command::new(binary("promtool")).args(args).current_dir(&packaged));
        assert_eq!(said.code, 0, "{said}");
    }
    let read = |name: &str| std::fs::read_to_string(packaged.join(name)).unwrap();
    let (rules, tests) = (read("lifeboat.rules.yml"), read("lifeboat.tests.yml"));
    let alerts: BTreeSet<&str> = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
        .collect();
    assert!(alerts.len() >= 15, "{alerts:?}");
    let (faults, well) = tests.split_once("- name: everything is well").unwrap();
    for alert in alerts {
        let fires = format!("alertname: {alert}\n        exp_alerts: [{{");
        assert!(faults.contains(&fires), "no test in which {alert} fires");
        let silent = format!("alertname: {alert} }}");
        assert!(faults.contains(&silent), "no test in which {alert} waits");
        assert!(
            well.contains(&silent),
            "{alert} is not looked for while all is well"
        );
    }
}
