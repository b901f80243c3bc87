//! The command line: the program's own, and as much of libtest's as `cargo test` and its users speak.

use clap::Parser;

/// Tries made-up input on everything that reads what others write.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "fuzz",
    bin_name = "./deploy/dev fuzz",
    after_help = "\
Examples:
  ./deploy/dev fuzz                                  every target, a million inputs each
  ./deploy/dev fuzz --target mail --minutes 5        one of them, for five minutes
  ./deploy/dev fuzz --seed 7 --target mail --from 41 --inputs 1
                                                     one input again, as a fault names it
  ./deploy/dev fuzz --self-test                      whether each target finds the fault that is planted in it

Prints a row for each target: inputs, how many of them went all the way, seconds, faults. 0: no fault was found."
)]
pub struct Args {
    /// Inputs for each target.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub inputs: Option<u64>,
    /// Ends each target after this many minutes.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub minutes: Option<u64>,
    /// Where all chance comes from; printed with the table.
    #[arg(long)]
    pub seed: Option<u64>,
    /// The number of the first input.
    #[arg(long, default_value_t = 0)]
    pub from: u64,
    /// Only targets whose name contains this; may be given several times.
    #[arg(long = "target", value_name = "NAME")]
    pub targets: Vec<String>,
    /// Plants a fault behind every target, and fails unless each is found.
    #[arg(long)]
    pub self_test: bool,
    /// As many inputs as deploy/dev asks for.
    #[arg(long, hide = true)]
    pub full: bool,
    /// Only lists the targets.
    #[arg(long)]
    pub list: bool,
    /// As `cargo test` passes it: only targets whose name contains this.
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
    /// As `cargo test` passes it; here it is always one.
    #[arg(long, hide = true)]
    pub test_threads: Option<u16>,
    /// As `cargo test` passes it.
    #[arg(long, short, hide = true)]
    pub quiet: bool,
    /// As `cargo test` passes it.
    #[arg(long, hide = true)]
    pub format: Option<String>,
    /// As `cargo test` passes it; no target is ignored.
    #[arg(long, hide = true)]
    pub ignored: bool,
    /// As `cargo test` passes it.
    #[arg(long, hide = true)]
    pub include_ignored: bool,
}

impl Args {
    /// Whether this target is asked for.
    pub fn wants(&self, name: &str) -> bool {
        let is_named = |part: &String| if self.exact { name == part } else { name.contains(part.as_str()) };
        let named: Vec<&String> = self.targets.iter().chain(&self.filter).collect();
        !self.ignored && (named.is_empty() || named.into_iter().any(is_named)) && !self.skip.iter().any(is_named)
    }
}
