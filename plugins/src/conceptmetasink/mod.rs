//! `conceptmetasink`: writes down what was found and passes frames on.
//!
//! - One line of JSON per frame with results, to the file `location` or the file descriptor `fd`:
//!   time stamps, concepts, and instances with their masks as COCO run-length encoding. The file
//!   appears under its name at the end of the stream; a descriptor gets each line at once.
//! - With `post-messages`, an element message `conceptseg-results` with the same, as fields `frame`,
//!   `pts`, `concepts` and `instances` (as on the [metadata](crate::meta)).
//!
//! ## Example
//!
//! ```sh
//! gst-launch-1.0 -q videotestsrc num-buffers=100 ! conceptembed bundle=models/street ! conceptlabel \
//!     ! conceptmetasink fd=1 ! fakesink | jq .concepts[0]
//! ```

mod imp;
mod output;

use gst::glib;
use gst::prelude::*;

glib::wrapper! {
    /// The element; see the [module](self).
    pub struct ConceptMetaSink(ObjectSubclass<imp::ConceptMetaSink>)
        @extends gst_base::BaseTransform, gst::Element, gst::Object;
}

/// Name of the structure of element messages.
pub const MESSAGE: &str = "conceptseg-results";

/// The properties, for the element and for the bin that has it inside.
pub fn properties() -> Vec<glib::ParamSpec> {
    imp::PROPERTIES.describe()
}

/// Makes the element known to `plugin`.
pub fn register(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    gst::Element::register(
        Some(plugin),
        "conceptmetasink",
        gst::Rank::NONE,
        ConceptMetaSink::static_type(),
    )
}
