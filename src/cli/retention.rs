//! `postrider retention`: what is due to be forgotten or deleted, and doing it.

use std::{process::ExitCode, sync::Arc};

use chrono::{DateTime, TimeDelta, Utc};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{Session, dead::moment, one_line, or_dash, table};
use crate::{
    retention::{Pace, PassReport, pass},
    store::{
        Store,
        retention::{DUE_MAX, Due, Moments, Periods, Progress, Step, steps},
    },
};

/// Retention that is this much behind needs somebody to look.
const LATE: TimeDelta = TimeDelta::days(1);

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Show what is due and what was done.
    Status(StatusArgs),
    /// Do all that is due now, without waiting for a daemon.
    Run(RunArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  postrider retention status
  postrider retention status --at 2027-01-31T00:00:00Z     what will be due then?

OVERDUE is for how long the oldest row has been due. What is still on its way waits,
and is counted as due. Exit code 1: something has been due for more than a day, or a
step failed when it was done last.")]
pub(super) struct StatusArgs {
    /// As if it were this time.
    #[arg(long, value_name = "TIME", value_parser = moment)]
    at: Option<DateTime<Utc>>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  postrider retention run --dry-run
  postrider retention run --share 100                      nobody else needs the database

Daemons do the same by themselves, every EMAIL_RETENTION_EVERY. It can be interrupted at
any time (Ctrl-C), and goes on where it was. What is gone is gone: there is no way back but
a backup. Exit code 0: all that was due is done; 1: something failed, it was interrupted, or
a daemon is at it.")]
pub(super) struct RunArgs {
    /// Only say what is due, and change nothing.
    #[arg(long)]
    dry_run: bool,
    /// How much of the time of one connection to use, in a hundred.
    #[arg(long, value_name = "PERCENT", default_value_t = 50, value_parser = clap::value_parser!(u8).range(1..=100))]
    share: u8,
}

pub(super) async fn run(context: &Session, command: Command) -> anyhow::Result<ExitCode> {
    context.log_quietly();
    let rules = context.settings.pipeline()?;
    let store = context.store_without_key().await?;
    let periods = Periods::of(&rules);
    match command {
        Command::Status(args) => status(context, &store, &periods, args.at.unwrap_or_else(Utc::now)).await,
        Command::Run(args) if args.dry_run => status(context, &store, &periods, Utc::now()).await,
        Command::Run(args) => run_now(context, &store, &periods, args.share).await,
    }
}

/// A step as it is shown.
struct Shown {
    step: &'static Step,
    progress: Progress,
    due: Due,
}

impl Shown {
    fn is_late(&self) -> bool {
        self.due.overdue.is_some_and(|overdue| overdue > LATE) || self.progress.error.is_some()
    }

    fn json(&self) -> Value {
        json!({
            "step": self.step.name, "action": self.step.action.name(), "table": self.step.table,
            "due": self.due.rows.min(DUE_MAX), "due_is_exact": self.due.rows <= DUE_MAX,
            "overdue_seconds": self.due.overdue.map(|overdue| overdue.num_seconds()),
            "done_ever": self.progress.rows_ever, "done_in_pass": self.progress.rows_pass,
            "begun_at": self.progress.begun_at, "ended_at": self.progress.ended_at, "error": self.progress.error,
        })
    }
}

async fn look(store: &Store, moments: &Moments) -> anyhow::Result<Vec<Shown>> {
    let mut all = Vec::new();
    for step in steps() {
        let progress = store.retention_progress(step).await?;
        let due = store.retention_due(step, &progress, moments, DUE_MAX + 1).await?;
        all.push(Shown { step, progress, due });
    }
    Ok(all)
}

async fn status(context: &Session, store: &Store, periods: &Periods, now: DateTime<Utc>) -> anyhow::Result<ExitCode> {
    let moments = periods.at(now);
    let all = look(store, &moments).await?;
    let is_at_work = store.is_retention_at_work().await?;
    if context.is_json {
        Session::print_json(&json!({
            "now": moments.now, "forget_before": moments.forget_before, "delete_before": moments.delete_before,
            "is_at_work": is_at_work, "steps": all.iter().map(Shown::json).collect::<Vec<_>>(),
        }))?;
    } else {
        let mut rows = table(&["STEP", "DUE", "OVERDUE", "LAST PASS", "ENDED", "DONE EVER", "ERROR"]);
        for shown in &all {
            let time = |at: Option<DateTime<Utc>>| or_dash(at.map(|at| at.format("%Y-%m-%d %H:%M UTC").to_string()));
            rows.add_row([
                shown.step.name.to_owned(),
                counted(shown.due.rows),
                or_dash(shown.due.overdue.map(age)),
                shown.progress.rows_pass.to_string(),
                time(shown.progress.ended_at),
                shown.progress.rows_ever.to_string(),
                or_dash(shown.progress.error.as_deref().map(one_line)),
            ]);
        }
        outln!("{rows}");
        outln!(
            "Persons are removed from what is older than {} days, records deleted that are older than {}. {}",
            periods.anonymize_after.as_secs() / 86_400,
            periods.audit_retention.as_secs() / 86_400,
            if is_at_work { "It is being worked on." } else { "Nobody is at work on it now." }
        );
    }
    Ok(if all.iter().any(Shown::is_late) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// `12`, `10000+`.
fn counted(rows: i64) -> String {
    if rows > DUE_MAX { format!("{DUE_MAX}+") } else { rows.to_string() }
}

/// `3 d`, `5 h`, `12 min`: as exact as a look at it needs.
fn age(overdue: TimeDelta) -> String {
    match overdue.num_minutes() {
        minutes @ ..120 => format!("{minutes} min"),
        minutes @ 120..2880 => format!("{} h", minutes / 60),
        minutes => format!("{} d", minutes / 1440),
    }
}

async fn run_now(context: &Session, store: &Arc<Store>, periods: &Periods, share: u8) -> anyhow::Result<ExitCode> {
    let moments = periods.at(Utc::now());
    let Some(mut desk) = store.try_lock_retention().await? else {
        anyhow::bail!("a daemon or another command is at work on it (see: postrider retention status)")
    };
    let stop = CancellationToken::new();
    let interrupted = stop.clone();
    let listening = tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            interrupted.cancel();
        }
    });
    let report = pass(store, &mut desk, &moments, &mut Pace::of_share(share), &stop, |_, _| ()).await;
    desk.leave().await;
    listening.abort();
    let left = look(store, &moments).await?;
    if context.is_json {
        let steps: Vec<_> = report.steps.iter().map(|done| step_json(done, &left)).collect();
        Session::print_json(&json!({ "is_done": report.is_done(), "now": moments.now, "steps": steps }))?;
    } else {
        print_report(&report, &left);
    }
    Ok(if report.is_done() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn left_of(step: &Step, left: &[Shown]) -> i64 {
    left.iter().find(|shown| shown.step.name == step.name).map_or(0, |shown| shown.due.rows)
}

fn step_json(done: &crate::retention::StepReport, left: &[Shown]) -> Value {
    let rows: serde_json::Map<_, _> =
        done.rows.iter().map(|(table, rows)| ((*table).to_owned(), json!(rows))).collect();
    json!({
        "step": done.step.name, "done": done.own_rows(), "rows": rows,
        "left": left_of(done.step, left).min(DUE_MAX), "error": done.error,
    })
}

fn print_report(report: &PassReport, left: &[Shown]) {
    let mut rows = table(&["STEP", "DONE", "LEFT", "ERROR"]);
    for done in &report.steps {
        rows.add_row([
            done.step.name.to_owned(),
            done.own_rows().to_string(),
            counted(left_of(done.step, left)),
            or_dash(done.error.as_deref().map(one_line)),
        ]);
    }
    outln!("{rows}");
    if !report.is_whole {
        outln!("Interrupted: run it again, or leave the rest to a daemon.");
    }
}
