//! What all tests of the elements share.

// Each test program uses a part of this.
#![allow(dead_code)]

pub mod programs;

use std::path::{Path, PathBuf};
use std::sync::Once;

use conceptseg::bundle::{BundleWriter, Codebook};
use conceptseg::labels::LabelMap;
use gst::glib::{self, LogLevels};
use gst::prelude::*;
use gst_check::Harness;
use tempfile::TempDir;

/// Formats that the elements take.
pub const FORMATS: [&str; 11] =
    ["NV12", "I420", "YUY2", "UYVY", "RGB", "BGR", "RGBx", "BGRx", "RGBA", "BGRA", "GRAY8"];

/// Channels of the test network.
const DIM: usize = 32;

/// Starts the framework with the elements of this crate. What `GLib` and `GStreamer` warn of as
/// misuse ends the process, as with `G_DEBUG=fatal-warnings`.
pub fn init() {
    static INIT: Once = Once::new();
    INIT.call_once(|| {
        glib::log_set_always_fatal(LogLevels::LEVEL_CRITICAL | LogLevels::LEVEL_WARNING);
        gst::init().unwrap();
        gstconceptseg::plugin_register_static().unwrap();
    });
}

/// A folder with a bundle of the tiny test network and eight concepts, each with a
/// name and a colour.
pub struct Fixture {
    folder: TempDir,
}

impl Fixture {
    pub fn new() -> Self {
        init();
        let fixture = Self { folder: tempfile::tempdir().unwrap() };
        fixture.write_bundle("bundle", "c");
        fixture
    }

    /// Writes a bundle whose concepts have names that begin with `prefix`.
    pub fn write_bundle(&self, name: &str, prefix: &str) -> PathBuf {
        self.write_bundle_of(name, prefix, "tiny.onnx")
    }

    /// The same around another network of the test data.
    pub fn write_bundle_of(&self, name: &str, prefix: &str, network: &str) -> PathBuf {
        let onnx = Path::new(env!("CARGO_MANIFEST_DIR")).join("../runtime/testdata").join(network);
        let count = 8;
        let mut vectors = vec![0.0; count * DIM];
        for id in 0..count {
            vectors[id * DIM + id * 4] = 1.0;
        }
        let bundle = self.path(name);
        BundleWriter::new("tiny", 8, [0.5; 3], [0.25; 3])
            .write(&bundle, &onnx, &Codebook::new(count, DIM, vectors).unwrap())
            .unwrap();
        let names: Vec<_> = (0..count)
            .map(|id| {
                format!("[concept.{id}]\nname = \"{prefix}{id}\"\ncolor = \"#0102{id:02x}\"\n")
            })
            .collect();
        std::fs::write(bundle.join("concepts.toml"), names.concat()).unwrap();
        bundle
    }

    pub fn bundle(&self) -> PathBuf {
        self.path("bundle")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `conceptseg` on the test network, at a size that is quick, waiting for each result (a
    /// harness counts as live) and drawing nothing.
    pub fn element(&self) -> gst::Element {
        let element = self.make("conceptseg");
        element.set_property_from_str("draw", "0");
        element
    }

    /// `conceptseg` or `conceptembed` on the test network, at a size that is quick, waiting for
    /// each result.
    pub fn make(&self, name: &str) -> gst::Element {
        gst::ElementFactory::make(name)
            .property_from_str("bundle", self.bundle().to_str().unwrap())
            .property_from_str("backend", "rten")
            .property_from_str("late-policy", "block")
            .property("threads", 1u32)
            .property("short-side", 64u32)
            .build()
            .unwrap()
    }

    /// A mask with object 3 in the upper left quarter and object 9 in the lower right one.
    pub fn mask(&self, width: u32, height: u32) -> PathBuf {
        let mut mask = LabelMap::background(width, height);
        for y in 0..height {
            for x in 0..width {
                let i = (y * width + x) as usize;
                if x < width / 2 && y < height / 2 {
                    mask.data[i] = 3;
                } else if x >= width / 2 && y >= height / 2 {
                    mask.data[i] = 9;
                }
            }
        }
        let path = self.path(&format!("mask-{width}x{height}.png"));
        mask.write_png(&path).unwrap();
        path
    }
}

/// A harness on `element` that posts its messages to the returned bus.
pub fn harness(element: &gst::Element, caps: &str) -> (Harness, gst::Bus) {
    let bus = element.bus().unwrap_or_else(|| {
        let bus = gst::Bus::new();
        element.set_bus(Some(&bus));
        bus
    });
    let mut harness = Harness::with_element(element, Some("sink"), Some("src"));
    harness.play();
    harness.set_src_caps(caps.parse().unwrap());
    (harness, bus)
}

/// A frame for `caps` with a coarse pattern that moves with `seed`.
pub fn frame(caps: &str, seed: usize) -> gst::Buffer {
    let info = gst_video::VideoInfo::from_caps(&caps.parse::<gst::Caps>().unwrap()).unwrap();
    let bytes: Vec<u8> = (0..info.size()).map(|i| ((i / 97 + seed * 5) * 13 % 251) as u8).collect();
    let mut buffer = gst::Buffer::from_mut_slice(bytes);
    buffer.get_mut().unwrap().set_pts(gst::ClockTime::from_mseconds(40 * seed as u64));
    buffer
}

/// A mask as an application gives it: `GRAY8` pixels, in blocks of a quarter of the frame each.
pub fn mask_buffer(width: u32, height: u32, quarters: [u8; 4]) -> gst::Buffer {
    let pixels: Vec<u8> = (0..height)
        .flat_map(|y| (0..width).map(move |x| (x, y)))
        .map(|(x, y)| quarters[usize::from(y >= height / 2) * 2 + usize::from(x >= width / 2)])
        .collect();
    gst::Buffer::from_mut_slice(pixels)
}

/// Ids and areas of the instances on a buffer.
pub fn instances(buffer: &gst::BufferRef) -> Vec<(u8, u32)> {
    let analysis = gstconceptseg::meta::Analysis::from_buffer(buffer).unwrap();
    analysis.map_or_else(Vec::new, |a| a.instances().iter().map(|i| (i.id, i.area)).collect())
}

/// The text of the next error on `bus`.
pub fn error_text(bus: &gst::Bus) -> Option<String> {
    let message = bus.pop_filtered(&[gst::MessageType::Error])?;
    match message.view() {
        gst::MessageView::Error(error) => Some(error.error().message().to_owned()),
        _ => None,
    }
}
