//! The report as a picture: how much of each target was reached, and mails a second of each row. SVG, in colours that follow
//! the reader's light or dark scheme.

use std::fmt::Write as _;

use super::{Report, number};

const WIDTH: f64 = 1160.0;
const MARGIN: f64 = 24.0;
/// Where bars begin; titles end here.
const BARS: f64 = 590.0;
/// Where bars end; figures stand behind them.
const BARS_END: f64 = 940.0;
const LINE: f64 = 26.0;
const BAR: f64 = 14.0;
const HEAD: f64 = 44.0;
/// Characters of a title that fit before the bars.
const TITLE_MAX: usize = 80;
/// A target reached this often fills the panel.
const REACHED_MAX: f64 = 2.0;

const STYLE: &str = "
svg { font: 13px system-ui, sans-serif; } .ground { fill: #ffffff; }
text { fill: #1f2937; stroke: #ffffff; stroke-width: 3px; paint-order: stroke; } .head { font-size: 16px; font-weight: 600; } .small { fill: #6b7280; font-size: 12px; }
.met { fill: #15803d; } .missed { fill: #b91c1c; } .ours { fill: #2563eb; } .theirs { fill: #9ca3af; }
line { stroke: #6b7280; stroke-dasharray: 4 3; }
@media (prefers-color-scheme: dark) {
.ground { fill: #111827; } text { fill: #e5e7eb; stroke: #111827; } .small { fill: #9ca3af; } line { stroke: #9ca3af; }
.met { fill: #4ade80; } .missed { fill: #f87171; } .ours { fill: #60a5fa; } .theirs { fill: #6b7280; }
}";

struct Bar {
    title: String,
    /// From 0 to 1.
    length: f64,
    class: &'static str,
    words: String,
}

/// The whole file.
pub(super) fn of(report: &Report) -> Result<String, std::fmt::Error> {
    let targets = targets(report);
    let rates = rates(report);
    let panel = |bars: &[Bar]| if bars.is_empty() { 0.0 } else { HEAD + bars.len() as f64 * LINE + MARGIN };
    let height = MARGIN + panel(&targets) + panel(&rates) + LINE * 2.0;
    let mut svg = String::new();
    draw(&mut svg, report, &targets, &rates, panel(&targets), height)?;
    Ok(svg)
}

fn draw(
    svg: &mut String,
    report: &Report,
    targets: &[Bar],
    rates: &[Bar],
    rates_top: f64,
    height: f64,
) -> std::fmt::Result {
    writeln!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
        viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"postrider benchmark\">"
    )?;
    writeln!(svg, "<style>{STYLE}\n</style>")?;
    writeln!(svg, "<rect class=\"ground\" width=\"100%\" height=\"100%\"/>")?;
    if !targets.is_empty() {
        // Before the bars and their words, which must stay legible.
        let x = BARS + (BARS_END - BARS) / REACHED_MAX;
        let top = MARGIN + HEAD - 12.0;
        let bottom = MARGIN + HEAD + targets.len() as f64 * LINE;
        writeln!(svg, "<line x1=\"{x}\" x2=\"{x}\" y1=\"{top}\" y2=\"{bottom}\"/>")?;
        text(svg, x, top - 4.0, "small", "middle", "target")?;
    }
    panel(svg, MARGIN, "Targets: how much of each was reached", targets)?;
    panel(svg, MARGIN + rates_top, "Mails a second, medians (÷ by the yardstick's)", rates)?;
    let facts = |facts: &super::Facts| {
        facts.iter().map(|(name, value)| format!("{name} {value}")).collect::<Vec<_>>().join(", ")
    };
    text(svg, MARGIN, height - LINE * 1.5, "small", "start", &facts(&report.machine))?;
    text(svg, MARGIN, height - LINE * 0.8, "small", "start", &facts(&report.versions))?;
    writeln!(svg, "</svg>")
}

/// Draws the bars below each other.
fn panel(svg: &mut String, top: f64, head: &str, bars: &[Bar]) -> std::fmt::Result {
    if bars.is_empty() {
        return Ok(());
    }
    text(svg, MARGIN, top + 12.0, "head", "start", head)?;
    for (index, bar) in bars.iter().enumerate() {
        let y = top + HEAD + index as f64 * LINE;
        let width = (bar.length.clamp(0.0, 1.0) * (BARS_END - BARS)).max(1.0);
        text(svg, BARS - 10.0, y + BAR - 3.0, "", "end", &shortened(&bar.title))?;
        let class = bar.class;
        writeln!(
            svg,
            "<rect class=\"{class}\" x=\"{BARS}\" y=\"{y}\" width=\"{width:.1}\" height=\"{BAR}\" rx=\"2\"/>"
        )?;
        text(svg, BARS + width + 8.0, y + BAR - 3.0, "", "start", &bar.words)?;
    }
    Ok(())
}

fn targets(report: &Report) -> Vec<Bar> {
    report
        .verdicts
        .iter()
        .filter_map(|verdict| {
            Some(Bar {
                title: verdict.what.clone(),
                length: verdict.reached()? / REACHED_MAX,
                class: if verdict.is_met()? { "met" } else { "missed" },
                words: format!("{} ({})", verdict.measured_words(), verdict.limit_words()),
            })
        })
        .collect()
}

fn rates(report: &Report) -> Vec<Bar> {
    let most = report.rows.iter().filter_map(super::Row::rate).fold(0.0, f64::max);
    report
        .rows
        .iter()
        .filter_map(|row| {
            let rate = row.rate()?;
            Some(Bar {
                title: row.title.clone(),
                length: rate / most,
                class: if row.yardstick.is_some() { "ours" } else { "theirs" },
                words: match report.rate_ratio(row) {
                    Some(ratio) => format!("{} (÷ {ratio:.2})", number(Some(rate), 0)),
                    None => number(Some(rate), 0),
                },
            })
        })
        .collect()
}

fn text(svg: &mut String, x: f64, y: f64, class: &str, anchor: &str, words: &str) -> std::fmt::Result {
    let words = words.replace('&', "&amp;").replace('<', "&lt;");
    writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" class=\"{class}\" text-anchor=\"{anchor}\">{words}</text>")
}

fn shortened(title: &str) -> String {
    if title.chars().count() <= TITLE_MAX {
        return title.to_owned();
    }
    title.chars().take(TITLE_MAX - 1).chain(['…']).collect()
}
