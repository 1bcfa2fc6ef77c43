//! What is normal: per concept its area, how often it occurs, how similar its segments are to
//! it, and which concepts occur together.
//!
//! It comes with a bundle ([`Baseline::of_bundle`]), from the images that the concepts were
//! learnt from, or better from footage of the place that is going to be watched
//! ([`BaselineBuilder`]).

use std::collections::HashMap;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use super::Sighting;
use crate::bundle::{Bundle, Codebook, ConceptNames, MAX_CONCEPTS};
use crate::files::write_atomic;

/// What the files are called in their own metadata.
const FORMAT: &str = "conceptseg-baseline-1";
/// No file of the largest codebook is longer.
const MAX_BYTES: u64 = 32 << 20;
/// The quantile below which a segment counts as novel.
pub const NOVEL_QUANTILE: f64 = 0.05;
/// Quantiles of fewer segments say little; those of all concepts stand in for them.
const ENOUGH_SEGMENTS: f32 = 20.0;
/// Bins of the similarities of a concept, over -1..=1.
const BINS: usize = 512;

/// Why a baseline could not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BaselineError {
    /// The file could not be read or written.
    #[error("cannot use the baseline {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the file system answered.
        source: io::Error,
    },
    /// The file is no baseline, or not one of this bundle.
    #[error(
        "the baseline {path} cannot be used: {what}; make it again with `conceptseg monitor baseline`"
    )]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The bundle holds no statistics.
    #[error(
        "the bundle {0} says nothing about how often its concepts occur; make a baseline with `conceptseg monitor baseline`"
    )]
    Empty(PathBuf),
    /// No frame was shown.
    #[error("a baseline needs at least one frame")]
    NoFrames,
}

/// What is normal, for a codebook of K concepts.
#[derive(Debug, Clone, PartialEq)]
pub struct Baseline {
    /// Frames or images that it was made from; 0 where unknown.
    pub frames: u64,
    /// SHA-256 of the codebook that the concepts are from.
    pub codebook: String,
    /// Mean share of the area of each concept, `[K]`, 0..=1.
    pub area: Vec<f32>,
    /// Share of the frames that show each concept, `[K]`, 0..=1.
    pub occurrence: Vec<f32>,
    /// Segments of each concept, `[K]`.
    pub segments: Vec<f32>,
    /// The similarity that 5 % of each concept's segments lie below, `[K]`, -1..=1.
    pub low_similarity: Vec<f32>,
    /// Concepts that were seen in one frame.
    pub pairs: Pairs,
}

/// A symmetric set of pairs of concepts, in one bit each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pairs {
    count: usize,
    bits: Vec<u8>,
}

impl Pairs {
    /// No pair, of `count` concepts.
    pub fn new(count: usize) -> Self {
        Self { count, bits: vec![0; (count * count).div_ceil(8)] }
    }

    /// Adds a pair. Ids that are no concepts are passed over.
    pub fn insert(&mut self, a: usize, b: usize) {
        for (a, b) in [(a, b), (b, a)] {
            if a < self.count && b < self.count {
                let bit = a * self.count + b;
                self.bits[bit / 8] |= 1 << (bit % 8);
            }
        }
    }

    /// Whether it holds a pair.
    pub fn contains(&self, a: usize, b: usize) -> bool {
        let bit = a * self.count + b;
        a < self.count && b < self.count && self.bits[bit / 8] & (1 << (bit % 8)) != 0
    }

    /// Bytes that it takes, which never change.
    pub fn memory_bytes(&self) -> usize {
        self.bits.len()
    }
}

impl Baseline {
    /// What the bundle says of the images that its concepts were learnt from. It knows segments,
    /// not pixels: a concept's share of the segments stands for its area, and occurrence is
    /// relative to the most frequent concept.
    ///
    /// # Errors
    /// [`BaselineError::Empty`] where the bundle has no statistics.
    pub fn of_bundle(bundle: &Bundle) -> Result<Self, BaselineError> {
        let Codebook { count, counts, cooccurrence, similarity_quantiles, .. } = &bundle.codebook;
        let k = *count;
        let all: f32 = counts.iter().map(|c| c.max(0.0)).sum();
        let images: Vec<f32> = cooccurrence.iter().step_by(k + 1).map(|c| c.max(0.0)).collect();
        let most = images.iter().copied().fold(0.0, f32::max);
        if all <= 0.0 || most <= 0.0 {
            return Err(BaselineError::Empty(bundle.dir.clone()));
        }
        let mut pairs = Pairs::new(k);
        for (at, _) in cooccurrence.iter().enumerate().filter(|(_, c)| **c > 0.0) {
            pairs.insert(at / k, at % k);
        }
        let per_concept = similarity_quantiles.len() / k.max(1);
        Ok(Self {
            frames: 0,
            codebook: bundle.manifest.concepts.sha256.clone(),
            area: counts.iter().map(|c| c.max(0.0) / all).collect(),
            occurrence: images.iter().map(|i| i / most).collect(),
            segments: counts.iter().map(|c| c.max(0.0)).collect(),
            low_similarity: similarity_quantiles
                .iter()
                .step_by(per_concept.max(1))
                .map(|q| q.clamp(-1.0, 1.0))
                .collect(),
            pairs,
        })
    }

