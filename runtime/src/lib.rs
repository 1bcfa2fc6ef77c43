//! The ConceptSeg runtime.

pub mod bundle;
pub mod files;
pub mod labels;
#[doc(hidden)]
pub mod testdata;
