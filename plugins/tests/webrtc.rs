//! A stream that comes by WebRTC over a network that loses packets.

mod common;

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use common::{Fixture, init};
use gst::glib;
use gst::prelude::*;
use gstconceptseg::meta::Analysis;

/// What the connection is made of, and the packages of Debian that have it.
const NEEDED: [(&str, &str); 6] = [
    ("webrtcbin", "gstreamer1.0-plugins-bad"),
    ("dtlsdec", "gstreamer1.0-plugins-bad"),
    ("srtpenc", "gstreamer1.0-plugins-bad"),
    ("nicesrc", "gstreamer1.0-nice"),
    ("vp8enc", "gstreamer1.0-plugins-good"),
    ("rtpvp8pay", "gstreamer1.0-plugins-good"),
];

/// Frames with results that are waited for.
const FRAMES: usize = 60;

/// Sends, and loses packets on the way.
const SENDER: &str = "videotestsrc is-live=true pattern=ball \
    ! video/x-raw,format=I420,width=96,height=72,framerate=30/1 \
    ! vp8enc deadline=1 keyframe-max-dist=5 target-bitrate=400000 ! rtpvp8pay mtu=300 \
    ! application/x-rtp,media=video,encoding-name=VP8,payload=96 \
    ! identity name=loss drop-probability=0.05 ! webrtcbin name=end bundle-policy=max-bundle";

/// One end, which speaks to this machine only.
fn end(pipeline: &gst::Pipeline) -> gst::Element {
    let end = pipeline.by_name("end").unwrap();
    let agent = end.property::<glib::Object>("ice-agent");
    assert!(agent.emit_by_name::<bool>("add-local-ip-address", &[&"127.0.0.1"]));
    end
}

/// What `ours` finds of its addresses is told to `theirs`.
fn pass_candidates(ours: &gst::Element, theirs: &gst::Element) {
    let theirs = theirs.downgrade();
    ours.connect("on-ice-candidate", false, move |values| {
        theirs.upgrade()?.emit_by_name_with_values("add-ice-candidate", &values[1..])
    });
}

/// Has an end make a description.
fn ask(end: &gst::Element, signal: &str, field: &str) -> glib::Value {
    let promise = gst::Promise::new();
    end.emit_by_name::<()>(signal, &[&None::<gst::Structure>, &promise]);
    assert_eq!(promise.wait(), gst::PromiseResult::Replied, "{signal}");
    let reply = promise.get_reply().unwrap();
    (**reply.value(field).unwrap()).clone()
}

fn tell(end: &gst::Element, signal: &str, description: &glib::Value) {
    let promise = gst::Promise::new();
    end.emit_by_name_with_values(signal, &[description.clone(), promise.to_value()]);
    assert_eq!(promise.wait(), gst::PromiseResult::Replied, "{signal}");
}

fn count(pad: &gst::Pad) -> Arc<AtomicUsize> {
    let seen = Arc::<AtomicUsize>::default();
    let counter = Arc::clone(&seen);
    pad.add_probe(gst::PadProbeType::BUFFER, move |_, _| {
        counter.fetch_add(1, Relaxed);
        gst::PadProbeReturn::Ok
    });
    seen
}

#[test]
fn a_webrtc_stream_that_loses_packets_goes_on_with_results() {
    init();
    for (element, package) in NEEDED {
        if gst::ElementFactory::find(element).is_none() {
            println!("skipped: there is no {element} ({package}); see scripts/setup --tests");
            return;
        }
    }
    let fixture = Fixture::new();
    let sender = gst::parse::launch(SENDER).unwrap().downcast::<gst::Pipeline>().unwrap();
    let receiver = gst::Pipeline::new();
    let one = gst::ElementFactory::make("webrtcbin").name("end");
    receiver.add(&one.property_from_str("bundle-policy", "max-bundle").build().unwrap()).unwrap();
    let (ours, theirs) = (end(&sender), end(&receiver));
    pass_candidates(&ours, &theirs);
    pass_candidates(&theirs, &ours);
    let loss = sender.by_name("loss").unwrap();
    let offered = count(&loss.static_pad("sink").unwrap());
    let passed = count(&loss.static_pad("src").unwrap());

    let (frames, arrived) = mpsc::channel();
    let bin = receiver.downgrade();
    let bundle = fixture.bundle();
    theirs.connect_pad_added(move |_, pad| {
        let (Some(bin), gst::PadDirection::Src) = (bin.upgrade(), pad.direction()) else { return };
        let tail = gst::parse::bin_from_description(
            &format!(
                "rtpvp8depay ! vp8dec ! conceptseg bundle={} backend=rten threads=1 short-side=64 \
                 ! fakesink name=out sync=false",
                bundle.display()
            ),
            true,
        )
        .unwrap();
        let frames = frames.clone();
        let sink = tail.by_name("out").unwrap().static_pad("sink").unwrap();
        sink.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
            if let Some(buffer) = info.buffer() {
                let analysis = Analysis::from_buffer(buffer).unwrap();
                // Nobody listens any more at the end.
                let _ = frames.send((buffer.pts(), analysis.is_some_and(|a| a.has_concepts())));
            }
            gst::PadProbeReturn::Ok
        });
        bin.add(&tail).unwrap();
        tail.sync_state_with_parent().unwrap();
        pad.link(&tail.static_pad("sink").unwrap()).unwrap();
    });
    let (wanted, negotiation) = mpsc::channel();
    ours.connect("on-negotiation-needed", false, move |_| {
        let _ = wanted.send(());
        None
    });

    receiver.set_state(gst::State::Playing).unwrap();
    sender.set_state(gst::State::Playing).unwrap();
    negotiation.recv_timeout(Duration::from_mins(1)).unwrap();
    let offer = ask(&ours, "create-offer", "offer");
    tell(&ours, "set-local-description", &offer);
    tell(&theirs, "set-remote-description", &offer);
    let answer = ask(&theirs, "create-answer", "answer");
    tell(&theirs, "set-local-description", &answer);
    tell(&ours, "set-remote-description", &answer);

    let mut last = None;
    let mut with_results = 0;
    while with_results < FRAMES || offered.load(Relaxed) == passed.load(Relaxed) {
        let (pts, found) = arrived
            .recv_timeout(Duration::from_mins(1))
            .unwrap_or_else(|e| panic!("{with_results} frames with results: {e}"));
        // Frames that arrive together may have one time.
        assert!(pts >= last, "{pts:?} after {last:?}");
        last = pts;
        with_results += usize::from(found);
    }
    for pipeline in [&sender, &receiver] {
        let error = common::error_text(&pipeline.bus().unwrap());
        assert_eq!(error, None);
        pipeline.set_state(gst::State::Null).unwrap();
    }
    println!(
        "{with_results} frames, {} of {} packets",
        passed.load(Relaxed),
        offered.load(Relaxed)
    );
}
