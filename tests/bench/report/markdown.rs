//! The report as a README can take it.

use std::fmt::Write as _;

use super::{Report, number};

/// Two tables and the lines that say on what they were measured.
pub(super) fn of(report: &Report) -> Result<String, std::fmt::Error> {
    let mut text = String::new();
    write(report, &mut text)?;
    Ok(text)
}

fn write(report: &Report, out: &mut String) -> std::fmt::Result {
    let of = |facts: &super::Facts| facts.iter().map(|(n, v)| format!("{n} {v}")).collect::<Vec<_>>().join(", ");
    let settings: Vec<String> = report.settings.iter().map(|(n, v)| format!("`{n}` {v}")).collect();
    writeln!(out, "Machine: {}.", of(&report.machine))?;
    writeln!(out, "Versions: {}.", of(&report.versions))?;
    writeln!(out, "Settings: {}.\n", settings.join(", "))?;
    writeln!(out, "| target | | measured | |\n|---|---|---|---|")?;
    for verdict in &report.verdicts {
        let remark = verdict.remark.as_ref().map(|remark| format!(" ({})", cell(remark))).unwrap_or_default();
        writeln!(
            out,
            "| {} | {} | {} | {}{remark} |",
            cell(&verdict.what),
            verdict.target_words(),
            verdict.measured_words(),
            verdict.verdict_words()
        )?;
    }
    if !report.rows.is_empty() {
        writeln!(out, "\n| sender | mails/s | ÷ yardstick | CPU ms per 1000 | ÷ yardstick | peak RSS |")?;
        writeln!(out, "|---|---:|---:|---:|---:|---:|")?;
    }
    for row in &report.rows {
        writeln!(
            out,
            "| {} | {} | {} | {} | {} | {} |",
            cell(&row.title),
            number(row.rate(), 0),
            number(report.rate_ratio(row), 2),
            number(row.cpu(), 0),
            number(report.cpu_ratio(row), 2),
            row.median(|run| run.peak_rss_mib).map_or_else(|| "-".to_owned(), |mib| format!("{mib:.0} MiB"))
        )?;
    }
    if !report.figures.is_empty() {
        writeln!(out, "\n| figure | median | lowest-highest |\n|---|---:|---:|")?;
    }
    for figure in &report.figures {
        let title = cell(figure.title.trim());
        writeln!(out, "| {title} | {} {} | {} |", figure.words(), figure.unit, figure.span_words())?;
    }
    for absent in &report.absent {
        writeln!(out, "\nNot measured: {}: {}.", absent.row, absent.why)?;
    }
    Ok(())
}

/// A bar would begin another cell.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}
