//! Pseudo segments by the graph method of Felzenszwalb and Huttenlocher, "Efficient
//! Graph-Based Image Segmentation", IJCV 2004.
//!
//! [`partition`] gives the partition of scikit-image's `felzenszwalb` for a colour image and
//! equal parameters: Gaussian smoothing as in `scipy.ndimage` in double precision, Euclidean
//! colour distances between 8-neighbours, and merging thresholds kept in single precision.
//! Two things are ours and show only where two edges weigh the same to the last bits: the
//! order among equal weights (stable here, dependent on the processor there), and, for sigma
//! above 0.8, the order in which the kernel's weights are added up.

use image::RgbImage;
use serde::{Deserialize, Serialize};

use super::{DataError, SegmentMap, VOID, regions};

/// How an image is cut into pseudo segments.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FelzenszwalbParams {
    /// The k of the paper, on colours in 0..255: larger means fewer, larger segments.
    pub scale: f64,
    /// Standard deviation of the smoothing before the graph is built, in pixels; 0 for none.
    pub sigma: f64,
    /// Segments smaller than this many pixels join a neighbour, for an image of
    /// `reference_area` pixels.
    pub min_size: u32,
    /// The image area, in pixels, that `min_size` is meant for: it is scaled in proportion to
    /// the area, so that an image stored at half size keeps the same segments. 0 takes
    /// `min_size` as it stands at every image size.
    pub reference_area: u32,
    /// Beyond this many segments the smallest join their most similar neighbour.
    pub max_segments: u16,
}

impl Default for FelzenszwalbParams {
    /// sigma 0.8, k 300, at least 400 pixels at 500x375 (the usual size of a PASCAL VOC
    /// photograph), at most 48 segments.
    fn default() -> Self {
        Self {
            scale: 300.0,
            sigma: 0.8,
            min_size: 400,
            reference_area: 500 * 375,
            max_segments: 48,
        }
    }
}

impl FelzenszwalbParams {
    /// Checks the ranges.
    pub fn validate(&self) -> Result<(), DataError> {
        let check = DataError::check;
        check(
            self.scale.is_finite() && self.scale >= 0.0,
            "segments.scale",
            &self.scale,
            "a number of at least 0",
        )?;
        check(
            (0.0..=MAX_SIGMA).contains(&self.sigma),
            "segments.sigma",
            &self.sigma,
            "a number in 0..=64",
        )?;
        check(
            (1..VOID).contains(&self.max_segments),
            "segments.max_segments",
            &self.max_segments,
            "a number in 1..=65534",
        )
    }

    /// The smallest permitted segment of an image of `area` pixels, in pixels.
    pub fn min_size_at(&self, area: u64) -> u32 {
        if self.reference_area == 0 {
            return self.min_size;
        }
        let scaled = f64::from(self.min_size) * area as f64 / f64::from(self.reference_area);
        scaled.round() as u32
    }
}

/// A larger smoothing than this would blur any stored image to a single colour.
const MAX_SIGMA: f64 = 64.0;

/// Pixels of an image, at most: an edge is coded as 2 bits of direction and 30 of pixel.
const MAX_PIXELS: u64 = 1 << 30;

/// A partition of the pixels of one image, without a limit on the number of parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// Row-major, `height * width`; labels count from 0 in the order of their first pixel, so
    /// equal partitions have equal labels.
    pub labels: Vec<u32>,
    /// Number of parts.
    pub count: u32,
}

impl Partition {
    /// Renumbers arbitrary `representatives` (one per pixel, each below the number of pixels)
    /// in the order of their first pixel.
    fn canonical(representatives: impl ExactSizeIterator<Item = u32>) -> Self {
        let mut number = vec![u32::MAX; representatives.len()];
        let mut count = 0;
        let labels = representatives
            .map(|root| {
                let slot = &mut number[root as usize];
                if *slot == u32::MAX {
                    *slot = count;
                    count += 1;
                }
                *slot
            })
            .collect();
        Self { labels, count }
    }
}

/// Cuts `image` into at most `params.max_segments` segments: [`partition`], then the smallest
/// segments join their most similar neighbour.
///
/// # Errors
/// [`DataError::Parameter`] when a parameter is out of range or the image has more than 2^30
/// pixels.
pub fn segment(image: &RgbImage, params: &FelzenszwalbParams) -> Result<SegmentMap, DataError> {
    params.validate()?;
    let area = u64::from(image.width()) * u64::from(image.height());
    let parts = partition(image, params.scale, params.sigma, params.min_size_at(area))?;
    let parts = regions::merge_smallest(image, &parts, u32::from(params.max_segments));
    Ok(SegmentMap {
        width: image.width(),
        height: image.height(),
        // At most `max_segments` <= 65534 labels.
        ids: parts.labels.iter().map(|&label| label as u16).collect(),
    })
}

