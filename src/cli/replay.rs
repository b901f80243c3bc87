//! `postrider dead replay`: letters by id or by filter, planned, shown, and sent on their way again in a run.
//!
//! The command is at its run itself, so that it needs no daemon; a daemon takes the run up when the command is killed.

/// What is printed of a plan and of a run.
mod report;

use std::{
    io::{BufRead, IsTerminal, Write},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail};
use clap::ArgGroup;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub(super) use self::report::plan;
use self::report::{Outcome, planned_json};
use super::{Session, dead::FilterArgs, progress, suppressions::ByArgs};
use crate::{
    broker::{Link, Publisher, link::Purpose},
    config::{BrokerConfig, PipelineConfig},
    replay::{
        Templates,
        run::{Ended, Runner},
    },
    store::{
        Store,
        replay::{Chosen, Lease, NewRun, ReplayRules, Run, RunAction, RunChange, RunState, RunWork},
    },
};

/// A progress bar for less time than this would only flicker.
const PROGRESS_FROM: Duration = Duration::from_secs(2);
/// Letters at hand at once, each on a channel of its own.
const CHANNELS: usize = 4;

#[derive(Debug, clap::Args)]
#[command(
    group = ArgGroup::new("which").required(true).multiple(true)
        .args(["ids", "reason", "template", "source", "to", "since", "until", "all"]),
    after_help = "\
Examples:
  postrider dead replay 7b0e8f0e-4a51-4e0e-9a53-6f3c4d1f2a10
  postrider dead replay --reason rejected --since 2h --dry-run
  postrider dead replay --template billing_invoice_monthly --rate 5
  postrider dead replay --all --yes --json

Only mails that failed, or may or may not have been accepted and were left to you,
go out again; what was sent never does, however often it is replayed. The words are
those of the template's active version (a version that the producer pinned stays).
Needs DATABASE_URL and, but for --dry-run and --detach, AMQP_URL. It is a run
(postrider dead runs): Ctrl-C pauses it, `postrider dead run resume` goes on with it,
and a daemon takes it over if this command is killed. Doing it all again is safe as
well.
Exit code 0: all that could be replayed is on its way, confirmed by the broker;
1: something was not."
)]
pub(super) struct Args {
    /// Letters, by their own ids or by those of their requests.
    #[arg(value_name = "ID", conflicts_with_all = ["reason", "template", "source", "to", "since", "until", "all"])]
    ids: Vec<Uuid>,
    #[command(flatten)]
    filter: FilterArgs,
    /// Every letter that waits.
    #[arg(long, conflicts_with_all = ["reason", "template", "source", "to", "since", "until"])]
    all: bool,
    /// Only say what would happen, and change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Do not ask. Nothing is ever asked where nobody is at a terminal.
    #[arg(long)]
    yes: bool,
    /// Leave the run to a daemon, and return at once.
    #[arg(long, conflicts_with = "dry_run")]
    detach: bool,
    /// Send the words of the first time again instead of those of the template's active version.
    #[arg(long)]
    keep_version: bool,
    /// Letters a second at most, so that neither the relay nor today's mail is overrun.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(i32).range(1..=1000))]
    rate: i32,
    #[command(flatten)]
    by: ByArgs,
}

pub(super) async fn run(context: &Session, args: Args) -> anyhow::Result<ExitCode> {
    let pipeline = context.settings.pipeline()?;
    // Before anything is looked up: half the settings would only do half the work.
    let broker = if args.dry_run || args.detach { None } else { Some(context.settings.broker()?) };
    let (store, recipient_hash) = context.store_to_search(args.filter.to.as_deref()).await?;
    let rules = Templates::load(&store).await?.rules(args.keep_version, pipeline.audit_retention);
    let wanted = Wanted { dry_run: args.dry_run, is_sure: args.yes, rate: args.rate, by: args.by.operator() };
    let chosen = chosen(&store, args.ids, args.filter, recipient_hash).await?;
    if wanted.dry_run {
        return dry_run(context, &store, &chosen, &rules).await;
    }
    let run = store.create_run(&NewRun { rate: wanted.rate, by: &wanted.by }, &chosen, &rules).await?;
    if run.open() > 0 && !wanted.is_sure && std::io::stdin().is_terminal() {
        if !context.is_json {
            report::plan(&run.plan);
        }
        if !confirmed(run.open())? {
            change(&store, &run, RunAction::Cancel, &wanted.by, None).await?;
            bail!("nothing was replayed");
        }
    }
    let hand = Hand { context, store: &store, by: &wanted.by };
    let ended = match broker {
        None => hand.leave(&run).await?,
        Some(_) if run.open() == 0 => hand.close(&run).await?,
        Some(broker) => hand.carry(&run, &broker, pipeline).await?,
    };
    hand.report(&run, &ended).await
}

/// What was asked for, beside which letters.
struct Wanted {
    dry_run: bool,
    is_sure: bool,
    rate: i32,
    by: String,
}

