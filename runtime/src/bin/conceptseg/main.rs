//! The `conceptseg` command: looks into bundles, evaluates them and makes test scenes.
//! Live video goes through the GStreamer elements in `plugins/`.

mod atlas;
mod backend;
mod bundle;
mod concepts;
mod davis;
mod doctor;
mod engine;
mod eval;
mod images;
mod metrics;
mod monitor;
mod progress;
mod report;
mod scene;
mod scores;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Concept labelling and mask propagation for video, learned without labels.
///
/// Exit codes: 0 done, 1 failed, 2 wrong use.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true, arg_required_else_help = true)]
struct Cli {
    /// Print one JSON object on standard output instead of a table.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show what each concept stands for, on a page on which people name them.
    Atlas(Box<atlas::Args>),
    /// Look into a model bundle or check it.
    #[command(subcommand)]
    Bundle(bundle::Command),
    /// Export or import what people call concepts.
    #[command(subcommand)]
    Concepts(concepts::Command),
    /// Show what is there of backends, GStreamer and models, what is missing, and how to mend it.
    Doctor(doctor::Args),
    /// Build plans for TensorRT, look at them, compare them with the CPU.
    #[command(subcommand)]
    Engine(engine::Command),
    /// Evaluate a bundle on a data set.
    #[command(subcommand)]
    Eval(Box<eval::Command>),
    /// Score results that any tool has written.
    #[command(subcommand)]
    Metrics(metrics::Command),
    /// Watch streams: what is normal, what differs, and who is told.
    #[command(subcommand)]
    Monitor(monitor::Command),
    /// Summarise a run: table, contact sheet, masks.
    Report(report::Args),
    /// Write a generated test scene with exact instance masks.
    Scene(scene::Args),
}

fn main() -> ExitCode {
    // Messages of the libraries go to standard error, results to standard output.
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env()
                .unwrap_or_else(|_| "warn,conceptseg=info".into()),
        )
        .without_time()
        .with_target(false)
        .init();
    let cli = Cli::parse();
    let json = cli.json;
    let result = match cli.command {
        Command::Atlas(args) => atlas::run(&args, json),
        Command::Bundle(command) => bundle::run(&command, json),
        Command::Concepts(command) => concepts::run(&command, json),
        Command::Doctor(args) => doctor::run(&args, json),
        Command::Engine(command) => engine::run(&command, json),
        Command::Eval(command) => eval::run(&command, json),
        Command::Metrics(command) => metrics::run(&command, json),
        Command::Monitor(command) => monitor::run(&command, json),
        Command::Report(args) => report::run(&args, json),
        Command::Scene(args) => scene::run(&args, json),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("conceptseg: {}", conceptseg::errors::sentence(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

/// A reader that has seen enough (`conceptseg … | head`) is no failure.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .any(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
}
