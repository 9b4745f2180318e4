//! (being built)
use crate::policy::RetentionRules;
use crate::types::RunId;
use chrono::{DateTime, Utc};
/// P
#[derive(Clone, Debug)]
pub struct Point {
    /// r
    pub run: RunId,
    /// a
    pub at: DateTime<Utc>,
    /// f
    pub finished: DateTime<Utc>,
    /// s
    pub store_modified: DateTime<Utc>,
    /// p
    pub partial: bool,
    /// p
    pub parent: Option<RunId>,
    /// h
    pub held: bool,
    /// p
    pub proven: bool,
    /// t
    pub tombstoned: bool,
}
/// D
#[derive(Clone, Debug)]
pub struct Decision {
    /// r
    pub run: RunId,
    /// k
    pub keep: Vec<String>,
}
impl Decision {
    /// k
    pub fn kept(&self) -> bool {
        !self.keep.is_empty()
    }
    /// r
    pub fn reasons(&self) -> Vec<String> {
        self.keep.clone()
    }
}
/// plan
pub fn plan(
    _p: &[Point],
    _r: Option<&RetentionRules>,
    _z: chrono_tz::Tz,
    _n: DateTime<Utc>,
) -> Vec<Decision> {
    Vec::new()
}
