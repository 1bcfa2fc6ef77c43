//! What the concepts of a dictionary show: how pure they are, which of them are used, which
//! occur together, and pictures of it.
//!
//! ```text
//! image -> Recorder::record -> ImageConcepts            the expensive step, one per image
//! all ImageConcepts -> summary() -> ConceptSummary      purity, use, graph, samples
//! ConceptSummary -> plot::purity_svg, graph::draw, sheet::tiles -> sheet::pages, table
//! ```
//!
//! A record holds what one image has to say and can be kept in a file; a summary does not
//! depend on the order of the records, so that they may come from any number of machines.

pub mod graph;
mod pictures;
pub mod plot;
mod record;
mod sample;
pub mod sheet;
mod summary;
pub mod table;
mod text;

pub use graph::{ConceptGraph, Edge};
pub use pictures::Pictures;
pub use record::{ImageConcepts, Recorder, Segment, records, units};
pub use sample::Sample;
pub use summary::{ConceptSummary, ConceptUse, DictionaryUse, SummarySettings, summary};

use crate::bundle::ConceptNames;

/// What a concept is called: the name that people gave it, else its id.
pub fn concept_name(names: &ConceptNames, concept: u16) -> String {
    names.name(usize::from(concept)).map_or_else(|| concept.to_string(), str::to_owned)
}
