//! Loads backbone weights from a safetensors file.

use std::fmt;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use tch::{Tensor, no_grad};
use thiserror::Error;

use super::{Network, Part};

/// Largest file that is read, in bytes: ten times a ResNet-50 in single precision.
const MAX_FILE: u64 = 1 << 30;

/// Why a backbone could not be loaded.
#[derive(Debug, Error)]
pub enum PretrainedError {
    /// The file could not be read.
    #[error("cannot read backbone {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The file is larger than any backbone.
    #[error(
        "backbone {path} has {bytes} bytes, more than the {MAX_FILE} that are read; give the backbone's own file"
    )]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// The file is not in the safetensors format.
    #[error("backbone {path} is not a safetensors file ({source}); convert it or fetch it again")]
    Format {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: safetensors::SafeTensorError,
    },
    /// A tensor has a number type that weights do not have.
    #[error("tensor `{name}` of backbone {path} has type {dtype}; convert it to F16, BF16 or F32")]
    Type {
        /// The file.
        path: PathBuf,
        /// Name of the tensor.
        name: String,
        /// Its type.
        dtype: String,
    },
    /// No variable of the backbone is in the file.
    #[error(
        "backbone {path} has no tensor of this network's backbone; choose the preset that fits the file"
    )]
    NothingFits {
        /// The file.
        path: PathBuf,
    },
}

/// A variable that the file holds in another shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OtherShape {
    /// Name of the variable.
    pub name: String,
    /// Shape that the network has.
    pub expected: Vec<i64>,
    /// Shape in the file.
    pub found: Vec<i64>,
}

/// What became of every variable of the backbone and every tensor of the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoadReport {
    /// Variables that now have the file's values.
    pub loaded: Vec<String>,
    /// Variables of the backbone that the file lacks; they keep their values.
    pub missing: Vec<String>,
    /// Variables that the file holds in another shape; they keep their values.
    pub other_shape: Vec<OtherShape>,
    /// Tensors of the file for which the network has no variable.
    pub unused: Vec<String>,
}

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} tensors loaded", self.loaded.len())?;
        let shapes: Vec<&str> = self.other_shape.iter().map(|o| o.name.as_str()).collect();
        list(f, "missing", &self.missing)?;
        list(f, "of another shape", &shapes)?;
        list(f, "in the file but not used", &self.unused)
    }
}

/// Adds `, N what (first, second, …)`.
fn list(f: &mut fmt::Formatter<'_>, what: &str, names: &[impl AsRef<str>]) -> fmt::Result {
    const SHOWN: usize = 3;
    if names.is_empty() {
        return Ok(());
    }
    let shown: Vec<&str> = names.iter().take(SHOWN).map(AsRef::as_ref).collect();
    let more = if names.len() > SHOWN { ", …" } else { "" };
    write!(f, ", {} {what} ({}{more})", names.len(), shown.join(", "))
}

/// Copies the tensors of a safetensors file (F16, BF16 or F32) into the backbone's variables
/// of the same name and shape. The head is left as it is.
///
/// # Errors
/// [`PretrainedError`]; a file that lacks some of the variables is no error, see the report.
pub fn load_backbone(network: &Network, path: &Path) -> Result<LoadReport, PretrainedError> {
    let read = |source| PretrainedError::Read { path: path.to_owned(), source };
    let bytes = std::fs::metadata(path).map_err(read)?.len();
    if bytes > MAX_FILE {
        return Err(PretrainedError::TooLarge { path: path.to_owned(), bytes });
    }
    let data = std::fs::read(path).map_err(read)?;
    let file = SafeTensors::deserialize(&data)
        .map_err(|source| PretrainedError::Format { path: path.to_owned(), source })?;

    let mut report = LoadReport::default();
    for parameter in network.parameters() {
        if parameter.part == Part::Head {
            continue;
        }
        let name = parameter.name;
        let Ok(view) = file.tensor(&name) else {
            report.missing.push(name);
            continue;
        };
        let expected = parameter.tensor.size();
        let found: Vec<i64> = view.shape().iter().map(|&side| side as i64).collect();
        if expected != found {
            report.other_shape.push(OtherShape { name, expected, found });
            continue;
        }
        let values = single_precision(&view).ok_or_else(|| PretrainedError::Type {
            path: path.to_owned(),
            name: name.clone(),
            dtype: format!("{:?}", view.dtype()),
        })?;
        no_grad(|| {
            parameter.tensor.detach().copy_(&Tensor::from_slice(&values).view(found.as_slice()));
        });
        report.loaded.push(name);
    }
    if report.loaded.is_empty() {
        return Err(PretrainedError::NothingFits { path: path.to_owned() });
    }
    let known = |name: &str| {
        network.variables.get(name).is_some_and(|parameter| parameter.part != Part::Head)
    };
    report.unused =
        file.names().into_iter().filter(|name| !known(name)).map(ToString::to_string).collect();
    report.unused.sort();
    Ok(report)
}

fn single_precision(view: &TensorView<'_>) -> Option<Vec<f32>> {
    let pairs = || view.data().chunks_exact(2).map(|b| [b[0], b[1]]);
    match view.dtype() {
        Dtype::F32 => {
            let quads = view.data().chunks_exact(4);
            Some(quads.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
        }
        Dtype::F16 => Some(pairs().map(|b| f16::from_le_bytes(b).to_f32()).collect()),
        Dtype::BF16 => Some(pairs().map(|b| bf16::from_le_bytes(b).to_f32()).collect()),
        _ => None,
    }
}
