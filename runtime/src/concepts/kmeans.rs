//! Spherical k-means over one embedding map, as `SegSort` clusters pixels (Hwang et al.,
//! 2019, section 3.1).
//!
//! A cell's feature is its embedding with its place (row / height, column / width)
//! appended, at unit length. Clusters start as a regular grid of blocks; each round
//! replaces the centroids by the normalised sums of their cells and assigns every cell to
//! the centroid of the highest dot product. Everything is deterministic.

// The library compiles a kernel anew for every instruction set, which only reaches what is
// inlined into it.
#![allow(clippy::inline_always)]

use crate::dot::{GROUP, PackedRows, STRIP, Tile, tile};

/// Place coordinates appended to an embedding.
const PLACE: usize = 2;

/// The clusters of one map; keeps its scratch.
#[derive(Debug, Default)]
pub(crate) struct Clusters {
    /// Channels of a feature: those of the embedding and [`PLACE`].
    channels: usize,
    /// Cells of a row.
    width: usize,
    /// Features, `[cells, channels]`.
    features: Vec<f32>,
    /// Length of each feature before it was normalised, `[cells]`.
    lengths: Vec<f32>,
    /// The features again, in the layout of the dot products.
    packed: PackedRows,
    /// Clusters, those without cells included.
    count: usize,
    /// Cluster of each cell, `[cells]`.
    labels: Vec<u8>,
    /// Those of the round before.
    previous: Vec<u8>,
    /// Centroid features, `[count, channels]`; zero for clusters without cells.
    centroids: Vec<f32>,
    /// Cells of each cluster when its centroid was computed, `[count]`.
    members: Vec<u32>,
    /// The centroids in the layout of the dot products, `[groups, channels]`.
    vectors: Vec<[f32; GROUP]>,
    /// Normalised means of the embeddings of each cluster, `[count, dim]`.
    pub(crate) prototypes: Vec<f32>,
}

impl Clusters {
    /// Clusters `embeddings` (`[height, width, dim]`) from `grid` x `grid` blocks in
    /// `rounds` rounds. `grid` is 1..=15; no size may be 0.
    pub(crate) fn run(
        &mut self,
        embeddings: &[f32],
        size: (usize, usize, usize),
        grid: usize,
        rounds: usize,
    ) {
        self.run_where(embeddings, size, grid, rounds, |_| true);
    }

    /// Like [`Clusters::run`], without the cells whose index `takes_part` refuses: they move
    /// no centroid and belong to no prototype. They get labels nevertheless.
    pub(crate) fn run_where(
        &mut self,
        embeddings: &[f32],
        (height, width, dim): (usize, usize, usize),
        grid: usize,
        rounds: usize,
        takes_part: impl Fn(usize) -> bool,
    ) {
        self.set_features(embeddings, (height, width, dim));
        self.start(height, width, grid);
        for _ in 0..rounds {
            self.update(&takes_part);
            self.previous.clone_from(&self.labels);
            self.assign(width);
            // Equal labels give equal centroids: no later round would change anything.
            if self.previous == self.labels {
                break;
            }
        }
        self.set_prototypes(embeddings, dim, takes_part);
    }

    /// Number of clusters, at most `grid * grid`; some may have no cell.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Clusters of the cells, row by row.
    pub(crate) fn labels(&self) -> &[u8] {
        &self.labels
    }

    /// Score of each cell for the listed clusters, `[clusters.len(), cells]`.
    ///
    /// It is the dot product of the centroid with the feature *before* it was normalised:
    /// its length does not change which cluster wins, and without it the score is linear
    /// in embedding and place, so that upsampled scores are the scores of the upsampled
    /// embedding.
    pub(crate) fn scores(&mut self, clusters: &[u8], out: &mut Vec<f32>) {
        let channels = self.channels;
        self.vectors.clear();
        self.vectors.resize(clusters.len().div_ceil(GROUP) * channels, [0.0; GROUP]);
        for (i, &cluster) in clusters.iter().enumerate() {
            let centroid = &self.centroids[usize::from(cluster) * channels..][..channels];
            put_vector(&mut self.vectors, i, centroid);
        }
        // Every score is written below.
        out.resize(clusters.len() * self.lengths.len(), 0.0);
        pulp::Arch::new().dispatch(Score {
            packed: &self.packed,
            vectors: &self.vectors,
            lengths: &self.lengths,
            width: self.width,
            out,
        });
    }

