//! Resident memory of a daemon: watched over a run, and with attachments of ten megabytes queued in each lane.

use std::time::{Duration, Instant};

use anyhow::Context;
use chrono::Utc;
use postrider::email::Priority;
use sqlx::postgres::PgPoolOptions;
use tokio::task::JoinHandle;

use super::{
    carry::{self, Stage},
    daemon::{self, Daemon},
    process,
    relay::Route,
    report::Figure,
    requests::{Content, Producer},
    stats,
    work::{Audit, Relay, Which, daemon_settings},
};

/// Between two samples.
const PAUSE: Duration = Duration::from_millis(50);
/// As large as an attachment may be by default, in megabytes of ten to the sixth.
const DOCUMENT: Content = Content::Document(10_000_000);
/// Requests in each lane: a few more than a lane holds unacknowledged by default; with `--full` more.
const A_LANE: u64 = 70;
const A_LANE_FULL: u64 = 500;
/// Later nothing comes that was not there before, so that what is still queued then need not be carried.
const LARGE_LIMIT: Duration = Duration::from_secs(30);

/// Samples of a daemon's memory, in MiB.
pub(crate) struct Memory {
    samples: Vec<f64>,
    peak: f64,
}

/// A watch that ends when it is asked to.
pub(crate) struct Watch {
    task: JoinHandle<Vec<f64>>,
    stop: tokio::sync::watch::Sender<bool>,
}

impl Memory {
    /// Samples from now on.
    pub(crate) fn watch(pid: u32) -> Watch {
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let task = tokio::spawn(async move {
            let mut samples = Vec::new();
            while !*stopped.borrow() {
                // A daemon that has ended is found out by whoever waits for its mails.
                let Ok(memory) = process::memory(pid) else { break };
                samples.push(memory.now);
                tokio::time::sleep(PAUSE).await;
            }
            samples
        });
        Watch { task, stop }
    }

    /// The most that the process has had since it started.
    pub(crate) const fn peak(&self) -> f64 {
        self.peak
    }

    /// Median of the last third of the samples by that of the first.
    pub(crate) fn growth(&self) -> Option<f64> {
        let third = self.samples.len() / 3;
        let first = stats::median(self.samples.iter().take(third).copied())?;
        let last = stats::median(self.samples.iter().rev().take(third).copied())?;
        Some(last / first)
    }
}

impl Watch {
    pub(crate) async fn finish(self, pid: u32) -> anyhow::Result<Memory> {
        self.stop.send_replace(true);
        Ok(Memory { samples: self.task.await?, peak: process::memory(pid)?.peak })
    }
}

/// A cold start with attachments of 10 MB in every lane; prefetch and connections are the daemon's defaults.
pub(crate) async fn measure_large(stage: Stage<'_>) -> anyhow::Result<Vec<Figure>> {
    let a_lane = stage.args.large.unwrap_or(if stage.args.full { A_LANE_FULL } else { A_LANE });
    let title = format!("memory (RSS), {a_lane} requests of 10 MB queued in each lane, cold start: peak");
    let mut peak = Figure::new("memory-large-peak", title, "MiB", 1);
    let mut carried = Figure::new("memory-large-carried", "  of them carried until it was read", "mails", 0);
    for number in 1..=stage.args.runs {
        let (most, mails) = large(stage, a_lane).await?;
        peak.add(Some(most));
        carried.add(Some(mails as f64));
        eprintln!("run {number}: {a_lane} requests of 10 MB a lane: peak {most:.0} MiB, {mails} carried");
    }
    if a_lane < A_LANE_FULL {
        peak.note = Some(format!("{A_LANE_FULL} a lane with --full"));
    }
    Ok(vec![peak, carried])
}

async fn large(stage: Stage<'_>, a_lane: u64) -> anyhow::Result<(f64, u64)> {
    let route = Route::start(Relay::Plain, stage.scratch).await?;
    let site = stage.services.new_site(Which::First, &Audit::Fresh).await?;
    let settings = daemon_settings(stage.args, &site, &route, Vec::new());
    daemon::migrate(&settings, stage.scratch)?;
    let producer = Producer::connect(&settings).await?;
    for priority in [Priority::P0, Priority::P2, Priority::P3] {
        producer.publish(DOCUMENT, priority, a_lane).await?;
    }
    let database = PgPoolOptions::new().max_connections(1).connect(&site.database_url).await?;
    let (started, begun) = (Utc::now(), Instant::now());
    let mut daemon = Daemon::start(&settings, stage.scratch, 1)?;
    let measured = async {
        loop {
            daemon.must_run()?;
            let sent = carry::record(&database, started).await?.sent;
            if sent >= a_lane * 3 || begun.elapsed() > LARGE_LIMIT {
                return anyhow::Ok((process::memory(daemon.pid())?.peak, sent));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
    .await;
    let measured = measured.with_context(|| daemon.last_words())?;
    daemon.end().await?;
    producer.close().await;
    database.close().await;
    stage.services.remove_sites().await?;
    Ok(measured)
}
