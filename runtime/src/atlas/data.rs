//! The figures of an atlas, as the page reads them.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use super::{Shown, projection};
use crate::bundle::{Bundle, Codebook, QUANTILES};
use crate::evaluate::concepts::{ConceptSummary, ImageConcepts, Segment, SummarySettings};
use crate::overlay::ConceptColors;

/// Bins of the distribution of similarities, from -1 or a multiple of a tenth to 1.
const BINS: usize = 25;
/// Concepts told of each: those it occurs together with, those like it.
const TOGETHER: usize = 16;
const ALIKE: usize = 8;
/// Classes told of each concept.
const CLASSES: usize = 6;

/// Figures of a dictionary on somebody's images.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AtlasData {
    /// Name of the bundle.
    pub bundle: String,
    /// What the images are called.
    pub source: String,
    /// Images.
    pub images: usize,
    /// Segments.
    pub segments: u64,
    /// Concepts with a segment.
    pub used: usize,
    /// Number of equally frequent concepts, counted in pixels, that would be as uneven.
    pub perplexity: f64,
    /// Names of the classes of the ground truth; none without.
    pub classes: Vec<String>,
    /// Mean purity of the scored concepts and the share of them above 80 %; none without classes.
    pub purity: Option<[f64; 2]>,
    /// Where the first bin of similarities begins; the last ends at 1.
    pub lowest: f64,
    /// The quantiles of [`ConceptData::quantiles`].
    pub quantiles: [f32; 5],
    /// Every concept of the dictionary.
    pub concepts: Vec<ConceptData>,
}

/// Figures of one concept.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ConceptData {
    /// Its segments.
    pub segments: u64,
    /// Images that hold at least one.
    pub images: u32,
    /// Share of the pixels of all segments, 0..1.
    pub area: f64,
    /// Mean cosine between its segments and the concept, weighted by area.
    pub similarity: f64,
    /// Segments by similarity.
    pub histogram: Vec<u32>,
    /// Quantiles of the similarity where the concept was learnt.
    pub quantiles: [f32; 5],
    /// Its segments where it was learnt.
    pub trained: f32,
    /// Share of its labelled segments in its most frequent class, and that class.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub purity: Option<(f64, usize)>,
    /// Its most frequent classes and their segments.
    pub classes: Vec<(u8, u64)>,
    /// How many of the shown segments are the nearest.
    pub nearest: usize,
    /// The shown segments: image and similarity.
    pub shown: Vec<(String, f32)>,
    /// Concepts that occur together with it: id, images that hold both, pointwise mutual
    /// information.
    pub together: Vec<(u16, u32, f64)>,
    /// The most similar concepts and their cosine.
    pub alike: Vec<(usize, f64)>,
    /// Its place in the plane, 0..1.
    pub at: [f32; 2],
    /// Its colour where people gave none.
    pub color: String,
}

