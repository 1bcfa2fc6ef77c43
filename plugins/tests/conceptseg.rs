//! `conceptseg` as a pipeline sees it.

mod common;

use common::{Fixture, error_text, frame, harness, init};
use conceptseg::results::read_records;
use gst::prelude::*;
use gst_video::VideoMeta;
use gstconceptseg::meta::{Analysis, NAME};

const SMALL: &str = "video/x-raw,format=RGB,width=96,height=72,framerate=25/1";

fn structure(buffer: &gst::BufferRef) -> gst::Structure {
    gst::meta::CustomMeta::from_buffer(buffer, NAME).unwrap().structure().to_owned()
}

#[test]
fn every_format_and_odd_size_passes_with_metadata_and_unchanged_pixels() {
    let fixture = Fixture::new();
    for format in common::FORMATS {
        for (width, height) in [(96, 72), (1, 1), (97, 33), (35, 101)] {
            let caps =
                format!("video/x-raw,format={format},width={width},height={height},framerate=25/1");
            let (mut harness, bus) = harness(&fixture.element(), &caps);
            for i in 0..2 {
                let input = frame(&caps, i);
                let before = input.map_readable().unwrap().to_vec();
                let output = harness.push_and_pull(input).unwrap_or_else(|e| {
                    panic!("{caps}: {e} {:?}", error_text(&bus));
                });
                assert_eq!(output.map_readable().unwrap().as_slice(), before, "{caps}");
                let analysis = Analysis::from_buffer(&output).unwrap().unwrap();
                assert_eq!((analysis.width, analysis.height), (width, height), "{caps}");
                assert_eq!(analysis.frame, i as u64);
                assert!(analysis.has_concepts() && !analysis.has_masks());
            }
        }
    }
}

#[test]
fn rows_may_lie_further_apart_than_the_caps_say() {
    let fixture = Fixture::new();
    let caps = "video/x-raw,format=NV12,width=64,height=64,framerate=25/1";
    let concepts = |buffer: gst::Buffer| {
        let (mut harness, _bus) = harness(&fixture.element(), caps);
        let output = harness.push_and_pull(buffer).unwrap();
        let map = structure(&output).get::<gst::Buffer>("concepts").unwrap();
        map.map_readable().unwrap().to_vec()
    };
    let tight = frame(caps, 3);
    let rows = tight.map_readable().unwrap().to_vec();
    let stride = 100;
    let mut wide = vec![255u8; stride * 96 + 7];
    for (row, target) in rows.chunks(64).zip(wide[7..].chunks_mut(stride)) {
        target[..64].copy_from_slice(row);
    }
    let mut wide = gst::Buffer::from_mut_slice(wide);
    VideoMeta::add_full(
        wide.get_mut().unwrap(),
        gst_video::VideoFrameFlags::empty(),
        gst_video::VideoFormat::Nv12,
        64,
        64,
        &[7, 7 + 64 * stride],
        &[stride as i32; 2],
    )
    .unwrap();
    assert_eq!(concepts(wide), concepts(tight));
}

