//! `postrider dead replay`: letters by id or by filter, planned, shown, and sent on their way again one by one.

use std::{
    collections::BTreeMap,
    io::{BufRead, IsTerminal, Write},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail};
use chrono::Utc;
use clap::ArgGroup;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Session, dead::FilterArgs, or_dash, table};
use crate::{
    broker::{Link, Publisher, link::Purpose},
    config::PipelineConfig,
    email::Reason,
    replay::{self, Planned, ReplayError, Replayed, Templates},
    store::{
        Store,
        replay::{LetterFacts, LetterState, ReplayRules, Skip, Verdict},
    },
};

/// A progress bar for less time than this would only flicker.
const PROGRESS_FROM: Duration = Duration::from_secs(2);

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
Needs DATABASE_URL and AMQP_URL. Interrupted in the middle: run it again.
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
    /// Send the words of the first time again instead of those of the template's active version.
    #[arg(long)]
    keep_version: bool,
    /// Letters a second at most, so that neither the relay nor today's mail is overrun.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rate: u32,
}

/// One letter of the plan, and what has become of it.
struct Item {
    planned: Planned,
    result: Fate,
}

enum Fate {
    /// Nothing yet: only planned, or not come to.
    Open,
    Published,
    Skipped(Skip),
    Failed(String),
}

