//! `conceptmonitor`: watches what a stream shows, tells when it differs from what is normal, and
//! passes frames on.
//!
//! Stands behind `conceptlabel`, or behind the bin `conceptseg`. Looks at each concept map once,
//! however many frames carry it, and at the pixels of every frame for faults of the camera.
//! `docs/monitor.md` describes what is measured and told.
//!
//! Each event is an element message [`MESSAGE`], and goes to the outputs that the properties name:
//! a file, an HTTP endpoint, an MQTT broker. Elements of one process that name the same one share
//! it. Threads of their own write to them; a frame never waits for a disk or a network.
//!
//! ## Example
//!
//! ```sh
//! gst-launch-1.0 -m v4l2src ! conceptembed bundle=models/street ! conceptlabel \
//!     ! conceptmonitor rules=gate.toml log=events.jsonl listen=127.0.0.1:9464 ! fakesink
//! ```

mod errors;
mod imp;
mod message;

pub use message::MESSAGE;

use gst::glib;
use gst::prelude::*;

glib::wrapper! {
    /// The element; see the [module](self).
    pub struct ConceptMonitor(ObjectSubclass<imp::ConceptMonitor>)
        @extends gst_base::BaseTransform, gst::Element, gst::Object;
}

/// Makes the element known to `plugin`.
pub fn register(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    gst::Element::register(
        Some(plugin),
        "conceptmonitor",
        gst::Rank::NONE,
        ConceptMonitor::static_type(),
    )
}
