//! Why a COCO data set cannot be used.

use std::io;
use std::path::PathBuf;

/// Why a COCO data set cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CocoError {
    /// The annotation file or the folder of images is not there.
    #[error(
        "{path} is missing; COCO 2017 has the folders train2017 and val2017 and the files \
         annotations/instances_*.json or panoptic_*.json, each of which can be named instead"
    )]
    Absent {
        /// The file or folder.
        path: PathBuf,
    },
    /// A file could not be read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the file system answered.
        source: io::Error,
    },
    /// The file is not JSON, or not laid out as COCO's.
    #[error("{path} is not {expected}: {reason}")]
    Json {
        /// The file.
        path: PathBuf,
        /// What it was taken for.
        expected: &'static str,
        /// What the reader said, with line and column.
        reason: String,
    },
    /// A list is missing or there twice.
    #[error("{path} has {found} lists \"{section}\"; there must be one")]
    Section {
        /// The file.
        path: PathBuf,
        /// Key of the list.
        section: &'static str,
        /// How many there are.
        found: usize,
    },
    /// Two images share an id.
    #[error("{path} has two images with the id {id}; ids must differ")]
    DuplicateImage {
        /// The file.
        path: PathBuf,
        /// The id.
        id: u64,
    },
    /// An image cannot be used.
    #[error("{path}: image {id} {what}")]
    Image {
        /// The annotation file.
        path: PathBuf,
        /// Id of the image.
        id: u64,
        /// What is wrong with it.
        what: String,
    },
    /// An annotation is for an image that the file does not list.
    #[error("{path}: {annotation} is for image {image}, which the file does not list")]
    UnknownImage {
        /// The file.
        path: PathBuf,
        /// The annotation, by id or place.
        annotation: String,
        /// Id of the image.
        image: u64,
    },
    /// An annotation has a category that the file does not list.
    #[error("{path}: {annotation} has the category {category}, which the file does not list")]
    UnknownCategory {
        /// The file.
        path: PathBuf,
        /// The annotation, by id or place.
        annotation: String,
        /// Id of the category.
        category: u64,
    },
    /// The categories are not those of COCO.
    #[error(
        "{path} names category {id} \"{found}\", but in COCO it is \"{expected}\"; only COCO's own \
         categories can be mapped to classes"
    )]
    OtherCategory {
        /// The file.
        path: PathBuf,
        /// Id of the category.
        id: u64,
        /// Its name in the file.
        found: String,
        /// Its name in COCO.
        expected: &'static str,
    },
    /// An annotation cannot be used.
    #[error("{path}: {annotation} {what}")]
    Annotation {
        /// The file.
        path: PathBuf,
        /// The annotation, by id or place.
        annotation: String,
        /// What is wrong with it.
        what: String,
    },
    /// The PNG of a panoptic annotation cannot be used.
    #[error("{path} {what}")]
    Mask {
        /// The PNG.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// All images are left out.
    #[error(
        "none of the {images} images of {path} has more than {pixels} pixels of the 20 classes"
    )]
    AllDropped {
        /// The annotation file.
        path: PathBuf,
        /// How many images there are.
        images: usize,
        /// Pixels that an image must exceed.
        pixels: u64,
    },
}
