//! The ConceptSeg runtime.

pub mod backend;
pub mod bundle;
pub mod concepts;
pub mod datasets;
mod dot;
pub mod embed;
pub mod files;
pub mod frame;
pub mod labels;
pub mod metrics;
pub mod overlay;
pub mod propagate;
pub mod results;
pub mod rle;
pub mod scene;
pub mod stream;
#[doc(hidden)]
pub mod testdata;
pub mod upsample;
