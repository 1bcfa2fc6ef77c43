//! The concepts of one image, as a record that can be kept.

use std::collections::BTreeMap;
use std::sync::Arc;

use image::RgbImage;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::concepts::{ConceptLabeler, ConceptMap, SegmentationConfig};
use crate::datasets::images::ImageSet;
use crate::datasets::segmentation::Classes;
use crate::embed::Model;
use crate::evaluate::report;
use crate::evaluate::run::{Stage, Unit};
use crate::evaluate::{Embedder, EvaluateError};
use crate::labels::LabelMap;
use crate::metrics::purity::majority;

/// What one image has to say about the dictionary.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ImageConcepts {
    /// Name of the image, its own within a set.
    pub image: String,
    /// Its width and height in pixels.
    pub size: [u32; 2],
    /// Its segments, in raster order of their first pixel.
    pub segments: Vec<Segment>,
}

impl ImageConcepts {
    /// What a report keeps of it: how many segments of at least `min_area` pixels each concept
    /// has in each class.
    pub fn counts(&self, min_area: u32) -> report::ImageConcepts {
        let mut unlabelled = 0;
        let mut counts: BTreeMap<(u16, u8), u64> = BTreeMap::new();
        for segment in self.segments.iter().filter(|segment| segment.area >= min_area) {
            match segment.class {
                Some(class) => *counts.entry((segment.concept, class)).or_default() += 1,
                None => unlabelled += 1,
            }
        }
        let segments = counts.into_iter().map(|((concept, class), n)| (concept, class, n));
        report::ImageConcepts { name: self.image.clone(), segments: segments.collect(), unlabelled }
    }
}

/// A connected area of one concept.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Segment {
    /// Row of the dictionary.
    pub concept: u16,
    /// Cosine between the area's mean embedding and the concept, -1..1.
    pub similarity: f32,
    /// Pixels.
    pub area: u32,
    /// Smallest box around it: x, y, width, height.
    pub bbox: [u32; 4],
    /// The class of most of its labelled pixels, of equal ones the lowest; none where no pixel
    /// has a class, or the image no labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<u8>,
}

/// Labels still images with concepts, as a stream labels its frames; keeps its scratch.
#[derive(Debug)]
pub struct Recorder {
    model: Arc<Model>,
    embedder: Embedder,
    labeler: ConceptLabeler,
    settings: SegmentationConfig,
    map: ConceptMap,
}

impl Recorder {
    /// For images brought to `short_side` pixels; bundles of a fixed size ignore that.
    pub fn new(model: &Arc<Model>, short_side: u32, settings: &SegmentationConfig) -> Self {
        Self {
            model: Arc::clone(model),
            embedder: Embedder::new(model, short_side),
            labeler: ConceptLabeler::new(),
            settings: settings.clone(),
            map: ConceptMap::default(),
        }
    }

    /// The concepts of `image`, pixel by pixel.
    pub fn label(&mut self, image: &RgbImage) -> Result<&ConceptMap, EvaluateError> {
        let embedding = self.embedder.embed(image, 1.0)?;
        let (width, height) = image.dimensions();
        let codebook = self.model.codebook();
        self.labeler.label(embedding, codebook, &self.settings, width, height, &mut self.map)?;
        Ok(&self.map)
    }

    /// The record of `image`. Labels are checked ones of the image's size, with their classes.
    pub fn record(
        &mut self,
        name: &str,
        image: &RgbImage,
        labels: Option<(&LabelMap, &Classes)>,
    ) -> Result<ImageConcepts, EvaluateError> {
        let map = self.label(image)?;
        let classes = match labels {
            Some((labels, classes)) => majorities(map, labels, classes),
            None => vec![None; map.segment_list.len()],
        };
        let segments = map.segment_list.iter().zip(classes).map(|(segment, class)| Segment {
            concept: segment.concept,
            similarity: segment.similarity,
            area: segment.area,
            bbox: segment.bbox,
            class,
        });
        Ok(ImageConcepts {
            image: name.to_owned(),
            size: [map.width, map.height],
            segments: segments.collect(),
        })
    }
}

