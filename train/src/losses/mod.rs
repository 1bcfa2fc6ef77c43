//! The training objective: `L = L_s + λ_v L_v + λ_c L_c`.
//!
//! | term | file | what it asks for |
//! |---|---|---|
//! | `L_s` | [`local`] | a pixel lies near its own segment and far from every other |
//! | `L_v` | [`quantization`] | a segment lies near one entry of the concept dictionary |
//! | `L_c` | [`cooccurrence`] | a pixel lies near the segments of images that share its concept |
//!
//! Symbols used throughout: `N = 2B` views (view `b` and `B + b` show image `b`), `P` valid
//! pixels of all views on the embedding grid, `S` segments of this batch, `A ⊇ S` segments of
//! this batch and of the memory, `G` groups of segments that share a batch and an image, `K`
//! dictionary entries, `D` embedding dimensions, `κ` the concentration of the von Mises-Fisher
//! softmax.
//!
//! Gradients reach the pixels and the segments of this batch through all three terms, and the
//! dictionary only through the first half of `L_v`. Nothing flows into the memory or through
//! an assignment.

pub mod cooccurrence;
pub mod dictionary;
pub mod kmeans;
pub mod local;
pub mod memory;
pub mod quantization;
pub mod segments;
pub mod similarity;

#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};
use thiserror::Error;

use dictionary::{CodeUse, Dictionary};
use memory::{MemoryBank, MemoryEntry};
use segments::{Pixels, Segments, VOID};
use similarity::{Affinity, Candidates};

/// Largest concentration the losses accept.
///
/// The softmax is computed from `exp(κ cos)` without a shift by the row maximum, which saves
/// two passes over the `[P, A]` matrix. With `|κ cos| ≤ 64` the terms (up to 6e27), the sum of
/// a million of them and the gradients all stay normal single-precision numbers.
pub const MAX_KAPPA: f64 = 64.0;

/// What is wrong with the input of a loss, or with its settings.
#[derive(Debug, Error)]
pub enum LossError {
    /// A setting is outside its range.
    #[error("loss setting `{key}` is {value}: it must be {expected}")]
    Setting {
        /// Key in the configuration.
        key: &'static str,
        /// Value found.
        value: f64,
        /// Range in words.
        expected: &'static str,
    },
    /// A tensor has another shape than the losses need.
    #[error("{what} has shape {found:?}, but {expected} is needed")]
    Shape {
        /// Which tensor.
        what: &'static str,
        /// Its shape.
        found: Vec<i64>,
        /// The shape needed, in words.
        expected: String,
    },
    /// A segment id is outside `0..=65535`.
    #[error(
        "the segment ids of the batch leave 0..=65535: give ids as read from 16-bit segment maps"
    )]
    IdRange,
    /// Every pixel of the batch is void.
    #[error("no pixel of the batch belongs to a segment: skip it and check the segment maps")]
    NoSegments,
    /// There is nothing to start the dictionary from.
    #[error("the dictionary cannot be started from zero segments: give at least one")]
    NoSamples,
}

/// Over what `L_v` is averaged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VqReduce {
    /// Every segment of the batch counts once.
    #[default]
    Segment,
    /// Every pixel counts once, so that a segment weighs as much as its area.
    Pixel,
}

/// Settings of the objective.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LossConfig {
    /// Concentration `κ` of the softmax over segments, in `(0, 64]`.
    pub kappa: f64,
    /// Weight `β ≥ 0` of the half of `L_v` that moves the segments.
    pub beta: f64,
    /// Weight `λ_v ≥ 0` of the quantization loss.
    pub lambda_v: f64,
    /// Weight `λ_c ≥ 0` of the co-occurrence loss.
    pub lambda_c: f64,
    /// First step (from 0) at which the co-occurrence loss counts. Until then it is only
    /// reported.
    pub cooc_start: u64,
    /// Leave the pixel's own segment out of the co-occurrence loss wherever another positive
    /// remains.
    pub cooc_exclude_self: bool,
    /// Over what the quantization loss is averaged.
    pub vq_reduce: VqReduce,
    /// Hide the memory's segments of an image from the pixels of the same image. They show
    /// the same things, yet would be pushed away as negatives.
    pub mask_own_image: bool,
    /// Factor, 1 to 8, by which the network's output is enlarged bilinearly before the losses.
    pub upsample: i64,
}

impl Default for LossConfig {
    fn default() -> Self {
        Self {
            kappa: 10.0,
            beta: 0.5,
            lambda_v: 2.0,
            lambda_c: 1.0,
            cooc_start: 0,
            cooc_exclude_self: false,
            vq_reduce: VqReduce::Segment,
            mask_own_image: true,
            upsample: 2,
        }
    }
}