    /// Number of concepts K.
    pub fn count(&self) -> usize {
        self.area.len()
    }

    /// The similarity below which a segment of a concept is novel. Concepts with too few
    /// segments take the mean of the others; one that was never seen is novel at any similarity.
    pub fn novel_below(&self) -> Vec<f32> {
        let (mut sum, mut all) = (0.0, 0.0);
        for (segments, low) in self.segments.iter().zip(&self.low_similarity) {
            sum += segments * low;
            all += segments;
        }
        let usual = if all > 0.0 { sum / all } else { 0.0 };
        let pick = |(&segments, &low): (&f32, &f32)| match segments {
            s if s <= 0.0 => f32::INFINITY,
            s if s < ENOUGH_SEGMENTS => usual,
            _ => low,
        };
        self.segments.iter().zip(&self.low_similarity).map(pick).collect()
    }

    /// The same with concepts of one name taken together, under the lowest of them. Similarities
    /// stay with each concept. How often one of several was there is at least how often the most
    /// frequent of them was.
    #[must_use]
    pub fn grouped(&self, names: &ConceptNames) -> Self {
        let mut grouped = self.clone();
        for id in 0..self.count() {
            let lead = names.group(id);
            if lead == id {
                continue;
            }
            grouped.area[lead] += grouped.area[id];
            grouped.area[id] = 0.0;
            grouped.occurrence[lead] = grouped.occurrence[lead].max(grouped.occurrence[id]);
            grouped.occurrence[id] = 0.0;
            for other in 0..self.count() {
                if self.pairs.contains(id, other) {
                    grouped.pairs.insert(lead, names.group(other));
                }
            }
        }
        grouped
    }

    /// Writes the file (safetensors).
    ///
    /// # Errors
    /// [`BaselineError::Io`].
    pub fn write(&self, path: &Path) -> Result<(), BaselineError> {
        let io = |source| BaselineError::Io { path: path.to_owned(), source };
        let k = self.count();
        let bytes = |v: &[f32]| v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>();
        let floats = [
            ("area", bytes(&self.area)),
            ("occurrence", bytes(&self.occurrence)),
            ("segments", bytes(&self.segments)),
            ("low_similarity", bytes(&self.low_similarity)),
        ];
        let mut views = Vec::new();
        for (name, data) in &floats {
            let view = TensorView::new(Dtype::F32, vec![k], data);
            views.push((*name, view.map_err(|e| io(io::Error::other(e)))?));
        }
        let bits = TensorView::new(Dtype::U8, vec![self.pairs.bits.len()], &self.pairs.bits);
        views.push(("pairs", bits.map_err(|e| io(io::Error::other(e)))?));
        let metadata = HashMap::from([
            ("format".to_owned(), FORMAT.to_owned()),
            ("frames".to_owned(), self.frames.to_string()),
            ("codebook".to_owned(), self.codebook.clone()),
        ]);
        let file =
            safetensors::serialize(views, Some(metadata)).map_err(|e| io(io::Error::other(e)))?;
        write_atomic(path, |w| w.write_all(&file)).map_err(io)
    }

    /// Reads a file that was made with the concepts of `bundle`.
    ///
    /// # Errors
    /// [`BaselineError`].
    pub fn open(path: &Path, bundle: &Bundle) -> Result<Self, BaselineError> {
        Self::of_bytes(&Self::read(path)?, path, bundle)
    }

    /// The bytes of a file.
    pub(super) fn read(path: &Path) -> Result<Vec<u8>, BaselineError> {
        let io = |source| BaselineError::Io { path: path.to_owned(), source };
        let file = std::fs::File::open(path).map_err(io)?;
        let mut bytes = Vec::new();
        file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(io)?;
        if bytes.len() as u64 > MAX_BYTES {
            let what = format!("it is longer than {MAX_BYTES} bytes");
            return Err(BaselineError::Invalid { path: path.to_owned(), what });
        }
        Ok(bytes)
    }

