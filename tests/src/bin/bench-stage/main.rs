//! The stages of `ConceptSeg` as contestants of `scripts/bench`.
//!
//! `prepare` writes the inputs that every contestant reads. Each other command sets a stage up,
//! says so, and then does as the lines on its standard input say (see [`conceptseg_tests::bench`]); `once` labels
//! one image and ends, for the time that a cold start takes.

mod concepts;
mod davis;
mod frames;
mod network;
mod once;
mod prepare;
mod propagation;
mod sized;

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use conceptseg::backend::{self, BackendKind, BackendOptions};
use conceptseg_tests::bench::serve;
use serde_json::json;

/// Contestants of `scripts/bench`, which starts them and talks to them in lines.
#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print the backends that run networks on this machine's CPU, as a JSON list.
    Backends,
    /// Write the inputs of all contestants.
    Prepare(prepare::Args),
    /// Write different pictures, without a bundle.
    Pictures(prepare::PicturesArgs),
    /// The network alone.
    Network(network::Args),
    /// A whole frame: from a JPEG file in memory to a line of metadata.
    Frame(frames::Args),
    /// Resident memory of one stream and of more.
    Streams(frames::Args),
    /// Mask propagation on given embeddings.
    Propagation(Inputs),
    /// Clustering, codebook, upsampling and merging on given embeddings.
    Concepts(Inputs),
    /// J and F of a folder of results.
    Davis(davis::Args),
    /// A stage alone, on made-up data of any size.
    Sized(sized::Args),
    /// Label one image and end.
    Once(once::Args),
}

/// Where `prepare` wrote the inputs.
#[derive(Debug, clap::Args)]
struct Inputs {
    #[arg(long, value_name = "DIR")]
    inputs: PathBuf,
}

/// The bundle and what runs its network.
#[derive(Debug, clap::Args)]
struct Network {
    #[arg(long, value_name = "DIR")]
    bundle: PathBuf,
    #[arg(long, value_enum)]
    backend: BackendKind,
    #[arg(long, default_value_t = 1)]
    threads: usize,
}

impl Network {
    fn options(&self) -> BackendOptions {
        BackendOptions::new(self.backend, self.threads)
    }
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Backends => print_backends(),
        Command::Prepare(args) => prepare::run(&args),
        Command::Pictures(args) => prepare::pictures(&args),
        Command::Network(args) => serve(network::Contestant::new(&args)?),
        Command::Frame(args) => serve(frames::Contestant::new(&args)?),
        Command::Streams(args) => serve(frames::Streams::new(&args)?),
        Command::Propagation(args) => serve(propagation::Contestant::new(&args.inputs)?),
        Command::Concepts(args) => serve(concepts::Contestant::new(&args.inputs)?),
        Command::Davis(args) => serve(davis::Contestant::new(&args)?),
        Command::Sized(args) => serve(sized::Contestant::new(args)?),
        Command::Once(args) => once::run(&args),
    }
}

/// What the probe finds, without the GPU.
fn print_backends() -> Result<()> {
    let found: Vec<_> = backend::probe()
        .into_iter()
        .filter(|probe| probe.kind != BackendKind::Tensorrt)
        .filter_map(|probe| Some(json!({ "name": probe.name, "version": probe.available.ok()? })))
        .collect();
    serde_json::to_writer(std::io::stdout().lock(), &found).context("cannot write the list")
}
