//! What was measured: medians, ratios, and everything a reader needs to judge them.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::Context;
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;
use serde_json::{Value, json};

use super::{Args, postfix, process, services::Services};

/// One sender once. What is not known of it is left out. CPU is user and system time.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Run {
    pub(crate) mails: u64,
    pub(crate) mails_per_second: f64,
    /// From the start of the program to the last mail.
    pub(crate) wall_seconds: f64,
    pub(crate) cpu_ms_per_thousand: f64,
    pub(crate) start_to_first_mail_ms: Option<f64>,
    pub(crate) peak_rss_mib: Option<f64>,
    pub(crate) sink_cpu_ms_per_thousand: f64,
    pub(crate) rabbitmq_cpu_ms_per_thousand: Option<f64>,
    pub(crate) postgresql_cpu_ms_per_thousand: Option<f64>,
    /// How much of the machine went to neither the sender nor what it needs: other programs, the kernel's own threads.
    pub(crate) elsewhere_share: f64,
}

/// This much CPU time as a part of what the machine had to give.
pub(crate) fn share(cpu_ms: f64, wall: Duration) -> f64 {
    // Ticks are coarse, so that nothing may come out as a little less than nothing.
    (cpu_ms / (wall.as_secs_f64() * 1000.0 * process::cores() as f64)).max(0.0)
}

/// One sender.
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) runs: Vec<Run>,
}

impl Row {
    fn median(&self, of: impl Fn(&Run) -> Option<f64>) -> Option<f64> {
        let mut values: Vec<f64> = self.runs.iter().filter_map(of).collect();
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        if values.len() % 2 == 1 {
            values.get(middle).copied()
        } else {
            Some((values.get(middle.checked_sub(1)?)? + values.get(middle)?) / 2.0)
        }
    }

    fn rate(&self) -> Option<f64> {
        self.median(|run| Some(run.mails_per_second))
    }

    fn cpu(&self) -> Option<f64> {
        self.median(|run| Some(run.cpu_ms_per_thousand))
    }

    /// Slowest and fastest run.
    fn span(&self) -> (f64, f64) {
        let rates = || self.runs.iter().map(|run| run.mails_per_second);
        (rates().fold(f64::INFINITY, f64::min), rates().fold(0.0, f64::max))
    }
}

