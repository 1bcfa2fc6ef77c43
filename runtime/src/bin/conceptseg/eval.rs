//! `conceptseg eval`: scores a bundle on data sets, through the same code that live streams use.
//! Here: `davis`, which carries the first masks of sequences.

mod compare;
mod concepts;
mod page;
mod pictures;
mod run;
mod segmentation;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::{Subcommand, ValueEnum};
use conceptseg::backend::{BackendKind, BackendOptions};
use conceptseg::bundle::SizeRule;
use conceptseg::datasets::davis::{DavisDataset, DavisFrame, DavisSequence};
use conceptseg::embed::Model;
use conceptseg::frame::FrameView;
use conceptseg::labels::LabelMap;
use conceptseg::metrics::davis::{
    DavisReport, FrameScorer, MIN_FRAMES, SequenceReport, SequenceScore,
};
use conceptseg::propagate::{FirstLabels, PropagationConfig};
use conceptseg::stream::{StageTimes, StreamConfig, StreamState};
use indicatif::ProgressBar;
use serde_json::{Value, json};

use crate::davis::{LayoutArg, Selection, progress_bar, table};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Carry the first mask of every DAVIS sequence through it and score the masks.
    ///
    /// Reads ROOT/JPEGImages/480p/<sequence>/*.jpg and ROOT/Annotations/480p/<sequence>/*.png
    /// (DAVIS 2016 or 2017) and checks every file before the work starts. J and F are those
    /// of `metrics davis`. The speed counts frame preparation, network and propagation, but
    /// not reading files and scoring.
    Davis(DavisArgs),
    /// Classify the pixels of PASCAL VOC by their nearest labelled prototypes and score mIoU.
    ///
    /// Pixels are clustered image by image (k-means on embedding and place), clusters of
    /// the training images become prototypes with the class of most of their pixels, and each
    /// cluster of a validation image takes the class of most of its nearest prototypes. All
    /// files are checked before the work starts.
    Voc(segmentation::VocArgs),
    /// The same on `CamVid` (11 classes; the folders of `SegNet`).
    Camvid(segmentation::CamVidArgs),
    /// The same on any folders of images and label PNGs.
    Folder(segmentation::FolderArgs),
    /// What the concepts of the live path show: purity, use of the dictionary, which occur
    /// together, and pictures of each.
    ///
    /// With labels: how far the segments of each concept show one class. Without (`--images`):
    /// all the rest. `--out` adds the histogram, the graph, tables, and sheets of segments.
    Concepts(Box<concepts::ConceptArgs>),
    /// Compare two reports on the same images or sequences: differences with their confidence.
    Compare(compare::Args),
}

