//! Stages alone, on made-up data of any size: for curves of growth and for counted instructions.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use conceptseg::bundle::Codebook;
use conceptseg::concepts::{ConceptLabeler, ConceptMap, SegmentationConfig};
use conceptseg::embed::EmbeddingMap;
use conceptseg::frame::{FrameView, Normalization, Preprocessor};
use conceptseg::labels::LabelMap;
use conceptseg::metrics::davis::{FrameScorer, Layout};
use conceptseg::propagate::{MaskMap, PropagationConfig, Propagator};
use conceptseg::scene::{Scene, SceneConfig};
use conceptseg_tests::bench::Stage;
use conceptseg_tests::bench::npy::Array;
use image::RgbImage;

use crate::prepare::STRIDE;

/// Dimensions of the embeddings, as the edge network has them.
const DIM: usize = 32;
/// Different frames, which are shown in turn.
const FRAMES: usize = 3;

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum What {
    /// From a frame to the network's input of the same size, in multiples of the stride.
    Preprocess,
    /// From embeddings to concepts and segments.
    Concepts,
    /// From embeddings to masks.
    Propagation,
    /// J and F of one frame.
    Scores,
    /// Concepts and propagation of several streams, one after the other.
    Streams,
}

#[derive(Debug, clap::Args)]
pub struct Args {
    #[arg(value_enum)]
    what: What,
    #[arg(long, default_value_t = 480)]
    height: u32,
    #[arg(long, default_value_t = 854)]
    width: u32,
    /// Context frames beside the first one.
    #[arg(long, default_value_t = 7)]
    context: usize,
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=254))]
    instances: u8,
    /// Rows of the codebook.
    #[arg(long, default_value_t = 512)]
    concepts: usize,
    /// Clusters are the square of it.
    #[arg(long, default_value_t = 5)]
    grid: usize,
    #[arg(long, default_value_t = 1)]
    streams: usize,
}

/// What a stream has of its own.
struct Stream {
    labeler: ConceptLabeler,
    concepts: ConceptMap,
    propagator: Propagator,
    masks: MaskMap,
    steps: usize,
}

pub struct Contestant {
    args: Args,
    image: RgbImage,
    preprocessor: Preprocessor,
    input: Vec<f32>,
    maps: Vec<EmbeddingMap>,
    codebook: Codebook,
    mask: LabelMap,
    /// The mask, off by a little.
    moved: LabelMap,
    scorer: FrameScorer,
    /// Made by the first run, so that all of them shows as memory on top of the inputs.
    streams: Vec<Stream>,
}

impl Contestant {
    pub fn new(args: Args) -> Result<Self> {
        let Args { width, height, .. } = args;
        let scene = Scene::new(SceneConfig { width, height, frames: 1, seed: 1 })?;
        let normalization = Normalization { mean: [0.5; 3], std: [0.25; 3] };
        let grid = [height, width].map(|side| (side as usize).div_ceil(STRIDE));
        let mask = tiles(&args, 0);
        Ok(Self {
            image: scene.frame(0).image,
            preprocessor: Preprocessor::new(normalization),
            input: Vec::new(),
            maps: (0..FRAMES).map(|time| waves(grid, time)).collect(),
            codebook: codebook(args.concepts)?,
            moved: tiles(&args, height / 100),
            scorer: FrameScorer::new(&mask, Some(Layout::Davis2017)),
            mask,
            streams: Vec::new(),
            args,
        })
    }

    fn make_streams(&mut self) -> Result<()> {
        let config = PropagationConfig {
            context_frames: self.args.context,
            ..PropagationConfig::variant_b()
        };
        let first = self.maps.first().context("there are no embeddings")?;
        while self.streams.len() < self.args.streams {
            let mut stream = Stream {
                labeler: ConceptLabeler::new(),
                concepts: ConceptMap::default(),
                propagator: Propagator::new(config.clone()),
                masks: MaskMap::default(),
                steps: 0,
            };
            if self.args.what != What::Concepts {
                stream.propagator.start(first, &self.mask)?;
                // The context is full afterwards.
                (0..self.args.context).try_for_each(|_| stream.carry(&self.maps, &self.mask))?;
            }
            self.streams.push(stream);
        }
        Ok(())
    }
}

