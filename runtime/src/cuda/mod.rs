//! Everything of a frame but the network, on an NVIDIA GPU.
//!
//! Each stage is the twin of a part that runs on the CPU, which stays the reference. Stages prepare their memory when the
//! size of the frames changes, and otherwise only put work into a stream, so that a whole frame can be captured into a
//! [`Graph`](conceptseg_tensorrt::cuda::Graph). `docs/cuda.md` says how all this is tested without a GPU.

pub mod kernels;
pub mod overlay;
pub mod propagate;
#[cfg(test)]
pub(crate) mod testing;

use conceptseg_tensorrt::cuda::{CudaError, NvrtcError};
use thiserror::Error;

pub use kernels::{KernelSource, Kernels};

/// Largest side of a frame in pixels.
pub const MAX_SIDE: usize = 16_384;
/// Most channels of an embedding.
pub const MAX_DIM: usize = 256;
/// Most clusters of a frame.
pub const MAX_CLUSTERS: usize = 225;
/// Most concepts of a vocabulary.
pub const MAX_CONCEPTS: usize = 4096;
/// Most instances of a video.
pub const MAX_INSTANCES: usize = 255;
/// Most matches of a cell in the context frames.
pub const MAX_TOPK: usize = 64;
/// Most context frames.
pub const MAX_CONTEXT: usize = 64;

/// Why something cannot be done on the GPU.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CudaPathError {
    /// The driver.
    #[error(transparent)]
    Cuda(#[from] CudaError),
    /// The compiler of the kernels, where it was asked for.
    #[error(transparent)]
    Nvrtc(#[from] NvrtcError),
    /// Something larger than the kernels are made for.
    #[error("{what} is {value}, and the kernels serve at most {most}; run it on the CPU")]
    Limit {
        /// What is too large.
        what: &'static str,
        /// What it is.
        value: usize,
        /// The limit.
        most: usize,
    },
}

impl CudaPathError {
    /// Whether the GPU's context is broken for good, see [`CudaError::is_sticky`].
    pub fn is_sticky(&self) -> bool {
        matches!(self, Self::Cuda(error) if error.is_sticky())
    }

    /// Whether the GPU had no memory left.
    pub fn is_out_of_memory(&self) -> bool {
        matches!(self, Self::Cuda(error) if error.is_out_of_memory())
    }

    /// Refuses what is larger than the kernels are made for.
    ///
    /// # Errors
    /// [`CudaPathError::Limit`].
    pub fn check_limit(what: &'static str, value: usize, most: usize) -> Result<(), Self> {
        if value > most { Err(Self::Limit { what, value, most }) } else { Ok(()) }
    }
}
