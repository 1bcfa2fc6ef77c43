//! `learn`: from own footage to a model bundle, with settings made for machine and footage.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use conceptseg::bundle::Bundle;
use conceptseg_train::config::{HeadStart, TrainConfig};
use conceptseg_train::data::Dataset;
use conceptseg_train::data::sources::{ImageSource, SourceKind};
use conceptseg_train::interrupt::{self, INTERRUPTED};
use conceptseg_train::trainer::{self, Outcome, RunOptions, TrainError};
use indicatif::HumanDuration;
use tch::Device;

use super::flow::{self, DeviceChoice, Flow};
use super::image_args::Selection;

/// The recipe from which the settings are made.
const RECIPE: &str = include_str!("../../../configs/edge-mobilenetv2.toml");
/// Name of the recipe in the log folder.
const RECIPE_FILE: &str = "recipe.toml";
/// Folder of the starter bundle in the repository.
const STARTER: &str = "models/starter";
/// Share of the time that is left for the start before and the export after the steps.
const OTHER_SHARE: f64 = 0.15;
/// Steps that are always taken, and the paper's number, beyond which more hardly help.
const STEPS: (u64, u64) = (20, 5000);
/// Segments from which the first dictionary is made while the speed is measured.
const MEASURED_SEGMENTS: i64 = 64;

/// Options of `learn`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Videos, images, folders of images (searched in depth) or data sets as KIND:PATH, such as
    /// `video:recordings` for a folder of videos.
    #[arg(required = true, num_args = 1.., value_name = "FOOTAGE")]
    footage: Vec<ImageSource>,
    #[command(flatten)]
    selection: Selection,
    /// Folder of the bundle to write.
    #[arg(long)]
    out: PathBuf,
    /// Bundle, or checkpoint of a run with the same network, to go on from; the starter bundle
    /// where absent.
    #[arg(long, value_name = "BUNDLE", conflicts_with = "backbone")]
    from: Option<PathBuf>,
    /// Pretrained MobileNetV2 to start from instead, safetensors or .pth.
    #[arg(long, value_name = "FILE")]
    backbone: Option<PathBuf>,
    /// Minutes that the whole may take; the number of steps is chosen to fit.
    #[arg(long, default_value_t = 30.0, conflicts_with = "steps")]
    minutes: f64,
    /// Number of steps, whatever time they take.
    #[arg(long)]
    steps: Option<u64>,
    /// Folder of the log, the recipe, the checkpoint and the report; `<out>-log` where absent.
    #[arg(long)]
    log_dir: Option<PathBuf>,
    /// Continue from the checkpoint in the log folder, with the recipe that is there.
    #[arg(long)]
    resume: bool,
    /// Seed of everything that is random.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Where to train.
    #[arg(long, value_enum, default_value_t = DeviceChoice::Auto)]
    device: DeviceChoice,
}

/// Runs it.
pub fn run(args: &Args) -> Result<ExitCode> {
    let begun = Instant::now();
    ensure!(
        args.minutes > 0.0 && args.minutes <= 1e6,
        "--minutes is {}; give a number above 0",
        args.minutes
    );
    ensure!(args.steps != Some(0), "--steps is 0; give a number above 0");
    let device = args.device.device(0)?;
    let log_dir = flow::log_dir(&args.out, args.log_dir.as_deref());
    let start = start(args)?;
    let made = !args.out.exists();
    flow::make_folder(&args.out)?;
    let images = args.selection.find(&args.footage).map(flow::paths).inspect_err(|_| {
        if made {
            // Empty still; if it stays, that does no harm.
            let _ = fs::remove_dir(&args.out);
        }
    })?;
    let stop = interrupt::stop_flag().context("cannot listen for Ctrl-C")?;
    let recipe = log_dir.join(RECIPE_FILE);
    let (config, dataset) = if args.resume {
        let config = TrainConfig::read(&recipe)
            .context("there is no run to continue; leave out --resume to start one")?;
        let dataset = flow::load(&config, &images)?;
        (config, dataset)
    } else {
        let mut config = settings(args, &start, &images, device)?;
        let dataset = flow::load(&config, &images)?;
        let Some(pace) = measure(&config, &dataset, &start.weights, device, &stop)? else {
            eprintln!("stopped before the first step");
            return Ok(ExitCode::from(INTERRUPTED));
        };
        let budget = Duration::from_secs_f64(args.minutes * 60.0).saturating_sub(begun.elapsed());
        set_steps(&mut config, args.steps.unwrap_or_else(|| steps_within(budget, pace)));
        let steps = config.optimizer.iterations;
        let time = Duration::from_secs_f64(pace * steps as f64 / (1.0 - OTHER_SHARE));
        let why = if args.steps.is_some() {
            String::new()
        } else {
            format!(" (--minutes {}; change it or give --steps)", args.minutes)
        };
        eprintln!(
            "{} images, {steps} steps of {pace:.2} s: about {} to go{why}",
            images.len(),
            HumanDuration(time)
        );
        config.check()?;
        let text = toml::to_string(&config)?;
        fs::create_dir_all(&log_dir)
            .and_then(|()| {
                conceptseg::files::write_atomic(&recipe, |file| file.write_all(text.as_bytes()))
            })
            .with_context(|| format!("cannot write the recipe {}", recipe.display()))?;
        (config, dataset)
    };
    let run = Flow {
        config: &config,
        images: &images,
        dataset: &dataset,
        weights: Some(&start.weights),
        out: &args.out,
        log_dir: &log_dir,
        device,
        resume: args.resume,
        processes: None,
    };
    if !run.run(&stop)? {
        return Ok(ExitCode::from(INTERRUPTED));
    }
    println!("{}", args.out.display());
    println!("\n{}", next_command(&args.footage, &args.out));
    Ok(ExitCode::SUCCESS)
}

