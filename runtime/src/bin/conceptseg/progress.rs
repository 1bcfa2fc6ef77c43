//! The progress bars of all commands.

use std::time::Duration;

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};

/// A bar over `count` things called `units`, hidden where standard error is not a terminal.
pub fn progress_bar(what: &'static str, units: &str, count: usize) -> Result<ProgressBar> {
    let template = format!("{{msg}} {{wide_bar}} {{pos}}/{{len}} {units} {{eta}}");
    let bar = ProgressBar::new(count as u64).with_style(ProgressStyle::with_template(&template)?);
    Ok(bar.with_message(what))
}

/// For work that does not say how far it is: the time that has passed, and what is going on.
pub fn spinner() -> Result<ProgressBar> {
    let style = ProgressStyle::with_template("{spinner} {elapsed} {msg}")?;
    let bar = ProgressBar::new_spinner().with_style(style);
    bar.enable_steady_tick(Duration::from_millis(200));
    Ok(bar)
}