    fn set_features(&mut self, embeddings: &[f32], (height, width, dim): (usize, usize, usize)) {
        (self.channels, self.width) = (dim + PLACE, width);
        self.features.clear();
        self.lengths.clear();
        for (cell, embedding) in embeddings.chunks_exact(dim).enumerate() {
            let start = self.features.len();
            self.features.extend_from_slice(embedding);
            self.features.push((cell / width) as f32 / height as f32);
            self.features.push((cell % width) as f32 / width as f32);
            self.lengths.push(normalise(&mut self.features[start..]));
        }
        let pitch = width.next_multiple_of(STRIP);
        self.packed.reset(height, self.channels, 0, pitch);
        self.packed.fill(&self.features, width);
    }

    /// Blocks of ceil(size / grid) cells, numbered down the columns.
    fn start(&mut self, height: usize, width: usize, grid: usize) {
        let (block_h, block_w) = (height.div_ceil(grid), width.div_ceil(grid));
        let rows = height.div_ceil(block_h);
        self.count = start_clusters(height, width, grid);
        self.labels.clear();
        self.labels.extend((0..height * width).map(|cell| {
            let (row, column) = (cell / width / block_h, cell % width / block_w);
            (row + rows * column) as u8
        }));
    }

    /// Centroids from labels.
    fn update(&mut self, takes_part: impl Fn(usize) -> bool) {
        let channels = self.channels;
        self.centroids.clear();
        self.centroids.resize(self.count * channels, 0.0);
        self.members.clear();
        self.members.resize(self.count, 0);
        let cells = self.features.chunks_exact(channels).zip(&self.labels).enumerate();
        for (_, (feature, &label)) in cells.filter(|(cell, _)| takes_part(*cell)) {
            let label = usize::from(label);
            self.members[label] += 1;
            let sum = &mut self.centroids[label * channels..][..channels];
            sum.iter_mut().zip(feature).for_each(|(sum, value)| *sum += value);
        }
        for centroid in self.centroids.chunks_exact_mut(channels) {
            normalise(centroid);
        }
    }

    /// Labels from centroids: the highest dot product, of equal ones the lowest cluster.
    fn assign(&mut self, width: usize) {
        let channels = self.channels;
        self.vectors.clear();
        self.vectors.resize(self.count.div_ceil(GROUP) * channels, [0.0; GROUP]);
        for (cluster, centroid) in self.centroids.chunks_exact(channels).enumerate() {
            put_vector(&mut self.vectors, cluster, centroid);
        }
        pulp::Arch::new().dispatch(Assign {
            packed: &self.packed,
            vectors: &self.vectors,
            members: &self.members,
            width,
            labels: &mut self.labels,
        });
    }

    fn set_prototypes(
        &mut self,
        embeddings: &[f32],
        dim: usize,
        takes_part: impl Fn(usize) -> bool,
    ) {
        self.prototypes.clear();
        self.prototypes.resize(self.count * dim, 0.0);
        let cells = embeddings.chunks_exact(dim).zip(&self.labels).enumerate();
        for (_, (embedding, &label)) in cells.filter(|(cell, _)| takes_part(*cell)) {
            let sum = &mut self.prototypes[usize::from(label) * dim..][..dim];
            sum.iter_mut().zip(embedding).for_each(|(sum, value)| *sum += value);
        }
        for prototype in self.prototypes.chunks_exact_mut(dim) {
            normalise(prototype);
        }
    }
}

/// Assigns all cells to the nearest of the centroids that have members.
struct Assign<'a> {
    packed: &'a PackedRows,
    vectors: &'a [[f32; GROUP]],
    members: &'a [u32],
    width: usize,
    labels: &'a mut [u8],
}

