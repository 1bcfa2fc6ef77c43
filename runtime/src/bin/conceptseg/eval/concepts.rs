//! `conceptseg eval concepts`: what the concepts of a bundle show.

mod shown;

use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use conceptseg::concepts::SegmentationConfig;
use conceptseg::datasets::segmentation::Classes;
use conceptseg::embed::Model;
use conceptseg::evaluate::concepts::{
    ConceptSummary, ImageConcepts, Pictures, SummarySettings, records, sheet, summary, units,
};
use conceptseg::evaluate::report::{Report, Scores};
use conceptseg::evaluate::run::{Inputs, Run, Stage, hash_each, hash_names};
use conceptseg::files::write_atomic;
use conceptseg::metrics::purity::PurityReport;

use super::model::{ModelArgs, bundle_inputs};
use super::run::{self, RunArgs, finish, stage_bar};
use crate::images::{Named, SetArgs};
use crate::progress::progress_bar;
use crate::scores::purity_text;
use shown::{figures, sections, use_text};

#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("given").args(["data", "images"]).required(true)))]
pub struct ConceptArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    data: DataArgs,
    /// At most that many images, evenly spread over the list.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Sides of the grid of blocks that clusters start as.
    #[arg(long, default_value_t = 5, value_name = "N")]
    grid: usize,
    /// Rounds of k-means.
    #[arg(long, default_value_t = 50, value_name = "N")]
    rounds: usize,
    #[command(flatten)]
    summary: SummaryArgs,
    #[command(flatten)]
    run: RunArgs,
}

/// The images, and others beside them.
#[derive(Debug, clap::Args)]
struct DataArgs {
    #[command(flatten)]
    set: SetArgs,
    /// Another split, whose purity is shown beside that of the first.
    #[arg(long, value_name = "SPLIT", conflicts_with = "images")]
    beside: Option<String>,
}

/// What is counted and drawn.
#[derive(Debug, clap::Args)]
struct SummaryArgs {
    /// Segments of fewer pixels are left out.
    #[arg(long, default_value_t = 0, value_name = "PIXELS")]
    min_area: u32,
    /// Concepts with fewer labelled segments are not scored.
    #[arg(long, default_value_t = 1, value_name = "N", conflicts_with = "images")]
    min_segments: u64,
    /// Concepts that share fewer images are not joined in the graph.
    #[arg(long, default_value_t = 5, value_name = "N")]
    min_images: u32,
    /// Concepts are joined in the graph above this pointwise mutual information, in nats.
    #[arg(long, default_value_t = 0.0, value_name = "NATS", allow_negative_numbers = true)]
    min_pmi: f64,
    /// Random segments of each concept on the sheets.
    #[arg(
        long,
        default_value_t = 8,
        value_name = "N",
        requires = "out",
        value_parser = clap::value_parser!(u8).range(1..=32)
    )]
    samples: u8,
    /// Another number draws other segments.
    #[arg(long, default_value_t = 0, value_name = "N", requires = "out")]
    seed: u64,
}

pub fn run(args: &ConceptArgs, json: bool) -> Result<()> {
    let set = args.data.set.open(args.limit)?;
    let beside = args.data.open_beside(args.limit)?;
    let model = args.model.open()?;
    let start = Instant::now();
    let run = args.run.open(args.inputs(&model, &set, beside.as_ref())?)?;
    let stage = args.record(&model, &set, &run, "concepts")?;
    let other = match &beside {
        Some(set) => Some((set, args.record(&model, set, &run, "beside")?)),
        None => None,
    };
    let Some(records) = finish("concepts", "images", stage)? else { return Ok(()) };
    let summed = args.sum_up(&model, &set, &records)?;
    let beside = match other {
        Some((set, stage)) => {
            let Some(records) = finish("beside", "images", stage)? else { return Ok(()) };
            Some((set, args.sum_up(&model, set, &records)?))
        }
        None => None,
    };
    let report = Report::new(run.inputs().clone(), args.scores(&model, &set, &records));
    if let Some(folder) = run.folder() {
        let others: Vec<_> = beside
            .iter()
            .filter_map(|(other, summed)| Some((&*other.name, summed.purity.as_ref()?)))
            .collect();
        let pictures = args.draw(&model, &set, &summed, &others)?;
        write_files(folder, &pictures)?;
        let sections = sections(&summed, &pictures, &model.bundle().names, set.images.classes());
        run::write(&run, &report, sections)?;
    }
    let seconds = start.elapsed().as_secs_f64();
    let mut out = std::io::stdout().lock();
    if json {
        let mut object = figures(&summed, set.images.classes())?;
        object["inputs"] = serde_json::to_value(&report.inputs)?;
        object["figures"] = serde_json::to_value(&report.figures)?;
        object["seconds"] = seconds.into();
        if let Some((other, summed)) = &beside {
            object["beside"] = figures(summed, other.images.classes())?;
            object["beside"]["split"] = other.name.clone().into();
        }
        writeln!(out, "{object}")?;
        return Ok(());
    }
    if let Some(purity) = &summed.purity {
        write!(out, "{}", purity_text(purity))?;
    }
    write!(out, "{}", run::figures_text(&report))?;
    let names = &model.bundle().names;
    write!(out, "{}", use_text(&summed, names, set.images.classes()))?;
    if let Some((other, ConceptSummary { purity: Some(purity), .. })) = &beside {
        write!(out, "\nbeside: {}\n{}", other.name, purity_text(purity))?;
    }
    writeln!(
        out,
        "{} images in {seconds:.1} s, network on {}",
        summed.images + beside.map_or(0, |(_, summed)| summed.images),
        model.backend_description()
    )?;
    Ok(())
}

