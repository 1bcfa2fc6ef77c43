//! Motion between two frames, by block matching from coarse to fine.
//!
//! Frames are matched in whole pixels, cell by cell, which is what it takes to see where a
//! segment comes from. The crates for images and vision that are written in Rust follow single
//! points; those with dense motion bind `OpenCV`, a large dependency for this one use.

use image::RgbImage;

/// Side of a cell, all of whose pixels move alike, in pixels.
const CELL: i32 = 4;
/// Pixels around a cell that are compared with it.
const BORDER: i32 = 2;
/// The coarsest frames are at least this long on their shorter side.
const COARSEST: u32 = 16;
/// Reach of the search on the coarsest frames, in their pixels.
const REACH: i32 = 4;
/// What a pixel of deviation from the motion one level coarser costs, beside sums of absolute
/// differences of grey values over a cell with its border: a quarter of a grey value for each
/// pixel. Keeps flat areas with their surroundings.
const STRAY: u32 = 16;
/// Steps of the descent to a better place, at most.
const DESCENT: usize = 8;

/// A displacement in pixels: columns, rows.
pub type Vector = (i32, i32);

/// Grey values of a frame at halved sizes.
#[derive(Debug)]
pub struct Pyramid(Vec<Grey>);

#[derive(Debug)]
struct Grey {
    width: i32,
    height: i32,
    values: Vec<u8>,
}

impl Pyramid {
    /// Of an image with at least one pixel.
    pub fn new(image: &RgbImage) -> Self {
        let grey = image.pixels().map(|pixel| {
            let [r, g, b] = pixel.0.map(u32::from);
            // Rec. 601 in 1/256.
            ((77 * r + 150 * g + 29 * b + 128) >> 8) as u8
        });
        let (width, height) = (image.width() as i32, image.height() as i32);
        let mut levels = vec![Grey { width, height, values: grey.collect() }];
        while let Some(half) = levels.last().and_then(Grey::halved) {
            levels.push(half);
        }
        Self(levels)
    }
}

impl Grey {
    /// Means of 2x2 pixels; `None` when that would be too small.
    fn halved(&self) -> Option<Self> {
        let (width, height) = (self.width / 2, self.height / 2);
        if width.min(height) < COARSEST as i32 {
            return None;
        }
        let mut values = Vec::with_capacity((width * height) as usize);
        for y in 0..height {
            for x in 0..width {
                let at = |dx, dy| u32::from(self.at(2 * x + dx, 2 * y + dy));
                values.push(((at(0, 0) + at(1, 0) + at(0, 1) + at(1, 1) + 2) / 4) as u8);
            }
        }
        Some(Self { width, height, values })
    }

    /// The pixel at (`x`, `y`), or the nearest one that the frame has.
    fn at(&self, x: i32, y: i32) -> u8 {
        let (x, y) = (x.clamp(0, self.width - 1), y.clamp(0, self.height - 1));
        self.values[(y * self.width + x) as usize]
    }

    fn holds(&self, x: i32, y: i32, side: i32) -> bool {
        x >= 0 && y >= 0 && x + side <= self.width && y + side <= self.height
    }

    fn row(&self, x: i32, y: i32, length: i32) -> &[u8] {
        let start = (y * self.width + x) as usize;
        &self.values[start..start + length as usize]
    }
}

/// Sum of absolute differences between the cell at (`x`, `y`) of `from`, with its border, and
/// the place `motion` away in `to`.
fn difference(from: &Grey, to: &Grey, x: i32, y: i32, motion: Vector) -> u32 {
    let (x, y, side) = (x - BORDER, y - BORDER, CELL + 2 * BORDER);
    let (u, v) = (x + motion.0, y + motion.1);
    let inside = from.holds(x, y, side) && to.holds(u, v, side);
    let mut sum = 0;
    for i in 0..side {
        if inside {
            let pairs = from.row(x, y + i, side).iter().zip(to.row(u, v + i, side));
            sum += pairs.map(|(&a, &b)| u32::from(a.abs_diff(b))).sum::<u32>();
        } else {
            for j in 0..side {
                sum += u32::from(from.at(x + j, y + i).abs_diff(to.at(u + j, v + i)));
            }
        }
    }
    sum
}

/// Where every pixel of a frame lies in another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow {
    columns: i32,
    rows: i32,
    cells: Vec<Vector>,
}

impl Flow {
    /// From the frame `from` to the frame `to`, which must have the same size.
    pub fn between(from: &Pyramid, to: &Pyramid) -> Self {
        let mut levels = from.0.iter().zip(&to.0).rev();
        let mut flow = Self { columns: 1, rows: 1, cells: vec![(0, 0)] };
        if let Some((from, to)) = levels.next() {
            flow = Self::matched(from, to, None);
        }
        for (from, to) in levels {
            flow = Self::matched(from, to, Some(&flow));
        }
        flow
    }

    /// Displacement of the pixel in column `x` and row `y`, both at least 0.
    pub fn at(&self, x: i32, y: i32) -> Vector {
        self.cell((x / CELL).min(self.columns - 1), (y / CELL).min(self.rows - 1))
    }

