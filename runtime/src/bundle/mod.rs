//! The model bundle: one folder with everything that a trained model needs to run.
//!
//! ```text
//! bundle.toml            manifest: names, sizes, hashes, normalisation, provenance
//! embedder.onnx          image [N, 3, H, W] -> embedding [N, D, H/stride, W/stride]
//! concepts.safetensors   codebook [K, D], counts [K], cooccurrence [K, K], similarity_quantiles [K, 5]
//! concepts.toml          names, colours and marks that people gave to concepts (optional)
//! ```
//!
//! Everything read here is untrusted: sizes are bounded before memory is taken, and the
//! hashes of the manifest are compared before a file is used.

mod codebook;
mod manifest;
mod names;
mod write;

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use crate::files::{hex, sha256_file};

pub use codebook::{Codebook, MAX_CONCEPTS, MAX_DIM, QUANTILES};
pub use manifest::{
    ConceptsEntry, EmbedderEntry, FORMAT_VERSION, InputEntry, Manifest, Provenance, SizeRule,
};
pub use names::{ConceptEntry, ConceptNames, MAX_NAME, Mark};
pub use write::BundleWriter;

/// Name of the manifest in a bundle folder.
pub const MANIFEST_FILE: &str = "bundle.toml";
/// Name of the optional file with names and colours in a bundle folder.
pub const NAMES_FILE: &str = "concepts.toml";

/// Largest manifest or names file that is read, in bytes.
const MAX_TEXT: u64 = 4 << 20;
/// Largest codebook file that is read, in bytes: 8,192 concepts with their co-occurrence.
const MAX_CONCEPTS_FILE: u64 = 320 << 20;

/// Why a bundle cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BundleError {
    /// The folder does not exist or holds no manifest.
    #[error(
        "{dir} is not a model bundle: it holds no {MANIFEST_FILE}; give the folder that \
         `conceptseg-train` wrote"
    )]
    NotABundle {
        /// The folder given.
        dir: PathBuf,
    },
    /// A file of the bundle could not be read or written.
    #[error("cannot access {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the file system answered.
        source: io::Error,
    },
    /// A text file of the bundle does not parse.
    #[error("{path} does not parse: {reason}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// What the parser said, with the line.
        reason: String,
    },
    /// The bundle was written by a newer version.
    #[error(
        "{path} has format version {found}, this program reads version {FORMAT_VERSION}; \
         update the program or export the bundle again"
    )]
    Version {
        /// The manifest.
        path: PathBuf,
        /// The version that it states.
        found: u32,
    },
    /// A value of the manifest is out of range.
    #[error("{path}: {what}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong, as a sentence.
        what: String,
    },
    /// A file differs from the one the manifest was written for.
    #[error(
        "{path} is damaged or was replaced: its SHA-256 is {found}, the manifest says \
         {expected}; copy the bundle again"
    )]
    Hash {
        /// The file.
        path: PathBuf,
        /// Hash in the manifest.
        expected: String,
        /// Hash of the file.
        found: String,
    },
    /// A file is larger than any valid one.
    #[error("{path} has {size} bytes, more than the {limit} that a valid file can have")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
        /// The limit in bytes.
        limit: u64,
    },
}

/// An opened bundle; the network itself stays on disk until a backend loads it.
#[derive(Debug, Clone)]
pub struct Bundle {
    /// The folder.
    pub dir: PathBuf,
    /// What the manifest says, checked.
    pub manifest: Manifest,
    /// The concepts.
    pub codebook: Codebook,
    /// Names and colours given by people; empty where there is no such file.
    pub names: ConceptNames,
}

impl Bundle {
    /// Opens and checks a bundle: manifest, hashes of its files, codebook, names.
    ///
    /// # Errors
    /// [`BundleError`] names the file, what is wrong and what to do.
    pub fn open(dir: &Path) -> Result<Self, BundleError> {
        let path = dir.join(MANIFEST_FILE);
        if !path.is_file() {
            return Err(BundleError::NotABundle { dir: dir.to_owned() });
        }
        let manifest = Manifest::parse(&read_text(&path)?, &path)?;
        let embedder = dir.join(&manifest.embedder.file);
        check_hash(&embedder, &manifest.embedder.sha256)?;
        let concepts = dir.join(&manifest.concepts.file);
        let bytes = read_bounded(&concepts, MAX_CONCEPTS_FILE)?;
        compare_hash(&concepts, &hex(&Sha256::digest(&bytes)), &manifest.concepts.sha256)?;
        let codebook = Codebook::from_safetensors(&bytes, &concepts)?;
        if codebook.count != manifest.concepts.count || codebook.dim != manifest.embedder.dim {
            return Err(BundleError::Invalid {
                path: concepts,
                what: format!(
                    "the codebook is {}x{}, the manifest promises {} concepts of {} dimensions; \
                     export the bundle again",
                    codebook.count, codebook.dim, manifest.concepts.count, manifest.embedder.dim
                ),
            });
        }
        let names_path = dir.join(NAMES_FILE);
        let names = if names_path.is_file() {
            ConceptNames::parse(&read_text(&names_path)?, &names_path, codebook.count)?
        } else {
            ConceptNames::default()
        };
        Ok(Self { dir: dir.to_owned(), manifest, codebook, names })
    }

