//! What was measured: medians, ratios, verdicts, and everything a reader needs to judge them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context;
use serde_json::{Value, json};

use self::targets::Verdict;
use super::{
    args::Args,
    machine::Facts,
    rows::{Absent, Yardstick},
    run::Run,
    stats,
    work::Work,
};

mod markdown;

mod picture;

mod table;

pub(crate) mod targets;

/// One sender, with all its runs.
pub(crate) struct Row {
    pub(crate) key: &'static str,
    pub(crate) title: String,
    pub(crate) yardstick: Option<Yardstick>,
    /// Of one mail.
    pub(crate) bytes: u64,
    pub(crate) runs: Vec<Run>,
    pub(crate) note: Option<String>,
    /// Why there are fewer runs than were asked for.
    pub(crate) error: Option<String>,
}

impl Row {
    pub(crate) fn median(&self, of: impl Fn(&Run) -> Option<f64>) -> Option<f64> {
        stats::median(self.runs.iter().filter_map(of))
    }

    pub(crate) fn rate(&self) -> Option<f64> {
        self.median(|run| Some(run.mails_per_second))
    }

    pub(crate) fn cpu(&self) -> Option<f64> {
        self.median(|run| Some(run.cpu_ms_per_thousand))
    }

    /// Slowest and fastest run.
    fn span(&self) -> Option<(f64, f64)> {
        stats::span(self.runs.iter().map(|run| run.mails_per_second))
    }
}

/// One figure that is no rate, with a value of each run.
pub(crate) struct Figure {
    pub(crate) key: &'static str,
    pub(crate) title: String,
    pub(crate) unit: &'static str,
    decimals: usize,
    pub(crate) values: Vec<f64>,
    pub(crate) note: Option<String>,
}

impl Figure {
    pub(crate) fn new(key: &'static str, title: impl Into<String>, unit: &'static str, decimals: usize) -> Self {
        Self { key, title: title.into(), unit, decimals, values: Vec::new(), note: None }
    }

    pub(crate) fn add(&mut self, value: Option<f64>) {
        self.values.extend(value);
    }

    pub(crate) fn median(&self) -> Option<f64> {
        stats::median(self.values.iter().copied())
    }

    /// The newest value, for progress.
    pub(crate) fn last_words(&self) -> String {
        number(self.values.last().copied(), self.decimals)
    }

    fn words(&self) -> String {
        number(self.median(), self.decimals)
    }

    fn span_words(&self) -> String {
        let decimals = self.decimals;
        stats::span(self.values.iter().copied())
            .map_or_else(|| "-".to_owned(), |(low, high)| format!("{low:.decimals$}-{high:.decimals$}"))
    }
}

/// Everything of one invocation.
#[derive(Default)]
pub(crate) struct Report {
    pub(crate) rows: Vec<Row>,
    pub(crate) figures: Vec<Figure>,
    pub(crate) absent: Vec<Absent>,
    pub(crate) errors: Vec<String>,
    pub(crate) verdicts: Vec<Verdict>,
    pub(crate) machine: Facts,
    pub(crate) versions: Facts,
    pub(crate) settings: Vec<(String, String)>,
    pub(crate) notes: Vec<String>,
}

