//! The policy file: what, when, where, how long.

pub mod model;

pub use model::*;
pub mod secrets;
