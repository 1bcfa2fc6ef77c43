//! The images of a training run, stored small, with their segments.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use image::RgbImage;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::segmenter::{Segmenter, SegmentsConfig};
use super::{DataError, SegmentMap, images};

/// How images are stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DatasetConfig {
    /// Images are reduced to at most this many pixels on their shorter side. Views are drawn
    /// from the reduced image.
    pub short_side: u32,
    /// Where pseudo segments come from.
    pub segments: SegmentsConfig,
    /// Megabytes (2^20 bytes) of prepared images that are kept in memory; the others are
    /// prepared anew whenever they are drawn, with the same result. A 320x240 image takes 0.37.
    pub memory_limit_mb: u64,
}

impl Default for DatasetConfig {
    fn default() -> Self {
        Self { short_side: 320, segments: SegmentsConfig::default(), memory_limit_mb: 4096 }
    }
}

/// An image with its segments, of equal size.
#[derive(Debug)]
pub struct PreparedImage {
    /// The reduced image.
    pub rgb: RgbImage,
    /// Its pseudo segments.
    pub segments: SegmentMap,
}

#[derive(Debug)]
struct Entry {
    path: PathBuf,
    prepared: Option<Arc<PreparedImage>>,
}

/// The usable images of a training run.
#[derive(Debug)]
pub struct Dataset {
    entries: Vec<Entry>,
    config: DatasetConfig,
    segmenter: Segmenter,
    damaged: Vec<DataError>,
}

/// Damaged images that are passed over: at most one in twenty, and at most 100.
pub fn allowed_damaged(total: usize) -> usize {
    // One of a small set may always fail.
    (total / 20).clamp(1, 100)
}

impl Dataset {
    /// Decodes and segments all of `paths` on all cores. `progress` is told how many of how
    /// many are done, from any thread.
    ///
    /// Damaged images are left out (see [`Self::damaged`]); indices count the others in the
    /// order of `paths`.
    ///
    /// # Errors
    /// [`DataError::Parameter`]; [`DataError::TooManyDamaged`] when more than 5 % or more than
    /// 100 images are damaged, which names the first; [`DataError::NoImages`] when none is left.
    pub fn load(
        paths: Vec<PathBuf>,
        config: DatasetConfig,
        progress: &(dyn Fn(usize, usize) + Sync),
    ) -> Result<Self, DataError> {
        let segmenter = Segmenter::new(&config.segments)?;
        DataError::check(
            (8..=4096).contains(&config.short_side),
            "data.short_side",
            &config.short_side,
            "a number in 8..=4096",
        )?;
        let total = paths.len();
        let allowed = allowed_damaged(total);
        let budget = Budget::new(config.memory_limit_mb.saturating_mul(1 << 20));
        let done = AtomicUsize::new(0);
        let failures = AtomicUsize::new(0);
        let results: Vec<Option<Result<Entry, DataError>>> = paths
            .into_par_iter()
            .map(|path| {
                // Past the limit the outcome is known: don't spend minutes on the rest.
                if failures.load(Ordering::Relaxed) > allowed {
                    return None;
                }
                let entry = load_entry(path, &config, &segmenter, &budget);
                if entry.is_err() {
                    failures.fetch_add(1, Ordering::Relaxed);
                }
                progress(done.fetch_add(1, Ordering::Relaxed) + 1, total);
                Some(entry)
            })
            .collect();
        let mut entries = Vec::with_capacity(total);
        let mut damaged = Vec::new();
        for result in results.into_iter().flatten() {
            match result {
                Ok(entry) => entries.push(entry),
                Err(error) => damaged.push(error),
            }
        }
        if let Some(first) = damaged.first() {
            if damaged.len() > allowed || entries.is_empty() {
                return Err(DataError::TooManyDamaged {
                    damaged: damaged.len(),
                    total,
                    allowed,
                    first: first.to_string(),
                });
            }
            tracing::warn!(count = damaged.len(), first = %first, "left out damaged images");
        }
        if entries.is_empty() {
            return Err(DataError::NoImages { roots: "an empty list of images".into() });
        }
        Ok(Self { entries, config, segmenter, damaged })
    }

    /// Number of usable images, at least 1.
    #[allow(clippy::len_without_is_empty, reason = "a data set is never empty")]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// What was wrong with the images that were left out.
    pub fn damaged(&self) -> &[DataError] {
        &self.damaged
    }

    /// Number of images that are kept in memory.
    pub fn in_memory(&self) -> usize {
        self.entries.iter().filter(|entry| entry.prepared.is_some()).count()
    }

    /// The file of image `index`; `None` past the end.
    pub fn path(&self, index: usize) -> Option<&Path> {
        self.entries.get(index).map(|entry| entry.path.as_path())
    }

