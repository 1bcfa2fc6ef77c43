//! Means over the latest seconds, in constant memory and right at any frame rate.

/// Exponential means of several channels over windows of several lengths.
///
/// A value stands for the time since the frame before it: the mean over a window of length `T`
/// is `Σ v_i (e^{-(t - t_i)/T} - e^{-(t - t_{i-1})/T})`, divided by the same sum of ones. So
/// twice the frames in the same time weigh the same, and a young stream is not pulled to 0.
#[derive(Debug, Clone)]
pub struct Windows {
    /// Seconds, rising.
    lengths: Vec<f64>,
    channels: usize,
    /// `[lengths, channels]`.
    sums: Vec<f64>,
    /// `[lengths]`.
    weights: Vec<f64>,
    /// Values of the latest frame, which are the means before any time has passed.
    latest: Vec<f64>,
}

impl Windows {
    /// Windows of `lengths` seconds over `channels` channels, without values.
    pub fn new(lengths: &[f64], channels: usize) -> Self {
        Self {
            lengths: lengths.to_vec(),
            channels,
            sums: vec![0.0; lengths.len() * channels],
            weights: vec![0.0; lengths.len()],
            latest: vec![0.0; channels],
        }
    }

    /// Adds a frame's values, one per channel, that stood for `seconds` (0 or more).
    pub fn add(&mut self, seconds: f64, values: &(impl Iterator<Item = f64> + Clone)) {
        for (slot, value) in self.latest.iter_mut().zip(values.clone()) {
            *slot = value;
        }
        if seconds <= 0.0 || self.channels == 0 {
            return;
        }
        let rows = self.sums.chunks_exact_mut(self.channels);
        for ((length, weight), row) in self.lengths.iter().zip(&mut self.weights).zip(rows) {
            let keep = (-seconds / length).exp();
            let new = -(-seconds / length).exp_m1();
            *weight = *weight * keep + new;
            for (sum, value) in row.iter_mut().zip(values.clone()) {
                *sum = *sum * keep + value * new;
            }
        }
    }

    /// Mean of a channel over a window (index into the lengths); 0 for one that is not there.
    pub fn mean(&self, window: usize, channel: usize) -> f64 {
        if channel >= self.channels {
            return 0.0;
        }
        match self.weights.get(window) {
            Some(&weight) if weight > 0.0 => self.sums[window * self.channels + channel] / weight,
            _ => self.latest[channel],
        }
    }

    /// Value of a channel in the latest frame; 0 for one that is not there.
    pub fn latest(&self, channel: usize) -> f64 {
        self.latest.get(channel).copied().unwrap_or(0.0)
    }

    /// Bytes that the windows hold, which never change.
    pub fn memory_bytes(&self) -> usize {
        size_of::<f64>()
            * (self.lengths.len() + self.sums.len() + self.weights.len() + self.latest.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition, summed up over all frames.
    fn slow(length: f64, frames: &[(f64, f64)]) -> f64 {
        let end: f64 = frames.iter().map(|f| f.0).sum();
        let (mut time, mut sum, mut weight) = (0.0, 0.0, 0.0);
        for &(seconds, value) in frames {
            let before = (-(end - time) / length).exp();
            time += seconds;
            let part = (-(end - time) / length).exp() - before;
            sum += value * part;
            weight += part;
        }
        sum / weight
    }

    proptest! {
        #[test]
        fn means_are_those_of_the_definition(
            length in 0.1..100.0_f64,
            frames in proptest::collection::vec((0.001..3.0_f64, 0.0..1.0_f64), 1..60),
        ) {
            let mut windows = Windows::new(&[length, 7.0], 2);
            for &(seconds, value) in &frames {
                windows.add(seconds, &[value, 1.0 - value].into_iter());
            }
            for (window, length) in [(0, length), (1, 7.0)] {
                let expected = slow(length, &frames);
                prop_assert!((windows.mean(window, 0) - expected).abs() < 1e-9);
                prop_assert!((windows.mean(window, 1) - (1.0 - expected)).abs() < 1e-9);
            }
        }

        #[test]
        fn the_frame_rate_does_not_matter(pieces in 2..9_usize, value in 0.0..1.0_f64) {
            let (mut whole, mut split) = (Windows::new(&[5.0], 1), Windows::new(&[5.0], 1));
            for (second, v) in [(1.0, 0.25), (2.0, value), (0.5, 0.75)] {
                whole.add(second, &[v].into_iter());
                for _ in 0..pieces {
                    split.add(second / pieces as f64, &[v].into_iter());
                }
            }
            prop_assert!((whole.mean(0, 0) - split.mean(0, 0)).abs() < 1e-12);
        }
    }

    #[test]
    fn the_first_frame_is_the_mean_until_time_passes() {
        let mut windows = Windows::new(&[5.0], 1);
        windows.add(0.0, &[0.4].into_iter());
        assert_eq!(windows.mean(0, 0), 0.4);
        windows.add(0.04, &[0.2].into_iter());
        assert!((windows.mean(0, 0) - 0.2).abs() < 1e-12);
        assert_eq!((windows.mean(3, 0), windows.mean(0, 9)), (0.2, 0.0));
    }
}
