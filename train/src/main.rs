//! The `conceptseg-train` command: from unlabelled images to a model bundle.

mod commands;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use conceptseg_train::config::TrainConfig;
use indicatif::ProgressBar;

/// Learns a vocabulary of visual concepts and a network that embeds every pixel from
/// unlabelled images.
///
/// Exit codes: 0 done, 1 failed, 2 wrong use, 130 stopped with a checkpoint.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Learn from own footage: settings, training and bundle in one command.
    Learn(commands::learn::Args),
    /// Train and write a model bundle.
    Train(commands::train::Args),
    /// Make the pseudo segments of images ahead of training, and pictures of them.
    Segments(commands::segments::Args),
    /// Write a trained network as an ONNX file in single, half or 8-bit precision.
    Export(commands::export::Args),
    /// Train a linear classifier on the embeddings of a bundle, to tell how much they hold.
    LinearProbe(commands::linear_probe::Args),
    /// Print a recipe with all of its keys, those absent from the file with their defaults.
    Config {
        /// Recipe to read; the paper's where none is given.
        recipe: Option<PathBuf>,
    },
}

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env()
                .unwrap_or_else(|_| "warn,conceptseg_train=info".into()),
        )
        .without_time()
        .with_target(false)
        .init();
    let result = match Cli::parse().command {
        Command::Learn(args) => commands::learn::run(&args),
        Command::Train(args) => commands::train::run(&args),
        Command::Segments(args) => commands::segments::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Export(args) => commands::export::run(&args).map(|()| ExitCode::SUCCESS),
        Command::LinearProbe(args) => {
            commands::linear_probe::run(&args).map(|()| ExitCode::SUCCESS)
        }
        Command::Config { recipe } => print_config(recipe.as_deref()).map(|()| ExitCode::SUCCESS),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("conceptseg-train: {}", conceptseg::errors::sentence(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn print_config(recipe: Option<&Path>) -> Result<()> {
    let config = recipe.map_or_else(|| Ok(TrainConfig::default()), TrainConfig::read)?;
    print!("{}", toml::to_string(&config)?);
    Ok(())
}

fn progress_bar(length: u64, what: &'static str) -> ProgressBar {
    let bar = ProgressBar::new(length);
    if let Ok(style) =
        indicatif::ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}, {eta} left")
    {
        bar.set_style(style);
    }
    bar.set_message(what);
    bar
}
