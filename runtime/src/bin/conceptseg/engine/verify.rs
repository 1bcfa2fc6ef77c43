//! `conceptseg engine verify`.

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::Result;
use comfy_table::Table;
use conceptseg::backend::tensorrt::Precision;
use conceptseg::backend::{BackendKind, BackendOptions};
use conceptseg::datasets::images::ImageSet;
use conceptseg::embed::{InputSize, Model};
use conceptseg::frame::FrameView;
use conceptseg::labels::LabelMap;
use conceptseg::stream::StreamConfig;
use serde_json::json;

use super::compare::{Agreement, Comparison};
use crate::backend::{GpuArgs, on_cpu};
use crate::davis::STYLE;
use crate::progress::progress_bar;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder of the model bundle.
    #[arg(long, value_name = "DIR")]
    bundle: PathBuf,
    /// Folder of frames (JPEG, PNG) in the order of their names, such as those of one video.
    #[arg(long, value_name = "DIR")]
    frames: PathBuf,
    /// Frames to take at most, from the first on.
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    /// Instance mask of the first frame; without it the largest segments there are carried.
    #[arg(long, value_name = "PNG")]
    mask: Option<PathBuf>,
    /// Short side of the network's input in pixels; bundles of a fixed size ignore it.
    #[arg(long, value_name = "PIXELS", default_value_t = StreamConfig::default().short_side,
          value_parser = clap::value_parser!(u32).range(32..=4096))]
    short_side: u32,
    #[command(flatten)]
    gpu: GpuArgs,
    /// Lowest mean cosine of embeddings that passes (fp32 0.9999, fp16 0.999, bf16 0.995, int8 0.98).
    #[arg(long, value_name = "COSINE", value_parser = share)]
    min_cosine: Option<f64>,
    /// Lowest share of pixels with the same concept that passes, in per cent.
    #[arg(long, value_name = "PERCENT", default_value_t = 95.0, value_parser = percent)]
    min_concepts: f64,
    /// Lowest share of pixels with the same instance that passes, in per cent.
    #[arg(long, value_name = "PERCENT", default_value_t = 95.0, value_parser = percent)]
    min_masks: f64,
}

fn share(text: &str) -> Result<f64, String> {
    number(text, 1.0)
}

fn percent(text: &str) -> Result<f64, String> {
    number(text, 100.0)
}

fn number(text: &str, most: f64) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|value| (0.0..=most).contains(value))
        .ok_or_else(|| format!("{text:?} is no number from 0 to {most}"))
}

/// Mean cosine that rounding alone stays above.
fn usual_cosine(precision: Precision) -> f64 {
    match precision {
        Precision::Fp32 => 0.9999,
        Precision::Fp16 => 0.999,
        Precision::Bf16 => 0.995,
        Precision::Int8 => 0.98,
    }
}

