//! What the monitor tells.

use serde::{Deserialize, Serialize};

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EventKind {
    /// A rare concept is in the picture.
    Appeared,
    /// A usual concept is gone.
    Vanished,
    /// Much of the picture looks like nothing that was learnt.
    Novel,
    /// Two concepts that were never seen in one picture.
    Pair,
    /// The mixture of concepts is further from normal than it usually is.
    Drifted,
    /// The picture stands still to the last pixel.
    Frozen,
    /// The picture shows next to nothing.
    Covered,
    /// The picture has lost its fine details.
    Blurred,
    /// The condition of a rule holds.
    Rule,
    /// Something that was told of before is over.
    Recovered,
}

impl EventKind {
    /// All kinds.
    pub const ALL: [Self; 10] = [
        Self::Appeared,
        Self::Vanished,
        Self::Novel,
        Self::Pair,
        Self::Drifted,
        Self::Frozen,
        Self::Covered,
        Self::Blurred,
        Self::Rule,
        Self::Recovered,
    ];

    /// As files and labels have it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Appeared => "appeared",
            Self::Vanished => "vanished",
            Self::Novel => "novel",
            Self::Pair => "pair",
            Self::Drifted => "drifted",
            Self::Frozen => "frozen",
            Self::Covered => "covered",
            Self::Blurred => "blurred",
            Self::Rule => "rule",
            Self::Recovered => "recovered",
        }
    }
}

/// A concept of an event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventConcept {
    /// Id in the codebook; of concepts with one name, the lowest.
    pub id: u16,
    /// Its name, where somebody gave one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// Something that somebody may want to know.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Name of the stream.
    pub stream: String,
    /// Number of the event in its stream, from 1: a gap shows that some were lost.
    pub number: u64,
    /// What happened.
    pub kind: EventKind,
    /// Time in the stream, in seconds.
    pub time: f64,
    /// Milliseconds since 1970 when it was told; 0 before it is.
    #[serde(default)]
    pub unix_ms: u64,
    /// Index of the frame.
    pub frame: u64,
    /// Of [`EventKind::Recovered`]: what is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<EventKind>,
    /// Of a rule: its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// The concepts that it is about, the most important first, at most five.
    pub concepts: Vec<EventConcept>,
    /// The measured value: an area share, a novel share, deviations of the drift, seconds
    /// without change, a contrast, a share of the usual sharpness; 1 for a rule.
    pub value: f64,
    /// The same as a sentence.
    pub message: String,
    /// A JPEG picture in base64, where thumbnails are asked for and the frame was at hand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thumbnail: Option<String>,
}
