//! Each element for itself, as an application puts them together.

mod common;

use std::io::{BufRead as _, BufReader};
use std::os::fd::AsRawFd as _;

use common::{Fixture, error_text, frame, harness, instances, mask_buffer};
use conceptseg::backend::{BackendKind, BackendOptions};
use conceptseg::concepts::ConceptMap;
use conceptseg::embed::Model;
use conceptseg::frame::FrameView;
use conceptseg::labels::LabelMap;
use conceptseg::propagate::MaskMap;
use conceptseg::results::FrameRecord;
use conceptseg::stream::{StreamConfig, StreamState};
use gst::glib;
use gst::prelude::*;
use gst_check::Harness;
use gstconceptseg::meta::{Analysis, Embedding};

const CAPS: &str = "video/x-raw,format=RGB,width=96,height=72,framerate=25/1";

/// The elements that the names in `rest` stand for behind `conceptembed`, in a bin.
fn chain(fixture: &Fixture, rest: &[&str]) -> gst::Element {
    let bin = gst::Bin::new();
    let mut elements = vec![fixture.make("conceptembed")];
    for name in rest {
        let element = gst::ElementFactory::make(name).build().unwrap();
        if element.find_property("late-policy").is_some() {
            element.set_property_from_str("late-policy", "block");
        }
        elements.push(element);
    }
    bin.add_many(&elements).unwrap();
    gst::Element::link_many(&elements).unwrap();
    for (name, element) in [("sink", &elements[0]), ("src", elements.last().unwrap())] {
        let pad = element.static_pad(name).unwrap();
        let ghost = gst::GhostPad::builder_with_target(&pad).unwrap().name(name).build();
        bin.add_pad(&ghost).unwrap();
    }
    bin.upcast()
}

fn pull(harness: &mut Harness, bus: &gst::Bus, seed: usize) -> gst::Buffer {
    let output = harness.push_and_pull(frame(CAPS, seed));
    output.unwrap_or_else(|e| panic!("{e} {:?}", error_text(bus)))
}

#[test]
fn embeddings_are_metadata_of_the_grid_size() {
    let fixture = Fixture::new();
    let (mut harness, bus) = harness(&chain(&fixture, &[]), CAPS);
    let output = pull(&mut harness, &bus, 3);
    let (embedding, age) = Embedding::from_buffer(&output).unwrap().unwrap();
    assert!(!age.stale && age.age.is_zero());
    assert_eq!((embedding.source.width, embedding.source.height), (96, 72));
    assert_eq!(embedding.source.pts, Some(gst::ClockTime::from_mseconds(120)));
    let mut map = conceptseg::embed::EmbeddingMap::default();
    embedding.read(&mut map).unwrap();
    assert_eq!((map.height, map.width, map.stride), (8, 8, 8));
    let length: f32 = map.data[..map.dim].iter().map(|v| v * v).sum();
    assert!((length - 1.0).abs() < 1e-3);
    assert!(Analysis::from_buffer(&output).unwrap().is_none());
}

#[test]
fn the_elements_find_what_the_library_finds() {
    let fixture = Fixture::new();
    let options = BackendOptions::new(BackendKind::Rten, 1);
    let model = Model::open(&fixture.bundle(), &options).unwrap();
    let config = StreamConfig { short_side: 64, ..StreamConfig::default() };
    let mut stream = StreamState::new(model, config);
    stream.set_instances(LabelMap::read_png(&fixture.mask(96, 72)).unwrap());

    let element = chain(&fixture, &["conceptlabel", "maskpropagate"]);
    let propagate = element
        .downcast_ref::<gst::Bin>()
        .unwrap()
        .iterate_elements()
        .find(|e| e.find_property("first-frame-mask").is_some());
    let path = fixture.mask(96, 72);
    propagate.unwrap().set_property_from_str("first-frame-mask", path.to_str().unwrap());
    let (mut harness, bus) = harness(&element, CAPS);
    let (mut concepts, mut masks) = (ConceptMap::default(), MaskMap::default());
    for seed in 0..4 {
        let rgb = frame(CAPS, seed).map_readable().unwrap().to_vec();
        let expected = stream.process(&FrameView::rgb(96, 72, &rgb).unwrap()).unwrap();
        let output = pull(&mut harness, &bus, seed);
        let analysis = Analysis::from_buffer(&output).unwrap().unwrap();
        assert!(analysis.read_concepts(96, 72, &mut concepts).unwrap());
        assert!(analysis.read_masks(96, 72, &mut masks).unwrap());
        assert_eq!(concepts.concepts, expected.concepts.as_ref().unwrap().concepts);
        assert_eq!(masks.labels, expected.masks.as_ref().unwrap().labels);
        assert_eq!(analysis.instances(), expected.masks.as_ref().unwrap().instances);
    }
}

