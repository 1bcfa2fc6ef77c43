//! `conceptseg eval concepts`: what the concepts of a bundle show.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use clap::ValueEnum;
use comfy_table::{CellAlignment, Table};
use conceptseg::bundle::ConceptNames;
use conceptseg::concepts::SegmentationConfig;
use conceptseg::datasets::images::ImageSet;
use conceptseg::datasets::segmentation::{Classes, SegmentationDataset};
use conceptseg::datasets::{camvid, voc};
use conceptseg::embed::Model;
use conceptseg::evaluate::concepts::{
    ConceptSummary, Pictures, SummarySettings, concept_name, records, sheet, summary,
};
use conceptseg::files::write_atomic;
use conceptseg::metrics::purity::PurityReport;
use serde_json::{Value, json};

use super::segmentation::{ModelArgs, progress_bar};
use crate::davis::STYLE;

/// Concepts in the table for people.
const TOP: usize = 10;

#[derive(Debug, clap::Args)]
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
    /// Folder to write pictures and tables to: purity.svg, graph.svg, graph.csv, concepts.csv,
    /// sheets/*.jpg.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// The images, with or without labels.
#[derive(Debug, clap::Args)]
struct DataArgs {
    /// Which kind of data set ROOT is.
    #[arg(long, value_enum, required_unless_present = "images", requires = "root")]
    data: Option<DataArg>,
    /// Folder of the data set; of a folder data set, that with images and labels.
    #[arg(long, value_name = "DIR", requires = "data")]
    root: Option<PathBuf>,
    /// Folder of images without labels instead of a data set: all but the purity is told.
    #[arg(
        long,
        value_name = "DIR",
        conflicts_with_all = ["data", "root", "split", "beside", "list", "classes", "min_segments"]
    )]
    images: Option<PathBuf>,
    /// The split: train or val (of a folder data set: its folders are images and labels).
    #[arg(long, default_value = "val")]
    split: String,
    /// Another split, whose purity is shown beside that of the first.
    #[arg(long, value_name = "SPLIT")]
    beside: Option<String>,
    /// List of the images instead of the data set's own (VOC).
    #[arg(long, value_name = "FILE")]
    list: Option<PathBuf>,
    /// Class names of a folder data set, one a line.
    #[arg(long, value_name = "FILE", required_if_eq("data", "folder"))]
    classes: Option<PathBuf>,
    /// The label of pixels that do not count in a folder data set.
    #[arg(long, default_value_t = 255, value_name = "ID")]
    void: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum DataArg {
    /// PASCAL VOC.
    Voc,
    /// `CamVid`.
    Camvid,
    /// ROOT/images and ROOT/labels.
    Folder,
}

/// What is counted and drawn.
#[derive(Debug, clap::Args)]
struct SummaryArgs {
    /// Segments of fewer pixels are left out.
    #[arg(long, default_value_t = 0, value_name = "PIXELS")]
    min_area: u32,
    /// Concepts with fewer labelled segments are not scored.
    #[arg(long, default_value_t = 1, value_name = "N")]
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

/// A set of images and what it is called.
struct Named {
    name: String,
    images: ImageSet,
}

pub fn run(args: &ConceptArgs, json: bool) -> Result<()> {
    let set = args.data.open(args.limit)?;
    let beside = args.data.open_beside(args.limit)?;
    if let Some(out) = &args.out {
        prepare(out)?;
    }
    let model = args.model.open()?;
    let start = Instant::now();
    let summed = args.sum_up(&model, &set.images)?;
    let beside = match beside {
        Some(other) => Some((args.sum_up(&model, &other.images)?, other)),
        None => None,
    };
    if let Some(out) = &args.out {
        let bar = progress_bar("drawn", sheet::sampled_images(&summed.samples))?;
        let others: Vec<_> = beside
            .iter()
            .filter_map(|(summed, other)| Some((&*other.name, summed.purity.as_ref()?)))
            .collect();
        let (short_side, settings) = (args.model.short_side, args.segmentation());
        let tick = || bar.inc(1);
        let (images, name) = (&set.images, &set.name);
        let pictures =
            Pictures::draw(&model, images, short_side, &settings, &summed, name, &others, &tick)?;
        bar.finish_and_clear();
        write_files(out, &pictures)?;
    }
    let seconds = start.elapsed().as_secs_f64();
    let mut out = std::io::stdout().lock();
    let beside = beside.as_ref().map(|(summed, other)| (summed, other));
    if json {
        let mut object = args.describe(&model, &set);
        object["seconds"] = seconds.into();
        for (key, value) in figures(&summed, set.images.classes())? {
            object[key] = value;
        }
        if let Some((summed, other)) = beside {
            object["beside"] = json!({ "split": other.name });
            for (key, value) in figures(summed, other.images.classes())? {
                object["beside"][key] = value;
            }
        }
        writeln!(out, "{object}")?;
    } else {
        if let Some(purity) = &summed.purity {
            write!(out, "{}", purity_text(purity))?;
        }
        let names = &model.bundle().names;
        write!(out, "{}", use_text(&summed, names, set.images.classes()))?;
        if let Some((ConceptSummary { purity: Some(purity), .. }, other)) = beside {
            write!(out, "\nbeside: {}\n{}", other.name, purity_text(purity))?;
        }
        writeln!(
            out,
            "{} images in {seconds:.1} s, network on {}",
            summed.images + beside.map_or(0, |(summed, _)| summed.images),
            model.backend_description()
        )?;
    }
    Ok(())
}

impl ConceptArgs {
    fn segmentation(&self) -> SegmentationConfig {
        SegmentationConfig { grid: self.grid, iterations: self.rounds }
    }

