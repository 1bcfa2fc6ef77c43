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
use super::{PropagationConfig, Protocol};
use crate::dot::{GROUP, PackedRows, STRIP, Tile, any_above, tile};

/// Target rows that share one pass over the context, so that a context row that was
/// fetched from memory is used several times.
const BAND: usize = 4;

/// No cell: fewer candidates than `k` were in the window.
pub(super) const NONE: u32 = u32::MAX;

/// The kept cells of all target cells, in one list over all context frames or in one for each
/// context frame.
#[derive(Debug, Default)]
pub(super) struct Neighbours {
    k: usize,
    /// Lists of a cell.
    lists: usize,
    /// Dot products from the highest, `[cells, lists, k]`; `-inf` where there is no cell.
    scores: Vec<f32>,
    /// `context frame * cells + cell`, or [`NONE`], `[cells, lists, k]`.
    sources: Vec<u32>,
    /// Sums over all cells of the window, not only the kept ones, of `exp((score - highest) /
    /// temperature)`, `[cells, lists]`; empty where the weights are normalised over the kept
    /// cells alone.
    sums: Vec<f32>,
}

impl Neighbours {
    /// Scores and sources of one cell's list.
    pub(super) fn of(&self, cell: usize, list: usize) -> (&[f32], &[u32]) {
        let start = (cell * self.lists + list) * self.k;
        (&self.scores[start..start + self.k], &self.sources[start..start + self.k])
    }

    /// The denominator of the softmax over the window of one cell's list, where it is wanted.
    pub(super) fn sum(&self, cell: usize, list: usize) -> f32 {
        self.sums[cell * self.lists + list]
    }
}

/// Which cells of a context frame a target cell sees.
#[derive(Debug, Default)]
struct Window {
    /// Rows to each side, at most `height - 1`.
    radius_y: usize,
    /// Column of a packed row where the first strip of the first group starts.
    origin: usize,
    /// Columns from the first strip of a group to that of the next; 0 where all groups see the
    /// whole width.
    step: usize,
    /// Strips that cover what a group sees of a row.
    strips: usize,
    /// Entries of a row of `tiles`.
    row_size: usize,
    /// The last row of `tiles`.
    last_row: usize,
    /// 0 where a strip cell is in the window of the target cell, `-inf` elsewhere:
    /// `[rows, groups, strips]`, one row for each distance up to `radius_y`, or one for all of
    /// them. The sums start from it.
    tiles: Vec<Tile>,
}

impl Window {
    /// The cells within `radius` of a target cell: a square (to and with `radius`), or the
    /// circle of those nearer than `radius`. Packed rows have `left` zeros at the front.
    fn new(height: usize, width: usize, left: usize, radius: usize, circle: bool) -> Self {
        let reach = if circle { radius.saturating_sub(1) } else { radius };
        let (radius_y, radius_x) = (reach.min(height - 1), reach.min(width - 1));
        let groups = width.div_ceil(GROUP);
        // With the whole width in sight, strips need not move along with the group.
        let (origin, step, strips) = if !circle && radius_x == width - 1 {
            (left, 0, width.div_ceil(STRIP))
        } else {
            (left - radius_x, GROUP, (GROUP + 2 * radius_x).div_ceil(STRIP))
        };
        let rows = if circle { radius_y + 1 } else { 1 };
        let mut tiles = Vec::with_capacity(rows * groups * strips);
        for dy in 0..rows {
            for group in 0..groups {
                for strip in 0..strips {
                    tiles.push(std::array::from_fn(|g| {
                        std::array::from_fn(|i| {
                            let x = group * GROUP + g;
                            let column = origin + group * step + strip * STRIP + i;
                            let source = column.wrapping_sub(left);
                            let inside = x < width && source < width && {
                                let dx = x.abs_diff(source);
                                if circle {
                                    dx * dx + dy * dy < radius.saturating_mul(radius)
                                } else {
                                    dx <= radius_x
                                }
                            };
                            if inside { 0.0 } else { f32::NEG_INFINITY }
                        })
                    }));
                }
            }
        }
        let (row_size, last_row) = (groups * strips, rows - 1);
        Self { radius_y, origin, step, strips, row_size, last_row, tiles }
    }

