//! The DAVIS semi-supervised measures, equal to those of the official tool
//! (`davisvideochallenge/davis2017-evaluation`).
//!
//! The conventions that decide the figures:
//!
//! - The first and the last annotated frame of a sequence are not evaluated, and their
//!   predictions are not opened. The annotations say which frames exist.
//! - The objects are the ids from 1 to the highest of the *first* annotation; one that
//!   never appears counts as well (empty on both sides: J = F = 1). Void (255) is
//!   background. An id that appears later and is higher is no object.
//! - A prediction with an id above that is an error; missing ids are empty masks.
//! - The global figures are means over all objects of all sequences.
//!
//! DAVIS 2016 stores its one object as 255, which those rules would turn into background.
//! [`Layout`] tells the two apart.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::bitmask::BitMask;
use super::counts::{FrameCounts, boundary_radius};
use super::statistics::{Statistics, mean};
use crate::datasets::files_with_extension;
use crate::labels::{LabelError, LabelMap};

/// Fewest annotated frames that leave one to evaluate.
pub const MIN_FRAMES: usize = 3;

/// Why masks could not be scored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DavisError {
    /// A folder could not be listed.
    #[error("cannot list the folder {path}: {source}")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the file system answered.
        source: io::Error,
    },
    /// Too few annotations: the first and the last frame are never evaluated.
    #[error(
        "{path} holds {frames} annotations; a sequence needs at least {MIN_FRAMES} because its \
         first and last frame are not evaluated"
    )]
    TooShort {
        /// The folder of annotations.
        path: PathBuf,
        /// PNG files found.
        frames: usize,
    },
    /// An annotated frame has no prediction.
    #[error("the prediction {path} is missing; the annotation {annotation} needs one")]
    MissingPrediction {
        /// The file expected.
        path: PathBuf,
        /// The annotation it belongs to.
        annotation: PathBuf,
    },
    /// Sizes differ within a sequence.
    #[error(
        "{path} is {}x{} but the first annotation of the sequence is {}x{}; all masks of a \
         sequence must have one size", found.0, found.1, expected.0, expected.1
    )]
    Size {
        /// The file.
        path: PathBuf,
        /// Its width and height in pixels.
        found: (u32, u32),
        /// Width and height of the first annotation.
        expected: (u32, u32),
    },
    /// A prediction holds an id that is no object of the sequence.
    #[error(
        "{path} holds the id {id}, but the first annotation of the sequence has {objects} \
         object(s); remove the surplus id"
    )]
    SurplusId {
        /// The prediction.
        path: PathBuf,
        /// Its highest id.
        id: u8,
        /// Objects of the sequence.
        objects: u8,
    },
    /// A mask could not be read.
    #[error(transparent)]
    Label(#[from] LabelError),
}

/// How the masks of a sequence store their objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Layout {
    /// DAVIS 2016: one object. Annotations are foreground above 127; predictions are
    /// foreground at 1 or 255.
    #[serde(rename = "2016")]
    Davis2016,
    /// DAVIS 2017: the stored value is the object's id; 255 in an annotation is void,
    /// which counts as background. These are the rules of the official tool.
    #[serde(rename = "2017")]
    Davis2017,
}

impl Layout {
    /// The layout of a sequence by its first annotation: 2016 if that holds 255 and
    /// otherwise only 0, else 2017.
    ///
    /// A 2017 annotation with void but no object looks the same; such a sequence has
    /// nothing to evaluate under the official rules, so the reading as 2016 is preferred.
    pub fn detect(first_annotation: &LabelMap) -> Self {
        let data = &first_annotation.data;
        if data.contains(&255) && data.iter().all(|&v| v == 0 || v == 255) {
            Self::Davis2016
        } else {
            Self::Davis2017
        }
    }

    /// Whether the stored `value` of an annotation belongs to object `id` (1..=254).
    fn annotated(self, value: u8, id: u8) -> bool {
        match self {
            Self::Davis2016 => value > 127,
            Self::Davis2017 => value == id,
        }
    }

    /// The object id that the stored `value` of a prediction means.
    fn predicted(self, value: u8) -> u8 {
        match (self, value) {
            (Self::Davis2016, 255) => 1,
            (_, id) => id,
        }
    }

    /// The annotation as object ids with 0 as background, which is how masks to be
    /// carried through a sequence are given.
    #[must_use]
    pub fn object_ids(self, annotation: &LabelMap) -> LabelMap {
        let ids = annotation.data.iter().map(|&v| match self {
            Self::Davis2016 => u8::from(v > 127),
            Self::Davis2017 if v == 255 => 0,
            Self::Davis2017 => v,
        });
        LabelMap { data: ids.collect(), ..*annotation }
    }
}