#[test]
fn without_embeddings_frames_pass_as_they_are() {
    common::init();
    for name in ["conceptlabel", "maskpropagate", "conceptoverlay", "conceptmetasink"] {
        let element = gst::ElementFactory::make(name).build().unwrap();
        let (mut harness, bus) = harness(&element, CAPS);
        let before = frame(CAPS, 1).map_readable().unwrap().to_vec();
        let output = pull(&mut harness, &bus, 1);
        assert_eq!(output.map_readable().unwrap().as_slice(), before, "{name}");
        assert!(Analysis::from_buffer(&output).unwrap().is_none());
    }
}

#[test]
fn masks_come_and_go_by_signals_at_any_time() {
    let fixture = Fixture::new();
    for element in [fixture.element(), chain(&fixture, &["maskpropagate"])] {
        let target = match element.downcast_ref::<gst::Bin>().unwrap().by_name("propagate") {
            Some(_) => element.clone(),
            None => element
                .downcast_ref::<gst::Bin>()
                .unwrap()
                .iterate_elements()
                .find(|e| e.find_property("initial-mask").is_some())
                .unwrap(),
        };
        let (mut harness, bus) = harness(&element, CAPS);
        let give = |name: &str, quarters| {
            target.emit_by_name::<bool>(name, &[&mask_buffer(96, 72, quarters)])
        };
        let ids = |buffer: &gst::Buffer| -> Vec<u8> {
            instances(buffer).iter().map(|(id, _)| *id).collect()
        };
        assert!(ids(&pull(&mut harness, &bus, 0)).is_empty());
        assert!(give("join-masks", [5, 0, 0, 0]));
        let quarter = 48 * 36;
        assert_eq!(instances(&pull(&mut harness, &bus, 1)), [(5, quarter)]);
        assert!(give("join-masks", [0, 0, 0, 7]));
        let joined = pull(&mut harness, &bus, 2);
        assert_eq!(ids(&joined), [5, 7]);
        assert_eq!(instances(&joined)[1], (7, quarter));
        assert!(target.emit_by_name::<bool>("drop-instance", &[&5u32]));
        assert_eq!(ids(&pull(&mut harness, &bus, 3)), [7]);
        assert!(give("set-masks", [1, 2, 0, 0]));
        assert_eq!(instances(&pull(&mut harness, &bus, 4)), [(1, quarter), (2, quarter)]);

        // What does not fit is refused with the reason, and the stream goes on.
        let refused: [(&str, glib::Value, &str); 4] = [
            ("join-masks", mask_buffer(95, 72, [1; 4]).to_value(), "not a GRAY8 picture"),
            ("join-masks", mask_buffer(96, 72, [0; 4]).to_value(), "no object"),
            ("set-masks", None::<gst::Buffer>.to_value(), "no mask"),
            ("drop-instance", 300u32.to_value(), "1 to 254"),
        ];
        for (signal, argument, part) in refused {
            let answer = target.emit_by_name_with_values(signal, &[argument]).unwrap();
            assert!(!answer.get::<bool>().unwrap(), "{signal}");
            let message = bus.pop_filtered(&[gst::MessageType::Warning]).unwrap();
            let gst::MessageView::Warning(warning) = message.view() else { unreachable!() };
            assert!(warning.error().message().contains(part), "{warning:?}");
        }
        assert_eq!(ids(&pull(&mut harness, &bus, 5)), [1, 2]);
    }
}

