//! Ranges of 8-bit integers, measured on the user's own frames.

use std::path::Path;

use anyhow::{Context as _, Result};
use conceptseg::backend::BackendOptions;
use conceptseg::bundle::Bundle;
use conceptseg::datasets::images::ImageSet;
use conceptseg::embed::InputSize;
use conceptseg::frame::{FrameView, Normalization, Preprocessor};
use conceptseg::onnx::Model;
use conceptseg::onnx::calibrate::Calibrator;

use crate::backend::on_cpu;
use crate::progress::progress_bar;

/// Frames that are looked at, at most; more change the ranges little.
const FRAMES: usize = 200;

/// Measures the ranges on the frames of a folder, evenly spread, and writes them to the plan store.
pub fn run(bundle: &Bundle, frames: &Path, size: InputSize) -> Result<()> {
    let images = ImageSet::open_folder(frames, Some(FRAMES))?;
    let model = Model::parse(&super::network(bundle).read()?)?;
    let mut calibrator = Calibrator::new(&model, &BackendOptions::new(on_cpu(), 0))?;
    let entry = &bundle.manifest.input;
    let mut preprocessor = Preprocessor::new(Normalization { mean: entry.mean, std: entry.std });
    let mut input = Vec::new();
    let bar = progress_bar("measuring ranges", "frames", images.len())?;
    for index in 0..images.len() {
        let image = images.read_image(index)?;
        let (width, height) = image.dimensions();
        let (w, h) = size.of_entry(&bundle.manifest.embedder, width, height);
        preprocessor.run(&FrameView::rgb(width, height, image.as_raw())?, w, h, &mut input)?;
        calibrator
            .observe(&input, w as usize, h as usize)
            .with_context(|| format!("measuring ranges on {}", images.name(index)))?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    let store = super::store(bundle);
    store.create()?;
    calibrator.finish().write(&store.calibration_path(&bundle.manifest.embedder.sha256))?;
    Ok(())
}
