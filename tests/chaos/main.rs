//! The proof that the delivery contract holds: daemons are killed, and broker, database and relay fail in every way that
//! they are known to fail in, while requests flow in. In the end every request is accounted for, mail by mail.
//!
//! ```text
//! load -> broker -> daemons -> relay        each case on its own virtual host, database and relay,
//!           |         |          |          through proxies that cut, stall and slow
//!           +---------+----------+--> ledger -> one row of the table
//! ```
//!
//! `./deploy/dev chaos` plays it in full; run by `cargo test` it plays every case once.
//! Invariant: what is allowed is decided in [`ledger`] from what was written down, never by the case itself.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "it prints a table, and its progress beside it")]
#![allow(missing_docs, unreachable_pub, reason = "nothing is reachable from outside a test binary")]

#[path = "../it"]
mod it {
    #[allow(dead_code, unused_imports, reason = "the tests in tests/it use the rest")]
    pub mod support;
}

mod args;

mod cases;

mod stage;

mod load;

mod crew;

mod watch;

mod services;

mod audit;

mod transcript;

mod ledger;

mod evidence;

mod report;

mod soak;

mod random;

use std::{
    process::ExitCode,
    sync::Arc,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use clap::Parser;
use tokio::{sync::Semaphore, task::JoinSet};

use self::{
    args::Args,
    cases::Case,
    it::support,
    report::{Report, Reports},
    stage::Run,
};

/// Requests of the full form, at least.
const REQUESTS_MIN: usize = 20_000;
/// Faults of a case that are named again at the end.
const SHOWN_MAX: usize = 5;

#[tokio::main(flavor = "multi_thread", worker_threads = 4)]
async fn main() -> ExitCode {
    let args = Args::parse();
    if let Some(minutes) = args.soak {
        return soak(&args, minutes).await;
    }
    let wanted: Vec<Case> = cases::all().into_iter().filter(|case| args.wants(&case.name)).collect();
    if args.list {
        // As libtest prints its tests, with what it proves behind where people read it.
        for case in &wanted {
            println!("{}: test", case.name);
        }
        return ExitCode::SUCCESS;
    }
    if wanted.is_empty() {
        eprintln!("chaos: no case of this name; --list shows all");
        // To `cargo test` that is no failure: the name is another test's.
        return if args.cases.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let is_all = wanted.len() == cases::all().len();
    let reports = play(&args, wanted).await;
    for report in reports.all.iter().filter(|report| !report.is_good()) {
        println!("\n{}: {}", report.name, report.proves);
        for evidence in &report.evidence {
            println!("  {evidence}");
        }
    }
    println!("\n{}", reports.table());
    println!("seed {}, {} form, {} s", reports.seed, if args.full { "full" } else { "short" }, reports.seconds);
    if let Some(file) = &args.json
        && let Err(error) = std::fs::write(file, format!("{:#}\n", reports.to_json()))
    {
        eprintln!("chaos: {}: {error}", file.display());
        return ExitCode::FAILURE;
    }
    let watched = watch::watched();
    println!("{}", watched.words);
    let mut faults = watched.unreadable;
    if args.full && is_all {
        faults.extend(watched.absent);
        faults.extend(reports.imbalance());
        let requests = reports.totals().account.requests;
        faults.extend((requests < REQUESTS_MIN).then(|| format!("only {requests} requests")));
    }
    faults.iter().for_each(|fault| println!("chaos: {fault}"));
    if reports.are_good() && faults.is_empty() {
        println!("chaos: the contract was kept in all {} cases", reports.all.len());
        ExitCode::SUCCESS
    } else {
        // Once more at the very end: of a long output that is what is kept and looked at.
        for report in reports.all.iter().filter(|report| !report.is_good()) {
            println!("chaos: {}: {}", report.name, report.verdict());
            for violation in report.found.iter().take(SHOWN_MAX) {
                println!("  {}", violation.words.lines().next().unwrap_or_default());
            }
        }
        println!("chaos: FAILED");
        ExitCode::FAILURE
    }
}

/// Under load for a long time.
async fn soak(args: &Args, minutes: u64) -> ExitCode {
    let (began, seed) = (Instant::now(), seed_of(args));
    let broker = services::rabbitmq_version().await;
    eprintln!("soak on RabbitMQ {broker}: {minutes} min, {} requests a second, seed {seed}", args.rate);
    let soaked = soak::play(minutes, args.rate.into(), seed, args.program.clone()).await;
    let rises = soaked.rises();
    println!("{}\n", soaked.table());
    let mut reports = Reports { broker, seed, full: true, seconds: began.elapsed().as_secs(), all: Vec::new() };
    let written = args.picture.as_ref().map_or(Ok(()), |file| soaked.draw(file)).and_then(|()| {
        args.json.as_ref().map_or(Ok(()), |file| std::fs::write(file, format!("{:#}\n", soaked.to_json())))
    });
    let faults = soaked.faults.len();
    let evidence = soaked.report.evidence.clone();
    reports.all.push(soaked.report);
    println!("{}\n{faults} faults, seed {seed}, {} s", reports.table(), reports.seconds);
    println!("{}", watch::watched().words);
    evidence.iter().for_each(|evidence| println!("  {evidence}"));
    rises.iter().for_each(|rise| println!("chaos: {rise}"));
    if let Err(error) = &written {
        eprintln!("chaos: the picture or the figures: {error}");
    }
    if reports.are_good() && rises.is_empty() && written.is_ok() {
        println!("chaos: nothing lost, nothing grew");
        ExitCode::SUCCESS
    } else {
        println!("chaos: FAILED");
        ExitCode::FAILURE
    }
}

fn seed_of(args: &Args) -> u64 {
    args.seed.unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        now.as_secs() % 1_000_000
    })
}

