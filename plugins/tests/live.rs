//! What happens to a stream in real life: it is live, it seeks, pauses, changes and ends.

mod common;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{Fixture, error_text, frame, harness};
use gst::prelude::*;
use gst_check::Harness;
use gstconceptseg::meta::Analysis;

const CAPS: &str = "video/x-raw,format=RGB,width=96,height=72,framerate=25/1";

/// What reached the sink.
#[derive(Debug, Clone)]
struct Arrived {
    pts: gst::ClockTime,
    /// Age and staleness of the concepts, where the frame has some.
    age: Option<(Duration, bool)>,
}

/// `source ! conceptseg ! fakesink`, with all that arrives.
struct Line {
    pipeline: gst::Pipeline,
    element: gst::Element,
    arrived: Arc<Mutex<Vec<Arrived>>>,
}

impl Line {
    fn new(source: &str, element: gst::Element, sync: bool) -> Self {
        let source =
            gst::parse::bin_from_description(&format!("{source} ! identity"), true).unwrap();
        let sink = gst::ElementFactory::make("fakesink").property("sync", sync).build().unwrap();
        let pipeline = gst::Pipeline::new();
        pipeline.add_many([source.upcast_ref(), &element, &sink]).unwrap();
        gst::Element::link_many([source.upcast_ref(), &element, &sink]).unwrap();
        let arrived = Arc::<Mutex<Vec<Arrived>>>::default();
        let list = Arc::clone(&arrived);
        let pad = sink.static_pad("sink").unwrap();
        pad.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
            if let Some(buffer) = info.buffer() {
                let analysis = Analysis::from_buffer(buffer).unwrap();
                let age = analysis.and_then(|a| a.concepts_source().map(|(_, age)| *age));
                list.lock().unwrap().push(Arrived {
                    pts: buffer.pts().unwrap(),
                    age: age.map(|age| (age.age.into(), age.stale)),
                });
            }
            gst::PadProbeReturn::Ok
        });
        Self { pipeline, element, arrived }
    }

    fn arrived(&self) -> Vec<Arrived> {
        self.arrived.lock().unwrap().clone()
    }

    /// Plays to the end of the stream.
    fn play(&self) {
        self.pipeline.set_state(gst::State::Playing).unwrap();
        self.wait_for_end();
    }

    fn wait_for_end(&self) {
        let bus = self.pipeline.bus().unwrap();
        let kinds = [gst::MessageType::Eos, gst::MessageType::Error];
        let message = bus.timed_pop_filtered(gst::ClockTime::from_seconds(60), &kinds);
        let message = message.expect("the stream ends");
        assert!(matches!(message.view(), gst::MessageView::Eos(_)), "{message:?}");
    }

    fn wait_for_frames(&self, count: usize) {
        let begin = std::time::Instant::now();
        while self.arrived.lock().unwrap().len() < count {
            assert!(begin.elapsed().as_secs() < 60, "{} of {count} frames", self.arrived().len());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let _ = self.pipeline.set_state(gst::State::Null);
    }
}

/// `conceptseg` so large that the network takes about 80 ms, and the short side that does it.
fn slow(fixture: &Fixture) -> gst::Element {
    let element = fixture.element();
    let (mut harness, _bus) = harness(&element, CAPS);
    let mut side = 64u32;
    while side < 2160 {
        element.set_property("short-side", side);
        let begin = std::time::Instant::now();
        harness.push_and_pull(frame(CAPS, 0)).unwrap();
        if begin.elapsed() > Duration::from_millis(60) {
            break;
        }
        side += side / 4;
    }
    let element = fixture.element();
    element.set_property("short-side", side.min(2160));
    element.set_property_from_str("late-policy", "auto");
    element
}

