//! The options of every evaluation that keeps its results in a folder, and what it ends with.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use conceptseg::evaluate::report::{Report, write_csv};
use conceptseg::evaluate::run::{Inputs, Run, Shard, Stage, Unfinished};
use indicatif::ProgressBar;

use super::page::{self, Section};
use crate::progress::progress_bar;

/// Names of the files in a run folder.
const REPORT_JSON: &str = "report.json";
const REPORT_CSV: &str = "report.csv";
const REPORT_HTML: &str = "report.html";

/// Where results are kept and who works on what.
#[derive(Debug, Default, clap::Args)]
pub struct RunArgs {
    /// Folder for the results: report.json, report.csv, report.html, and a journal with which
    /// the same command goes on where it was stopped.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Work on part I of N only, such as 2/8; the last part to end writes the report.
    #[arg(long, value_name = "I/N", requires = "out")]
    pub shard: Option<Shard>,
    /// Take over the journals of these run folders first, which other parts have written.
    #[arg(long, value_name = "DIR", num_args = 1.., requires = "out", conflicts_with = "shard")]
    pub merge: Vec<PathBuf>,
    /// Drop the results that are already in the folder.
    #[arg(long, requires = "out")]
    pub fresh: bool,
}

impl RunArgs {
    /// Opens the folder, or a run that keeps nothing.
    pub fn open(&self, inputs: Inputs) -> Result<Run> {
        let Some(out) = &self.out else { return Ok(Run::in_memory(inputs)) };
        let run = Run::open(out, inputs, self.shard.unwrap_or_default(), self.fresh)?;
        run.import(&self.merge)?;
        Ok(run)
    }
}

/// A bar over the units that are still to do; says how many were done before.
pub fn stage_bar<T>(what: &'static str, units: &str, stage: &Stage<T>) -> Result<ProgressBar> {
    let before = stage.done_before();
    if before > 0 {
        tracing::info!("{what}: {before} {units} were done before");
    }
    progress_bar(what, units, stage.pending().len())
}

/// Ends a stage. Where units are still to come from other parts it says so and gives nothing.
pub fn finish<T: serde::Serialize + serde::de::DeserializeOwned + Send>(
    what: &str,
    units: &str,
    stage: Stage<T>,
) -> Result<Option<Vec<T>>> {
    match stage.finish() {
        Ok(values) => Ok(Some(values)),
        Err(Unfinished::Missing(missing)) => {
            eprintln!(
                "{what}: this part is done, {missing} {units} are still to come from other parts; \
                 run the same command again when they have ended, or give their folders with \
                 --merge"
            );
            Ok(None)
        }
        Err(Unfinished::Run(error)) => Err(error.into()),
    }
}

/// Writes the three reports into the run's folder, if it has one.
pub fn write(run: &Run, report: &Report, sections: Vec<Section>) -> Result<()> {
    let Some(folder) = run.folder() else { return Ok(()) };
    let write = |name: &str| folder.join(name);
    report.write(&write(REPORT_JSON))?;
    write_csv(report, &write(REPORT_CSV))?;
    let html = page::page(report, sections).into_string();
    write_text(&write(REPORT_HTML), &html)
}

/// Writes a text file as a whole.
fn write_text(path: &Path, text: &str) -> Result<()> {
    conceptseg::files::write_atomic(path, |file| std::io::Write::write_all(file, text.as_bytes()))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// The figures with their intervals, a line each.
pub fn figures_text(report: &Report) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    for (name, figure) in &report.figures {
        // Writing to a string cannot fail.
        let _ = match figure.interval {
            Some((low, high)) => writeln!(
                text,
                "{name} {:.2} % ({:.2} to {:.2} with 95 % confidence)",
                100.0 * figure.value,
                100.0 * low,
                100.0 * high
            ),
            None => writeln!(text, "{name} {:.2} %", 100.0 * figure.value),
        };
    }
    text
}
