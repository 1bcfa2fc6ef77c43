//! Checks an exported network against the one that was trained.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use conceptseg::backend::{self, BackendKind, BackendOptions, Images};
use conceptseg::frame::{FrameView, Normalization, Preprocessor, network_size};
use serde::Serialize;
use tch::{Tensor, no_grad};

use super::onnx::{ExportSize, INPUT, OUTPUT};
use crate::losses::segments::normalize;
use crate::network::Network;

/// Images as a network takes them.
pub struct ImageReader {
    preprocessor: Preprocessor,
    size: ExportSize,
    short_side: u32,
    values: Vec<f32>,
}

impl ImageReader {
    /// For this network; with [`ExportSize::Dynamic`], images get this short side in pixels.
    pub fn new(network: &Network, size: ExportSize, short_side: u32) -> Self {
        let (mean, std) = network.normalization();
        let preprocessor = Preprocessor::new(Normalization { mean, std });
        Self { preprocessor, size, short_side, values: Vec::new() }
    }

    /// An image resized and normalised, `[1, 3, H, W]`; `None` for a file that is no image.
    ///
    /// # Errors
    /// For an image whose size the runtime refuses.
    pub fn read(&mut self, path: &Path) -> anyhow::Result<Option<Tensor>> {
        let Ok(image) = image::open(path) else { return Ok(None) };
        let image = image.to_rgb8();
        let (w, h) = match self.size {
            ExportSize::Dynamic => network_size(image.width(), image.height(), self.short_side),
            ExportSize::Fixed { height, width } => (width, height),
        };
        let frame = FrameView::rgb(image.width(), image.height(), image.as_raw())
            .with_context(|| format!("{} cannot be used", path.display()))?;
        self.preprocessor.run(&frame, w, h, &mut self.values)?;
        Ok(Some(Tensor::from_slice(&self.values).view([1, 3, i64::from(h), i64::from(w)])))
    }
}

/// How far an exported network agrees with the network itself.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Agreement {
    /// What ran the exported network.
    pub backend: String,
    /// Images compared.
    pub images: usize,
    /// Largest absolute difference between two numbers of the unit embeddings.
    pub largest_difference: f64,
    /// Mean of the cosine between the two embeddings of a cell.
    pub cosine_mean: f64,
    /// The smallest of those cosines.
    pub cosine_min: f64,
}

/// Compares the unit embeddings of the ONNX file, run by the runtime, with those of the network
/// itself over up to `count` of the images, evenly spread.
///
/// # Errors
/// When the file does not run or none of the images can be read.
pub fn agreement(
    network: &Network,
    onnx: &Path,
    reader: &mut ImageReader,
    images: &[PathBuf],
    count: usize,
    kind: BackendKind,
) -> anyhow::Result<Agreement> {
    let backend = backend::open(onnx, INPUT, OUTPUT, &BackendOptions::new(kind, 0))?;
    let device = network.parameters().first().map_or(tch::Device::Cpu, |p| p.tensor.device());
    let mut output = Vec::new();
    let mut found = Agreement {
        backend: backend.describe(),
        images: 0,
        largest_difference: 0.0,
        cosine_mean: 0.0,
        cosine_min: f64::INFINITY,
    };
    for path in images.iter().step_by(images.len().div_ceil(count).max(1)) {
        let Some(image) = reader.read(path)? else { continue };
        let (_, _, h, w) = image.size4()?;
        let input = Vec::<f32>::try_from(image.flatten(0, -1))?;
        let shape = backend.run(Images::one(&input, w as usize, h as usize), &mut output)?;
        let expected = no_grad(|| {
            let map = network.forward(&image.to_device(device), false);
            normalize(&map.to_device(tch::Device::Cpu).permute([0, 2, 3, 1]))
        });
        let sides = [1, shape.dim as i64, shape.height as i64, shape.width as i64];
        let exported = Tensor::from_slice(&output).view(sides).permute([0, 2, 3, 1]);
        anyhow::ensure!(
            exported.size() == expected.size(),
            "the exported network gives {:?} instead of {:?}",
            exported.size(),
            expected.size()
        );
        let difference = (&exported - &expected).abs().max().double_value(&[]);
        anyhow::ensure!(
            exported.isfinite().all().int64_value(&[]) == 1,
            "the exported network gives infinite numbers for {}",
            path.display()
        );
        let cosine = (normalize(&exported) * expected).sum_dim_intlist(-1, false, None);
        found.images += 1;
        found.largest_difference = found.largest_difference.max(difference);
        found.cosine_mean += cosine.mean(None).double_value(&[]);
        found.cosine_min = found.cosine_min.min(cosine.min().double_value(&[]));
    }
    anyhow::ensure!(found.images > 0, "none of the images could be read to check the export");
    found.cosine_mean /= found.images as f64;
    Ok(found)
}

/// Short side of the images for [`compare_on_images`]: half of the runtime's, to take seconds.
const SHORT_SIDE: u32 = 240;

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
    let mut reader = ImageReader::new(network, size, SHORT_SIDE);
    // rten is there on every machine.
    let found = agreement(network, onnx, &mut reader, images, count, BackendKind::Rten)?;
    Ok(found.largest_difference)
}
