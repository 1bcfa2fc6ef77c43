//! Scores PNGs that any tool wrote against label PNGs of the same names.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::miou::{Confusion, MiouError};
use super::purity::{PurityCounts, segments};
use crate::datasets::files_with_extension;
use crate::datasets::segmentation::{SegmentationError, read_text};
use crate::labels::{IdMap, LabelError, LabelMap, png_size};

/// Endings that names of a list may have.
const ENDINGS: [&str; 3] = [".png", ".jpg", ".jpeg"];

/// Why files could not be scored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FilesError {
    /// A folder could not be listed.
    #[error("cannot list the folder {path}: {source}")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the file system answered.
        source: io::Error,
    },
    /// The list could not be read.
    #[error(transparent)]
    List(#[from] SegmentationError),
    /// There is nothing to score.
    #[error("{path} names no label PNG; give a list or folder with at least one")]
    Empty {
        /// The list or folder.
        path: PathBuf,
    },
    /// A list names a file twice.
    #[error("{path} names {name} twice; every file is scored once")]
    Twice {
        /// The list.
        path: PathBuf,
        /// The name.
        name: String,
    },
    /// A file is not there.
    #[error("{path} is missing, but {because} asks for it")]
    Missing {
        /// The file expected.
        path: PathBuf,
        /// The list or labels that need it.
        because: PathBuf,
    },
    /// Sizes differ.
    #[error(
        "{path} is {}x{} but its labels {labels} are {}x{}; both must have one size",
        found.0, found.1, expected.0, expected.1
    )]
    Size {
        /// The result.
        path: PathBuf,
        /// Its width and height.
        found: (u32, u32),
        /// The labels.
        labels: PathBuf,
        /// Width and height of the labels.
        expected: (u32, u32),
    },
    /// A result does not fit its labels.
    #[error("cannot score {path} against {labels}: {source}")]
    Score {
        /// The result.
        path: PathBuf,
        /// The labels.
        labels: PathBuf,
        /// What does not fit.
        source: MiouError,
    },
    /// A file holds an id that does not exist.
    #[error("{path} holds the {kind} id {id} at column {x}, row {y}; there are {count}, from 0 on")]
    UnknownId {
        /// The file.
        path: PathBuf,
        /// "class" or "concept".
        kind: &'static str,
        /// The id.
        id: u16,
        /// Column of its first pixel.
        x: usize,
        /// Row of its first pixel.
        y: usize,
        /// How many ids there are.
        count: usize,
    },
    /// A map could not be read.
    #[error(transparent)]
    Label(#[from] LabelError),
}

/// A result and the labels that it is scored against.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// The result's PNG.
    pub result: PathBuf,
    /// The labels' PNG.
    pub labels: PathBuf,
}

/// Results paired with their labels, all of them there and of equal sizes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResultFiles {
    /// The pairs, in the order of the list or of the names.
    pub pairs: Vec<Pair>,
    /// Results that belong to none of the labels asked for.
    pub surplus: Vec<PathBuf>,
}

impl ResultFiles {
    /// Pairs the PNGs of two folders. The labels say what is scored: all of the folder, or those
    /// that `list` names one a line (a path counts by its last part and without its ending; of
    /// several words the last counts, so that lists of an image and a label path serve as well).
    ///
    /// # Errors
    /// The first file that is missing, or else the first whose size is not that of its labels.
    pub fn open(results: &Path, labels: &Path, list: Option<&Path>) -> Result<Self, FilesError> {
        let files = |folder: &Path| {
            files_with_extension(folder, &["png"])
                .map_err(|source| FilesError::Folder { path: folder.to_owned(), source })
        };
        let names = match list {
            Some(list) => listed(list)?,
            None => files(labels)?.iter().map(|path| file_name(path)).collect(),
        };
        let asked_by = list.unwrap_or(labels);
        if names.is_empty() {
            return Err(FilesError::Empty { path: asked_by.to_owned() });
        }
        let pair = |name: &String| Pair { result: results.join(name), labels: labels.join(name) };
        let pairs: Vec<Pair> = names.iter().map(pair).collect();
        // Absence is found out first: it costs nothing.
        for one in &pairs {
            for (path, because) in [(&one.labels, asked_by), (&one.result, &one.labels)] {
                if !path.is_file() {
                    let (path, because) = (path.clone(), because.to_owned());
                    return Err(FilesError::Missing { path, because });
                }
            }
        }
        if let Some(error) = pairs.par_iter().find_map_first(|one| one.check_size().err()) {
            return Err(error);
        }
        let known: BTreeSet<&String> = names.iter().collect();
        let mut surplus = files(results)?;
        surplus.retain(|path| !known.contains(&file_name(path)));
        Ok(Self { pairs, surplus })
    }