#[test]
fn the_metadata_reads_as_documented() {
    let fixture = Fixture::new();
    let element = fixture.element();
    element.set_property_from_str("first-frame-mask", fixture.mask(96, 72).to_str().unwrap());
    let (mut harness, _bus) = harness(&element, SMALL);
    let output = harness.push_and_pull(frame(SMALL, 0)).unwrap();
    let fields = structure(&output);
    assert_eq!(fields.get::<u32>("width"), Ok(96));
    assert_eq!(fields.get::<u32>("height"), Ok(72));
    assert_eq!(fields.get::<u64>("frame"), Ok(0));
    for (name, format, stride) in [
        ("masks", gst_video::VideoFormat::Gray8, 96),
        ("concepts", gst_video::VideoFormat::Gray16Le, 192),
    ] {
        let map = fields.get::<gst::Buffer>(name).unwrap();
        let meta = map.meta::<VideoMeta>().unwrap();
        assert_eq!((meta.format(), meta.width(), meta.height()), (format, 96, 72));
        assert_eq!((meta.stride(), map.size()), (&[stride][..], stride as usize * 72));
    }
    let map = fields.get::<gst::Buffer>("masks").unwrap();
    let labels = map.map_readable().unwrap();
    assert_eq!([labels[0], labels[95], labels[71 * 96], labels[71 * 96 + 95]], [3, 0, 0, 9]);

    let instances = fields.get::<gst::Array>("instances").unwrap();
    let ids: Vec<u32> = instances
        .iter()
        .map(|i| i.get::<&gst::StructureRef>().unwrap().get("id").unwrap())
        .collect();
    assert_eq!(ids, [3, 9]);
    let summary = fields.get::<gst::Array>("summary").unwrap();
    let total: f64 = summary
        .iter()
        .map(|s| s.get::<&gst::StructureRef>().unwrap().get::<f64>("area").unwrap())
        .sum();
    assert!((total - 1.0).abs() < 1e-6, "{fields}");
    let first = summary.first().unwrap().get::<gst::Structure>().unwrap();
    let id: u32 = first.get("id").unwrap();
    assert_eq!(first.get::<String>("name").unwrap(), format!("c{id}"));
    assert_eq!(first.get::<u32>("color").unwrap(), 0x01_02_00 + id);
    assert!(!fields.get::<gst::Array>("segments").unwrap().is_empty());
}

#[test]
fn masks_are_on_every_buffer_and_concepts_can_be_switched_off() {
    let fixture = Fixture::new();
    let element = fixture.element();
    element.set_property("concepts", false);
    element.set_property_from_str("first-frame-mask", fixture.mask(96, 72).to_str().unwrap());
    let (mut harness, _bus) = harness(&element, SMALL);
    for i in 0..12 {
        let output = harness.push_and_pull(frame(SMALL, i)).unwrap();
        let analysis = Analysis::from_buffer(&output).unwrap().unwrap();
        assert!(analysis.has_masks() && !analysis.has_concepts());
        assert_eq!(analysis.frame, i as u64);
    }
    let stats = element.property::<gst::Structure>("stats");
    assert_eq!(stats.get::<u64>("frames"), Ok(12));
    assert_eq!(stats.get::<u64>("inferred"), Ok(12));
    assert_eq!(stats.get::<&str>("backend"), Ok("rten"));
    let network = stats.get::<gst::Structure>("network").unwrap();
    assert!(network.get::<f64>("p99").unwrap() >= network.get::<f64>("median").unwrap());
}

#[test]
fn a_bundle_that_cannot_be_used_is_an_error_with_the_reason() {
    let fixture = Fixture::new();
    std::fs::create_dir(fixture.path("empty")).unwrap();
    std::fs::create_dir(fixture.path("bad")).unwrap();
    std::fs::write(fixture.path("bad/bundle.toml"), "format_version = 1\nname = 3").unwrap();
    let cases = [
        (None, "set the property bundle"),
        (Some("/nonexistent/b".to_owned()), "/nonexistent/b is not a model bundle"),
        (Some(fixture.path("empty").display().to_string()), "holds no bundle.toml"),
        (Some(fixture.path("bad").display().to_string()), "bundle.toml"),
    ];
    for (bundle, part) in cases {
        let element = gst::ElementFactory::make("conceptseg").build().unwrap();
        element.set_property("bundle", bundle);
        assert_does_not_start(&element, gst::ResourceError::NotFound, part);
    }
}

