//! What is counted for one object in one frame, and the two measures that follow from it.

use super::bitmask::BitMask;

/// Boundary tolerance as a share of the frame's diagonal (the DAVIS tool's `bound_th`).
const BOUNDARY_TOLERANCE: f64 = 0.008;

/// Boundary tolerance in pixels: ceil(0.008 · diagonal), 8 at 854x480.
pub fn boundary_radius(width: u32, height: u32) -> u32 {
    let (w, h) = (u64::from(width), u64::from(height));
    // The product is taken in the order of the official tool: some sizes (75x100, 150x200)
    // come to a whole number exactly and must not be rounded up to the next.
    (BOUNDARY_TOLERANCE * ((w * w + h * h) as f64).sqrt()).ceil() as u32
}

/// Pixel counts of one object in one frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct FrameCounts {
    /// Pixels in both the annotation and the prediction.
    pub intersection: u64,
    /// Pixels in either.
    pub union: u64,
    /// Boundary pixels of the annotation.
    pub annotation_boundary: u64,
    /// Boundary pixels of the prediction.
    pub prediction_boundary: u64,
    /// Boundary pixels of the annotation within the tolerance of one of the prediction.
    pub annotation_matched: u64,
    /// Boundary pixels of the prediction within the tolerance of one of the annotation.
    pub prediction_matched: u64,
}

impl FrameCounts {
    /// Compares two masks of one size; `radius` is the boundary tolerance in pixels.
    pub fn compare(annotation: &BitMask, prediction: &BitMask, radius: u32) -> Self {
        let (a, p) = (annotation.boundary(), prediction.boundary());
        Self {
            intersection: annotation.intersection(prediction),
            union: annotation.union(prediction),
            annotation_boundary: a.count(),
            prediction_boundary: p.count(),
            annotation_matched: a.intersection(&p.dilated(radius)),
            prediction_matched: p.intersection(&a.dilated(radius)),
        }
    }

    /// Region similarity J = |intersection| / |union|, 0..1; 1 where both masks are empty.
    pub fn region(&self) -> f64 {
        if self.union == 0 { 1.0 } else { self.intersection as f64 / self.union as f64 }
    }

    /// Contour accuracy F, the harmonic mean of boundary precision and recall, 0..1.
    ///
    /// With no boundary on either side it is 1, with one on one side only 0. A mask that
    /// fills the frame has no boundary.
    pub fn boundary(&self) -> f64 {
        let share = |matched: u64, all: u64, other: u64| match (all, other) {
            (0, _) => 1.0,
            (_, 0) => 0.0,
            _ => matched as f64 / all as f64,
        };
        let (a, p) = (self.annotation_boundary, self.prediction_boundary);
        let precision = share(self.prediction_matched, p, a);
        let recall = share(self.annotation_matched, a, p);
        if precision + recall == 0.0 {
            0.0
        } else {
            2.0 * precision * recall / (precision + recall)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tolerance_is_exact_where_the_diagonal_is() {
        let sizes = [
            (5, 3, 1),
            (100, 75, 1),
            (100, 76, 2),
            (200, 150, 2),
            (854, 480, 8),
            (910, 480, 9),
            (800, 600, 8),
            (1280, 720, 12),
            (1920, 1080, 18),
        ];
        for (width, height, radius) in sizes {
            assert_eq!(boundary_radius(width, height), radius, "{width}x{height}");
        }
    }

    #[test]
    fn absent_boundaries_follow_the_official_convention() {
        let counts = |annotation_boundary, prediction_boundary| FrameCounts {
            intersection: 0,
            union: 0,
            annotation_boundary,
            prediction_boundary,
            annotation_matched: 0,
            prediction_matched: 0,
        };
        assert_eq!(counts(0, 0).boundary(), 1.0);
        assert_eq!(counts(3, 0).boundary(), 0.0);
        assert_eq!(counts(0, 3).boundary(), 0.0);
        assert_eq!(counts(0, 0).region(), 1.0);
    }
}
