//! Where the pseudo segments of an image come from, and the cache of what was made before.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use image::RgbImage;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::contours::{self, ContourParams, same_proportions};
use super::felzenszwalb::{self, FelzenszwalbParams};
use super::segment_map::read_key;
use super::{DataError, SegmentMap, images};

/// The source of pseudo segments.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SegmentSource {
    /// Made from the image by the graph method of Felzenszwalb and Huttenlocher.
    #[default]
    Felzenszwalb,
    /// Made from contours in `folder`: a detector's maps or ready ultrametric maps.
    Contours,
    /// PNG files of ids in `folder`, as they are.
    Ids,
}

/// Pseudo segments.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SegmentsConfig {
    /// `"felzenszwalb"`, `"contours"` or `"ids"`.
    pub source: SegmentSource,
    /// The contours or ids: the file for `<any>/<folders>/<name>.jpg` is
    /// `<folder>/<folders>/<name>.png` (or `.mat`), with as many of the image's folders as
    /// lead to a file.
    pub folder: Option<PathBuf>,
    /// A folder that `conceptseg-train segments` has filled. Maps there that were made of the
    /// same image with the same settings are read instead of being made again.
    pub cache: Option<PathBuf>,
    /// In PNG files of 8 bits under `folder`, 255 marks pixels of no segment.
    pub void_255: bool,
    /// Settings of the source `"felzenszwalb"`.
    pub felzenszwalb: FelzenszwalbParams,
    /// Settings of the source `"contours"`.
    pub contours: ContourParams,
}

impl SegmentsConfig {
    /// Checks the ranges, and that the source has its folder.
    ///
    /// # Errors
    /// [`DataError::Parameter`].
    pub fn validate(&self) -> Result<(), DataError> {
        self.felzenszwalb.validate()?;
        self.contours.validate()?;
        DataError::check(
            self.folder.is_some() || self.source == SegmentSource::Felzenszwalb,
            "segments.folder",
            &"absent",
            "the folder of the contours or ids",
        )
    }
}

/// Folders of an image's path that may repeat under the folder of contours or ids.
const MAX_SHARED_FOLDERS: usize = 8;

/// Version of everything here that changes segments without a setting.
const KEY_VERSION: u32 = 1;

/// The file under `folder` that belongs to `image`: of those whose path ends like the image's,
/// with one of `extensions`, that which shares the most folders.
fn companion(folder: &Path, image: &Path, extensions: &[&str]) -> Option<PathBuf> {
    let parts: Vec<_> = image.iter().collect();
    let (_, folders) = parts.split_last()?;
    let stem = image.file_stem()?;
    (0..=folders.len().min(MAX_SHARED_FOLDERS)).rev().find_map(|shared| {
        // A root or `..` among them would lead out of the folder.
        let shared: PathBuf = folders[folders.len() - shared..].iter().collect();
        if shared.components().any(|c| !matches!(c, std::path::Component::Normal(_))) {
            return None;
        }
        extensions
            .iter()
            .map(|extension| {
                let mut name = stem.to_owned();
                name.push(".");
                name.push(extension);
                folder.join(&shared).join(name)
            })
            // The image may lie under the folder itself.
            .find(|path| path.is_file() && !is_same_file(path, image))
    })
}

fn is_same_file(a: &Path, b: &Path) -> bool {
    matches!((fs::canonicalize(a), fs::canonicalize(b)), (Ok(a), Ok(b)) if a == b)
}

/// Makes the segments of images by one configuration.
#[derive(Debug)]
pub struct Segmenter {
    config: SegmentsConfig,
}

impl Segmenter {
    /// # Errors
    /// [`DataError::Parameter`]; [`DataError::Read`] when a folder is not there.
    pub fn new(config: &SegmentsConfig) -> Result<Self, DataError> {
        config.validate()?;
        let used = (config.source != SegmentSource::Felzenszwalb).then_some(&config.folder);
        for path in used.into_iter().chain([&config.cache]).flatten() {
            fs::read_dir(path).map_err(|source| DataError::Read { path: path.clone(), source })?;
        }
        Ok(Self { config: config.clone() })
    }

