//! Logs: one line a fact, for machines (JSON) or for people. Traces, and how they and the metrics get to a collector.
//!
//! Invariant: no address, no payload and no secret is ever a field or part of a message. Types that hold them print masked.
//! Invariant: an event is one line, whatever is in it (`telemetry/line.rs`): nobody writes a line of the log but the daemon.

/// Trace context out of AMQP headers.
pub mod origin;

/// Spans.
pub mod span;

/// Which traces are kept.
mod sampling;

/// To a collector.
pub mod otlp;

/// Lines for people.
mod line;

use std::io::IsTerminal;

use tracing_subscriber::{
    EnvFilter,
    filter::{LevelFilter, Targets},
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

use crate::config::{LogConfig, LogFormat};

/// What no filter can ask for: lapin prints whole messages where the broker gives one back (as a warning, at every event that
/// nobody is bound to) and frames where it traces them.
fn without_payloads() -> Targets {
    Targets::new()
        .with_default(LevelFilter::TRACE)
        .with_target("lapin", LevelFilter::DEBUG)
        .with_target("lapin::returned_messages", LevelFilter::OFF)
}

/// Starts logging to standard error. A second call in one process changes nothing.
pub fn start(config: &LogConfig) {
    // A filter that cannot be read must not silence the daemon.
    let filter = EnvFilter::try_new(&config.filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let registry = tracing_subscriber::registry().with(filter).with(without_payloads());
    let started = match config.format {
        LogFormat::Json => registry
            .with(
                tracing_subscriber::fmt::layer()
                    .json()
                    .flatten_event(true)
                    .with_span_list(false)
                    .with_writer(std::io::stderr),
            )
            .try_init(),
        LogFormat::Text => {
            let colours = std::io::stderr().is_terminal();
            registry
                .with(
                    tracing_subscriber::fmt::layer()
                        .with_target(false)
                        .with_ansi(colours)
                        .with_writer(move || line::Lines::new(std::io::stderr(), colours)),
                )
                .try_init()
        }
    };
    drop(started);
}
