//! `conceptseg`: labels frames with learnt concepts and carries instance masks along a stream.
//!
//! The element leaves the pixels alone and attaches its result to each buffer as
//! [`ConceptSegMeta`](crate::meta); `conceptoverlay` draws it.
//!
//! ## Example
//!
//! ```sh
//! gst-launch-1.0 filesrc location=street.webm ! decodebin ! videoconvert \
//!     ! conceptseg bundle=models/street first-frame-mask=first.png results-location=street.jsonl \
//!     ! videoconvert ! conceptoverlay ! videoconvert ! autovideosink
//! ```
//!
//! ## What is kept from frame to frame
//!
//! Masks are carried from the first-frame mask on, in the order in which buffers arrive.
//! A flush, a seek (also backwards) or a gap does not end that: the masks go on from the
//! last frame that was seen, wherever the stream continues. A new stream (a `STREAM_START`
//! with another id, as `concat` sends it) or going back to `READY` starts over with the
//! first-frame mask. Setting `first-frame-mask` while playing applies it to the next frame.
//!
//! A change of the frame size keeps the masks, scaled to the new size.
//!
//! ## Errors
//!
//! A missing or damaged bundle is an error when the element goes to `PAUSED`. A mask that
//! cannot be read there, too; one that does not have the size of the frames, or holds no
//! object, at the first frame.

mod imp;
mod stats;

use gst::glib;
use gst::prelude::*;

glib::wrapper! {
    /// The element; see the [module](self).
    pub struct ConceptSeg(ObjectSubclass<imp::ConceptSeg>)
        @extends gst_base::BaseTransform, gst::Element, gst::Object;
}

/// Which program runs the network.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, glib::Enum)]
#[repr(i32)]
#[enum_type(name = "GstConceptSegBackend")]
pub enum Backend {
    /// ONNX Runtime where its library is found, else `RTen`.
    #[default]
    #[enum_value(name = "ONNX Runtime where its library is found, else RTen", nick = "auto")]
    Auto = 0,
    /// `RTen`, which is built in.
    #[enum_value(name = "RTen, built in", nick = "rten")]
    Rten = 1,
    /// ONNX Runtime; an error where its library is not found.
    #[enum_value(name = "ONNX Runtime, from its library", nick = "onnxruntime")]
    Onnxruntime = 2,
}

/// Makes the element known to `plugin`.
pub fn register(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    gst::Element::register(Some(plugin), "conceptseg", gst::Rank::NONE, ConceptSeg::static_type())
}
