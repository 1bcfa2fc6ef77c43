//! Between `GStreamer`'s description of a frame and ours.

use conceptseg::frame::{
    Colorimetry, FrameView, FrameViewMut, MAX_SIDE, PixelFormat, Plane, PlaneMut, YuvMatrix,
};
use gst_video::prelude::*;
use gst_video::{
    VideoCapsBuilder, VideoColorMatrix, VideoColorRange, VideoFormat, VideoFrameRef, VideoInfo,
    VideoMeta,
};

/// Formats that the elements take; those of cameras and decoders come first.
pub const FORMATS: [VideoFormat; 11] = [
    VideoFormat::Nv12,
    VideoFormat::I420,
    VideoFormat::Yuy2,
    VideoFormat::Uyvy,
    VideoFormat::Rgb,
    VideoFormat::Bgr,
    VideoFormat::Rgbx,
    VideoFormat::Bgrx,
    VideoFormat::Rgba,
    VideoFormat::Bgra,
    VideoFormat::Gray8,
];

/// Caps of `formats` in system memory.
pub fn caps(formats: &[VideoFormat]) -> gst::Caps {
    VideoCapsBuilder::new()
        .format_list(formats.iter().copied())
        .width_range(1..=MAX_SIDE as i32)
        .height_range(1..=MAX_SIDE as i32)
        .build()
}

/// Our name of a format of [`FORMATS`].
fn pixel_format(format: VideoFormat) -> Option<PixelFormat> {
    Some(match format {
        VideoFormat::Rgb => PixelFormat::Rgb,
        VideoFormat::Bgr => PixelFormat::Bgr,
        VideoFormat::Rgba => PixelFormat::Rgba,
        VideoFormat::Bgra => PixelFormat::Bgra,
        VideoFormat::Rgbx => PixelFormat::Rgbx,
        VideoFormat::Bgrx => PixelFormat::Bgrx,
        VideoFormat::Nv12 => PixelFormat::Nv12,
        VideoFormat::I420 => PixelFormat::I420,
        VideoFormat::Yuy2 => PixelFormat::Yuy2,
        VideoFormat::Uyvy => PixelFormat::Uyvy,
        VideoFormat::Gray8 => PixelFormat::Gray8,
        _ => return None,
    })
}

pub fn colorimetry(info: &VideoInfo) -> Colorimetry {
    let colorimetry = info.colorimetry();
    let matrix = match colorimetry.matrix() {
        // SMPTE 240M was the analogue forerunner of BT.709 with nearly its weights.
        VideoColorMatrix::Bt709 | VideoColorMatrix::Smpte240m => YuvMatrix::Bt709,
        VideoColorMatrix::Bt2020 => YuvMatrix::Bt2020,
        _ => YuvMatrix::Bt601,
    };
    let full_range = match colorimetry.range() {
        VideoColorRange::Range0_255 => true,
        VideoColorRange::Range16_235 => false,
        // What GStreamer itself assumes for caps without colorimetry.
        _ => info.format() == VideoFormat::Gray8,
    };
    Colorimetry { matrix, full_range }
}

/// Our name of a frame's format. The reason of a failure is a sentence.
pub fn known_format(format: VideoFormat) -> Result<PixelFormat, String> {
    pixel_format(format)
        .ok_or_else(|| format!("format {format} is not supported; put videoconvert before"))
}

/// A row distance in bytes. Bottom-up frames have negative ones.
pub fn known_stride(stride: i32) -> Result<usize, String> {
    usize::try_from(stride).map_err(|_| {
        format!("a row distance of {stride} bytes is not supported; put videoconvert before")
    })
}

/// Whether the buffer holds all planes where its `GstVideoMeta` says they lie, which the framework
/// does not check.
pub fn check_planes(
    format: PixelFormat,
    (width, height): (u32, u32),
    offsets: &[usize],
    strides: &[i32],
    size: usize,
) -> Result<(), String> {
    for (plane, (&offset, &stride)) in offsets.iter().zip(strides).enumerate().take(format.planes())
    {
        let end = plane_end(format, plane, (width, height), offset, stride)?;
        if end.is_none_or(|end| size < end) {
            return Err(format!(
                "plane {plane} of a {width}x{height} {format} frame lies outside of its {size} bytes"
            ));
        }
    }
    Ok(())
}

/// Where a plane ends in its buffer, `None` where no buffer reaches that far.
fn plane_end(
    format: PixelFormat,
    plane: usize,
    (width, height): (u32, u32),
    offset: usize,
    stride: i32,
) -> Result<Option<usize>, String> {
    let (row, rows) = format.plane_layout(plane, width, height);
    let end = rows.saturating_sub(1).checked_mul(known_stride(stride)?);
    Ok(end.and_then(|n| n.checked_add(offset)).and_then(|n| n.checked_add(row)))
}

