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
    /// Batches whose gradients are averaged for one step (1). Batch normalisation still sees
    /// one batch at a time, and the memory counts batches, not steps.
    pub accumulate: u64,
    /// Largest length of the gradient of all variables together; longer ones are scaled down
    /// to it. 0 switches this off, as in the paper.
    pub clip_norm: f64,
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
            accumulate: 1,
            clip_norm: 0.0,
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

    /// Factor on a gradient of length `norm` that [`Self::clip_norm`] asks for.
    pub fn clip(&self, norm: f64) -> f64 {
        if self.clip_norm > 0.0 && norm > self.clip_norm { self.clip_norm / norm } else { 1.0 }
    }
}

/// One trained tensor with its share of the learning rate.
#[derive(Debug)]
struct Slot {
    name: String,
    tensor: Tensor,
    momentum: Tensor,
    rate: f64,
    decay: f64,
}

/// SGD over tensors that each have their own factor on the rate.
///
/// The momentum is kept here and not in libtorch's optimiser, whose state cannot be
/// read back through `tch`.
#[derive(Debug, Default)]
pub struct Sgd {
    slots: Vec<Slot>,
}

impl Sgd {
    /// Adds a tensor that requires gradients, under a name of its own: factor `rate` on the
    /// learning rate and weight decay `decay`.
    pub fn add(&mut self, name: &str, tensor: &Tensor, rate: f64, decay: f64) {
        self.slots.push(Slot {
            name: name.to_owned(),
            tensor: tensor.shallow_clone(),
            momentum: tensor.zeros_like(),
            rate,
            decay,
        });
    }

    /// Name and momentum of every tensor, in the order in which they were added. What is
    /// written into a momentum is where the next step continues from.
    pub fn momenta(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.slots.iter().map(|slot| (slot.name.as_str(), &slot.momentum))
    }

    /// Clears the momentum of some rows of a tensor whose values were replaced.
    pub fn forget_rows(&mut self, name: &str, rows: &[i64]) {
        if rows.is_empty() {
            return;
        }
        for slot in self.slots.iter_mut().filter(|slot| slot.name == name) {
            let rows = Tensor::from_slice(rows).to_device(slot.momentum.device());
            let _ = slot.momentum.index_fill_(0, &rows, 0.0);
        }
    }

    /// The gradients, in the order of the tensors; those without one are left out.
    pub fn gradient_tensors(&self) -> Vec<Tensor> {
        self.gradients().map(|(_, gradient)| gradient).collect()
    }

    /// Length of the gradient of all tensors together. It is no number, or infinite, exactly
    /// when an element of it is so or its square leaves the range of the tensors' kind.
    pub fn gradient_norm(&self) -> f64 {
        no_grad(|| {
            let norms: Vec<Tensor> =
                self.gradients().map(|(_, gradient)| gradient.norm()).collect();
            if norms.is_empty() { 0.0 } else { Tensor::stack(&norms, 0).norm().double_value(&[]) }
        })
    }

    /// Names of the tensors whose gradient is not finite.
    pub fn not_finite(&self) -> Vec<&str> {
        self.gradients()
            .filter(|(_, gradient)| gradient.isfinite().all().int64_value(&[]) == 0)
            .map(|(name, _)| name)
            .collect()
    }

    fn gradients(&self) -> impl Iterator<Item = (&str, Tensor)> {
        self.slots
            .iter()
            .map(|slot| (slot.name.as_str(), slot.tensor.grad()))
            .filter(|(_, gradient)| gradient.defined())
    }

    /// One step at the base rate `lr`, then clears the gradients. With a gradient `g` times
    /// `scale`: `m <- momentum * m + g + decay * w`, `w <- w - lr * rate * m`.
    pub fn step(&mut self, lr: f64, momentum: f64, scale: f64) {
        no_grad(|| {
            for slot in &mut self.slots {
                let mut gradient = slot.tensor.grad();
                if !gradient.defined() {
                    continue;
                }
                slot.momentum *= momentum;
                slot.momentum += &gradient * scale;
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
        sgd.add("w", &w, 10.0, 0.1);
        let mut expected = 2.0;
        let mut m = 0.0;
        for _ in 0..2 {
            (&w * &w).sum(Kind::Double).backward();
            sgd.step(0.01, 0.9, 1.0);
            m = 0.9 * m + 2.0 * expected + 0.1 * expected;
            expected -= 0.1 * m;
        }
        assert!((f64::try_from(&w).unwrap() - expected).abs() < 1e-12);
    }

    /// Two tensors whose gradients have the lengths 3 and 4.
    fn three_and_four() -> (Tensor, Tensor, Sgd) {
        let leaf = |x: &[f64]| Tensor::from_slice(x).set_requires_grad(true);
        let (a, b) = (leaf(&[0.0, 0.0]), leaf(&[0.0]));
        let mut sgd = Sgd::default();
        sgd.add("a", &a, 1.0, 0.0);
        sgd.add("b", &b, 1.0, 0.0);
        sgd.add("unused", &leaf(&[1.0]), 1.0, 0.0);
        let slope = Tensor::from_slice(&[3.0, 0.0]);
        ((&a * slope).sum(Kind::Double) + (&b * 4.0).sum(Kind::Double)).backward();
        (a, b, sgd)
    }

    #[test]
    fn a_long_gradient_is_scaled_to_the_limit_and_keeps_its_direction() {
        let (a, b, mut sgd) = three_and_four();
        assert_eq!(sgd.gradient_norm(), 5.0);
        let config = OptimizerConfig { clip_norm: 0.5, ..OptimizerConfig::default() };
        sgd.step(1.0, 0.9, config.clip(sgd.gradient_norm()));
        assert!((a.double_value(&[0]) + 0.3).abs() < 1e-12);
        assert!((b.double_value(&[0]) + 0.4).abs() < 1e-12);
        assert_eq!(sgd.gradient_norm(), 0.0);
        // Short gradients stay as they are, and without a limit all do.
        assert_eq!(config.clip(0.5), 1.0);
        assert_eq!(OptimizerConfig::default().clip(1e9), 1.0);
    }

    #[test]
    fn a_gradient_that_is_no_number_is_named() {
        let (_, b, sgd) = three_and_four();
        assert!(sgd.not_finite().is_empty());
        (&b * f64::NAN).sum(Kind::Double).backward();
        assert!(sgd.gradient_norm().is_nan());
        assert_eq!(sgd.not_finite(), ["b"]);
    }

    #[test]
    fn replaced_rows_lose_their_momentum() {
        let (_, _, mut sgd) = three_and_four();
        sgd.step(1.0, 0.9, 1.0);
        sgd.forget_rows("a", &[0]);
        let left: Vec<f64> =
            sgd.momenta().map(|(_, momentum)| momentum.norm().double_value(&[])).collect();
        assert_eq!(left, [0.0, 4.0, 0.0]);
    }
}
