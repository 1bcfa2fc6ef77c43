//! Exact nearest neighbours by cosine among many prototypes.
//!
//! Dot products are taken in blocks: a strip of prototypes stays in the cache while all
//! queries pass over it. Nothing is approximated.

// The library compiles a kernel anew for every instruction set, which only reaches what is
// inlined into it.
#![allow(clippy::inline_always)]

use rayon::prelude::*;

use crate::dot::{GROUP, PackedRows, STRIP, Tile, any_above, tile};

/// Prototypes of a block; 32 dimensions of them take 128 KiB, which a second-level cache holds.
const BLOCK: usize = 1024;

/// Queries that pass over the blocks together when there are many.
const BATCH: usize = 64;

/// Unit prototypes with the class of each.
#[derive(Debug, Default, Clone)]
pub struct Neighbours {
    classes: Vec<u8>,
    dim: usize,
    packed: PackedRows,
}

/// A neighbour: cosine and index.
type Found = (f32, u32);

impl Neighbours {
    /// Stores `prototypes`, `[classes.len(), dim]` with unit rows.
    pub fn new(mut prototypes: Vec<f32>, classes: Vec<u8>, dim: usize) -> Self {
        let blocks = classes.len().div_ceil(BLOCK);
        prototypes.resize(blocks * BLOCK * dim, 0.0);
        let mut packed = PackedRows::default();
        packed.reset(blocks, dim, 0, BLOCK);
        packed.fill(&prototypes, BLOCK);
        Self { classes, dim, packed }
    }

    /// Number of prototypes.
    pub fn len(&self) -> usize {
        self.classes.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.classes.is_empty()
    }

    /// For each query (`[n, dim]`) the indices of the `k` prototypes with the highest dot
    /// product, best first; of equal ones the lower index. There are fewer where `k` exceeds
    /// their number. Uses all cores.
    pub fn nearest(&self, queries: &[f32], k: usize) -> Vec<Vec<u32>> {
        queries
            .par_chunks(BATCH * self.dim.max(1))
            .flat_map_iter(|batch| {
                let mut found = vec![Vec::with_capacity(k + 1); batch.len() / self.dim];
                pulp::Arch::new().dispatch(Scan { of: self, queries: batch, k, found: &mut found });
                found.into_iter().map(|list| list.into_iter().map(|(_, index)| index).collect())
            })
            .collect()
    }

    /// Votes of the `k` nearest prototypes of each query (`[n, dim]`) for the classes below
    /// `classes`, `[n, classes]`.
    pub fn votes(&self, queries: &[f32], k: usize, classes: usize) -> Vec<f32> {
        let mut votes = vec![0.0; queries.len() / self.dim.max(1) * classes];
        for (list, votes) in self.nearest(queries, k).iter().zip(votes.chunks_exact_mut(classes)) {
            for &index in list {
                if let Some(vote) = votes.get_mut(usize::from(self.classes[index as usize])) {
                    *vote += 1.0;
                }
            }
        }
        votes
    }

    /// The class of each query (`[n, dim]`): every one of the `k` nearest prototypes has a vote,
    /// of equal counts the lowest class wins. 0 where there are no prototypes.
    pub fn classify(&self, queries: &[f32], k: usize) -> Vec<u8> {
        let vote = |nearest: Vec<u32>| {
            let mut votes = [0u32; 256];
            for index in nearest {
                votes[usize::from(self.classes[index as usize])] += 1;
            }
            // `max_by_key` gives the last of equal ones, hence the reversed order.
            (0..=255u8).rev().max_by_key(|&c| votes[usize::from(c)]).unwrap_or(0)
        };
        self.nearest(queries, k).into_iter().map(vote).collect()
    }
}

/// Passes a batch of queries over all blocks.
struct Scan<'a> {
    of: &'a Neighbours,
    queries: &'a [f32],
    k: usize,
    found: &'a mut [Vec<Found>],
}

