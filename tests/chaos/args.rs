//! The command line: the program's own, and as much of libtest's as `cargo test` and its users speak.

use clap::Parser;

/// Plays what can go wrong against real daemons, and draws up the account of every mail.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "chaos",
    bin_name = "./deploy/dev chaos",
    after_help = "\
Examples:
  ./deploy/dev chaos                        every case in full
  ./deploy/dev chaos --case kill_claimed    one of them
  ./deploy/dev chaos --short --seed 7       every case once, with the chance of another run
  DEV_RABBITMQ=4 ./deploy/dev chaos         on RabbitMQ 4.0
  ./deploy/dev soak 60                      an hour of load and faults, and a picture of it

Prints a row for each case and the totals. 0: the contract was kept in every case."
)]
pub struct Args {
    /// Every case once, with few requests.
    #[arg(long)]
    pub short: bool,
    /// All requests and all kills; what deploy/dev asks for.
    #[arg(long, hide = true, conflicts_with = "short")]
    pub full: bool,
    /// Only cases whose name contains this; may be given several times.
    #[arg(long = "case", value_name = "NAME")]
    pub cases: Vec<String>,
    /// Also writes everything to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    pub json: Option<std::path::PathBuf>,
    /// Cases played side by side; those that stop a service always run alone.
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub jobs: u16,
    /// Where all chance comes from; printed with the table.
    #[arg(long)]
    pub seed: Option<u64>,
    /// Instead of the cases: so many minutes of steady load with faults sprinkled in, after which nothing may have grown.
    #[arg(long, value_name = "MINUTES", value_parser = clap::value_parser!(u64).range(1..=1440))]
    pub soak: Option<u64>,
    /// Requests a second of --soak.
    #[arg(long, default_value_t = 100, requires = "soak", value_parser = clap::value_parser!(u16).range(2..=5000))]
    pub rate: u16,
    /// The program that --soak soaks, built without debug assertions for instance; else the one that was built for the tests.
    #[arg(long, value_name = "FILE", requires = "soak")]
    pub program: Option<String>,
    /// Where --soak draws its figures, as SVG.
    #[arg(long, value_name = "FILE", requires = "soak")]
    pub picture: Option<std::path::PathBuf>,
    /// Only lists the cases.
    #[arg(long)]
    pub list: bool,
    /// As `cargo test` passes it: only cases whose name contains this.
    #[arg(hide = true)]
    pub filter: Vec<String>,
    /// As `cargo test` passes it: not these.
    #[arg(long, hide = true)]
    pub skip: Vec<String>,
    /// As `cargo test` passes it: the whole name.
    #[arg(long, hide = true)]
    pub exact: bool,
    /// As `cargo test` passes it; here there is only one way.
    #[arg(long, hide = true)]
    pub nocapture: bool,
    /// As `cargo test` passes it; see --jobs.
    #[arg(long, hide = true)]
    pub test_threads: Option<u16>,
    /// As `cargo test` passes it.
    #[arg(long, short, hide = true)]
    pub quiet: bool,
    /// As `cargo test` passes it.
    #[arg(long, hide = true)]
    pub format: Option<String>,
    /// As `cargo test` passes it; no case is ignored.
    #[arg(long, hide = true)]
    pub ignored: bool,
    /// As `cargo test` passes it.
    #[arg(long, hide = true)]
    pub include_ignored: bool,
}

impl Args {
    /// Whether this case is asked for.
    pub fn wants(&self, name: &str) -> bool {
        let is_named = |part: &String| if self.exact { name == part } else { name.contains(part.as_str()) };
        let named: Vec<&String> = self.cases.iter().chain(&self.filter).collect();
        !self.ignored && (named.is_empty() || named.into_iter().any(is_named)) && !self.skip.iter().any(is_named)
    }
}