    fn cell(&self, column: i32, row: i32) -> Vector {
        self.cells[(row * self.columns + column) as usize]
    }

    fn matched(from: &Grey, to: &Grey, coarser: Option<&Self>) -> Self {
        let columns = (from.width + CELL - 1) / CELL;
        let rows = (from.height + CELL - 1) / CELL;
        let count = (columns * rows) as usize;
        let mut flow = Self { columns, rows, cells: vec![(0, 0); count] };
        let mut costs = vec![u32::MAX; count];
        // Good matches spread to the right and down, then to the left and up.
        for back in [false, true] {
            for i in 0..count as i32 {
                let i = if back { count as i32 - 1 - i } else { i };
                let (column, row) = (i % columns, i / columns);
                let (x, y) = (column * CELL, row * CELL);
                let double = |x: i32, y: i32| {
                    coarser.map_or((0, 0), |flow| {
                        let (dx, dy) = flow.at(x.max(0) / 2, y.max(0) / 2);
                        (2 * dx, 2 * dy)
                    })
                };
                let expected = double(x, y);
                let cost = |motion: Vector| {
                    // The last cells of a row or column may be cut off.
                    let centre = |at: i32, side: i32| (at + CELL / 2).min(side - 1);
                    let (cx, cy) =
                        (centre(x, from.width) + motion.0, centre(y, from.height) + motion.1);
                    if !(0..to.width).contains(&cx) || !(0..to.height).contains(&cy) {
                        return u32::MAX;
                    }
                    let stray = motion.0.abs_diff(expected.0) + motion.1.abs_diff(expected.1);
                    difference(from, to, x, y, motion) + STRAY * stray
                };
                let mut best = (costs[i as usize], flow.cells[i as usize]);
                let mut consider = |motion: Vector| {
                    let found = cost(motion);
                    if found < best.0 {
                        best = (found, motion);
                        return true;
                    }
                    false
                };
                if back {
                    for (c, r) in [(column + 1, row), (column, row + 1)] {
                        if c < columns && r < rows {
                            consider(flow.cell(c, r));
                        }
                    }
                } else {
                    consider(expected);
                    let next = 2 * CELL;
                    for (dx, dy) in [(next, 0), (-next, 0), (0, next), (0, -next)] {
                        consider(double(x + dx, y + dy));
                    }
                    consider((0, 0));
                    for (c, r) in [(column - 1, row), (column, row - 1)] {
                        if c >= 0 && r >= 0 {
                            consider(flow.cell(c, r));
                        }
                    }
                    if coarser.is_none() {
                        for dy in -REACH..=REACH {
                            for dx in -REACH..=REACH {
                                consider((dx, dy));
                            }
                        }
                    }
                }
                for _ in 0..DESCENT {
                    let (dx, dy) = best.1;
                    let mut better = false;
                    for (ox, oy) in [(1, 0), (-1, 0), (0, 1), (0, -1)] {
                        let motion = (dx + ox, dy + oy);
                        let found = cost(motion);
                        if found < best.0 {
                            best = (found, motion);
                            better = true;
                        }
                    }
                    if !better {
                        break;
                    }
                }
                (costs[i as usize], flow.cells[i as usize]) = best;
            }
        }
        flow
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use rand::{RngExt as _, SeedableRng as _};
    use rand_pcg::Pcg64;

    use super::*;

    /// A window at (`left`, `top`) of a large picture of blots.
    pub(crate) fn window(left: u32, top: u32, width: u32, height: u32) -> RgbImage {
        let mut rng = Pcg64::seed_from_u64(3);
        let coarse = RgbImage::from_fn(40, 40, |_, _| image::Rgb([rng.random(), rng.random(), 9]));
        let filter = image::imageops::FilterType::Triangle;
        let large = image::imageops::resize(&coarse, 240, 240, filter);
        image::imageops::crop_imm(&large, left, top, width, height).to_image()
    }

    #[test]
    fn a_translation_is_found() {
        let here = Pyramid::new(&window(40, 50, 128, 96));
        for (dx, dy) in [(0, 0), (7, -5), (-13, 11), (1, 20)] {
            let there = window((40 - dx) as u32, (50 - dy) as u32, 128, 96);
            let flow = Flow::between(&here, &Pyramid::new(&there));
            let inside = (24..72).flat_map(|y| (24..104).map(move |x| (x, y)));
            let (mut exact, mut all) = (0, 0);
            for (x, y) in inside {
                let (u, v) = flow.at(x, y);
                // Flat places may be off by a pixel.
                assert!(u.abs_diff(dx) <= 1 && v.abs_diff(dy) <= 1, "{u} {v} at {x}, {y}");
                exact += usize::from((u, v) == (dx, dy));
                all += 1;
            }
            assert!(exact * 20 > all * 19, "{exact} of {all} for {dx} {dy}");
        }
    }

    #[test]
    fn frames_of_any_size_have_a_flow() {
        for (width, height) in [(1, 1), (3, 50), (64, 5), (33, 47)] {
            let pyramid = Pyramid::new(&window(0, 0, width, height));
            let flow = Flow::between(&pyramid, &pyramid);
            assert_eq!(flow.at(width as i32 - 1, height as i32 - 1), (0, 0));
        }
    }
}
