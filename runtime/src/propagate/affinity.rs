//! The nearest context cells of every cell: windowed top-k, without an affinity matrix.
//!
//! A dense affinity of a 60x104 grid against 8 context frames has 311 million entries.
//! Only those within the window count, and of these only the best few: scores are
//! computed a strip at a time, compared with the worst kept score and forgotten.

// The library compiles a kernel anew for every instruction set, which only reaches what is
// inlined into it.
#![allow(clippy::inline_always)]

use rayon::prelude::*;

use super::memory::ContextMemory;
use crate::dot::{GROUP, PackedRows, STRIP, Tile, any_above, tile};

/// Target rows that share one pass over the context, so that a context row that was
/// fetched from memory is used several times.
const BAND: usize = 4;

/// No cell: fewer candidates than `k` were in the window.
pub(super) const NONE: u32 = u32::MAX;

/// The kept cells of all target cells.
#[derive(Debug, Default)]
pub(super) struct Neighbours {
    k: usize,
    /// Dot products from the highest, `[cells, k]`; `-inf` where there is no cell.
    scores: Vec<f32>,
    /// `context frame * cells + cell`, or [`NONE`], `[cells, k]`.
    sources: Vec<u32>,
}

impl Neighbours {
    /// Scores and sources of one cell.
    pub(super) fn of(&self, cell: usize) -> (&[f32], &[u32]) {
        let range = cell * self.k..(cell + 1) * self.k;
        (&self.scores[range.clone()], &self.sources[range])
    }
}

/// The search over a fixed grid.
#[derive(Debug, Default)]
pub(super) struct Affinity {
    height: usize,
    width: usize,
    dim: usize,
    /// Window half size in rows, at most `height - 1`.
    radius_y: usize,
    /// Window half size in columns, at most `width - 1`.
    radius_x: usize,
    /// Groups of target cells in a row.
    groups: usize,
    /// Strips that cover the window of one group.
    strips: usize,
    /// 0 where a strip cell is in the window of the target cell, `-inf` elsewhere:
    /// `[groups, strips]`. The sums start from it.
    window: Vec<Tile>,
    /// Target embeddings, `[height, groups, dim]` of one channel of a group.
    targets: Vec<[f32; GROUP]>,
    neighbours: Neighbours,
}

impl Affinity {
    /// Prepares for grids of `[height, width, dim]`, a window of `radius` cells to each
    /// side and `k` kept cells.
    pub(super) fn new(height: usize, width: usize, dim: usize, radius: usize, k: usize) -> Self {
        let radius_y = radius.min(height - 1);
        let radius_x = radius.min(width - 1);
        let groups = width.div_ceil(GROUP);
        let strips = (GROUP + 2 * radius_x).div_ceil(STRIP);
        let mut window = Vec::with_capacity(groups * strips);
        for group in 0..groups {
            for strip in 0..strips {
                window.push(std::array::from_fn(|g| {
                    std::array::from_fn(|i| {
                        let x = group * GROUP + g;
                        let source = (group * GROUP + strip * STRIP + i).wrapping_sub(radius_x);
                        let inside = x < width && source < width && x.abs_diff(source) <= radius_x;
                        if inside { 0.0 } else { f32::NEG_INFINITY }
                    })
                }));
            }
        }
        let cells = height * width;
        Self {
            height,
            width,
            dim,
            radius_y,
            radius_x,
            groups,
            strips,
            window,
            targets: vec![[0.0; GROUP]; height * groups * dim],
            neighbours: Neighbours {
                k,
                scores: vec![f32::NEG_INFINITY; cells * k],
                sources: vec![NONE; cells * k],
            },
        }
    }

    /// Empty storage for the embeddings of a frame in the layout of the search.
    pub(super) fn features(&self) -> PackedRows {
        let mut rows = PackedRows::default();
        let pitch = (self.groups - 1) * GROUP + self.strips * STRIP;
        rows.reset(self.height, self.dim, self.radius_x, pitch);
        rows
    }

    pub(super) fn memory_bytes(&self) -> usize {
        size_of_val(self.window.as_slice())
            + size_of_val(self.targets.as_slice())
            + size_of_val(self.neighbours.scores.as_slice())
            + size_of_val(self.neighbours.sources.as_slice())
    }

