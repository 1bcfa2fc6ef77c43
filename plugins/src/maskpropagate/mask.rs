//! Masks as files and as buffers.

use std::path::Path;

use conceptseg::errors::sentence;
use conceptseg::labels::LabelMap;
use gst_video::{VideoFormat, VideoInfo, VideoMeta};

/// Reads a PNG. The reason of a failure is a sentence.
pub fn read(path: &Path) -> Result<LabelMap, String> {
    LabelMap::read_png(path).map_err(|e| format!("Cannot use first-frame-mask: {}", sentence(&e)))
}

/// Reads a buffer of `GRAY8` pixels: as its `GstVideoMeta` says, else as a frame of the size of
/// `video` whose rows touch. The reason of a failure is a sentence.
pub fn from_buffer(buffer: &gst::BufferRef, video: Option<&VideoInfo>) -> Result<LabelMap, String> {
    let (width, height, offset, stride) = match (buffer.meta::<VideoMeta>(), video) {
        (Some(meta), _) => {
            if meta.format() != VideoFormat::Gray8 {
                return Err(format!("the mask is in format {}, but must be GRAY8", meta.format()));
            }
            let stride = meta.stride().first().copied().unwrap_or(0);
            let stride = usize::try_from(stride)
                .map_err(|_| format!("the mask's row distance of {stride} bytes is negative"))?;
            let offset = meta.offset().first().copied().unwrap_or(0);
            (meta.width(), meta.height(), offset, stride)
        }
        (None, Some(info)) => (info.width(), info.height(), 0, info.width() as usize),
        (None, None) => {
            return Err("the mask has no size: attach a GstVideoMeta, or give it once frames flow"
                .to_owned());
        }
    };
    let map = buffer.map_readable().map_err(|e| format!("the mask cannot be read: {e}"))?;
    let (w, h) = (width as usize, height as usize);
    let exact = buffer.meta::<VideoMeta>().is_some() || map.len() == w * h;
    let needed = h
        .checked_sub(1)
        .and_then(|rows| rows.checked_mul(stride))
        .and_then(|n| n.checked_add(offset))
        .and_then(|n| n.checked_add(w));
    if w == 0 || stride < w || !exact || needed.is_none_or(|n| map.len() < n) {
        return Err(format!(
            "the mask has {} bytes with {stride} per row, which is not a GRAY8 picture of {width}x{height}",
            map.len()
        ));
    }
    let rows = map[offset..].chunks(stride).take(h);
    Ok(LabelMap { width, height, data: rows.flat_map(|row| &row[..w]).copied().collect() })
}