impl pulp::WithSimd for Assign<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, simd: S) {
        let zero: Tile = [[0.0; STRIP]; GROUP];
        let mut scores = zero;
        for (y, labels) in self.labels.chunks_exact_mut(self.width).enumerate() {
            let row = self.packed.row(y);
            for (strip, labels) in labels.chunks_mut(STRIP).enumerate() {
                let mut best = [f32::NEG_INFINITY; STRIP];
                let mut winner = [0u32; STRIP];
                let groups = self.vectors.chunks_exact(self.packed.dim);
                for (group, (vectors, members)) in
                    groups.zip(self.members.chunks(GROUP)).enumerate()
                {
                    let pitch = self.packed.pitch;
                    tile(simd, vectors, row, pitch, strip * STRIP, &zero, &mut scores);
                    for (i, (scores, _)) in
                        scores.iter().zip(members).enumerate().filter(|(_, (_, m))| **m > 0)
                    {
                        let cluster = (group * GROUP + i) as u32;
                        // Selections instead of branches, so that the loop is vectorised.
                        for ((score, best), winner) in scores.iter().zip(&mut best).zip(&mut winner)
                        {
                            let better = score > best;
                            *best = if better { *score } else { *best };
                            *winner = if better { cluster } else { *winner };
                        }
                    }
                }
                for (label, winner) in labels.iter_mut().zip(winner) {
                    *label = winner as u8;
                }
            }
        }
    }
}

/// Scores of all cells for some centroids.
struct Score<'a> {
    packed: &'a PackedRows,
    vectors: &'a [[f32; GROUP]],
    lengths: &'a [f32],
    width: usize,
    /// `[centroids, cells]`
    out: &'a mut [f32],
}

impl pulp::WithSimd for Score<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, simd: S) {
        let zero: Tile = [[0.0; STRIP]; GROUP];
        let mut scores = zero;
        let cells = self.lengths.len();
        let groups = self.vectors.chunks_exact(self.packed.dim);
        for (vectors, planes) in groups.zip(self.out.chunks_mut(GROUP * cells)) {
            for (y, lengths) in self.lengths.chunks_exact(self.width).enumerate() {
                let row = self.packed.row(y);
                for (strip, lengths) in lengths.chunks(STRIP).enumerate() {
                    let first = strip * STRIP;
                    tile(simd, vectors, row, self.packed.pitch, first, &zero, &mut scores);
                    for (plane, scores) in planes.chunks_exact_mut(cells).zip(&scores) {
                        let out = &mut plane[y * self.width + first..][..lengths.len()];
                        for ((out, score), length) in out.iter_mut().zip(scores).zip(lengths) {
                            *out = length * score;
                        }
                    }
                }
            }
        }
    }
}

/// Puts a centroid among vectors in the layout of the dot products.
fn put_vector(vectors: &mut [[f32; GROUP]], index: usize, centroid: &[f32]) {
    let group = &mut vectors[index / GROUP * centroid.len()..][..centroid.len()];
    for (channel, value) in group.iter_mut().zip(centroid) {
        channel[index % GROUP] = *value;
    }
}

/// Number of clusters that a map starts with: blocks of ceil(size / grid) cells.
pub(crate) fn start_clusters(height: usize, width: usize, grid: usize) -> usize {
    height.div_ceil(height.div_ceil(grid)) * width.div_ceil(width.div_ceil(grid))
}

/// Scales to unit length and returns the length before; zero stays zero.
fn normalise(vector: &mut [f32]) -> f32 {
    let length = dot(vector, vector).sqrt();
    // The epsilon of torch.nn.functional.normalize.
    let scale = 1.0 / length.max(1e-12);
    for v in vector.iter_mut() {
        *v *= scale;
    }
    length
}

