//! The progress bar of all commands.

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};

/// A bar over `count` things called `units`, hidden where standard error is not a terminal.
pub fn progress_bar(what: &'static str, units: &str, count: usize) -> Result<ProgressBar> {
    let template = format!("{{msg}} {{wide_bar}} {{pos}}/{{len}} {units} {{eta}}");
    let bar = ProgressBar::new(count as u64).with_style(ProgressStyle::with_template(&template)?);
    Ok(bar.with_message(what))
}