    fn sum_up(&self, model: &std::sync::Arc<Model>, images: &ImageSet) -> Result<ConceptSummary> {
        let bar = progress_bar("labelled", images.len())?;
        let (short_side, tick) = (self.model.short_side, || bar.inc(1));
        let records = records(model, images, short_side, &self.segmentation(), &tick)?;
        bar.finish_and_clear();
        let settings = SummarySettings {
            classes: images.classes().map(Classes::count),
            min_area: self.summary.min_area,
            min_segments: self.summary.min_segments,
            min_images: self.summary.min_images,
            min_pmi: self.summary.min_pmi,
            samples: self.summary.samples.into(),
            seed: self.summary.seed,
        };
        Ok(summary(&records, model.codebook().count, &settings)?)
    }

    /// What the figures were reached with.
    fn describe(&self, model: &Model, set: &Named) -> Value {
        let mut object = self.model.describe(model);
        object["split"] = match self.data.images {
            Some(_) => Value::Null,
            None => set.name.clone().into(),
        };
        object["grid"] = self.grid.into();
        object["rounds"] = self.rounds.into();
        object["min_area"] = self.summary.min_area.into();
        object["min_segments"] = self.summary.min_segments.into();
        object["min_images"] = self.summary.min_images.into();
        object["min_pmi"] = self.summary.min_pmi.into();
        object
    }
}

impl DataArgs {
    fn open(&self, limit: Option<usize>) -> Result<Named> {
        match &self.images {
            Some(folder) => {
                let images = ImageSet::open_folder(folder, limit)?;
                Ok(Named { name: "images".to_owned(), images })
            }
            None => self.open_split(&self.split, self.list.as_deref(), limit),
        }
    }

    fn open_beside(&self, limit: Option<usize>) -> Result<Option<Named>> {
        let Some(split) = &self.beside else { return Ok(None) };
        ensure!(
            self.data != Some(DataArg::Folder),
            "a folder data set has a single split; leave --beside out"
        );
        ensure!(*split != self.split, "--beside names the split {split} again; name another one");
        Ok(Some(self.open_split(split, None, limit)?))
    }