/// What a sequence's first annotation fixes for all its frames.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrameScorer {
    layout: Layout,
    objects: u8,
    size: (u32, u32),
}

impl FrameScorer {
    /// Takes objects and size from the first annotation; `layout` `None` detects it
    /// ([`Layout::detect`]).
    pub fn new(first_annotation: &LabelMap, layout: Option<Layout>) -> Self {
        let layout = layout.unwrap_or_else(|| Layout::detect(first_annotation));
        let objects = match layout {
            Layout::Davis2016 => 1,
            Layout::Davis2017 => {
                first_annotation.data.iter().copied().filter(|&v| v != 255).max().unwrap_or(0)
            }
        };
        Self { layout, objects, size: (first_annotation.width, first_annotation.height) }
    }

    /// The layout that applies.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Number of objects, 0..=254; their ids are 1 to this.
    pub fn objects(&self) -> u8 {
        self.objects
    }

    /// Counts one frame; entry `i` belongs to object `i + 1`. The paths name the files in
    /// errors.
    pub fn score(
        &self,
        annotation: &LabelMap,
        annotation_path: &Path,
        prediction: &LabelMap,
        prediction_path: &Path,
    ) -> Result<Vec<FrameCounts>, DavisError> {
        for (map, path) in [(annotation, annotation_path), (prediction, prediction_path)] {
            let found = (map.width, map.height);
            if found != self.size {
                let (path, expected) = (path.to_owned(), self.size);
                return Err(DavisError::Size { path, found, expected });
            }
        }
        let highest = prediction.data.iter().map(|&v| self.layout.predicted(v)).max().unwrap_or(0);
        if highest > self.objects {
            return Err(DavisError::SurplusId {
                path: prediction_path.to_owned(),
                id: highest,
                objects: self.objects,
            });
        }
        let radius = boundary_radius(self.size.0, self.size.1);
        let of_object = |id| {
            let annotated = BitMask::from_labels(annotation, |v| self.layout.annotated(v, id));
            let predicted = BitMask::from_labels(prediction, |v| self.layout.predicted(v) == id);
            FrameCounts::compare(&annotated, &predicted, radius)
        };
        Ok((1..=self.objects).map(of_object).collect())
    }
}

/// The counts of one object in every evaluated frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectScore {
    /// The object's id, from 1.
    pub id: u8,
    /// One entry per evaluated frame, in order.
    pub counts: Vec<FrameCounts>,
}

impl ObjectScore {
    /// J of every evaluated frame.
    pub fn region(&self) -> Vec<f64> {
        self.counts.iter().map(FrameCounts::region).collect()
    }

    /// F of every evaluated frame.
    pub fn boundary(&self) -> Vec<f64> {
        self.counts.iter().map(FrameCounts::boundary).collect()
    }

    /// The object's figures over the sequence.
    pub fn figures(&self) -> Figures {
        let (j, f) = (Statistics::of(&self.region()), Statistics::of(&self.boundary()));
        Figures {
            j_mean: j.mean,
            j_recall: j.recall,
            j_decay: j.decay,
            f_mean: f.mean,
            f_recall: f.recall,
            f_decay: f.decay,
            jf_mean: f64::midpoint(j.mean, f.mean),
        }
    }
}

/// The counts of one sequence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SequenceScore {
    /// How its masks were read.
    pub layout: Layout,
    /// Names (file stems) of the evaluated frames.
    pub frames: Vec<String>,
    /// One entry per object, ids 1, 2, …
    pub objects: Vec<ObjectScore>,
}

impl SequenceScore {
    /// Puts together what [`FrameScorer::score`] gave for every evaluated frame in order.
    pub fn from_frames(scorer: &FrameScorer, frames: Vec<(String, Vec<FrameCounts>)>) -> Self {
        let mut score = Self {
            layout: scorer.layout,
            frames: Vec::with_capacity(frames.len()),
            objects: (1..=scorer.objects)
                .map(|id| ObjectScore { id, counts: Vec::with_capacity(frames.len()) })
                .collect(),
        };
        for (name, counts) in frames {
            score.frames.push(name);
            for (object, count) in score.objects.iter_mut().zip(counts) {
                object.counts.push(count);
            }
        }
        score
    }
}

