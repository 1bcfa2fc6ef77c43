//! `conceptseg eval voc | camvid | folder | concepts`: classes and concepts of still images.

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, ensure};
use clap::ValueEnum;
use conceptseg::backend::{BackendKind, BackendOptions};
use conceptseg::bundle::SizeRule;
use conceptseg::concepts::SegmentationConfig;
use conceptseg::datasets::segmentation::{Classes, SegmentationDataset};
use conceptseg::datasets::{camvid, voc};
use conceptseg::embed::Model;
use conceptseg::evaluate::classes::{self, Classifier, ClusterSettings, Resolution, SCALES};
use conceptseg::evaluate::linear::LinearClassifier;
use conceptseg::evaluate::purity;
use conceptseg::evaluate::windows::Windows;
use serde_json::{Value, json};

use crate::scores::{miou_json, miou_table, progress_bar, purity_json, purity_text};

/// The model and how it sees images.
#[derive(Debug, clap::Args)]
struct ModelArgs {
    /// Folder of the model bundle.
    #[arg(long, value_name = "DIR")]
    bundle: PathBuf,
    /// What runs the network.
    #[arg(long, value_enum, default_value_t)]
    backend: BackendKind,
    /// Threads of the network; 0: one per core.
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Short side of the network's input in pixels; bundles of a fixed size ignore it.
    #[arg(long, default_value_t = 336, value_parser = clap::value_parser!(u32).range(32..=4096))]
    short_side: u32,
}

