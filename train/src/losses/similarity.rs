//! The one `[P, A]` similarity matrix behind `L_s` and `L_c`.
//!
//! Both losses only need, for each pixel, sums of `exp(κ z_p·z_a)` over whole *groups*, a group
//! being the segments of one image in one batch:
//!
//! `R[p, g] = Σ_{a ∈ g} exp(κ z_p·z_a)`,  `Σ_A = Σ_g V[s(p), g] R[p, g]`
//!
//! so that every mask is a small matrix over groups, and the large matrix is written once,
//! exponentiated in place and multiplied by the membership of segments in groups.

use tch::{Kind, Tensor};

use super::memory::MemoryBank;
use super::segments::Segments;

/// What pixels are compared with: the segments of the batch, then those of the memory.
#[derive(Debug)]
pub struct Candidates {
    /// `[A, D]` unit embeddings; rows of the batch carry gradient, rows of the memory do not.
    pub z: Tensor,
    /// `[A]` group of each row. Groups of the batch come first, in the order of its images.
    pub group: Tensor,
    /// Image of each of the `G` groups, as a data-set id.
    pub group_image: Vec<i64>,
    /// Number of groups of the batch, which is its number of distinct images.
    pub batch_groups: usize,
}

impl Candidates {
    /// Lines up the batch's `segments` (of the distinct `images`) and the `memory`.
    pub fn new(segments: &Segments, images: &[i64], memory: &MemoryBank) -> Self {
        let mut z = vec![segments.z.shallow_clone()];
        let mut group = vec![segments.image.shallow_clone()];
        let mut group_image = images.to_vec();
        for entry in &memory.entries {
            z.push(entry.z.detach().to_kind(segments.z.kind()));
            group.push(&entry.image + group_image.len() as i64);
            group_image.extend_from_slice(&entry.image_ids);
        }
        Self {
            z: Tensor::cat(&z, 0),
            group: Tensor::cat(&group, 0),
            group_image,
            batch_groups: images.len(),
        }
    }

    /// Number of rows `A`.
    pub fn len(&self) -> i64 {
        self.z.size()[0]
    }

    /// Whether there is nothing to compare with.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of groups `G`.
    pub fn groups(&self) -> i64 {
        self.group_image.len() as i64
    }

    /// `[G, G]`: 1 where two groups show the same image.
    pub fn same_image(&self) -> Tensor {
        self.pairs(self.group_image.len(), |i, g| self.group_image[i] == self.group_image[g])
    }

    /// `[I, G]` for the `I` images of the batch: 1 where pixels of an image may see a group.
    fn visible(&self, mask_own_image: bool) -> Tensor {
        self.pairs(self.batch_groups, |i, g| {
            g < self.batch_groups || !mask_own_image || self.group_image[i] != self.group_image[g]
        })
    }

    fn pairs(&self, rows: usize, holds: impl Fn(usize, usize) -> bool) -> Tensor {
        let groups = self.group_image.len();
        let values: Vec<f32> = (0..rows * groups)
            .map(|i| f32::from(u8::from(holds(i / groups, i % groups))))
            .collect();
        Tensor::from_slice(&values)
            .reshape([rows as i64, groups as i64])
            .to_device(self.z.device())
            .to_kind(self.z.kind())
    }
}

/// Softmax terms of every pixel, summed by group.
#[derive(Debug)]
pub struct Affinity {
    /// `[P]` logit `κ z_p·z_{s(p)}` of the pixel's own segment.
    pub own: Tensor,
    /// `[P, G]` sums of `exp(κ z_p·z_a)` over each group, with or without the own segment (see
    /// `own_left_out`).
    pub group_sums: Tensor,
    /// `[S, G]` 1 where the pixels of a segment may see a group.
    pub visible: Tensor,
    /// `[P]` sum of the visible `group_sums`.
    pub seen: Tensor,
    /// `[P]` sum of `exp(κ z_p·z_a)` over everything visible, own segment included.
    pub all: Tensor,
    /// Whether `group_sums` lacks the own segment's term.
    pub own_left_out: bool,
}

impl Affinity {
    /// Compares the pixels `z` (`[P, D]`, of `segments`) with `candidates`.
    ///
    /// `kappa` is at most [`MAX_KAPPA`](super::MAX_KAPPA). `leave_own_out` keeps the term of a
    /// pixel's own segment out of `group_sums`; it costs one more copy of the large matrix in
    /// the backward pass.
    pub fn new(
        z: &Tensor,
        segments: &Segments,
        candidates: &Candidates,
        kappa: f64,
        mask_own_image: bool,
        leave_own_out: bool,
    ) -> Self {
        let of_pixel = &segments.of_pixel;
        let own = (z * segments.z.index_select(0, of_pixel)).sum_dim_intlist(
            [-1].as_slice(),
            false,
            z.kind(),
        ) * kappa;
        // κ goes into the small factor: scaling the product would be a pass over [P, A].
        let mut logits = z.matmul(&(&candidates.z * kappa).transpose(0, 1));
        if leave_own_out {
            let _ = logits.scatter_value_(1, &of_pixel.unsqueeze(1), f64::NEG_INFINITY);
        }
        let terms = logits.exp_();
        let membership = candidates.group.one_hot(candidates.groups()).to_kind(z.kind());
        let group_sums = terms.matmul(&membership);
        let visible = candidates.visible(mask_own_image).index_select(0, &segments.image);
        let seen = masked_sum(&group_sums, &visible, of_pixel);
        let all = if leave_own_out { &seen + own.exp() } else { seen.shallow_clone() };
        Self { own, group_sums, visible, seen, all, own_left_out: leave_own_out }
    }
}

/// `Σ_g mask[s(p), g] sums[p, g]` for `sums` `[P, G]` and `mask` `[S, G]`: `[P]`.
pub fn masked_sum(sums: &Tensor, mask: &Tensor, of_pixel: &Tensor) -> Tensor {
    (sums * mask.index_select(0, of_pixel)).sum_dim_intlist([-1].as_slice(), false, None::<Kind>)
}