pub(super) async fn run(context: &Session, args: Args) -> anyhow::Result<ExitCode> {
    let pipeline = context.settings.pipeline()?;
    // Before anything is looked up: half the settings would only do half the work.
    let broker = if args.dry_run { None } else { Some(context.settings.broker()?) };
    let (yes, rate) = (args.yes, args.rate);
    let (store, recipient_hash) = context.store_to_search(args.filter.to.as_deref()).await?;
    let templates = Templates::load(&store).await?;
    let rules = templates.rules(args.keep_version, pipeline.audit_retention);
    let ids = chosen(&store, args, recipient_hash).await?;
    let plan = replay::plan(&store, &ids, &templates, &rules, Utc::now()).await?;
    let mut items: Vec<Item> = plan.into_iter().map(Item::of).collect();
    let Some(broker) = broker else {
        report(context, &items, true)?;
        return Ok(ExitCode::SUCCESS);
    };
    let open = items.iter().filter(|item| matches!(item.result, Fate::Open)).count();
    if open > 0 && !yes && std::io::stdin().is_terminal() {
        if !context.is_json {
            summary(&items, true);
        }
        if !confirmed(open)? {
            bail!("nothing was replayed");
        }
    }
    if open > 0 {
        let link = Arc::new(Link::new(&broker, Purpose::Publish)?);
        // One attempt that fails at once beats one that waits for ever: somebody is looking.
        drop(link.connect_once().await.context("AMQP_URL")?);
        let publisher = Publisher::new(Arc::clone(&link), 1);
        let sender = Sender { store: &store, publisher: &publisher, rules: &rules, pipeline: &pipeline };
        sender.send(&mut items, rate, open).await;
        link.close().await;
    }
    report(context, &items, false)?;
    let is_done = items.iter().all(|item| matches!(item.result, Fate::Published | Fate::Skipped(_)));
    Ok(if is_done { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The letters that are meant, oldest first, each once.
async fn chosen(store: &Store, args: Args, recipient_hash: Option<[u8; 32]>) -> anyhow::Result<Vec<Uuid>> {
    if args.ids.is_empty() {
        let open = vec![LetterState::Waiting, LetterState::Replaying];
        return Ok(store.dead_letter_ids(&args.filter.filter(open, recipient_hash, i64::MAX)).await?);
    }
    let mut all = Vec::new();
    for id in args.ids {
        let letters = store.dead_letters_of(id).await?;
        if letters.is_empty() {
            bail!("there is no dead letter {id}, and none of a request {id}; nothing was replayed");
        }
        all.extend(letters.into_iter().filter(|letter| !all.contains(letter)).collect::<Vec<_>>());
    }
    Ok(all)
}

impl Item {
    fn of(planned: Planned) -> Self {
        let result = match planned.verdict {
            Verdict::Skip(skip) => Fate::Skipped(skip),
            // Only its letter does not say so yet; the next look at it lets it.
            Verdict::Arrived => Fate::Skipped(Skip::Replayed),
            Verdict::Reopen { .. } | Verdict::Resume { .. } | Verdict::Again { .. } => Fate::Open,
        };
        Self { planned, result }
    }

    fn json(&self) -> Value {
        let letter = &self.planned.letter;
        let (result, why) = match &self.result {
            Fate::Open => ("open", None),
            Fate::Published => ("replayed", None),
            Fate::Skipped(skip) => ("skipped", Some((skip.name(), skip.to_string()))),
            Fate::Failed(error) => ("failed", Some(("error", error.clone()))),
        };
        json!({
            "id": letter.id, "request_id": letter.request_id, "template_key": letter.template_key,
            "reason": letter.reason.map(Reason::name), "template_version": self.planned.version,
            "result": result, "why": why.as_ref().map(|(name, _)| name), "words": why.as_ref().map(|(_, words)| words),
        })
    }
}

/// What sending needs.
struct Sender<'a> {
    store: &'a Store,
    publisher: &'a Publisher,
    rules: &'a ReplayRules,
    pipeline: &'a PipelineConfig,
}

impl Sender<'_> {
    /// Sends every open letter on its way, at this rate. Ends early when broker or database are away, or on Ctrl-C.
    async fn send(&self, items: &mut [Item], rate: u32, open: usize) {
        let pause = Duration::from_secs(1) / rate;
        let mut ticks = tokio::time::interval(pause);
        // A slow broker is not made up for by a burst.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let bar = progress(open, pause);
        let interrupted = CancellationToken::new();
        let telling = interrupted.clone();
        let listening = tokio::spawn(async move {
            if tokio::signal::ctrl_c().await.is_ok() {
                telling.cancel();
            }
        });
        for item in items.iter_mut().filter(|item| matches!(item.result, Fate::Open)) {
            tokio::select! {
                // Between two letters, so that none is left half done.
                biased;
                () = interrupted.cancelled() => break,
                _ = ticks.tick() => {}
            }
            let (fate, is_over) = self.one(&item.planned.letter).await;
            item.result = fate;
            bar.inc(1);
            if is_over {
                break;
            }
        }
        listening.abort();
        bar.finish_and_clear();
    }

    /// What has become of one letter, and whether those behind it would fare no better.
    async fn one(&self, letter: &LetterFacts) -> (Fate, bool) {
        match replay::replay(self.store, self.publisher, letter, self.rules, self.pipeline).await {
            Ok(Some(Replayed::Published)) => (Fate::Published, false),
            Ok(Some(Replayed::Skipped(skip))) => (Fate::Skipped(skip), false),
            Ok(None) => (Fate::Failed("it is gone: retention has deleted it".to_owned()), false),
            Err(error) => (Fate::Failed(in_words(&error)), is_over_with(&error)),
        }
    }
}

/// Whether the letters behind this one would fare no better.
fn is_over_with(error: &ReplayError) -> bool {
    match error {
        ReplayError::Store(error) => error.is_away(),
        // A lane's queue that is gone is one lane's trouble.
        ReplayError::Broker(error) => !error.is_missing_object(),
    }
}

fn in_words(error: &ReplayError) -> String {
    match error {
        ReplayError::Broker(missing) if missing.is_missing_object() => {
            format!(
                "the queue of its lane is not there: has `postrider run` declared it in this virtual host? ({missing})"
            )
        }
        other => other.to_string(),
    }
}

fn progress(count: usize, pause: Duration) -> ProgressBar {
    let takes = pause * u32::try_from(count).unwrap_or(u32::MAX);
    if takes < PROGRESS_FROM || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} {per_sec} {eta}");
    ProgressBar::new(count as u64).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// Asks on standard error, so that a program that reads the results does not read the question.
fn confirmed(letters: usize) -> anyhow::Result<bool> {
    let mut terminal = std::io::stderr();
    write!(terminal, "Replay {letters} dead letters? [y/N] ")?;
    terminal.flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn count(items: &[Item], is_so: impl Fn(&Fate) -> bool) -> usize {
    items.iter().filter(|item| is_so(&item.result)).count()
}

fn report(context: &Session, items: &[Item], dry_run: bool) -> anyhow::Result<()> {
    if context.is_json {
        return Session::print_json(&json!({
            "dry_run": dry_run,
            "total": items.len(),
            "open": count(items, |fate| matches!(fate, Fate::Open)),
            "replayed": count(items, |fate| matches!(fate, Fate::Published)),
            "skipped": count(items, |fate| matches!(fate, Fate::Skipped(_))),
            "failed": count(items, |fate| matches!(fate, Fate::Failed(_))),
            "items": items.iter().map(Item::json).collect::<Vec<_>>(),
        }));
    }
    summary(items, dry_run);
    if !dry_run {
        next_steps(items);
    }
    Ok(())
}

/// What is, or would be, replayed, by template and version; what is skipped, and what failed, by why.
fn summary(items: &[Item], dry_run: bool) {
    if items.is_empty() {
        outln!("No letter that waits matches; `postrider dead list` shows all.");
        return;
    }
    let mut going: BTreeMap<(String, String), usize> = BTreeMap::new();
    let mut skipped: BTreeMap<String, usize> = BTreeMap::new();
    let mut failed: BTreeMap<&str, usize> = BTreeMap::new();
    for item in items {
        match &item.result {
            Fate::Open if !dry_run => {}
            Fate::Open | Fate::Published => {
                let key = (or_dash(item.planned.letter.template_key.as_deref()), or_dash(item.planned.version));
                *going.entry(key).or_default() += 1;
            }
            Fate::Skipped(skip) => *skipped.entry(skip.to_string()).or_default() += 1,
            Fate::Failed(error) => *failed.entry(error).or_default() += 1,
        }
    }
    let sum: usize = going.values().sum();
    let of = items.len();
    if dry_run {
        outln!("Would be replayed: {sum} of {of}.");
    } else {
        outln!("Replayed: {sum} of {of}; the broker has confirmed each.");
    }
    if sum > 0 {
        let mut rows = table(&["LETTERS", "TEMPLATE", "VERSION"]);
        for ((template, version), letters) in &going {
            rows.add_row([&letters.to_string(), template, version]);
        }
        outln!("{rows}");
    }
    for (title, by_words) in [
        ("Skipped", skipped.iter().map(|(words, n)| (words.as_str(), *n)).collect::<Vec<_>>()),
        ("Failed", failed.into_iter().collect()),
    ] {
        if !by_words.is_empty() {
            outln!("{title}: {}.", by_words.iter().map(|(_, letters)| letters).sum::<usize>());
            let mut rows = table(&["LETTERS", "WHY"]);
            for (words, letters) in by_words {
                rows.add_row([&letters.to_string(), words]);
            }
            outln!("{rows}");
        }
    }
}

fn next_steps(items: &[Item]) {
    let open = count(items, |fate| matches!(fate, Fate::Open));
    let failed = count(items, |fate| matches!(fate, Fate::Failed(_)));
    if open + failed > 0 {
        outln!("{} not done: run the same command again; nothing is sent twice by it.", open + failed);
    }
    let published: Vec<&Item> = items.iter().filter(|item| matches!(item.result, Fate::Published)).collect();
    match published.as_slice() {
        [] => {}
        [one] if one.planned.letter.request_id.is_some() => {
            let request = or_dash(one.planned.letter.request_id);
            outln!("What becomes of it: postrider messages --request {request}");
        }
        _ => outln!("What fails again is a new letter: postrider dead list --state waiting"),
    }
}
