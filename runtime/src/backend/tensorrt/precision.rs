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

#[cfg(test)]
mod tests {
    use super::super::key::{InputShape, tests::key};
    use super::*;
    use crate::backend::{BackendKind, BackendOptions};
    use crate::onnx::calibrate::Calibrator;
    use crate::onnx::testing::{PYRAMID, count, picture, pyramid};

    /// A network with layers that stand 8-bit integers, in a bundle's folder.
    fn stored() -> (tempfile::TempDir, NetworkFile, PlanKey) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("embedder.onnx");
        let model = pyramid();
        std::fs::write(&path, model.to_bytes()).unwrap();
        let network = NetworkFile {
            sha256: sha256_file(&path).unwrap(),
            input: model.input().to_owned(),
            output: model.output().to_owned(),
            path,
        };
        let (width, height) = PYRAMID;
        let input = InputShape::one(height as u32, width as u32);
        let key = PlanKey { input, onnx_sha256: network.sha256.clone(), ..key() };
        (folder, network, key)
    }

    fn prepared(network: &NetworkFile, key: &PlanKey) -> Result<Prepared, TensorRtError> {
        network.prepare(key, &PlanStore::of_network(&network.path))
    }

    #[test]
    fn eight_bit_integers_take_the_measured_ranges() {
        let (_folder, network, key) = stored();
        let key = PlanKey { precision: Precision::Int8, ..key };
        let store = PlanStore::of_network(&network.path);
        let path = store.calibration_path(&network.sha256);
        let text = prepared(&network, &key).err().unwrap().to_string();
        assert!(text.contains("cannot become a plan: cannot use the calibration"), "{text}");

        let cpu = BackendOptions::new(BackendKind::Rten, 1);
        let mut calibrator = Calibrator::new(&pyramid(), &cpu).unwrap();
        let (width, height) = PYRAMID;
        for seed in 0..2 {
            calibrator.observe(&picture(width, height, seed), width, height).unwrap();
        }
        store.create().unwrap();
        calibrator.finish().write(&path).unwrap();
        let Prepared { model, calibration } = prepared(&network, &key).unwrap();
        let model = Model::parse(&model).unwrap();
        assert!(count(&model, "QuantizeLinear") > 0);
        let entry = calibration.unwrap();
        assert_eq!((entry.frames, entry.sha256), (2, sha256_file(&path).unwrap()));

        let text = std::fs::read_to_string(&path).unwrap();
        let other = text.replace(&pyramid().fingerprint(), &"0".repeat(64));
        std::fs::write(&path, other).unwrap();
        let text = prepared(&network, &key).err().unwrap().to_string();
        assert!(text.contains("was measured on another network; calibrate again"), "{text}");
    }

    #[test]
    fn a_network_of_another_size_or_other_names_becomes_no_plan() {
        let (_folder, network, key) = stored();
        assert!(prepared(&network, &key).is_ok());
        let other = PlanKey { input: InputShape::one(96, 96), ..key.clone() };
        let text = prepared(&network, &other).err().unwrap().to_string();
        assert!(text.contains("embedder.onnx cannot become a plan"), "{text}");
        let renamed = NetworkFile { input: "picture".to_owned(), ..network };
        let text = prepared(&renamed, &key).err().unwrap().to_string();
        assert!(text.contains("its input is called image, not picture"), "{text}");
    }
}
