//! Images seen through windows of one size, as `SegSort` evaluates (Hwang et al., 2019).
//!
//! The image is brought to the size at which the network would see it as a whole and normalised;
//! windows are cut from that. An image smaller than a window is padded with zeros, the mean
//! colour, to the right and below; cells of the padding are cut off again before anything is
//! clustered. All windows begin and end on whole cells of the embedding grid, so that cells of
//! overlapping windows lie on each other and can be summed.

use image::RgbImage;

use super::classes::ClusterSettings;
use super::clusters::Clusterer;
use super::neighbours::Neighbours;
use super::resample::normalise;
use super::{Embedder, EvaluateError};
use crate::bundle::SizeRule;
use crate::embed::{EmbeddingMap, Model};

/// How windows lie, in pixels of the network's input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Windows {
    /// Side of a window.
    pub size: usize,
    /// From one window to the next, at most `size`.
    pub stride: usize,
}

impl Default for Windows {
    /// Those of `SegSort`: 480 pixels, every 320.
    fn default() -> Self {
        Self { size: 480, stride: 320 }
    }
}

/// The part of the image that a window shows, in pixels of the network's input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Column of its left edge.
    pub x: usize,
    /// Row of its upper edge.
    pub y: usize,
    /// Columns, fewer than the window's size where the image is smaller.
    pub width: usize,
    /// Rows, likewise.
    pub height: usize,
}

impl Windows {
    /// Where windows begin along a side of `length` pixels: every `stride` pixels, and the last one
    /// so that it ends with the image.
    pub fn starts(&self, length: usize) -> Vec<usize> {
        let last = length.saturating_sub(self.size);
        let count = last.div_ceil(self.stride) + 1;
        (0..count).map(|i| (i * self.stride).min(last)).collect()
    }

    /// The windows of an image of `width` x `height` pixels, row by row.
    pub fn of(&self, width: usize, height: usize) -> Vec<Window> {
        let (columns, rows) = (self.starts(width), self.starts(height));
        let window = |x, y| Window {
            x,
            y,
            width: self.size.min(width - x),
            height: self.size.min(height - y),
        };
        rows.into_iter().flat_map(|y| columns.iter().map(move |&x| window(x, y))).collect()
    }

    /// Whether `model` can see windows of this size.
    pub fn check(&self, model: &Model) -> Result<(), EvaluateError> {
        let entry = &model.bundle().manifest.embedder;
        let refuse = |setting, value: String, allowed| {
            Err(EvaluateError::Setting { setting, value, allowed })
        };
        if let SizeRule::Fixed([h, w]) = entry.size {
            let value = format!("windowed, but the bundle takes {w}x{h} pixels only");
            return refuse("protocol", value, "that of whole images for a bundle of a fixed size");
        }
        let cells = |side: usize| side > 0 && side.is_multiple_of(entry.stride.max(1));
        if !cells(self.size) {
            return refuse("window", self.size.to_string(), "a multiple of the embedding's stride");
        }
        if !cells(self.stride) || self.stride > self.size {
            let allowed = "a multiple of the embedding's stride and at most the window";
            return refuse("window stride", self.stride.to_string(), allowed);
        }
        Ok(())
    }
}

impl Embedder {
    /// Calls `each` with every window of `image`, seen at `scale` times the short side, and the
    /// embeddings of the part of the image that it shows. Gives the size of the network's input,
    /// (width, height), which windows are places in.
    pub(super) fn for_each_window(
        &mut self,
        image: &RgbImage,
        scale: f64,
        windows: &Windows,
        mut each: impl FnMut((usize, usize), Window, &EmbeddingMap),
    ) -> Result<(usize, usize), EvaluateError> {
        self.prepare(image, scale)?;
        let (width, height) = self.frames.input().1;
        let side = windows.size;
        let mut input = Vec::new();
        for window in windows.of(width, height) {
            cut(self.frames.input().0, (width, height), window, side, &mut input);
            let map = self.frames.embed_input(&input, (side, side))?;
            trim(map, window.height / map.stride, window.width / map.stride);
            each((width, height), window, map);
        }
        Ok((width, height))
    }

