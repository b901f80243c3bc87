//! How far a long command is.
//!
//! Invariant: only a person at a terminal sees it; what a program reads holds nothing of it.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};

/// A bar on standard error for so many steps. Hidden where nobody looks, and where all is done before anybody could: `is_long`
/// says whether it is not.
pub(super) fn bar(steps: u64, is_long: bool) -> ProgressBar {
    if !is_long || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} {per_sec} {eta}");
    ProgressBar::new(steps).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}
