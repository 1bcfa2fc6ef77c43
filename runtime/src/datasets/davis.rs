//! The DAVIS layout, which the 2016 and the 2017 release share:
//!
//! ```text
//! ROOT/JPEGImages/480p/<sequence>/00000.jpg …
//! ROOT/Annotations/480p/<sequence>/00000.png …
//! ROOT/ImageSets/…/*.txt                      optional lists, see [`read_list`]
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use super::{files_with_extension, folders_with_extension};
use crate::labels::{LabelError, LabelMap};

/// Endings of frames.
const FRAME_EXTENSIONS: [&str; 2] = ["jpg", "jpeg"];
/// Largest list of sequences that is read, in bytes.
const MAX_LIST_BYTES: u64 = 4 << 20;

/// Why a data set was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DatasetError {
    /// A file or folder could not be read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the file system answered.
        source: io::Error,
    },
    /// The root is not laid out as DAVIS is.
    #[error(
        "{root} has no folder {missing}; expected the DAVIS layout \
         ROOT/JPEGImages/{resolution}/<sequence>/*.jpg with \
         ROOT/Annotations/{resolution}/<sequence>/*.png (found: {found})"
    )]
    Layout {
        /// The root given.
        root: PathBuf,
        /// The folder that is not there, relative to the root.
        missing: PathBuf,
        /// The resolution asked for.
        resolution: String,
        /// What the root holds instead.
        found: String,
    },
    /// No sequence was found.
    #[error("{path} holds no sequence: expected folders of .jpg frames in it")]
    Empty {
        /// The folder of sequences.
        path: PathBuf,
    },
    /// A sequence that was asked for does not exist.
    #[error("there is no sequence {name:?} in {path}; available: {available}")]
    UnknownSequence {
        /// The name asked for.
        name: String,
        /// The folder of sequences.
        path: PathBuf,
        /// The names there are.
        available: String,
    },
    /// A list names a sequence twice.
    #[error("{path}, line {line}: the sequence {name:?} was named before; name each sequence once")]
    Repeated {
        /// The list.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The sequence.
        name: String,
    },
    /// A frame has no annotation.
    #[error(
        "the annotation {path} is missing; add it or leave the sequence out by naming the \
         others"
    )]
    MissingAnnotation {
        /// The file expected.
        path: PathBuf,
    },
    /// An annotation has no frame.
    #[error("the frame {path} is missing, but its annotation {annotation} exists")]
    MissingFrame {
        /// The file expected.
        path: PathBuf,
        /// The annotation.
        annotation: PathBuf,
    },
    /// Sizes differ within a sequence.
    #[error(
        "{path} is {}x{} but the sequence's first frame is {}x{}; all frames and annotations \
         of a sequence must have one size", found.0, found.1, expected.0, expected.1
    )]
    Size {
        /// The file.
        path: PathBuf,
        /// Its width and height in pixels.
        found: (u32, u32),
        /// Those of the first frame.
        expected: (u32, u32),
    },
    /// A file is not an image.
    #[error("{path} is not a readable image: {reason}")]
    Image {
        /// The file.
        path: PathBuf,
        /// What the decoder said.
        reason: String,
    },
    /// The first annotation could not be decoded.
    #[error(transparent)]
    Label(#[from] LabelError),
}

/// One frame with its annotation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DavisFrame {
    /// File stem, such as `00042`.
    pub name: String,
    /// The JPEG frame.
    pub image: PathBuf,
    /// The PNG annotation.
    pub annotation: PathBuf,
}

/// One sequence; all its frames and annotations have the same size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DavisSequence {
    /// Folder name.
    pub name: String,
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// Frames in order, at least one.
    pub frames: Vec<DavisFrame>,
}

/// A checked set of sequences.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DavisDataset {
    /// Sequences by name, at least one.
    pub sequences: Vec<DavisSequence>,
}

