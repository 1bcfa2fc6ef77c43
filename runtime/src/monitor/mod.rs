//! Watching streams: what is normal, what differs, and who is told.
//!
//! ```text
//! bundle or footage -> Baseline -> Reference (with the names)     shared by all streams
//! FrameResult, pixels -> StreamMonitor -> Event ...               one per stream
//! Event, StreamStatus -> output::Outputs                          shared by all streams
//! ```
//!
//! [`Setup`] makes the first two of the files that an application is given, a [`Watch`] is the third
//! with its outputs. A [`StreamMonitor`] keeps the same memory from the first frame to the last, and looks at the
//! segments of a frame and at some thousand pixels, not at all of them.

pub mod baseline;
pub mod camera;
mod config;
pub mod drift;
mod event;
pub mod hysteresis;
pub mod output;
mod readings;
mod reference;
pub mod rules;
mod setup;
mod stream;
#[cfg(test)]
mod tests;
mod thumbnail;
mod watch;
pub mod windows;

pub use config::MonitorConfig;
pub use event::{Event, EventConcept, EventKind};
pub use readings::{ConceptStatus, Readings, StreamStatus};
pub use reference::Reference;
pub use setup::{Setup, SetupError, SetupFiles, SetupSources};
pub use stream::StreamMonitor;
pub use watch::Watch;

use crate::concepts::ConceptSegment;
use crate::results::FrameRecord;
use crate::stream::FrameResult;

/// Why a monitor could not be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MonitorError {
    /// A setting is not possible.
    #[error("the monitor's settings are wrong: {0}")]
    Settings(String),
}

/// A concept in a part of a frame.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sighting {
    /// Row of the codebook.
    pub concept: u16,
    /// Share of the frame's area, 0..=1.
    pub share: f64,
    /// Cosine similarity to the concept, -1..=1.
    pub similarity: f32,
}

impl Sighting {
    /// The segments of a frame; none where it was not labelled with concepts.
    pub fn of_result(result: &FrameResult) -> impl Iterator<Item = Self> + '_ {
        let size = (result.width, result.height);
        let segments = result.concepts.iter().flat_map(|map| &map.segment_list);
        segments.map(move |segment| Self::of_segment(segment, size))
    }

    /// A segment of a frame of that width and height.
    pub fn of_segment(segment: &ConceptSegment, (width, height): (u32, u32)) -> Self {
        let pixels = (f64::from(width) * f64::from(height)).max(1.0);
        Self {
            concept: segment.concept,
            share: f64::from(segment.area) / pixels,
            similarity: segment.similarity,
        }
    }

    /// The concepts of a line of a results file, each with the mean similarity of its segments.
    pub fn of_record(record: &FrameRecord) -> impl Iterator<Item = Self> + '_ {
        record.concepts.iter().map(|c| Self {
            concept: c.id,
            // A file may hold anything.
            share: if c.area.is_finite() { c.area.clamp(0.0, 1.0) } else { 0.0 },
            similarity: if c.similarity.is_finite() { c.similarity as f32 } else { 0.0 },
        })
    }
}