/// The class of each segment.
fn majorities(map: &ConceptMap, labels: &LabelMap, classes: &Classes) -> Vec<Option<u8>> {
    let count = classes.count();
    let mut pixels = vec![0u64; map.segment_list.len() * count];
    for (&segment, &class) in map.segments.iter().zip(&labels.data) {
        if class != classes.void {
            pixels[usize::from(segment) * count + usize::from(class)] += 1;
        }
    }
    pixels.chunks_exact(count).map(|pixels| majority(pixels).map(|class| class as u8)).collect()
}

/// The images of a set as units of a run.
pub fn units(images: &ImageSet) -> Vec<Unit> {
    let unit = |index| Unit { name: images.name(index).to_owned(), files: images.files(index) };
    (0..images.len()).map(unit).collect()
}

/// Makes the records of the images of a stage that are still to do, on all cores; `tick` is
/// called after each.
pub fn records(
    model: &Arc<Model>,
    images: &ImageSet,
    short_side: u32,
    settings: &SegmentationConfig,
    stage: &Stage<ImageConcepts>,
    tick: &(dyn Fn() + Sync),
) -> Result<(), EvaluateError> {
    stage.pending().par_iter().with_max_len(1).try_for_each_init(
        || Recorder::new(model, short_side, settings),
        |recorder, &index| {
            let (image, labels) = (images.read_image(index)?, images.read_labels(index)?);
            let labels = labels.as_ref().zip(images.classes());
            stage.put(index, recorder.record(images.name(index), &image, labels)?)?;
            tick();
            Ok(())
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::concepts::ConceptSegment;

    #[test]
    fn a_segment_has_the_class_of_most_of_its_labelled_pixels() {
        let segment = |area| ConceptSegment { concept: 0, similarity: 1.0, area, bbox: [0; 4] };
        let map = ConceptMap {
            width: 4,
            height: 2,
            concepts: vec![0; 8],
            segments: vec![0, 0, 1, 1, 0, 0, 2, 2],
            segment_list: vec![segment(4), segment(2), segment(2)],
        };
        let labels = LabelMap { width: 4, height: 2, data: vec![255, 1, 1, 0, 255, 255, 255, 255] };
        let classes = Classes::new(&["a", "b"], 255);
        // The tie of the second goes to the lower class, the third has void only.
        assert_eq!(majorities(&map, &labels, &classes), [Some(1), Some(0), None]);
    }

    #[test]
    fn a_report_counts_the_segments_of_each_concept_and_class() {
        let segment = |concept, area, class| Segment {
            concept,
            similarity: 0.5,
            area,
            bbox: [0, 0, area, 1],
            class,
        };
        let segments = vec![
            segment(4, 9, Some(1)),
            segment(4, 5, Some(1)),
            segment(4, 9, Some(0)),
            segment(4, 1, Some(0)),
            segment(2, 9, None),
        ];
        let record = ImageConcepts { image: "a".to_owned(), size: [40, 40], segments };
        let counts = record.counts(2);
        assert_eq!((counts.segments, counts.unlabelled), (vec![(4, 0, 1), (4, 1, 2)], 1));
    }

    #[test]
    fn a_record_reads_back_equal() {
        let segment = Segment {
            concept: 300,
            similarity: 0.123_456_79,
            area: 70_000,
            bbox: [1, 2, 300, 400],
            class: Some(4),
        };
        let record = ImageConcepts {
            image: "a".to_owned(),
            size: [640, 480],
            segments: vec![segment, Segment { similarity: -1e-7, class: None, ..segment }],
        };
        let text = serde_json::to_string(&record).unwrap();
        assert_eq!(text.matches("class").count(), 1, "{text}");
        assert_eq!(serde_json::from_str::<ImageConcepts>(&text).unwrap(), record);
    }
}
