//! Progress on a terminal.

use indicatif::{ProgressBar, ProgressStyle};

/// A bar with the time that is left. It is hidden where the standard error is no terminal.
pub fn bar(what: &'static str, len: u64) -> ProgressBar {
    let style = "{prefix} [{bar:30}] {pos}/{len} {elapsed} (left {eta})";
    let style = ProgressStyle::with_template(style);
    let bar = ProgressBar::new(len).with_prefix(what);
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}
