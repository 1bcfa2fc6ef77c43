//! `train`: from images to a model bundle.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use conceptseg_train::config::TrainConfig;
use conceptseg_train::distributed::Place;
use conceptseg_train::interrupt::{self, INTERRUPTED};

use super::flow::{self, DeviceChoice, Flow};
use super::image_args::ImageArgs;

/// Options of `train`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Recipe, one of `configs/`.
    #[arg(long)]
    config: PathBuf,
    #[command(flatten)]
    images: ImageArgs,
    /// Pretrained backbone as safetensors; without it training starts from random weights.
    #[arg(long)]
    backbone: Option<PathBuf>,
    /// Folder of the bundle to write.
    #[arg(long)]
    out: PathBuf,
    /// Folder of the TensorBoard log and the checkpoint; `<out>-log` where absent.
    #[arg(long)]
    log_dir: Option<PathBuf>,
    /// Continue from the checkpoint in the log folder. Every other option stays as it was.
    #[arg(long)]
    resume: bool,
    /// Steps, instead of the recipe's.
    #[arg(long)]
    iterations: Option<u64>,
    /// Seed, instead of the recipe's.
    #[arg(long)]
    seed: Option<u64>,
    /// Where to train.
    #[arg(long, value_enum, default_value_t = DeviceChoice::Auto)]
    device: DeviceChoice,
}

/// Runs it.
pub fn run(args: &Args) -> Result<ExitCode> {
    let mut config = TrainConfig::read(&args.config)?;
    if let Some(iterations) = args.iterations {
        config.optimizer.iterations = iterations;
    }
    if let Some(seed) = args.seed {
        config.seed = seed;
    }
    config.check()?;
    let place = Place::read(|name| std::env::var(name).ok())?;
    let device = args.device.device(place.as_ref().map_or(0, |place| place.local_rank))?;
    flow::make_folder(&args.out)?;
    let images = flow::paths(args.images.find()?);
    let dataset = flow::load(&config, &images)?;
    if args.backbone.is_none() && !args.resume {
        tracing::warn!("no --backbone given: training starts from random weights");
    }
    let processes = place.as_ref().map(|place| place.connect(device)).transpose()?;
    let run = Flow {
        config: &config,
        images: &images,
        dataset: &dataset,
        weights: args.backbone.as_deref(),
        out: &args.out,
        log_dir: &flow::log_dir(&args.out, args.log_dir.as_deref()),
        device,
        resume: args.resume,
        processes: processes.as_deref(),
    };
    let stop = interrupt::stop_flag().context("cannot listen for Ctrl-C")?;
    if !run.run(&stop)? {
        return Ok(ExitCode::from(INTERRUPTED));
    }
    if place.is_none_or(|place| place.rank == 0) {
        println!("{}", args.out.display());
    }
    Ok(ExitCode::SUCCESS)
}
