//! The same frames through two models, and how far the results agree.

use std::sync::Arc;

use anyhow::Result;
use conceptseg::concepts::{ConceptLabeler, ConceptMap, SegmentationConfig};
use conceptseg::embed::{EmbeddingMap, FrameEmbedder, InputSize, Model};
use conceptseg::frame::FrameView;
use conceptseg::labels::LabelMap;
use conceptseg::propagate::{MaskMap, PropagationConfig, Propagator};

/// Objects that are carried where no mask is given, at most.
const OBJECTS: usize = 8;

/// What one model makes of the frames.
struct Side {
    embedder: FrameEmbedder,
    labeler: ConceptLabeler,
    propagator: Propagator,
    concepts: ConceptMap,
    masks: MaskMap,
}

impl Side {
    fn new(model: Arc<Model>) -> Self {
        Self {
            embedder: FrameEmbedder::new(model),
            labeler: ConceptLabeler::new(),
            propagator: Propagator::new(PropagationConfig::default()),
            concepts: ConceptMap::default(),
            masks: MaskMap::default(),
        }
    }

    fn embed(&mut self, frame: &FrameView<'_>, size: InputSize) -> Result<()> {
        self.embedder.prepare(frame, size)?;
        self.embedder.embed()?;
        let (map, codebook) = (self.embedder.map(), self.embedder.model().codebook());
        let config = SegmentationConfig::default();
        self.labeler.label(
            map,
            codebook,
            &config,
            frame.width(),
            frame.height(),
            &mut self.concepts,
        )?;
        Ok(())
    }
}

/// Two models, the second of which is held against the first.
pub struct Comparison {
    sides: [Side; 2],
    size: InputSize,
    frames: usize,
    /// Cosine of each cell's two embeddings.
    cosines: Vec<f32>,
    same_concept: Share,
    same_mask: Share,
}

/// Pixels that agree, of all.
#[derive(Debug, Default, Clone, Copy)]
struct Share {
    same: u64,
    all: u64,
}

impl Share {
    fn add<T: PartialEq>(&mut self, a: &[T], b: &[T]) {
        self.same += a.iter().zip(b).filter(|(a, b)| a == b).count() as u64;
        self.all += a.len() as u64;
    }

    /// Per cent; nothing where nothing was compared.
    fn percent(self) -> Option<f64> {
        (self.all > 0).then(|| 100.0 * self.same as f64 / self.all as f64)
    }
}

/// The figures.
#[derive(Debug, serde::Serialize)]
pub struct Agreement {
    /// Frames compared.
    pub frames: usize,
    /// Cosine of each cell's two embeddings: the lowest, quantiles, the mean.
    pub cosine: Cosines,
    /// Pixels with the same concept, in per cent.
    pub concepts: Option<f64>,
    /// Pixels with the same instance after the first frame, in per cent; nothing with one frame.
    pub masks: Option<f64>,
}

/// How cosines are spread.
#[derive(Debug, serde::Serialize)]
pub struct Cosines {
    pub min: f64,
    pub q01: f64,
    pub q05: f64,
    pub median: f64,
    pub mean: f64,
}

impl Comparison {
    pub fn new(reference: Arc<Model>, other: Arc<Model>, size: InputSize) -> Self {
        Self {
            sides: [Side::new(reference), Side::new(other)],
            size,
            frames: 0,
            cosines: Vec::new(),
            same_concept: Share::default(),
            same_mask: Share::default(),
        }
    }

    /// Compares the next frame. Objects of the first one are the largest segments that the reference finds there,
    /// unless `mask` gives them.
    pub fn add(&mut self, frame: &FrameView<'_>, mask: Option<&LabelMap>) -> Result<()> {
        let (width, height) = (frame.width(), frame.height());
        for side in &mut self.sides {
            side.embed(frame, self.size)?;
        }
        let [reference, other] = &mut self.sides;
        cosines(reference.embedder.map(), other.embedder.map(), &mut self.cosines);
        self.same_concept.add(&reference.concepts.concepts, &other.concepts.concepts);
        if self.frames == 0 {
            let objects = mask.cloned().unwrap_or_else(|| largest_segments(&reference.concepts));
            for side in [reference, other] {
                side.propagator.start(side.embedder.map(), &objects)?;
            }
        } else {
            for side in [&mut *reference, &mut *other] {
                side.propagator.step(side.embedder.map(), width, height, &mut side.masks)?;
            }
            self.same_mask.add(&reference.masks.labels, &other.masks.labels);
        }
        self.frames += 1;
        Ok(())
    }