impl DavisDataset {
    /// Opens the sequences below `root` at `resolution` (`480p`, `Full-Resolution`): those
    /// named, or without names every sequence that has frames.
    ///
    /// Every file is checked before this returns: each frame has an annotation and the
    /// other way round, all sizes of a sequence agree (from the files' headers), and the
    /// first annotation decodes.
    ///
    /// # Errors
    /// [`DatasetError`] for the first thing that is wrong.
    pub fn open(
        root: &Path,
        resolution: &str,
        sequences: Option<&[String]>,
    ) -> Result<Self, DatasetError> {
        let images = layout_folder(root, "JPEGImages", resolution)?;
        let annotations = layout_folder(root, "Annotations", resolution)?;
        let available = folders_with_extension(&images, &FRAME_EXTENSIONS)
            .map_err(|source| DatasetError::Io { path: images.clone(), source })?;
        if available.is_empty() {
            return Err(DatasetError::Empty { path: images });
        }
        let names = select(&available, sequences, &images)?;
        let sequences = names
            .iter()
            .map(|name| open_sequence(name, &images.join(name), &annotations.join(name)))
            .collect::<Result<_, _>>()?;
        Ok(Self { sequences })
    }

    /// Number of frames of all sequences.
    pub fn frame_count(&self) -> usize {
        self.sequences.iter().map(|s| s.frames.len()).sum()
    }
}

/// The names asked for, each once and in rising order, if all are available; all
/// available ones when none were asked for.
///
/// # Errors
/// [`DatasetError::UnknownSequence`], which lists the names that `folder` has.
pub fn select(
    available: &[String],
    wanted: Option<&[String]>,
    folder: &Path,
) -> Result<Vec<String>, DatasetError> {
    let Some(wanted) = wanted else { return Ok(available.to_vec()) };
    let wanted: BTreeSet<&String> = wanted.iter().collect();
    if let Some(name) = wanted.iter().find(|name| !available.contains(name)) {
        return Err(DatasetError::UnknownSequence {
            name: (**name).clone(),
            path: folder.to_owned(),
            available: available.join(", "),
        });
    }
    Ok(wanted.into_iter().cloned().collect())
}

/// The sequence names of an `ImageSets` list: one name per line (2017), or one
/// `/JPEGImages/480p/<sequence>/00000.jpg /Annotations/…` pair per line (2016). Each name
/// once, in the order of the file; empty lines are skipped.
///
/// # Errors
/// [`DatasetError::Repeated`] for a name or a frame that comes twice, and for two folders of the
/// same name, whose figures could not be told apart; [`DatasetError::Io`].
pub fn read_list(path: &Path) -> Result<Vec<String>, DatasetError> {
    let io_error = |source| DatasetError::Io { path: path.to_owned(), source };
    let bytes = std::fs::metadata(path).map_err(io_error)?.len();
    if bytes > MAX_LIST_BYTES {
        let source = io::Error::other(format!("{bytes} bytes are too many for a list of names"));
        return Err(io_error(source));
    }
    let text = std::fs::read_to_string(path).map_err(io_error)?;
    let mut names: Vec<String> = Vec::new();
    let (mut entries, mut folders) = (BTreeSet::new(), BTreeMap::new());
    for (index, line) in text.lines().enumerate() {
        let Some(entry) = line.split_whitespace().next() else { continue };
        let (folder, name) = match entry.rsplit_once('/') {
            Some((folder, _)) => (folder, folder.rsplit('/').next().unwrap_or(folder)),
            None => (entry, entry),
        };
        if !entries.insert(entry) || *folders.entry(name).or_insert(folder) != folder {
            let (path, line, name) = (path.to_owned(), index + 1, name.to_owned());
            return Err(DatasetError::Repeated { path, line, name });
        }
        if !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    }
    if names.is_empty() {
        return Err(io_error(io::Error::other("the list names no sequence")));
    }
    Ok(names)
}

/// `root/kind/resolution`, which must be a folder.
fn layout_folder(root: &Path, kind: &str, resolution: &str) -> Result<PathBuf, DatasetError> {
    let missing = Path::new(kind).join(resolution);
    let folder = root.join(&missing);
    if folder.is_dir() {
        return Ok(folder);
    }
    let entries = std::fs::read_dir(root)
        .map_err(|source| DatasetError::Io { path: root.to_owned(), source })?;
    let mut names: Vec<String> = entries
        .filter_map(|e| Some(e.ok()?.file_name().to_string_lossy().into_owned()))
        .take(8)
        .collect();
    names.sort_unstable();
    let found = if names.is_empty() { "nothing".to_owned() } else { names.join(", ") };
    let (root, resolution) = (root.to_owned(), resolution.to_owned());
    Err(DatasetError::Layout { root, missing, resolution, found })
}

