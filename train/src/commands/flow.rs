//! What the commands that train have in common: images, run, bundle, report.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use conceptseg_train::config::TrainConfig;
use conceptseg_train::data::{Dataset, DatasetConfig, ImageFile};
use conceptseg_train::distributed::Communicator;
use conceptseg_train::export::bundle::write_bundle;
use conceptseg_train::report;
use conceptseg_train::trainer::{self, Outcome, RunOptions, TrainError};

use crate::progress_bar;

/// Where to train.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum DeviceChoice {
    /// A CUDA device where libtorch finds one (that of `LOCAL_RANK`, else the first), else the
    /// CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// The CUDA device of `LOCAL_RANK`, else the first.
    Cuda,
}

impl DeviceChoice {
    /// The device itself; `index` is that of the CUDA device.
    pub fn device(self, index: usize) -> Result<tch::Device> {
        let found = tch::Cuda::is_available();
        match self {
            Self::Cuda if !found => {
                bail!(
                    "libtorch finds no CUDA device; use --device cpu, or install a CUDA build of torch"
                )
            }
            Self::Cuda => Ok(tch::Device::Cuda(index)),
            Self::Auto if found => Ok(tch::Device::Cuda(index)),
            Self::Auto | Self::Cpu => Ok(tch::Device::Cpu),
        }
    }
}

/// Makes the folder of the bundle: a run of hours must not end at one that cannot be written.
pub fn make_folder(out: &Path) -> Result<()> {
    std::fs::create_dir_all(out)
        .and_then(|()| tempfile::tempfile_in(out).map(drop))
        .with_context(|| format!("cannot write to {}; choose another --out", out.display()))
}

/// The folder of the log: the one given, or `<out>-log`.
pub fn log_dir(out: &Path, given: Option<&Path>) -> PathBuf {
    given.map_or_else(
        || {
            // Without the slash that a shell's completion leaves.
            let mut name = out.components().collect::<PathBuf>().into_os_string();
            name.push("-log");
            name.into()
        },
        Path::to_owned,
    )
}

/// Where the images lie.
pub fn paths(files: Vec<ImageFile>) -> Vec<PathBuf> {
    files.into_iter().map(|file| file.path).collect()
}

/// Reads and segments the images.
pub fn load(config: &TrainConfig, images: &[PathBuf]) -> Result<Arc<Dataset>> {
    let bar = progress_bar(images.len() as u64, "images read and segmented");
    let settings = DatasetConfig {
        short_side: config.data.short_side,
        segments: config.segments.clone(),
        memory_limit_mb: config.data.memory_limit_mb,
    };
    let dataset = Dataset::load(images.to_vec(), settings, &|_, _| bar.inc(1)).map(Arc::new)?;
    bar.finish_and_clear();
    Ok(dataset)
}

/// A run with everything that it needs.
pub struct Flow<'a> {
    /// The recipe.
    pub config: &'a TrainConfig,
    /// The images, for the statistics of the concepts.
    pub images: &'a [PathBuf],
    /// The same images, read.
    pub dataset: &'a Arc<Dataset>,
    /// First weights; random ones where absent.
    pub weights: Option<&'a Path>,
    /// Folder of the bundle, which exists.
    pub out: &'a Path,
    /// Folder of the log.
    pub log_dir: &'a Path,
    /// Where to train.
    pub device: tch::Device,
    /// Continue from the checkpoint in the log folder.
    pub resume: bool,
    /// The processes that train together; `None` for one on its own.
    pub processes: Option<&'a dyn Communicator>,
}

impl Flow<'_> {
    /// Trains, writes the bundle and the report. Whether the run came to its end; otherwise
    /// `stop` was set, and how to continue has been said.
    pub fn run(&self, stop: &AtomicBool) -> Result<bool> {
        let (config, device) = (self.config, self.device);
        tracing::info!("{} images, training on {device:?}", self.images.len());
        let options = RunOptions {
            backbone: self.weights,
            log_dir: self.log_dir,
            device,
            resume: self.resume,
            stop,
            processes: self.processes,
        };
        let trained = match trainer::train(config, self.dataset, &options) {
            Ok(Outcome::Finished(trained)) => trained,
            Err(stopped @ TrainError::Stopped) => {
                eprintln!("{stopped}");
                return Ok(false);
            }
            Err(error) => return Err(error.into()),
            Ok(Outcome::Interrupted { step, checkpoint }) => {
                eprintln!(
                    "stopped after step {step} of {}; {} holds the run: repeat the command with \
                     --resume to continue",
                    config.optimizer.iterations,
                    checkpoint.display()
                );
                return Ok(false);
            }
        };
        if self.processes.is_some_and(|all| all.rank() != 0) {
            return Ok(true);
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
        write_bundle(self.out, config, &trained, self.images, &statistics)?;

        let bar =
            progress_bar(self.dataset.len().min(report::IMAGES) as u64, "images for the report");
        let source = report::Source {
            config,
            dataset: self.dataset,
            trained: &trained,
            weights: self.weights,
            device,
            bundle: self.out,
            log_dir: self.log_dir,
        };
        // The bundle is what counts.
        match report::write(&source, &|| bar.inc(1)) {
            Ok(page) => tracing::info!("report: {}", page.display()),
            Err(error) => tracing::warn!("the bundle has no report: {error:#}"),
        }
        bar.finish_and_clear();
        Ok(true)
    }
}
