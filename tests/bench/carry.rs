//! Everything is queued, the daemons start, and the clock runs until the last mail is recorded as sent.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use chrono::{DateTime, TimeDelta, Utc};
use postrider::email::{Lane, Priority, identity::first_row_id};
use sqlx::{PgPool, Row as _, postgres::PgPoolOptions};

use super::{
    args::Args,
    daemon::{self, Daemon},
    feedback::{self, Feedback},
    postfix::Scale,
    process,
    relay::Route,
    requests::{Content, Producer},
    run::{self, Run},
    services::{ServersCpu, Services},
    subscriber::Subscriber,
    work::{Audit, Work, daemon_settings},
};

/// Without a new mail for this long the run has failed.
const STALL_LIMIT: Duration = Duration::from_secs(60);
/// Between two looks at the counter; each costs a system call or two, which the mails do not get.
const LOOK_PAUSE: Duration = Duration::from_millis(20);

/// Where runs take place.
#[derive(Clone, Copy)]
pub(crate) struct Stage<'a> {
    pub(crate) args: &'a Args,
    pub(crate) services: &'a Services,
    /// For logs, counters and certificates.
    pub(crate) scratch: &'a Path,
}

/// What is measured was published at most so long before.
const QUEUED_MAX: TimeDelta = TimeDelta::minutes(30);

/// What the database says of the mails since a moment.
pub(crate) struct Record {
    pub(crate) rows: u64,
    pub(crate) sent: u64,
    pub(crate) first: Option<DateTime<Utc>>,
    last: Option<DateTime<Utc>>,
}

/// What a run took from the machine.
struct Used {
    busy_ms: f64,
    wall: Duration,
    daemons_ms: f64,
    sink_ms: f64,
    /// The benchmark's own, where it is part of the work.
    own_ms: Option<f64>,
    servers: ServersCpu,
    peak_rss_mib: f64,
}

/// Sends one mail, and says how many bytes it has.
pub(crate) async fn mail_size(stage: Stage<'_>, content: Content) -> anyhow::Result<u64> {
    let scale = Scale::start(stage.scratch).await?;
    let work = Work { mails: 1, content, ..Work::usual(stage.args) };
    let mut route = Route::to(scale.sink);
    carry_over(stage, &work, &mut route).await?;
    scale.folder.weigh()
}

/// Carries all mails once, and measures it.
pub(crate) async fn carry(stage: Stage<'_>, work: &Work) -> anyhow::Result<Run> {
    let mut route = Route::start(work.relay, stage.scratch).await?;
    carry_over(stage, work, &mut route).await
}

async fn carry_over(stage: Stage<'_>, work: &Work, route: &mut Route) -> anyhow::Result<Run> {
    let site = stage.services.new_site(work.broker, &work.audit).await?;
    let feedback = match work.events_per_second {
        Some(_) => Some(feedback::beside(stage, &site).await?),
        None => None,
    };
    let mut own = work.settings();
    own.extend(feedback.iter().flat_map(Feedback::settings));
    let settings = daemon_settings(stage.args, &site, route, own);
    daemon::migrate(&settings, stage.scratch)?;
    let producer = Producer::connect(&settings).await?;
    producer.publish(work.content, Priority::P2, work.mails).await?;
    let subscriber = match work.subscriber {
        true => Some(Subscriber::start(&site.amqp_url).await?),
        false => None,
    };
    let database = PgPoolOptions::new().max_connections(1).connect(&site.database_url).await?;
    if let Audit::Filled(_) = work.audit {
        stage.services.checkpoint().await?;
    }

    let servers_before = stage.services.cpu(work.broker);
    let (busy_before, own_before) = (process::machine_busy_ms()?, process::cpu("self")?.own);
    let (started, begun) = (Utc::now(), Instant::now());
    let mut daemons = (1..=work.daemons)
        .map(|number| Daemon::start(&settings, stage.scratch, number))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let posting = feedback.iter().zip(work.events_per_second).map(|(feedback, rate)| feedback.post_steadily(rate));
    let posting: Vec<_> = posting.collect();
    let measured = async {
        until_all_through(work.mails, route, &database, started, &mut daemons).await?;
        let own_ms = process::cpu("self")?.own - own_before;
        let used = Used {
            busy_ms: process::machine_busy_ms()? - busy_before,
            wall: begun.elapsed(),
            daemons_ms: sum(daemons.iter().map(|daemon| Ok(process::cpu(daemon.pid())?.own)))?,
            sink_ms: route.sink.cpu_ms()?,
            own_ms: (route.passes_through_us() || work.subscriber).then_some(own_ms),
            servers: stage.services.cpu(work.broker).since(&servers_before),
            peak_rss_mib: most(daemons.iter().map(|daemon| Ok(process::memory(daemon.pid())?.peak)))?,
        };
        anyhow::Ok((record(&database, started).await?, used))
    }
    .await;
    let (record, used) = measured.with_context(|| daemons.iter().map(Daemon::last_words).collect::<String>())?;

    drop(posting);
    // Only the end proves that nothing was sent twice and that the broker was told of everything.
    for daemon in daemons {
        daemon.end().await?;
    }
    if let Some(subscriber) = subscriber {
        subscriber.end(work.mails).await?;
    }
    let received = route.sink.received()?;
    ensure!(
        received == work.mails && record.rows == record.sent && record.sent == work.mails,
        "{} requests, {received} mails at the sink, {} rows of which {} say sent",
        work.mails,
        record.rows,
        record.sent
    );
    let waiting = producer.waiting(Lane::Standard).await?;
    ensure!(waiting == 0, "{waiting} requests are still queued: they were not acknowledged");
    producer.close().await;
    database.close().await;
    stage.services.remove_sites().await?;
    summary(work, &record, &used, started)
}

