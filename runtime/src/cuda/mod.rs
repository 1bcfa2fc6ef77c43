//! Everything of a frame but the network, on an NVIDIA GPU.
//!
//! Each stage is the twin of a part that runs on the CPU, which stays the reference. Stages prepare their memory when the
//! size of the frames changes, and otherwise only put work into a stream, so that a whole frame can be captured into a
//! [`Graph`](conceptseg_tensorrt::cuda::Graph), as `stream` does. `docs/cuda.md` says how all this is tested without a GPU.

pub mod concepts;
mod device_frame;
pub mod embed;
mod embedder;
pub mod kernels;
mod launch;
mod merge;
pub mod overlay;
pub mod preprocess;
pub mod propagate;
mod resize;
mod stream;
#[cfg(test)]
pub(crate) mod testing;

use conceptseg_tensorrt::cuda::{CudaError, NvrtcError};
use thiserror::Error;

use crate::backend::tensorrt::TensorRtError;
use crate::concepts::ConceptError;
use crate::frame::PixelFormat;
use crate::propagate::{PropagateError, Protocol};

pub use device_frame::DeviceFrame;
pub(crate) use embedder::{GpuEmbedder, GpuInput};
pub use kernels::{KernelSource, Kernels};
pub use overlay::DevicePlane;
pub(crate) use stream::GpuStream;

/// Largest side of a frame in pixels.
pub const MAX_SIDE: usize = crate::frame::MAX_SIDE as usize;
/// Most channels of an embedding.
pub const MAX_DIM: usize = 256;
/// Most concepts of a vocabulary.
pub const MAX_CONCEPTS: usize = 4096;

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
    /// Something without extent.
    #[error("{what} is 0; it must be at least 1")]
    Zero {
        /// What is 0.
        what: &'static str,
    },
    /// Settings, embeddings and codebook that cannot be used together.
    #[error(transparent)]
    Concepts(#[from] ConceptError),
    /// TensorRT, in the midst of a frame.
    #[error(transparent)]
    TensorRt(#[from] TensorRtError),
    /// There are no kernels for this protocol of mask propagation.
    #[error(
        "masks are carried on the GPU with the protocol Dino only, not with {protocol:?}; run it on the CPU"
    )]
    Protocol {
        /// The protocol asked for.
        protocol: Protocol,
    },
    /// There are no kernels for frames of this format.
    #[error("{format} frames are prepared on the CPU; only the network runs on the GPU")]
    Format {
        /// The format.
        format: PixelFormat,
    },
    /// Masks of no size, or larger than frames can be.
    #[error("masks of {width}x{height} pixels cannot be made; each side must be 1 to {MAX_SIDE}")]
    Frame {
        /// Width asked for.
        width: u32,
        /// Height asked for.
        height: u32,
    },
    /// The masks cannot be carried, as on the CPU.
    #[error(transparent)]
    Propagate(#[from] PropagateError),
    /// A stage was given something else than it was prepared for.
    #[error(
        "the stage for {stage} is not prepared for this; prepare it for the sizes at hand first"
    )]
    NotPrepared {
        /// What the stage is for.
        stage: &'static str,
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

    /// Whether the kernels are not made for this, whatever the state of the GPU.
    pub(crate) fn is_unsuited(&self) -> bool {
        matches!(self, Self::Limit { .. } | Self::Protocol { .. } | Self::Format { .. })
    }

    /// Whether what was handed over cannot be used, and neither the GPU nor the kernels are to blame.
    pub(crate) fn is_of_caller(&self) -> bool {
        let memory = |error: &CudaError| {
            matches!(error, CudaError::NotAllocated { .. } | CudaError::EglImage { .. })
        };
        matches!(self, Self::Cuda(error) if memory(error))
    }

    /// Refuses what is 0 or larger than the kernels are made for.
    ///
    /// # Errors
    /// [`CudaPathError::Zero`] and [`CudaPathError::Limit`].
    pub fn check_size(what: &'static str, value: usize, most: usize) -> Result<(), Self> {
        if value == 0 { Err(Self::Zero { what }) } else { Self::check_limit(what, value, most) }
    }

    /// Refuses what is larger than the kernels are made for.
    ///
    /// # Errors
    /// [`CudaPathError::Limit`].
    pub fn check_limit(what: &'static str, value: usize, most: usize) -> Result<(), Self> {
        if value > most { Err(Self::Limit { what, value, most }) } else { Ok(()) }
    }
}
