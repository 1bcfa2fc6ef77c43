//! `conceptseg atlas`: what each concept of a bundle shows on somebody's images, and what people
//! call it.

mod serve;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use conceptseg::atlas::{Atlas, AtlasSettings, page};
use conceptseg::bundle::Bundle;
use conceptseg::concepts::SegmentationConfig;
use conceptseg::datasets::images::ImageSet;
use conceptseg::datasets::segmentation::Classes;
use conceptseg::embed::Model;
use conceptseg::evaluate::concepts::{ImageConcepts, SummarySettings, records, units};
use conceptseg::evaluate::run::{Inputs, Run};
use conceptseg::files::write_atomic;
use serde_json::json;

use crate::eval::model::ModelArgs;
use crate::eval::run::finish;
use crate::images::SetArgs;
use crate::progress::progress_bar;

/// Name of the page in its folder.
const PAGE: &str = "index.html";

/// Make a page that shows what each concept of a bundle stands for on your images, and serve it
/// to name them.
///
/// The folder gets index.html, which holds everything and can be opened from disk or sent to
/// somebody. With --serve names, colours and marks given on the page are saved to the bundle's
/// concepts.toml.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    set: SetArgs,
    /// Folder of the page; created where it is missing. Without images the page that is there
    /// is served.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// At most that many images, evenly spread over the list.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Sides of the grid of blocks that clusters start as.
    #[arg(long, default_value_t = 5, value_name = "N")]
    grid: usize,
    /// Rounds of k-means.
    #[arg(long, default_value_t = 10, value_name = "N")]
    rounds: usize,
    /// Segments of fewer pixels are left out.
    #[arg(long, default_value_t = 0, value_name = "PIXELS")]
    min_area: u32,
    /// Concepts that share fewer images are not told to occur together.
    #[arg(long, default_value_t = 5, value_name = "N")]
    min_images: u32,
    /// Segments shown of each concept: that many of the nearest, and as many random ones.
    #[arg(long, default_value_t = 6, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=32))]
    samples: u8,
    /// Another number draws other random segments.
    #[arg(long, default_value_t = 0, value_name = "N")]
    seed: u64,
    #[command(flatten)]
    serve: serve::ServeArgs,
}

pub fn run(args: &Args, json: bool) -> Result<()> {
    let path = args.out.join(PAGE);
    if args.set.is_given() {
        make(args, &path, json)?;
    } else {
        ensure!(
            args.serve.is_wanted(),
            "there are no images to make an atlas from; give --images, or --data and --root"
        );
    }
    if args.serve.is_wanted() {
        let bundle = Bundle::open(&args.model.bundle)?;
        args.serve.run(&bundle, &path, json)?;
    }
    Ok(())
}

/// Makes the page and writes it.
fn make(args: &Args, path: &Path, json: bool) -> Result<()> {
    let set = args.set.open(args.limit)?;
    let model = args.model.open()?;
    // Refused before the work and not after it.
    std::fs::create_dir_all(&args.out)
        .with_context(|| format!("cannot make {}", args.out.display()))?;
    let settings = args.settings(&set.images);
    let records = label(&model, &set.images, &settings)?;
    let concepts = model.codebook().count;
    let bar = progress_bar("drawn", "images", Atlas::shown_images(concepts, &records, &settings)?)?;
    let title = args.set.title();
    let atlas = Atlas::build(&model, &set.images, &title, &records, &settings, &|| bar.inc(1))?;
    bar.finish_and_clear();
    let html = page::html(&atlas);
    write_atomic(path, |w| w.write_all(html.as_bytes()))
        .with_context(|| format!("cannot write {}", path.display()))?;
    let mut out = std::io::stdout().lock();
    let data = &atlas.data;
    if json {
        let object = json!({
            "page": path, "bytes": html.len(), "images": data.images, "segments": data.segments,
            "concepts": concepts, "used": data.used, "purity": data.purity,
        });
        writeln!(out, "{object}")?;
    } else {
        writeln!(
            out,
            "{}: {} of {concepts} concepts in {} images, {:.1} MB",
            path.display(),
            data.used,
            data.images,
            html.len() as f64 / 1e6
        )?;
    }
    Ok(())
}

/// The concepts of every image.
fn label(
    model: &Arc<Model>,
    images: &ImageSet,
    settings: &AtlasSettings,
) -> Result<Vec<ImageConcepts>> {
    let run = Run::in_memory(Inputs::new("atlas", json!({})));
    let stage = run.stage("atlas", &units(images))?;
    let bar = progress_bar("labelled", "images", images.len())?;
    let tick = || bar.inc(1);
    records(model, images, settings.short_side, &settings.segmentation, &stage, &tick)?;
    bar.finish_and_clear();
    finish("atlas", "images", stage)?.context("not every image was labelled")
}

impl Args {
    fn settings(&self, images: &ImageSet) -> AtlasSettings {
        AtlasSettings {
            short_side: self.model.short_side,
            segmentation: SegmentationConfig { grid: self.grid, iterations: self.rounds },
            summary: SummarySettings {
                classes: images.classes().map(Classes::count),
                min_area: self.min_area,
                min_images: self.min_images,
                samples: self.samples.into(),
                seed: self.seed,
                ..SummarySettings::default()
            },
            nearest: self.samples.into(),
        }
    }
}
