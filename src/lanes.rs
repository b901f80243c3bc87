//! Lanes as operators see and steer them: which take nothing now and why, and how each fares at all daemons together.
//!
//! Invariant: what an operator has paused stays so until an operator resumes it, for every daemon, also for one that starts
//! meanwhile; while the database cannot be asked, what was known last holds.

/// Which lanes take nothing now.
mod pauses;

/// What one daemon tells of itself.
mod report;

/// All daemons together.
mod fleet;

/// What waits, for metrics.
mod counting;

pub use self::{
    counting::count,
    fleet::{Daemon, Fleet, LaneState},
    pauses::Pauses,
    report::{DaemonReport, LaneReport, RelayReport, Reporter},
};
