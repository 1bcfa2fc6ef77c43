//! Data sets of images with a class for every pixel, whatever their layout on disk.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use image::RgbImage;
use rayon::prelude::*;

use super::coco::{CocoError, InstanceLabels, PanopticLabels};
use super::files_with_extension;
use crate::labels::{LabelError, LabelMap, MAX_SIDE};

/// Endings of images, lower case.
pub const IMAGE_EXTENSIONS: [&str; 3] = ["jpg", "jpeg", "png"];

/// Largest list of names that is read, in bytes.
const MAX_LIST: u64 = 64 << 20;

/// Why a data set cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SegmentationError {
    /// A file or folder could not be read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the file system answered.
        source: io::Error,
    },
    /// The root has none of the known layouts.
    #[error("{root} is not laid out as {dataset}: expected {expected}")]
    Layout {
        /// The root given.
        root: PathBuf,
        /// The data set.
        dataset: &'static str,
        /// The layouts that are understood.
        expected: &'static str,
    },
    /// A list is too large to be one.
    #[error("{path} has {size} bytes; a list of names has at most {MAX_LIST}")]
    ListSize {
        /// The list.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
    },
    /// There is nothing to work on.
    #[error("{path} names no image; give a list or folder with at least one")]
    Empty {
        /// The list or folder.
        path: PathBuf,
    },
    /// An image has no labels, or labels have no image, or a list names what is not there.
    #[error("{path} is missing, but {because} asks for it")]
    Missing {
        /// The file expected.
        path: PathBuf,
        /// The list or file that needs it.
        because: PathBuf,
    },
    /// Image and labels differ in size.
    #[error(
        "the labels {path} are {}x{} but their image {image} is {}x{}; both must have one size",
        found.0, found.1, expected.0, expected.1
    )]
    Size {
        /// The labels.
        path: PathBuf,
        /// The image.
        image: PathBuf,
        /// Width and height of the labels.
        found: (u32, u32),
        /// Width and height of the image.
        expected: (u32, u32),
    },
    /// A label is neither a class nor void.
    #[error(
        "{path} holds the class id {id} at column {x}, row {y}; known are 0 to {last} and {void} for void"
    )]
    UnknownClass {
        /// The labels.
        path: PathBuf,
        /// The id.
        id: u8,
        /// Column of its first pixel.
        x: usize,
        /// Row of its first pixel.
        y: usize,
        /// The last class.
        last: usize,
        /// The id of void.
        void: u8,
    },
    /// Two images cannot be told apart.
    #[error("{path} has the name of {other}, ending aside; name each image once")]
    Twice {
        /// The second file.
        path: PathBuf,
        /// The first file.
        other: PathBuf,
    },
    /// The image cannot be decoded.
    #[error("{path} is not a readable image: {reason}")]
    Image {
        /// The file.
        path: PathBuf,
        /// What the decoder said.
        reason: String,
    },
    /// The class file cannot be used.
    #[error("{path}: {what}")]
    Classes {
        /// The file.
        path: PathBuf,
        /// What is wrong, as a sentence.
        what: String,
    },
    /// The labels cannot be decoded.
    #[error(transparent)]
    Label(#[from] LabelError),
    /// Annotations of COCO cannot be used.
    #[error(transparent)]
    Coco(#[from] CocoError),
}

/// Names of the classes, in the order of their ids, and what marks pixels without one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Classes {
    /// Name of each class; its id is its place. 1 to 255 of them.
    pub names: Vec<String>,
    /// The id of pixels that do not count.
    pub void: u8,
}

impl Classes {
    /// Classes by name.
    pub fn new(names: &[&str], void: u8) -> Self {
        Self { names: names.iter().map(ToString::to_string).collect(), void }
    }

    /// Reads a text file with one name per line, in the order of the ids from 0 on.
    pub fn read(path: &Path, void: u8) -> Result<Self, SegmentationError> {
        let text = read_text(path)?;
        let names: Vec<String> =
            text.lines().map(|l| l.trim().to_owned()).filter(|l| !l.is_empty()).collect();
        let refuse = |what| Err(SegmentationError::Classes { path: path.to_owned(), what });
        if names.is_empty() || names.len() > 255 {
            return refuse(format!("{} classes are named; 1 to 255 are possible", names.len()));
        }
        if usize::from(void) < names.len() {
            return refuse(format!(
                "void is {void}, which is the id of the class {}; choose another id for void",
                names[usize::from(void)]
            ));
        }
        Ok(Self { names, void })
    }

