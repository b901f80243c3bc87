//! One strip for each figure over the same time, with a line wherever something was broken.

use std::fmt::Write;

use super::{FIGURES, Sample};

const WIDTH: f64 = 1000.0;
const STRIP: f64 = 90.0;
const LEFT: f64 = 230.0;
const TOP: f64 = 40.0;
const GAP: f64 = 14.0;

/// As SVG.
pub fn svg(samples: &[Sample], faults: &[(f64, &'static str)]) -> String {
    let end_s = samples.last().map_or(1.0, |sample| sample.at_s);
    let x = |at_s: f64| LEFT + (WIDTH - LEFT - 20.0) * at_s / end_s;
    let height = TOP + FIGURES.len() as f64 * (STRIP + GAP) + 30.0;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" font-family=\"sans-serif\" \
         font-size=\"12\"><rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n<text x=\"10\" y=\"20\">{:.0} minutes, {} \
         faults (grey lines); the scale of each strip begins at 0</text>\n",
        end_s / 60.0,
        faults.len()
    );
    for (row, figure) in FIGURES.iter().enumerate() {
        let top = TOP + row as f64 * (STRIP + GAP);
        let values: Vec<f64> = samples.iter().map(figure.of).collect();
        let highest = values.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
        let mut sorted = values.clone();
        sorted.sort_by(f64::total_cmp);
        let median = sorted.get(sorted.len() / 2).copied().unwrap_or_default();
        let _ = write!(
            out,
            "<rect x=\"{LEFT}\" y=\"{top}\" width=\"{}\" height=\"{STRIP}\" fill=\"#f6f7f9\"/>\n\
             <text x=\"10\" y=\"{}\">{}</text>\n\
             <text x=\"10\" y=\"{}\" fill=\"#666\">median {median:.1}, highest {highest:.1}</text>\n",
            WIDTH - LEFT - 20.0,
            top + STRIP / 2.0 - 4.0,
            figure.name,
            top + STRIP / 2.0 + 14.0,
        );
        for (at_s, _) in faults {
            let _ = writeln!(
                out,
                "<line x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"{top}\" y2=\"{1}\" stroke=\"#d5d8de\"/>",
                x(*at_s),
                top + STRIP
            );
        }
        let points: Vec<String> = samples
            .iter()
            .zip(&values)
            .map(|(sample, value)| format!("{:.1},{:.1}", x(sample.at_s), top + STRIP * (1.0 - value / highest)))
            .collect();
        let _ = writeln!(out, "<polyline fill=\"none\" stroke=\"#2457a6\" points=\"{}\"/>", points.join(" "));
    }
    let bottom = height - 12.0;
    for tenth in 0..=10 {
        let at_s = end_s * f64::from(tenth) / 10.0;
        let _ = writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{bottom}\" text-anchor=\"middle\" fill=\"#666\">{:.0} min</text>",
            x(at_s),
            at_s / 60.0
        );
    }
    out.push_str("</svg>\n");
    out
}
