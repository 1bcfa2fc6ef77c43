//! PASCAL VOC 2012 segmentation, in its own layout or as two folders of a split each.
//!
//! ```text
//! ROOT/JPEGImages  ROOT/SegmentationClassAug and/or ROOT/SegmentationClass
//! ROOT/ImageSets/Segmentation/train_aug.txt or trainaug.txt or train.txt, val.txt
//!
//! ROOT/<split>/JPEGImages  ROOT/<split>/SegmentationClassAug  ROOT/lists/<split>.txt
//! ```
//!
//! In the second layout the training split is the first folder whose name starts with
//! `train`, and the other one is `val`.

use std::path::{Path, PathBuf};

use super::segmentation::{
    Classes, LabelledImage, SegmentationDataset, SegmentationError, read_text,
};

/// The classes in the order of their ids; 255 is void.
pub const CLASSES: [&str; 21] = [
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "table",
    "dog",
    "horse",
    "motorbike",
    "person",
    "potted plant",
    "sheep",
    "sofa",
    "train",
    "tv",
];

/// Folders of labels, the preferred one first.
const LABEL_FOLDERS: [&str; 2] = ["SegmentationClassAug", "SegmentationClass"];

/// Which half of the data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// What prototypes and classifiers are made from.
    Train,
    /// What they are tried on.
    Val,
}

/// Opens a split; `list` replaces the list that the layout has for it. A list holds names, or
/// pairs of an image and a label path below `root`.
pub fn open(
    root: &Path,
    split: Split,
    list: Option<&Path>,
    limit: Option<usize>,
) -> Result<SegmentationDataset, SegmentationError> {
    let layout = || SegmentationError::Layout {
        root: root.to_owned(),
        dataset: "PASCAL VOC",
        expected: "ROOT/JPEGImages with ROOT/SegmentationClassAug or ROOT/SegmentationClass and \
                   ROOT/ImageSets/Segmentation/*.txt (the folder VOC2012), or \
                   ROOT/<split>/JPEGImages with ROOT/lists/<split>.txt",
    };
    let (base, found) = if root.join("JPEGImages").is_dir() {
        let names: &[&str] = match split {
            Split::Train => &["train_aug.txt", "trainaug.txt", "train.txt"],
            Split::Val => &["val.txt"],
        };
        let lists = root.join("ImageSets/Segmentation");
        (root.to_owned(), names.iter().map(|n| lists.join(n)).find(|path| path.is_file()))
    } else {
        let name = split_folder(root, split).ok_or_else(layout)?;
        let list = root.join("lists").join(format!("{name}.txt"));
        (root.join(name), list.is_file().then_some(list))
    };
    let list = list.map(Path::to_owned).or(found).ok_or_else(layout)?;
    let images = read_text(&list)?
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .map(|line| entry(&base, line))
        .collect();
    SegmentationDataset::check(Classes::new(&CLASSES, 255), images, limit, &list)
}

/// The folder of a split in the second layout.
fn split_folder(root: &Path, split: Split) -> Option<String> {
    let start = match split {
        Split::Train => "train",
        Split::Val => "val",
    };
    let mut names: Vec<String> = std::fs::read_dir(root)
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with(start) && root.join(name).join("JPEGImages").is_dir())
        .collect();
    names.sort_unstable();
    names.into_iter().next()
}

/// A line of a list: a name, or an image and its labels.
fn entry(base: &Path, line: &str) -> LabelledImage {
    let mut parts = line.split_whitespace();
    let (first, second) = (parts.next().unwrap_or_default(), parts.next());
    if let Some(labels) = second {
        let below = |path: &str| base.join(path.trim_start_matches('/'));
        let image = below(first);
        let name = image.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        return LabelledImage { name, image, labels: below(labels).into() };
    }
    let labels: Vec<PathBuf> =
        LABEL_FOLDERS.iter().map(|folder| base.join(folder).join(format!("{first}.png"))).collect();
    let chosen = labels.iter().find(|path| path.is_file());
    // Where there is none, the error is to name the folder that exists.
    let expected = labels.iter().find(|path| path.parent().is_some_and(Path::is_dir));
    LabelledImage {
        name: first.to_owned(),
        image: base.join("JPEGImages").join(format!("{first}.jpg")),
        labels: chosen.or(expected).unwrap_or(&labels[0]).clone().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datasets::segmentation::tests::write_pair;
    use crate::labels::LabelMap;
    use crate::testdata;

    fn names(set: &SegmentationDataset) -> Vec<&str> {
        set.images.iter().map(|one| one.name.as_str()).collect()
    }

    #[test]
    fn the_original_layout_prefers_augmented_labels() {
        let root = tempfile::tempdir().unwrap();
        let images = root.path().join("JPEGImages");
        let map = LabelMap { width: 2, height: 1, data: vec![20, 255] };
        write_pair(&images, &root.path().join("SegmentationClass"), "a", [0; 3], &map);
        write_pair(&images, &root.path().join("SegmentationClass"), "b", [0; 3], &map);
        write_pair(&images, &root.path().join("SegmentationClassAug"), "b", [0; 3], &map);
        let lists = root.path().join("ImageSets/Segmentation");
        std::fs::create_dir_all(&lists).unwrap();
        std::fs::write(lists.join("train.txt"), "a\nb\n").unwrap();
        std::fs::write(lists.join("val.txt"), "b\nc\n").unwrap();
        let train = open(root.path(), Split::Train, None, None).unwrap();
        assert_eq!(names(&train), ["a", "b"]);
        assert!(train.images[0].labels.path().ends_with("SegmentationClass/a.png"));
        assert!(train.images[1].labels.path().ends_with("SegmentationClassAug/b.png"));
        let text = open(root.path(), Split::Val, None, None).unwrap_err().to_string();
        assert!(text.contains("JPEGImages/c.jpg is missing") && text.contains("val.txt"), "{text}");
        let pairs = root.path().join("pairs.txt");
        std::fs::write(&pairs, "/JPEGImages/a.jpg /SegmentationClass/a.png\n").unwrap();
        let set = open(root.path(), Split::Val, Some(&pairs), None).unwrap();
        assert_eq!(names(&set), ["a"]);
    }

    #[test]
    fn another_folder_is_told_the_layouts() {
        let root = tempfile::tempdir().unwrap();
        let text = open(root.path(), Split::Val, None, None).unwrap_err().to_string();
        assert!(text.contains("ROOT/JPEGImages") && text.contains("lists/<split>"), "{text}");
    }

    #[test]
    fn the_shared_images_open() {
        let Some(root) = testdata::shared("data/voc") else { return };
        assert_eq!(open(&root, Split::Val, None, None).unwrap().images.len(), 100);
        let train = open(&root, Split::Train, None, Some(40)).unwrap();
        assert_eq!((train.images.len(), train.classes.count()), (40, 21));
    }
}
