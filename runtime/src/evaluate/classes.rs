//! How well embeddings tell classes apart.
//!
//! The protocol of `SegSort` (Hwang et al., 2019): pixels of every training image are
//! clustered, clusters become prototypes with the class of most of their pixels, and each
//! cluster of a validation image takes the class that most of its nearest prototypes have. A
//! [`LinearClassifier`] may stand in for the neighbours.

use std::sync::Arc;

use image::RgbImage;

use super::clusters::Clusterer;
pub use super::clusters::Prototypes;
use super::linear::LinearClassifier;
use super::neighbours::Neighbours;
use super::report::ImageClasses;
use super::resample::bilinear;
use super::run::Stage;
use super::{Embedder, EvaluateError, for_each_image};
use crate::datasets::segmentation::SegmentationDataset;
use crate::embed::Model;
use crate::labels::LabelMap;
use crate::metrics::miou::Confusion;
use crate::upsample::Upsampler;

/// Scales of the evaluation at several scales, each also mirrored.
pub const SCALES: [f64; 6] = [0.5, 0.75, 1.0, 1.25, 1.5, 1.75];

/// Where pixels are clustered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Resolution {
    /// Embeddings are brought to the size of the image first.
    #[default]
    Pixels,
    /// On the embedding grid, with borders drawn where upsampled scores cross: what live
    /// streams do, and many times as fast.
    Grid,
}

/// How images are clustered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterSettings {
    /// Clusters start as `grid` x `grid` blocks, 1..=15.
    pub grid: usize,
    /// Rounds of k-means, 1..=1000.
    pub rounds: usize,
    /// Where pixels are clustered.
    pub resolution: Resolution,
}

impl Default for ClusterSettings {
    fn default() -> Self {
        Self { grid: 5, rounds: 50, resolution: Resolution::Pixels }
    }
}

impl ClusterSettings {
    fn check(&self) -> Result<(), EvaluateError> {
        let refuse = |setting, value: usize, allowed| {
            Err(EvaluateError::Setting { setting, value: value.to_string(), allowed })
        };
        if !(1..=15).contains(&self.grid) {
            return refuse("grid", self.grid, "1 to 15");
        }
        if !(1..=1000).contains(&self.rounds) {
            return refuse("rounds", self.rounds, "1 to 1000");
        }
        Ok(())
    }
}

/// What gives the class of a pixel.
#[derive(Debug, Clone)]
pub enum Classifier {
    /// The vote of the nearest prototypes.
    Neighbours {
        /// Prototypes with their classes.
        prototypes: Neighbours,
        /// Votes; 15 in the protocol.
        k: usize,
        /// How images are clustered.
        clusters: ClusterSettings,
    },
    /// The highest score of a linear classifier.
    Linear(LinearClassifier),
}

/// Finds the prototypes of the images of `set` that are still to do; the network sees them at
/// `short_side`. [`Prototypes::join`] makes one set of all.
pub fn prototypes(
    model: &Arc<Model>,
    set: &SegmentationDataset,
    short_side: u32,
    settings: &ClusterSettings,
    stage: &Stage<Prototypes>,
    tick: &(dyn Fn() + Sync),
) -> Result<(), EvaluateError> {
    settings.check()?;
    let init = || (Embedder::new(model, short_side), Clusterer::default());
    let void = set.classes.void;
    for_each_image(
        set,
        stage,
        init,
        |(embedder, clusterer), _, image, labels| {
            let map = embedder.embed(image, 1.0)?;
            Ok(clusterer.labelled(map, labels, void, settings))
        },
        tick,
    )
}

/// Classifies the images of `set` that are still to do and counts their pixels. `scales` holds
/// 1 alone for a single pass; several are each run as the image is and mirrored, and their votes
/// (neighbours) or probabilities (linear) summed for each pixel.
pub fn score(
    model: &Arc<Model>,
    set: &SegmentationDataset,
    short_side: u32,
    classifier: &Classifier,
    scales: &[f64],
    stage: &Stage<ImageClasses>,
    tick: &(dyn Fn() + Sync),
) -> Result<(), EvaluateError> {
    let count = set.classes.count();
    for_each_image(
        set,
        stage,
        || Predictor::new(model, short_side, count),
        |predictor, one, image, labels| {
            let prediction = predictor.predict(image, classifier, scales)?;
            let mut confusion = Confusion::new(count, Some(set.classes.void));
            confusion.add(labels, &prediction).map_err(|source| EvaluateError::Score {
                path: one.labels.path().to_owned(),
                source,
            })?;
            Ok(ImageClasses { name: one.name.clone(), pixels: confusion.pairs() })
        },
        tick,
    )
}

/// Classifies images one after the other; keeps its scratch.
#[derive(Debug)]
pub struct Predictor {
    embedder: Embedder,
    clusterer: Clusterer,
    upsampler: Upsampler,
    classes: usize,
}

impl Predictor {
    /// For `classes` classes and images brought to `short_side` pixels.
    pub fn new(model: &Arc<Model>, short_side: u32, classes: usize) -> Self {
        Self {
            embedder: Embedder::new(model, short_side),
            clusterer: Clusterer::default(),
            upsampler: Upsampler::new(),
            classes,
        }
    }