/// All rows of one invocation; the first is the yardstick of the others.
pub(crate) struct Report {
    rows: Vec<Row>,
    machine: Vec<(&'static str, String)>,
    versions: Vec<(&'static str, String)>,
    settings: Vec<(String, String)>,
}

impl Report {
    pub(crate) fn new(args: &Args, services: &Services, size: u64, load: Option<f64>, rows: Vec<Row>) -> Self {
        let mut settings = vec![
            ("mails".to_owned(), args.mails.to_string()),
            ("runs".to_owned(), args.runs.to_string()),
            ("bytes".to_owned(), size.to_string()),
        ];
        settings.extend(args.daemon_settings());
        Self { rows, machine: machine(load), versions: versions(services), settings }
    }

    fn ratio(&self, row: &Row, of: impl Fn(&Row) -> Option<f64>) -> Option<f64> {
        Some(of(row)? / of(self.rows.first()?)?)
    }

    /// Writes it as JSON, and says where.
    pub(crate) fn write(&self) -> anyhow::Result<PathBuf> {
        // Cargo's own folder for what tests write lies in the target folder.
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().context("no target folder")?;
        let folder = target.join("bench");
        fs::create_dir_all(&folder)?;
        let file = folder.join("throughput.json");
        fs::write(&file, format!("{:#}\n", self.to_json())).with_context(|| file.display().to_string())?;
        Ok(file)
    }

    fn to_json(&self) -> Value {
        let object = |pairs: &[(&str, String)]| -> Value {
            pairs
                .iter()
                .map(|(name, value)| ((*name).to_owned(), json!(value)))
                .collect::<serde_json::Map<_, _>>()
                .into()
        };
        let settings: Vec<(&str, String)> = self.settings.iter().map(|(n, v)| (n.as_str(), v.clone())).collect();
        let rows: Vec<Value> = self
            .rows
            .iter()
            .map(|row| {
                json!({
                    "name": row.name,
                    "median": {
                        "mails_per_second": row.rate(),
                        "mails_per_second_ratio": self.ratio(row, Row::rate),
                        "cpu_ms_per_thousand": row.cpu(),
                        "cpu_ratio": self.ratio(row, Row::cpu),
                        "wall_seconds": row.median(|run| Some(run.wall_seconds)),
                        "start_to_first_mail_ms": row.median(|run| run.start_to_first_mail_ms),
                        "peak_rss_mib": row.median(|run| run.peak_rss_mib),
                        "sink_cpu_ms_per_thousand": row.median(|run| Some(run.sink_cpu_ms_per_thousand)),
                        "rabbitmq_cpu_ms_per_thousand": row.median(|run| run.rabbitmq_cpu_ms_per_thousand),
                        "postgresql_cpu_ms_per_thousand": row.median(|run| run.postgresql_cpu_ms_per_thousand),
                        "elsewhere_share": row.median(|run| Some(run.elsewhere_share)),
                    },
                    "runs": row.runs,
                })
            })
            .collect();
        json!({
            "machine": object(&self.machine),
            "versions": object(&self.versions),
            "settings": object(&settings),
            "rows": rows,
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_header(vec![
            "sender",
            "mails/s",
            "÷ yardstick",
            "slowest-fastest",
            "CPU ms per 1000",
            "÷ yardstick",
            "wall s",
            "to 1st mail ms",
            "peak RSS MiB",
        ]);
        for row in &self.rows {
            let (slowest, fastest) = row.span();
            table.add_row(vec![
                row.name.clone(),
                number(row.rate(), 0),
                number(self.ratio(row, Row::rate), 3),
                format!("{slowest:.0}-{fastest:.0}"),
                number(row.cpu(), 1),
                number(self.ratio(row, Row::cpu), 2),
                number(row.median(|run| Some(run.wall_seconds)), 2),
                number(row.median(|run| run.start_to_first_mail_ms), 0),
                number(row.median(|run| run.peak_rss_mib), 1),
            ]);
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        writeln!(f, "{table}")?;
        for row in &self.rows {
            let others = [
                ("smtp-sink", row.median(|run| Some(run.sink_cpu_ms_per_thousand))),
                ("RabbitMQ", row.median(|run| run.rabbitmq_cpu_ms_per_thousand)),
                ("PostgreSQL", row.median(|run| run.postgresql_cpu_ms_per_thousand)),
            ];
            let others: Vec<String> =
                others.into_iter().filter_map(|(name, ms)| Some(format!("{name} {:.1}", ms?))).collect();
            let elsewhere = number(row.median(|run| Some(run.elsewhere_share * 100.0)), 0);
            let others = others.join(", ");
            writeln!(f, "beside {}: CPU ms per 1000 {others}; elsewhere {elsewhere} % of the machine", row.name)?;
        }
        let line = |pairs: &mut dyn Iterator<Item = (&str, &str)>| -> String {
            pairs.map(|(name, value)| format!("{name} {value}")).collect::<Vec<_>>().join(", ")
        };
        writeln!(f, "machine: {}", line(&mut self.machine.iter().map(|(n, v)| (*n, v.as_str()))))?;
        writeln!(f, "versions: {}", line(&mut self.versions.iter().map(|(n, v)| (*n, v.as_str()))))?;
        write!(f, "settings: {}", line(&mut self.settings.iter().map(|(n, v)| (n.as_str(), v.as_str()))))
    }
}

fn number(value: Option<f64>, decimals: usize) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.decimals$}"))
}

fn machine(load: Option<f64>) -> Vec<(&'static str, String)> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map_or("of unknown model", |rest| rest.trim_start_matches([' ', '\t', ':']));
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    vec![
        ("cores", process::cores().to_string()),
        ("CPU", model.to_owned()),
        ("Linux", kernel.trim().to_owned()),
        ("load before", number(load, 2)),
    ]
}

fn versions(services: &Services) -> Vec<(&'static str, String)> {
    let commit = Command::new("git")
        .args(["-C", env!("CARGO_MANIFEST_DIR"), "describe", "--always", "--dirty", "--exclude=*"])
        .output()
        .ok()
        .filter(|output| output.status.success())
        .and_then(|output| String::from_utf8(output.stdout).ok())
        .map_or_else(|| "of unknown commit".to_owned(), |text| text.trim().to_owned());
    vec![
        ("postrider", format!("{} {commit}", env!("CARGO_PKG_VERSION"))),
        ("RabbitMQ", services.rabbitmq.clone()),
        ("PostgreSQL", services.postgresql.clone()),
        ("Postfix", postfix::version().unwrap_or_else(|| "unknown".to_owned())),
    ]
}
