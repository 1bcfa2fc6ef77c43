//! `conceptseg eval voc | camvid | folder`: classes of still images. `eval coco` shares its
//! arguments and its protocol.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;
use conceptseg::bundle::SizeRule;
use conceptseg::datasets::segmentation::{Classes, SegmentationDataset};
use conceptseg::datasets::{camvid, voc};
use conceptseg::embed::Model;
use conceptseg::evaluate::classes::{
    self, Classifier, ClusterSettings, Predictor, Prototypes, Resolution, SCALES,
};
use conceptseg::evaluate::linear::LinearClassifier;
use conceptseg::evaluate::report::{ImageClasses, Report, Scores};
use conceptseg::evaluate::run::{Inputs, hash_each, hash_files, hash_names};
use conceptseg::evaluate::units;
use conceptseg::evaluate::windows::Windows;
use conceptseg::labels::LabelMap;
use image::RgbImage;
use serde_json::json;

use super::model::{ModelArgs, bundle_inputs};
use super::page::{self, Section, Shown};
use super::pictures;
use super::run::{self, RunArgs, finish, stage_bar};
use crate::scores::{miou_json, miou_table};

/// How classes are decided.
#[derive(Debug, clap::Args)]
pub(super) struct MethodArgs {
    /// Sides of the grid of blocks that clusters start as.
    #[arg(long, default_value_t = 5, value_name = "N")]
    grid: usize,
    /// Rounds of k-means.
    #[arg(long, default_value_t = 50, value_name = "N")]
    rounds: usize,
    /// Where pixels are clustered.
    #[arg(long, value_enum, default_value_t)]
    cluster: ClusterArg,
    /// What is embedded and clustered at once.
    #[arg(long, value_enum, default_value_t)]
    protocol: ProtocolArg,
    /// Nearest prototypes that vote.
    #[arg(
        long,
        default_value_t = 15,
        value_name = "K",
        value_parser = clap::value_parser!(u16).range(1..=1000)
    )]
    neighbours: u16,
    /// Linear classifier to use instead of prototypes, from `conceptseg-train linear-probe`.
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with_all = ["grid", "rounds", "cluster", "protocol", "neighbours"]
    )]
    pub(super) linear: Option<PathBuf>,
    /// Sum votes over the scales 0.5, 0.75, … 1.75, each also mirrored.
    #[arg(long)]
    multi_scale: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum ClusterArg {
    /// At the size of the image, as in the paper's protocol.
    #[default]
    Pixels,
    /// On the embedding grid, as live streams do; many times as fast.
    Grid,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum ProtocolArg {
    /// The whole image.
    #[default]
    Image,
    /// Windows of 480 pixels every 320, as `SegSort` does.
    Windowed,
}

/// PASCAL VOC.
#[derive(Debug, clap::Args)]
pub struct VocArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    method: MethodArgs,
    #[command(flatten)]
    run: RunArgs,
    /// Folder of the data set: VOC2012, or one with `<split>/JPEGImages` and `lists/<split>.txt`.
    #[arg(long, value_name = "DIR")]
    root: PathBuf,
    /// List of the training images instead of the data set's own.
    #[arg(long, value_name = "FILE")]
    train_list: Option<PathBuf>,
    /// List of the validation images instead of the data set's own.
    #[arg(long, value_name = "FILE")]
    val_list: Option<PathBuf>,
    /// At most that many images of each list, evenly spread over it.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
}

/// `CamVid`.
#[derive(Debug, clap::Args)]
pub struct CamVidArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    method: MethodArgs,
    #[command(flatten)]
    run: RunArgs,
    /// Folder with train, trainannot, and the folders of the split to score.
    #[arg(long, value_name = "DIR")]
    root: PathBuf,
    /// The split to score.
    #[arg(long, default_value = "val")]
    split: String,
    /// At most that many images of each split, evenly spread over it.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
}

/// Folders of images and label PNGs.
#[derive(Debug, clap::Args)]
pub struct FolderArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    method: MethodArgs,
    #[command(flatten)]
    run: RunArgs,
    /// Folder of training images.
    #[arg(long, value_name = "DIR")]
    train_images: PathBuf,
    /// Folder of their labels: PNGs of class ids with the names of the images.
    #[arg(long, value_name = "DIR")]
    train_labels: PathBuf,
    /// Folder of the images to score.
    #[arg(long, value_name = "DIR")]
    images: PathBuf,
    /// Folder of their labels.
    #[arg(long, value_name = "DIR")]
    labels: PathBuf,
    #[command(flatten)]
    classes: ClassArgs,
    /// At most that many images of each folder, evenly spread over it.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
}

