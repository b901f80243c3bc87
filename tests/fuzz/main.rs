//! Hostile input, made up and tried on everything that reads what others write.
//!
//! ```text
//! seed, target, number -> input (corpus, changed) -> judge: the code that reads it, and what must hold whatever it is
//! ```
//!
//! `./deploy/dev fuzz` tries as many inputs as it is told to; run by `cargo test` it tries a few thousand of each kind.
//! Invariant: an input follows from the seed, its target and its number alone: what was found is found again with
//! `--seed S --target T --from N --inputs 1`.
//! Invariant: no target is believed that does not find the fault that is planted in it (`--self-test`).
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "it prints a table, and its progress beside it")]
#![allow(missing_docs, unreachable_pub, reason = "nothing is reachable from outside a test binary")]

#[path = "../it"]
mod it {
    #[allow(dead_code, unused_imports, reason = "the tests in tests/it use the rest")]
    pub mod support;
}

mod args;

mod drive;

mod change;

mod targets;

mod report;

use std::{
    process::ExitCode,
    time::{SystemTime, UNIX_EPOCH},
};

use clap::Parser;

use self::{
    args::Args,
    drive::{Order, Tally},
    it::support,
    targets::Target,
};

/// Chance of the short form.
const SHORT_SEED: u64 = 793_729;

fn main() -> ExitCode {
    let args = Args::parse();
    let wanted: Vec<Target> = targets::all().into_iter().filter(|target| args.wants(target.name)).collect();
    if args.list {
        // As libtest prints its tests.
        for target in &wanted {
            println!("{}: test", target.name);
        }
        return ExitCode::SUCCESS;
    }
    if wanted.is_empty() {
        eprintln!("fuzz: no target of this name; --list shows all");
        // To `cargo test` that is no failure: the name is another test's.
        return if args.targets.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    // The short form is part of every test run, and must not fail by chance; what is new is looked for by the long one.
    let usual = (!args.full && !args.self_test).then_some(SHORT_SEED);
    let seed = args.seed.or(usual).unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        now.as_secs() % 1_000_000
    });
    // A panic is a fault that is told with its input; its message alone would be repeated for every try to shrink it.
    std::panic::set_hook(Box::new(drive::note_panic));
    let mut tallies = Vec::new();
    for target in wanted {
        let order = Order {
            name: target.name,
            seed,
            from: args.from,
            inputs: args.inputs.unwrap_or(if args.full { target.full } else { target.short }),
            minutes: args.minutes,
            planted: args.self_test,
            quiet: !args.full,
        };
        eprintln!("fuzz {}: {}, seed {seed}", target.name, target.tries);
        tallies.push((target.run)(&order));
    }
    println!("\n{}", report::table(&tallies, args.self_test));
    println!("seed {seed}");
    for tally in &tallies {
        if let Some(fault) = &tally.fault {
            let word = if args.self_test { "planted, and found" } else { "FAULT" };
            println!("fuzz {}: {word}: {}", tally.name, fault.words);
            println!("  input {} of seed {seed}, made as small as it goes: {}", fault.number, fault.input);
        }
    }
    let is_good = |tally: &Tally| tally.fault.is_some() == args.self_test;
    if tallies.iter().all(is_good) {
        println!("fuzz: {}", if args.self_test { "every planted fault was found" } else { "no fault was found" });
        ExitCode::SUCCESS
    } else {
        println!("fuzz: FAILED");
        ExitCode::FAILURE
    }
}
