//! Counters and latencies for the `stats` property.

use std::collections::VecDeque;
use std::time::Duration;

/// Frames over which latencies are summed up: half a minute of video at 30 frames per second,
/// so that the figures follow a change of load and memory stays constant.
const WINDOW: usize = 1024;

/// The latest values of one figure.
#[derive(Debug, Default)]
struct Window(VecDeque<f64>);

impl Window {
    fn push(&mut self, value: f64) {
        if self.0.len() == WINDOW {
            self.0.pop_front();
        }
        self.0.push_back(value);
    }

    fn push_time(&mut self, time: Duration) {
        self.push(time.as_secs_f64() * 1e3);
    }

    fn mean(&self) -> f64 {
        // The sum of no floats is -0, which would be shown as such.
        let sum = self.0.iter().fold(0.0, |sum, value| sum + value);
        sum / self.0.len().max(1) as f64
    }

    /// Mean, quantiles and largest value of times; all 0 before the first frame.
    fn to_structure(&self) -> gst::Structure {
        let mut values: Vec<f64> = self.0.iter().copied().collect();
        values.sort_by(f64::total_cmp);
        // The nearest-rank percentile: a value that really occurred.
        let rank = |share: f64| {
            let index = ((values.len() as f64 * share).ceil() as usize).saturating_sub(1);
            values.get(index).copied().unwrap_or(0.0)
        };
        gst::Structure::builder("milliseconds")
            .field("mean", self.mean())
            .field("median", rank(0.5))
            .field("p95", rank(0.95))
            .field("p99", rank(0.99))
            .field("max", rank(1.0))
            .build()
    }
}

/// What an element has done since it was started.
#[derive(Debug, Default)]
pub struct Stats {
    /// Buffers that came in.
    pub frames: u64,
    /// Buffers that were worked on.
    pub inferred: u64,
    /// Buffers that passed with an earlier result because the element was busy.
    pub skipped: u64,
    /// Name of the backend; empty before the start and where there is none.
    pub backend: String,
    /// Latencies by stage, in the order in which they were first seen.
    stages: Vec<(&'static str, Window)>,
    age: Window,
    blocked: Window,
    /// Frames of each inference.
    batch: Window,
}

impl Stats {
    /// Nothing done yet, with the backend of this name.
    pub fn new(backend: &str) -> Self {
        Self { backend: backend.to_owned(), ..Self::default() }
    }

    /// Notes what a stage took for one frame.
    pub fn stage(&mut self, name: &'static str, time: Duration) {
        if let Some((_, window)) = self.stages.iter_mut().find(|(known, _)| *known == name) {
            return window.push_time(time);
        }
        let mut window = Window::default();
        window.push_time(time);
        self.stages.push((name, window));
    }

    /// Notes how old the result of a frame was when the frame passed.
    pub fn age(&mut self, age: Duration) {
        self.age.push_time(age);
    }

    /// Notes for how long a frame was held.
    pub fn blocked(&mut self, time: Duration) {
        self.blocked.push_time(time);
    }

    /// Notes how many frames an inference had.
    pub fn batch(&mut self, frames: usize) {
        self.batch.push(frames as f64);
    }

    /// The value of the property.
    pub fn to_structure(&self) -> gst::Structure {
        let mut fields = gst::Structure::builder("conceptseg-stats")
            .field("frames", self.frames)
            .field("inferred", self.inferred)
            .field("skipped", self.skipped)
            .field("age", self.age.to_structure())
            .field("blocked", self.blocked.to_structure())
            .build();
        if !self.backend.is_empty() {
            fields.set("backend", &self.backend);
        }
        if let Some(largest) = self.batch.0.iter().copied().max_by(f64::total_cmp) {
            let batch = gst::Structure::builder("frames")
                .field("mean", self.batch.mean())
                .field("max", largest as u32);
            fields.set("batch", batch.build());
        }
        for (name, window) in &self.stages {
            fields.set(*name, window.to_structure());
        }
        fields
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_are_quantiles_of_recent_frames() {
        gst::init().unwrap();
        let mut stats = Stats::default();
        assert_eq!(figure(&stats, "age", "p99"), 0.0);
        for ms in 1..=100 {
            stats.stage("network", Duration::from_millis(ms));
        }
        assert_eq!(figure(&stats, "network", "mean"), 50.5);
        assert_eq!(figure(&stats, "network", "median"), 50.0);
        assert_eq!(figure(&stats, "network", "p99"), 99.0);
        assert_eq!(figure(&stats, "network", "max"), 100.0);
        for _ in 0..WINDOW {
            stats.stage("network", Duration::from_millis(7));
        }
        assert_eq!(figure(&stats, "network", "max"), 7.0);
    }

    #[test]
    fn batches_have_mean_and_maximum() {
        gst::init().unwrap();
        let mut stats = Stats::default();
        assert!(!stats.to_structure().has_field("batch"));
        for frames in [1, 4, 4] {
            stats.batch(frames);
        }
        let batch: gst::Structure = stats.to_structure().get("batch").unwrap();
        assert_eq!(batch.get::<f64>("mean").unwrap(), 3.0);
        assert_eq!(batch.get::<u32>("max").unwrap(), 4);
    }

    fn figure(stats: &Stats, stage: &str, name: &str) -> f64 {
        stats.to_structure().get::<gst::Structure>(stage).unwrap().get(name).unwrap()
    }
}
