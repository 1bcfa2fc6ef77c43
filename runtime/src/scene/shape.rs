//! Outlines of the objects, in their own coordinates: every shape lies in the unit circle.

/// The outline of an object.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Shape {
    /// Twice as wide as high, roughly.
    Ellipse,
    /// A regular polygon with rounded corners.
    RoundedPolygon {
        /// Outward unit normals of the edges.
        normals: [[f32; 2]; 5],
    },
    /// A closed curve whose radius swells three and five times a turn.
    Blob {
        /// Sine and cosine weights of the threefold wave, then of the fivefold one.
        waves: [f32; 4],
    },
    /// A five-pointed star.
    Star {
        /// Outward unit normals of the five lines that bound it.
        normals: [[f32; 2]; 5],
    },
}

/// Distance of the star's inner lines from its centre when the tips touch the unit circle:
/// cos(72 degrees).
const STAR_LINE: f32 = 0.309_017;

impl Shape {
    /// The ellipse, polygon, blob and star that the scene uses. `wobble` in `0..1` turns the
    /// blob's waves against one another.
    pub(super) fn all(wobble: f64) -> [Self; 4] {
        let turn = core::f64::consts::TAU;
        let normals: [[f32; 2]; 5] = core::array::from_fn(|i| {
            let angle = turn * i as f64 / 5.0;
            [libm::cos(angle) as f32, libm::sin(angle) as f32]
        });
        let (three, five) = (turn * wobble, turn * wobble * 2.3 + 1.0);
        let waves = [
            0.16 * libm::sin(three) as f32,
            0.16 * libm::cos(three) as f32,
            0.09 * libm::sin(five) as f32,
            0.09 * libm::cos(five) as f32,
        ];
        [
            Self::Ellipse,
            Self::RoundedPolygon { normals },
            Self::Blob { waves },
            Self::Star { normals },
        ]
    }

    /// Whether a point lies inside. Only additions, products and square roots are used,
    /// which IEEE 754 rounds the same way everywhere.
    pub(super) fn contains(&self, x: f32, y: f32) -> bool {
        match self {
            Self::Ellipse => x * x + y * y * 2.4 <= 1.0,
            Self::RoundedPolygon { normals } => {
                // An 8-norm over the edges instead of the maximum rounds the corners.
                let sum: f32 = normals
                    .iter()
                    .map(|n| {
                        let d = ((x * n[0] + y * n[1]) / 0.84).max(0.0);
                        let d2 = d * d;
                        let d4 = d2 * d2;
                        d4 * d4
                    })
                    .sum();
                sum <= 1.0
            }
            Self::Blob { waves } => {
                let r = (x * x + y * y).sqrt();
                if r < 1e-6 {
                    return true;
                }
                let (c, s) = (x / r, y / r);
                let (c2, s2) = (c * c - s * s, 2.0 * c * s);
                let (c3, s3) = (c2 * c - s2 * s, s2 * c + c2 * s);
                let (c5, s5) = (c3 * c2 - s3 * s2, s3 * c2 + c3 * s2);
                let radius = 0.75 + waves[0] * s3 + waves[1] * c3 + waves[2] * s5 + waves[3] * c5;
                r <= radius
            }
            Self::Star { normals } => {
                // Inside at least four of five half planes: the body and the five tips.
                let outside = normals.iter().filter(|n| x * n[0] + y * n[1] > STAR_LINE).count();
                outside <= 1 && x * x + y * y <= 1.0
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shape_holds_its_centre_and_stays_in_the_unit_circle() {
        for shape in Shape::all(0.4) {
            assert!(shape.contains(0.0, 0.0), "{shape:?}");
            for i in 0..360 {
                let angle = f64::from(i).to_radians();
                let (x, y) = (libm::cos(angle) as f32, libm::sin(angle) as f32);
                assert!(!shape.contains(x * 1.01, y * 1.01), "{shape:?} at {i} degrees");
            }
        }
    }

    #[test]
    fn the_shapes_have_the_areas_that_their_formulas_say() {
        let area = |shape: &Shape| {
            let n = 400;
            let inside = (0..n * n)
                .filter(|i| {
                    let x = (i % n) as f32 / n as f32 * 2.0 - 1.0;
                    let y = (i / n) as f32 / n as f32 * 2.0 - 1.0;
                    shape.contains(x, y)
                })
                .count();
            inside as f32 * 4.0 / (n * n) as f32
        };
        let [ellipse, polygon, blob, star] = Shape::all(0.4);
        assert!((area(&ellipse) - core::f32::consts::PI / 2.4f32.sqrt()).abs() < 0.02);
        // The mean of r²/2 over a turn: the constant and the two waves' mean squares.
        let expected = core::f32::consts::PI * (0.75 * 0.75 + 0.5 * (0.16f32 * 0.16 + 0.09 * 0.09));
        assert!((area(&blob) - expected).abs() < 0.02);
        // A pentagram in the unit circle.
        assert!((area(&star) - 1.1226).abs() < 0.02, "{}", area(&star));
        // Less than the sharp pentagon with the same edges (5 tan 36° · 0.84²).
        assert!((2.0..2.563).contains(&area(&polygon)), "{}", area(&polygon));
    }
}
