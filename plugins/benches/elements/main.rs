//! What the elements cost beside the work that they are there for.
//!
//! ```sh
//! cargo bench -p gst-plugin-conceptseg --bench elements -- overhead
//! cargo bench -p gst-plugin-conceptseg --bench elements -- streams --backend onnxruntime
//! ```

mod overhead;
mod streams;

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use conceptseg::labels::LabelMap;
use conceptseg::scene::{Scene, SceneConfig};
use gst_check::Harness;

#[derive(Parser)]
struct Options {
    #[command(subcommand)]
    what: What,
    /// Folder of the model bundle.
    #[arg(long, global = true, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/starter"))]
    bundle: PathBuf,
    /// Backend, as the property of the elements.
    #[arg(long, global = true, default_value = "rten")]
    backend: String,
    /// Short side of the network's input in pixels.
    #[arg(long, global = true, default_value_t = 480)]
    short_side: u32,
    /// Threads of the network, 0 for all cores.
    #[arg(long, global = true, default_value_t = 0)]
    threads: u32,
    /// Cargo gives it to every benchmark.
    #[arg(long, hide = true, global = true)]
    bench: bool,
}

#[derive(Subcommand)]
enum What {
    /// Time of a frame in each element beyond the element's own computation.
    Overhead(overhead::Options),
    /// Frames per second, age of results and memory of several streams in one process.
    Streams(streams::Options),
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    gst::init()?;
    gstconceptseg::plugin_register_static()?;
    match &options.what {
        What::Overhead(own) => overhead::run(&options, own),
        What::Streams(own) => streams::run(&options, own),
    }
}

/// Size of the frames: 480p.
const SIZE: (u32, u32) = (854, 480);

impl Options {
    /// An element that loads the model.
    fn element(&self, factory: &str, policy: &str) -> anyhow::Result<gst::Element> {
        Ok(gst::ElementFactory::make(factory)
            .property("bundle", &self.bundle)
            .property_from_str("backend", &self.backend)
            .property_from_str("late-policy", policy)
            .property("short-side", self.short_side)
            .property("threads", self.threads)
            .build()?)
    }
}

fn caps(format: &str) -> gst::Caps {
    gst::Caps::builder("video/x-raw")
        .field("format", format)
        .field("width", SIZE.0 as i32)
        .field("height", SIZE.1 as i32)
        .field("framerate", gst::Fraction::new(30, 1))
        .build()
}

/// Frames of a made-up scene in this format, and the mask of the first one. Their time stamps lie
/// `interval` apart.
fn frames(
    format: &str,
    count: u32,
    interval: gst::ClockTime,
) -> anyhow::Result<(Vec<gst::Buffer>, LabelMap)> {
    let config = SceneConfig { width: SIZE.0, height: SIZE.1, frames: count, seed: 1 };
    let scene = Scene::new(config)?;
    let mut convert = Harness::new_parse(&format!("videoconvert ! {} ! identity", caps(format)));
    convert.set_src_caps(caps("RGB"));
    let mut frames = Vec::new();
    for index in 0..count {
        let mut frame = rgb_buffer(scene.frame(index).image.as_raw());
        frame.make_mut().set_pts(interval * u64::from(index));
        frames.push(convert.push_and_pull(frame)?);
    }
    Ok((frames, scene.frame(0).labels))
}

/// Rows of RGB pixels as the framework lays them out: each begins at a multiple of four bytes.
fn rgb_buffer(pixels: &[u8]) -> gst::Buffer {
    let row = SIZE.0 as usize * 3;
    let mut padded = Vec::new();
    for pixels in pixels.chunks(row) {
        padded.extend_from_slice(pixels);
        padded.resize(padded.len().next_multiple_of(4), 0);
    }
    gst::Buffer::from_mut_slice(padded)
}

/// The value in the middle.
fn median(values: &mut [f64]) -> f64 {
    quantile(values, 0.5)
}

/// The nearest-rank quantile; 0 of nothing.
fn quantile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let index = ((values.len() as f64 * share).ceil() as usize).saturating_sub(1);
    values.get(index).copied().unwrap_or(0.0)
}
