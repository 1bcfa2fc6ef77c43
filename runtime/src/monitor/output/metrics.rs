//! The measurements for Prometheus.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::hub::{Hub, Latest};
use crate::monitor::EventKind;

/// What the streams show at present, in the text format of `OpenMetrics`.
///
/// # Errors
/// None that happens: text can always be written to memory.
pub fn render(hub: &Arc<Hub>) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("conceptseg");
    registry.register_collector(Box::new(Streams(Arc::clone(hub))));
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct Streams(Arc<Hub>);

/// Name, explanation, and what it is of a stream.
type Gauge = (&'static str, &'static str, fn(&Latest) -> Option<f64>);

const GAUGES: [Gauge; 7] = [
    (
        "novelty",
        "Share of the area that looks like nothing that was learnt, over the first window",
        |l| l.status.novelty.first().copied(),
    ),
    ("drift", "Jensen-Shannon divergence of the concepts from the baseline in bits", |l| {
        Some(l.status.drift)
    }),
    ("drift_usual", "Mean of the drift over its own history", |l| {
        l.status.drift_usual.map(|u| u[0])
    }),
    ("drift_deviation", "Deviation of the drift over its own history", |l| {
        l.status.drift_usual.map(|u| u[1])
    }),
    ("brightness", "Mean brightness of the picture, 0 to 255", |l| l.status.look.map(|k| k[0])),
    ("contrast", "Deviation of the brightness, 0 to 127.5", |l| l.status.look.map(|k| k[1])),
    ("sharpness", "Mean squared Laplacian over the variance of the brightness", |l| {
        l.status.look.map(|k| k[2])
    }),
];

/// States that a stream can be in, other than rules.
const STATES: [&str; 5] = ["novel", "drifted", "frozen", "covered", "blurred"];

impl Collector for Streams {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let streams = self.0.streams();
        for (name, help, of) in GAUGES {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for latest in &streams {
                let Some(value) = of(latest) else { continue };
                let labels = [("stream", latest.status.stream.as_str())];
                ConstGauge::new(value).encode(metric.encode_family(&labels)?)?;
            }
        }
        let help = "1 where the state or rule holds";
        let mut metric = encoder.encode_descriptor("state", help, None, MetricType::Gauge)?;
        for Latest { status, .. } in streams.iter().map(AsRef::as_ref) {
            let rules = status.active.iter().map(String::as_str).filter(|a| !STATES.contains(a));
            for state in STATES.into_iter().chain(rules) {
                let holds = i64::from(status.active.iter().any(|a| a == state));
                let labels = [("stream", status.stream.as_str()), ("state", state)];
                ConstGauge::new(holds).encode(metric.encode_family(&labels)?)?;
            }
        }
        let help = "Share of the area of a concept over the second window";
        let mut metric =
            encoder.encode_descriptor("concept_area", help, None, MetricType::Gauge)?;
        for Latest { status, .. } in streams.iter().map(AsRef::as_ref) {
            for concept in &status.concepts {
                let id = concept.id.to_string();
                let name = concept.name.as_deref().unwrap_or(&id);
                let labels = [("stream", status.stream.as_str()), ("concept", &id), ("name", name)];
                let area = concept.area.get(1).copied().unwrap_or(0.0);
                ConstGauge::new(area).encode(metric.encode_family(&labels)?)?;
            }
        }
        let mut metric =
            encoder.encode_descriptor("frames", "Frames so far", None, MetricType::Counter)?;
        for latest in &streams {
            let labels = [("stream", latest.status.stream.as_str())];
            ConstCounter::new(latest.status.frames).encode(metric.encode_family(&labels)?)?;
        }
        let help = "Seconds that the monitor took";
        let mut metric =
            encoder.encode_descriptor("monitor_seconds", help, None, MetricType::Counter)?;
        for latest in &streams {
            let labels = [("stream", latest.status.stream.as_str())];
            ConstCounter::new(latest.busy).encode(metric.encode_family(&labels)?)?;
        }
        let mut metric =
            encoder.encode_descriptor("events", "Events so far", None, MetricType::Counter)?;
        for latest in &streams {
            for (kind, count) in EventKind::ALL.into_iter().zip(latest.events) {
                let labels = [("stream", latest.status.stream.as_str()), ("kind", kind.as_str())];
                ConstCounter::new(count).encode(metric.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}
