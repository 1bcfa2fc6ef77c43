//! `conceptseg bundle quantize`: the same bundle with smaller numbers in its network.

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use conceptseg::backend::{BackendKind, BackendOptions};
use conceptseg::bundle::{Bundle, BundleWriter, NAMES_FILE};
use conceptseg::concepts::{ConceptLabeler, ConceptMap, SegmentationConfig};
use conceptseg::datasets::images::ImageSet;
use conceptseg::embed::{EmbeddingMap, FrameEmbedder, InputSize, Model};
use conceptseg::frame::{FrameView, Normalization, Preprocessor};
use conceptseg::onnx;
use conceptseg::onnx::calibrate::{Calibration, Calibrator, Method};
use conceptseg::onnx::half::{Half, to_half};
use conceptseg::onnx::quantize::quantize;
use serde_json::json;

use crate::backend::cpu_for_auto;
use crate::progress::progress_bar;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder of the bundle, whose network is float32.
    #[arg(long, value_name = "DIR")]
    bundle: PathBuf,
    /// Folder of images (JPEG, PNG) like those of the use in mind. Every second one gives the
    /// ranges of the integers; on the others, both networks are compared.
    #[arg(long, value_name = "DIR")]
    frames: PathBuf,
    /// Folder of the new bundle.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Numbers of the new network.
    #[arg(long, value_enum, default_value_t = Precision::Int8)]
    precision: Precision,
    /// How the largest number of a map is chosen; larger ones are cut off.
    #[arg(long, value_enum, default_value_t)]
    method: Method,
    /// Most images used, evenly spread.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(2..=4096))]
    limit: u32,
    /// Short side of the network's input in pixels; bundles of a fixed size ignore it.
    #[arg(long, default_value_t = 480, value_parser = clap::value_parser!(u32).range(32..=4096))]
    short_side: u32,
    /// What runs the networks.
    #[arg(long, value_enum, default_value_t)]
    backend: BackendKind,
}

/// Numbers that a network computes with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Precision {
    /// Half precision.
    Fp16,
    /// 8-bit integers in the convolutions.
    Int8,
}

impl Precision {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Fp16 => "fp16",
            Self::Int8 => "int8",
        }
    }
}

pub fn run(args: &Args, json: bool) -> Result<()> {
    ensure!(
        !args.out.join("bundle.toml").exists(),
        "{} holds a bundle already; choose another --out",
        args.out.display()
    );
    let options = BackendOptions::new(cpu_for_auto(args.backend), 0);
    let float = Model::open(&args.bundle, &options)?;
    let entry = &float.bundle().manifest.embedder;
    ensure!(
        (entry.input.as_str(), entry.output.as_str()) == ("image", "embedding"),
        "the network of {} calls its tensors {} and {}; only bundles with \"image\" and \
         \"embedding\" can be written",
        args.bundle.display(),
        entry.input,
        entry.output
    );
    let images = ImageSet::open_folder(&args.frames, Some(args.limit as usize))?;
    let path = float.bundle().embedder_path();
    let bytes = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    let network = onnx::Model::parse(&bytes)?;
    let (rewritten, calibration) = match args.precision {
        Precision::Fp16 => (to_half(&network, Half::F16)?.model, None),
        Precision::Int8 => {
            let calibration = calibrate(&network, &float, &images, args)?;
            (quantize(&network, &calibration)?, Some(calibration))
        }
    };
    write(args, float.bundle(), &rewritten, calibration.as_ref())?;
    let small = Model::open(&args.out, &options)?;
    let agreement = compare(&float, &small, &images, args)?;
    report(args, &float, &small, &agreement, json)
}