    /// The bytes of a file that was made with the concepts of `bundle`; `path` is for messages.
    pub(super) fn of_bytes(
        bytes: &[u8],
        path: &Path,
        bundle: &Bundle,
    ) -> Result<Self, BaselineError> {
        let invalid = |what: String| BaselineError::Invalid { path: path.to_owned(), what };
        let baseline = Self::parse(bytes).map_err(&invalid)?;
        if baseline.codebook != bundle.manifest.concepts.sha256 {
            return Err(invalid(format!(
                "it was made with other concepts than those of {}",
                bundle.dir.display()
            )));
        }
        if baseline.count() != bundle.codebook.count {
            return Err(invalid(format!(
                "it has {} concepts, the bundle {}",
                baseline.count(),
                bundle.codebook.count
            )));
        }
        Ok(baseline)
    }

    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(|e| e.to_string())?;
        let metadata = header.metadata().clone().unwrap_or_default();
        let entry = |name: &str| metadata.get(name).cloned().unwrap_or_default();
        if entry("format") != FORMAT {
            return Err(format!("it does not call itself {FORMAT}"));
        }
        let frames = entry("frames").parse().map_err(|_| "`frames` is no number".to_owned())?;
        let file = SafeTensors::deserialize(bytes).map_err(|e| e.to_string())?;
        let tensor = |name: &str, dtype| {
            let view = file.tensor(name).map_err(|_| format!("`{name}` is missing"))?;
            if view.dtype() != dtype || view.shape().len() != 1 {
                return Err(format!("`{name}` must be a list of {dtype:?}"));
            }
            Ok(view)
        };
        let floats = |name: &str, (low, high): (f32, f32)| -> Result<Vec<f32>, String> {
            let view = tensor(name, Dtype::F32)?;
            let values: Vec<_> = view
                .data()
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                .collect();
            if values.iter().any(|v| !(low..=high).contains(v)) {
                return Err(format!("`{name}` holds a value outside of {low} to {high}"));
            }
            Ok(values)
        };
        let area = floats("area", (0.0, 1.0))?;
        let k = area.len();
        if !(1..=MAX_CONCEPTS).contains(&k) {
            return Err(format!("{k} concepts are not possible"));
        }
        let pairs = tensor("pairs", Dtype::U8)?;
        let baseline = Self {
            frames,
            codebook: entry("codebook"),
            occurrence: floats("occurrence", (0.0, 1.0))?,
            segments: floats("segments", (0.0, f32::MAX))?,
            low_similarity: floats("low_similarity", (-1.0, 1.0))?,
            pairs: Pairs { count: k, bits: pairs.data().to_vec() },
            area,
        };
        let lengths = [&baseline.occurrence, &baseline.segments, &baseline.low_similarity];
        if lengths.iter().any(|v| v.len() != k) || baseline.pairs.bits.len() != (k * k).div_ceil(8)
        {
            return Err("its lists differ in length".to_owned());
        }
        Ok(baseline)
    }
}

/// Makes a baseline of frame after frame, in memory that does not grow.
#[derive(Debug)]
pub struct BaselineBuilder {
    codebook: String,
    frames: u64,
    area: Vec<f64>,
    seen_in: Vec<u64>,
    /// `[K, BINS]`.
    similarities: Vec<u32>,
    pairs: Pairs,
    /// Concepts of the frame at hand.
    present: Vec<usize>,
}

impl BaselineBuilder {
    /// For the concepts of `bundle`.
    pub fn new(bundle: &Bundle) -> Self {
        Self::with(bundle.codebook.count, bundle.manifest.concepts.sha256.clone())
    }

    fn with(count: usize, codebook: String) -> Self {
        Self {
            codebook,
            frames: 0,
            area: vec![0.0; count],
            seen_in: vec![0; count],
            similarities: vec![0; count * BINS],
            pairs: Pairs::new(count),
            present: Vec::new(),
        }
    }

    /// Adds a frame. Concepts that the codebook does not have are passed over.
    pub fn add(&mut self, sightings: &[Sighting]) {
        self.frames += 1;
        self.present.clear();
        for sighting in sightings {
            let id = usize::from(sighting.concept);
            let Some(area) = self.area.get_mut(id) else { continue };
            *area += sighting.share;
            let place = f64::midpoint(f64::from(sighting.similarity), 1.0) * BINS as f64;
            let bin = (place as usize).min(BINS - 1);
            let slot = &mut self.similarities[id * BINS + bin];
            *slot = slot.saturating_add(1);
            self.present.push(id);
        }
        self.present.sort_unstable();
        self.present.dedup();
        for (i, &a) in self.present.iter().enumerate() {
            self.seen_in[a] += 1;
            for &b in &self.present[i..] {
                self.pairs.insert(a, b);
            }
        }
    }

