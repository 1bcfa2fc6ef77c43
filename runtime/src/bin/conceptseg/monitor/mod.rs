//! `conceptseg monitor baseline|run|bench`.

mod baseline;
mod bench;
mod distort;
mod outputs;
mod run;
mod source;

use anyhow::Result;
use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Learn what is normal from footage of the place that is going to be watched.
    Baseline(baseline::Args),
    /// Watch streams from folders of images or from results files.
    Run(Box<run::Args>),
    /// Measure how soon disturbances are told of, and how often nothing is taken for something.
    Bench(bench::Args),
}

pub fn run(command: &Command, json: bool) -> Result<()> {
    match command {
        Command::Baseline(args) => baseline::run(args, json),
        Command::Run(args) => run::run(args, json),
        Command::Bench(args) => bench::run(args, json),
    }
}
