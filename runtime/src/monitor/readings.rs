//! What a monitor has measured, for rules and for people.

use serde::Serialize;

use super::camera::Look;
use super::drift::Band;
use super::reference::Reference;
use super::windows::Windows;

/// Concepts that a status lists, besides those with names.
const LISTED: usize = 16;
/// Named concepts that a status lists at most.
const NAMED: usize = 128;

/// The measurements of a stream.
#[derive(Debug, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "each state holds or not by itself")]
pub struct Readings {
    /// Area share of each concept.
    pub area: Windows,
    /// 1 where a concept is present, else 0.
    pub presence: Windows,
    /// Share of the area that is novel.
    pub novelty: Windows,
    /// Divergence of the first window from the baseline, in bits, 0..=1.
    pub drift: f64,
    /// Where the drift usually is.
    pub drift_band: Band,
    /// The look at the latest frame's pixels, where they were at hand.
    pub look: Option<Look>,
    /// Whether the drift is beyond its band.
    pub drifted: bool,
    /// Whether much of the picture is novel.
    pub novel: bool,
    /// Whether the picture stands still.
    pub frozen: bool,
    /// Whether the lens is covered.
    pub covered: bool,
    /// Whether the picture is blurred.
    pub blurred: bool,
}

/// What a stream shows at present.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StreamStatus {
    /// Name of the stream.
    pub stream: String,
    /// Time in the stream, in seconds.
    pub time: f64,
    /// Frames so far.
    pub frames: u64,
    /// Whether it still learns.
    pub warming_up: bool,
    /// Share of the area that is novel, over each window.
    pub novelty: Vec<f64>,
    /// Drift in bits.
    pub drift: f64,
    /// Where the drift usually is: mean and deviation; absent before anything was learnt.
    pub drift_usual: Option<[f64; 2]>,
    /// Brightness, contrast and sharpness, where pixels were at hand.
    pub look: Option<[f64; 3]>,
    /// Names of the states that hold: novel, drifted, frozen, covered, blurred, and rules.
    pub active: Vec<String>,
    /// Lengths of the windows in seconds.
    pub windows: Vec<f64>,
    /// Those with names and the largest others, the largest first.
    pub concepts: Vec<ConceptStatus>,
}

/// What a stream shows of one concept.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ConceptStatus {
    /// Id in the codebook.
    pub id: u16,
    /// Name, where somebody gave one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Area share over each window.
    pub area: Vec<f64>,
    /// Share of the time that it was present, over each window.
    pub presence: Vec<f64>,
}

impl Readings {
    pub(super) fn new(lengths: &[f64], concepts: usize, floor: f64) -> Self {
        let longest = lengths.last().copied().unwrap_or(1.0);
        Self {
            area: Windows::new(lengths, concepts),
            presence: Windows::new(lengths, concepts),
            novelty: Windows::new(lengths, 1),
            drift: 0.0,
            drift_band: Band::new(longest, floor),
            look: None,
            drifted: false,
            novel: false,
            frozen: false,
            covered: false,
            blurred: false,
        }
    }

    /// The states that hold.
    pub(super) fn active(&self) -> impl Iterator<Item = &'static str> + use<> {
        [
            ("novel", self.novel),
            ("drifted", self.drifted),
            ("frozen", self.frozen),
            ("covered", self.covered),
            ("blurred", self.blurred),
        ]
        .into_iter()
        .filter_map(|(name, holds)| holds.then_some(name))
    }

    /// Named concepts and the largest of the others over the second window.
    pub(super) fn concepts(&self, reference: &Reference, windows: usize) -> Vec<ConceptStatus> {
        let over = |values: &Windows, id| (0..windows).map(|w| values.mean(w, id)).collect();
        let mut ids: Vec<_> = (0..reference.count())
            .filter(|&id| reference.group(id as u16) == Some(id) && reference.is_watched(id))
            .map(|id| (self.area.mean(1, id), id))
            .collect();
        ids.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let (mut named, mut others) = (0, 0);
        ids.retain(|&(area, id)| {
            let (seen, most) = if reference.names().name(id).is_some() {
                (&mut named, NAMED)
            } else if area > 0.0 {
                (&mut others, LISTED)
            } else {
                return false;
            };
            *seen += 1;
            *seen <= most
        });
        ids.into_iter()
            .map(|(_, id)| ConceptStatus {
                id: id as u16,
                name: reference.names().name(id).map(str::to_owned),
                area: over(&self.area, id),
                presence: over(&self.presence, id),
            })
            .collect()
    }
}
