//! The ConceptSeg runtime: labels every pixel of a video with concepts that were learned
//! without labels, and carries instance masks from the first frame along the stream.
//!
//! What a frame goes through:
//!
//! ```text
//! pixels -> frame::FrameView -> frame::Preprocessor -> backend -> embed::EmbeddingMap
//! EmbeddingMap -> concepts::ConceptLabeler -> ConceptMap   a concept for every pixel
//! EmbeddingMap -> propagate::Propagator    -> MaskMap      an instance for every pixel
//! ConceptMap, MaskMap -> overlay | results | metrics | GStreamer metadata
//! ```
//!
//! [`stream::StreamState`] does all of it for one video; any number of streams share one
//! [`embed::Model`]:
//!
//! ```no_run
//! use conceptseg::{backend::BackendOptions, embed::Model, frame::FrameView};
//! use conceptseg::{labels::LabelMap, stream::{StreamConfig, StreamState}};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let model = Model::open("models/starter".as_ref(), &BackendOptions::default())?;
//! let mut stream = StreamState::new(model, StreamConfig::default());
//! stream.set_instances(LabelMap::read_png("first.png".as_ref())?);
//! # let frames: Vec<Vec<u8>> = Vec::new();
//! for rgb in &frames {
//!     let result = stream.process(&FrameView::rgb(854, 480, rgb)?)?;
//!     if let Some(masks) = &result.masks {
//!         for instance in &masks.instances {
//!             println!("{}: {} pixels", instance.id, instance.area);
//!         }
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! `docs/architecture.md` in the repository says which module may import which, and why.

pub mod atlas;
pub mod backend;
pub mod bundle;
pub mod concepts;
pub mod cuda;
pub mod datasets;
mod dot;
pub mod embed;
pub mod errors;
pub mod evaluate;
pub mod files;
pub mod frame;
pub mod http;
pub mod labels;
pub mod memory;
pub mod metrics;
pub mod monitor;
pub mod onnx;
pub mod overlay;
pub mod propagate;
pub mod results;
pub mod rle;
pub mod scene;
pub mod stream;
#[doc(hidden)]
pub mod testdata;
pub mod upsample;
