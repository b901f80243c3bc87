//! A small plot of the last minutes, drawn here: it needs no script.

use std::fmt::Write;

use maud::{Markup, html};

/// Units of the drawing.
const HEIGHT: f64 = 20.0;

/// One bar for each step: what went well, and before it what did not.
pub(super) fn plot(well: &[u32], troubled: &[u32], step_seconds: i64) -> Markup {
    let top = well.iter().chain(troubled).copied().max().unwrap_or(0);
    let minutes = (well.len() as f64 * step_seconds as f64 / 60.0).round();
    let most = f64::from(well.iter().copied().max().unwrap_or(0)) / step_seconds as f64;
    let told = match top {
        0 => format!("Nothing in the last {minutes} minutes"),
        _ => format!("Mails sent in the last {minutes} minutes, {most:.1} a second at most"),
    };
    html! {
        svg.plot viewBox=(format!("0 0 {} {HEIGHT}", well.len())) preserveAspectRatio="none" aria-hidden="true" {
            path d=(bars(well, top)) fill="currentColor" {}
            path.trouble d=(bars(troubled, top)) fill="currentColor" {}
        }
        p.muted { (told) }
    }
}

fn bars(steps: &[u32], top: u32) -> String {
    let mut path = String::new();
    for (at, count) in steps.iter().enumerate().filter(|(_, count)| **count > 0) {
        // One that is hardly to be seen is still something that happened.
        let height = (f64::from(*count) / f64::from(top) * HEIGHT).max(1.0);
        // Writing into a String cannot fail.
        let _ = write!(path, "M{at} {HEIGHT}v-{height:.1}h.9v{height:.1}z");
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_as_high_as_what_they_tell() {
        assert_eq!(bars(&[0, 10, 0, 5], 10), "M1 20v-20.0h.9v20.0zM3 20v-10.0h.9v10.0z");
        assert_eq!(bars(&[1], 1000), "M0 20v-1.0h.9v1.0z");
        assert_eq!(bars(&[0, 0], 0), "");
    }

    #[test]
    fn a_plot_says_in_words_what_it_shows() {
        let shown = plot(&[0, 50], &[0, 0], 5).into_string();
        assert!(shown.contains("10.0 a second at most") && shown.contains("<path"), "{shown}");
        assert!(plot(&[0; 60], &[0; 60], 5).into_string().contains("Nothing in the last 5 minutes"));
    }
}
