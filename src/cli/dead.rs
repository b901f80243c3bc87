//! `postrider dead list`, `dead show` and `dead discard`, and which letters a command means.

use std::process::ExitCode;

use chrono::{DateTime, NaiveDate, NaiveTime, TimeDelta, Utc};
use clap::{Args, Subcommand, builder::PossibleValuesParser};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Session, one_line, or_dash, replay, runs, suppressions::ByArgs, table};
use crate::{
    email::Reason,
    http::dead_letters::{content, dead_letter_json, dead_page_json, listed, words},
    store::{
        dead::{DeadFilter, DeadLetter, DeadPage, DeadSummary, Discarded, NOTE_CHARS_MAX},
        messages::detail::Viewed,
        replay::LetterState,
    },
};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List dead letters, newest first.
    List(ListArgs),
    /// Show one, with its history and its content.
    Show {
        /// Its id, or the id of its request.
        id: Uuid,
        #[command(flatten)]
        by: ByArgs,
    },
    /// Put letters away for good: they stay to be looked at, and are never replayed.
    Discard(DiscardArgs),
    /// Send letters on their way again, each at most once.
    Replay(Box<replay::Args>),
    /// List replays, newest first.
    Runs(runs::ListArgs),
    /// Show a replay, or start, pause, resume or cancel it.
    #[command(subcommand)]
    Run(runs::Command),
}

/// Which letters are meant; every part that is given must match.
#[derive(Debug, Args)]
pub(super) struct FilterArgs {
    /// Of this reason.
    #[arg(long, value_parser = PossibleValuesParser::new(Reason::ALL.iter().map(|reason| reason.name())))]
    reason: Option<String>,
    /// Of this template.
    #[arg(long, value_name = "KEY")]
    template: Option<String>,
    /// From this source.
    #[arg(long)]
    source: Option<String>,
    /// Whose mail to this address failed (needs EMAIL_HASH_KEY). What could not be read, or matched no queue, is not found so.
    #[arg(long, value_name = "ADDRESS")]
    pub(super) to: Option<String>,
    /// Failed since: 2h or 3d ago, a date, or a time such as 2026-11-24T18:00:00Z.
    #[arg(long, value_name = "TIME", value_parser = moment)]
    since: Option<DateTime<Utc>>,
    /// Failed before.
    #[arg(long, value_name = "TIME", value_parser = moment)]
    until: Option<DateTime<Utc>>,
}

