//! `postrider lanes`: how the lanes fare, and which of them shall take nothing.

use std::process::ExitCode;

use clap::{Subcommand, builder::PossibleValuesParser};
use serde_json::json;

use super::{Session, one_line, or_dash, suppressions::ByArgs, table};
use crate::{
    broker::{Link, Topology, depths, link::Purpose, topology::lane_queue},
    email::Lane,
    http::{FAST_WARNING, LaneView, lanes_view},
    lanes::Fleet,
    store::lanes::LanePause,
};

#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  postrider lanes                                    how do the lanes fare?
  postrider lanes pause bulk --note 'wrong prices in the announcement'
  postrider lanes resume bulk

Without a command it shows all lanes: what waits, as the broker counts it, and
figures of all daemons together, at most five seconds old. AGE is how long ago
that was published which was taken from the queue last: AMQP does not tell the
age of what still waits. A lane that is paused takes nothing, at no daemon,
until it is resumed; what is being sent is finished. When the broker cannot be
asked the rest is shown, and the exit code is 1."
)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Let a lane take nothing, at all daemons, until it is resumed.
    Pause(SteerArgs),
    /// Let a lane that was paused go on.
    Resume(SteerArgs),
}

#[derive(Debug, clap::Args)]
struct SteerArgs {
    /// Which: fast (P0), standard (P1, P2) or bulk (P3).
    #[arg(value_parser = PossibleValuesParser::new(Lane::ALL.map(Lane::name)))]
    lane: String,
    /// Why. Kept until it is anonymised: no personal data.
    #[arg(long)]
    note: Option<String>,
    #[command(flatten)]
    by: ByArgs,
}

impl SteerArgs {
    fn lane(&self) -> anyhow::Result<Lane> {
        Lane::from_name(&self.lane).ok_or_else(|| anyhow::anyhow!("LANE is fast, standard or bulk"))
    }
}

pub(super) async fn run(context: &Session, args: Args) -> anyhow::Result<ExitCode> {
    context.log_quietly();
    match args.command {
        None => show(context).await,
        Some(Command::Pause(args)) => pause(context, &args).await,
        Some(Command::Resume(args)) => resume(context, &args).await,
    }
}

async fn show(context: &Session) -> anyhow::Result<ExitCode> {
    let config = context.settings.broker()?;
    let store = context.store_without_key().await?;
    let counted = count(&Link::new(&config, Purpose::Look)?, &Topology::new(&config)).await;
    let fleet = Fleet::seen_from_outside(&store, counted).await?;
    let code = match &fleet.depths {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("postrider: what waits cannot be counted: {error}");
            ExitCode::FAILURE
        }
    };
    let view = lanes_view(&fleet);
    if context.is_json {
        Session::print_json(&view)?;
        return Ok(code);
    }
    let mut rows = table(&[
        "LANE",
        "STATE",
        "WAITING",
        "RETRYING",
        "CONSUMERS",
        "AT WORK",
        "TAKEN/S",
        "SENT/S",
        "DEFERRED/S",
        "DEAD/S",
        "AGE",
        "P50",
        "P99",
    ]);
    for lane in view.lanes() {
        rows.add_row(row(lane));
    }
    outln!("{rows}");
    for lane in view.lanes() {
        if let Some(pause) = &lane.paused {
            let note = pause.note.as_deref().map(|note| format!(": {}", one_line(note))).unwrap_or_default();
            let since = pause.at.format("%Y-%m-%d %H:%M UTC");
            outln!("{} is paused since {since} by {}{note}", lane.lane, one_line(&pause.by));
        }
    }
    outln!("Daemons: {}", fleet.daemons.len());
    Ok(code)
}

async fn count(link: &Link, topology: &Topology) -> Result<depths::Depths, String> {
    let connection = link.connect_once().await.map_err(|error| error.to_string())?;
    let counted = depths::look(&connection, topology).await;
    drop(connection.close(200, "seen".into()).await);
    counted.map_err(|error| error.to_string())
}

fn row(lane: &LaneView) -> [String; 13] {
    let rate = |per_second: f64| format!("{per_second:.1}");
    let latency = lane.latency.as_ref();
    let ms = |ms: Option<f64>| or_dash(ms.map(|ms| format!("{ms:.0} ms")));
    [
        lane.lane.to_owned(),
        lane.state.to_owned(),
        or_dash(lane.depth),
        or_dash(lane.retry_depth),
        or_dash(lane.consumers),
        lane.in_flight.to_string(),
        rate(lane.rates.taken),
        rate(lane.rates.sent),
        rate(lane.rates.deferred),
        rate(lane.rates.dead),
        or_dash(lane.taken_age_ms.map(age)),
        ms(latency.and_then(|latency| latency.p50_ms)),
        ms(latency.and_then(|latency| latency.p99_ms)),
    ]
}

/// `350 ms`, `12 s`, `5 min`, `3 h`: as exact as a look at it needs.
fn age(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..120_000 => format!("{} s", ms / 1_000),
        120_000..7_200_000 => format!("{} min", ms / 60_000),
        _ => format!("{} h", ms / 3_600_000),
    }
}

async fn pause(context: &Session, args: &SteerArgs) -> anyhow::Result<ExitCode> {
    let lane = args.lane()?;
    let store = context.store_without_key().await?;
    let (pause, is_new) = store.pause_lane(lane, &args.by.operator(), args.note.as_deref()).await?;
    let warning = (lane == Lane::Fast).then_some(FAST_WARNING);
    if context.is_json {
        return print_steered(lane, is_new, Some(&pause), warning);
    }
    if is_new {
        outln!("The {lane} lane is paused: within moments no daemon takes anything from {}.", lane_queue(lane));
    } else {
        let since = pause.at.format("%Y-%m-%d %H:%M UTC");
        outln!("The {lane} lane is paused already, since {since} by {}.", one_line(&pause.by));
    }
    if let Some(warning) = warning {
        eprintln!("postrider: note: {warning}");
    }
    Ok(ExitCode::SUCCESS)
}

async fn resume(context: &Session, args: &SteerArgs) -> anyhow::Result<ExitCode> {
    let lane = args.lane()?;
    let store = context.store_without_key().await?;
    let ended = store.resume_lane(lane, &args.by.operator(), args.note.as_deref()).await?;
    if context.is_json {
        return print_steered(lane, ended.is_some(), None, None);
    }
    match ended {
        Some(pause) => outln!("The {lane} lane goes on; {} had paused it.", one_line(&pause.by)),
        None => outln!("The {lane} lane was not paused."),
    }
    Ok(ExitCode::SUCCESS)
}

fn print_steered(
    lane: Lane,
    is_new: bool,
    pause: Option<&LanePause>,
    warning: Option<&str>,
) -> anyhow::Result<ExitCode> {
    let paused = pause.map(|pause| json!({ "by": pause.by, "note": pause.note, "at": pause.at }));
    Session::print_json(&json!({ "lane": lane.name(), "is_new": is_new, "paused": paused, "warning": warning }))?;
    Ok(ExitCode::SUCCESS)
}
