//! Between `GStreamer`'s description of a frame and ours.

use conceptseg::frame::{Colorimetry, FrameView, MAX_SIDE, PixelFormat, Plane, YuvMatrix};
use conceptseg::overlay::PackedLayout;
use gst_video::prelude::*;
use gst_video::{
    VideoCapsBuilder, VideoColorMatrix, VideoColorRange, VideoFormat, VideoFrameRef, VideoInfo,
};

/// Formats that `conceptseg` takes.
pub const ANALYSIS_FORMATS: [VideoFormat; 9] = [
    VideoFormat::Rgb,
    VideoFormat::Bgr,
    VideoFormat::Rgba,
    VideoFormat::Bgra,
    VideoFormat::Rgbx,
    VideoFormat::Bgrx,
    VideoFormat::Nv12,
    VideoFormat::I420,
    VideoFormat::Gray8,
];

/// Formats that `conceptoverlay` draws on.
pub const OVERLAY_FORMATS: [VideoFormat; 6] = [
    VideoFormat::Rgb,
    VideoFormat::Bgr,
    VideoFormat::Rgbx,
    VideoFormat::Bgrx,
    VideoFormat::Rgba,
    VideoFormat::Bgra,
];

/// One sink and one source pad that are always there, both for `formats` in system memory.
pub fn pad_templates(formats: &[VideoFormat]) -> Vec<gst::PadTemplate> {
    let caps = VideoCapsBuilder::new()
        .format_list(formats.iter().copied())
        .width_range(1..=MAX_SIDE as i32)
        .height_range(1..=MAX_SIDE as i32)
        .build();
    [("sink", gst::PadDirection::Sink), ("src", gst::PadDirection::Src)]
        .into_iter()
        .filter_map(|(name, direction)| {
            gst::PadTemplate::new(name, direction, gst::PadPresence::Always, &caps).ok()
        })
        .collect()
}

/// Our name of a format of [`ANALYSIS_FORMATS`].
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
        VideoFormat::Gray8 => PixelFormat::Gray8,
        _ => return None,
    })
}

/// Where a format of [`OVERLAY_FORMATS`] keeps its colours.
pub fn packed_layout(format: VideoFormat) -> Option<PackedLayout> {
    Some(match format {
        VideoFormat::Rgb => PackedLayout::RGB,
        VideoFormat::Bgr => PackedLayout::BGR,
        VideoFormat::Rgbx | VideoFormat::Rgba => PackedLayout::RGBX,
        VideoFormat::Bgrx | VideoFormat::Bgra => PackedLayout::BGRX,
        _ => return None,
    })
}

fn colorimetry(info: &VideoInfo) -> Colorimetry {
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

/// A view of a mapped frame with the strides that it really has. The reason is a sentence.
pub fn frame_view<'a>(
    frame: &'a VideoFrameRef<&'a gst::BufferRef>,
    info: &VideoInfo,
) -> Result<FrameView<'a>, String> {
    let format = pixel_format(frame.format())
        .ok_or_else(|| format!("frames in format {} cannot be analysed", frame.format()))?;
    let mut planes = [Plane { data: &[], stride: 0 }; 3];
    let count = format.planes();
    for (i, (plane, &stride)) in planes.iter_mut().zip(frame.plane_stride()).take(count).enumerate()
    {
        // Bottom-up frames have negative strides.
        let stride = usize::try_from(stride).map_err(|_| {
            format!("a row distance of {stride} bytes is not supported; put videoconvert before")
        })?;
        let data = frame.plane_data(i as u32).map_err(|e| e.to_string())?;
        *plane = Plane { data, stride };
    }
    FrameView::new(format, frame.width(), frame.height(), &planes[..count], colorimetry(info))
        .map_err(|e| e.to_string())
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
        assert!(ANALYSIS_FORMATS.iter().all(|&f| pixel_format(f).is_some()));
        assert!(OVERLAY_FORMATS.iter().all(|&f| packed_layout(f).is_some()));
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