fn open_sequence(
    name: &str,
    images: &Path,
    annotations: &Path,
) -> Result<DavisSequence, DatasetError> {
    let image_files = list(images, &FRAME_EXTENSIONS)?;
    let annotation_files =
        if annotations.is_dir() { list(annotations, &["png"])? } else { BTreeMap::new() };
    let mut frames = Vec::with_capacity(image_files.len());
    for (frame, image) in &image_files {
        let Some(annotation) = annotation_files.get(frame) else {
            let path = annotations.join(format!("{frame}.png"));
            return Err(DatasetError::MissingAnnotation { path });
        };
        frames.push(DavisFrame {
            name: frame.clone(),
            image: image.clone(),
            annotation: annotation.clone(),
        });
    }
    if let Some((frame, annotation)) =
        annotation_files.iter().find(|(frame, _)| !image_files.contains_key(*frame))
    {
        let path = images.join(format!("{frame}.jpg"));
        return Err(DatasetError::MissingFrame { path, annotation: annotation.clone() });
    }
    let Some(first) = frames.first() else {
        return Err(DatasetError::Empty { path: images.to_owned() });
    };
    let expected = image_size(&first.image)?;
    for path in frames.iter().flat_map(|f| [&f.image, &f.annotation]) {
        let found = image_size(path)?;
        if found != expected {
            return Err(DatasetError::Size { path: path.clone(), found, expected });
        }
    }
    LabelMap::read_png(&first.annotation)?;
    Ok(DavisSequence { name: name.to_owned(), width: expected.0, height: expected.1, frames })
}

/// The files of a folder by file stem.
fn list(folder: &Path, extensions: &[&str]) -> Result<BTreeMap<String, PathBuf>, DatasetError> {
    let files = files_with_extension(folder, extensions)
        .map_err(|source| DatasetError::Io { path: folder.to_owned(), source })?;
    let stem = |p: &PathBuf| p.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    Ok(files.into_iter().map(|path| (stem(&path), path)).collect())
}

