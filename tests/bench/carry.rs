//! One run of the daemon: everything is queued, it starts, and the clock runs until the last mail is recorded as sent.

use std::{
    fs::File,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use chrono::{DateTime, Utc};
use sqlx::{PgPool, Row as _, postgres::PgPoolOptions};

use super::{
    Args,
    postfix::{Scale, Sink},
    process::{self, Process},
    report::{self, Run},
    requests::{Producer, TEMPLATES},
    services::{ServersCpu, Services, Site},
};

/// The daemon, built with the same profile as this benchmark.
const POSTRIDER: &str = env!("CARGO_BIN_EXE_postrider");
/// Without a new mail for this long the run has failed.
const STALL_LIMIT: Duration = Duration::from_secs(60);
/// The daemon's own grace period is as long.
const END_LIMIT: Duration = Duration::from_secs(70);
/// Between two looks at the counter; each costs a system call or two, which the mails do not get.
const LOOK_PAUSE: Duration = Duration::from_millis(20);
/// Lines of the daemon's log that are shown when it fails.
const LOG_LINES: usize = 15;

/// What the database says of a run.
struct Audit {
    rows: i64,
    sent: i64,
    first: Option<DateTime<Utc>>,
    last: Option<DateTime<Utc>>,
}

/// What a run took from the machine.
struct Used {
    busy_ms: f64,
    wall: Duration,
    daemon_ms: f64,
    sink_ms: f64,
    servers: ServersCpu,
    peak_rss_mib: f64,
}

/// Sends one mail, and says how many bytes it has.
pub(crate) async fn mail_size(args: &Args, services: &Services, scratch: &Path) -> anyhow::Result<u64> {
    let mut scale = Scale::start(scratch, "scale-of-postrider").await?;
    run(&Args { mails: 1, ..args.clone() }, services, &mut scale.sink, scratch).await?;
    scale.weigh().await
}

/// Carries all mails once, and measures it.
pub(crate) async fn carry(args: &Args, services: &Services, scratch: &Path) -> anyhow::Result<Run> {
    let mut sink = Sink::counting(scratch).await?;
    run(args, services, &mut sink, scratch).await
}

async fn run(args: &Args, services: &Services, sink: &mut Sink, scratch: &Path) -> anyhow::Result<Run> {
    let site = services.new_site().await?;
    let settings = settings(args, &site, sink.port());
    let log = scratch.join("daemon.log");
    let migrated = daemon("migrate", &settings, &log)?.status().context("postrider migrate")?;
    ensure!(migrated.success(), "postrider migrate: {migrated}\n{}", end_of(&log));
    let producer = Producer::connect(&settings).await?;
    producer.publish(args.mails).await?;
    let database = PgPoolOptions::new().max_connections(1).connect(&site.database_url).await?;

    let servers_before = services.cpu();
    let busy_before = process::machine_busy_ms()?;
    let (started, begun) = (Utc::now(), Instant::now());
    let mut process = Process::start("postrider", &mut daemon("run", &settings, &log)?)?;
    let measured = async {
        until_all_through(args.mails, sink, &database, &mut process).await?;
        let used = Used {
            busy_ms: process::machine_busy_ms()? - busy_before,
            wall: begun.elapsed(),
            daemon_ms: process::cpu(process.pid())?.own,
            sink_ms: sink.cpu_ms()?,
            servers: services.cpu().since(&servers_before),
            peak_rss_mib: process::peak_rss_mib(process.pid())?,
        };
        anyhow::Ok((audit(&database).await?, used))
    }
    .await;
    let (audit, used) = measured.map_err(|error| anyhow::anyhow!("{error:#}\n{}", end_of(&log)))?;

    // Only the end proves that nothing was sent twice and that the broker was told of everything.
    let status = process.end(END_LIMIT).await?;
    ensure!(status.success(), "postrider: {status}\n{}", end_of(&log));
    let received = sink.received()?;
    ensure!(
        received == args.mails && audit.rows == audit.sent && audit.sent.unsigned_abs() == args.mails,
        "{} requests, {received} mails at the sink, {} rows of which {} say sent",
        args.mails,
        audit.rows,
        audit.sent
    );
    let waiting = producer.waiting().await?;
    ensure!(waiting == 0, "{waiting} requests are still queued: they were not acknowledged");
    producer.close().await;
    database.close().await;
    services.remove_sites().await?;

    let (Some(first), Some(last)) = (audit.first, audit.last) else { bail!("the rows do not say when they were sent") };
    let per_thousand = |ms: f64| ms * 1000.0 / args.mails as f64;
    let servers_ms = used.servers.rabbitmq.unwrap_or(0.0) + used.servers.postgresql.unwrap_or(0.0);
    Ok(Run {
        mails: args.mails,
        // Between the first and the last lie all but one.
        mails_per_second: (args.mails - 1) as f64 / seconds(last - first),
        wall_seconds: seconds(last - started),
        cpu_ms_per_thousand: per_thousand(used.daemon_ms),
        start_to_first_mail_ms: Some(seconds(first - started) * 1000.0),
        peak_rss_mib: Some(used.peak_rss_mib),
        sink_cpu_ms_per_thousand: per_thousand(used.sink_ms),
        rabbitmq_cpu_ms_per_thousand: used.servers.rabbitmq.map(per_thousand),
        postgresql_cpu_ms_per_thousand: used.servers.postgresql.map(per_thousand),
        elsewhere_share: report::share(used.busy_ms - used.daemon_ms - used.sink_ms - servers_ms, used.wall),
    })
}

fn seconds(span: chrono::TimeDelta) -> f64 {
    span.as_seconds_f64()
}

fn settings(args: &Args, site: &Site, smtp_port: u16) -> Vec<(String, String)> {
    let own = [
        ("AMQP_URL", site.amqp_url.as_str()),
        ("DATABASE_URL", site.database_url.as_str()),
        ("SMTP_HOST", "127.0.0.1"),
        ("SMTP_PORT", &smtp_port.to_string()),
        ("SMTP_USE_TLS", "false"),
        ("SMTP_FROM_EMAIL", "noreply@bench.example"),
        ("SMTP_FROM_NAME", "Banc d’essai"),
        ("EMAIL_HASH_KEY", "only for the benchmark's own databases"),
        ("EMAIL_TEMPLATES_DIR", TEMPLATES),
        // Nobody asks it anything; any free port will do.
        ("ADMIN_ADDR", "127.0.0.1:0"),
    ];
    let own = own.map(|(name, value)| (name.to_owned(), value.to_owned()));
    own.into_iter().chain(args.daemon_settings()).collect()
}

/// The daemon's command line, with these settings and nothing of this process's environment, logging into this file.
fn daemon(what: &str, settings: &[(String, String)], log: &Path) -> anyhow::Result<Command> {
    let file = File::create(log)?;
    let mut command = Command::new(POSTRIDER);
    command.arg(what).env_clear().envs(settings.iter().cloned()).stdout(file.try_clone()?).stderr(file);
    Ok(command)
}

/// Watches the sink, whose counter costs next to nothing, and then the database until it agrees.
async fn until_all_through(
    mails: u64,
    sink: &mut Sink,
    database: &PgPool,
    process: &mut Process,
) -> anyhow::Result<()> {
    let (mut last, mut since) = (0, Instant::now());
    loop {
        process.must_run()?;
        let received = sink.received()?;
        if received >= mails && audit(database).await?.sent.unsigned_abs() >= mails {
            return Ok(());
        }
        if received != last {
            (last, since) = (received, Instant::now());
        }
        if since.elapsed() > STALL_LIMIT {
            let sent = audit(database).await?.sent;
            bail!("no mail for {} s: the sink has {received} of {mails}, {sent} rows say sent", STALL_LIMIT.as_secs());
        }
        tokio::time::sleep(LOOK_PAUSE).await;
    }
}

async fn audit(database: &PgPool) -> anyhow::Result<Audit> {
    let row = sqlx::query(
        "select count(*), count(*) filter (where status = 'sent'), min(sent_at), max(sent_at) from email_messages",
    )
    .fetch_one(database)
    .await?;
    Ok(Audit { rows: row.try_get(0)?, sent: row.try_get(1)?, first: row.try_get(2)?, last: row.try_get(3)? })
}

/// The log has no addresses in clear, so that its end can be shown.
fn end_of(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
}
