//! One training run: start, loop, end.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor, no_grad};

use crate::config::{HeadStart, TrainConfig};
use crate::data::Dataset;
use crate::data::loader::{Batch, Loader, LoaderConfig};
use crate::losses::dictionary::Dictionary;
use crate::losses::memory::MemoryBank;
use crate::losses::segments::{self, Segments};
use crate::losses::{self, LossError};
use crate::network::pretrained::{LoadReport, PretrainedError, load_backbone};
use crate::network::{Network, NetworkError, Part};
use crate::optimizer::Sgd;
use crate::tensorboard::ScalarLog;
use crate::whitening::Moments;

/// Why a run ended early.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The network could not be made.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The backbone's weights could not be loaded.
    #[error(transparent)]
    Pretrained(#[from] PretrainedError),
    /// The images could not be read.
    #[error(transparent)]
    Data(#[from] crate::data::DataError),
    /// The losses refused a batch.
    #[error(transparent)]
    Loss(#[from] LossError),
    /// The loss log could not be written.
    #[error("cannot write the loss log in {dir}: {source}")]
    Log {
        /// Folder of the log.
        dir: PathBuf,
        /// What the file system answered.
        source: std::io::Error,
    },
    /// The loss is not a number any more.
    #[error("the loss is {value} at step {step}; lower optimizer.lr or add optimizer.warmup")]
    Diverged {
        /// The step, from 0.
        step: u64,
        /// The loss.
        value: f64,
    },
}

/// What a finished run leaves.
pub struct Trained {
    /// The network with its variables.
    pub network: Network,
    /// The concept dictionary.
    pub dictionary: Dictionary,
    /// What was loaded from the backbone's file; `None` for a random start.
    pub loaded: Option<LoadReport>,
    /// Wall time of the loop in seconds.
    pub seconds: f64,
    /// Mean of the total loss over the first and the last tenth of the steps.
    pub loss_start_end: (f64, f64),
}

/// Steps whose figures are averaged for one line of the log.
const LOG_EVERY: u64 = 10;
/// Batches from which the whitening start takes its moments.
const WHITENING_BATCHES: u64 = 16;
/// Batch numbers from here on are only used before step 0, so that no batch of the run
/// is seen twice.
const START_BATCHES: u64 = 1 << 40;

/// Trains with `config` on the images of `dataset`, from the weights in `backbone` or from
/// random ones, and logs to `log_dir`.
///
/// # Errors
/// [`TrainError`].
pub fn train(
    config: &TrainConfig,
    dataset: &Arc<Dataset>,
    backbone: Option<&Path>,
    log_dir: &Path,
    device: Device,
) -> Result<Trained, TrainError> {
    tch::manual_seed(config.seed as i64);
    let store = VarStore::new(device);
    let network = Network::new(&store, &config.network)?;
    let loaded = backbone.map(|path| load_backbone(&network, path)).transpose()?;
    let mut start = Loader::new(dataset, &loader_config(config, START_BATCHES))?;
    if config.head_start == HeadStart::Whitening {
        start_head(&network, &mut start, device)?;
    }
    let mut dictionary = start_dictionary(config, &network, &mut start, device)?;
    drop(start);
    let mut memory = MemoryBank::new(config.memory_batches);
    let (mut sgd, dictionary_place) = optimizer(config, &network, &dictionary);
    let mut loader = Loader::new(dataset, &loader_config(config, 0))?;

    let mut log = Log::open(log_dir, config.optimizer.iterations)?;
    let begun = Instant::now();
    for step in 0..config.optimizer.iterations {
        let batch = loader.next_batch()?;
        let waited = log.input_done();
        let views = ViewTensors::new(&batch, device);
        let output = network.forward(&views.images, true);
        let parts = losses::compute(
            &config.loss,
            &output,
            &views.ids,
            &views.image_ids,
            &dictionary,
            &memory,
            step,
        )?;
        let total = parts.total.double_value(&[]);
        if !total.is_finite() {
            return Err(TrainError::Diverged { step, value: total });
        }
        parts.total.backward();
        let rate = config.optimizer.rate(step);
        sgd.step(rate, config.optimizer.momentum);
        dictionary.renormalise();
        dictionary.observe(&parts.code_use);
        let replaced = dictionary.revive(&parts.entry.z, step);
        sgd.forget_rows(dictionary_place, &replaced);
        let figures = [
            ("loss/total", total),
            ("loss/local", parts.local.double_value(&[])),
            ("loss/quantization", parts.quantization.double_value(&[])),
            ("loss/cooccurrence", parts.cooccurrence.double_value(&[])),
            ("concepts/used", parts.stats.codes_used as f64),
            ("concepts/perplexity", parts.stats.perplexity),
            ("concepts/replaced", replaced.len() as f64),
            ("segments", parts.stats.segments as f64),
            ("rate", rate),
            ("seconds/input", waited),
        ];
        memory.push(parts.entry);
        log.step(step, &figures)?;
    }
    let loss_start_end = log.finish();
    Ok(Trained {
        network,
        dictionary,
        loaded,
        seconds: begun.elapsed().as_secs_f64(),
        loss_start_end,
    })
}

/// A batch on the device.
struct ViewTensors {
    images: Tensor,
    ids: Tensor,
    image_ids: Vec<i64>,
}

impl ViewTensors {
    fn new(batch: &Batch, device: Device) -> Self {
        let views = 2 * batch.image_index.len() as i64;
        let side = i64::from(batch.size);
        let ids: Vec<i32> = batch.ids.iter().map(|&id| i32::from(id)).collect();
        Self {
            images: Tensor::from_slice(&batch.images)
                .view([views, 3, side, side])
                .to_device(device),
            ids: Tensor::from_slice(&ids)
                .view([views, side, side])
                .to_device(device)
                .to_kind(Kind::Int64),
            image_ids: batch.image_index.iter().map(|&i| i64::from(i)).collect(),
        }
    }
}

/// Starts the linear projection as whitened principal components of the backbone's
/// features on the training views.
fn start_head(network: &Network, loader: &mut Loader, device: Device) -> Result<(), TrainError> {
    let mut moments: Option<Moments> = None;
    let bar = start_bar(WHITENING_BATCHES, "batches for the start of the head");
    for _ in 0..WHITENING_BATCHES {
        bar.inc(1);
        let views = ViewTensors::new(&loader.next_batch()?, device);
        let maps = no_grad(|| network.head_input(&views.images));
        moments.get_or_insert_with(|| Moments::new(maps.size()[1])).add(&maps);
    }
    bar.finish_and_clear();
    if let Some(moments) = moments {
        let (weight, bias) = moments.projection(network.dim());
        network.set_projection(&weight, &bias);
    }
    Ok(())
}

/// Gathers segments with the network as it starts and clusters them to the first dictionary.
fn start_dictionary(
    config: &TrainConfig,
    network: &Network,
    loader: &mut Loader,
    device: Device,
) -> Result<Dictionary, TrainError> {
    let mut gathered = Vec::new();
    let mut count = 0;
    let bar = start_bar(config.start_segments as u64, "segments for the start of the dictionary");
    // Every image has a segment, so this ends; a batch of plain images has few.
    while count < config.start_segments {
        bar.set_position(count as u64);
        let views = ViewTensors::new(&loader.next_batch()?, device);
        let z = no_grad(|| -> Result<Tensor, LossError> {
            // Batch statistics here would move the running averages of a network that
            // has not been trained yet.
            let output = network.forward(&views.images, false);
            let pixels = segments::pixels(&output, &views.ids, config.loss.upsample)?;
            let (_, view_image) = segments::distinct_images(&views.image_ids);
            Ok(Segments::pool(&pixels, &view_image).z)
        })?;
        count += z.size()[0];
        gathered.push(z);
    }
    bar.finish_and_clear();
    let all = Tensor::cat(&gathered, 0);
    Ok(Dictionary::init_kmeans(&all, config.dictionary.clone(), config.seed)?)
}

/// A bar for what comes before step 0.
fn start_bar(length: u64, what: &'static str) -> ProgressBar {
    let bar = ProgressBar::new(length).with_message(what);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}") {
        bar.set_style(style);
    }
    bar
}