    /// The segments of the image in `path`, of which `rgb` is the decoded image reduced to at
    /// most `short_side` pixels on its shorter side; from the cache where it has them.
    ///
    /// # Errors
    /// [`DataError::Segments`] when there are no contours or ids for this image or they cannot
    /// be used, [`DataError::Read`].
    pub fn segment(
        &self,
        path: &Path,
        rgb: &RgbImage,
        short_side: u32,
    ) -> Result<SegmentMap, DataError> {
        if let Some(cache) = &self.config.cache
            && let Some(file) = companion(cache, path, &["png"])
            && read_key(&file).is_some_and(|key| self.key(path, short_side).is_ok_and(|k| k == key))
        {
            let map = SegmentMap::read_png(&file, false)?;
            if (map.width, map.height) == rgb.dimensions() {
                return Ok(map);
            }
        }
        self.make(path, rgb)
    }

    /// As [`Self::segment`], without the cache.
    ///
    /// # Errors
    /// As [`Self::segment`].
    pub fn make(&self, path: &Path, rgb: &RgbImage) -> Result<SegmentMap, DataError> {
        let Some(file) = self.source_file(path)? else {
            return felzenszwalb::segment(rgb, &self.config.felzenszwalb);
        };
        let size = images::dimensions(path)?;
        let map = if self.config.source == SegmentSource::Contours {
            contours::segment(&file, size, &self.config.contours)?
        } else {
            SegmentMap::read_png(&file, self.config.void_255)?
        };
        if !same_proportions((map.width, map.height), size) {
            let reason = format!(
                "it is {}x{} for an image of {}x{}; give a map of the same proportions",
                map.width, map.height, size.0, size.1
            );
            return Err(DataError::Segments { path: file, reason });
        }
        Ok(map.resized(rgb.width(), rgb.height()))
    }

    /// The file that the segments are made of, where it is not the image itself.
    fn source_file(&self, path: &Path) -> Result<Option<PathBuf>, DataError> {
        let extensions: &[&str] = match self.config.source {
            SegmentSource::Felzenszwalb => return Ok(None),
            SegmentSource::Contours => &["mat", "png"],
            SegmentSource::Ids => &["png"],
        };
        let folder = self.config.folder.as_deref().unwrap_or(Path::new("."));
        let found = companion(folder, path, extensions);
        found.map(Some).ok_or_else(|| DataError::Segments {
            path: folder.to_owned(),
            reason: format!(
                "it has no .{} named like {}; add one or leave the image out",
                extensions.join(" or ."),
                path.display()
            ),
        })
    }

    /// What the segments of an image depend on, as a hash: path, length and time of change of
    /// the image and of its contours or ids, the size of the reduced image, the settings.
    ///
    /// # Errors
    /// [`DataError::Read`], [`DataError::Segments`].
    pub fn key(&self, path: &Path, short_side: u32) -> Result<String, DataError> {
        let config = &self.config;
        let settings = match config.source {
            SegmentSource::Felzenszwalb => format!("{:?}", config.felzenszwalb),
            SegmentSource::Contours => format!("{:?}", config.contours),
            SegmentSource::Ids => format!("{}", config.void_255),
        };
        let mut text = format!("{KEY_VERSION}\n{:?} {settings}\n{short_side}\n", config.source);
        for file in [Some(path.to_owned()), self.source_file(path)?].into_iter().flatten() {
            text.push_str(&identity(&file)?);
            text.push('\n');
        }
        Ok(hex(&Sha256::digest(text)))
    }
}

/// Path, length and time of change of a file.
pub(crate) fn identity(path: &Path) -> Result<String, DataError> {
    let failed = |source| DataError::Read { path: path.to_owned(), source };
    let full = fs::canonicalize(path).map_err(failed)?;
    let metadata = fs::metadata(path).map_err(failed)?;
    let changed = metadata.modified().map_err(failed)?;
    let changed = changed.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    Ok(format!("{} {} {changed}", full.display(), metadata.len()))
}

