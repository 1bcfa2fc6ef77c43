//! The search in floats: every score of the window is computed, a strip at a time, compared with the
//! worst kept score and forgotten.

// The library compiles a kernel anew for every instruction set, which only reaches what is
// inlined into it.
#![allow(clippy::inline_always)]

use rayon::prelude::*;

use super::affinity::{BAND, Features, Geometry, NONE, Neighbours, insert};
use super::memory::ContextMemory;
use super::window::Window;
use crate::dot::{GROUP, PackedRows, STRIP, Tile, any_above, tile};

/// The search over a fixed grid.
#[derive(Debug)]
pub(super) struct Exhaustive {
    geometry: Geometry,
    /// Groups of target cells in a row.
    groups: usize,
    /// What is seen of the context frames: 0 where a strip cell is in the window of the target cell,
    /// `-inf` elsewhere. The sums start from it.
    window: Window<Tile, GROUP>,
    /// What is seen of the first frame, if that is something else.
    first_window: Option<Window<Tile, GROUP>>,
    /// Target embeddings, `[height, groups, dim]` of one channel of a group.
    targets: Vec<[f32; GROUP]>,
    /// 1 / temperature.
    sharpness: f32,
}

impl Exhaustive {
    pub(super) fn new(geometry: Geometry, temperature: f32) -> Self {
        let Geometry { height, width, dim, left, radius, circle } = geometry;
        let window = |radius, circle| {
            Window::new((height, width), left, radius, circle, |inside| {
                std::array::from_fn(|g| {
                    std::array::from_fn(|i| if inside(g, i) { 0.0 } else { f32::NEG_INFINITY })
                })
            })
        };
        let groups = width.div_ceil(GROUP);
        Self {
            geometry,
            groups,
            window: window(radius, circle),
            first_window: circle.then(|| window(usize::MAX, false)),
            targets: vec![[0.0; GROUP]; height * groups * dim],
            sharpness: 1.0 / temperature,
        }
    }

    /// Empty storage for the embeddings of a frame.
    pub(super) fn features(&self) -> PackedRows {
        let Geometry { height, dim, left, .. } = self.geometry;
        let mut rows = PackedRows::default();
        let pitch = self.windows().map(|w| w.pitch(self.groups)).max().unwrap_or(0);
        rows.reset(height, dim, left, pitch);
        rows
    }

    fn windows(&self) -> impl Iterator<Item = &Window<Tile, GROUP>> {
        std::iter::once(&self.window).chain(&self.first_window)
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.windows().map(Window::memory_bytes).sum::<usize>()
            + size_of_val(self.targets.as_slice())
    }

    /// See [`Affinity::search`](super::affinity::Affinity::search).
    pub(super) fn search(
        &mut self,
        cells: &[f32],
        context: &ContextMemory,
        found: &mut Neighbours,
    ) {
        self.pack_targets(cells);
        let Neighbours { k, lists, .. } = *found;
        let row = self.geometry.width * lists;
        let arch = pulp::Arch::new();
        let search = &*self;
        let bands = found
            .scores
            .par_chunks_mut(BAND * row * k)
            .zip(found.sources.par_chunks_mut(BAND * row * k))
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
        if found.sums.is_empty() {
            bands.for_each(|(i, (scores, sources))| {
                arch.dispatch(Best(band(i, scores, sources)));
            });
        } else {
            bands.zip(found.sums.par_chunks_mut(BAND * row)).for_each(
                |((i, (scores, sources)), sums)| {
                    arch.dispatch(BestAndSums(band(i, scores, sources), sums));
                },
            );
        }
    }

    fn pack_targets(&mut self, cells: &[f32]) {
        let (Geometry { width, dim, .. }, groups) = (self.geometry, self.groups);
        self.targets.par_chunks_mut(groups * dim).zip(cells.par_chunks(width * dim)).for_each(
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
    search: &'a Exhaustive,
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
        let Exhaustive { geometry, groups, ref window, ref first_window, .. } = *search;
        let Geometry { height, width, dim, left, .. } = geometry;
        scores.fill(f32::NEG_INFINITY);
        sources.fill(NONE);
        let row_size = width * lists * k;
        let last = first + scores.len() / row_size - 1;
        let mut out: Tile = [[0.0; STRIP]; GROUP];
        for frame in 0..context.len() {
            let window = first_window.as_ref().filter(|_| frame == 0).unwrap_or(window);
            let radius_y = window.radius_y;
            let list = if lists == 1 { 0 } else { frame };
            let Features::Exhaustive(features) = &context.frame(frame).features else { continue };
            for source_y in first.saturating_sub(radius_y)..=(last + radius_y).min(height - 1) {
                let source_row = features.row(source_y);
                let base = (frame * height + source_y) * width;
                let nearest = source_y.saturating_sub(radius_y).max(first);
                for y in nearest..=(source_y + radius_y).min(last) {
                    let kept = (y - first) * row_size..(y - first + 1) * row_size;
                    let row_scores = &mut scores[kept.clone()];
                    let row_sources = &mut sources[kept];
                    let targets = &search.targets[y * groups * dim..];
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
