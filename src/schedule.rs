//! (being built)
use chrono::{DateTime, Utc};
/// S
pub struct Schedule;
impl Schedule {
    /// p
    pub fn parse(_t: &str, _z: chrono_tz::Tz) -> crate::error::Result<Self> {
        Ok(Self)
    }
    /// u
    pub fn usual_interval(&self, _now: DateTime<Utc>) -> Option<std::time::Duration> {
        None
    }
    /// n
    pub fn next_slots(&self, _after: DateTime<Utc>, _count: usize) -> Vec<DateTime<Utc>> {
        Vec::new()
    }
}
