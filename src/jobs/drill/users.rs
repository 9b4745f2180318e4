//! Who a target belongs to when we are root: never a user who owns anything.

use std::os::unix::fs::MetadataExt as _;

use super::super::Session;
use crate::error::{Error, Kind, Result};

/// Numbers that systems give to nobody for good: systemd takes some for the time a service runs (its "Users, Groups, UIDs and
/// GIDs on systemd Systems"); those in use are passed over.
const NUMBERS: std::ops::Range<u32> = 61_184..65_520;

/// A number that no account and no process has.
///
/// # Errors
/// All of them are taken; no randomness.
pub fn own(session: &Session) -> Result<(u32, u32)> {
    let accounts = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let mut taken: Vec<u32> = accounts
        .lines()
        .filter_map(|line| line.split(':').nth(2)?.parse().ok())
        .collect();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        taken.extend(entry.metadata().map(|of| of.uid()));
    }
    let mut bytes = [0; 4];
    session.world.random.fill(&mut bytes)?;
    choose(u32::from_le_bytes(bytes), &taken)
        .map(|number| (number, number))
        .ok_or_else(|| {
            Error::new(
                Kind::DrillCouldNotRun,
                "no number is left for a user of the drill's own",
            )
        })
}

/// The first that is not taken, from a place by chance.
fn choose(chance: u32, taken: &[u32]) -> Option<u32> {
    let count = NUMBERS.end - NUMBERS.start;
    (0..count)
        .map(|step| NUMBERS.start + (chance % count + step) % count)
        .find(|number| !taken.contains(number))
}

/// The user `nobody`.
///
/// # Errors
/// This system has none.
pub fn nobody() -> Result<(u32, u32)> {
    let accounts = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let found = accounts.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some("nobody")).then_some(())?;
        Some((fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?))
    });
    found.ok_or_else(|| {
        Error::new(
            Kind::DrillCouldNotRun,
            "this host allows no sandbox, and has no user nobody that a server could run as",
        )
        .hint("Run drills as another user than root.")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_one_that_nobody_has() {
        assert_eq!(choose(0, &[]), Some(61_184));
        assert_eq!(choose(0, &[61_184, 61_185]), Some(61_186));
        assert_eq!(choose(4335, &[65_519]), Some(61_184), "it goes round");
        let all: Vec<u32> = NUMBERS.collect();
        assert_eq!(choose(7, &all), None);
    }
}