impl FilterArgs {
    /// The filter of these flags; `recipient_hash` is that of `--to`.
    pub(super) fn filter(self, states: Vec<LetterState>, recipient_hash: Option<[u8; 32]>, limit: i64) -> DeadFilter {
        DeadFilter {
            reason: self.reason,
            template_key: self.template,
            source: self.source,
            states,
            since: self.since,
            until: self.until,
            recipient_hash,
            after: None,
            limit,
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct ListArgs {
    #[command(flatten)]
    filter: FilterArgs,
    /// In this state; may be given several times.
    #[arg(long = "state", value_parser = PossibleValuesParser::new(LetterState::ALL.iter().map(|state| state.name())))]
    states: Vec<String>,
    /// At most this many.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(i64).range(1..=10_000))]
    limit: i64,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  postrider dead discard 7b0e8f0e-4a51-4e0e-9a53-6f3c4d1f2a10 --note \"a test\"

Only a letter that waits can be discarded; one that was discarded before stays so, by
whom and why it was. Exit code 1: a letter is unknown, was replayed, or is being replayed.")]
pub(super) struct DiscardArgs {
    /// Letters, by their own ids or by those of their requests.
    #[arg(value_name = "ID", required = true)]
    ids: Vec<Uuid>,
    /// Why, for those who look at it later.
    #[arg(long, value_parser = note)]
    note: Option<String>,
    #[command(flatten)]
    by: ByArgs,
}

pub(super) async fn run(context: &Session, command: Command) -> anyhow::Result<ExitCode> {
    context.log_quietly();
    match command {
        Command::List(args) => {
            let (store, recipient_hash) = context.store_to_search(args.filter.to.as_deref()).await?;
            let states = args.states.iter().filter_map(|name| LetterState::from_name(name)).collect();
            let page = store.dead_letters(&args.filter.filter(states, recipient_hash, args.limit)).await?;
            list(context, &page)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Show { id, by } => {
            let store = context.store_without_key().await?;
            let Some(letter) = store.dead_letter(id).await? else {
                anyhow::bail!("there is no dead letter {id}, and none of a request {id}")
            };
            store.record_view(&by.operator(), Viewed::DeadLetter(letter.summary.id)).await?;
            show(context, &letter)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Discard(args) => discard(context, args).await,
        Command::Replay(args) => Box::pin(replay::run(context, *args)).await,
        Command::Runs(args) => runs::list(context, args).await,
        Command::Run(command) => runs::run(context, command).await,
    }
}

fn note(text: &str) -> Result<String, String> {
    let chars = text.chars().count();
    if chars <= NOTE_CHARS_MAX { Ok(text.to_owned()) } else { Err(format!("longer than {NOTE_CHARS_MAX} characters")) }
}

async fn discard(context: &Session, args: DiscardArgs) -> anyhow::Result<ExitCode> {
    let store = context.store_without_key().await?;
    let by = args.by.operator();
    let mut results = Vec::new();
    for id in args.ids {
        let letters = store.dead_letters_of(id).await?;
        if letters.is_empty() {
            results.push((id, Discarded::Unknown));
        }
        for letter in letters {
            results.push((letter, store.discard(letter, &by, args.note.as_deref()).await?));
        }
    }
    let is_done = |result: &Discarded| matches!(result, Discarded::Done(_) | Discarded::Before(_));
    let all_done = results.iter().all(|(_, result)| is_done(result));
    if context.is_json {
        let items: Vec<Value> =
            results.iter().map(|(id, result)| json!({ "id": id, "result": outcome(result) })).collect();
        Session::print_json(&json!({ "items": items }))?;
    } else {
        let mut rows = table(&["ID", "RESULT"]);
        for (id, result) in &results {
            rows.add_row([id.to_string(), outcome(result).to_owned()]);
        }
        outln!("{rows}");
    }
    Ok(if all_done { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What became of it: a letter that is not discarded is in the state that is told.
const fn outcome(result: &Discarded) -> &'static str {
    match result {
        Discarded::Done(_) => "discarded",
        Discarded::Before(_) => "discarded before",
        Discarded::Refused(state) => state.name(),
        Discarded::Unknown => "unknown",
    }
}

pub(super) fn moment(text: &str) -> Result<DateTime<Utc>, String> {
    moment_at(text, Utc::now()).ok_or_else(|| {
        "not a time: use 30m, 2h or 3d for that long ago, a date such as 2026-11-24, or 2026-11-24T18:00:00Z".to_owned()
    })
}

fn moment_at(text: &str, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
    if let Ok(at) = DateTime::parse_from_rfc3339(text) {
        return Some(at.to_utc());
    }
    if let Ok(day) = text.parse::<NaiveDate>() {
        return Some(day.and_time(NaiveTime::MIN).and_utc());
    }
    let unit = text.chars().next_back()?;
    let count: i64 = text[..text.len() - unit.len_utf8()].parse().ok().filter(|count| *count >= 0)?;
    let ago = match unit {
        's' => TimeDelta::try_seconds(count),
        'm' => TimeDelta::try_minutes(count),
        'h' => TimeDelta::try_hours(count),
        'd' => TimeDelta::try_days(count),
        _ => None,
    };
    now.checked_sub_signed(ago?)
}

fn list(context: &Session, page: &DeadPage) -> anyhow::Result<()> {
    if context.is_json {
        return Session::print_json(&dead_page_json(page, true));
    }
    let items = &page.items;
    if items.is_empty() {
        outln!("No dead letters match.");
        return Ok(());
    }
    let mut rows = table(&["ID", "FAILED", "STATE", "REASON", "TEMPLATE", "LANE", "RECIPIENT", "TRIES", "ERROR"]);
    for letter in items {
        rows.add_row([
            letter.id.to_string(),
            letter.at.format("%Y-%m-%d %H:%M:%S").to_string(),
            letter.state.clone(),
            letter.reason.clone(),
            or_dash(letter.template_key.as_deref()),
            or_dash(letter.lane.as_deref()),
            or_dash(first_and_more(letter)),
            or_dash(letter.attempts),
            one_line(letter.error.as_deref().unwrap_or("-")),
        ]);
    }
    outln!("{rows}");
    if i64::try_from(items.len()).is_ok_and(|shown| shown < page.total) {
        let more = if page.total_is_exact { "" } else { "more than " };
        outln!("{} of {more}{}; --limit shows more.", items.len(), page.total);
    }
    Ok(())
}

fn show(context: &Session, letter: &DeadLetter) -> anyhow::Result<()> {
    if context.is_json {
        return Session::print_json(&dead_letter_json(letter, true));
    }
    let s = &letter.summary;
    outln!("Dead letter  {}", s.id);
    outln!("Reason       {}", s.reason);
    outln!("Error        {}", s.error.as_deref().unwrap_or("-"));
    outln!("Request      {}", or_dash(s.request_id));
    outln!("Source       {}", or_dash(s.source.as_deref()));
    outln!("Template     {}", or_dash(s.template_key.as_deref()));
    outln!("Lane         {}", or_dash(s.lane.as_deref()));
    outln!("Routing key  {}", or_dash(letter.routing_key.as_deref()));
    outln!("Tries        {}", or_dash(s.attempts));
    outln!("First seen   {}", or_dash(letter.first_at));
    outln!("Failed       {}", s.at);
    outln!("State        {}", s.state);
    if let Some(discard) = &letter.discard {
        let note = discard.note.as_deref().map_or_else(String::new, |note| format!(": {}", one_line(note)));
        outln!("Discarded    {} by {}{note}", discard.at, discard.by);
    }
    for (title, header, in_words) in [
        ("Recipients", "x-recipients", recipient_in_words as fn(&Value) -> String),
        ("History", "x-history", step_in_words),
    ] {
        let lines = listed(letter.headers.get(header).and_then(Value::as_str));
        if !lines.is_empty() {
            outln!("\n{title}");
        }
        for line in &lines {
            outln!("  {}", one_line(&in_words(line)));
        }
    }
    outln!("\nContent ({} bytes)", letter.body_bytes);
    match &content(letter) {
        Value::String(text) => outln!("{text}"),
        other => outln!("{}", serde_json::to_string_pretty(other)?),
    }
    Ok(())
}

/// `ada@example.bj +2`.
fn first_and_more(letter: &DeadSummary) -> Option<String> {
    let all = listed(letter.recipients.as_deref());
    let first = one_line(words(all.first()?, "address")?);
    Some(if all.len() > 1 { format!("{first} +{}", all.len() - 1) } else { first })
}

/// `ada@example.bj: rejected after 1 tries: 550 5.1.1 no such user`.
fn recipient_in_words(line: &Value) -> String {
    let tries = line.get("attempts").and_then(Value::as_i64).unwrap_or(0);
    let tries = if tries == 1 { "1 try".to_owned() } else { format!("{tries} tries") };
    format!(
        "{}: {} after {tries}: {}",
        words(line, "address").unwrap_or("-"),
        words(line, "reason").unwrap_or("-"),
        words(line, "error").unwrap_or("-")
    )
}

/// `2026-11-24 18:00:03  attempt 1  deferred at rcpt by 127.0.0.1:25: 450 4.2.1 mailbox busy`.
fn step_in_words(line: &Value) -> String {
    let at = words(line, "at").and_then(|at| DateTime::parse_from_rfc3339(at).ok());
    let at = at.map_or_else(|| "-".to_owned(), |at| at.to_utc().format("%Y-%m-%d %H:%M:%S").to_string());
    let attempt = line.get("attempt").and_then(Value::as_i64).unwrap_or(0);
    let mut step = format!("{at}  attempt {attempt}  {}", words(line, "kind").unwrap_or("-"));
    for (before, name) in [(" at ", "phase"), (" by ", "relay"), (": ", "error")] {
        if let Some(words) = words(line, name) {
            step.push_str(before);
            step.push_str(words);
        }
    }
    match line.get("code").and_then(Value::as_i64) {
        Some(code) if words(line, "error").is_none() => format!("{step} ({code})"),
        _ => step,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_a_time_a_date_or_how_long_ago() {
        let now = DateTime::parse_from_rfc3339("2026-11-24T18:00:00Z").expect("a time").to_utc();
        for (text, at) in [
            ("2h", "2026-11-24T16:00:00Z"),
            ("3d", "2026-11-21T18:00:00Z"),
            ("2026-11-20", "2026-11-20T00:00:00Z"),
            ("2026-11-20T10:00:00+01:00", "2026-11-20T09:00:00Z"),
        ] {
            let expected = DateTime::parse_from_rfc3339(at).expect("a time").to_utc();
            assert_eq!(moment_at(text, now), Some(expected), "{text}");
        }
        for wrong in ["", "h", "-2h", "2w", "yesterday", "2é", "99999999999999999d"] {
            assert_eq!(moment_at(wrong, now), None, "{wrong}");
        }
    }
}