    /// The embeddings of a whole image from its windows: those of overlapping windows are summed
    /// and scaled to unit length.
    pub(super) fn merged(
        &mut self,
        image: &RgbImage,
        windows: &Windows,
    ) -> Result<EmbeddingMap, EvaluateError> {
        let mut sum = EmbeddingMap::default();
        self.for_each_window(image, 1.0, windows, |(width, height), window, map| {
            let (stride, dim) = (map.stride, map.dim);
            if sum.data.is_empty() {
                let (height, width) = (height / stride, width / stride);
                let data = vec![0.0; height * width * dim];
                sum = EmbeddingMap { height, width, dim, stride, data };
            }
            let pitch = sum.width * dim;
            let first = window.y / stride * pitch + window.x / stride * dim;
            for (row, cells) in map.data.chunks_exact(map.width * dim).enumerate() {
                let target = &mut sum.data[first + row * pitch..][..cells.len()];
                target.iter_mut().zip(cells).for_each(|(sum, value)| *sum += value);
            }
        })?;
        normalise(&mut sum.data, sum.dim.max(1));
        Ok(sum)
    }
}

/// The vote of the nearest prototypes of the clusters of windows.
pub(super) struct Vote<'a> {
    /// Prototypes with their classes.
    pub(super) prototypes: &'a Neighbours,
    /// Votes of a cluster.
    pub(super) k: usize,
    /// How a window is clustered.
    pub(super) clusters: &'a ClusterSettings,
    /// How windows lie.
    pub(super) windows: Windows,
    /// Number of classes.
    pub(super) classes: usize,
}

impl Vote<'_> {
    /// Votes for the classes at each pixel of the network's input, `[rows, columns, classes]`, and
    /// its rows and columns. Every window is clustered by itself. Where windows overlap a pixel has
    /// the mean of their votes, so that all pixels have equal weight when scales are summed.
    pub(super) fn count(
        &self,
        embedder: &mut Embedder,
        clusterer: &mut Clusterer,
        image: &RgbImage,
        scale: f64,
    ) -> Result<(Vec<f32>, (usize, usize)), EvaluateError> {
        let classes = self.classes;
        let mut votes = Vec::new();
        let mut seen = Vec::new();
        let each = |(w, h): (usize, usize), window: Window, map: &EmbeddingMap| {
            votes.resize(w * h * classes, 0.0f32);
            seen.resize(w * h, 0.0f32);
            let size = (window.width as u32, window.height as u32);
            let (vectors, labels) = clusterer.all(map, size, self.clusters);
            let shares = self.prototypes.votes(vectors, self.k, classes);
            for (row, labels) in labels.chunks_exact(window.width).enumerate() {
                let first = (window.y + row) * w + window.x;
                let pixels = votes[first * classes..].chunks_exact_mut(classes);
                for ((pixel, seen), &cluster) in pixels.zip(&mut seen[first..]).zip(labels) {
                    *seen += 1.0;
                    let share = &shares[usize::from(cluster) * classes..][..classes];
                    pixel.iter_mut().zip(share).for_each(|(sum, share)| *sum += share);
                }
            }
        };
        let (w, h) = embedder.for_each_window(image, scale, &self.windows, each)?;
        for (pixel, seen) in votes.chunks_exact_mut(classes).zip(seen) {
            for vote in pixel {
                *vote /= seen;
            }
        }
        Ok((votes, (h, w)))
    }
}

/// Copies a window of `image` (`[3, height, width]`) to `[3, side, side]`; zero beyond the image.
fn cut(
    image: &[f32],
    (width, height): (usize, usize),
    window: Window,
    side: usize,
    out: &mut Vec<f32>,
) {
    out.clear();
    out.resize(3 * side * side, 0.0);
    for (plane, target) in image.chunks_exact(width * height).zip(out.chunks_exact_mut(side * side))
    {
        let rows = plane.chunks_exact(width).skip(window.y).take(window.height);
        for (row, target) in rows.zip(target.chunks_exact_mut(side)) {
            target[..window.width].copy_from_slice(&row[window.x..][..window.width]);
        }
    }
}