/// How classes are decided.
#[derive(Debug, clap::Args)]
struct MethodArgs {
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
    linear: Option<PathBuf>,
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

/// Concepts.
#[derive(Debug, clap::Args)]
pub struct ConceptArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Which kind of data set ROOT is.
    #[arg(long, value_enum)]
    data: DataArg,
    /// Folder of the data set; of a folder data set, that with images and labels.
    #[arg(long, value_name = "DIR")]
    root: PathBuf,
    /// The split: train or val (of a folder data set: its folders are images and labels).
    #[arg(long, default_value = "val")]
    split: String,
    /// List of the images instead of the data set's own (VOC).
    #[arg(long, value_name = "FILE")]
    list: Option<PathBuf>,
    /// Class names of a folder data set, one a line.
    #[arg(long, value_name = "FILE", required_if_eq("data", "folder"))]
    classes: Option<PathBuf>,
    /// The label of pixels that do not count in a folder data set.
    #[arg(long, default_value_t = 255, value_name = "ID")]
    void: u8,
    /// At most that many images, evenly spread over the list.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Sides of the grid of blocks that clusters start as.
    #[arg(long, default_value_t = 5, value_name = "N")]
    grid: usize,
    /// Rounds of k-means.
    #[arg(long, default_value_t = 50, value_name = "N")]
    rounds: usize,
    /// Segments of fewer pixels are left out.
    #[arg(long, default_value_t = 0, value_name = "PIXELS")]
    min_area: u32,
    /// Concepts with fewer labelled segments are not scored.
    #[arg(long, default_value_t = 1, value_name = "N")]
    min_segments: u64,
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

pub fn voc(args: &VocArgs, json: bool) -> Result<()> {
    let open =
        |split, list: &Option<PathBuf>| voc::open(&args.root, split, list.as_deref(), args.limit);
    // A linear classifier needs no training images.
    let train = match args.method.linear {
        Some(_) => None,
        None => Some(open(voc::Split::Train, &args.train_list)?),
    };
    let val = open(voc::Split::Val, &args.val_list)?;
    evaluate("PASCAL VOC", &args.model, &args.method, train.as_ref(), &val, json)
}

pub fn camvid(args: &CamVidArgs, json: bool) -> Result<()> {
    let train = match args.method.linear {
        Some(_) => None,
        None => Some(camvid::open(&args.root, "train", args.limit)?),
    };
    let val = camvid::open(&args.root, &args.split, args.limit)?;
    evaluate("CamVid", &args.model, &args.method, train.as_ref(), &val, json)
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
    evaluate("folder", &args.model, &args.method, train.as_ref(), &val, json)
}

/// Runs the protocol on an opened data set and prints the outcome.
fn evaluate(
    name: &str,
    model_args: &ModelArgs,
    method: &MethodArgs,
    train: Option<&SegmentationDataset>,
    val: &SegmentationDataset,
    json: bool,
) -> Result<()> {
    let model = model_args.open()?;
    ensure!(
        !method.multi_scale || matches!(model.bundle().manifest.embedder.size, SizeRule::Dynamic),
        "the network of {} has a fixed size and cannot see several scales; leave --multi-scale out",
        model_args.bundle.display()
    );
    let start = Instant::now();
    let short_side = model_args.short_side;
    let clusters = method.clusters();
    let mut description = model_args.describe(&model);
    description["dataset"] = name.into();
    let classifier = if let Some(train) = train {
        let bar = progress_bar("prototypes", train.images.len())?;
        let prototypes = classes::prototypes(&model, train, short_side, &clusters, &|| bar.inc(1))?;
        bar.finish_and_clear();
        ensure!(!prototypes.is_empty(), "all labels of the training images are void");
        description["method"] = json!({
            "kind": "nearest neighbours",
            "train_images": train.images.len(),
            "prototypes": prototypes.len(),
            "neighbours": method.neighbours,
            "grid": clusters.grid,
            "rounds": clusters.rounds,
            "clustered": match clusters.resolution {
                Resolution::Pixels => "pixels",
                Resolution::Grid => "embedding grid",
            },
            "protocol": match clusters.windows {
                None => "image".to_owned(),
                Some(Windows { size, stride }) => format!("windows of {size} every {stride}"),
            },
        });
        Classifier::Neighbours { prototypes, k: method.neighbours.into(), clusters }
    } else {
        let linear = method.read_linear(&model, val)?;
        description["method"] = json!({ "kind": "linear" });
        Classifier::Linear(linear)
    };
    let scales: &[f64] = if method.multi_scale { &SCALES } else { &[1.0] };
    description["method"]["scales"] = json!(scales);
    description["method"]["mirrored"] = method.multi_scale.into();
    let bar = progress_bar("scored", val.images.len())?;
    let confusion = classes::score(&model, val, short_side, &classifier, scales, &|| bar.inc(1))?;
    bar.finish_and_clear();
    let report = confusion.report();
    let seconds = start.elapsed().as_secs_f64();
    let mut out = std::io::stdout().lock();
    if json {
        description["images"] = val.images.len().into();
        description["seconds"] = seconds.into();
        description["miou"] = miou_json(&report, &val.classes);
        writeln!(out, "{description}")?;
    } else {
        write!(out, "{}", miou_table(&report, &val.classes))?;
        writeln!(
            out,
            "{} images in {seconds:.1} s, network on {}",
            val.images.len(),
            model.backend_description()
        )?;
    }
    Ok(())
}

pub fn concepts(args: &ConceptArgs, json: bool) -> Result<()> {
    let set = args.open()?;
    let model = args.model.open()?;
    let start = Instant::now();
    let settings = SegmentationConfig { grid: args.grid, iterations: args.rounds };
    let bar = progress_bar("labelled", set.images.len())?;
    let (short_side, tick) = (args.model.short_side, || bar.inc(1));
    let counts = purity::count(&model, &set, short_side, &settings, args.min_area, &tick)?;
    bar.finish_and_clear();
    let report = counts.report(args.min_segments);
    let seconds = start.elapsed().as_secs_f64();
    let mut out = std::io::stdout().lock();
    if json {
        let mut object = args.model.describe(&model);
        object["images"] = set.images.len().into();
        object["split"] = args.split.clone().into();
        object["grid"] = args.grid.into();
        object["rounds"] = args.rounds.into();
        object["min_area"] = args.min_area.into();
        object["min_segments"] = args.min_segments.into();
        object["seconds"] = seconds.into();
        object["purity"] = purity_json(&report, &set.classes)?;
        writeln!(out, "{object}")?;
    } else {
        write!(out, "{}", purity_text(&report))?;
        writeln!(
            out,
            "{} images in {seconds:.1} s, network on {}",
            set.images.len(),
            model.backend_description()
        )?;
    }
    Ok(())
}

impl ConceptArgs {
    fn open(&self) -> Result<SegmentationDataset> {
        let (root, limit) = (&self.root, self.limit);
        Ok(match self.data {
            DataArg::Voc => {
                let split = match self.split.as_str() {
                    "train" => voc::Split::Train,
                    "val" => voc::Split::Val,
                    other => anyhow::bail!("VOC has no split {other}; use train or val"),
                };
                voc::open(root, split, self.list.as_deref(), limit)?
            }
            DataArg::Camvid => camvid::open(root, &self.split, limit)?,
            DataArg::Folder => {
                // The option is required for this kind.
                let classes = Classes::read(self.classes.as_deref().unwrap_or(root), self.void)?;
                let (images, labels) = (root.join("images"), root.join("labels"));
                SegmentationDataset::open_folders(&images, &labels, classes, limit)?
            }
        })
    }
}

impl ModelArgs {
    fn open(&self) -> Result<Arc<Model>> {
        let options = BackendOptions { kind: self.backend, threads: self.threads };
        Ok(Model::open(&self.bundle, &options)?)
    }