#[derive(Debug, clap::Args)]
pub struct DavisArgs {
    #[command(flatten)]
    method: MethodArgs,
    /// Folder of the data set.
    #[arg(long, value_name = "DIR")]
    root: PathBuf,
    /// Which resolution of the data set: the folder between the kind and the sequence.
    #[arg(long, default_value = "480p")]
    resolution: String,
    #[command(flatten)]
    selection: Selection,
    /// How the annotations store their objects.
    #[arg(long, value_enum, default_value_t)]
    layout: LayoutArg,
    /// Folder to write the masks to, as DIR/<sequence>/00000.png: palette PNGs of object
    /// ids, which `metrics davis` and the official tool read.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// What runs the network.
    #[arg(long, value_enum, default_value_t, conflicts_with = "baseline")]
    backend: BackendKind,
    /// Threads of the network; 0: one per core.
    #[arg(long, default_value_t = 0, conflicts_with = "baseline")]
    threads: usize,
    /// Short side of the network's input in pixels; bundles of a fixed size ignore it.
    #[arg(
        long,
        default_value_t = StreamConfig::default().short_side,
        value_parser = clap::value_parser!(u32).range(32..=4096),
        conflicts_with = "baseline"
    )]
    short_side: u32,
    /// How the first mask is brought to the embedding grid.
    #[arg(long, value_enum, default_value_t, conflicts_with = "baseline")]
    first_labels: FirstLabelsArg,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct MethodArgs {
    /// Folder of the model bundle.
    #[arg(long, value_name = "DIR")]
    bundle: Option<PathBuf>,
    /// Score a method without a model instead, to compare with.
    #[arg(long, value_enum)]
    baseline: Option<Baseline>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Baseline {
    /// The first mask, held still.
    Still,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum FirstLabelsArg {
    /// The share of a cell's area.
    #[default]
    Area,
    /// The label at a cell's centre, as in the DINO protocol.
    Nearest,
}

impl From<FirstLabelsArg> for FirstLabels {
    fn from(arg: FirstLabelsArg) -> Self {
        match arg {
            FirstLabelsArg::Area => Self::Area,
            FirstLabelsArg::Nearest => Self::Nearest,
        }
    }
}

/// A sequence that is ready to run.
struct Prepared {
    sequence: DavisSequence,
    scorer: FrameScorer,
    /// Object ids of the first annotation.
    first: LabelMap,
}

/// What gives the masks of a sequence's frames.
enum Method {
    Model { model: std::sync::Arc<Model>, config: StreamConfig },
    Still,
}

/// What the processing has taken so far.
#[derive(Default)]
struct Speed {
    frames: u32,
    total: Duration,
    stages: StageTimes,
}

pub fn run(command: &Command, json: bool) -> Result<()> {
    match command {
        Command::Davis(args) => davis(args, json),
        Command::Voc(args) => segmentation::voc(args, json),
        Command::Camvid(args) => segmentation::camvid(args, json),
        Command::Folder(args) => segmentation::folder(args, json),
        Command::Concepts(args) => concepts::run(args, json),
        Command::Compare(args) => compare::run(args, json),
    }
}

fn davis(args: &DavisArgs, json: bool) -> Result<()> {
    let names = args.selection.names()?;
    let dataset = DavisDataset::open(&args.root, &args.resolution, names.as_deref())?;
    let frames = dataset.frame_count();
    let prepared: Vec<Prepared> =
        dataset.sequences.into_iter().map(|s| prepare(s, args.layout)).collect::<Result<_>>()?;
    if let Some(out) = &args.out {
        for one in &prepared {
            check_writable(&out.join(&one.sequence.name))?;
        }
    }
    let method = Method::open(args)?;

    let bar = progress_bar(frames)?;
    let mut speed = Speed::default();
    let mut sequences = BTreeMap::new();
    for one in &prepared {
        let name = &one.sequence.name;
        bar.set_message(name.clone());
        let out = args.out.as_ref().map(|out| out.join(name));
        let score = evaluate(one, &method, out.as_deref(), &mut speed, &bar)
            .with_context(|| format!("cannot evaluate the sequence {name}"))?;
        sequences.insert(name.clone(), SequenceReport::from(&score));
    }
    bar.finish_and_clear();

    let report = DavisReport::new(sequences);
    let mut stdout = std::io::stdout().lock();
    if json {
        let mut object = serde_json::to_value(&report)?;
        object["method"] = method.describe();
        if let Method::Model { .. } = method {
            object["speed"] = speed.json();
        }
        writeln!(stdout, "{object}")?;
    } else {
        write!(stdout, "{}", table(&report))?;
        match &method {
            Method::Still => writeln!(stdout, "baseline: the first mask held still")?,
            Method::Model { model, .. } => {
                writeln!(stdout, "network on {}", model.backend_description())?;
                writeln!(stdout, "{}", speed.text())?;
            }
        }
    }
    Ok(())
}

fn prepare(sequence: DavisSequence, layout: LayoutArg) -> Result<Prepared> {
    ensure!(
        sequence.frames.len() >= MIN_FRAMES,
        "the sequence {} has {} frames; at least {MIN_FRAMES} are needed because the first and \
         the last are not evaluated",
        sequence.name,
        sequence.frames.len()
    );
    let path = &sequence.frames[0].annotation;
    let annotation = LabelMap::read_png(path)?;
    let scorer = FrameScorer::new(&annotation, layout.layout());
    ensure!(
        scorer.objects() > 0,
        "{} holds no object to carry; leave the sequence {} out by naming the others",
        path.display(),
        sequence.name
    );
    let first = scorer.layout().object_ids(&annotation);
    ensure!(
        first.data.iter().any(|&id| id != 0),
        "{} holds no object in the 2016 layout; choose another --layout",
        path.display()
    );
    Ok(Prepared { sequence, scorer, first })
}

/// Makes the folder and finds out whether files can be made in it, so that hours of work
/// do not end in a refused write.
fn check_writable(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder)
        .and_then(|()| tempfile::tempfile_in(folder))
        .with_context(|| format!("cannot write to the folder {}", folder.display()))?;
    Ok(())
}

/// Runs one sequence from its first mask on.
fn evaluate(
    prepared: &Prepared,
    method: &Method,
    out: Option<&Path>,
    speed: &mut Speed,
    bar: &ProgressBar,
) -> Result<SequenceScore> {
    let frames = &prepared.sequence.frames;
    let last = frames.len() - 1;
    let mut mask = prepared.first.clone();
    let mut stream = match method {
        Method::Still => None,
        Method::Model { model, config } => {
            let mut stream = StreamState::new(model.clone(), config.clone());
            stream.set_instances(prepared.first.clone());
            Some(stream)
        }
    };
    let mut counts = Vec::with_capacity(frames.len());
    for (index, frame) in frames.iter().enumerate() {
        if let Some(stream) = &mut stream {
            carry(stream, frame, &mut mask, speed)?;
        }
        if let Some(out) = out {
            mask.write_png(&out.join(format!("{}.png", frame.name)))?;
        }
        if index != 0 && index != last {
            let annotation = LabelMap::read_png(&frame.annotation)?;
            let counted =
                prepared.scorer.score(&annotation, &frame.annotation, &mask, &frame.image)?;
            counts.push((frame.name.clone(), counted));
        }
        bar.inc(1);
    }
    Ok(SequenceScore::from_frames(&prepared.scorer, counts))
}

/// Processes one frame and puts its masks into `mask`.
fn carry(
    stream: &mut StreamState,
    frame: &DavisFrame,
    mask: &mut LabelMap,
    speed: &mut Speed,
) -> Result<()> {
    let image = image::open(&frame.image)
        .with_context(|| format!("cannot decode the frame {}", frame.image.display()))?
        .into_rgb8();
    let view = FrameView::rgb(image.width(), image.height(), image.as_raw())?;
    let start = Instant::now();
    let result = stream
        .process(&view)
        .with_context(|| format!("cannot process the frame {}", frame.image.display()))?;
    speed.add(start.elapsed(), &result.times);
    let masks = result.masks.as_ref().context("the stream lost its masks")?;
    (mask.width, mask.height) = (masks.width, masks.height);
    mask.data.clone_from(&masks.labels);
    Ok(())
}

impl Method {
    fn open(args: &DavisArgs) -> Result<Self> {
        // Exactly one of the two is given; the argument group sees to that.
        let Some(bundle) = &args.method.bundle else { return Ok(Self::Still) };
        let options = BackendOptions { kind: args.backend, threads: args.threads };
        let model = Model::open(bundle, &options)?;
        let propagation = PropagationConfig {
            first_labels: args.first_labels.into(),
            ..PropagationConfig::default()
        };
        let config = StreamConfig {
            short_side: args.short_side,
            concepts: false,
            propagation,
            ..StreamConfig::default()
        };
        Ok(Self::Model { model, config })
    }

    /// What a figure was reached with.
    fn describe(&self) -> Value {
        match self {
            Self::Still => json!({ "baseline": "still" }),
            Self::Model { model, config } => json!({
                "bundle": model.bundle().manifest.name,
                "backend": model.backend_description(),
                "input": match model.bundle().manifest.embedder.size {
                    SizeRule::Fixed([h, w]) => format!("{w}x{h}"),
                    SizeRule::Dynamic => format!("short side {}", config.short_side),
                },
                "first_labels": match config.propagation.first_labels {
                    FirstLabels::Area => "area",
                    FirstLabels::Nearest => "nearest",
                },
                "context_frames": config.propagation.context_frames,
                "radius": config.propagation.radius,
                "topk": config.propagation.topk,
                "temperature": config.propagation.temperature,
            }),
        }
    }
}

impl Speed {
    fn add(&mut self, total: Duration, stages: &StageTimes) {
        self.frames += 1;
        self.total += total;
        self.stages.preprocess += stages.preprocess;
        self.stages.network += stages.network;
        self.stages.propagation += stages.propagation;
    }

    /// Mean milliseconds a frame.
    fn mean_ms(&self, time: Duration) -> f64 {
        time.as_secs_f64() * 1e3 / f64::from(self.frames.max(1))
    }

    fn frames_per_second(&self) -> f64 {
        f64::from(self.frames) / self.total.as_secs_f64().max(f64::MIN_POSITIVE)
    }

    fn json(&self) -> Value {
        json!({
            "frames": self.frames,
            "frames_per_second": self.frames_per_second(),
            "mean_ms": {
                "preprocess": self.mean_ms(self.stages.preprocess),
                "network": self.mean_ms(self.stages.network),
                "propagation": self.mean_ms(self.stages.propagation),
                "total": self.mean_ms(self.total),
            },
        })
    }

    fn text(&self) -> String {
        format!(
            "{} frames at {:.2} frames per second; mean per frame: preprocess {:.1} ms, network \
             {:.1} ms, propagation {:.1} ms, all {:.1} ms",
            self.frames,
            self.frames_per_second(),
            self.mean_ms(self.stages.preprocess),
            self.mean_ms(self.stages.network),
            self.mean_ms(self.stages.propagation),
            self.mean_ms(self.total),
        )
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use conceptseg::bundle::{BundleWriter, Codebook};

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        args: DavisArgs,
    }

    fn parse(line: &[&str]) -> Result<DavisArgs, clap::Error> {
        Cli::try_parse_from([&["eval"], line].concat()).map(|cli| cli.args)
    }

    /// A data set with one sequence of `frames` frames in which a 2x2 object moves right by
    /// a pixel a frame.
    fn dataset(frames: u32) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let folder = |kind: &str| root.path().join(kind).join("480p/box");
        for kind in ["JPEGImages", "Annotations"] {
            std::fs::create_dir_all(folder(kind)).unwrap();
        }
        for i in 0..frames {
            let image = folder("JPEGImages").join(format!("{i:05}.jpg"));
            image::RgbImage::new(16, 8).save(image).unwrap();
            let mut mask = LabelMap::background(16, 8);
            for y in 3..5 {
                let start = (y * 16 + 2 + i) as usize;
                mask.data[start..start + 2].fill(1);
            }
            mask.write_png(&folder("Annotations").join(format!("{i:05}.png"))).unwrap();
        }
        root
    }

    fn still(root: &Path, out: &Path) -> DavisArgs {
        let (root, out) = (root.display().to_string(), out.display().to_string());
        parse(&["--baseline", "still", "--root", &root, "--out", &out]).unwrap()
    }

    #[test]
    fn a_bundle_or_a_baseline_must_be_chosen_and_only_one() {
        let kind = |line: &[&str]| parse(line).unwrap_err().kind();
        let missing = kind(&["--root", "r"]);
        assert_eq!(missing, clap::error::ErrorKind::MissingRequiredArgument);
        let both = kind(&["--root", "r", "--bundle", "b", "--baseline", "still"]);
        assert_eq!(both, clap::error::ErrorKind::ArgumentConflict);
        let useless = kind(&["--root", "r", "--baseline", "still", "--threads", "2"]);
        assert_eq!(useless, clap::error::ErrorKind::ArgumentConflict);
        assert!(parse(&["--root", "r", "--bundle", "b", "--threads", "2"]).is_ok());
    }

    #[test]
    fn the_still_baseline_writes_and_scores_the_first_mask() {
        let root = dataset(4);
        let out = tempfile::tempdir().unwrap();
        let args = still(root.path(), out.path());
        davis(&args, true).unwrap();
        davis(&args, false).unwrap();
        let first =
            LabelMap::read_png(&root.path().join("Annotations/480p/box/00000.png")).unwrap();
        for i in 0..4 {
            let written = out.path().join(format!("box/{i:05}.png"));
            assert_eq!(LabelMap::read_png(&written).unwrap(), first);
        }
        let dataset = DavisDataset::open(root.path(), "480p", None).unwrap();
        let one = prepare(dataset.sequences[0].clone(), LayoutArg::Auto).unwrap();
        let bar = ProgressBar::hidden();
        let score = evaluate(&one, &Method::Still, None, &mut Speed::default(), &bar).unwrap();
        // Moved by one and by two of its two columns.
        assert_eq!(score.objects[0].region(), [1.0 / 3.0, 0.0]);
    }

    #[test]
    fn a_bundle_carries_the_mask_and_its_speed_is_measured() {
        let root = dataset(4);
        let bundle = tempfile::tempdir().unwrap();
        let vectors = (0..6 * 32).map(|i| if i % 33 == 0 { 1.0 } else { 0.0 }).collect();
        let codebook = Codebook::new(6, 32, vectors).unwrap();
        let onnx = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/tiny.onnx");
        BundleWriter::new("tiny", 8, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
            .write(bundle.path(), &onnx, &codebook)
            .unwrap();
        let (bundle, path) = (bundle.path().display().to_string(), root.path().display());
        let line = ["--bundle", &bundle, "--root", &path.to_string(), "--short-side", "64"];
        let args = parse(&[&line[..], &["--backend", "rten", "--threads", "1"]].concat()).unwrap();
        let method = Method::open(&args).unwrap();
        assert_eq!(method.describe()["input"], "short side 64");
        let dataset = DavisDataset::open(root.path(), "480p", None).unwrap();
        let one = prepare(dataset.sequences[0].clone(), LayoutArg::Auto).unwrap();
        let out = tempfile::tempdir().unwrap();
        let mut speed = Speed::default();
        let bar = ProgressBar::hidden();
        let score = evaluate(&one, &method, Some(out.path()), &mut speed, &bar).unwrap();
        assert_eq!((score.frames.len(), score.objects.len(), speed.frames), (2, 1, 4));
        assert!(speed.frames_per_second() > 0.0 && speed.text().starts_with("4 frames at"));
        assert_eq!(LabelMap::read_png(&out.path().join("00000.png")).unwrap(), one.first);
        assert!(out.path().join("00003.png").is_file());
    }

    #[test]
    fn what_would_fail_late_fails_early() {
        let out = tempfile::tempdir().unwrap();
        let short = dataset(2);
        let message = davis(&still(short.path(), out.path()), true).unwrap_err().to_string();
        assert!(message.contains("box has 2 frames"), "{message}");
        let file = out.path().join("file");
        std::fs::write(&file, b"").unwrap();
        let root = dataset(3);
        let message = davis(&still(root.path(), &file), true).unwrap_err().to_string();
        assert!(message.contains("cannot write to the folder"), "{message}");
        let mut no_bundle = still(root.path(), out.path());
        no_bundle.method = MethodArgs { bundle: Some(out.path().join("nothing")), baseline: None };
        assert!(davis(&no_bundle, true).is_err());
    }
}
