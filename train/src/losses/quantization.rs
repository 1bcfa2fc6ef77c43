//! Quantization loss:
//!
//! `L_v = mean_s [ (1 − cos(sg z_s, e_{k(s)})) + β (1 − cos(z_s, sg e_{k(s)})) ]`,
//! `k(s) = argmax_i cos(z_s, e_i)`
//!
//! where `sg` stops the gradient: the first term moves the dictionary towards the segments,
//! the second commits the segments to the dictionary. The mean runs over the batch's segments,
//! or over its pixels when written as `L_v(p)`.

use tch::{Kind, Tensor};

use super::VqReduce;
use super::segments::{Segments, normalize};

/// `L_v`, a scalar. `assignment` (`[S]`) is `k(s)`, an index into `codebook` (`[K, D]`).
pub fn loss(
    segments: &Segments,
    codebook: &Tensor,
    assignment: &Tensor,
    beta: f64,
    reduce: VqReduce,
) -> Tensor {
    let z = &segments.z;
    let e = normalize(&codebook.to_kind(z.kind()).index_select(0, assignment));
    let distance =
        |z: &Tensor, e: &Tensor| 1.0 - (z * e).sum_dim_intlist([-1].as_slice(), false, z.kind());
    let each: Tensor = distance(&z.detach(), &e) + distance(z, &e.detach()) * beta;
    match reduce {
        VqReduce::Segment => each.mean(None::<Kind>),
        VqReduce::Pixel => {
            (each * &segments.area).sum(None::<Kind>) / segments.area.sum(None::<Kind>)
        }
    }
}
