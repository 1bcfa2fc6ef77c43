//! Pixels on the embedding grid and the segments they form.
//!
//! `z_s = norm( mean_{p : s(p) = s} z_p )`, with `z_p = norm(f_p)` and
//! `norm(x) = x / max(‖x‖, 1e-12)`: the mean of unit vectors is not a unit vector. A segment is
//! a pair (image, id), so that the pixels of both views of an image are pooled together.

use tch::{Tensor, no_grad};

use super::LossError;

/// Id of pixels without a segment (padding, unlabelled).
pub const VOID: i64 = 65535;

/// Lower bound of a length that is divided by.
const EPSILON: f64 = 1e-12;

/// Scales the rows of `x` (`[…, D]`) to unit length; a row of zeros stays zero.
pub fn normalize(x: &Tensor) -> Tensor {
    x / x.norm_scalaropt_dim(2, [-1].as_slice(), true).clamp_min(EPSILON)
}

/// The valid pixels of all views.
#[derive(Debug)]
pub struct Pixels {
    /// `[P, D]` unit embeddings.
    pub z: Tensor,
    /// `[P]` segment id of each pixel, `0..65535`.
    pub id: Tensor,
    /// `[P]` view each pixel comes from, `0..2B`, ascending.
    pub view: Tensor,
}

impl Pixels {
    /// All pixels of several groups of views, whose numbers of views must ascend from group to
    /// group.
    ///
    /// # Errors
    /// [`LossError::NoSegments`] when there is no group.
    pub fn join(mut groups: Vec<Self>) -> Result<Self, LossError> {
        match groups.len() {
            0 => Err(LossError::NoSegments),
            1 => Ok(groups.remove(0)),
            _ => {
                let all = |part: fn(&Self) -> &Tensor| {
                    Tensor::cat(&groups.iter().map(part).collect::<Vec<_>>(), 0)
                };
                Ok(Self { z: all(|g| &g.z), id: all(|g| &g.id), view: all(|g| &g.view) })
            }
        }
    }
}

/// Enlarges `embeddings` (`[N, D, h, w]`) by `upsample` bilinearly, reads the id of every cell
/// from `ids` (`[N, H, W]`), drops the void cells and normalises the others.
///
/// # Errors
/// [`LossError::NoSegments`] when every cell is void.
pub fn pixels(embeddings: &Tensor, ids: &Tensor, upsample: i64) -> Result<Pixels, LossError> {
    let size = embeddings.size();
    let (n, d, h, w) = (size[0], size[1], size[2] * upsample, size[3] * upsample);
    let ids = resize_nearest(ids, h, w).to_device(embeddings.device()).reshape([-1]);
    let valid = ids.ne(VOID).nonzero().reshape([-1]);
    if valid.size()[0] == 0 {
        return Err(LossError::NoSegments);
    }
    let grid = if upsample == 1 {
        embeddings.shallow_clone()
    } else {
        embeddings.upsample_bilinear2d([h, w].as_slice(), false, None, None)
    };
    let all = grid.permute([0, 2, 3, 1]).reshape([n * h * w, d]);
    // Most batches have no void cell at all: spare them the copy.
    let z = if valid.size()[0] == n * h * w { all } else { all.index_select(0, &valid) };
    Ok(Pixels {
        z: normalize(&z),
        id: ids.index_select(0, &valid),
        view: valid.divide_scalar_mode(h * w, "floor"),
    })
}

/// Samples `[N, H, W]` at the centres of an `h` x `w` grid.
pub fn resize_nearest(ids: &Tensor, h: i64, w: i64) -> Tensor {
    let centres = |from: i64, to: i64| {
        let at: Vec<i64> = (0..to).map(|i| (2 * i + 1) * from / (2 * to)).collect();
        Tensor::from_slice(&at).to_device(ids.device())
    };
    let size = ids.size();
    ids.index_select(1, &centres(size[1], h)).index_select(2, &centres(size[2], w))
}

/// The distinct images of a batch in order of appearance, and for each of the `2B` views the
/// index of its image among them.
pub fn distinct_images(image_ids: &[i64]) -> (Vec<i64>, Vec<i64>) {
    let mut images: Vec<i64> = Vec::new();
    let mut view_image = Vec::with_capacity(2 * image_ids.len());
    for id in image_ids {
        let index = images.iter().position(|known| known == id).unwrap_or_else(|| {
            images.push(*id);
            images.len() - 1
        });
        view_image.push(index as i64);
    }
    view_image.extend_from_within(..);
    (images, view_image)
}