    /// The `k` highest dot products of each cell of `cells` (`[height, width, dim]`) with
    /// the context cells in its window, over all context frames together. Of equal
    /// scores the one that comes first by context frame, row and column is kept.
    pub(super) fn search(&mut self, cells: &[f32], context: &ContextMemory) -> &Neighbours {
        self.pack_targets(cells);
        let mut neighbours = std::mem::take(&mut self.neighbours);
        let k = neighbours.k;
        let band = BAND * self.width * k;
        let arch = pulp::Arch::new();
        let search = &*self;
        neighbours
            .scores
            .par_chunks_mut(band)
            .zip(neighbours.sources.par_chunks_mut(band))
            .enumerate()
            .for_each(|(i, (scores, sources))| {
                arch.dispatch(Band { search, context, first: i * BAND, k, scores, sources });
            });
        self.neighbours = neighbours;
        &self.neighbours
    }

    fn pack_targets(&mut self, cells: &[f32]) {
        let (dim, groups) = (self.dim, self.groups);
        self.targets.par_chunks_mut(groups * dim).zip(cells.par_chunks(self.width * dim)).for_each(
            |(packed, row)| {
                for (x, cell) in row.chunks_exact(dim).enumerate() {
                    let group = &mut packed[x / GROUP * dim..][..dim];
                    for (channel, value) in group.iter_mut().zip(cell) {
                        channel[x % GROUP] = *value;
                    }
                }
            },
        );
    }
}

/// The search for up to [`BAND`] target rows.
struct Band<'a> {
    search: &'a Affinity,
    context: &'a ContextMemory,
    /// The first target row.
    first: usize,
    k: usize,
    /// `[rows, width, k]`
    scores: &'a mut [f32],
    /// `[rows, width, k]`
    sources: &'a mut [u32],
}

impl pulp::WithSimd for Band<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, simd: S) {
        let Self { search, context, first, k, scores, sources } = self;
        let Affinity { height, width, dim, radius_y, .. } = *search;
        scores.fill(f32::NEG_INFINITY);
        sources.fill(NONE);
        let last = first + scores.len() / (width * k) - 1;
        let mut out: Tile = [[0.0; STRIP]; GROUP];
        for frame in 0..context.len() {
            let features = &context.frame(frame).features;
            for source_y in first.saturating_sub(radius_y)..=(last + radius_y).min(height - 1) {
                let source_row = features.row(source_y);
                let base = (frame * height + source_y) * width;
                let nearest = source_y.saturating_sub(radius_y).max(first);
                for y in nearest..=(source_y + radius_y).min(last) {
                    let kept = (y - first) * width * k..(y - first + 1) * width * k;
                    let row_scores = &mut scores[kept.clone()];
                    let row_sources = &mut sources[kept];
                    let targets = &search.targets[y * search.groups * dim..];
                    for (group, (vectors, window)) in targets
                        .chunks_exact(dim)
                        .zip(search.window.chunks_exact(search.strips))
                        .enumerate()
                    {
                        for (strip, init) in window.iter().enumerate() {
                            let start = group * GROUP + strip * STRIP;
                            tile(simd, vectors, source_row, features.pitch, start, init, &mut out);
                            let columns = group * GROUP..width.min((group + 1) * GROUP);
                            for (x, strip_scores) in columns.zip(&out) {
                                let top_scores = &mut row_scores[x * k..][..k];
                                let worst = top_scores[k - 1];
                                if !any_above(simd, strip_scores, worst) {
                                    continue;
                                }
                                let top_sources = &mut row_sources[x * k..][..k];
                                // The window holds every finite score, so `start + i` is
                                // not before the first cell where one is inserted.
                                let offset = (base + start).wrapping_sub(search.radius_x);
                                for (i, &score) in strip_scores.iter().enumerate() {
                                    if score > top_scores[k - 1] {
                                        let source = offset.wrapping_add(i) as u32;
                                        insert(top_scores, top_sources, score, source);
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Puts a score behind those that are not lower; the last one falls out.
#[inline]
fn insert(scores: &mut [f32], sources: &mut [u32], score: f32, source: u32) {
    let mut i = scores.len() - 1;
    while i > 0 && scores[i - 1] < score {
        scores[i] = scores[i - 1];
        sources[i] = sources[i - 1];
        i -= 1;
    }
    scores[i] = score;
    sources[i] = source;
}
