//! `conceptseg eval coco`: classes of COCO 2017, mapped to those of PASCAL VOC.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use conceptseg::datasets::coco::{self, Kind, MIN_TRAIN_PIXELS, Source};
use conceptseg::datasets::segmentation::SegmentationDataset;
use conceptseg::datasets::voc::Split;

use super::model::ModelArgs;
use super::run::RunArgs;
use super::segmentation::{MethodArgs, evaluate};

/// COCO 2017.
#[derive(Debug, clap::Args)]
pub struct CocoArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    method: MethodArgs,
    #[command(flatten)]
    run: RunArgs,
    /// Folder of the data set: train2017, val2017 and annotations.
    #[arg(
        long,
        value_name = "DIR",
        required_unless_present_all = ["images", "annotations"]
    )]
    root: Option<PathBuf>,
    /// What the labels are made from.
    #[arg(long, value_enum, default_value_t)]
    kind: KindArg,
    /// Folder of training images instead of ROOT/train2017.
    #[arg(long, value_name = "DIR")]
    train_images: Option<PathBuf>,
    /// Their annotations instead of ROOT/annotations/…_train2017.json.
    #[arg(long, value_name = "FILE")]
    train_annotations: Option<PathBuf>,
    /// Folder of their panoptic PNGs instead of the one beside the annotations, of their name.
    #[arg(long, value_name = "DIR")]
    train_panoptic_masks: Option<PathBuf>,
    /// Folder of the images to score instead of ROOT/val2017.
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// Their annotations instead of ROOT/annotations/…_val2017.json.
    #[arg(long, value_name = "FILE")]
    annotations: Option<PathBuf>,
    /// Folder of their panoptic PNGs instead of the one beside the annotations, of their name.
    #[arg(long, value_name = "DIR")]
    panoptic_masks: Option<PathBuf>,
    /// At most that many images of each split, evenly spread over it.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
}

/// Which annotations.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum KindArg {
    /// Polygons and run lengths.
    #[default]
    Instances,
    /// PNGs of segments.
    Panoptic,
}

pub fn run(args: &CocoArgs, json: bool) -> Result<()> {
    let train = args.open_train()?;
    let (val, _) = coco::open(&args.source(Split::Val)?, None, args.limit)?;
    let kind = match args.kind {
        KindArg::Instances => "coco",
        KindArg::Panoptic => "coco-panoptic",
    };
    evaluate(kind, &args.model, &args.method, train.as_ref(), &val, &args.run, json)
}

impl CocoArgs {
    fn open_train(&self) -> Result<Option<SegmentationDataset>> {
        if self.method.linear.is_some() {
            // A linear classifier needs no training images.
            return Ok(None);
        }
        let source = self.source(Split::Train)?;
        let (set, dropped) = coco::open(&source, Some(MIN_TRAIN_PIXELS), self.limit)?;
        eprintln!(
            "{dropped} training images are left out: they have at most {MIN_TRAIN_PIXELS} pixels \
             of the 20 classes"
        );
        Ok(Some(set))
    }

