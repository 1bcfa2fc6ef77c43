//! The network as TensorRT gets it: one size, and numbers in the plan's precision.

use std::fmt;
use std::path::Path;

use super::build::NetworkFile;
use super::error::TensorRtError;
use super::key::{PlanKey, Precision};
use super::store::{CalibrationEntry, PlanStore};
use crate::backend::one_line;
use crate::files::sha256_file;
use crate::onnx::Model;
use crate::onnx::calibrate::Calibration;
use crate::onnx::half::{Half, to_half};
use crate::onnx::quantize::quantize;
use crate::onnx::shape::fix_input_shape;

/// A network ready for the parser.
pub(super) struct Prepared {
    /// ONNX.
    pub(super) model: Vec<u8>,
    /// The ranges of 8-bit integers.
    pub(super) calibration: Option<CalibrationEntry>,
}

impl NetworkFile {
    /// Brings the network to the size and precision of `key`.
    pub(super) fn prepare(
        &self,
        key: &PlanKey,
        store: &PlanStore,
    ) -> Result<Prepared, TensorRtError> {
        let whole = Model::parse(&self.read()?).map_err(|error| self.refuse(error))?;
        for (role, own, named) in
            [("input", whole.input(), &self.input), ("output", whole.output(), &self.output)]
        {
            if own != named {
                return Err(self.refuse(format!(
                    "its {role} is called {own}, not {named}; the bundle's manifest must name it"
                )));
            }
        }
        let size = key.input;
        let fixed = fix_input_shape(&whole, size.batch, size.height, size.width)
            .map_err(|error| self.refuse(error))?;
        let mut calibration = None;
        let model = match key.precision {
            Precision::Fp32 => fixed,
            Precision::Fp16 => self.halved(&fixed, Half::F16)?,
            Precision::Bf16 => self.halved(&fixed, Half::Bf16)?,
            Precision::Int8 => {
                let (ranges, entry) = self.ranges(&whole, &store.calibration_path(&self.sha256))?;
                calibration = Some(entry);
                let quantized = quantize(&fixed, &ranges).map_err(|error| self.refuse(error))?;
                self.halved(&quantized, Half::F16)?
            }
        };
        Ok(Prepared { model: model.to_bytes(), calibration })
    }

    fn halved(&self, model: &Model, half: Half) -> Result<Model, TensorRtError> {
        let halved = to_half(model, half).map_err(|error| self.refuse(error))?;
        for layer in &halved.kept {
            tracing::debug!("{} ({}) stays in fp32: {}", layer.node, layer.op, layer.reason);
        }
        Ok(halved.model)
    }

    /// The measured ranges, which must be those of this network.
    fn ranges(
        &self,
        model: &Model,
        path: &Path,
    ) -> Result<(Calibration, CalibrationEntry), TensorRtError> {
        let calibration = Calibration::read(path).map_err(|error| self.refuse(error))?;
        if calibration.network != model.fingerprint() {
            return Err(self.refuse(format!(
                "{} was measured on another network; calibrate again",
                path.display()
            )));
        }
        let sha256 = sha256_file(path)
            .map_err(|source| TensorRtError::Io { path: path.to_owned(), source })?;
        let entry = CalibrationEntry { frames: calibration.frames, sha256 };
        Ok((calibration, entry))
    }

    pub(super) fn refuse(&self, reason: impl fmt::Display) -> TensorRtError {
        TensorRtError::Network { path: self.path.clone(), reason: one_line(reason) }
    }
}
