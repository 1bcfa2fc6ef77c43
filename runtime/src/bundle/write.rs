//! Writing a bundle.

use std::fs;
use std::io::{self, Write as _};
use std::path::Path;

use sha2::{Digest as _, Sha256};

use super::{
    BundleError, Codebook, ConceptsEntry, EmbedderEntry, FORMAT_VERSION, InputEntry, MANIFEST_FILE,
    Manifest, Provenance, SizeRule,
};
use crate::files::{hex, sha256_file, write_atomic};

/// Collects what a manifest says beside the files and writes the whole bundle.
#[derive(Debug, Clone)]
pub struct BundleWriter {
    name: String,
    stride: usize,
    input: InputEntry,
    size: SizeRule,
    provenance: Provenance,
}

impl BundleWriter {
    /// A bundle called `name` whose network has the given stride and normalisation and
    /// takes any size.
    pub fn new(name: &str, stride: usize, mean: [f32; 3], std: [f32; 3]) -> Self {
        Self {
            name: name.to_owned(),
            stride,
            input: InputEntry { mean, std },
            size: SizeRule::Dynamic,
            provenance: Provenance::default(),
        }
    }

    /// States which input sizes the network takes.
    #[must_use]
    pub fn size(mut self, size: SizeRule) -> Self {
        self.size = size;
        self
    }

    /// States where the model comes from.
    #[must_use]
    pub fn provenance(mut self, provenance: Provenance) -> Self {
        self.provenance = provenance;
        self
    }

    /// Writes the bundle to the folder `dir`, which is made where it is missing. The
    /// manifest comes last, so that a reader never finds it beside half of its files.
    ///
    /// The network at `onnx` must name its tensors `image` and `embedding`.
    ///
    /// # Errors
    /// [`BundleError`] where a file cannot be written or the codebook is not valid.
    pub fn write(&self, dir: &Path, onnx: &Path, codebook: &Codebook) -> Result<(), BundleError> {
        let io_error = |path: &Path| {
            let path = path.to_owned();
            move |source| BundleError::Io { path, source }
        };
        fs::create_dir_all(dir).map_err(io_error(dir))?;
        let manifest_path = dir.join(MANIFEST_FILE);
        let embedder_path = dir.join("embedder.onnx");
        let concepts_path = dir.join("concepts.safetensors");
        let concepts = codebook
            .to_safetensors()
            .map_err(|what| BundleError::Invalid { path: concepts_path.clone(), what })?;

        // An older manifest would vouch for files that are being replaced.
        match fs::remove_file(&manifest_path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(io_error(&manifest_path)(e));
            }
            _ => {}
        }
        let mut source = fs::File::open(onnx).map_err(io_error(onnx))?;
        write_atomic(&embedder_path, |w| io::copy(&mut source, w).map(drop))
            .map_err(io_error(&embedder_path))?;
        write_atomic(&concepts_path, |w| w.write_all(&concepts))
            .map_err(io_error(&concepts_path))?;

        let manifest = Manifest {
            format_version: FORMAT_VERSION,
            name: self.name.clone(),
            embedder: EmbedderEntry {
                file: "embedder.onnx".to_owned(),
                sha256: sha256_file(&embedder_path).map_err(io_error(&embedder_path))?,
                input: "image".to_owned(),
                output: "embedding".to_owned(),
                dim: codebook.dim,
                stride: self.stride,
                size: self.size,
            },
            input: self.input,
            concepts: ConceptsEntry {
                file: "concepts.safetensors".to_owned(),
                sha256: hex(&Sha256::digest(&concepts)),
                count: codebook.count,
            },
            provenance: self.provenance.clone(),
        };
        let text = toml::to_string(&manifest).map_err(|e| BundleError::Invalid {
            path: manifest_path.clone(),
            what: e.to_string(),
        })?;
        // What is written must be what will be accepted.
        Manifest::parse(&text, &manifest_path)?;
        write_atomic(&manifest_path, |w| w.write_all(text.as_bytes()))
            .map_err(io_error(&manifest_path))
    }
}