#[test]
fn a_live_stream_passes_every_frame_and_no_result_is_two_inference_times_old() {
    let fixture = Fixture::new();
    let line = Line::new(
        "videotestsrc is-live=true num-buffers=75 pattern=ball \
         ! video/x-raw,format=NV12,width=96,height=72,framerate=30/1",
        slow(&fixture),
        true,
    );
    line.play();
    let arrived = line.arrived();
    assert_eq!(arrived.len(), 75);
    assert!(arrived.windows(2).all(|pair| pair[0].pts < pair[1].pts));
    let stats = line.element.property::<gst::Structure>("stats");
    let figure = |stage: &str, name: &str| {
        stats.get::<gst::Structure>(stage).unwrap().get::<f64>(name).unwrap()
    };
    let inference: f64 =
        ["preprocess", "network", "concepts"].iter().map(|stage| figure(stage, "max")).sum();
    // The first frames come before there is a result.
    let ages: Vec<_> = arrived.iter().filter_map(|a| a.age).collect();
    let worst = ages.iter().map(|(age, _)| age.as_secs_f64() * 1e3).fold(0.0, f64::max);
    println!("inference {inference:.1} ms, worst age {worst:.1} ms, {} with results", ages.len());
    assert!(worst < 2.0 * inference, "{worst} ms old, an inference took {inference} ms");
    assert!(ages.len() >= 25, "{}", ages.len());
    assert!(ages.iter().any(|(_, stale)| *stale));
    // No latency that grows: results at the end are not older than in the middle.
    let mean = |part: &[(Duration, bool)]| {
        part.iter().map(|(age, _)| age.as_secs_f64()).sum::<f64>() / part.len() as f64
    };
    let (middle, end) = (mean(&ages[5..15]), mean(&ages[ages.len() - 10..]));
    let slack = inference / 1e3;
    assert!(end < middle + slack, "{middle} s in the middle, {end} s at the end");
    let [frames, inferred, skipped] =
        ["frames", "inferred", "skipped"].map(|name| stats.get::<u64>(name).unwrap());
    assert_eq!(frames, 75);
    assert!(inferred >= 3 && inferred + skipped <= 76, "{stats}");
}

#[test]
fn a_file_gets_a_result_of_its_own_for_every_frame() {
    let fixture = Fixture::new();
    let element = fixture.element();
    element.set_property_from_str("late-policy", "auto");
    let source = "videotestsrc num-buffers=20 ! video/x-raw,format=I420,width=64,height=64";
    let line = Line::new(source, element, false);
    line.play();
    let own = |a: &Arrived| a.age == Some((Duration::ZERO, false));
    assert_eq!(line.arrived().iter().filter(|a| own(a)).count(), 20);
}

#[test]
fn the_latency_query_is_answered_with_what_was_measured() {
    let fixture = Fixture::new();
    let element = fixture.element();
    element.set_property("short-side", 256u32);
    let (mut harness, _bus) = harness(&element, CAPS);
    harness.set_upstream_latency(gst::ClockTime::from_mseconds(5));
    for seed in 0..40 {
        harness.push_and_pull(frame(CAPS, seed)).unwrap();
    }
    let mut query = gst::query::Latency::new();
    assert!(element.static_pad("src").unwrap().query(&mut query));
    let (_, min, _) = query.result();
    let stats = element.property::<gst::Structure>("stats");
    let stage =
        |name: &str| stats.get::<gst::Structure>(name).unwrap().get::<f64>("median").unwrap();
    let own = min.nseconds() as f64 / 1e6 - 5.0;
    // The query may say a tenth and a millisecond per element less than what came last.
    let least = (stage("network") * 0.8 - 3.0).max(0.1);
    assert!(own > least && own < 1000.0, "{own} ms, network {} ms", stage("network"));
}

#[test]
fn late_frames_are_not_dropped() {
    let fixture = Fixture::new();
    let element = fixture.element();
    let (mut harness, _bus) = harness(&element, CAPS);
    harness.push_and_pull(frame(CAPS, 0)).unwrap();
    let late = gst::event::Qos::builder(gst::QOSType::Underflow, 20.0, 1_000_000_000)
        .timestamp(gst::ClockTime::from_seconds(1));
    harness.push_upstream_event(late.build());
    for seed in 1..5 {
        let output = harness.push_and_pull(frame(CAPS, seed)).unwrap();
        assert!(Analysis::from_buffer(&output).unwrap().is_some());
    }
}