#[test]
fn settings_that_cannot_be_met_are_errors_with_the_reason() {
    let fixture = Fixture::new();
    let element = fixture.element();
    element.set_property("num-segments", 30u32);
    assert_does_not_start(&element, gst::LibraryError::Settings, "such as 25 or 36");

    let element = fixture.element();
    element.set_property("results-location", "/nonexistent/r.jsonl");
    assert_does_not_start(&element, gst::ResourceError::OpenWrite, "/nonexistent/r.jsonl");

    let garbage = fixture.path("garbage.png");
    std::fs::write(&garbage, b"no image").unwrap();
    for (mask, part) in [("/nonexistent/m.png", "m.png"), (garbage.to_str().unwrap(), "PNG")] {
        let element = fixture.element();
        element.set_property("first-frame-mask", mask);
        assert_does_not_start(&element, gst::ResourceError::Read, part);
    }
}

fn assert_does_not_start<E: gst::glib::error::ErrorDomain + PartialEq + std::fmt::Debug>(
    element: &gst::Element,
    kind: E,
    part: &str,
) {
    let bus = gst::Bus::new();
    element.set_bus(Some(&bus));
    assert!(element.set_state(gst::State::Paused).is_err());
    let message = bus.pop_filtered(&[gst::MessageType::Error]).expect("an error on the bus");
    let gst::MessageView::Error(error) = message.view() else { unreachable!() };
    assert_eq!(error.error().kind::<E>(), Some(kind), "{error:?}");
    let text = error.error().message().to_owned();
    assert!(text.contains(part), "{text}");
    element.set_state(gst::State::Null).unwrap();
}

#[test]
fn a_mask_that_does_not_fit_the_frames_is_an_error_at_the_first_frame() {
    let fixture = Fixture::new();
    let empty = fixture.path("empty.png");
    conceptseg::labels::LabelMap::background(96, 72).write_png(&empty).unwrap();
    for (mask, part) in [(fixture.mask(95, 72), "95"), (empty, "object")] {
        let element = fixture.element();
        element.set_property_from_str("first-frame-mask", mask.to_str().unwrap());
        let (mut harness, bus) = harness(&element, SMALL);
        assert_eq!(harness.push(frame(SMALL, 0)), Err(gst::FlowError::Error));
        let text = error_text(&bus).unwrap();
        assert!(text.starts_with("Cannot use the mask") && text.contains(part), "{text}");
    }
}

#[test]
fn a_frame_that_ends_before_its_last_row_is_an_error_with_the_reason() {
    let fixture = Fixture::new();
    let (mut harness, bus) = harness(&fixture.element(), SMALL);
    let mut short = frame(SMALL, 0);
    short.make_mut().set_size(100);
    assert_eq!(harness.push(short), Err(gst::FlowError::Error));
    let text = error_text(&bus).unwrap();
    assert!(text.contains("must send whole frames"), "{text}");

    // One that lies about its rows would be read beyond its end.
    let (mut harness, bus) = common::harness(&fixture.element(), SMALL);
    let mut lying = frame(SMALL, 0);
    VideoMeta::add_full(
        lying.make_mut(),
        gst_video::VideoFrameFlags::empty(),
        gst_video::VideoFormat::Rgb,
        96,
        72,
        &[0],
        &[4000],
    )
    .unwrap();
    assert_eq!(harness.push(lying), Err(gst::FlowError::Error));
    let text = error_text(&bus).unwrap();
    assert!(text.contains("lies outside of its"), "{text}");
}

#[test]
fn a_mask_set_while_playing_applies_to_the_next_frame() {
    let fixture = Fixture::new();
    let element = fixture.element();
    let (mut harness, bus) = harness(&element, SMALL);
    let mut has_masks = |i| {
        let output = harness.push_and_pull(frame(SMALL, i)).unwrap();
        Analysis::from_buffer(&output).unwrap().unwrap().has_masks()
    };
    assert!(!has_masks(0));
    element.set_property_from_str("first-frame-mask", fixture.mask(96, 72).to_str().unwrap());
    assert!(has_masks(1) && has_masks(2));
    element.set_property_from_str("first-frame-mask", "/nonexistent.png");
    assert_eq!(harness.push(frame(SMALL, 3)), Err(gst::FlowError::Error));
    assert!(error_text(&bus).unwrap().contains("/nonexistent.png"));
}

