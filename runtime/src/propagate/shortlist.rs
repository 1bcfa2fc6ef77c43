//! The search by a quick look in 8 bits, which leaves few cells to be compared in floats.
//!
//! What is found is what the search in floats finds, bit by bit. On real video fewer than two in a hundred cells of the window are compared in floats.

// The library compiles a kernel anew for every instruction set, which only reaches what is
// inlined into it.
#![allow(clippy::inline_always)]

use rayon::prelude::*;

use super::affinity::{BAND, Features, Geometry, NONE, Neighbours, insert};
use super::coarse::{CoarseRows, CoarseTargets, GROUP, look};
use super::memory::ContextMemory;
use super::window::Window;
use crate::dot::{STRIP, dots};

/// Cells that are compared in floats at once: independent sums hide each other's latency.
const AT_ONCE: usize = 4;

/// For each target of a group, a bit for each cell of a strip that is in its window.
type Bits = [u32; GROUP];

/// What is kept of a context frame.
#[derive(Debug)]
pub(super) struct ShortlistFeatures {
    coarse: CoarseRows,
    /// `[height, width, dim]`
    cells: Vec<f32>,
}

impl ShortlistFeatures {
    pub(super) fn fill(&mut self, cells: &[f32], width: usize, dim: usize) {
        self.coarse.fill(cells, width, dim);
        self.cells.copy_from_slice(cells);
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.coarse.memory_bytes() + size_of_val(self.cells.as_slice())
    }
}

/// The search over a fixed grid.
#[derive(Debug)]
pub(super) struct Shortlist {
    geometry: Geometry,
    groups: usize,
    /// What is seen of the context frames.
    window: Window<Bits, GROUP>,
    /// What is seen of the first frame, if that is something else.
    first_window: Option<Window<Bits, GROUP>>,
    targets: CoarseTargets,
    /// For each cell the score below which a context cell cannot be among the best, `[height, width]`.
    floors: Vec<f32>,
    /// 8-bit sums that are worth comparing in floats, `[height, groups]`.
    bounds: Vec<[i32; GROUP]>,
}

impl Shortlist {
    pub(super) fn new(geometry: Geometry) -> Self {
        let Geometry { height, width, dim, left, radius, circle } = geometry;
        let window = |radius, circle| {
            Window::new((height, width), left, radius, circle, |inside| {
                std::array::from_fn(|g| {
                    (0..STRIP).rev().fold(0, |bits, i| bits << 1 | u32::from(inside(g, i)))
                })
            })
        };
        let groups = width.div_ceil(GROUP);
        Self {
            geometry,
            groups,
            window: window(radius, circle),
            first_window: circle.then(|| window(usize::MAX, false)),
            targets: CoarseTargets::new(height, width, dim),
            floors: vec![f32::NEG_INFINITY; height * width],
            bounds: vec![[i32::MAX; GROUP]; height * groups],
        }
    }

    /// Empty storage for the embeddings of a frame.
    pub(super) fn features(&self) -> ShortlistFeatures {
        let Geometry { height, width, dim, left, .. } = self.geometry;
        let pitch = self.windows().map(|w| w.pitch(self.groups)).max().unwrap_or(0);
        let coarse = CoarseRows::new(height, dim, left, pitch);
        ShortlistFeatures { coarse, cells: vec![0.0; height * width * dim] }
    }

    fn windows(&self) -> impl Iterator<Item = &Window<Bits, GROUP>> {
        std::iter::once(&self.window).chain(&self.first_window)
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.windows().map(Window::memory_bytes).sum::<usize>()
            + self.targets.memory_bytes()
            + size_of_val(self.floors.as_slice())
            + size_of_val(self.bounds.as_slice())
    }