fn summary(work: &Work, record: &Record, used: &Used, started: DateTime<Utc>) -> anyhow::Result<Run> {
    let (Some(first), Some(last)) = (record.first, record.last) else {
        bail!("the rows do not say when they were sent")
    };
    let seconds = |from: DateTime<Utc>, to: DateTime<Utc>| (to - from).as_seconds_f64();
    let per_thousand = |ms: f64| ms * 1000.0 / work.mails as f64;
    let servers_ms = used.servers.rabbitmq.unwrap_or(0.0) + used.servers.postgresql.unwrap_or(0.0);
    let own_ms = used.own_ms.unwrap_or(0.0);
    Ok(Run {
        mails: work.mails,
        // The first mail of every connection arrives at about the same time, so that between the first of all and the last lie
        // all but those.
        mails_per_second: work.mails.saturating_sub(work.connections.into()) as f64 / seconds(first, last),
        wall_seconds: seconds(started, last),
        cpu_ms_per_thousand: per_thousand(used.daemons_ms),
        start_to_first_mail_ms: Some(seconds(started, first) * 1000.0),
        peak_rss_mib: Some(used.peak_rss_mib),
        sink_cpu_ms_per_thousand: per_thousand(used.sink_ms),
        own_cpu_ms_per_thousand: used.own_ms.map(per_thousand),
        rabbitmq_cpu_ms_per_thousand: used.servers.rabbitmq.map(per_thousand),
        postgresql_cpu_ms_per_thousand: used.servers.postgresql.map(per_thousand),
        elsewhere_share: run::share(used.busy_ms - used.daemons_ms - used.sink_ms - servers_ms - own_ms, used.wall),
    })
}

fn sum(values: impl Iterator<Item = anyhow::Result<f64>>) -> anyhow::Result<f64> {
    values.sum()
}

fn most(mut values: impl Iterator<Item = anyhow::Result<f64>>) -> anyhow::Result<f64> {
    values.try_fold(0.0, |most: f64, value| Ok(most.max(value?)))
}

/// Watches the sink, whose counter costs next to nothing, and then the database until it agrees.
async fn until_all_through(
    mails: u64,
    route: &mut Route,
    database: &PgPool,
    since: DateTime<Utc>,
    daemons: &mut [Daemon],
) -> anyhow::Result<()> {
    let (mut last, mut changed) = (0, Instant::now());
    loop {
        for daemon in &mut *daemons {
            daemon.must_run()?;
        }
        let received = route.sink.received()?;
        if received >= mails && record(database, since).await?.sent >= mails {
            return Ok(());
        }
        if received != last {
            (last, changed) = (received, Instant::now());
        }
        if changed.elapsed() > STALL_LIMIT {
            let sent = record(database, since).await?.sent;
            bail!("no mail for {} s: the sink has {received} of {mails}, {sent} rows say sent", STALL_LIMIT.as_secs());
        }
        tokio::time::sleep(LOOK_PAUSE).await;
    }
}

/// Of the rows made since then; the audit may hold millions of others, which must not be read for it.
pub(crate) async fn record(database: &PgPool, since: DateTime<Utc>) -> anyhow::Result<Record> {
    let row = sqlx::query(
        "select count(*), count(*) filter (where status = 'sent'), min(sent_at), max(sent_at) from email_messages
         where created_at >= $1 and id >= $2",
    )
    .bind(since)
    // Ids begin with the time of publication, which was not long before.
    .bind(first_row_id(since - QUEUED_MAX))
    .fetch_one(database)
    .await?;
    let number = |index: usize| anyhow::Ok(u64::try_from(row.try_get::<i64, _>(index)?)?);
    Ok(Record { rows: number(0)?, sent: number(1)?, first: row.try_get(2)?, last: row.try_get(3)? })
}
