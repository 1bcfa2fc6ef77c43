//! The linear probe: a 1x1 convolution from embeddings to classes, trained on labels while the
//! network stays as it is. It tells what a linear classifier can read from the embeddings.

mod views;

use conceptseg::evaluate::linear::LinearClassifier;
use rand::SeedableRng;
use rand_distr::{Distribution, Normal};
use rand_pcg::Pcg64;
use tch::{Kind, Reduction, TchError, Tensor};

pub use views::View;

use crate::optimizer::Sgd;

/// Standard deviation of the first weights, as in the classifiers of the field.
const FIRST_WEIGHTS: f32 = 0.01;

/// Settings. The defaults are those of the paper where it gives them, otherwise those of
/// `MaskContrast` (momentum, decay) or our own (augmentation).
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct ProbeConfig {
    /// Steps (60,000). The rate falls to a tenth after a third and again after five sixths of
    /// them: after 20,000 and 50,000.
    pub iterations: u64,
    /// Images of a step (16).
    pub batch: usize,
    /// Rate at the start (0.1).
    pub lr: f64,
    /// Momentum (0.9).
    pub momentum: f64,
    /// L2 penalty on weights (1e-4); the offsets have none.
    pub weight_decay: f64,
    /// Short side at scale 1, in pixels; as in the evaluation (336).
    pub short_side: u32,
    /// Smallest and largest scale (0.5, 2).
    pub scale: [f64; 2],
    /// Probability of mirroring (0.5).
    pub flip: f64,
    /// Side of the crop in pixels (512); bundles of a fixed size use that.
    pub crop: u32,
    /// Seed of everything random.
    pub seed: u64,
}

impl Default for ProbeConfig {
    fn default() -> Self {
        Self {
            iterations: 60_000,
            batch: 16,
            lr: 0.1,
            momentum: 0.9,
            weight_decay: 1e-4,
            short_side: 336,
            scale: [0.5, 2.0],
            flip: 0.5,
            crop: 512,
            seed: 0,
        }
    }
}

impl ProbeConfig {
    /// The rate at `step`, counted from 0.
    pub fn rate(&self, step: u64) -> f64 {
        let passed = |sixths: u64| u32::from(step >= self.iterations * sixths / 6);
        self.lr * 0.1f64.powi((passed(2) + passed(5)) as i32)
    }

    /// Says which setting is out of range, if one is.
    ///
    /// # Errors
    /// A sentence with the setting's name.
    pub fn check(&self) -> Result<(), String> {
        let [low, high] = self.scale;
        for (fine, text) in [
            (self.iterations > 0, "iterations must be above 0"),
            ((1..=4096).contains(&self.batch), "batch must be 1 to 4096"),
            (self.lr > 0.0 && self.lr.is_finite(), "lr must be above 0"),
            ((0.0..1.0).contains(&self.momentum), "momentum must be at least 0 and below 1"),
            (
                (0.0..1.0).contains(&self.weight_decay),
                "weight-decay must be at least 0 and below 1",
            ),
            ((32..=4096).contains(&self.short_side), "short-side must be 32 to 4096"),
            (
                0.05 <= low && low <= high && high <= 8.0,
                "scale must be two numbers, the first not above the second, from 0.05 to 8",
            ),
            ((0.0..=1.0).contains(&self.flip), "flip must be 0 to 1"),
            ((32..=4096).contains(&self.crop), "crop must be 32 to 4096"),
        ] {
            if !fine {
                return Err(text.to_owned());
            }
        }
        Ok(())
    }
}

/// A classifier in training.
#[derive(Debug)]
pub struct LinearProbe {
    /// `[classes, dim, 1, 1]`.
    weight: Tensor,
    /// `[classes]`.
    bias: Tensor,
    sgd: Sgd,
    momentum: f64,
}

impl LinearProbe {
    /// An untrained one.
    pub fn new(classes: usize, dim: usize, config: &ProbeConfig) -> Self {
        let mut rng = Pcg64::seed_from_u64(config.seed);
        let first: Vec<f32> = match Normal::new(0.0, FIRST_WEIGHTS) {
            Ok(normal) => (0..classes * dim).map(|_| normal.sample(&mut rng)).collect(),
            Err(_) => vec![0.0; classes * dim],
        };
        let weight = Tensor::from_slice(&first)
            .view([classes as i64, dim as i64, 1, 1])
            .set_requires_grad(true);
        let bias = Tensor::zeros([classes as i64], (Kind::Float, tch::Device::Cpu))
            .set_requires_grad(true);
        let mut sgd = Sgd::default();
        sgd.add("weight", &weight, 1.0, config.weight_decay);
        sgd.add("bias", &bias, 1.0, 0.0);
        Self { weight, bias, sgd, momentum: config.momentum }
    }

