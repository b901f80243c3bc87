//! `postrider messages`: the audit, for people.

/// `postrider messages show`.
mod show;

/// `postrider messages resend`.
mod resend;

use std::process::ExitCode;

use chrono::{DateTime, Utc};
use clap::{Args, Subcommand, builder::PossibleValuesParser};
use uuid::Uuid;

use super::{Session, dead::moment, one_line, or_dash, table};
use crate::{
    email::Status,
    http::message_page_json,
    store::messages::{MessageFilter, MessageSummary},
};

#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  postrider messages --to ada@example.bj
  postrider messages --status failed --template billing_invoice_monthly --since 2h
  postrider messages --request 7b0e8f0e-4a51-4e0e-9a53-6f3c4d1f2a10 --json
  postrider messages show 019ab3c2-5f10-8c11-9a53-6f3c4d1f2a10

--status, --template and --source look at the 50000 newest mails of the time that is
asked for, and say so if there are more."
)]
pub(super) struct MessagesArgs {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    list: ListArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show one mail, with everything that happened to it. That you looked is kept.
    Show(show::Args),
    /// Send a recorded mail again, as it was.
    Resend(resend::Args),
}

#[derive(Debug, Args)]
struct ListArgs {
    /// Mails to this address.
    #[arg(long, value_name = "ADDRESS")]
    to: Option<String>,
    /// Mails of this request; may be given several times.
    #[arg(long = "request", value_name = "UUID")]
    requests: Vec<Uuid>,
    /// Standing there now.
    #[arg(long, value_parser = PossibleValuesParser::new(Status::ALL.iter().map(|status| status.name())))]
    status: Option<String>,
    /// Of this template.
    #[arg(long, value_name = "KEY")]
    template: Option<String>,
    /// From this source.
    #[arg(long)]
    source: Option<String>,
    /// Published since: 2h or 3d ago, a date, or a time such as 2026-11-24T18:00:00Z.
    #[arg(long, value_name = "TIME", value_parser = moment)]
    since: Option<DateTime<Utc>>,
    /// Published before.
    #[arg(long, value_name = "TIME", value_parser = moment)]
    until: Option<DateTime<Utc>>,
    /// At most this many, newest first; 1 to 10000.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(i64).range(1..=10_000))]
    limit: i64,
}

pub(super) async fn messages(context: &Session, args: MessagesArgs) -> anyhow::Result<ExitCode> {
    context.log_quietly();
    match args.command {
        Some(Command::Show(args)) => show::run(context, args).await,
        Some(Command::Resend(args)) => resend::run(context, args).await,
        None => list(context, args.list).await,
    }
}

async fn list(context: &Session, args: ListArgs) -> anyhow::Result<ExitCode> {
    let (store, recipient_hash) = context.store_to_search(args.to.as_deref()).await?;
    let filter = MessageFilter {
        recipient_hash,
        request_ids: Some(args.requests).filter(|ids| !ids.is_empty()),
        status: args.status.as_deref().and_then(Status::from_name),
        template_key: args.template,
        source: args.source,
        since: args.since,
        until: args.until,
        after: None,
        limit: args.limit,
    };
    let page = store.messages(&filter).await?;
    if context.is_json {
        Session::print_json(&message_page_json(&page, true))?;
        return Ok(ExitCode::SUCCESS);
    }
    let looked_no_further = || {
        if let Some(at) = page.searched_since {
            let at = at.to_rfc3339_opts(chrono::SecondsFormat::Millis, true);
            outln!("Looked at mails published since {at}; --until {at} looks further back.");
        }
    };
    if page.items.is_empty() && page.searched_since.is_some() {
        outln!("No such mail so far.");
        looked_no_further();
        return Ok(ExitCode::SUCCESS);
    }
    if page.items.is_empty() {
        outln!(
            "No mails. A request that waits for a relay has no row yet, and one that could not be read has none: see \
             `postrider dead list`."
        );
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = table(&[
        "CREATED",
        "ID",
        "REQUEST",
        "TEMPLATE",
        "LANE",
        "RECIPIENT",
        "STATUS",
        "TRIES",
        "MS",
        "SUBJECT OR ERROR",
    ]);
    for m in &page.items {
        rows.add_row([
            m.created_at.format("%Y-%m-%d %H:%M:%S").to_string(),
            m.id.to_string(),
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
    looked_no_further();
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
