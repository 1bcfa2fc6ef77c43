//! Everything that a training step changes, and how it starts.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tch::nn::VarStore;
use tch::{Device, Kind, Tensor, no_grad};

use crate::config::{HeadStart, TrainConfig};
use crate::data::Dataset;
use crate::data::loader::{Batch, BatchPart, Loader, LoaderConfig};
use crate::losses::dictionary::Dictionary;
use crate::losses::memory::MemoryBank;
use crate::losses::segments::{self, Segments};
use crate::losses::{LossConfig, LossError};
use crate::network::pretrained::{load_backbone, load_network};
use crate::network::{Network, Part};
use crate::optimizer::Sgd;
use crate::progress::start_bar;
use crate::teacher::Teacher;
use crate::trainer::TrainError;
use crate::whitening::Moments;

/// Name of the dictionary among the optimiser's tensors.
pub const DICTIONARY: &str = "dictionary";
/// Batches from which the whitening start takes its moments.
const WHITENING_BATCHES: u64 = 16;
/// Batch numbers from here on are only used before step 0, so that no batch of the run
/// is seen twice.
const START_BATCHES: u64 = 1 << 40;

/// A run between two steps.
///
/// This is all that a checkpoint keeps. No generator of random numbers is part of it: whatever
/// is drawn (first weights, views, order of the images, replaced concepts) is a function of
/// the seed and of the step or the number of the batch.
#[derive(Debug)]
pub struct TrainState {
    /// Steps taken.
    pub step: u64,
    /// Number of the next batch to be read.
    pub next_batch: u64,
    /// Batches passed over because no pixel of theirs belonged to a segment.
    pub void_batches: u64,
    /// Seconds spent in steps.
    pub seconds: f64,
    /// Total loss of every step taken.
    pub totals: Vec<f64>,
    /// Whether the backbone started from a file.
    pub pretrained: bool,
    /// The network with its variables.
    pub network: Network,
    /// The concepts.
    pub dictionary: Dictionary,
    /// Segments of the last batches.
    pub memory: MemoryBank,
    /// The network's moving average, where the recipe asks for one.
    pub teacher: Option<Teacher>,
    /// The optimiser of the network's variables and, as [`DICTIONARY`], of the concepts.
    pub sgd: Sgd,
}

impl TrainState {
    /// The state before step 0: weights from `backbone` or random ones, the head and the
    /// dictionary started on views of the images.
    ///
    /// # Errors
    /// [`TrainError`]; [`TrainError::Stopped`] once `stop` is set.
    pub fn fresh(
        config: &TrainConfig,
        dataset: &Arc<Dataset>,
        backbone: Option<&Path>,
        device: Device,
        stop: &AtomicBool,
    ) -> Result<Self, TrainError> {
        let network = Network::new(&VarStore::new(device), &config.network, config.seed)?;
        if let Some(path) = backbone {
            let loaded = match config.head_start {
                HeadStart::Weights => load_network(&network, path)?,
                HeadStart::Random | HeadStart::Whitening => load_backbone(&network, path)?,
            };
            tracing::info!("weights: {loaded}");
        }
        let mut loader = Loader::new(dataset, &loader_config(config, START_BATCHES))?;
        let mut next = || {
            if stop.load(Ordering::SeqCst) {
                return Err(TrainError::Stopped);
            }
            Ok(ViewTensors::new(&loader.next_batch()?, device))
        };
        if config.head_start == HeadStart::Whitening {
            start_head(&network, &mut next)?;
        }
        let dictionary = start_dictionary(config, &network, &mut next)?;
        let memory = MemoryBank::new(config.memory_batches);
        let mut state = Self::assemble(config, network, dictionary, memory);
        state.teacher = Teacher::start(&config.teacher, &state.network)?;
        state.pretrained = backbone.is_some();
        Ok(state)
    }

    /// Puts a state of step 0, without momentum, together from its parts.
    pub fn assemble(
        config: &TrainConfig,
        network: Network,
        dictionary: Dictionary,
        memory: MemoryBank,
    ) -> Self {
        Self {
            step: 0,
            next_batch: 0,
            void_batches: 0,
            seconds: 0.0,
            totals: Vec::new(),
            pretrained: false,
            sgd: optimizer(config, &network, &dictionary),
            network,
            dictionary,
            memory,
            teacher: None,
        }
    }
}

