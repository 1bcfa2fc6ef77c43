//! The training recipe: one TOML file, every key with the method's default.

use std::path::{Path, PathBuf};

use conceptseg::bundle::{MAX_CONCEPTS, SizeRule};
use serde::{Deserialize, Serialize};

use crate::data::augment::ViewParams;
use crate::data::{FootageConfig, SegmentsConfig};
use crate::losses::LossConfig;
use crate::losses::dictionary::DictionaryConfig;
use crate::network::{NetworkConfig, Preset};
use crate::optimizer::OptimizerConfig;
use crate::teacher::TeacherConfig;

/// Why a recipe cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the recipe {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the file system answered.
        source: std::io::Error,
    },
    /// The file does not parse, or has a key that does not exist.
    #[error("{path} does not parse: {reason}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// What the parser said, with the line.
        reason: String,
    },
    /// A value is out of range.
    #[error("{key} is {value}; it must be {expected}")]
    Range {
        /// The key, with its section.
        key: &'static str,
        /// The value given.
        value: String,
        /// What is possible.
        expected: &'static str,
    },
}

/// A whole recipe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// Name of the model, written to the bundle.
    pub name: String,
    /// Seed of everything that is random.
    pub seed: u64,
    /// The network.
    pub network: NetworkConfig,
    /// How the linear projection of an edge head starts.
    pub head_start: HeadStart,
    /// Images and batches.
    pub data: DataConfig,
    /// Pseudo segments.
    pub segments: SegmentsConfig,
    /// The augmented views.
    pub views: ViewParams,
    /// Second views from neighbouring frames.
    pub footage: FootageConfig,
    /// The mean teacher.
    pub teacher: TeacherConfig,
    /// Losses.
    pub loss: LossConfig,
    /// Concept dictionary.
    pub dictionary: DictionaryConfig,
    /// Segments gathered before step 0 for the k-means start of the dictionary (10,000).
    pub start_segments: i64,
    /// Earlier batches whose segments serve as further candidates (paper: 2).
    pub memory_batches: usize,
    /// Optimiser and schedule.
    pub optimizer: OptimizerConfig,
    /// Numbers in which the network computes its maps.
    pub precision: Precision,
    /// When the state of the run is written.
    pub checkpoint: CheckpointConfig,
    /// Image sizes that the exported network takes: `"dynamic"` for every multiple of 8,
    /// which the paper's pyramid pooling does not allow, or `{ fixed = [height, width] }`.
    pub export_size: SizeRule,
    /// Texts for the bundle's manifest: where backbone and images come from, terms of use.
    pub provenance: ProvenanceTexts,
}

/// Texts that go to the bundle's manifest as they are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProvenanceTexts {
    /// Source and licence of the backbone's weights.
    pub backbone: String,
    /// Source of the images.
    pub images: String,
    /// Terms of use of the bundle.
    pub licence: String,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            name: "concepts".to_owned(),
            seed: 0,
            network: NetworkConfig { preset: Preset::PaperResnet50, ..NetworkConfig::default() },
            head_start: HeadStart::default(),
            data: DataConfig::default(),
            segments: SegmentsConfig::default(),
            views: ViewParams::default(),
            footage: FootageConfig::default(),
            teacher: TeacherConfig::default(),
            loss: LossConfig::default(),
            dictionary: DictionaryConfig::default(),
            start_segments: 10_000,
            memory_batches: 2,
            optimizer: OptimizerConfig::default(),
            precision: Precision::default(),
            checkpoint: CheckpointConfig::default(),
            export_size: SizeRule::Fixed([480, 832]),
            provenance: ProvenanceTexts::default(),
        }
    }
}

/// How the linear projection of an edge head starts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HeadStart {
    /// Random weights, as the paper's head.
    #[default]
    Random,
    /// Whitened principal components of the backbone's features on the training images.
    Whitening,
    /// The whole head of the file of weights, as from the network of a bundle or a checkpoint.
    Weights,
}

/// Numbers in which the network computes its maps. Weights, their gradients and momentum, the
/// statistics of batch normalisations and all losses are single precision in both cases.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// Single precision.
    #[default]
    Fp32,
    /// `bfloat16`, for CUDA devices of compute capability 8.0 and up. Works on a CPU too, where
    /// it is faster only if the processor has instructions for it.
    Bf16,
}

impl Precision {
    /// The kind of the network's input, which its maps take over.
    pub fn kind(self) -> tch::Kind {
        match self {
            Self::Fp32 => tch::Kind::Float,
            Self::Bf16 => tch::Kind::BFloat16,
        }
    }
}

/// When the state of the run is written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CheckpointConfig {
    /// Steps from one checkpoint to the next (500); 0 for none but at the end and when the run
    /// is interrupted.
    pub every: u64,
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self { every: 500 }
    }
}

/// Images and batches.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataConfig {
    /// Images in a batch; each gives two views (paper: 8).
    pub batch: usize,
    /// Side of a view in pixels, a multiple of 8 (SegSort: 336).
    pub crop: u32,
    /// Images are kept in memory with their short side at most this long, in pixels.
    pub short_side: u32,
    /// Threads that make views.
    pub threads: usize,
    /// Megabytes (2^20 bytes) of prepared images kept in memory; the rest is read again
    /// whenever it is drawn.
    pub memory_limit_mb: u64,
}