    /// Number of classes.
    pub fn count(&self) -> usize {
        self.names.len()
    }
}

/// Where the class of each pixel of an image comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Labels {
    /// A PNG of class ids.
    Png(PathBuf),
    /// Instances of COCO, drawn whenever they are asked for.
    Instances(Arc<InstanceLabels>),
    /// A PNG of COCO's panoptic segments.
    Panoptic(Arc<PanopticLabels>),
}

impl Labels {
    /// The file that holds them, for messages; it may hold those of other images too.
    pub fn path(&self) -> &Path {
        match self {
            Self::Png(path) => path,
            Self::Instances(instances) => instances.file(),
            Self::Panoptic(segments) => segments.mask(),
        }
    }

    /// The file that only this image needs, where there is one.
    pub fn own_file(&self) -> Option<&Path> {
        match self {
            Self::Png(_) | Self::Panoptic(_) => Some(self.path()),
            Self::Instances(_) => None,
        }
    }

    /// The file that the images of the data set share, where there is one. It can be large.
    pub fn shared_file(&self) -> Option<&Path> {
        match self {
            Self::Png(_) => None,
            Self::Instances(instances) => Some(instances.file()),
            Self::Panoptic(segments) => Some(segments.file()),
        }
    }

    /// Reads or draws them.
    pub fn read(&self) -> Result<LabelMap, SegmentationError> {
        Ok(match self {
            Self::Png(path) => LabelMap::read_png(path)?,
            Self::Instances(instances) => instances.draw(),
            Self::Panoptic(segments) => segments.read()?,
        })
    }
}

impl From<PathBuf> for Labels {
    fn from(path: PathBuf) -> Self {
        Self::Png(path)
    }
}

/// An image and its labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelledImage {
    /// Name without folder and ending.
    pub name: String,
    /// The image file.
    pub image: PathBuf,
    /// The labels.
    pub labels: Labels,
}

impl LabelledImage {
    /// The files that only this image is made of: itself, and its labels where they are a file
    /// of their own.
    pub fn files(&self) -> Vec<PathBuf> {
        let labels = self.labels.own_file().map(Path::to_owned);
        [self.image.clone()].into_iter().chain(labels).collect()
    }

    /// Decodes the image.
    pub fn read_image(&self) -> Result<RgbImage, SegmentationError> {
        read_image(&self.image)
    }

    /// Reads the labels.
    pub fn read_labels(&self) -> Result<LabelMap, SegmentationError> {
        self.labels.read()
    }

    /// Checks sizes and ids without decoding the image.
    fn check(&self, classes: &Classes) -> Result<(), SegmentationError> {
        let expected = open_image(&self.image)?.into_dimensions().map_err(|e| {
            SegmentationError::Image { path: self.image.clone(), reason: e.to_string() }
        })?;
        let check_size = |found| {
            if found == expected {
                return Ok(());
            }
            let (path, image) = (self.labels.path().to_owned(), self.image.clone());
            Err(SegmentationError::Size { path, image, found, expected })
        };
        if let Labels::Instances(instances) = &self.labels {
            // They were checked as they were read, and drawing only makes known ids.
            return check_size(instances.size());
        }
        let map = self.read_labels()?;
        check_size((map.width, map.height))?;
        let known = |id: u8| usize::from(id) < classes.count() || id == classes.void;
        if let Some(at) = map.data.iter().position(|&id| !known(id)) {
            let width = map.width as usize;
            return Err(SegmentationError::UnknownClass {
                path: self.labels.path().to_owned(),
                id: map.data[at],
                x: at % width,
                y: at / width,
                last: classes.count() - 1,
                void: classes.void,
            });
        }
        Ok(())
    }
}

/// One split of a data set, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentationDataset {
    /// The classes.
    pub classes: Classes,
    /// The images, in the order of their list.
    pub images: Vec<LabelledImage>,
}