    /// The baseline of the frames so far.
    ///
    /// # Errors
    /// [`BaselineError::NoFrames`].
    pub fn finish(&self) -> Result<Baseline, BaselineError> {
        if self.frames == 0 {
            return Err(BaselineError::NoFrames);
        }
        let frames = self.frames as f64;
        let bins = || self.similarities.chunks_exact(BINS);
        let segments = |bins: &[u32]| bins.iter().map(|&n| u64::from(n)).sum::<u64>() as f32;
        Ok(Baseline {
            frames: self.frames,
            codebook: self.codebook.clone(),
            area: self.area.iter().map(|a| (a / frames).clamp(0.0, 1.0) as f32).collect(),
            occurrence: self.seen_in.iter().map(|&n| (n as f64 / frames) as f32).collect(),
            segments: bins().map(segments).collect(),
            low_similarity: bins().map(|bins| quantile(bins, NOVEL_QUANTILE)).collect(),
            pairs: self.pairs.clone(),
        })
    }
}

/// A quantile of similarities in bins, even within its bin; 0 without any.
fn quantile(bins: &[u32], share: f64) -> f32 {
    let all: f64 = bins.iter().map(|&n| f64::from(n)).sum();
    let wanted = share * all;
    let mut below = 0.0;
    for (bin, &count) in bins.iter().enumerate() {
        let count = f64::from(count);
        if count > 0.0 && below + count >= wanted {
            let place = bin as f64 + (wanted - below) / count;
            return (place / bins.len() as f64 * 2.0 - 1.0) as f32;
        }
        below += count;
    }
    0.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sighting(concept: u16, share: f64, similarity: f32) -> Sighting {
        Sighting { concept, share, similarity }
    }

    fn example() -> Baseline {
        let mut builder = BaselineBuilder::with(4, "abc".to_owned());
        builder.add(&[sighting(0, 0.5, 0.9), sighting(2, 0.25, 0.7), sighting(0, 0.25, 0.8)]);
        builder.add(&[sighting(0, 0.5, 0.9), sighting(1, 0.5, 0.6), sighting(9, 0.1, 0.0)]);
        builder.finish().unwrap()
    }

    #[test]
    fn it_tells_area_occurrence_and_pairs() {
        let baseline = example();
        assert_eq!(baseline.frames, 2);
        assert_eq!(baseline.area, [0.625, 0.25, 0.125, 0.0]);
        assert_eq!(baseline.occurrence, [1.0, 0.5, 0.5, 0.0]);
        assert_eq!(baseline.segments, [3.0, 1.0, 1.0, 0.0]);
        let pairs = |a, b| baseline.pairs.contains(a, b);
        assert!(pairs(0, 1) && pairs(2, 0) && pairs(1, 1));
        assert!(!pairs(1, 2) && !pairs(3, 3) && !pairs(0, 9));
        assert_eq!(baseline.novel_below()[3], f32::INFINITY);
    }

    #[test]
    fn the_file_reads_back_equal_and_cut_or_changed_ones_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("normal.safetensors");
        example().write(&path).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(Baseline::parse(&bytes).unwrap(), example());
        for cut in 0..bytes.len() {
            assert!(Baseline::parse(&bytes[..cut]).is_err(), "{cut}");
        }
        for (field, value) in [(0, 2.0), (1, f32::NAN), (2, -1.0)] {
            let mut wrong = example();
            [&mut wrong.area, &mut wrong.occurrence, &mut wrong.segments][field][0] = value;
            wrong.write(&path).unwrap();
            let text = Baseline::parse(&std::fs::read(&path).unwrap()).unwrap_err();
            assert!(text.contains("outside of"), "{text}");
        }
    }

    #[test]
    fn concepts_of_one_name_are_taken_together() {
        let text = "[concept.1]\nname = \"cat\"\n[concept.2]\nname = \"cat\"";
        let names = ConceptNames::parse(text, Path::new("concepts.toml"), 4).unwrap();
        let grouped = example().grouped(&names);
        assert_eq!(grouped.area, [0.625, 0.375, 0.0, 0.0]);
        assert!(grouped.pairs.contains(0, 1));
        assert_eq!(grouped.low_similarity, example().low_similarity);
    }

    proptest! {
        #[test]
        fn quantiles_are_those_of_the_sorted_list_but_for_the_bins(
            values in proptest::collection::vec(-1.0..1.0_f32, 1..200),
        ) {
            let mut builder = BaselineBuilder::with(1, String::new());
            for &value in &values {
                builder.add(&[sighting(0, 0.1, value)]);
            }
            let got = builder.finish().unwrap().low_similarity[0];
            let mut sorted = values.clone();
            sorted.sort_by(f32::total_cmp);
            let rank = (NOVEL_QUANTILE * values.len() as f64).ceil().max(1.0) as usize - 1;
            prop_assert!((got - sorted[rank]).abs() <= 2.0 / BINS as f32 + 1e-6);
        }
    }
}