impl ConceptArgs {
    fn segmentation(&self) -> SegmentationConfig {
        SegmentationConfig { grid: self.grid, iterations: self.rounds }
    }

    /// Everything that decides the figures.
    fn inputs(&self, model: &Model, set: &Named, beside: Option<&Named>) -> Result<Inputs> {
        let labels = |set: &Named| -> Result<String> { Ok(hash_each(&set.images.label_files())?) };
        let mut settings = self.model.settings(model);
        settings["images"] = set.images.len().into();
        settings["grid"] = self.grid.into();
        settings["rounds"] = self.rounds.into();
        settings["min area"] = self.summary.min_area.into();
        settings["min images"] = self.summary.min_images.into();
        settings["min pmi"] = self.summary.min_pmi.into();
        settings["samples"] = self.summary.samples.into();
        settings["seed"] = self.summary.seed.into();
        if let Some(classes) = set.images.classes() {
            settings["classes"] = classes.count().into();
            settings["split"] = set.name.clone().into();
            settings["min segments"] = self.summary.min_segments.into();
        }
        if let Some(other) = beside {
            settings["beside"] = other.name.clone().into();
            settings["images beside"] = other.images.len().into();
        }
        let mut inputs = bundle_inputs("concepts", model, settings)
            .with("list", hash_names(&units(&set.images)));
        if set.images.classes().is_some() {
            inputs = inputs.with("annotations", labels(set)?);
        }
        if let Some(other) = beside {
            inputs = inputs
                .with("annotations beside", labels(other)?)
                .with("list beside", hash_names(&units(&other.images)));
        }
        Ok(inputs)
    }

    /// Labels the images of a set that are still to do.
    fn record(
        &self,
        model: &Arc<Model>,
        set: &Named,
        run: &Run,
        name: &'static str,
    ) -> Result<Stage<ImageConcepts>> {
        let stage = run.stage(name, &units(&set.images))?;
        let bar = stage_bar(name, "images", &stage)?;
        let (short_side, tick) = (self.model.short_side, || bar.inc(1));
        records(model, &set.images, short_side, &self.segmentation(), &stage, &tick)?;
        bar.finish_and_clear();
        Ok(stage)
    }

    fn sum_up(
        &self,
        model: &Model,
        set: &Named,
        records: &[ImageConcepts],
    ) -> Result<ConceptSummary> {
        let settings = SummarySettings {
            classes: set.images.classes().map(Classes::count),
            min_area: self.summary.min_area,
            min_segments: self.summary.min_segments,
            min_images: self.summary.min_images,
            min_pmi: self.summary.min_pmi,
            samples: self.summary.samples.into(),
            seed: self.summary.seed,
        };
        Ok(summary(records, model.codebook().count, &settings)?)
    }

    fn scores(&self, model: &Model, set: &Named, records: &[ImageConcepts]) -> Scores {
        Scores::Concepts {
            concepts: model.codebook().count,
            classes: set.images.classes().map_or_else(Vec::new, |classes| classes.names.clone()),
            min_segments: self.summary.min_segments,
            images: records.iter().map(|record| record.counts(self.summary.min_area)).collect(),
        }
    }

    fn draw(
        &self,
        model: &Arc<Model>,
        set: &Named,
        summed: &ConceptSummary,
        others: &[(&str, &PurityReport)],
    ) -> Result<Pictures> {
        let bar = progress_bar("drawn", "images", sheet::sampled_images(&summed.samples))?;
        let (short_side, settings) = (self.model.short_side, self.segmentation());
        let (images, name, tick) = (&set.images, &set.name, || bar.inc(1));
        let pictures =
            Pictures::draw(model, images, short_side, &settings, summed, name, others, &tick)?;
        bar.finish_and_clear();
        Ok(pictures)
    }
}

impl DataArgs {
    fn open_beside(&self, limit: Option<usize>) -> Result<Option<Named>> {
        let Some(split) = &self.beside else { return Ok(None) };
        ensure!(!self.set.is_folder(), "a folder data set has a single split; leave --beside out");
        ensure!(
            *split != self.set.split,
            "--beside names the split {split} again; name another one"
        );
        Ok(Some(self.set.open_split(split, None, limit)?))
    }
}

/// Writes pictures and tables into the run folder.
fn write_files(folder: &Path, pictures: &Pictures) -> Result<()> {
    let sheets = folder.join("sheets");
    std::fs::create_dir_all(&sheets)
        .with_context(|| format!("cannot make {}", sheets.display()))?;
    for (name, bytes) in pictures.files() {
        let path = folder.join(name);
        write_atomic(&path, |w| w.write_all(bytes))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    // An earlier run with --fresh may have left more pages.
    for page in pictures.sheets.len() + 1.. {
        let path = folder.join(Pictures::sheet_name(page));
        if !path.is_file() {
            break;
        }
        std::fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