impl LossConfig {
    /// Checks every setting against its range.
    pub fn validate(&self) -> Result<(), LossError> {
        let bad = |key, value, expected| Err(LossError::Setting { key, value, expected });
        if !(self.kappa > 0.0 && self.kappa <= MAX_KAPPA) {
            return bad("kappa", self.kappa, "above 0 and at most 64");
        }
        for (key, value) in
            [("beta", self.beta), ("lambda_v", self.lambda_v), ("lambda_c", self.lambda_c)]
        {
            if !(value >= 0.0 && value.is_finite()) {
                return bad(key, value, "a finite number of at least 0");
            }
        }
        if !(1..=8).contains(&self.upsample) {
            return bad("upsample", self.upsample as f64, "between 1 and 8");
        }
        Ok(())
    }
}

/// Figures about one step, for logs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct LossStats {
    /// Valid pixels `P` on the embedding grid.
    pub pixels: i64,
    /// Segments `S` of the batch, both views merged.
    pub segments: i64,
    /// Segments that the memory contributed.
    pub memory_segments: i64,
    /// Dictionary entries that at least one segment of the batch is assigned to.
    pub codes_used: usize,
    /// `exp` of the entropy of the assignments: 1 for a single entry, `K` for uniform use.
    pub perplexity: f64,
}

/// The losses of one batch and what the next steps need from it.
#[derive(Debug)]
pub struct LossParts {
    /// `L_s`, a scalar.
    pub local: Tensor,
    /// `L_v`, a scalar.
    pub quantization: Tensor,
    /// `L_c`, a scalar; part of `total` only from `cooc_start` on.
    pub cooccurrence: Tensor,
    /// The weighted sum, a scalar: call `backward` on it.
    pub total: Tensor,
    /// Figures for the log.
    pub stats: LossStats,
    /// How often the batch used each dictionary entry, for [`Dictionary::observe`].
    pub code_use: CodeUse,
    /// The batch's segments, detached: push it into the [`MemoryBank`] after the step.
    pub entry: MemoryEntry,
}

/// Views of equal size of all images of a batch.
#[derive(Debug)]
pub struct ViewGroup {
    /// `[V B, D, h, w]`, the network's output before any normalisation; view `v` of image `b` is
    /// entry `v B + b`.
    pub embeddings: Tensor,
    /// `[V B, H, W]` `i64` segment ids at the views' size, [`VOID`] where there is none.
    pub ids: Tensor,
    /// Views `V` of each image, at least 1.
    pub per_image: usize,
}

/// Computes the three losses of a batch. A pixel counts alike whatever view it is from.
///
/// * `groups`: the views, of any number for each image. Half precision is widened to `f32`
///   first; ids are brought to the embedding grid by taking the nearest pixel, and segments that
///   vanish there drop out.
/// * `image_ids`: which image of the data set each of the `B` images of the batch is. Equal ids
///   are one image, whose segments are merged.
/// * `dictionary`: its entries have the dimension `D`.
/// * `memory`: segments of earlier batches, of the same dimension and on the same device.
/// * `step`: number of steps taken before this one.
///
/// # Errors
/// [`LossError`].
pub fn compute(
    config: &LossConfig,
    groups: &[ViewGroup],
    image_ids: &[i64],
    dictionary: &Dictionary,
    memory: &MemoryBank,
    step: u64,
) -> Result<LossParts, LossError> {
    check_input(config, groups, image_ids, dictionary, memory)?;
    let (pixels, images, view_image) = joined_pixels(config, groups, image_ids)?;
    let segments = Segments::pool(&pixels, &view_image);
    Ok(evaluate(config, &pixels.z, &segments, images, dictionary, memory, step))
}

/// [`compute`] for the two views of each image alone.
#[cfg(test)]
pub(crate) fn compute_pairs(
    config: &LossConfig,
    embeddings: &Tensor,
    ids: &Tensor,
    image_ids: &[i64],
    dictionary: &Dictionary,
    memory: &MemoryBank,
    step: u64,
) -> Result<LossParts, LossError> {
    let views = ViewGroup {
        embeddings: embeddings.shallow_clone(),
        ids: ids.shallow_clone(),
        per_image: 2,
    };
    compute(config, &[views], image_ids, dictionary, memory, step)
}

/// Checks the arguments of [`compute`].
pub(crate) fn check_input(
    config: &LossConfig,
    groups: &[ViewGroup],
    image_ids: &[i64],
    dictionary: &Dictionary,
    memory: &MemoryBank,
) -> Result<(), LossError> {
    config.validate()?;
    for ViewGroup { embeddings, ids, per_image } in groups {
        let views = (per_image * image_ids.len()) as i64;
        check_shapes(embeddings, ids, views, dictionary, memory)?;
    }
    Ok(())
}

