//! From a folder of photographs to batches of augmented views with pseudo segments.
//!
//! [`sources`] and [`video`] find files and [`images`] decodes them; a [`segmenter`] gives every
//! image its pseudo segments, made by [`felzenszwalb`] and [`regions`], from [`contours`], or
//! read; [`dataset`] keeps both, [`augment`] and [`photometric`] draw views, [`footage`] pairs
//! neighbouring frames of a video, and
//! [`loader`] turns all of it into a stream of batches that depends on nothing but a seed.

use std::path::PathBuf;

pub mod augment;
pub mod contours;
pub mod dataset;
pub mod felzenszwalb;
pub mod flow;
pub mod footage;
pub mod images;
pub mod loader;
pub mod matlab;
pub mod overlay;
pub mod photometric;
pub mod regions;
pub mod segment_map;
pub mod segmenter;
pub mod sources;
pub mod video;

pub use augment::{View, ViewParams};
pub use dataset::{Dataset, DatasetConfig};
pub use felzenszwalb::FelzenszwalbParams;
pub use footage::FootageConfig;
pub use loader::{Batch, Loader, LoaderConfig};
pub use segment_map::SegmentMap;
pub use segmenter::{SegmentSource, Segmenter, SegmentsConfig};
pub use sources::{ImageFile, ImageQuery};

/// The id of a pixel that belongs to no segment. Losses leave such pixels out; no segment map
/// made here uses it for a segment.
pub const VOID: u16 = u16::MAX;

/// What can go wrong between a folder of images and a batch.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A file or folder cannot be read.
    #[error("cannot read {}: {source}; check that it exists and that you may read it", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is not an image that can be decoded.
    #[error("{} is not a readable image: {reason}; replace or remove it", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What the decoder said.
        reason: String,
    },
    /// A file cannot be written.
    #[error("cannot write {}: {source}; check that its folder exists and has room", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file of segments or contours cannot be used.
    #[error("{} cannot give the segments of an image: {reason}", path.display())]
    Segments {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The folders hold no image at all.
    #[error("no .jpg, .jpeg or .png file lies under {roots}; check the image folders")]
    NoImages {
        /// The folders, separated by commas.
        roots: String,
    },
    /// A folder does not have the layout of its data set.
    #[error("{} is no {kind} data set: it has no {expected}; check the path", path.display())]
    Layout {
        /// The folder.
        path: PathBuf,
        /// Name of the data set.
        kind: &'static str,
        /// Folder or file that is missing.
        expected: String,
    },
    /// A folder has no videos.
    #[error("cannot take frames from {}: {reason}", path.display())]
    Video {
        /// The video.
        path: PathBuf,
        /// What went wrong and what to do about it.
        reason: String,
    },
    /// A video gives no frames.
    #[error(transparent)]
    Frames(#[from] conceptseg::datasets::video::VideoError),
    /// A list names images that are not there.
    #[error(
        "{} names {count} image(s) that no image folder holds, the first is \"{name}\"; add the folder or correct the list",
        list.display()
    )]
    NotFound {
        /// The list.
        list: PathBuf,
        /// The first name without an image.
        name: String,
        /// How many names have no image.
        count: usize,
    },
    /// More images are damaged than can be passed over.
    #[error(
        "{damaged} of {total} images cannot be used (at most {allowed} may fail), the first: {first}; repair or remove them"
    )]
    TooManyDamaged {
        /// How many failed.
        damaged: usize,
        /// How many were tried.
        total: usize,
        /// How many may fail.
        allowed: usize,
        /// The message for the first of them, with its path.
        first: String,
    },
    /// A batch needs more images than there are.
    #[error(
        "a batch of {batch} needs as many different images, but there are {images}; lower the batch size or add images"
    )]
    TooFewImages {
        /// Images per batch.
        batch: usize,
        /// Usable images.
        images: usize,
    },
    /// A setting is out of its range.
    #[error("{name} is {value}, expected {expected}; correct the configuration")]
    Parameter {
        /// The key.
        name: &'static str,
        /// Its value.
        value: String,
        /// The range.
        expected: &'static str,
    },
    /// An image and its segment map have different sizes, or one of them is empty.
    #[error("an image of {}x{} cannot go with a segment map of {}x{}; both must have the same size", image.0, image.1, segments.0, segments.1)]
    SizeMismatch {
        /// Width and height of the image, in pixels.
        image: (u32, u32),
        /// Width and height of the map, in pixels.
        segments: (u32, u32),
    },
    /// The resampler refused its arguments.
    #[error("cannot resize an image of {width}x{height}: {reason}")]
    Resize {
        /// Width of the source, in pixels.
        width: u32,
        /// Height of the source, in pixels.
        height: u32,
        /// What the library said.
        reason: String,
    },
    /// A loader thread cannot be started.
    #[error("cannot start a loader thread: {0}; lower the number of threads")]
    Thread(std::io::Error),
    /// A loader thread ended early, after an error that was already reported or a panic.
    #[error("a loader thread has ended; see the message before this one")]
    WorkerStopped,
}

impl DataError {
    /// A [`DataError::Parameter`] unless `ok`.
    pub(crate) fn check(
        ok: bool,
        name: &'static str,
        value: &dyn std::fmt::Debug,
        expected: &'static str,
    ) -> Result<(), Self> {
        if ok {
            return Ok(());
        }
        Err(Self::Parameter { name, value: format!("{value:?}"), expected })
    }
}