/// Groups as in method section 3: weights and biases of backbone and head, dictionary.
/// Second value: place of the dictionary.
fn optimizer(config: &TrainConfig, network: &Network, dictionary: &Dictionary) -> (Sgd, usize) {
    let settings = &config.optimizer;
    let mut sgd = Sgd::default();
    for parameter in network.parameters() {
        let frozen = settings.freeze_early && matches!(parameter.part, Part::Stem | Part::Stage(1));
        if !parameter.trainable || frozen {
            let _ = parameter.tensor.set_requires_grad(false);
            continue;
        }
        let mut rate = match parameter.part {
            Part::Head => settings.head_multiplier,
            Part::Stem | Part::Stage(_) => 1.0,
        };
        let mut decay = settings.weight_decay;
        if parameter.bias {
            rate *= settings.bias_multiplier;
            decay = 0.0;
        }
        sgd.add(&parameter.tensor, rate, decay);
    }
    let place = sgd.add(&dictionary.codebook, settings.dictionary_multiplier, 0.0);
    (sgd, place)
}

fn loader_config(config: &TrainConfig, first_batch: u64) -> LoaderConfig {
    let (mean, std) = config.network.preset.normalization();
    LoaderConfig {
        batch: config.data.batch,
        crop: config.data.crop,
        views: config.views.clone(),
        mean,
        std,
        seed: config.seed,
        threads: config.data.threads,
        first_batch,
    }
}

