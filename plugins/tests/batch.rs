//! Frames of many streams in one inference.

mod common;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{Fixture, error_text, frame, harness};
use conceptseg::embed::EmbeddingMap;
use gst::prelude::*;
use gstconceptseg::meta::Embedding;

const CAPS: &str = "video/x-raw,format=I420,width=96,height=72,framerate=30/1";

/// What reached the sink of one stream.
#[derive(Default)]
struct Arrived {
    frames: usize,
    /// Embeddings by the number of the frame that they were made of: a live source stamps its frames by
    /// the clock, but draws them by their number.
    maps: BTreeMap<u64, EmbeddingMap>,
    /// Numbers of the models that made them, in order.
    models: Vec<u64>,
}

/// One stream of a pipeline.
struct Stream {
    element: gst::Element,
    arrived: Arc<Mutex<Arrived>>,
}

impl Stream {
    /// Adds `source ! element ! fakesink`.
    fn add(pipeline: &gst::Pipeline, source: &str, element: gst::Element, sync: bool) -> Self {
        // A line of the framework before 1.24 cannot end in caps.
        let source = format!("{source} ! capsfilter caps=\"{CAPS}\"");
        let source = gst::parse::bin_from_description(&source, true).unwrap();
        let sink = gst::ElementFactory::make("fakesink").property("sync", sync).build().unwrap();
        pipeline.add_many([source.upcast_ref(), &element, &sink]).unwrap();
        gst::Element::link_many([source.upcast_ref(), &element, &sink]).unwrap();
        let arrived = Arc::<Mutex<Arrived>>::default();
        let list = Arc::clone(&arrived);
        sink.static_pad("sink").unwrap().add_probe(gst::PadProbeType::BUFFER, move |_, info| {
            if let Some(buffer) = info.buffer() {
                let mut arrived = list.lock().unwrap();
                arrived.frames += 1;
                if let Some((embedding, _)) = Embedding::from_buffer(buffer).unwrap() {
                    let mut map = EmbeddingMap::default();
                    embedding.read(&mut map).unwrap();
                    arrived.maps.insert(embedding.source.frame, map);
                    arrived.models.push(embedding.model);
                }
            }
            gst::PadProbeReturn::Ok
        });
        Self { element, arrived }
    }

    /// Mean and largest number of frames of its inferences.
    fn batch(&self) -> (f64, u32) {
        let stats: gst::Structure = self.element.property("stats");
        let batch: gst::Structure = stats.get("batch").unwrap();
        (batch.get("mean").unwrap(), batch.get("max").unwrap())
    }
}

fn embedder(fixture: &Fixture, batch: u32) -> gst::Element {
    let element = fixture.make("conceptembed");
    element.set_property("batch-size", batch);
    element.set_property("batch-timeout", 1000u32);
    element
}

/// A source with a picture of its own for each stream and frame.
fn source(id: usize, frames: usize) -> String {
    let patterns = ["ball", "smpte", "circular", "gradient"];
    format!("videotestsrc pattern={} horizontal-speed=3 num-buffers={frames}", patterns[id])
}

/// Plays file streams of so many frames each to their ends.
fn play(fixture: &Fixture, frames: [usize; 4], batch: u32) -> Vec<Stream> {
    let pipeline = gst::Pipeline::new();
    let streams = (0..4)
        .map(|id| Stream::add(&pipeline, &source(id, frames[id]), embedder(fixture, batch), false))
        .collect();
    pipeline.set_state(gst::State::Playing).unwrap();
    wait_for_end(&pipeline);
    pipeline.set_state(gst::State::Null).unwrap();
    streams
}

fn wait_for_end(pipeline: &gst::Pipeline) {
    let kinds = [gst::MessageType::Eos, gst::MessageType::Error];
    let message = pipeline.bus().unwrap();
    let message = message.timed_pop_filtered(gst::ClockTime::from_seconds(120), &kinds);
    let message = message.expect("the streams end");
    assert!(matches!(message.view(), gst::MessageView::Eos(_)), "{message:?}");
}