/// The segments of a batch, ordered by image, then by id.
#[derive(Debug)]
pub struct Segments {
    /// `[S, D]` unit embeddings, with gradient.
    pub z: Tensor,
    /// `[S]` index of the segment's image among the batch's distinct images.
    pub image: Tensor,
    /// `[P]` segment of each pixel.
    pub of_pixel: Tensor,
    /// `[S]` number of pixels of each segment, of the kind of `z`.
    pub area: Tensor,
}

impl Segments {
    /// Pools `pixels` by (image, id); `view_image` gives the image of each view.
    pub fn pool(pixels: &Pixels, view_image: &[i64]) -> Self {
        let z = &pixels.z;
        let (image, of_pixel, area) = no_grad(|| {
            let view_image = Tensor::from_slice(view_image).to_device(z.device());
            let key = view_image.index_select(0, &pixels.view) * (VOID + 1) + &pixels.id;
            let (keys, of_pixel, area) = key.internal_unique2(true, true, true);
            (keys.divide_scalar_mode(VOID + 1, "floor"), of_pixel, area.to_kind(z.kind()))
        });
        let sum = Tensor::zeros([image.size()[0], z.size()[1]], (z.kind(), z.device()))
            .index_add(0, &of_pixel, z);
        let z = normalize(&(sum / area.unsqueeze(1)));
        Self { z, image, of_pixel, area }
    }

    /// Number of segments `S`.
    pub fn len(&self) -> i64 {
        self.z.size()[0]
    }

    /// Whether there is no segment.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Kind;

    fn ints(t: &Tensor) -> Vec<i64> {
        Vec::try_from(t.to_kind(Kind::Int64).reshape([-1])).unwrap()
    }

    #[test]
    fn nearest_reads_the_pixel_at_the_cell_centre() {
        let ids = Tensor::arange(16, (Kind::Int64, tch::Device::Cpu)).reshape([1, 4, 4]);
        assert_eq!(ints(&resize_nearest(&ids, 2, 2)), [5, 7, 13, 15]);
        assert_eq!(ints(&resize_nearest(&ids, 4, 4)), (0..16).collect::<Vec<_>>());
        assert_eq!(ints(&resize_nearest(&ids, 1, 8)), [8, 8, 9, 9, 10, 10, 11, 11]);
    }

    #[test]
    fn equal_image_ids_are_one_image() {
        assert_eq!(distinct_images(&[7, 3, 7]), (vec![7, 3], vec![0, 1, 0, 0, 1, 0]));
    }

    #[test]
    fn both_views_of_an_image_pool_into_one_segment_and_void_is_left_out() {
        // One image, D = 2, one row of two cells per view.
        let f =
            Tensor::from_slice(&[3.0f64, 0.0, 0.0, 2.0, 0.0, 5.0, 4.0, 0.0]).reshape([2, 2, 1, 2]);
        let ids = Tensor::from_slice(&[4i64, VOID, 4, 9]).reshape([2, 1, 2]);
        let pixels = pixels(&f, &ids, 1).unwrap();
        assert_eq!(ints(&pixels.id), [4, 4, 9]);
        assert_eq!(ints(&pixels.view), [0, 1, 1]);
        let s = Segments::pool(&pixels, &[0, 0]);
        assert_eq!(ints(&s.of_pixel), [0, 0, 1]);
        assert_eq!(ints(&s.area), [2, 1]);
        assert_eq!(ints(&s.image), [0, 0]);
        let r = 0.5f64.sqrt();
        let z: Vec<f64> = Vec::try_from(s.z.reshape([-1])).unwrap();
        for (got, want) in z.iter().zip([r, r, 1.0, 0.0]) {
            assert!((got - want).abs() < 1e-12, "{z:?}");
        }
    }

    #[test]
    fn a_batch_of_void_is_refused() {
        let f = Tensor::ones([2, 3, 2, 2], (Kind::Float, tch::Device::Cpu));
        let ids = Tensor::full([2, 8, 8], VOID, (Kind::Int64, tch::Device::Cpu));
        assert!(matches!(pixels(&f, &ids, 2), Err(LossError::NoSegments)));
    }

    #[test]
    fn a_zero_vector_stays_zero_and_has_a_finite_gradient() {
        let x = Tensor::zeros([1, 3], (Kind::Float, tch::Device::Cpu)).set_requires_grad(true);
        let y = normalize(&x);
        assert_eq!(y.abs().sum(Kind::Float).double_value(&[]), 0.0);
        y.sum(Kind::Float).backward();
        assert!(x.grad().isfinite().all().int64_value(&[]) == 1);
    }
}