/// Bytes in hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::super::VOID;
    use super::*;

    /// An image of 40x20 with segments for it, and its path.
    fn image(dir: &Path) -> (PathBuf, RgbImage) {
        let path = dir.join("JPEGImages/clip/0001.png");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let rgb = RgbImage::from_fn(40, 20, |x, _| image::Rgb([if x < 15 { 20 } else { 200 }; 3]));
        rgb.save(&path).unwrap();
        (path, rgb)
    }

    fn config(source: SegmentSource, folder: &Path) -> SegmentsConfig {
        SegmentsConfig { source, folder: Some(folder.to_owned()), ..SegmentsConfig::default() }
    }

    #[test]
    fn ids_come_from_the_file_that_shares_the_most_folders() {
        let dir = tempfile::tempdir().unwrap();
        let (path, rgb) = image(dir.path());
        let ids = dir.path().join("ids");
        fs::create_dir_all(ids.join("clip")).unwrap();
        let map = |id| SegmentMap { width: 40, height: 20, ids: vec![id; 800] };
        let segmenter = Segmenter::new(&config(SegmentSource::Ids, &ids)).unwrap();
        let text = segmenter.make(&path, &rgb).unwrap_err().to_string();
        assert!(text.contains("ids") && text.contains("0001.png"), "{text}");
        map(0).write_png(&ids.join("0001.png"), "").unwrap();
        assert_eq!(segmenter.make(&path, &rgb).unwrap(), map(0));
        map(VOID).write_png(&ids.join("clip/0001.png"), "").unwrap();
        assert_eq!(segmenter.make(&path, &rgb).unwrap(), map(VOID));
        // A smaller copy of the image gets a smaller map.
        let small = RgbImage::new(20, 10);
        assert_eq!(segmenter.make(&path, &small).unwrap().ids, vec![VOID; 200]);
        // A map of other proportions belongs to another image.
        let other = SegmentMap { width: 40, height: 30, ids: vec![0; 1200] };
        other.write_png(&ids.join("clip/0001.png"), "").unwrap();
        let text = segmenter.make(&path, &rgb).unwrap_err().to_string();
        assert!(text.contains("40x30"), "{text}");
    }

    #[test]
    fn contours_bound_segments() {
        let dir = tempfile::tempdir().unwrap();
        let (path, rgb) = image(dir.path());
        let line = |x: u32, _| image::Luma([if x == 14 { 255_u8 } else { 0 }]);
        image::GrayImage::from_fn(40, 20, line).save(dir.path().join("0001.png")).unwrap();
        let segmenter = Segmenter::new(&config(SegmentSource::Contours, dir.path())).unwrap();
        let map = segmenter.make(&path, &rgb).unwrap();
        assert_eq!((map.count(), map.ids[10], map.ids[20]), (2, 0, 1));
    }

    #[test]
    fn the_cache_serves_what_was_made_of_the_same_image_with_the_same_settings() {
        let dir = tempfile::tempdir().unwrap();
        let (path, rgb) = image(dir.path());
        let cache = dir.path().join("cache");
        fs::create_dir(&cache).unwrap();
        let mut config = SegmentsConfig { cache: Some(cache.clone()), ..Default::default() };
        config.felzenszwalb.min_size = 2;
        let segmenter = Segmenter::new(&config).unwrap();
        let made = segmenter.segment(&path, &rgb, 64).unwrap();
        // A map that only the cache can give.
        let kept = SegmentMap { width: 40, height: 20, ids: vec![0; 800] };
        assert_ne!(made, kept);
        kept.write_png(&cache.join("0001.png"), &segmenter.key(&path, 64).unwrap()).unwrap();
        assert_eq!(segmenter.segment(&path, &rgb, 64).unwrap(), kept);
        // Another size, other settings, another image.
        assert_eq!(segmenter.segment(&path, &rgb, 32).unwrap(), made);
        let before = segmenter.key(&path, 64).unwrap();
        config.felzenszwalb.scale = 299.0;
        assert_ne!(Segmenter::new(&config).unwrap().key(&path, 64).unwrap(), before);
        RgbImage::new(41, 20).save(&path).unwrap();
        assert_ne!(segmenter.key(&path, 64).unwrap(), before);
    }

    #[test]
    fn a_source_without_its_folder_is_refused() {
        let config = SegmentsConfig { source: SegmentSource::Ids, ..Default::default() };
        let text = Segmenter::new(&config).unwrap_err().to_string();
        assert!(text.contains("segments.folder"), "{text}");
        let absent = self::config(SegmentSource::Contours, Path::new("/does/not/exist"));
        assert!(matches!(Segmenter::new(&absent), Err(DataError::Read { .. })));
    }
}
