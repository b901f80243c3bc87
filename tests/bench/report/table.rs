//! The report for a terminal.

use std::fmt;

use comfy_table::{CellAlignment, Table, presets};

use super::{Report, Row, number};

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.rows.is_empty() {
            writeln!(f, "{}\n", self.rates())?;
            for row in &self.rows {
                beside(f, row)?;
            }
            writeln!(f)?;
        }
        if !self.figures.is_empty() {
            writeln!(f, "{}\n", self.figures_table())?;
        }
        writeln!(f, "{}\n", self.targets_table())?;
        for absent in &self.absent {
            writeln!(f, "not measured: {}: {}", absent.row, absent.why)?;
        }
        for note in &self.notes {
            writeln!(f, "note: {note}")?;
        }
        for row in &self.rows {
            if let Some(error) = &row.error {
                writeln!(f, "FAILED: {}: {error}", row.title)?;
            }
        }
        for error in &self.errors {
            writeln!(f, "FAILED: {error}")?;
        }
        writeln!(f, "machine: {}", line(self.machine.iter().map(|(n, v)| (*n, v.as_str()))))?;
        writeln!(f, "versions: {}", line(self.versions.iter().map(|(n, v)| (*n, v.as_str()))))?;
        write!(f, "settings: {}", line(self.settings.iter().map(|(n, v)| (n.as_str(), v.as_str()))))
    }
}

impl Report {
    fn rates(&self) -> Table {
        let mut table = plain(&[
            "sender",
            "bytes",
            "mails/s",
            "÷ yardstick",
            "slowest-fastest",
            "CPU ms per 1000",
            "÷ yardstick",
            "to 1st mail ms",
            "peak RSS MiB",
        ]);
        for row in &self.rows {
            table.add_row(vec![
                row.title.clone(),
                row.bytes.to_string(),
                number(row.rate(), 0),
                number(self.rate_ratio(row), 3),
                row.span().map_or_else(|| "-".to_owned(), |(low, high)| format!("{low:.0}-{high:.0}")),
                number(row.cpu(), 1),
                number(self.cpu_ratio(row), 2),
                number(row.median(|run| run.start_to_first_mail_ms), 0),
                number(row.median(|run| run.peak_rss_mib), 1),
            ]);
        }
        right(&mut table, 1..9);
        table
    }

    fn figures_table(&self) -> Table {
        let mut table = plain(&["figure", "median", "", "lowest-highest"]);
        for figure in &self.figures {
            let title = match &figure.note {
                Some(note) => format!("{} ({note})", figure.title),
                None => figure.title.clone(),
            };
            table.add_row(vec![title, figure.words(), figure.unit.to_owned(), figure.span_words()]);
        }
        right(&mut table, 1..2);
        right(&mut table, 3..4);
        table
    }

    fn targets_table(&self) -> Table {
        let mut table = plain(&["target", "", "measured", "", "remark"]);
        for verdict in &self.verdicts {
            table.add_row(vec![
                verdict.what.clone(),
                verdict.target_words(),
                verdict.measured_words(),
                verdict.verdict_words().to_owned(),
                verdict.remark.clone().unwrap_or_default(),
            ]);
        }
        table
    }
}

fn plain(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.to_vec());
    table
}

fn right(table: &mut Table, columns: std::ops::Range<usize>) {
    for column in table.column_iter_mut().skip(columns.start).take(columns.len()) {
        column.set_cell_alignment(CellAlignment::Right);
    }
}

/// What others took for the row's mails.
fn beside(f: &mut fmt::Formatter<'_>, row: &Row) -> fmt::Result {
    let others = [
        ("smtp-sink", row.median(|run| Some(run.sink_cpu_ms_per_thousand))),
        ("the benchmark", row.median(|run| run.own_cpu_ms_per_thousand)),
        ("RabbitMQ", row.median(|run| run.rabbitmq_cpu_ms_per_thousand)),
        ("PostgreSQL", row.median(|run| run.postgresql_cpu_ms_per_thousand)),
    ];
    let others: Vec<String> = others.into_iter().filter_map(|(name, ms)| Some(format!("{name} {:.1}", ms?))).collect();
    let elsewhere = number(row.median(|run| Some(run.elsewhere_share * 100.0)), 0);
    let note = row.note.as_ref().map(|note| format!("; {note}")).unwrap_or_default();
    writeln!(
        f,
        "beside {}: CPU ms per 1000 {}; elsewhere {elsewhere} % of the machine{note}",
        row.title,
        others.join(", ")
    )
}

fn line<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    pairs.map(|(name, value)| format!("{name} {value}")).collect::<Vec<_>>().join(", ")
}
