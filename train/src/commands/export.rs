//! `export`: a trained network as an ONNX file, in three precisions.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;
use conceptseg::backend::BackendKind;
use conceptseg::bundle::SizeRule;
use conceptseg_train::config::TrainConfig;
use conceptseg_train::data::images::find_images;
use conceptseg_train::export::check::{Agreement, ImageReader, agreement};
use conceptseg_train::export::onnx::{ExportSize, Numbers, export_as};
use conceptseg_train::export::quantize::{Calibration, Calibrator};
use conceptseg_train::network::Network;
use conceptseg_train::network::pretrained::{LoadReport, load_network, load_teacher};
use serde::Serialize;
use tch::Device;
use tch::nn::VarStore;

use crate::progress_bar;

/// Short side of the images for networks that take every size: the runtime's own.
const SHORT_SIDE: u32 = 480;
/// Most images from which the ranges of 8-bit numbers are taken.
const CALIBRATION_IMAGES: usize = 32;
/// Most images on which the file is compared with the network.
const CHECK_IMAGES: usize = 8;

/// Options of `export`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Checkpoint of a training run, or any safetensors file with the network's variables.
    #[arg(long)]
    checkpoint: PathBuf,
    /// Recipe that the network was trained with.
    #[arg(long)]
    config: PathBuf,
    /// Numbers that the file computes with.
    #[arg(long, value_enum, default_value_t = Precision::Fp32)]
    precision: Precision,
    /// Image sizes that it takes: `dynamic`, or `HEIGHTxWIDTH` in pixels; the recipe's
    /// `export_size` where absent.
    #[arg(long)]
    size: Option<Size>,
    /// Images, or folders of images, on which the file is compared with the network and from
    /// which int8 takes the ranges of its numbers: pictures like those of the use in mind.
    #[arg(long, required = true, num_args = 1..)]
    images: Vec<PathBuf>,
    /// ONNX file to write.
    #[arg(long)]
    out: PathBuf,
    /// JSON file to write with what was loaded and how far the file agrees with the network.
    #[arg(long)]
    report: Option<PathBuf>,
}

/// Numbers of the exported network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Single precision.
    Fp32,
    /// Half precision.
    Fp16,
    /// 8-bit integers in the convolutions.
    Int8,
}

/// What is asked of the agreement between the file and the network.
struct Floors {
    largest_difference: f64,
    cosine_mean: f64,
    cosine_min: f64,
}

impl Precision {
    /// Far above the differences that rounding makes, far below those of a mistake.
    fn floors(self) -> Floors {
        match self {
            Self::Fp32 => Floors { largest_difference: 1e-4, cosine_mean: 0.0, cosine_min: 0.0 },
            Self::Fp16 => {
                Floors { largest_difference: f64::INFINITY, cosine_mean: 0.999, cosine_min: 0.98 }
            }
            Self::Int8 => {
                Floors { largest_difference: f64::INFINITY, cosine_mean: 0.97, cosine_min: 0.8 }
            }
        }
    }

    /// What can run such a file.
    fn backend(self) -> BackendKind {
        match self {
            Self::Fp32 => BackendKind::Rten,
            Self::Fp16 => BackendKind::Onnxruntime,
            Self::Int8 => BackendKind::Auto,
        }
    }
}

/// [`ExportSize`] as an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(ExportSize);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "dynamic" {
            return Ok(Self(ExportSize::Dynamic));
        }
        let sides = text.split_once('x').map(|(height, width)| (height.parse(), width.parse()));
        match sides {
            Some((Ok(height), Ok(width))) => Ok(Self(ExportSize::Fixed { height, width })),
            _ => Err("give \"dynamic\" or HEIGHTxWIDTH, such as 480x832".to_owned()),
        }
    }
}

/// Content of the file that `--report` asks for.
#[derive(Serialize)]
struct Report<'a> {
    precision: Precision,
    bytes: u64,
    weights: &'a LoadReport,
    agreement: &'a Agreement,
}

