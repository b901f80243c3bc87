//! `postrider messages show`: one mail, and everything that happened to it.

use std::process::ExitCode;

use uuid::Uuid;

use super::super::{Session, one_line, or_dash, suppressions::ByArgs, table};
use crate::{
    http::message_detail_json,
    store::{
        messages::detail::{Message, MessageEvent, Viewed},
        retransmission::Retransmission,
    },
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The mail's id, as `postrider messages` shows it.
    id: Uuid,
    #[command(flatten)]
    by: ByArgs,
}

pub(super) async fn run(context: &Session, args: Args) -> anyhow::Result<ExitCode> {
    let store = context.store_without_key().await?;
    let Some(message) = store.message(args.id).await? else {
        anyhow::bail!("there is no mail {}: `postrider messages --request` finds the mails of a request", args.id)
    };
    store.record_view(&args.by.operator(), Viewed::Details(args.id)).await?;
    let again = store.retransmissions_of(args.id).await?;
    if context.is_json {
        Session::print_json(&message_detail_json(&message, true))?;
    } else {
        show(&message, &again);
    }
    Ok(ExitCode::SUCCESS)
}

fn show(message: &Message, again: &[Retransmission]) {
    let m = &message.detail;
    let to = m.to.as_deref().map(|to| match &m.name {
        Some(name) => one_line(&format!("{name} <{to}>")),
        None => one_line(to),
    });
    let template = m.template_version.map_or_else(|| m.template_key.clone(), |v| format!("{} v{v}", m.template_key));
    outln!("Mail         {}", m.id);
    outln!("Request      {}", m.request_id);
    outln!("To           {}", or_dash(to));
    outln!("Subject      {}", or_dash(m.subject.as_deref().map(one_line)));
    outln!("Status       {}{}", m.status, if m.held { ", held for an operator" } else { "" });
    if let Some(why) = m.error.as_deref().or(m.reason.as_deref()) {
        outln!("Why          {}", one_line(why));
    }
    outln!("Template     {template}");
    outln!("Source       {} (P{}, {})", m.source, m.priority, m.lane);
    outln!("Published    {}", m.published_at);
    for (title, at) in [
        ("Not before ", m.not_before),
        ("Expires    ", m.expires_at),
        ("Next try   ", m.due_at),
        ("Sent       ", m.sent_at),
        ("Delivered  ", m.delivered_at),
        ("Bounced    ", m.bounced_at),
        ("Complained ", m.complained_at),
    ] {
        if let Some(at) = at {
            outln!("{title}  {at}");
        }
    }
    outln!("Tries        {}", m.attempts);
    outln!("Message-ID   {}", m.message_id);
    if let Some(repeated) = m.retransmission_of {
        outln!("Repeats      {repeated}");
    }
    for request in again {
        outln!("Sent again   {} as {} by {}", request.at, request.message_id, one_line(&request.asked_by));
    }
    for file in &message.attachments {
        let name = one_line(&file.filename);
        outln!("Attachment   {name} ({}, {} bytes, {})", file.content_type, file.size_bytes, hex::encode(&file.sha256));
    }
    outln!("");
    let mut rows = table(&["AT", "WHAT", "TRY", "MS", "RELAY", "PHASE", "WORDS"]);
    for line in &message.timeline {
        rows.add_row([
            line.at.format("%Y-%m-%d %H:%M:%S").to_string(),
            line.kind.clone(),
            line.attempt.to_string(),
            or_dash(line.latency_ms),
            or_dash(line.relay.as_deref()),
            or_dash(line.phase.as_deref()),
            one_line(&words(line)),
        ]);
    }
    outln!("{rows}");
}

/// What went wrong, else what the relay or the provider said.
fn words(line: &MessageEvent) -> String {
    match (&line.error, line.reply_code, &line.reply_text) {
        (Some(error), _, _) => error.clone(),
        (None, Some(code), Some(text)) => format!("{code} {text}"),
        (None, Some(code), None) => code.to_string(),
        (None, None, Some(text)) => text.clone(),
        (None, None, None) => "-".to_owned(),
    }
}