    /// What a figure was reached with.
    fn describe(&self, model: &Model) -> Value {
        let manifest = &model.bundle().manifest;
        json!({
            "bundle": manifest.name,
            "embedder_sha256": manifest.embedder.sha256,
            "concepts_sha256": manifest.concepts.sha256,
            "backend": model.backend_description(),
            "version": env!("CARGO_PKG_VERSION"),
            "input": match manifest.embedder.size {
                SizeRule::Fixed([h, w]) => format!("{w}x{h}"),
                SizeRule::Dynamic => format!("short side {}", self.short_side),
            },
        })
    }
}

impl MethodArgs {
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

    fn read_linear(&self, model: &Model, val: &SegmentationDataset) -> Result<LinearClassifier> {
        // Only called where the option is given.
        let path = self.linear.clone().unwrap_or_default();
        let linear = LinearClassifier::read(&path)?;
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
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clap::Parser;
    use conceptseg::bundle::{BundleWriter, Codebook};
    use conceptseg::labels::LabelMap;
    use conceptseg::metrics::miou::MiouReport;

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli<T: clap::Args> {
        #[command(flatten)]
        args: T,
    }

    fn parse<T: clap::Args>(line: &[&str]) -> T {
        Cli::<T>::parse_from([&["eval"], line].concat()).args
    }

    /// Red images of one class and blue ones of another, left column void; a tiny bundle.
    fn fixture() -> tempfile::TempDir {
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
        let vectors = (0..6 * 32).map(|i| if i % 33 == 0 { 1.0 } else { 0.0 }).collect();
        let codebook = Codebook::new(6, 32, vectors).unwrap();
        let onnx = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/tiny.onnx");
        BundleWriter::new("tiny", 8, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
            .write(&root.path().join("bundle"), &onnx, &codebook)
            .unwrap();
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
        let prototypes = classes::prototypes(&model, &train, 64, &clusters, &|| ()).unwrap();
        let classifier =
            Classifier::Neighbours { prototypes, k: args.method.neighbours.into(), clusters };
        let scales: &[f64] = if args.method.multi_scale { &SCALES } else { &[1.0] };
        classes::score(&model, &val, 64, &classifier, scales, &|| ()).unwrap().report()
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

    #[test]
    fn concepts_of_labelled_images_are_counted() {
        let root = fixture();
        let path = |name: &str| root.path().join(name).display().to_string();
        let (bundle, data, classes) = (path("bundle"), path("val"), path("classes.txt"));
        let args: ConceptArgs = parse(&[
            "--bundle",
            &bundle,
            "--data",
            "folder",
            "--root",
            &data,
            "--classes",
            &classes,
            "--backend",
            "rten",
            "--short-side",
            "64",
        ]);
        concepts(&args, true).unwrap();
        concepts(&args, false).unwrap();
        let set = args.open().unwrap();
        let settings = SegmentationConfig::default();
        let model = args.model.open().unwrap();
        let counts = purity::count(&model, &set, 64, &settings, 0, &|| ()).unwrap();
        let report = counts.report(1);
        assert!(report.segments >= 6 && report.used >= 1);
    }
}
