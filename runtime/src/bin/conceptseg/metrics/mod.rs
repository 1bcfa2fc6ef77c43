//! `conceptseg metrics`: scores files that any program has written.

mod davis;
mod miou;
mod purity;

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::{Subcommand, ValueEnum};
use conceptseg::datasets::segmentation::Classes;
use conceptseg::datasets::{camvid, voc};
use conceptseg::metrics::files::ResultFiles;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Score result masks against annotations with the measures of the DAVIS benchmark.
    ///
    /// Region similarity J and contour accuracy F with mean, recall (share of frames above
    /// 0.5) and decay (first quarter less last), equal to the official
    /// davis2017-evaluation tool for the semi-supervised task: the first and last frame of
    /// a sequence are left out, its objects are the ids of the first annotation, and a
    /// surplus id in a result is an error. Masks are palette or greyscale PNGs whose values
    /// are object ids. All files are checked before the first sequence is scored.
    Davis(davis::DavisArgs),
    /// Score label PNGs against the ground truth: intersection over union of each class.
    ///
    /// Pixels are counted over all files; void pixels of the ground truth are left out. The
    /// ground truth says which files are scored, results of no such file are named. Labels are
    /// palette or greyscale PNGs of at most 8 bits whose values are class ids.
    Miou(miou::MiouArgs),
    /// Score concept maps against the ground truth: how far each concept shows one class.
    ///
    /// 4-connected areas of one id are the segments; a segment's class is that of most of its
    /// labelled pixels, and the purity of a concept the share of its segments in its most
    /// frequent class. Concept maps are palette or greyscale PNGs of at most 16 bits.
    Purity(purity::PurityArgs),
}

/// Which classes the labels hold.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct ClassSource {
    /// Text file of class names, one a line in the order of their ids from 0 on.
    #[arg(long, value_name = "FILE")]
    classes: Option<PathBuf>,
    /// Number of classes, which go without names then.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=255))]
    num_classes: Option<u16>,
    /// Classes and void of a known data set.
    #[arg(long, value_enum)]
    dataset: Option<DatasetArg>,
}

/// The labels and what they mean.
#[derive(Debug, clap::Args)]
struct Truth {
    /// Folder of ground-truth PNGs of the same names.
    #[arg(long, value_name = "DIR")]
    labels: PathBuf,
    #[command(flatten)]
    classes: ClassSource,
    /// The label of pixels that do not count; 255, or the data set's own, without this option.
    #[arg(long, value_name = "ID")]
    void: Option<u8>,
    /// File that names what is scored, one a line; all labels without this option.
    #[arg(long, value_name = "FILE")]
    list: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum DatasetArg {
    /// PASCAL VOC: 21 classes, 255 void.
    Voc,
    /// `CamVid`: 11 classes, 11 void.
    Camvid,
}

pub fn run(command: &Command, json: bool) -> Result<()> {
    match command {
        Command::Davis(args) => davis::run(args, json),
        Command::Miou(args) => miou::run(args, json),
        Command::Purity(args) => purity::run(args, json),
    }
}

impl Truth {
    fn classes(&self) -> Result<Classes> {
        let void = self.void.unwrap_or(255);
        let mut classes = match &self.classes {
            ClassSource { classes: Some(file), .. } => Classes::read(file, void)?,
            ClassSource { dataset: Some(DatasetArg::Voc), .. } => Classes::new(&voc::CLASSES, 255),
            ClassSource { dataset: Some(DatasetArg::Camvid), .. } => {
                Classes::new(&camvid::CLASSES, camvid::VOID)
            }
            // One of the three is required.
            ClassSource { num_classes, .. } => {
                let names = (0..num_classes.unwrap_or(1)).map(|id| id.to_string()).collect();
                Classes { names, void }
            }
        };
        classes.void = self.void.unwrap_or(classes.void);
        ensure!(
            usize::from(classes.void) >= classes.count(),
            "void is {}, which is the id of a class; there are {}, from 0 on",
            classes.void,
            classes.count()
        );
        Ok(classes)
    }