    /// The class of every pixel; `scales` as for [`score`].
    pub fn predict(
        &mut self,
        image: &RgbImage,
        classifier: &Classifier,
        scales: &[f64],
    ) -> Result<LabelMap, EvaluateError> {
        if let Classifier::Neighbours { clusters, .. } = classifier {
            clusters.check()?;
        }
        if scales == [1.0] {
            self.single(image, classifier)
        } else {
            self.several(image, classifier, scales)
        }
    }

    fn single(
        &mut self,
        image: &RgbImage,
        classifier: &Classifier,
    ) -> Result<LabelMap, EvaluateError> {
        let (width, height) = image.dimensions();
        let map = self.embedder.embed(image, 1.0)?;
        let data = match classifier {
            Classifier::Neighbours { prototypes, k, clusters } => {
                let (vectors, labels) = self.clusterer.all(map, (width, height), clusters);
                let classes = prototypes.classify(vectors, *k);
                labels.into_iter().map(|cluster| classes[usize::from(cluster)]).collect()
            }
            Classifier::Linear(linear) => {
                let planes = linear.planes(&map.data);
                let mut out = Vec::new();
                let (grid, size) = ((map.height, map.width), (height as usize, width as usize));
                self.upsampler.argmax(&planes, grid, None, size, &mut out);
                out
            }
        };
        Ok(LabelMap { width, height, data })
    }

    fn several(
        &mut self,
        image: &RgbImage,
        classifier: &Classifier,
        scales: &[f64],
    ) -> Result<LabelMap, EvaluateError> {
        let (width, height) = image.dimensions();
        let (w, h) = (width as usize, height as usize);
        let mut sums = vec![0.0f32; w * h * self.classes];
        let mirrored = image::imageops::flip_horizontal(image);
        let mut resized = Vec::new();
        for &scale in scales {
            for (image, mirror) in [(image, false), (&mirrored, true)] {
                let (votes, (vote_h, vote_w)) = self.votes(image, classifier, scale)?;
                let size = (vote_h, vote_w, self.classes);
                bilinear(&votes, size, (h, w), &mut resized);
                let rows = sums.chunks_exact_mut(w * self.classes);
                for (sum, row) in rows.zip(resized.chunks_exact(w * self.classes)) {
                    let pixels = row.chunks_exact(self.classes);
                    let add = |(sum, votes): (&mut [f32], &[f32])| {
                        sum.iter_mut().zip(votes).for_each(|(sum, vote)| *sum += vote);
                    };
                    if mirror {
                        sum.chunks_exact_mut(self.classes).zip(pixels.rev()).for_each(add);
                    } else {
                        sum.chunks_exact_mut(self.classes).zip(pixels).for_each(add);
                    }
                }
            }
        }
        let winner = |votes: &[f32]| {
            let mut best = 0;
            for (class, &vote) in votes.iter().enumerate() {
                if vote > votes[best] {
                    best = class;
                }
            }
            best as u8
        };
        let data = sums.chunks_exact(self.classes).map(winner).collect();
        Ok(LabelMap { width, height, data })
    }

    /// Votes or probabilities at one scale, `[rows, columns, classes]`, and their rows and
    /// columns.
    fn votes(
        &mut self,
        image: &RgbImage,
        classifier: &Classifier,
        scale: f64,
    ) -> Result<(Vec<f32>, (usize, usize)), EvaluateError> {
        let scaled = |side: u32| (f64::from(side) * scale).round().max(1.0) as u32;
        let (width, height) = (scaled(image.width()), scaled(image.height()));
        let (w, h) = (width as usize, height as usize);
        let map = self.embedder.embed(image, scale)?;
        let mut votes = vec![0.0f32; w * h * self.classes];
        match classifier {
            Classifier::Neighbours { prototypes, k, clusters } => {
                let (vectors, labels) = self.clusterer.all(map, (width, height), clusters);
                let shares = prototypes.votes(vectors, *k, self.classes);
                let pixels = votes.chunks_exact_mut(self.classes);
                for (pixel, cluster) in pixels.zip(labels) {
                    let share = &shares[usize::from(cluster) * self.classes..];
                    pixel.copy_from_slice(&share[..self.classes]);
                }
            }
            Classifier::Linear(linear) => {
                let cells = map.height * map.width;
                let planes = linear.planes(&map.data);
                let by_cell: Vec<f32> = (0..cells)
                    .flat_map(|cell| planes.iter().skip(cell).step_by(cells).copied())
                    .collect();
                let size = (map.height, map.width, self.classes);
                bilinear(&by_cell, size, (h, w), &mut votes);
                votes.chunks_exact_mut(self.classes).for_each(softmax);
            }
        }
        Ok((votes, (h, w)))
    }
}

fn softmax(scores: &mut [f32]) {
    let highest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for score in scores.iter_mut() {
        *score = (*score - highest).exp();
    }
    let sum: f32 = scores.iter().sum();
    for score in scores {
        *score /= sum;
    }
}