/// Progress bar, event file, and the averages between two lines of it.
struct Log {
    bar: ProgressBar,
    events: ScalarLog,
    dir: PathBuf,
    sums: Vec<(&'static str, f64)>,
    gathered: u64,
    totals: Vec<f64>,
    step_begun: Instant,
}

impl Log {
    fn open(dir: &Path, steps: u64) -> Result<Self, TrainError> {
        let events = ScalarLog::create(dir)
            .map_err(|source| TrainError::Log { dir: dir.to_owned(), source })?;
        let bar = ProgressBar::with_draw_target(Some(steps), ProgressDrawTarget::stderr());
        if let Ok(style) =
            ProgressStyle::with_template("{bar:30} {pos}/{len} steps, {eta} left, {msg}")
        {
            bar.set_style(style);
        }
        Ok(Self {
            bar,
            events,
            dir: dir.to_owned(),
            sums: Vec::new(),
            gathered: 0,
            totals: Vec::new(),
            step_begun: Instant::now(),
        })
    }

    /// Seconds since the last step ended: the time the loop waited for input.
    fn input_done(&self) -> f64 {
        self.step_begun.elapsed().as_secs_f64()
    }

    fn step(&mut self, step: u64, figures: &[(&'static str, f64)]) -> Result<(), TrainError> {
        let seconds = [("seconds/step", self.step_begun.elapsed().as_secs_f64())];
        self.step_begun = Instant::now();
        for (i, &(tag, value)) in figures.iter().chain(&seconds).enumerate() {
            match self.sums.get_mut(i) {
                Some(sum) => sum.1 += value,
                None => self.sums.push((tag, value)),
            }
        }
        self.totals.extend(figures.iter().find(|f| f.0 == "loss/total").map(|f| f.1));
        self.gathered += 1;
        self.bar.inc(1);
        if self.gathered == LOG_EVERY {
            let n = self.gathered as f64;
            let means: Vec<(&str, f64)> = self.sums.iter().map(|&(t, v)| (t, v / n)).collect();
            self.events
                .add(step + 1, &means)
                .map_err(|source| TrainError::Log { dir: self.dir.clone(), source })?;
            let text: Vec<String> = means
                .iter()
                .filter(|(tag, _)| tag.starts_with("loss/") || *tag == "concepts/used")
                .map(|(tag, v)| format!("{} {v:.3}", tag.rsplit('/').next().unwrap_or(tag)))
                .collect();
            self.bar.set_message(text.join(" "));
            if self.bar.is_hidden() {
                tracing::info!("step {}: {}", step + 1, text.join(" "));
            }
            self.sums.clear();
            self.gathered = 0;
        }
        Ok(())
    }

    /// Ends the bar; mean loss over the first and the last tenth of the steps.
    fn finish(self) -> (f64, f64) {
        self.bar.finish_and_clear();
        let tenth = self.totals.len().div_ceil(10);
        let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len().max(1) as f64;
        let from = self.totals.len() - tenth;
        (mean(&self.totals[..tenth]), mean(&self.totals[from..]))
    }
}
