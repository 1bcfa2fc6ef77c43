//! Writes trained networks for the runtime.

pub mod bundle;
pub mod check;
mod matrices;
pub mod onnx;
pub mod quantize;
