//! `conceptseg engine build`.

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use conceptseg::backend::tensorrt::{
    BuildOptions, Gpus, InputShape, Installation, MAX_BATCH, MAX_SIDE, Places, PlanKey, PlanRecord,
    Precision,
};
use conceptseg::bundle::Bundle;
use conceptseg::embed::InputSize;
use conceptseg::stream::StreamConfig;
use serde_json::json;

use super::calibrate;
use super::{file_name, key_json, megabytes};
use crate::backend::GpuArgs;
use crate::progress::spinner;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder of the model bundle.
    #[arg(long, value_name = "DIR")]
    bundle: PathBuf,
    /// Size of the frames, height before width; bundles of a fixed size ignore it.
    #[arg(long, value_name = "HEIGHTxWIDTH", default_value = "480x854", value_parser = frame_size)]
    size: (u32, u32),
    /// Short side of the network's input in pixels, as the stream has it.
    #[arg(long, value_name = "PIXELS", default_value_t = StreamConfig::default().short_side,
          value_parser = clap::value_parser!(u32).range(32..=4096))]
    short_side: u32,
    /// Images at once: the `batch-size` of the elements.
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_BATCH)))]
    batch: u32,
    #[command(flatten)]
    gpu: GpuArgs,
    /// Folder of frames (JPEG, PNG) to measure the ranges of 8-bit integers on, for int8. They serve
    /// later builds too.
    #[arg(long, value_name = "DIR")]
    frames: Option<PathBuf>,
    /// Megabytes of GPU memory that a layer may use for intermediate results; all there is
    /// without this option.
    #[arg(long, value_name = "MB", value_parser = clap::value_parser!(u32).range(1..))]
    workspace_mb: Option<u32>,
    /// Effort of the search for fast kernels; 3 without this option.
    #[arg(long, value_name = "0..5", value_parser = clap::value_parser!(u8).range(0..=5))]
    optimization: Option<u8>,
    /// Let later versions of TensorRT run the plan too. It brings host code of its own.
    #[arg(long)]
    version_compatible: bool,
    /// GPUs that the plan is to run on.
    #[arg(long, value_enum, default_value_t)]
    hardware: Gpus,
    /// Build even where there is a good plan.
    #[arg(long)]
    force: bool,
}

/// Reads a size such as 480x854, height first.
pub fn frame_size(text: &str) -> Result<(u32, u32), String> {
    let side = |text: &str| text.parse().ok().filter(|side| (1..=MAX_SIDE).contains(side));
    text.split_once('x')
        .and_then(|(height, width)| Some((side(height)?, side(width)?)))
        .ok_or_else(|| format!("\"{text}\" is no size; give HEIGHTxWIDTH such as 480x854"))
}

pub fn run(args: &Args, json: bool) -> Result<()> {
    let bundle = Bundle::open(&args.bundle)?;
    let (height, width) = args.size;
    let entry = &bundle.manifest.embedder;
    let (input_width, input_height) =
        InputSize::ShortSide(args.short_side).of_entry(entry, width, height);
    let input = InputShape { batch: args.batch, height: input_height, width: input_width };
    ensure!(
        args.frames.is_none() || args.gpu.precision == Precision::Int8,
        "--frames is for --precision int8 only; other precisions need no frames"
    );
    if let Some(frames) = &args.frames {
        // Minutes of measuring are for nothing where no plan can be built.
        Installation::find(&Places::of_process(), args.gpu.device)?;
        calibrate::run(&bundle, frames, InputSize::ShortSide(args.short_side))?;
    }
    let gpu = super::open(&bundle, args.gpu)?;
    let key = gpu.key(input)?;
    if !args.force
        && args.frames.is_none()
        && let Some((path, _, record)) = gpu.store().find(&key)?.plan
    {
        return report(args, &path, &record, false, json);
    }
    if !json {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{}", announcement(args, &key))?;
    }
    let options = BuildOptions {
        workspace_mb: args.workspace_mb,
        optimization_level: args.optimization,
        gpus: args.hardware,
        version_compatible: args.version_compatible,
    };
    let bar = spinner()?;
    let built = gpu.build(input, options, &mut |phase| bar.set_message(phase.as_str()));
    bar.finish_and_clear();
    let built = built?;
    report(args, &built.saved?, &built.record, true, json)
}

fn announcement(args: &Args, key: &PlanKey) -> String {
    let (height, width) = args.size;
    let batch = if key.input.batch == 1 { "" } else { " each" };
    format!(
        "frames of {height}x{width} become inputs of {}x{} (height x width); building the {} plan on {}{batch}",
        key.input.height, key.input.width, key.precision, key.gpu
    )
}

fn report(
    args: &Args,
    path: &std::path::Path,
    record: &PlanRecord,
    built: bool,
    json: bool,
) -> Result<()> {
    let mut out = std::io::stdout().lock();
    if json {
        let object = json!({
            "plan": path,
            "built": built,
            "key": key_json(&record.key),
            "frame": { "height": args.size.0, "width": args.size.1 },
            "bytes": record.plan.size,
            "sha256": record.plan.sha256,
            "seconds": record.seconds,
            "created": record.created,
            "calibration": record.calibration,
            "options": record.options,
        });
        writeln!(out, "{object}")?;
    } else if built {
        writeln!(
            out,
            "{} ({}), built in {:.1} s",
            file_name(path),
            megabytes(record.plan.size),
            record.seconds
        )?;
    } else {
        writeln!(out, "{} is there already and good; --force builds it again", file_name(path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_height_before_width() {
        assert_eq!(frame_size("480x854"), Ok((480, 854)));
        for wrong in ["480", "x854", "480x", "0x4", "480x99999", "480X854", "-1x4", "4x4x4"] {
            assert!(frame_size(wrong).unwrap_err().contains("HEIGHTxWIDTH"), "{wrong}");
        }
    }
}
