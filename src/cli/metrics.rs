//! `postrider metrics`: what is counted, from the instruments' own declarations.

use std::process::ExitCode;

use serde_json::json;

use super::{Session, table};
use crate::metrics::table::{INSTRUMENTS, markdown};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  postrider metrics                 names, labels and meaning of all metrics
  postrider metrics --markdown      the same as deploy/metrics.md has it

Needs no settings and no daemon. A histogram's series end in _bucket, _sum and
_count.")]
pub(super) struct Args {
    /// As a Markdown table, with OpenTelemetry's names.
    #[arg(long)]
    markdown: bool,
}

pub(super) fn run(context: &Session, args: &Args) -> anyhow::Result<ExitCode> {
    if args.markdown {
        out!("{}", markdown());
    } else if context.is_json {
        let items = INSTRUMENTS.iter().map(|instrument| {
            json!({
                "name": instrument.prometheus_name(),
                "otel_name": instrument.name,
                "kind": instrument.kind.name(),
                "unit": instrument.unit,
                "labels": instrument.prometheus_labels().collect::<Vec<_>>(),
                "description": instrument.description,
            })
        });
        Session::print_json(&items.collect::<Vec<_>>())?;
    } else {
        let mut rows = table(&["METRIC", "KIND", "LABELS", "MEANING"]);
        for instrument in INSTRUMENTS {
            let labels: Vec<_> = instrument.prometheus_labels().collect();
            rows.add_row([
                instrument.prometheus_name().as_str(),
                instrument.kind.name(),
                labels.join(", ").as_str(),
                instrument.description,
            ]);
        }
        outln!("{rows}");
    }
    Ok(ExitCode::SUCCESS)
}
