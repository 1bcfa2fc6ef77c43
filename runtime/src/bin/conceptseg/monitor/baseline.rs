//! `conceptseg monitor baseline`.

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use conceptseg::frame::FrameView;
use conceptseg::monitor::Sighting;
use conceptseg::monitor::baseline::{Baseline, BaselineBuilder};
use conceptseg::results::read_records;
use serde_json::json;

use super::source::{NetworkArgs, images, read};
use crate::progress::progress_bar;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    network: NetworkArgs,
    /// Folder of frames of an undisturbed time (jpg, jpeg, png). May be given several times.
    #[arg(long, value_name = "DIR", required_unless_present = "results")]
    images: Vec<PathBuf>,
    /// Results file (JSON lines) of an undisturbed time. May be given several times.
    #[arg(long, value_name = "FILE")]
    results: Vec<PathBuf>,
    /// The file to write.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

pub fn run(args: &Args, json: bool) -> Result<()> {
    let model = args.network.open()?;
    let mut builder = BaselineBuilder::new(model.bundle());
    let mut sightings = Vec::new();
    for folder in &args.images {
        let files = images(folder)?;
        let bar = progress_bar("looking", "images", files.len())?;
        let mut stream = args.network.stream(&model);
        for path in files {
            let image = read(&path)?;
            let view = FrameView::rgb(image.width(), image.height(), image.as_raw())?;
            let result = stream.process(&view).with_context(|| path.display().to_string())?;
            sightings.clear();
            sightings.extend(Sighting::of_result(result));
            builder.add(&sightings);
            bar.inc(1);
        }
        bar.finish_and_clear();
    }
    for path in &args.results {
        for record in read_records(path)? {
            sightings.clear();
            sightings.extend(Sighting::of_record(&record?));
            builder.add(&sightings);
        }
    }
    let baseline = builder.finish()?;
    baseline.write(&args.out)?;
    tell(&baseline, args, json)
}

fn tell(baseline: &Baseline, args: &Args, json: bool) -> Result<()> {
    let seen = baseline.occurrence.iter().filter(|&&o| o > 0.0).count();
    let mut out = std::io::stdout().lock();
    if json {
        let object = json!({
            "out": args.out, "frames": baseline.frames,
            "concepts": baseline.count(), "concepts_seen": seen,
        });
        writeln!(out, "{object}")?;
    } else {
        writeln!(
            out,
            "{}: {seen} of {} concepts in {} frames",
            args.out.display(),
            baseline.count(),
            baseline.frames
        )?;
    }
    Ok(())
}