    /// See [`Affinity::search`](super::affinity::Affinity::search).
    pub(super) fn search(
        &mut self,
        cells: &[f32],
        context: &ContextMemory,
        found: &mut Neighbours,
    ) {
        let Self { geometry, groups, ref window, ref first_window, .. } = *self;
        self.targets.fill(cells, geometry.width, geometry.dim);
        let (targets, k) = (&self.targets, found.k);
        let row = geometry.width;
        let arch = pulp::Arch::new();
        found
            .scores
            .par_chunks_mut(BAND * row * k)
            .zip(found.sources.par_chunks_mut(BAND * row * k))
            .zip(self.floors.par_chunks_mut(BAND * row))
            .zip(self.bounds.par_chunks_mut(BAND * groups))
            .enumerate()
            .for_each(|(i, (((scores, sources), floors), bounds))| {
                let first = i * BAND;
                let windows = (window, first_window.as_ref());
                let fixed = Fixed { geometry, groups, windows, targets, cells, context, first, k };
                arch.dispatch(Band { fixed, scores, sources, floors, bounds });
            });
    }
}

/// What a band only reads.
#[derive(Clone, Copy)]
struct Fixed<'a> {
    geometry: Geometry,
    groups: usize,
    windows: (&'a Window<Bits, GROUP>, Option<&'a Window<Bits, GROUP>>),
    targets: &'a CoarseTargets,
    /// The target cells.
    cells: &'a [f32],
    context: &'a ContextMemory,
    /// The first target row.
    first: usize,
    k: usize,
}

impl<'a> Fixed<'a> {
    fn features(&self, frame: usize) -> Option<&'a ShortlistFeatures> {
        match &self.context.frame(frame).features {
            Features::Shortlist(features) => Some(features),
            Features::Exhaustive(_) => None,
        }
    }
}

/// The search for up to [`BAND`] target rows.
struct Band<'a> {
    fixed: Fixed<'a>,
    /// `[rows, width, k]`
    scores: &'a mut [f32],
    /// `[rows, width, k]`
    sources: &'a mut [u32],
    /// `[rows, width]`
    floors: &'a mut [f32],
    /// `[rows, groups]`
    bounds: &'a mut [[i32; GROUP]],
}

impl pulp::WithSimd for Band<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(mut self, _: S) {
        self.find_floors();
        self.scores.fill(f32::NEG_INFINITY);
        self.sources.fill(NONE);
        for frame in 0..self.fixed.context.len() {
            if let Some(features) = self.fixed.features(frame) {
                self.set_bounds(&features.coarse);
                self.look_through(frame, features);
            }
        }
    }
}

