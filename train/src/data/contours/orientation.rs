//! The direction of the contour through every pixel.

use super::ContourMap;

/// The unit normal `[x, y]` (y downwards) of the contour at every pixel, by the second
/// derivatives of the smoothed map:
///
/// `O = mod(atan(Oyy · sign(−Oxy) / (Oxx + 1e-5)), π)`
///
/// where a mixed derivative of exactly 0, as along the axes of drawn maps, counts as negative:
/// with a sign of 0 a horizontal contour would be taken for a vertical one.
pub(super) fn normals(map: &ContourMap, radius: usize) -> Vec<[f32; 2]> {
    let (w, h) = (map.width, map.height);
    let smooth = triangle(&map.strength, w, radius);
    let (dx, dy) = (across(&smooth, w), down(&smooth, w));
    let (dxx, dxy, dyy) = (across(&dx, w), down(&dx, w), down(&dy, w));
    (0..w * h)
        .map(|i| {
            let sign = if dxy[i] > 0.0 { -1.0 } else { 1.0 };
            // A normal and its opposite are the same, so the remainder by π is left out.
            let angle = (dyy[i] * sign / (dxx[i] + 1e-5)).atan();
            [angle.cos(), angle.sin()]
        })
        .collect()
}

/// The triangle filter `1, 2 … r + 1 … 2, 1` along rows and columns; borders are mirrored.
fn triangle(values: &[f32], width: usize, radius: usize) -> Vec<f32> {
    let norm = ((radius + 1) * (radius + 1)) as f32;
    let taps: Vec<f32> =
        (0..=2 * radius).map(|k| (radius + 1 - k.abs_diff(radius)) as f32 / norm).collect();
    let mirrored = |index: isize, length: usize| {
        let index = index.rem_euclid(2 * length as isize) as usize;
        index.min(2 * length - 1 - index)
    };
    let height = values.len() / width;
    let mut rows = vec![0.0; values.len()];
    let mut padded = vec![0.0; width + 2 * radius];
    for (line, out) in values.chunks_exact(width).zip(rows.chunks_exact_mut(width)) {
        for (i, value) in padded.iter_mut().enumerate() {
            *value = line[mirrored(i as isize - radius as isize, width)];
        }
        for (value, window) in out.iter_mut().zip(padded.windows(taps.len())) {
            *value = window.iter().zip(&taps).map(|(a, b)| a * b).sum();
        }
    }
    let mut columns = vec![0.0; values.len()];
    for (y, out) in columns.chunks_exact_mut(width).enumerate() {
        for (k, tap) in taps.iter().enumerate() {
            let from = mirrored((y + k) as isize - radius as isize, height) * width;
            for (value, source) in out.iter_mut().zip(&rows[from..from + width]) {
                *value += source * tap;
            }
        }
    }
    columns
}

/// Derivative along rows: central differences, one-sided at the borders.
fn across(values: &[f32], width: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(values.len());
    for row in values.chunks_exact(width) {
        out.extend((0..width).map(|x| {
            let (left, right) = (x.saturating_sub(1), (x + 1).min(width - 1));
            (row[right] - row[left]) / (right - left).max(1) as f32
        }));
    }
    out
}

/// Derivative along columns, likewise.
fn down(values: &[f32], width: usize) -> Vec<f32> {
    let height = values.len() / width;
    let mut out = Vec::with_capacity(values.len());
    for y in 0..height {
        let (above, below) = (y.saturating_sub(1), (y + 1).min(height - 1));
        let span = (below - above).max(1) as f32;
        let (a, b) = (&values[above * width..][..width], &values[below * width..][..width]);
        out.extend(a.iter().zip(b).map(|(a, b)| (b - a) / span));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A soft ridge through the middle of a map whose normal has `angle` in degrees.
    fn ridge(angle: f32) -> ContourMap {
        let (sin, cos) = angle.to_radians().sin_cos();
        let strength = (0..41 * 41)
            .map(|i| {
                let (x, y) = ((i % 41) as f32 - 20.0, (i / 41) as f32 - 20.0);
                (-(x * cos + y * sin).powi(2) / 8.0).exp()
            })
            .collect();
        ContourMap::new(41, 41, strength).unwrap()
    }

    #[test]
    fn normals_follow_the_contour() {
        // Exact at the axes and diagonals; between them the formula, which takes the square
        // of the tangent for the tangent, is off by at most 12 degrees.
        for (angle, tolerance) in
            [(0.0, 1.0), (45.0, 1.0), (90.0, 1.0), (135.0, 1.0), (30.0, 12.5), (110.0, 12.5)]
        {
            let [x, y] = normals(&ridge(angle), 4)[20 * 41 + 20];
            let (sin, cos) = angle.to_radians().sin_cos();
            let off = (x * cos + y * sin).abs().min(1.0).acos().to_degrees();
            assert!(off < tolerance, "{angle}: off by {off}");
        }
    }

    #[test]
    fn the_filter_keeps_constants_and_spreads_a_point_as_a_pyramid() {
        assert!(triangle(&[0.5; 12], 4, 4).iter().all(|v| (v - 0.5).abs() < 1e-6));
        let mut point = vec![0.0; 25];
        point[12] = 1.0;
        let spread = triangle(&point, 5, 1);
        assert_eq!((spread[12], spread[11], spread[6], spread[10]), (0.25, 0.125, 0.0625, 0.0));
    }

    #[test]
    fn maps_of_one_row_have_normals() {
        let map = ContourMap::new(3, 1, vec![0.0, 1.0, 0.0]).unwrap();
        assert!(normals(&map, 4).iter().flatten().all(|v| v.is_finite()));
    }
}
