//! Why TensorRT could not be used.

use std::io;
use std::path::PathBuf;

use conceptseg_tensorrt::cuda::CudaError;
use conceptseg_tensorrt::{Error as LibraryError, PlanError};

use super::key::{InputShape, Precision};

/// Why a plan could not be found, built or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TensorRtError {
    /// Driver, GPU or library are missing or do not fit.
    #[error("{reason}")]
    Unavailable {
        /// Which, why, and what to do.
        reason: String,
    },
    /// A file of the plan store could not be read or written.
    #[error("cannot access {path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the file system answered.
        source: io::Error,
    },
    /// The ONNX file is not the one that the backend was opened with.
    #[error("the network {path} was replaced while it was in use; start again")]
    Replaced {
        /// The file.
        path: PathBuf,
    },
    /// There is no plan, and none can be built here.
    #[error(
        "there is no {precision} plan for {input} in {folder}, and none can be built: {reason}"
    )]
    NoPlan {
        /// The precision asked for.
        precision: Precision,
        /// The size asked for.
        input: InputShape,
        /// The plan store.
        folder: PathBuf,
        /// Why not, and what to do.
        reason: String,
    },
    /// A plan cannot have this shape or these options.
    #[error("no plan can be built for {what}")]
    Options {
        /// What was asked for and why it cannot be.
        what: String,
    },
    /// The network is not what the plan was to be built of.
    #[error("the network {path} cannot become a plan: {reason}")]
    Network {
        /// The ONNX file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// TensorRT did not build the plan.
    #[error("the {precision} plan for {input} could not be built: {source}")]
    Build {
        /// The precision.
        precision: Precision,
        /// The size.
        input: InputShape,
        /// What TensorRT said.
        source: Box<LibraryError>,
    },
    /// The GPU's memory does not suffice.
    #[error(
        "the GPU {gpu} has no memory left for the network at {input}: {needed} needed of {total}; \
         take a smaller size or fp16, or end other programs that use this GPU"
    )]
    OutOfMemory {
        /// Name of the GPU.
        gpu: String,
        /// The size.
        input: InputShape,
        /// What is needed, in words.
        needed: String,
        /// What the GPU has, in words.
        total: String,
    },
    /// A plan cannot be run as it is.
    #[error("the plan {path} cannot be used: {reason}")]
    Plan {
        /// The plan.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The GPU failed for good, was reset, and failed again.
    #[error(
        "the GPU {gpu} failed again after it was reset ({reason}); the system log (dmesg) tells more"
    )]
    Lost {
        /// Name of the GPU.
        gpu: String,
        /// How it failed.
        reason: CudaError,
    },
    /// The GPU was given up in favour of the CPU.
    #[error("the GPU was given up after it failed")]
    Closed,
    /// A call of TensorRT failed.
    #[error(transparent)]
    Library(#[from] LibraryError),
    /// A call of the driver failed.
    #[error(transparent)]
    Cuda(#[from] CudaError),
    /// A plan is not the one that was built.
    #[error(transparent)]
    Sealed(#[from] PlanError),
}

impl TensorRtError {
    /// Whether the GPU's memory did not suffice. TensorRT tells this in words only.
    pub(super) fn is_out_of_memory(&self) -> bool {
        match self {
            Self::Cuda(error) | Self::Library(LibraryError::Cuda(error)) => {
                error.is_out_of_memory()
            }
            Self::Library(
                LibraryError::Failed { detail, .. } | LibraryError::NoObject { detail, .. },
            ) => says_out_of_memory(detail),
            Self::Build { source, .. } => match source.as_ref() {
                LibraryError::Cuda(error) => error.is_out_of_memory(),
                LibraryError::Failed { detail, .. } | LibraryError::NoObject { detail, .. } => {
                    says_out_of_memory(detail)
                }
                _ => false,
            },
            Self::OutOfMemory { .. } => true,
            _ => false,
        }
    }
}

/// Words of TensorRT and of the CUDA runtime for memory that could not be had.
fn says_out_of_memory(detail: &str) -> bool {
    let detail = detail.to_ascii_lowercase();
    ["out of memory", "outofmemory", "out_of_memory", "memoryallocation", "insufficient memory"]
        .iter()
        .any(|words| detail.contains(words))
}

/// Bytes as people read them.
pub(super) fn megabytes(bytes: u64) -> String {
    if bytes >= 10_000_000_000 {
        return format!("{:.0} GB", bytes as f64 / 1e9);
    }
    format!("{} MB", bytes.div_ceil(1_000_000))
}
