//! The concept dictionary `e ∈ R^{K×D}` and its upkeep.
//!
//! Entries are learned by the gradient of `L_v`. Around the optimiser's step:
//! [`Dictionary::renormalise`] puts the rows back on the sphere, [`Dictionary::observe`] keeps
//! a moving average of how often each entry is used, and [`Dictionary::revive`] replaces
//! entries that nothing uses any more by segments of the current batch (as `SoundStream`,
//! Zeghidour et al. 2021, does for its quantiser).

use rand::SeedableRng;
use rand_pcg::Pcg64;
use serde::{Deserialize, Serialize};
use tch::{Device, Tensor, no_grad};

use super::LossError;
use super::kmeans::spherical_kmeans;
use super::segments::normalize;

/// Largest number of concepts: a concept id is a `u16` at run time, and 65535 means none.
const MAX_CONCEPTS: i64 = 65_535;

/// Settings of the dictionary.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DictionaryConfig {
    /// Number of concepts `K`, 1 to 65535.
    pub concepts: i64,
    /// Iterations of k-means at the start.
    pub kmeans_iterations: usize,
    /// Decay of the moving average of use per step, in `[0, 1)`.
    pub usage_decay: f64,
    /// An entry is dead once its average use falls below this fraction of uniform use, in
    /// `[0, 1)`; 0 never replaces an entry. With the defaults an entry survives about 230
    /// steps without use.
    pub dead_threshold: f64,
}

impl Default for DictionaryConfig {
    fn default() -> Self {
        Self { concepts: 512, kmeans_iterations: 10, usage_decay: 0.99, dead_threshold: 0.1 }
    }
}

impl DictionaryConfig {
    /// Checks every setting against its range.
    pub fn validate(&self) -> Result<(), LossError> {
        let bad = |key, value, expected| Err(LossError::Setting { key, value, expected });
        if !(1..=MAX_CONCEPTS).contains(&self.concepts) {
            return bad("concepts", self.concepts as f64, "between 1 and 65535");
        }
        for (key, value) in
            [("usage_decay", self.usage_decay), ("dead_threshold", self.dead_threshold)]
        {
            if !(0.0..1.0).contains(&value) {
                return bad(key, value, "at least 0 and below 1");
            }
        }
        Ok(())
    }
}

/// How many segments of a batch chose each entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CodeUse {
    /// `[K]` counts.
    pub counts: Vec<i64>,
}

impl CodeUse {
    /// Counts an `assignment` (`[S]` indices below `count`).
    pub fn count(assignment: &Tensor, count: i64) -> Self {
        let histogram = assignment.bincount(None::<Tensor>, count);
        let mut counts = vec![0; count as usize];
        histogram.to_device(Device::Cpu).copy_data(&mut counts, count as usize);
        Self { counts }
    }

    /// Entries chosen at least once.
    pub fn used(&self) -> usize {
        self.counts.iter().filter(|count| **count > 0).count()
    }

    /// `exp(−Σ p_k log p_k)`: the number of entries that uniform use of equal entropy would
    /// have; 1 when nothing was counted.
    pub fn perplexity(&self) -> f64 {
        let entropy: f64 = self.shares().filter(|p| *p > 0.0).map(|p| -p * p.ln()).sum();
        entropy.exp()
    }

    fn shares(&self) -> impl Iterator<Item = f64> + '_ {
        let total = self.counts.iter().sum::<i64>().max(1) as f64;
        self.counts.iter().map(move |count| *count as f64 / total)
    }
}

/// The dictionary with everything a checkpoint has to keep.
#[derive(Debug)]
pub struct Dictionary {
    /// `[K, D]` entries, a leaf that requires gradient. Update it in place under `no_grad`.
    pub codebook: Tensor,
    /// `[K]` moving average of each entry's share of the segments; uniform use is `1 / K`.
    pub usage: Vec<f64>,
    /// Entries replaced so far.
    pub revived: u64,
    /// Seed of all random choices.
    pub seed: u64,
    /// Settings.
    pub config: DictionaryConfig,
}

impl Dictionary {
    /// Starts from spherical k-means over `segment_means` (`[M, D]`, of any length, `M ≥ 1`).
    /// The method asks for at least 10,000 segments of a pass without gradient.
    pub fn init_kmeans(
        segment_means: &Tensor,
        config: DictionaryConfig,
        seed: u64,
    ) -> Result<Self, LossError> {
        config.validate()?;
        let size = segment_means.size();
        if size.len() != 2 || size[1] == 0 {
            return Err(LossError::Shape {
                what: "the sample of segments",
                found: size,
                expected: "[M, D] with D > 0".into(),
            });
        }
        if size[0] == 0 {
            return Err(LossError::NoSamples);
        }
        let k = config.concepts;
        let start = spherical_kmeans(segment_means, k, config.kmeans_iterations, seed);
        let usage = vec![1.0 / k as f64; k as usize];
        Self::restore(&start.centroids, usage, 0, config, seed)
    }

