//! Both elements between the elements that stand there in practice.

mod common;

use common::{Fixture, error_text, frame, harness, init};
use gst::prelude::*;
use gst_check::Harness;
use gstconceptseg::meta::Analysis;

const CAPS: &str = "video/x-raw,format=RGB,width=96,height=72,framerate=25/1";

fn overlay(properties: &str) -> gst::Element {
    init();
    let bin = gst::parse::bin_from_description(
        &format!("conceptoverlay name=overlay {properties}"),
        true,
    )
    .unwrap();
    let element = bin.by_name("overlay").unwrap();
    bin.remove(&element).unwrap();
    element
}

/// A frame that `conceptseg` has analysed, with a first-frame mask.
fn analysed(fixture: &Fixture) -> gst::Buffer {
    let element = fixture.element();
    element.set_property_from_str("first-frame-mask", fixture.mask(96, 72).to_str().unwrap());
    let (mut harness, _bus) = harness(&element, CAPS);
    harness.push_and_pull(frame(CAPS, 0)).unwrap()
}

#[test]
fn the_metadata_survives_conversion_and_scaling() {
    let fixture = Fixture::new();
    let buffer = analysed(&fixture);
    for line in [
        "videoconvert ! video/x-raw,format=BGRx",
        "videoconvert ! video/x-raw,format=NV12 ! videoconvert ! video/x-raw,format=RGB",
        "videoscale ! video/x-raw,width=200,height=50",
        "videocrop left=10 top=5",
        "videoflip method=clockwise",
    ] {
        if gst::parse::bin_from_description(line, true).is_err() {
            println!("skipped: {line} (the element is not installed)");
            continue;
        }
        let mut harness = Harness::new_parse(line);
        harness.set_src_caps(CAPS.parse().unwrap());
        harness.play();
        let output = harness.push_and_pull(buffer.clone()).unwrap();
        let analysis = Analysis::from_buffer(&output).unwrap();
        let analysis = analysis.unwrap_or_else(|| panic!("{line} dropped the metadata"));
        assert_eq!((analysis.width, analysis.height), (96, 72), "{line}");
        assert!(analysis.has_masks() && analysis.has_concepts());
    }
}

#[test]
fn frames_without_metadata_pass_unchanged() {
    for format in common::FORMATS {
        let caps = format!("video/x-raw,format={format},width=33,height=21,framerate=25/1");
        let (mut harness, _bus) = harness(&overlay(""), &caps);
        let input = frame(&caps, 1);
        let before = input.map_readable().unwrap().to_vec();
        let output = harness.push_and_pull(input).unwrap();
        assert_eq!(output.map_readable().unwrap().as_slice(), before);
    }
}

#[test]
fn instances_and_concepts_are_drawn_in_their_colours() {
    let fixture = Fixture::new();
    let buffer = analysed(&fixture);
    let drawn = |properties: &str| {
        let (mut harness, bus) = harness(&overlay(properties), CAPS);
        let output = harness.push_and_pull(buffer.clone());
        let output = output.unwrap_or_else(|e| panic!("{e} {:?}", error_text(&bus)));
        output.map_readable().unwrap().to_vec()
    };
    let pixel = |picture: &[u8], x: usize, y: usize| {
        let i = (y * 96 + x) * 3;
        [picture[i], picture[i + 1], picture[i + 2]]
    };
    let masks = drawn("opacity=1 draw=masks");
    let instance = conceptseg::overlay::instance_color;
    assert_eq!(pixel(&masks, 5, 5), instance(3));
    assert_eq!(pixel(&masks, 90, 70), instance(9));
    let before = buffer.map_readable().unwrap().to_vec();
    assert_eq!(pixel(&masks, 90, 5), pixel(&before, 90, 5), "background stays");

    let concepts = drawn("opacity=1 draw=concepts");
    assert_eq!(pixel(&concepts, 50, 50)[..2], [1, 2], "the colour of concepts.toml");
    let outlines = drawn("draw=outlines");
    assert_eq!(pixel(&outlines, 47, 10), [255; 3]);
    assert_eq!(pixel(&outlines, 48, 10), [0; 3]);
    assert_eq!(drawn("draw=0"), before);
    assert_eq!(drawn("opacity=0 draw=concepts+masks"), before);
}

#[test]
fn maps_are_scaled_to_the_frame() {
    let fixture = Fixture::new();
    let buffer = analysed(&fixture);
    let line = "videoscale ! video/x-raw,width=192,height=36 \
                ! conceptoverlay opacity=1 draw=masks";
    let mut harness = Harness::new_parse(line);
    harness.set_src_caps(CAPS.parse().unwrap());
    harness.play();
    let output = harness.push_and_pull(buffer).unwrap();
    let picture = output.map_readable().unwrap();
    let pixel = |x: usize, y: usize| &picture[(y * 192 + x) * 3..][..3];
    let color = conceptseg::overlay::instance_color;
    assert_eq!(pixel(95, 17), color(3));
    assert_ne!(pixel(96, 17), color(3));
    assert_eq!(pixel(96, 18), color(9));
}

#[test]
fn damaged_metadata_is_an_error_and_never_a_panic() {
    init();
    let damage: [fn(&mut gst::StructureRef); 4] = [
        |fields| fields.remove_field("frame"),
        |fields| fields.set("width", 0u32),
        |fields| fields.set("height", "tall"),
        |fields| fields.set("masks", gst::Buffer::from_slice([1u8; 5])),
    ];
    for spoil in damage {
        let mut buffer = frame(CAPS, 0);
        {
            let buffer = buffer.get_mut().unwrap();
            let mut meta = gst::meta::CustomMeta::add(buffer, gstconceptseg::meta::NAME).unwrap();
            let fields = meta.mut_structure();
            fields.set("width", 96u32);
            fields.set("height", 72u32);
            fields.set("frame", 0u64);
            spoil(fields);
        }
        let (mut harness, bus) = harness(&overlay(""), CAPS);
        assert_eq!(harness.push(buffer), Err(gst::FlowError::Error));
        let text = error_text(&bus).unwrap();
        assert!(text.contains("damaged"), "{text}");
    }
}

#[test]
fn the_opacity_can_be_controlled() {
    let element = overlay("");
    let property = element.find_property("opacity").unwrap();
    assert!(property.flags().contains(gst::PARAM_FLAG_CONTROLLABLE));
}
