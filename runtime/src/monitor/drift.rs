//! How far a stream has moved from what is normal, and how far it usually moves.

/// Jensen-Shannon divergence of two histograms in bits, 0 (equal) to 1 (nothing in common).
/// Each is scaled to the sum 1; where one is empty, the answer is 0, for there is nothing to say.
pub fn jensen_shannon(p: impl Iterator<Item = f64> + Clone, q: &[f64]) -> f64 {
    let (sum_p, sum_q) = (p.clone().sum::<f64>(), q.iter().sum::<f64>());
    if sum_p <= 0.0 || sum_q <= 0.0 {
        return 0.0;
    }
    let half: f64 = p
        .zip(q)
        .map(|(a, b)| {
            let (a, b) = (a / sum_p, b / sum_q);
            let middle = f64::midpoint(a, b);
            let part = |x: f64| if x > 0.0 { x * (x / middle).log2() } else { 0.0 };
            part(a) + part(b)
        })
        .sum();
    (half / 2.0).clamp(0.0, 1.0)
}

/// Mean and deviation of a value over its latest history (exponential window).
#[derive(Debug, Clone, Copy)]
pub struct Band {
    /// Seconds.
    length: f64,
    /// The deviation is never taken to be smaller.
    floor: f64,
    weight: f64,
    mean: f64,
    variance: f64,
}

impl Band {
    /// A band over `length` seconds whose deviation is at least `floor`.
    pub const fn new(length: f64, floor: f64) -> Self {
        Self { length, floor, weight: 0.0, mean: 0.0, variance: 0.0 }
    }

    /// Learns a value that stood for `seconds`.
    pub fn learn(&mut self, value: f64, seconds: f64) {
        if seconds <= 0.0 {
            return;
        }
        let keep = (-seconds / self.length).exp();
        let new = -(-seconds / self.length).exp_m1();
        self.weight = self.weight * keep + new;
        // West's update of the weighted mean and variance, which subtracts no large numbers.
        let share = new / self.weight;
        let off = value - self.mean;
        self.mean += share * off;
        self.variance = (1.0 - share) * (self.variance + share * off * off);
    }

    /// Mean of what was learnt; `None` before anything was.
    pub fn mean(&self) -> Option<f64> {
        (self.weight > 0.0).then_some(self.mean)
    }

    /// Deviation, not below the floor.
    pub fn deviation(&self) -> f64 {
        self.variance.sqrt().max(self.floor)
    }

    /// By how many deviations `value` lies above the mean; 0 before anything was learnt.
    pub fn score(&self, value: f64) -> f64 {
        self.mean().map_or(0.0, |mean| (value - mean) / self.deviation())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entropy(p: &[f64]) -> f64 {
        p.iter().filter(|&&x| x > 0.0).map(|x| -x * x.log2()).sum()
    }

    proptest! {
        #[test]
        fn divergence_is_entropy_of_the_middle_less_middle_of_the_entropies(
            pairs in proptest::collection::vec((0.0..1.0_f64, 0.0..1.0_f64), 1..40),
        ) {
            let scaled = |pick: fn(&(f64, f64)) -> f64| {
                let sum: f64 = pairs.iter().map(pick).sum();
                pairs.iter().map(|p| pick(p) / sum).collect::<Vec<_>>()
            };
            let (p, q) = (scaled(|p| p.0), scaled(|p| p.1));
            let middle: Vec<_> = p.iter().zip(&q).map(|(a, b)| f64::midpoint(*a, *b)).collect();
            let expected = entropy(&middle) - f64::midpoint(entropy(&p), entropy(&q));
            let unscaled: Vec<_> = pairs.iter().map(|p| p.1).collect();
            let got = jensen_shannon(pairs.iter().map(|p| p.0), &unscaled);
            prop_assert!((got - expected).abs() < 1e-9, "{} {}", got, expected);
            let back = jensen_shannon(q.iter().copied(), &p);
            prop_assert!((got - back).abs() < 1e-12);
        }

        #[test]
        fn a_band_is_the_weighted_mean_and_deviation_of_its_history(
            frames in proptest::collection::vec((0.01..2.0_f64, 0.0..1.0_f64), 1..60),
        ) {
            let mut band = Band::new(6.0, 0.0);
            for &(seconds, value) in &frames {
                band.learn(value, seconds);
            }
            let end: f64 = frames.iter().map(|f| f.0).sum();
            let mut time = 0.0;
            let weights: Vec<_> = frames.iter().map(|&(seconds, _)| {
                let before = (-(end - time) / 6.0_f64).exp();
                time += seconds;
                (-(end - time) / 6.0_f64).exp() - before
            }).collect();
            let all: f64 = weights.iter().sum();
            let sum = |f: &dyn Fn(f64) -> f64| {
                frames.iter().zip(&weights).map(|(x, w)| f(x.1) * w).sum::<f64>() / all
            };
            let mean = sum(&|v| v);
            prop_assert!((band.mean().unwrap() - mean).abs() < 1e-9);
            let variance = sum(&|v| (v - mean).powi(2));
            prop_assert!((band.deviation().powi(2) - variance).abs() < 1e-9);
        }
    }

    #[test]
    fn equal_histograms_and_disjoint_ones_are_the_ends() {
        let js = |p: [f64; 3], q: [f64; 3]| jensen_shannon(p.into_iter(), &q);
        assert!(js([1.0, 2.0, 0.0], [2.0, 4.0, 0.0]) < 1e-12);
        assert!((js([1.0, 0.0, 0.0], [0.0, 0.5, 0.5]) - 1.0).abs() < 1e-12);
        assert_eq!(js([0.0; 3], [1.0, 0.0, 0.0]), 0.0);
    }
}
