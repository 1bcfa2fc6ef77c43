//! Many streams in one process: they share a model, and nothing else.

mod common;

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{Fixture, error_text};
use gst::prelude::*;
use gstconceptseg::meta::{Analysis, Embedding, NAME};

/// A frame at the end of a stream.
#[derive(Debug, Clone, PartialEq)]
struct Arrived {
    /// Index of the frame as its source counts.
    number: u64,
    width: u32,
    concepts: Vec<u8>,
    masks: Vec<u8>,
}

/// Frames at the end of a stream, and the models that saw them.
#[derive(Clone, Default)]
struct Seen {
    frames: Arc<Mutex<Vec<Arrived>>>,
    models: Arc<Mutex<HashSet<u64>>>,
}

impl Seen {
    fn watch(&self, sink: &gst::Element) {
        let seen = self.clone();
        let pad = sink.static_pad("sink").unwrap();
        pad.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
            if let Some(buffer) = info.buffer() {
                seen.note(buffer);
            }
            gst::PadProbeReturn::Ok
        });
    }

    fn note(&self, buffer: &gst::BufferRef) {
        if let Some((embedding, _)) = Embedding::from_buffer(buffer).unwrap() {
            self.models.lock().unwrap().insert(embedding.model);
        }
        let map = |name: &str| {
            let meta = gst::meta::CustomMeta::from_buffer(buffer, NAME).ok()?;
            let map = meta.structure().get::<gst::Buffer>(name).ok()?;
            Some(map.map_readable().unwrap().to_vec())
        };
        let analysis = Analysis::from_buffer(buffer).unwrap();
        self.frames.lock().unwrap().push(Arrived {
            number: buffer.offset(),
            width: analysis.map_or(0, |analysis| analysis.width),
            concepts: map("concepts").unwrap_or_default(),
            masks: map("masks").unwrap_or_default(),
        });
    }

    fn frames(&self) -> Vec<Arrived> {
        self.frames.lock().unwrap().clone()
    }

    fn count(&self) -> usize {
        self.frames.lock().unwrap().len()
    }

    fn models(&self) -> HashSet<u64> {
        self.models.lock().unwrap().clone()
    }

    fn wait_for(&self, count: usize) {
        let begin = Instant::now();
        while self.count() < count {
            assert!(begin.elapsed().as_secs() < 120, "{} of {count} frames", self.count());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Every frame of the source arrived, in order.
    fn assert_complete(&self) {
        let numbers: Vec<u64> = self.frames().iter().map(|frame| frame.number).collect();
        assert_eq!(numbers, (0..numbers.len() as u64).collect::<Vec<_>>());
    }
}

/// `source ! element ! fakesink` in `bin`, which may play already.
struct Branch {
    parts: [gst::Element; 3],
    seen: Seen,
}

impl Branch {
    fn add(bin: &gst::Pipeline, source: &str, element: gst::Element) -> Self {
        let source = format!("{source} ! identity");
        let source = gst::parse::bin_from_description(&source, true).unwrap();
        let sink = gst::ElementFactory::make("fakesink")
            .property("sync", false)
            // A branch may be taken away before its first frame.
            .property("async", false)
            .build()
            .unwrap();
        let seen = Seen::default();
        seen.watch(&sink);
        let parts = [source.upcast(), element, sink];
        bin.add_many(&parts).unwrap();
        gst::Element::link_many(&parts).unwrap();
        // From the end to the beginning, so that nothing sends to what does not play yet.
        for part in parts.iter().rev() {
            part.sync_state_with_parent().unwrap();
        }
        Self { parts, seen }
    }

    fn remove(self, bin: &gst::Pipeline) -> Seen {
        for part in &self.parts {
            part.set_state(gst::State::Null).unwrap();
        }
        bin.remove_many(&self.parts).unwrap();
        self.seen
    }
}

/// A pipeline of one branch, from start to end.
struct Line {
    pipeline: gst::Pipeline,
    branch: Branch,
}

impl Line {
    fn new(source: &str, element: gst::Element) -> Self {
        let pipeline = gst::Pipeline::new();
        let branch = Branch::add(&pipeline, source, element);
        Self { pipeline, branch }
    }

    fn play(&self) {
        self.pipeline.set_state(gst::State::Playing).unwrap();
    }

    /// The message at which it ends: that of the end, or an error.
    fn end(&self) -> gst::Message {
        let kinds = [gst::MessageType::Eos, gst::MessageType::Error];
        let bus = self.pipeline.bus().unwrap();
        bus.timed_pop_filtered(gst::ClockTime::from_seconds(120), &kinds).expect("the stream ends")
    }

    fn play_to_the_end(&self) {
        let message = self.end();
        assert_eq!(message.type_(), gst::MessageType::Eos, "{message:?}");
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let _ = self.pipeline.set_state(gst::State::Null);
    }
}

const PATTERNS: [&str; 4] = ["ball", "smpte", "circular", "pinwheel"];

fn source(pattern: &str, format: &str, (width, height): (u32, u32), frames: i32) -> String {
    format!(
        "videotestsrc pattern={pattern} num-buffers={frames} \
         ! video/x-raw,format={format},width={width},height={height},framerate=30/1"
    )
}

#[test]
fn sixteen_streams_share_one_model_and_find_what_each_finds_alone() {
    let fixture = Fixture::new();
    let line = |pattern: &str| {
        let element = fixture.element();
        element.set_property_from_str("first-frame-mask", fixture.mask(96, 72).to_str().unwrap());
        Line::new(&source(pattern, "NV12", (96, 72), 8), element)
    };
    let alone = PATTERNS.map(|pattern| {
        let line = line(pattern);
        line.play();
        line.play_to_the_end();
        line.branch.seen.frames()
    });
    assert_ne!(alone[0], alone[1]);

    let lines: Vec<Line> = (0..16).map(|i| line(PATTERNS[i % PATTERNS.len()])).collect();
    lines.iter().for_each(Line::play);
    lines.iter().for_each(Line::play_to_the_end);
    for (i, line) in lines.iter().enumerate() {
        let frames = line.branch.seen.frames();
        assert_eq!(frames.len(), 8);
        assert!(frames.iter().all(|frame| !frame.concepts.is_empty() && !frame.masks.is_empty()));
        assert_eq!(frames, alone[i % PATTERNS.len()], "stream {i}");
    }
    let models: HashSet<u64> = lines.iter().flat_map(|line| line.branch.seen.models()).collect();
    assert_eq!(models.len(), 1, "one model saw the frames of all");
}

#[test]
fn live_streams_come_and_go_while_others_play() {
    let fixture = Fixture::new();
    let pipeline = gst::Pipeline::new();
    pipeline.set_state(gst::State::Playing).unwrap();
    let live = "videotestsrc is-live=true pattern=ball \
                ! video/x-raw,format=I420,width=96,height=72,framerate=30/1";
    let add = || {
        let element = fixture.element();
        element.set_property_from_str("late-policy", "skip");
        Branch::add(&pipeline, live, element)
    };
    let steady = [add(), add()];
    let mut guests: Vec<Branch> = vec![add()];
    // In an order that looks random and is the same in every run: mostly in turns, at times
    // several at once, from the front, the middle and the end.
    let mut state = 7_usize;
    for _ in 0..20 {
        state = state * 25 % 127;
        if guests.is_empty() || (guests.len() < 4 && state.is_multiple_of(2)) {
            guests.push(add());
        } else {
            let gone = guests.remove(state % guests.len()).remove(&pipeline);
            // Also where it was taken away before its first frame.
            gone.assert_complete();
        }
        let before = steady.each_ref().map(|branch| branch.seen.count());
        for (branch, before) in steady.iter().zip(before) {
            branch.seen.wait_for(before + 3);
        }
        assert_eq!(error_text(&pipeline.bus().unwrap()), None);
    }
    for guest in &guests {
        guest.seen.wait_for(5);
    }
    let rest = guests.into_iter().chain(steady);
    let seen: Vec<Seen> = rest.map(|branch| branch.remove(&pipeline)).collect();
    pipeline.set_state(gst::State::Null).unwrap();
    for seen in &seen {
        seen.assert_complete();
        assert!(seen.frames().iter().any(|frame| !frame.concepts.is_empty()));
    }
    let models: HashSet<u64> = seen.iter().flat_map(Seen::models).collect();
    assert_eq!(models.len(), 1);

    // The model went with the last stream: without its files nobody can open it again.
    std::fs::remove_file(fixture.bundle().join("bundle.toml")).unwrap();
    let late = fixture.element();
    assert!(late.set_state(gst::State::Paused).is_err());
    late.set_state(gst::State::Null).unwrap();
}

#[test]
fn streams_of_all_sizes_and_formats_share_one_engine() {
    let fixture = Fixture::new();
    let first = fixture.element();
    first.set_property("engine-id", "streams");
    // Holds the engine while the others start and end.
    first.set_state(gst::State::Paused).unwrap();
    let sizes = [(96, 72), (33, 101), (200, 40), (64, 64)];
    let lines: Vec<_> = (0..common::FORMATS.len())
        .map(|i| {
            let element = gst::ElementFactory::make("conceptseg").build().unwrap();
            element.set_property("engine-id", "streams");
            element.set_property("short-side", 64u32);
            element.set_property_from_str("late-policy", "block");
            element.set_property_from_str("draw", "0");
            let size = sizes[i % sizes.len()];
            (size, Line::new(&source("ball", common::FORMATS[i], size, 6), element))
        })
        .collect();
    for (_, line) in &lines {
        line.play();
    }
    let mut models = HashSet::new();
    for (i, ((width, height), line)) in lines.iter().enumerate() {
        line.play_to_the_end();
        line.branch.seen.assert_complete();
        let frames = line.branch.seen.frames();
        assert_eq!(frames.len(), 6, "{}", common::FORMATS[i]);
        assert!(frames.iter().all(|frame| frame.width == *width));
        assert!(frames.iter().all(|f| f.concepts.len() == (width * height * 2) as usize));
        models.extend(line.branch.seen.models());
    }
    assert_eq!(models.len(), 1);
    first.set_state(gst::State::Null).unwrap();
}

#[test]
fn an_error_in_one_stream_leaves_the_others_alone() {
    let fixture = Fixture::new();
    let line = |source: &str, policy: &str, (width, height): (u32, u32)| {
        let element = fixture.element();
        element.set_property_from_str("late-policy", policy);
        let mask = fixture.mask(width, height);
        element.set_property_from_str("first-frame-mask", mask.to_str().unwrap());
        Line::new(source, element)
    };
    let fails = |line: &Line| {
        let message = line.end();
        let gst::MessageView::Error(error) = message.view() else { panic!("{message:?}") };
        assert!(error.error().message().contains("95"), "{error:?}");
    };

    let file = source("ball", "RGB", (96, 72), 40);
    let good: Vec<Line> = (0..3).map(|_| line(&file, "block", (96, 72))).collect();
    let bad: Vec<Line> = (0..2).map(|_| line(&file, "block", (95, 72))).collect();
    good.iter().chain(&bad).for_each(Line::play);
    bad.iter().for_each(fails);
    for line in &good {
        line.play_to_the_end();
        line.branch.seen.assert_complete();
        assert_eq!(line.branch.seen.count(), 40);
        assert!(line.branch.seen.frames().iter().all(|frame| !frame.masks.is_empty()));
    }

    let camera = "videotestsrc is-live=true pattern=ball \
                  ! video/x-raw,format=RGB,width=96,height=72,framerate=30/1";
    let good: Vec<Line> = (0..3).map(|_| line(camera, "skip", (96, 72))).collect();
    let bad = line(camera, "skip", (95, 72));
    good.iter().for_each(Line::play);
    bad.play();
    fails(&bad);
    for line in &good {
        let seen = &line.branch.seen;
        seen.wait_for(seen.count() + 10);
        let begin = Instant::now();
        while !seen.frames().iter().any(|frame| !frame.masks.is_empty()) {
            assert!(begin.elapsed().as_secs() < 120);
            std::thread::sleep(Duration::from_millis(5));
        }
        seen.assert_complete();
        assert_eq!(error_text(&line.pipeline.bus().unwrap()), None);
    }
}
