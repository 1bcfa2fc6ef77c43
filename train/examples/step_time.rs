//! Times training steps on random images, for comparison with the same steps in `PyTorch`.
//!
//! The first steps are not timed. With `--out` the file holds, for `benchmarks/eager.py`, the
//! batches, every variable before the first and after the last of these steps, and their losses.
//! One line of JSON goes to standard output: losses, and seconds of every timed step. How the two
//! sides are run beside each other: `benchmarks/step_time.py`.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, ValueEnum};
use conceptseg_train::config::TrainConfig;
use conceptseg_train::data::Batch;
use conceptseg_train::data::loader::ExtraViews;
use conceptseg_train::losses::dictionary::Dictionary;
use conceptseg_train::losses::memory::MemoryBank;
use conceptseg_train::network::Network;
use conceptseg_train::objective::{self, Objective};
use conceptseg_train::state::{DICTIONARY, TrainState};
use rand::{RngExt as _, SeedableRng as _};
use rand_pcg::Pcg64;
use serde_json::json;
use tch::nn::VarStore;
use tch::{Cuda, Device, Kind, Tensor, no_grad};

/// Times training steps on random images with random weights and prints one line of JSON.
#[derive(Debug, Parser)]
struct Args {
    /// Recipe, one of `configs/`.
    #[arg(long)]
    config: PathBuf,
    /// Images in a batch, instead of the recipe's.
    #[arg(long)]
    batch: Option<usize>,
    /// Side of a view in pixels, instead of the recipe's.
    #[arg(long)]
    crop: Option<u32>,
    /// Segments of each image.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=1024))]
    segments: u16,
    /// Different batches, which are taken in turn.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    batches: u32,
    /// Steps before the timed ones.
    #[arg(long, default_value_t = 4)]
    checked: u64,
    /// Timed steps.
    #[arg(long, default_value_t = 8)]
    steps: u64,
    /// Where the tensors live.
    #[arg(long, value_enum, default_value_t = Place::Cpu)]
    device: Place,
    /// File for `benchmarks/eager.py`.
    #[arg(long)]
    out: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Place {
    Cpu,
    Cuda,
}

/// Learning rate: small, so that rounding does not grow in a network with random weights until the
/// compared steps part. The time of a step does not depend on it.
const RATE: f64 = 1e-5;

/// Losses of a step in the order of `LOSSES`, and its seconds in the order of `PHASES`.
struct Measured {
    losses: [f64; 5],
    seconds: [f64; 4],
}

const LOSSES: [&str; 5] = ["total", "local", "quantization", "cooccurrence", "gradient_norm"];
const PHASES: [&str; 4] = ["forward", "loss", "backward", "update"];

fn main() -> Result<()> {
    let args = Args::parse();
    let mut config = TrainConfig::read(&args.config)?;
    config.data.batch = args.batch.unwrap_or(config.data.batch);
    config.data.crop = args.crop.unwrap_or(config.data.crop);
    (config.optimizer.lr, config.optimizer.warmup) = (RATE, 0);
    config.check()?;
    ensure!(
        config.views.extra == 0 && config.teacher.momentum == 0.0,
        "step_time runs recipes without views.extra and teacher.momentum"
    );
    let device = match args.device {
        Place::Cpu => Device::Cpu,
        Place::Cuda => {
            ensure!(Cuda::is_available(), "libtorch finds no CUDA device; use --device cpu");
            Device::Cuda(0)
        }
    };
    let mut rng = Pcg64::seed_from_u64(config.seed);
    let batches: Vec<Batch> =
        (0..args.batches).map(|i| random_batch(&config, i, args.segments, &mut rng)).collect();
    let mut state = start(&config, &batches, &mut rng, device)?;

    let before = variables(&state);
    let mut step = || one_step(&config, &mut state, &batches, device);
    let checked = (0..args.checked).map(|_| step()).collect::<Result<Vec<_>>>()?;
    if let Some(path) = &args.out {
        write(path, &config, &batches, &before, &variables(&state), &checked)?;
    }
    let mut step = || one_step(&config, &mut state, &batches, device);
    let timed = (0..args.steps).map(|_| step()).collect::<Result<Vec<_>>>()?;

    let phase = |i: usize| timed.iter().map(|step| step.seconds[i]).collect::<Vec<_>>();
    let seconds: serde_json::Map<_, _> =
        PHASES.iter().enumerate().map(|(i, name)| ((*name).to_owned(), json!(phase(i)))).collect();
    let losses: Vec<_> = checked.iter().map(|step| step.losses).collect();
    let threads = tch::get_num_threads();
    println!(
        "{}",
        json!({ "threads": threads, "losses_of": LOSSES, "losses": losses, "seconds": seconds })
    );
    Ok(())
}

/// Views of noise, cut into the cells nearest to random points.
fn random_batch(config: &TrainConfig, number: u32, segments: u16, rng: &mut Pcg64) -> Batch {
    let size = config.data.crop;
    let images = config.data.batch as u32;
    let area = (size * size) as usize;
    let views = 2 * images as usize;
    let mut ids = Vec::with_capacity(views * area);
    for _ in 0..views {
        let mut coordinate = || rng.random_range(0.0..size as f32);
        let points: Vec<(u16, f32, f32)> =
            (0..segments).map(|id| (id, coordinate(), coordinate())).collect();
        for pixel in 0..size * size {
            let (x, y) = ((pixel % size) as f32, (pixel / size) as f32);
            let distance = |p: &(u16, f32, f32)| (p.1 - x).powi(2) + (p.2 - y).powi(2);
            let nearest = points.iter().min_by(|a, b| distance(a).total_cmp(&distance(b)));
            ids.extend(nearest.map(|point| point.0));
        }
    }
    let index: Vec<u32> = (number * images..(number + 1) * images).collect();
    Batch {
        size,
        images: (0..views * 3 * area).map(|_| rng.random_range(-1.0..1.0)).collect(),
        ids,
        image_index: index.clone(),
        second_index: index,
        extra: ExtraViews::default(),
    }
}

/// The state before step 0, with a dictionary from the segments of all `batches`.
fn start(
    config: &TrainConfig,
    batches: &[Batch],
    rng: &mut Pcg64,
    device: Device,
) -> Result<TrainState> {
    let network = Network::new(&VarStore::new(device), &config.network, config.seed)?;
    let (count, dim) = (config.dictionary.concepts, network.dim());
    let noise: Vec<f32> = (0..count * dim).map(|_| rng.random_range(-1.0..1.0)).collect();
    let codebook = Tensor::from_slice(&noise).view([count, dim]).to_device(device);
    let usage = vec![1.0 / count as f64; count as usize];
    let settings = config.dictionary.clone();
    let dictionary = Dictionary::restore(&codebook, usage, 0, settings.clone(), config.seed)?;
    let memory = || MemoryBank::new(config.memory_batches);
    let state = TrainState::assemble(config, network, dictionary, memory());
    let segments = batches
        .iter()
        .map(|batch| {
            let found = no_grad(|| objective::compute(config, &state, batch, device, None))?;
            Ok(found.parts.entry.z)
        })
        .collect::<Result<Vec<_>>>()?;
    let dictionary = Dictionary::init_kmeans(&Tensor::cat(&segments, 0), settings, config.seed)?;
    Ok(TrainState::assemble(config, state.network, dictionary, memory()))
}

/// What the trainer does in a step, without reading the batch and writing the log.
fn one_step(
    config: &TrainConfig,
    state: &mut TrainState,
    batches: &[Batch],
    device: Device,
) -> Result<Measured> {
    let batch = &batches[state.step as usize % batches.len()];
    let rate = config.optimizer.rate(state.step);
    let begun = Instant::now();
    let Objective { parts, forward, .. } = objective::compute(config, state, batch, device, None)?;
    let [total, local, quantization, cooccurrence] =
        [&parts.total, &parts.local, &parts.quantization, &parts.cooccurrence]
            .map(|loss| loss.double_value(&[]));
    let losses_done = begun.elapsed();
    parts.total.backward();
    let norm = state.sgd.gradient_norm();
    let backward_done = begun.elapsed();
    state.sgd.step(rate, config.optimizer.momentum, config.optimizer.clip(norm));
    state.dictionary.renormalise();
    state.dictionary.observe(&parts.code_use);
    let replaced = state.dictionary.revive(&parts.entry.z, state.step);
    state.sgd.forget_rows(DICTIONARY, &replaced);
    state.memory.push(parts.entry);
    state.step += 1;
    if device.is_cuda() {
        Cuda::synchronize(0);
    }
    let all = begun.elapsed();
    let ends = [forward, losses_done, backward_done, all].map(|end| end.as_secs_f64());
    Ok(Measured {
        losses: [total, local, quantization, cooccurrence, norm],
        seconds: [ends[0], ends[1] - ends[0], ends[2] - ends[1], ends[3] - ends[2]],
    })
}

/// Copies of all variables of the network and of the dictionary.
fn variables(state: &TrainState) -> Vec<(String, Tensor)> {
    let mut all: Vec<(String, Tensor)> =
        state.network.parameters().into_iter().map(|p| (p.name, p.tensor)).collect();
    all.push((DICTIONARY.to_owned(), state.dictionary.codebook.shallow_clone()));
    for (_, tensor) in &mut all {
        *tensor = tensor.detach().to_device(Device::Cpu).copy();
    }
    all
}

/// Writes what `eager.py` reads.
fn write(
    path: &Path,
    config: &TrainConfig,
    batches: &[Batch],
    before: &[(String, Tensor)],
    after: &[(String, Tensor)],
    checked: &[Measured],
) -> Result<()> {
    let mut all = Vec::new();
    for (i, batch) in batches.iter().enumerate() {
        let side = i64::from(batch.size);
        let ids: Vec<i64> = batch.ids.iter().map(|id| i64::from(*id)).collect();
        let index: Vec<i64> = batch.image_index.iter().map(|id| i64::from(*id)).collect();
        let images = Tensor::from_slice(&batch.images).view([-1, 3, side, side]);
        all.push((format!("images.{i}"), images));
        all.push((format!("ids.{i}"), Tensor::from_slice(&ids).view([-1, side, side])));
        all.push((format!("index.{i}"), Tensor::from_slice(&index)));
    }
    for (when, variables) in [("before", before), ("after", after)] {
        for (name, tensor) in variables {
            all.push((format!("{when}.{name}"), tensor.shallow_clone()));
        }
    }
    let losses: Vec<f64> = checked.iter().flat_map(|step| step.losses).collect();
    let losses = Tensor::from_slice(&losses).view([-1, LOSSES.len() as i64]);
    all.push(("losses".to_owned(), losses.to_kind(Kind::Double)));
    // The format's own metadata cannot be written through tch.
    all.push(("config".to_owned(), Tensor::from_slice(&serde_json::to_vec(config)?)));
    Tensor::write_safetensors(&all, path)
        .with_context(|| format!("cannot write {}; check that its folder exists", path.display()))
}
