//! One sender once, and what it took.

use std::time::Duration;

use serde::Serialize;

use super::process;

/// What is not known of a run is left out. CPU is user and system time.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Run {
    pub(crate) mails: u64,
    pub(crate) mails_per_second: f64,
    /// From the start of the program to the last mail.
    pub(crate) wall_seconds: f64,
    pub(crate) cpu_ms_per_thousand: f64,
    pub(crate) start_to_first_mail_ms: Option<f64>,
    /// Of the daemon that had most.
    pub(crate) peak_rss_mib: Option<f64>,
    pub(crate) sink_cpu_ms_per_thousand: f64,
    /// Of the benchmark itself, where the path to the relay leads through it or it listens to events.
    pub(crate) own_cpu_ms_per_thousand: Option<f64>,
    pub(crate) rabbitmq_cpu_ms_per_thousand: Option<f64>,
    pub(crate) postgresql_cpu_ms_per_thousand: Option<f64>,
    /// How much of the machine went to neither the sender nor what it needs: other programs, the kernel's own threads.
    pub(crate) elsewhere_share: f64,
}

/// This much CPU time as a part of what the machine had to give.
pub(crate) fn share(cpu_ms: f64, wall: Duration) -> f64 {
    // Ticks are coarse, so that nothing may come out as a little less than nothing.
    (cpu_ms / (wall.as_secs_f64() * 1000.0 * process::cores() as f64)).max(0.0)
}
