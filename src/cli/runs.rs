//! `postrider dead runs` and `dead run`: replays that are planned, under way or over.

use std::process::ExitCode;

use clap::{Args, Subcommand, builder::PossibleValuesParser};
use uuid::Uuid;

use super::{Session, one_line, or_dash, replay::plan, suppressions::ByArgs, table};
use crate::{
    http::replays::{Replay, ReplayPage},
    store::replay::{Run, RunAction, RunChange, RunState},
};

#[derive(Debug, Args)]
pub(super) struct ListArgs {
    /// Standing there now.
    #[arg(long, value_parser = PossibleValuesParser::new(RunState::ALL.iter().map(|state| state.name())))]
    state: Option<String>,
    /// At most this many, newest first.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(i64).range(1..=10_000))]
    limit: i64,
}

#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  postrider dead run show 019ab3c2-5f10-7c11-9a53-6f3c4d1f2a10
  postrider dead run pause 019ab3c2-5f10-7c11-9a53-6f3c4d1f2a10

A daemon goes on with a run that is started or resumed, and stops within a second or
two when it is paused or given up. Exit code 1: there is no such run, or it cannot be
done with it any more.")]
pub(super) enum Command {
    /// Show how far a run is, and what has become of its letters.
    Show {
        /// As `postrider dead runs` shows it.
        id: Uuid,
    },
    /// Let a daemon begin a run that was planned.
    Start(Acting),
    /// Stop a run until it is resumed.
    Pause(Acting),
    /// Let a daemon go on with a run that was paused.
    Resume(Acting),
    /// Give a run up. What it has sent has been sent; the other letters wait as before.
    Cancel(Acting),
}

#[derive(Debug, Args)]
pub(super) struct Acting {
    /// As `postrider dead runs` shows it.
    id: Uuid,
    #[command(flatten)]
    by: ByArgs,
}

pub(super) async fn list(context: &Session, args: ListArgs) -> anyhow::Result<ExitCode> {
    let store = context.store_without_key().await?;
    let state = args.state.as_deref().and_then(RunState::from_name);
    let page = store.runs(state, None, args.limit).await?;
    if context.is_json {
        Session::print_json(&ReplayPage::from(page))?;
        return Ok(ExitCode::SUCCESS);
    }
    if page.items.is_empty() {
        outln!("No replays.");
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = table(&["ID", "MADE", "BY", "STATE", "LETTERS", "REPLAYED", "SKIPPED", "FAILED", "OPEN", "RATE"]);
    for run in &page.items {
        rows.add_row([
            run.id.to_string(),
            run.created_at.format("%Y-%m-%d %H:%M:%S").to_string(),
            one_line(&run.created_by),
            run.state.name().to_owned(),
            run.letters.to_string(),
            run.replayed.to_string(),
            run.skipped.to_string(),
            run.failed.to_string(),
            run.open().to_string(),
            format!("{}/s", run.rate),
        ]);
    }
    outln!("{rows}");
    if i64::try_from(page.items.len()).is_ok_and(|shown| shown < page.total) {
        outln!("{} of {}; --limit shows more.", page.items.len(), page.total);
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn run(context: &Session, command: Command) -> anyhow::Result<ExitCode> {
    let store = context.store_without_key().await?;
    let (args, action) = match command {
        Command::Show { id } => {
            let Some(run) = store.run(id).await? else { anyhow::bail!("there is no run {id}") };
            let results = store.run_results(id).await?;
            if context.is_json {
                Session::print_json(&Replay::with_results(&run, results))?;
            } else {
                show(&run, &results);
            }
            return Ok(ExitCode::SUCCESS);
        }
        Command::Start(args) => (args, RunAction::Start),
        Command::Pause(args) => (args, RunAction::Pause),
        Command::Resume(args) => (args, RunAction::Resume),
        Command::Cancel(args) => (args, RunAction::Cancel),
    };
    let run = match store.change_run(args.id, action, &args.by.operator(), None).await? {
        RunChange::Done(run) | RunChange::Before(run) => run,
        RunChange::Refused(state) => anyhow::bail!("the run is {}: it cannot be {}", state.name(), done(action)),
        RunChange::Unknown => anyhow::bail!("there is no run {}", args.id),
    };
    if context.is_json {
        Session::print_json(&Replay::from(&run))?;
    } else {
        outln!("The run is {}: {} of {} letters are left.", run.state.name(), run.open(), run.letters);
        if run.state == RunState::Running && !run.has_runner {
            outln!("A daemon goes on with it. How far it is: postrider dead run show {}", run.id);
        }
    }
    Ok(ExitCode::SUCCESS)
}

const fn done(action: RunAction) -> &'static str {
    match action {
        RunAction::Start => "started",
        RunAction::Pause => "paused",
        RunAction::Resume => "resumed",
        RunAction::Cancel => "given up",
    }
}

fn show(run: &Run, results: &[(String, String, i64)]) {
    outln!("Run          {}", run.id);
    let by_nobody = run.state == RunState::Running && !run.has_runner;
    outln!(
        "State        {}{}",
        run.state.name(),
        if by_nobody { ", nobody is at it: is a daemon running?" } else { "" }
    );
    if let Some(words) = &run.waits_for {
        outln!("Waits for    {}", one_line(words));
    }
    outln!("Letters      {}", run.letters);
    outln!("Replayed     {}", run.replayed);
    outln!("Skipped      {}", run.skipped);
    outln!("Failed       {}", run.failed);
    outln!("Open         {}", run.open());
    outln!("Rate         {} a second at most", run.rate);
    outln!("Filter       {}", run.shown_filter());
    outln!("Made         {} by {}", run.created_at, one_line(&run.created_by));
    outln!("Started      {}", or_dash(run.started_at));
    outln!("Finished     {}", or_dash(run.finished_at));
    if run.state == RunState::Planned {
        outln!("");
        plan(&run.plan);
    } else if !results.is_empty() {
        outln!("");
        let mut rows = table(&["LETTERS", "RESULT", "WHY"]);
        for (result, why, letters) in results {
            rows.add_row([&letters.to_string(), result, why]);
        }
        outln!("{rows}");
    }
}