impl SegmentationDataset {
    /// Checks that every file is there, that labels have the size of their image and hold
    /// known ids only. Of more than `limit` images that many are taken, evenly spread over
    /// the list.
    ///
    /// # Errors
    /// The first of the list that is wrong.
    pub fn check(
        classes: Classes,
        images: Vec<LabelledImage>,
        limit: Option<usize>,
        list: &Path,
    ) -> Result<Self, SegmentationError> {
        let images = spread(images, limit);
        if images.is_empty() {
            return Err(SegmentationError::Empty { path: list.to_owned() });
        }
        // Absence is found out first: it costs nothing.
        for one in &images {
            for path in [&*one.image, one.labels.path()] {
                if !path.is_file() {
                    let (path, because) = (path.to_owned(), list.to_owned());
                    return Err(SegmentationError::Missing { path, because });
                }
            }
        }
        match images.par_iter().find_map_first(|one| one.check(&classes).err()) {
            Some(error) => Err(error),
            None => Ok(Self { classes, images }),
        }
    }

    /// The files that hold the labels, each once: those of single images in their order, then
    /// those that images share.
    pub fn label_files(&self) -> Vec<PathBuf> {
        let own = self.images.iter().filter_map(|one| one.labels.own_file());
        let shared: BTreeSet<&Path> =
            self.images.iter().filter_map(|one| one.labels.shared_file()).collect();
        own.chain(shared).map(Path::to_owned).collect()
    }

    /// Opens a folder of images with a folder of label PNGs of the same names.
    pub fn open_folders(
        images: &Path,
        labels: &Path,
        classes: Classes,
        limit: Option<usize>,
    ) -> Result<Self, SegmentationError> {
        let list = |folder: &Path, extensions: &[&str]| {
            files_with_extension(folder, extensions)
                .map_err(|source| SegmentationError::Io { path: folder.to_owned(), source })
        };
        let found = list(images, &IMAGE_EXTENSIONS)?
            .into_iter()
            .map(|image| {
                let name = image.file_stem().unwrap_or_default().to_string_lossy().into_owned();
                let labels = labels.join(format!("{name}.png")).into();
                LabelledImage { name, image, labels }
            })
            .collect::<Vec<_>>();
        for label in list(labels, &["png"])? {
            let stem = label.file_stem().unwrap_or_default().to_string_lossy();
            if found.binary_search_by(|one| (*one.name).cmp(&stem)).is_err()
                && !found.iter().any(|one| one.name == stem)
            {
                let path = images.join(format!("{stem}.jpg"));
                return Err(SegmentationError::Missing { path, because: label });
            }
        }
        Self::check(classes, found, limit, images)
    }
}

/// `limit` of the images, evenly spread, or all.
pub(super) fn spread<T>(images: Vec<T>, limit: Option<usize>) -> Vec<T> {
    let total = images.len();
    match limit {
        Some(limit) if limit < total => {
            let keep = |i: usize| (i + 1) * limit / total > i * limit / total;
            images.into_iter().enumerate().filter(|(i, _)| keep(*i)).map(|(_, one)| one).collect()
        }
        _ => images,
    }
}

/// Decodes an image of bounded size.
pub(super) fn read_image(path: &Path) -> Result<RgbImage, SegmentationError> {
    let mut reader = open_image(path)?;
    let mut limits = image::Limits::default();
    (limits.max_image_width, limits.max_image_height) = (Some(MAX_SIDE), Some(MAX_SIDE));
    reader.limits(limits);
    let refused = |e: image::ImageError| SegmentationError::Image {
        path: path.to_owned(),
        reason: e.to_string(),
    };
    Ok(reader.decode().map_err(refused)?.into_rgb8())
}

pub(super) fn open_image(
    path: &Path,
) -> Result<image::ImageReader<io::BufReader<std::fs::File>>, SegmentationError> {
    let io_error = |source| SegmentationError::Io { path: path.to_owned(), source };
    image::ImageReader::open(path).map_err(io_error)?.with_guessed_format().map_err(io_error)
}