    /// Counts pixels of `classes` classes by true and by predicted class, files in parallel.
    /// `tick` is called after every file.
    ///
    /// # Errors
    /// The first file with an id that is neither a class nor, in the labels, `void`. Ids are
    /// looked at while they are counted: looking at them before would decode every file twice.
    pub fn confusion(
        &self,
        classes: usize,
        void: u8,
        tick: &(dyn Fn() + Sync),
    ) -> Result<Confusion, FilesError> {
        let start = || Confusion::new(classes, Some(void));
        let counts = self.each(|one| {
            let mut confusion = start();
            let (labels, result) =
                (LabelMap::read_png(&one.labels)?, LabelMap::read_png(&one.result)?);
            confusion.add(&labels, &result).map_err(|source| {
                let (path, labels) = (one.result.clone(), one.labels.clone());
                FilesError::Score { path, labels, source }
            })?;
            tick();
            Ok(confusion)
        })?;
        Ok(counts.iter().fold(start(), Confusion::merged))
    }

    /// Counts the 4-connected segments of concept maps by concept and class, files in parallel.
    /// `tick` is called after every file.
    ///
    /// # Errors
    /// The first file with an id that does not exist.
    pub fn purity(
        &self,
        rules: &PurityRules,
        tick: &(dyn Fn() + Sync),
    ) -> Result<PurityCounts, FilesError> {
        let found = self.each(|one| {
            let (labels, ids) = (LabelMap::read_png(&one.labels)?, IdMap::read_png(&one.result)?);
            rules.check(one, &ids, &labels)?;
            let mut all = segments(&ids, &labels, rules.void);
            all.retain(|s| rules.ignored != Some(s.id) && s.area >= rules.min_area);
            tick();
            Ok(all)
        })?;
        let highest = found.iter().flatten().map(|s| usize::from(s.id) + 1).max().unwrap_or(0);
        let mut counts = PurityCounts::new(rules.concepts.unwrap_or(highest), rules.classes);
        for segment in found.iter().flatten() {
            counts.add_segment(usize::from(segment.id), segment.class.map(usize::from));
        }
        Ok(counts)
    }

    /// Runs `work` on all pairs; of several errors that of the first pair counts.
    fn each<R: Send>(
        &self,
        work: impl Fn(&Pair) -> Result<R, FilesError> + Sync + Send,
    ) -> Result<Vec<R>, FilesError> {
        let results: Vec<Result<R, FilesError>> = self.pairs.par_iter().map(work).collect();
        results.into_iter().collect()
    }
}

impl Pair {
    fn check_size(&self) -> Result<(), FilesError> {
        let (found, expected) = (png_size(&self.result)?, png_size(&self.labels)?);
        if found != expected {
            let (path, labels) = (self.result.clone(), self.labels.clone());
            return Err(FilesError::Size { path, found, labels, expected });
        }
        Ok(())
    }
}

