//! Incidents beside full lanes: how long they take to the relay's 250, and how much memory the daemon has meanwhile.
//!
//! Latency is `sent_at` minus the request's `published_at`: from the producer's `x-published-at-ms`, whole milliseconds
//! rounded down, to the moment when the daemon had read the relay's reply to the final dot. Both clocks are this machine's.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use chrono::{DateTime, Utc};
use postrider::email::{Lane, Priority};
use sqlx::{PgPool, postgres::PgPoolOptions};

use super::{
    carry::Stage,
    daemon::{self, Daemon},
    memory::Memory,
    relay::Route,
    report::Figure,
    requests::{Content, Producer},
    stats,
    work::{Audit, Relay, Which, Work, daemon_settings},
};

/// Between two incidents.
const EVERY: Duration = Duration::from_millis(50);
/// Incidents of a run.
const INCIDENTS: u64 = 200;
/// Before the first incident, so that connections are open and caches warm.
const WARM_UP: Duration = Duration::from_secs(2);
/// From the start of a daemon to the last incident, with something to spare: for so long the lanes must last.
const RUN_SECONDS: f64 = 15.0;
/// How long the last incident may take.
const LATE_LIMIT: Duration = Duration::from_secs(60);
const LOOK_PAUSE: Duration = Duration::from_millis(50);

/// A place that is kept from run to run.
struct Place {
    settings: Vec<(String, String)>,
    // Held, because the relay ends with it.
    _route: Route,
    producer: Producer,
    database: PgPool,
}

/// All figures of the runs, idle and under the flood in turn.
///
/// `rate` is what a daemon was seen to carry in a second, if it was.
pub(crate) async fn measure(stage: Stage<'_>, rate: Option<f64>) -> anyhow::Result<Vec<Figure>> {
    let idle_place = Place::make(stage).await?;
    let full_place = Place::make(stage).await?;
    let queued = stage.args.queued.max((rate.unwrap_or(0.0) * RUN_SECONDS) as u64 / 3 * 4);
    let mut idle = Figure::new("p0-idle-p99", "P0, publish to 250, idle: 99th percentile", "ms", 1);
    let mut idle_half = Figure::new("p0-idle-p50", "P0, publish to 250, idle: median", "ms", 1);
    let words = format!("P0, publish to 250, {queued} queued in the other lanes");
    let mut flood = Figure::new("p0-flood-p99", format!("{words}: 99th percentile"), "ms", 1);
    let mut flood_half = Figure::new("p0-flood-p50", format!("{words}: median"), "ms", 1);
    let mut flood_rate = Figure::new("p0-flood-rate", "  mails of the other lanes meanwhile", "mails/s", 0);
    let mut peak = Figure::new("memory-peak", format!("memory (RSS), 2 kB mails, {queued} queued: peak"), "MiB", 1);
    let mut growth = Figure::new("memory-growth", "  last third of the run ÷ first third, medians of samples", "", 3);
    for number in 1..=stage.args.runs {
        let (latencies, ..) = idle_place.run(stage).await?;
        idle.add(stats::percentile(latencies.iter().copied(), 0.99));
        idle_half.add(stats::median(latencies));
        eprintln!("run {number}: P0 idle, 99th percentile {} ms", idle.last_words());

        full_place.fill(queued).await?;
        let (latencies, rate, memory) = full_place.run(stage).await?;
        ensure!(
            full_place.producer.waiting(Lane::Standard).await? > 0,
            "the standard lane ran empty while incidents were timed: use a larger --queued"
        );
        flood.add(stats::percentile(latencies.iter().copied(), 0.99));
        flood_half.add(stats::median(latencies));
        flood_rate.add(Some(rate));
        peak.add(Some(memory.peak()));
        growth.add(memory.growth());
        eprintln!(
            "run {number}: P0 under flood, 99th percentile {} ms; {rate:.0} mails/s beside it; peak {} MiB",
            flood.last_words(),
            peak.last_words()
        );
    }
    idle_place.close().await;
    full_place.close().await;
    stage.services.remove_sites().await?;
    for figure in [&mut idle, &mut flood] {
        figure.note = Some(format!("{INCIDENTS} incidents a run, one each {} ms", EVERY.as_millis()));
    }
    Ok(vec![idle_half, idle, flood_half, flood, flood_rate, peak, growth])
}