/// The losses of the pixels `z` (`[P, D]`), each in one of the `segments` of the distinct
/// `images`; there may be segments without a pixel among them.
pub(crate) fn evaluate(
    config: &LossConfig,
    z: &Tensor,
    segments: &Segments,
    images: Vec<i64>,
    dictionary: &Dictionary,
    memory: &MemoryBank,
    step: u64,
) -> LossParts {
    let candidates = Candidates::new(segments, &images, memory);
    let concepts = dictionary.assign(&candidates.z);
    let own_concepts = concepts.narrow(0, 0, segments.len());

    let affinity = Affinity::new(
        z,
        segments,
        &candidates,
        config.kappa,
        config.mask_own_image,
        config.cooc_exclude_self,
    );
    let local = local::loss(&affinity);
    let quantization = quantization::loss(
        segments,
        &dictionary.codebook,
        &own_concepts,
        config.beta,
        config.vq_reduce,
    );
    let cooccurrence =
        cooccurrence::loss(&affinity, segments, &candidates, &concepts, dictionary.len());

    let mut total = &local + &quantization * config.lambda_v;
    if step >= config.cooc_start {
        total += &cooccurrence * config.lambda_c;
    }
    let code_use = CodeUse::count(&own_concepts, dictionary.len());
    let stats = LossStats {
        pixels: z.size()[0],
        segments: segments.len(),
        memory_segments: candidates.len() - segments.len(),
        codes_used: code_use.used(),
        perplexity: code_use.perplexity(),
    };
    let entry = MemoryEntry {
        z: segments.z.detach(),
        image: segments.image.shallow_clone(),
        image_ids: images,
        step,
    };
    LossParts { local, quantization, cooccurrence, total, stats, code_use, entry }
}

/// The segments of a batch as [`compute`] makes them of the same `groups`.
///
/// # Errors
/// [`LossError::NoSegments`].
pub fn pool(
    config: &LossConfig,
    groups: &[ViewGroup],
    image_ids: &[i64],
) -> Result<Segments, LossError> {
    let (pixels, _, view_image) = joined_pixels(config, groups, image_ids)?;
    Ok(Segments::pool(&pixels, &view_image))
}

/// The valid pixels of all views, the distinct images, and the image of each view.
pub(crate) fn joined_pixels(
    config: &LossConfig,
    groups: &[ViewGroup],
    image_ids: &[i64],
) -> Result<(Pixels, Vec<i64>, Vec<i64>), LossError> {
    let (images, image_of) = segments::distinct_images(image_ids);
    let mut parts = Vec::with_capacity(groups.len());
    let mut view_image = Vec::new();
    for group in groups {
        let embeddings = match group.embeddings.kind() {
            Kind::Half | Kind::BFloat16 => group.embeddings.to_kind(Kind::Float),
            _ => group.embeddings.shallow_clone(),
        };
        match segments::pixels(&embeddings, &group.ids, config.upsample) {
            Ok(mut pixels) => {
                pixels.view += view_image.len() as i64;
                parts.push(pixels);
            }
            // The other views may have some.
            Err(LossError::NoSegments) => {}
            Err(error) => return Err(error),
        }
        for _ in 0..group.per_image {
            view_image.extend_from_slice(&image_of[..image_ids.len()]);
        }
    }
    Ok((Pixels::join(parts)?, images, view_image))
}

fn check_shapes(
    embeddings: &Tensor,
    ids: &Tensor,
    views: i64,
    dictionary: &Dictionary,
    memory: &MemoryBank,
) -> Result<(), LossError> {
    let bad = |what, tensor: &Tensor, expected: String| {
        Err(LossError::Shape { what, found: tensor.size(), expected })
    };
    let size = embeddings.size();
    if size.len() != 4 || size[0] != views || size.contains(&0) {
        return bad(
            "the embedding batch",
            embeddings,
            format!("[{views}, D, h, w] with D, h, w > 0"),
        );
    }
    let id_size = ids.size();
    if id_size.len() != 3 || id_size[0] != views || id_size.contains(&0) {
        return bad("the batch of segment ids", ids, format!("[{views}, H, W] with H, W > 0"));
    }
    if bool::try_from(ids.lt(0).logical_or(&ids.gt(VOID)).any()).unwrap_or(true) {
        return Err(LossError::IdRange);
    }
    let d = size[1];
    if dictionary.codebook.size().len() != 2
        || dictionary.codebook.size()[1] != d
        || dictionary.is_empty()
    {
        return bad("the dictionary", &dictionary.codebook, format!("[K, {d}] with K > 0"));
    }
    for entry in &memory.entries {
        if entry.z.size().len() != 2 || entry.z.size()[1] != d {
            return bad("a memory entry", &entry.z, format!("[S, {d}]"));
        }
        if entry.image.size() != [entry.z.size()[0]] {
            return bad("the image list of a memory entry", &entry.image, "one per segment".into());
        }
    }
    Ok(())
}
