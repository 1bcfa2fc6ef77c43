//! `CamVid` in the layout of the `SegNet` tutorial: `train`, `val`, `test` and their `…annot`.

use std::path::Path;

use super::segmentation::{Classes, SegmentationDataset, SegmentationError};

/// The classes in the order of their ids; [`VOID`] comes after them.
pub const CLASSES: [&str; 11] = [
    "sky",
    "building",
    "pole",
    "road",
    "pavement",
    "tree",
    "sign",
    "fence",
    "car",
    "pedestrian",
    "bicyclist",
];

/// The id of pixels without a class.
pub const VOID: u8 = 11;

/// Opens the folders `split` and `<split>annot` of `root`.
pub fn open(
    root: &Path,
    split: &str,
    limit: Option<usize>,
) -> Result<SegmentationDataset, SegmentationError> {
    let (images, labels) = (root.join(split), root.join(format!("{split}annot")));
    if !images.is_dir() || !labels.is_dir() {
        return Err(SegmentationError::Layout {
            root: root.to_owned(),
            dataset: "CamVid",
            expected: "ROOT/train, ROOT/trainannot, ROOT/val and ROOT/valannot (SegNet's layout)",
        });
    }
    SegmentationDataset::open_folders(&images, &labels, Classes::new(&CLASSES, VOID), limit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testdata;

    #[test]
    fn the_shared_frames_open() {
        let Some(root) = testdata::shared("data/camvid") else { return };
        let sizes = ["train", "val"].map(|split| open(&root, split, None).unwrap().images.len());
        assert_eq!(sizes, [62, 34]);
        let text = open(&root, "test", None).unwrap_err().to_string();
        assert!(text.contains("ROOT/trainannot"), "{text}");
    }
}
