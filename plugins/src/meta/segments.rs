//! The segments on a buffer, without the maps.

use conceptseg::concepts::ConceptSegment;

use super::source::from_structure;
use super::{Age, MetaError, NAME, Source, find};

/// The frame that the concepts on `buffer` belong to, and how far it lies behind this one; `None`
/// where there are none.
///
/// # Errors
/// [`MetaError::Damaged`] where it is not as described in the [module](super).
pub fn concepts_source(buffer: &gst::BufferRef) -> Result<Option<(Source, Age)>, MetaError> {
    let Some(meta) = find(buffer, NAME) else { return Ok(None) };
    let source = meta.structure().get_optional::<&gst::StructureRef>("concepts-source");
    let source = source.map_err(|e| MetaError::Damaged(e.to_string()))?;
    source.map(from_structure).transpose()
}

/// Reads the segments of the concept map into `out`; none where there is no map.
///
/// # Errors
/// [`MetaError::Damaged`] where a field is missing or of another type.
pub fn read_segments(
    buffer: &gst::BufferRef,
    out: &mut Vec<ConceptSegment>,
) -> Result<(), MetaError> {
    out.clear();
    let Some(meta) = find(buffer, NAME) else { return Ok(()) };
    let fields = meta.structure();
    let list = fields.get_optional::<gst::ArrayRef<'_>>("segments");
    let list = list.map_err(|e| MetaError::Damaged(e.to_string()))?;
    for entry in list.iter().flat_map(|list| list.iter()) {
        let segment = segment(entry).ok_or_else(|| {
            MetaError::Damaged("a segment lacks a field, or one has another type".to_owned())
        })?;
        out.push(segment);
    }
    Ok(())
}

fn segment(entry: &gst::glib::SendValue) -> Option<ConceptSegment> {
    let entry = entry.get::<&gst::StructureRef>().ok()?;
    let number = |name: &str| entry.get::<u32>(name).ok();
    Some(ConceptSegment {
        concept: u16::try_from(number("concept")?).ok()?,
        similarity: entry.get::<f64>("similarity").ok()? as f32,
        area: number("area")?,
        bbox: [number("x")?, number("y")?, number("width")?, number("height")?],
    })
}
