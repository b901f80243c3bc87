//! `postrider messages` and `postrider dead`: the audit, for people.

use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Subcommand, builder::PossibleValuesParser};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Session, or_dash, table};
use crate::{
    email::{EmailAddress, Reason},
    http::message_json,
    store::{
        dead::{DeadFilter, DeadLetter, DeadSummary},
        messages::MessageFilter,
    },
    wire,
};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  postrider messages --to ada@example.bj
  postrider messages --request 7b0e8f0e-4a51-4e0e-9a53-6f3c4d1f2a10 --json
  postrider messages --limit 500")]
pub(super) struct MessagesArgs {
    /// Mails to this address.
    #[arg(long, value_name = "ADDRESS")]
    to: Option<String>,
    /// Mails of this request; may be given several times.
    #[arg(long = "request", value_name = "UUID")]
    requests: Vec<Uuid>,
    /// At most this many, newest first; 1 to 10000.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(i64).range(1..=10_000))]
    limit: i64,
}

pub(super) async fn messages(context: &Session, args: MessagesArgs) -> anyhow::Result<ExitCode> {
    context.log_quietly();
    let (store, recipient_hash) = match &args.to {
        None => (context.store_without_key().await?, None),
        Some(to) => {
            let address = EmailAddress::parse(to).context("--to")?;
            let store = context.store().await?;
            // With another key nothing would be found, and "no" would be the wrong answer.
            store.verify_hash_key().await?;
            let hash = store.address_hash(&address.key());
            (store, Some(hash))
        }
    };
    let request_ids = Some(args.requests).filter(|ids| !ids.is_empty());
    let page = store.messages(&MessageFilter { recipient_hash, request_ids, limit: args.limit }).await?;
    if context.is_json {
        let items: Vec<Value> = page.items.iter().map(|m| message_json(m, true)).collect();
        Session::print_json(&json!({ "items": items, "total": page.total, "total_is_exact": page.total_is_exact }))?;
        return Ok(ExitCode::SUCCESS);
    }
    if page.items.is_empty() {
        outln!(
            "No mails. A request that waits for a relay has no row yet, and one that could not be read has none: see \
             `postrider dead list`."
        );
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows =
        table(&["CREATED", "REQUEST", "TEMPLATE", "LANE", "RECIPIENT", "STATUS", "TRIES", "MS", "SUBJECT OR ERROR"]);
    for m in &page.items {
        rows.add_row([
            m.created_at.format("%Y-%m-%d %H:%M:%S").to_string(),
            m.request_id.to_string(),
            m.template_key.clone(),
            m.lane.clone(),
            or_dash(m.to.as_deref()),
            m.status.clone(),
            m.attempts.to_string(),
            or_dash(m.latency_ms),
            one_line(m.error.as_deref().or(m.subject.as_deref()).unwrap_or("-")),
        ]);
    }
    outln!("{rows}");
    let shown = page.items.len();
    if i64::try_from(shown).is_ok_and(|shown| shown < page.total) {
        let more = if page.total_is_exact { "" } else { "more than " };
        outln!("{shown} of {more}{}; --limit shows more.", page.total);
    }
    Ok(ExitCode::SUCCESS)
}

#[derive(Debug, Subcommand)]
pub(super) enum DeadCommand {
    /// List dead letters, newest first.
    List {
        /// Of this reason.
        #[arg(long, value_parser = PossibleValuesParser::new(Reason::ALL.iter().map(|reason| reason.name())))]
        reason: Option<String>,
        /// Of this template.
        #[arg(long)]
        template: Option<String>,
        /// From this source.
        #[arg(long)]
        source: Option<String>,
        /// At most this many.
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(i64).range(1..=10_000))]
        limit: i64,
    },
    /// Show one, with its history and its content.
    Show {
        /// Its id, or the id of its request.
        id: Uuid,
    },
}

pub(super) async fn dead(context: &Session, command: DeadCommand) -> anyhow::Result<ExitCode> {
    context.log_quietly();
    let store = context.store_without_key().await?;
    match command {
        DeadCommand::List { reason, template, source, limit } => {
            let filter = DeadFilter { reason, template_key: template, source, limit };
            let (items, total) = store.dead_letters(&filter).await?;
            list(context, &items, total)?;
            Ok(ExitCode::SUCCESS)
        }
        DeadCommand::Show { id } => match store.dead_letter(id).await? {
            Some(letter) => {
                show(context, &letter)?;
                Ok(ExitCode::SUCCESS)
            }
            None => anyhow::bail!("there is no dead letter {id}, and none of a request {id}"),
        },
    }
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
    let mut rows = table(&["ID", "FAILED", "REASON", "TEMPLATE", "LANE", "TRIES", "ERROR"]);
    for letter in items {
        rows.add_row([
            letter.id.to_string(),
            letter.at.format("%Y-%m-%d %H:%M:%S").to_string(),
            letter.reason.clone(),
            or_dash(letter.template_key.as_deref()),
            or_dash(letter.lane.as_deref()),
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
    for (title, header) in [("Recipients", "x-recipients"), ("History", "x-history")] {
        let lines = letter.headers.get(header).and_then(Value::as_str).and_then(|t| serde_json::from_str(t).ok());
        if let Some(Value::Array(lines)) = lines.filter(|l: &Value| l.as_array().is_some_and(|l| !l.is_empty())) {
            outln!("\n{title}");
            for line in lines {
                outln!("  {}", readable(&line));
            }
        }
    }
    outln!("\nContent ({} bytes)", letter.body_bytes);
    match &content {
        Value::String(text) => outln!("{text}"),
        other => outln!("{}", serde_json::to_string_pretty(other)?),
    }
    Ok(())
}

/// `kind deferred, attempt 1, code 451`: what is null is left out.
fn readable(line: &Value) -> String {
    let Value::Object(fields) = line else { return line.to_string() };
    let known = fields.iter().filter(|(_, value)| !value.is_null() && *value != "");
    let parts = known.map(|(name, value)| match value {
        Value::String(text) => format!("{name} {}", one_line(text)),
        other => format!("{name} {other}"),
    });
    parts.collect::<Vec<_>>().join(", ")
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
    })
}

/// Control characters would do things to a terminal; a table wants one line.
fn one_line(text: &str) -> String {
    let mut line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(160).collect();
    if text.chars().count() > 160 {
        line.push('…');
    }
    line
}
