//! The manifest `bundle.toml`.

use std::collections::BTreeMap;
use std::path::{Component, Path};

use serde::{Deserialize, Serialize};

use super::{BundleError, MAX_CONCEPTS, MAX_DIM};

/// Version of the bundle format that this program writes and reads.
pub const FORMAT_VERSION: u32 = 1;

/// What `bundle.toml` holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of the format, [`FORMAT_VERSION`].
    pub format_version: u32,
    /// Name of the model, for logs and reports.
    pub name: String,
    /// The network.
    pub embedder: EmbedderEntry,
    /// What the network expects.
    pub input: InputEntry,
    /// The codebook.
    pub concepts: ConceptsEntry,
    /// Where the model comes from.
    #[serde(default)]
    pub provenance: Provenance,
}

/// The network file and its interface.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EmbedderEntry {
    /// File name in the bundle.
    pub file: String,
    /// SHA-256 of the file, hexadecimal.
    pub sha256: String,
    /// Name of the input tensor, `[N, 3, H, W]`.
    pub input: String,
    /// Name of the output tensor, `[N, dim, H / stride, W / stride]`, unit length over `dim`.
    pub output: String,
    /// Dimensions of an embedding.
    pub dim: usize,
    /// Input pixels per output cell along each axis.
    pub stride: usize,
    /// Which input sizes the network takes.
    pub size: SizeRule,
}

/// Which input sizes a network takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SizeRule {
    /// Any height and width that are multiples of the stride.
    Dynamic,
    /// Exactly `[height, width]`.
    Fixed([u32; 2]),
}

/// Normalisation: `(x / 255 - mean) / std` for red, green, blue.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InputEntry {
    /// Mean of each channel on the 0..1 scale.
    pub mean: [f32; 3],
    /// Divisor of each channel on the 0..1 scale.
    pub std: [f32; 3],
}

/// The codebook file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConceptsEntry {
    /// File name in the bundle.
    pub file: String,
    /// SHA-256 of the file, hexadecimal.
    pub sha256: String,
    /// Number of concepts.
    pub count: usize,
}

/// Where a model comes from; free text for people and audits.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provenance {
    /// Program and version that wrote the bundle.
    #[serde(default)]
    pub producer: String,
    /// Weights that training started from, with their licence.
    #[serde(default)]
    pub backbone: String,
    /// Images that were learnt from.
    #[serde(default)]
    pub images: String,
    /// Terms of use.
    #[serde(default)]
    pub licence: String,
    /// Further facts: configuration, seed, steps.
    #[serde(default)]
    pub details: BTreeMap<String, String>,
}

/// The one key that decides how the others are read.
#[derive(Deserialize)]
struct Version {
    format_version: u32,
}

impl Manifest {
    /// Parses and checks the text of a manifest; `path` is for messages.
    ///
    /// # Errors
    /// [`BundleError::Parse`], [`BundleError::Version`] or [`BundleError::Invalid`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, BundleError> {
        let parse_error = |e: toml::de::Error| BundleError::Parse {
            path: path.to_owned(),
            reason: e.to_string().trim_end().to_owned(),
        };
        let Version { format_version } = toml::from_str(text).map_err(parse_error)?;
        if format_version != FORMAT_VERSION {
            return Err(BundleError::Version { path: path.to_owned(), found: format_version });
        }
        let manifest: Self = toml::from_str(text).map_err(parse_error)?;
        manifest.check().map_err(|what| BundleError::Invalid { path: path.to_owned(), what })?;
        Ok(manifest)
    }

    fn check(&self) -> Result<(), String> {
        for file in [&self.embedder.file, &self.concepts.file] {
            let mut parts = Path::new(file).components();
            let plain = matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None));
            if !plain {
                return Err(format!("`{file}` must be the plain name of a file in the bundle"));
            }
        }
        let (dim, count) = (self.embedder.dim, self.concepts.count);
        if !(1..=MAX_DIM).contains(&dim) {
            return Err(format!("embedder.dim is {dim}, it must be from 1 to {MAX_DIM}"));
        }
        if !(1..=MAX_CONCEPTS).contains(&count) {
            return Err(format!("concepts.count is {count}, it must be from 1 to {MAX_CONCEPTS}"));
        }
        let stride = self.embedder.stride;
        if ![1, 2, 4, 8, 16, 32].contains(&stride) {
            return Err(format!("embedder.stride is {stride}, it must be a power of two up to 32"));
        }
        if let SizeRule::Fixed([h, w]) = self.embedder.size {
            let s = stride as u32;
            if h == 0 || w == 0 || h % s != 0 || w % s != 0 || h > 16_384 || w > 16_384 {
                return Err(format!("embedder.size {h}x{w} must be a multiple of the stride {s}"));
            }
        }
        let finite = self.input.mean.iter().chain(&self.input.std).all(|v| v.is_finite());
        if !finite || self.input.std.iter().any(|&v| v <= 0.0) {
            return Err("input.mean and input.std must be finite and std above zero".to_owned());
        }
        Ok(())
    }
}
