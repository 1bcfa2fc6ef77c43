//! `GStreamer` elements of `ConceptSeg`.
//!
//! | element | what it does |
//! |---|---|
//! | `conceptseg` | labels each frame with learnt concepts, carries instance masks from a first-frame mask, and attaches both to the buffer as metadata ([`meta`]) |
//! | `conceptoverlay` | draws that metadata onto the frame |
//!
//! One binary runs on `GStreamer` 1.20 and later.

pub mod conceptoverlay;
pub mod conceptseg;
pub mod meta;
mod models;
mod video;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Registers the metadata and both elements; `GStreamer` calls it when it loads the plugin.
fn plugin_init(plugin: &gst::Plugin) -> Result<(), gst::glib::BoolError> {
    meta::register();
    conceptseg::register(plugin)?;
    conceptoverlay::register(plugin)
}

// The macro makes public items that nobody outside of the framework and of tests uses.
#[allow(missing_docs)]
mod plugin {
    use super::plugin_init;

    gst::plugin_define!(
        conceptseg,
        env!("CARGO_PKG_DESCRIPTION"),
        plugin_init,
        concat!(env!("CARGO_PKG_VERSION"), "-", env!("COMMIT_ID")),
        // GStreamer knows this licence by its identifier; the crate is offered under either.
        "MIT/X11",
        env!("CARGO_PKG_NAME"),
        "gst-plugin-conceptseg",
        env!("CARGO_PKG_REPOSITORY"),
        env!("BUILD_REL_DATE")
    );
}

pub use plugin::plugin_register_static;

/// Locks a mutex whose data stays consistent even where a holder panicked: the framework
/// turns such a panic into an error of the element, which must still be able to stop.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