impl Place {
    async fn make(stage: Stage<'_>) -> anyhow::Result<Self> {
        let route = Route::start(Relay::Plain, stage.scratch).await?;
        let site = stage.services.new_site(Which::First, &Audit::Fresh).await?;
        let settings = daemon_settings(stage.args, &site, &route, Work::usual(stage.args).settings());
        daemon::migrate(&settings, stage.scratch)?;
        let producer = Producer::connect(&settings).await?;
        let database = PgPoolOptions::new().max_connections(1).connect(&site.database_url).await?;
        Ok(Self { settings, _route: route, producer, database })
    }

    /// Queues as many as are missing, three quarters of them in the standard lane, which has more connections.
    async fn fill(&self, queued: u64) -> anyhow::Result<()> {
        let bulk = queued / 4;
        for (lane, priority, part) in [(Lane::Standard, Priority::P2, queued - bulk), (Lane::Bulk, Priority::P3, bulk)]
        {
            let missing = part.saturating_sub(self.producer.waiting(lane).await?);
            self.producer.publish(Content::Notice, priority, missing).await?;
        }
        Ok(())
    }

    /// A daemon works on what is queued while incidents come; their latencies in ms, the rate of the others, and memory.
    async fn run(&self, stage: Stage<'_>) -> anyhow::Result<(Vec<f64>, f64, Memory)> {
        let mut daemon = Daemon::start(&self.settings, stage.scratch, 1)?;
        let measured = self.time_incidents(&mut daemon).await;
        let measured = measured.with_context(|| daemon.last_words())?;
        daemon.end().await?;
        Ok(measured)
    }

    async fn time_incidents(&self, daemon: &mut Daemon) -> anyhow::Result<(Vec<f64>, f64, Memory)> {
        // The first opens the connection and shows that the daemon is up.
        let begun = Utc::now();
        self.producer.publish(Content::Notice, Priority::P0, 1).await?;
        self.until_sent(daemon, begun, 1).await?;
        tokio::time::sleep(WARM_UP).await;

        let memory = Memory::watch(daemon.pid());
        let (begun, clock) = (Utc::now(), Instant::now());
        self.producer.publish_steadily(Priority::P0, INCIDENTS, EVERY).await?;
        let (ended, wall) = (Utc::now(), clock.elapsed());
        let latencies = self.until_sent(daemon, begun, INCIDENTS).await?;
        let memory = memory.finish(daemon.pid()).await?;
        let others: i64 = sqlx::query_scalar(
            "select count(*) from email_messages m join email_requests r on r.id = m.request_id
             where m.sent_at between $1 and $2 and r.lane <> 'fast'",
        )
        .bind(begun)
        .bind(ended)
        .fetch_one(&self.database)
        .await?;
        Ok((latencies, others as f64 / wall.as_secs_f64(), memory))
    }

    /// Latencies of the incidents made since then, once all are sent.
    async fn until_sent(&self, daemon: &mut Daemon, since: DateTime<Utc>, incidents: u64) -> anyhow::Result<Vec<f64>> {
        let begun = Instant::now();
        loop {
            daemon.must_run()?;
            let latencies: Vec<f64> = sqlx::query_scalar(
                "select extract(epoch from m.sent_at - r.published_at)::float8 * 1000 from email_messages m
                 join email_requests r on r.id = m.request_id
                 where m.created_at >= $1 and r.lane = 'fast' and m.status = 'sent'",
            )
            .bind(since)
            .fetch_all(&self.database)
            .await?;
            if latencies.len() as u64 >= incidents {
                return Ok(latencies);
            }
            ensure!(
                begun.elapsed() < LATE_LIMIT,
                "{} of {incidents} incidents were sent within {} s",
                latencies.len(),
                LATE_LIMIT.as_secs()
            );
            tokio::time::sleep(LOOK_PAUSE).await;
        }
    }

    async fn close(self) {
        self.producer.close().await;
        self.database.close().await;
    }
}
