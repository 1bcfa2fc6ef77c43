//! `conceptoverlay`: draws the result of `conceptseg` onto frames.
//!
//! Concepts become a transparent colour layer, instances a second one with outlines. Maps are
//! scaled to the frame where its size has changed since `conceptseg`; frames without
//! [`ConceptSegMeta`](crate::meta) pass as they are.
//!
//! ## Example
//!
//! ```sh
//! gst-launch-1.0 videotestsrc ! conceptseg bundle=models/street \
//!     ! videoconvert ! conceptoverlay opacity=0.4 draw-concepts=false ! videoconvert ! autovideosink
//! ```

mod imp;

use gst::glib;
use gst::prelude::*;

glib::wrapper! {
    /// The element; see the [module](self).
    pub struct ConceptOverlay(ObjectSubclass<imp::ConceptOverlay>)
        @extends gst_base::BaseTransform, gst::Element, gst::Object;
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