#[test]
fn a_flushing_seek_goes_on_at_the_new_place() {
    let fixture = Fixture::new();
    let source = "videotestsrc ! video/x-raw,format=I420,width=64,height=64,framerate=25/1";
    for policy in ["block", "skip"] {
        let element = fixture.element();
        element.set_property_from_str("late-policy", policy);
        let line = Line::new(source, element, true);
        line.pipeline.set_state(gst::State::Playing).unwrap();
        line.wait_for_frames(5);
        let target = gst::ClockTime::from_seconds(100);
        line.pipeline.seek_simple(gst::SeekFlags::FLUSH, target).unwrap();
        let before = line.arrived().len();
        line.wait_for_frames(before + 10);
        let arrived = line.arrived();
        let after: Vec<_> = arrived.iter().filter(|a| a.pts >= target).collect();
        assert!(after.len() >= 5, "{policy} {arrived:?}");
        let shown = after.iter().filter_map(|a| a.age);
        assert!(shown.clone().count() >= 3);
        // No result comes from before the seek.
        assert!(shown.map(|(age, _)| age).all(|age| age < Duration::from_secs(10)), "{policy}");
    }
}

#[test]
fn segments_gaps_and_the_end_reach_the_next_element() {
    let fixture = Fixture::new();
    for policy in ["block", "skip"] {
        let element = fixture.element();
        element.set_property_from_str("late-policy", policy);
        let (mut harness, bus) = harness(&element, CAPS);
        let push = |harness: &mut Harness, seed| {
            let output = harness.push_and_pull(frame(CAPS, seed));
            output.unwrap_or_else(|e| panic!("{e} {:?}", error_text(&bus)))
        };
        push(&mut harness, 0);
        let mut segment = gst::FormattedSegment::<gst::ClockTime>::new();
        segment.set_start(gst::ClockTime::from_seconds(3));
        assert!(harness.push_event(gst::event::Segment::new(&segment)));
        push(&mut harness, 1);
        let gap = gst::event::Gap::builder(gst::ClockTime::from_mseconds(80));
        assert!(harness.push_event(gap.duration(gst::ClockTime::from_mseconds(40)).build()));
        push(&mut harness, 3);
        assert!(harness.push_event(gst::event::Eos::new()));
        let mut seen = Vec::new();
        while let Some(event) = harness.try_pull_event() {
            seen.push(event.type_());
        }
        let ends = [gst::EventType::Segment, gst::EventType::Gap, gst::EventType::Eos];
        assert!(seen.ends_with(&ends), "{policy} {seen:?}");
        assert_eq!(error_text(&bus), None);
    }
}

