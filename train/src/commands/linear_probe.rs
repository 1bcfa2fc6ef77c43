//! `linear-probe`: a linear classifier on the embeddings of a bundle.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;
use conceptseg::backend::{BackendKind, BackendOptions};
use conceptseg::bundle::SizeRule;
use conceptseg::datasets::segmentation::{Classes, SegmentationDataset};
use conceptseg::datasets::{camvid, coco, voc};
use conceptseg::embed::{EmbeddingMap, Model};
use conceptseg::files::write_atomic;
use conceptseg::frame::{FrameView, Normalization, Preprocessor};
use conceptseg_train::probe::{LinearProbe, ProbeConfig, View};
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use rayon::prelude::*;
use serde_json::json;
use tch::{Kind, Tensor};

use crate::progress_bar;

/// Steps whose loss is averaged for the bar.
const SHOW_EVERY: u64 = 20;

/// Options of `linear-probe`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder of the model bundle, whose network stays as it is.
    #[arg(long, value_name = "DIR")]
    bundle: PathBuf,
    /// Which kind of data set ROOT is.
    #[arg(long, value_enum, default_value_t = DataArg::Voc)]
    data: DataArg,
    /// Folder of the data set; its training split is used.
    #[arg(long, value_name = "DIR")]
    root: PathBuf,
    /// List of the training images instead of the data set's own (VOC).
    #[arg(long, value_name = "FILE")]
    list: Option<PathBuf>,
    /// Class names of a folder data set, one a line.
    #[arg(long, value_name = "FILE", required_if_eq("data", "folder"))]
    classes: Option<PathBuf>,
    /// The label of pixels that do not count in a folder data set.
    #[arg(long, default_value_t = 255, value_name = "ID")]
    void: u8,
    /// At most that many images, evenly spread over the list.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// File to write: the classifier as safetensors, which `conceptseg eval --linear` reads;
    /// settings and losses go into a JSON file beside it.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// What runs the network.
    #[arg(long, value_enum, default_value_t)]
    backend: BackendKind,
    /// Steps; the rate falls to a tenth after a third and after five sixths of them.
    #[arg(long, default_value_t = ProbeConfig::default().iterations)]
    iterations: u64,
    /// Images of a step.
    #[arg(long, default_value_t = ProbeConfig::default().batch)]
    batch: usize,
    /// Rate at the start.
    #[arg(long, default_value_t = ProbeConfig::default().lr)]
    lr: f64,
    /// Momentum.
    #[arg(long, default_value_t = ProbeConfig::default().momentum)]
    momentum: f64,
    /// L2 penalty on weights.
    #[arg(long, default_value_t = ProbeConfig::default().weight_decay)]
    weight_decay: f64,
    /// Short side of an image at scale 1, in pixels.
    #[arg(long, default_value_t = ProbeConfig::default().short_side)]
    short_side: u32,
    /// Smallest scale.
    #[arg(long, default_value_t = ProbeConfig::default().scale[0])]
    scale_min: f64,
    /// Largest scale.
    #[arg(long, default_value_t = ProbeConfig::default().scale[1])]
    scale_max: f64,
    /// Probability of mirroring.
    #[arg(long, default_value_t = ProbeConfig::default().flip)]
    flip: f64,
    /// Side of the crop in pixels; bundles of a fixed size use that.
    #[arg(long, default_value_t = ProbeConfig::default().crop)]
    crop: u32,
    /// Seed of everything random.
    #[arg(long, default_value_t = ProbeConfig::default().seed)]
    seed: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum DataArg {
    /// PASCAL VOC: the training list.
    Voc,
    /// `CamVid`: train and trainannot.
    Camvid,
    /// ROOT/images and ROOT/labels.
    Folder,
    /// COCO's instances: images of train2017 with more than 1000 pixels of the 20 classes.
    Coco,
    /// The same from COCO's panoptic segments.
    CocoPanoptic,
}

/// Runs the command.
///
/// # Errors
/// Wrong settings, files of the data set that cannot be used, a network that cannot be run.
pub fn run(args: &Args) -> Result<()> {
    let config = args.config();
    config.check().map_err(anyhow::Error::msg)?;
    let set = args.open()?;
    let options = BackendOptions::new(args.backend, 0);
    let model = Model::open(&args.bundle, &options)?;
    let entry = &model.bundle().manifest.embedder;
    let size = match entry.size {
        SizeRule::Fixed([h, w]) => (w, h),
        SizeRule::Dynamic => {
            ensure!(
                (config.crop as usize).is_multiple_of(entry.stride.max(1)),
                "the crop is {} pixels, but the network takes multiples of {}; choose another --crop",
                config.crop,
                entry.stride
            );
            (config.crop, config.crop)
        }
    };
    let mut probe = LinearProbe::new(set.classes.count(), entry.dim, &config);
    let start = Instant::now();
    let bar = progress_bar(config.iterations, "steps");
    let mut losses = Vec::new();
    let (mut sum, mut counted) = (0.0, 0u32);
    let mut order = Order::new(set.images.len(), config.seed);
    for step in 0..config.iterations {
        let images: Vec<(usize, u64)> = (0..config.batch).map(|_| order.next()).collect();
        let (embeddings, labels) = batch(&model, &set, &images, size, &config)?;
        let loss = probe
            .step(&embeddings, &labels, i64::from(set.classes.void), config.rate(step))
            .with_context(|| format!("step {step} failed"))?;
        if loss.is_finite() {
            (sum, counted) = (sum + loss, counted + 1);
        }
        bar.inc(1);
        if (step + 1) % SHOW_EVERY == 0 || step + 1 == config.iterations {
            let mean = sum / f64::from(counted.max(1));
            bar.set_message(format!("steps, cross entropy {mean:.3}"));
            losses.push(json!({ "step": step + 1, "cross_entropy": mean }));
            (sum, counted) = (0.0, 0);
        }
    }
    bar.finish_and_clear();
    let classifier = probe.classifier()?;
    let unusable = "the classifier diverged; choose a lower --lr";
    ensure!(classifier.weight.iter().chain(&classifier.bias).all(|v| v.is_finite()), unusable);
    classifier.write(&args.out).with_context(|| format!("cannot write {}", args.out.display()))?;
    let report = args.out.with_extension("json");
    let manifest = &model.bundle().manifest;
    let object = json!({
        "bundle": manifest.name,
        "embedder_sha256": manifest.embedder.sha256,
        "classes": set.classes.names,
        "images": set.images.len(),
        "crop": [size.0, size.1],
        "settings": config,
        "seconds": start.elapsed().as_secs_f64(),
        "losses": losses,
    });
    write_atomic(&report, |w| serde_json::to_writer_pretty(w, &object).map_err(Into::into))
        .with_context(|| format!("cannot write {}", report.display()))?;
    println!(
        "classifier      {} ({} classes x {} dimensions)\nreport          {}\ntime            {:.1} s",
        args.out.display(),
        classifier.classes,
        classifier.dim,
        report.display(),
        start.elapsed().as_secs_f64()
    );
    Ok(())
}

