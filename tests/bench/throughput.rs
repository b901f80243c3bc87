//! How fast the daemon carries mail, and at what price, beside Postfix's own load generator on the same machine.
//!
//! Machines differ, so the figure that counts is a ratio: `smtp-source -d` (a C program that reads no queue, renders
//! nothing and records nothing) sends mails of the same size over as many connections into the same kind of sink, run
//! for run in turn with the daemon. Everything the daemon does for a mail is on: broker, rendering, claim, audit, outcome.
//!
//! Needs a RabbitMQ and a PostgreSQL for tests (`./deploy/dev bench` brings them) and Postfix's `smtp-sink` and
//! `smtp-source`. A run counts only if the sink has as many mails as the database has sent rows, and no more.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a benchmark prints")]

mod carry;

mod postfix;

mod process;

mod report;

mod requests;

mod services;

use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, ValueEnum};
use tempfile::TempDir;

use self::{
    report::{Report, Row},
    services::Services,
};

/// The yardstick is so much faster that as many mails would be over before a clock that ticks a hundred times a second
/// could tell what they cost.
const YARDSTICK_TIMES: u64 = 4;

/// Measures mails per second and CPU for each mail, for the daemon and for Postfix's smtp-source.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "throughput",
    bin_name = "cargo bench --bench throughput --",
    after_help = "\
Examples:
  ./deploy/dev bench                                        services, build and three runs
  ./deploy/dev bench --mails 50000 --runs 5 --queue classic
  ./deploy/dev bench --connections 1 --set SMTP_MAILS_PER_CONNECTION=10000
  DEV_RABBITMQ=4 ./deploy/dev bench                         on RabbitMQ 4.0

Prints a table and writes bench/throughput.json in cargo's target folder. What else runs on the
machine slows both senders down, not equally; how much of the machine it took is printed."
)]
pub(crate) struct Args {
    /// Mails that the daemon carries in each run; all are queued before it starts.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    mails: u64,
    /// Runs of each sender, in turn; the table shows medians.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    runs: u64,
    /// Kind of the lane queues.
    #[arg(long, value_enum, default_value_t = Queue::Quorum)]
    queue: Queue,
    /// SMTP connections, of the daemon's lane and of smtp-source.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=200))]
    connections: u16,
    /// Deliveries that the lane holds unacknowledged at once.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u16).range(1..=2000))]
    prefetch: u16,
    /// Another setting for the daemon; may be given several times. It is printed with the figures.
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = setting)]
    settings: Vec<(String, String)>,
    /// What cargo bench adds to every benchmark's arguments.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Kind of the lane queues.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Queue {
    /// Replicated.
    Quorum,
    /// With priorities.
    Classic,
}

impl Queue {
    const fn name(self) -> &'static str {
        match self {
            Self::Quorum => "quorum",
            Self::Classic => "classic",
        }
    }
}

fn setting(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

impl Args {
    /// What the daemon is told beyond where its services are; everything else is at its default.
    fn daemon_settings(&self) -> Vec<(String, String)> {
        let mut all = vec![
            ("AMQP_QUEUE_TYPE".to_owned(), self.queue.name().to_owned()),
            ("SMTP_CONNECTIONS_STANDARD".to_owned(), self.connections.to_string()),
            ("EMAIL_PREFETCH_STANDARD".to_owned(), self.prefetch.to_string()),
        ];
        all.extend(self.settings.iter().cloned());
        all
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    if !args.bench {
        // `cargo test --benches` runs benchmarks too, and must not wait minutes for this one.
        eprintln!("throughput: not measured; use cargo bench --bench throughput, or ./deploy/dev bench");
        return ExitCode::SUCCESS;
    }
    match services_and_report(&args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("throughput: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn services_and_report(args: &Args) -> anyhow::Result<()> {
    let services = Services::from_environment().await?;
    // Interrupted or failed, what was made on the servers is removed.
    let measured = tokio::select! {
        measured = measure(args, &services) => measured,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    let removed = services.remove_sites().await;
    let report = measured?;
    removed?;
    println!("{report}");
    let file = report.write()?;
    eprintln!("written: {}", file.display());
    Ok(())
}

async fn measure(args: &Args, services: &Services) -> anyhow::Result<Report> {
    let scratch = TempDir::new().context("a folder for logs and counters")?;
    let load_before = process::load_average();
    let size = carry::mail_size(args, services, scratch.path()).await?;
    let payload = postfix::payload_for(size, scratch.path()).await?;
    eprintln!("one mail has {size} bytes; {} runs of each", args.runs);

    let (mut yardstick, mut daemon) = (Vec::new(), Vec::new());
    for number in 1..=args.runs {
        let run = postfix::source(args.mails * YARDSTICK_TIMES, args.connections, payload, scratch.path()).await?;
        eprintln!("run {number}: smtp-source  {:>7.0} mails/s", run.mails_per_second);
        yardstick.push(run);
        let run = carry::carry(args, services, scratch.path()).await?;
        eprintln!("run {number}: postrider    {:>7.0} mails/s", run.mails_per_second);
        daemon.push(run);
    }
    let rows = vec![
        Row { name: "smtp-source -d".to_owned(), runs: yardstick },
        Row { name: format!("postrider, {} queue", args.queue.name()), runs: daemon },
    ];
    Ok(Report::new(args, services, size, load_before, rows))
}
