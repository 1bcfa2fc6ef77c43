//! Writes trained networks for the runtime.

pub mod check;
pub mod onnx;
mod onnx_proto;
