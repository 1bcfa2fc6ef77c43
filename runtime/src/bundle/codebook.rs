//! The codebook (vocabulary of visual concepts) and its statistics.

use std::collections::HashMap;
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use super::BundleError;

/// Most concepts that a codebook may hold; concept maps store ids in 16 bits and the
/// co-occurrence table grows with the square.
pub const MAX_CONCEPTS: usize = 8192;
/// Most dimensions that an embedding may have.
pub const MAX_DIM: usize = 4096;
/// The quantiles that `similarity_quantiles` holds for each concept.
pub const QUANTILES: [f32; 5] = [0.05, 0.25, 0.5, 0.75, 0.95];

/// Rows may be off unit length by this much (rounding of a float32 file).
const UNIT_TOLERANCE: f32 = 1e-3;

/// `count` concepts as unit vectors of `dim` dimensions, with statistics over the
/// images that they were learnt from.
#[derive(Debug, Clone, PartialEq)]
pub struct Codebook {
    /// Number of concepts K.
    pub count: usize,
    /// Dimensions D of an embedding.
    pub dim: usize,
    /// Unit rows, `[K, D]`.
    pub vectors: Vec<f32>,
    /// Number of training segments assigned to each concept, `[K]`.
    pub counts: Vec<f32>,
    /// Number of training images that hold both concepts, `[K, K]`.
    pub cooccurrence: Vec<f32>,
    /// Quantiles ([`QUANTILES`]) of the cosine similarity of each concept's segments, `[K, 5]`.
    pub similarity_quantiles: Vec<f32>,
}

impl Codebook {
    /// A codebook of the given unit rows `[count, dim]` without statistics (all zero).
    ///
    /// # Errors
    /// A sentence that says which size or row is wrong.
    pub fn new(count: usize, dim: usize, vectors: Vec<f32>) -> Result<Self, String> {
        let codebook = Self {
            count,
            dim,
            vectors,
            counts: vec![0.0; count],
            cooccurrence: vec![0.0; count * count],
            similarity_quantiles: vec![0.0; count * QUANTILES.len()],
        };
        codebook.check()?;
        Ok(codebook)
    }

    /// Concept `id` as a vector of `dim` dimensions.
    ///
    /// # Panics
    /// If `id` is not below `count`.
    pub fn row(&self, id: usize) -> &[f32] {
        &self.vectors[id * self.dim..(id + 1) * self.dim]
    }

    /// Checks sizes, finiteness and unit length.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn check(&self) -> Result<(), String> {
        let (k, d) = (self.count, self.dim);
        if !(1..=MAX_CONCEPTS).contains(&k) || !(1..=MAX_DIM).contains(&d) {
            return Err(format!(
                "the codebook is {k}x{d}; 1 to {MAX_CONCEPTS} concepts of 1 to {MAX_DIM} \
                 dimensions are possible"
            ));
        }
        for (name, data, expected) in [
            ("codebook", &self.vectors, k * d),
            ("counts", &self.counts, k),
            ("cooccurrence", &self.cooccurrence, k * k),
            ("similarity_quantiles", &self.similarity_quantiles, k * QUANTILES.len()),
        ] {
            if data.len() != expected {
                return Err(format!("{name} has {} values instead of {expected}", data.len()));
            }
            if data.iter().any(|v| !v.is_finite()) {
                return Err(format!("{name} holds a value that is not finite"));
            }
        }
        for (id, row) in self.vectors.chunks_exact(d).enumerate() {
            let norm = row.iter().map(|v| v * v).sum::<f32>().sqrt();
            if (norm - 1.0).abs() > UNIT_TOLERANCE {
                return Err(format!("concept {id} has length {norm}, rows must be unit vectors"));
            }
        }
        Ok(())
    }

    /// Reads the tensors of a `concepts.safetensors`; `path` is for messages.
    ///
    /// # Errors
    /// [`BundleError::Parse`] or [`BundleError::Invalid`].
    pub fn from_safetensors(bytes: &[u8], path: &Path) -> Result<Self, BundleError> {
        let invalid = |what: String| BundleError::Invalid { path: path.to_owned(), what };
        let file = SafeTensors::deserialize(bytes).map_err(|e| BundleError::Parse {
            path: path.to_owned(),
            reason: format!("{e}; copy the bundle again"),
        })?;
        let tensor = |name: &str| -> Result<TensorView<'_>, BundleError> {
            let view = file
                .tensor(name)
                .map_err(|_| invalid(format!("the tensor `{name}` is missing")))?;
            if view.dtype() != Dtype::F32 {
                return Err(invalid(format!("`{name}` is {:?} instead of F32", view.dtype())));
            }
            Ok(view)
        };
        let vectors = tensor("codebook")?;
        let &[count, dim] = vectors.shape() else {
            return Err(invalid("`codebook` must have two axes, [K, D]".to_owned()));
        };
        let codebook = Self {
            count,
            dim,
            vectors: floats(&vectors),
            counts: floats(&tensor("counts")?),
            cooccurrence: floats(&tensor("cooccurrence")?),
            similarity_quantiles: floats(&tensor("similarity_quantiles")?),
        };
        codebook.check().map_err(invalid)?;
        Ok(codebook)
    }

    /// The bytes of a `concepts.safetensors`.
    ///
    /// # Errors
    /// A sentence, where the sizes do not fit together.
    pub fn to_safetensors(&self) -> Result<Vec<u8>, String> {
        self.check()?;
        let (k, d) = (self.count, self.dim);
        let parts = [
            ("codebook", vec![k, d], &self.vectors),
            ("counts", vec![k], &self.counts),
            ("cooccurrence", vec![k, k], &self.cooccurrence),
            ("similarity_quantiles", vec![k, QUANTILES.len()], &self.similarity_quantiles),
        ]
        .map(|(name, shape, data)| {
            let bytes: Vec<u8> = data.iter().flat_map(|v| v.to_le_bytes()).collect();
            (name, shape, bytes)
        });
        let mut views = HashMap::new();
        for (name, shape, bytes) in &parts {
            let view = TensorView::new(Dtype::F32, shape.clone(), bytes)
                .map_err(|e| format!("{name}: {e}"))?;
            views.insert(*name, view);
        }
        safetensors::serialize(views, None).map_err(|e| e.to_string())
    }
}

fn floats(view: &TensorView<'_>) -> Vec<f32> {
    view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_that_is_not_a_unit_vector_is_named() {
        let text = Codebook::new(2, 2, vec![1.0, 0.0, 0.5, 0.5]).unwrap_err();
        assert!(text.starts_with("concept 1 has length 0.707"), "{text}");
    }

    #[test]
    fn the_bytes_read_back_equal_and_a_cut_file_is_an_error() {
        let codebook = Codebook::new(1, 2, vec![0.0, 1.0]).unwrap();
        let bytes = codebook.to_safetensors().unwrap();
        let path = Path::new("c.safetensors");
        assert_eq!(Codebook::from_safetensors(&bytes, path).unwrap(), codebook);
        for cut in [0, 7, bytes.len() / 2, bytes.len() - 1] {
            assert!(Codebook::from_safetensors(&bytes[..cut], path).is_err());
        }
    }
}
