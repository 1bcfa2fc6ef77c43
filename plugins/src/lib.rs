//! `GStreamer` elements of `ConceptSeg`.
//!
//! | element | what it does |
//! |---|---|
//! | `conceptembed` | runs the network once per frame and attaches its embeddings as [metadata](meta) |
//! | `conceptlabel` | makes a concept map of them |
//! | `maskpropagate` | carries instance masks along with them |
//! | `conceptoverlay` | draws both onto the frame |
//! | `conceptmetasink` | writes both down as JSON lines or messages |
//! | `conceptmonitor` | watches the concepts and tells when they differ from what is normal |
//! | `conceptseg` | all of these but the monitor in one bin |
//!
//! All of them pass frames on in place. One binary runs on `GStreamer` 1.20 and later.

pub mod conceptembed;
pub mod conceptlabel;
pub mod conceptmetasink;
pub mod conceptmonitor;
pub mod conceptoverlay;
pub mod conceptseg;
mod element;
mod errors;
mod gpu;
mod live;
pub mod maskpropagate;
pub mod meta;
mod models;
mod refusal;
mod settings;
mod stats;
mod video;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Registers the metadata and all elements; `GStreamer` calls it when it loads the plugin.
fn plugin_init(plugin: &gst::Plugin) -> Result<(), gst::glib::BoolError> {
    meta::register();
    conceptembed::register(plugin)?;
    conceptlabel::register(plugin)?;
    maskpropagate::register(plugin)?;
    conceptoverlay::register(plugin)?;
    conceptmetasink::register(plugin)?;
    conceptmonitor::register(plugin)?;
    conceptseg::register(plugin)
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
        "ConceptSeg GStreamer plugin",
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
