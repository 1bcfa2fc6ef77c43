//! Spherical k-means: `max Σ_i max_k x_i·c_k` over unit vectors `c_k`.

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use tch::{Kind, Tensor, no_grad};

use super::segments::normalize;

/// Rows compared with all centroids at a time: bounds the similarity matrix to 32 MiB for 512
/// centroids.
const CHUNK: i64 = 16_384;

/// Length of the random step that tells a copy of a vector from the original; about 1° on the
/// sphere, so that a copy stays in the neighbourhood but wins some of its samples.
const JITTER: f64 = 0.02;

/// Two unit vectors at least this similar are duplicates.
const DUPLICATE: f64 = 1.0 - 1e-6;

/// The outcome of [`spherical_kmeans`].
#[derive(Debug)]
pub struct KMeans {
    /// `[K, D]` unit centroids.
    pub centroids: Tensor,
    /// Mean similarity of the samples to their best centroid, before the first and after each
    /// iteration. It never falls.
    pub objective: Vec<f64>,
}

/// Clusters the rows of `samples` (`[M, D]`, `M ≥ 1`, any length) by direction.
///
/// Starts from distinct random samples drawn with `seed`. A centroid that no sample chooses
/// moves to one of the samples that are served worst, which cannot lower the objective. With
/// fewer samples than centroids every sample becomes a centroid and the others are perturbed
/// copies of them.
pub fn spherical_kmeans(samples: &Tensor, k: i64, iterations: usize, seed: u64) -> KMeans {
    no_grad(|| {
        let mut rng = Pcg64::seed_from_u64(seed);
        let x = normalize(&samples.detach());
        let m = x.size()[0];
        if m <= k {
            let copies = k - m;
            let rows: Vec<i64> = (0..copies).map(|i| i % m).collect();
            let rows = Tensor::from_slice(&rows).to_device(x.device());
            let copies = perturbed(&x.index_select(0, &rows), &mut rng);
            let centroids = Tensor::cat(&[&x, &copies], 0);
            return KMeans { objective: vec![Nearest::find(&x, &centroids).mean()], centroids };
        }
        let start: Vec<i64> = rand::seq::index::sample(&mut rng, m as usize, k as usize)
            .into_iter()
            .map(|i| i as i64)
            .collect();
        let mut centroids = x.index_select(0, &Tensor::from_slice(&start).to_device(x.device()));
        let mut nearest = Nearest::find(&x, &centroids);
        let mut objective = vec![nearest.mean()];
        for _ in 0..iterations {
            centroids = update(&x, &centroids, &nearest, &mut rng);
            nearest = Nearest::find(&x, &centroids);
            objective.push(nearest.mean());
        }
        KMeans { centroids, objective }
    })
}

/// Adds a random vector of about the length [`JITTER`] to each unit row and normalises.
fn perturbed(rows: &Tensor, rng: &mut Pcg64) -> Tensor {
    let noise: Vec<f32> = (0..rows.numel()).map(|_| rng.random_range(-1.0f32..1.0)).collect();
    let noise = Tensor::from_slice(&noise)
        .reshape(rows.size())
        .to_device(rows.device())
        .to_kind(rows.kind());
    normalize(&(rows + normalize(&noise) * JITTER))
}

/// The best centroid of every sample.
struct Nearest {
    similarity: Tensor,
    index: Tensor,
}

impl Nearest {
    fn find(x: &Tensor, centroids: &Tensor) -> Self {
        let transposed = centroids.transpose(0, 1);
        let (similarity, index): (Vec<_>, Vec<_>) =
            x.split(CHUNK, 0).iter().map(|rows| rows.matmul(&transposed).max_dim(1, false)).unzip();
        Self { similarity: Tensor::cat(&similarity, 0), index: Tensor::cat(&index, 0) }
    }

    fn mean(&self) -> f64 {
        self.similarity.to_kind(Kind::Double).mean(None::<Kind>).double_value(&[])
    }
}

fn update(x: &Tensor, centroids: &Tensor, nearest: &Nearest, rng: &mut Pcg64) -> Tensor {
    let sum = centroids.zeros_like().index_add(0, &nearest.index, x);
    // Samples that cancel out leave their centroid where it is: no direction is better.
    let length = sum.norm_scalaropt_dim(2, [1].as_slice(), true);
    let moved = normalize(&sum).where_self(&length.gt(1e-6), centroids);
    let k = centroids.size()[0];
    let empty = nearest.index.bincount(None::<Tensor>, k).eq(0).nonzero().reshape([-1]);
    let count = empty.size()[0];
    if count == 0 {
        return moved;
    }
    let (similarity, worst) = nearest.similarity.topk(count, 0, false, true);
    let samples = x.index_select(0, &worst);
    let copies = similarity.gt(DUPLICATE).unsqueeze(1);
    let refilled = perturbed(&samples, rng).where_self(&copies, &samples);
    moved.index_copy(0, &empty, &refilled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    fn random(m: i64, d: i64, seed: u64) -> Tensor {
        let mut rng = Pcg64::seed_from_u64(seed);
        let values: Vec<f32> = (0..m * d).map(|_| rng.random_range(-1.0..1.0)).collect();
        Tensor::from_slice(&values).reshape([m, d])
    }

    fn assert_unit(rows: &Tensor) {
        let off = (rows.norm_scalaropt_dim(2, [1].as_slice(), false) - 1.0).abs().max();
        assert!(off.double_value(&[]) < 1e-5);
    }

    #[test]
    fn the_objective_never_falls() {
        for seed in 0..5 {
            let result = spherical_kmeans(&random(300, 8, seed), 24, 10, seed);
            assert_eq!(result.objective.len(), 11);
            for pair in result.objective.windows(2) {
                assert!(pair[1] >= pair[0] - 1e-6, "seed {seed}: {:?}", result.objective);
            }
            assert_unit(&result.centroids);
        }
    }

    #[test]
    fn separate_directions_are_found() {
        // Ten samples around each of the four axes of a 4-space.
        let axes = Tensor::eye(4, (Kind::Float, Device::Cpu)).repeat([10, 1]);
        let samples = (axes + random(40, 4, 1) * 0.05) * 7.0;
        let result = spherical_kmeans(&samples, 4, 10, 3);
        assert!(*result.objective.last().unwrap() > 0.99, "{:?}", result.objective);
    }

    #[test]
    fn equal_seeds_give_equal_centroids() {
        let x = random(100, 6, 2);
        let run = |seed| spherical_kmeans(&x, 10, 3, seed).centroids;
        assert_eq!(run(5), run(5));
        assert_ne!(run(5), run(6));
    }

    #[test]
    fn fewer_samples_than_centroids_give_distinct_centroids() {
        let x = random(3, 5, 4);
        let result = spherical_kmeans(&x, 11, 10, 0);
        assert_eq!(result.centroids.size(), [11, 5]);
        assert_unit(&result.centroids);
        assert!(result.objective[0] > 0.9999);
        let off_diagonal =
            result.centroids.matmul(&result.centroids.transpose(0, 1)).tril(-1).max();
        assert!(off_diagonal.double_value(&[]) < 1.0 - 1e-7);
    }

    #[test]
    fn repeated_samples_still_fill_every_centroid() {
        let x = random(2, 5, 4).repeat([20, 1]);
        let result = spherical_kmeans(&x, 8, 10, 0);
        assert_unit(&result.centroids);
        let objective = *result.objective.last().unwrap();
        assert!(objective > 0.9999, "{objective}");
    }
}
