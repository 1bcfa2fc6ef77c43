//! The figures of a run.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use conceptseg::metrics::davis::Figures;
use conceptseg::results::{FrameRecord, Latency};
use serde::Serialize;

/// How many concepts the summary lists.
const TOP_CONCEPTS: usize = 8;

/// One of the times of a frame, in milliseconds.
type Field = fn(&Latency) -> f64;

/// The stages in the order of a frame's way, with their field of [`Latency`].
const STAGES: [(&str, Field); 4] = [
    ("preprocess", |l| l.preprocess),
    ("network", |l| l.network),
    ("concepts", |l| l.concepts),
    ("propagation", |l| l.propagation),
];

/// Gathers what the summary needs while records pass by.
#[derive(Debug, Default)]
pub struct Tally {
    latencies: Vec<Latency>,
    size: (u32, u32),
    /// Name and summed area share by concept id.
    concepts: BTreeMap<u16, (Option<String>, f64)>,
}

impl Tally {
    pub fn add(&mut self, record: &FrameRecord) {
        self.latencies.push(record.latency_ms);
        self.size = (record.width, record.height);
        for concept in &record.concepts {
            let (name, area) = self.concepts.entry(concept.id).or_default();
            name.clone_from(&concept.name);
            *area += concept.area;
        }
    }

    pub fn frames(&self) -> usize {
        self.latencies.len()
    }
}

#[derive(Debug, Serialize)]
struct Stage {
    name: &'static str,
    median_ms: f64,
    p99_ms: f64,
    /// Of the time of all stages, 0..1.
    share: f64,
}

#[derive(Debug, Serialize)]
struct Concept {
    id: u16,
    name: Option<String>,
    /// Mean share of the picture, 0..1.
    area: f64,
}

/// The figures of a run. All times in milliseconds.
#[derive(Debug, Serialize)]
pub struct Summary {
    frames: usize,
    width: u32,
    height: u32,
    /// Frames per second of the whole run with decoding and encoding, where its time is known.
    fps_run: Option<f64>,
    /// Frames per second if only the stages took time.
    fps_stages: f64,
    latency_median_ms: f64,
    latency_p99_ms: f64,
    stages: Vec<Stage>,
    peak_memory_mib: Option<f64>,
    concepts: Vec<Concept>,
    /// Means over the objects against true masks.
    quality: Option<Figures>,
}

impl Summary {
    pub fn new(
        tally: &Tally,
        elapsed_seconds: Option<f64>,
        peak_memory_kib: Option<u64>,
        quality: Option<Figures>,
    ) -> Self {
        let series = |value: Field| {
            let mut values: Vec<f64> = tally.latencies.iter().map(value).collect();
            values.sort_by(f64::total_cmp);
            values
        };
        let total = series(|l| l.total);
        let total_sum: f64 = total.iter().sum();
        let frames = tally.frames();
        let stages = STAGES.map(|(name, value)| {
            let values = series(value);
            Stage {
                name,
                median_ms: percentile(&values, 0.5),
                p99_ms: percentile(&values, 0.99),
                share: ratio(values.iter().sum(), total_sum),
            }
        });
        let mut concepts: Vec<Concept> = tally
            .concepts
            .iter()
            .map(|(&id, (name, area))| Concept {
                id,
                name: name.clone(),
                area: ratio(*area, frames as f64),
            })
            .collect();
        concepts.sort_by(|a, b| b.area.total_cmp(&a.area));
        concepts.truncate(TOP_CONCEPTS);
        Self {
            frames,
            width: tally.size.0,
            height: tally.size.1,
            fps_run: elapsed_seconds.filter(|s| *s > 0.0).map(|s| frames as f64 / s),
            fps_stages: ratio(frames as f64 * 1e3, total_sum),
            latency_median_ms: percentile(&total, 0.5),
            latency_p99_ms: percentile(&total, 0.99),
            stages: stages.into(),
            peak_memory_mib: peak_memory_kib.map(|kib| kib as f64 / 1024.0),
            concepts,
            quality,
        }
    }

    /// The figures for people.
    pub fn table(&self) -> String {
        let mut text = String::new();
        let mut row = |key: &str, value: String| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{key:<22}{value}");
        };
        row("frames", format!("{} of {}x{}", self.frames, self.width, self.height));
        if let Some(fps) = self.fps_run {
            row(
                "frames per second",
                format!("{fps:.1} (whole run, with start, decoding, encoding)"),
            );
        }
        row("  of the stages alone", format!("{:.1}", self.fps_stages));
        row("latency median", format!("{:.1} ms", self.latency_median_ms));
        row("latency p99", format!("{:.1} ms", self.latency_p99_ms));
        for Stage { name, median_ms, p99_ms, share } in &self.stages {
            row(
                &format!("  {name}"),
                format!("{median_ms:>7.1} ms   p99 {p99_ms:>7.1} ms   {:>5.1} %", share * 100.0),
            );
        }
        if let Some(mib) = self.peak_memory_mib {
            row("peak memory", format!("{mib:.0} MiB"));
        }
        if !self.concepts.is_empty() {
            row("largest concepts", "share of the picture".into());
        }
        for Concept { id, name, area } in &self.concepts {
            let name = name.clone().unwrap_or_else(|| format!("concept {id}"));
            row(&format!("  {name}"), format!("{:>5.1} %", area * 100.0));
        }
        if let Some(quality) = self.quality {
            row("J mean", format!("{:.3}", quality.j_mean));
            row("F mean", format!("{:.3}", quality.f_mean));
            row("J&F", format!("{:.3}", quality.jf_mean));
        }
        text
    }
}

/// The smallest value that at least `share` of the sorted values do not exceed; 0 of none.
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
}

fn ratio(a: f64, b: f64) -> f64 {
    if b > 0.0 { a / b } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use conceptseg::results::ConceptRecord;

    #[test]
    fn percentiles_take_the_nearest_rank() {
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(percentile(&values, 0.5), 50.0);
        assert_eq!(percentile(&values, 0.99), 99.0);
        assert_eq!(percentile(&[7.0], 0.99), 7.0);
        assert_eq!(percentile(&[], 0.5), 0.0);
    }

    #[test]
    fn figures_add_up() {
        let mut tally = Tally::default();
        for i in 0..4u16 {
            let concept =
                ConceptRecord { id: i % 2, name: None, mark: None, area: 0.5, similarity: 0.9 };
            tally.add(&FrameRecord {
                frame: u64::from(i),
                pts_ns: None,
                age_ns: None,
                width: 8,
                height: 6,
                latency_ms: Latency {
                    preprocess: 5.0,
                    network: 15.0,
                    total: 20.0,
                    ..Latency::default()
                },
                concepts: vec![concept],
                instances: Vec::new(),
            });
        }
        let summary = Summary::new(&tally, Some(0.5), Some(2048), None);
        assert_eq!((summary.fps_run, summary.fps_stages), (Some(8.0), 50.0));
        assert_eq!((summary.latency_median_ms, summary.peak_memory_mib), (20.0, Some(2.0)));
        let shares: Vec<f64> = summary.stages.iter().map(|s| s.share).collect();
        assert_eq!(shares, [0.25, 0.75, 0.0, 0.0]);
        assert_eq!(summary.concepts.iter().map(|c| c.area).collect::<Vec<_>>(), [0.25, 0.25]);
        let table = summary.table();
        assert!(table.contains("4 of 8x6") && table.contains("concept 1"), "{table}");
        assert!(!table.contains("J mean"), "{table}");
    }
}
