//! Counters and latencies for the `stats` property.

use std::collections::VecDeque;

use conceptseg::results::Latency;
use conceptseg::stream::StageTimes;

/// Frames over which latencies are summed up: half a minute of video at 30 frames per second,
/// so that the figures follow a change of load and memory stays constant.
const WINDOW: usize = 1024;

/// Picks the time of one stage in milliseconds.
type Figure = fn(&Latency) -> f64;

/// What the element has done since it was started.
#[derive(Debug, Default)]
pub struct Stats {
    /// Buffers that came in.
    pub frames: u64,
    /// Buffers that the network has seen.
    pub inferred: u64,
    /// Name of the backend, empty before the start.
    pub backend: String,
    recent: VecDeque<Latency>,
}

impl Stats {
    /// Nothing done yet, with the backend of this name.
    pub fn new(backend: &str) -> Self {
        Self { backend: backend.to_owned(), ..Self::default() }
    }

    /// Counts a frame that was analysed.
    pub fn push(&mut self, times: &StageTimes) {
        self.inferred += 1;
        if self.recent.len() == WINDOW {
            self.recent.pop_front();
        }
        self.recent.push_back(Latency::from(times));
    }

    /// The value of the property.
    pub fn to_structure(&self) -> gst::Structure {
        let stages: [(&str, Figure); 5] = [
            ("preprocess", |l| l.preprocess),
            ("network", |l| l.network),
            ("concepts", |l| l.concepts),
            ("propagation", |l| l.propagation),
            ("total", |l| l.total),
        ];
        let mut fields = gst::Structure::builder("conceptseg-stats")
            .field("frames", self.frames)
            .field("inferred", self.inferred)
            .field("backend", &self.backend)
            .build();
        for (name, stage) in stages {
            fields.set(name, latency(self.recent.iter().map(stage).collect()));
        }
        fields
    }
}

/// Mean, median and 99th percentile in milliseconds; all 0 before the first frame.
fn latency(mut values: Vec<f64>) -> gst::Structure {
    values.sort_by(f64::total_cmp);
    // The nearest-rank percentile: a value that really occurred.
    let rank = |share: f64| {
        let index = ((values.len() as f64 * share).ceil() as usize).saturating_sub(1);
        values.get(index).copied().unwrap_or(0.0)
    };
    // The sum of no floats is -0, which would be shown as such.
    let sum = values.iter().fold(0.0, |sum, value| sum + value);
    gst::Structure::builder("latency-ms")
        .field("mean", sum / values.len().max(1) as f64)
        .field("median", rank(0.5))
        .field("p99", rank(0.99))
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn times(ms: u64) -> StageTimes {
        let network = Duration::from_millis(ms);
        let zero = Duration::ZERO;
        StageTimes { preprocess: zero, network, concepts: zero, propagation: zero }
    }

    #[test]
    fn latencies_are_mean_median_and_p99_of_recent_frames() {
        gst::init().unwrap();
        let mut stats = Stats::default();
        assert_eq!(figure(&stats, "network", "p99"), 0.0);
        for ms in 1..=100 {
            stats.push(&times(ms));
        }
        assert_eq!(figure(&stats, "network", "mean"), 50.5);
        assert_eq!(figure(&stats, "network", "median"), 50.0);
        assert_eq!(figure(&stats, "total", "p99"), 99.0);
        for _ in 0..WINDOW {
            stats.push(&times(7));
        }
        assert_eq!(figure(&stats, "network", "p99"), 7.0);
        assert_eq!(stats.inferred, 100 + WINDOW as u64);
    }

    fn figure(stats: &Stats, stage: &str, name: &str) -> f64 {
        stats.to_structure().get::<gst::Structure>(stage).unwrap().get(name).unwrap()
    }
}