#[test]
fn masks_outlive_a_flush_and_start_over_with_a_new_stream() {
    let fixture = Fixture::new();
    let element = fixture.element();
    element.set_property_from_str("first-frame-mask", fixture.mask(96, 72).to_str().unwrap());
    let (mut harness, _bus) = harness(&element, SMALL);
    let push = |harness: &mut gst_check::Harness, i| {
        let output = harness.push_and_pull(frame(SMALL, i)).unwrap();
        let analysis = Analysis::from_buffer(&output).unwrap().unwrap();
        assert!(analysis.has_masks());
        analysis.frame
    };
    assert_eq!([push(&mut harness, 0), push(&mut harness, 1)], [0, 1]);
    harness.push_event(gst::event::FlushStart::new());
    harness.push_event(gst::event::FlushStop::new(true));
    harness.push_event(gst::event::Segment::new(&gst::FormattedSegment::<gst::ClockTime>::new()));
    assert_eq!(push(&mut harness, 0), 2);
    new_stream(&mut harness, "another");
    assert_eq!(push(&mut harness, 0), 0);
}

#[test]
fn a_change_of_size_goes_on_with_the_masks() {
    let fixture = Fixture::new();
    let element = fixture.element();
    element.set_property_from_str("first-frame-mask", fixture.mask(96, 72).to_str().unwrap());
    let (mut harness, bus) = harness(&element, SMALL);
    harness.push_and_pull(frame(SMALL, 0)).unwrap();
    let larger = "video/x-raw,format=I420,width=161,height=99,framerate=25/1";
    harness.set_src_caps(larger.parse().unwrap());
    for i in 1..4 {
        let output = harness.push_and_pull(frame(larger, i));
        let output = output.unwrap_or_else(|e| panic!("{e} {:?}", error_text(&bus)));
        let analysis = Analysis::from_buffer(&output).unwrap().unwrap();
        assert_eq!((analysis.width, analysis.height, analysis.has_masks()), (161, 99, true));
    }
}

#[test]
fn results_appear_at_the_end_of_the_stream() {
    let fixture = Fixture::new();
    let path = fixture.path("results.jsonl");
    let element = fixture.element();
    element.set_property_from_str("results-location", path.to_str().unwrap());
    element.set_property_from_str("first-frame-mask", fixture.mask(96, 72).to_str().unwrap());
    let (mut harness, _bus) = harness(&element, SMALL);
    for i in 0..3 {
        harness.push_and_pull(frame(SMALL, i)).unwrap();
    }
    assert!(!path.exists());
    harness.push_event(gst::event::Eos::new());
    let records: Vec<_> = read_records(&path).unwrap().collect::<Result<_, _>>().unwrap();
    assert_eq!(records.len(), 3);
    assert_eq!(records[2].pts_ns, Some(80_000_000));
    assert_eq!((records[2].frame, records[2].width, records[2].height), (2, 96, 72));
    let areas: Vec<_> = records[0].instances.iter().map(|i| (i.id, i.area)).collect();
    assert_eq!(areas, [(3, 48 * 36), (9, 48 * 36)]);
    let mask = records[0].instances[0].segmentation.decode().unwrap();
    assert_eq!(mask.iter().filter(|&&set| set).count(), 48 * 36);
}

#[test]
fn a_second_conceptseg_replaces_the_metadata_of_the_first() {
    let fixture = Fixture::new();
    let (mut first, _bus) = harness(&fixture.element(), SMALL);
    let (mut second, _bus) = harness(&fixture.element(), SMALL);
    first.push_and_pull(frame(SMALL, 0)).unwrap();
    let once = first.push_and_pull(frame(SMALL, 1)).unwrap();
    let twice = second.push_and_pull(once).unwrap();
    let metas = twice.iter_meta::<gst::Meta>().filter(|m| m.api().name().contains(NAME)).count();
    assert_eq!(metas, 1);
    assert_eq!(Analysis::from_buffer(&twice).unwrap().unwrap().frame, 0);
}