    /// One step on `embeddings` (`[B, D, h, w]`, without gradient) and `labels` (`[B, H, W]`,
    /// `i64`) at the rate `lr`. The scores are upsampled to the labels; pixels labelled `void`
    /// do not count. Returns the mean cross entropy before the step, which is not finite where
    /// all pixels are void; nothing is changed then.
    ///
    /// # Errors
    /// What libtorch refuses.
    pub fn step(
        &mut self,
        embeddings: &Tensor,
        labels: &Tensor,
        void: i64,
        lr: f64,
    ) -> Result<f64, TchError> {
        let (_, height, width) = labels.size3()?;
        let scores = embeddings
            .f_conv2d(&self.weight, Some(&self.bias), 1, 0, 1, 1)?
            .f_upsample_bilinear2d([height, width], false, None, None)?;
        let loss =
            scores.f_cross_entropy_loss(labels, None::<Tensor>, Reduction::Mean, void, 0.0)?;
        let value = loss.double_value(&[]);
        if value.is_finite() {
            loss.f_backward()?;
            self.sgd.step(lr, self.momentum, 1.0);
        }
        Ok(value)
    }

    /// The classifier as it is now.
    ///
    /// # Errors
    /// What libtorch refuses.
    pub fn classifier(&self) -> Result<LinearClassifier, TchError> {
        let (classes, dim, _, _) = self.weight.size4()?;
        Ok(LinearClassifier {
            classes: classes as usize,
            dim: dim as usize,
            weight: Vec::<f32>::try_from(self.weight.detach().f_reshape([-1])?)?,
            bias: Vec::<f32>::try_from(self.bias.detach())?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_falls_after_a_third_and_after_five_sixths() {
        let rates = |config: &ProbeConfig, steps: [u64; 4]| steps.map(|step| config.rate(step));
        let near = |found: [f64; 4], expected: [f64; 4]| {
            assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{found:?}");
        };
        let paper = ProbeConfig::default();
        near(rates(&paper, [19_999, 20_000, 49_999, 50_000]), [0.1, 0.01, 0.01, 0.001]);
        let short = ProbeConfig { iterations: 60, ..paper };
        near(rates(&short, [19, 20, 49, 50]), [0.1, 0.01, 0.01, 0.001]);
        assert!(short.check().is_ok());
        let wrong = ProbeConfig { scale: [2.0, 0.5], ..short };
        assert!(wrong.check().unwrap_err().starts_with("scale"));
    }

    /// Four classes, one unit vector each with noise; void where the labels are 255.
    #[test]
    fn separable_embeddings_are_learned_completely_and_void_has_no_say() {
        tch::manual_seed(3);
        let config = ProbeConfig { iterations: 300, lr: 1.0, ..ProbeConfig::default() };
        let mut probe = LinearProbe::new(4, 8, &config);
        let labels = Tensor::randint(4, [2, 16, 16], (Kind::Int64, tch::Device::Cpu));
        let centres = Tensor::eye(8, (Kind::Float, tch::Device::Cpu)).narrow(0, 0, 4);
        let embeddings = centres.index_select(0, &labels.view(-1)).view([2, 16, 16, 8])
            + Tensor::randn([2, 16, 16, 8], (Kind::Float, tch::Device::Cpu)) * 0.02;
        let embeddings = embeddings.permute([0, 3, 1, 2]);
        // The upper row is void: what is true there stays unknown to the training.
        let seen = labels.copy();
        let _ = seen.narrow(1, 0, 1).fill_(255);
        let mut losses = Vec::new();
        for step in 0..config.iterations {
            losses.push(probe.step(&embeddings, &seen, 255, config.rate(step)).unwrap());
        }
        assert!((losses[0] - 4f64.ln()).abs() < 0.05, "{}", losses[0]);
        assert!(losses[299] < 0.1, "{}", losses[299]);
        let trained = probe.classifier().unwrap();
        let cells = Vec::<f32>::try_from(embeddings.permute([0, 2, 3, 1]).reshape([-1])).unwrap();
        let truth = Vec::<i64>::try_from(labels.view(-1)).unwrap();
        let right = cells.chunks(8).zip(&truth).filter(|(cell, class)| {
            let score = |c: usize| {
                let row = &trained.weight[c * 8..][..8];
                trained.bias[c] + row.iter().zip(*cell).map(|(a, b)| a * b).sum::<f32>()
            };
            (0..4).max_by(|&a, &b| score(a).total_cmp(&score(b))) == Some(**class as usize)
        });
        assert_eq!(right.count(), truth.len());

        // Nothing but void: nothing is learned.
        let nothing = Tensor::full([2, 16, 16], 255, (Kind::Int64, tch::Device::Cpu));
        assert!(!probe.step(&embeddings, &nothing, 255, 1.0).unwrap().is_finite());
        assert_eq!(probe.classifier().unwrap(), trained);
    }
}