/// Keeps the first `height` rows and `width` columns.
fn trim(map: &mut EmbeddingMap, height: usize, width: usize) {
    let (from, to) = (map.width * map.dim, width * map.dim);
    if from != to {
        for row in 1..height {
            map.data.copy_within(row * from..row * from + to, row * to);
        }
    }
    map.data.truncate(height * to);
    (map.height, map.width) = (height, width);
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::backend::{BackendKind, BackendOptions};
    use crate::bundle::{BundleWriter, Codebook};

    proptest! {
        #[test]
        fn windows_cover_all_pixels_and_no_others(
            (size, stride) in (1..20usize, 1..20usize).prop_map(|(a, b)| (a.max(b), a.min(b))),
            length in 1..100usize,
        ) {
            let starts = Windows { size, stride }.starts(length);
            prop_assert_eq!(starts[0], 0);
            prop_assert!(starts.windows(2).all(|pair| pair[0] < pair[1] && pair[1] - pair[0] <= stride));
            // All but the last are where the stride says, and the last ends with the image.
            let regular = &starts[..starts.len() - 1];
            prop_assert!(regular.iter().enumerate().all(|(i, &start)| start == i * stride));
            prop_assert_eq!(starts[starts.len() - 1] + size.min(length), length);
        }
    }

    #[test]
    fn windows_of_segsort_on_images_of_usual_sizes() {
        let windows = Windows::default();
        assert_eq!(windows.starts(336), [0]);
        assert_eq!(windows.starts(480), [0]);
        assert_eq!(windows.starts(504), [0, 24]);
        assert_eq!(windows.starts(800), [0, 320]);
        assert_eq!(windows.starts(1024), [0, 320, 544]);
        let window = |x, width| Window { x, y: 0, width, height: 336 };
        assert_eq!(windows.of(504, 336), [window(0, 480), window(24, 480)]);
        assert_eq!(windows.of(448, 336), [window(0, 448)]);
    }

    /// The tiny network of stride 8.
    fn model() -> (tempfile::TempDir, Arc<Model>) {
        let root = tempfile::tempdir().unwrap();
        let vectors = (0..6 * 32).map(|i| if i % 33 == 0 { 1.0 } else { 0.0 }).collect();
        let codebook = Codebook::new(6, 32, vectors).unwrap();
        let onnx = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/tiny.onnx");
        BundleWriter::new("tiny", 8, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
            .write(root.path(), &onnx, &codebook)
            .unwrap();
        let options = BackendOptions::new(BackendKind::Rten, 1);
        let model = Model::open(root.path(), &options).unwrap();
        (root, model)
    }

    fn image(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| {
            image::Rgb([(x * 3) as u8, (y * 5) as u8, ((x ^ y) * 7) as u8])
        })
    }

    /// One window, pixel by pixel: its input, its embeddings, and the cell of the image that each
    /// of them is of.
    fn slow_window(
        embedder: &Embedder,
        (width, height): (usize, usize),
        (x, y, side): (usize, usize, usize),
    ) -> Vec<((usize, usize), Vec<f32>)> {
        let mut input = vec![0.0; 3 * side * side];
        for channel in 0..3 {
            for row in 0..side.min(height - y) {
                for column in 0..side.min(width - x) {
                    input[(channel * side + row) * side + column] = embedder.frames.input().0
                        [(channel * height + y + row) * width + x + column];
                }
            }
        }
        let (mut scratch, mut map) = (Vec::new(), EmbeddingMap::default());
        embedder.frames.model().embed(&input, side, side, &mut scratch, &mut map).unwrap();
        let mut cells = Vec::new();
        for row in 0..map.height {
            for column in 0..map.width {
                let place = (y / 8 + row, x / 8 + column);
                if place.0 < height / 8 && place.1 < width / 8 {
                    let first = (row * map.width + column) * map.dim;
                    cells.push((place, map.data[first..][..map.dim].to_vec()));
                }
            }
        }
        cells
    }

    #[test]
    fn embeddings_of_overlapping_windows_are_summed_cell_by_cell() {
        let (_root, model) = model();
        for ((width, height), windows) in [
            ((192, 128), Windows { size: 64, stride: 40 }),
            ((128, 64), Windows { size: 96, stride: 64 }),
            ((64, 64), Windows { size: 128, stride: 64 }),
        ] {
            let mut embedder = Embedder::new(&model, height);
            let merged = embedder.merged(&image(width, height), &windows).unwrap();
            let size = (width as usize, height as usize);
            assert_eq!((merged.width, merged.height), (size.0 / 8, size.1 / 8));
            let mut sums = vec![vec![0.0f64; merged.dim]; merged.width * merged.height];
            for y in windows.starts(size.1) {
                for x in windows.starts(size.0) {
                    for ((row, column), cell) in slow_window(&embedder, size, (x, y, windows.size))
                    {
                        let sum = &mut sums[row * merged.width + column];
                        sum.iter_mut().zip(cell).for_each(|(sum, v)| *sum += f64::from(v));
                    }
                }
            }
            for (found, sum) in merged.data.chunks_exact(merged.dim).zip(&sums) {
                let length = sum.iter().map(|v| v * v).sum::<f64>().sqrt();
                for (found, sum) in found.iter().zip(sum) {
                    assert!((f64::from(*found) - sum / length).abs() < 1e-6, "{width}x{height}");
                }
            }
        }
    }

    #[test]
    fn every_window_is_clustered_by_itself_and_overlapping_votes_are_averaged() {
        let (_root, model) = model();
        let image = image(192, 128);
        let (size, windows) = ((192, 128), Windows { size: 64, stride: 40 });
        let clusters = ClusterSettings { grid: 3, rounds: 5, ..ClusterSettings::default() };
        let mut embedder = Embedder::new(&model, 128);
        // Prototypes that lie among the embeddings: cells of the image, of three classes.
        let all = embedder.embed(&image, 1.0).unwrap().data.clone();
        let few: Vec<f32> = all.chunks_exact(32).step_by(7).flatten().copied().collect();
        let classes = (0..few.len() / 32).map(|i| (i % 3) as u8).collect();
        let prototypes = Neighbours::new(few, classes, 32);
        let vote = Vote { prototypes: &prototypes, k: 5, clusters: &clusters, windows, classes: 3 };
        let mut clusterer = Clusterer::default();
        let (votes, (rows, columns)) =
            vote.count(&mut embedder, &mut clusterer, &image, 1.0).unwrap();
        assert_eq!((rows, columns), (128, 192));
        let mut expected = vec![Vec::<[f32; 3]>::new(); 128 * 192];
        for y in windows.starts(128) {
            for x in windows.starts(192) {
                let cells = slow_window(&embedder, size, (x, y, 64));
                let data = cells.into_iter().flat_map(|(_, cell)| cell).collect();
                let map = EmbeddingMap { height: 8, width: 8, dim: 32, stride: 8, data };
                let (vectors, labels) = clusterer.all(&map, (64, 64), &clusters);
                let shares = prototypes.votes(vectors, 5, 3);
                for (i, cluster) in labels.into_iter().enumerate() {
                    let share = &shares[usize::from(cluster) * 3..][..3];
                    expected[(y + i / 64) * 192 + x + i % 64].push(share.try_into().unwrap());
                }
            }
        }
        for (found, all) in votes.chunks_exact(3).zip(expected) {
            assert!(!all.is_empty());
            for class in 0..3 {
                let mean = all.iter().map(|v| v[class]).sum::<f32>() / all.len() as f32;
                assert!((found[class] - mean).abs() < 1e-5);
            }
            assert!((found.iter().sum::<f32>() - 5.0).abs() < 1e-4);
        }
    }

    #[test]
    fn padding_is_part_of_no_cluster() {
        let (_root, model) = model();
        let mut embedder = Embedder::new(&model, 64);
        let windows = Windows { size: 128, stride: 64 };
        let mut sizes = Vec::new();
        let each = |_, window: Window, map: &EmbeddingMap| {
            sizes.push((window.width, window.height, map.width, map.height, map.data.len()));
        };
        embedder.for_each_window(&image(192, 64), 1.0, &windows, each).unwrap();
        assert_eq!(sizes, [(128, 64, 16, 8, 16 * 8 * 32); 2]);
    }

    #[test]
    fn windows_that_do_not_fit_the_grid_are_refused() {
        let (_root, model) = model();
        assert!(Windows::default().check(&model).is_ok());
        for (size, stride, word) in [
            (100, 40, "window is 100"),
            (96, 20, "stride is 20"),
            (64, 72, "stride is 72"),
            (0, 0, "window is 0"),
        ] {
            let text = Windows { size, stride }.check(&model).unwrap_err().to_string();
            assert!(text.contains(word), "{text}");
        }
    }
}
