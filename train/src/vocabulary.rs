//! Statistics of the concepts over images, as the runtime sees them.
//!
//! They are gathered with the exported network and the runtime's own labelling, so that
//! what a bundle calls usual is what the live path will compare with.

use std::path::Path;

use conceptseg::backend::BackendOptions;
use conceptseg::bundle::{Codebook, QUANTILES, SizeRule};
use conceptseg::concepts::{ConceptLabeler, ConceptMap, SegmentationConfig};
use conceptseg::embed::{EmbeddingMap, Model};
use conceptseg::frame::{FrameView, Normalization, Preprocessor, network_size};
use indicatif::ProgressBar;

/// What [`observe`] found.
#[derive(Debug)]
pub struct Observed {
    /// The codebook with its statistics filled in.
    pub codebook: Codebook,
    /// Number of concepts that occurred.
    pub used: usize,
    /// Exponential of the entropy of the concept counts, from 1 to K.
    pub perplexity: f64,
}

/// Labels `images` with the bundle in `dir` and counts: segments per concept, images in
/// which two concepts occur together, quantiles of the similarity.
///
/// Damaged images are left out.
///
/// # Errors
/// When the bundle does not run.
pub fn observe(
    dir: &Path,
    images: &[std::path::PathBuf],
    short_side: u32,
    bar: &ProgressBar,
) -> anyhow::Result<Observed> {
    let model = Model::open(dir, &BackendOptions::default())?;
    let mut codebook = model.codebook().clone();
    let k = codebook.count;
    let manifest = &model.bundle().manifest;
    let (mean, std) = (manifest.input.mean, manifest.input.std);
    let mut preprocessor = Preprocessor::new(Normalization { mean, std });
    let mut labeler = ConceptLabeler::default();
    let (mut input, mut scratch) = (Vec::new(), Vec::new());
    let (mut embedding, mut map) = (EmbeddingMap::default(), ConceptMap::default());
    let mut similarities: Vec<Vec<f32>> = vec![Vec::new(); k];
    for path in images {
        bar.inc(1);
        let Ok(image) = image::open(path) else { continue };
        let image = image.to_rgb8();
        let frame = FrameView::rgb(image.width(), image.height(), image.as_raw())?;
        let (w, h) = match manifest.embedder.size {
            SizeRule::Dynamic => network_size(image.width(), image.height(), short_side),
            SizeRule::Fixed([h, w]) => (w, h),
        };
        preprocessor.run(&frame, w, h, &mut input)?;
        model.embed(&input, w as usize, h as usize, &mut scratch, &mut embedding)?;
        let settings = SegmentationConfig::default();
        labeler.label(&embedding, &codebook, &settings, image.width(), image.height(), &mut map)?;
        let mut present: Vec<usize> = Vec::new();
        for segment in &map.segment_list {
            let id = usize::from(segment.concept);
            similarities[id].push(segment.similarity);
            present.push(id);
        }
        present.sort_unstable();
        present.dedup();
        for &a in &present {
            for &b in &present {
                codebook.cooccurrence[a * k + b] += 1.0;
            }
        }
    }
    for (id, values) in similarities.iter_mut().enumerate() {
        codebook.counts[id] = values.len() as f32;
        values.sort_unstable_by(f32::total_cmp);
        for (slot, q) in QUANTILES.iter().enumerate() {
            let at = (values.len().saturating_sub(1) as f32 * q).round() as usize;
            codebook.similarity_quantiles[id * QUANTILES.len() + slot] =
                values.get(at).copied().unwrap_or(0.0);
        }
    }
    let total: f32 = codebook.counts.iter().sum();
    let entropy: f64 = codebook
        .counts
        .iter()
        .filter(|&&c| c > 0.0)
        .map(|&c| f64::from(c / total))
        .map(|p| -p * p.ln())
        .sum();
    let used = codebook.counts.iter().filter(|&&c| c > 0.0).count();
    Ok(Observed { codebook, used, perplexity: entropy.exp() })
}
