//! How far the concepts of the live path show one class each.

use std::sync::Arc;

use super::run::Stage;
use super::{Embedder, EvaluateError, for_each_image, units};
use crate::concepts::{ConceptLabeler, ConceptMap, SegmentationConfig};
use crate::datasets::segmentation::SegmentationDataset;
use crate::embed::Model;
use crate::metrics::purity::PurityCounts;

/// Labels all images of `set` with concepts and counts the classes of their segments. Segments
/// of fewer than `min_area` pixels are left out.
pub fn count(
    model: &Arc<Model>,
    set: &SegmentationDataset,
    short_side: u32,
    settings: &SegmentationConfig,
    min_area: u32,
    tick: &(dyn Fn() + Sync),
) -> Result<PurityCounts, EvaluateError> {
    let (codebook, classes) = (model.codebook(), set.classes.count());
    let init = || (Embedder::new(model, short_side), ConceptLabeler::new(), ConceptMap::default());
    let stage = Stage::in_memory(&units(set));
    for_each_image(
        set,
        &stage,
        init,
        |(embedder, labeler, map), _, image, labels| {
            let embedding = embedder.embed(image, 1.0)?;
            labeler.label(embedding, codebook, settings, image.width(), image.height(), map)?;
            let mut pixels = vec![0u64; map.segment_list.len() * classes];
            for (&segment, &class) in map.segments.iter().zip(&labels.data) {
                if class != set.classes.void {
                    pixels[usize::from(segment) * classes + usize::from(class)] += 1;
                }
            }
            let segments = map.segment_list.iter().zip(pixels.chunks_exact(classes));
            Ok(segments
                .filter(|(segment, _)| segment.area >= min_area)
                .map(|(segment, pixels)| (segment.concept, pixels.to_vec()))
                .collect::<Vec<_>>())
        },
        tick,
    )?;
    let counts = stage.finish().unwrap_or_default();
    let mut sum = PurityCounts::new(codebook.count, classes);
    for (concept, pixels) in counts.iter().flatten() {
        sum.add(usize::from(*concept), pixels);
    }
    Ok(sum)
}