impl AtlasData {
    pub(super) fn new(
        bundle: &Bundle,
        source: &str,
        classes: &[String],
        records: &[ImageConcepts],
        summed: &ConceptSummary,
        shown: &Shown,
        settings: &SummarySettings,
    ) -> Self {
        let codebook = &bundle.codebook;
        let counted = |segment: &&Segment| segment.area >= settings.min_area;
        let all = || records.iter().flat_map(|record| &record.segments).filter(counted);
        let least = all().map(|segment| f64::from(segment.similarity)).fold(1.0, f64::min);
        let lowest = ((10.0 * least).floor() / 10.0).clamp(-1.0, 0.9);

        let colors = ConceptColors::new(codebook.count);
        let at = projection::project(codebook);
        let mut concepts: Vec<ConceptData> = (0..codebook.count)
            .map(|id| {
                let [red, green, blue] = colors.get(id as u16);
                ConceptData {
                    segments: 0,
                    images: 0,
                    area: 0.0,
                    similarity: 0.0,
                    histogram: vec![0; BINS],
                    quantiles: quantiles(codebook, id),
                    trained: codebook.counts[id],
                    purity: None,
                    classes: Vec::new(),
                    nearest: shown.nearest.get(&(id as u16)).copied().unwrap_or(0),
                    shown: Vec::new(),
                    together: Vec::new(),
                    alike: alike(codebook, id),
                    at: at[id].map(|v| (1e4 * v).round() / 1e4),
                    color: format!("#{red:02x}{green:02x}{blue:02x}"),
                }
            })
            .collect();
        for one in &summed.dictionary.per_concept {
            let concept = &mut concepts[usize::from(one.concept)];
            (concept.segments, concept.images) = (one.segments, one.images);
            (concept.area, concept.similarity) =
                (rounded(one.area_share, 1e6), rounded(one.similarity, 1e4));
        }
        let mut by_class: Vec<BTreeMap<u8, u64>> = vec![BTreeMap::new(); codebook.count];
        for segment in all() {
            let id = usize::from(segment.concept);
            let share = (f64::from(segment.similarity) - lowest) / (1.0 - lowest);
            let bin = ((share * BINS as f64) as usize).min(BINS - 1);
            concepts[id].histogram[bin] += 1;
            if let Some(class) = segment.class {
                *by_class[id].entry(class).or_default() += 1;
            }
        }
        for (concept, classes) in concepts.iter_mut().zip(by_class) {
            concept.classes = classes.into_iter().collect();
            concept.classes.sort_by_key(|&(class, n)| (std::cmp::Reverse(n), class));
            concept.classes.truncate(CLASSES);
        }
        for one in summed.purity.iter().flat_map(|purity| &purity.per_concept) {
            concepts[one.concept].purity = Some((rounded(one.purity, 1e4), one.class));
        }
        for edge in &summed.graph.edges {
            let pmi = rounded(edge.pmi, 1e3);
            concepts[usize::from(edge.a)].together.push((edge.b, edge.images, pmi));
            concepts[usize::from(edge.b)].together.push((edge.a, edge.images, pmi));
        }
        for concept in &mut concepts {
            concept.together.sort_by(|x, y| y.2.total_cmp(&x.2).then(x.0.cmp(&y.0)));
            concept.together.truncate(TOGETHER);
        }
        let by_name: HashMap<&str, &ImageConcepts> =
            records.iter().map(|record| (&*record.image, record)).collect();
        for (&id, samples) in &shown.samples {
            let similarity = |image: &str, segment: usize| {
                by_name.get(image)?.segments.get(segment).map(|s| s.similarity)
            };
            concepts[usize::from(id)].shown = samples
                .iter()
                .map(|s| (s.image.clone(), similarity(&s.image, s.segment).unwrap_or(0.0)))
                .map(|(image, value)| (image, (1e3 * value).round() / 1e3))
                .collect();
        }
        Self {
            bundle: bundle.manifest.name.clone(),
            source: source.to_owned(),
            images: summed.images,
            segments: summed.dictionary.segments,
            used: summed.dictionary.used,
            perplexity: rounded(summed.dictionary.perplexity_area, 10.0),
            classes: classes.to_vec(),
            purity: summed.purity.as_ref().map(|p| [p.mean, p.above_80].map(|v| rounded(v, 1e4))),
            lowest,
            quantiles: QUANTILES,
            concepts,
        }
    }
}

fn rounded(value: f64, parts: f64) -> f64 {
    (parts * value).round() / parts
}

fn quantiles(codebook: &Codebook, id: usize) -> [f32; 5] {
    let mut quantiles = [0.0; QUANTILES.len()];
    let from = &codebook.similarity_quantiles[id * QUANTILES.len()..];
    for (to, &value) in quantiles.iter_mut().zip(from) {
        *to = (1e3 * value).round() / 1e3;
    }
    quantiles
}

/// The other concepts of the highest cosine.
fn alike(codebook: &Codebook, id: usize) -> Vec<(usize, f64)> {
    let mut others: Vec<(usize, f64)> = (0..codebook.count)
        .filter(|&other| other != id)
        .map(|other| (other, rounded(projection::cosine(codebook, id, other), 1e3)))
        .collect();
    others.sort_by(|x, y| y.1.total_cmp(&x.1).then(x.0.cmp(&y.0)));
    others.truncate(ALIKE);
    others
}
