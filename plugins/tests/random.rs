//! Frames that nobody should send, drawn at random: each element answers with a frame or an
//! error, and never panics.

mod common;

use common::{FORMATS, Fixture, error_text, frame, harness};
use gst::prelude::*;
use gst_video::{VideoFormat, VideoInfo, VideoMeta};

const CAPS: &str = "video/x-raw,format=RGB,width=96,height=72,framerate=25/1";

/// Cases per element.
const CASES: usize = 1000;

/// Formats that no element takes.
const STRANGE: [&str; 3] = ["GRAY16_LE", "RGBA64_LE", "ARGB"];

/// Knuth's MMIX generator; its high bits are good enough here.
struct Draw(u64);

impl Draw {
    fn below(&mut self, n: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }

    fn of<'a>(&mut self, choices: &[&'a str]) -> &'a str {
        choices[self.below(choices.len())]
    }

    fn caps(&mut self) -> String {
        let formats: Vec<_> = FORMATS.iter().chain(&STRANGE).copied().collect();
        let format = self.of(&formats);
        let (width, height) = (1 + self.below(130), 1 + self.below(130));
        format!("video/x-raw,format={format},width={width},height={height},framerate=25/1")
    }
}

/// Shorter than the caps promise.
fn shorten(draw: &mut Draw, buffer: &mut gst::BufferRef) {
    buffer.set_size(draw.below(buffer.size() + 1));
}

/// In pieces, as decoders and network sources give them.
fn split(draw: &mut Draw, buffer: &mut gst::BufferRef) {
    let bytes = buffer.map_readable().unwrap().to_vec();
    buffer.remove_all_memory();
    let mut rest = &bytes[..];
    for _ in 0..draw.below(5) {
        let (piece, left) = rest.split_at(draw.below(rest.len() + 1));
        buffer.append_memory(gst::Memory::from_mut_slice(piece.to_vec()));
        rest = left;
    }
    buffer.append_memory(gst::Memory::from_mut_slice(rest.to_vec()));
}

/// Rows that lie further apart, in a buffer that has room for them or has not.
fn spread(draw: &mut Draw, buffer: &mut gst::BufferRef, info: &VideoInfo) {
    let strides: Vec<i32> = info.stride().iter().map(|s| s + draw.below(9) as i32).collect();
    let offsets: Vec<usize> = info.offset().iter().map(|o| o + draw.below(40)).collect();
    if draw.below(2) == 0 {
        buffer.append_memory(gst::Memory::from_mut_slice(vec![7u8; 2000]));
    }
    describe(buffer, info.format(), info.width(), info.height(), &offsets, &strides);
}

/// A `GstVideoMeta` that speaks of another frame than the caps.
fn lie(draw: &mut Draw, buffer: &mut gst::BufferRef) {
    let other = VideoInfo::from_caps(&draw.caps().parse::<gst::Caps>().unwrap()).unwrap();
    let strides: Vec<i32> =
        other.stride().iter().map(|s| [*s, -*s, 0, i32::MAX][draw.below(4)]).collect();
    let offsets: Vec<usize> =
        other.offset().iter().map(|o| [*o, 0, usize::MAX / 2][draw.below(3)]).collect();
    // The meta may only be added to a buffer of its size.
    let size = buffer.size();
    buffer.append_memory(gst::Memory::from_mut_slice(vec![7u8; other.size()]));
    describe(buffer, other.format(), other.width(), other.height(), &offsets, &strides);
    if draw.below(2) == 0 {
        buffer.set_size(size);
    }
}

fn describe(
    buffer: &mut gst::BufferRef,
    format: VideoFormat,
    width: u32,
    height: u32,
    offsets: &[usize],
    strides: &[i32],
) {
    // What this crate refuses is no case; others are taken.
    let _ = VideoMeta::add_full(
        buffer,
        gst_video::VideoFrameFlags::empty(),
        format,
        width,
        height,
        offsets,
        strides,
    );
}

/// Sends random frames with the metadata of `like`.
fn throw(element: &gst::Element, like: &gst::BufferRef, seed: u64) {
    let name = element.factory().unwrap().name();
    let mut draw = Draw(seed);
    let (mut harness, bus) = harness(element, CAPS);
    let (mut passed, mut refused) = (0, 0);
    for i in 0..CASES {
        let caps = draw.caps();
        harness.set_src_caps(caps.parse().unwrap());
        let info = VideoInfo::from_caps(&caps.parse::<gst::Caps>().unwrap()).unwrap();
        let mut buffer = frame(&caps, i);
        let changed = buffer.make_mut();
        if draw.below(4) > 0 {
            like.copy_into(changed, gst::BufferCopyFlags::META, ..).unwrap();
        }
        match draw.below(6) {
            0 => shorten(&mut draw, changed),
            1 => split(&mut draw, changed),
            2 => spread(&mut draw, changed, &info),
            3 => lie(&mut draw, changed),
            _ => {}
        }
        match harness.push(buffer) {
            Ok(_) => passed += 1,
            Err(_) => refused += 1,
        }
        while let Some(text) = error_text(&bus) {
            assert!(!text.contains("anicked"), "{name}, {caps}: {text}");
        }
        while harness.try_pull().is_some() {}
        while harness.try_pull_event().is_some() {}
    }
    println!("{name}: {passed} passed, {refused} refused");
    assert!(passed > CASES / 5, "{name}: {passed} passed, {refused} refused");
    element.set_state(gst::State::Null).unwrap();
}

#[test]
fn a_thousand_random_frames_make_no_element_panic() {
    let fixture = Fixture::new();
    let mask = fixture.mask(96, 72);
    // The model that embeddings come from must be there when they are labelled.
    let holder = fixture.make("conceptembed");
    holder.set_state(gst::State::Paused).unwrap();
    // A frame with all metadata that there is: embeddings and results.
    let full = |name: &str| {
        let element = fixture.make(name);
        if name == "conceptseg" {
            element.set_property_from_str("first-frame-mask", mask.to_str().unwrap());
        }
        let (mut harness, _bus) = harness(&element, CAPS);
        harness.push_and_pull(frame(CAPS, 0)).unwrap()
    };
    let (embedded, analysed) = (full("conceptembed"), full("conceptseg"));

    let bin = fixture.element();
    bin.set_property_from_str("draw", "concepts+masks+outlines");
    bin.set_property_from_str("first-frame-mask", mask.to_str().unwrap());
    throw(&bin, &analysed, 1);
    throw(&fixture.make("conceptembed"), &analysed, 2);
    for (name, like, seed) in [
        ("conceptlabel", &embedded, 3),
        ("maskpropagate", &embedded, 4),
        ("conceptoverlay", &analysed, 5),
        ("conceptmetasink", &analysed, 6),
    ] {
        let element = gst::ElementFactory::make(name).build().unwrap();
        if element.find_property("late-policy").is_some() {
            element.set_property_from_str("late-policy", "block");
        }
        if name == "maskpropagate" {
            element.set_property_from_str("first-frame-mask", mask.to_str().unwrap());
        }
        if name == "conceptmetasink" {
            let path = fixture.path("results.jsonl");
            element.set_property_from_str("location", path.to_str().unwrap());
        }
        throw(&element, like, seed);
    }
    holder.set_state(gst::State::Null).unwrap();
}
