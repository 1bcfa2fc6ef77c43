//! How large the numbers of a map are, and where to cut them off.

use serde::{Deserialize, Serialize};

/// Bins of a histogram; at least half of them lie below the largest number seen.
const BINS: usize = 4096;
/// Steps between zero and the largest 8-bit integer.
const STEPS: f64 = 127.0;
/// Share of the numbers that [`Method::Percentile`] keeps.
const KEPT: f64 = 0.9999;
/// Bins with which [`Method::Entropy`] starts: one for each step.
const LEVELS: usize = 128;
/// Thresholds that the searches try.
const TRIALS: usize = 128;

/// How the largest number that is represented is chosen; larger ones are cut off.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// 99.99 % of the numbers that are not zero are represented.
    #[default]
    Percentile,
    /// The distribution after rounding tells most about the one before: least Kullback-Leibler
    /// divergence (Migacz, "8-bit inference with TensorRT", 2017).
    Entropy,
    /// The mean squared error of rounding and cutting off is smallest.
    SquaredError,
}

/// Counts of the sizes of numbers. Zeros are left out: every step represents them exactly, and a
/// map after `Relu` has so many that they would outweigh the rest.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Histogram {
    /// Upper end of the last bin, a power of two; 0 before the first number.
    range: f64,
    counts: Vec<u64>,
    largest: f32,
}

impl Histogram {
    pub(super) fn new() -> Self {
        Self { range: 0.0, counts: vec![0; BINS], largest: 0.0 }
    }

    /// Counts numbers; false, and nothing is counted, if one of them is not finite.
    pub(super) fn add(&mut self, values: &[f32]) -> bool {
        let mut largest = 0.0_f32;
        let mut finite = true;
        for value in values {
            largest = largest.max(value.abs());
            finite &= value.is_finite();
        }
        if !finite {
            return false;
        }
        self.make_room(largest);
        self.largest = self.largest.max(largest);
        let scale = (BINS as f64 / self.range.max(f64::MIN_POSITIVE)) as f32;
        for value in values.iter().filter(|v| **v != 0.0) {
            let bin = (value.abs() * scale) as usize;
            self.counts[bin.min(BINS - 1)] += 1;
        }
        true
    }

    /// Widens the range to a number by joining neighbouring bins.
    fn make_room(&mut self, largest: f32) {
        let largest = f64::from(largest);
        if largest <= self.range {
            return;
        }
        if self.range == 0.0 {
            self.range = largest.log2().ceil().exp2();
        }
        while self.range < largest {
            self.range *= 2.0;
            for bin in 0..BINS {
                let pair = self.counts.get(2 * bin..2 * bin + 2);
                self.counts[bin] = pair.map_or(0, |pair| pair.iter().sum());
            }
        }
    }

    /// The largest number seen.
    pub(super) const fn largest(&self) -> f32 {
        self.largest
    }

    /// The largest number to represent; 0 if all numbers were zero.
    pub(super) fn threshold(&self, method: Method) -> f32 {
        let used = self.counts.iter().rposition(|&count| count > 0).map_or(0, |last| last + 1);
        if used == 0 {
            return 0.0;
        }
        let counts: Vec<f64> = self.counts[..used].iter().map(|&count| count as f64).collect();
        let bins = match method {
            Method::Percentile => percentile(&counts),
            Method::Entropy => least(&counts, LEVELS, divergence),
            Method::SquaredError => least(&counts, used.div_ceil(10), squared_error),
        };
        let threshold = bins as f64 * self.range / BINS as f64;
        (threshold as f32).min(self.largest)
    }
}

/// Bins that hold the kept share.
fn percentile(counts: &[f64]) -> usize {
    let wanted = counts.iter().sum::<f64>() * KEPT;
    let mut sum = 0.0;
    let last = counts.iter().position(|count| {
        sum += count;
        sum >= wanted
    });
    last.map_or(counts.len(), |last| last + 1)
}

/// The number of bins, from `first` on, whose cost is least.
fn least(counts: &[f64], first: usize, cost: fn(&[f64], usize) -> f64) -> usize {
    let step = (counts.len() / TRIALS).max(1);
    let trials = (first..counts.len()).step_by(step).chain([counts.len()]);
    trials
        .map(|bins| (bins, cost(counts, bins)))
        .min_by(|a, b| a.1.total_cmp(&b.1))
        .map_or(counts.len(), |(bins, _)| bins)
}

/// Sum of the squared errors in units of a bin's width, if the first `bins` are represented.
fn squared_error(counts: &[f64], bins: usize) -> f64 {
    let end = bins as f64;
    // A number within the range is off by up to half a step, evenly spread.
    let inside = (end / STEPS).powi(2) / 12.0;
    let kept: f64 = counts[..bins].iter().sum();
    let cut = counts[bins..].iter().enumerate();
    kept * inside + cut.map(|(i, count)| count * (i as f64 + 0.5).powi(2)).sum::<f64>()
}