impl Stream {
    fn carry(&mut self, maps: &[EmbeddingMap], mask: &LabelMap) -> Result<()> {
        self.steps += 1;
        let map = &maps[self.steps % maps.len()];
        self.propagator.step(map, mask.width, mask.height, &mut self.masks)?;
        Ok(())
    }

    fn label(&mut self, map: &EmbeddingMap, codebook: &Codebook, args: &Args) -> Result<()> {
        let config = SegmentationConfig { grid: args.grid, ..SegmentationConfig::default() };
        let (width, height, out) = (args.width, args.height, &mut self.concepts);
        self.labeler.label(map, codebook, &config, width, height, out)?;
        Ok(())
    }
}

impl Stage for Contestant {
    fn describe(&self) -> String {
        format!("{:?}", self.args)
    }

    fn run(&mut self) -> Result<()> {
        let Args { what, width, height, .. } = self.args;
        match what {
            What::Preprocess => {
                let [w, h] = [width, height].map(|side| side.next_multiple_of(STRIDE as u32));
                let view = FrameView::rgb(width, height, self.image.as_raw())?;
                self.preprocessor.run(&view, w, h, &mut self.input)?;
            }
            What::Scores => {
                let name = Path::new("made up");
                self.scorer.score(&self.mask, name, &self.moved, name)?;
            }
            What::Concepts | What::Propagation | What::Streams => {
                self.make_streams()?;
                for stream in &mut self.streams {
                    if what != What::Propagation {
                        stream.label(
                            &self.maps[stream.steps % FRAMES],
                            &self.codebook,
                            &self.args,
                        )?;
                    }
                    if what != What::Concepts {
                        stream.carry(&self.maps, &self.mask)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn check(&mut self) -> Result<Array> {
        bail!("made-up data has no counterpart to be compared with")
    }
}

/// Embeddings that move with time: every channel is a wave of its own length and direction, with noise, without which
/// the clustering would be done after a round or two at some sizes.
fn waves([height, width]: [usize; 2], time: usize) -> EmbeddingMap {
    let mut data = Vec::with_capacity(height * width * DIM);
    for y in 0..height {
        for x in 0..width {
            let number = ((time * height + y) * width + x) as u32;
            let (y, x) = (y as f32 / height as f32, x as f32 / height as f32);
            data.extend_from_slice(&spread(|k| {
                let wave = 8.0 * (y * (1.7 * k).sin() + x * (2.3 * k).cos());
                wave + 0.1 * time as f32 + noise(number.wrapping_mul(DIM as u32) + k as u32)
            }));
        }
    }
    EmbeddingMap { height, width, dim: DIM, stride: STRIDE, data }
}

/// A number in 0..1 that looks random.
fn noise(number: u32) -> f32 {
    let mixed = (number ^ (number >> 15)).wrapping_mul(0x2c1b_3c6d);
    let mixed = (mixed ^ (mixed >> 12)).wrapping_mul(0x297a_2d39);
    (mixed >> 8) as f32 / (1 << 24) as f32
}

fn codebook(concepts: usize) -> Result<Codebook> {
    let vectors = (0..concepts).flat_map(|row| spread(|k| (row + 1) as f32 * (k + 1.0).sqrt()));
    Codebook::new(concepts, DIM, vectors.collect()).map_err(anyhow::Error::msg)
}

/// A vector of length 1 whose entries are the sines of `phase` and of the number of the channel.
fn spread(phase: impl Fn(f32) -> f32) -> [f32; DIM] {
    let vector: [f32; DIM] = std::array::from_fn(|k| (phase(k as f32) + k as f32).sin());
    let length = vector.iter().map(|value| value * value).sum::<f32>().sqrt();
    vector.map(|value| value / length)
}

/// The instances as discs in the tiles of a square pattern, `shift` pixels to the right.
fn tiles(args: &Args, shift: u32) -> LabelMap {
    let Args { width, height, instances, .. } = *args;
    let side = f32::from(instances).sqrt().ceil();
    let mut mask = LabelMap::background(width, height);
    for (index, value) in mask.data.iter_mut().enumerate() {
        let (x, y) = (index % width as usize, index / width as usize);
        let x = x.saturating_sub(shift as usize) as f32 / width as f32 * side;
        let y = y as f32 / height as f32 * side;
        let id = y.floor() * side + x.floor() + 1.0;
        if id <= f32::from(instances) && (x.fract() - 0.5).hypot(y.fract() - 0.5) < 0.35 {
            *value = id as u8;
        }
    }
    mask
}
