//! Whitened principal components: the start of a linear embedding head.
//!
//! Training moves the head from here. A random projection would first have to learn
//! again what the backbone's features already tell apart.

use tch::{Kind, Tensor, no_grad};

/// Sums over feature vectors from which mean and covariance follow.
#[derive(Debug)]
pub struct Moments {
    count: i64,
    sum: Tensor,
    products: Tensor,
}

/// Components whose variance is below this share of the largest are not amplified
/// further: they hold rounding noise.
const SMALLEST_VARIANCE: f64 = 1e-6;

impl Moments {
    /// Empty sums for `channels` features.
    pub fn new(channels: i64) -> Self {
        let options = (Kind::Double, tch::Device::Cpu);
        Self {
            count: 0,
            sum: Tensor::zeros([channels], options),
            products: Tensor::zeros([channels, channels], options),
        }
    }

    /// Adds the pixels of feature maps `[N, C, h, w]`.
    pub fn add(&mut self, maps: &Tensor) {
        no_grad(|| {
            let channels = self.sum.size()[0];
            let rows = maps
                .to_device(tch::Device::Cpu)
                .permute([0, 2, 3, 1])
                .reshape([-1, channels])
                .to_kind(Kind::Double);
            self.count += rows.size()[0];
            self.sum += rows.sum_dim_intlist([0i64].as_slice(), false, Kind::Double);
            self.products += rows.tr().matmul(&rows);
        });
    }

    /// `(weight [dim, C], bias [dim])` of the projection to the `dim` leading principal
    /// components, each scaled to unit variance, in float32.
    ///
    /// `dim` beyond the number of channels is not possible and gives as many rows as
    /// there are channels.
    pub fn projection(&self, dim: i64) -> (Tensor, Tensor) {
        no_grad(|| {
            let channels = self.sum.size()[0];
            let dim = dim.min(channels);
            let mean = &self.sum / self.count.max(1) as f64;
            let covariance = &self.products / self.count.max(1) as f64 - mean.outer(&mean);
            // Eigenvalues come in rising order, vectors as columns.
            let (values, vectors) = covariance.linalg_eigh("L");
            let values = values.flip([0i64]).narrow(0, 0, dim);
            let vectors = vectors.flip([1i64]).narrow(1, 0, dim);
            let floor = values.double_value(&[0]) * SMALLEST_VARIANCE;
            let scale = values.clamp_min(floor.max(f64::MIN_POSITIVE)).rsqrt();
            let weight = (vectors * scale.unsqueeze(0)).tr();
            let bias = -weight.matmul(&mean.unsqueeze(1)).squeeze_dim(1);
            (weight.contiguous().to_kind(Kind::Float), bias.to_kind(Kind::Float))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn projected_features_are_centred_uncorrelated_and_of_unit_variance() {
        tch::manual_seed(1);
        let mixing = Tensor::randn([6, 6], (Kind::Float, tch::Device::Cpu));
        let maps = Tensor::randn([2, 30, 40, 6], (Kind::Float, tch::Device::Cpu))
            .matmul(&mixing)
            .permute([0, 3, 1, 2])
            + 3.0;
        let mut moments = Moments::new(6);
        moments.add(&maps.narrow(0, 0, 1));
        moments.add(&maps.narrow(0, 1, 1));
        let (weight, bias) = moments.projection(4);
        assert_eq!(weight.size(), [4, 6]);
        let rows = maps.permute([0, 2, 3, 1]).reshape([-1, 6]);
        let out = rows.matmul(&weight.tr()) + bias;
        let covariance = out.tr().matmul(&out) / rows.size()[0] as f64;
        let difference = covariance - Tensor::eye(4, (Kind::Float, tch::Device::Cpu));
        assert!(difference.abs().max().double_value(&[]) < 1e-3);
        assert!(
            out.mean_dim([0i64].as_slice(), false, Kind::Float).abs().max().double_value(&[])
                < 1e-3
        );
    }
}
