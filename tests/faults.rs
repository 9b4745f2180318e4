//! Faults with the real binary: it is killed at random moments, its system calls fail one after the other, its disks
//! fill, signals reach it, and the store answers as stores do on bad days. What `list` shows restores, byte for byte.
#![allow(clippy::unwrap_used)]

#[path = "daemon/alerts.rs"]
mod alerts;
#[path = "faults/calls.rs"]
mod calls;
#[path = "daemon/clock.rs"]
mod clock;
#[path = "daemon/delivery.rs"]
mod delivery;
#[path = "faults/full.rs"]
mod full;
mod harness;
#[path = "faults/kill.rs"]
mod kill;
#[path = "daemon/mail.rs"]
mod mail;
#[path = "daemon/memory.rs"]
mod memory;
#[path = "daemon/notices.rs"]
mod notices;
#[path = "daemon/page.rs"]
mod page;
#[path = "faults/postgres.rs"]
mod postgres;
#[path = "daemon/process.rs"]
mod process;
#[path = "faults/secrets.rs"]
mod secrets;
#[path = "faults/signals.rs"]
mod signals;
#[path = "faults/site.rs"]
mod site;
#[path = "daemon/slots.rs"]
mod slots;
#[path = "faults/store.rs"]
mod store;
#[path = "daemon/told.rs"]
mod told;
#[path = "daemon/week.rs"]
mod week;
#[path = "daemon/world.rs"]
mod world;
