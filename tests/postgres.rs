//! The logical Postgres source against real servers: what it captures comes back, and what goes wrong is told.
#![allow(clippy::unwrap_used, reason = "a test that can not go on fails")]

mod harness;

#[path = "postgres/examined.rs"]
mod examined;
#[path = "postgres/failures.rs"]
mod failures;
#[path = "postgres/guarded.rs"]
mod guarded;
#[path = "postgres/journey.rs"]
mod journey;
#[path = "postgres/roles.rs"]
mod roles;
#[path = "postgres/support.rs"]
mod support;
#[path = "postgres/targets.rs"]
mod targets;
#[path = "postgres/tls.rs"]
mod tls;
