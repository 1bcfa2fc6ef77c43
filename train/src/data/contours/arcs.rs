//! Boundaries between basins: arcs of cracks, and their strength by direction.
//!
//! A crack is the side between two 4-neighbouring pixels. Cracks meet at the corners of
//! pixels; an arc runs from one corner where other than two cracks meet to the next, or closes
//! upon itself.

use super::ContourMap;

/// Arcs are divided until no corner lies further than this from its straight piece, in
/// pixels: the staircase of a straight line stays one piece.
const ARC_TOLERANCE: f32 = 1.5;

/// Arcs of fewer cracks have no direction that means anything: at corners where regions meet,
/// steps of the boundary across a contour leave pieces of this length, which the angle to the
/// contour would make gaps in it.
const SHORTEST_ARC: usize = 4;

/// The strength of a crack between two basins.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Strength {
    /// 0 to 1.
    pub value: f32,
    /// Whether it lies on an arc of at least [`SHORTEST_ARC`] cracks. What others say counts
    /// only between basins that share no such arc.
    pub long: bool,
}

/// Cracks of a map of `width` x `height` pixels.
#[derive(Debug, Clone, Copy)]
pub(super) struct Grid {
    pub width: usize,
    pub height: usize,
}

/// A crack by its upper or left corner `(x, y)`: vertical ones go down, horizontal ones right.
/// Corners count from (0, 0) at the upper left of the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Crack {
    pub x: usize,
    pub y: usize,
    pub vertical: bool,
}

impl Grid {
    /// The pixels on both sides of a crack inside the image.
    pub fn sides(self, crack: Crack) -> (usize, usize) {
        let pixel = crack.y * self.width + crack.x;
        if crack.vertical { (pixel - 1, pixel) } else { (pixel - self.width, pixel) }
    }

    /// All cracks inside the image, row by row.
    pub fn cracks(self) -> impl Iterator<Item = Crack> {
        let (w, h) = (self.width, self.height);
        (0..h).flat_map(move |y| {
            let horizontal =
                (0..w).filter(move |_| y > 0).map(move |x| Crack { x, y, vertical: false });
            horizontal.chain((1..w).map(move |x| Crack { x, y, vertical: true }))
        })
    }

    /// A number for every crack, below [`Self::slots`].
    pub fn slot(self, crack: Crack) -> usize {
        2 * (crack.y * (self.width + 1) + crack.x) + usize::from(crack.vertical)
    }

    pub fn slots(self) -> usize {
        2 * (self.width + 1) * (self.height + 1)
    }

    /// The cracks inside the image that meet at a corner, each with the corner at its other
    /// end.
    fn around(self, (x, y): (usize, usize)) -> impl Iterator<Item = (Crack, (usize, usize))> {
        let inside_x = x > 0 && x < self.width;
        let inside_y = y > 0 && y < self.height;
        [
            (inside_x && y > 0).then(|| (Crack { x, y: y - 1, vertical: true }, (x, y - 1))),
            (inside_y && x > 0).then(|| (Crack { x: x - 1, y, vertical: false }, (x - 1, y))),
            (inside_y && x < self.width).then(|| (Crack { x, y, vertical: false }, (x + 1, y))),
            (inside_x && y < self.height).then(|| (Crack { x, y, vertical: true }, (x, y + 1))),
        ]
        .into_iter()
        .flatten()
    }
}

/// The strength of every crack by [`Grid::slot`]; `None` where a basin lies on both sides. It
/// is the contour at the stronger of the two pixels (the crack lies at one side of the ridge),
/// by the cosine between the contour's direction there and that of the arc: the oriented
/// watershed, by which a weak boundary is not raised by the strong contour that it ends at.
pub(super) fn strengths(
    map: &ContourMap,
    normals: &[[f32; 2]],
    labels: &[u32],
) -> Vec<Option<Strength>> {
    let grid = Grid { width: map.width, height: map.height };
    let mut strength = vec![None; grid.slots()];
    for arc in arcs(grid, labels) {
        let long = arc.len() > SHORTEST_ARC;
        for piece in pieces(&arc).windows(2) {
            let (from, to) = (arc[piece[0]], arc[piece[1]]);
            let (dx, dy) = (to.0 as f32 - from.0 as f32, to.1 as f32 - from.1 as f32);
            let length = dx.hypot(dy).max(f32::MIN_POSITIVE);
            let at = |i: usize| {
                let [x, y] = normals[i];
                let cosine = if long { ((x * dy - y * dx) / length).abs().min(1.0) } else { 1.0 };
                map.strength[i] * cosine
            };
            for ends in arc[piece[0]..=piece[1]].windows(2) {
                let crack = between(ends[0], ends[1]);
                let (a, b) = grid.sides(crack);
                let value = at(a).max(at(b));
                strength[grid.slot(crack)] = Some(Strength { value, long });
            }
        }
    }
    strength
}

fn between(a: (usize, usize), b: (usize, usize)) -> Crack {
    Crack { x: a.0.min(b.0), y: a.1.min(b.1), vertical: a.0 == b.0 }
}

