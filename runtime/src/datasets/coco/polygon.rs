//! Polygons to pixels, bit for bit as `pycocotools` fills them.
//!
//! Corners are rounded to a grid five times as fine as the pixels. An edge is a line of cells
//! of that grid, one for each step along its longer axis. Where it crosses the middle of a
//! column of pixels, it turns over what follows in the order of run-length encoding (down the
//! column, and on into the next): an odd number of turns is inside. Which pixels a border
//! takes with it follows from that and can differ from what other fill rules say.

/// Cells of the fine grid per pixel, along each axis.
pub(super) const CELLS: i32 = 5;

/// Column or row on the fine grid of a coordinate in pixels. Rounds half up, but towards zero
/// below zero, as a conversion to an integer in C does.
pub(super) fn fine(coordinate: f64) -> i32 {
    (f64::from(CELLS) * coordinate + 0.5) as i32
}

/// Adds the pixels inside of a closed polygon to `spans`, as ranges of places
/// `column * height + row`, ascending.
///
/// `corners` are `[x, y]` on the fine grid ([`fine`]), at most a few hundred thousand away from
/// 0; the sides are at most [`MAX_SIDE`](crate::labels::MAX_SIDE).
pub(super) fn fill(corners: &[[i32; 2]], width: u32, height: u32, spans: &mut Vec<[u32; 2]>) {
    let mut turns = Vec::new();
    let next = corners.iter().cycle().skip(1);
    for (&from, &to) in corners.iter().zip(next) {
        edge(from, to, width, height, &mut turns);
    }
    turns.sort_unstable();
    turns.push(width * height);
    let pairs = turns.chunks_exact(2).map(|pair| [pair[0], pair[1]]);
    spans.extend(pairs.filter(|[start, end]| start < end));
}

/// Adds the places at which the edge turns the fill over.
fn edge(a: [i32; 2], b: [i32; 2], width: u32, height: u32, turns: &mut Vec<u32>) {
    // Column `c` of the pixels is crossed between the fine columns `MIDDLE + CELLS * c` and the
    // next one.
    const MIDDLE: i32 = CELLS / 2;
    let (dx, dy) = ((b[0] - a[0]).abs(), (b[1] - a[1]).abs());
    let by_column = dx >= dy;
    let axis = usize::from(!by_column);
    let ([x0, y0], [x1, y1]) = if a[axis] <= b[axis] { (a, b) } else { (b, a) };
    let columns = |low: i32, high: i32| {
        let first = (low - MIDDLE + CELLS - 1).div_euclid(CELLS).max(0);
        let last = (high - MIDDLE - 1).div_euclid(CELLS).min(width as i32 - 1);
        first..=last
    };
    let mut turn = |column: i32, fine_row: i32| {
        // The first pixel whose middle is not above the edge.
        let row = (fine_row + CELLS - 1 - MIDDLE).div_euclid(CELLS).clamp(0, height as i32);
        turns.push(column as u32 * height + row as u32);
    };
    if by_column {
        if dx == 0 {
            return;
        }
        let slope = f64::from(y1 - y0) / f64::from(dx);
        let row = |x: i32| (f64::from(y0) + slope * f64::from(x - x0) + 0.5) as i32;
        for column in columns(x0, x1) {
            let x = MIDDLE + CELLS * column;
            turn(column, row(x).min(row(x + 1)));
        }
    } else {
        let slope = f64::from(x1 - x0) / f64::from(dy);
        // Monotonic, and no step is longer than one cell.
        let column_at = |step: i32| (f64::from(x0) + slope * f64::from(step) + 0.5) as i32;
        let (start, end) = (column_at(0), column_at(dy));
        for column in columns(start.min(end), start.max(end)) {
            let x = MIDDLE + CELLS * column;
            let beyond = |step: i32| (column_at(step) > x) != (start > x);
            let (mut before, mut after) = (0, dy);
            while after - before > 1 {
                let middle = before.midpoint(after);
                if beyond(middle) { after = middle } else { before = middle }
            }
            turn(column, y0 + before);
        }
    }
}

/// The union of ranges in any order, ascending and apart.
pub(super) fn union(mut spans: Vec<[u32; 2]>) -> Vec<[u32; 2]> {
    spans.sort_unstable();
    spans.dedup_by(|next, kept| {
        let joins = next[0] <= kept[1];
        if joins {
            kept[1] = kept[1].max(next[1]);
        }
        joins
    });
    spans
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The rule of the module in full: every cell of the outline, every pixel looked at.
    fn slow(corners: &[[i32; 2]], width: u32, height: u32) -> Vec<bool> {
        let mut outline = Vec::new();
        for (i, &a) in corners.iter().enumerate() {
            let b = corners[(i + 1) % corners.len()];
            let axis = usize::from((b[0] - a[0]).abs() < (b[1] - a[1]).abs());
            let (from, to) = if a[axis] <= b[axis] { (a, b) } else { (b, a) };
            let steps = to[axis] - from[axis];
            let slope = f64::from(to[1 - axis] - from[1 - axis]) / f64::from(steps.max(1));
            let mut line: Vec<[i32; 2]> = (0..=steps)
                .map(|step| {
                    let across = f64::from(from[1 - axis]) + slope * f64::from(step) + 0.5;
                    let mut cell = [across as i32; 2];
                    cell[axis] = from[axis] + step;
                    cell
                })
                .collect();
            if from != a {
                line.reverse();
            }
            outline.extend(line);
        }
        let mut turns = vec![0; (width * height) as usize + 1];
        for pair in outline.windows(2) {
            let (left, right) = (pair[0][0].min(pair[1][0]), pair[0][0].max(pair[1][0]));
            let column = (left - CELLS / 2) / CELLS;
            let crosses = left < right && left >= 0 && left % CELLS == CELLS / 2;
            if crosses && column < width as i32 {
                let top = pair[0][1].min(pair[1][1]);
                let middle_at_or_below = |row: &i32| row * CELLS + CELLS / 2 >= top;
                let row = (0..height as i32).find(middle_at_or_below).unwrap_or(height as i32);
                turns[(column * height as i32 + row) as usize] += 1;
            }
        }
        let mut inside = false;
        turns[..(width * height) as usize]
            .iter()
            .map(|count| {
                inside ^= count % 2 == 1;
                inside
            })
            .collect()
    }

    fn mask(spans: &[[u32; 2]], pixels: u32) -> Vec<bool> {
        (0..pixels).map(|p| spans.iter().any(|span| (span[0]..span[1]).contains(&p))).collect()
    }

    proptest! {
        #[test]
        fn filling_equals_walking_the_outline(
            corners in prop::collection::vec(prop::array::uniform2(-60..140), 1..12),
            w in 1u32..24, h in 1u32..24
        ) {
            let mut spans = Vec::new();
            fill(&corners, w, h, &mut spans);
            prop_assert_eq!(mask(&spans, w * h), slow(&corners, w, h));
        }

        #[test]
        fn a_union_covers_what_any_covers(
            spans in prop::collection::vec((0u32..40, 1u32..12), 0..10)
        ) {
            let spans: Vec<_> = spans.iter().map(|&(at, length)| [at, at + length]).collect();
            let joined = union(spans.clone());
            prop_assert_eq!(mask(&joined, 60), mask(&spans, 60));
            prop_assert!(joined.windows(2).all(|pair| pair[0][1] < pair[1][0]));
        }
    }
}