impl Report {
    pub(crate) fn row(&self, key: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.key == key)
    }

    pub(crate) fn figure(&self, key: &str) -> Option<f64> {
        self.figures.iter().find(|figure| figure.key == key)?.median()
    }

    /// The row's rate by its yardstick's.
    pub(crate) fn rate_ratio(&self, row: &Row) -> Option<f64> {
        match row.yardstick.as_ref()? {
            Yardstick::Row(key) => Some(row.rate()? / self.row(key)?.rate()?),
            Yardstick::Ideal(rate) => Some(row.rate()? / rate),
        }
    }

    /// The row's CPU by its yardstick's.
    pub(crate) fn cpu_ratio(&self, row: &Row) -> Option<f64> {
        match row.yardstick.as_ref()? {
            Yardstick::Row(key) => Some(row.cpu()? / self.row(key)?.cpu()?),
            Yardstick::Ideal(_) => None,
        }
    }

    /// Whether everything that was asked for and could be had was measured.
    pub(crate) fn is_complete(&self) -> bool {
        self.errors.is_empty() && self.rows.iter().all(|row| row.error.is_none())
    }

    /// Writes JSON, Markdown and picture, and says where.
    pub(crate) fn write(&self, out: Option<&Path>) -> anyhow::Result<Vec<PathBuf>> {
        let folder = match out {
            Some(folder) => folder.to_owned(),
            // Cargo's own folder for what tests write lies in the target folder.
            None => Path::new(env!("CARGO_TARGET_TMPDIR")).parent().context("no target folder")?.join("bench"),
        };
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        let files = [
            ("bench.json", format!("{:#}\n", self.to_json())),
            ("bench.md", markdown::of(self)?),
            ("bench.svg", picture::of(self)?),
        ];
        let mut written = Vec::new();
        for (name, content) in files {
            let file = folder.join(name);
            fs::write(&file, content).with_context(|| file.display().to_string())?;
            written.push(file);
        }
        Ok(written)
    }

    fn to_json(&self) -> Value {
        let object = |pairs: &mut dyn Iterator<Item = (String, String)>| -> Value {
            pairs.map(|(name, value)| (name, json!(value))).collect::<serde_json::Map<_, _>>().into()
        };
        let facts = |facts: &Facts| object(&mut facts.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
        json!({
            "machine": facts(&self.machine),
            "versions": facts(&self.versions),
            "settings": object(&mut self.settings.iter().cloned()),
            "rows": self.rows.iter().map(|row| self.row_json(row)).collect::<Vec<_>>(),
            "figures": self.figures.iter().map(|figure| json!({
                "key": figure.key,
                "title": figure.title.trim(),
                "unit": figure.unit,
                "median": figure.median(),
                "runs": figure.values,
                "note": figure.note,
            })).collect::<Vec<_>>(),
            "targets": self.verdicts.iter().map(Verdict::to_json).collect::<Vec<_>>(),
            "absent": self.absent.iter().map(|absent| json!({
                "row": absent.row.to_string(),
                "why": absent.why,
            })).collect::<Vec<_>>(),
            "errors": self.errors,
            "notes": self.notes,
        })
    }

    fn row_json(&self, row: &Row) -> Value {
        let yardstick = match &row.yardstick {
            None => Value::Null,
            Some(Yardstick::Row(key)) => json!(key),
            Some(Yardstick::Ideal(rate)) => json!({ "mails_per_second": rate }),
        };
        json!({
            "key": row.key,
            "title": row.title,
            "yardstick": yardstick,
            "bytes": row.bytes,
            "note": row.note,
            "error": row.error,
            "median": {
                "mails_per_second": row.rate(),
                "mails_per_second_ratio": self.rate_ratio(row),
                "cpu_ms_per_thousand": row.cpu(),
                "cpu_ratio": self.cpu_ratio(row),
                "wall_seconds": row.median(|run| Some(run.wall_seconds)),
                "start_to_first_mail_ms": row.median(|run| run.start_to_first_mail_ms),
                "peak_rss_mib": row.median(|run| run.peak_rss_mib),
                "sink_cpu_ms_per_thousand": row.median(|run| Some(run.sink_cpu_ms_per_thousand)),
                "own_cpu_ms_per_thousand": row.median(|run| run.own_cpu_ms_per_thousand),
                "rabbitmq_cpu_ms_per_thousand": row.median(|run| run.rabbitmq_cpu_ms_per_thousand),
                "postgresql_cpu_ms_per_thousand": row.median(|run| run.postgresql_cpu_ms_per_thousand),
                "elsewhere_share": row.median(|run| Some(run.elsewhere_share)),
            },
            "runs": row.runs,
        })
    }
}

/// What the command line asked for, and what the daemons were told in the usual row.
pub(crate) fn settings(args: &Args) -> Vec<(String, String)> {
    let mut settings = vec![("mails".to_owned(), args.mails.to_string()), ("runs".to_owned(), args.runs.to_string())];
    settings.extend(Work::usual(args).settings());
    settings.extend(args.settings.iter().cloned());
    settings
}

/// With so many decimals, or a dash.
fn number(value: Option<f64>, decimals: usize) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.decimals$}"))
}
