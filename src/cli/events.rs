//! `postrider events tail`: events as they are published.

use std::process::ExitCode;

use anyhow::{Context, anyhow};
use bytes::Bytes;
use chrono::{DateTime, SecondsFormat};
use clap::{Subcommand, builder::PossibleValuesParser};

use super::{Session, one_line, or_dash};
use crate::{
    broker::{BrokerError, Link, Tap, link::Purpose, topology},
    outbox, wire,
};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Show events as they come, until Ctrl-C.
    #[command(after_help = "\
Examples:
  postrider events tail                                all of them
  postrider events tail --source billing --kind failed --kind bounced
  postrider events tail --count 1 --json               wait for the next one

It listens through a queue of its own, which goes when it ends; other consumers
lose nothing by it. What happened before it started, or while EMAIL_EVENTS or
the broker held events back, is not shown: ask `postrider messages` for that.
It does not reconnect: when the broker goes away it ends with exit code 1, so
that nobody takes a gap for silence. --json prints one object a line.")]
    Tail(TailArgs),
}

#[derive(Debug, clap::Args)]
pub(super) struct TailArgs {
    /// From this source only; may be given several times.
    #[arg(long = "source", value_name = "SOURCE")]
    sources: Vec<String>,
    /// Of this kind only; may be given several times.
    #[arg(long = "kind", value_parser = PossibleValuesParser::new(outbox::kinds()))]
    kinds: Vec<String>,
    /// Show the recipients' addresses too.
    #[arg(long)]
    recipients: bool,
    /// End after this many.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
}

pub(super) async fn run(context: &Session, command: Command) -> anyhow::Result<ExitCode> {
    let Command::Tail(args) = command;
    context.log_quietly();
    let link = Link::new(&context.settings.broker()?, Purpose::Tail)?;
    let mut tap = Tap::open(&link, topology::EVENTS, &keys(&args)).await.map_err(|error| match error {
        BrokerError::Missing(_) => {
            anyhow!("there are no events here: has `postrider run` declared them in this virtual host? ({error})")
        }
        error => anyhow!(error).context("AMQP_URL"),
    })?;
    let mut left = args.count;
    while left != Some(0) {
        let body = tokio::select! {
            interrupted = tokio::signal::ctrl_c() => {
                interrupted?;
                break;
            }
            next = tap.next() => next.context("no more events are seen from here on")?,
        };
        show(context, &args, body)?;
        left = left.map(|left| left - 1);
    }
    tap.close().await;
    Ok(ExitCode::SUCCESS)
}

/// What to bind to: each source with each kind.
fn keys(args: &TailArgs) -> Vec<String> {
    let any = || vec!["*".to_owned()];
    let sources = if args.sources.is_empty() { any() } else { args.sources.clone() };
    let kinds = if args.kinds.is_empty() { any() } else { args.kinds.clone() };
    sources.iter().flat_map(|source| kinds.iter().map(move |kind| format!("{source}.{kind}"))).collect()
}

fn show(context: &Session, args: &TailArgs, body: Bytes) -> anyhow::Result<()> {
    let mut event = wire::event_from_protobuf(body).context("something else than an event was published here")?;
    if !args.recipients {
        event.recipient.clear();
    }
    if context.is_json {
        outln!("{}", wire::event_to_json(&event));
    } else {
        outln!("{}", one_line(&line(&event)));
    }
    Ok(())
}

fn line(event: &wire::EmailEvent) -> String {
    let given = |text: &str| or_dash(Some(text).filter(|text| !text.is_empty()));
    let at = event.occurred_at.as_ref().and_then(|at| {
        let nanos = u32::try_from(at.nanos).ok()?;
        Some(DateTime::from_timestamp(at.seconds, nanos)?.to_rfc3339_opts(SecondsFormat::Millis, true))
    });
    let mut line = format!(
        "{}  {:<12}  {:<10}  {}  {}  attempt {}",
        or_dash(at),
        event.kind,
        event.source,
        given(&event.template_key),
        given(&event.request_id),
        event.attempt
    );
    for more in [&event.recipient, &event.reason] {
        if !more.is_empty() {
            line.push_str("  ");
            line.push_str(more);
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys_of(sources: &[&str], kinds: &[&str]) -> Vec<String> {
        let owned = |all: &[&str]| all.iter().map(|&one| one.to_owned()).collect();
        keys(&TailArgs { sources: owned(sources), kinds: owned(kinds), recipients: false, count: None })
    }

    #[test]
    fn each_source_is_bound_with_each_kind() {
        assert_eq!(keys_of(&[], &[]), ["*.*"]);
        assert_eq!(keys_of(&["billing"], &[]), ["billing.*"]);
        assert_eq!(keys_of(&[], &["failed"]), ["*.failed"]);
        assert_eq!(keys_of(&["a", "b"], &["sent", "failed"]), ["a.sent", "a.failed", "b.sent", "b.failed"]);
    }
}
