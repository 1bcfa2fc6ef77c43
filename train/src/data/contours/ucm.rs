//! The hierarchy of regions as a map of boundaries, and its segments.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use super::arcs::{Crack, Grid, Strength};
use crate::data::SegmentMap;
use crate::data::felzenszwalb::Partition;

/// An ultrametric contour map on the doubled grid: pixel (x, y) lies at column `2x + 1` of row
/// `2y + 1`, between pixels lies the strength at which the regions on both sides join. However
/// it is thresholded, boundaries are closed.
#[derive(Debug, Clone, PartialEq)]
pub struct UcmMap {
    /// In pixels.
    width: usize,
    /// In pixels.
    height: usize,
    /// Row-major, `(2 height + 1) * (2 width + 1)`, 0 to 1.
    data: Vec<f32>,
}

impl UcmMap {
    /// A ready map of an image of `width` x `height` pixels. `None` when `data` has not
    /// `(2 height + 1) * (2 width + 1)` values in 0..1, or an image side is 0.
    pub fn new(width: u32, height: u32, data: Vec<f32>) -> Option<Self> {
        let (width, height) = (width as usize, height as usize);
        let valid = width > 0
            && height > 0
            && data.len() == (2 * width + 1) * (2 * height + 1)
            && data.iter().all(|value| (0.0..=1.0).contains(value));
        valid.then_some(Self { width, height, data })
    }

    /// Values on the doubled grid, row-major.
    pub fn values(&self) -> &[f32] {
        &self.data
    }

    fn index(&self, crack: Crack) -> usize {
        let (x, y) = if crack.vertical {
            (2 * crack.x, 2 * crack.y + 1)
        } else {
            (2 * crack.x + 1, 2 * crack.y)
        };
        y * (2 * self.width + 1) + x
    }

    /// The segments at `threshold`: pixels connected, from one to the next, across values of at
    /// most that; it is raised by `step` until at most `max_segments` (at least 1, at most
    /// 65534) are left. At 1 all pixels are connected.
    ///
    /// These are the connected components on the doubled grid. The values at the pixels
    /// themselves and around the image bound nothing and are not looked at.
    pub fn segments(&self, threshold: f64, step: f64, max_segments: u16) -> SegmentMap {
        let grid = Grid { width: self.width, height: self.height };
        let mut cracks: Vec<(f32, u32, u32)> = grid
            .cracks()
            .map(|crack| {
                let (a, b) = grid.sides(crack);
                (self.data[self.index(crack)], a as u32, b as u32)
            })
            .collect();
        // Where two pixels join first is all that matters, so equal values need no order.
        cracks.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
        let mut parent: Vec<u32> = (0..(self.width * self.height) as u32).collect();
        let mut parts = parent.len();
        let mut next = 0;
        for i in 0_u32.. {
            let limit = threshold + f64::from(i) * step.max(1e-6);
            while let Some(&(value, a, b)) = cracks.get(next) {
                // Half a step of rounding: 0.3 in the file is not 0.3 in double precision.
                if f64::from(value) > limit + 1e-7 {
                    break;
                }
                next += 1;
                let (a, b) = (root(&mut parent, a), root(&mut parent, b));
                if a != b {
                    parent[a.max(b) as usize] = a.min(b);
                    parts -= 1;
                }
            }
            if parts <= usize::from(max_segments.max(1)) || next == cracks.len() {
                break;
            }
        }
        let labels: Vec<u32> =
            (0..parent.len() as u32).map(|pixel| root(&mut parent, pixel)).collect();
        let labels = labels.into_iter().map(Some);
        SegmentMap::numbered(self.width as u32, self.height as u32, labels)
            .unwrap_or_else(|| unreachable!("at most 65534 parts are left"))
    }
}

fn root(parent: &mut [u32], mut pixel: u32) -> u32 {
    while parent[pixel as usize] != pixel {
        let above = parent[pixel as usize];
        parent[pixel as usize] = parent[above as usize];
        pixel = parent[pixel as usize];
    }
    pixel
}

/// Strengths are added up in whole parts of this size, so that equal means are equal whatever
/// the order of joining was.
pub(super) const UNIT: f64 = 1.0 / 4_294_967_296.0;

/// The common boundary of two regions.
struct Boundary {
    /// The first of its cracks, by [`Grid::slot`].
    first: usize,
    /// Sums of strengths, in units, and numbers of cracks on short and on long arcs.
    sums: [(u64, u32); 2],
    cracks: Vec<Crack>,
}

