//! `conceptseg engine`: plans for TensorRT, made, looked at and compared with the CPU.

mod bench;
mod build;
mod calibrate;
mod compare;
mod inspect;
mod verify;

use std::path::Path;

use anyhow::Result;
use clap::Subcommand;
use conceptseg::backend::tensorrt::{NetworkFile, Places, PlanKey, PlanStore, TensorRt};
use conceptseg::bundle::Bundle;
use serde_json::{Value, json};

use crate::backend::GpuArgs;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Build the plan of a bundle for this machine's GPU and one size. Takes minutes.
    ///
    /// What is built here need not be built in the middle of a stream. Plans lie in the bundle's
    /// folder `engines`.
    Build(build::Args),
    /// Show the plans of a bundle, or one of them in full.
    Inspect(inspect::Args),
    /// Measure whole frames on the GPU, with and without a CUDA graph, beside the CPU.
    Bench(bench::Args),
    /// Compare a plan with the CPU on real frames: embeddings, concepts, masks.
    Verify(verify::Args),
}

pub fn run(command: &Command, json: bool) -> Result<()> {
    match command {
        Command::Bench(args) => bench::run(args, json),
        Command::Build(args) => build::run(args, json),
        Command::Inspect(args) => inspect::run(args, json),
        Command::Verify(args) => verify::run(args, json),
    }
}

/// The network of a bundle, whose hash was checked when it was opened.
fn network(bundle: &Bundle) -> NetworkFile {
    let entry = &bundle.manifest.embedder;
    NetworkFile {
        path: bundle.embedder_path(),
        sha256: entry.sha256.clone(),
        input: entry.input.clone(),
        output: entry.output.clone(),
    }
}

fn open(bundle: &Bundle, gpu: GpuArgs) -> Result<TensorRt> {
    Ok(TensorRt::open(network(bundle), Places::of_process(), gpu.options(false))?)
}

fn store(bundle: &Bundle) -> PlanStore {
    PlanStore::of_network(&bundle.embedder_path())
}

/// What a plan is for, as an object.
fn key_json(key: &PlanKey) -> Value {
    json!({
        "gpu": key.gpu,
        "compute_capability": key.compute_capability.to_string(),
        "tensorrt": key.tensorrt.to_string(),
        "precision": key.precision.as_str(),
        "batch": key.input.batch,
        "height": key.input.height,
        "width": key.input.width,
        "dla": key.dla,
        "onnx_sha256": key.onnx_sha256,
    })
}

/// Name of a file without its folder.
fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}