/// Whether a frame may be mapped. The framework takes a `GstVideoMeta` on trust: one of another
/// format than the caps is a critical warning, and a plane that lies in several memories is mapped
/// to the end of the first one only. The reason is a sentence.
pub fn check_meta(buffer: &gst::BufferRef, info: &VideoInfo) -> Result<(), String> {
    let Some(meta) = buffer.meta::<VideoMeta>() else { return Ok(()) };
    let (width, height) = (info.width(), info.height());
    if meta.format() != info.format()
        || meta.n_planes() != info.n_planes()
        || meta.width() < width
        || meta.height() < height
    {
        return Err(format!(
            "its GstVideoMeta is of {}x{} pixels in {}, but its caps are of {width}x{height} in \
             {}; the element before must send what it negotiated",
            meta.width(),
            meta.height(),
            meta.format(),
            info.format(),
        ));
    }
    if buffer.n_memory() < 2 {
        return Ok(());
    }
    let format = known_format(info.format())?;
    for (plane, (&offset, &stride)) in
        meta.offset().iter().zip(meta.stride()).enumerate().take(format.planes())
    {
        let memories = plane_end(format, plane, (width, height), offset, stride)?
            .and_then(|end| buffer.find_memory(offset..end));
        if memories.is_none_or(|(memories, _)| memories.len() != 1) {
            return Err(format!(
                "plane {plane} does not lie in one piece of memory; the element before must send \
                 planes whole"
            ));
        }
    }
    Ok(())
}

/// A view of a mapped frame with the strides that it really has. The reason is a sentence.
pub fn frame_view<'a>(
    frame: &'a VideoFrameRef<&'a gst::BufferRef>,
    info: &VideoInfo,
) -> Result<FrameView<'a>, String> {
    let format = known_format(frame.format())?;
    let (size, bytes) = ((frame.width(), frame.height()), frame.buffer().size());
    check_planes(format, size, frame.plane_offset(), frame.plane_stride(), bytes)?;
    let mut planes = [Plane { data: &[], stride: 0 }; 3];
    let count = format.planes();
    for (i, (plane, &stride)) in planes.iter_mut().zip(frame.plane_stride()).take(count).enumerate()
    {
        let data = frame.plane_data(i as u32).map_err(|e| e.to_string())?;
        *plane = Plane { data, stride: known_stride(stride)? };
    }
    FrameView::new(format, frame.width(), frame.height(), &planes[..count], colorimetry(info))
        .map_err(|e| e.to_string())
}

/// A view of a frame mapped for writing. The reason of a failure is a sentence.
pub fn frame_view_mut<'a>(
    frame: &'a mut VideoFrameRef<&mut gst::BufferRef>,
    info: &VideoInfo,
) -> Result<FrameViewMut<'a>, String> {
    let format = known_format(frame.format())?;
    let (width, height) = (frame.width(), frame.height());
    let bytes = frame.buffer().size();
    check_planes(format, (width, height), frame.plane_offset(), frame.plane_stride(), bytes)?;
    let strides: Vec<_> = frame.plane_stride().to_vec();
    let planes = frame.planes_data_mut();
    let planes = planes
        .into_iter()
        .zip(strides)
        .take(format.planes())
        .map(|(data, stride)| Ok(PlaneMut { data, stride: known_stride(stride)? }))
        .collect::<Result<Vec<_>, String>>()?;
    FrameViewMut::new(format, width, height, planes, colorimetry(info)).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(caps: &str) -> VideoInfo {
        gst::init().unwrap();
        VideoInfo::from_caps(&caps.parse::<gst::Caps>().unwrap()).unwrap()
    }

    #[test]
    fn every_format_of_the_templates_is_known() {
        assert!(FORMATS.iter().all(|&f| pixel_format(f).is_some()));
        assert_eq!(FORMATS.len(), PixelFormat::ALL.len());
    }

    #[test]
    fn colorimetry_comes_from_the_caps() {
        let of = |rest: &str| colorimetry(&info(&format!("video/x-raw,{rest}")));
        let bt709 = of("format=NV12,width=64,height=64,colorimetry=bt709");
        assert_eq!(bt709, Colorimetry { matrix: YuvMatrix::Bt709, full_range: false });
        let jpeg = of("format=I420,width=64,height=64,colorimetry=1:4:0:0");
        assert_eq!(jpeg, Colorimetry { matrix: YuvMatrix::Bt601, full_range: true });
        assert!(of("format=GRAY8,width=64,height=64").full_range);
        assert_eq!(of("format=NV12,width=1920,height=1080").matrix, YuvMatrix::Bt709);
        assert_eq!(of("format=NV12,width=320,height=240").matrix, YuvMatrix::Bt601);
    }
}
