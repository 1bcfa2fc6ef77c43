//! Lists of what was found, as the framework holds them.
//!
//! They are made for each frame that carries them: the framework copies a list that it is given to keep, down to
//! each field, which costs as much as making it and leaves another one to be freed.

use std::sync::LazyLock;

use conceptseg::bundle::Mark;
use conceptseg::concepts::ConceptSegment;
use conceptseg::propagate::InstanceStat;
use conceptseg::results::ConceptRecord;
use gst::glib::{self, Quark};

/// Names of fields, looked up once: a frame has hundreds of segments with seven fields each.
struct Names {
    area: Quark,
    x: Quark,
    y: Quark,
    width: Quark,
    height: Quark,
    concept: Quark,
    similarity: Quark,
    id: Quark,
    confidence: Quark,
}

static NAMES: LazyLock<Names> = LazyLock::new(|| Names {
    area: Quark::from_str("area"),
    x: Quark::from_str("x"),
    y: Quark::from_str("y"),
    width: Quark::from_str("width"),
    height: Quark::from_str("height"),
    concept: Quark::from_str("concept"),
    similarity: Quark::from_str("similarity"),
    id: Quark::from_str("id"),
    confidence: Quark::from_str("confidence"),
});

/// Sets one field.
#[expect(
    deprecated,
    reason = "what replaces it came with 1.26 and looks the name up each time before"
)]
fn set(fields: &mut gst::StructureRef, name: Quark, value: impl Into<glib::Value> + Send) {
    fields.set_by_quark(name, value);
}

/// Instances, in the order of their ids.
pub(super) fn instances(instances: &[InstanceStat]) -> gst::Array {
    let names = &*NAMES;
    gst::Array::new(instances.iter().map(|instance| {
        let mut fields = boxed("instance", names, instance.area, instance.bbox);
        set(&mut fields, names.id, u32::from(instance.id));
        set(&mut fields, names.confidence, f64::from(instance.confidence));
        fields
    }))
}

/// Segments, in raster order.
pub(super) fn segments(segments: &[ConceptSegment]) -> gst::Array {
    let names = &*NAMES;
    gst::Array::new(segments.iter().map(|segment| {
        let mut fields = boxed("segment", names, segment.area, segment.bbox);
        set(&mut fields, names.concept, u32::from(segment.concept));
        set(&mut fields, names.similarity, f64::from(segment.similarity));
        fields
    }))
}

fn boxed(kind: &str, names: &Names, area: u32, [x, y, width, height]: [u32; 4]) -> gst::Structure {
    let mut fields = gst::Structure::new_empty(kind);
    set(&mut fields, names.area, area);
    set(&mut fields, names.x, x);
    set(&mut fields, names.y, y);
    set(&mut fields, names.width, width);
    set(&mut fields, names.height, height);
    fields
}

/// Concepts, largest first, with the colours that people gave.
pub(super) fn summary(records: &[(ConceptRecord, Option<[u8; 3]>)]) -> gst::Array {
    gst::Array::new(records.iter().map(|(record, color)| {
        gst::Structure::builder("concept")
            .field("id", u32::from(record.id))
            .field("area", record.area)
            .field("similarity", record.similarity)
            .field_if_some("name", record.name.as_deref())
            .field_if_some("mark", record.mark.map(Mark::as_str))
            .field_if_some("color", color.map(|[r, g, b]| u32::from_be_bytes([0, r, g, b])))
            .build()
    }))
}
