//! Everything of a frame but the network, on an NVIDIA GPU.
//!
//! Each stage is the twin of a part that runs on the CPU, which stays the reference. Stages prepare
//! their memory when the size of the frames changes, and otherwise only put work into a stream, so that
//! a whole frame can be recorded as a [`Graph`](conceptseg_tensorrt::cuda::Graph); `stream` does
//! that. `docs/cuda.md` says how all this is tested without a GPU.

mod concepts;
mod embed;
pub mod kernels;
mod merge;
mod overlay;
mod preprocess;
mod propagate;
mod resize;
mod stream;
#[cfg(test)]
mod testing;

use conceptseg_tensorrt::cuda::{CudaError, NvrtcError};

pub use kernels::{KernelSource, Kernels};
pub(crate) use stream::GpuStream;

use crate::backend::tensorrt::TensorRtError;
use crate::propagate::{PropagateError, Protocol};

/// Why something could not be done on the GPU.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GpuError {
    /// The GPU or its driver.
    #[error(transparent)]
    Cuda(#[from] CudaError),
    /// The compiler of the kernels, where it was asked for.
    #[error(transparent)]
    Nvrtc(#[from] NvrtcError),
    /// A size is beyond what the kernels take.
    #[error("the {what} is {value}, but the kernels take 1 to {max}; use the CPU for it")]
    Limit {
        /// What.
        what: &'static str,
        /// Its value.
        value: usize,
        /// The largest value.
        max: usize,
    },
    /// There are no kernels for this protocol of mask propagation.
    #[error("masks are carried on the GPU with the protocol Dino only, not with {protocol:?}; use the CPU for it")]
    Protocol {
        /// The protocol asked for.
        protocol: Protocol,
    },
    /// Embeddings and codebook have different numbers of dimensions.
    #[error(
        "the embeddings have {embedding} dimensions, the codebook {codebook}; export the bundle again"
    )]
    Codebook {
        /// Dimensions of the embeddings.
        embedding: usize,
        /// Dimensions of the codebook.
        codebook: usize,
    },
    /// TensorRT.
    #[error(transparent)]
    TensorRt(#[from] TensorRtError),
    /// The masks cannot be carried, as on the CPU.
    #[error(transparent)]
    Propagate(#[from] PropagateError),
    /// A stage was used before its memory was made for that size, which is a mistake in this program.
    #[error("a stage on the GPU was given a frame that it was not prepared for")]
    NotPrepared,
}

impl GpuError {
    /// Refuses 0 and what is beyond `max`.
    fn check(what: &'static str, value: usize, max: usize) -> Result<(), Self> {
        if (1..=max).contains(&value) { Ok(()) } else { Err(Self::Limit { what, value, max }) }
    }

    /// Whether the kernels are not made for this, whatever the state of the GPU.
    pub(crate) fn is_unsuited(&self) -> bool {
        matches!(self, Self::Limit { .. } | Self::Protocol { .. })
    }
}