    /// Image `index` with its segments, from memory or from its file.
    ///
    /// # Errors
    /// [`DataError::Parameter`] past the end; as [`images::decode`] when the file has become
    /// unreadable.
    pub fn get(&self, index: usize) -> Result<Arc<PreparedImage>, DataError> {
        let entry = self.entries.get(index).ok_or_else(|| DataError::Parameter {
            name: "the index of an image",
            value: index.to_string(),
            expected: "less than the number of images",
        })?;
        if let Some(prepared) = &entry.prepared {
            return Ok(Arc::clone(prepared));
        }
        let rgb = images::decode(&entry.path, self.config.short_side)?;
        Ok(Arc::new(prepare(&entry.path, rgb, &self.config, &self.segmenter)?))
    }
}

fn prepare(
    path: &Path,
    rgb: RgbImage,
    config: &DatasetConfig,
    segmenter: &Segmenter,
) -> Result<PreparedImage, DataError> {
    let segments = segmenter.segment(path, &rgb, config.short_side)?;
    Ok(PreparedImage { rgb, segments })
}

fn load_entry(
    path: PathBuf,
    config: &DatasetConfig,
    segmenter: &Segmenter,
    budget: &Budget,
) -> Result<Entry, DataError> {
    let rgb = images::decode(&path, config.short_side)?;
    let pixels = rgb.as_raw().len() as u64 / 3;
    let bytes = pixels * (3 + std::mem::size_of::<u16>() as u64);
    let prepared = if budget.take(bytes) {
        Some(Arc::new(prepare(&path, rgb, config, segmenter)?))
    } else {
        None
    };
    Ok(Entry { path, prepared })
}

/// Bytes that may still be kept.
struct Budget(AtomicU64);

impl Budget {
    fn new(bytes: u64) -> Self {
        Self(AtomicU64::new(bytes))
    }

    /// Takes `bytes` when as many are left.
    fn take(&self, bytes: u64) -> bool {
        self.0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes))
            .is_ok()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Writes `count` small images of coloured halves and returns their paths.
    pub(crate) fn write_images(dir: &Path, count: usize) -> Vec<PathBuf> {
        (0..count)
            .map(|i| {
                let path = dir.join(format!("{i:03}.png"));
                RgbImage::from_fn(48, 32, |x, y| {
                    let side = if x + y / 4 < 24 { 40 } else { 200 };
                    image::Rgb([side, (i * 9) as u8, (x * 2) as u8])
                })
                .save(&path)
                .unwrap();
                path
            })
            .collect()
    }

    #[test]
    fn images_are_stored_with_their_segments() {
        let dir = tempfile::tempdir().unwrap();
        let paths = write_images(dir.path(), 3);
        let config = DatasetConfig { short_side: 16, ..DatasetConfig::default() };
        let told = AtomicUsize::new(0);
        let dataset = Dataset::load(paths.clone(), config, &|done, total| {
            assert!(done <= total && total == 3);
            told.fetch_add(1, Ordering::Relaxed);
        })
        .unwrap();
        assert_eq!((dataset.len(), dataset.in_memory(), told.into_inner()), (3, 3, 3));
        assert_eq!(dataset.path(2), Some(paths[2].as_path()));
        let image = dataset.get(1).unwrap();
        assert_eq!(image.rgb.dimensions(), (24, 16));
        assert_eq!((image.segments.width, image.segments.height), (24, 16));
        assert!(dataset.get(3).is_err());
    }

    #[test]
    fn images_beyond_the_memory_limit_are_prepared_anew() {
        let dir = tempfile::tempdir().unwrap();
        let paths = write_images(dir.path(), 3);
        let load = |memory_limit_mb| {
            let config = DatasetConfig { memory_limit_mb, ..DatasetConfig::default() };
            Dataset::load(paths.clone(), config, &|_, _| ()).unwrap()
        };
        let (kept, lazy) = (load(64), load(0));
        assert_eq!((kept.in_memory(), lazy.in_memory()), (3, 0));
        for i in 0..3 {
            let (a, b) = (kept.get(i).unwrap(), lazy.get(i).unwrap());
            assert_eq!((&a.rgb, &a.segments), (&b.rgb, &b.segments));
        }
    }

    #[test]
    fn a_few_damaged_images_are_left_out_and_many_are_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let paths = write_images(dir.path(), 30);
        std::fs::write(&paths[4], b"not an image").unwrap();
        let load = || Dataset::load(paths.clone(), DatasetConfig::default(), &|_, _| ());
        let dataset = load().unwrap();
        assert_eq!((dataset.len(), dataset.damaged().len()), (29, 1));
        assert_eq!(dataset.path(4), Some(paths[5].as_path()));

        std::fs::write(&paths[7], b"").unwrap();
        let error = load().unwrap_err();
        assert!(matches!(error, DataError::TooManyDamaged { damaged: 2, allowed: 1, .. }));
        assert!(error.to_string().contains("004.png"), "{error}");
    }

    #[test]
    fn limits_on_damage() {
        assert_eq!([0, 39, 40, 1600, 10_000].map(allowed_damaged), [1, 1, 2, 80, 100]);
    }
}
