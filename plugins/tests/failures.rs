//! What goes wrong in mid-stream: an error with the reason, or nothing at all, and never a hang.

mod common;

use std::process::Command;

use common::programs::with_plugin;
use common::{Fixture, error_text, frame, harness, mask_buffer};
use gst::glib;
use gst::prelude::*;
use gstconceptseg::meta::Analysis;

const CAPS: &str = "video/x-raw,format=RGB,width=64,height=64,framerate=25/1";
const WIDE: &str = "video/x-raw,format=RGB,width=128,height=64,framerate=25/1";

#[test]
fn a_backend_that_fails_in_mid_stream_is_an_error_with_the_reason() {
    let fixture = Fixture::new();
    // It works on 64x64 pixels only.
    let bundle = fixture.write_bundle_of("fixed", "c", "tiny-64.onnx");
    for policy in ["block", "skip"] {
        let element = fixture.element();
        element.set_property_from_str("bundle", bundle.to_str().unwrap());
        element.set_property_from_str("late-policy", policy);
        let (mut harness, bus) = harness(&element, CAPS);
        for seed in 0..3 {
            harness.push_and_pull(frame(CAPS, seed)).unwrap();
        }
        harness.set_src_caps(WIDE.parse().unwrap());
        // With skip it is the failure of an earlier frame; the frames until then pass.
        let begin = std::time::Instant::now();
        while harness.push(frame(WIDE, 4)).is_ok() {
            assert!(policy == "skip" && begin.elapsed().as_secs() < 60, "{policy}: no error");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let text = error_text(&bus).unwrap();
        assert!(text.contains("rten") && text.contains("128x64"), "{policy}: {text}");
        // An application may start the element again.
        drop(harness);
        let (mut harness, _bus) = common::harness(&element, CAPS);
        harness.push_and_pull(frame(CAPS, 0)).unwrap();
    }
}

#[test]
fn a_bundle_that_is_deleted_in_mid_stream_is_not_missed() {
    let fixture = Fixture::new();
    let (mut harness, _bus) = harness(&fixture.element(), CAPS);
    harness.push_and_pull(frame(CAPS, 0)).unwrap();
    std::fs::remove_dir_all(fixture.bundle()).unwrap();
    let output = harness.push_and_pull(frame(CAPS, 1)).unwrap();
    assert!(Analysis::from_buffer(&output).unwrap().unwrap().has_concepts());
}

#[test]
fn caps_that_are_not_supported_do_not_link_and_in_mid_stream_end_it() {
    let fixture = Fixture::new();
    let open =
        format!("conceptseg bundle={} backend=rten short-side=64", fixture.bundle().display());
    let line = |converter: &str| {
        format!("videotestsrc ! video/x-raw,format=ARGB64 ! {converter} {open} ! fakesink")
    };
    let refused = gst::parse::launch(&line("identity !")).unwrap_err();
    assert!(refused.message().contains("could not link"), "{refused}");
    gst::parse::launch(&line("videoconvert !")).unwrap();

    let (mut harness, bus) = harness(&fixture.element(), CAPS);
    harness.push_and_pull(frame(CAPS, 0)).unwrap();
    let strange = CAPS.replace("RGB", "ARGB64");
    harness.set_src_caps(strange.parse().unwrap());
    assert_eq!(harness.push(frame(&strange, 1)), Err(gst::FlowError::NotNegotiated));
    let text = error_text(&bus).unwrap();
    assert!(text.contains("format ARGB64") && text.contains("videoconvert"), "{text}");
    // A stream that comes back to what it was goes on.
    harness.set_src_caps(CAPS.parse().unwrap());
    let output = harness.push_and_pull(frame(CAPS, 2)).unwrap();
    assert!(Analysis::from_buffer(&output).unwrap().is_some());
}

#[test]
fn every_element_says_why_it_refuses_caps_in_mid_stream() {
    let fixture = Fixture::new();
    let wide = CAPS.replace("width=64", "width=20000");
    let coded = "image/jpeg,width=64,height=64";
    for name in
        ["conceptembed", "conceptlabel", "maskpropagate", "conceptoverlay", "conceptmonitor"]
    {
        let element = if name == "conceptembed" {
            fixture.make(name)
        } else {
            gst::ElementFactory::make(name).build().unwrap()
        };
        let (mut harness, bus) = harness(&element, CAPS);
        harness.push_and_pull(frame(CAPS, 0)).unwrap();
        assert_eq!(error_text(&bus), None);
        for (caps, way_out) in [(wide.as_str(), "videoscale"), (coded, "decodebin")] {
            harness.set_src_caps(caps.parse().unwrap());
            assert_eq!(harness.push(frame(CAPS, 1)), Err(gst::FlowError::NotNegotiated));
            // Once for the event, and once more for the frame, before which it is sent again.
            let text = std::iter::from_fn(|| error_text(&bus)).last().unwrap();
            assert!(text.contains(way_out) && text.contains(element.name().as_str()), "{text}");
        }
    }
}

#[test]
fn a_frame_that_there_is_no_memory_for_is_an_error_with_the_reason() {
    let fixture = Fixture::new();
    let line = format!(
        "videotestsrc num-buffers=2 pattern=black ! video/x-raw,format=GRAY8,width=16384,height=16384 \
         ! conceptseg bundle={} backend=rten threads=1 short-side=64 draw=0 ! fakesink",
        fixture.bundle().display()
    );
    // The frame takes 268 MB, what is made of it 1,342 MB more.
    for gigabytes in ["1.2", "1.5", "1.8"] {
        let bytes = gigabytes.parse::<f64>().unwrap() * 1e9;
        let mut program = Command::new("prlimit");
        program.arg(format!("--as={bytes}")).args(["timeout", "60", "gst-launch-1.0"]);
        program.args(line.split_whitespace());
        let Some(mut program) = with_plugin(&fixture, program) else { return };
        let Ok(output) = program.output() else {
            println!("skipped: prlimit is not installed");
            return;
        };
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{gigabytes} GB: {text}");
        assert!(text.contains("there is no memory for"), "{gigabytes} GB: {text}");
        assert!(text.contains("use smaller frames"), "{gigabytes} GB: {text}");
    }
}

#[test]
fn stopping_while_the_network_works_waits_for_one_frame_only() {
    let fixture = Fixture::new();
    for policy in ["block", "skip"] {
        let element = fixture.element();
        element.set_property("short-side", 2160u32);
        element.set_property_from_str("late-policy", policy);
        let pipeline = gst::Pipeline::new();
        let source = gst::parse::bin_from_description(
            "videotestsrc is-live=true ! video/x-raw,format=RGB,width=320,height=240 ! identity",
            true,
        )
        .unwrap();
        let sink = gst::ElementFactory::make("fakesink").build().unwrap();
        pipeline.add_many([source.upcast_ref(), &element, &sink]).unwrap();
        gst::Element::link_many([source.upcast_ref(), &element, &sink]).unwrap();
        let (sender, reached) = std::sync::mpsc::channel();
        element.static_pad("sink").unwrap().add_probe(gst::PadProbeType::BUFFER, move |_, _| {
            let _ = sender.send(());
            gst::PadProbeReturn::Ok
        });
        pipeline.set_state(gst::State::Playing).unwrap();
        reached.recv().unwrap();
        pipeline.set_state(gst::State::Null).unwrap();
        let stats = element.property::<gst::Structure>("stats");
        assert!(stats.get::<u64>("inferred").unwrap() <= 2, "{policy} {stats}");
    }
}

/// Values for a property to be set to in turn.
fn values(fixture: &Fixture, property: &glib::ParamSpec) -> Vec<glib::Value> {
    let mut values = vec![property.default_value().clone()];
    let name = property.name();
    match name {
        "bundle" => values.push(fixture.bundle().to_str().unwrap().to_value()),
        "first-frame-mask" => values.push(fixture.mask(64, 64).to_str().unwrap().to_value()),
        "initial-mask" => values.push(mask_buffer(64, 64, [1, 0, 0, 2]).to_value()),
        // A square, and no other number.
        "num-segments" => values.push(36u32.to_value()),
        "short-side" => values.extend([64u32, 123].map(|side| side.to_value())),
        _ => {
            if let Some(range) = property.downcast_ref::<glib::ParamSpecUInt>() {
                values.extend([range.minimum(), range.maximum()].map(|v| v.to_value()));
            } else if let Some(range) = property.downcast_ref::<glib::ParamSpecFloat>() {
                values.extend([range.minimum(), range.maximum()].map(|v| v.to_value()));
            } else if property.is::<glib::ParamSpecBoolean>() {
                values.extend([true, false].map(|v| v.to_value()));
            } else if let Some(kind) = glib::EnumClass::with_type(property.value_type()) {
                values.extend(kind.values().iter().filter_map(|v| kind.to_value(v.value())));
            } else if let Some(kind) = glib::FlagsClass::with_type(property.value_type()) {
                values.extend(
                    kind.values().iter().filter_map(|v| kind.builder().set(v.value()).build()),
                );
            } else {
                panic!("no value is known for {name}, a {}", property.value_type());
            }
        }
    }
    values
}

#[test]
fn every_property_that_may_change_while_playing_may_be_set_to_any_value() {
    let fixture = Fixture::new();
    for name in [
        "conceptseg",
        "conceptembed",
        "conceptlabel",
        "maskpropagate",
        "conceptoverlay",
        "conceptmetasink",
    ] {
        let element = if matches!(name, "conceptseg" | "conceptembed") {
            fixture.make(name)
        } else {
            gst::ElementFactory::make(name).build().unwrap()
        };
        let (mut harness, bus) = harness(&element, CAPS);
        let mut seed = 0;
        let mut set = 0;
        for property in element.list_properties() {
            let flags = property.flags();
            if !property.owner_type().name().starts_with("GstConcept")
                && property.owner_type().name() != "GstMaskPropagate"
                || !flags.contains(gst::PARAM_FLAG_MUTABLE_PLAYING)
            {
                continue;
            }
            for value in values(&fixture, &property) {
                element.set_property_from_value(property.name(), &value);
                for _ in 0..2 {
                    let output = harness.push_and_pull(frame(CAPS, seed));
                    output.unwrap_or_else(|e| {
                        panic!("{name} {} {value:?}: {e} {:?}", property.name(), error_text(&bus))
                    });
                    seed += 1;
                }
                set += 1;
            }
        }
        println!("{name}: {set} values");
        assert!(set >= 3, "{name}: {set} values");
    }
}