    /// Path of the network.
    pub fn embedder_path(&self) -> PathBuf {
        self.dir.join(&self.manifest.embedder.file)
    }
}

fn read_text(path: &Path) -> Result<String, BundleError> {
    let bytes = read_bounded(path, MAX_TEXT)?;
    String::from_utf8(bytes)
        .map_err(|e| BundleError::Parse { path: path.to_owned(), reason: e.to_string() })
}

fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>, BundleError> {
    let io_error = |source| BundleError::Io { path: path.to_owned(), source };
    let file = File::open(path).map_err(io_error)?;
    let size = file.metadata().map_err(io_error)?.len();
    if size > limit {
        return Err(BundleError::TooLarge { path: path.to_owned(), size, limit });
    }
    let mut bytes = Vec::with_capacity(size as usize);
    file.take(limit).read_to_end(&mut bytes).map_err(io_error)?;
    Ok(bytes)
}

fn check_hash(path: &Path, expected: &str) -> Result<(), BundleError> {
    let found =
        sha256_file(path).map_err(|source| BundleError::Io { path: path.to_owned(), source })?;
    compare_hash(path, &found, expected)
}

fn compare_hash(path: &Path, found: &str, expected: &str) -> Result<(), BundleError> {
    if found == expected {
        return Ok(());
    }
    Err(BundleError::Hash {
        path: path.to_owned(),
        expected: expected.to_owned(),
        found: found.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn codebook() -> Codebook {
        Codebook::new(2, 3, vec![1.0, 0.0, 0.0, 0.0, 1.0, 0.0]).unwrap()
    }

    fn written() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let onnx = dir.path().join("net.onnx");
        std::fs::write(&onnx, b"network").unwrap();
        let out = dir.path().join("bundle");
        BundleWriter::new("test", 8, [0.5; 3], [0.5; 3]).write(&out, &onnx, &codebook()).unwrap();
        (dir, out)
    }

    #[test]
    fn a_written_bundle_opens_with_the_same_content() {
        let (_guard, out) = written();
        let bundle = Bundle::open(&out).unwrap();
        assert_eq!(bundle.manifest.name, "test");
        assert_eq!(bundle.manifest.embedder.stride, 8);
        assert_eq!(bundle.codebook, codebook());
        assert_eq!(std::fs::read(bundle.embedder_path()).unwrap(), b"network");
    }

    #[test]
    fn a_missing_folder_says_what_a_bundle_is() {
        let text = Bundle::open(Path::new("/nonexistent")).unwrap_err().to_string();
        assert!(text.contains("/nonexistent is not a model bundle"), "{text}");
    }

    #[test]
    fn a_replaced_network_is_found_out() {
        let (_guard, out) = written();
        std::fs::write(out.join("embedder.onnx"), b"netw").unwrap();
        let text = Bundle::open(&out).unwrap_err().to_string();
        assert!(text.contains("embedder.onnx is damaged"), "{text}");
    }

    #[test]
    fn a_codebook_of_another_size_is_refused() {
        let (_guard, out) = written();
        let manifest = out.join(MANIFEST_FILE);
        let text = std::fs::read_to_string(&manifest).unwrap().replace("count = 2", "count = 3");
        std::fs::write(&manifest, text).unwrap();
        let text = Bundle::open(&out).unwrap_err().to_string();
        assert!(text.contains("the codebook is 2x3, the manifest promises 3 concepts"), "{text}");
    }

    #[test]
    fn a_damaged_manifest_names_its_line() {
        let (_guard, out) = written();
        std::fs::write(out.join(MANIFEST_FILE), "format_version = 1\nname = [").unwrap();
        let text = Bundle::open(&out).unwrap_err().to_string();
        assert!(text.contains("bundle.toml does not parse") && text.contains("line 2"), "{text}");
    }

    #[test]
    fn a_file_outside_the_bundle_is_refused() {
        let (_guard, out) = written();
        let manifest = out.join(MANIFEST_FILE);
        let text =
            std::fs::read_to_string(&manifest).unwrap().replace("embedder.onnx", "../net.onnx");
        std::fs::write(&manifest, text).unwrap();
        assert!(matches!(Bundle::open(&out), Err(BundleError::Invalid { .. })));
    }
}
