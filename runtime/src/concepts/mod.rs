//! Concept labelling: which visual concept of the codebook each pixel belongs to.
//!
//! The embeddings of a frame are clustered ([`SegmentationConfig`]), each cluster takes
//! the concept nearest to its mean embedding, and touching areas of one concept become a
//! segment. Clusters are found on the embedding grid; their borders are drawn at frame
//! size, where the upsampled scores of two clusters cross.

mod codebook;
pub(crate) mod kmeans;
pub(crate) mod merge;

use crate::bundle::Codebook;
use crate::embed::EmbeddingMap;
use crate::memory::{self, OutOfMemory};
use crate::upsample::Upsampler;
use kmeans::Clusters;
use merge::{ClusterConcept, MAX_SEGMENTS, Merger};

/// Settings of the clustering.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentationConfig {
    /// Clusters start as `grid` x `grid` blocks, 1..=15. 5 as in `SegSort`.
    pub grid: usize,
    /// Rounds of k-means, 1..=1000. 10 as in the code of `SegSort`; evaluations of
    /// still images use 50.
    pub iterations: usize,
}

impl Default for SegmentationConfig {
    fn default() -> Self {
        Self { grid: 5, iterations: 10 }
    }
}

/// A connected area of one concept.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ConceptSegment {
    /// Row of the codebook.
    pub concept: u16,
    /// Cosine between the mean embedding and the concept, -1..1; where several clusters
    /// were merged, their mean weighted by area.
    pub similarity: f32,
    /// Pixels.
    pub area: u32,
    /// Smallest box around it: x, y, width, height.
    pub bbox: [u32; 4],
}

/// Concepts of one frame.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ConceptMap {
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// Concept of each pixel, `[height, width]`.
    pub concepts: Vec<u16>,
    /// Index into `segment_list` of each pixel, `[height, width]`.
    pub segments: Vec<u16>,
    /// Segments in raster order of their first pixel. There are at most 65,536; should a
    /// frame have more, all those behind the last but one are counted as one, with the
    /// concept of the first of them.
    pub segment_list: Vec<ConceptSegment>,
}

/// Why a frame could not be labelled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConceptError {
    /// A setting is out of range.
    #[error("the segmentation setting {setting} is {value}; it must be {allowed}")]
    Setting {
        /// Name of the field of [`SegmentationConfig`].
        setting: &'static str,
        /// Its value.
        value: usize,
        /// The allowed values.
        allowed: &'static str,
    },
    /// The embedding map contradicts itself.
    #[error(
        "the embedding map holds {len} values but claims to be {height}x{width}x{dim}; all of \
         these must be above 0 and their product must match"
    )]
    Embedding {
        /// Values present.
        len: usize,
        /// Rows.
        height: usize,
        /// Columns.
        width: usize,
        /// Channels.
        dim: usize,
    },
    /// Embeddings and codebook do not fit together.
    #[error(
        "the embeddings have {embedding} dimensions but the codebook is {count}x{codebook} with \
         {len} values; take both from one bundle"
    )]
    Codebook {
        /// Dimensions of the embeddings.
        embedding: usize,
        /// Concepts in the codebook.
        count: usize,
        /// Dimensions of the codebook.
        codebook: usize,
        /// Values in the codebook.
        len: usize,
    },
    /// A frame without pixels was asked for.
    #[error("the concept map was asked for at {width}x{height} pixels; both must be above 0")]
    Size {
        /// Width asked for.
        width: u32,
        /// Height asked for.
        height: u32,
    },
    /// There is no memory for the maps.
    #[error(transparent)]
    Memory(#[from] OutOfMemory),
}

/// Labels frames with concepts; keeps its scratch, so that frames of one size allocate
/// nothing once the first was labelled.
#[derive(Debug, Default)]
pub struct ConceptLabeler {
    clusters: Clusters,
    /// Clusters that have cells.
    present: Vec<u8>,
    /// Their concepts.
    concepts: Vec<ClusterConcept>,
    /// Their score maps, `[present, height, width]`.
    scores: Vec<f32>,
    upsampler: Upsampler,
    /// Index into `present` of each pixel.
    pixels: Vec<u8>,
    merger: Merger,
}

impl ConceptLabeler {
    /// A labeler without scratch; the first frame makes it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Labels one frame at `out_w` x `out_h` pixels.
    ///
    /// # Errors
    /// [`ConceptError`] when settings, embeddings and codebook cannot be used together.
    pub fn label(
        &mut self,
        embedding: &EmbeddingMap,
        codebook: &Codebook,
        config: &SegmentationConfig,
        out_w: u32,
        out_h: u32,
        out: &mut ConceptMap,
    ) -> Result<(), ConceptError> {
        check(embedding, codebook, config)?;
        if out_w == 0 || out_h == 0 {
            return Err(ConceptError::Size { width: out_w, height: out_h });
        }
        let pixels = out_w as usize * out_h as usize;
        memory::reserve(&mut self.pixels, pixels, "the clusters of a frame")?;
        memory::reserve(&mut out.concepts, pixels, "the concept map")?;
        memory::reserve(&mut out.segments, pixels, "the map of segments")?;
        let EmbeddingMap { height, width, dim, ref data, .. } = *embedding;
        self.clusters.run(data, (height, width, dim), config.grid, config.iterations);

        // A cluster that lost its cells has no prototype and takes no part.
        let mut has_cells = [false; 256];
        for &label in self.clusters.labels() {
            has_cells[usize::from(label)] = true;
        }
        self.present.clear();
        self.present.extend((0..self.clusters.count()).filter(|&k| has_cells[k]).map(|k| k as u8));
        self.concepts.clear();
        self.concepts.extend(self.present.iter().map(|&k| {
            let prototype = &self.clusters.prototypes[usize::from(k) * dim..][..dim];
            let (concept, similarity) = codebook::nearest_concept(prototype, &codebook.vectors);
            ClusterConcept { concept, similarity }
        }));

        self.clusters.scores(&self.present, &mut self.scores);
        let size = (out_h as usize, out_w as usize);
        self.upsampler.argmax(&self.scores, (height, width), None, size, &mut self.pixels);
        self.merger.merge(&self.pixels, (out_w, out_h), &self.concepts, MAX_SEGMENTS, out);
        Ok(())
    }
}