/// Divergence of the distribution in 128 levels from that of the first `bins`, whose last one
/// takes what is cut off.
fn divergence(counts: &[f64], bins: usize) -> f64 {
    let cut: f64 = counts[bins..].iter().sum();
    let kept: f64 = counts[..bins].iter().sum();
    let total = kept + cut;
    if kept <= 0.0 {
        return f64::INFINITY;
    }
    let mut sum = 0.0;
    for level in 0..LEVELS {
        let range = level * bins / LEVELS..(level + 1) * bins / LEVELS;
        let members = &counts[range.clone()];
        let mass: f64 = members.iter().sum();
        let filled = members.iter().filter(|&&count| count > 0.0).count().max(1) as f64;
        for (bin, &count) in range.zip(members) {
            let p = (count + if bin + 1 == bins { cut } else { 0.0 }) / total;
            // Numbers that are cut off go where there were none: as rare as can be.
            let q = if count > 0.0 { mass / filled / kept } else { 0.5 / total };
            if p > 0.0 {
                sum += p * (p / q).ln();
            }
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::SeedableRng as _;
    use rand_pcg::Pcg64;

    use super::*;

    const METHODS: [Method; 3] = [Method::Percentile, Method::Entropy, Method::SquaredError];

    /// Sums of twelve even numbers: nearly normal, deviation 1.
    fn normal(count: usize) -> Vec<f32> {
        let mut rng = Pcg64::seed_from_u64(3);
        let one = |_| (0..12).map(|_| rng.random_range(0.0_f32..1.0)).sum::<f32>() - 6.0;
        (0..count).map(one).collect()
    }

    fn of(values: &[f32]) -> Histogram {
        let mut histogram = Histogram::new();
        assert!(histogram.add(values));
        histogram
    }

    #[test]
    fn rare_outliers_are_cut_off() {
        let mut values = normal(200_000);
        let bulk = of(&values).largest();
        values.extend([90.0, -100.0]);
        let histogram = of(&values);
        for method in [Method::Percentile, Method::Entropy] {
            let threshold = histogram.threshold(method);
            assert!((2.0..bulk * 1.6).contains(&threshold), "{method:?}: {threshold}");
        }
        // Two numbers that are off by a hundred weigh as much as many that are off by a little.
        let threshold = histogram.threshold(Method::SquaredError);
        assert!((bulk..90.0).contains(&threshold), "{threshold}");
        assert_eq!(histogram.largest(), 100.0);
    }

    #[test]
    fn even_numbers_are_not_cut_off() {
        let values: Vec<f32> = (1..=100_000).map(|i| i as f32 / 1e5).collect();
        for method in METHODS {
            let threshold = of(&values).threshold(method);
            assert!((0.98..=1.0).contains(&threshold), "{method:?}: {threshold}");
        }
    }

    #[test]
    fn zeros_count_for_nothing() {
        let mut values = normal(10_000);
        let without: Vec<f32> = METHODS.map(|m| of(&values).threshold(m)).to_vec();
        values.extend(std::iter::repeat_n(0.0, 1_000_000));
        assert_eq!(METHODS.map(|m| of(&values).threshold(m)).to_vec(), without);
        assert_eq!(of(&[0.0; 5]).threshold(Method::default()), 0.0);
        assert_eq!(Histogram::new().threshold(Method::default()), 0.0);
    }

    #[test]
    fn infinite_numbers_are_told_and_not_counted() {
        let mut histogram = of(&[1.0]);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(!histogram.add(&[2.0, bad]));
        }
        assert_eq!(histogram, of(&[1.0]));
    }

    proptest! {
        #[test]
        fn the_order_of_the_numbers_does_not_matter(
            mut values in prop::collection::vec(-1e6_f32..1e6, 1..50),
            small in prop::collection::vec(-1e-3_f32..1e-3, 0..50),
        ) {
            values.extend(&small);
            let together = of(&values);
            let mut apart = Histogram::new();
            for value in values.iter().rev() {
                prop_assert!(apart.add(&[*value]));
            }
            prop_assert_eq!(together.counts.iter().sum::<u64>(), apart.counts.iter().sum::<u64>());
            for method in METHODS {
                let [a, b] = [&together, &apart].map(|h| h.threshold(method));
                prop_assert!((a - b).abs() <= 0.01 * together.largest(), "{} {}", a, b);
                prop_assert!(a >= 0.0 && a <= together.largest());
            }
        }
    }
}
