//! Images with or without labels, for what can be told of both.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use image::RgbImage;
use rayon::prelude::*;

use super::files_with_extension;
use super::segmentation::{
    Classes, IMAGE_EXTENSIONS, SegmentationDataset, SegmentationError, open_image, read_image,
    spread,
};
use crate::labels::LabelMap;

/// A checked set of images, each with a name of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageSet {
    content: Content,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Content {
    Labelled(SegmentationDataset),
    /// Files and their names.
    Plain(Vec<(String, PathBuf)>),
}

impl ImageSet {
    /// Opens the images (JPEG, PNG) of a folder, which have no labels. An image's name is that
    /// of its file. Of more than `limit` images that many are taken, evenly spread.
    ///
    /// # Errors
    /// The first file that is no image, or that there is none.
    pub fn open_folder(folder: &Path, limit: Option<usize>) -> Result<Self, SegmentationError> {
        let files = files_with_extension(folder, &IMAGE_EXTENSIONS)
            .map_err(|source| SegmentationError::Io { path: folder.to_owned(), source })?;
        let files = spread(files, limit);
        if files.is_empty() {
            return Err(SegmentationError::Empty { path: folder.to_owned() });
        }
        let broken = files.par_iter().find_map_first(|path| {
            let error = match open_image(path) {
                Ok(reader) => reader.into_dimensions().err()?,
                Err(error) => return Some(error),
            };
            Some(SegmentationError::Image { path: path.clone(), reason: error.to_string() })
        });
        if let Some(error) = broken {
            return Err(error);
        }
        // Names keep their ending here: a.jpg and a.png are two images.
        let name =
            |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let content = Content::Plain(files.into_iter().map(|path| (name(&path), path)).collect());
        Self { content }.with_unique_names()
    }

    /// The images of a labelled set.
    ///
    /// # Errors
    /// Two images of one name.
    pub fn labelled(set: SegmentationDataset) -> Result<Self, SegmentationError> {
        Self { content: Content::Labelled(set) }.with_unique_names()
    }

    /// What is told of an image is kept under its name.
    fn with_unique_names(self) -> Result<Self, SegmentationError> {
        let mut seen = HashMap::new();
        for index in 0..self.len() {
            if let Some(first) = seen.insert(self.name(index), index) {
                let (path, other) = (self.path(index).to_owned(), self.path(first).to_owned());
                return Err(SegmentationError::Twice { path, other });
            }
        }
        Ok(self)
    }

    /// Number of images, at least one.
    #[expect(clippy::len_without_is_empty, reason = "no set is empty")]
    pub fn len(&self) -> usize {
        match &self.content {
            Content::Labelled(set) => set.images.len(),
            Content::Plain(files) => files.len(),
        }
    }

    /// The classes, where there are labels.
    pub fn classes(&self) -> Option<&Classes> {
        match &self.content {
            Content::Labelled(set) => Some(&set.classes),
            Content::Plain(_) => None,
        }
    }

    /// Name of an image.
    ///
    /// # Panics
    /// As all functions of one image, if `index` is not below [`ImageSet::len`].
    pub fn name(&self, index: usize) -> &str {
        match &self.content {
            Content::Labelled(set) => &set.images[index].name,
            Content::Plain(files) => &files[index].0,
        }
    }

    /// The files of an image: itself, and its labels where it has any.
    pub fn files(&self, index: usize) -> Vec<PathBuf> {
        match &self.content {
            Content::Labelled(set) => set.images[index].files(),
            Content::Plain(files) => vec![files[index].1.clone()],
        }
    }

    /// The files that hold the labels; none without labels.
    pub fn label_files(&self) -> Vec<PathBuf> {
        match &self.content {
            Content::Labelled(set) => set.label_files(),
            Content::Plain(_) => Vec::new(),
        }
    }

    fn path(&self, index: usize) -> &Path {
        match &self.content {
            Content::Labelled(set) => &set.images[index].image,
            Content::Plain(files) => &files[index].1,
        }
    }

    /// Decodes an image.
    pub fn read_image(&self, index: usize) -> Result<RgbImage, SegmentationError> {
        match &self.content {
            Content::Labelled(set) => set.images[index].read_image(),
            Content::Plain(files) => read_image(&files[index].1),
        }
    }

    /// Reads the labels of an image, where there are any.
    pub fn read_labels(&self, index: usize) -> Result<Option<LabelMap>, SegmentationError> {
        match &self.content {
            Content::Labelled(set) => set.images[index].read_labels().map(Some),
            Content::Plain(_) => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datasets::segmentation::LabelledImage;
    use crate::datasets::segmentation::tests::write_pair;

    #[test]
    fn a_folder_of_images_needs_no_labels() {
        let dir = tempfile::tempdir().unwrap();
        assert!(ImageSet::open_folder(dir.path(), None).is_err());
        for name in ["b.png", "a.jpg", "b.jpg"] {
            RgbImage::new(4, 2).save(dir.path().join(name)).unwrap();
        }
        let set = ImageSet::open_folder(dir.path(), None).unwrap();
        assert_eq!([0, 1, 2].map(|i| set.name(i)), ["a.jpg", "b.jpg", "b.png"]);
        assert_eq!(set.classes(), None);
        assert_eq!(set.read_image(2).unwrap().dimensions(), (4, 2));
        assert_eq!(set.read_labels(2).unwrap(), None);
        assert_eq!(ImageSet::open_folder(dir.path(), Some(1)).unwrap().len(), 1);
        std::fs::write(dir.path().join("c.png"), "no").unwrap();
        let text = ImageSet::open_folder(dir.path(), None).unwrap_err().to_string();
        assert!(text.contains("c.png is not a readable image"), "{text}");
    }

    #[test]
    fn two_images_of_one_name_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let map = LabelMap::background(4, 2);
        write_pair(dir.path(), &dir.path().join("labels"), "a", [9; 3], &map);
        let one = LabelledImage {
            name: "a".to_owned(),
            image: dir.path().join("a.jpg"),
            labels: dir.path().join("labels/a.png").into(),
        };
        let open = |images| {
            let classes = Classes::new(&["ground"], 255);
            let set = SegmentationDataset::check(classes, images, None, dir.path()).unwrap();
            ImageSet::labelled(set)
        };
        assert_eq!(open(vec![one.clone()]).unwrap().read_labels(0).unwrap(), Some(map));
        let text = open(vec![one.clone(), one]).unwrap_err().to_string();
        assert!(text.contains("a.jpg has the name of"), "{text}");
    }
}
