//! `postrider health`: asks the daemon of this machine or container whether it is alive, or ready. For probes.

use std::{process::ExitCode, time::Duration};

use anyhow::Context;
use serde_json::{Value, json};

use super::Session;
use crate::http::probe::{OwnListener, probe, reached_at};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  postrider health            does the daemon answer? (a container's liveness)
  postrider health --ready    can a mail go the whole way, and if not, why?

Asks the admin listener at ADMIN_ADDR; no token is needed. Exit codes: 0 yes,
1 no, with the reasons. A container should be restarted for the first question
only: what the second one finds is seldom mended by a restart.")]
pub(super) struct Args {
    /// Ask whether a mail can go the whole way (/readyz), not only whether the process answers (/livez).
    #[arg(long)]
    ready: bool,
    /// Longest wait for the answer, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=60))]
    timeout: u64,
}

pub(super) async fn run(context: &Session, args: Args) -> anyhow::Result<ExitCode> {
    context.log_quietly();
    let (addr, speaks_tls) = context.settings.admin_listener()?;
    let addr = reached_at(addr);
    let limit = Duration::from_secs(args.timeout);
    let path = if args.ready { "/readyz" } else { "/livez" };
    let (status, body) = probe(OwnListener { addr, speaks_tls }, path, limit).await?;
    let is_well = status.is_success();
    if args.ready {
        let said: Value = serde_json::from_slice(&body)
            .with_context(|| format!("{addr}{path} answered {status}, which is no daemon's answer"))?;
        report(context, &said)?;
    } else if context.is_json {
        Session::print_json(&json!({ "alive": is_well }))?;
    } else {
        outln!("{}", if is_well { "alive".to_owned() } else { format!("{addr}{path} answered {status}") });
    }
    Ok(if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn report(context: &Session, said: &Value) -> anyhow::Result<()> {
    if context.is_json {
        return Session::print_json(said);
    }
    let words = |name: &str| -> Vec<String> {
        let listed = said[name].as_array().into_iter().flatten().filter_map(Value::as_str);
        listed.map(str::to_owned).collect()
    };
    let reasons = words("reasons");
    if reasons.is_empty() {
        outln!("ready");
    }
    for reason in reasons {
        outln!("not ready: {reason}");
    }
    for lane in words("paused") {
        outln!("lane {lane} is paused by an operator");
    }
    Ok(())
}