impl pulp::WithSimd for Scan<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, simd: S) {
        let (dim, total, k) = (self.of.dim, self.of.len(), self.k);
        if k == 0 {
            return;
        }
        let groups: Vec<Vec<[f32; GROUP]>> = self
            .queries
            .chunks(GROUP * dim)
            .map(|group| {
                (0..dim)
                    .map(|d| {
                        std::array::from_fn(|g| group.get(g * dim + d).copied().unwrap_or(0.0))
                    })
                    .collect()
            })
            .collect();
        let zero: Tile = [[0.0; STRIP]; GROUP];
        let mut scores = zero;
        for block in 0..total.div_ceil(BLOCK) {
            let row = self.of.packed.row(block);
            let first = block * BLOCK;
            // The zeros behind the last prototype are no neighbours.
            let here = BLOCK.min(total - first);
            for (vectors, found) in groups.iter().zip(self.found.chunks_mut(GROUP)) {
                for start in (0..here).step_by(STRIP) {
                    tile(simd, vectors, row, BLOCK, start, &zero, &mut scores);
                    for (list, strip) in found.iter_mut().zip(&scores) {
                        let bound = bound(list, k);
                        if any_above(simd, strip, bound) {
                            let strip = &strip[..STRIP.min(here - start)];
                            insert(list, k, strip, (first + start) as u32);
                        }
                    }
                }
            }
        }
    }
}

/// What a score must exceed to be among the `k` best.
fn bound(list: &[Found], k: usize) -> f32 {
    if list.len() < k { f32::NEG_INFINITY } else { list[k - 1].0 }
}

/// Takes the scores of a strip into the sorted list of the `k` best.
fn insert(list: &mut Vec<Found>, k: usize, strip: &[f32], first: u32) {
    for (i, &score) in strip.iter().enumerate() {
        if score > bound(list, k) {
            let place = list.partition_point(|&(other, _)| other >= score);
            list.insert(place, (score, first + i as u32));
            list.truncate(k);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Slow and obvious: all scores, a stable sort.
    fn reference(prototypes: &[f32], queries: &[f32], dim: usize, k: usize) -> Vec<Vec<u32>> {
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        queries
            .chunks(dim)
            .map(|query| {
                let mut all: Vec<Found> = prototypes
                    .chunks(dim)
                    .enumerate()
                    .map(|(i, p)| (dot(query, p), i as u32))
                    .collect();
                all.sort_by(|a, b| b.0.partial_cmp(&a.0).unwrap());
                all.into_iter().take(k).map(|(_, i)| i).collect()
            })
            .collect()
    }

    proptest! {
        #[test]
        fn neighbours_are_those_of_the_slow_search(
            (n, dim, queries, k) in (0..2100usize, 1..9usize, 0..70usize, 1..20usize),
            seed in any::<u32>(),
        ) {
            // Multiples of 1/8: sums are exact in any order, and ties are frequent.
            let value = |i: usize| {
                let mixed = (seed as usize ^ i).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
                (mixed % 17) as f32 / 8.0 - 1.0
            };
            let prototypes: Vec<f32> = (0..n * dim).map(value).collect();
            let asked: Vec<f32> = (0..queries * dim).map(|i| value(i + (1 << 20))).collect();
            let classes: Vec<u8> = (0..n).map(|i| (i % 5) as u8).collect();
            let found = Neighbours::new(prototypes.clone(), classes.clone(), dim);
            let expected = reference(&prototypes, &asked, dim, k);
            prop_assert_eq!(&found.nearest(&asked, k), &expected);
            let votes = found.classify(&asked, k);
            for (list, class) in expected.iter().zip(votes) {
                let count = |c| list.iter().filter(|&&i| classes[i as usize] == c).count();
                let best = (0..5).rev().max_by_key(|&c| count(c)).unwrap();
                prop_assert_eq!(class, if n == 0 { 0 } else { best });
            }
        }
    }

    /// As many prototypes as all of VOC gives, and the queries of its validation images:
    /// `cargo test --release -p conceptseg --lib all_of_voc -- --ignored --nocapture`.
    #[test]
    #[ignore = "a timing"]
    fn all_of_voc() {
        let (n, dim, queries) = (264_550, 32, 1449 * 25);
        let mut state = 1u32;
        let mut value = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / 16_777_216.0 - 0.5
        };
        let prototypes: Vec<f32> = (0..n * dim).map(|_| value()).collect();
        let asked: Vec<f32> = (0..queries * dim).map(|_| value()).collect();
        let found = Neighbours::new(prototypes, vec![0; n], dim);
        let start = std::time::Instant::now();
        let classes = found.classify(&asked, 15);
        println!(
            "{} queries in {n} x {dim}: {:.1} s",
            classes.len(),
            start.elapsed().as_secs_f64()
        );
    }
}
