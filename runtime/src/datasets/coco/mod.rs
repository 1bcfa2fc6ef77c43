//! COCO 2017 with the 21 classes of PASCAL VOC, from instances or panoptic segments.
//!
//! ```text
//! ROOT/train2017  ROOT/val2017
//! ROOT/annotations/instances_train2017.json  ROOT/annotations/instances_val2017.json
//!
//! ROOT/annotations/panoptic_val2017.json  ROOT/annotations/panoptic_val2017/*.png
//! ```
//!
//! Annotation files are read as streams, twice: first images and categories, then the annotations
//! of what is wanted. Only shapes of the 20 classes are kept.

use std::collections::{HashMap, HashSet};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use super::segmentation::{
    Classes, LabelledImage, Labels, SegmentationDataset, SegmentationError, spread,
};
use super::voc::{self, Split};
use crate::labels::MAX_SIDE;

mod error;
mod instances;
mod json;
mod panoptic;
mod polygon;
#[cfg(test)]
mod tests;

pub use error::CocoError;
pub use instances::InstanceLabels;
use json::{Lists, RawCategory, RawImage, RawInstance};
pub use panoptic::PanopticLabels;

/// COCO's category of each class of [`voc::CLASSES`], and its name; 0 stands for background.
pub const CATEGORIES: [(u64, &str); 21] = [
    (0, "background"),
    (5, "airplane"),
    (2, "bicycle"),
    (16, "bird"),
    (9, "boat"),
    (44, "bottle"),
    (6, "bus"),
    (3, "car"),
    (17, "cat"),
    (62, "chair"),
    (21, "cow"),
    (67, "dining table"),
    (18, "dog"),
    (19, "horse"),
    (4, "motorcycle"),
    (1, "person"),
    (64, "potted plant"),
    (20, "sheep"),
    (63, "couch"),
    (7, "train"),
    (72, "tv"),
];

/// Training images need more pixels of the 20 classes than that.
pub const MIN_TRAIN_PIXELS: u64 = 1000;

/// The label of pixels that do not count.
const VOID: u8 = 255;

/// What the labels are made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Polygons and run lengths of instances.
    Instances,
    /// PNGs of segments, in this folder.
    Panoptic(PathBuf),
}

/// The files of one split.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Folder of the images.
    pub images: PathBuf,
    /// The annotation file.
    pub annotations: PathBuf,
    /// What is in it.
    pub kind: Kind,
}

impl Source {
    /// A split in the layout of the data set; `panoptic` says which annotations.
    pub fn standard(root: &Path, split: Split, panoptic: bool) -> Self {
        let name = match split {
            Split::Train => "train2017",
            Split::Val => "val2017",
        };
        let kind = if panoptic { "panoptic" } else { "instances" };
        let annotations = root.join(format!("annotations/{kind}_{name}.json"));
        let kind = if panoptic { Self::masks_beside(&annotations) } else { Kind::Instances };
        Self { images: root.join(name), annotations, kind }
    }

    /// Panoptic segments with their PNGs in a folder beside the annotation file, of its name.
    pub fn masks_beside(annotations: &Path) -> Kind {
        Kind::Panoptic(annotations.with_extension(""))
    }
}

/// Opens a split and checks all of it. With `min_pixels`, images that have not more pixels of the
/// 20 classes are left out, and their number returned; `limit` is taken from the others, evenly
/// spread over the file's list of images.
///
/// # Errors
/// The first thing that is wrong, with the file and the image or annotation.
pub fn open(
    source: &Source,
    min_pixels: Option<u64>,
    limit: Option<usize>,
) -> Result<(SegmentationDataset, usize), SegmentationError> {
    let path = &source.annotations;
    for (path, there) in [(path, path.is_file()), (&source.images, source.images.is_dir())] {
        if !there {
            return Err(CocoError::Absent { path: path.clone() }.into());
        }
    }
    // Which images have enough pixels is known once their annotations have been read.
    let first_limit = if min_pixels.is_none() { limit } else { None };
    let wanted = Wanted::read(path, first_limit)?;
    let files: Vec<PathBuf> =
        wanted.images.iter().map(|image| source.images.join(&image.file_name)).collect();
    if let Some(missing) = files.iter().find(|file| !file.is_file()) {
        let (path, because) = (missing.clone(), path.clone());
        return Err(SegmentationError::Missing { path, because });
    }
    let (labels, enough): (Vec<Labels>, Vec<bool>) = match &source.kind {
        Kind::Instances => {
            let found = instances::read(path, &wanted)?;
            let enough = match min_pixels {
                Some(pixels) => instances::exceeding(&found, pixels),
                None => vec![true; found.len()],
            };
            (found.into_iter().map(|one| Labels::Instances(Arc::new(one))).collect(), enough)
        }
        Kind::Panoptic(masks) => {
            let found = panoptic::read(path, masks, &wanted)?;
            let enough = |one: &PanopticLabels| min_pixels.is_none_or(|n| one.class_pixels() > n);
            let enough = found.iter().map(enough).collect();
            (found.into_iter().map(|one| Labels::Panoptic(Arc::new(one))).collect(), enough)
        }
    };
    let total = files.len();
    let mut images = Vec::with_capacity(total);
    for ((image, labels), enough) in files.into_iter().zip(labels).zip(enough) {
        if enough {
            let name = image.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            images.push(LabelledImage { name, image, labels });
        }
    }
    let dropped = total - images.len();
    if let (true, Some(pixels)) = (images.is_empty(), min_pixels) {
        return Err(CocoError::AllDropped { path: path.clone(), images: total, pixels }.into());
    }
    let classes = Classes::new(&voc::CLASSES, VOID);
    Ok((SegmentationDataset::check(classes, images, limit, path)?, dropped))
}