/// All arcs as the corners they pass, with both ends; closed ones repeat their first corner.
fn arcs(grid: Grid, labels: &[u32]) -> Vec<Vec<(usize, usize)>> {
    let is_boundary = |crack: Crack| {
        let (a, b) = grid.sides(crack);
        labels[a] != labels[b]
    };
    let degree = |corner| grid.around(corner).filter(|&(crack, _)| is_boundary(crack)).count();
    let mut taken = vec![false; grid.slots()];
    let mut arcs = Vec::new();
    // First from the corners where arcs end, then what is left: closed ones.
    for closed in [false, true] {
        for y in 0..=grid.height {
            for x in 0..=grid.width {
                let start = (x, y);
                if !closed && degree(start) == 2 {
                    continue;
                }
                for (crack, next) in grid.around(start) {
                    if !is_boundary(crack) || taken[grid.slot(crack)] {
                        continue;
                    }
                    taken[grid.slot(crack)] = true;
                    let mut arc = vec![start, next];
                    let mut corner = next;
                    while degree(corner) == 2 {
                        let onward = grid
                            .around(corner)
                            .find(|&(crack, _)| is_boundary(crack) && !taken[grid.slot(crack)]);
                        let Some((crack, next)) = onward else { break };
                        taken[grid.slot(crack)] = true;
                        arc.push(next);
                        corner = next;
                    }
                    arcs.push(arc);
                }
            }
        }
    }
    arcs
}

/// Indices of the corners between which an arc is taken for straight, ends included
/// (Ramer-Douglas-Peucker).
fn pieces(arc: &[(usize, usize)]) -> Vec<usize> {
    let mut ends = vec![0];
    let mut open = vec![(0, arc.len() - 1)];
    while let Some((from, to)) = open.pop() {
        let point = |i: usize| (arc[i].0 as f32, arc[i].1 as f32);
        let ((x0, y0), (x1, y1)) = (point(from), point(to));
        let (dx, dy) = (x1 - x0, y1 - y0);
        let length = dx.hypot(dy);
        let distance = |i: usize| {
            let (x, y) = point(i);
            if length > 0.0 {
                ((x - x0) * dy - (y - y0) * dx).abs() / length
            } else {
                (x - x0).hypot(y - y0)
            }
        };
        let furthest = (from + 1..to)
            .map(|i| (distance(i), i))
            .max_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1)));
        match furthest {
            Some((distance, middle)) if distance > ARC_TOLERANCE => {
                open.push((middle, to));
                open.push((from, middle));
            }
            // A tiny closed arc has no direction of its own: each of its cracks stands alone.
            _ if length == 0.0 => ends.extend(from + 1..=to),
            _ => ends.push(to),
        }
    }
    ends
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn arcs_end_where_three_regions_meet_or_close() {
        // An upper region, a lower left and a lower right one: three arcs.
        let labels = [0, 0, 0, 0, 1, 1, 2, 2, 1, 1, 2, 2];
        let mut lengths: Vec<_> =
            arcs(Grid { width: 4, height: 3 }, &labels).iter().map(Vec::len).collect();
        lengths.sort_unstable();
        assert_eq!(lengths, [3, 3, 3]);
        // A pixel in the middle of another region.
        let closed = arcs(Grid { width: 3, height: 3 }, &[0, 0, 0, 0, 1, 0, 0, 0, 0]);
        assert_eq!((closed.len(), closed[0].len(), closed[0][0]), (1, 5, closed[0][4]));
    }

    #[test]
    fn a_staircase_is_one_piece_and_a_corner_two() {
        let stairs: Vec<_> = (0..20_usize).map(|i| (i.div_ceil(2), i / 2)).collect();
        assert_eq!(pieces(&stairs), [0, 19]);
        let corner: Vec<_> = (0..10).map(|i| (i, 0)).chain((1..10).map(|i| (9, i))).collect();
        assert_eq!(pieces(&corner), [0, 9, 18]);
    }

    #[test]
    fn a_contour_counts_along_its_direction_only() {
        // Two regions side by side; the contour on their border runs down, then across it.
        let map = ContourMap::new(2, 4, [0.8, 0.1].repeat(4)).unwrap();
        let labels = [0, 1].repeat(4);
        let along = strengths(&map, &[[1.0, 0.0]; 8], &labels);
        let across = strengths(&map, &[[0.0, 1.0]; 8], &labels);
        let slot = Grid { width: 2, height: 4 }.slot(Crack { x: 1, y: 2, vertical: true });
        let value = |map: &[Option<Strength>]| map[slot].unwrap().value;
        assert_eq!((value(&along), value(&across)), (0.8, 0.0));
        assert_eq!(along.iter().flatten().filter(|s| s.long).count(), 4);
        // One crack alone has no direction.
        let map = ContourMap::new(2, 1, vec![0.8, 0.1]).unwrap();
        let short = strengths(&map, &[[0.0, 1.0]; 2], &[0, 1]);
        assert_eq!(
            short.iter().flatten().collect::<Vec<_>>(),
            [&Strength { value: 0.8, long: false }]
        );
    }

    proptest! {
        #[test]
        fn every_crack_between_two_labels_has_a_strength_and_no_other(
            labels in prop::collection::vec(0_u32..3, 6 * 5),
        ) {
            let grid = Grid { width: 6, height: 5 };
            let map = ContourMap::new(6, 5, vec![0.5; 30]).unwrap();
            let found = strengths(&map, &[[1.0, 0.0]; 30], &labels);
            let mut cracks = 0;
            for crack in grid.cracks() {
                let (a, b) = grid.sides(crack);
                let strength = found[grid.slot(crack)];
                prop_assert_eq!(strength.is_some(), labels[a] != labels[b]);
                prop_assert!(strength.is_none_or(|s| (0.0..=0.5).contains(&s.value)));
                cracks += usize::from(strength.is_some());
            }
            prop_assert_eq!(found.iter().flatten().count(), cracks);
            let corners: usize =
                arcs(grid, &labels).iter().map(|arc| arc.len() - 1).sum();
            prop_assert_eq!(corners, cracks);
        }
    }
}
