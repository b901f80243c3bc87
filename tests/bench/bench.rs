//! What a mail costs: how fast the daemon carries it and at what price, beside Postfix's own load generator on the same
//! machine; how soon an incident arrives; how much memory it takes; and whether all that is what the project set itself.
//!
//! Machines differ, so the figures that count are ratios: `smtp-source -d` (a C program that reads no queue, renders
//! nothing and records nothing) sends mails of the same size over as many connections into the same kind of sink, run
//! for run in turn with the daemon. Everything the daemon does for a mail is on: broker, rendering, claim, audit, outcome.
//!
//! Needs a RabbitMQ and a PostgreSQL for tests (`./deploy/dev bench` brings them) and Postfix's `smtp-sink` and
//! `smtp-source`. A run counts only if the sink has as many mails as the database has sent rows, and no more.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a benchmark prints")]

mod args;

mod rows;

mod work;

mod contest;

mod carry;

mod lanes;

mod memory;

mod quiet;

mod growth;

mod lookup;

mod run;

mod stats;

mod report;

mod daemon;

mod requests;

mod subscriber;

mod feedback;

mod relay;

mod postfix;

mod process;

mod services;

mod broker;

mod machine;

use std::{future::Future, process::ExitCode};

use anyhow::Context;
use clap::{Parser, ValueEnum};
use tempfile::TempDir;
use tokio::signal::unix::{SignalKind, signal};

use self::{
    args::Args,
    carry::Stage,
    contest::Sizes,
    report::{Figure, Report, targets},
    rows::{Absent, Name},
    services::Services,
};

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    if args.list {
        for row in Name::value_variants() {
            let value = row.to_possible_value();
            let help = value.as_ref().and_then(|value| value.get_help()).map(ToString::to_string).unwrap_or_default();
            println!("{:<18} {help}", row.to_string());
        }
        return ExitCode::SUCCESS;
    }
    if !args.bench {
        // `cargo test --benches` runs benchmarks too, and must not wait minutes for this one.
        eprintln!("bench: not measured; use ./deploy/dev bench");
        return ExitCode::SUCCESS;
    }
    match services_and_report(&args).await {
        Ok(report) if report.is_complete() => ExitCode::SUCCESS,
        Ok(_) => {
            eprintln!("bench: not everything could be measured; see FAILED above");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn services_and_report(args: &Args) -> anyhow::Result<Report> {
    let services = Services::from_environment().await?;
    let mut terminated = signal(SignalKind::terminate())?;
    // Interrupted or failed, no child stays behind, and what was made on the servers is removed.
    let measured = tokio::select! {
        measured = measure(args, &services) => measured,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
        _ = terminated.recv() => Err(anyhow::anyhow!("terminated")),
    };
    let removed = services.remove_sites().await;
    let report = measured?;
    removed?;
    println!("{report}");
    for file in report.write(args.out.as_deref())? {
        eprintln!("written: {}", file.display());
    }
    Ok(report)
}

async fn measure(args: &Args, services: &Services) -> anyhow::Result<Report> {
    let scratch = TempDir::new().context("a folder for logs and counters")?;
    let stage = Stage { args, services, scratch: scratch.path() };
    let mut report = Report {
        machine: machine::machine(process::load_average()),
        versions: machine::versions(services),
        settings: report::settings(args),
        ..Report::default()
    };
    let filled = filled_audit(stage, &mut report).await;
    let (contests, absent) = rows::contests(args, services, filled.clone());
    report.absent.extend(absent);
    let mut sizes = Sizes::default();
    for contest in contests {
        report.rows.extend(contest::hold(stage, contest, &mut sizes).await);
    }
    let rate = report.row("small").and_then(report::Row::rate);
    figures(stage, &mut report, Name::P0, lanes::measure(stage, rate)).await;
    figures(stage, &mut report, Name::LargeMemory, memory::measure_large(stage)).await;
    figures(stage, &mut report, Name::Feedback, feedback::measure(stage)).await;
    figures(stage, &mut report, Name::Start, quiet::measure_start(stage)).await;
    figures(stage, &mut report, Name::Idle, quiet::measure_idle(stage)).await;
    if let Some(filled) = filled {
        figures(stage, &mut report, Name::Growth, lookup::measure(stage, filled)).await;
    }
    report.verdicts = targets::verdicts(&report, args);
    Ok(report)
}

/// The database for the growth row; it is filled only where somebody asks for what takes long.
async fn filled_audit(stage: Stage<'_>, report: &mut Report) -> Option<String> {
    let args = stage.args;
    if !rows::is_wanted(args, Name::Growth) {
        return None;
    }
    let found = async {
        let name = growth::database_name(args.audit_rows)?;
        let is_asked_for = args.full || args.only.contains(&Name::Growth);
        if !is_asked_for && !stage.services.has_database(&name).await? {
            return anyhow::Ok(None);
        }
        growth::prepare(stage, &name).await?;
        Ok(Some(name))
    };
    match found.await {
        Ok(Some(name)) => Some(name),
        Ok(None) => {
            let why = format!(
                "{} rows have to be filled in once, some four minutes and 14 GB: --full or --only growth",
                rows::with_spaces(args.audit_rows)
            );
            report.absent.push(Absent { row: Name::Growth, why });
            None
        }
        Err(error) => {
            report.errors.push(format!("{}: {error:#}", Name::Growth));
            None
        }
    }
}

/// Measures if it is asked for; a failure is told in the report and costs no other row.
async fn figures(
    stage: Stage<'_>,
    report: &mut Report,
    row: Name,
    measure: impl Future<Output = anyhow::Result<Vec<Figure>>>,
) {
    if !rows::is_wanted(stage.args, row) {
        return;
    }
    match measure.await {
        Ok(figures) => report.figures.extend(figures),
        Err(error) => {
            eprintln!("{row} failed: {error:#}");
            report.errors.push(format!("{row}: {error:#}"));
            if let Err(error) = stage.services.remove_sites().await {
                eprintln!("{error:#}");
            }
        }
    }
}
