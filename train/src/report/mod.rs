//! What a run gave, as one page that needs nothing else: figures, curves, pictures.
//!
//! Everything is seen through the bundle that was written and the runtime's own labelling, so
//! that the page shows what the live path will show.

mod curves;
mod page;
mod pictures;

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use tch::Device;

use crate::config::TrainConfig;
use crate::data::Dataset;
use crate::progress::LOG_EVERY;
use crate::tensorboard::read_curves;
use crate::trainer::Trained;

/// Name of the page in a run's log folder.
pub const FILE_NAME: &str = "report.html";

/// What a page is made from.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// The recipe.
    pub config: &'a TrainConfig,
    /// Images and segments that were learnt from.
    pub dataset: &'a Dataset,
    /// What the run left.
    pub trained: &'a Trained,
    /// File from which the weights came, if any.
    pub weights: Option<&'a Path>,
    /// Where it was trained.
    pub device: Device,
    /// The bundle that was written.
    pub bundle: &'a Path,
    /// Folder of the run's event files, to which the page goes.
    pub log_dir: &'a Path,
}

/// Writes the page, under a temporary name first, and returns its path. `tick` is called after
/// each of the at most [`IMAGES`] images that are looked at.
///
/// # Errors
/// When the bundle does not run, the event files cannot be read or the page not be written.
pub fn write(source: &Source<'_>, tick: &dyn Fn()) -> Result<PathBuf> {
    let curves = read_curves(source.log_dir, LOG_EVERY)
        .with_context(|| format!("cannot read the log in {}", source.log_dir.display()))?;
    let charts = curves::charts(&curves)?;
    let pictures = pictures::gather(source, tick)?;
    let html = page::page(source, &charts, &pictures)?.into_string();
    let path = source.log_dir.join(FILE_NAME);
    conceptseg::files::write_atomic(&path, |file| file.write_all(html.as_bytes()))
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

pub use pictures::IMAGES;