impl Band<'_> {
    /// The cells around a target's own place in the latest context frame resemble it: the worst of the best
    /// `k` of them bounds what is worth looking at anywhere.
    #[inline(always)]
    fn find_floors(&mut self) {
        let Fixed { geometry, cells, first, k, .. } = self.fixed;
        let Geometry { height, width, dim, radius, circle, .. } = geometry;
        self.scores.fill(f32::NEG_INFINITY);
        let Some(latest) = self.fixed.features(1.min(self.fixed.context.len() - 1)) else { return };
        // All of the square is in the window, which a circle of no radius has nothing in, not even the
        // place itself. Of a few times `k` cells enough are good.
        let within =
            if circle { radius.checked_sub(1).map(|reach| reach * 2 / 3) } else { Some(radius) };
        let Some(within) = within else { return self.floors.fill(f32::NEG_INFINITY) };
        let reach = (2 * k).isqrt().max(2).min(within);
        let around = |i: usize, size: usize| i.saturating_sub(reach)..=(i + reach).min(size - 1);
        for (place, (floor, best)) in
            self.floors.iter_mut().zip(self.scores.chunks_exact_mut(k)).enumerate()
        {
            let (y, x) = (first + place / width, place % width);
            let target = &cells[(y * width + x) * dim..][..dim];
            for source_y in around(y, height) {
                for source_x in around(x, width) {
                    let cell = &latest.cells[(source_y * width + source_x) * dim..][..dim];
                    // Not-a-number is taken for the lowest.
                    let [score] = dots(target, [cell]);
                    insert_score(best, score.max(f32::NEG_INFINITY));
                }
            }
            // A cell that is as good as the worst of them may be one that comes before it.
            *floor = best[k - 1].next_down();
        }
    }

    /// The bounds for a context frame.
    #[inline(always)]
    fn set_bounds(&mut self, rows: &CoarseRows) {
        let Fixed { geometry: Geometry { width, .. }, groups, targets, first, k, .. } = self.fixed;
        for (cell, (kept, floor)) in self.scores.chunks_exact(k).zip(&*self.floors).enumerate() {
            let (y, x) = (cell / width, cell % width);
            let worst = kept[k - 1].max(*floor);
            self.bounds[y * groups + x / GROUP][x % GROUP] =
                targets.bound(first * width + cell, rows, worst);
        }
    }

    /// Looks through the windows of all targets in one context frame.
    #[inline(always)]
    fn look_through(&mut self, frame: usize, features: &ShortlistFeatures) {
        let Fixed { geometry, groups, targets, first, .. } = self.fixed;
        let Geometry { height, width, .. } = geometry;
        let last = first + self.floors.len() / width - 1;
        let (window, first_window) = self.fixed.windows;
        let window = first_window.filter(|_| frame == 0).unwrap_or(window);
        let (radius_y, pitch) = (window.radius_y, features.coarse.pitch());
        for source_y in first.saturating_sub(radius_y)..=(last + radius_y).min(height - 1) {
            let row = features.coarse.row(source_y);
            let nearest = source_y.saturating_sub(radius_y).max(first);
            for y in nearest..=(source_y + radius_y).min(last) {
                let windows = window.row(y.abs_diff(source_y)).chunks_exact(window.strips);
                let quads = targets.row(y).chunks_exact(targets.quads());
                for (group, (vectors, windows)) in quads.zip(windows).enumerate() {
                    for (strip, inside) in windows.iter().enumerate() {
                        let start = window.origin + group * window.step + strip * STRIP;
                        let bounds = &self.bounds[(y - first) * groups + group];
                        let above = look(vectors, row, pitch, start, bounds);
                        let seen: Bits = std::array::from_fn(|g| above[g] & inside[g]);
                        // Most looks find nothing, which is one test for the whole group.
                        if seen.iter().fold(0, |any, bits| any | bits) == 0 {
                            continue;
                        }
                        for (g, &bits) in seen.iter().enumerate().filter(|(_, bits)| **bits != 0) {
                            let target = (y, group * GROUP + g);
                            self.compare(features, target, (frame, source_y, start), bits);
                        }
                    }
                }
            }
        }
    }

    /// Compares one target in floats with the cells whose bits are set.
    #[inline(always)]
    fn compare(
        &mut self,
        features: &ShortlistFeatures,
        (y, x): (usize, usize),
        (frame, source_y, start): (usize, usize, usize),
        mut bits: u32,
    ) {
        let Fixed { geometry, groups, targets, cells, first, k, .. } = self.fixed;
        let Geometry { height, width, dim, left, .. } = geometry;
        let place = (y - first) * width + x;
        let target = &cells[(y * width + x) * dim..][..dim];
        let scores = &mut self.scores[place * k..][..k];
        let sources = &mut self.sources[place * k..][..k];
        let mut worst = scores[k - 1].max(self.floors[place]);
        let before = worst;
        // Cells of the source frame; where no bit is left, the row's first one is compared for nothing.
        let row = source_y * width;
        while bits != 0 {
            let places: [usize; AT_ONCE] = std::array::from_fn(|_| {
                let place = bits.trailing_zeros() as usize;
                bits &= bits.wrapping_sub(1);
                if place < STRIP { row + start + place - left } else { usize::MAX }
            });
            let found = places.map(|source| {
                let source = if source == usize::MAX { row } else { source };
                &features.cells[source * dim..][..dim]
            });
            for (score, source) in dots(target, found).into_iter().zip(places) {
                if score > worst && source != usize::MAX {
                    insert(scores, sources, score, (frame * height * width + source) as u32);
                    worst = worst.max(scores[k - 1]);
                }
            }
        }
        if worst > before {
            self.bounds[(y - first) * groups + x / GROUP][x % GROUP] =
                targets.bound(y * width + x, &features.coarse, worst);
        }
    }
}

/// Puts a score among the best ones, which fall; the last one falls out. Without branches on the scores, which
/// nobody could foresee.
#[inline(always)]
fn insert_score(best: &mut [f32], mut score: f32) {
    for kept in best {
        let higher = kept.max(score);
        score = kept.min(score);
        *kept = higher;
    }
}
