//! Evaluation of a model on labelled images: joins data sets, model and metrics.
//!
//! [`classes`] scores how well embeddings tell classes apart (nearest neighbours among
//! prototypes of labelled images, or a linear classifier); [`concepts`] tells what the
//! concepts that the live path gives show. Images are worked on in parallel; results do not depend on the number
//! of threads.

pub mod classes;
mod clusters;
pub mod concepts;
#[cfg(test)]
mod independent;
pub mod linear;
pub mod neighbours;
pub mod report;
mod resample;
pub mod run;
pub mod windows;

use std::path::PathBuf;
use std::sync::Arc;

use image::RgbImage;
use rayon::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::concepts::ConceptError;
use crate::datasets::segmentation::{LabelledImage, SegmentationDataset, SegmentationError};
use crate::embed::{EmbedError, EmbeddingMap, FrameEmbedder, InputSize, Model};
use crate::frame::{FrameError, FrameView};
use crate::labels::LabelMap;
use crate::metrics::miou::MiouError;
use run::{Stage, Unit};

/// Why an evaluation stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvaluateError {
    /// A file of the data set could not be used.
    #[error(transparent)]
    Dataset(#[from] SegmentationError),
    /// The image could not be prepared for the network.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The network could not be run.
    #[error(transparent)]
    Embed(#[from] EmbedError),
    /// The image could not be labelled with concepts.
    #[error(transparent)]
    Concepts(#[from] ConceptError),
    /// Prediction and ground truth do not fit together.
    #[error("cannot score {path}: {source}")]
    Score {
        /// The labels.
        path: PathBuf,
        /// What does not fit.
        source: MiouError,
    },
    /// The run folder cannot be used.
    #[error(transparent)]
    Run(#[from] run::RunError),
    /// A setting is out of range.
    #[error("the setting {setting} is {value}; it must be {allowed}")]
    Setting {
        /// Its name.
        setting: &'static str,
        /// Its value.
        value: String,
        /// The allowed values.
        allowed: &'static str,
    },
    /// The record of an image does not belong to the others.
    #[error("the record of the image {image} cannot be used: {what}")]
    Record {
        /// Name of the image.
        image: String,
        /// What is wrong, as a sentence.
        what: String,
    },
    /// A picture could not be drawn.
    #[error("cannot draw a picture of the figures: {0}")]
    Plot(String),
    /// A classifier cannot be used.
    #[error("{path}: {what}")]
    Classifier {
        /// The file.
        path: PathBuf,
        /// What is wrong, as a sentence.
        what: String,
    },
}

/// Embeds still images as a stream embeds its frames; keeps its scratch.
#[derive(Debug)]
pub struct Embedder {
    frames: FrameEmbedder,
    short_side: u32,
}

impl Embedder {
    /// For images brought to `short_side` pixels; bundles of a fixed size ignore that.
    pub fn new(model: &Arc<Model>, short_side: u32) -> Self {
        Self { frames: FrameEmbedder::new(Arc::clone(model)), short_side }
    }

    /// The embeddings of `image`, seen at `scale` times the short side.
    pub fn embed(&mut self, image: &RgbImage, scale: f64) -> Result<&EmbeddingMap, EvaluateError> {
        self.prepare(image, scale)?;
        Ok(self.frames.embed()?)
    }

    /// Brings `image` to the network's input.
    fn prepare(&mut self, image: &RgbImage, scale: f64) -> Result<(), EvaluateError> {
        let short_side = (f64::from(self.short_side) * scale).round() as u32;
        let view = FrameView::rgb(image.width(), image.height(), image.as_raw())?;
        Ok(self.frames.prepare(&view, InputSize::ShortSide(short_side))?)
    }
}

/// Runs `work` on every image of a stage that is still to do, with its labels, on all cores.
/// `init` makes what one thread keeps; `tick` is called after each image.
fn for_each_image<T, R: Serialize + DeserializeOwned + Send>(
    set: &SegmentationDataset,
    stage: &Stage<R>,
    init: impl Fn() -> T + Sync + Send,
    work: impl Fn(&mut T, &LabelledImage, &RgbImage, &LabelMap) -> Result<R, EvaluateError>
    + Sync
    + Send,
    tick: &(dyn Fn() + Sync),
) -> Result<(), EvaluateError> {
    stage.pending().par_iter().with_max_len(1).try_for_each_init(init, |state, &at| {
        let one = &set.images[at];
        let (image, labels) = (one.read_image()?, one.read_labels()?);
        stage.put(at, work(state, one, &image, &labels)?)?;
        tick();
        Ok(())
    })
}

/// The images of a data set as units of a run. A file of annotations of many images belongs to
/// the inputs of the run ([`SegmentationDataset::label_files`]).
pub fn units(set: &SegmentationDataset) -> Vec<Unit> {
    let unit = |one: &LabelledImage| Unit { name: one.name.clone(), files: one.files() };
    set.images.iter().map(unit).collect()
}
