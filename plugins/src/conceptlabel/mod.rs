//! `conceptlabel`: labels the pixels of frames with the concepts of the model.
//!
//! Works on the embeddings that `conceptembed` attached, with the dictionary of the model that made
//! them. Frames without embeddings pass as they are.
//!
//! ## Example
//!
//! ```sh
//! gst-launch-1.0 videotestsrc ! conceptembed bundle=models/street ! conceptlabel num-segments=36 \
//!     ! conceptoverlay ! videoconvert ! autovideosink
//! ```

mod imp;
mod stage;

use gst::glib;
use gst::prelude::*;

glib::wrapper! {
    /// The element; see the [module](self).
    pub struct ConceptLabel(ObjectSubclass<imp::ConceptLabel>)
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
        "conceptlabel",
        gst::Rank::NONE,
        ConceptLabel::static_type(),
    )
}