#[test]
fn at_the_end_of_the_stream_the_frame_under_way_is_finished() {
    let fixture = Fixture::new();
    let element = fixture.element();
    element.set_property_from_str("late-policy", "skip");
    let path = fixture.path("results.jsonl");
    element.set_property_from_str("results-location", path.to_str().unwrap());
    let (mut harness, bus) = harness(&element, CAPS);
    for seed in 0..10 {
        harness.push_and_pull(frame(CAPS, seed)).unwrap();
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(harness.push_event(gst::event::Eos::new()));
    assert_eq!(error_text(&bus), None);
    let records: Vec<_> =
        conceptseg::results::read_records(&path).unwrap().collect::<Result<_, _>>().unwrap();
    assert!(!records.is_empty() && records.len() <= 10);
    assert!(records.iter().all(|r| r.age_ns.is_none_or(|age| age <= 360_000_000)));
}

#[test]
fn size_and_format_may_change_while_a_frame_is_being_analysed() {
    let fixture = Fixture::new();
    let element = fixture.element();
    element.set_property_from_str("late-policy", "skip");
    element.set_property_from_str("draw", "concepts+masks+outlines");
    element.set_property_from_str("first-frame-mask", fixture.mask(96, 72).to_str().unwrap());
    let (mut harness, bus) = harness(&element, CAPS);
    let mut seed = 0;
    for (format, width, height) in [
        ("RGB", 96, 72),
        ("NV12", 161, 99),
        ("YUY2", 33, 21),
        ("GRAY8", 200, 100),
        ("BGRx", 96, 72),
    ] {
        let caps =
            format!("video/x-raw,format={format},width={width},height={height},framerate=25/1");
        harness.set_src_caps(caps.parse().unwrap());
        let mut shown = 0;
        for _ in 0..12 {
            let output = harness.push_and_pull(frame(&caps, seed));
            let output = output.unwrap_or_else(|e| panic!("{caps}: {e} {:?}", error_text(&bus)));
            shown += usize::from(Analysis::from_buffer(&output).unwrap().is_some());
            seed += 1;
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(shown > 0, "{caps}");
    }
}

#[test]
fn a_paused_stream_goes_on() {
    let fixture = Fixture::new();
    let source = "videotestsrc is-live=true num-buffers=40 \
                  ! video/x-raw,format=I420,width=64,height=64,framerate=30/1";
    let element = fixture.element();
    element.set_property_from_str("late-policy", "auto");
    let line = Line::new(source, element, true);
    line.pipeline.set_state(gst::State::Playing).unwrap();
    line.wait_for_frames(10);
    line.pipeline.set_state(gst::State::Paused).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    let paused = line.arrived().len();
    line.pipeline.set_state(gst::State::Playing).unwrap();
    line.wait_for_end();
    let arrived = line.arrived();
    assert!(paused < 40 && arrived.len() >= 38, "{paused} {}", arrived.len());
    assert!(arrived[paused..].iter().any(|a| a.age.is_some()));
}

#[test]
fn a_new_bundle_on_a_live_stream_costs_no_frame_and_a_bad_one_no_result() {
    let fixture = Fixture::new();
    let other = fixture.write_bundle("other", "new");
    let element = fixture.element();
    element.set_property_from_str("late-policy", "skip");
    let line = Line::new(
        "videotestsrc is-live=true pattern=ball \
         ! video/x-raw,format=NV12,width=96,height=72,framerate=30/1",
        element,
        false,
    );
    // Before the element the times of frames, behind it the names of what was found too.
    let sent = Arc::<Mutex<Vec<gst::ClockTime>>>::default();
    let list = Arc::clone(&sent);
    line.element.static_pad("sink").unwrap().add_probe(
        gst::PadProbeType::BUFFER,
        move |_, info| {
            list.lock().unwrap().extend(info.buffer().and_then(|buffer| buffer.pts()));
            gst::PadProbeReturn::Ok
        },
    );
    let found = Arc::<Mutex<Vec<Option<String>>>>::default();
    let list = Arc::clone(&found);
    line.element.static_pad("src").unwrap().add_probe(gst::PadProbeType::BUFFER, move |_, info| {
        if let Some(buffer) = info.buffer() {
            let analysis = Analysis::from_buffer(buffer).unwrap();
            list.lock().unwrap().push(analysis.and_then(|a| a.summary().first()?.name.clone()));
        }
        gst::PadProbeReturn::Ok
    });
    let wait_for = |prefix: &str| {
        let begin = std::time::Instant::now();
        while !found
            .lock()
            .unwrap()
            .last()
            .is_some_and(|name| name.as_deref().is_some_and(|name| name.starts_with(prefix)))
        {
            assert!(begin.elapsed().as_secs() < 60, "nothing of {prefix}");
            std::thread::sleep(Duration::from_millis(5));
        }
    };

    line.pipeline.set_state(gst::State::Playing).unwrap();
    wait_for("c");
    line.element.set_property_from_str("bundle", other.to_str().unwrap());
    wait_for("new");
    line.element.set_property_from_str("bundle", "/nonexistent/b");
    let bus = line.pipeline.bus().unwrap();
    let wait = gst::ClockTime::from_seconds(60);
    assert!(bus.timed_pop_filtered(wait, &[gst::MessageType::Warning]).is_some());
    let before = line.arrived().len();
    line.wait_for_frames(before + 10);
    line.pipeline.send_event(gst::event::Eos::new());
    line.wait_for_end();

    let (sent, arrived) = (sent.lock().unwrap(), line.arrived());
    assert_eq!(*sent, arrived.iter().map(|frame| frame.pts).collect::<Vec<_>>());
    let step = gst::ClockTime::SECOND / 30;
    for pair in sent.windows(2) {
        let gap = pair[1] - pair[0];
        // Rounded to nanoseconds.
        assert!(gap >= step && gap <= step + gst::ClockTime::from_nseconds(1), "{pair:?}");
    }
    let names = found.lock().unwrap();
    let mut names = names.iter().skip_while(|name| name.is_none());
    assert!(names.all(Option::is_some), "a frame has no result");
    assert!(arrived.iter().skip_while(|frame| frame.age.is_none()).all(|f| f.age.is_some()));
}
