//! `postrider messages`: the audit, for people.

use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Session, one_line, or_dash, table};
use crate::{
    http::message_json,
    store::messages::{MessageFilter, MessageSummary},
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
    let (store, recipient_hash) = context.store_to_search(args.to.as_deref()).await?;
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
            one_line(fate(m).as_deref().or(m.error.as_deref()).or(m.subject.as_deref()).unwrap_or("-")),
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

/// What the provider told of it that is no good news.
fn fate(message: &MessageSummary) -> Option<String> {
    if let Some(complaint_type) = &message.complaint_type {
        return Some(format!("complaint: {complaint_type}"));
    }
    // One for now only may have been followed by a delivery.
    let bounce_type = message.bounce_type.as_deref().filter(|_| message.status == "bounced")?;
    Some(format!("{bounce_type} bounce: {}", message.bounce_subtype.as_deref().unwrap_or("-")))
}
