//! Weights of the two passes that resize a plane, for kernels that give the bytes which
//! `fast_image_resize` gives on the CPU.

/// Bits behind which a weighted sum of bytes, rounded, is a byte again, at most: 32 less a byte
/// less the two bits that the library keeps for filters with negative parts.
const MAX_PRECISION: u8 = 32 - 8 - 2;

/// One axis of a resize: which source samples make an output sample, with which weights.
#[derive(Debug, PartialEq)]
pub(super) struct Axis {
    /// Per output sample: the first source sample in the low 16 bits, their number above.
    pub(super) bounds: Vec<i32>,
    /// `[target, window]`: weights in fixed point, zero behind the last sample.
    pub(super) weights: Vec<i32>,
    /// Most samples of an output sample.
    pub(super) window: usize,
    /// Bits behind the point of a weight.
    pub(super) precision: u8,
}

impl Axis {
    /// From the first `used` of `source` samples (a fraction where half of the last chroma sample lies
    /// outside of the frame) to `target` ones: a triangle as wide as two output samples, or two source
    /// samples where the picture grows. Sides are at most [`MAX_SIDE`](crate::frame::MAX_SIDE).
    pub(super) fn new(source: u32, used: f64, target: u32) -> Self {
        let scale = used / f64::from(target);
        let support = scale.max(1.0);
        let mut rows = Vec::with_capacity(target as usize);
        for i in 0..target {
            let center = (f64::from(i) + 0.5) * scale;
            let begin = (center - support).floor().max(0.0) as u32;
            let end = (center + support).ceil().min(f64::from(source)) as u32;
            let triangle = |x: u32| {
                let distance = (f64::from(x) - (center - 0.5)) * (1.0 / support);
                (1.0 - distance.abs()).max(0.0)
            };
            // Samples at the very border of the triangle have no weight.
            let first = (begin..end).find(|&x| triangle(x) > 0.0).unwrap_or(begin);
            let last = (first..end).rfind(|&x| triangle(x) > 0.0).unwrap_or(first);
            let values: Vec<f64> = (first..=last).map(triangle).collect();
            let sum: f64 = values.iter().sum();
            rows.push((first, values.into_iter().map(|v| v / sum).collect::<Vec<_>>()));
        }
        let window = rows.iter().map(|(_, values)| values.len()).max().unwrap_or(0);
        let largest = rows.iter().flat_map(|(_, values)| values).fold(0.0, |a: f64, &b| a.max(b));
        // As many bits as the largest weight leaves in a signed 16-bit number.
        let fits = |bits: u8| (largest * f64::from(1u32 << bits)).round() < f64::from(1 << 15);
        let precision =
            (0..MAX_PRECISION).find(|&bits| !fits(bits + 1)).unwrap_or(MAX_PRECISION - 1);
        let one = f64::from(1u32 << precision);
        let mut weights = vec![0; rows.len() * window];
        let mut bounds = Vec::with_capacity(rows.len());
        for ((first, values), weights) in rows.iter().zip(weights.chunks_exact_mut(window.max(1))) {
            bounds.push((*first | (values.len() as u32) << 16) as i32);
            for (weight, value) in weights.iter_mut().zip(values) {
                *weight = (value * one).round() as i32;
            }
        }
        Self { bounds, weights, window, precision }
    }

    /// The weights as `[window, target]`, for threads that take neighbouring output samples.
    pub(super) fn transposed(&self) -> Vec<i32> {
        (0..self.window)
            .flat_map(|tap| self.weights.iter().skip(tap).step_by(self.window).copied())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_sizes_copy_the_samples() {
        let axis = Axis::new(3, 3.0, 3);
        assert_eq!((axis.window, axis.precision), (1, 14));
        assert_eq!(axis.weights, [1 << 14; 3]);
        assert_eq!(axis.bounds, [1 << 16, 1 << 16 | 1, 1 << 16 | 2]);
    }

    #[test]
    fn a_halved_axis_averages_with_a_triangle() {
        let axis = Axis::new(8, 8.0, 4);
        let one = f64::from(1 << axis.precision);
        let row = |i: usize| -> Vec<f64> {
            axis.weights[i * axis.window..][..axis.window]
                .iter()
                .map(|&w| f64::from(w) / one)
                .collect()
        };
        assert_eq!(axis.window, 4);
        for (got, want) in row(1).iter().zip([0.125, 0.375, 0.375, 0.125]) {
            assert!((got - want).abs() < 1e-4, "{:?}", row(1));
        }
        assert_eq!(axis.bounds[1], 4 << 16 | 1);
        assert_eq!(axis.transposed()[..4], [0, 1, 2, 3].map(|i| axis.weights[i * 4]));
    }

    #[test]
    fn the_largest_sides_fit() {
        let axis = Axis::new(16_384, 16_384.0, 8);
        assert!(axis.window <= 4096 + 1);
        assert!(axis.bounds.iter().all(|&b| (b >> 16) as usize <= axis.window && b > 0));
        let sum: i32 = axis.weights[..axis.window].iter().sum();
        assert!((f64::from(sum) / f64::from(1u32 << axis.precision) - 1.0).abs() < 0.01);
    }
}
