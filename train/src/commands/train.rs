//! `train`: from images to a model bundle.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use conceptseg_train::config::TrainConfig;
use conceptseg_train::data::{Dataset, DatasetConfig};
use conceptseg_train::distributed::Place;
use conceptseg_train::export::bundle::write_bundle;
use conceptseg_train::interrupt::{self, INTERRUPTED};
use conceptseg_train::trainer::{self, Outcome, RunOptions};

use super::image_args::ImageArgs;
use crate::progress_bar;

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

#[derive(Debug, Clone, Copy, ValueEnum)]
enum DeviceChoice {
    /// A CUDA device where libtorch finds one (that of `LOCAL_RANK`, else the first), else the
    /// CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// The CUDA device of `LOCAL_RANK`, else the first.
    Cuda,
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
    let device = device(args.device, place.as_ref().map_or(0, |place| place.local_rank))?;
    // A run of hours must not end at a folder that cannot be written.
    std::fs::create_dir_all(&args.out)
        .and_then(|()| tempfile::tempfile_in(&args.out).map(drop))
        .with_context(|| format!("cannot write to {}; choose another --out", args.out.display()))?;

    let images: Vec<PathBuf> = args.images.find()?.into_iter().map(|file| file.path).collect();
    let bar = progress_bar(images.len() as u64, "images read and segmented");
    let settings = DatasetConfig {
        short_side: config.data.short_side,
        segments: config.segments.clone(),
        memory_limit_mb: config.data.memory_limit_mb,
    };
    let dataset = Dataset::load(images.clone(), settings, &|_, _| bar.inc(1)).map(Arc::new)?;
    bar.finish_and_clear();
    tracing::info!("{} images, training on {device:?}", images.len());
    if args.backbone.is_none() && !args.resume {
        tracing::warn!("no --backbone given: training starts from random weights");
    }
    let log_dir = args.log_dir.clone().unwrap_or_else(|| {
        let mut name = args.out.clone().into_os_string();
        name.push("-log");
        name.into()
    });
    let processes = place.as_ref().map(|place| place.connect(device)).transpose()?;
    let stop = interrupt::stop_flag().context("cannot listen for Ctrl-C")?;
    let options = RunOptions {
        backbone: args.backbone.as_deref(),
        log_dir: &log_dir,
        device,
        resume: args.resume,
        stop: &stop,
        processes: processes.as_deref(),
    };
    let trained = match trainer::train(&config, &dataset, &options)? {
        Outcome::Finished(trained) => trained,
        Outcome::Interrupted { step, checkpoint } => {
            eprintln!(
                "stopped after step {step} of {}; {} holds the run: repeat the command with \
                 --resume to continue",
                config.optimizer.iterations,
                checkpoint.display()
            );
            return Ok(ExitCode::from(INTERRUPTED));
        }
    };
    if place.is_some_and(|place| place.rank != 0) {
        return Ok(ExitCode::SUCCESS);
    }
    // From here on there is no step to finish: the next Ctrl-C ends the program at once.
    stop.store(true, Ordering::SeqCst);
    tracing::info!(
        "{} steps in {:.0} s, loss {:.3} -> {:.3}",
        config.optimizer.iterations,
        trained.seconds,
        trained.loss_start_end.0,
        trained.loss_start_end.1
    );
    if trained.void_batches > 0 {
        tracing::warn!("{} batches without a segment were passed over", trained.void_batches);
    }
    let statistics =
        |count| progress_bar(count as u64, "images for the statistics of the concepts");
    write_bundle(&args.out, &config, &trained, &images, &statistics)?;
    println!("{}", args.out.display());
    Ok(ExitCode::SUCCESS)
}

fn device(choice: DeviceChoice, index: usize) -> Result<tch::Device> {
    let found = tch::Cuda::is_available();
    match choice {
        DeviceChoice::Cuda if !found => {
            bail!(
                "libtorch finds no CUDA device; use --device cpu, or install a CUDA build of torch"
            )
        }
        DeviceChoice::Cuda => Ok(tch::Device::Cuda(index)),
        DeviceChoice::Auto if found => Ok(tch::Device::Cuda(index)),
        DeviceChoice::Auto | DeviceChoice::Cpu => Ok(tch::Device::Cpu),
    }
}
