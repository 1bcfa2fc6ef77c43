//! `conceptoverlay`: draws results onto frames, in every format that they are analysed in.
//!
//! Concepts become a transparent colour layer, instances a second one with outlines. Maps are
//! scaled to the frame where its size has changed since the analysis; frames without
//! [`ConceptSegMeta`](crate::meta) pass as they are.
//!
//! ## Example
//!
//! ```sh
//! gst-launch-1.0 videotestsrc ! conceptembed bundle=models/street ! conceptlabel \
//!     ! conceptoverlay opacity=0.4 draw=masks+outlines ! videoconvert ! autovideosink
//! ```

mod flags;
mod imp;

pub use flags::Draw;

use gst::glib;
use gst::prelude::*;

glib::wrapper! {
    /// The element; see the [module](self).
    pub struct ConceptOverlay(ObjectSubclass<imp::ConceptOverlay>)
        @extends gst_base::BaseTransform, gst::Element, gst::Object;
}

/// The properties, for the element and for the bin that has it inside.
pub fn properties() -> Vec<glib::ParamSpec> {
    imp::PROPERTIES.describe()
}

/// Makes the element known to `plugin`.
pub fn register(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    gst::Element::register(
        Some(plugin),
        "conceptoverlay",
        gst::Rank::NONE,
        ConceptOverlay::static_type(),
    )
}