/// Shows every second image to the float network.
fn calibrate(
    network: &onnx::Model,
    model: &Arc<Model>,
    images: &ImageSet,
    args: &Args,
) -> Result<Calibration> {
    let options = BackendOptions::new(cpu_for_auto(args.backend), 0);
    let mut calibrator = Calibrator::new(network, &options)?;
    let entry = &model.bundle().manifest.input;
    let mut preprocessor = Preprocessor::new(Normalization { mean: entry.mean, std: entry.std });
    let mut input = Vec::new();
    let bar = progress_bar("calibrating", "images", images.len().div_ceil(2))?;
    for index in (0..images.len()).step_by(2) {
        let image = images.read_image(index)?;
        let (width, height) = image.dimensions();
        let (w, h) = InputSize::ShortSide(args.short_side).of(model, width, height);
        let frame = FrameView::rgb(width, height, image.as_raw())?;
        preprocessor.run(&frame, w, h, &mut input)?;
        calibrator.observe(&input, w as usize, h as usize)?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(calibrator.finish_by(args.method))
}

/// Writes the new bundle: network, the same concepts, and where both come from.
fn write(
    args: &Args,
    from: &Bundle,
    network: &onnx::Model,
    calibration: Option<&Calibration>,
) -> Result<()> {
    let manifest = &from.manifest;
    let precision = args.precision.as_str();
    let mut provenance = manifest.provenance.clone();
    let mut say = |key: &str, value: String| provenance.details.insert(key.to_owned(), value);
    say("precision", precision.to_owned());
    say("precision_from", format!("{} {}", manifest.name, manifest.embedder.sha256));
    say("precision_producer", format!("conceptseg {}", env!("CARGO_PKG_VERSION")));
    if let Some(calibration) = calibration {
        let frames = calibration.frames;
        say("precision_ranges", format!("{frames} images, {}", method_name(args.method)));
    }
    fs::create_dir_all(&args.out)
        .with_context(|| format!("cannot make the folder {}", args.out.display()))?;
    let work = tempfile::tempdir_in(&args.out)?;
    let path = work.path().join("embedder.onnx");
    fs::write(&path, network.to_bytes())?;
    BundleWriter::new(
        &format!("{}-{precision}", manifest.name),
        manifest.embedder.stride,
        manifest.input.mean,
        manifest.input.std,
    )
    .size(manifest.embedder.size)
    .provenance(provenance)
    .write(&args.out, &path, &from.codebook)?;
    let names = from.dir.join(NAMES_FILE);
    if names.exists() {
        fs::copy(&names, args.out.join(NAMES_FILE))
            .with_context(|| format!("copying {}", names.display()))?;
    }
    Ok(())
}

fn method_name(method: Method) -> String {
    use clap::ValueEnum as _;
    method.to_possible_value().map_or(String::new(), |value| value.get_name().to_owned())
}

/// How far the two networks agree on images that gave no ranges.
#[derive(Debug, Clone, Default, PartialEq)]
struct Agreement {
    images: usize,
    cosine_mean: f64,
    cosine_min: f64,
    /// Cells whose nearest concept is the same, 0 to 1.
    cells: f64,
    /// Pixels with the same concept after clustering, 0 to 1.
    pixels: f64,
    /// Median time of the networks.
    times: [Duration; 2],
}

fn compare(
    float: &Arc<Model>,
    small: &Arc<Model>,
    images: &ImageSet,
    args: &Args,
) -> Result<Agreement> {
    let mut embedders = [float, small].map(|model| FrameEmbedder::new(Arc::clone(model)));
    let mut labeler = ConceptLabeler::new();
    let mut found = Agreement { cosine_min: 1.0, ..Agreement::default() };
    let mut times: [Vec<Duration>; 2] = [Vec::new(), Vec::new()];
    // A single image has to serve for both.
    let first = usize::from(images.len() > 1);
    let bar = progress_bar("comparing", "images", images.len().div_ceil(2))?;
    for index in (first..images.len()).step_by(2) {
        let image = images.read_image(index)?;
        let (width, height) = image.dimensions();
        let frame = FrameView::rgb(width, height, image.as_raw())?;
        let mut maps = [ConceptMap::default(), ConceptMap::default()];
        for ((embedder, map), times) in embedders.iter_mut().zip(&mut maps).zip(&mut times) {
            embedder.prepare(&frame, InputSize::ShortSide(args.short_side))?;
            let start = Instant::now();
            let embedding = embedder.embed()?;
            times.push(start.elapsed());
            let config = SegmentationConfig::default();
            labeler.label(embedding, float.codebook(), &config, width, height, map)?;
        }
        let [a, b] = [embedders[0].map(), embedders[1].map()];
        let (mean, least) = cosine(a, b);
        found.images += 1;
        found.cosine_mean += mean;
        found.cosine_min = found.cosine_min.min(least);
        found.cells += same_cells(a, b, float);
        let same = maps[0].concepts.iter().zip(&maps[1].concepts).filter(|(a, b)| a == b).count();
        found.pixels += same as f64 / maps[0].concepts.len().max(1) as f64;
        bar.inc(1);
    }
    bar.finish_and_clear();
    let count = found.images.max(1) as f64;
    for sum in [&mut found.cosine_mean, &mut found.cells, &mut found.pixels] {
        *sum /= count;
    }
    found.times = times.map(|mut all| {
        all.sort_unstable();
        all.get(all.len() / 2).copied().unwrap_or_default()
    });
    Ok(found)
}

/// Mean and smallest cosine between the unit vectors of two maps.
fn cosine(a: &EmbeddingMap, b: &EmbeddingMap) -> (f64, f64) {
    let pairs = a.data.chunks_exact(a.dim.max(1)).zip(b.data.chunks_exact(b.dim.max(1)));
    let (mut sum, mut least, mut count) = (0.0, 1.0_f64, 0_usize);
    for (x, y) in pairs {
        let dot: f64 = x.iter().zip(y).map(|(x, y)| f64::from(x * y)).sum();
        sum += dot;
        least = least.min(dot);
        count += 1;
    }
    (sum / count.max(1) as f64, least)
}

/// Share of the cells whose nearest concept is the same.
fn same_cells(a: &EmbeddingMap, b: &EmbeddingMap, model: &Model) -> f64 {
    let codebook = model.codebook();
    let nearest = |cell: &[f32]| {
        let scores = codebook
            .vectors
            .chunks_exact(codebook.dim)
            .map(|row| row.iter().zip(cell).map(|(r, c)| r * c).sum::<f32>());
        scores.enumerate().max_by(|x, y| x.1.total_cmp(&y.1)).map(|(concept, _)| concept)
    };
    let cells = |map: &EmbeddingMap| -> Vec<Option<usize>> {
        map.data.chunks_exact(map.dim.max(1)).map(nearest).collect()
    };
    let (a, b) = (cells(a), cells(b));
    let same = a.iter().zip(&b).filter(|(a, b)| a == b).count();
    same as f64 / a.len().max(1) as f64
}

fn report(
    args: &Args,
    float: &Model,
    small: &Model,
    agreement: &Agreement,
    json: bool,
) -> Result<()> {
    let size = |model: &Model| fs::metadata(model.bundle().embedder_path()).map(|m| m.len());
    let bytes = [size(float)?, size(small)?];
    let [float_ms, small_ms] = agreement.times.map(|time| time.as_secs_f64() * 1e3);
    let mut out = std::io::stdout().lock();
    if json {
        let object = json!({
            "bundle": args.out, "precision": args.precision.as_str(),
            "method": method_name(args.method), "bytes": bytes,
            "backend": small.backend_description(), "images": agreement.images,
            "cosine_mean": agreement.cosine_mean, "cosine_min": agreement.cosine_min,
            "same_concept_cells": agreement.cells, "same_concept_pixels": agreement.pixels,
            "network_ms": [float_ms, small_ms],
        });
        writeln!(out, "{object}")?;
        return Ok(());
    }
    for (key, value) in [
        ("bundle", args.out.display().to_string()),
        (
            "network",
            format!("{:.2} MB, was {:.2} MB", bytes[1] as f64 / 1e6, bytes[0] as f64 / 1e6),
        ),
        (
            "compared",
            format!("on {} images with {}", agreement.images, small.backend_description()),
        ),
        (
            "cosine",
            format!(
                "{:.5} on average, at least {:.5}",
                agreement.cosine_mean, agreement.cosine_min
            ),
        ),
        (
            "concepts",
            format!(
                "the same for {:.1} % of the cells, {:.1} % of the pixels after clustering",
                100.0 * agreement.cells,
                100.0 * agreement.pixels
            ),
        ),
        ("time", format!("{small_ms:.1} ms per image, was {float_ms:.1} ms")),
    ] {
        writeln!(out, "{key:<12}{value}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn map(data: &[f32]) -> EmbeddingMap {
        EmbeddingMap { height: 1, width: data.len() / 2, dim: 2, stride: 8, data: data.to_vec() }
    }

    #[test]
    fn cosines_are_taken_cell_by_cell() {
        let (a, b) = (map(&[1.0, 0.0, 0.0, 1.0]), map(&[1.0, 0.0, 0.6, 0.8]));
        let (mean, least) = cosine(&a, &b);
        assert!((mean - 0.9).abs() < 1e-6 && (least - 0.8).abs() < 1e-6);
    }

    #[test]
    fn a_bundle_is_quantised_and_still_agrees() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let dir = tempfile::tempdir().unwrap();
        let frames = dir.path().join("frames");
        fs::create_dir(&frames).unwrap();
        let config = conceptseg::scene::SceneConfig { width: 192, height: 128, frames: 4, seed: 3 };
        let scene = conceptseg::scene::Scene::new(config).unwrap();
        for index in 0..4 {
            scene.frame(index).image.save(frames.join(format!("{index}.png"))).unwrap();
        }
        for (precision, least) in [(Precision::Fp16, 0.999), (Precision::Int8, 0.9)] {
            let args = Args {
                bundle: root.join("../models/starter"),
                frames: frames.clone(),
                out: dir.path().join(precision.as_str()),
                precision,
                method: Method::default(),
                limit: 8,
                short_side: 128,
                backend: BackendKind::Rten,
            };
            run(&args, true).unwrap();
            let options = BackendOptions::new(BackendKind::Rten, 0);
            let small = Model::open(&args.out, &options).unwrap();
            let details = &small.bundle().manifest.provenance.details;
            assert_eq!(details["precision"], precision.as_str());
            assert!(details["precision_from"].starts_with("starter "));
            let float = Model::open(&args.bundle, &options).unwrap();
            let images = ImageSet::open_folder(&frames, None).unwrap();
            let found = compare(&float, &small, &images, &args).unwrap();
            assert!(found.images == 2 && found.cosine_mean > least, "{found:?}");
            // The folder is not written over.
            assert!(run(&args, true).unwrap_err().to_string().contains("already"));
        }
    }
}
