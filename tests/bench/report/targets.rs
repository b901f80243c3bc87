//! What the project set itself, and whether it was reached here.

use serde_json::{Value, json};

use super::{Report, number};
use crate::{
    args::Args,
    rows::{self, Name},
};

/// Growth of memory that still counts as flat.
const FLAT: f64 = 1.1;

/// Which side of the limit is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    AtLeast,
    AtMost,
}

/// One target and what was measured for it.
#[derive(Debug, Clone)]
pub(crate) struct Verdict {
    pub(crate) what: String,
    pub(crate) side: Side,
    pub(crate) limit: f64,
    pub(crate) unit: &'static str,
    decimals: usize,
    pub(crate) measured: Option<f64>,
    /// What a reader has to know of it.
    pub(crate) remark: Option<String>,
    /// Another condition, which was not kept.
    violated: bool,
}

impl Verdict {
    fn new(what: &str, side: Side, limit: f64, unit: &'static str, decimals: usize, measured: Option<f64>) -> Self {
        Self { what: what.to_owned(), side, limit, unit, decimals, measured, remark: None, violated: false }
    }

    pub(crate) fn is_met(&self) -> Option<bool> {
        let measured = self.measured?;
        let within = match self.side {
            Side::AtLeast => measured >= self.limit,
            Side::AtMost => measured <= self.limit,
        };
        Some(within && !self.violated)
    }

    pub(super) fn target_words(&self) -> String {
        format!("{} {}", self.limit_words(), self.unit).trim_end().to_owned()
    }

    /// Without the unit.
    pub(super) fn limit_words(&self) -> String {
        let sign = if self.side == Side::AtLeast { "≥" } else { "≤" };
        format!("{sign} {}", number(Some(self.limit), self.decimals))
    }

    pub(super) fn measured_words(&self) -> String {
        match self.measured {
            // One decimal more than the target has, so that nothing is rounded into it.
            Some(_) => format!("{} {}", number(self.measured, self.decimals + 1), self.unit).trim_end().to_owned(),
            None => "-".to_owned(),
        }
    }

    pub(super) fn verdict_words(&self) -> &'static str {
        match self.is_met() {
            Some(true) => "met",
            Some(false) => "NOT MET",
            None => "not measured",
        }
    }

    /// How much of the target was reached: from 1 on it is met.
    pub(super) fn reached(&self) -> Option<f64> {
        let measured = self.measured?;
        Some(match self.side {
            Side::AtLeast => measured / self.limit,
            Side::AtMost => self.limit / measured,
        })
    }

    pub(super) fn to_json(&self) -> Value {
        json!({
            "what": self.what,
            "target": self.target_words(),
            "limit": self.limit,
            "measured": self.measured,
            "unit": self.unit,
            "met": self.is_met(),
            "remark": self.remark,
        })
    }
}

