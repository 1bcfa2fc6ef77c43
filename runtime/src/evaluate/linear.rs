//! A linear classifier on embeddings: one vector and one offset for each class.

use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensors, serialize};

use super::EvaluateError;
use crate::bundle::MAX_DIM;
use crate::files::write_atomic;

/// Largest file that is read, in bytes.
const MAX_FILE: u64 = 16 << 20;

/// Class scores are `weight * embedding + bias`.
#[derive(Debug, Clone, PartialEq)]
pub struct LinearClassifier {
    /// Number of classes, 1..=255.
    pub classes: usize,
    /// Dimensions of an embedding.
    pub dim: usize,
    /// `[classes, dim]`.
    pub weight: Vec<f32>,
    /// `[classes]`.
    pub bias: Vec<f32>,
}

impl LinearClassifier {
    /// Reads the tensors `weight` and `bias` of a safetensors file in float32.
    pub fn read(path: &Path) -> Result<Self, EvaluateError> {
        let refused = |what: String| EvaluateError::Classifier { path: path.to_owned(), what };
        let size = std::fs::metadata(path).map_err(|e| refused(format!("cannot read: {e}")))?.len();
        if size > MAX_FILE {
            return Err(refused(format!("{size} bytes are more than a classifier can have")));
        }
        let bytes = std::fs::read(path).map_err(|e| refused(format!("cannot read: {e}")))?;
        let file = SafeTensors::deserialize(&bytes)
            .map_err(|e| refused(format!("not a safetensors file: {e}")))?;
        let tensor = |name: &str| -> Result<(Vec<usize>, Vec<f32>), EvaluateError> {
            let view = file.tensor(name).map_err(|e| refused(format!("no tensor {name}: {e}")))?;
            if view.dtype() != Dtype::F32 {
                return Err(refused(format!("{name} is {:?}, not F32", view.dtype())));
            }
            let (values, _) = view.data().as_chunks::<4>();
            Ok((view.shape().to_vec(), values.iter().map(|b| f32::from_le_bytes(*b)).collect()))
        };
        let ((shape, weight), (length, bias)) = (tensor("weight")?, tensor("bias")?);
        let (classes, dim) = match *shape {
            [classes, dim] if (1..=255).contains(&classes) && (1..=MAX_DIM).contains(&dim) => {
                (classes, dim)
            }
            _ => return Err(refused(format!("weight is {shape:?}, expected [classes, dim]"))),
        };
        if length != [classes] {
            return Err(refused(format!("bias is {length:?}, expected [{classes}]")));
        }
        if !weight.iter().chain(&bias).all(|v| v.is_finite()) {
            return Err(refused("holds values that are not finite; train it again".to_owned()));
        }
        Ok(Self { classes, dim, weight, bias })
    }

    /// Writes what [`LinearClassifier::read`] reads.
    ///
    /// # Errors
    /// Whatever the file system answers.
    pub fn write(&self, path: &Path) -> std::io::Result<()> {
        let weight: Vec<u8> = self.weight.iter().flat_map(|v| v.to_le_bytes()).collect();
        let bias: Vec<u8> = self.bias.iter().flat_map(|v| v.to_le_bytes()).collect();
        let view = |shape: Vec<usize>, data| {
            TensorView::new(Dtype::F32, shape, data).map_err(std::io::Error::other)
        };
        let tensors = [
            ("weight", view(vec![self.classes, self.dim], &weight)?),
            ("bias", view(vec![self.classes], &bias)?),
        ];
        let bytes = serialize(tensors, None).map_err(std::io::Error::other)?;
        write_atomic(path, |w| std::io::Write::write_all(w, &bytes))
    }

    /// Class scores of embeddings (`[cells, dim]`), as `[classes, cells]`.
    pub(super) fn planes(&self, embeddings: &[f32]) -> Vec<f32> {
        let rows = self.weight.chunks_exact(self.dim).zip(&self.bias);
        rows.flat_map(|(row, bias)| {
            embeddings
                .chunks_exact(self.dim)
                .map(move |cell| bias + cell.iter().zip(row).map(|(a, b)| a * b).sum::<f32>())
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_written_classifier_reads_back_equal_and_damage_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("linear.safetensors");
        let written = LinearClassifier {
            classes: 2,
            dim: 3,
            weight: vec![1.0, 2.0, 3.0, -1.0, 0.0, 0.5],
            bias: vec![0.25, -4.0],
        };
        written.write(&path).unwrap();
        assert_eq!(LinearClassifier::read(&path).unwrap(), written);
        assert_eq!(written.planes(&[1.0, 0.0, 0.0, 0.0, 0.0, 1.0]), [1.25, 3.25, -5.0, -3.5]);
        let wrong = LinearClassifier { bias: vec![f32::NAN, 0.0], ..written };
        wrong.write(&path).unwrap();
        assert!(LinearClassifier::read(&path).unwrap_err().to_string().contains("not finite"));
        std::fs::write(&path, b"none").unwrap();
        let text = LinearClassifier::read(&path).unwrap_err().to_string();
        assert!(text.contains("linear.safetensors: not a safetensors file"), "{text}");
    }
}