/// Names of classes.
#[derive(Debug, clap::Args)]
struct ClassArgs {
    /// Text file of class names, one a line in the order of their ids from 0 on.
    #[arg(long, value_name = "FILE")]
    classes: PathBuf,
    /// The label of pixels that do not count.
    #[arg(long, default_value_t = 255, value_name = "ID")]
    void: u8,
}

pub fn voc(args: &VocArgs, json: bool) -> Result<()> {
    let open =
        |split, list: &Option<PathBuf>| voc::open(&args.root, split, list.as_deref(), args.limit);
    // A linear classifier needs no training images.
    let train = match args.method.linear {
        Some(_) => None,
        None => Some(open(voc::Split::Train, &args.train_list)?),
    };
    let val = open(voc::Split::Val, &args.val_list)?;
    evaluate("voc", &args.model, &args.method, train.as_ref(), &val, &args.run, json)
}

pub fn camvid(args: &CamVidArgs, json: bool) -> Result<()> {
    let train = match args.method.linear {
        Some(_) => None,
        None => Some(camvid::open(&args.root, "train", args.limit)?),
    };
    let val = camvid::open(&args.root, &args.split, args.limit)?;
    evaluate("camvid", &args.model, &args.method, train.as_ref(), &val, &args.run, json)
}

pub fn folder(args: &FolderArgs, json: bool) -> Result<()> {
    let classes = Classes::read(&args.classes.classes, args.classes.void)?;
    let open = |images, labels| {
        SegmentationDataset::open_folders(images, labels, classes.clone(), args.limit)
    };
    let train = match args.method.linear {
        Some(_) => None,
        None => Some(open(&args.train_images, &args.train_labels)?),
    };
    let val = open(&args.images, &args.labels)?;
    evaluate("folder", &args.model, &args.method, train.as_ref(), &val, &args.run, json)
}

/// Images of which pictures are shown in the report.
const SHOWN: usize = 8;

/// Runs the protocol on an opened data set and prints the outcome.
pub(super) fn evaluate(
    kind: &str,
    model_args: &ModelArgs,
    method: &MethodArgs,
    train: Option<&SegmentationDataset>,
    val: &SegmentationDataset,
    run_args: &RunArgs,
    json: bool,
) -> Result<()> {
    let model = model_args.open()?;
    ensure!(
        !method.multi_scale || matches!(model.bundle().manifest.embedder.size, SizeRule::Dynamic),
        "the network of {} has a fixed size and cannot see several scales; leave --multi-scale out",
        model_args.bundle.display()
    );
    let start = Instant::now();
    let linear = method.linear.as_ref().map(|path| read_linear(path, &model, val));
    let linear = linear.transpose()?;
    let run = run_args.open(method.inputs(kind, model_args, &model, train, val)?)?;
    let short_side = model_args.short_side;
    let classifier = match (train, linear) {
        (_, Some(linear)) => Classifier::Linear(linear),
        (Some(train), None) => {
            let clusters = method.clusters();
            let stage = run.stage::<Prototypes>("prototypes", &units(train))?;
            let bar = stage_bar("prototypes", "images", &stage)?;
            classes::prototypes(&model, train, short_side, &clusters, &stage, &|| bar.inc(1))?;
            bar.finish_and_clear();
            let Some(found) = finish("prototypes", "images", stage)? else { return Ok(()) };
            let prototypes = Prototypes::join(found, model.bundle().manifest.embedder.dim);
            ensure!(!prototypes.is_empty(), "all labels of the training images are void");
            Classifier::Neighbours { prototypes, k: method.neighbours.into(), clusters }
        }
        (None, None) => anyhow::bail!("without a linear classifier, training images are needed"),
    };
    let scales: &[f64] = if method.multi_scale { &SCALES } else { &[1.0] };
    let stage = run.stage::<ImageClasses>("scores", &units(val))?;
    let bar = stage_bar("scored", "images", &stage)?;
    classes::score(&model, val, short_side, &classifier, scales, &stage, &|| bar.inc(1))?;
    bar.finish_and_clear();
    let Some(images) = finish("scores", "images", stage)? else { return Ok(()) };
    let scores = Scores::Classes { classes: val.classes.names.clone(), images };
    let counts = scores.miou(&vec![1; val.images.len()]).context("no image was counted")?;
    let report = Report::new(run.inputs().clone(), scores);
    if run.folder().is_some() {
        let mut predictor = Predictor::new(&model, short_side, val.classes.count());
        let shown = pictures::spread(val.images.len(), SHOWN)
            .into_iter()
            .map(|at| {
                let one = &val.images[at];
                let image = one.read_image()?;
                let found = predictor.predict(&image, &classifier, scales)?;
                shown(&one.name, &image, &one.read_labels()?, &found, &val.classes)
            })
            .collect::<Result<Vec<_>>>()?;
        let captions = ["the image", "the truth, void white", "what was found"];
        let section = Section::new("Images", page::pictures(&shown, captions));
        run::write(&run, &report, vec![section])?;
    }
    let seconds = start.elapsed().as_secs_f64();
    let mut out = std::io::stdout().lock();
    if json {
        let prototypes = match &classifier {
            Classifier::Neighbours { prototypes, .. } => Some(prototypes.len()),
            Classifier::Linear(_) => None,
        };
        let object = json!({
            "inputs": report.inputs,
            "figures": report.figures,
            "images": val.images.len(),
            "prototypes": prototypes,
            "seconds": seconds,
            "miou": miou_json(&counts, &val.classes),
        });
        writeln!(out, "{object}")?;
    } else {
        write!(out, "{}", miou_table(&counts, &val.classes))?;
        write!(out, "{}", run::figures_text(&report))?;
        writeln!(
            out,
            "{} images in {seconds:.1} s, network on {}",
            val.images.len(),
            model.backend_description()
        )?;
    }
    Ok(())
}

