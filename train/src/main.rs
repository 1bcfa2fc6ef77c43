//! The `conceptseg-train` command: from unlabelled images to a model bundle.

mod commands;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Parser, Subcommand, ValueEnum};
use conceptseg::bundle::{Bundle, BundleWriter, Codebook, Provenance, SizeRule};
use conceptseg_train::config::TrainConfig;
use conceptseg_train::data::{Dataset, DatasetConfig};
use conceptseg_train::export::check::compare_on_images;
use conceptseg_train::export::onnx::{ExportSize, export_onnx};
use conceptseg_train::interrupt::{self, INTERRUPTED};
use conceptseg_train::trainer::{self, Outcome, RunOptions, Trained};
use conceptseg_train::vocabulary;
use indicatif::ProgressBar;

use commands::image_args::ImageArgs;

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
    /// Train and write a model bundle.
    Train(TrainArgs),
    /// Make the pseudo segments of images ahead of training, and pictures of them.
    Segments(commands::segments::Args),
    /// Write a trained network as an ONNX file in single, half or 8-bit precision.
    Export(commands::export::Args),
    /// Print a recipe with all of its keys, those absent from the file with their defaults.
    Config {
        /// Recipe to read; the paper's where none is given.
        recipe: Option<PathBuf>,
    },
}

#[derive(Debug, clap::Args)]
struct TrainArgs {
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
    /// The first CUDA device where libtorch finds one, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// The first CUDA device.
    Cuda,
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
        Command::Train(args) => train(&args),
        Command::Segments(args) => commands::segments::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Export(args) => commands::export::run(&args).map(|()| ExitCode::SUCCESS),
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

fn train(args: &TrainArgs) -> Result<ExitCode> {
    let mut config = TrainConfig::read(&args.config)?;
    if let Some(iterations) = args.iterations {
        config.optimizer.iterations = iterations;
    }
    if let Some(seed) = args.seed {
        config.seed = seed;
    }
    config.check()?;
    let device = device(args.device)?;
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
    let stop = interrupt::stop_flag().context("cannot listen for Ctrl-C")?;
    let options = RunOptions {
        backbone: args.backbone.as_deref(),
        log_dir: &log_dir,
        device,
        resume: args.resume,
        stop: &stop,
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
    write_bundle(args, &config, &trained, &images)?;
    Ok(ExitCode::SUCCESS)
}

fn device(choice: DeviceChoice) -> Result<tch::Device> {
    let found = tch::Cuda::is_available();
    match choice {
        DeviceChoice::Cuda if !found => {
            bail!(
                "libtorch finds no CUDA device; use --device cpu, or install a CUDA build of torch"
            )
        }
        DeviceChoice::Cuda => Ok(tch::Device::Cuda(0)),
        DeviceChoice::Auto if found => Ok(tch::Device::Cuda(0)),
        DeviceChoice::Auto | DeviceChoice::Cpu => Ok(tch::Device::Cpu),
    }
}

/// Most images over which the concepts' statistics are gathered.
const STATISTICS_IMAGES: usize = 2000;
/// Largest difference allowed between the exported and the trained network.
const EXPORT_TOLERANCE: f64 = 1e-4;

fn write_bundle(
    args: &TrainArgs,
    config: &TrainConfig,
    trained: &Trained,
    images: &[PathBuf],
) -> Result<()> {
    let work = tempfile::tempdir_in(&args.out)?;
    let onnx = work.path().join("embedder.onnx");
    let size = match config.export_size {
        SizeRule::Dynamic => ExportSize::Dynamic,
        SizeRule::Fixed([height, width]) => ExportSize::Fixed { height, width },
    };
    export_onnx(&trained.network, &onnx, size)?;
    let difference = compare_on_images(&trained.network, &onnx, size, images, 4)?;
    ensure!(
        difference <= EXPORT_TOLERANCE,
        "the exported network differs from the trained one by {difference:.1e}"
    );
    tracing::info!("exported network agrees with the trained one to {difference:.1e}");

    let codebook = codebook(&trained.dictionary.codebook)?;
    let count = codebook.count;
    let (mean, std) = config.network.preset.normalization();
    let backbone = if trained.pretrained {
        config.provenance.backbone.clone()
    } else {
        "random weights".to_owned()
    };
    let mut provenance = Provenance {
        producer: format!("conceptseg-train {}", env!("CARGO_PKG_VERSION")),
        backbone,
        images: config.provenance.images.clone(),
        licence: config.provenance.licence.clone(),
        ..Provenance::default()
    };
    for (key, value) in [
        ("steps", config.optimizer.iterations.to_string()),
        ("seed", config.seed.to_string()),
        ("images", images.len().to_string()),
    ] {
        provenance.details.insert(key.to_owned(), value);
    }
    let writer = BundleWriter::new(&config.name, trained.network.stride(), mean, std)
        .size(config.export_size)
        .provenance(provenance);
    // The statistics are those of the runtime on this very network, so a bundle without
    // them is made first, in the work folder.
    let bare = work.path().join("bundle");
    writer.write(&bare, &onnx, &codebook)?;
    let step = images.len().div_ceil(STATISTICS_IMAGES).max(1);
    let sample: Vec<PathBuf> = images.iter().step_by(step).cloned().collect();
    let bar = progress_bar(sample.len() as u64, "images for the statistics of the concepts");
    let observed = vocabulary::observe(&bare, &sample, config.data.short_side, &bar)?;
    bar.finish_and_clear();
    tracing::info!(
        "{} of {} concepts occur, perplexity {:.0}",
        observed.used,
        count,
        observed.perplexity
    );
    writer.write(&args.out, &onnx, &observed.codebook)?;
    Bundle::open(&args.out)?;
    println!("{}", args.out.display());
    Ok(())
}

fn codebook(rows: &tch::Tensor) -> Result<Codebook> {
    let (count, dim) = rows.size2()?;
    let values = Vec::<f32>::try_from(rows.detach().to_device(tch::Device::Cpu).reshape([-1]))?;
    Codebook::new(count as usize, dim as usize, values).map_err(anyhow::Error::msg)
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
