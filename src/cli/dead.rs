//! `postrider dead list` and `dead show`, and which letters a command means.

use std::process::ExitCode;

use chrono::{DateTime, NaiveDate, NaiveTime, TimeDelta, Utc};
use clap::{Args, Subcommand, builder::PossibleValuesParser};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Session, one_line, or_dash, replay, table};
use crate::{
    email::Reason,
    store::{
        dead::{DeadFilter, DeadLetter, DeadSummary},
        replay::LetterState,
    },
    wire,
};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List dead letters, newest first.
    List(ListArgs),
    /// Show one, with its history and its content.
    Show {
        /// Its id, or the id of its request.
        id: Uuid,
    },
    /// Send letters on their way again, each at most once.
    Replay(replay::Args),
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

pub(super) async fn run(context: &Session, command: Command) -> anyhow::Result<ExitCode> {
    context.log_quietly();
    match command {
        Command::List(args) => {
            let (store, recipient_hash) = context.store_to_search(args.filter.to.as_deref()).await?;
            let states = args.states.iter().filter_map(|name| LetterState::from_name(name)).collect();
            let (items, total) = store.dead_letters(&args.filter.filter(states, recipient_hash, args.limit)).await?;
            list(context, &items, total)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Show { id } => match context.store_without_key().await?.dead_letter(id).await? {
            Some(letter) => {
                show(context, &letter)?;
                Ok(ExitCode::SUCCESS)
            }
            None => anyhow::bail!("there is no dead letter {id}, and none of a request {id}"),
        },
        Command::Replay(args) => replay::run(context, args).await,
    }
}

fn moment(text: &str) -> Result<DateTime<Utc>, String> {
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

fn list(context: &Session, items: &[DeadSummary], total: i64) -> anyhow::Result<()> {
    if context.is_json {
        let items: Vec<Value> = items.iter().map(summary_json).collect();
        return Session::print_json(&json!({ "items": items, "total": total }));
    }
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
    if i64::try_from(items.len()).is_ok_and(|shown| shown < total) {
        outln!("{} of {total}; --limit shows more.", items.len());
    }
    Ok(())
}

fn show(context: &Session, letter: &DeadLetter) -> anyhow::Result<()> {
    let content = content(letter);
    if context.is_json {
        let mut all = summary_json(&letter.summary);
        all["routing_key"] = json!(letter.routing_key);
        all["first_at"] = json!(letter.first_at);
        all["properties"] = letter.properties.clone();
        all["headers"] = letter.headers.clone();
        all["body_bytes"] = json!(letter.body_bytes);
        all["content"] = content;
        return Session::print_json(&all);
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
    match &content {
        Value::String(text) => outln!("{text}"),
        other => outln!("{}", serde_json::to_string_pretty(other)?),
    }
    Ok(())
}

/// What a header of ours lists; one that is no list, such as a producer's own of that name, lists nothing.
fn listed(header: Option<&str>) -> Vec<Value> {
    header.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
}

/// `ada@example.bj +2`.
fn first_and_more(letter: &DeadSummary) -> Option<String> {
    let all = listed(letter.recipients.as_deref());
    let first = one_line(words(all.first()?, "address")?);
    Some(if all.len() > 1 { format!("{first} +{}", all.len() - 1) } else { first })
}

fn words<'a>(value: &'a Value, name: &str) -> Option<&'a str> {
    value.get(name).and_then(Value::as_str).filter(|text| !text.is_empty())
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

/// The request as JSON with its attachments' bytes left out, or the first bytes of what is no request.
fn content(letter: &DeadLetter) -> Value {
    let Some(body) = &letter.body else { return Value::String("(removed by anonymising)".to_owned()) };
    let content_type = letter.properties.get("content_type").and_then(Value::as_str);
    let request = match content_type {
        Some(wire::JSON) => wire::from_json(body).ok(),
        _ => wire::from_protobuf(body.clone().into()).ok().filter(|r| !r.request_id.is_empty()),
    };
    match request {
        Some(request) => {
            let mut json = wire::to_json(&request);
            for attachment in json.get_mut("attachments").and_then(Value::as_array_mut).into_iter().flatten() {
                if let Some(inline) = attachment.get_mut("inline") {
                    let bytes = inline.as_str().map_or(0, |text| text.len() / 4 * 3);
                    *inline = json!(format!("({bytes} bytes)"));
                }
            }
            json
        }
        None => {
            let start = String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned();
            let shown: String = start.chars().map(|c| if c.is_control() { '\u{FFFD}' } else { c }).collect();
            Value::String(if body.len() > 200 { format!("{shown} ...") } else { shown })
        }
    }
}

fn summary_json(s: &DeadSummary) -> Value {
    json!({
        "id": s.id, "reason": s.reason, "error": s.error, "request_id": s.request_id, "source": s.source,
        "template_key": s.template_key, "lane": s.lane, "attempts": s.attempts, "state": s.state, "at": s.at,
        "recipients": listed(s.recipients.as_deref()).iter().filter_map(|r| words(r, "address")).collect::<Vec<_>>(),
    })
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
