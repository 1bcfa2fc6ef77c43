//! The ConceptSeg trainer: from unlabelled images to a model bundle.
//!
//! ```text
//! images -> data (pseudo segments, two views) -> network (embedding) -> losses -> optimizer
//!                                                                          |
//!        bundle <- vocabulary (statistics through the runtime) <- export (ONNX) <- trainer
//! ```

pub mod checkpoint;
pub mod config;
pub mod data;
pub mod distributed;
pub mod diverged;
pub mod export;
pub mod interrupt;
pub mod losses;
pub mod network;
pub mod objective;
pub mod optimizer;
pub mod probe;
pub mod progress;
pub mod report;
pub mod state;
pub mod teacher;
pub mod tensorboard;
pub mod trainer;
pub mod vocabulary;
pub mod whitening;
