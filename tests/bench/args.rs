//! The command line.

use std::path::PathBuf;

use clap::Parser;

use super::rows::Name;

/// Measures what a mail costs, beside Postfix's load generator, and holds it against the targets.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "bench",
    bin_name = "./deploy/dev bench",
    after_help = "\
Examples:
  ./deploy/dev bench                                   all rows that take minutes, three runs each
  ./deploy/dev bench --full                            those that take long too
  ./deploy/dev bench --only small,one-connection --runs 5
  ./deploy/dev bench --only small --set SMTP_MAILS_PER_CONNECTION=10000
  DEV_RABBITMQ=4 ./deploy/dev bench                    every row on RabbitMQ 4.0

Prints the tables and writes bench.json, bench.md and bench.svg into bench/ in cargo's target folder. What else \
runs on the machine slows all senders down, not equally; how much of the machine it took is printed."
)]
pub(crate) struct Args {
    /// Mails of 2 kB that a daemon carries in each run, all queued before it starts; rows that are slower by nature carry
    /// a fixed part of it.
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(400..))]
    pub(crate) mails: u64,
    /// Runs of each row, in turn with its yardstick; the tables show medians.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) runs: u64,
    /// SMTP connections, of the daemons' lane and of smtp-source.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(2..=200))]
    pub(crate) connections: u16,
    /// Deliveries that the lane holds unacknowledged at once.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u16).range(2..=2000))]
    pub(crate) prefetch: u16,
    /// Only these rows, and what they are compared with.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "ROW")]
    pub(crate) only: Vec<Name>,
    /// Only lists the rows.
    #[arg(long)]
    pub(crate) list: bool,
    /// Also what takes long: 500 requests of 10 MB a lane, and filling the audit with ten million rows.
    #[arg(long)]
    pub(crate) full: bool,
    /// Mails queued in the other lanes when incidents are timed; more if the daemon was seen to carry so many too soon.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(100..))]
    pub(crate) queued: u64,
    /// Requests of 10 MB queued in each lane; more than the largest prefetch, beyond which they wait in the broker. By
    /// default 70, and 500 with --full.
    #[arg(long, value_name = "REQUESTS", value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub(crate) large: Option<u64>,
    /// Rows in the audit before the growth row begins; a database filled once is used again.
    #[arg(long, default_value_t = 10_000_000, value_parser = clap::value_parser!(u64).range(1_000..))]
    pub(crate) audit_rows: u64,
    /// Another setting for the daemons; may be given several times. It is printed with the figures.
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = setting)]
    pub(crate) settings: Vec<(String, String)>,
    /// Where the files go, instead of bench/ in cargo's target folder.
    #[arg(long, value_name = "FOLDER")]
    pub(crate) out: Option<PathBuf>,
    /// What cargo bench adds to every benchmark's arguments.
    #[arg(long, hide = true)]
    pub(crate) bench: bool,
}

fn setting(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}
