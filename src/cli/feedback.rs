//! `postrider feedback report`: what providers did not tell, and what they told of nobody.

use std::{process::ExitCode, time::Duration};

use chrono::{TimeDelta, Utc};
use clap::{Args, Subcommand};

use super::{Session, or_dash, table};
use crate::{http::report_json, store::feedback::report::FeedbackReport};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List mails that the relay took and of which nothing was told since, and events that are about no known mail.
    Report(ReportArgs),
}

#[derive(Debug, Args)]
pub(super) struct ReportArgs {
    /// A mail is silent when nothing was told of it for this many hours.
    #[arg(long, value_name = "HOURS", default_value_t = 24, value_parser = clap::value_parser!(u32).range(0..=8760))]
    silent_hours: u32,
    /// How far back to look.
    #[arg(long, value_name = "DAYS", default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=3650))]
    days: u32,
    /// At most this many of each.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(i64).range(1..=10_000))]
    limit: i64,
}

pub(super) async fn run(context: &Session, command: Command) -> anyhow::Result<ExitCode> {
    context.log_quietly();
    let Command::Report(args) = command;
    let store = context.store_without_key().await?;
    let since = Utc::now() - TimeDelta::days(i64::from(args.days));
    let silent_for = Duration::from_secs(u64::from(args.silent_hours) * 3600);
    let report = store.feedback_report(since, silent_for, args.limit).await?;
    if context.is_json {
        Session::print_json(&report_json(&report))?;
    } else {
        print(&report, &args);
    }
    Ok(ExitCode::SUCCESS)
}

fn print(report: &FeedbackReport, args: &ReportArgs) {
    let more = |is_cut| if is_cut { ", and more: raise --limit" } else { "" };
    outln!(
        "{}{} accepted by the relay, and silent for {} hours since",
        report.silent.len(),
        more(report.is_cut.0),
        args.silent_hours
    );
    if !report.silent.is_empty() {
        let mut mails = table(&["MAIL", "TEMPLATE", "ACCEPTED", "RELAY", "RELAY'S ID"]);
        for mail in &report.silent {
            mails.add_row([
                mail.id.to_string(),
                mail.template_key.clone(),
                mail.sent_at.format("%Y-%m-%d %H:%M:%S").to_string(),
                or_dash(mail.relay.as_deref()),
                or_dash(mail.relay_message_id.as_deref()),
            ]);
        }
        outln!("{mails}");
    }
    outln!("{}{} events for nobody", report.for_nobody.len(), more(report.is_cut.1));
    if !report.for_nobody.is_empty() {
        let mut events = table(&["EVENT", "TYPE", "RECEIVED", "RELAY'S ID", "LOOKED FOR"]);
        for event in &report.for_nobody {
            events.add_row([
                event.event_id.clone(),
                or_dash(event.event_type.as_deref()),
                event.received_at.format("%Y-%m-%d %H:%M:%S").to_string(),
                or_dash(event.relay_message_id.as_deref()),
                format!("{} times{}", event.looks, if event.is_waiting { ", goes on" } else { "" }),
            ]);
        }
        outln!("{events}");
    }
}