/// Compares two folders of PNG masks, frames in parallel.
///
/// `annotations` says which frames there are; further files under `predictions` are not
/// looked at. `layout` `None` detects it. `on_frame` is called after every evaluated frame.
///
/// # Errors
/// [`DavisError`] for the first frame in order that cannot be scored.
pub fn score_folders(
    annotations: &Path,
    predictions: &Path,
    layout: Option<Layout>,
    on_frame: &(dyn Fn() + Sync),
) -> Result<SequenceScore, DavisError> {
    let files = files_with_extension(annotations, &["png"])
        .map_err(|source| DavisError::Folder { path: annotations.to_owned(), source })?;
    let evaluated = match files.as_slice() {
        [_, evaluated @ .., _] if files.len() >= MIN_FRAMES => evaluated,
        _ => {
            let (path, frames) = (annotations.to_owned(), files.len());
            return Err(DavisError::TooShort { path, frames });
        }
    };
    let pairs: Vec<(&PathBuf, PathBuf)> = evaluated
        .iter()
        .map(|a| (a, predictions.join(a.file_name().unwrap_or_default())))
        .collect();
    if let Some((annotation, path)) = pairs.iter().find(|(_, p)| !p.is_file()) {
        let (path, annotation) = (path.clone(), (*annotation).clone());
        return Err(DavisError::MissingPrediction { path, annotation });
    }
    let scorer = FrameScorer::new(&LabelMap::read_png(&files[0])?, layout);
    let frames: Vec<Result<_, DavisError>> = pairs
        .par_iter()
        .map(|(annotation_path, prediction_path)| {
            let annotation = LabelMap::read_png(annotation_path)?;
            let prediction = LabelMap::read_png(prediction_path)?;
            let counts =
                scorer.score(&annotation, annotation_path, &prediction, prediction_path)?;
            on_frame();
            Ok((frame_name(annotation_path), counts))
        })
        .collect();
    // Collected in order first, so that the error reported does not depend on timing.
    let frames = frames.into_iter().collect::<Result<Vec<_>, _>>()?;
    Ok(SequenceScore::from_frames(&scorer, frames))
}

/// A frame's name: the file name without its ending.
pub fn frame_name(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// The figures of an object, or their means over several. All are shares (0..1, decays
/// -1..1) and NaN (`null` in JSON) where there is no object.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Mean region similarity.
    pub j_mean: f64,
    /// Share of frames with J above 0.5.
    pub j_recall: f64,
    /// J lost between the first and the last quarter of the sequence.
    pub j_decay: f64,
    /// Mean contour accuracy.
    pub f_mean: f64,
    /// Share of frames with F above 0.5.
    pub f_recall: f64,
    /// F lost between the first and the last quarter of the sequence.
    pub f_decay: f64,
    /// Half of `j_mean` + `f_mean`.
    pub jf_mean: f64,
}

impl Figures {
    /// The mean of each figure; NaN of none.
    pub fn mean_of(all: &[&Self]) -> Self {
        let over = |figure: fn(&Self) -> f64| mean(all.iter().map(|f| figure(f)));
        let (j_mean, f_mean) = (over(|f| f.j_mean), over(|f| f.f_mean));
        Self {
            j_mean,
            j_recall: over(|f| f.j_recall),
            j_decay: over(|f| f.j_decay),
            f_mean,
            f_recall: over(|f| f.f_recall),
            f_decay: over(|f| f.f_decay),
            jf_mean: f64::midpoint(j_mean, f_mean),
        }
    }
}

/// The figures of one sequence.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SequenceReport {
    /// How its masks were read.
    pub layout: Layout,
    /// Number of evaluated frames.
    pub frames: usize,
    /// Means over the sequence's objects.
    #[serde(flatten)]
    pub figures: Figures,
    /// Figures of each object by id.
    pub objects: BTreeMap<u8, Figures>,
}

impl From<&SequenceScore> for SequenceReport {
    fn from(score: &SequenceScore) -> Self {
        let objects: BTreeMap<u8, Figures> =
            score.objects.iter().map(|o| (o.id, o.figures())).collect();
        Self {
            layout: score.layout,
            frames: score.frames.len(),
            figures: Figures::mean_of(&objects.values().collect::<Vec<_>>()),
            objects,
        }
    }
}

/// The figures of a set of sequences, as the commands print them.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DavisReport {
    /// Means over all objects of all sequences.
    pub global: Figures,
    /// Figures of each sequence by name.
    pub sequences: BTreeMap<String, SequenceReport>,
}

impl DavisReport {
    /// The report on the sequences given by name.
    pub fn new(sequences: BTreeMap<String, SequenceReport>) -> Self {
        let objects: Vec<&Figures> = sequences.values().flat_map(|s| s.objects.values()).collect();
        Self { global: Figures::mean_of(&objects), sequences }
    }
}

#[cfg(test)]
mod tests;
