//! Folds a batch normalisation with recorded statistics into the convolution before it.

use tch::{Kind, Tensor};

use super::graph::BATCH_NORM_EPSILON;

/// A batch normalisation's variables, `[C]` each.
pub(crate) struct BatchNorm {
    pub weight: Tensor,
    pub bias: Tensor,
    pub running_mean: Tensor,
    pub running_var: Tensor,
}

impl BatchNorm {
    /// Last parts of the variables' names, in the order of the fields.
    pub const SUFFIXES: [&str; 4] = ["weight", "bias", "running_mean", "running_var"];

    /// From the variables in the order of [`Self::SUFFIXES`].
    pub fn new([weight, bias, running_mean, running_var]: [Tensor; 4]) -> Self {
        Self { weight, bias, running_mean, running_var }
    }

    /// Weights `[C, …]` and bias `[C]` of the convolution that computes, with one rounding to
    /// single precision, what the given one and the normalisation compute one after the other:
    /// w' = s·w, b' = β + s·(b − μ) with s = γ / √(σ² + ε).
    pub fn fold(&self, weight: &Tensor, bias: Option<&Tensor>) -> (Tensor, Tensor) {
        let double = |t: &Tensor| t.detach().to_kind(Kind::Double);
        let scale = double(&self.weight) / (double(&self.running_var) + BATCH_NORM_EPSILON).sqrt();
        let mut sides = vec![1; weight.dim()];
        sides[0] = -1;
        let shift = match bias {
            Some(bias) => double(bias) - double(&self.running_mean),
            None => -double(&self.running_mean),
        };
        let weight = double(weight) * scale.view(sides.as_slice());
        let bias = double(&self.bias) + shift * scale;
        (weight.to_kind(Kind::Float), bias.to_kind(Kind::Float))
    }
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    #[test]
    fn the_folded_convolution_computes_what_the_two_layers_do() {
        tch::manual_seed(1);
        let random = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu));
        let norm = BatchNorm::new([random(&[5]), random(&[5]), random(&[5]), random(&[5]).abs()]);
        let (weight, bias, x) = (random(&[5, 3, 3, 3]), random(&[5]), random(&[2, 3, 7, 6]));
        for bias in [None, Some(&bias)] {
            let apply = |w: &Tensor, b: Option<&Tensor>| x.conv2d(w, b, [1, 1], [1, 1], [1, 1], 1);
            let (folded_weight, folded_bias) = norm.fold(&weight, bias);
            let folded = apply(&folded_weight, Some(&folded_bias));
            let apart = apply(&weight, bias).batch_norm(
                Some(&norm.weight),
                Some(&norm.bias),
                Some(&norm.running_mean),
                Some(&norm.running_var),
                false,
                0.0,
                BATCH_NORM_EPSILON,
                false,
            );
            let scale = apart.abs().max().double_value(&[]);
            assert!((folded - apart).abs().max().double_value(&[]) / scale < 1e-6);
        }
    }
}