/// Exports, compares, and only then puts the file in its place.
pub fn run(args: &Args) -> Result<()> {
    let config = TrainConfig::read(&args.config)?;
    let size = args.size.map_or(
        match config.export_size {
            SizeRule::Dynamic => ExportSize::Dynamic,
            SizeRule::Fixed([height, width]) => ExportSize::Fixed { height, width },
        },
        |size| size.0,
    );
    let store = VarStore::new(Device::Cpu);
    let network = Network::new(&store, &config.network, 0)?;
    // What the run itself would leave.
    let load = if config.teacher.export { load_teacher } else { load_network };
    let loaded = load(&network, &args.checkpoint)?;
    tracing::info!("{}: {loaded}", args.checkpoint.display());
    let (calibration_images, check_images) = split(&find_images(&args.images, &[])?);
    let mut reader = ImageReader::new(&network, size, SHORT_SIDE);
    let calibration = match args.precision {
        Precision::Int8 => Some(calibrate(&network, &mut reader, &calibration_images)?),
        Precision::Fp32 | Precision::Fp16 => None,
    };
    let numbers = match (args.precision, &calibration) {
        (_, Some(calibration)) => Numbers::Int8(calibration),
        (Precision::Fp16, _) => Numbers::Fp16,
        _ => Numbers::Fp32,
    };

    let folder = match args.out.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    let work = tempfile::tempdir_in(folder)
        .with_context(|| format!("cannot write to {}; choose another --out", folder.display()))?;
    let onnx = work.path().join("embedder.onnx");
    export_as(&network, &onnx, size, numbers)?;
    let backend = args.precision.backend();
    let found = agreement(&network, &onnx, &mut reader, &check_images, CHECK_IMAGES, backend)
        .context("the exported network cannot be compared with the trained one")?;
    accept(&found, &args.precision.floors())?;
    let bytes = fs::metadata(&onnx)?.len();
    fs::rename(&onnx, &args.out).with_context(|| format!("cannot write {}", args.out.display()))?;
    if let Some(path) = &args.report {
        let report =
            Report { precision: args.precision, bytes, weights: &loaded, agreement: &found };
        let text = serde_json::to_string_pretty(&report)?;
        conceptseg::files::write_atomic(path, |w| writeln!(w, "{text}"))
            .with_context(|| format!("cannot write the report {}", path.display()))?;
    }
    println!(
        "{}: {:.1} MB; on {} images with {}: largest difference {:.1e}, cosine {:.5} on average, at least {:.5}",
        args.out.display(),
        bytes as f64 / 1e6,
        found.images,
        found.backend,
        found.largest_difference,
        found.cosine_mean,
        found.cosine_min
    );
    Ok(())
}

/// Images to calibrate on, and others to compare on. A single one has to serve for both.
fn split(images: &[PathBuf]) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let every_second = |first| images.iter().skip(first).step_by(2).cloned().collect();
    (every_second(0), every_second(usize::from(images.len() > 1)))
}

fn calibrate(
    network: &Network,
    reader: &mut ImageReader,
    images: &[PathBuf],
) -> Result<Calibration> {
    let step = images.len().div_ceil(CALIBRATION_IMAGES).max(1);
    let chosen: Vec<&PathBuf> = images.iter().step_by(step).collect();
    let bar = progress_bar(2 * chosen.len() as u64, "images for the ranges of the numbers");
    let mut calibrator = Calibrator::new(network);
    let mut used = 0;
    for counting in [false, true] {
        for path in &chosen {
            bar.inc(1);
            let Some(image) = reader.read(path)? else { continue };
            used += 1;
            if counting {
                calibrator.add_counts(&image)?;
            } else {
                calibrator.add_range(&image);
            }
        }
    }
    bar.finish_and_clear();
    ensure!(used > 0, "none of the images could be read to calibrate on");
    Ok(calibrator.finish())
}

fn accept(found: &Agreement, floors: &Floors) -> Result<()> {
    ensure!(
        found.largest_difference <= floors.largest_difference
            && found.cosine_mean >= floors.cosine_mean
            && found.cosine_min >= floors.cosine_min,
        "the exported network is too far from the trained one on {} images: largest difference \
         {:.1e}, cosine {:.4} on average, at least {:.4}; nothing was written",
        found.images,
        found.largest_difference,
        found.cosine_mean,
        found.cosine_min
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_named_or_measured() {
        assert_eq!("dynamic".parse(), Ok(Size(ExportSize::Dynamic)));
        let fixed = Size(ExportSize::Fixed { height: 480, width: 832 });
        assert_eq!("480x832".parse(), Ok(fixed));
        for text in ["480", "480x", "axb", "-8x8", ""] {
            assert!(text.parse::<Size>().unwrap_err().contains("480x832"), "{text}");
        }
    }

    #[test]
    fn images_that_were_calibrated_on_are_not_compared_on() {
        let paths = |names: &[&str]| names.iter().map(PathBuf::from).collect::<Vec<_>>();
        assert_eq!(split(&paths(&["a", "b", "c"])), (paths(&["a", "c"]), paths(&["b"])));
        assert_eq!(split(&paths(&["a"])), (paths(&["a"]), paths(&["a"])));
    }
}
