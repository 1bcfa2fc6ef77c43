//! Where a result comes from, and how old it is.

use std::time::Duration;

use conceptseg::labels::MAX_SIDE;
use conceptseg::stream::StageTimes;

use super::MetaError;

/// The frame that a result was found in.
#[derive(Debug, Clone, PartialEq)]
pub struct Source {
    /// Index of the frame in its stream, from 0.
    pub frame: u64,
    /// Its presentation time, where it has one.
    pub pts: Option<gst::ClockTime>,
    /// Its width in pixels.
    pub width: u32,
    /// Its height in pixels.
    pub height: u32,
    /// What the stages took so far.
    pub times: StageTimes,
}

impl Source {
    /// What the stages took together.
    pub fn cost(&self) -> Duration {
        let StageTimes { preprocess, network, concepts, propagation } = self.times;
        preprocess + network + concepts + propagation
    }

    /// Whether this is the frame that `other` is.
    pub fn is_frame(&self, other: &Self) -> bool {
        (self.frame, self.pts) == (other.frame, other.pts)
    }
}

/// How far a result lies behind the frame that carries it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Age {
    /// Time between the two frames.
    pub age: gst::ClockTime,
    /// Whether the result is that of an earlier frame.
    pub stale: bool,
}

/// Fields of the structure that describes a source.
pub(super) fn to_structure(source: &Source, age: Age) -> gst::Structure {
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    gst::Structure::builder("source")
        .field("frame", source.frame)
        .field_if_some("pts", source.pts.map(gst::ClockTime::nseconds))
        .field("width", source.width)
        .field("height", source.height)
        .field("age", age.age.nseconds())
        .field("stale", age.stale)
        .field("preprocess", ms(source.times.preprocess))
        .field("network", ms(source.times.network))
        .field("concepts", ms(source.times.concepts))
        .field("propagation", ms(source.times.propagation))
        .build()
}

/// Reads what [`to_structure`] wrote.
pub(super) fn from_structure(fields: &gst::StructureRef) -> Result<(Source, Age), MetaError> {
    let time = |name: &str| {
        let ms = fields.get::<f64>(name).map_err(|e| MetaError::Damaged(e.to_string()))?;
        Duration::try_from_secs_f64(ms / 1e3)
            .map_err(|e| MetaError::Damaged(format!("a time of {ms} ms: {e}")))
    };
    let size = |name: &str| {
        let side = fields.get::<u32>(name).map_err(|e| MetaError::Damaged(e.to_string()))?;
        if (1..=MAX_SIDE).contains(&side) {
            Ok(side)
        } else {
            Err(MetaError::Damaged(format!("a {name} of {side} is impossible")))
        }
    };
    let number =
        |name: &str| fields.get::<u64>(name).map_err(|e| MetaError::Damaged(e.to_string()));
    let pts = fields.get_optional::<u64>("pts").map_err(|e| MetaError::Damaged(e.to_string()))?;
    let source = Source {
        frame: number("frame")?,
        pts: pts.map(gst::ClockTime::from_nseconds),
        width: size("width")?,
        height: size("height")?,
        times: StageTimes {
            preprocess: time("preprocess")?,
            network: time("network")?,
            concepts: time("concepts")?,
            propagation: time("propagation")?,
        },
    };
    let stale = fields.get("stale").map_err(|e| MetaError::Damaged(e.to_string()))?;
    Ok((source, Age { age: gst::ClockTime::from_nseconds(number("age")?), stale }))
}