/// What ids of concept maps and labels mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PurityRules {
    /// Number of classes, 1..=256.
    pub classes: usize,
    /// The label of pixels without a class.
    pub void: u8,
    /// Number of concepts, 1..=65536; `None` for one more than the highest id found.
    pub concepts: Option<usize>,
    /// The id of pixels without a concept.
    pub ignored: Option<u16>,
    /// Segments of fewer pixels are left out.
    pub min_area: u32,
}

impl PurityRules {
    fn check(&self, files: &Pair, ids: &IdMap, labels: &LabelMap) -> Result<(), FilesError> {
        let unknown = |path: &Path, kind, id, at: usize, width: u32, count| {
            let (path, width) = (path.to_owned(), width.max(1) as usize);
            Err(FilesError::UnknownId { path, kind, id, x: at % width, y: at / width, count })
        };
        let known = |id: u8| id == self.void || usize::from(id) < self.classes;
        if let Some(at) = labels.data.iter().position(|&id| !known(id)) {
            let id = labels.data[at].into();
            return unknown(&files.labels, "class", id, at, labels.width, self.classes);
        }
        let Some(concepts) = self.concepts else { return Ok(()) };
        let known = |id: u16| Some(id) == self.ignored || usize::from(id) < concepts;
        if let Some(at) = ids.data.iter().position(|&id| !known(id)) {
            return unknown(&files.result, "concept", ids.data[at], at, ids.width, concepts);
        }
        Ok(())
    }
}