/// Width and height from an image's header.
fn image_size(path: &Path) -> Result<(u32, u32), DatasetError> {
    let io_error = |source| DatasetError::Io { path: path.to_owned(), source };
    image::ImageReader::open(path)
        .map_err(io_error)?
        .with_guessed_format()
        .map_err(io_error)?
        .into_dimensions()
        .map_err(|e| DatasetError::Image { path: path.to_owned(), reason: e.to_string() })
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::testdata;

    /// A root with the sequences `a` (3 frames) and `b` (2 frames) of 8x6 pixels.
    fn small() -> TempDir {
        let root = tempfile::tempdir().unwrap();
        for (name, frames) in [("a", 3), ("b", 2)] {
            for i in 0..frames {
                frame(root.path(), name, i, 8);
                annotation(root.path(), name, i);
            }
        }
        root
    }

    fn frame(root: &Path, name: &str, i: u32, width: u32) -> PathBuf {
        let folder = root.join("JPEGImages/480p").join(name);
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join(format!("{i:05}.jpg"));
        image::RgbImage::new(width, 6).save(&path).unwrap();
        path
    }

    fn annotation(root: &Path, name: &str, i: u32) -> PathBuf {
        let folder = root.join("Annotations/480p").join(name);
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join(format!("{i:05}.png"));
        LabelMap::background(8, 6).write_png(&path).unwrap();
        path
    }

    fn names(dataset: &DavisDataset) -> Vec<&str> {
        dataset.sequences.iter().map(|s| s.name.as_str()).collect()
    }

    fn refused(root: &Path, sequences: Option<&[String]>) -> String {
        DavisDataset::open(root, "480p", sequences).unwrap_err().to_string()
    }

    #[test]
    fn without_names_the_set_is_every_sequence_with_frames() {
        let root = small();
        annotation(root.path(), "annotated-only", 0);
        let all = DavisDataset::open(root.path(), "480p", None).unwrap();
        assert_eq!(names(&all), ["a", "b"]);
        assert_eq!(all.frame_count(), 5);
        let a = &all.sequences[0];
        assert_eq!((a.width, a.height, a.frames[2].name.as_str()), (8, 6, "00002"));
        assert!(a.frames[2].annotation.ends_with("Annotations/480p/a/00002.png"));
        let one = DavisDataset::open(root.path(), "480p", Some(&["b".to_owned()])).unwrap();
        assert_eq!(names(&one), ["b"]);
    }

    #[test]
    fn an_unknown_name_is_answered_with_the_known_ones() {
        let root = small();
        let message = refused(root.path(), Some(&["c".to_owned()]));
        assert!(message.contains("\"c\"") && message.contains("available: a, b"), "{message}");
    }

    #[test]
    fn missing_files_are_named_and_naming_other_sequences_leaves_them_out() {
        let root = small();
        std::fs::remove_file(root.path().join("Annotations/480p/a/00001.png")).unwrap();
        let message = refused(root.path(), None);
        assert!(message.contains("Annotations/480p/a/00001.png is missing"), "{message}");
        assert!(DavisDataset::open(root.path(), "480p", Some(&["b".to_owned()])).is_ok());
        std::fs::remove_file(root.path().join("JPEGImages/480p/b/00001.jpg")).unwrap();
        let message = refused(root.path(), Some(&["b".to_owned()]));
        assert!(message.contains("b/00001.jpg is missing"), "{message}");
    }

    #[test]
    fn other_sizes_and_damaged_files_are_found_before_work_starts() {
        let root = small();
        let last = frame(root.path(), "b", 1, 9);
        let message = refused(root.path(), None);
        assert!(message.contains("00001.jpg is 9x6") && message.contains("8x6"), "{message}");
        std::fs::write(last, b"no image").unwrap();
        assert!(refused(root.path(), None).contains("not a readable image"));
        let root = small();
        image::RgbImage::new(8, 6).save(root.path().join("Annotations/480p/a/00000.png")).unwrap();
        assert!(refused(root.path(), None).contains("colour image"));
    }

    #[test]
    fn another_layout_and_an_empty_folder_say_what_is_expected() {
        let root = tempfile::tempdir().unwrap();
        let message = refused(root.path(), None);
        assert!(message.contains("ROOT/JPEGImages/480p/<sequence>"), "{message}");
        assert!(message.contains("found: nothing"), "{message}");
        std::fs::create_dir_all(root.path().join("JPEGImages/480p")).unwrap();
        assert!(refused(root.path(), None).contains("Annotations/480p"));
        std::fs::create_dir_all(root.path().join("Annotations/480p")).unwrap();
        assert!(refused(root.path(), None).contains("holds no sequence"));
        assert!(refused(Path::new("/nonexistent"), None).contains("/nonexistent"));
    }

    #[test]
    fn lists_of_both_releases_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("val.txt");
        std::fs::write(&path, "blackswan\r\nbmx-trees\n\n").unwrap();
        assert_eq!(read_list(&path).unwrap(), ["blackswan", "bmx-trees"]);
        let pairs = "/JPEGImages/480p/bear/00000.jpg /Annotations/480p/bear/00000.png\n\
                     /JPEGImages/480p/bear/00001.jpg /Annotations/480p/bear/00001.png\n\
                     /JPEGImages/480p/camel/00000.jpg /Annotations/480p/camel/00000.png\n";
        std::fs::write(&path, pairs).unwrap();
        assert_eq!(read_list(&path).unwrap(), ["bear", "camel"]);
        std::fs::write(&path, "\n").unwrap();
        assert!(read_list(&path).unwrap_err().to_string().contains("names no sequence"));
    }

    #[test]
    fn a_list_names_each_sequence_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("val.txt");
        for (text, line, name) in [
            ("bear\ncamel\n\nbear\n", 4, "bear"),
            ("/J/480p/bear/0.jpg /A/0.png\n/J/480p/bear/0.jpg /A/0.png\n", 2, "bear"),
            ("/one/bear/0.jpg\n/other/bear/0.jpg\n", 2, "bear"),
        ] {
            std::fs::write(&path, text).unwrap();
            let message = read_list(&path).unwrap_err().to_string();
            let expected = format!("val.txt, line {line}: the sequence {name:?} was named before");
            assert!(message.contains(&expected), "{message}");
        }
    }

    #[test]
    fn the_shared_sequences_open() {
        let Some(root) = testdata::shared("data/davis") else { return };
        let all = DavisDataset::open(&root, "480p", None).unwrap();
        assert_eq!((all.sequences.len(), all.frame_count()), (8, 471));
        let listed = read_list(&root.join("ImageSets/with_frames.txt")).unwrap();
        assert_eq!(listed, names(&all));
    }
}