/// Waits for something that happens in other threads.
fn wait_until(what: &str, mut happened: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !happened() {
        assert!(begin.elapsed() < Duration::from_mins(1), "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn assert_same(found: &Arrived, expected: &Arrived) {
    assert!(!found.maps.is_empty());
    for (frame, map) in &found.maps {
        let other = &expected.maps[frame];
        assert_eq!((map.width, map.height, map.dim), (other.width, other.height, other.dim));
        let apart =
            map.data.iter().zip(&other.data).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(apart < 1e-5, "frame {frame}: {apart:e}");
    }
}

#[test]
fn the_properties_are_there_and_off_by_default() {
    let fixture = Fixture::new();
    for name in ["conceptembed", "conceptseg"] {
        let element = fixture.make(name);
        for (property, range, default) in
            [("batch-size", (1, 8), 1), ("batch-timeout", (0, 1000), 20)]
        {
            let spec = element.find_property(property).unwrap();
            assert!(spec.flags().contains(gst::PARAM_FLAG_MUTABLE_READY));
            let spec = spec.downcast_ref::<gst::glib::ParamSpecUInt>().unwrap();
            assert_eq!((spec.minimum(), spec.maximum()), range, "{name} {property}");
            assert_eq!(element.property::<u32>(property), default);
        }
    }
}

#[test]
fn four_streams_give_what_each_gives_alone_in_a_quarter_of_the_inferences() {
    let fixture = Fixture::new();
    let frames = [40; 4];
    let alone = play(&fixture, frames, 1);
    let together = play(&fixture, frames, 4);
    for (one, other) in alone.iter().zip(&together) {
        assert_eq!(one.batch(), (1.0, 1));
        let (mean, max) = other.batch();
        // The first frames come before all streams are there.
        assert!(mean > 3.0 && max == 4, "{mean} {max}");
        let (one, other) = (one.arrived.lock().unwrap(), other.arrived.lock().unwrap());
        assert_eq!((one.maps.len(), other.maps.len()), (40, 40));
        assert_same(&other, &one);
    }
}

#[test]
fn when_one_stream_ends_the_others_go_on() {
    let fixture = Fixture::new();
    let frames = [40, 40, 40, 10];
    let streams = play(&fixture, frames, 4);
    let alone = play(&fixture, frames, 1);
    for ((stream, alone), frames) in streams.iter().zip(&alone).zip(frames) {
        let arrived = stream.arrived.lock().unwrap();
        assert_eq!(arrived.maps.len(), frames);
        assert_same(&arrived, &alone.arrived.lock().unwrap());
    }
    let (mean, max) = streams[0].batch();
    assert!(mean > 2.2 && max == 4, "{mean} {max}");
}

#[test]
fn live_streams_and_files_share_inferences() {
    let fixture = Fixture::new();
    let reference = play(&fixture, [60; 4], 1);
    let pipeline = gst::Pipeline::new();
    let streams: Vec<_> = (0..4)
        .map(|id| {
            let live = id % 2 == 0;
            let element = embedder(&fixture, 4);
            element.set_property("batch-timeout", 10u32);
            element.set_property_from_str("late-policy", if live { "skip" } else { "block" });
            Stream::add(&pipeline, &format!("{} is-live={live}", source(id, 60)), element, live)
        })
        .collect();
    pipeline.set_state(gst::State::Playing).unwrap();
    wait_for_end(&pipeline);
    for (id, (stream, reference)) in streams.iter().zip(&reference).enumerate() {
        let arrived = stream.arrived.lock().unwrap();
        assert_same(&arrived, &reference.arrived.lock().unwrap());
        if id % 2 == 1 {
            assert_eq!((arrived.frames, arrived.maps.len()), (60, 60));
        }
    }
    let largest = streams.iter().map(|stream| stream.batch().1).max();
    assert!(largest > Some(1), "{largest:?}");
    pipeline.set_state(gst::State::Null).unwrap();
}

#[test]
fn a_flush_while_a_frame_waits_for_others_is_followed() {
    let fixture = Fixture::new();
    for policy in ["block", "skip"] {
        let other = embedder(&fixture, 2);
        let (mut others, _) = harness(&other, CAPS);
        others.push_and_pull(frame(CAPS, 0)).unwrap();
        let element = embedder(&fixture, 2);
        element.set_property_from_str("late-policy", policy);
        let (mut own, bus) = harness(&element, CAPS);
        let pad = element.static_pad("sink").unwrap();
        std::thread::scope(|scope| {
            // Waits for the other stream, which sends nothing now.
            let pushes = scope.spawn(|| own.push(frame(CAPS, 1)));
            std::thread::sleep(Duration::from_millis(100));
            assert!(pad.send_event(gst::event::FlushStart::new()));
            let _ = pushes.join().unwrap();
            assert!(pad.send_event(gst::event::FlushStop::new(true)));
        });
        let segment = gst::FormattedSegment::<gst::ClockTime>::new();
        assert!(own.push_event(gst::event::Segment::new(&segment)));
        while own.try_pull().is_some() {}
        let mut shown = None;
        for seed in 50..400 {
            let output = own.push_and_pull(frame(CAPS, seed)).unwrap();
            shown = Embedding::from_buffer(&output).unwrap();
            if shown.is_some() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let (embedding, _) = shown.expect("frames are analysed again");
        let then = gst::ClockTime::from_mseconds(40 * 50);
        assert!(embedding.source.pts >= Some(then), "{policy}: a result from before the flush");
        assert_eq!(error_text(&bus), None);
    }
}

#[test]
fn another_bundle_takes_over_while_batches_are_under_way() {
    let fixture = Fixture::new();
    let other = fixture.write_bundle("other", "o");
    let pipeline = gst::Pipeline::new();
    let streams: Vec<_> = (0..4)
        .map(|id| {
            let element = embedder(&fixture, 4);
            element.set_property("engine-id", "reloaded");
            Stream::add(&pipeline, &source(id, 100_000), element, false)
        })
        .collect();
    pipeline.set_state(gst::State::Playing).unwrap();
    let models = |stream: &Stream| stream.arrived.lock().unwrap().models.clone();
    wait_until("frames arrive", || streams.iter().all(|stream| models(stream).len() > 10));
    let before = models(&streams[0])[0];
    streams[2].element.set_property("bundle", other.to_str().unwrap());
    let changed = |stream: &Stream| models(stream).iter().filter(|&&id| id != before).count() > 10;
    wait_until("all streams have the new model", || streams.iter().all(changed));
    for stream in &streams {
        let models = models(stream);
        let change = models.iter().position(|&id| id != before).unwrap();
        assert!(models[change..].iter().all(|&id| id == models[change]));
        assert_eq!(stream.batch().1, 4);
    }
    let bus = pipeline.bus().unwrap();
    assert_eq!(error_text(&bus), None);
    pipeline.set_state(gst::State::Null).unwrap();
}