/// The letters that are meant, each once.
async fn chosen(
    store: &Store,
    ids: Vec<Uuid>,
    filter: FilterArgs,
    recipient_hash: Option<[u8; 32]>,
) -> anyhow::Result<Chosen> {
    if ids.is_empty() {
        return Ok(Chosen::Filter(Box::new(filter.filter(Vec::new(), recipient_hash, i64::MAX))));
    }
    let mut all = Vec::new();
    for id in ids {
        let letters = store.dead_letters_of(id).await?;
        if letters.is_empty() {
            bail!("there is no dead letter {id}, and none of a request {id}; nothing was replayed");
        }
        all.extend(letters.into_iter().filter(|letter| !all.contains(letter)).collect::<Vec<_>>());
    }
    Ok(Chosen::Ids(all))
}

async fn dry_run(context: &Session, store: &Store, chosen: &Chosen, rules: &ReplayRules) -> anyhow::Result<ExitCode> {
    let mut items = Vec::new();
    let plan = store
        .plan(chosen, rules, |planned| {
            if context.is_json {
                items.push(planned_json(&planned));
            }
        })
        .await?;
    if context.is_json {
        Session::print_json(&json!({
            "dry_run": true, "total": plan.letters, "open": plan.open, "replayed": 0, "skipped": plan.skipped,
            "failed": 0, "items": items,
        }))?;
    } else {
        report::plan(&plan);
    }
    Ok(ExitCode::SUCCESS)
}

/// Asks on standard error, so that a program that reads the results does not read the question.
fn confirmed(letters: i32) -> anyhow::Result<bool> {
    let mut terminal = std::io::stderr();
    write!(terminal, "Replay {letters} dead letters? [y/N] ")?;
    terminal.flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

async fn change(store: &Store, run: &Run, action: RunAction, by: &str, lease: Option<&Lease>) -> anyhow::Result<()> {
    match store.change_run(run.id, action, by, lease).await? {
        RunChange::Done(_) | RunChange::Before(_) => Ok(()),
        RunChange::Refused(state) => bail!("the run {} is {} by now", run.id, state.name()),
        RunChange::Unknown => bail!("the run {} is gone", run.id),
    }
}

/// A hand on a run.
struct Hand<'a> {
    context: &'a Session,
    store: &'a Arc<Store>,
    by: &'a str,
}

impl Hand<'_> {
    /// For a daemon to take up.
    async fn leave(&self, run: &Run) -> anyhow::Result<Outcome> {
        change(self.store, run, RunAction::Start, self.by, None).await?;
        Ok(Outcome::Left)
    }

    /// A run of letters that are all skipped is done when it begins.
    async fn close(&self, run: &Run) -> anyhow::Result<Outcome> {
        let lease = Lease::new(Duration::from_secs(30));
        change(self.store, run, RunAction::Start, self.by, Some(&lease)).await?;
        self.store.complete_run(run.id, &lease).await?;
        Ok(Outcome::Ended(Ended::Done))
    }

    /// To its end, or until broker or database go away or somebody says so.
    async fn carry(&self, run: &Run, broker: &BrokerConfig, pipeline: PipelineConfig) -> anyhow::Result<Outcome> {
        let link = Arc::new(Link::new(broker, Purpose::Publish)?);
        // One attempt that fails at once beats one that waits for ever: somebody is looking.
        if let Err(error) = link.connect_once().await {
            change(self.store, run, RunAction::Cancel, self.by, None).await?;
            return Err(error).context("AMQP_URL");
        }
        let lease = Lease::new(pipeline.lease);
        change(self.store, run, RunAction::Start, self.by, Some(&lease)).await?;
        let publisher = Arc::new(Publisher::new(Arc::clone(&link), CHANNELS));
        let runner =
            Runner { store: Arc::clone(self.store), publisher, link: Arc::clone(&link), pipeline, is_patient: false };
        let takes = Duration::from_secs(1) * u32::try_from(run.open() / run.rate.max(1)).unwrap_or(u32::MAX);
        let bar = progress::bar(u64::try_from(run.open()).unwrap_or_default(), takes >= PROGRESS_FROM);
        let (stop, shown) = (CancellationToken::new(), bar.clone());
        let (interrupted, is_json) = (stop.clone(), self.context.is_json);
        let listening = tokio::spawn(async move {
            if tokio::signal::ctrl_c().await.is_ok() {
                if !is_json {
                    shown.println("Pausing: the letters at hand are finished first.");
                }
                interrupted.cancel();
            }
        });
        let work = RunWork { id: run.id, rate: run.rate, keep_version: run.keep_version };
        let skipped = run.letters - run.open();
        let ended = runner
            .carry(work, lease, &stop, |now| {
                bar.set_position(u64::try_from(now.done - skipped).unwrap_or_default());
            })
            .await;
        listening.abort();
        bar.finish_and_clear();
        link.close().await;
        if ended == Ended::Interrupted {
            // Whoever wants to end it here does not want a daemon to go on with it behind their back.
            change(self.store, run, RunAction::Pause, self.by, None).await?;
        }
        Ok(Outcome::Ended(ended))
    }

    async fn report(&self, run: &Run, outcome: &Outcome) -> anyhow::Result<ExitCode> {
        let Some(run) = self.store.run(run.id).await? else { bail!("the run {} is gone", run.id) };
        if self.context.is_json {
            report::json(self.store, &run).await?;
        } else {
            report::people(self.store, &run, outcome).await?;
        }
        let is_done = run.state == RunState::Done && run.failed == 0;
        let is_left = matches!(outcome, Outcome::Left);
        Ok(if is_done || is_left { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}
