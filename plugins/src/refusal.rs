//! Says why caps are refused.
//!
//! The framework asks whether an element takes caps before the element sees the event, and tells
//! only the element that sent them: a pipeline ends with "not negotiated" and no reason.

use conceptseg::frame::MAX_SIDE;
use gst::prelude::*;
use gst_video::VideoFormat;

use crate::errors::message;
use crate::video;

/// Lets the element of a sink pad post an error with the reason when caps come that it does not take.
pub fn explain(pad: &gst::Pad) {
    pad.add_probe(gst::PadProbeType::EVENT_DOWNSTREAM, |pad, info| {
        if let Some(gst::EventView::Caps(event)) = info.event().map(|event| event.view())
            && let Some(element) = pad.parent_element()
            && !event.caps().is_subset(&pad.pad_template_caps())
        {
            let text = reason(event.caps(), &element.name());
            element.post_error_message(message(gst::StreamError::Format, &text));
        }
        gst::PadProbeReturn::Ok
    });
}

/// Why caps are not taken, and what to do, as a sentence.
fn reason(caps: &gst::CapsRef, element: &str) -> String {
    let whole = || format!("{element} does not take {caps}; put videoconvert before");
    let Some(fields) = caps.structure(0) else { return whole() };
    if fields.name() != "video/x-raw" {
        return format!(
            "{element} takes raw video, not {}; put a decoder such as decodebin before",
            fields.name()
        );
    }
    let memory = caps.features(0).filter(|features| {
        !features.is_equal(gst::CapsFeatures::new_empty().as_ref())
            && !features.is_equal(gst::CAPS_FEATURES_MEMORY_SYSTEM_MEMORY.as_ref())
    });
    if let Some(features) = memory {
        return format!(
            "{element} does not take frames in {features}; put an element before that brings them to \
             system memory, such as gldownload, cudadownload or vapostproc"
        );
    }
    let format = fields.get::<&str>("format").unwrap_or_default();
    if !video::FORMATS.contains(&VideoFormat::from_string(format)) {
        let formats = video::FORMATS.map(|format| format.to_str().as_str()).join(", ");
        return format!(
            "{element} does not take frames in format {format}; put videoconvert before, which makes \
             one of {formats} of it"
        );
    }
    match (fields.get::<i32>("width"), fields.get::<i32>("height")) {
        (Ok(width), Ok(height)) => format!(
            "{element} does not take frames of {width}x{height} pixels, as each side must be 1 to \
             {MAX_SIDE}; put videoscale before"
        ),
        _ => whole(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_the_first_thing_that_does_not_fit_with_the_way_out() {
        gst::init().unwrap();
        let of = |caps: &str| reason(&caps.parse::<gst::Caps>().unwrap(), "conceptseg0");
        let text = of("video/x-raw,format=GRAY16_LE,width=64,height=64");
        assert!(text.starts_with("conceptseg0 does not take frames in format GRAY16_LE"), "{text}");
        assert!(text.contains("videoconvert") && text.contains("NV12, I420, YUY2"), "{text}");
        let text = of("video/x-raw,format=RGB,width=20000,height=64");
        assert!(text.contains("20000x64") && text.contains("videoscale"), "{text}");
        let text = of("video/x-raw(memory:DMABuf),format=NV12,width=64,height=64");
        assert!(text.contains("memory:DMABuf") && text.contains("system memory"), "{text}");
        let text = of("video/x-h264,width=64,height=64");
        assert!(text.contains("video/x-h264") && text.contains("decodebin"), "{text}");
    }
}
