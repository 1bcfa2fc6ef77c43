//! Checks an exported network against the one that was trained.

use std::path::{Path, PathBuf};

use conceptseg::backend::{self, BackendKind, BackendOptions};
use conceptseg::frame::{FrameView, Normalization, Preprocessor, network_size};
use tch::{Tensor, no_grad};

use super::onnx::{ExportSize, INPUT, OUTPUT};
use crate::losses::segments::normalize;
use crate::network::Network;

/// Largest absolute difference between the unit embeddings of the ONNX file, run by the
/// runtime, and those of the network itself, over `count` of the images.
///
/// # Errors
/// When the file does not run or none of the images can be read.
pub fn compare_on_images(
    network: &Network,
    onnx: &Path,
    size: ExportSize,
    images: &[PathBuf],
    count: usize,
) -> anyhow::Result<f64> {
    // rten is there on every machine.
    let options = BackendOptions { kind: BackendKind::Rten, threads: 0 };
    let backend = backend::open(onnx, INPUT, OUTPUT, &options)?;
    let device = network.parameters().first().map_or(tch::Device::Cpu, |p| p.tensor.device());
    let (mean, std) = network.normalization();
    let mut preprocessor = Preprocessor::new(Normalization { mean, std });
    let (mut input, mut output) = (Vec::new(), Vec::new());
    let mut largest: f64 = 0.0;
    let mut compared = 0;
    for path in images.iter().step_by(images.len().div_ceil(count).max(1)) {
        let Ok(image) = image::open(path) else { continue };
        let image = image.to_rgb8();
        let (w, h) = match size {
            ExportSize::Dynamic => network_size(image.width(), image.height(), 240),
            ExportSize::Fixed { height, width } => (width, height),
        };
        let frame = FrameView::rgb(image.width(), image.height(), image.as_raw())?;
        preprocessor.run(&frame, w, h, &mut input)?;
        let shape = backend.run(&input, w as usize, h as usize, &mut output)?;
        let expected = no_grad(|| {
            let images = Tensor::from_slice(&input)
                .view([1, 3, i64::from(h), i64::from(w)])
                .to_device(device);
            let map = network.forward(&images, false).to_device(tch::Device::Cpu);
            normalize(&map.permute([0, 2, 3, 1])).permute([0, 3, 1, 2]).contiguous()
        });
        let found = Tensor::from_slice(&output).view([
            1,
            shape.dim as i64,
            shape.height as i64,
            shape.width as i64,
        ]);
        anyhow::ensure!(
            found.size() == expected.size(),
            "the exported network gives {:?} instead of {:?}",
            found.size(),
            expected.size()
        );
        largest = largest.max((found - expected).abs().max().double_value(&[]));
        compared += 1;
    }
    anyhow::ensure!(compared > 0, "none of the images could be read to check the export");
    Ok(largest)
}