    pub fn finish(mut self) -> Agreement {
        self.cosines.sort_unstable_by(f32::total_cmp);
        let last = self.cosines.len().saturating_sub(1);
        let at = |share: f64| {
            let index = (share * last as f64).round() as usize;
            self.cosines.get(index).map_or(f64::NAN, |&cosine| f64::from(cosine))
        };
        let sum: f64 = self.cosines.iter().map(|&cosine| f64::from(cosine)).sum();
        Agreement {
            frames: self.frames,
            cosine: Cosines {
                min: at(0.0),
                q01: at(0.01),
                q05: at(0.05),
                median: at(0.5),
                mean: sum / self.cosines.len() as f64,
            },
            concepts: self.same_concept.percent(),
            masks: self.same_mask.percent(),
        }
    }
}

/// Cells where both networks saw nothing agree; where only one did, they do not.
fn cosines(a: &EmbeddingMap, b: &EmbeddingMap, out: &mut Vec<f32>) {
    let zero = |cell: &[f32]| cell.iter().all(|&value| value == 0.0);
    out.extend(a.data.chunks_exact(a.dim.max(1)).zip(b.data.chunks_exact(b.dim.max(1))).map(
        |(a, b)| {
            if zero(a) && zero(b) { 1.0 } else { a.iter().zip(b).map(|(x, y)| x * y).sum() }
        },
    ));
}

/// The largest segments of a frame as objects.
fn largest_segments(map: &ConceptMap) -> LabelMap {
    let mut order: Vec<usize> = (0..map.segment_list.len()).collect();
    order.sort_by_key(|&index| std::cmp::Reverse(map.segment_list[index].area));
    let mut ids = vec![0; map.segment_list.len()];
    for (rank, &index) in order.iter().take(OBJECTS).enumerate() {
        ids[index] = rank as u8 + 1;
    }
    let data = map.segments.iter().map(|&segment| ids[usize::from(segment)]).collect();
    LabelMap { width: map.width, height: map.height, data }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::fixtures::write_tiny_bundle;
    use conceptseg::backend::{BackendKind, BackendOptions};
    use conceptseg::scene::{Scene, SceneConfig};

    fn map(dim: usize, data: &[f32]) -> EmbeddingMap {
        EmbeddingMap { height: 1, width: data.len() / dim, dim, stride: 8, data: data.to_vec() }
    }

    #[test]
    fn cosines_are_taken_cell_by_cell() {
        let mut out = Vec::new();
        let a = map(2, &[1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0]);
        let b = map(2, &[1.0, 0.0, 0.6, 0.8, 0.0, 0.0, 1.0, 0.0]);
        cosines(&a, &b, &mut out);
        assert_eq!(out, [1.0, 0.8, 1.0, 0.0]);
    }

    #[test]
    fn a_model_agrees_with_itself() {
        let bundle = tempfile::tempdir().unwrap();
        write_tiny_bundle(bundle.path());
        let model = Model::open(bundle.path(), &BackendOptions::new(BackendKind::Rten, 1)).unwrap();
        let mut comparison = Comparison::new(Arc::clone(&model), model, InputSize::ShortSide(64));
        let scene = Scene::new(SceneConfig { width: 96, height: 64, frames: 3, seed: 1 }).unwrap();
        for index in 0..3 {
            let frame = scene.frame(index);
            let view = FrameView::rgb(96, 64, frame.image.as_raw()).unwrap();
            comparison.add(&view, None).unwrap();
        }
        let agreement = comparison.finish();
        assert_eq!(agreement.frames, 3);
        assert!(agreement.cosine.min > 0.999, "{agreement:?}");
        assert_eq!((agreement.concepts, agreement.masks), (Some(100.0), Some(100.0)));
    }

    #[test]
    fn one_frame_has_no_masks_to_compare() {
        let share = Share::default();
        assert_eq!(share.percent(), None);
    }
}