#[test]
fn elements_go_through_start_and_stop_again_and_again() {
    let fixture = Fixture::new();
    let element = fixture.element();
    let (mut harness, _bus) = harness(&element, SMALL);
    for _ in 0..3 {
        element.set_state(gst::State::Null).unwrap();
        element.set_state(gst::State::Playing).unwrap();
        new_stream(&mut harness, "again");
        let output = harness.push_and_pull(frame(SMALL, 0)).unwrap();
        assert_eq!(Analysis::from_buffer(&output).unwrap().unwrap().frame, 0);
    }
}

fn new_stream(harness: &mut gst_check::Harness, id: &str) {
    harness.push_event(gst::event::StreamStart::new(id));
    harness.push_event(gst::event::Caps::new(&SMALL.parse().unwrap()));
    harness.push_event(gst::event::Segment::new(&gst::FormattedSegment::<gst::ClockTime>::new()));
}

#[test]
fn two_elements_load_the_same_bundle_once() {
    let fixture = Fixture::new();
    let (first, second) = (fixture.element(), fixture.element());
    first.set_state(gst::State::Paused).unwrap();
    // A loaded model does not look at its files again, so they can be taken away; a second
    // load would miss them.
    std::fs::remove_file(fixture.bundle().join("bundle.toml")).unwrap();
    second.set_state(gst::State::Paused).unwrap();
    first.set_state(gst::State::Null).unwrap();
    second.set_state(gst::State::Null).unwrap();
    // Nobody holds the model any more.
    let third = fixture.element();
    assert!(third.set_state(gst::State::Paused).is_err());
    third.set_state(gst::State::Null).unwrap();
}

#[test]
fn every_element_describes_itself() {
    init();
    for (name, klass) in [
        ("conceptembed", "Analyzer"),
        ("conceptlabel", "Analyzer"),
        ("maskpropagate", "Analyzer"),
        ("conceptoverlay", "Effect"),
        ("conceptmetasink", "Metadata"),
        ("conceptseg", "Analyzer"),
    ] {
        let factory = gst::ElementFactory::find(name).unwrap();
        assert!(factory.metadata("klass").unwrap().contains(klass));
        assert!(!factory.metadata("author").unwrap().is_empty());
        let element = factory.create().build().unwrap();
        for property in element.list_properties() {
            assert!(property.blurb().is_some_and(|b| !b.is_empty()), "{name} {}", property.name());
        }
        let drops = element.find_property("qos").is_some() && element.property::<bool>("qos");
        assert!(!drops, "{name} must not drop frames");
    }
}

#[test]
fn the_bin_has_the_properties_of_the_elements_inside() {
    let fixture = Fixture::new();
    let element = fixture.element();
    let bin = element.downcast_ref::<gst::Bin>().unwrap();
    let inside = |name: &str| bin.by_name(name).unwrap();
    for name in ["embed", "label", "propagate", "overlay", "sink"] {
        let child = inside(name);
        let own = child.list_properties();
        for property in own.iter().filter(|property| property.owner_type() == child.type_()) {
            let outside = match property.name() {
                "location" => "results-location",
                "fd" => "results-fd",
                same => same,
            };
            assert!(element.find_property(outside).is_some(), "{name} {outside}");
        }
    }
    element.set_property("num-segments", 36u32);
    assert_eq!(inside("label").property::<u32>("num-segments"), 36);
    element.set_property("max-age", 77u32);
    for name in ["embed", "label", "propagate"] {
        assert_eq!(inside(name).property::<u32>("max-age"), 77, "{name}");
    }
    element.set_property("results-location", "/tmp/r.jsonl");
    assert_eq!(inside("sink").property::<String>("location"), "/tmp/r.jsonl");
    assert_eq!(element.property::<String>("results-location"), "/tmp/r.jsonl");
    inside("overlay").set_property("opacity", 0.25f32);
    assert_eq!(element.property::<f32>("opacity"), 0.25);
}