impl Default for DataConfig {
    fn default() -> Self {
        Self { batch: 8, crop: 336, short_side: 336, threads: 2, memory_limit_mb: 4096 }
    }
}

impl TrainConfig {
    /// Reads a recipe and checks its ranges.
    ///
    /// # Errors
    /// [`ConfigError`] names the file and line, or the key and what is possible.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Io { path: path.to_owned(), source })?;
        let config: Self = toml::from_str(&text).map_err(|e| ConfigError::Parse {
            path: path.to_owned(),
            reason: e.to_string().trim_end().to_owned(),
        })?;
        config.check()?;
        Ok(config)
    }

    /// Checks the values that have a range of their own.
    ///
    /// # Errors
    /// [`ConfigError::Range`].
    pub fn check(&self) -> Result<(), ConfigError> {
        let data = &self.data;
        let optimizer = &self.optimizer;
        let bad = |key, value: String, expected| Err(ConfigError::Range { key, value, expected });
        if !(1..=256).contains(&data.batch) {
            return bad("data.batch", data.batch.to_string(), "from 1 to 256");
        }
        if !data.crop.is_multiple_of(8) || !(64..=2048).contains(&data.crop) {
            return bad("data.crop", data.crop.to_string(), "a multiple of 8 from 64 to 2048");
        }
        if !(64..=4096).contains(&data.short_side) {
            return bad("data.short_side", data.short_side.to_string(), "from 64 to 4096");
        }
        if !(1..=MAX_CONCEPTS as i64).contains(&self.dictionary.concepts) {
            let value = self.dictionary.concepts.to_string();
            return bad("dictionary.concepts", value, "from 1 to 8192");
        }
        if !(1..=1_000_000).contains(&self.start_segments) {
            return bad("start_segments", self.start_segments.to_string(), "from 1 to 1000000");
        }
        if let SizeRule::Fixed([h, w]) = self.export_size
            && [h, w].iter().any(|s| !s.is_multiple_of(8) || !(64..=4096).contains(s))
        {
            let value = format!("[{h}, {w}]");
            return bad("export_size", value, "two multiples of 8 from 64 to 4096");
        }
        if self.memory_batches > 64 {
            return bad("memory_batches", self.memory_batches.to_string(), "at most 64");
        }
        for (key, value) in [
            ("optimizer.lr", optimizer.lr),
            ("optimizer.power", optimizer.power),
            ("optimizer.head_multiplier", optimizer.head_multiplier),
            ("optimizer.bias_multiplier", optimizer.bias_multiplier),
            ("optimizer.dictionary_multiplier", optimizer.dictionary_multiplier),
        ] {
            if !(value > 0.0 && value.is_finite()) {
                return bad(key, value.to_string(), "a number above 0");
            }
        }
        if !(1..=1024).contains(&optimizer.accumulate) {
            let value = optimizer.accumulate.to_string();
            return bad("optimizer.accumulate", value, "from 1 to 1024");
        }
        if !(optimizer.clip_norm >= 0.0 && optimizer.clip_norm.is_finite()) {
            let value = optimizer.clip_norm.to_string();
            return bad("optimizer.clip_norm", value, "a number of at least 0");
        }
        if !(0.0..1.0).contains(&self.teacher.momentum) {
            let value = self.teacher.momentum.to_string();
            return bad("teacher.momentum", value, "from 0 to below 1");
        }
        if !(0.0..1.0).contains(&optimizer.momentum) {
            return bad("optimizer.momentum", optimizer.momentum.to_string(), "from 0 to below 1");
        }
        if !(0.0..=1.0).contains(&optimizer.weight_decay) {
            return bad(
                "optimizer.weight_decay",
                optimizer.weight_decay.to_string(),
                "from 0 to 1",
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_recipe_in_configs_parses() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs");
        let mut read = 0;
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|e| e == "toml") {
                TrainConfig::read(&path).unwrap();
                read += 1;
            }
        }
        assert!(read >= 4, "only {read} recipes found");
    }

    #[test]
    fn an_unknown_key_and_a_bad_value_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.toml");
        std::fs::write(&path, "[data]\nbatches = 3\n").unwrap();
        let text = TrainConfig::read(&path).unwrap_err().to_string();
        assert!(text.contains("line 2") && text.contains("batches"), "{text}");
        std::fs::write(&path, "[data]\ncrop = 100\n").unwrap();
        let text = TrainConfig::read(&path).unwrap_err().to_string();
        assert_eq!(text, "data.crop is 100; it must be a multiple of 8 from 64 to 2048");
    }

    #[test]
    fn the_defaults_are_those_of_the_paper() {
        let config = TrainConfig::default();
        assert_eq!((config.data.batch, config.optimizer.iterations), (8, 5000));
        assert_eq!((config.loss.kappa, config.loss.lambda_v, config.loss.beta), (10.0, 2.0, 0.5));
        assert_eq!((config.dictionary.concepts, config.network.dim), (512, 32));
        assert!(config.check().is_ok());
    }
}
