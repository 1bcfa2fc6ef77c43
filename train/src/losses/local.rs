//! Local segmentation loss:
//!
//! `L_s = mean_p [ log Σ_{s ∈ A} exp(κ z_p·z_s) − κ z_p·z_{s(p)} ]`
//!
//! The positive is the pixel's own merged segment, which itself contains the pixel. `A` holds
//! the segments of the batch and of the memory, without the memory's view of the pixel's image.

use tch::{Kind, Tensor};

use super::similarity::Affinity;

/// `L_s`, a scalar.
pub fn loss(affinity: &Affinity) -> Tensor {
    (affinity.all.log() - &affinity.own).mean(None::<Kind>)
}
