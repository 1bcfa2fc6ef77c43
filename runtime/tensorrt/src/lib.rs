#![doc = include_str!("../README.md")]
// The interface is one of C++ objects: addresses, virtual tables and C functions. Each block says why it holds.
#![allow(unsafe_code)]
#![warn(clippy::undocumented_unsafe_blocks)]

mod abi;
mod builder;
mod callback;
mod config;
mod context;
pub mod cuda;
mod engine;
mod error;
mod ffi;
mod library;
mod logger;
mod network;
mod parser;
mod plan;
mod profile;
mod recorder;
mod runtime;
mod timing_cache;
mod types;

pub use builder::Builder;
pub use config::{BuilderConfig, Hardware};
pub use context::ExecutionContext;
pub use engine::Engine;
pub use error::Error;
pub use library::{Library, OnnxParserLibrary, Search, Version};
pub use logger::{Logger, Severity};
pub use network::{Network, NetworkTensor};
pub use parser::OnnxParser;
pub use plan::{Plan, PlanError, Seal};
pub use profile::OptimizationProfile;
pub use recorder::{ErrorCode, RecordedError};
pub use runtime::Runtime;
pub use timing_cache::TimingCache;
pub use types::{DataType, Element, ShapeRange, TensorInfo, TensorMode};
