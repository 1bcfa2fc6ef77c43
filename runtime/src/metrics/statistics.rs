//! Mean, recall and decay of a measure over the frames of a sequence.

/// Values above this count for the recall (the DAVIS tool compares strictly).
const RECALL_THRESHOLD: f64 = 0.5;

/// Bins of which the decay compares the first with the last.
const DECAY_BINS: usize = 4;

/// What a series of per-frame values in 0..1 comes to. All three are NaN for a series
/// without values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Statistics {
    /// Mean over the frames, 0..1.
    pub mean: f64,
    /// Share of frames above 0.5, 0..1.
    pub recall: f64,
    /// Mean of the first quarter less that of the last, -1..1; what is lost over time.
    pub decay: f64,
}

impl Statistics {
    /// The statistics of `values`, one per evaluated frame in order.
    ///
    /// The quarters share the value at their common edge, as in the official tool. That
    /// tool keeps the edges in 8 bits, so from 257 values on its decay compares the wrong
    /// frames or is undefined; here it is the same rule at any length, hence different
    /// from the official decay there, and only there.
    pub fn of(values: &[f64]) -> Self {
        let Some(last) = values.len().checked_sub(1) else {
            return Self { mean: f64::NAN, recall: f64::NAN, decay: f64::NAN };
        };
        // The tool's round(linspace(1, n, 5) + 1e-10) - 1: quarters rounded, halves up.
        let edge = |i: usize| (i * last + DECAY_BINS / 2) / DECAY_BINS;
        let first_bin = &values[..=edge(1)];
        let last_bin = &values[edge(DECAY_BINS - 1)..];
        let above = values.iter().filter(|&&v| v > RECALL_THRESHOLD).count();
        Self {
            mean: mean(values.iter().copied()),
            recall: above as f64 / values.len() as f64,
            decay: mean(first_bin.iter().copied()) - mean(last_bin.iter().copied()),
        }
    }
}

/// Plain mean; NaN of nothing.
pub(super) fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0u32), |(s, n), v| (s + v, n + 1));
    sum / f64::from(count)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::testdata;

    fn check(values: &[f64], mean: f64, recall: f64, decay: f64) {
        let found = Statistics::of(values);
        for (name, found, expected) in [
            ("mean", found.mean, mean),
            ("recall", found.recall, recall),
            ("decay", found.decay, decay),
        ] {
            assert!((found - expected).abs() < 1e-12, "{name} of {values:?}: {found}, {expected}");
        }
    }

    /// Figures of the official tool for short series.
    #[test]
    fn short_series_have_the_official_figures() {
        check(&[0.926], 0.926, 1.0, 0.0);
        check(&[0.986, 0.488], 0.737, 0.5, 0.498);
        check(&[0.894, 0.717, 0.449], 2.06 / 3.0, 2.0 / 3.0, 0.3565);
        check(&[0.867, 0.743, 0.689, 0.373], 0.668, 0.75, 0.274);
        check(&[0.953, 0.674, 0.81, 0.739, 0.371], 0.7094, 0.8, 0.2585);
        check(&[0.746, 0.917, 0.639, 0.397, 0.478, 0.435], 0.602, 0.5, 0.375);
        let seven = [0.79, 0.607, 0.749, 0.585, 0.454, 0.4, 0.522];
        check(&seven, 4.107 / 7.0, 5.0 / 7.0, 0.254_333_333_333_333_24);
    }

    #[test]
    fn recall_counts_only_what_is_above_one_half() {
        check(&[0.5, 0.500_000_1, 0.499_999_9, 1.0], 0.625, 0.5, -0.249_999_9);
    }

    #[test]
    fn beyond_256_values_the_decay_still_compares_the_outer_quarters() {
        let falling: Vec<f64> = (0..401).map(|i| 1.0 - f64::from(i) / 400.0).collect();
        check(&falling, 0.5, 200.0 / 401.0, 0.75);
    }

    #[test]
    fn no_values_have_no_statistics() {
        assert!(Statistics::of(&[]).mean.is_nan());
    }

    #[test]
    fn every_recorded_series_agrees_with_the_official_tool() {
        let Some(path) = testdata::shared("expected/davis/cases.json") else { return };
        let recorded: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let series = recorded["statistics"].as_array().unwrap();
        assert!(series.len() >= 18);
        for one in series {
            let number = |v: &Value| v.as_f64().unwrap();
            let values: Vec<f64> = one["values"].as_array().unwrap().iter().map(number).collect();
            // Undefined in the official tool where its edges wrap; see `Statistics::of`.
            let official_decay = one["decay"].as_f64();
            assert!(official_decay.is_some() || values.len() > 256);
            let decay = official_decay.unwrap_or_else(|| Statistics::of(&values).decay);
            check(&values, number(&one["mean"]), number(&one["recall"]), decay);
        }
    }
}