/// The images whose labels are wanted, and what annotations may refer to.
struct Wanted {
    images: Vec<RawImage>,
    /// Place in `images` of each image of the file, `None` where it is not wanted.
    slots: HashMap<u64, Option<usize>>,
    categories: HashSet<u64>,
}

impl Wanted {
    /// Reads images and categories; of more than `limit` images that many are wanted.
    fn read(path: &Path, limit: Option<usize>) -> Result<Self, SegmentationError> {
        let mut images = Vec::new();
        let mut slots = HashMap::new();
        let mut take_image = |_: usize, image: RawImage| {
            if slots.insert(image.id, None).is_some() {
                return Err(CocoError::DuplicateImage { path: path.to_owned(), id: image.id });
            }
            check_image(path, &image)?;
            images.push(image);
            Ok(())
        };
        let mut categories = HashSet::new();
        let mut take_category = |_: usize, category: RawCategory| {
            let known = CATEGORIES[1..].iter().find(|known| known.0 == category.id);
            if let Some(&(id, expected)) = known.filter(|known| known.1 != category.name) {
                let (path, found) = (path.to_owned(), category.name);
                return Err(CocoError::OtherCategory { path, id, found, expected });
            }
            categories.insert(category.id);
            Ok(())
        };
        let lists: Lists<'_, RawInstance> = Lists {
            images: Some(&mut take_image),
            categories: Some(&mut take_category),
            annotations: None,
        };
        lists.read(path, "a file of COCO annotations")?;
        if images.is_empty() {
            return Err(SegmentationError::Empty { path: path.to_owned() });
        }
        let images = spread(images, limit);
        for (slot, image) in images.iter().enumerate() {
            slots.insert(image.id, Some(slot));
        }
        Ok(Self { images, slots, categories })
    }

    /// Place of an image, if it is wanted. `called` names the annotation that asks.
    fn slot(
        &self,
        path: &Path,
        image: u64,
        called: impl Fn() -> String,
    ) -> Result<Option<usize>, CocoError> {
        self.slots.get(&image).copied().ok_or_else(|| {
            let (path, annotation) = (path.to_owned(), called());
            CocoError::UnknownImage { path, annotation, image }
        })
    }

    fn check_category(
        &self,
        path: &Path,
        category: u64,
        called: impl Fn() -> String,
    ) -> Result<(), CocoError> {
        if self.categories.contains(&category) {
            return Ok(());
        }
        let (path, annotation) = (path.to_owned(), called());
        Err(CocoError::UnknownCategory { path, annotation, category })
    }
}

fn check_image(path: &Path, image: &RawImage) -> Result<(), CocoError> {
    let allowed = 1..=MAX_SIDE;
    let what = if !(allowed.contains(&image.width) && allowed.contains(&image.height)) {
        format!("is {}x{}; sides of 1 to {MAX_SIDE} are possible", image.width, image.height)
    } else if !plain(&image.file_name) {
        format!("names the file \"{}\"; a relative path is needed", image.file_name)
    } else {
        return Ok(());
    };
    Err(CocoError::Image { path: path.to_owned(), id: image.id, what })
}

/// Whether a file name stays below the folder it is joined to.
fn plain(name: &str) -> bool {
    !name.is_empty()
        && Path::new(name).components().all(|part| matches!(part, Component::Normal(_)))
}

/// The class of a category, if it has one.
fn class_of(category: u64) -> Option<u8> {
    let place = CATEGORIES[1..].iter().position(|known| known.0 == category)?;
    Some(place as u8 + 1)
}
