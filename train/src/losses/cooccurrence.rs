//! Co-occurrence loss:
//!
//! `L_c = mean_p [ log Σ_{s ∈ A} exp(κ z_p·z_s) − log Σ_{s ∈ C⁺(p)} exp(κ z_p·z_s) ]`
//!
//! With `c = k(s(p))` the concept of the pixel's segment, `I(c)` is the set of images, of the
//! batch and the memory, that hold a segment of concept `c`, and `C⁺(p) ⊆ A` is every segment
//! of those images, whatever its own concept. The pixel's image is always in `I(c)`.
//!
//! In matrices: with the tags `T[i, c] = 1` where image `i` holds concept `c`,
//! `[s ∈ C⁺(p)] = T[image(s), c]`. All segments of a group share it, so that `Σ_{C⁺}` is a
//! masked sum of the group sums.

use tch::{Kind, Tensor, no_grad};

use super::segments::Segments;
use super::similarity::{Affinity, Candidates, masked_sum};

/// `L_c`, a scalar. `concepts` (`[A]`) is the concept, below `count`, of every candidate under
/// the current dictionary.
pub fn loss(
    affinity: &Affinity,
    segments: &Segments,
    candidates: &Candidates,
    concepts: &Tensor,
    count: i64,
) -> Tensor {
    let positive = no_grad(|| {
        let tags = image_tags(candidates, concepts, count);
        let own = concepts.narrow(0, 0, segments.len());
        tags.index_select(1, &own).transpose(0, 1) * &affinity.visible
    });
    let sum = masked_sum(&affinity.group_sums, &positive, &segments.of_pixel);
    let (all, sum) = if affinity.own_left_out {
        // Pixels with no positive but their own segment keep it. The choice is made before
        // the logarithm: log 0 would give them a gradient that is not a number.
        let others = sum.gt(0.0);
        (
            affinity.seen.where_self(&others, &affinity.all),
            sum.where_self(&others, &affinity.own.exp()),
        )
    } else {
        (affinity.all.shallow_clone(), sum)
    };
    (all.log() - sum.log()).mean(None::<Kind>)
}

/// `[G, K]`: 1 where the image of a group holds a concept in any of its groups.
fn image_tags(candidates: &Candidates, concepts: &Tensor, count: i64) -> Tensor {
    let groups = candidates.groups();
    let kind = (candidates.z.kind(), candidates.z.device());
    let held = Tensor::zeros([groups * count], kind)
        .index_fill(0, &(&candidates.group * count + concepts), 1.0)
        .reshape([groups, count]);
    candidates.same_image().matmul(&held).gt(0.0).to_kind(kind.0)
}