/// First weights and what is known of them.
struct Start {
    weights: PathBuf,
    /// Whether they hold the head too.
    whole: bool,
    /// Dimensions of the embedding, where the file says.
    dim: Option<i64>,
    origin: String,
    licence: String,
}

fn start(args: &Args) -> Result<Start> {
    if let Some(file) = &args.backbone {
        fs::File::open(file)
            .with_context(|| format!("cannot read the backbone {}", file.display()))?;
        return Ok(Start {
            weights: file.clone(),
            whole: false,
            dim: None,
            origin: String::new(),
            licence: String::new(),
        });
    }
    let from = match &args.from {
        Some(from) => from.clone(),
        None => starter().context(
            "there is no starter bundle to go on from; give a bundle with --from, or pretrained \
             weights with --backbone",
        )?,
    };
    if from.is_file() {
        return Ok(Start {
            origin: format!("network of {}", from.display()),
            weights: from,
            whole: true,
            dim: None,
            licence: String::new(),
        });
    }
    let bundle = Bundle::open(&from)?;
    let manifest = &bundle.manifest;
    Ok(Start {
        weights: bundle.embedder_path(),
        whole: true,
        dim: Some(manifest.embedder.dim as i64),
        origin: format!(
            "network of the bundle {}, which was learnt from {} and started from {}",
            manifest.name, manifest.provenance.images, manifest.provenance.backbone
        ),
        licence: manifest.provenance.licence.clone(),
    })
}

/// The starter bundle: in the working folder, beside or above the program, or where this
/// program was built.
fn starter() -> Option<PathBuf> {
    let program = std::env::current_exe().ok();
    let above = program.iter().flat_map(|path| path.ancestors().skip(1));
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    [Path::new("")]
        .into_iter()
        .chain(above)
        .chain(built)
        .map(|folder| folder.join(STARTER))
        .find(|folder| folder.join("bundle.toml").is_file())
}

/// The recipe for these images on this machine, but for the number of steps.
fn settings(args: &Args, start: &Start, images: &[PathBuf], device: Device) -> Result<TrainConfig> {
    let mut config: TrainConfig = toml::from_str(RECIPE).context("the built-in recipe")?;
    if let Some(name) = args.out.file_name() {
        config.name = String::from(name.to_string_lossy().trim_end_matches(".bundle"));
    }
    config.seed = args.seed;
    config.head_start = if start.whole { HeadStart::Weights } else { HeadStart::Whitening };
    config.network.dim = start.dim.unwrap_or(config.network.dim);
    // A GPU has the memory and the speed for larger views.
    let (short_side, crop) = match device {
        Device::Cuda(_) => (336, 224),
        _ => (config.data.short_side, config.data.crop),
    };
    let native = images
        .iter()
        .find_map(|path| image::image_dimensions(path).ok())
        .map_or(short_side, |(width, height)| width.min(height));
    let data = &mut config.data;
    data.short_side = short_side.min(native).max(64);
    data.crop = crop.min(data.short_side / 8 * 8);
    data.batch = data.batch.min(images.len()).max(1);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    data.threads = (cores / 2).clamp(1, 8);
    if let Some(free) = free_memory_mb() {
        data.memory_limit_mb = (free / 4).max(64);
    }
    // As many concepts as the images can fill.
    config.dictionary.concepts = config.dictionary.concepts.min((4 * images.len() as i64).max(32));
    // Enough for k-means: more would take longer than a short training itself.
    config.start_segments = config.start_segments.min(10 * config.dictionary.concepts);
    config.provenance.backbone.clone_from(&start.origin);
    config.provenance.licence.clone_from(&start.licence);
    config.provenance.images = format!("{} images of own footage", images.len());
    config.checkpoint.every = 200;
    Ok(config)
}