/// A file's name with its ending.
fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Names of the PNGs that a list asks for.
fn listed(list: &Path) -> Result<Vec<String>, FilesError> {
    let text = read_text(list)?;
    let mut names = Vec::new();
    let mut seen = BTreeSet::new();
    for entry in text.lines().filter_map(|line| line.split_whitespace().last()) {
        let last = entry.rsplit('/').next().unwrap_or(entry);
        let stem = ENDINGS.iter().find_map(|ending| last.strip_suffix(ending)).unwrap_or(last);
        let name = format!("{stem}.png");
        if !seen.insert(name.clone()) {
            return Err(FilesError::Twice { path: list.to_owned(), name });
        }
        names.push(name);
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Folders "results" and "labels" of maps 4x2, `a.png` to `c.png`.
    fn folders() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let root = tempfile::tempdir().unwrap();
        let (results, labels) = (root.path().join("results"), root.path().join("labels"));
        for folder in [&results, &labels] {
            std::fs::create_dir(folder).unwrap();
            for name in ["a.png", "b.png", "c.png"] {
                map([0, 0, 1, 1, 0, 0, 1, 255]).write_png(&folder.join(name)).unwrap();
            }
        }
        map([0, 0, 1, 1, 0, 1, 1, 0]).write_png(&results.join("b.png")).unwrap();
        map([0; 8]).write_png(&results.join("z.png")).unwrap();
        map([0, 0, 1, 1, 0, 0, 1, 1]).write_png(&results.join("a.png")).unwrap();
        map([0, 0, 1, 1, 0, 0, 1, 1]).write_png(&results.join("c.png")).unwrap();
        (root, results, labels)
    }

    fn map(data: [u8; 8]) -> LabelMap {
        LabelMap { width: 4, height: 2, data: data.to_vec() }
    }

    const RULES: PurityRules =
        PurityRules { classes: 2, void: 255, concepts: Some(2), ignored: None, min_area: 0 };

    #[test]
    fn equal_names_are_scored_and_surplus_results_named() {
        let (_root, results, labels) = folders();
        let files = ResultFiles::open(&results, &labels, None).unwrap();
        assert_eq!(files.surplus, [results.join("z.png")]);
        let report = files.confusion(2, 255, &|| ()).unwrap().report();
        // One of 21 labelled pixels is wrong: a 0 that b calls 1.
        assert_eq!(report.pixels, [12, 9]);
        assert_eq!(report.iou, [Some(11.0 / 12.0), Some(9.0 / 10.0)]);
        let purity = files.purity(&RULES, &|| ()).unwrap().report(1);
        assert_eq!((purity.concepts, purity.segments, purity.unlabelled), (2, 6, 1));
        assert_eq!(purity.mean, 1.0);
    }

    #[test]
    fn a_list_of_names_or_paths_says_what_is_scored() {
        let (root, results, labels) = folders();
        let list = root.path().join("val.txt");
        std::fs::write(&list, "c\n/JPEGImages/b.jpg /SegmentationClassAug/b.png\n\n").unwrap();
        std::fs::remove_file(results.join("a.png")).unwrap();
        let files = ResultFiles::open(&results, &labels, Some(&list)).unwrap();
        let names: Vec<_> = files.pairs.iter().map(|one| file_name(&one.result)).collect();
        assert_eq!(names, ["c.png", "b.png"]);
        std::fs::write(&list, "b\nb.png\n").unwrap();
        let text = ResultFiles::open(&results, &labels, Some(&list)).unwrap_err().to_string();
        assert!(text.contains("names b.png twice"), "{text}");
        std::fs::write(&list, "q\n").unwrap();
        let text = ResultFiles::open(&results, &labels, Some(&list)).unwrap_err().to_string();
        assert!(
            text.contains("labels/q.png is missing, but") && text.contains("val.txt"),
            "{text}"
        );
        std::fs::write(&list, "\n").unwrap();
        let text = ResultFiles::open(&results, &labels, Some(&list)).unwrap_err().to_string();
        assert!(text.contains("names no label PNG"), "{text}");
    }

    #[test]
    fn missing_files_and_other_sizes_are_named_before_anything_is_counted() {
        let (_root, results, labels) = folders();
        LabelMap::background(4, 3).write_png(&results.join("c.png")).unwrap();
        let text = ResultFiles::open(&results, &labels, None).unwrap_err().to_string();
        assert!(text.contains("results/c.png is 4x3") && text.contains("4x2"), "{text}");
        std::fs::remove_file(results.join("b.png")).unwrap();
        let text = ResultFiles::open(&results, &labels, None).unwrap_err().to_string();
        assert!(text.contains("results/b.png is missing"), "{text}");
        let text = ResultFiles::open(Path::new("/nonexistent"), &labels, None).unwrap_err();
        assert!(text.to_string().contains("/nonexistent/a.png is missing"), "{text}");
        std::fs::write(labels.join("a.png"), b"none").unwrap();
        map([0; 8]).write_png(&results.join("b.png")).unwrap();
        let text = ResultFiles::open(&results, &labels, None).unwrap_err().to_string();
        assert!(text.contains("labels/a.png is not a readable PNG"), "{text}");
    }

    #[test]
    fn unknown_ids_are_named_by_file_and_pixel() {
        let (_root, results, labels) = folders();
        map([0, 0, 1, 1, 0, 0, 9, 9]).write_png(&results.join("b.png")).unwrap();
        let files = ResultFiles::open(&results, &labels, None).unwrap();
        let text = files.confusion(2, 255, &|| ()).unwrap_err().to_string();
        assert!(text.contains("results/b.png") && text.contains("value 9 at column 2"), "{text}");
        let text = files.purity(&RULES, &|| ()).unwrap_err().to_string();
        let expected = "results/b.png holds the concept id 9 at column 2, row 1; there are 2";
        assert!(text.contains(expected), "{text}");
        // Without a number of concepts, or with 9 for "none", the same file is fine.
        let open = PurityRules { concepts: None, ..RULES };
        assert_eq!(files.purity(&open, &|| ()).unwrap().report(1).concepts, 10);
        let ignored = PurityRules { ignored: Some(9), ..RULES };
        assert_eq!(files.purity(&ignored, &|| ()).unwrap().report(1).concepts, 2);
        let text = files.purity(&PurityRules { classes: 1, ..open }, &|| ()).unwrap_err();
        assert!(text.to_string().contains("labels/a.png holds the class id 1 at column 2, row 0"));
    }
}
