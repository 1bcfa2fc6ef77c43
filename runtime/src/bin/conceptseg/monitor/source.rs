//! Where frames come from, and what labels them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use conceptseg::datasets::files_with_extension;
use conceptseg::embed::Model;
use conceptseg::stream::{StreamConfig, StreamState};
use image::RgbImage;

use crate::backend::BackendArgs;

/// The network and how it sees frames.
#[derive(Debug, clap::Args)]
pub struct NetworkArgs {
    /// Folder of the model bundle.
    #[arg(long, value_name = "DIR")]
    pub bundle: PathBuf,
    #[command(flatten)]
    backend: BackendArgs,
    /// Short side of the network's input in pixels; bundles of a fixed size ignore it.
    #[arg(long, default_value_t = 240, value_parser = clap::value_parser!(u32).range(32..=4096))]
    short_side: u32,
}

impl NetworkArgs {
    pub fn open(&self) -> Result<Arc<Model>> {
        Ok(Model::open(&self.bundle, &self.backend.options())?)
    }

    pub fn short_side(&self) -> u32 {
        self.short_side
    }

    pub fn stream(&self, model: &Arc<Model>) -> StreamState {
        let config = StreamConfig { short_side: self.short_side, ..StreamConfig::default() };
        StreamState::new(Arc::clone(model), config)
    }
}

/// The images of a folder in the order of their names.
pub fn images(folder: &Path) -> Result<Vec<PathBuf>> {
    let files = files_with_extension(folder, &["jpg", "jpeg", "png"])
        .with_context(|| format!("cannot read the folder {}", folder.display()))?;
    ensure!(!files.is_empty(), "{} holds no image (jpg, jpeg, png)", folder.display());
    Ok(files)
}

/// An image as RGB.
pub fn read(path: &Path) -> Result<RgbImage> {
    let image = image::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(image.into_rgb8())
}

/// A stream's name: that of its folder or file.
pub fn name_of(path: &Path) -> String {
    let name = if path.is_dir() { path.file_name() } else { path.file_stem() };
    name.map_or_else(|| "stream".to_owned(), |name| name.to_string_lossy().into_owned())
}