/// # Errors
/// [`ConceptError::Setting`].
pub(crate) fn check_config(config: &SegmentationConfig) -> Result<(), ConceptError> {
    let refuse = |setting, value, allowed| Err(ConceptError::Setting { setting, value, allowed });
    // Cluster ids are kept in 8 bits.
    if !(1..=15).contains(&config.grid) {
        return refuse("grid", config.grid, "1 to 15");
    }
    if !(1..=1000).contains(&config.iterations) {
        return refuse("iterations", config.iterations, "1 to 1000");
    }
    Ok(())
}

fn check(
    embedding: &EmbeddingMap,
    codebook: &Codebook,
    config: &SegmentationConfig,
) -> Result<(), ConceptError> {
    check_config(config)?;
    let EmbeddingMap { height, width, dim, ref data, .. } = *embedding;
    let expected = height.checked_mul(width).and_then(|cells| cells.checked_mul(dim));
    if data.is_empty() || expected != Some(data.len()) {
        return Err(ConceptError::Embedding { len: data.len(), height, width, dim });
    }
    let Codebook { count, dim: codebook_dim, ref vectors, .. } = *codebook;
    let fits = codebook_dim == dim
        && (1..=usize::from(u16::MAX) + 1).contains(&count)
        && Some(vectors.len()) == count.checked_mul(dim);
    if !fits {
        return Err(ConceptError::Codebook {
            embedding: dim,
            count,
            codebook: codebook_dim,
            len: vectors.len(),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn codebook() -> Codebook {
        Codebook::new(3, 2, vec![0.0, -1.0, 1.0, 0.0, 0.6, 0.8]).unwrap()
    }

    /// Left 4 of 8 columns near concept 1, right ones near concept 2.
    fn two_halves() -> EmbeddingMap {
        let data =
            (0..6 * 8).flat_map(|p| if p % 8 < 4 { [1.0, 0.0] } else { [0.6, 0.8] }).collect();
        EmbeddingMap { height: 6, width: 8, dim: 2, stride: 8, data }
    }

    #[test]
    fn two_halves_become_two_segments_at_frame_size() {
        let mut out = ConceptMap::default();
        let mut labeler = ConceptLabeler::new();
        let config = SegmentationConfig::default();
        labeler.label(&two_halves(), &codebook(), &config, 64, 48, &mut out).unwrap();
        assert_eq!((out.width, out.height), (64, 48));
        let concepts: Vec<u16> = out.segment_list.iter().map(|s| s.concept).collect();
        assert_eq!(concepts, [1, 2]);
        // The border lies between the centres of columns 3 and 4: pixels 28 to 36.
        for (i, segment) in out.segment_list.iter().enumerate() {
            assert!(segment.area.abs_diff(32 * 48) <= 4 * 48, "{segment:?}");
            assert!((segment.similarity - 1.0).abs() < 1e-6, "{segment:?}");
            let pixels = out.segments.iter().filter(|&&s| usize::from(s) == i).count();
            assert_eq!(segment.area as usize, pixels);
        }
        assert_eq!((out.concepts[0], out.concepts[63]), (1, 2));
    }

    #[test]
    fn labelling_again_gives_the_same_in_the_same_memory() {
        let mut out = ConceptMap::default();
        let mut labeler = ConceptLabeler::new();
        let config = SegmentationConfig::default();
        labeler.label(&two_halves(), &codebook(), &config, 64, 48, &mut out).unwrap();
        let (before, at) = (out.clone(), out.concepts.as_ptr());
        for _ in 0..5 {
            labeler.label(&two_halves(), &codebook(), &config, 64, 48, &mut out).unwrap();
            assert_eq!(out, before);
            assert_eq!(out.concepts.as_ptr(), at);
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_with_a_reason() {
        let mut out = ConceptMap::default();
        let mut label = |map: &EmbeddingMap, config: &SegmentationConfig, codebook: &Codebook| {
            ConceptLabeler::new().label(map, codebook, config, 8, 8, &mut out).unwrap_err()
        };
        let config = SegmentationConfig::default();
        let grid = SegmentationConfig { grid: 16, ..config.clone() };
        assert!(label(&two_halves(), &grid, &codebook()).to_string().contains("grid is 16"));
        let torn = EmbeddingMap { dim: 3, ..two_halves() };
        assert!(matches!(label(&torn, &config, &codebook()), ConceptError::Embedding { .. }));
        let other = Codebook::new(1, 3, vec![1.0, 0.0, 0.0]).unwrap();
        assert!(matches!(label(&two_halves(), &config, &other), ConceptError::Codebook { .. }));
    }
}