impl Default for Boundary {
    fn default() -> Self {
        Self { first: usize::MAX, sums: [(0, 0); 2], cracks: Vec::new() }
    }
}

impl Boundary {
    fn add(&mut self, slot: usize, crack: Crack, strength: Strength) {
        self.first = self.first.min(slot);
        let (sum, count) = &mut self.sums[usize::from(strength.long)];
        *sum += (f64::from(strength.value) / UNIT) as u64;
        *count += 1;
        self.cracks.push(crack);
    }

    /// The mean strength, over long arcs where there are any.
    fn mean(&self) -> f64 {
        let [short, long] = self.sums;
        let (sum, count) = if long.1 > 0 { long } else { short };
        sum as f64 * UNIT / f64::from(count)
    }

    /// Weakest first; of equally weak ones that with the first crack. Bits of numbers that are
    /// not negative order like the numbers.
    fn order(&self) -> (u64, usize) {
        (self.mean().to_bits(), self.first)
    }

    fn take(&mut self, mut other: Boundary) {
        self.first = self.first.min(other.first);
        for (own, other) in self.sums.iter_mut().zip(other.sums) {
            *own = (own.0 + other.0, own.1 + other.1);
        }
        if other.cracks.len() > self.cracks.len() {
            std::mem::swap(&mut self.cracks, &mut other.cracks);
        }
        self.cracks.append(&mut other.cracks);
    }
}

/// Joins the two regions with the weakest common boundary (mean strength over its cracks),
/// again and again, and notes on the boundary at which level that happened. A level never
/// falls, so the map is ultrametric. Corners take the strongest of the cracks that meet there,
/// the frame of the image stays 0.
pub(super) fn build(
    width: usize,
    height: usize,
    basins: &Partition,
    strengths: &[Option<Strength>],
) -> UcmMap {
    let grid = Grid { width, height };
    let mut map = UcmMap { width, height, data: vec![0.0; (2 * width + 1) * (2 * height + 1)] };
    // By the numbers of both regions, the lower first.
    let mut boundaries: BTreeMap<(u32, u32), Boundary> = BTreeMap::new();
    for crack in grid.cracks() {
        let Some(strength) = strengths[grid.slot(crack)] else { continue };
        let (a, b) = grid.sides(crack);
        let key = pair(basins.labels[a], basins.labels[b]);
        boundaries.entry(key).or_default().add(grid.slot(crack), crack, strength);
    }
    let mut neighbours = vec![Vec::new(); basins.count as usize];
    for &(a, b) in boundaries.keys() {
        neighbours[a as usize].push(b);
        neighbours[b as usize].push(a);
    }
    let mut queue: BinaryHeap<_> =
        boundaries.iter().map(|(&key, boundary)| Reverse((boundary.order(), key))).collect();
    let mut level = 0.0_f64;
    while let Some(Reverse((order, (a, b)))) = queue.pop() {
        // A boundary that has changed or gone since it was queued.
        if boundaries.get(&(a, b)).is_none_or(|boundary| boundary.order() != order) {
            continue;
        }
        let Some(boundary) = boundaries.remove(&(a, b)) else { continue };
        level = level.max(boundary.mean());
        for crack in boundary.cracks {
            let index = map.index(crack);
            map.data[index] = level.min(1.0) as f32;
        }
        let (keep, gone) = if neighbours[a as usize].len() < neighbours[b as usize].len() {
            (b, a)
        } else {
            (a, b)
        };
        for other in std::mem::take(&mut neighbours[gone as usize]) {
            // Regions that are gone, and the pair itself, have no boundary any more.
            let Some(moved) = boundaries.remove(&pair(gone, other)) else { continue };
            let key = pair(keep, other);
            let joint = boundaries.entry(key).or_default();
            if joint.cracks.is_empty() {
                neighbours[keep as usize].push(other);
                neighbours[other as usize].push(keep);
            }
            joint.take(moved);
            queue.push(Reverse((joint.order(), key)));
        }
    }
    corners(&mut map);
    map
}

fn pair(a: u32, b: u32) -> (u32, u32) {
    (a.min(b), a.max(b))
}

/// Closes the boundaries where cracks meet.
fn corners(map: &mut UcmMap) {
    let stride = 2 * map.width + 1;
    for y in (2..2 * map.height).step_by(2) {
        for x in (2..2 * map.width).step_by(2) {
            let i = y * stride + x;
            let around = [i - stride, i - 1, i + 1, i + stride];
            map.data[i] = around.iter().map(|&n| map.data[n]).fold(0.0, f32::max);
        }
    }
}