async fn play(args: &Args, wanted: Vec<Case>) -> Reports {
    let began = Instant::now();
    let seed = seed_of(args);
    let broker = services::rabbitmq_version().await;
    eprintln!("chaos on RabbitMQ {broker}: {} cases, seed {seed}", wanted.len());
    let order: Vec<String> = wanted.iter().map(|case| case.name.clone()).collect();
    let (alone, together): (Vec<_>, Vec<_>) = wanted.into_iter().partition(|case| case.alone);
    let mut all = Vec::new();
    let places = Arc::new(Semaphore::new(args.jobs.into()));
    let mut playing = JoinSet::new();
    for case in together {
        // One after the other as there is room, in the order of the table: what takes longest comes first.
        let place = Arc::clone(&places).acquire_owned().await;
        let full = args.full;
        playing.spawn(async move {
            let _place = place;
            play_one(case, seed, full).await
        });
    }
    while let Some(report) = playing.join_next().await {
        all.push(report.expect("a case's panic is caught"));
    }
    for case in alone {
        all.push(play_one(case, seed, args.full).await);
    }
    all.sort_by_key(|report| order.iter().position(|name| *name == report.name));
    Reports { broker, seed, full: args.full, seconds: began.elapsed().as_secs(), all }
}

async fn play_one(case: Case, seed: u64, full: bool) -> Report {
    let requests = if full { case.full } else { case.short };
    let run = Run { name: case.name.clone(), proves: case.proves, seed, requests, full };
    run.say("begins");
    let (play, playing) = (case.play, run.clone());
    // On a thread of its own: a case may block, and what it spawns goes on elsewhere.
    let runtime = tokio::runtime::Handle::current();
    let report = match tokio::task::spawn_blocking(move || runtime.block_on(play(playing))).await {
        Ok(report) => report,
        Err(error) => {
            let words = error.try_into_panic().map_or_else(
                |error| error.to_string(),
                |panic| {
                    let text = panic.downcast_ref::<String>().cloned();
                    text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default()
                },
            );
            Report::broken_off(&case.name, case.proves, format!("the case did not come to its end: {words}"))
        }
    };
    run.say(&format!("{} after {} s", if report.is_good() { "good" } else { "BROKEN" }, report.seconds));
    report
}
