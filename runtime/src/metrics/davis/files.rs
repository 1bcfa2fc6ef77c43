//! The files of a sequence, and what can be found out about them before they are scored.

use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::{DavisError, FrameScorer, Layout, MIN_FRAMES};
use crate::datasets::files_with_extension;
use crate::labels::{LabelMap, png_size};

/// The frames of a sequence.
pub(super) struct Frames {
    /// The first annotation.
    pub(super) first: PathBuf,
    /// Annotation and prediction of every evaluated frame; all predictions are there.
    pub(super) pairs: Vec<(PathBuf, PathBuf)>,
}

impl Frames {
    /// Pairs the annotations with the predictions of the same names.
    pub(super) fn find(annotations: &Path, predictions: &Path) -> Result<Self, DavisError> {
        let files = files_with_extension(annotations, &["png"])
            .map_err(|source| DavisError::Folder { path: annotations.to_owned(), source })?;
        let (first, evaluated) = match files.as_slice() {
            [first, evaluated @ .., _] if files.len() >= MIN_FRAMES => (first, evaluated),
            _ => {
                let (path, frames) = (annotations.to_owned(), files.len());
                return Err(DavisError::TooShort { path, frames });
            }
        };
        let pairs: Vec<(PathBuf, PathBuf)> = evaluated
            .iter()
            .map(|a| (a.clone(), predictions.join(a.file_name().unwrap_or_default())))
            .collect();
        if let Some((annotation, path)) = pairs.iter().find(|(_, p)| !p.is_file()) {
            let (path, annotation) = (path.clone(), annotation.clone());
            return Err(DavisError::MissingPrediction { path, annotation });
        }
        Ok(Self { first: first.clone(), pairs })
    }
}

/// Checks that a sequence is long enough, that no prediction is missing and that all sizes are
/// equal, by the headers of the files alone. Gives the number of evaluated frames.
///
/// # Errors
/// [`DavisError`] for the first frame in order.
pub fn check_files(annotations: &Path, predictions: &Path) -> Result<usize, DavisError> {
    let Frames { first, pairs } = Frames::find(annotations, predictions)?;
    let expected = png_size(&first)?;
    for path in pairs.iter().flat_map(|(annotation, prediction)| [annotation, prediction]) {
        let found = png_size(path)?;
        if found != expected {
            return Err(DavisError::Size { path: path.clone(), found, expected });
        }
    }
    Ok(pairs.len())
}

/// Checks that no prediction of an evaluated frame holds a surplus id, frames in parallel;
/// `on_frame` is called after every one.
///
/// # Errors
/// [`DavisError`] for the first frame in order.
pub fn check_ids(
    annotations: &Path,
    predictions: &Path,
    layout: Option<Layout>,
    on_frame: &(dyn Fn() + Sync),
) -> Result<(), DavisError> {
    let Frames { first, pairs } = Frames::find(annotations, predictions)?;
    let scorer = FrameScorer::new(&LabelMap::read_png(&first)?, layout);
    let error = pairs.par_iter().find_map_first(|(_, path)| {
        let checked = LabelMap::read_png(path)
            .map_err(DavisError::from)
            .and_then(|map| scorer.check_ids(&map, path));
        on_frame();
        checked.err()
    });
    error.map_or(Ok(()), Err)
}