    /// The files of a split: those named, and the layout's for the others.
    fn source(&self, split: Split) -> Result<Source> {
        let (images, annotations, masks) = match split {
            Split::Train => {
                (&self.train_images, &self.train_annotations, &self.train_panoptic_masks)
            }
            Split::Val => (&self.images, &self.annotations, &self.panoptic_masks),
        };
        let panoptic = self.kind == KindArg::Panoptic;
        let standard = self.root.as_ref().map(|root| Source::standard(root, split, panoptic));
        let or_standard = |given: &Option<PathBuf>, part: fn(&Source) -> &Path| {
            given.clone().or_else(|| standard.as_ref().map(|source| part(source).to_owned()))
        };
        let needed = "without --root, --train-images and --train-annotations are needed too, \
                      unless --linear is given";
        let images = or_standard(images, |source| &source.images).context(needed)?;
        let annotations = or_standard(annotations, |source| &source.annotations).context(needed)?;
        let kind = match (panoptic, masks) {
            (false, _) => Kind::Instances,
            (true, Some(masks)) => Kind::Panoptic(masks.clone()),
            (true, None) => Source::masks_beside(&annotations),
        };
        Ok(Source { images, annotations, kind })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use conceptseg::evaluate::linear::LinearClassifier;
    use serde_json::{Value, json};

    use super::*;
    use crate::eval::concepts::{self, ConceptArgs};
    use crate::eval::fixtures::write_tiny_bundle;

    #[derive(Debug, Parser)]
    struct Cli<T: clap::Args> {
        #[command(flatten)]
        args: T,
    }

    fn parse<T: clap::Args>(line: &[&str]) -> T {
        Cli::<T>::parse_from([&["eval"], line].concat()).args
    }

    /// Red persons and blue cats that fill their images but for a strip of green ground, and one
    /// training image of a small cat; instances and segments say the same. A tiny bundle.
    fn fixture() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for split in ["train2017", "val2017"] {
            let masks = root.path().join(format!("annotations/panoptic_{split}"));
            std::fs::create_dir_all(&masks).unwrap();
            std::fs::create_dir_all(root.path().join(split)).unwrap();
            let (mut images, mut instances, mut segments) = (vec![], vec![], vec![]);
            for i in 0..6u8 {
                let (category, colour) =
                    if i % 2 == 0 { (1, [240, 20 + i, 10]) } else { (17, [10, 20 + i, 240]) };
                let small = split == "train2017" && i == 5;
                let width = if small { 16 } else { 48 };
                let thing = |x: u32, y: u32| x < width && y < 32;
                image::RgbImage::from_fn(48, 48, |x, y| {
                    image::Rgb(if thing(x, y) { colour } else { [20, 230, 30] })
                })
                .save(root.path().join(format!("{split}/{i}.png")))
                .unwrap();
                image::RgbImage::from_fn(48, 48, |x, y| {
                    image::Rgb(if thing(x, y) { [1, 2, 3] } else { [9, 0, 0] })
                })
                .save(masks.join(format!("{i}.png")))
                .unwrap();
                images.push(
                    json!({ "id": i, "file_name": format!("{i}.png"), "width": 48, "height": 48 }),
                );
                instances.push(json!({
                    "id": 100 + u32::from(i), "image_id": i, "category_id": category, "iscrowd": 0,
                    "segmentation": [[0, 0, width, 0, width, 32, 0, 32]],
                }));
                segments.push(
                    json!({ "image_id": i, "file_name": format!("{i}.png"), "segments_info": [
                    { "id": 1 + 256 * 2 + 65536 * 3, "category_id": category, "area": 32 * width },
                    { "id": 9, "category_id": 193, "area": 48 * 48 - 32 * width },
                ] }),
                );
            }
            let categories = json!([
                { "id": 1, "name": "person" }, { "id": 17, "name": "cat" },
                { "id": 193, "name": "grass-merged" },
            ]);
            let write = |kind: &str, annotations: &[Value]| {
                let path = root.path().join(format!("annotations/{kind}_{split}.json"));
                let file = json!({
                    "images": images, "annotations": annotations, "categories": categories,
                });
                std::fs::write(path, file.to_string()).unwrap();
            };
            write("instances", &instances);
            write("panoptic", &segments);
        }
        write_tiny_bundle(&root.path().join("bundle"));
        root
    }

    /// Arguments with the bundle of `root`.
    fn args<T: clap::Args>(root: &Path, more: &[&str]) -> T {
        let bundle = root.join("bundle").display().to_string();
        let fixed = ["--bundle", &bundle, "--backend", "rten", "--short-side", "64"];
        parse(&[&fixed[..], more].concat())
    }

