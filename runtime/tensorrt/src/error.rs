//! What can go wrong, as one sentence each.

use std::path::PathBuf;

use thiserror::Error;

use crate::cuda::CudaError;
use crate::library::Version;
use crate::plan::PlanError;
use crate::types::DataType;

/// Whatever a call of this crate can end with.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// No file of the searched names could be opened.
    #[error(
        "TensorRT was not found ({tried}); install TensorRT 10 or 11, or name the folder of its libraries"
    )]
    NotFound {
        /// Every name that was tried, with the answer of the loader.
        tried: String,
    },
    /// The ONNX parser that belongs to the opened library is missing.
    #[error(
        "the ONNX parser of TensorRT was not found ({tried}); install libnvonnxparser of the same version"
    )]
    ParserNotFound {
        /// Every name that was tried, with the answer of the loader.
        tried: String,
    },
    /// A library lacks a function that every TensorRT has.
    #[error("{} has no function `{symbol}`; it is not a complete TensorRT library", path.display())]
    MissingSymbol {
        /// The opened file.
        path: PathBuf,
        /// The missing function.
        symbol: &'static str,
    },
    /// The interface tables are those of 64-bit Linux.
    #[error("{} cannot be used: only TensorRT for 64-bit Linux is served", path.display())]
    Platform {
        /// The opened file.
        path: PathBuf,
    },
    /// There is no interface table for this version.
    #[error("{} is TensorRT {version}, whose interface is not known here; install TensorRT 10 or 11", path.display())]
    UnknownVersion {
        /// The opened file.
        path: PathBuf,
        /// Its version.
        version: Version,
    },
    /// The parser's own interface has another version than the known ones.
    #[error(
        "{} is an ONNX parser of interface {interface}, which is not known here; install that of TensorRT {library}",
        path.display()
    )]
    ParserInterface {
        /// The parser's file.
        path: PathBuf,
        /// Version of its interface.
        interface: Version,
        /// Version of TensorRT.
        library: Version,
    },
    /// The lean runtime has no builder.
    #[error("{} is the lean runtime, which runs plans but builds none; install the full TensorRT to build", path.display())]
    NoBuilder {
        /// The lean library.
        path: PathBuf,
    },
    /// TensorRT gave nothing, or an address that cannot be an object, where an object was asked for.
    #[error("TensorRT could not {operation}: {detail}")]
    NoObject {
        /// What was asked for.
        operation: &'static str,
        /// What TensorRT reported.
        detail: String,
    },
    /// TensorRT refused a call.
    #[error("TensorRT could not {operation}: {detail}")]
    Failed {
        /// What was asked for.
        operation: &'static str,
        /// What TensorRT reported.
        detail: String,
    },
    /// A CUDA driver call failed.
    #[error(transparent)]
    Cuda(#[from] CudaError),
    /// A plan is broken or not the expected one.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The engine has no tensor of this name.
    #[error("the engine has no tensor `{tensor}`; it has {known}")]
    UnknownTensor {
        /// The name asked for.
        tensor: String,
        /// The names that exist.
        known: String,
    },
    /// A shape was given for an output.
    #[error("tensor `{tensor}` is an output; its shape follows from the inputs and cannot be set")]
    NotAnInput {
        /// The output.
        tensor: String,
    },
    /// A shape that the engine does not accept.
    #[error("tensor `{tensor}` cannot have shape {given:?}: {reason}")]
    Shape {
        /// Name of the tensor.
        tensor: String,
        /// The shape given.
        given: Vec<i64>,
        /// What it must be instead.
        reason: String,
    },
    /// A buffer of another element type than the tensor.
    #[error("tensor `{tensor}` holds {expected}, but the buffer holds {given}")]
    Type {
        /// Name of the tensor.
        tensor: String,
        /// Type of the tensor.
        expected: DataType,
        /// Type of the buffer.
        given: DataType,
    },
    /// A buffer smaller than the tensor.
    #[error(
        "tensor `{tensor}` of shape {shape:?} needs {needed} bytes, but its buffer has {given}"
    )]
    BufferTooSmall {
        /// Name of the tensor.
        tensor: String,
        /// Its shape now.
        shape: Vec<i64>,
        /// Bytes of that shape.
        needed: u64,
        /// Bytes of the buffer.
        given: u64,
    },
    /// A buffer on another GPU than the engine.
    #[error("tensor `{tensor}` is on GPU {engine}, but its buffer is on GPU {buffer}")]
    OtherDevice {
        /// Name of the tensor.
        tensor: String,
        /// Device of the engine.
        engine: u32,
        /// Device of the buffer.
        buffer: u32,
    },
    /// A tensor without a buffer when the network is to run.
    #[error("tensor `{tensor}` has no buffer; bind one before the network runs")]
    Unbound {
        /// Name of the tensor.
        tensor: String,
    },
    /// An input of open size, or an output that depends on one, when the network is to run.
    #[error(
        "tensor `{tensor}` has the open shape {shape:?}; set the shapes of all inputs before the network runs"
    )]
    OpenShape {
        /// Name of the tensor.
        tensor: String,
        /// Its shape, -1 where open.
        shape: Vec<i64>,
    },
    /// A tensor of a kind that this crate does not serve.
    #[error("tensor `{tensor}` cannot be used: {reason}")]
    UnsupportedTensor {
        /// Name of the tensor.
        tensor: String,
        /// Why not.
        reason: String,
    },
    /// An option that this library or GPU does not take.
    #[error("the option {option} = {value} was refused: {reason}")]
    Option {
        /// Name of the option.
        option: &'static str,
        /// The value asked for.
        value: String,
        /// Why not.
        reason: String,
    },
    /// A name or path that a C string cannot hold.
    #[error("{what} contains a zero byte or is not valid text")]
    Text {
        /// What was given.
        what: &'static str,
    },
}
