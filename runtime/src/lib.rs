//! The ConceptSeg runtime.

pub mod bundle;
pub mod datasets;
pub mod files;
pub mod frame;
pub mod labels;
pub mod metrics;
pub mod scene;
#[doc(hidden)]
pub mod testdata;
