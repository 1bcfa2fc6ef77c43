//! `maskpropagate`: carries instance masks along a stream.
//!
//! Works on the embeddings that `conceptembed` attached. Frames without embeddings, and frames
//! before the first mask, pass as they are.
//!
//! ## Example
//!
//! ```sh
//! gst-launch-1.0 filesrc location=street.webm ! decodebin ! conceptembed bundle=models/street \
//!     ! maskpropagate first-frame-mask=first.png ! conceptoverlay ! videoconvert ! autovideosink
//! ```
//!
//! ## Giving masks
//!
//! - `first-frame-mask`: a PNG, for the first frame of each stream or, set while playing, for the
//!   next frame.
//! - `initial-mask`: the same as a `GstBuffer` of `GRAY8` pixels, with a `GstVideoMeta` or with rows
//!   that touch.
//! - The action signals `set-masks`, `join-masks` (a mask buffer as above) and `drop-instance` (an id) at any
//!   time. `set-masks` replaces all masks. With `join-masks`, its objects join those that are carried;
//!   one with a known id takes that place. Each answers whether it could be taken.
//!
//! A pixel's value is the id of its instance, 0 is background. White on black is one instance.
//!
//! ## What is kept from frame to frame
//!
//! Masks are carried in the order in which buffers arrive. A flush, a seek (also backwards) or a
//! gap does not end that: the masks go on from the last frame that was seen, wherever the stream
//! continues. A new stream (a `STREAM_START` with another id, as `concat` sends it) or going back
//! to `READY` starts over with the first mask. A change of the frame size keeps the masks, scaled to
//! the new size.
//!
//! ## Errors
//!
//! A PNG that cannot be read is an error when the element goes to `PAUSED`; a mask that has not the
//! size of the frames, or holds no object, at its frame.

mod imp;
mod mask;
mod stage;

use gst::glib;
use gst::prelude::*;

glib::wrapper! {
    /// The element; see the [module](self).
    pub struct MaskPropagate(ObjectSubclass<imp::MaskPropagate>)
        @extends gst_base::BaseTransform, gst::Element, gst::Object;
}

/// The properties, for the element and for the bin that has it inside.
pub fn properties() -> Vec<glib::ParamSpec> {
    imp::PROPERTIES.describe()
}

/// Names of the action signals, their parameters' types.
pub fn signals() -> [(&'static str, glib::Type); 3] {
    [
        ("set-masks", gst::Buffer::static_type()),
        ("join-masks", gst::Buffer::static_type()),
        ("drop-instance", glib::Type::U32),
    ]
}

/// Makes the element known to `plugin`.
pub fn register(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    gst::Element::register(
        Some(plugin),
        "maskpropagate",
        gst::Rank::NONE,
        MaskPropagate::static_type(),
    )
}
