//! Pseudo segments from contours: OWT-UCM after Arbeláez, Maire, Fowlkes and Malik, "Contour
//! Detection and Hierarchical Image Segmentation", PAMI 2011.
//!
//! ```text
//! contour map -> orientation -> watershed -> arcs (oriented strength) -> ucm -> threshold
//! ```
//!
//! Spectral globalisation, which some pipelines put between the contour map and the watershed,
//! is not part of this: a detector's map is taken as it is, and a map that was globalised
//! elsewhere is as welcome as any other. A ready ultrametric map skips all but the threshold.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::images::MAX_SIDE;
use super::matlab::{Matrix, read_matrices};
use super::{DataError, SegmentMap, VOID, images};

mod arcs;
mod orientation;
mod ucm;
mod watershed;

pub use ucm::UcmMap;

/// How segments are made from contours.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ContourParams {
    /// Regions join across boundaries up to this strength, 0 to 1.
    pub threshold: f64,
    /// The threshold rises in steps of this until few enough segments are left.
    pub threshold_step: f64,
    /// Segments of an image, at most.
    pub max_segments: u16,
    /// Radius in pixels of the triangle filter under the orientation of a contour map.
    pub smoothing_radius: u32,
}

impl Default for ContourParams {
    /// Threshold 0.5 as `SegSort`, steps of 0.01 to 48 segments as Hierarchical Grouping,
    /// radius 4.
    fn default() -> Self {
        Self { threshold: 0.5, threshold_step: 0.01, max_segments: 48, smoothing_radius: 4 }
    }
}

impl ContourParams {
    /// Checks the ranges.
    pub fn validate(&self) -> Result<(), DataError> {
        let check = DataError::check;
        check(
            (0.0..=1.0).contains(&self.threshold),
            "segments.contours.threshold",
            &self.threshold,
            "a number in 0..=1",
        )?;
        check(
            (1e-4..=1.0).contains(&self.threshold_step),
            "segments.contours.threshold_step",
            &self.threshold_step,
            "a number in 0.0001..=1",
        )?;
        check(
            (1..VOID).contains(&self.max_segments),
            "segments.contours.max_segments",
            &self.max_segments,
            "a number in 1..=65534",
        )?;
        check(
            (1..=64).contains(&self.smoothing_radius),
            "segments.contours.smoothing_radius",
            &self.smoothing_radius,
            "a number in 1..=64",
        )
    }
}

/// A map of contour strengths, one per pixel.
#[derive(Debug, Clone, PartialEq)]
pub struct ContourMap {
    width: usize,
    height: usize,
    /// Row-major, `height * width`, 0 to 1.
    strength: Vec<f32>,
}

impl ContourMap {
    /// A map of `strength`, row-major, 0 to 1. `None` when the sizes disagree, the map is
    /// empty or longer than 16384 on a side, or a value is out of range.
    pub fn new(width: u32, height: u32, strength: Vec<f32>) -> Option<Self> {
        let sides = 1..=MAX_SIDE;
        let (w, h) = (width as usize, height as usize);
        let valid = sides.contains(&width)
            && sides.contains(&height)
            && strength.len() == w * h
            && strength.iter().all(|value| (0.0..=1.0).contains(value));
        valid.then_some(Self { width: w, height: h, strength })
    }

    /// The hierarchy of regions that the contours bound. `smoothing_radius` as in
    /// [`ContourParams`], at least 1.
    pub fn ucm(&self, smoothing_radius: u32) -> UcmMap {
        let normals = orientation::normals(self, smoothing_radius as usize);
        let basins = watershed::watershed(&self.strength, self.width);
        let cracks = arcs::strengths(self, &normals, &basins.labels);
        ucm::build(self.width, self.height, &basins, &cracks)
    }
}

