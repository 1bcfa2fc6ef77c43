//! The metadata that the elements attach to buffers; `docs/metadata.md` describes it for readers
//! in other languages.
//!
//! Both kinds are custom metas (`gst_meta_register_custom`), so that any element or application
//! can read them as a `GstStructure` without this library. [`EMBEDDING_NAME`] comes from
//! `conceptembed` and holds what the network gave. [`NAME`] holds the results:
//!
//! | field | type | |
//! |---|---|---|
//! | `width`, `height` | `guint` | size of the analysed frame in pixels |
//! | `frame` | `guint64` | index of the analysed frame in its stream, from 0 |
//! | `masks` | `GstBuffer` | from `maskpropagate`: instance id of each pixel, `GRAY8`, 0 is background |
//! | `instances` | `GstValueArray` of `GstStructure` | with `masks`: `id`, `area`, `x`, `y`, `width`, `height` (`guint`, pixels), `confidence` (`gdouble`, 0..1) |
//! | `masks-source` | `GstStructure` | with `masks`: the frame that they belong to |
//! | `concepts` | `GstBuffer` | from `conceptlabel`: concept id of each pixel, `GRAY16_LE` |
//! | `segments` | `GstValueArray` of `GstStructure` | with `concepts`, one per connected segment: `concept`, `area`, `x`, `y`, `width`, `height` (`guint`, pixels), `similarity` (`gdouble`, -1..1) |
//! | `summary` | `GstValueArray` of `GstStructure` | with `concepts`, one per concept, largest first: `id` (`guint`), `area` (`gdouble`, share 0..1), `similarity` (`gdouble`), and where people gave them `name` (`gchararray`), `mark` (`gchararray`, `alert` or `ignore`) and `color` (`guint`, 0xrrggbb; one for all concepts of a name) |
//! | `concepts-source` | `GstStructure` | with `concepts`: the frame that they belong to |
//!
//! Both map buffers carry a `GstVideoMeta` with format, size and stride. A source has `frame`,
//! `pts` (`guint64`, ns, absent without one), `width`, `height`, `age` (`guint64`, ns behind the
//! frame that carries the result), `stale` (`gboolean`, result of an earlier frame), and what the
//! stages took in milliseconds (`gdouble`): `preprocess`, `network`, `concepts`, `propagation`.
//!
//! On `GStreamer` 1.26 and later both maps are also attached as the framework's own
//! `GstAnalyticsSegmentationMtd`: concepts as semantic, instances as instance segmentation.
//!
//! The metas have no tags, so that elements which convert, scale, crop or encode keep them. Maps
//! always have the size of the frame that was analysed and cover all of it, so that scaling needs
//! no change: a reader scales them to its own frame ([`Analysis::read_masks`],
//! [`Analysis::read_concepts`]). Transformations that announce another geometry drop them.

use conceptseg::memory::OutOfMemory;

mod analysis;
mod analytics;
mod embedding;
mod lists;
mod parts;
mod segments;
mod shelf;
mod source;

pub use analysis::Analysis;
pub use embedding::{EMBEDDING_NAME, Embedding};
pub use parts::{ConceptPart, MaskPart};
pub use segments::{concepts_source, read_segments};
pub use shelf::Shelf;
pub use source::{Age, Source};

/// Name of the metadata, for `gst_buffer_get_custom_meta`.
pub const NAME: &str = "ConceptSegMeta";

/// Why metadata could not be attached or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MetaError {
    /// The framework refused.
    #[error("cannot attach metadata: {0}")]
    Attach(#[from] gst::glib::BoolError),
    /// A field is missing, has another type or an impossible value.
    #[error(
        "the metadata on the buffer is damaged: {0}; it has to be as the elements of conceptseg attached it"
    )]
    Damaged(String),
    /// There is no memory for a copy of a map.
    #[error(transparent)]
    Memory(#[from] OutOfMemory),
}

