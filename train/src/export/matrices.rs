//! Pooling and enlarging over a grid of known size, as linear maps.

/// A linear map of one axis, `[outputs, inputs]` row-major.
pub(super) struct Matrix {
    pub outputs: usize,
    pub inputs: usize,
    pub values: Vec<f32>,
}

/// Means over `bins` windows of `cells` cells; window `i` runs from `floor(i·cells / bins)`
/// to `ceil((i + 1)·cells / bins)` (`PyTorch`'s adaptive pooling), so that they may overlap.
pub(super) fn pool_matrix(bins: i64, cells: i64) -> Matrix {
    let (outputs, inputs) = (bins as usize, cells as usize);
    let mut values = vec![0.0; outputs * inputs];
    for (i, row) in values.chunks_exact_mut(inputs).enumerate() {
        let start = i * inputs / outputs;
        let end = ((i + 1) * inputs).div_ceil(outputs);
        row[start..end].fill(1.0 / (end - start) as f32);
    }
    Matrix { outputs, inputs, values }
}

/// Bilinear interpolation of `bins` values to `cells` (`align_corners = false`): the position
/// of cell `i` is `(i + 0.5) · bins / cells - 0.5`, clamped at 0, the last value repeats.
pub(super) fn resize_matrix(cells: i64, bins: i64) -> Matrix {
    let (outputs, inputs) = (cells as usize, bins as usize);
    let mut values = vec![0.0; outputs * inputs];
    for (i, row) in values.chunks_exact_mut(inputs).enumerate() {
        let position = ((i as f64 + 0.5) * bins as f64 / cells as f64 - 0.5).max(0.0);
        let low = (position.floor() as usize).min(inputs - 1);
        let high = (low + 1).min(inputs - 1);
        let share = position - low as f64;
        row[low] += (1.0 - share) as f32;
        row[high] += share as f32;
    }
    Matrix { outputs, inputs, values }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, Tensor};

    use super::*;

    #[test]
    fn pooling_and_enlarging_matrices_are_those_of_libtorch() {
        let x = Tensor::randn([1, 2, 9, 13], (Kind::Double, Device::Cpu));
        let apply = |x: &Tensor, rows: &Matrix, columns: &Matrix| {
            let tensor = |m: &Matrix| {
                let values: Vec<f64> = m.values.iter().map(|&v| f64::from(v)).collect();
                Tensor::from_slice(&values).view([m.outputs as i64, m.inputs as i64])
            };
            tensor(rows).matmul(x).matmul(&tensor(columns).transpose(0, 1))
        };
        for bins in [1, 2, 3, 6] {
            let pooled = apply(&x, &pool_matrix(bins, 9), &pool_matrix(bins, 13));
            let expected = x.adaptive_avg_pool2d([bins, bins]);
            assert!((&pooled - &expected).abs().max().double_value(&[]) < 1e-6, "{bins}");
            let large = apply(&expected, &resize_matrix(9, bins), &resize_matrix(13, bins));
            let expected = expected.upsample_bilinear2d([9, 13], false, None, None);
            assert!((large - expected).abs().max().double_value(&[]) < 1e-6, "{bins}");
        }
    }
}