fn read_linear(path: &Path, model: &Model, val: &SegmentationDataset) -> Result<LinearClassifier> {
    let linear = LinearClassifier::read(path)?;
    let dim = model.bundle().manifest.embedder.dim;
    ensure!(
        (linear.classes, linear.dim) == (val.classes.count(), dim),
        "{} is for {} classes and {} dimensions, but the data set has {} classes and the bundle \
         {dim} dimensions; train one for both with conceptseg-train linear-probe",
        path.display(),
        linear.classes,
        linear.dim,
        val.classes.count()
    );
    Ok(linear)
}

/// An image with its truth and what was found.
fn shown(
    name: &str,
    image: &RgbImage,
    truth: &LabelMap,
    found: &LabelMap,
    classes: &Classes,
) -> Result<Shown> {
    let background = (classes.names[0] == "background").then_some(0);
    let draw = |labels| pictures::overlay(image, labels, background, classes.void);
    let pictures =
        [pictures::jpeg(image)?, pictures::jpeg(&draw(truth))?, pictures::jpeg(&draw(found))?];
    Ok(Shown { name: name.to_owned(), pictures })
}

impl MethodArgs {
    /// Everything that decides the figures.
    fn inputs(
        &self,
        kind: &str,
        model_args: &ModelArgs,
        model: &Model,
        train: Option<&SegmentationDataset>,
        val: &SegmentationDataset,
    ) -> Result<Inputs> {
        let labels =
            |set: &SegmentationDataset| -> Result<String> { Ok(hash_each(&set.label_files())?) };
        let mut settings = model_args.settings(model);
        settings["classes"] = val.classes.count().into();
        settings["images"] = val.images.len().into();
        let scales: &[f64] = if self.multi_scale { &SCALES } else { &[1.0] };
        settings["scales"] = json!(scales);
        settings["mirrored"] = self.multi_scale.into();
        match (&self.linear, train) {
            (None, Some(train)) => {
                settings["method"] = "nearest neighbours".into();
                settings["training images"] = train.images.len().into();
                settings["neighbours"] = self.neighbours.into();
                settings["grid"] = self.grid.into();
                settings["rounds"] = self.rounds.into();
                settings["clustered"] = match self.cluster {
                    ClusterArg::Pixels => "pixels",
                    ClusterArg::Grid => "embedding grid",
                }
                .into();
                settings["protocol"] = match self.clusters().windows {
                    None => "image".into(),
                    Some(Windows { size, stride }) => {
                        format!("windows of {size} every {stride}").into()
                    }
                };
            }
            _ => settings["method"] = "linear".into(),
        }
        let mut inputs = bundle_inputs(kind, model, settings)
            .with("annotations", labels(val)?)
            .with("list", hash_names(&units(val)));
        if let (None, Some(train)) = (&self.linear, train) {
            inputs = inputs
                .with("training annotations", labels(train)?)
                .with("training list", hash_names(&units(train)));
        }
        if let Some(path) = &self.linear {
            inputs = inputs.with("classifier", hash_files(std::slice::from_ref(path))?);
        }
        Ok(inputs)
    }