/// The segments of an image of `width` x `height` pixels (as its file has them) by the contours
/// in `path`: a PNG of 8 or 16 bits (strength in parts of the largest value) or a `.mat` file
/// with one matrix. A matrix of `2 height + 1` rows and `2 width + 1` columns is a ready
/// ultrametric map, as is any `ucm2` of odd sides; all else is the map of a detector and may
/// have another size than the image, if the same proportions.
///
/// The result has the size of the map, an ultrametric one counted in pixels.
///
/// # Errors
/// [`DataError::Read`]; [`DataError::Segments`] when the file cannot be understood or does not
/// fit the image.
pub fn segment(
    path: &Path,
    (width, height): (u32, u32),
    params: &ContourParams,
) -> Result<SegmentMap, DataError> {
    let bad = |reason: String| DataError::Segments { path: path.to_owned(), reason };
    let matrix = read(path)?;
    let (w, h) = (matrix.width, matrix.height);
    let doubled = w == 2 * width + 1 && h == 2 * height + 1;
    let named = matrix.name == "ucm2" && w % 2 == 1 && h % 2 == 1;
    let is_ucm = doubled || named;
    let (pixels_w, pixels_h) = if is_ucm { (w / 2, h / 2) } else { (w, h) };
    if !same_proportions((pixels_w, pixels_h), (width, height)) {
        return Err(bad(format!(
            "it is {w}x{h} for an image of {width}x{height}; \
             give a map of the same proportions, or an ultrametric one of {}x{}",
            2 * width + 1,
            2 * height + 1
        )));
    }
    let range =
        || bad("it has values outside 0..1; scale a detector's output to that range".to_owned());
    let strength = matrix.data.iter().map(|value| value / matrix.full_scale).collect();
    let ucm = if is_ucm {
        UcmMap::new(pixels_w, pixels_h, strength).ok_or_else(range)?
    } else {
        ContourMap::new(w, h, strength).ok_or_else(range)?.ucm(params.smoothing_radius)
    };
    Ok(ucm.segments(params.threshold, params.threshold_step, params.max_segments))
}

/// Whether a map of size `a` can lie over an image of size `b`: the longer sides differ by no
/// more than rounding once the shorter are made equal.
pub(crate) fn same_proportions(a: (u32, u32), b: (u32, u32)) -> bool {
    let (a, b) = ((f64::from(a.0), f64::from(a.1)), (f64::from(b.0), f64::from(b.1)));
    let products = (a.0 * b.1, a.1 * b.0);
    // One pixel of the smaller of the two, in the units of the products.
    (products.0 - products.1).abs() <= a.0.max(a.1).max(b.0).max(b.1)
}

/// The only matrix of a `.mat` file, or a PNG as a matrix without a name.
fn read(path: &Path) -> Result<Matrix, DataError> {
    let bad = |reason: String| DataError::Segments { path: path.to_owned(), reason };
    if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("mat")) {
        let mut matrices = read_matrices(path)?;
        let named = matrices.iter().position(|matrix| matrix.name == "ucm2");
        return match (named, matrices.len()) {
            (Some(index), _) => Ok(matrices.swap_remove(index)),
            (None, 1) => Ok(matrices.swap_remove(0)),
            (None, 0) => Err(bad("it holds no matrix of numbers".into())),
            (None, _) => {
                let names: Vec<&str> = matrices.iter().map(|m| m.name.as_str()).collect();
                Err(bad(format!("it holds several matrices ({}); keep one", names.join(", "))))
            }
        };
    }
    let image = images::open(path)?;
    let (width, height) = (image.width(), image.height());
    let (data, full_scale): (Vec<f32>, f32) = match image {
        image::DynamicImage::ImageLuma8(map) => {
            (map.into_raw().into_iter().map(f32::from).collect(), 255.0)
        }
        image::DynamicImage::ImageLuma16(map) => {
            (map.into_raw().into_iter().map(f32::from).collect(), 65535.0)
        }
        other => {
            return Err(bad(format!("it is of kind {:?}; give a greyscale PNG", other.color())));
        }
    };
    Ok(Matrix { name: String::new(), width, height, data, full_scale })
}

#[cfg(test)]
mod tests;
