//! Bilinear resampling of maps with several channels, built in full.

/// Two source places along an axis and the weight of the second.
fn places(source: usize, target: usize) -> Vec<(usize, usize, f32)> {
    let step = source as f64 / target as f64;
    (0..target)
        .map(|i| {
            let position = ((i as f64 + 0.5) * step - 0.5).max(0.0);
            let low = (position as usize).min(source - 1);
            let high = (low + 1).min(source - 1);
            (low, high, if high == low { 0.0 } else { (position - low as f64) as f32 })
        })
        .collect()
}

/// Resamples `map` (`[h, w, c]`) to `[out_h, out_w, c]`: pixel centres at half-integers, edges
/// clamped, as `torch.nn.functional.interpolate` without aligned corners.
pub(super) fn bilinear(
    map: &[f32],
    (h, w, c): (usize, usize, usize),
    (out_h, out_w): (usize, usize),
    out: &mut Vec<f32>,
) {
    out.clear();
    out.resize(out_h * out_w * c, 0.0);
    let columns = places(w, out_w);
    let mut row = vec![0.0f32; w * c];
    for ((low, high, v), target) in
        places(h, out_h).into_iter().zip(out.chunks_exact_mut((out_w * c).max(1)))
    {
        let (upper, lower) = (&map[low * w * c..][..w * c], &map[high * w * c..][..w * c]);
        for ((value, a), b) in row.iter_mut().zip(upper).zip(lower) {
            *value = (1.0 - v) * a + v * b;
        }
        for (&(left, right, u), pixel) in columns.iter().zip(target.chunks_exact_mut(c)) {
            let (a, b) = (&row[left * c..][..c], &row[right * c..][..c]);
            for ((value, a), b) in pixel.iter_mut().zip(a).zip(b) {
                *value = (1.0 - u) * a + u * b;
            }
        }
    }
}

/// Scales each pixel of `map` (`[pixels, dim]`) to unit length; zero stays zero.
pub(super) fn normalise(map: &mut [f32], dim: usize) {
    for pixel in map.chunks_exact_mut(dim) {
        let length = pixel.iter().map(|v| v * v).sum::<f32>().sqrt();
        // The epsilon of torch.nn.functional.normalize.
        let scale = 1.0 / length.max(1e-12);
        for value in pixel {
            *value *= scale;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Figures of `torch.nn.functional.interpolate(…, mode="bilinear", align_corners=False)`.
    #[test]
    fn values_are_those_of_torch() {
        let mut out = Vec::new();
        // Two channels; the second is ten times the first.
        bilinear(&[0.0, 0.0, 1.0, 10.0, 2.0, 20.0, 3.0, 30.0], (2, 2, 2), (4, 4), &mut out);
        let first: Vec<f32> = out.iter().step_by(2).copied().collect();
        #[rustfmt::skip]
        assert_eq!(first, [
            0.0, 0.25, 0.75, 1.0,
            0.5, 0.75, 1.25, 1.5,
            1.5, 1.75, 2.25, 2.5,
            2.0, 2.25, 2.75, 3.0,
        ]);
        assert!(out.chunks(2).all(|pair| pair[1] == pair[0] * 10.0));
        bilinear(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0], (1, 6, 1), (1, 3), &mut out);
        assert_eq!(out, [0.5, 2.5, 4.5]);
    }

    #[test]
    fn pixels_get_unit_length_and_zero_stays() {
        let mut map = [3.0, 4.0, 0.0, 0.0];
        normalise(&mut map, 2);
        assert_eq!(map, [0.6, 0.8, 0.0, 0.0]);
    }
}