    fn clusters(&self) -> ClusterSettings {
        ClusterSettings {
            grid: self.grid,
            rounds: self.rounds,
            resolution: match self.cluster {
                ClusterArg::Pixels => Resolution::Pixels,
                ClusterArg::Grid => Resolution::Grid,
            },
            windows: (self.protocol == ProtocolArg::Windowed).then(Windows::default),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use clap::Parser;
    use conceptseg::evaluate::run::Run;
    use conceptseg::metrics::miou::MiouReport;

    use super::*;
    use crate::eval::fixtures::write_tiny_bundle;

    #[derive(Debug, Parser)]
    struct Cli<T: clap::Args> {
        #[command(flatten)]
        args: T,
    }

    pub(in crate::eval) fn parse<T: clap::Args>(line: &[&str]) -> T {
        Cli::<T>::parse_from([&["eval"], line].concat()).args
    }

    /// Red images of one class and blue ones of another, left column void; a tiny bundle.
    pub(in crate::eval) fn fixture() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for split in ["train", "val"] {
            for kind in ["images", "labels"] {
                std::fs::create_dir_all(root.path().join(split).join(kind)).unwrap();
            }
            for i in 0..6u8 {
                let class = i % 2;
                let colour = if class == 0 { [240, 20 + i, 10] } else { [10, 20 + i, 240] };
                let folder = root.path().join(split);
                image::RgbImage::from_pixel(48, 32, image::Rgb(colour))
                    .save(folder.join(format!("images/{i}.png")))
                    .unwrap();
                let data = (0..48 * 32).map(|p| if p % 48 == 0 { 255 } else { class }).collect();
                LabelMap { width: 48, height: 32, data }
                    .write_png(&folder.join(format!("labels/{i}.png")))
                    .unwrap();
            }
        }
        std::fs::write(root.path().join("classes.txt"), "red\nblue\n").unwrap();
        write_tiny_bundle(&root.path().join("bundle"));
        root
    }

    fn folder_args(root: &Path, more: &[&str]) -> FolderArgs {
        let path = |name: &str| root.join(name).display().to_string();
        let (ti, tl) = (path("train/images"), path("train/labels"));
        let (vi, vl) = (path("val/images"), path("val/labels"));
        let (bundle, classes) = (path("bundle"), path("classes.txt"));
        let fixed = [
            "--bundle",
            &bundle,
            "--train-images",
            &ti,
            "--train-labels",
            &tl,
            "--images",
            &vi,
            "--labels",
            &vl,
            "--classes",
            &classes,
            "--backend",
            "rten",
            "--short-side",
            "64",
        ];
        parse(&[&fixed[..], more].concat())
    }

    fn report(args: &FolderArgs) -> MiouReport {
        let model = args.model.open().unwrap();
        let classes = Classes::read(&args.classes.classes, 255).unwrap();
        let open = |images, labels| {
            SegmentationDataset::open_folders(images, labels, classes.clone(), None).unwrap()
        };
        let train = open(&args.train_images, &args.train_labels);
        let val = open(&args.images, &args.labels);
        let clusters = args.method.clusters();
        let run = Run::in_memory(Inputs::new("test", json!({})));
        let stage = run.stage("prototypes", &units(&train)).unwrap();
        classes::prototypes(&model, &train, 64, &clusters, &stage, &|| ()).unwrap();
        let prototypes = Prototypes::join(stage.finish().unwrap(), 32);
        let classifier =
            Classifier::Neighbours { prototypes, k: args.method.neighbours.into(), clusters };
        let scales: &[f64] = if args.method.multi_scale { &SCALES } else { &[1.0] };
        let stage = run.stage("scores", &units(&val)).unwrap();
        classes::score(&model, &val, 64, &classifier, scales, &stage, &|| ()).unwrap();
        let images = stage.finish().unwrap();
        let scores = Scores::Classes { classes: classes.names, images };
        scores.miou(&vec![1; val.images.len()]).unwrap()
    }

    #[test]
    fn colours_that_the_network_tells_apart_are_classified() {
        let root = fixture();
        for more in [
            &[][..],
            &["--cluster", "grid"],
            &["--multi-scale", "--rounds", "5"],
            &["--protocol", "windowed", "--rounds", "5"],
            &["--protocol", "windowed", "--cluster", "grid", "--multi-scale", "--rounds", "5"],
        ] {
            let args = folder_args(root.path(), &[more, &["--neighbours", "5"]].concat());
            assert_eq!(report(&args).mean_all, 1.0, "{more:?}");
            folder(&args, true).unwrap();
        }
        folder(&folder_args(root.path(), &[]), false).unwrap();
    }

    #[test]
    fn a_linear_classifier_must_fit_and_needs_no_training_images() {
        let root = fixture();
        let path = root.path().join("linear.safetensors");
        let mut linear =
            LinearClassifier { classes: 3, dim: 32, weight: vec![0.0; 96], bias: vec![0.0; 3] };
        linear.write(&path).unwrap();
        let given = path.display().to_string();
        let args = folder_args(root.path(), &["--linear", &given]);
        let text = folder(&args, true).unwrap_err().to_string();
        assert!(text.contains("3 classes and 32 dimensions"), "{text}");
        (linear.classes, linear.weight, linear.bias) = (2, vec![0.0; 64], vec![0.0, 1.0]);
        linear.write(&path).unwrap();
        std::fs::remove_dir_all(root.path().join("train")).unwrap();
        folder(&args, true).unwrap();
        folder(&folder_args(root.path(), &["--linear", &given, "--multi-scale"]), true).unwrap();
    }
}
