//! What a process and those below it show of themselves.

use std::path::Path;

/// A process while it ran.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub struct Process {
    pub name: String,
    pub arguments: Vec<u8>,
    pub environment: Vec<u8>,
    pub is_child: bool,
}

/// A process and all below it.
pub fn family(root: u32) -> Vec<Process> {
    let mut found = Vec::new();
    let mut left = vec![root];
    while let Some(pid) = left.pop() {
        let place = Path::new("/proc").join(pid.to_string());
        let read = |name: &str| std::fs::read(place.join(name)).unwrap_or_default();
        let name = String::from_utf8_lossy(&read("comm")).trim().to_owned();
        // Between fork and exec a child is its parent yet.
        let is_child = pid != root && name != "backup" && !name.starts_with("tokio");
        found.push(Process {
            name,
            arguments: read("cmdline"),
            environment: read("environ"),
            is_child,
        });
        let tasks = std::fs::read_dir(place.join("task"))
            .into_iter()
            .flatten()
            .flatten();
        for task in tasks {
            let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
            left.extend(children.split_whitespace().filter_map(|n| n.parse::<u32>().ok()));
        }
    }
    found
}
