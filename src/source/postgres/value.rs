//! Values in the rows that a server gives.

use chrono::{DateTime, Utc};

use crate::error::{Error, Result};

/// A column's value.
///
/// # Errors
/// The server gave another type than asked for.
pub(crate) fn value<'a, T: tokio_postgres::types::FromSql<'a>>(
    row: &'a tokio_postgres::Row,
    index: usize,
) -> Result<T> {
    row.try_get(index)
        .map_err(|e| Error::failed("the server gave an unexpected value").because(e))
}

/// An instant from microseconds since 1970, as queries give it.
///
/// # Errors
/// A time that no clock shows.
pub(crate) fn instant(microseconds: i64) -> Result<DateTime<Utc>> {
    DateTime::from_timestamp_micros(microseconds)
        .ok_or_else(|| Error::failed("the server gave a time that can not be"))
}

/// The chain of causes as one line.
pub(super) fn causes(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut cause = e.source();
    while let Some(error) = cause {
        let part = error.to_string();
        if !text.contains(&part) {
            text = format!("{text}: {part}");
        }
        cause = error.source();
    }
    text
}