    #[test]
    fn both_kinds_of_annotations_are_evaluated_alike() {
        let root = fixture();
        let path = root.path().display().to_string();
        let out = tempfile::tempdir().unwrap();
        let (mut labels, mut figures) = (Vec::new(), Vec::new());
        for kind in ["instances", "panoptic"] {
            let folder = out.path().join(kind).display().to_string();
            let more = ["--root", &path, "--kind", kind, "--neighbours", "3", "--out", &folder];
            let args: CocoArgs = args(root.path(), &more);
            run(&args, true).unwrap();
            // The journal holds every image, so that nothing is left to do.
            let folder = out.path().join(kind);
            let report = std::fs::read_to_string(folder.join("report.json")).unwrap();
            run(&args, true).unwrap();
            assert_eq!(std::fs::read_to_string(folder.join("report.json")).unwrap(), report);
            let report: Value = serde_json::from_str(&report).unwrap();
            let figure = |name: &str| report["figures"][name]["value"].as_f64().unwrap();
            figures.push(figure("pixel accuracy"));
            let train = args.source(Split::Train).unwrap();
            let (train, dropped) = coco::open(&train, Some(MIN_TRAIN_PIXELS), None).unwrap();
            assert_eq!((train.images.len(), dropped), (5, 1), "the small cat is left out");
            let (val, _) = coco::open(&args.source(Split::Val).unwrap(), None, None).unwrap();
            let maps: Vec<_> = val.images.iter().map(|one| one.read_labels().unwrap()).collect();
            assert_eq!([maps[0].data[0], maps[1].data[0], maps[1].data[47 * 48]], [15, 8, 0]);
            labels.push(maps);
        }
        assert_eq!(labels[0], labels[1]);
        assert_eq!(figures[0], figures[1]);
        assert!(figures[0] > 0.9, "{figures:?}");
    }

    #[test]
    fn results_of_other_annotations_are_not_taken_over() {
        let root = fixture();
        let path = root.path().display().to_string();
        let out = root.path().join("out").display().to_string();
        let args: CocoArgs = args(root.path(), &["--root", &path, "--out", &out]);
        run(&args, true).unwrap();
        let file = root.path().join("annotations/instances_val2017.json");
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, text.replacen("\"category_id\":17", "\"category_id\":1", 1)).unwrap();
        let text = run(&args, true).unwrap_err().to_string();
        assert!(text.contains("results of other inputs: files.annotations is"), "{text}");
    }

    #[test]
    fn files_may_be_named_one_by_one() {
        let root = fixture();
        let path = |name: &str| root.path().join(name).display().to_string();
        let (images, train_images) = (path("val2017"), path("train2017"));
        let (val, train) = (
            path("annotations/panoptic_val2017.json"),
            path("annotations/panoptic_train2017.json"),
        );
        let masks = path("annotations/panoptic_val2017");
        let some = ["--images", &images, "--annotations", &val, "--kind", "panoptic"];
        let more = ["--train-images", &train_images, "--train-annotations", &train, "--limit", "3"];
        let all = [&some[..], &more, &["--panoptic-masks", &masks, "--cluster", "grid"]].concat();
        run(&args(root.path(), &all), false).unwrap();
        let text = run(&args(root.path(), &some), false).unwrap_err().to_string();
        assert!(text.contains("--train-images and --train-annotations"), "{text}");
        let linear = root.path().join("linear.safetensors");
        LinearClassifier { classes: 21, dim: 32, weight: vec![0.0; 21 * 32], bias: vec![0.0; 21] }
            .write(&linear)
            .unwrap();
        let linear = linear.display().to_string();
        run(&args(root.path(), &[&some[..], &["--linear", &linear]].concat()), true).unwrap();
    }

    #[test]
    fn concepts_are_counted_on_both_kinds() {
        let root = fixture();
        let path = root.path().display().to_string();
        for data in ["coco", "coco-panoptic"] {
            let line = ["--data", data, "--root", &path, "--split", "train"];
            let args: ConceptArgs = args(root.path(), &line);
            concepts::run(&args, true).unwrap();
        }
        let line = ["--data", "coco", "--root", &path, "--split", "test"];
        let text = concepts::run(&args(root.path(), &line), true).unwrap_err().to_string();
        assert!(text.contains("no split test"), "{text}");
    }
}