/// The targets of the rows that were asked for.
pub(crate) fn verdicts(report: &Report, args: &Args) -> Vec<Verdict> {
    let rate = |key| report.row(key).and_then(|row| report.rate_ratio(row));
    let cpu = |key| report.row(key).and_then(|row| report.cpu_ratio(row));
    let small = "2 kB, quorum queues: ";
    let mut all = vec![
        (
            Name::Small,
            Verdict::new(
                &format!("{small}mails/s ÷ smtp-source -d's, {} connections", args.connections),
                Side::AtLeast,
                0.40,
                "",
                2,
                rate("small"),
            ),
        ),
        (
            Name::Small,
            Verdict::new(&format!("{small}CPU a mail ÷ smtp-source -d's"), Side::AtMost, 2.5, "", 2, cpu("small")),
        ),
        (
            Name::Subscriber,
            Verdict::new(
                "2 kB with a subscriber to all events: mails/s ÷ smtp-source -d's",
                Side::AtLeast,
                0.30,
                "",
                2,
                rate("subscriber"),
            ),
        ),
        (
            Name::OneConnection,
            Verdict::new(
                "one connection: mails/s ÷ smtp-source -d -s 1's",
                Side::AtLeast,
                0.7,
                "",
                2,
                rate("one-connection"),
            ),
        ),
        (
            Name::Distant,
            Verdict::new(
                "relay 20 ms away, PIPELINING: mails ÷ one per round trip and connection",
                Side::AtLeast,
                0.85,
                "",
                2,
                rate("distant"),
            ),
        ),
        (
            Name::DistantPlain,
            Verdict::new(
                "relay 20 ms away, no PIPELINING: mails ÷ one per 4 round trips and connection",
                Side::AtLeast,
                0.9,
                "",
                2,
                rate("distant-plain"),
            ),
        ),
        (Name::P0, p0(report)),
        (Name::P0, memory(report)),
        (Name::LargeMemory, large_memory(report)),
        (
            Name::BesideFeedback,
            Verdict::new(
                "mails/s with 100 signed events of SES a second ÷ without",
                Side::AtLeast,
                0.95,
                "",
                2,
                rate("beside-feedback"),
            ),
        ),
        (
            Name::Feedback,
            Verdict::new(
                "signed events of SES, verified, stored and applied",
                Side::AtLeast,
                1000.0,
                "a second",
                0,
                report.figure("feedback-applied"),
            ),
        ),
        (
            Name::Start,
            Verdict::new("start to first mail, warm database", Side::AtMost, 0.5, "s", 2, report.figure("start")),
        ),
        (
            Name::Growth,
            Verdict::new(
                &format!("mails/s with {} rows in the audit ÷ with none", rows::with_spaces(args.audit_rows)),
                Side::AtLeast,
                0.9,
                "",
                2,
                rate("growth"),
            ),
        ),
        (
            Name::Growth,
            Verdict::new(
                &format!("messages by recipient at {} rows", rows::with_spaces(args.audit_rows)),
                Side::AtMost,
                20.0,
                "ms",
                0,
                report.figure("lookup"),
            ),
        ),
        (Name::Idle, Verdict::new("idle daemon", Side::AtMost, 0.5, "% of a core", 1, report.figure("idle"))),
    ];
    all.retain(|(row, _)| rows::is_wanted(args, *row));
    all.into_iter().map(|(row, verdict)| explain(report, row, verdict)).collect()
}

fn explain(report: &Report, row: Name, mut verdict: Verdict) -> Verdict {
    if verdict.measured.is_none() && verdict.remark.is_none() {
        verdict.remark = report.absent.iter().find(|absent| absent.row == row).map(|absent| absent.why.clone());
    }
    verdict
}

fn p0(report: &Report) -> Verdict {
    let idle = report.figure("p0-idle-p99");
    // Five times the idle latency is as good, if that is more.
    let limit = idle.map_or(50.0, |idle| (idle * 5.0).max(50.0));
    let what = "P0, publish to relay's 250, other lanes full: 99th percentile";
    let mut verdict = Verdict::new(what, Side::AtMost, limit, "ms", 0, report.figure("p0-flood-p99"));
    verdict.remark = idle.map(|idle| format!("50 ms, or 5 times idle ({idle:.1} ms) if that is more"));
    verdict
}

fn memory(report: &Report) -> Verdict {
    let what = "memory (RSS), 2 kB mails, other lanes full: peak, flat";
    let mut verdict = Verdict::new(what, Side::AtMost, 64.0, "MiB", 0, report.figure("memory-peak"));
    if let Some(growth) = report.figure("memory-growth") {
        verdict.violated = growth > FLAT;
        verdict.remark = Some(format!("last third ÷ first third {growth:.2}; flat: at most {FLAT}"));
    }
    verdict
}

fn large_memory(report: &Report) -> Verdict {
    let figure = report.figures.iter().find(|figure| figure.key == "memory-large-peak");
    let what = "memory (RSS), 500 requests of 10 MB in each lane, cold start: peak";
    let measured = report.figure("memory-large-peak");
    let mut verdict = Verdict::new(what, Side::AtMost, 256.0, "MiB", 0, measured);
    verdict.remark = figure.filter(|figure| figure.note.is_some()).map(|figure| format!("here: {}", figure.title));
    verdict
}
