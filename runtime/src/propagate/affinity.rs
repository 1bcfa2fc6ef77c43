//! The nearest context cells of every cell: windowed top-k, without an affinity matrix.
//!
//! A dense affinity of a 60x104 grid against 8 context frames has 311 million entries.
//! Only those within the window count, and of these only the best few. There are two ways to them: in
//! floats, cell by cell ([`exhaustive`](super::exhaustive)), and where the processor is good at that, by a
//! quick look in 8 bits that leaves few cells to be compared in floats ([`shortlist`](super::shortlist)).

use super::exhaustive::Exhaustive;
use super::memory::ContextMemory;
use super::shortlist::{Shortlist, ShortlistFeatures};
use super::{PropagationConfig, Protocol, coarse};
use crate::dot::PackedRows;

/// Target rows that share one pass over the context, so that a context row that was
/// fetched from memory is used several times.
pub(super) const BAND: usize = 4;

/// No cell: fewer candidates than `k` were in the window.
pub(super) const NONE: u32 = u32::MAX;

/// The kept cells of all target cells, in one list over all context frames or in one for each
/// context frame.
#[derive(Debug, Default)]
pub(super) struct Neighbours {
    pub(super) k: usize,
    /// Lists of a cell.
    pub(super) lists: usize,
    /// Dot products from the highest, `[cells, lists, k]`; `-inf` where there is no cell.
    pub(super) scores: Vec<f32>,
    /// `context frame * cells + cell`, or [`NONE`], `[cells, lists, k]`.
    pub(super) sources: Vec<u32>,
    /// Sums over all cells of the window, not only the kept ones, of `exp((score - highest) /
    /// temperature)`, `[cells, lists]`; empty where the weights are normalised over the kept
    /// cells alone.
    pub(super) sums: Vec<f32>,
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

    fn memory_bytes(&self) -> usize {
        size_of_val(self.scores.as_slice())
            + size_of_val(self.sources.as_slice())
            + size_of_val(self.sums.as_slice())
    }
}

/// A grid of embeddings and how far cells see on it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Geometry {
    pub(super) height: usize,
    pub(super) width: usize,
    pub(super) dim: usize,
    /// Columns before the first cell of a packed row.
    pub(super) left: usize,
    pub(super) radius: usize,
    /// Whether the window is a circle, which does not apply to the first frame.
    pub(super) circle: bool,
}

/// The embeddings of a context frame in the layout of the search.
#[derive(Debug)]
pub(super) enum Features {
    Exhaustive(PackedRows),
    Shortlist(ShortlistFeatures),
}

impl Default for Features {
    /// No storage.
    fn default() -> Self {
        Self::Exhaustive(PackedRows::default())
    }
}

impl Features {
    /// Stores `cells` (`[height, width, dim]`) over what was there.
    pub(super) fn fill(&mut self, cells: &[f32], width: usize, dim: usize) {
        match self {
            Self::Exhaustive(rows) => rows.fill(cells, width),
            Self::Shortlist(features) => features.fill(cells, width, dim),
        }
    }

    pub(super) fn memory_bytes(&self) -> usize {
        match self {
            Self::Exhaustive(rows) => rows.memory_bytes(),
            Self::Shortlist(features) => features.memory_bytes(),
        }
    }
}

#[derive(Debug)]
enum Search {
    Exhaustive(Exhaustive),
    Shortlist(Shortlist),
}

/// The search over a fixed grid.
#[derive(Debug)]
pub(super) struct Affinity {
    search: Search,
    neighbours: Neighbours,
}

impl Affinity {
    /// Prepares for grids of `[height, width, dim]`.
    pub(super) fn new(height: usize, width: usize, dim: usize, config: &PropagationConfig) -> Self {
        // The softmax of `TimeCycle` is over all cells of the window.
        let shortlist = config.protocol != Protocol::TimeCycle && dim <= coarse::MAX_DIM;
        Self::with_shortlist(height, width, dim, config, shortlist && coarse::is_fast())
    }

    pub(super) fn with_shortlist(
        height: usize,
        width: usize,
        dim: usize,
        config: &PropagationConfig,
        shortlist: bool,
    ) -> Self {
        let PropagationConfig { radius, topk: k, context_frames, protocol, .. } = *config;
        let circle = protocol == Protocol::Crw;
        let left = match (circle, radius) {
            (true, radius) => radius.saturating_sub(1).min(width - 1),
            // A window over the whole width is never shifted.
            (false, radius) if radius >= width - 1 => 0,
            (false, radius) => radius,
        };
        let geometry = Geometry { height, width, dim, left, radius, circle };
        let cells = height * width;
        let (lists, sums) = match protocol {
            Protocol::TimeCycle => (context_frames + 1, cells * (context_frames + 1)),
            Protocol::Dino | Protocol::Crw => (1, 0),
        };
        let search = if shortlist {
            Search::Shortlist(Shortlist::new(geometry))
        } else {
            Search::Exhaustive(Exhaustive::new(geometry, config.temperature))
        };
        let neighbours = Neighbours {
            k,
            lists,
            scores: vec![f32::NEG_INFINITY; cells * lists * k],
            sources: vec![NONE; cells * lists * k],
            sums: vec![0.0; sums],
        };
        Self { search, neighbours }
    }

    /// Empty storage for the embeddings of a frame.
    pub(super) fn features(&self) -> Features {
        match &self.search {
            Search::Exhaustive(search) => Features::Exhaustive(search.features()),
            Search::Shortlist(search) => Features::Shortlist(search.features()),
        }
    }

    pub(super) fn memory_bytes(&self) -> usize {
        let search = match &self.search {
            Search::Exhaustive(search) => search.memory_bytes(),
            Search::Shortlist(search) => search.memory_bytes(),
        };
        search + self.neighbours.memory_bytes()
    }

    /// The `k` highest dot products of each cell of `cells` (`[height, width, dim]`) with
    /// the context cells in its window, over all context frames together or for each of them.
    /// Of equal scores the one that comes first by context frame, row and column is kept. The context
    /// has grown or moved on since the last search, if there was one.
    pub(super) fn search(&mut self, cells: &[f32], context: &ContextMemory) -> &Neighbours {
        match &mut self.search {
            Search::Exhaustive(search) => search.search(cells, context, &mut self.neighbours),
            Search::Shortlist(search) => search.search(cells, context, &mut self.neighbours),
        }
        &self.neighbours
    }
}

/// Puts a score behind those that are not lower; the last one falls out.
#[inline]
pub(super) fn insert(scores: &mut [f32], sources: &mut [u32], score: f32, source: u32) {
    let mut i = scores.len() - 1;
    while i > 0 && scores[i - 1] < score {
        scores[i] = scores[i - 1];
        sources[i] = sources[i - 1];
        i -= 1;
    }
    scores[i] = score;
    sources[i] = source;
}
