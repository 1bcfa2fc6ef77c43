//! What the records of a set of images come to.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::graph::ConceptGraph;
use super::record::{ImageConcepts, Segment};
use super::sample::{self, Sample};
use crate::evaluate::EvaluateError;
use crate::metrics::purity::{PurityCounts, PurityReport};

/// How records are summed up.
#[derive(Debug, Clone, PartialEq)]
pub struct SummarySettings {
    /// Classes of the ground truth; none: there is no purity.
    pub classes: Option<usize>,
    /// Segments of fewer pixels are left out of everything.
    pub min_area: u32,
    /// Concepts with fewer labelled segments have no purity.
    pub min_segments: u64,
    /// Concepts that share fewer images are not joined in the graph.
    pub min_images: u32,
    /// Only a larger pointwise mutual information joins two concepts in the graph, nats.
    pub min_pmi: f64,
    /// Segments drawn of each concept.
    pub samples: usize,
    /// Decides which.
    pub seed: u64,
}

impl Default for SummarySettings {
    fn default() -> Self {
        Self {
            classes: None,
            min_area: 0,
            min_segments: 1,
            min_images: 5,
            min_pmi: 0.0,
            samples: 8,
            seed: 0,
        }
    }
}

/// Everything that is told of a dictionary on a set of images.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ConceptSummary {
    /// Images.
    pub images: usize,
    /// How pure concepts are; none without classes.
    pub purity: Option<PurityReport>,
    /// Which concepts are used, and how evenly.
    pub dictionary: DictionaryUse,
    /// Which concepts occur together.
    pub graph: ConceptGraph,
    /// Random segments of each concept in use.
    #[serde(skip)]
    pub samples: BTreeMap<u16, Vec<Sample>>,
}

/// Use of a dictionary.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DictionaryUse {
    /// Concepts of the dictionary.
    pub concepts: usize,
    /// Concepts with a segment.
    pub used: usize,
    /// Segments.
    pub segments: u64,
    /// Pixels of all segments.
    pub area: u64,
    /// Number of equally frequent concepts that would be as uneven, counted in segments: e to
    /// the entropy of their shares. 0 where there is none.
    pub perplexity_segments: f64,
    /// The same, counted in pixels.
    pub perplexity_area: f64,
    /// Concepts without a segment.
    pub never_used: Vec<u16>,
    /// The concepts in use, in the order of the dictionary.
    pub per_concept: Vec<ConceptUse>,
}

/// Use of one concept.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ConceptUse {
    /// Row of the dictionary.
    pub concept: u16,
    /// Its segments.
    pub segments: u64,
    /// Images that hold at least one.
    pub images: u32,
    /// Their pixels.
    pub area: u64,
    /// Share of the pixels of all segments, 0..1.
    pub area_share: f64,
    /// Mean cosine between its segments and the concept, weighted by area.
    pub similarity: f64,
}

/// Sums up records for a dictionary of `concepts` concepts. The order of the records does not
/// matter.
///
/// # Errors
/// [`EvaluateError::Record`] for a record that cannot belong to this dictionary and these
/// classes, or for two of one image.
pub fn summary(
    records: &[ImageConcepts],
    concepts: usize,
    settings: &SummarySettings,
) -> Result<ConceptSummary, EvaluateError> {
    // Sums of floating-point numbers are taken in one order, by name.
    let mut records: Vec<&ImageConcepts> = records.iter().collect();
    records.sort_by(|a, b| a.image.cmp(&b.image));
    check(&records, concepts, settings.classes)?;
    let counted = |segment: &&Segment| segment.area >= settings.min_area;
    let present: Vec<Vec<u16>> = records
        .iter()
        .map(|record| {
            let found: BTreeSet<u16> =
                record.segments.iter().filter(counted).map(|s| s.concept).collect();
            found.into_iter().collect()
        })
        .collect();
    let segments = || records.iter().flat_map(|record| &record.segments).filter(counted);
    let purity = settings.classes.map(|classes| {
        let mut counts = PurityCounts::new(concepts, classes);
        for segment in segments() {
            counts.add_segment(usize::from(segment.concept), segment.class.map(usize::from));
        }
        counts.report(settings.min_segments)
    });
    Ok(ConceptSummary {
        images: records.len(),
        purity,
        dictionary: dictionary_use(segments(), &present, concepts),
        graph: ConceptGraph::new(&present, settings.min_images, settings.min_pmi),
        samples: sample::draw(&records, settings.samples, settings.seed, settings.min_area),
    })
}

/// Refuses what cannot be summed up. `records` are sorted by name.
fn check(
    records: &[&ImageConcepts],
    concepts: usize,
    classes: Option<usize>,
) -> Result<(), EvaluateError> {
    let refuse = |record: &ImageConcepts, what: String| {
        Err(EvaluateError::Record { image: record.image.clone(), what })
    };
    if let Some(pair) = records.windows(2).find(|pair| pair[0].image == pair[1].image) {
        return refuse(pair[0], "there are two of it".to_owned());
    }
    for record in records {
        for segment in &record.segments {
            let concept = usize::from(segment.concept);
            if concept >= concepts {
                let what = format!("it has the concept {concept}, the dictionary has {concepts}");
                return refuse(record, what);
            }
            let known = |class: u8| classes.is_none_or(|classes| usize::from(class) < classes);
            if let Some(class) = segment.class.filter(|&class| !known(class)) {
                return refuse(record, format!("it has the unknown class {class}"));
            }
        }
    }
    Ok(())
}

fn dictionary_use<'a>(
    segments: impl Iterator<Item = &'a Segment>,
    present: &[Vec<u16>],
    concepts: usize,
) -> DictionaryUse {
    let none = |id| ConceptUse {
        concept: id as u16,
        segments: 0,
        images: 0,
        area: 0,
        area_share: 0.0,
        similarity: 0.0,
    };
    let mut all: Vec<ConceptUse> = (0..concepts).map(none).collect();
    for segment in segments {
        let one = &mut all[usize::from(segment.concept)];
        one.segments += 1;
        one.area += u64::from(segment.area);
        one.similarity += f64::from(segment.area) * f64::from(segment.similarity);
    }
    for &concept in present.iter().flatten() {
        all[usize::from(concept)].images += 1;
    }
    let (unused, mut used): (Vec<_>, Vec<_>) = all.into_iter().partition(|c| c.segments == 0);
    let area: u64 = used.iter().map(|c| c.area).sum();
    for one in &mut used {
        one.area_share = one.area as f64 / area.max(1) as f64;
        one.similarity /= one.area.max(1) as f64;
    }
    DictionaryUse {
        concepts,
        used: used.len(),
        segments: used.iter().map(|c| c.segments).sum(),
        area,
        perplexity_segments: perplexity(used.iter().map(|c| c.segments)),
        perplexity_area: perplexity(used.iter().map(|c| c.area)),
        never_used: unused.iter().map(|c| c.concept).collect(),
        per_concept: used,
    }
}

/// e to the entropy of the shares; 0 where nothing is counted.
fn perplexity(counts: impl Iterator<Item = u64> + Clone) -> f64 {
    let total: u64 = counts.clone().sum();
    if total == 0 {
        return 0.0;
    }
    let terms = counts.filter(|&count| count > 0).map(|count| {
        let share = count as f64 / total as f64;
        share * libm::log(share)
    });
    libm::exp(-terms.sum::<f64>())
}

#[cfg(test)]
mod tests;
