//! What is drawn, as a property.

// The macro makes undocumented items beside the documented ones.
#![allow(missing_docs)]

use gst::glib;

/// What is drawn.
#[glib::flags(name = "GstConceptSegDraw")]
pub enum Draw {
    /// Each pixel in the colour of its concept.
    #[flags_value(name = "Colour each pixel by its concept", nick = "concepts")]
    CONCEPTS = 0b001,
    /// Each instance in its colour.
    #[flags_value(name = "Colour each instance", nick = "masks")]
    MASKS = 0b010,
    /// The borders of instances.
    #[flags_value(
        name = "A light line inside and a dark line around each instance",
        nick = "outlines"
    )]
    OUTLINES = 0b100,
}