    fn open(&self, results: &std::path::Path) -> Result<ResultFiles> {
        Ok(ResultFiles::open(results, &self.labels, self.list.as_deref())?)
    }
}

/// Names of results that were not scored, shortened where there are many.
fn surplus_line(files: &ResultFiles) -> String {
    const SHOWN: usize = 5;
    let names: Vec<_> = files
        .surplus
        .iter()
        .map(|path| path.file_name().unwrap_or_default().to_string_lossy())
        .collect();
    match names.len() {
        0 => String::new(),
        n if n <= SHOWN => format!("not asked for, left out: {}\n", names.join(", ")),
        n => format!(
            "not asked for, left out: {} and {} more\n",
            names[..SHOWN].join(", "),
            n - SHOWN
        ),
    }
}

/// The same as a list for JSON.
fn surplus_json(files: &ResultFiles) -> serde_json::Value {
    files.surplus.iter().map(|path| path.display().to_string()).collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use conceptseg::labels::{IdMap, LabelMap};

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(subcommand)]
        command: Command,
    }

    fn parse(line: &str) -> Result<Command, clap::Error> {
        Ok(Cli::try_parse_from(line.split_whitespace())?.command)
    }

    /// Two results of the ground truth itself, a surplus one, and concept maps.
    fn fixture() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for folder in ["results", "labels", "concepts"] {
            std::fs::create_dir(root.path().join(folder)).unwrap();
        }
        let map = LabelMap { width: 4, height: 2, data: vec![0, 0, 1, 1, 0, 0, 1, 11] };
        let ids = IdMap { width: 4, height: 2, data: vec![300, 300, 2, 2, 300, 300, 2, 2] };
        for name in ["a.png", "b.png"] {
            map.write_png(&root.path().join("labels").join(name)).unwrap();
            map.write_png(&root.path().join("results").join(name)).unwrap();
            ids.write_png(&root.path().join("concepts").join(name)).unwrap();
        }
        map.write_png(&root.path().join("results/c.png")).unwrap();
        root
    }

    #[test]
    fn results_and_concept_maps_of_any_tool_are_scored() {
        let root = fixture();
        std::fs::write(root.path().join("names.txt"), "ground\nthing\n").unwrap();
        let at = root.path().display();
        for line in [
            format!("metrics miou --results {at}/results --labels {at}/labels --dataset camvid"),
            format!(
                "metrics miou --results {at}/results --labels {at}/labels --num-classes 2 --void 11"
            ),
            format!(
                "metrics miou --results {at}/results --labels {at}/labels --classes {at}/names.txt --void 11"
            ),
            format!(
                "metrics purity --concepts {at}/concepts --labels {at}/labels --dataset camvid"
            ),
        ] {
            for json in [true, false] {
                run(&parse(&line).unwrap(), json).unwrap();
            }
        }
        let line =
            format!("metrics miou --results {at}/results --labels {at}/labels --dataset voc");
        // 11 is a class of VOC, so that nothing is void here.
        run(&parse(&line).unwrap(), true).unwrap();
        let line = format!(
            "metrics purity --concepts {at}/concepts --labels {at}/labels --dataset camvid --num-concepts 300"
        );
        let text = run(&parse(&line).unwrap(), true).unwrap_err().to_string();
        assert!(
            text.contains("concepts/a.png holds the concept id 300 at column 0, row 0"),
            "{text}"
        );
    }

    #[test]
    fn classes_come_from_one_source_and_void_is_none_of_them() {
        let line = "metrics miou --results r --labels l";
        assert!(parse(line).is_err());
        assert!(parse(&format!("{line} --num-classes 3 --dataset voc")).is_err());
        let classes = |more: &str| match parse(&format!("{line} {more}")).unwrap() {
            Command::Miou(args) => args.labels.classes(),
            other => panic!("{other:?}"),
        };
        let camvid = classes("--dataset camvid").unwrap();
        assert_eq!((camvid.count(), camvid.void), (11, 11));
        let three = classes("--num-classes 3 --void 4").unwrap();
        assert_eq!((three.names, three.void), (vec!["0".into(), "1".into(), "2".into()], 4));
        let text = classes("--num-classes 3 --void 2").unwrap_err().to_string();
        assert!(text.contains("void is 2"), "{text}");
    }

    #[test]
    fn many_surplus_files_are_counted() {
        let surplus = |n: usize| ResultFiles {
            pairs: vec![],
            surplus: (0..n).map(|i| format!("r/{i}.png").into()).collect(),
        };
        assert_eq!(surplus_line(&surplus(0)), "");
        assert_eq!(surplus_line(&surplus(2)), "not asked for, left out: 0.png, 1.png\n");
        assert!(surplus_line(&surplus(7)).ends_with("4.png and 2 more\n"));
    }
}
