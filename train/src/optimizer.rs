//! SGD with momentum, per-group learning rates and the poly schedule (method section 3).

use serde::{Deserialize, Serialize};
use tch::{Tensor, no_grad};

/// Settings of the optimiser.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimizerConfig {
    /// Base learning rate at step 0 (paper: 1e-3).
    pub lr: f64,
    /// Number of steps (paper: 5000).
    pub iterations: u64,
    /// Momentum (SegSort, SPML: 0.9).
    pub momentum: f64,
    /// L2 penalty on weights (SegSort, SPML: 5e-4); biases have none.
    pub weight_decay: f64,
    /// Exponent of the poly schedule, `lr * (1 - step / iterations) ^ power` (0.9).
    pub power: f64,
    /// Steps over which the rate rises linearly from 0 (SPML: 100; not in the paper).
    pub warmup: u64,
    /// Factor on the rate of the head (SPML: 10).
    pub head_multiplier: f64,
    /// Further factor on the rate of biases (SPML: 2).
    pub bias_multiplier: f64,
    /// Factor on the rate of the dictionary, which has no weight decay (10).
    pub dictionary_multiplier: f64,
    /// Leave the stem and the first stage as they were loaded (SPML, MaskContrast).
    pub freeze_early: bool,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self {
            lr: 1e-3,
            iterations: 5000,
            momentum: 0.9,
            weight_decay: 5e-4,
            power: 0.9,
            warmup: 0,
            head_multiplier: 10.0,
            bias_multiplier: 2.0,
            dictionary_multiplier: 10.0,
            freeze_early: true,
        }
    }
}

impl OptimizerConfig {
    /// Learning rate before group factors at `step`, counted from 0.
    pub fn rate(&self, step: u64) -> f64 {
        let left = 1.0 - step as f64 / self.iterations.max(1) as f64;
        let warm = if step < self.warmup { (step + 1) as f64 / self.warmup as f64 } else { 1.0 };
        self.lr * warm * left.max(0.0).powf(self.power)
    }
}

/// One trained tensor with its share of the learning rate.
struct Slot {
    tensor: Tensor,
    momentum: Tensor,
    rate: f64,
    decay: f64,
}

/// SGD over tensors that each have their own factor on the rate.
///
/// The momentum is kept here and not in libtorch's optimiser, whose state cannot be
/// read back through `tch`.
#[derive(Default)]
pub struct Sgd {
    slots: Vec<Slot>,
}

impl Sgd {
    /// Adds a tensor that requires gradients: factor `rate` on the learning rate and
    /// weight decay `decay`. Returns its place, for [`Self::forget_rows`].
    pub fn add(&mut self, tensor: &Tensor, rate: f64, decay: f64) -> usize {
        self.slots.push(Slot {
            tensor: tensor.shallow_clone(),
            momentum: tensor.zeros_like(),
            rate,
            decay,
        });
        self.slots.len() - 1
    }

    /// Clears the momentum of some rows of a tensor whose values were replaced.
    pub fn forget_rows(&mut self, place: usize, rows: &[i64]) {
        if let (Some(slot), false) = (self.slots.get_mut(place), rows.is_empty()) {
            let rows = Tensor::from_slice(rows).to_device(slot.momentum.device());
            let _ = slot.momentum.index_fill_(0, &rows, 0.0);
        }
    }

    /// One step at the base rate `lr`, then clears the gradients:
    /// `m <- momentum * m + g + decay * w`, `w <- w - lr * rate * m`.
    pub fn step(&mut self, lr: f64, momentum: f64) {
        no_grad(|| {
            for slot in &mut self.slots {
                let mut gradient = slot.tensor.grad();
                if !gradient.defined() {
                    continue;
                }
                slot.momentum *= momentum;
                slot.momentum += &gradient;
                if slot.decay > 0.0 {
                    slot.momentum += &slot.tensor * slot.decay;
                }
                slot.tensor -= &slot.momentum * (lr * slot.rate);
                let _ = gradient.zero_();
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Kind;

    #[test]
    fn the_rate_warms_up_and_falls_to_zero() {
        let config =
            OptimizerConfig { lr: 1.0, iterations: 10, warmup: 2, ..OptimizerConfig::default() };
        assert_eq!(config.rate(0), 0.5);
        assert!((config.rate(5) - 0.5f64.powf(0.9)).abs() < 1e-12);
        assert_eq!(config.rate(10), 0.0);
    }

    #[test]
    fn two_steps_match_the_formula() {
        let w = Tensor::from_slice(&[2.0f64]).set_requires_grad(true);
        let mut sgd = Sgd::default();
        sgd.add(&w, 10.0, 0.1);
        let mut expected = 2.0;
        let mut m = 0.0;
        for _ in 0..2 {
            (&w * &w).sum(Kind::Double).backward();
            sgd.step(0.01, 0.9);
            m = 0.9 * m + 2.0 * expected + 0.1 * expected;
            expected -= 0.1 * m;
        }
        assert!((f64::try_from(&w).unwrap() - expected).abs() < 1e-12);
    }
}