/// Memory that is free or can be freed, in MiB, where the system says.
fn free_memory_mb() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? / 1024)
}

fn set_steps(config: &mut TrainConfig, steps: u64) {
    config.optimizer.iterations = steps;
    config.optimizer.warmup = config.optimizer.warmup.min(steps / 10);
}

/// Steps that fit into the time.
fn steps_within(time: Duration, pace: f64) -> u64 {
    let steps = (1.0 - OTHER_SHARE) * time.as_secs_f64() / pace.max(1e-9);
    (steps as u64).clamp(STEPS.0, STEPS.1)
}

/// Seconds that a step takes, measured; none when the user stopped it.
fn measure(
    config: &TrainConfig,
    dataset: &Arc<Dataset>,
    weights: &Path,
    device: Device,
    stop: &AtomicBool,
) -> Result<Option<f64>> {
    let mut config = config.clone();
    // The first steps on a GPU take seconds to set up.
    set_steps(&mut config, if device == Device::Cpu { 7 } else { 30 });
    config.start_segments = MEASURED_SEGMENTS.max(config.dictionary.concepts);
    config.checkpoint.every = 0;
    let log = tempfile::tempdir().context("cannot make a folder for temporary files")?;
    tracing::info!("measuring how long a step takes");
    let options = RunOptions {
        backbone: Some(weights),
        log_dir: log.path(),
        device,
        resume: false,
        stop,
        processes: None,
    };
    match trainer::train(&config, dataset, &options) {
        Ok(Outcome::Finished(trained)) => Ok(Some(trained.pace)),
        Ok(Outcome::Interrupted { .. }) | Err(TrainError::Stopped) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The line that shows the new bundle at work.
fn next_command(footage: &[ImageSource], out: &Path) -> String {
    let quoted = |path: &Path| format!("'{}'", path.display().to_string().replace('\'', "'\\''"));
    let video = footage.iter().find(|s| s.kind != SourceKind::Folder || s.path.is_file());
    let video = video.filter(|s| s.path.is_file() && !is_image(&s.path));
    let source = match video {
        Some(video) => format!("filesrc location={} ! decodebin", quoted(&video.path)),
        None => "v4l2src".to_owned(),
    };
    format!(
        "gst-launch-1.0 {source} ! videoconvert ! conceptseg bundle={} ! videoconvert ! autovideosink",
        quoted(out)
    )
}

fn is_image(path: &Path) -> bool {
    image::ImageFormat::from_path(path).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_steps_fit_into_the_time() {
        assert_eq!(steps_within(Duration::from_secs(1000), 1.0), 850);
        assert_eq!(steps_within(Duration::ZERO, 1.0), 20);
        assert_eq!(steps_within(Duration::from_secs(1_000_000), 0.01), 5000);
    }

    #[test]
    fn the_built_in_recipe_is_one() {
        let mut config: TrainConfig = toml::from_str(RECIPE).unwrap();
        set_steps(&mut config, 40);
        assert_eq!((config.optimizer.iterations, config.optimizer.warmup), (40, 4));
        config.check().unwrap();
    }

    #[test]
    fn the_next_command_shows_the_footage() {
        let dir = tempfile::tempdir().unwrap();
        let video = dir.path().join("a b.mp4");
        fs::write(&video, b"").unwrap();
        let line = next_command(&[ImageSource::from(video)], Path::new("my.bundle"));
        assert!(line.contains("a b.mp4' ! decodebin") && line.contains("bundle='my.bundle'"));
        let line = next_command(&[ImageSource::from(dir.path().to_owned())], Path::new("b"));
        assert!(line.starts_with("gst-launch-1.0 v4l2src "), "{line}");
    }
}