/// A batch on the device.
pub(crate) struct ViewTensors {
    /// `[2B, 3, size, size]`, normalised.
    pub images: Tensor,
    /// `[2B, size, size]` segment ids, 64 bit.
    pub ids: Tensor,
    /// `[B]` indices into the data set.
    pub image_ids: Vec<i64>,
}

impl ViewTensors {
    pub fn new(batch: &Batch, device: Device) -> Self {
        let (images, ids) = tensors(&batch.images, &batch.ids, batch.size, device);
        let image_ids = batch.image_index.iter().map(|&i| i64::from(i)).collect();
        Self { images, ids, image_ids }
    }

    /// Images and ids, as above, of the further views.
    pub fn of_extra(batch: &Batch, device: Device) -> (Tensor, Tensor) {
        tensors(&batch.extra.images, &batch.extra.ids, batch.extra.size, device)
    }
}

fn tensors(images: &[f32], ids: &[u16], size: u32, device: Device) -> (Tensor, Tensor) {
    let side = i64::from(size);
    let ids: Vec<i32> = ids.iter().map(|&id| i32::from(id)).collect();
    let images = Tensor::from_slice(images).view([-1, 3, side, side]).to_device(device);
    let ids = Tensor::from_slice(&ids).view([-1, side, side]).to_device(device);
    (images, ids.to_kind(Kind::Int64))
}

/// How batches from number `first_batch` on are made.
pub(crate) fn loader_config(config: &TrainConfig, first_batch: u64) -> LoaderConfig {
    let (mean, std) = config.network.preset.normalization();
    LoaderConfig {
        batch: config.data.batch,
        crop: config.data.crop,
        views: config.views.clone(),
        footage: config.footage.clone(),
        mean,
        std,
        seed: config.seed,
        threads: config.data.threads,
        first_batch,
        part: BatchPart::default(),
    }
}

/// Where the views before step 0 come from.
type NextViews<'a> = dyn FnMut() -> Result<ViewTensors, TrainError> + 'a;

/// Starts the linear projection as whitened principal components of the backbone's
/// features on the training views.
fn start_head(network: &Network, next: &mut NextViews<'_>) -> Result<(), TrainError> {
    let mut moments: Option<Moments> = None;
    let bar = start_bar(WHITENING_BATCHES, "batches for the start of the head");
    for _ in 0..WHITENING_BATCHES {
        bar.inc(1);
        let views = next()?;
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
    next: &mut NextViews<'_>,
) -> Result<Dictionary, TrainError> {
    let mut gathered = Vec::new();
    let mut count = 0;
    let mut void = 0;
    let bar = start_bar(config.start_segments as u64, "segments for the start of the dictionary");
    while count < config.start_segments {
        bar.set_position(count as u64);
        let views = next()?;
        match no_grad(|| view_segments(network, &views, &config.loss)) {
            Ok(z) => {
                count += z.size()[0];
                gathered.push(z);
                void = 0;
            }
            Err(LossError::NoSegments) if void < MAX_VOID => void += 1,
            Err(error) => return Err(error.into()),
        }
    }
    bar.finish_and_clear();
    let all = Tensor::cat(&gathered, 0);
    Ok(Dictionary::init_kmeans(&all, config.dictionary.clone(), config.seed)?)
}

/// Batches without any segment that are passed over in a row before the run gives up.
pub(crate) const MAX_VOID: u64 = 100;

/// `[S, D]` segments of a batch. Batch statistics here would move the running averages of a
/// network that has not been trained yet, so the recorded ones are used.
fn view_segments(
    network: &Network,
    views: &ViewTensors,
    loss: &LossConfig,
) -> Result<Tensor, LossError> {
    let output = network.forward(&views.images, false);
    let pixels = segments::pixels(&output, &views.ids, loss.upsample)?;
    let (_, view_image) = segments::distinct_images(&views.image_ids);
    Ok(Segments::pool(&pixels, &view_image).z)
}

/// Groups as in method section 3: weights and biases of backbone and head, dictionary.
fn optimizer(config: &TrainConfig, network: &Network, dictionary: &Dictionary) -> Sgd {
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
        sgd.add(&parameter.name, &parameter.tensor, rate, decay);
    }
    sgd.add(DICTIONARY, &dictionary.codebook, settings.dictionary_multiplier, 0.0);
    sgd
}