impl Args {
    fn config(&self) -> ProbeConfig {
        ProbeConfig {
            iterations: self.iterations,
            batch: self.batch,
            lr: self.lr,
            momentum: self.momentum,
            weight_decay: self.weight_decay,
            short_side: self.short_side,
            scale: [self.scale_min, self.scale_max],
            flip: self.flip,
            crop: self.crop,
            seed: self.seed,
        }
    }

    fn open(&self) -> Result<SegmentationDataset> {
        let (root, limit) = (&self.root, self.limit);
        Ok(match self.data {
            DataArg::Voc => voc::open(root, voc::Split::Train, self.list.as_deref(), limit)?,
            DataArg::Camvid => camvid::open(root, "train", limit)?,
            DataArg::Coco | DataArg::CocoPanoptic => {
                let panoptic = self.data == DataArg::CocoPanoptic;
                let source = coco::Source::standard(root, voc::Split::Train, panoptic);
                coco::open(&source, Some(coco::MIN_TRAIN_PIXELS), limit)?.0
            }
            DataArg::Folder => {
                // The option is required for this kind.
                let classes = Classes::read(self.classes.as_deref().unwrap_or(root), self.void)?;
                let (images, labels) = (root.join("images"), root.join("labels"));
                SegmentationDataset::open_folders(&images, &labels, classes, limit)?
            }
        })
    }
}

/// Images in random order, all of them before any comes again, each with a seed for its view.
struct Order {
    rng: Pcg64,
    left: Vec<usize>,
    count: usize,
}

impl Order {
    fn new(count: usize, seed: u64) -> Self {
        Self { rng: Pcg64::seed_from_u64(seed), left: Vec::new(), count }
    }

    fn next(&mut self) -> (usize, u64) {
        if self.left.is_empty() {
            self.left = (0..self.count).collect();
            self.left.shuffle(&mut self.rng);
        }
        // A data set holds at least one image.
        (self.left.pop().unwrap_or(0), self.rng.random())
    }
}

/// Embeddings (`[B, D, h, w]`) and labels (`[B, H, W]`) of random views of the given images.
fn batch(
    model: &Arc<Model>,
    set: &SegmentationDataset,
    images: &[(usize, u64)],
    (width, height): (u32, u32),
    config: &ProbeConfig,
) -> Result<(Tensor, Tensor)> {
    let input = &model.bundle().manifest.input;
    let pad = input.mean.map(|mean| (mean * 255.0).round().clamp(0.0, 255.0) as u8);
    let made: Vec<(EmbeddingMap, Vec<i64>)> = images
        .par_iter()
        .map(|&(index, seed)| {
            let one = &set.images[index];
            let (image, labels) = (one.read_image()?, one.read_labels()?);
            let mut rng = Pcg64::seed_from_u64(seed);
            let beyond = (pad, set.classes.void);
            let view = View::draw(&image, &labels, (width, height), config, beyond, &mut rng);
            let mut preprocessor =
                Preprocessor::new(Normalization { mean: input.mean, std: input.std });
            let (mut tensor, mut scratch) = (Vec::new(), Vec::new());
            let frame = FrameView::rgb(width, height, view.image.as_raw())?;
            preprocessor.run(&frame, width, height, &mut tensor)?;
            let mut map = EmbeddingMap::default();
            model.embed(&tensor, width as usize, height as usize, &mut scratch, &mut map)?;
            Ok((map, view.labels.data.into_iter().map(i64::from).collect()))
        })
        .collect::<Result<_>>()?;
    let embeddings: Vec<Tensor> = made
        .iter()
        .map(|(map, _)| {
            let shape = [map.height, map.width, map.dim].map(|n| n as i64);
            Tensor::from_slice(&map.data).view(shape).permute([2, 0, 1])
        })
        .collect();
    let labels: Vec<Tensor> = made
        .iter()
        .map(|(_, data)| Tensor::from_slice(data).view([i64::from(height), i64::from(width)]))
        .collect();
    Ok((Tensor::stack(&embeddings, 0).to_kind(Kind::Float), Tensor::stack(&labels, 0)))
}