/// Dot product in four partial sums, which the compiler keeps in one register.
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a4, a_rest) = a.as_chunks::<4>();
    let (b4, b_rest) = b.as_chunks::<4>();
    let mut sums = [0.0f32; 4];
    for (a, b) in a4.iter().zip(b4) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    (sums[0] + sums[2]) + (sums[1] + sums[3]) + rest
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// One round in double precision, straight from the definition.
    struct Round {
        features: Vec<Vec<f64>>,
        centroids: Vec<Option<Vec<f64>>>,
    }

    fn unit(v: Vec<f64>) -> Vec<f64> {
        let norm = v.iter().map(|x| x * x).sum::<f64>().sqrt();
        v.into_iter().map(|x| x / norm).collect()
    }

    impl Round {
        fn new(embeddings: &[f32], (h, w, d): (usize, usize, usize), labels: &[u8]) -> Self {
            let features: Vec<Vec<f64>> = (0..h * w)
                .map(|p| {
                    let mut f: Vec<f64> =
                        embeddings[p * d..][..d].iter().map(|&v| f64::from(v)).collect();
                    f.push((p / w) as f64 / h as f64);
                    f.push((p % w) as f64 / w as f64);
                    unit(f)
                })
                .collect();
            let clusters = usize::from(*labels.iter().max().unwrap()) + 1;
            let centroids = (0..clusters)
                .map(|k| {
                    let members: Vec<_> =
                        (0..h * w).filter(|&p| usize::from(labels[p]) == k).collect();
                    (!members.is_empty()).then(|| {
                        unit(
                            (0..d + 2)
                                .map(|i| members.iter().map(|&p| features[p][i]).sum())
                                .collect(),
                        )
                    })
                })
                .collect();
            Self { features, centroids }
        }

        fn score(&self, cell: usize, cluster: usize) -> f64 {
            let Some(Some(centroid)) = self.centroids.get(cluster) else {
                return f64::NEG_INFINITY;
            };
            centroid.iter().zip(&self.features[cell]).map(|(a, b)| a * b).sum()
        }
    }

    fn embeddings(cells: usize, dim: usize, seed: u64) -> Vec<f32> {
        let mut state = seed;
        let mut data: Vec<f32> = (0..cells * dim)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
            })
            .collect();
        data.chunks_exact_mut(dim).for_each(|v| {
            normalise(v);
        });
        data
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn every_round_is_that_of_the_definition(
            (height, width, dim) in (1..12usize, 1..50usize, 1..9usize),
            grid in 1..7usize,
            seed: u64,
        ) {
            let data = embeddings(height * width, dim, seed);
            let size = (height, width, dim);
            let mut clusters = Clusters::default();
            clusters.set_features(&data, size);
            clusters.start(height, width, grid);
            for _ in 0..5 {
                // From the same labels each time, so that rounding cannot add up.
                let round = Round::new(&data, size, clusters.labels());
                clusters.update(|_| true);
                clusters.assign(width);
                for (cell, &label) in clusters.labels().iter().enumerate() {
                    let best = (0..clusters.count()).map(|k| round.score(cell, k))
                        .fold(f64::NEG_INFINITY, f64::max);
                    prop_assert!(round.score(cell, usize::from(label)) > best - 1e-5);
                }
            }
            // Scores at the cells agree with the assignment that they came from.
            let listed: Vec<u8> = (0..clusters.count() as u8)
                .filter(|&k| clusters.members[usize::from(k)] > 0).collect();
            let mut scores = Vec::new();
            clusters.scores(&listed, &mut scores);
            let cells = height * width;
            for (cell, label) in clusters.labels().iter().enumerate() {
                let own = listed.iter().position(|k| k == label).unwrap();
                let best = (0..listed.len()).map(|k| scores[k * cells + cell])
                    .fold(f32::NEG_INFINITY, f32::max);
                prop_assert!(scores[own * cells + cell] > best - 1e-5);
            }
        }
    }

    #[test]
    fn clusters_start_as_blocks_numbered_down_the_columns() {
        let mut clusters = Clusters::default();
        clusters.start(4, 6, 3);
        // Blocks of 2x2 cells: two rows of three, so six clusters instead of nine.
        assert_eq!(clusters.count(), 6);
        assert_eq!(clusters.labels()[..6], [0, 0, 2, 2, 4, 4]);
        assert_eq!(clusters.labels()[18..], [1, 1, 3, 3, 5, 5]);
        clusters.start(2, 2, 5);
        assert_eq!(clusters.labels(), [0, 2, 1, 3]);
    }

    #[test]
    fn a_cluster_without_cells_stays_empty() {
        let mut clusters = Clusters::default();
        clusters.set_features(&[-1.0, -1.0, -1.0, -1.0], (1, 4, 1));
        clusters.start(1, 4, 4);
        clusters.labels.copy_from_slice(&[0, 0, 3, 3]);
        clusters.update(|_| true);
        // The zero centroids of 1 and 2 would beat negative scores.
        clusters.assign(4);
        assert!(clusters.labels().iter().all(|&l| l == 0 || l == 3));
    }

    #[test]
    fn prototypes_are_means_without_place() {
        // Left half one direction, right half another.
        let data: Vec<f32> =
            (0..32).flat_map(|p| if p % 8 < 4 { [1.0, 0.0] } else { [0.0, 1.0] }).collect();
        let mut clusters = Clusters::default();
        clusters.run(&data, (4, 8, 2), 2, 10);
        for (p, &label) in clusters.labels().iter().enumerate() {
            let prototype = &clusters.prototypes[usize::from(label) * 2..][..2];
            assert_eq!(prototype, if p % 8 < 4 { [1.0, 0.0] } else { [0.0, 1.0] });
        }
    }
}
