//! `conceptseg eval concepts`: what the concepts of a bundle show.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::ValueEnum;
use comfy_table::{CellAlignment, Table};
use conceptseg::bundle::ConceptNames;
use conceptseg::concepts::SegmentationConfig;
use conceptseg::datasets::images::ImageSet;
use conceptseg::datasets::segmentation::{Classes, SegmentationDataset};
use conceptseg::datasets::{camvid, coco, voc};
use conceptseg::embed::Model;
use conceptseg::evaluate::concepts::{
    ConceptSummary, ConceptUse, ImageConcepts, Pictures, SummarySettings, concept_name, records,
    sheet, summary, units,
};
use conceptseg::evaluate::report::{Report, Scores};
use conceptseg::evaluate::run::{Inputs, Run, Stage, hash_each};
use conceptseg::files::write_atomic;
use conceptseg::metrics::purity::PurityReport;
use indicatif::{ProgressBar, ProgressStyle};
use maud::{PreEscaped, html};
use serde_json::Value;

use super::page::Section;
use super::run::{self, RunArgs, finish, progress_bar};
use super::segmentation::ModelArgs;
use crate::davis::STYLE;
use crate::scores::{purity_json, purity_text};

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
    #[command(flatten)]
    run: RunArgs,
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
    /// COCO's instances.
    Coco,
    /// COCO's panoptic segments.
    CocoPanoptic,
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
    let model = args.model.open()?;
    let start = Instant::now();
    let run = args.run.open(args.inputs(&model, &set, beside.as_ref())?)?;
    let stage = args.record(&model, &set, &run, "concepts")?;
    let other = match &beside {
        Some(set) => Some((set, args.record(&model, set, &run, "beside")?)),
        None => None,
    };
    let Some(records) = finish("concepts", "images", stage) else { return Ok(()) };
    let summed = args.sum_up(&model, &set, &records)?;
    let beside = match other {
        Some((set, stage)) => {
            let Some(records) = finish("beside", "images", stage) else { return Ok(()) };
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
        let mut inputs = self.model.inputs("concepts", model, settings);
        if set.images.classes().is_some() {
            inputs = inputs.with("annotations", labels(set)?);
        }
        if let Some(other) = beside {
            inputs = inputs.with("annotations beside", labels(other)?);
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
        let bar = progress_bar(name, "images", &stage)?;
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
        let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} images {eta}")?;
        let bar = ProgressBar::new(sheet::sampled_images(&summed.samples) as u64);
        let bar = bar.with_style(style).with_message("drawn");
        let (short_side, settings) = (self.model.short_side, self.segmentation());
        let (images, name, tick) = (&set.images, &set.name, || bar.inc(1));
        let pictures =
            Pictures::draw(model, images, short_side, &settings, summed, name, others, &tick)?;
        bar.finish_and_clear();
        Ok(pictures)
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
            DataArg::Voc => voc::open(root, train_or_val(split)?, list, limit)?,
            DataArg::Coco | DataArg::CocoPanoptic => {
                let panoptic = data == DataArg::CocoPanoptic;
                let source = coco::Source::standard(root, train_or_val(split)?, panoptic);
                coco::open(&source, None, limit)?.0
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

fn train_or_val(split: &str) -> Result<voc::Split> {
    match split {
        "train" => Ok(voc::Split::Train),
        "val" => Ok(voc::Split::Val),
        other => bail!("the data set has no split {other}; use train or val"),
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

/// The parts of the page.
fn sections(
    summed: &ConceptSummary,
    pictures: &Pictures,
    names: &ConceptNames,
    classes: Option<&Classes>,
) -> Vec<Section> {
    let mut sections = Vec::new();
    if let Some(svg) = &pictures.purity {
        let note = "How far the segments of a concept show one class: the share of them in its most \
                    frequent one.";
        sections.push(Section::new("Purity", html! { p.note { (note) } (PreEscaped(svg)) }));
    }
    let (header, rows) = most_used(summed, names, classes);
    let table = html! {
        p { (dictionary_text(summed)) }
        p.note { "The concepts of the most area; concepts.csv has all of them." }
        table {
            tr { @for (i, name) in header.iter().enumerate() { th.n[is_number(i)] { (name) } } }
            @for row in rows {
                tr { @for (i, cell) in row.iter().enumerate() { td.n[is_number(i)] { (cell) } } }
            }
        }
    };
    sections.push(Section::new("Use of the dictionary", table));
    let graph = html! { (PreEscaped(&pictures.graph)) p.note { "graph.csv has all pairs." } };
    sections.push(Section::new("Concepts that occur together", graph));
    let sheets = html! {
        p.note {
            "Random segments of every concept in use, those of the most area first: the segment in \
             colour, what is around it in grey."
        }
        @for sheet in &pictures.sheets {
            img src={ "data:image/jpeg;base64," (STANDARD.encode(sheet)) } loading="lazy"
                alt="segments of concepts" style="width: 100%";
        }
    };
    sections.push(Section::new("What concepts look like", sheets));
    sections
}

/// The figures of a set.
fn figures(summed: &ConceptSummary, classes: Option<&Classes>) -> Result<Value> {
    let mut object = serde_json::to_value(summed)?;
    if let (Some(purity), Some(classes)) = (&summed.purity, classes) {
        object["purity"] = purity_json(purity, classes)?;
    }
    Ok(object)
}

fn class_name(classes: Option<&Classes>, class: usize) -> &str {
    classes.and_then(|classes| classes.names.get(class)).map_or("", String::as_str)
}

/// Whether a column of [`most_used`] holds numbers.
fn is_number(column: usize) -> bool {
    (1..6).contains(&column)
}

/// The concepts of the most area: names of the columns, and rows.
fn most_used(
    summed: &ConceptSummary,
    names: &ConceptNames,
    classes: Option<&Classes>,
) -> (Vec<&'static str>, Vec<Vec<String>>) {
    let mut header = vec!["concept", "segments", "images", "area %", "similarity"];
    if classes.is_some() {
        header.extend(["purity %", "class"]);
    }
    let mut used: Vec<_> = summed.dictionary.per_concept.iter().collect();
    used.sort_by_key(|one| (std::cmp::Reverse(one.area), one.concept));
    let row = |one: &ConceptUse| {
        let mut row = vec![
            concept_name(names, one.concept),
            one.segments.to_string(),
            one.images.to_string(),
            format!("{:.1}", 100.0 * one.area_share),
            format!("{:.2}", one.similarity),
        ];
        let mut scored = summed.purity.iter().flat_map(|purity| &purity.per_concept);
        if let Some(scored) = scored.find(|c| c.concept == usize::from(one.concept)) {
            row.push(format!("{:.1}", 100.0 * scored.purity));
            row.push(class_name(classes, scored.class).to_owned());
        }
        row.resize(header.len(), String::new());
        row
    };
    let rows = used.into_iter().take(TOP).map(row).collect();
    (header, rows)
}

/// How the dictionary is used, in sentences.
fn dictionary_text(summed: &ConceptSummary) -> String {
    let dictionary = &summed.dictionary;
    format!(
        "{} segments of {} of {} concepts, {} never used; as uneven as {:.1} equally frequent \
         concepts by segments, {:.1} by area. {} pairs of concepts occur together more often than \
         by chance.",
        dictionary.segments,
        dictionary.used,
        dictionary.concepts,
        dictionary.never_used.len(),
        dictionary.perplexity_segments,
        dictionary.perplexity_area,
        summed.graph.edges.len()
    )
}

/// The concepts of the most area, and how the dictionary is used.
fn use_text(summed: &ConceptSummary, names: &ConceptNames, classes: Option<&Classes>) -> String {
    let (header, rows) = most_used(summed, names, classes);
    let mut table = Table::new();
    table.load_style(STYLE);
    table.set_header(header);
    for row in rows {
        table.add_row(row);
    }
    for column in (0..7).filter(|&column| is_number(column)) {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    format!("{table}\n{}\n", dictionary_text(summed))
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

    fn summed(args: &ConceptArgs) -> ConceptSummary {
        let (model, set) = (args.model.open().unwrap(), args.data.open(None).unwrap());
        let run = Run::in_memory(args.inputs(&model, &set, None).unwrap());
        let records = args.record(&model, &set, &run, "concepts").unwrap().finish().unwrap();
        args.sum_up(&model, &set, &records).unwrap()
    }

    #[test]
    fn concepts_of_labelled_images_are_counted_and_drawn() {
        let root = fixture();
        let out = root.path().join("out");
        let shown = out.display().to_string();
        let args = labelled(root.path(), &["--out", &shown, "--samples", "3", "--seed", "7"]);
        run(&args, true).unwrap();
        let files = [
            "001.jpg",
            "concepts.csv",
            "graph.csv",
            "graph.svg",
            "journal",
            "purity.svg",
            "report.csv",
            "report.html",
            "report.json",
            "sheets",
        ];
        assert_eq!(written(&out), files);
        let sheet = image::open(out.join("sheets/001.jpg")).unwrap();
        assert!(sheet.width() > 3 * sheet::TILE && sheet.height() > sheet::TILE);
        let page = std::fs::read_to_string(out.join("report.html")).unwrap();
        assert_eq!(page.matches("<svg").count(), 2);
        assert!(page.contains("data:image/jpeg;base64,") && page.contains("purity over concepts"));
        // The same again goes on from the journal; other settings are refused.
        std::fs::write(out.join("sheets/002.jpg"), "of an earlier run").unwrap();
        run(&args, true).unwrap();
        assert_eq!(written(&out), files);
        let other = labelled(root.path(), &["--out", &shown, "--rounds", "3"]);
        let text = run(&other, true).unwrap_err().to_string();
        assert!(text.contains("settings.rounds is 50 there and 3 here"), "{text}");

        run(&labelled(root.path(), &[]), false).unwrap();
        let summed = summed(&args);
        let purity = summed.purity.unwrap();
        assert!(purity.segments >= 6 && purity.used >= 1);
        assert_eq!((summed.images, purity.unlabelled), (6, 0));
        assert_eq!(summed.dictionary.area, 6 * 48 * 32);
        assert_eq!(summed.dictionary.segments, purity.segments);
        let report = Report::read(&out.join("report.json")).unwrap();
        assert_eq!(report.figures["purity over concepts"].value, purity.mean);
    }

    #[test]
    fn two_shards_write_what_one_process_writes() {
        let root = fixture();
        let path = |name: &str| root.path().join(name).display().to_string();
        let (one, two) = (path("one"), path("two"));
        run(&labelled(root.path(), &["--out", &one]), true).unwrap();
        for shard in ["2/2", "1/2"] {
            run(&labelled(root.path(), &["--out", &two, "--shard", shard]), true).unwrap();
        }
        for name in ["report.json", "report.html", "graph.svg", "concepts.csv", "sheets/001.jpg"] {
            let read = |folder: &str| std::fs::read(Path::new(folder).join(name)).unwrap();
            assert!(read(&one) == read(&two), "{name} differs");
        }
    }

    #[test]
    fn images_without_labels_give_all_but_the_purity() {
        let root = fixture();
        let path = |name: &str| root.path().join(name).display().to_string();
        let (images, out) = (path("val/images"), root.path().join("plain"));
        let shown = out.display().to_string();
        let args = arguments(root.path(), &["--images", &images, "--out", &shown]);
        run(&args, true).unwrap();
        run(&arguments(root.path(), &["--images", &images, "--min-images", "1"]), false).unwrap();
        assert!(!out.join("purity.svg").exists() && out.join("report.html").is_file());
        let csv = std::fs::read_to_string(out.join("concepts.csv")).unwrap();
        assert_eq!(csv.lines().count(), 1 + 6);
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
