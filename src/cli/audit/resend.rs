//! `postrider messages resend`: a recorded mail goes out again, as it was.

use std::{
    io::{BufRead, IsTerminal, Write},
    process::ExitCode,
    sync::Arc,
};

use anyhow::{Context, bail};
use serde_json::json;
use uuid::Uuid;

use super::super::{Session, one_line, or_dash, suppressions::ByArgs};
use crate::{
    broker::{Link, Publisher, link::Purpose},
    retransmission::{self, Resent},
    store::{messages::detail::Viewed, retransmission::Wish},
};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  postrider messages resend 019ab3c2-5f10-8c11-9a53-6f3c4d1f2a10

The recorded subject, HTML, text and files go to the recorded recipient again, as a
new request that is linked to the old one; nothing is rendered anew. What is not
recorded any more, is still on its way, or failed (postrider dead replay) is refused,
and so is whoever is on the suppression list. Asked for twice within five minutes, it
is sent once. Needs DATABASE_URL, AMQP_URL and SMTP_FROM_EMAIL.
Exit code 1: it was refused.")]
pub(super) struct Args {
    /// The mail's id, as `postrider messages` shows it.
    id: Uuid,
    /// Do not ask. Nothing is ever asked where nobody is at a terminal.
    #[arg(long)]
    yes: bool,
    /// The same key for the same mail is sent once, however often it is asked for.
    #[arg(long)]
    key: Option<String>,
    #[command(flatten)]
    by: ByArgs,
}

pub(super) async fn run(context: &Session, args: Args) -> anyhow::Result<ExitCode> {
    let (pipeline, mail) = (context.settings.pipeline()?, context.settings.mail()?);
    let broker = context.settings.broker()?;
    if args.key.as_deref().is_some_and(|key| key.is_empty() || key.chars().count() > retransmission::KEY_CHARS_MAX) {
        bail!("--key: 1 to {} characters", retransmission::KEY_CHARS_MAX);
    }
    let store = context.store_without_key().await?;
    let Some(plan) = retransmission::plan(&store, args.id).await? else { bail!("there is no mail {}", args.id) };
    let by = args.by.operator();
    if !args.yes && plan.is_ok() && std::io::stdin().is_terminal() {
        let Some(message) = store.message(args.id).await? else { bail!("there is no mail {}", args.id) };
        store.record_view(&by, Viewed::Details(args.id)).await?;
        let m = &message.detail;
        let (to, subject) = (or_dash(m.to.as_deref().map(one_line)), or_dash(m.subject.as_deref().map(one_line)));
        let mut terminal = std::io::stderr();
        write!(terminal, "Send \"{subject}\" to {to} again? [y/N] ")?;
        terminal.flush()?;
        let mut answer = String::new();
        std::io::stdin().lock().read_line(&mut answer)?;
        if !matches!(answer.trim(), "y" | "Y" | "yes") {
            bail!("nothing was sent");
        }
    }
    let link = Arc::new(Link::new(&broker, Purpose::Publish)?);
    // One attempt that fails at once beats one that waits for ever: somebody is looking.
    drop(link.connect_once().await.context("AMQP_URL")?);
    let publisher = Publisher::new(Arc::clone(&link), 1);
    let wish = Wish { message: args.id, by: &by, key: args.key.as_deref() };
    let resent = retransmission::resend(&store, &publisher, &pipeline, &mail.message_id_domain, &wish).await?;
    link.close().await;
    match resent {
        Resent::Done { request, is_new, is_published } if context.is_json => Session::print_json(&json!({
            "request_id": request.request_id, "message_id": request.message_id, "repeats": request.repeats,
            "is_new": is_new, "is_published": is_published,
        }))?,
        Resent::Done { request, is_new, is_published } => {
            let id = request.message_id;
            match (is_new, is_published) {
                (false, _) => outln!("It was sent again already, at {}.", request.at),
                (true, true) => outln!("It goes out again."),
                (true, false) => outln!("The broker has not confirmed it: a daemon publishes it as soon as it can."),
            }
            outln!("What becomes of it: postrider messages show {id}");
        }
        Resent::Refused(refusal) => bail!("it is not sent again: {refusal}"),
        Resent::Unknown => bail!("there is no mail {}", args.id),
    }
    Ok(ExitCode::SUCCESS)
}
