//! Jobs: each plans (pure), then carries the plan out. The command line and the daemon call these and print nothing
//! of their own making.

pub mod backup;
pub mod check;
pub mod drill;
pub mod evidence;
mod gap;
pub mod hold;
pub mod init;
pub mod keys;
pub mod last;
pub mod list;
pub mod notices;
pub mod outline;
pub mod prune;
pub mod recovery_key;
pub mod report;
pub mod restore;
pub mod session;
pub mod status;
pub mod timetable;
pub mod verify;
pub mod wraps;

pub use session::Session;