/// Makes the metadata known to the framework. Called when the plugin is loaded; programs that
/// read metadata without loading the plugin need not call it.
pub fn register() {
    for name in [NAME, EMBEDDING_NAME] {
        // Another copy of the plugin in the same process may have been first.
        if !gst::meta::CustomMeta::is_registered(name) {
            gst::meta::CustomMeta::register_with_transform(name, &[], move |to, meta, _, kind| {
                transform(name, to, meta, kind)
            });
        }
    }
}

/// Carries a meta over to the buffer that an element makes of another. A plain copy and scaling
/// keep it, since the maps cover the whole frame whatever its size; of any other geometry nothing
/// is known here, so it is dropped rather than wrong.
fn transform(
    name: &str,
    to: &mut gst::BufferRef,
    meta: &gst::meta::CustomMeta,
    kind: gst::glib::Quark,
) -> bool {
    if !["gst-copy", "gst-video-scale"].contains(&kind.as_str().as_str()) {
        return false;
    }
    let Ok(mut copy) = replace(to, name) else { return false };
    let fields = copy.mut_structure();
    for (field, value) in meta.structure() {
        fields.set_value(field, value.clone());
    }
    true
}

/// Adds an empty meta to `buffer` in place of those of the same name: readers find one only.
fn replace<'a>(
    buffer: &'a mut gst::BufferRef,
    name: &str,
) -> Result<gst::MetaRefMut<'a, gst::meta::CustomMeta, gst::meta::Standalone>, MetaError> {
    remove(buffer, name)?;
    Ok(gst::meta::CustomMeta::add(buffer, name)?)
}

fn remove(buffer: &mut gst::BufferRef, name: &str) -> Result<(), MetaError> {
    while let Ok(old) = gst::meta::CustomMeta::from_mut_buffer(buffer, name) {
        old.remove()?;
    }
    Ok(())
}

/// Removes the results of an earlier analysis.
///
/// # Errors
/// [`MetaError::Attach`] where the framework refuses.
pub fn remove_results(buffer: &mut gst::BufferRef) -> Result<(), MetaError> {
    remove(buffer, NAME)
}

fn find<'a>(
    buffer: &'a gst::BufferRef,
    name: &str,
) -> Option<gst::MetaRef<'a, gst::meta::CustomMeta>> {
    gst::meta::CustomMeta::from_buffer(buffer, name).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use gst::glib::Quark;

    /// What is left of a meta after a transformation of this kind.
    fn after(kind: &str) -> Option<u32> {
        gst::init().unwrap();
        register();
        let mut from = gst::Buffer::new();
        let from = from.get_mut().unwrap();
        replace(from, NAME).unwrap().mut_structure().set("width", 96u32);
        let mut to = gst::Buffer::new();
        let to = to.get_mut().unwrap();
        let kept = transform(NAME, to, &find(from, NAME).unwrap(), Quark::from_str(kind));
        let width = find(to, NAME).map(|meta| meta.structure().get("width").unwrap());
        assert_eq!(kept, width.is_some());
        width
    }

    #[test]
    fn copies_and_scaling_keep_the_results_and_unknown_geometry_drops_them() {
        assert_eq!(after("gst-copy"), Some(96));
        assert_eq!(after("gst-video-scale"), Some(96));
        assert_eq!(after("gst-video-matrix"), None);
    }

    #[test]
    fn a_buffer_has_one_meta_of_a_name() {
        gst::init().unwrap();
        register();
        let mut buffer = gst::Buffer::new();
        let buffer = buffer.get_mut().unwrap();
        for width in [1u32, 2] {
            replace(buffer, NAME).unwrap().mut_structure().set("width", width);
        }
        assert_eq!(find(buffer, NAME).unwrap().structure().get::<u32>("width"), Ok(2));
        remove_results(buffer).unwrap();
        assert!(find(buffer, NAME).is_none());
    }
}
