//! Postgres: [`PostgresSource`] dumps databases logically, [`LogicalRestorer`] puts dumps back. Only here is Postgres
//! named. (The physical source comes beside `logical`.)

mod client;
mod connect;
pub(crate) mod facts;
mod logical;
mod quote;
mod scratch;
mod tls;
mod value;

pub use logical::{LogicalRestorer, PostgresSource};
