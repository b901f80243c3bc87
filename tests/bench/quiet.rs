//! A daemon with little to do: how soon after its start the first mail is sent, and what it takes while none comes.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use chrono::{DateTime, Utc};
use postrider::email::Priority;
use sqlx::{PgPool, postgres::PgPoolOptions};

use super::{
    carry::{self, Stage},
    daemon::{self, Daemon},
    process,
    relay::Route,
    report::Figure,
    requests::{Content, Producer},
    work::{Audit, Relay, Which, daemon_settings},
};

/// After the first mail, until what a start brings with it has died down.
const SETTLE: Duration = Duration::from_secs(5);
/// How long CPU is counted for, each run.
const WINDOW: Duration = Duration::from_secs(10);
/// How long the first mail may take.
const FIRST_LIMIT: Duration = Duration::from_secs(30);
const LOOK_PAUSE: Duration = Duration::from_millis(5);

/// A database that has its schema and templates, and queues that exist; settings are the daemon's defaults.
struct Place {
    settings: Vec<(String, String)>,
    // Held, because the relay ends with it.
    _route: Route,
    producer: Producer,
    database: PgPool,
}

/// From the start of the process to the relay's 250 for a mail that was queued before it.
pub(crate) async fn measure_start(stage: Stage<'_>) -> anyhow::Result<Vec<Figure>> {
    let mut figure = Figure::new("start", "start to first mail, warm database", "s", 3);
    let place = Place::make(stage).await?;
    // The first start brings the templates in, which no later one has to.
    for number in 0..=stage.args.runs {
        place.producer.publish(Content::Notice, Priority::P2, 1).await?;
        let started = Utc::now();
        let mut daemon = Daemon::start(&place.settings, stage.scratch, 1)?;
        let first = place.first_mail(&mut daemon, started).await.with_context(|| daemon.last_words())?;
        daemon.end().await?;
        if number > 0 {
            figure.add(Some((first - started).as_seconds_f64()));
            eprintln!("run {number}: start to first mail {} s", figure.last_words());
        }
    }
    place.close(stage).await?;
    Ok(vec![figure])
}

/// CPU of a daemon that has sent a mail and waits for the next.
pub(crate) async fn measure_idle(stage: Stage<'_>) -> anyhow::Result<Vec<Figure>> {
    let mut figure = Figure::new("idle", "idle daemon", "% of a core", 2);
    figure.note = Some(format!("{} s each", WINDOW.as_secs()));
    let place = Place::make(stage).await?;
    place.producer.publish(Content::Notice, Priority::P2, 1).await?;
    let mut daemon = Daemon::start(&place.settings, stage.scratch, 1)?;
    let measured = async {
        place.first_mail(&mut daemon, DateTime::UNIX_EPOCH).await?;
        tokio::time::sleep(SETTLE).await;
        for number in 1..=stage.args.runs {
            let (before, begun) = (process::exact_cpu_ms(daemon.pid())?, Instant::now());
            tokio::time::sleep(WINDOW).await;
            let used = process::exact_cpu_ms(daemon.pid())? - before;
            figure.add(Some(used / (begun.elapsed().as_secs_f64() * 1000.0) * 100.0));
            eprintln!("run {number}: idle daemon {} % of a core", figure.last_words());
        }
        daemon.must_run()
    }
    .await;
    measured.with_context(|| daemon.last_words())?;
    daemon.end().await?;
    place.close(stage).await?;
    Ok(vec![figure])
}

impl Place {
    async fn make(stage: Stage<'_>) -> anyhow::Result<Self> {
        let route = Route::start(Relay::Plain, stage.scratch).await?;
        let site = stage.services.new_site(Which::First, &Audit::Fresh).await?;
        let settings = daemon_settings(stage.args, &site, &route, Vec::new());
        daemon::migrate(&settings, stage.scratch)?;
        let producer = Producer::connect(&settings).await?;
        let database = PgPoolOptions::new().max_connections(1).connect(&site.database_url).await?;
        Ok(Self { settings, _route: route, producer, database })
    }

    /// When the first mail since then was sent.
    async fn first_mail(&self, daemon: &mut Daemon, since: DateTime<Utc>) -> anyhow::Result<DateTime<Utc>> {
        let begun = Instant::now();
        loop {
            daemon.must_run()?;
            if let Some(first) = carry::record(&self.database, since).await?.first {
                return Ok(first);
            }
            ensure!(begun.elapsed() < FIRST_LIMIT, "no mail within {} s", FIRST_LIMIT.as_secs());
            tokio::time::sleep(LOOK_PAUSE).await;
        }
    }

    async fn close(self, stage: Stage<'_>) -> anyhow::Result<()> {
        self.producer.close().await;
        self.database.close().await;
        stage.services.remove_sites().await
    }
}