pub fn run(args: &Args, json: bool) -> Result<()> {
    let images = ImageSet::open_folder(&args.frames, None)?;
    let count = images.len().min(args.limit as usize);
    let mask = args.mask.as_deref().map(LabelMap::read_png).transpose()?;
    let mask = mask.map(LabelMap::with_white_as_instance);
    let options = BackendOptions {
        gpu: args.gpu.options(false),
        ..BackendOptions::new(BackendKind::Tensorrt, 0)
    };
    let plan = Model::open(&args.bundle, &options)?;
    let reference = Model::open(&args.bundle, &BackendOptions::new(on_cpu(), 0))?;
    let names = [reference.backend_description(), plan.backend_description()];
    let mut comparison = Comparison::new(reference, plan, InputSize::ShortSide(args.short_side));
    let bar = progress_bar("", "frames", count)?;
    for index in 0..count {
        let image = images.read_image(index)?;
        let (width, height) = image.dimensions();
        comparison.add(&FrameView::rgb(width, height, image.as_raw())?, mask.as_ref())?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    let agreement = comparison.finish();
    let least =
        args.min_cosine.unwrap_or_else(|| usual_cosine(args.gpu.precision.unwrap_or_default()));
    let failed = args.failed(&agreement, least);
    show(&agreement, &names, least, args, failed.is_none(), json)?;
    match failed {
        None => Ok(()),
        Some(reason) => anyhow::bail!("the plan does not agree with the CPU: {reason}"),
    }
}

impl Args {
    /// The first figure that is too low.
    fn failed(&self, agreement: &Agreement, least: f64) -> Option<String> {
        let cosine = agreement.cosine.mean;
        // Comparisons with what is no number are false: that fails too.
        let passes = |value: f64, least: f64| value >= least;
        if !passes(cosine, least) {
            return Some(format!("the mean cosine is {cosine:.7}, and {least} is asked for"));
        }
        let shares = [
            ("concepts", agreement.concepts, self.min_concepts),
            ("masks", agreement.masks, self.min_masks),
        ];
        shares.into_iter().find_map(|(what, share, least)| {
            let share = share.filter(|&share| !passes(share, least))?;
            Some(format!(
                "{what} are the same at {share:.2} % of the pixels, and {least} % are asked for"
            ))
        })
    }
}

fn show(
    agreement: &Agreement,
    names: &[String; 2],
    least: f64,
    args: &Args,
    passed: bool,
    json: bool,
) -> Result<()> {
    let mut out = std::io::stdout().lock();
    if json {
        let object = json!({
            "passed": passed,
            "reference": names[0],
            "plan": names[1],
            "agreement": agreement,
            "least": { "cosine": least, "concepts": args.min_concepts, "masks": args.min_masks },
        });
        writeln!(out, "{object}")?;
        return Ok(());
    }
    let mut table = Table::new();
    table.load_style(STYLE);
    table.set_header(["figure", "value", "at least"]);
    let cosine = &agreement.cosine;
    for (name, value) in [
        ("cosine, lowest", cosine.min),
        ("cosine, 1 % quantile", cosine.q01),
        ("cosine, 5 % quantile", cosine.q05),
        ("cosine, median", cosine.median),
    ] {
        table.add_row([name.to_owned(), format!("{value:.5}"), String::new()]);
    }
    table.add_row(["cosine, mean".to_owned(), format!("{:.5}", cosine.mean), least.to_string()]);
    for (name, share, least) in [
        ("same concept, % of pixels", agreement.concepts, args.min_concepts),
        ("same instance, % of pixels", agreement.masks, args.min_masks),
    ] {
        let share = share.map_or("one frame only".to_owned(), |share| format!("{share:.2}"));
        table.add_row([name.to_owned(), share, least.to_string()]);
    }
    writeln!(out, "{}", table.trim_fmt())?;
    writeln!(out, "\n{} frames; {} against {}", agreement.frames, names[1], names[0])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::compare::Cosines;
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn args(more: &[&str]) -> Args {
        let line = ["verify", "--bundle", "b", "--frames", "f"];
        Line::parse_from(line.iter().chain(more)).args
    }

    fn agreement(mean: f64, concepts: f64, masks: Option<f64>) -> Agreement {
        let cosine = Cosines { min: mean, q01: mean, q05: mean, median: mean, mean };
        Agreement { frames: 2, cosine, concepts: Some(concepts), masks }
    }

    #[test]
    fn the_first_figure_that_is_too_low_is_named() {
        let args = args(&["--min-masks", "90"]);
        assert_eq!(args.failed(&agreement(0.9995, 99.0, Some(90.0)), 0.999), None);
        assert_eq!(args.failed(&agreement(0.9995, 99.0, None), 0.999), None);
        let reason = args.failed(&agreement(0.9, 1.0, None), 0.999).unwrap();
        assert!(reason.starts_with("the mean cosine is 0.9000000"), "{reason}");
        let reason = args.failed(&agreement(1.0, 94.0, None), 0.999).unwrap();
        assert!(reason.starts_with("concepts are the same at 94.00 %"), "{reason}");
        let reason = args.failed(&agreement(1.0, 99.0, Some(89.0)), 0.999).unwrap();
        assert!(reason.contains("masks") && reason.contains("90 %"), "{reason}");
        assert!(args.failed(&agreement(f64::NAN, 99.0, None), 0.9).is_some());
    }

    #[test]
    fn thresholds_have_their_range() {
        assert_eq!(share("0.9"), Ok(0.9));
        for wrong in ["1.1", "-0.1", "nan", "much"] {
            assert!(share(wrong).is_err(), "{wrong}");
        }
        assert_eq!(percent("99.5"), Ok(99.5));
    }
}