    /// Columns that packed rows need for `groups` groups.
    fn pitch(&self, groups: usize) -> usize {
        self.origin + (groups - 1) * self.step + self.strips * STRIP
    }

    /// The tiles for a row that is `dy` away, `[groups, strips]`.
    #[inline(always)]
    fn row(&self, dy: usize) -> &[Tile] {
        &self.tiles[dy.min(self.last_row) * self.row_size..][..self.row_size]
    }
}

/// The search over a fixed grid.
#[derive(Debug, Default)]
pub(super) struct Affinity {
    height: usize,
    width: usize,
    dim: usize,
    /// Zeros before the first cell of a packed row.
    left: usize,
    /// Groups of target cells in a row.
    groups: usize,
    /// What is seen of the context frames.
    window: Window,
    /// What is seen of the first frame, if that is something else.
    first_window: Option<Window>,
    /// Target embeddings, `[height, groups, dim]` of one channel of a group.
    targets: Vec<[f32; GROUP]>,
    /// 1 / temperature.
    sharpness: f32,
    neighbours: Neighbours,
}

impl Affinity {
    /// Prepares for grids of `[height, width, dim]`.
    pub(super) fn new(height: usize, width: usize, dim: usize, config: &PropagationConfig) -> Self {
        let PropagationConfig { radius, topk: k, context_frames, protocol, .. } = *config;
        let circle = protocol == Protocol::Crw;
        let left = match (circle, radius) {
            (true, radius) => radius.saturating_sub(1).min(width - 1),
            // A window over the whole width is never shifted.
            (false, radius) if radius >= width - 1 => 0,
            (false, radius) => radius,
        };
        let window = Window::new(height, width, left, radius, circle);
        let first_window = circle.then(|| Window::new(height, width, left, usize::MAX, false));
        let groups = width.div_ceil(GROUP);
        let cells = height * width;
        let (lists, sums) = match protocol {
            Protocol::TimeCycle => (context_frames + 1, cells * (context_frames + 1)),
            Protocol::Dino | Protocol::Crw => (1, 0),
        };
        Self {
            height,
            width,
            dim,
            left,
            groups,
            window,
            first_window,
            targets: vec![[0.0; GROUP]; height * groups * dim],
            sharpness: 1.0 / config.temperature,
            neighbours: Neighbours {
                k,
                lists,
                scores: vec![f32::NEG_INFINITY; cells * lists * k],
                sources: vec![NONE; cells * lists * k],
                sums: vec![0.0; sums],
            },
        }
    }

    /// Empty storage for the embeddings of a frame in the layout of the search.
    pub(super) fn features(&self) -> PackedRows {
        let mut rows = PackedRows::default();
        let pitch = self.windows().map(|w| w.pitch(self.groups)).max().unwrap_or(0);
        rows.reset(self.height, self.dim, self.left, pitch);
        rows
    }

    fn windows(&self) -> impl Iterator<Item = &Window> {
        std::iter::once(&self.window).chain(&self.first_window)
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.windows().map(|w| size_of_val(w.tiles.as_slice())).sum::<usize>()
            + size_of_val(self.targets.as_slice())
            + size_of_val(self.neighbours.scores.as_slice())
            + size_of_val(self.neighbours.sources.as_slice())
            + size_of_val(self.neighbours.sums.as_slice())
    }

    /// The `k` highest dot products of each cell of `cells` (`[height, width, dim]`) with
    /// the context cells in its window, over all context frames together or for each of them.
    /// Of equal scores the one that comes first by context frame, row and column is kept.
    pub(super) fn search(&mut self, cells: &[f32], context: &ContextMemory) -> &Neighbours {
        self.pack_targets(cells);
        let mut neighbours = std::mem::take(&mut self.neighbours);
        let Neighbours { k, lists, .. } = neighbours;
        let row = self.width * lists;
        let arch = pulp::Arch::new();
        let search = &*self;
        let bands = neighbours
            .scores
            .par_chunks_mut(BAND * row * k)
            .zip(neighbours.sources.par_chunks_mut(BAND * row * k))
            .enumerate();
        let band = |i, scores, sources| Band {
            search,
            context,
            first: i * BAND,
            k,
            lists,
            scores,
            sources,
        };
        if neighbours.sums.is_empty() {
            bands.for_each(|(i, (scores, sources))| {
                arch.dispatch(Best(band(i, scores, sources)));
            });
        } else {
            bands.zip(neighbours.sums.par_chunks_mut(BAND * row)).for_each(
                |((i, (scores, sources)), sums)| {
                    arch.dispatch(BestAndSums(band(i, scores, sources), sums));
                },
            );
        }
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
    lists: usize,
    /// `[rows, width, lists, k]`
    scores: &'a mut [f32],
    /// `[rows, width, lists, k]`
    sources: &'a mut [u32],
}

/// The highest scores.
struct Best<'a>(Band<'a>);

