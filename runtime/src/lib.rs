//! The ConceptSeg runtime.

pub mod files;
pub mod labels;
#[doc(hidden)]
pub mod testdata;