/// The graph-based partition of `image`; `scale` and `sigma` as in [`FelzenszwalbParams`],
/// parts smaller than `min_size` pixels join a neighbour across their weakest edge.
///
/// # Errors
/// [`DataError::Parameter`] when the image has more than 2^30 pixels.
pub fn partition(
    image: &RgbImage,
    scale: f64,
    sigma: f64,
    min_size: u32,
) -> Result<Partition, DataError> {
    let (width, height) = (image.width() as usize, image.height() as usize);
    let pixels = width * height;
    DataError::check(
        pixels as u64 <= MAX_PIXELS,
        "the size of an image",
        &(width, height),
        "at most 2^30 pixels",
    )?;
    let smooth = smoothed(image, sigma);
    let edges = sorted_edges(&smooth, width, height);
    // Colours are in 0..1 here and k is meant for 0..255.
    let mut forest = Forest::new(pixels, scale / 255.0);
    let mut rejected = Vec::new();
    for edge in &edges {
        let (a, b) = edge.ends(width);
        let (a, b) = (forest.root(a), forest.root(b));
        if a == b {
            continue;
        }
        let weight = edge.weight();
        if weight < f64::from(forest.threshold[a as usize].min(forest.threshold[b as usize])) {
            forest.join(a, b, weight);
        } else {
            rejected.push(edge.code);
        }
    }
    for code in rejected {
        let (a, b) = ends(code, width);
        let (a, b) = (forest.root(a), forest.root(b));
        if a != b && (forest.size[a as usize] < min_size || forest.size[b as usize] < min_size) {
            forest.join(a, b, 0.0);
        }
    }
    Ok(Partition::canonical((0..pixels as u32).map(|pixel| forest.root(pixel))))
}

/// Disjoint sets of pixels; values of a set are kept at its root.
struct Forest {
    parent: Vec<u32>,
    size: Vec<u32>,
    /// Internal difference plus k / size (equation 4 of the paper). Single precision, as in
    /// scikit-image: in double precision a few edges per image fall on the other side.
    threshold: Vec<f32>,
    scale: f64,
}

impl Forest {
    fn new(pixels: usize, scale: f64) -> Self {
        Self {
            parent: (0..pixels as u32).collect(),
            size: vec![1; pixels],
            threshold: vec![scale as f32; pixels],
            scale,
        }
    }

    fn root(&mut self, mut pixel: u32) -> u32 {
        while self.parent[pixel as usize] != pixel {
            // Halving the path keeps later searches short.
            let above = self.parent[pixel as usize];
            self.parent[pixel as usize] = self.parent[above as usize];
            pixel = self.parent[pixel as usize];
        }
        pixel
    }

    /// Joins two roots by an edge of `weight`, which, edges coming in ascending order, is the
    /// internal difference of the new set.
    fn join(&mut self, a: u32, b: u32, weight: f64) {
        let (large, small) =
            if self.size[a as usize] < self.size[b as usize] { (b, a) } else { (a, b) };
        self.parent[small as usize] = large;
        let size = self.size[a as usize] + self.size[b as usize];
        self.size[large as usize] = size;
        self.threshold[large as usize] = (weight + self.scale / f64::from(size)) as f32;
    }
}

/// An edge between 8-neighbours. The order of `code` is the order among equal weights: all
/// edges to the right, down, down right, then up right, each row by row.
#[derive(Clone, Copy, Default)]
struct Edge {
    /// The bits of the weight. Bits of numbers that are not negative order like the numbers.
    bits: u64,
    /// Direction in the upper two bits, pixel below.
    code: u32,
}

impl Edge {
    fn weight(self) -> f64 {
        f64::from_bits(self.bits)
    }

    fn ends(self, width: usize) -> (u32, u32) {
        ends(self.code, width)
    }
}

fn ends(code: u32, width: usize) -> (u32, u32) {
    let pixel = code & ((1 << 30) - 1);
    let width = width as u32;
    match code >> 30 {
        0 => (pixel, pixel + 1),
        1 => (pixel, pixel + width),
        2 => (pixel, pixel + width + 1),
        _ => (pixel + 1, pixel + width),
    }
}

/// Buckets are intervals of weights between neighbouring numbers of 12 bits of mantissa from
/// 2^-16 on; weights below share the first. Weights are at most sqrt(3) < 2.
const BUCKET_SHIFT: u32 = 52 - 12;
const BUCKET_FLOOR: u64 = (1023 - 16) << 12;
const BUCKETS: usize = 17 << 12;

fn bucket(bits: u64) -> usize {
    ((bits >> BUCKET_SHIFT).saturating_sub(BUCKET_FLOOR) as usize).min(BUCKETS - 1)
}