#[test]
fn the_initial_mask_may_be_a_buffer_with_or_without_a_video_meta() {
    let fixture = Fixture::new();
    for described in [false, true] {
        let element = fixture.element();
        let mut mask = mask_buffer(96, 72, [0, 4, 0, 0]);
        if described {
            gst_video::VideoMeta::add(
                mask.make_mut(),
                gst_video::VideoFrameFlags::empty(),
                gst_video::VideoFormat::Gray8,
                96,
                72,
            )
            .unwrap();
        }
        element.set_property("initial-mask", mask);
        let (mut harness, bus) = harness(&element, CAPS);
        assert_eq!(instances(&pull(&mut harness, &bus, 0)), [(4, 48 * 36)]);
        element.set_property("initial-mask", mask_buffer(96, 72, [9, 0, 0, 0]));
        assert_eq!(instances(&pull(&mut harness, &bus, 1)), [(9, 48 * 36)]);
        element.set_property("initial-mask", mask_buffer(3, 3, [9, 0, 0, 0]));
        assert_eq!(harness.push(frame(CAPS, 2)), Err(gst::FlowError::Error));
        assert!(error_text(&bus).unwrap().contains("Cannot use initial-mask"));
    }
}

#[test]
fn results_go_to_a_file_descriptor_line_by_line() {
    let fixture = Fixture::new();
    let (reader, writer) = std::io::pipe().unwrap();
    let element = fixture.element();
    element.set_property("results-fd", writer.as_raw_fd());
    element.set_property("initial-mask", mask_buffer(96, 72, [3, 0, 0, 0]));
    let (mut harness, bus) = harness(&element, CAPS);
    let mut lines = BufReader::new(reader).lines();
    for seed in 0..3 {
        pull(&mut harness, &bus, seed);
        let line = lines.next().unwrap().unwrap();
        let record: FrameRecord = serde_json::from_str(&line).unwrap();
        assert_eq!((record.frame, record.age_ns), (seed as u64, None));
        assert_eq!(record.pts_ns, Some(40_000_000 * seed as u64));
        assert!(record.latency_ms.network > 0.0 && record.latency_ms.propagation > 0.0);
        assert!(!record.concepts.is_empty());
        let mask = record.instances[0].segmentation.decode().unwrap();
        let area = mask.iter().filter(|&&set| set).count();
        assert_eq!(area, record.instances[0].area as usize);
    }
}

#[test]
fn a_descriptor_that_is_not_open_is_an_error_with_the_reason() {
    common::init();
    let element =
        gst::ElementFactory::make("conceptmetasink").property("fd", 9999).build().unwrap();
    let bus = gst::Bus::new();
    element.set_bus(Some(&bus));
    assert!(element.set_state(gst::State::Paused).is_err());
    let text = error_text(&bus).unwrap();
    assert!(text.contains("9999") && text.contains("open for writing"), "{text}");
    element.set_state(gst::State::Null).unwrap();
}

#[test]
fn results_are_posted_as_messages() {
    let fixture = Fixture::new();
    let element = fixture.element();
    element.set_property("post-messages", true);
    let (mut harness, bus) = harness(&element, CAPS);
    pull(&mut harness, &bus, 2);
    let message = bus.pop_filtered(&[gst::MessageType::Element]).unwrap();
    let fields = message.structure().unwrap();
    assert_eq!(fields.name(), "conceptseg-results");
    assert_eq!(fields.get::<u64>("frame"), Ok(0));
    assert_eq!(fields.get::<u64>("pts"), Ok(80_000_000));
    assert!(!fields.get::<gst::Array>("concepts").unwrap().is_empty());
}

