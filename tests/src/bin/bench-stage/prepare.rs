//! The inputs that all contestants read, made from a generated scene and a bundle.
//!
//! ```text
//! frames/00000.jpg …        the scene
//! frame.png, mask.png       its first frame and the masks of that
//! input-HEIGHTxWIDTH.npy    that frame as the network's input, [3, height, width]
//! embeddings.npy            of every frame, [frames, rows, columns, dim]
//! codebook.npy              of the bundle, [concepts, dim]
//! annotations/scene/…       the masks of every frame
//! results/scene/…           masks that are off by what moves in LATE frames
//! ```

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use conceptseg::backend::{BackendKind, BackendOptions};
use conceptseg::embed::{FrameEmbedder, InputSize, Model};
use conceptseg::files::write_atomic;
use conceptseg::frame::{FrameView, Normalization, Preprocessor};
use conceptseg::scene::{Scene, SceneConfig, SceneFrame};
use conceptseg_tests::bench::npy::Array;
use image::RgbImage;
use image::codecs::jpeg::JpegEncoder;

/// Size of the frames.
pub const WIDTH: u32 = 854;
/// Size of the frames.
pub const HEIGHT: u32 = 480;
/// Input pixels for each cell of the embeddings.
pub const STRIDE: usize = 8;
/// Frames of the scene.
const FRAMES: u32 = 16;
/// Frames that the results lag behind.
const LATE: u32 = 3;
/// Of the JPEG files, as cameras have it.
const QUALITY: u8 = 90;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder of the bundle.
    #[arg(long, value_name = "DIR")]
    bundle: PathBuf,
    /// Folder for the inputs.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Sizes of network inputs, `HEIGHTxWIDTH`.
    #[arg(long, value_delimiter = ',', value_parser = size)]
    sizes: Vec<(u32, u32)>,
}

/// A size written as `HEIGHTxWIDTH`.
fn size(text: &str) -> Result<(u32, u32), String> {
    let sides = text.split_once('x').and_then(|(h, w)| Some((h.parse().ok()?, w.parse().ok()?)));
    sides.ok_or_else(|| format!("{text} is no size; write HEIGHTxWIDTH"))
}

/// Where a frame of the scene lies.
pub fn frame_file(inputs: &Path, index: usize) -> PathBuf {
    inputs.join(format!("frames/{index:05}.jpg"))
}

/// Writes a frame of the scene.
fn write_frame(inputs: &Path, index: usize, image: &RgbImage) -> Result<()> {
    write_atomic(&frame_file(inputs, index), |file| {
        JpegEncoder::new_with_quality(file, QUALITY).encode_image(image).map_err(to_io)
    })
    .context("cannot write a frame")
}

#[derive(Debug, clap::Args)]
pub struct PicturesArgs {
    /// Folder for `frames/00000.jpg` and so on.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    #[arg(long)]
    count: u32,
}

/// Writes pictures that have nothing in common, for what needs no network.
pub fn pictures(args: &PicturesArgs) -> Result<()> {
    let folder = args.out.join("frames");
    fs::create_dir_all(&folder)
        .with_context(|| format!("cannot make the folder {}", folder.display()))?;
    (0..args.count).try_for_each(|seed| {
        let scene = Scene::new(SceneConfig { width: WIDTH, height: HEIGHT, frames: 1, seed })?;
        write_frame(&args.out, seed as usize, &scene.frame(0).image)
    })
}

pub fn run(args: &Args) -> Result<()> {
    let out = &args.out;
    let [annotations, results] =
        ["annotations", "results"].map(|kind| out.join(kind).join("scene"));
    for folder in [&out.join("frames"), &annotations, &results] {
        fs::create_dir_all(folder)
            .with_context(|| format!("cannot make the folder {}", folder.display()))?;
    }
    // The one backend that is there everywhere, so that the embeddings are the same everywhere.
    let model = Model::open(&args.bundle, &BackendOptions::new(BackendKind::Rten, 0))?;
    let entry = &model.bundle().manifest;
    ensure!(entry.embedder.stride == STRIDE, "the bundle's stride must be {STRIDE}");
    let scene = Scene::new(SceneConfig { width: WIDTH, height: HEIGHT, frames: FRAMES, seed: 1 })?;

    let first = scene.frame(0);
    first.image.save(out.join("frame.png")).context("cannot write the first frame")?;
    first.labels.write_png(&out.join("mask.png"))?;
    let view = FrameView::rgb(WIDTH, HEIGHT, first.image.as_raw())?;
    let normalization = Normalization { mean: entry.input.mean, std: entry.input.std };
    let mut preprocessor = Preprocessor::new(normalization);
    let mut input = Vec::new();
    for &(h, w) in &args.sizes {
        preprocessor.run(&view, w, h, &mut input)?;
        let file = out.join(format!("input-{h}x{w}.npy"));
        Array::new(&[3, h as usize, w as usize], &input)?.write(&file)?;
    }

    let mut embedder = FrameEmbedder::new(model.clone());
    let mut embeddings = Vec::new();
    for index in 0..FRAMES {
        let SceneFrame { image, labels } = scene.frame(index);
        let name = format!("{index:05}.png");
        labels.write_png(&annotations.join(&name))?;
        scene.frame(index + LATE).labels.write_png(&results.join(&name))?;
        write_frame(out, index as usize, &image)?;
        let view = FrameView::rgb(WIDTH, HEIGHT, image.as_raw())?;
        embedder.prepare(&view, InputSize::ShortSide(HEIGHT))?;
        embeddings.extend_from_slice(&embedder.embed()?.data);
    }
    let map = embedder.map();
    Array::new(&[FRAMES as usize, map.height, map.width, map.dim], &embeddings)?
        .write(&out.join("embeddings.npy"))?;
    let codebook = model.codebook();
    Array::new(&[codebook.count, codebook.dim], &codebook.vectors)?.write(&out.join("codebook.npy"))
}

fn to_io(error: image::ImageError) -> std::io::Error {
    std::io::Error::other(error)
}