/// All edges of the image in ascending order of weight.
fn sorted_edges(smooth: &[f64], width: usize, height: usize) -> Vec<Edge> {
    let mut edges = Vec::with_capacity(4 * width * height);
    let right = width.saturating_sub(1);
    let down = height.saturating_sub(1);
    for (direction, columns, rows) in
        [(0_u32, right, height), (1, width, down), (2, right, down), (3, right, down)]
    {
        for y in 0..rows {
            for x in 0..columns {
                let code = (direction << 30) | (y * width + x) as u32;
                let (a, b) = ends(code, width);
                let bits = distance(smooth, a as usize, b as usize).to_bits();
                edges.push(Edge { bits, code });
            }
        }
    }
    // A counting sort into many small buckets, then each bucket by comparison: several times
    // faster than comparing all edges with each other.
    let mut starts = vec![0_usize; BUCKETS + 1];
    for edge in &edges {
        starts[bucket(edge.bits) + 1] += 1;
    }
    for i in 0..BUCKETS {
        starts[i + 1] += starts[i];
    }
    let mut next = starts.clone();
    let mut sorted = vec![Edge::default(); edges.len()];
    for edge in edges {
        let slot = &mut next[bucket(edge.bits)];
        sorted[*slot] = edge;
        *slot += 1;
    }
    for range in starts.windows(2) {
        sorted[range[0]..range[1]].sort_unstable_by_key(|edge| (edge.bits, edge.code));
    }
    sorted
}

/// Euclidean distance between the colours of two pixels.
fn distance(smooth: &[f64], a: usize, b: usize) -> f64 {
    let (a, b) = (&smooth[3 * a..3 * a + 3], &smooth[3 * b..3 * b + 3]);
    let squared = |c: usize| (a[c] - b[c]) * (a[c] - b[c]);
    (squared(0) + squared(1) + squared(2)).sqrt()
}

/// The image in 0..1, `[height, width, 3]`, smoothed along columns, then along rows. Borders
/// are mirrored with the edge pixel repeated (scipy's mode "reflect"), the kernel ends at 4
/// sigma.
fn smoothed(image: &RgbImage, sigma: f64) -> Vec<f64> {
    let (width, height) = (image.width() as usize, image.height() as usize);
    let source: Vec<f64> =
        image.as_raw().iter().map(|&value| f64::from(value) * (1.0 / 255.0)).collect();
    let radius = (4.0 * sigma + 0.5) as usize;
    if radius == 0 || source.is_empty() {
        return source;
    }
    let kernel = gaussian_kernel(sigma, radius);
    let mut columns = vec![0.0; source.len()];
    let row = |y: usize| &source[y * 3 * width..(y + 1) * 3 * width];
    for (y, out) in columns.chunks_exact_mut(3 * width).enumerate() {
        for (value, centre) in out.iter_mut().zip(row(y)) {
            *value = centre * kernel[0];
        }
        // From the outermost pair inwards, the order in which scipy adds.
        for k in (1..=radius).rev() {
            let above = row(mirrored(y as isize - k as isize, height));
            let below = row(mirrored((y + k) as isize, height));
            for ((value, a), b) in out.iter_mut().zip(above).zip(below) {
                *value += (a + b) * kernel[k];
            }
        }
    }
    let mut rows = source;
    let mut padded = vec![0.0; 3 * (width + 2 * radius)];
    for (line, out) in columns.chunks_exact(3 * width).zip(rows.chunks_exact_mut(3 * width)) {
        for (i, target) in padded.chunks_exact_mut(3).enumerate() {
            let x = mirrored(i as isize - radius as isize, width);
            target.copy_from_slice(&line[3 * x..3 * x + 3]);
        }
        let shifted = |offset: usize| &padded[3 * offset..3 * (offset + width)];
        for (value, centre) in out.iter_mut().zip(shifted(radius)) {
            *value = centre * kernel[0];
        }
        for k in (1..=radius).rev() {
            let (left, right) = (shifted(radius - k), shifted(radius + k));
            for ((value, a), b) in out.iter_mut().zip(left).zip(right) {
                *value += (a + b) * kernel[k];
            }
        }
    }
    rows
}

/// One half of the normalised kernel: entry k is the weight at distance k.
fn gaussian_kernel(sigma: f64, radius: usize) -> Vec<f64> {
    let weight = |k: usize| (-0.5 / (sigma * sigma) * (k * k) as f64).exp();
    let total: f64 = (1..=radius).rev().chain(0..=radius).map(weight).sum();
    (0..=radius).map(|k| weight(k) / total).collect()
}

/// The index that stands for `index` when a line of `length` is mirrored at both ends without
/// end: `c b a | a b c | c b a`.
fn mirrored(index: isize, length: usize) -> usize {
    let period = 2 * length as isize;
    let index = index.rem_euclid(period) as usize;
    index.min(2 * length - 1 - index)
}

#[cfg(test)]
#[path = "felzenszwalb_tests.rs"]
mod tests;
