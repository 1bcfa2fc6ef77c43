//! `conceptembed`: runs the network once per frame and attaches what it gives.
//!
//! The pixels stay as they are. `conceptlabel` and `maskpropagate` work on the
//! [`EMBEDDING_NAME`](crate::meta::EMBEDDING_NAME) that this element attaches, so that the network runs
//! once for both.
//!
//! ## Example
//!
//! ```sh
//! gst-launch-1.0 videotestsrc ! conceptembed bundle=models/street ! conceptlabel \
//!     ! conceptoverlay ! videoconvert ! autovideosink
//! ```
//!
//! ## A new model while playing
//!
//! Setting `bundle` while playing loads the new one beside the old, in a thread of its own. When it
//! is there, the next frame goes to it. If it cannot be used, the element posts a warning with the
//! reason and goes on with the old one.

mod imp;
mod stage;

use gst::glib;
use gst::prelude::*;

glib::wrapper! {
    /// The element; see the [module](self).
    pub struct ConceptEmbed(ObjectSubclass<imp::ConceptEmbed>)
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
        "conceptembed",
        gst::Rank::NONE,
        ConceptEmbed::static_type(),
    )
}