/// The highest scores, and the sums of the softmax, `[rows, width, lists]`.
struct BestAndSums<'a>(Band<'a>, &'a mut [f32]);

impl pulp::WithSimd for Best<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, simd: S) {
        self.0.run(simd, |_, _, _| ());
    }
}

impl pulp::WithSimd for BestAndSums<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, simd: S) {
        let Self(band, sums) = self;
        let sharpness = band.search.sharpness;
        sums.fill(0.0);
        band.run(simd, |list, best, strip| {
            // The sum is relative to the highest score so far, so that no exponential is
            // beyond what a float holds.
            let highest = strip.iter().copied().fold(best, f32::max);
            if highest > f32::NEG_INFINITY {
                let before = sums[list] * ((best - highest) * sharpness).exp();
                let here = strip.iter().map(|s| ((s - highest) * sharpness).exp()).sum::<f32>();
                sums[list] = before + here;
            }
        });
    }
}

impl Band<'_> {
    /// `look` is shown every strip of scores with the index of its list in the band, and that
    /// list's highest score before the strip.
    #[inline(always)]
    fn run<S: pulp::Simd>(self, simd: S, mut look: impl FnMut(usize, f32, &[f32; STRIP])) {
        let Self { search, context, first, k, lists, scores, sources } = self;
        let Affinity { height, width, dim, left, ref window, ref first_window, .. } = *search;
        scores.fill(f32::NEG_INFINITY);
        sources.fill(NONE);
        let row_size = width * lists * k;
        let last = first + scores.len() / row_size - 1;
        let mut out: Tile = [[0.0; STRIP]; GROUP];
        for frame in 0..context.len() {
            let window = first_window.as_ref().filter(|_| frame == 0).unwrap_or(window);
            let radius_y = window.radius_y;
            let list = if lists == 1 { 0 } else { frame };
            let features = &context.frame(frame).features;
            for source_y in first.saturating_sub(radius_y)..=(last + radius_y).min(height - 1) {
                let source_row = features.row(source_y);
                let base = (frame * height + source_y) * width;
                let nearest = source_y.saturating_sub(radius_y).max(first);
                for y in nearest..=(source_y + radius_y).min(last) {
                    let kept = (y - first) * row_size..(y - first + 1) * row_size;
                    let row_scores = &mut scores[kept.clone()];
                    let row_sources = &mut sources[kept];
                    let targets = &search.targets[y * search.groups * dim..];
                    for (group, (vectors, tiles)) in targets
                        .chunks_exact(dim)
                        .zip(window.row(y.abs_diff(source_y)).chunks_exact(window.strips))
                        .enumerate()
                    {
                        for (strip, init) in tiles.iter().enumerate() {
                            let start = window.origin + group * window.step + strip * STRIP;
                            tile(simd, vectors, source_row, features.pitch, start, init, &mut out);
                            let columns = group * GROUP..width.min((group + 1) * GROUP);
                            for (x, strip_scores) in columns.zip(&out) {
                                let place = x * lists + list;
                                let top_scores = &mut row_scores[place * k..][..k];
                                look(
                                    (y - first) * width * lists + place,
                                    top_scores[0],
                                    strip_scores,
                                );
                                let worst = top_scores[k - 1];
                                if !any_above(simd, strip_scores, worst) {
                                    continue;
                                }
                                let top_sources = &mut row_sources[place * k..][..k];
                                // The window holds every finite score, so `start + i` is
                                // not before the first cell where one is inserted.
                                let offset = (base + start).wrapping_sub(left);
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
