//! Confidence by drawing units anew (Efron's bootstrap, percentile intervals).
//!
//! The units are images or sequences, not pixels or frames: those of one image depend on each
//! other and would make intervals far too narrow.

use rand::{RngExt as _, SeedableRng as _};
use rand_pcg::Pcg64;
use rayon::prelude::*;

/// Confidence level of the intervals.
pub const LEVEL: f64 = 0.95;

/// Times that the units are drawn anew.
pub const RESAMPLES: usize = 2000;

/// Seed of the drawing: a report is the same whenever it is made.
pub const SEED: u64 = 0;

/// `statistic` of [`RESAMPLES`] draws of `units` units with replacement. It is given how often
/// each unit was drawn. Draw `i` is the same for every statistic of as many units, which makes
/// comparisons of two of them paired.
pub fn resampled<T: Send>(units: usize, statistic: impl Fn(&[u32]) -> T + Sync) -> Vec<T> {
    (0..RESAMPLES as u64)
        .into_par_iter()
        .map(|draw| {
            let mut random = Pcg64::seed_from_u64(SEED ^ draw.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let mut weights = vec![0; units];
            for _ in 0..units {
                weights[random.random_range(0..units)] += 1;
            }
            statistic(&weights)
        })
        .collect()
}

/// The middle [`LEVEL`] of the values, without those that are not finite; `None` where none is.
pub fn interval(mut values: Vec<f64>) -> Option<(f64, f64)> {
    values.retain(|v| v.is_finite());
    values.sort_by(f64::total_cmp);
    let quantile = |share: f64| {
        // Linear between the two values beside it, as NumPy does.
        let at = share * (values.len().checked_sub(1)? as f64);
        let (low, high) = (values.get(at.floor() as usize)?, values.get(at.ceil() as usize)?);
        Some(low + (high - low) * at.fract())
    };
    Some((quantile((1.0 - LEVEL) / 2.0)?, quantile(f64::midpoint(LEVEL, 1.0))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_draw_holds_as_many_units_as_there_are_and_none_is_preferred() {
        let draws = resampled(10, <[u32]>::to_vec);
        assert!(draws.iter().all(|weights| weights.iter().sum::<u32>() == 10));
        assert_eq!(draws, resampled(10, <[u32]>::to_vec));
        for unit in 0..10 {
            let total: u32 = draws.iter().map(|weights| weights[unit]).sum();
            // 2,000 expected, standard deviation 42.
            assert!((1800..2200).contains(&total), "unit {unit}: {total}");
        }
    }

    #[test]
    fn the_interval_of_a_mean_is_that_of_the_normal_distribution() {
        let values: Vec<f64> = (0..100).map(|i| f64::from(i % 10)).collect();
        let mean = |weights: &[u32]| {
            values.iter().zip(weights).map(|(v, &w)| v * f64::from(w)).sum::<f64>() / 100.0
        };
        let (low, high) = interval(resampled(100, mean)).unwrap();
        // Mean 4.5, standard error sqrt(8.25 / 100) = 0.287; 1.96 of them on both sides.
        assert!((low - 3.94).abs() < 0.06 && (high - 5.06).abs() < 0.06, "{low} {high}");
    }

    #[test]
    fn quantiles_lie_between_values_and_need_finite_ones() {
        let (low, high) = interval((0..=1000).map(f64::from).collect()).unwrap();
        assert!((low - 25.0).abs() < 1e-9 && (high - 975.0).abs() < 1e-9, "{low} {high}");
        assert_eq!(interval(vec![2.0, f64::NAN]), Some((2.0, 2.0)));
        assert_eq!(interval(vec![f64::NAN]), None);
        assert_eq!(interval(vec![]), None);
    }
}