#[test]
fn between_inferences_the_last_result_is_shown_with_its_age_up_to_the_maximum() {
    let fixture = Fixture::new();
    let element = fixture.element();
    element.set_property("inference-interval", 4u32);
    element.set_property("max-age", 100u32);
    let (mut harness, bus) = harness(&element, CAPS);
    for seed in 0..9 {
        let output = pull(&mut harness, &bus, seed);
        let behind = seed as u64 % 4;
        let analysis = Analysis::from_buffer(&output).unwrap();
        if behind * 40 > 100 {
            assert!(analysis.is_none(), "frame {seed}");
            continue;
        }
        let (source, age) = analysis.unwrap().concepts_source().unwrap().clone();
        assert_eq!(source.frame, seed as u64 - behind);
        assert_eq!(age.age, gst::ClockTime::from_mseconds(40 * behind));
        assert_eq!(age.stale, behind > 0, "frame {seed}");
    }
    let stats = element.property::<gst::Structure>("stats");
    assert_eq!(stats.get::<u64>("inferred"), Ok(3));
}

#[test]
fn elements_with_one_engine_id_share_one_model() {
    let fixture = Fixture::new();
    let first = fixture.make("conceptembed");
    first.set_property("engine-id", "shared");
    let second = gst::ElementFactory::make("conceptembed").build().unwrap();
    second.set_property("engine-id", "shared");
    second.set_property_from_str("late-policy", "block");
    second.set_property("short-side", 64u32);
    let bus = gst::Bus::new();
    second.set_bus(Some(&bus));
    assert!(second.set_state(gst::State::Paused).is_err(), "nobody has loaded it yet");
    assert!(error_text(&bus).unwrap().contains("\"shared\""));
    second.set_state(gst::State::Null).unwrap();

    let model = |harness: &mut Harness| {
        let output = harness.push_and_pull(frame(CAPS, 0)).unwrap();
        Embedding::from_buffer(&output).unwrap().unwrap().0.model
    };
    let (mut one, first_bus) = harness(&first, CAPS);
    let (mut two, _) = harness(&second, CAPS);
    let loaded = model(&mut one);
    assert_eq!(model(&mut two), loaded);

    let other = fixture.write_bundle("other", "d");
    let third = fixture.make("conceptembed");
    third.set_property("engine-id", "shared");
    third.set_property_from_str("bundle", other.to_str().unwrap());
    third.set_bus(Some(&bus));
    assert!(third.set_state(gst::State::Paused).is_err());
    assert!(error_text(&bus).unwrap().contains("already holds"));
    third.set_state(gst::State::Null).unwrap();

    // One of them loads another bundle, all get it.
    first.set_property_from_str("bundle", other.to_str().unwrap());
    let begin = std::time::Instant::now();
    while model(&mut one) == loaded {
        assert!(begin.elapsed().as_secs() < 60, "{:?}", error_text(&first_bus));
    }
    assert_eq!(model(&mut one), model(&mut two));
}

#[test]
fn a_new_bundle_takes_over_while_frames_flow_and_a_bad_one_is_a_warning() {
    let fixture = Fixture::new();
    let other = fixture.write_bundle("other", "new");
    let element = fixture.element();
    let (mut harness, bus) = harness(&element, CAPS);
    let mut name = |seed| {
        let output = harness.push_and_pull(frame(CAPS, seed)).unwrap();
        let analysis = Analysis::from_buffer(&output).unwrap().unwrap();
        analysis.summary()[0].name.clone().unwrap()
    };
    assert!(name(0).starts_with('c'));
    element.set_property_from_str("bundle", other.to_str().unwrap());
    let begin = std::time::Instant::now();
    while !name(1).starts_with("new") {
        assert!(begin.elapsed().as_secs() < 60);
    }
    element.set_property_from_str("bundle", "/nonexistent/b");
    let wait = gst::ClockTime::from_seconds(60);
    let message = bus.timed_pop_filtered(wait, &[gst::MessageType::Warning]).unwrap();
    let gst::MessageView::Warning(warning) = message.view() else { unreachable!() };
    let text = warning.error().message().to_owned();
    assert!(text.contains("the old one stays") && text.contains("/nonexistent/b"), "{text}");
    assert!(name(2).starts_with("new"));
}
