//! Lifeboat: backups that are proven by restoring them.
//!
//! The crate is a library and a thin binary (`backup`). Imports go down only: `cli` → `jobs` → `repository`,
//! `source` → `store`, `state`, `policy` → the pure modules and types. `tests/tidy.rs` holds the arrows.
// One call has no safe form; it says so where it stands (`sandbox::apart`).
#![deny(unsafe_code)]

pub mod cli;
pub mod clock;
pub mod daemon;
pub mod drill;
pub mod error;
#[doc(hidden)]
pub mod fuzzing;
pub mod jobs;
pub mod notify;
pub mod policy;
pub mod progress;
pub mod recovery;
pub mod repository;
pub mod retention;
pub mod sandbox;
pub mod schedule;
pub mod secret;
pub mod source;
pub mod state;
pub mod store;
pub mod types;
pub mod when;
