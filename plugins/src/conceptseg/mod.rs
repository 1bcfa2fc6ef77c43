//! `conceptseg`: all of it in one element.
//!
//! A bin of [`conceptembed`](crate::conceptembed), [`conceptlabel`](crate::conceptlabel),
//! [`maskpropagate`](crate::maskpropagate), [`conceptoverlay`](crate::conceptoverlay) and
//! [`conceptmetasink`](crate::conceptmetasink), with their properties and signals. It labels each frame
//! with learnt concepts, carries instance masks from a first-frame mask, draws both, and attaches
//! them as [metadata](crate::meta). `draw=0` leaves the pixels alone.
//!
//! ## Example
//!
//! ```sh
//! gst-launch-1.0 v4l2src ! videoconvert ! conceptseg bundle=models/street ! videoconvert ! autovideosink
//!
//! gst-launch-1.0 filesrc location=street.webm ! decodebin ! conceptseg bundle=models/street \
//!     first-frame-mask=first.png results-location=street.jsonl ! videoconvert ! autovideosink
//! ```
//!
//! The elements inside have the names `embed`, `label`, `propagate`, `overlay` and `sink`.

mod imp;

use gst::glib;
use gst::prelude::*;

glib::wrapper! {
    /// The element; see the [module](self).
    pub struct ConceptSeg(ObjectSubclass<imp::ConceptSeg>)
        @extends gst::Bin, gst::Element, gst::Object,
        @implements gst::ChildProxy;
}

/// Makes the element known to `plugin`.
pub fn register(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    gst::Element::register(Some(plugin), "conceptseg", gst::Rank::NONE, ConceptSeg::static_type())
}