    fn open_split(&self, split: &str, list: Option<&Path>, limit: Option<usize>) -> Result<Named> {
        let (Some(data), Some(root)) = (self.data, &self.root) else {
            bail!("there is nothing to label; give --data and --root, or --images");
        };
        let set = match data {
            DataArg::Voc => {
                let split = match split {
                    "train" => voc::Split::Train,
                    "val" => voc::Split::Val,
                    other => bail!("VOC has no split {other}; use train or val"),
                };
                voc::open(root, split, list, limit)?
            }
            DataArg::Camvid => camvid::open(root, split, limit)?,
            DataArg::Folder => {
                // The option is required for this kind.
                let classes = Classes::read(self.classes.as_deref().unwrap_or(root), self.void)?;
                let (images, labels) = (root.join("images"), root.join("labels"));
                SegmentationDataset::open_folders(&images, &labels, classes, limit)?
            }
        };
        Ok(Named { name: split.to_owned(), images: ImageSet::labelled(set)? })
    }
}

/// Makes the folder, before hours are spent. Files of another run are not mixed with new ones.
fn prepare(out: &Path) -> Result<()> {
    let sheets = out.join("sheets");
    std::fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    let filled = std::fs::read_dir(out)
        .with_context(|| format!("cannot read {}", out.display()))?
        .next()
        .is_some();
    ensure!(!filled, "{} is not empty; give a new folder", out.display());
    std::fs::create_dir(&sheets).with_context(|| format!("cannot make {}", sheets.display()))
}

fn write_files(out: &Path, pictures: &Pictures) -> Result<()> {
    for (name, bytes) in pictures.files() {
        let path = out.join(name);
        write_atomic(&path, |w| w.write_all(bytes))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// The figures of a set as fields of an object.
fn figures(
    summed: &ConceptSummary,
    classes: Option<&Classes>,
) -> Result<Vec<(&'static str, Value)>> {
    let mut purity = serde_json::to_value(&summed.purity)?;
    for one in purity["per_concept"].as_array_mut().into_iter().flatten() {
        let class = one["class"].as_u64().unwrap_or(0) as usize;
        one["class_name"] = class_name(classes, class).into();
    }
    Ok(vec![
        ("images", summed.images.into()),
        ("purity", purity),
        ("dictionary", serde_json::to_value(&summed.dictionary)?),
        ("graph", serde_json::to_value(&summed.graph.edges)?),
    ])
}

fn class_name(classes: Option<&Classes>, class: usize) -> &str {
    classes.and_then(|classes| classes.names.get(class)).map_or("", String::as_str)
}

/// The histogram and the means.
fn purity_text(report: &PurityReport) -> String {
    let mut text = String::new();
    let largest = report.histogram.iter().copied().max().unwrap_or(0).max(1);
    for (bin, &count) in report.histogram.iter().enumerate() {
        let bar = "█".repeat((count * 40).div_ceil(largest));
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{:>3}-{:<3}% {count:>5} {bar}", bin * 10, bin * 10 + 10);
    }
    let _ = writeln!(
        text,
        "{} of {} concepts in use, {} scored, {} segments ({} more without labels)\n\
         mean purity {:.3} over concepts, {:.3} over segments; {:.1} % of concepts above 80 %",
        report.used,
        report.concepts,
        report.scored,
        report.segments,
        report.unlabelled,
        report.mean,
        report.mean_weighted,
        100.0 * report.above_80
    );
    text
}

/// The concepts of the most area, and how the dictionary is used.
fn use_text(summed: &ConceptSummary, names: &ConceptNames, classes: Option<&Classes>) -> String {
    let dictionary = &summed.dictionary;
    let mut table = Table::new();
    table.load_style(STYLE);
    let mut header = vec!["concept", "segments", "images", "area %", "similarity"];
    if classes.is_some() {
        header.extend(["purity %", "class"]);
    }
    table.set_header(header);
    let mut used: Vec<_> = dictionary.per_concept.iter().collect();
    used.sort_by_key(|one| (std::cmp::Reverse(one.area), one.concept));
    for one in used.into_iter().take(TOP) {
        let mut row = vec![
            concept_name(names, one.concept),
            one.segments.to_string(),
            one.images.to_string(),
            format!("{:.1}", 100.0 * one.area_share),
            format!("{:.2}", one.similarity),
        ];
        let scored = summed.purity.iter().flat_map(|purity| &purity.per_concept);
        if let Some(scored) = scored.into_iter().find(|c| c.concept == usize::from(one.concept)) {
            row.push(format!("{:.1}", 100.0 * scored.purity));
            row.push(class_name(classes, scored.class).to_owned());
        }
        table.add_row(row);
    }
    for column in 1..6 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    format!(
        "{table}\n{} segments of {} of {} concepts, {} never used; as uneven as {:.1} equally \
         frequent concepts by segments, {:.1} by area\n{} pairs of concepts occur together more \
         often than by chance\n",
        dictionary.segments,
        dictionary.used,
        dictionary.concepts,
        dictionary.never_used.len(),
        dictionary.perplexity_segments,
        dictionary.perplexity_area,
        summed.graph.edges.len()
    )
}

#[cfg(test)]
mod tests {
    use super::super::segmentation::tests::{fixture, parse};
    use super::*;

    /// Arguments for the tiny bundle below `root`.
    fn arguments(root: &Path, more: &[&str]) -> ConceptArgs {
        let bundle = root.join("bundle").display().to_string();
        let fixed = ["--bundle", &bundle, "--backend", "rten", "--short-side", "64"];
        parse(&[&fixed[..], more].concat())
    }

    fn labelled(root: &Path, more: &[&str]) -> ConceptArgs {
        let path = |name: &str| root.join(name).display().to_string();
        let (data, classes) = (path("val"), path("classes.txt"));
        let fixed = ["--data", "folder", "--root", &data, "--classes", &classes];
        arguments(root, &[&fixed[..], more].concat())
    }

    fn written(out: &Path) -> Vec<String> {
        let mut names = Vec::new();
        for folder in [out.to_owned(), out.join("sheets")] {
            for entry in std::fs::read_dir(folder).unwrap() {
                names.push(entry.unwrap().file_name().into_string().unwrap());
            }
        }
        names.sort();
        names
    }

    #[test]
    fn concepts_of_labelled_images_are_counted_and_drawn() {
        let root = fixture();
        let out = root.path().join("out");
        let args = labelled(
            root.path(),
            &["--out", &out.display().to_string(), "--samples", "3", "--seed", "7"],
        );
        run(&args, true).unwrap();
        let files = ["001.jpg", "concepts.csv", "graph.csv", "graph.svg", "purity.svg", "sheets"];
        assert_eq!(written(&out), files);
        let sheet = image::open(out.join("sheets/001.jpg")).unwrap();
        assert!(sheet.width() > 3 * sheet::TILE && sheet.height() > sheet::TILE);
        let text = run(&args, true).unwrap_err().to_string();
        assert!(text.contains("is not empty"), "{text}");
        run(&labelled(root.path(), &[]), false).unwrap();
        let summed = {
            let model = args.model.open().unwrap();
            args.sum_up(&model, &args.data.open(None).unwrap().images).unwrap()
        };
        let purity = summed.purity.unwrap();
        assert!(purity.segments >= 6 && purity.used >= 1);
        // The images are of one class each.
        assert_eq!(summed.images, 6);
        assert_eq!(purity.unlabelled, 0);
        assert_eq!(summed.dictionary.area, 6 * 48 * 32);
        assert_eq!(summed.dictionary.segments, purity.segments);
    }

    #[test]
    fn images_without_labels_give_all_but_the_purity() {
        let root = fixture();
        let path = |name: &str| root.path().join(name).display().to_string();
        let (images, out) = (path("val/images"), root.path().join("plain"));
        let args =
            arguments(root.path(), &["--images", &images, "--out", &out.display().to_string()]);
        run(&args, true).unwrap();
        run(&arguments(root.path(), &["--images", &images, "--min-images", "1"]), false).unwrap();
        let files = ["001.jpg", "concepts.csv", "graph.csv", "graph.svg", "sheets"];
        assert_eq!(written(&out), files);
        let csv = std::fs::read_to_string(out.join("concepts.csv")).unwrap();
        assert_eq!(csv.lines().count(), 1 + 6);
        let summed = |args: &ConceptArgs| {
            let model = args.model.open().unwrap();
            args.sum_up(&model, &args.data.open(None).unwrap().images).unwrap()
        };
        let (plain, with_labels) = (summed(&args), summed(&labelled(root.path(), &[])));
        assert_eq!(plain.dictionary, with_labels.dictionary);
        assert_eq!(plain.graph, with_labels.graph);
        assert_eq!(plain.purity, None);
    }

    #[test]
    fn what_cannot_be_asked_is_refused() {
        let root = fixture();
        let text = run(&labelled(root.path(), &["--beside", "train"]), true).unwrap_err();
        assert!(text.to_string().contains("a single split"), "{text}");
        let voc = ["--data", "voc", "--root", "x", "--split", "test"];
        let text = run(&arguments(root.path(), &voc), true).unwrap_err().to_string();
        assert!(text.contains("VOC has no split test"), "{text}");
    }
}