    /// Puts a dictionary together from what a checkpoint kept.
    ///
    /// # Errors
    /// [`LossError::Shape`] when `codebook` or `usage` is not of `config.concepts` entries.
    pub fn restore(
        codebook: &Tensor,
        usage: Vec<f64>,
        revived: u64,
        config: DictionaryConfig,
        seed: u64,
    ) -> Result<Self, LossError> {
        config.validate()?;
        let k = config.concepts;
        let size = codebook.size();
        if size.len() != 2 || size[0] != k || size[1] == 0 {
            return Err(LossError::Shape {
                what: "the dictionary",
                found: size,
                expected: format!("[{k}, D] with D > 0"),
            });
        }
        if usage.len() as i64 != k {
            return Err(LossError::Shape {
                what: "the usage of the dictionary",
                found: vec![usage.len() as i64],
                expected: format!("[{k}]"),
            });
        }
        let codebook = codebook.detach().copy().set_requires_grad(true);
        Ok(Self { codebook, usage, revived, seed, config })
    }

    /// Number of entries `K`.
    pub fn len(&self) -> i64 {
        self.codebook.size()[0]
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// `[M]` entry of the largest cosine for each row of `z` (`[M, D]` unit), without gradient.
    pub fn assign(&self, z: &Tensor) -> Tensor {
        no_grad(|| {
            let e = normalize(&self.codebook.to_kind(z.kind()));
            z.detach().matmul(&e.transpose(0, 1)).argmax(1, false)
        })
    }

    /// Scales every entry back to unit length; call it after each optimiser step.
    pub fn renormalise(&mut self) {
        no_grad(|| {
            let unit = normalize(&self.codebook);
            self.codebook.copy_(&unit);
        });
    }

    /// Takes the assignments of one batch into the moving average of use.
    pub fn observe(&mut self, code_use: &CodeUse) {
        let decay = self.config.usage_decay;
        for (usage, share) in self.usage.iter_mut().zip(code_use.shares()) {
            *usage = decay * *usage + (1.0 - decay) * share;
        }
    }

    /// Replaces dead entries by distinct random rows of `z` (`[S, D]`, the batch's segments) and
    /// returns the replaced indices, whose momentum the optimiser must forget. The least used
    /// come first where there are more dead entries than segments. A new entry starts with
    /// uniform use, which gives it time to gather segments. The choice depends on the seed and
    /// `step` only.
    pub fn revive(&mut self, z: &Tensor, step: u64) -> Vec<i64> {
        let k = self.usage.len();
        let limit = self.config.dead_threshold / k as f64;
        let mut dead: Vec<usize> = (0..k).filter(|i| self.usage[*i] < limit).collect();
        dead.sort_by(|a, b| self.usage[*a].total_cmp(&self.usage[*b]));
        dead.truncate(z.size()[0] as usize);
        if dead.is_empty() {
            return Vec::new();
        }
        let mut rng = Pcg64::seed_from_u64(self.seed ^ step.rotate_left(32));
        let rows: Vec<i64> = rand::seq::index::sample(&mut rng, z.size()[0] as usize, dead.len())
            .into_iter()
            .map(|row| row as i64)
            .collect();
        for index in &dead {
            self.usage[*index] = 1.0 / k as f64;
        }
        self.revived += dead.len() as u64;
        let dead: Vec<i64> = dead.into_iter().map(|index| index as i64).collect();
        no_grad(|| {
            let device = self.codebook.device();
            let rows = Tensor::from_slice(&rows).to_device(z.device());
            let fresh = normalize(&z.detach().index_select(0, &rows))
                .to_device(device)
                .to_kind(self.codebook.kind());
            let _ =
                self.codebook.index_copy_(0, &Tensor::from_slice(&dead).to_device(device), &fresh);
        });
        dead
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Kind;

    fn dictionary(concepts: i64) -> Dictionary {
        let config = DictionaryConfig { concepts, ..DictionaryConfig::default() };
        let samples = Tensor::eye(concepts, (Kind::Float, Device::Cpu));
        Dictionary::init_kmeans(&samples, config, 1).unwrap()
    }

    fn ints(t: &Tensor) -> Vec<i64> {
        Vec::try_from(t).unwrap()
    }

    #[test]
    fn perplexity_of_uniform_use_is_the_number_of_entries() {
        let all = Tensor::arange(12, (Kind::Int64, Device::Cpu)).repeat([3]);
        let uniform = CodeUse::count(&all, 12);
        assert_eq!(uniform.counts, [3; 12]);
        assert_eq!(uniform.used(), 12);
        assert!((uniform.perplexity() - 12.0).abs() < 1e-9);
    }

    #[test]
    fn perplexity_of_a_single_entry_is_one() {
        let single = CodeUse::count(&Tensor::from_slice(&[4i64; 9]), 12);
        assert_eq!(single.used(), 1);
        assert!((single.perplexity() - 1.0).abs() < 1e-12);
        assert_eq!(CodeUse { counts: vec![0; 3] }.perplexity(), 1.0);
    }

    #[test]
    fn segments_choose_the_entry_of_the_largest_cosine_whatever_its_length() {
        let mut dictionary = dictionary(3);
        no_grad(|| {
            let _ = dictionary.codebook.get(0).g_mul_scalar_(5.0);
        });
        let z = normalize(&Tensor::from_slice(&[1.0f32, 2.0, 0.0]).reshape([1, 3]));
        assert_eq!(ints(&dictionary.assign(&z)), [1]);
        dictionary.renormalise();
        let lengths = dictionary.codebook.norm_scalaropt_dim(2, [1].as_slice(), false);
        assert!((lengths - 1.0).abs().max().double_value(&[]) < 1e-6);
        assert!(dictionary.codebook.requires_grad() && dictionary.codebook.is_leaf());
    }

    #[test]
    fn only_entries_out_of_use_are_replaced_and_counted() {
        let mut dictionary = dictionary(4);
        // Entries 0 and 2 share the work, 1 and 3 rest.
        let code_use = CodeUse { counts: vec![5, 0, 5, 0] };
        let z = normalize(
            &Tensor::from_slice(&[1.0f32, 1.0, 1.0, 1.0, 1.0, -1.0, 1.0, -1.0]).reshape([2, 4]),
        );
        let mut step = 0;
        while dictionary.revive(&z, step).is_empty() {
            dictionary.observe(&code_use);
            step += 1;
        }
        // 0.99^n < 0.1 first holds at n = 230.
        assert_eq!(step, 230);
        assert_eq!(dictionary.revived, 2);
        assert!((dictionary.usage[1] - 0.25).abs() < 1e-12);
        let best = dictionary.codebook.matmul(&z.transpose(0, 1)).argmax(1, false);
        let kept = Tensor::eye(4, (Kind::Float, Device::Cpu));
        for index in [0, 2] {
            assert_eq!(dictionary.codebook.get(index).detach(), kept.get(index));
        }
        // The two new entries are the two segments.
        let mut new = [ints(&best)[1], ints(&best)[3]];
        new.sort_unstable();
        assert_eq!(new, [0, 1]);
        assert!(dictionary.codebook.requires_grad() && dictionary.codebook.is_leaf());
        assert!(dictionary.revive(&z, step).is_empty());
    }

    #[test]
    fn at_most_one_entry_per_segment_is_replaced_the_least_used_first() {
        let mut dictionary = dictionary(4);
        dictionary.usage = vec![0.02, 0.01, 0.9, 0.015];
        let z = Tensor::ones([1, 4], (Kind::Float, Device::Cpu));
        assert_eq!(dictionary.revive(&z, 0), [1]);
        assert_eq!(dictionary.revive(&z, 1), [3]);
        assert_eq!(dictionary.revive(&z, 2), [0]);
        assert_eq!(dictionary.revive(&z, 3), [0i64; 0]);
    }

    #[test]
    fn impossible_starts_are_refused() {
        let none = Tensor::zeros([0, 4], (Kind::Float, Device::Cpu));
        let result = Dictionary::init_kmeans(&none, DictionaryConfig::default(), 0);
        assert!(matches!(result, Err(LossError::NoSamples)));
        let config = DictionaryConfig { concepts: 0, ..DictionaryConfig::default() };
        let one = Tensor::ones([1, 4], (Kind::Float, Device::Cpu));
        let result = Dictionary::init_kmeans(&one, config, 0);
        assert!(matches!(result, Err(LossError::Setting { key: "concepts", .. })));
        let result = Dictionary::restore(&one, vec![1.0; 3], 0, DictionaryConfig::default(), 0);
        assert!(matches!(result, Err(LossError::Shape { .. })));
    }
}