/// Reads a text file of bounded size.
pub(super) fn read_text(path: &Path) -> Result<String, SegmentationError> {
    let io_error = |source| SegmentationError::Io { path: path.to_owned(), source };
    let size = std::fs::metadata(path).map_err(io_error)?.len();
    if size > MAX_LIST {
        return Err(SegmentationError::ListSize { path: path.to_owned(), size });
    }
    std::fs::read_to_string(path).map_err(io_error)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Writes an image of one colour and labels, and returns their paths.
    pub(crate) fn write_pair(
        images: &Path,
        labels: &Path,
        name: &str,
        colour: [u8; 3],
        map: &LabelMap,
    ) {
        std::fs::create_dir_all(images).unwrap();
        std::fs::create_dir_all(labels).unwrap();
        image::RgbImage::from_pixel(map.width, map.height, image::Rgb(colour))
            .save(images.join(format!("{name}.jpg")))
            .unwrap();
        map.write_png(&labels.join(format!("{name}.png"))).unwrap();
    }

    fn small() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let root = tempfile::tempdir().unwrap();
        let (images, labels) = (root.path().join("i"), root.path().join("l"));
        for name in ["a", "b", "c", "d"] {
            let map = LabelMap { width: 4, height: 2, data: vec![0, 1, 1, 0, 255, 1, 0, 0] };
            write_pair(&images, &labels, name, [9; 3], &map);
        }
        (root, images, labels)
    }

    fn open(images: &Path, labels: &Path) -> Result<SegmentationDataset, SegmentationError> {
        let classes = Classes::new(&["ground", "thing"], 255);
        SegmentationDataset::open_folders(images, labels, classes, None)
    }

    #[test]
    fn folders_open_sorted_and_a_limit_spreads() {
        let (_root, images, labels) = small();
        let all = open(&images, &labels).unwrap();
        let names = |set: &SegmentationDataset| -> Vec<String> {
            set.images.iter().map(|one| one.name.clone()).collect()
        };
        assert_eq!(names(&all), ["a", "b", "c", "d"]);
        assert_eq!(all.images[0].read_image().unwrap().dimensions(), (4, 2));
        let classes = all.classes.clone();
        let two = SegmentationDataset::open_folders(&images, &labels, classes, Some(2)).unwrap();
        assert_eq!(names(&two), ["b", "d"]);
    }

    #[test]
    fn what_is_wrong_is_named_before_work_starts() {
        let refused = |change: &dyn Fn(&Path, &Path)| {
            let (_root, images, labels) = small();
            change(&images, &labels);
            open(&images, &labels).unwrap_err().to_string()
        };
        let text = refused(&|_, l| std::fs::remove_file(l.join("b.png")).unwrap());
        assert!(text.contains("l/b.png is missing"), "{text}");
        let text = refused(&|i, _| std::fs::remove_file(i.join("c.jpg")).unwrap());
        assert!(text.contains("i/c.jpg is missing"), "{text}");
        let text = refused(&|_, l| {
            LabelMap::background(5, 2).write_png(&l.join("b.png")).unwrap();
        });
        assert!(text.contains("b.png are 5x2") && text.contains("4x2"), "{text}");
        let text = refused(&|_, l| {
            let map = LabelMap { width: 4, height: 2, data: vec![0, 0, 0, 0, 0, 7, 0, 0] };
            map.write_png(&l.join("d.png")).unwrap();
        });
        assert!(text.contains("class id 7 at column 1, row 1"), "{text}");
        let text = refused(&|i, _| std::fs::write(i.join("a.jpg"), b"none").unwrap());
        assert!(text.contains("a.jpg is not a readable image"), "{text}");
        let empty = tempfile::tempdir().unwrap();
        let text = open(empty.path(), empty.path()).unwrap_err().to_string();
        assert!(text.contains("names no image"), "{text}");
    }

    #[test]
    fn class_files_name_one_class_a_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("classes.txt");
        std::fs::write(&path, "road\n sky \r\n\n").unwrap();
        assert_eq!(Classes::read(&path, 255).unwrap(), Classes::new(&["road", "sky"], 255));
        assert!(Classes::read(&path, 1).unwrap_err().to_string().contains("class sky"));
        std::fs::write(&path, "\n").unwrap();
        assert!(Classes::read(&path, 255).unwrap_err().to_string().contains("0 classes"));
    }
}
