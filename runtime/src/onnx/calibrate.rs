//! Ranges of a network's maps on real images, for 8-bit numbers.
//!
//! The float network runs on the processor with the maps that will be quantised as further
//! outputs; the sizes of their numbers are counted, and the largest one to represent is chosen
//! from the counts.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::graph::plain;
use super::histogram::Histogram;
pub use super::histogram::Method;
use super::plan::Plan;
use super::proto::tensor_proto::DataType;
use super::proto::{TypeProto, ValueInfoProto, type_proto};
use super::{Model, OnnxError};
use crate::backend::{BackendOptions, Observe, open_observed};

/// Largest calibration file that is read, in bytes: a million ranges.
const MAX_FILE: u64 = 64 << 20;

/// Why a stored calibration cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CalibrationError {
    /// The file could not be read or written.
    #[error("cannot use the calibration {path}: {source}; check the path, or calibrate again")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the file system answered.
        source: io::Error,
    },
    /// The file is not a calibration.
    #[error("{path} is not a calibration ({reason}); calibrate again")]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// The largest number to represent in each map that is quantised.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// [`Model::fingerprint`] of the network.
    pub network: String,
    /// Images that were seen.
    pub frames: u64,
    /// How the numbers were chosen.
    pub method: Method,
    /// By the map's name, which is that of a node's output or of the input. Not negative.
    pub largest: BTreeMap<String, f32>,
}

impl Calibration {
    /// Reads what [`Self::write`] wrote.
    ///
    /// # Errors
    /// [`CalibrationError`].
    pub fn read(path: &Path) -> Result<Self, CalibrationError> {
        let io_error = |source| CalibrationError::Io { path: path.to_owned(), source };
        let format = |reason: String| CalibrationError::Format { path: path.to_owned(), reason };
        let size = std::fs::metadata(path).map_err(io_error)?.len();
        if size > MAX_FILE {
            return Err(format(format!("it has {size} bytes")));
        }
        let text = std::fs::read(path).map_err(io_error)?;
        let this: Self = serde_json::from_slice(&text).map_err(|e| format(e.to_string()))?;
        if let Some((name, _)) = this.largest.iter().find(|(_, v)| !v.is_finite() || **v < 0.0) {
            return Err(format(format!("the range of \"{name}\" is no range")));
        }
        Ok(this)
    }

    /// Writes it as JSON, under a temporary name first.
    ///
    /// # Errors
    /// [`CalibrationError::Io`].
    pub fn write(&self, path: &Path) -> Result<(), CalibrationError> {
        crate::files::write_atomic(path, |w| {
            serde_json::to_writer_pretty(&mut *w, self)?;
            w.write_all(b"\n")
        })
        .map_err(|source| CalibrationError::Io { path: path.to_owned(), source })
    }
}

/// Shows images to a float32 network and gathers how large the numbers of its maps are.
pub struct Calibrator {
    backend: Box<dyn Observe>,
    network: String,
    input: String,
    histograms: BTreeMap<String, Histogram>,
    frames: u64,
}

impl fmt::Debug for Calibrator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Calibrator")
            .field("maps", &self.histograms.len())
            .field("frames", &self.frames)
            .finish_non_exhaustive()
    }
}

impl Calibrator {
    /// Loads the network with the maps that [`super::quantize::quantize`] will round as outputs.
    /// Its batch must be open or 1.
    ///
    /// # Errors
    /// [`OnnxError`] for a network that cannot be quantised or that no backend takes.
    pub fn new(model: &Model, options: &BackendOptions) -> Result<Self, OnnxError> {
        let graph = plain(&model.graph)?;
        let maps = Plan::new(&graph, model.output())?.maps();
        let mut shown = graph.clone();
        for map in &maps {
            if map != model.input() && map != model.output() {
                shown.output.push(float_map(map));
            }
        }
        let proto = super::proto::ModelProto { graph: Some(shown), ..model.proto.clone() };
        let bytes = prost::Message::encode_to_vec(&proto);
        let backend = open_observed(&bytes, model.input(), model.output(), options)?;
        Ok(Self {
            backend,
            network: model.fingerprint(),
            input: model.input().to_owned(),
            histograms: maps.into_iter().map(|map| (map, Histogram::new())).collect(),
            frames: 0,
        })
    }

    /// Counts the numbers of all maps on one image `[3, height, width]`, normalised as the
    /// network takes it.
    ///
    /// # Errors
    /// [`OnnxError::Backend`] when the network does not run on it, [`OnnxError::Infinite`] when
    /// it gives numbers that are not finite.
    pub fn observe(&mut self, input: &[f32], width: usize, height: usize) -> Result<(), OnnxError> {
        let Self { backend, histograms, .. } = self;
        let mut infinite = None;
        let mut see = |name: &str, values: &[f32]| {
            if let Some(histogram) = histograms.get_mut(name)
                && !histogram.add(values)
            {
                infinite.get_or_insert_with(|| name.to_owned());
            }
        };
        see(&self.input, input);
        backend.observe(input, width, height, &mut see)?;
        if let Some(map) = infinite {
            return Err(OnnxError::Infinite { map });
        }
        self.frames += 1;
        Ok(())
    }

    /// Images seen so far.
    pub const fn frames(&self) -> u64 {
        self.frames
    }

    /// The ranges for what has been seen, by the default method.
    pub fn finish(&self) -> Calibration {
        self.finish_by(Method::default())
    }

    /// The ranges for what has been seen.
    pub fn finish_by(&self, method: Method) -> Calibration {
        let largest = |(name, histogram): (&String, &Histogram)| {
            let value = if *name == self.input {
                // Every colour can occur, also the rare ones.
                histogram.largest()
            } else {
                histogram.threshold(method)
            };
            (name.clone(), value)
        };
        Calibration {
            network: self.network.clone(),
            frames: self.frames,
            method,
            largest: self.histograms.iter().map(largest).collect(),
        }
    }
}

/// A float32 value of any shape.
fn float_map(name: &str) -> ValueInfoProto {
    let tensor = type_proto::Tensor { elem_type: Some(DataType::Float as i32), shape: None };
    ValueInfoProto {
        name: Some(name.to_owned()),
        r#type: Some(TypeProto {
            value: Some(type_proto::Value::TensorType(tensor)),
            ..TypeProto::default()
        }),
        ..ValueInfoProto::default()
    }
}
